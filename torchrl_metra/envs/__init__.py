"""Environments of the paper and the transforms that bring skills to any environment."""

from torchrl_metra.envs import locomotion as locomotion  # Registers its robots.
from torchrl_metra.envs.envpool import EnvPoolEnv
from torchrl_metra.envs.goals import sample_goals
from torchrl_metra.envs.kitchen import KITCHEN_TASKS
from torchrl_metra.envs.make import make_env
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask, add_frame_sensors, measured
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.point import DrawPoint, PointEnv, WindyPointEnv
from torchrl_metra.envs.registry import EnvEntry, find_env, register_env, registered_envs
from torchrl_metra.envs.rendering import FreeCamera, Renderer, rendering_available
from torchrl_metra.envs.statistics import measure_observations
from torchrl_metra.envs.tasks import PassHurdles, ReachGoals
from torchrl_metra.envs.transforms import (
    GoalPrimer,
    IntrinsicRewardTransform,
    ReadPosition,
    SkillAction,
    SkillPrimer,
)

__all__ = [
    "KITCHEN_TASKS",
    "DrawPoint",
    "EnvEntry",
    "EnvPoolEnv",
    "FreeCamera",
    "GoalPrimer",
    "IntrinsicRewardTransform",
    "MuJoCoPoolEnv",
    "MuJoCoTask",
    "PassHurdles",
    "PixelOptions",
    "PointEnv",
    "ReachGoals",
    "ReadPosition",
    "Renderer",
    "SkillAction",
    "SkillPrimer",
    "WindyPointEnv",
    "add_frame_sensors",
    "find_env",
    "make_env",
    "measure_observations",
    "measured",
    "register_env",
    "registered_envs",
    "rendering_available",
    "sample_goals",
]
