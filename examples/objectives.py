"""What ``objective=`` names: a skill loss, the loss of its policy, and the networks they take.

All of them share the networks of policy, critics and encoder, and the settings of SAC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torchrl.envs import EnvBase

from torchrl_metra import (
    BatchedSACLoss,
    CICLoss,
    ControllabilityDistance,
    CSDLoss,
    CSFLoss,
    DADSLoss,
    DIAYNLoss,
    L2Distance,
    LSDLoss,
    METRALoss,
    OneHot,
    RNDBaseline,
    SkillLoss,
    SkillPrior,
    StandardNormal,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.modules import SACNetworks
from torchrl_metra.modules.networks import make_encoder


def make_prior(config: DictConfig) -> SkillPrior:
    """The run's skills; DIAYN, DADS and CIC draw continuous ones from a normal distribution."""
    prior = SkillPrior.from_config(config.skill)
    if config.objective in ("diayn", "dads", "cic") and isinstance(prior, UnitSphere):
        return StandardNormal(prior.dim)
    return prior


def make_networks(config: DictConfig, env: EnvBase, prior: SkillPrior) -> SACNetworks:
    """The paper's networks for what the environment shows: pictures or vectors."""
    options: dict[str, Any] = {"num_cells": config.num_cells}
    if config.objective == "csf":
        options["value_size"] = prior.dim
    if config.pixels:
        shape = env.observation_spec["pixels"].shape[-3:]
        return make_pixel_sac_networks(shape, env.action_spec, prior, **options, **config.encoder)
    return make_sac_networks(_observation_size(env), env.action_spec, prior, **options)


def make_skill_loss(
    config: DictConfig, env: EnvBase, encoder: nn.Module, prior: SkillPrior
) -> SkillLoss:
    """The objective that the settings name."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {config.objective!r}, expected {list(OBJECTIVES)}.")
    if config.pixels and config.objective in VECTORS_ONLY:
        raise ValueError(
            f"objective={config.objective} models vectors, but {config.env!r} is observed by "
            f"pictures: take one of {[name for name in OBJECTIVES if name not in VECTORS_ONLY]}."
        )
    build = OBJECTIVES[config.objective]
    return build(Ingredients(config, env, encoder, prior)).to(config.device)


def make_policy_loss(
    config: DictConfig, env: EnvBase, networks: SACNetworks, prior: SkillPrior
) -> BatchedSACLoss:
    """SAC with the authors' settings, on rewards or, for CSF, on successor features."""
    options = {
        "loss_function": "l2",
        "target_entropy": -env.action_spec.shape[-1] / 2,
        **config.sac,
    }
    if config.objective == "csf":
        sac_loss: BatchedSACLoss = SuccessorFeatureSACLoss(
            networks.actor, networks.critics, prior, **options
        )
    else:
        sac_loss = BatchedSACLoss(networks.actor, networks.critics, **options)
    sac_loss.make_value_estimator(gamma=config.gamma)
    return sac_loss


@dataclass
class Ingredients:
    """What objectives are made of."""

    config: DictConfig
    env: EnvBase
    encoder: nn.Module
    prior: SkillPrior

    @property
    def size(self) -> int:
        """Of the observation vector."""
        return _observation_size(self.env)

    def network(self, in_features: int, out_features: int) -> nn.Module:
        """One more network, of the encoder's kind."""
        return make_encoder(in_features, out_features, self.config.num_cells)


def _csd(of: Ingredients) -> SkillLoss:
    distance = ControllabilityDistance(*(of.network(of.size, of.size) for _ in range(2)))
    return CSDLoss(of.encoder, of.prior, distance, **of.config.metra)


def _diayn(of: Ingredients) -> SkillLoss:
    if isinstance(of.prior, OneHot) or of.config.pixels:
        return DIAYNLoss(of.encoder, of.prior)
    return DIAYNLoss(of.encoder, of.prior, log_std=of.network(of.size, of.prior.dim))


def _cic(of: Ingredients) -> SkillLoss:
    query, key = (of.network(count * of.prior.dim, of.prior.dim) for count in (1, 2))
    return CICLoss(of.encoder, of.prior, query, key)


OBJECTIVES: dict[str, Callable[[Ingredients], SkillLoss]] = {
    "metra": lambda of: METRALoss(of.encoder, of.prior, **of.config.metra),
    "l2": lambda of: METRALoss(of.encoder, of.prior, distance=L2Distance(), **of.config.metra),
    "csd": _csd,
    "lsd": lambda of: LSDLoss(of.encoder, of.prior),
    "diayn": _diayn,
    "dads": lambda of: DADSLoss.from_size(of.size, of.prior, num_cells=of.config.num_cells),
    "cic": _cic,
    "csf": lambda of: CSFLoss(of.encoder, of.prior),
    "rnd": lambda of: RNDBaseline.from_size(of.size, of.prior, num_cells=of.config.num_cells),
}
VECTORS_ONLY = ("l2", "csd", "dads", "rnd")


def _observation_size(env: EnvBase) -> int:
    return env.observation_spec["observation"].shape[-1]
