"""Checkpoints of a run: where they lie, and how a run goes on from them."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrl.checkpoint import CheckpointRotation
from torchrl.trainers import Trainer

from torchrl_metra.recipes.records import run_record
from torchrl_metra.trainers import VerifiedCheckpoint, resume

# Where and how long a run trains, not what: a resumed run may change these.
MAY_CHANGE = {
    "autocast", "backend", "buffer_device", "checkpoint", "collection_timeout", "compile",
    "cudagraphs", "device", "distributed", "evaluation_episodes", "evaluation_interval",
    "evaluation_num_envs", "logging", "normalize", "output", "preset", "progress_bar", "resume",
    "skill_policy", "total_frames",
}  # fmt: skip


def prepare_run(settings: Any) -> None:
    """Note what it takes to repeat the run, and clear its folder of what an earlier one left there.

    Unless this run goes on from them, the earlier run's checkpoints are moved to
    ``checkpoints.previous``, and its log is deleted.

    Args:
        settings (Settings): with ``output`` and ``resume``.
    """
    run_record()
    folder = _folder(settings)
    found = list(folder.glob("checkpoint-*"))
    others = [path for path in found if not _is_on_the_way(path, settings)]
    if others == found:
        shutil.rmtree(Path(settings.output) / "log", ignore_errors=True)
    if others:
        previous = folder.with_name("checkpoints.previous")
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir()
        for path in others:
            path.rename(previous / path.name)
    # A run that was killed while it wrote has left half a checkpoint behind.
    for rest in folder.glob(".*"):
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _is_on_the_way(path: Path, settings: Any) -> bool:
    """Whether a checkpoint lies before the one from which the run goes on."""
    if settings.resume in (None, "auto"):
        return settings.resume == "auto"
    start = Path(settings.resume)
    return start.resolve().parent == path.resolve().parent and path.name <= start.name


def checkpoint_options(settings: Any) -> dict[str, Any]:
    """What a trainer takes to write the checkpoints that the settings ask for.

    Args:
        settings (Settings): with ``output`` and ``checkpoint``; all of them are compared when a
            run goes on.
    """
    if settings.checkpoint.interval is None or settings.output is None:
        return {}
    rotation = CheckpointRotation(_folder(settings), keep_last=settings.checkpoint.keep)
    excluded = () if settings.checkpoint.replay_buffer else ("replay_buffer",)
    trained = _what_is_trained(asdict(settings))
    return {
        "checkpoint": VerifiedCheckpoint(exclude=excluded, settings=trained),
        "checkpoint_rotation": rotation,
        "checkpoint_metadata": lambda trainer: {"run": run_record()},
        "save_trainer_interval": settings.checkpoint.interval,
    }


def _what_is_trained(settings: Any) -> Any:
    if callable(settings):
        return getattr(settings, "__qualname__", type(settings).__name__)
    if not isinstance(settings, dict):
        return settings
    kept = settings.keys() - MAY_CHANGE
    return {name: _what_is_trained(settings[name]) for name in kept}


def resume_run(trainer: Trainer, settings: Any) -> bool:
    """Load what ``resume`` names; returns whether there was something to go on from."""
    if settings.resume is None:
        return False
    path = resume(trainer, None if settings.resume == "auto" else settings.resume)
    if path is not None:
        print(f"goes on from {path}, after {trainer.collected_frames:,} frames")
    return path is not None


def _folder(settings: Any) -> Path:
    return Path(settings.output) / "checkpoints"
