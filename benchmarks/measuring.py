"""Shared by all measurements: timing in turns, results, the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from torchrl_metra._record import describe_run

SECONDS_PER_ROUND = 1.0


@dataclass
class Result:
    """A measurement beside its yardstick.

    Attributes:
        name (str): what was measured, such as ``"learner/1024/eager"``.
        unit (str): of ``value`` and ``yardstick``.
        value (float): what this package takes or gives.
        yardstick (float, optional): what the yardstick takes or gives.
        ratio (float, optional): value / yardstick, the median over rounds where there are any.
    """

    name: str
    unit: str
    value: float
    yardstick: float | None = None
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        """With four significant digits."""
        digits = {k: float(f"{v:.4g}") for k, v in asdict(self).items() if isinstance(v, float)}
        return {**asdict(self), **digits}


def in_turns(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 5
) -> dict[str, list[float]]:
    """Seconds per call of each function, round by round, one after the other in each round.

    A machine that slows down slows all of them: only ratios within a round mean something.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_per_call(function))
    return seconds


def seconds_per_call(function: Callable[[], object], duration: float | None = None) -> float:
    """Mean time of a call, over at least ``duration`` seconds, else ``SECONDS_PER_ROUND``."""
    duration = SECONDS_PER_ROUND if duration is None else duration
    synchronize()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < duration:
        function()
        calls += 1
    synchronize()
    return (time.perf_counter() - start) / calls


def synchronize() -> None:
    """Wait for an accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(name: str, unit: str, value: list[float], yardstick: list[float]) -> Result:
    """Medians of two series, and the median of their ratios."""
    ratios = [a / b for a, b in zip(value, yardstick, strict=True)]
    medians = map(statistics.median, (value, yardstick, ratios))
    return Result(name, unit, *medians)


def environment() -> dict[str, Any]:
    """The machine and the versions that the results were measured with."""
    packages = ("torch", "torchrl", "tensordict", "gymnasium", "mujoco", "envpool")
    return {
        **describe_run(),
        "date": time.strftime("%Y-%m-%d"),
        **{package: _version(package) for package in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
