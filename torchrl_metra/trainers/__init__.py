"""METRA on TorchRL's trainer loop."""

from torchrl_metra.trainers.hooks import LogRates, LogTotalCoverage, SkillEvaluation
from torchrl_metra.trainers.metra import (
    METRAHook,
    METRAOptimizationStepper,
    METRATrainer,
    make_metra_optimizers,
)

__all__ = [
    "LogRates",
    "LogTotalCoverage",
    "METRAHook",
    "METRAOptimizationStepper",
    "METRATrainer",
    "SkillEvaluation",
    "make_metra_optimizers",
]
