"""What surrounds a run: its folder, curve, log, checkpoints, how it ends and how it is resumed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import CheckpointRotation
from torchrl.record.loggers import CSVLogger, Logger, get_logger
from torchrl.trainers import Trainer

from torchrl_metra._extras import require
from torchrl_metra._private import forget_scalars, start_resource_tracker
from torchrl_metra._record import describe_run
from torchrl_metra.recipes.settings import Settings
from torchrl_metra.trainers import VerifiedCheckpoint, resume
from torchrl_metra.trainers.checkpoint import flatten

# Read once, at the start: the repository may move on while a run trains.
run_record = cache(describe_run)

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
    if settings.output is None:
        raise ValueError("a run needs a folder: set output.")
    require("matplotlib", extra="run")
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
    trained = {
        name: getattr(value, "__qualname__", type(value).__name__) if callable(value) else value
        for name, value in flatten(asdict(settings)).items()
        if MAY_CHANGE.isdisjoint(name.split("."))
    }
    return {
        "checkpoint": VerifiedCheckpoint(exclude=excluded, settings=trained),
        "checkpoint_rotation": rotation,
        "checkpoint_metadata": lambda trainer: {"run": run_record()},
        "save_trainer_interval": settings.checkpoint.interval,
    }


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


def _replace(path: Path, lines: list[str]) -> None:
    """Write a file anew, such that it is never half written."""
    new = path.with_name(f".{path.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(path)


class Curve:
    """What is measured against frames and seconds, on disk as it grows."""

    def __init__(self, path: Path, *columns: str) -> None:
        self.path, self.columns = path, ("frames", "seconds", *columns)
        self.start = time.perf_counter()
        self.rows: list[tuple[float, ...]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """Write all points."""
        _replace(self.path, [",".join(map(str, row)) for row in (self.columns, *self.rows)])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: points after it go."""
        self.start = time.perf_counter() - state_dict["seconds"]
        self.rows = state_dict["rows"]
        self.write()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return round(time.perf_counter() - self.start, 1)

    def append(self, frames: int, *values: float) -> None:
        """Add a point."""
        self.rows.append((frames, self.seconds, *values))
        self.write()

    def points(self) -> torch.Tensor:
        """Frames and the first column, of shape ``[n, 2]``."""
        return torch.tensor([(frames, value) for frames, _, value, *_ in self.rows])


class RunLogger(CSVLogger):
    """TorchRL's logger for runs of any length, which are stopped and go on.

    It keeps no history in memory, and where a run goes back to a checkpoint, forgets what was
    logged after it.
    """

    last_step = 0

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        """Log a number."""
        super().log_scalar(name, value, step)
        forget_scalars(self)
        self.last_step = max(self.last_step, step or 0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**super().state_dict(), "last_step": self.last_step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict(state_dict)
        self.last_step = state_dict["last_step"]
        for path in Path(self.log_dir, self.exp_name, "scalars").glob("*.csv"):
            # The last row may be half of one.
            *rows, _ = path.read_text().split("\n")
            _replace(path, [row for row in rows if int(row.partition(",")[0]) <= self.last_step])


def make_logger(settings: Settings) -> Logger | None:
    """TorchRL's logger of the kind that the settings name, in the run's folder."""
    kind = settings.logging
    if kind is None or settings.output is None:
        return None
    if kind == "csv":
        return RunLogger("log", log_dir=settings.output)
    require(kind, extra="logging")
    return get_logger(kind, logger_name=settings.output, experiment_name="log")


@contextmanager
def stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the training after the round that is under way.

    With checkpoints, the run ends there, and can go on; without, it is evaluated. A second
    signal ends it at once.
    """
    received: list[signal.Signals] = []

    def request_stop(number: int, frame: Any) -> None:
        received.append(signal.Signals(number))
        trainer.request_stop(received[-1].name)
        signal.signal(number, previous[received[-1]])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received and trainer.checkpoint_rotation is not None:
        print(
            f"stopped by {received[0].name} after {trainer.collected_frames:,} frames, saved in "
            f"{trainer.checkpoint_rotation.latest()}. The same command with resume=auto goes on."
        )
        raise SystemExit(128 + received[0])


@contextmanager
def shielded_from_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile do not notice Ctrl-C, which a terminal sends to all of them.

    They would die in the midst of a round that this process wants to finish.
    """
    # Python starts this process with the first of them; once running, it cannot unblock the signal.
    start_resource_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def write_summary(path: Path, results: dict[str, Any], settings: Any) -> None:
    """Write the results with command, commit, versions and hardware."""
    record = {**results, **run_record(), "config": asdict(settings)}
    _replace(path, [json.dumps(record, indent=2, default=str)])
