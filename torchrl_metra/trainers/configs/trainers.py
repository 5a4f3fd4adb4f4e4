"""Configs of the trainer, its stepper, its optimisers and its hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torch import optim
from torchrl.objectives import SACLoss
from torchrl.trainers.algorithms.configs.hooks import HookConfig
from torchrl.trainers.algorithms.configs.trainers import TrainerConfig

from torchrl_metra import (
    METRAHook,
    METRAOptimizationStepper,
    SkillLoss,
    make_metra_optimizers,
)
from torchrl_metra.recipes.settings import Settings
from torchrl_metra.recipes.store import register_presets
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


@dataclass
class METRATrainerConfig(Settings, TrainerConfig):
    """The settings of :func:`~torchrl_metra.make_metra`, by the same names and defaults.

    The presets, each with its environment, are in the group ``metra_preset``:

    .. code-block:: yaml

        defaults:
          - trainer: metra
          - metra_preset@trainer: ant.laptop
          - _self_
        trainer: {total_frames: 1_000_000}

    Attributes:
        env: name of the environment, its settings, or a config that builds one.
        prior: config of a skill prior, in place of the setting ``skill``.
        replay_buffer: config of a replay buffer, in place of what the settings build.
        logger: config of a logger, in place of the setting ``logging``.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl_metra.trainers.configs import METRATrainerConfig, UnitSphereConfig
        >>> config = METRATrainerConfig(
        ...     env="point", prior=UnitSphereConfig(dim=2), num_cells=[32], num_envs=4,
        ...     total_frames=160, frames_per_batch=80, optim_steps_per_batch=2, batch_size=32,
        ...     min_buffer_size=0, progress_bar=False,
        ... )
        >>> trainer = instantiate(config)
        >>> trainer.train()
        >>> trainer.collected_frames
        160
    """

    env: Any = MISSING
    prior: Any = None
    replay_buffer: Any = None
    logger: Any = None
    _target_: str = "torchrl_metra.make_metra"
    _convert_: str = "all"

    def __post_init__(self) -> None:
        """Nothing to do."""


ConfigStore.instance().store("metra", METRATrainerConfig, group="trainer", provider="torchrl_metra")
register_presets()


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
