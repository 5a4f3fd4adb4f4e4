"""What ``objective=`` names: a skill loss, the loss of its policy, and the networks they take.

A new objective is one more entry of ``OBJECTIVES``. ``docs/guides/extending.md`` says what else it
takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase

from torchrl_metra import objectives
from torchrl_metra._checks import check_choice
from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import OneHot, SkillPrior, StandardNormal, UnitSphere
from torchrl_metra.envs import ReadPosition
from torchrl_metra.modules import (
    Bottleneck,
    PatchColors,
    SACNetworks,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.modules.networks import make_encoder
from torchrl_metra.objectives import (
    BatchedSACLoss,
    CSFLoss,
    GenDaLoss,
    LSDLoss,
    METRALoss,
    RelabelSkills,
    SkillLoss,
    SuccessorFeatureSACLoss,
)
from torchrl_metra.recipes.settings import Settings

# Random steps by which colors are normalized, in each environment.
PICTURE_STEPS = 200


@dataclass
class LossParts:
    """What the loss of an objective can be built from.

    Attributes:
        settings (Settings): of the run.
        env (EnvBase): the environment to learn from.
        encoder (nn.Module): φ.
        prior (SkillPrior): distribution of the skills.
        bottleneck (TensorDictModule, optional): what the policy reads in place of the state.
    """

    settings: Settings
    env: EnvBase
    encoder: nn.Module
    prior: SkillPrior
    bottleneck: TensorDictModule | None = None

    @property
    def size(self) -> int:
        """Size of the observation vector."""
        return self.env.observation_spec["observation"].shape[-1]

    def network(self, in_features: int, out_features: int) -> nn.Module:
        """One more network, of the encoder's kind."""
        return make_encoder(in_features, out_features, self.settings.num_cells)


@dataclass(frozen=True)
class Objective:
    """One of the objectives.

    Attributes:
        summary (str): what it does, in a line.
        make (callable): builds its loss from :class:`LossParts`.
        sees_pictures (bool): whether it also learns from pictures, without a vector.
        draws_normal (bool): whether continuous skills come from a normal distribution.
        predicts_features (bool): whether the critics predict successor features, vectors of the
            size of a skill; the policy's loss is then
            :class:`~torchrl_metra.SuccessorFeatureSACLoss`.
    """

    summary: str
    make: Callable[[LossParts], SkillLoss]
    sees_pictures: bool = True
    draws_normal: bool = False
    predicts_features: bool = False


def _metra(parts: LossParts) -> SkillLoss:
    return objectives.METRALoss(parts.encoder, parts.prior, **vars(parts.settings.metra))


def _genda(parts: LossParts) -> SkillLoss:
    options = {"uniformity": parts.settings.relabel.uniformity, **vars(parts.settings.metra)}
    if parts.bottleneck is not None:
        decoder = parts.network(parts.prior.dim + parts.bottleneck.module.size, parts.size)
        options |= {"bottleneck": parts.bottleneck, "decoder": decoder}
    return objectives.GenDaLoss(parts.encoder, parts.prior, **options)


def _l2(parts: LossParts) -> SkillLoss:
    options = {"distance": objectives.L2Distance(), **vars(parts.settings.metra)}
    return objectives.METRALoss(parts.encoder, parts.prior, **options)


def _csd(parts: LossParts) -> SkillLoss:
    networks = (parts.network(parts.size, parts.size) for _ in range(2))
    distance = objectives.ControllabilityDistance(*networks)
    return objectives.CSDLoss(parts.encoder, parts.prior, distance, **vars(parts.settings.metra))


def _lsd(parts: LossParts) -> SkillLoss:
    return objectives.LSDLoss(parts.encoder, parts.prior)


def _diayn(parts: LossParts) -> SkillLoss:
    log_std = None
    if not isinstance(parts.prior, OneHot) and not sees_pictures(parts.settings, parts.env):
        log_std = parts.network(parts.size, parts.prior.dim)
    return objectives.DIAYNLoss(parts.encoder, parts.prior, log_std=log_std)


def _dads(parts: LossParts) -> SkillLoss:
    num_cells = parts.settings.num_cells
    return objectives.DADSLoss.from_size(parts.size, parts.prior, num_cells=num_cells)


def _cic(parts: LossParts) -> SkillLoss:
    dim = parts.prior.dim
    query, key = (parts.network(count * dim, dim) for count in (1, 2))
    return objectives.CICLoss(parts.encoder, parts.prior, query, key)


def _csf(parts: LossParts) -> SkillLoss:
    return objectives.CSFLoss(parts.encoder, parts.prior)


def _rnd(parts: LossParts) -> SkillLoss:
    num_cells = parts.settings.num_cells
    return objectives.RNDBaseline.from_size(parts.size, parts.prior, num_cells=num_cells)


OBJECTIVES: dict[str, Objective] = {
    "metra": Objective("go far in the latent space of temporal distances", _metra),
    "genda": Objective(
        "METRA with skills relabeled in hindsight, and episodes in all directions",
        _genda,
    ),
    "l2": Objective("METRA whose distance is that of observations", _l2, sees_pictures=False),
    "csd": Objective(
        "METRA whose distance is how hard a change is to control", _csd, sees_pictures=False
    ),
    "lsd": Objective("METRA's reward, φ bounded by the distance of observations", _lsd),
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
        _csf,
        predicts_features=True,
    ),
    "rnd": Objective(
        "a baseline without skills: states that are hard to predict", _rnd, sees_pictures=False
    ),
}


