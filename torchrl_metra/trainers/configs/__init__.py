"""Structured configs for Hydra, registered beside TorchRL's.

Importing this package is all it takes for a configuration file of TorchRL to compose METRA:
``trainer: metra``, ``loss: metra``, ``transform: skill_primer`` and so on.

The configs of parts, ``METRALossConfig`` and so on, are made from signatures:

Examples:
    >>> from hydra.utils import instantiate
    >>> from torchrl.trainers.algorithms.configs import MLPConfig
    >>> from torchrl_metra.trainers.configs import METRALossConfig, UnitSphereConfig
    >>> encoder = MLPConfig(in_features=2, out_features=2)
    >>> config = METRALossConfig(encoder=encoder, prior=UnitSphereConfig(dim=2), slack=0.01)
    >>> instantiate(config).slack
    0.01
"""

# ruff: noqa: E402
from torchrl_metra._extras import require

require("hydra", extra="run")

from hydra.utils import get_object
from torchrl.trainers.algorithms.configs.data import StorageConfig
from torchrl.trainers.algorithms.configs.envs import EnvConfig
from torchrl.trainers.algorithms.configs.hooks import HookConfig
from torchrl.trainers.algorithms.configs.modules import NetworkConfig
from torchrl.trainers.algorithms.configs.objectives import LossConfig
from torchrl.trainers.algorithms.configs.transforms import TransformConfig

from torchrl_metra.recipes.names import suggest_names
from torchrl_metra.recipes.store import register_presets
from torchrl_metra.trainers.configs import targets
from torchrl_metra.trainers.configs.common import PlainConfig, make_config, store
from torchrl_metra.trainers.configs.trainer import METRATrainerConfig

# What is configured, by group with TorchRL's base class for it, and by name.
CONFIGURED = {
    ("distance", PlainConfig): {"l2": "L2Distance", "controllability": "ControllabilityDistance"},
    ("env", EnvConfig): {"point_env": "PointEnv", "make_env": "make_env"},
    ("goals", PlainConfig): {"sample": "sample_goals"},
    ("hook", HookConfig): {
        "metra": "SkillHook",
        "skill_evaluation": "trainers.SkillEvaluation",
        "log_coverage": "trainers.LogCoverage",
        "log_rates": "trainers.LogRates",
    },
    ("loss", LossConfig): {
        "metra": "METRALoss",
        "genda": "GenDaLoss",
        "csd": "CSDLoss",
        "lsd": "LSDLoss",
        "diayn": "DIAYNLoss",
        "dads": "DADSLoss",
        "cic": "CICLoss",
        "csf": "CSFLoss",
        "rnd": "RNDBaseline",
        "batched_sac": "BatchedSACLoss",
        "successor_sac": "SuccessorFeatureSACLoss",
    },
    ("network", NetworkConfig): {
        "sac": "make_sac_networks",
        "pixel_sac": "make_pixel_sac_networks",
        "skill_conditioned_actor": "SkillConditionedActor",
        "goal_reaching_policy": "GoalReachingPolicy",
        "skill_policy": "SkillPolicy.load",
    },
    ("optimizer", PlainConfig): {"metra": "make_metra_optimizers"},
    ("pixels", PlainConfig): {"options": "PixelOptions"},
    ("skill_prior", PlainConfig): {
        "unit_ball": "UnitBall",
        "unit_sphere": "UnitSphere",
        "standard_normal": "StandardNormal",
        "one_hot": "OneHot",
    },
    ("stepper", PlainConfig): {"metra": "METRAOptimizationStepper"},
    ("storage", StorageConfig): {"episode": "EpisodeStorage", "frame_stack": "FrameStackStorage"},
    ("transform", TransformConfig): {
        "skill_primer": "SkillPrimer",
        "intrinsic_reward": "IntrinsicRewardTransform",
        "goal_primer": "GoalPrimer",
        "relabel_skills": "RelabelSkills",
        "skill_action": "SkillAction",
    },
}
# Configs of functions are called after what these make.
NAMES = {
    "SkillPolicy.load": "SkillPolicy",
    "make_env": "MakeEnv",
    "make_metra_optimizers": "METRAOptimizers",
    "make_pixel_sac_networks": "PixelSACNetworks",
    "make_sac_networks": "SACNetworks",
    "sample_goals": "SampleGoals",
}
# Its actor and its critics, by the names of the base class.
WITHOUT = {"SuccessorFeatureSACLoss": ("actor_network", "qvalue_network")}

__all__ = ["METRATrainerConfig", "suggest_names"]

for (group, base), choices in CONFIGURED.items():
    for choice, what in choices.items():
        target = f"torchrl_metra.{what}"
        constructor = get_object(target)
        if hasattr(targets, f"make_{choice}_{group}"):
            target = f"{targets.__name__}.make_{choice}_{group}"
        class_name = f"{NAMES.get(what, what.rpartition('.')[2])}Config"
        globals()[class_name] = make_config(
            class_name, constructor, target=target, base=base, without=WITHOUT.get(what, ())
        )
        store(choice, group, globals()[class_name])
        __all__ += [class_name]

#: Its name in version 0.1.
METRAHookConfig = globals()["SkillHookConfig"]
store("metra", "trainer", METRATrainerConfig)
register_presets()
