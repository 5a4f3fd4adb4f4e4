r"""METRA's objective as pure functions of tensors.

Every function works on any leading batch shape ``*B`` and on any device, and is
differentiable wherever its arguments are. ``latent`` and ``next_latent`` are
:math:`\phi(s)` and :math:`\phi(s')`, of shape ``[*B, D]``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = [
    "ConstraintNorm",
    "dual_loss",
    "effective_rank",
    "encoder_loss",
    "intrinsic_reward",
    "pairwise_products",
    "squared_step",
    "temporal_constraint",
]

ConstraintNorm = Literal["l2", "rms"]


def intrinsic_reward(latent: Tensor, next_latent: Tensor, skill: Tensor) -> Tensor:
    r"""Reward :math:`(\phi(s') - \phi(s))^\top z` (Equation 7 of the paper).

    Args:
        latent (Tensor): :math:`\phi(s)`, of shape ``[*B, D]``.
        next_latent (Tensor): :math:`\phi(s')`, of shape ``[*B, D]``.
        skill (Tensor): skill, of shape ``[*B, D]``; a one-hot skill in the form
            that :meth:`~torchrl_metra.data.OneHot.center` gives it.

    Returns:
        The reward, of shape ``[*B]``.

    Examples:
        >>> import torch
        >>> intrinsic_reward(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor(1.)
    """
    return ((next_latent - latent) * skill).sum(dim=-1)


def squared_step(latent: Tensor, next_latent: Tensor, norm: ConstraintNorm = "l2") -> Tensor:
    r"""Squared length of one step in latent space.

    Args:
        latent (Tensor): :math:`\phi(s)`, of shape ``[*B, D]``.
        next_latent (Tensor): :math:`\phi(s')`, of shape ``[*B, D]``.
        norm (str): ``"l2"``, the paper's :math:`\|\Delta\phi\|_2^2`, or ``"rms"``,
            :math:`\|\Delta\phi\|_2^2 / D`, as the authors' implementation has it.

    Returns:
        The squared length, of shape ``[*B]``.

    Raises:
        ValueError: if ``norm`` is unknown.

    Examples:
        >>> import torch
        >>> latent, next_latent = torch.zeros(2), torch.tensor([3.0, 4.0])
        >>> squared_step(latent, next_latent), squared_step(latent, next_latent, "rms")
        (tensor(25.), tensor(12.5000))
    """
    if norm not in get_args(ConstraintNorm):
        raise ValueError(
            f"unknown constraint norm {norm!r}, expected one of {list(get_args(ConstraintNorm))}."
        )
    squares = (next_latent - latent).square()
    return squares.sum(dim=-1) if norm == "l2" else squares.mean(dim=-1)


def temporal_constraint(
    latent: Tensor,
    next_latent: Tensor,
    distance: Tensor | float = 1.0,
    *,
    slack: float = 1e-3,
    norm: ConstraintNorm = "l2",
) -> Tensor:
    r"""Slack-limited constraint :math:`\min(\varepsilon, d(s, s') - \|\phi(s') - \phi(s)\|^2)`.

    Negative where a pair of adjacent states is further apart than ``distance``
    (Equations 8 and 9 of the paper, where :math:`d \equiv 1`).

    Args:
        latent (Tensor): :math:`\phi(s)`, of shape ``[*B, D]``.
        next_latent (Tensor): :math:`\phi(s')`, of shape ``[*B, D]``.
        distance (Tensor or float): :math:`d(s, s')`, of shape ``[*B]``.

    Keyword Args:
        slack (float): :math:`\varepsilon`, the most a satisfied pair contributes.
        norm (str): see :func:`squared_step`.

    Returns:
        The constraint, of shape ``[*B]``.

    Examples:
        >>> import torch
        >>> temporal_constraint(torch.zeros(2, 1), torch.tensor([[0.5], [2.0]]))
        tensor([ 1.0000e-03, -3.0000e+00])
    """
    return (distance - squared_step(latent, next_latent, norm)).clamp(max=slack)


def encoder_loss(reward: Tensor, constraint: Tensor, dual: Tensor) -> Tensor:
    r"""Per-transition loss :math:`-(r + \lambda c)` of the encoder; no gradient to ``dual``.

    Args:
        reward (Tensor): :func:`intrinsic_reward`, of shape ``[*B]``.
        constraint (Tensor): :func:`temporal_constraint`, of shape ``[*B]``.
        dual (Tensor): dual variable :math:`\lambda`, a scalar.

    Returns:
        The loss, of shape ``[*B]``.

    Examples:
        >>> import torch
        >>> encoder_loss(torch.tensor([1.0]), torch.tensor([-0.5]), torch.tensor(4.0))
        tensor([1.])
    """
    return -(reward + dual.detach() * constraint)


def dual_loss(log_dual: Tensor, constraint: Tensor) -> Tensor:
    r"""Per-transition loss :math:`\log\lambda \cdot c` of the dual variable; no gradient to φ.

    The derivative is taken with respect to :math:`\log\lambda` itself, so that
    λ moves by a constant factor whatever its size, as in the authors' implementation.

    Args:
        log_dual (Tensor): :math:`\log\lambda`, a scalar.
        constraint (Tensor): :func:`temporal_constraint`, of shape ``[*B]``.

    Returns:
        The loss, of shape ``[*B]``.

    Examples:
        >>> import torch
        >>> dual_loss(torch.tensor(2.0), torch.tensor([-0.5]))
        tensor([-1.])
    """
    return log_dual * torch.detach(constraint)


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


def effective_rank(displacements: Tensor) -> Tensor:
    r"""In how many directions displacements point.

    With their singular values :math:`\sigma_i` it is
    :math:`(\sum_i \sigma_i^2)^2 / \sum_i \sigma_i^4`. Of displacements in latent space it says
    how many dimensions φ uses: 1 if all lie on one line, ``D`` if they are spread evenly. It has
    no gradient.

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
