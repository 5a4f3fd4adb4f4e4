"""From settings to a trainer: networks, losses, data, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import DiscreteSACLoss, SACLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.record.loggers import Logger

from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import SkillPrior
from torchrl_metra.envs import SkillPrimer
from torchrl_metra.modules import SACNetworks, SkillPolicy
from torchrl_metra.modules.skill_policy import read_observation_norm
from torchrl_metra.objectives import EncoderLoss, METRALoss, SkillLoss
from torchrl_metra.recipes.checkpoints import checkpoint_options
from torchrl_metra.recipes.collect import (
    env_options,
    learner_options,
    make_collector,
    make_replay_buffer,
    make_skill_env,
)
from torchrl_metra.recipes.objectives import (
    make_networks,
    make_policy_loss,
    make_prior,
    make_skill_loss,
)
from torchrl_metra.recipes.records import make_logger
from torchrl_metra.recipes.settings import EnvSettings, Settings, preset_values, update
from torchrl_metra.trainers import (
    METRAOptimizationStepper,
    METRATrainer,
    make_metra_optimizers,
)

__all__ = ["Parts", "make_metra", "make_settings"]


@dataclass
class Parts:
    """What a user brings in place of what the settings would build.

    Attributes:
        env (EnvBase, optional): to collect from.
        prior (SkillPrior, optional): distribution of the skills.
        networks (SACNetworks, optional): actor, critics and encoder.
        skill_loss (SkillLoss, optional): the objective.
        loss_module (SACLoss or DiscreteSACLoss, optional): the policy's loss.
        collector (BaseCollector, optional): where transitions come from.
        replay_buffer (ReplayBuffer, optional): where they go to.
        logger (Logger, optional): what is logged to.
        normalize (mapping, optional): constants of the observations, of a run that goes on.
    """

    env: EnvBase | None = None
    prior: SkillPrior | None = None
    networks: SACNetworks | None = None
    skill_loss: SkillLoss | None = None
    loss_module: SACLoss | DiscreteSACLoss | None = None
    collector: BaseCollector | None = None
    replay_buffer: ReplayBuffer | None = None
    logger: Logger | None = None
    normalize: Mapping[str, Tensor] | None = None


def make_metra(
    env: EnvBase | str | Mapping[str, Any] | EnvSettings | Callable[..., Any],
    prior: SkillPrior | None = None,
    *,
    networks: SACNetworks | None = None,
    skill_loss: SkillLoss | None = None,
    loss_module: SACLoss | DiscreteSACLoss | None = None,
    collector: BaseCollector | None = None,
    replay_buffer: ReplayBuffer | None = None,
    logger: Logger | None = None,
    **settings: Any,
) -> METRATrainer:
    """Build all that METRA trains, for any environment.

    Each part can be brought along; what is not given is built as the settings say. So
    ``make_metra("ant")`` is the paper's Ant, and a loss of one's own takes the place of METRA's.
    The trainer's ``skill_policy`` is what remains of it: save it when training is done.

    Args:
        env (EnvBase, str, mapping, EnvSettings or callable): a name for
            :func:`~torchrl_metra.make_env`; a function that builds one environment;
            :class:`~torchrl_metra.recipes.EnvSettings`, or a mapping of them such as
            ``{"name": "gym:Walker2d-v5", "max_steps": 200}``; or an environment as it is, to
            which a :class:`~torchrl_metra.SkillPrimer` is appended if it has none.
        prior (SkillPrior, optional): distribution of the skills. By default what the setting
            ``skill`` says.

    Keyword Args:
        networks (SACNetworks, optional): actor, critics and encoder.
        skill_loss (SkillLoss, optional): by default what the setting ``objective`` says.
        loss_module (SACLoss or DiscreteSACLoss, optional): the policy's loss.
        collector (BaseCollector, optional): collects from ``env``.
        replay_buffer (ReplayBuffer, optional): with a batch size.
        logger (Logger, optional): in place of what the setting ``logging`` says.
        **settings: those of :class:`~torchrl_metra.recipes.Settings` that differ from the preset's,
            sections as mappings: ``preset="laptop"``, ``total_frames=100_000``,
            ``metra={"dual_init": 10.0}``. ``metra train --help`` prints all of them. Without
            ``output`` nothing is written.

    Returns:
        The trainer, ready for hooks and for ``train()``.

    Raises:
        TypeError: if a setting is of the wrong type.
        ValueError: if there is no such setting, environment or objective; says what is nearest.
        ImportError: if something is not installed; names the extra.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_metra
        >>> trainer = make_metra("point", UnitSphere(2), total_frames=3_200, progress_bar=False)
        >>> trainer.train()
        >>> trainer.skill_policy.prior
        UnitSphere(2)
    """
    parts = Parts(
        env=env if isinstance(env, EnvBase) else None,
        prior=prior,
        networks=networks,
        skill_loss=skill_loss,
        loss_module=loss_module,
        collector=collector,
        replay_buffer=replay_buffer,
        logger=logger,
    )
    return build(make_settings(None if parts.env is not None else env, **settings), parts)


def make_settings(env: Any = None, **settings: Any) -> Settings:
    """All settings of a run: defaults, then the preset's, then those given.

    Args:
        env (str, mapping, EnvSettings or callable, optional): see
            :func:`~torchrl_metra.make_metra`.
        **settings: see :func:`~torchrl_metra.make_metra`.

    Raises:
        TypeError: if a setting is of the wrong type.
        ValueError: if there is no such setting or preset; says which one is nearest.

    Examples:
        >>> make_settings("ant", preset="laptop", seed=3).num_cells
        [256, 256]
    """
    if isinstance(env, EnvSettings):
        # What it leaves open is the preset's to say.
        env = {key: value for key, value in asdict(env).items() if value not in (None, {})}
    elif not isinstance(env, Mapping):
        env = {"name": env}
    preset = settings.get("preset", Settings.preset)
    defaults = update(Settings(), preset_values(str(env.get("name")), preset))
    return update(defaults, {"env": env, **settings})


def make_configured(
    env: Any,
    prior: SkillPrior | None = None,
    replay_buffer: ReplayBuffer | None = None,
    logger: Logger | None = None,
    **settings: Any,
) -> METRATrainer:
    """:func:`make_metra` for a configuration that holds all settings, the preset's too."""
    is_built = isinstance(env, EnvBase)
    parts = Parts(env if is_built else None, prior, replay_buffer=replay_buffer, logger=logger)
    if not is_built:
        settings["env"] = env if isinstance(env, Mapping) else {"name": env}
    return build(update(Settings(), settings), parts)


