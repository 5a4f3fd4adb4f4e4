"""METRA on TorchRL's trainer loop."""

from torchrl_metra.trainers.checkpoint import DamagedCheckpointError, VerifiedCheckpoint, resume
from torchrl_metra.trainers.collector_state import CollectorState
from torchrl_metra.trainers.diagnosis import Diagnosis, FailureWarning
from torchrl_metra.trainers.faults import (
    CollectionTimeoutError,
    DivergenceError,
    TrainingStoppedError,
)
from torchrl_metra.trainers.graph import UpdateGraph
from torchrl_metra.trainers.hooks import (
    LogCoverage,
    LogRates,
    METRAHook,
    SkillEvaluation,
    SkillHook,
)
from torchrl_metra.trainers.metra import METRATrainer
from torchrl_metra.trainers.optimizers import make_metra_optimizers
from torchrl_metra.trainers.stepper import METRAOptimizationStepper

__all__ = [
    "CollectionTimeoutError",
    "CollectorState",
    "DamagedCheckpointError",
    "Diagnosis",
    "DivergenceError",
    "FailureWarning",
    "LogCoverage",
    "LogRates",
    "METRAHook",
    "METRAOptimizationStepper",
    "METRATrainer",
    "SkillEvaluation",
    "SkillHook",
    "TrainingStoppedError",
    "UpdateGraph",
    "VerifiedCheckpoint",
    "make_metra_optimizers",
    "resume",
]
