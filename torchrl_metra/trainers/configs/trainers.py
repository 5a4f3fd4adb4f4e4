"""Configs of the trainer, its stepper, its optimisers and its hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import MISSING, ListConfig, OmegaConf
from torch import optim
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss, SoftUpdate
from torchrl.trainers.algorithms.configs.hooks import HookConfig
from torchrl.trainers.algorithms.configs.trainers import TrainerConfig

from torchrl_metra import (
    METRAHook,
    METRAOptimizationStepper,
    METRATrainer,
    SkillLoss,
    make_metra_optimizers,
)
from torchrl_metra.trainers import LogCoverage, LogRates, SkillEvaluation
from torchrl_metra.trainers.configs.common import PlainConfig, configures

__all__ = [
    "LogCoverageConfig",
    "LogRatesConfig",
    "METRAHookConfig",
    "METRAOptimizationStepperConfig",
    "METRAOptimizersConfig",
    "METRATrainerConfig",
    "SkillEvaluationConfig",
]


@configures(METRAOptimizationStepper, group="stepper", name="metra")
class METRAOptimizationStepperConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.METRAOptimizationStepper`."""


def _make_optimizers(
    *, skill_loss: SkillLoss, sac_loss: SACLoss, lr: float, lrs: dict[str, float]
) -> dict[str, optim.Optimizer]:
    return make_metra_optimizers(skill_loss, sac_loss, lr, **lrs)


@configures(make_metra_optimizers, group="optimizer", name="metra", target=_make_optimizers)
class METRAOptimizersConfig(PlainConfig):
    """Fields of :func:`~torchrl_metra.make_metra_optimizers`; ``lrs`` maps parts to rates."""


def _make_trainer(
    *,
    collector: Any,
    skill_loss: Any,
    loss_module: Any,
    replay_buffer: Any,
    networks: Any,
    optimizers: Any,
    optimization_stepper: Any,
    target_net_updater: Any,
    logger: Any,
    hooks: Any,
    **options: Any,
) -> METRATrainer:
    """Build the parts one after another, each with those before that it leaves empty."""
    environments, specs = _environments(collector)
    networks = _build(networks, **specs)
    if networks is not None:
        actor, critics = networks.actor, networks.critics
        skill_loss = _build(skill_loss, encoder=networks.encoder)
        loss_module = _build(
            loss_module, actor=actor, actor_network=actor, critics=critics, qvalue_network=critics
        )
    skill_loss, loss_module = _build(skill_loss), _build(loss_module)
    policy = loss_module.actor_network if networks is None else networks.policy

    optimizers = OmegaConf.structured(METRAOptimizersConfig) if optimizers is None else optimizers
    updater = _build(target_net_updater, loss_module=loss_module)
    is_soft = isinstance(updater, SoftUpdate)
    stepper = _build(
        optimization_stepper or OmegaConf.structured(METRAOptimizationStepperConfig),
        skill_loss=skill_loss,
        optimizers=_build(optimizers, skill_loss=skill_loss, sac_loss=loss_module),
        target_net_updater=updater if is_soft else None,
        shared_encoder=getattr(networks, "shared_encoder", None),
    )
    trainer = METRATrainer(
        collector=_build(collector, policy=policy, create_env_fn=environments),
        loss_module=loss_module,
        skill_loss=skill_loss,
        replay_buffer=_build(replay_buffer),
        optimization_stepper=stepper,
        target_net_updater=None if is_soft else updater,
        logger=_build(logger),
        **{name: _build(option) for name, option in options.items()},
    )
    for hook in hooks or []:
        _build(hook, policy=policy).register(trainer)
    return trainer


