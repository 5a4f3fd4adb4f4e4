"""Where goals lie."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_positions(num_goals: int, size: int, extent: float, seed: int) -> Tensor:
    """Uniformly from a square around the origin, ``[num_goals, size]``.

    Torch's global generator is left alone.
    """
    uniform = torch.rand(num_goals, size, generator=torch.Generator().manual_seed(seed))
    return extent * (2 * uniform - 1)
