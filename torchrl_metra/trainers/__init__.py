"""METRA on TorchRL's trainer loop."""

from torchrl_metra.trainers.graph import UpdateGraph
from torchrl_metra.trainers.hooks import LogCoverage, LogRates, SkillEvaluation
from torchrl_metra.trainers.metra import METRAHook, METRATrainer
from torchrl_metra.trainers.stepper import METRAOptimizationStepper, make_metra_optimizers

__all__ = [
    "LogCoverage",
    "LogRates",
    "METRAHook",
    "METRAOptimizationStepper",
    "METRATrainer",
    "SkillEvaluation",
    "UpdateGraph",
    "make_metra_optimizers",
]
