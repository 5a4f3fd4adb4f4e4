"""Where the time of a gradient step goes: a table in Markdown, for docs/results/performance.md.

The profiler's own time is part of "all else".

python benchmarks/profile_step.py
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import torch
from bare_loop import BareLoop, Sizes
from learner import make_step
from torch.profiler import ProfilerActivity, profile
from torchrl.objectives import SACLoss

WARM_UP, STEPS, ROUNDS = 5, 30, 3
PARTS = {
    "matrix products": {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"},
    "Adam": {"aten::_fused_adam_"},
    "copies": {"aten::copy_"},
}


def main() -> None:
    """Profile the bare loop, the stock loss, ours, and ours with all switches."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    torch.set_num_threads(2)
    for width in (256, 1024):
        sizes = Sizes(width)
        steps = {
            "bare loop": BareLoop(sizes).step,
            "stock `SACLoss`": make_step(sizes, sac=SACLoss),
            "`BatchedSACLoss`": make_step(sizes),
            "compiled": make_step(sizes, compile=True),
            "compiled, bfloat16": make_step(sizes, compile=True, autocast=torch.bfloat16),
        }
        print(f"\n| width {width}, ms | step | {' | '.join(PARTS)} | all else |")
        print("|---" * (len(PARTS) + 3) + "|")
        for name, step in steps.items():
            total, parts = min(profile_steps(step) for _ in range(ROUNDS))
            cells = [total, *parts, total - sum(parts)]
            print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")


def profile_steps(step: Callable[[], object]) -> tuple[float, list[float]]:
    """Milliseconds of a step, and of the operators of each part in it."""
    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        total = 1e3 * (time.perf_counter() - start) / STEPS
    times = {event.key: event.self_cpu_time_total / 1e3 for event in profiler.key_averages()}
    return total, [sum(times.get(key, 0.0) for key in keys) / STEPS for keys in PARTS.values()]


if __name__ == "__main__":
    main()
