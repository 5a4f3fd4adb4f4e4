"""Environments of the paper and the transforms that bring skills to any environment."""

from torchrl_metra.envs.envpool import EnvPoolEnv
from torchrl_metra.envs.kitchen import KITCHEN_TASKS
from torchrl_metra.envs.make import make_env
from torchrl_metra.envs.mujoco import ReadPosition
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.point import DrawPoint, PointEnv
from torchrl_metra.envs.rendering import FreeCamera, Renderer, rendering_available
from torchrl_metra.envs.transforms import IntrinsicRewardTransform, SkillPrimer

__all__ = [
    "KITCHEN_TASKS",
    "DrawPoint",
    "EnvPoolEnv",
    "FreeCamera",
    "IntrinsicRewardTransform",
    "PixelOptions",
    "PointEnv",
    "ReadPosition",
    "Renderer",
    "SkillPrimer",
    "make_env",
    "rendering_available",
]
