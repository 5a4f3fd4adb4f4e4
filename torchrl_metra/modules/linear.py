"""A linear layer for mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Float32Linear"]


class Float32Linear(nn.Linear):
    """A linear layer that autocast leaves in float32.

    bfloat16 keeps eight bits: a position of 80 m is rounded to half a metre, and of two
    latents near 100 that differ by one, little is left. As first and last layer this
    one keeps inputs and outputs exact, while the wide products between them, where the
    time goes, run in bfloat16. Without autocast it is an ``nn.Linear``.

    Examples:
        >>> import torch
        >>> layer = Float32Linear(3, 2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     layer(torch.randn(4, 3)).dtype
        torch.float32
    """

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            return super().forward(input.to(self.weight.dtype))
