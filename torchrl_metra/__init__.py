"""METRA: unsupervised skill discovery as a TorchRL plug-in."""

from torchrl_metra.data import FrameStackStorage, OneHot, SkillPrior, StandardNormal, UnitSphere
from torchrl_metra.envs import (
    GoalPrimer,
    IntrinsicRewardTransform,
    PixelOptions,
    PointEnv,
    SkillAction,
    SkillPrimer,
    make_env,
    sample_goals,
)
from torchrl_metra.modules import (
    GoalReachingPolicy,
    SACNetworks,
    SkillConditionedActor,
    SkillPolicy,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.objectives import (
    BatchedSACLoss,
    ControllabilityDistance,
    L2Distance,
    METRALoss,
)
from torchrl_metra.trainers import (
    METRAHook,
    METRAOptimizationStepper,
    METRATrainer,
    make_metra_optimizers,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "BatchedSACLoss",
    "ControllabilityDistance",
    "FrameStackStorage",
    "GoalPrimer",
    "GoalReachingPolicy",
    "IntrinsicRewardTransform",
    "L2Distance",
    "METRAHook",
    "METRALoss",
    "METRAOptimizationStepper",
    "METRATrainer",
    "OneHot",
    "PixelOptions",
    "PointEnv",
    "SACNetworks",
    "SkillAction",
    "SkillConditionedActor",
    "SkillPolicy",
    "SkillPrimer",
    "SkillPrior",
    "StandardNormal",
    "UnitSphere",
    "make_env",
    "make_metra_optimizers",
    "make_pixel_sac_networks",
    "make_sac_networks",
    "sample_goals",
]
