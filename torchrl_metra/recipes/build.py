"""From settings to a trainer: networks, losses, data, checkpoints."""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import DiscreteSACLoss, SACLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.record.loggers import Logger

from torchrl_metra._checks import check_choice
from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import SkillPrior
from torchrl_metra.envs import SkillPrimer
from torchrl_metra.modules import SACNetworks, SkillPolicy
from torchrl_metra.modules.skill_policy import read_observation_norm
from torchrl_metra.objectives import EncoderLoss, METRALoss, SkillLoss
from torchrl_metra.recipes import collect, objectives
from torchrl_metra.recipes.records import checkpoint_options, make_logger
from torchrl_metra.recipes.settings import EnvSettings, Settings, preset_values, update
from torchrl_metra.trainers import METRAOptimizationStepper, METRATrainer, make_metra_optimizers


def make_metra(
    env: EnvBase | str | Mapping[str, Any] | EnvSettings | Settings | Callable[..., Any],
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

    You can bring each part; those that you do not give are built as the settings say. So
    ``make_metra("ant")`` is the paper's Ant, and a loss of your own takes the place of METRA's.
    Save the trainer's ``skill_policy`` when training is done.

    Args:
        env (EnvBase, str, mapping, EnvSettings, Settings or callable): a name for
            :func:`~torchrl_metra.make_env`; a function that builds one environment;
            :class:`~torchrl_metra.recipes.EnvSettings`, or a mapping of them such as
            ``{"name": "gym:Walker2d-v5", "max_steps": 200}``; an environment as it is, to which
            a :class:`~torchrl_metra.SkillPrimer` is appended if it has none; or what
            :func:`~torchrl_metra.recipes.make_settings` returns.
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
        ValueError: if there is no such setting, environment or objective; says what is nearest.
        ImportError: if something is not installed; names the extra.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_metra
        >>> trainer = make_metra("point", UnitSphere(2), total_frames=3_200, progress_bar=False)
        >>> trainer.train()
        >>> trainer.skill_policy.prior
        UnitSphere(2)
    """
    given_env = env if isinstance(env, EnvBase) else None
    config = make_settings(None if given_env is not None else env, **settings)
    num_updates = _updates_in_round(config)
    torch.manual_seed(config.seed)
    if prior is None and skill_loss is not None:
        prior = skill_loss.prior
    config, world, prior = _make_world(config, given_env, prior)

    # Networks and losses: METRA, or what the settings name, trains φ and λ, SAC the policy.
    has_own_policy = networks is None and loss_module is not None
    architecture, shared_encoder = None, None
    if networks is not None or skill_loss is None or loss_module is None:
        networks = networks or objectives.make_networks(config, world, prior)
        networks.to(config.device)
        if skill_loss is None and loss_module is None:
            architecture = networks.architecture
        skill_loss = skill_loss or objectives.make_skill_loss(config, world, networks, prior)
        loss_module = loss_module or objectives.make_policy_loss(config, world, networks, prior)
    policy = loss_module.actor_network
    if networks is not None and not has_own_policy:
        policy, shared_encoder = networks.policy, networks.shared_encoder
        objectives.check_bottleneck(networks, skill_loss)

    # What to keep when training is done; its weights are those that are trained.
    env_options = dict(vars(config.env))
    name = env_options.pop("name")
    is_metra = isinstance(skill_loss, METRALoss) and skill_loss.distance is None
    skill_policy = SkillPolicy(
        actor=policy,
        encoder=skill_loss.encoder if isinstance(skill_loss, EncoderLoss) else None,
        prior=prior,
        observation_norm=read_observation_norm(world),
        architecture=architecture,
        env_name=name if isinstance(name, str) else None,
        env_options=env_options if given_env is None else None,
        constraint_norm=skill_loss.constraint_norm if is_metra else None,
        pixels=collect.pixel_options(config, world),
    )

    # The algorithm.
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(
            skill_loss, loss_module, shared_encoder=shared_encoder, **config.learning_rate
        ),
        target_net_updater=SoftUpdate(loss_module, eps=0.995),
        compile=_compiles(config),
        cudagraphs=config.cudagraphs,
        autocast=_autocast(config),
        shared_encoder=shared_encoder,
        relabeling=objectives.make_relabeling(config, skill_loss),
    )
    if collector is None:
        collector = collect.make_collector(config, world, policy)
    if replay_buffer is None:
        replay_buffer = collect.make_replay_buffer(config, world, skill_loss)
    trainer = METRATrainer(
        collector=collector,
        total_frames=config.total_frames,
        optim_steps_per_batch=num_updates,
        loss_module=loss_module,
        skill_loss=skill_loss,
        replay_buffer=replay_buffer,
        optimization_stepper=stepper,
        min_buffer_size=config.min_buffer_size,
        logger=logger or make_logger(config),
        log_interval=0,
        progress_bar=config.progress_bar,
        seed=config.seed,
        collection_timeout=config.collection_timeout,
        **checkpoint_options(config),
        **collect.learner_options(config),
    )
    trainer.skill_policy = skill_policy
    return trainer


def _updates_in_round(settings: Settings) -> int:
    """How many updates follow each collected batch."""
    exact = settings.updates_per_step * settings.frames_per_batch
    if not math.isfinite(exact) or round(exact) < 1 or abs(exact - round(exact)) > 1e-6:
        raise ValueError(
            f"updates_per_step={settings.updates_per_step} times "
            f"frames_per_batch={settings.frames_per_batch} is {exact:g} updates in a round, but it "
            "must be a whole number of at least 1."
        )
    return round(exact)


def _compiles(settings: Settings) -> bool:
    """What the settings say or, with ``auto``, whether a compiler is there and pays."""
    if isinstance(settings.compile, bool):
        return settings.compile
    check_choice("compile", settings.compile, ("auto", "true", "false"))
    # It takes as long as some thousands of updates save.
    has_compiler = any(map(shutil.which, [os.environ.get("CXX", "g++").split()[0], "clang++"]))
    return has_compiler and settings.total_frames * settings.updates_per_step > 5_000


def _autocast(settings: Settings) -> torch.dtype | None:
    """What the settings say, unless it would make this CPU slow."""
    if settings.autocast is None:
        return None
    dtype = getattr(torch, settings.autocast)
    if torch.device(settings.device).type == "cpu" and not is_fast_on_cpu(dtype):
        warnings.warn(
            f"this CPU has no instructions for {settings.autocast}, and its products would take "
            "several times as long as in float32: autocast is left out.",
            stacklevel=3,
        )
        return None
    return dtype


@functools.cache
def is_fast_on_cpu(dtype: torch.dtype) -> bool:
    """Whether matrix products in a type are not far slower than in float32.

    Without instructions for bfloat16, a CPU takes fifty times as long.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix, taken = torch.ones(256, 256, dtype=dtype), []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            taken.append(time.perf_counter() - start)
        return min(taken)

    return seconds(dtype) < 3 * seconds(torch.float32)


def _make_world(
    settings: Settings, env: EnvBase | None, prior: SkillPrior | None
) -> tuple[Settings, EnvBase, SkillPrior]:
    """The environment with skills, and the settings with what was given or measured."""
    parts = [] if env is None else transforms_of(env)
    primers = [part for part in parts if isinstance(part, SkillPrimer)]
    if primers:
        prior = primers[-1].prior if prior is None else prior
        settings = replace(settings, skill=replace(settings.skill, switch=primers[-1].switch))
    if prior is not None:
        settings = replace(settings, skill=update(settings.skill, prior.to_config(), "skill."))
    # Environments draw from it, in workers too: for some objectives, normal skills.
    drawn = objectives.make_prior(settings)
    if prior is None or (env is None and type(drawn) is not type(prior)):
        prior = drawn
    if env is None:
        env = collect.make_skill_env(settings, settings.num_envs, settings.seed)
        return collect.with_constants(settings, env), env, prior
    if not primers:
        env = env.append_transform(SkillPrimer(prior, switch=settings.skill.switch))
    return settings, env, prior


def make_settings(env: Any = None, **settings: Any) -> Settings:
    """All settings of a run: defaults, then the preset's, then those given.

    Args:
        env (str, mapping, EnvSettings, Settings or callable, optional): see
            :func:`~torchrl_metra.make_metra`.
        **settings: see :func:`~torchrl_metra.make_metra`.

    Raises:
        ValueError: if there is no such setting or preset; says which one is nearest.

    Examples:
        >>> make_settings("ant", preset="laptop", seed=3).num_cells
        [256, 256]
    """
    if isinstance(env, Settings):
        return update(env, settings)
    if isinstance(env, EnvSettings):
        # What it leaves open is the preset's to say.
        env = {key: value for key, value in vars(env).items() if value not in (None, {})}
    elif not isinstance(env, Mapping):
        env = {"name": env}
    preset = settings.get("preset", Settings.preset)
    defaults = update(Settings(), preset_values(str(env.get("name")), preset))
    return update(defaults, {"env": env, **settings})
