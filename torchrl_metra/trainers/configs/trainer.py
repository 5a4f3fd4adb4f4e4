"""The config of the trainer, whose fields are the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING
from torchrl.trainers.algorithms.configs.trainers import TrainerConfig

from torchrl_metra.recipes.settings import Settings


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
        ...     total_frames=160, frames_per_batch=80, updates_per_step=0.025, batch_size=32,
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
