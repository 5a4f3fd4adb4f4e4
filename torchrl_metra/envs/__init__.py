"""Environments of the paper and the transforms that bring skills to any environment."""

from torchrl_metra.envs.envpool import EnvPoolEnv
from torchrl_metra.envs.make import make_env
from torchrl_metra.envs.mujoco import ReadPosition
from torchrl_metra.envs.point import PointEnv
from torchrl_metra.envs.transforms import IntrinsicRewardTransform, SkillPrimer

__all__ = [
    "EnvPoolEnv",
    "IntrinsicRewardTransform",
    "PointEnv",
    "ReadPosition",
    "SkillPrimer",
    "make_env",
]
