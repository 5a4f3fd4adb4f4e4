"""Videos of skills; they need the ``video`` extra."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from torchrl_metra._extras import require


def write_video(pixels: Tensor, path: str | os.PathLike[str], *, fps: float = 25.0) -> None:
    """Write episodes side by side as one video, all from their first step on.

    Args:
        pixels (Tensor): ``uint8`` pictures of shape ``[M, T, C, H, W]``, or
            ``[M, T, H, W, 3]`` as gymnasium renders. Of stacked frames, the last three
            channels are shown, which are the newest frame.
        path (path): file to write, ``.mp4`` or ``.gif``; its folder is created.

    Keyword Args:
        fps (float, optional): pictures per second. Defaults to 25.

    Examples:
        >>> import tempfile, torch
        >>> pixels = torch.randint(256, (6, 10, 9, 64, 64), dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(pixels, folder + "/skills.gif")
    """
    if pixels.ndim == 5 and pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 1, 4, 2, 3)
    imageio = require("imageio.v3", "video")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = _tile(pixels[:, :, -3:].cpu()).numpy()
    if path.suffix == ".gif":
        imageio.imwrite(path, frames, duration=1000 / fps, loop=0)
    else:
        require("imageio_ffmpeg", "video")
        imageio.imwrite(path, frames, fps=fps, macro_block_size=2)


def _tile(pixels: Tensor) -> Tensor:
    """A grid of episodes, of shape ``[T, rows * H, columns * W, 3]``, wider than high."""
    columns = math.ceil(math.sqrt(len(pixels)))
    missing = -len(pixels) % columns
    pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
    grid = pixels.unflatten(0, (-1, columns))  # row, column, time, channel, y, x
    return grid.permute(2, 0, 4, 1, 5, 3).flatten(3, 4).flatten(1, 2).contiguous()
