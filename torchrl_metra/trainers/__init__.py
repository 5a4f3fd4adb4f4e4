"""METRA on TorchRL's trainer loop."""

from torchrl_metra.trainers.graph import UpdateGraph
from torchrl_metra.trainers.hooks import LogRates, LogTotalCoverage, SkillEvaluation
from torchrl_metra.trainers.metra import METRAHook, METRATrainer
from torchrl_metra.trainers.stepper import METRAOptimizationStepper, make_metra_optimizers

__all__ = [
    "LogRates",
    "LogTotalCoverage",
    "METRAHook",
    "METRAOptimizationStepper",
    "METRATrainer",
    "SkillEvaluation",
    "UpdateGraph",
    "make_metra_optimizers",
]
