"""Checkpoints of a run: where they lie, and how a run goes on from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from records import RUN, in_own_folder
from torchrl.checkpoint import CheckpointRotation
from torchrl.trainers import Trainer

from torchrl_metra import VerifiedCheckpoint
from torchrl_metra.trainers import resume

# Where and how long a run trains, not what: a resumed run may change these.
MAY_CHANGE = {
    "autocast", "backend", "checkpoint", "collection_timeout", "compile",
    "cudagraphs", "device", "distributed", "evaluation_episodes", "evaluation_interval",
    "evaluation_num_envs", "logger", "output", "resume", "skill_policy", "storage",
    "total_frames",
}  # fmt: skip


def begin(config: DictConfig) -> DictConfig:
    """Clear the run's folder of what an earlier run has left there; returns the settings.

    Unless this run goes on from them, its checkpoints are set aside, under
    ``checkpoints.previous``, and its log goes.
    """
    config = in_own_folder(config)
    folder = _folder(config)
    stays = _stays(config, folder)
    if not any(stays(path) for path in folder.glob("checkpoint-*")):
        shutil.rmtree(Path(config.output) / "log", ignore_errors=True)
    if aside := [path for path in folder.glob("checkpoint-*") if not stays(path)]:
        previous = folder.with_name("checkpoints.previous")
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir()
        for path in aside:
            path.rename(previous / path.name)
    # Whoever was killed while it wrote has left half a checkpoint behind.
    for rest in folder.glob(".*"):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    return config


def _stays(config: DictConfig, folder: Path) -> Callable[[Path], bool]:
    """Which checkpoints lie on the way that this run goes."""
    if config.resume in (None, "auto"):
        return lambda path: config.resume == "auto"
    start = Path(config.resume)
    is_here = start.resolve().parent == folder.resolve()
    return lambda path: is_here and path.name <= start.name


def checkpoint_options(config: DictConfig) -> dict[str, Any]:
    """What a trainer takes to write the checkpoints that the settings ask for."""
    if config.checkpoint.interval is None:
        return {}
    checkpoint = VerifiedCheckpoint(
        exclude=() if config.checkpoint.replay_buffer else ("replay_buffer",),
        settings=_what_it_is(OmegaConf.to_container(config, resolve=True)),
    )
    return {
        "checkpoint": checkpoint,
        "checkpoint_rotation": CheckpointRotation(
            _folder(config), keep_last=config.checkpoint.keep
        ),
        "checkpoint_metadata": lambda trainer: {"run": RUN},
        "save_trainer_interval": config.checkpoint.interval,
    }


def _what_it_is(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    kept = settings.keys() - MAY_CHANGE
    return {name: _what_it_is(settings[name]) for name in kept}


def go_on(trainer: Trainer, config: DictConfig) -> bool:
    """Load what ``resume`` names; returns whether there was something to go on from."""
    if config.resume is None:
        return False
    if trainer.checkpoint is None:
        raise ValueError("resume= needs checkpoints: set checkpoint.interval.")
    path = resume(trainer, None if config.resume == "auto" else config.resume)
    if path is not None:
        print(f"goes on from {path}, after {trainer.collected_frames:,} frames")
    return path is not None


def _folder(config: DictConfig) -> Path:
    return Path(config.output) / "checkpoints"
