"""Draws ``results/quadruped_starts.png``: where episodes start, here and in the control suite.

By hand: ``python benchmarks/quadruped_starts.py``
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from torchrl_metra.envs import PixelOptions
from torchrl_metra.envs.locomotion import LOCOMOTION, make_locomotion, stand_upright

STARTS = {"before: the suite's own": None, "now: upright, as the authors'": stand_upright}
NUM_STARTS = 8
COLUMNS = 4
LOOK = PixelOptions(resolution=256, quality="full")
TARGET = Path(__file__).parent / "results" / "quadruped_starts.png"


def draw_starts(start: Callable[..., None] | None) -> Tensor:
    """Pictures of the first states of episodes."""
    LOCOMOTION["quadruped"] = replace(LOCOMOTION["quadruped"], start=start)
    with closing(make_locomotion("quadruped", NUM_STARTS, pixels=LOOK)) as env:
        env.set_seed(0)
        return env.reset()["pixels"]


def main() -> None:
    """One block of pictures for each kind of start, side by side."""
    figure = plt.figure(figsize=(13, 3.8), layout="constrained")
    blocks = figure.subfigures(1, len(STARTS))
    for block, (title, start) in zip(blocks, STARTS.items(), strict=True):
        block.suptitle(title, fontsize=11)
        axes = block.subplots(NUM_STARTS // COLUMNS, COLUMNS)
        for axis, frame in zip(axes.flat, draw_starts(start), strict=True):
            axis.set_axis_off()
            axis.imshow(frame.permute(1, 2, 0))
    figure.savefig(TARGET, dpi=100)


if __name__ == "__main__":
    main()
