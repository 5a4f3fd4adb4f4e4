"""What ``objective=`` names: a skill loss, the loss of its policy, and the networks they take.

All of them share the networks of policy, critics and encoder, and the settings of SAC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import nn
from torchrl.envs import EnvBase

from torchrl_metra._names import unknown
from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import OneHot, SkillPrior, StandardNormal, UnitSphere
from torchrl_metra.envs import ReadPosition
from torchrl_metra.modules import SACNetworks, make_pixel_sac_networks, make_sac_networks
from torchrl_metra.modules.networks import make_encoder
from torchrl_metra.objectives import (
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
    RNDBaseline,
    SkillLoss,
    SuccessorFeatureSACLoss,
)
from torchrl_metra.recipes.settings import Settings

__all__ = [
    "OBJECTIVES",
    "Ingredients",
    "Objective",
    "make_networks",
    "make_policy_loss",
    "make_prior",
    "make_skill_loss",
]


@dataclass
class Ingredients:
    """What objectives are made of.

    Attributes:
        settings (Settings): of the run.
        env (EnvBase): what is learned from.
        encoder (nn.Module): φ.
        prior (SkillPrior): distribution of the skills.
    """

    settings: Settings
    env: EnvBase
    encoder: nn.Module
    prior: SkillPrior

    @property
    def size(self) -> int:
        """Of the observation vector."""
        return _observation_size(self.env)

    def network(self, in_features: int, out_features: int) -> nn.Module:
        """One more network, of the encoder's kind."""
        return make_encoder(in_features, out_features, self.settings.num_cells)


@dataclass(frozen=True)
class Objective:
    """One of the objectives.

    Attributes:
        summary (str): what it does, in a line.
        make (callable): builds its loss.
        sees_pictures (bool): whether it can do without a vector.
        draws_normal (bool): whether continuous skills come from a normal distribution.
    """

    summary: str
    make: Callable[[Ingredients], SkillLoss]
    sees_pictures: bool = True
    draws_normal: bool = False


def _metra(of: Ingredients) -> SkillLoss:
    return METRALoss(of.encoder, of.prior, **asdict(of.settings.metra))


def _l2(of: Ingredients) -> SkillLoss:
    return METRALoss(of.encoder, of.prior, distance=L2Distance(), **asdict(of.settings.metra))


def _csd(of: Ingredients) -> SkillLoss:
    distance = ControllabilityDistance(*(of.network(of.size, of.size) for _ in range(2)))
    return CSDLoss(of.encoder, of.prior, distance, **asdict(of.settings.metra))


def _diayn(of: Ingredients) -> SkillLoss:
    if isinstance(of.prior, OneHot) or sees_pictures(of.settings, of.env):
        return DIAYNLoss(of.encoder, of.prior)
    return DIAYNLoss(of.encoder, of.prior, log_std=of.network(of.size, of.prior.dim))


def _dads(of: Ingredients) -> SkillLoss:
    return DADSLoss.from_size(of.size, of.prior, num_cells=of.settings.num_cells)


def _cic(of: Ingredients) -> SkillLoss:
    query, key = (of.network(count * of.prior.dim, of.prior.dim) for count in (1, 2))
    return CICLoss(of.encoder, of.prior, query, key)


def _rnd(of: Ingredients) -> SkillLoss:
    return RNDBaseline.from_size(of.size, of.prior, num_cells=of.settings.num_cells)


OBJECTIVES: dict[str, Objective] = {
    "metra": Objective("go far in the latent space of temporal distances", _metra),
    "l2": Objective("METRA whose distance is that of observations", _l2, sees_pictures=False),
    "csd": Objective(
        "METRA whose distance is how hard a change is to control", _csd, sees_pictures=False
    ),
    "lsd": Objective(
        "METRA's reward, φ bounded by the distance of observations",
        lambda of: LSDLoss(of.encoder, of.prior),
    ),
    "diayn": Objective("states tell which skill was followed", _diayn, draws_normal=True),
    "dads": Objective(
        "skills whose next states are predictable and unlike those of others",
        _dads,
        sees_pictures=False,
        draws_normal=True,
    ),
    "cic": Objective("contrastive skills and the entropy of states", _cic, draws_normal=True),
    "csf": Objective(
        "contrastive successor features, critics that predict latent steps",
        lambda of: CSFLoss(of.encoder, of.prior),
    ),
    "rnd": Objective(
        "a baseline without skills: states that are hard to predict", _rnd, sees_pictures=False
    ),
}


