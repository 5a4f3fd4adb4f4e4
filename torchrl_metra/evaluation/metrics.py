"""Numbers from skill rollouts."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["coverage", "sector_coverage", "skill_alignment", "visited"]


def coverage(position: Tensor, cell_size: float = 1.0) -> int:
    """Number of distinct cells visited, the paper's state coverage (Section 5.2).

    Args:
        position (Tensor): positions of shape ``[*B, k]``, in metres.
        cell_size (float, optional): edge of a square cell, in metres. Defaults to 1.

    Examples:
        >>> import torch
        >>> coverage(torch.tensor([[0.2, 0.1], [0.9, 0.8], [-0.1, 0.0]]))
        2
    """
    return _cells(position, cell_size).unique(dim=0).shape[0]


def visited(transitions: TensorDictBase, cell_size: float = 1.0) -> Tensor | None:
    """Where transitions led, in the terms in which an environment counts coverage.

    Cells of the plane by ``("next", "position")`` or, in the kitchen, the solved tasks by
    ``("next", "tasks")`` (Section 5.2). The number of distinct rows is the coverage.

    Args:
        transitions (TensorDictBase): transitions of any batch size.
        cell_size (float, optional): edge of a square cell, in metres. Defaults to 1.

    Returns:
        A tensor of shape ``[n, k]``: the cell of each transition, or the number of each
        task that a transition found solved; ``None`` where the environment gives neither.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> tasks = torch.tensor([[False, True, True], [False, True, False]])
        >>> visited(TensorDict({"next": {"tasks": tasks}}, [2])).unique(dim=0)
        tensor([[1],
                [2]])
    """
    tasks = transitions.get(("next", "tasks"), default=None)
    if tasks is not None:
        return tasks.nonzero()[:, -1:]
    position = transitions.get(("next", "position"), default=None)
    return None if position is None else _cells(position, cell_size)


def _cells(position: Tensor, cell_size: float) -> Tensor:
    return (position.reshape(-1, position.shape[-1]) / cell_size).floor().int()


def sector_coverage(position: Tensor, num_sectors: int = 16) -> int:
    """Number of equal sectors around the origin that hold at least one position.

    Args:
        position (Tensor): positions of shape ``[*B, 2]``, usually the last of each episode.
        num_sectors (int, optional): number of sectors. Defaults to 16.

    Examples:
        >>> import torch
        >>> sector_coverage(torch.tensor([[1.0, 0.1], [2.0, 0.2], [-1.0, 0.1]]), num_sectors=4)
        2
    """
    angle = torch.atan2(position[..., 1], position[..., 0]) + math.pi
    sector = (angle / (2 * math.pi) * num_sectors).long().clamp(max=num_sectors - 1)
    return sector.unique().numel()


def skill_alignment(latent: Tensor, next_latent: Tensor, skill: Tensor) -> float:
    """Mean cosine between skills and displacements in latent space.

    Args:
        latent (Tensor): φ at the start of each displacement, of shape ``[*B, D]``.
        next_latent (Tensor): φ at its end, of shape ``[*B, D]``.
        skill (Tensor): skills of shape ``[*B, D]``, one-hot ones centred.

    Examples:
        >>> import torch
        >>> skill_alignment(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[2.0, 2.0]]))
        1.0
    """
    cosine = torch.nn.functional.cosine_similarity(next_latent - latent, skill, dim=-1)
    return round(float(cosine.mean()), 6)
