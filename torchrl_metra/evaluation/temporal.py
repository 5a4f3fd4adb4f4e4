"""Are distances in latent space temporal distances?"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from torchrl_metra._checks import check_choice
from torchrl_metra.objectives import functional as F

# The pairs of all states of a long episode would be too many.
MAX_STATES = 256
# Relative excess that does not count: training enforces the constraint on average.
TOLERANCE = 0.05


def latent_steps(
    latents: Tensor, lengths: Tensor | None = None, *, norm: F.ConstraintNorm = "l2"
) -> Tensor:
    r"""Distances :math:`\|\phi(s') - \phi(s)\|` of all pairs of adjacent states.

    METRA holds them below one (Equation 8).

    Args:
        latents (Tensor): φ along episodes, of shape ``[M, T + 1, D]``.
        lengths (Tensor, optional): steps of each episode, of shape ``[M]``.

    Keyword Args:
        norm (str, optional): the norm of the constraint in training, see
            :class:`~torchrl_metra.METRALoss`. Defaults to ``"l2"``.

    Returns:
        A tensor of shape ``[n]``.

    Examples:
        >>> import torch
        >>> latent_steps(torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.5]]]))
        tensor([5.0000, 0.5000])
    """
    lengths = _lengths(latents, lengths)
    check_choice("norm", norm, get_args(F.ConstraintNorm))
    squares = (latents[:, 1:] - latents[:, :-1]).square()
    steps = (squares.sum(dim=-1) if norm == "l2" else squares.mean(dim=-1)).sqrt()
    return steps[torch.arange(steps.shape[1]) < lengths[:, None]]


def pair_distances(
    latents: Tensor, lengths: Tensor | None = None, *, norm: F.ConstraintNorm = "l2"
) -> tuple[Tensor, Tensor]:
    r"""Temporal and latent distance of all pairs of states of the same episode.

    Of episodes of 512 steps and more, only every second state is looked at, and so on.

    Args:
        latents (Tensor): φ along episodes, of shape ``[M, T + 1, D]``.
        lengths (Tensor, optional): steps of each episode, of shape ``[M]``.

    Keyword Args:
        norm (str, optional): the norm of the constraint in training. Defaults to ``"l2"``.

    Returns:
        ``|i - j|`` in steps and :math:`\|\phi(s_i) - \phi(s_j)\|`, each of shape ``[n]``.

    Examples:
        >>> import torch
        >>> pair_distances(torch.tensor([[[0.0], [1.0], [1.5]]]))
        (tensor([1, 2, 1]), tensor([1.0000, 1.5000, 0.5000]))
    """
    lengths = _lengths(latents, lengths)
    stride = max(1, (latents.shape[1] - 1) // MAX_STATES)
    latents, lengths = latents[:, ::stride], lengths // stride
    first, second = torch.triu_indices(latents.shape[1], latents.shape[1], offset=1)
    # The faster way, by products, would be off by a tenth where latents are in the hundreds.
    distances = torch.cdist(latents, latents, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances[:, first, second]
    if norm == "rms":
        distances = distances / math.sqrt(latents.shape[-1])
    inside = second <= lengths[:, None]
    return (stride * (second - first)).expand(len(latents), -1)[inside], distances[inside]


def temporal_check(
    latents: Tensor, lengths: Tensor | None = None, *, norm: F.ConstraintNorm = "l2"
) -> dict[str, float]:
    r"""Does the temporal constraint hold, and do latent distances tell the time?

    The first thing to look at in a trained encoder. Along an episode ``|i - j|`` is the
    number of steps that the policy took between two states, hence at least their temporal
    distance, and no two states may be further apart in latent space.

    Args:
        latents (Tensor): φ along episodes, of shape ``[M, T + 1, D]``.
        lengths (Tensor, optional): steps of each episode, of shape ``[M]``; by default
            all of them are ``T``.

    Keyword Args:
        norm (str, optional): the norm of the constraint in training: with ``"rms"``, distances
            are divided by :math:`\sqrt D`. Defaults to ``"l2"``.

    Returns:
        ``latent_step_mean`` and ``latent_step_max``, mean and maximum over adjacent states;
        ``steps_beyond``, the share of them more than 5 % beyond one; ``pairs_beyond``, the
        share of all pairs of an episode as far beyond ``|i - j|``; ``rank_correlation``,
        Spearman's, between latent distance and ``|i - j|``.

    Examples:
        >>> import torch
        >>> straight = torch.arange(4.0).reshape(1, 4, 1)
        >>> temporal_check(straight)["rank_correlation"]
        1.0
    """
    steps = latent_steps(latents, lengths, norm=norm)
    times, distances = pair_distances(latents, lengths, norm=norm)
    return {
        "latent_step_mean": steps.mean().item(),
        "latent_step_max": steps.max().item(),
        "steps_beyond": (steps > 1 + TOLERANCE).float().mean().item(),
        "pairs_beyond": (distances > (1 + TOLERANCE) * times).float().mean().item(),
        "rank_correlation": rank_correlation(times, distances),
    }


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation; ties share the mean of their ranks.

    Args:
        x (Tensor): of shape ``[n]``.
        y (Tensor): of shape ``[n]``.

    Returns:
        The correlation, NaN if one of them is constant.

    Examples:
        >>> import torch
        >>> rank_correlation(torch.tensor([1, 2, 3]), torch.tensor([1.0, 10.0, 5.0]))
        0.5
    """
    ranks = torch.stack([_ranks(x), _ranks(y)])
    return round(float(torch.corrcoef(ranks)[0, 1]), 6)


def _ranks(values: Tensor) -> Tensor:
    _, index, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[index]


def _lengths(latents: Tensor, lengths: Tensor | None) -> Tensor:
    return torch.full([len(latents)], latents.shape[1] - 1) if lengths is None else lengths