def find_objective(settings: Settings) -> Objective:
    """The objective that the settings name.

    Raises:
        ValueError: if there is no such objective; says which one is nearest.
    """
    if settings.objective not in OBJECTIVES:
        raise ValueError(unknown("objective", settings.objective, OBJECTIVES))
    return OBJECTIVES[settings.objective]


def make_prior(settings: Settings) -> SkillPrior:
    """The run's skills; DIAYN, DADS and CIC draw continuous ones from a normal distribution."""
    prior = SkillPrior.from_config(asdict(settings.skill))
    if find_objective(settings).draws_normal and isinstance(prior, UnitSphere):
        return StandardNormal(prior.dim)
    return prior


def sees_pictures(settings: Settings, env: EnvBase) -> bool:
    """Whether the networks read ``"pixels"``."""
    keys = env.observation_spec.keys()
    return "pixels" in keys and (
        settings.pixels.resolution is not None or "observation" not in keys
    )


def make_networks(settings: Settings, env: EnvBase, prior: SkillPrior) -> SACNetworks:
    """The paper's networks for what the environment shows: pictures or vectors."""
    value_size = prior.dim if settings.objective == "csf" else 1
    if sees_pictures(settings, env):
        if not settings.policy.position:
            raise ValueError("policy.position=false needs a state: in pictures the place shows.")
        return make_pixel_sac_networks(
            env.observation_spec["pixels"].shape[-3:],
            env.action_spec,
            prior,
            num_cells=settings.num_cells,
            value_size=value_size,
            **asdict(settings.encoder),
        )
    ignored = () if settings.policy.position else _position_entries(env)
    return make_sac_networks(
        _observation_size(env),
        env.action_spec,
        prior,
        num_cells=settings.num_cells,
        value_size=value_size,
        policy_ignores=ignored,
    )


def make_skill_loss(
    settings: Settings, env: EnvBase, encoder: nn.Module, prior: SkillPrior
) -> SkillLoss:
    """The objective that the settings name.

    Raises:
        ValueError: if there is no such objective, or if it needs a vector and sees pictures.
    """
    objective = find_objective(settings)
    if sees_pictures(settings, env) and not objective.sees_pictures:
        able = [name for name, other in OBJECTIVES.items() if other.sees_pictures]
        raise ValueError(
            f"objective={settings.objective} models vectors, but the environment is observed by "
            f"pictures: take one of {able}."
        )
    return objective.make(Ingredients(settings, env, encoder, prior)).to(settings.device)


def make_policy_loss(
    settings: Settings, env: EnvBase, networks: SACNetworks, prior: SkillPrior
) -> BatchedSACLoss:
    """SAC with the authors' settings, on rewards or, for CSF, on successor features."""
    options = {
        "loss_function": "l2",
        "target_entropy": -env.action_spec.shape[-1] / 2,
        "smoothness": settings.policy.smoothness,
        **asdict(settings.sac),
    }
    if settings.objective == "csf":
        sac_loss: BatchedSACLoss = SuccessorFeatureSACLoss(
            networks.actor, networks.critics, prior, **options
        )
    else:
        sac_loss = BatchedSACLoss(networks.actor, networks.critics, **options)
    sac_loss.make_value_estimator(gamma=settings.gamma)
    return sac_loss


def _observation_size(env: EnvBase) -> int:
    return env.observation_spec["observation"].shape[-1]


def _position_entries(env: EnvBase) -> tuple[int, ...]:
    """Which entries of the observation are the position."""
    for part in transforms_of(env):
        if isinstance(part, ReadPosition) and not callable(part.entries):
            entries = part.entries
            return tuple(range(entries) if isinstance(entries, int) else entries)
    raise ValueError(
        "policy.position=false needs to know which entries of the observation are the position: "
        "set env.position to their indices, such as [0,1]."
    )
