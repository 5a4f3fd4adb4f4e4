"""Draws ``results/quadruped_starts.png``: where episodes start, here and in the control suite.

By hand: ``python benchmarks/quadruped_starts.py``
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from torchrl_metra.envs import PixelOptions
from torchrl_metra.envs.dm_control import LOCOMOTION, Locomotion, make_locomotion

QUADRUPED = LOCOMOTION["quadruped"]
STARTS = {
    "before: the suite's own": replace(QUADRUPED, start=None),
    "now: upright, as the authors'": QUADRUPED,
}
NUM_STARTS = 8
COLUMNS = 4
TARGET = Path(__file__).parent / "results" / "quadruped_starts.png"


def draw_starts(task: Locomotion) -> list[Tensor]:
    """Pictures of the first states of episodes."""
    with closing(make_locomotion(task, PixelOptions(resolution=256, quality="full"))) as env:
        env.set_seed(0)
        return [env.reset()["pixels"] for _ in range(NUM_STARTS)]


def main() -> None:
    """One block of pictures for each kind of start, side by side."""
    figure = plt.figure(figsize=(13, 3.8), layout="constrained")
    for block, (title, task) in zip(figure.subfigures(1, len(STARTS)), STARTS.items(), strict=True):
        block.suptitle(title, fontsize=11)
        axes = block.subplots(NUM_STARTS // COLUMNS, COLUMNS)
        for axis, frame in zip(axes.flat, draw_starts(task), strict=True):
            axis.set_axis_off()
            axis.imshow(frame.permute(1, 2, 0))
    figure.savefig(TARGET, dpi=100)


if __name__ == "__main__":
    main()
