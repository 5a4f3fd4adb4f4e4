"""Configs of environments, of the skills' transforms and of goals."""

from __future__ import annotations

from torchrl.trainers.algorithms.configs.envs import EnvConfig
from torchrl.trainers.algorithms.configs.transforms import TransformConfig

from torchrl_metra import (
    GoalPrimer,
    IntrinsicRewardTransform,
    PixelOptions,
    PointEnv,
    SkillAction,
    SkillPrimer,
    make_env,
    sample_goals,
)
from torchrl_metra.trainers.configs.common import PlainConfig, configures

__all__ = [
    "GoalPrimerConfig",
    "IntrinsicRewardTransformConfig",
    "MakeEnvConfig",
    "PixelOptionsConfig",
    "PointEnvConfig",
    "SampleGoalsConfig",
    "SkillActionConfig",
    "SkillPrimerConfig",
]


@configures(PointEnv, group="env", name="point_env")
class PointEnvConfig(EnvConfig):
    """Fields of :class:`~torchrl_metra.PointEnv`."""


@configures(make_env, group="env", name="make_env")
class MakeEnvConfig(EnvConfig):
    """Fields of :func:`~torchrl_metra.make_env`, which builds any environment."""


@configures(PixelOptions, group="pixels", name="options")
class PixelOptionsConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.PixelOptions`."""


@configures(SkillPrimer, group="transform", name="skill_primer")
class SkillPrimerConfig(TransformConfig):
    """Fields of :class:`~torchrl_metra.SkillPrimer`."""


@configures(IntrinsicRewardTransform, group="transform", name="intrinsic_reward")
class IntrinsicRewardTransformConfig(TransformConfig):
    """Fields of :class:`~torchrl_metra.IntrinsicRewardTransform`."""


@configures(GoalPrimer, group="transform", name="goal_primer")
class GoalPrimerConfig(TransformConfig):
    """Fields of :class:`~torchrl_metra.GoalPrimer`."""


@configures(SkillAction, group="transform", name="skill_action")
class SkillActionConfig(TransformConfig):
    """Fields of :class:`~torchrl_metra.SkillAction`."""


@configures(sample_goals, group="goals", name="sample")
class SampleGoalsConfig(PlainConfig):
    """Fields of :func:`~torchrl_metra.sample_goals`."""