@configures(METRATrainer, group="trainer", name="metra", target=_make_trainer)
class METRATrainerConfig(TrainerConfig):
    """Fields of :class:`~torchrl_metra.METRATrainer`, and some more.

    Parts that hold weights must be one and the same object wherever they are used, which an
    interpolation such as ``${networks}`` would not give: Hydra builds anew at each. The trainer
    therefore builds its parts itself, and what a part leaves empty, ``???`` or ``null``, it
    fills in: the specs of the environment, networks of the losses, the policy of the collector,
    losses of the optimisers. See the page on configuration for a whole file.

    Attributes:
        networks: config of :class:`~torchrl_metra.SACNetworks`, for what the losses and the
            collector leave empty.
        optimizers: config of the stepper's optimisers, which default to the authors'.
        hooks: list of configs of hooks; the trainer registers them.
        frame_skip: see :class:`~torchrl.trainers.Trainer`.

    Raises:
        InstantiationException: if a part cannot be built; says which argument is missing.

    Examples:
        >>> from torchrl.trainers.algorithms.configs import (
        ...     CollectorConfig, LazyTensorStorageConfig, ReplayBufferConfig, TransformedEnvConfig
        ... )
        >>> from torchrl_metra.trainers.configs import (
        ...     BatchedSACLossConfig, METRALossConfig, METRATrainerConfig, PointEnvConfig,
        ...     SACNetworksConfig, SkillPrimerConfig, UnitSphereConfig,
        ... )
        >>> prior = UnitSphereConfig(dim=2)
        >>> env = TransformedEnvConfig(
        ...     base_env=PointEnvConfig(num_envs=4), transform=SkillPrimerConfig(prior=prior)
        ... )
        >>> storage = LazyTensorStorageConfig(max_size=1_000)
        >>> config = METRATrainerConfig(
        ...     networks=SACNetworksConfig(prior=prior, num_cells=[32]),
        ...     skill_loss=METRALossConfig(prior=prior),
        ...     loss_module=BatchedSACLossConfig(target_entropy=-1.0),
        ...     collector=CollectorConfig(
        ...         create_env_fn=env, frames_per_batch=80, total_frames=160
        ...     ),
        ...     replay_buffer=ReplayBufferConfig(storage=storage, batch_size=32),
        ...     total_frames=160,
        ...     optim_steps_per_batch=2,
        ...     progress_bar=False,
        ... )
        >>> trainer = instantiate(config)
        >>> trainer.train()
        >>> trainer.collected_frames
        160
    """

    networks: Any = None
    optimizers: Any = None
    hooks: Any = None
    # METRATrainer has a default where Trainer has none.
    frame_skip: int = 1
    _recursive_: bool = False
    _convert_: str = "none"


def _build(config: Any, **parts: Any) -> Any:
    """What a config describes, with those parts that it leaves empty."""
    if not OmegaConf.is_config(config):
        return config
    if "_target_" not in config:
        return instantiate(config, _convert_="all")
    empty = {
        name: part
        for name, part in parts.items()
        if name in config.keys() and (OmegaConf.is_missing(config, name) or config[name] is None)
    }
    return instantiate(config, _partial_=True)(**empty)


def _environments(collector: Any) -> tuple[Any, dict[str, Any]]:
    """Take the environments out of a collector's config, with what networks ask of them."""
    if not OmegaConf.is_dict(collector):
        return None, {}
    # A copy, as OmegaConf empties the node itself.
    config, collector.create_env_fn = deepcopy(collector.create_env_fn), MISSING
    if not isinstance(config, ListConfig):
        env = _build(config)
        return env, _specs(env)
    # Collectors of several processes build their own in each.
    env = _build(config[0])
    specs = _specs(env)
    env.close()
    return [partial(instantiate, item, _partial_=False) for item in config], specs


def _specs(env: EnvBase) -> dict[str, Any]:
    observations = env.observation_spec
    specs: dict[str, Any] = {"action_spec": env.action_spec}
    if "observation" in observations.keys():
        specs["observation_size"] = observations["observation"].shape[-1]
    if "pixels" in observations.keys():
        specs["pixel_shape"] = observations["pixels"].shape[-3:]
    return specs


def _make_hook(
    *, skill_loss: SkillLoss, optimizers: Callable[..., Any] | Mapping[str, Any]
) -> METRAHook:
    groups = {
        name: parameters
        for name, parameters in skill_loss.parameter_groups().items()
        if parameters and all(parameter.requires_grad for parameter in parameters)
    }
    if not isinstance(optimizers, Mapping):
        optimizers = dict.fromkeys(groups, optimizers)
    return METRAHook(
        skill_loss, {name: make(params=groups[name]) for name, make in optimizers.items()}
    )


@configures(METRAHook, group="hook", name="metra", target=_make_hook)
class METRAHookConfig(HookConfig):
    """Fields of :class:`~torchrl_metra.METRAHook`.

    ``optimizers`` is one of TorchRL's configs of optimisers, such as ``optimizer: adam``, for
    all of the skill loss's parameter groups, or a mapping of such by group.
    """


@configures(SkillEvaluation, group="hook", name="skill_evaluation")
class SkillEvaluationConfig(HookConfig):
    """Fields of :class:`~torchrl_metra.trainers.SkillEvaluation`."""


@configures(LogCoverage, group="hook", name="log_coverage")
class LogCoverageConfig(HookConfig):
    """Fields of :class:`~torchrl_metra.trainers.LogCoverage`."""


@configures(LogRates, group="hook", name="log_rates")
class LogRatesConfig(HookConfig):
    """Fields of :class:`~torchrl_metra.trainers.LogRates`."""