def build(settings: Settings, parts: Parts | None = None) -> METRATrainer:
    """Everything that trains, from settings and what is there already."""
    parts = Parts() if parts is None else parts
    torch.manual_seed(settings.seed)
    env, prior = parts.env, parts.prior
    if prior is None and parts.skill_loss is not None:
        prior = parts.skill_loss.prior
    if env is not None:
        primers = [part for part in transforms_of(env) if isinstance(part, SkillPrimer)]
        if primers and prior is None:
            prior = primers[-1].prior
    if prior is not None:
        settings = replace(settings, skill=update(settings.skill, prior.to_config(), "skill."))
    # Environments draw from it, in workers too: for some objectives, normal skills.
    drawn = make_prior(settings)
    if prior is None or (env is None and type(drawn) is not type(prior)):
        prior = drawn
    if env is None:
        env = make_skill_env(settings, settings.num_envs, settings.seed, parts.normalize)
    elif not primers:
        env = env.append_transform(SkillPrimer(prior))

    # Networks and losses: METRA, or what the settings name, trains φ and λ, SAC the policy.
    networks, skill_loss, sac_loss = parts.networks, parts.skill_loss, parts.loss_module
    if networks is None and (skill_loss is None or sac_loss is None):
        networks = make_networks(settings, env, prior)
    if networks is not None:
        networks.to(settings.device)
        encoder: Any = networks.encoder
        skill_loss = skill_loss or make_skill_loss(settings, env, encoder, prior)
        sac_loss = sac_loss or make_policy_loss(settings, env, networks, prior)
    assert skill_loss is not None
    assert sac_loss is not None
    policy, shared_encoder = sac_loss.actor_network, None
    if networks is not None and (parts.networks is not None or parts.loss_module is None):
        policy, shared_encoder = networks.policy, networks.shared_encoder
    skill_policy = _what_remains(settings, parts, env, prior, networks, skill_loss, policy)

    # The algorithm.
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(skill_loss, sac_loss, **settings.learning_rate),
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        compile=settings.compile,
        cudagraphs=settings.cudagraphs,
        autocast=getattr(torch, settings.autocast) if settings.autocast else None,
        shared_encoder=shared_encoder,
    )
    collector, replay_buffer = parts.collector, parts.replay_buffer
    if collector is None:
        normalize = (skill_policy.env_options or {}).get("normalize")
        collector = make_collector(settings, env, policy, normalize)
    if replay_buffer is None:
        replay_buffer = make_replay_buffer(settings, env)
    trainer = METRATrainer(
        collector=collector,
        total_frames=settings.total_frames,
        optim_steps_per_batch=settings.optim_steps_per_batch,
        loss_module=sac_loss,
        skill_loss=skill_loss,
        replay_buffer=replay_buffer,
        optimization_stepper=stepper,
        min_buffer_size=settings.min_buffer_size,
        logger=parts.logger or make_logger(settings),
        log_interval=0,
        progress_bar=settings.progress_bar,
        seed=settings.seed,
        collection_timeout=settings.collection_timeout,
        **checkpoint_options(settings),
        **learner_options(settings),
    )
    trainer.skill_policy = skill_policy
    return trainer


def _what_remains(
    settings: Settings,
    parts: Parts,
    env: EnvBase,
    prior: SkillPrior,
    networks: SACNetworks | None,
    skill_loss: SkillLoss,
    policy: TensorDictModuleBase,
) -> SkillPolicy:
    """What to keep when training is done; its weights are those that are trained."""
    if not isinstance(skill_loss, EncoderLoss):
        encoder = None
    elif parts.skill_loss is not None or networks is None:
        encoder = skill_loss.encoder
    else:
        encoder = networks.encoder
    is_built_here = parts.skill_loss is None and parts.loss_module is None
    is_metra = isinstance(skill_loss, METRALoss) and skill_loss.distance is None
    name = settings.env.name
    return SkillPolicy(
        actor=policy,
        encoder=encoder,
        prior=prior,
        observation_norm=read_observation_norm(env),
        architecture=networks.architecture if networks is not None and is_built_here else None,
        env_name=name if isinstance(name, str) else None,
        env_options=None if parts.env is not None else env_options(settings, env),
        constraint_norm=skill_loss.constraint_norm if is_metra else None,
    )