def find_objective(settings: Settings) -> Objective:
    """The objective that the settings name."""
    check_choice("objective", settings.objective, OBJECTIVES)
    return OBJECTIVES[settings.objective]


def make_prior(settings: Settings) -> SkillPrior:
    """The run's skills; DIAYN, DADS and CIC draw continuous ones from a normal distribution."""
    prior = SkillPrior.from_config(vars(settings.skill))
    if find_objective(settings).draws_normal:
        if prior.has_own_reward:
            raise ValueError(
                f"objective={settings.objective} does not pay what {prior!r} asks for."
            )
        if isinstance(prior, UnitSphere):
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
    value_size = prior.dim if find_objective(settings).predicts_features else 1
    shared: dict[str, Any] = {
        "num_cells": settings.num_cells,
        "value_size": value_size,
        "layer_norm": settings.layer_norm,
    }
    spec, bottleneck = env.observation_spec, settings.policy.bottleneck
    if bottleneck is not None and settings.objective != "genda":
        raise ValueError(f"policy.bottleneck needs objective=genda, got {settings.objective}.")
    if bottleneck is not None and not settings.policy.position:
        raise ValueError(
            "policy.bottleneck learns to leave the position out: set policy.position=true."
        )
    if not sees_pictures(settings, env):
        ignored = () if settings.policy.position else _position_entries(env)
        options: dict[str, Any] = {"policy_ignores": ignored, "bottleneck": bottleneck}
        size = spec["observation"].shape[-1]
        return make_sac_networks(size, env.action_spec, prior, **options, **shared)
    if bottleneck is not None:
        raise ValueError("policy.bottleneck needs a state: its decoder draws no pictures.")
    if not settings.policy.position:
        raise ValueError(
            "policy.position=false needs a state, in pictures the place shows: set "
            "policy.position=true."
        )
    shape, options = spec["pixels"].shape[-3:], vars(settings.encoder)
    networks = make_pixel_sac_networks(shape, env.action_spec, prior, **shared, **options)
    eyes = getattr(getattr(networks.encoder, "module", None), "encoder", None)
    if isinstance(eyes, PatchColors):
        steps = env.rollout(PICTURE_STEPS, break_when_any_done=False)
        eyes.fit(steps["pixels"], steps["next", "pixels"])
        env.set_seed(settings.seed)
    return networks


def make_skill_loss(
    settings: Settings, env: EnvBase, networks: SACNetworks, prior: SkillPrior
) -> SkillLoss:
    """The objective that the settings name."""
    objective = find_objective(settings)
    if sees_pictures(settings, env) and not objective.sees_pictures:
        able = [name for name, other in OBJECTIVES.items() if other.sees_pictures]
        raise ValueError(
            f"objective={settings.objective} models vectors, but the environment is observed by "
            f"pictures: take one of {able}."
        )
    encoder: Any = networks.encoder
    parts = LossParts(settings, env, encoder, prior)
    shared = networks.shared_encoder
    if shared is not None and isinstance(shared.module, Bottleneck):
        parts.bottleneck = shared
    return objective.make(parts).to(settings.device)


def relabels(settings: Settings, skill_loss: SkillLoss) -> bool:
    """Whether skills are relabeled in hindsight."""
    enabled = settings.relabel.enabled
    return isinstance(skill_loss, GenDaLoss) if enabled is None else enabled


def make_relabeling(settings: Settings, skill_loss: SkillLoss) -> RelabelSkills | None:
    """What relabels skills, if anything does."""
    if not relabels(settings, skill_loss):
        return None
    if not isinstance(skill_loss, METRALoss | CSFLoss | LSDLoss):
        raise ValueError(
            "relabel.enabled=true needs a loss that moves φ along skills, such as METRALoss, "
            f"GenDaLoss, CSFLoss or LSDLoss, got {type(skill_loss).__name__}."
        )
    return RelabelSkills(skill_loss.encoder, skill_loss.prior, rarity=settings.relabel.rarity)


def check_bottleneck(networks: SACNetworks, skill_loss: SkillLoss) -> None:
    """Refuse a bottleneck that nothing would train."""
    shared, trained = networks.shared_encoder, getattr(skill_loss, "bottleneck", None)
    if shared is None or not isinstance(shared.module, Bottleneck) or trained is shared:
        return
    raise ValueError(
        "nothing trains the bottleneck that the policy reads: take GenDaLoss(bottleneck="
        f"networks.shared_encoder, decoder=...), not {type(skill_loss).__name__}."
    )


def make_policy_loss(
    settings: Settings, env: EnvBase, networks: SACNetworks, prior: SkillPrior
) -> BatchedSACLoss:
    """SAC with the authors' settings, on rewards or on successor features."""
    options = {
        "loss_function": "l2",
        "smoothness": settings.policy.smoothness,
        **vars(settings.sac),
        "target_entropy": settings.sac.target_entropy * env.action_spec.shape[-1],
    }
    actor, critics = networks.actor, networks.critics
    if find_objective(settings).predicts_features:
        loss: BatchedSACLoss = SuccessorFeatureSACLoss(actor, critics, prior, **options)
    else:
        loss = BatchedSACLoss(actor, critics, **options)
    loss.make_value_estimator(gamma=settings.gamma)
    return loss


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
