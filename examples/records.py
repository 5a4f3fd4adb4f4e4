"""Around a run: its curve on disk, its end, and what it takes to repeat it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torchrl.record.loggers import Logger, get_logger
from torchrl.trainers import Trainer

from torchrl_metra._extras import require
from torchrl_metra._record import describe_run

# Read at the start: the repository may move on while a run trains.
RUN = describe_run()


class Curve:
    """What is measured against frames and seconds, on disk as it grows."""

    def __init__(self, path: Path, *columns: str) -> None:
        self.path = path
        self.start = time.perf_counter()
        self.rows: list[tuple[float, ...]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(["frames", "seconds", *columns]) + "\n")

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return round(time.perf_counter() - self.start, 1)

    def append(self, frames: int, *values: float) -> None:
        """Add a point."""
        self.rows.append((frames, self.seconds, *values))
        with self.path.open("a") as file:
            file.write(",".join(map(str, self.rows[-1])) + "\n")

    def points(self) -> torch.Tensor:
        """Frames and the first column, of shape ``[n, 2]``."""
        return torch.tensor([(frames, value) for frames, _, value, *_ in self.rows])


class CoverageCurve(Curve):
    """Policy coverage against frames and seconds, on disk as it grows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "policy_coverage")


def make_logger(kind: str, output: Path) -> Logger:
    """TorchRL's logger of that kind, in the run's folder, without what an older run left there."""
    if kind != "csv":
        require(kind, extra="logging")
    shutil.rmtree(output / "log", ignore_errors=True)
    return get_logger(kind, logger_name=str(output), experiment_name="log")


@contextmanager
def stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the training, but not the evaluation that follows it."""

    def request_stop(number: int, frame: Any) -> None:
        trainer.request_stop(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, request_stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def write_summary(path: Path, results: dict[str, Any], config: Any) -> None:
    """Write the results with command, commit, versions and hardware."""
    record = {**results, **RUN, "config": config}
    path.write_text(json.dumps(record, indent=2) + "\n")


def in_own_folder(config: DictConfig) -> DictConfig:
    """The settings; for a job of a multirun, with the folder that Hydra gave it as output."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return config
    sweep = HydraConfig.get().sweep
    return OmegaConf.merge(config, {"output": f"{sweep.dir}/{sweep.subdir}"})
