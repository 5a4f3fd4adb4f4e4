"""A linear layer for mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Linear(nn.Linear):
    """A linear layer whose outputs stay in float32 under autocast; gradients do not.

    bfloat16 keeps eight bits: a position of 80 m is rounded to half a meter, and of two
    latents near 100 that differ by one, little is left, while a gradient loses nothing
    that matters. So φ, which METRA reads by its differences, is made of these, and the
    other networks have them as first and last layers. Without autocast it is an
    ``nn.Linear``.

    Examples:
        >>> import torch
        >>> layer = Float32Linear(3, 2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     layer(torch.randn(4, 3)).dtype
        torch.float32
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None or not torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        # Read once: a parametrized weight is computed at each access.
        weight = self.weight
        return _Float32Forward.apply(input.to(weight.dtype), weight, self.bias)


class _Float32Forward(torch.autograd.Function):
    """A linear map in its own type, whose gradients are products in autocast's type."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        input, weight, _ = inputs
        ctx.save_for_backward(input, weight)
        ctx.low_precision = torch.get_autocast_dtype(input.device.type)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        input, weight = ctx.saved_tensors
        (exact,) = grad_outputs
        grad = exact.to(ctx.low_precision)
        grad_input = (grad @ weight.to(grad.dtype)).to(input.dtype)
        rows = input.reshape(-1, input.shape[-1]).to(grad.dtype)
        grad_weight = (grad.reshape(-1, grad.shape[-1]).T @ rows).to(weight.dtype)
        return grad_input, grad_weight, exact.reshape(-1, exact.shape[-1]).sum(0)
