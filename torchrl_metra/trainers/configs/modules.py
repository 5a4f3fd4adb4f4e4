"""Configs of networks and policies."""

from __future__ import annotations

from torchrl.trainers.algorithms.configs.modules import NetworkConfig

from torchrl_metra import (
    GoalReachingPolicy,
    SkillConditionedActor,
    SkillPolicy,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.trainers.configs.common import configures

__all__ = [
    "GoalReachingPolicyConfig",
    "PixelSACNetworksConfig",
    "SACNetworksConfig",
    "SkillConditionedActorConfig",
    "SkillPolicyConfig",
]


@configures(make_sac_networks, group="network", name="sac")
class SACNetworksConfig(NetworkConfig):
    """Fields of :func:`~torchrl_metra.make_sac_networks`: networks for vectors."""


@configures(make_pixel_sac_networks, group="network", name="pixel_sac")
class PixelSACNetworksConfig(NetworkConfig):
    """Fields of :func:`~torchrl_metra.make_pixel_sac_networks`: networks for pictures."""


@configures(SkillConditionedActor, group="network", name="skill_conditioned_actor")
class SkillConditionedActorConfig(NetworkConfig):
    """Fields of :class:`~torchrl_metra.SkillConditionedActor`."""


@configures(GoalReachingPolicy, group="network", name="goal_reaching_policy")
class GoalReachingPolicyConfig(NetworkConfig):
    """Fields of :class:`~torchrl_metra.GoalReachingPolicy`."""


@configures(SkillPolicy.load, group="network", name="skill_policy")
class SkillPolicyConfig(NetworkConfig):
    """Fields of :meth:`SkillPolicy.load <torchrl_metra.SkillPolicy.load>`: skills from a file."""
