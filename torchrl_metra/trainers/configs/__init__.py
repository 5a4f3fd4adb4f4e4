"""Structured configs for Hydra, registered beside TorchRL's.

Importing this package is all it takes for a configuration file of TorchRL to compose METRA:
``trainer: metra``, ``loss: metra``, ``transform: skill_primer`` and so on.
"""

# ruff: noqa: E402
from torchrl_metra._extras import require

require("hydra", extra="run")

from torchrl_metra.recipes.names import suggest_names
from torchrl_metra.trainers.configs.data import (
    FrameStackStorageConfig,
    OneHotConfig,
    StandardNormalConfig,
    UnitSphereConfig,
)
from torchrl_metra.trainers.configs.envs import (
    GoalPrimerConfig,
    IntrinsicRewardTransformConfig,
    MakeEnvConfig,
    PixelOptionsConfig,
    PointEnvConfig,
    SampleGoalsConfig,
    SkillActionConfig,
    SkillPrimerConfig,
)
from torchrl_metra.trainers.configs.modules import (
    GoalReachingPolicyConfig,
    PixelSACNetworksConfig,
    SACNetworksConfig,
    SkillConditionedActorConfig,
    SkillPolicyConfig,
)
from torchrl_metra.trainers.configs.objectives import (
    BatchedSACLossConfig,
    CICLossConfig,
    ControllabilityDistanceConfig,
    CSDLossConfig,
    CSFLossConfig,
    DADSLossConfig,
    DIAYNLossConfig,
    L2DistanceConfig,
    LSDLossConfig,
    METRALossConfig,
    RNDBaselineConfig,
    SuccessorFeatureSACLossConfig,
)
from torchrl_metra.trainers.configs.trainers import (
    LogCoverageConfig,
    LogRatesConfig,
    METRAHookConfig,
    METRAOptimizationStepperConfig,
    METRAOptimizersConfig,
    METRATrainerConfig,
    SkillEvaluationConfig,
)

__all__ = [
    "BatchedSACLossConfig",
    "CICLossConfig",
    "CSDLossConfig",
    "CSFLossConfig",
    "ControllabilityDistanceConfig",
    "DADSLossConfig",
    "DIAYNLossConfig",
    "FrameStackStorageConfig",
    "GoalPrimerConfig",
    "GoalReachingPolicyConfig",
    "IntrinsicRewardTransformConfig",
    "L2DistanceConfig",
    "LSDLossConfig",
    "LogCoverageConfig",
    "LogRatesConfig",
    "METRAHookConfig",
    "METRALossConfig",
    "METRAOptimizationStepperConfig",
    "METRAOptimizersConfig",
    "METRATrainerConfig",
    "MakeEnvConfig",
    "OneHotConfig",
    "PixelOptionsConfig",
    "PixelSACNetworksConfig",
    "PointEnvConfig",
    "RNDBaselineConfig",
    "SACNetworksConfig",
    "SampleGoalsConfig",
    "SkillActionConfig",
    "SkillConditionedActorConfig",
    "SkillEvaluationConfig",
    "SkillPolicyConfig",
    "SkillPrimerConfig",
    "StandardNormalConfig",
    "SuccessorFeatureSACLossConfig",
    "UnitSphereConfig",
    "suggest_names",
]
