"""Draws ``docs/images/pixel_frames.png``: what the pixel tasks observe.

By hand: ``python docs/images/pixel_frames.py``
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from torchrl_metra.envs import PixelOptions
from torchrl_metra.envs.kitchen import make_kitchen
from torchrl_metra.envs.locomotion import make_locomotion

ROBOTS = ("quadruped", "humanoid")
LOOKS = (
    PixelOptions(resolution=64, quality="fast"),
    PixelOptions(resolution=256, quality="full"),
)
PLACES = ((0.0, 0.0), (8.0, 0.0), (0.0, 8.0), (-12.0, -12.0))
TARGET = Path(__file__).with_suffix(".png")


def robot_frames(name: str, look: PixelOptions) -> list[Tensor]:
    """The robot after a few seconds without torque, at each of the places."""
    env = make_locomotion(name, pixels=look)
    env.set_seed(1)
    data = env.reset()
    for _ in range(50):
        data["action"] = env.action_spec.zero()
        data = env.step_mdp(env.step(data))
    frames = []
    for place in PLACES:
        env.states.qpos[0, :2] = place
        frames.append(env.observe()["pixels"])
    env.close()
    return frames


def kitchen_frame(look: PixelOptions) -> Tensor:
    """The kitchen at reset."""
    env = make_kitchen(pixels=look)
    frame = env.reset()["pixels"]
    env.close()
    return frame


def main() -> None:
    """Small fast pictures on the left, large full ones on the right."""
    figure, axes = plt.subplots(3, 8, figsize=(14, 6.2), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for row, name in enumerate(ROBOTS):
        for side, look in enumerate(LOOKS):
            for column, frame in enumerate(robot_frames(name, look)):
                axis = axes[row, 4 * side + column]
                axis.imshow(frame.permute(1, 2, 0), interpolation="nearest")
                x, y = PLACES[column]
                axis.set_title(f"{name} at ({x:g}, {y:g}) m", fontsize=8)
    for side, look in enumerate(LOOKS):
        axis = axes[2, 4 * side]
        axis.imshow(kitchen_frame(look).permute(1, 2, 0), interpolation="nearest")
        axis.set_title("kitchen, at reset", fontsize=8)
        size = f"{look.resolution} x {look.resolution}"
        axes[2, 4 * side + 2].text(
            0.0, 0.5, f'{size}\nquality "{look.quality}"', fontsize=13, va="center"
        )
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=100)


if __name__ == "__main__":
    main()
