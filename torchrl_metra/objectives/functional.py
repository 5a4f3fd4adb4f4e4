"""Small functions of tensors that several objectives share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

ConstraintNorm = Literal["l2", "rms"]


def pairwise_products(left: Tensor, right: Tensor) -> Tensor:
    r"""Inner product of every row with every row of another matrix, exact under autocast too.

    Args:
        left (Tensor): rows :math:`x_i`, of shape ``[*B, D]``.
        right (Tensor): rows :math:`y_k`, of shape ``[K, D]``.

    Returns:
        :math:`x_i^\top y_k`, of shape ``[*B, K]``.

    Examples:
        >>> import torch
        >>> pairwise_products(torch.tensor([[1.0, 2.0]]), torch.eye(2))
        tensor([[1., 2.]])
    """
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T


def normal_log_prob(deviation: Tensor, log_std: Tensor | float = 0.0) -> Tensor:
    r"""Log-density of a Gaussian with a diagonal covariance.

    Args:
        deviation (Tensor): :math:`(x - \mu) / \sigma`, of shape ``[*B, D]``.
        log_std (Tensor or float, optional): :math:`\log\sigma`, of the same shape.
            Defaults to 0, unit variance.

    Returns:
        :math:`\log \mathcal N(x; \mu, \sigma^2)`, of shape ``[*B]``.

    Examples:
        >>> import torch
        >>> normal_log_prob(torch.tensor([0.0]))
        tensor(-0.9189)
    """
    return -(deviation.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(dim=-1)


def effective_rank(displacements: Tensor) -> Tensor:
    r"""In how many directions displacements point.

    With their singular values :math:`\sigma_i` it is
    :math:`(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4`: 1 if all displacements lie on one line,
    ``D`` if they are spread evenly. For displacements in latent space it says how many
    dimensions φ uses. It has no gradient.

    Args:
        displacements (Tensor): of shape ``[*B, D]``.

    Returns:
        A scalar between 1 and ``D``; 0 where nothing moves.

    Examples:
        >>> import torch
        >>> effective_rank(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])), effective_rank(torch.eye(2))
        (tensor(1.), tensor(2.))
    """
    rows = displacements.detach().reshape(-1, displacements.shape[-1])
    moments = rows.mT @ rows
    squares = moments.square().sum().clamp(min=torch.finfo(moments.dtype).tiny)
    return moments.trace().square() / squares
