"""How much of an environment was visited."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_metra.evaluation.trajectories import Projection


def coverage(position: Tensor, cell_size: float = 1.0) -> int:
    """Number of distinct cells visited, the paper's state coverage (Section 5).

    Args:
        position (Tensor): positions of shape ``[*B, k]``, in meters or whatever a projection
            gives.
        cell_size (float, optional): edge of a cell, in the same unit. A cell holds its lower
            borders. Defaults to 1.

    Examples:
        >>> import torch
        >>> coverage(torch.tensor([[0.2, 0.1], [0.9, 0.8], [-0.1, 0.0]]))
        2
    """
    return len(cells_of(position, cell_size).unique(dim=0))


def visited(
    transitions: TensorDictBase, *, projection: Projection | None = None, cell_size: float = 1.0
) -> Tensor | None:
    """Where transitions led, in the terms in which coverage is counted.

    Cells of the plane by ``("next", "position")`` or, in the kitchen, the solved tasks by
    ``("next", "tasks")`` (Section 5). The number of distinct rows is the coverage.

    Args:
        transitions (TensorDictBase): transitions of any batch size.

    Keyword Args:
        projection (Callable, optional): maps states, a TensorDict of batch size ``*B``, to
            coordinates of shape ``[*B, k]``, for an environment without such an entry or to
            look at another part of the state.
        cell_size (float, optional): edge of a cell, in the unit of the coordinates.
            Defaults to 1.

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
        >>> states = TensorDict({"next": {"observation": torch.randn(5, 9)}}, [5])
        >>> visited(states, projection=lambda state: state["observation"][..., :3]).shape
        torch.Size([5, 3])
    """
    places = read_places(transitions, projection)
    return None if places is None else cells_of(places, cell_size)


def read_places(transitions: TensorDictBase, projection: Projection | None = None) -> Tensor | None:
    """What :func:`visited` counts, where it lies: coordinates, or flags of tasks.

    Args:
        transitions (TensorDictBase): transitions of any batch size.
        projection (Callable, optional): see :func:`visited`.

    Returns:
        A tensor of shape ``[*B, k]`` on the device of the transitions; ``None`` where the
        environment gives nothing to count.
    """
    states = transitions["next"]
    if projection is not None:
        return projection(states)
    tasks = states.get("tasks", default=None)
    return states.get("position", default=None) if tasks is None else tasks


def cells_of(places: Tensor, cell_size: float = 1.0) -> Tensor:
    """The cells of coordinates, or the numbers of the tasks that flags say are solved.

    Args:
        places (Tensor): what :func:`read_places` returns.
        cell_size (float, optional): edge of a cell. Defaults to 1.

    Returns:
        An integer tensor of shape ``[n, k]``, on the CPU.
    """
    if places.dtype == torch.bool:
        return places.cpu().nonzero()[:, -1:]
    # In double precision: beside a border, a quotient in float32 may round into the next cell.
    position = places.detach().cpu().double().reshape(-1, places.shape[-1])
    return (position / cell_size).floor().long()


class CoverageCounter:
    """Counts distinct cells as transitions come in: all of them, or the latest.

    With all, it is the paper's total coverage; with a window of 100 000 transitions, its
    queue coverage (Section 5). It keeps distinct cells only, so that its memory follows
    the ground that was covered and not the number of transitions.

    Args:
        window (int, optional): number of latest transitions to count, or ``None``
            (default) for all. They leave in whole updates, whose transitions are as old as
            each other: the count covers at least ``window``, and less than one update more.

    Examples:
        >>> import torch
        >>> counter = CoverageCounter(window=2)
        >>> for x in (1, 1, 2, 3):
        ...     counter.update(torch.tensor([[x]]))
        >>> len(counter)
        2
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self._clear()

    def _clear(self) -> None:
        self._num_updates: Counter[tuple[int, ...]] = Counter()
        self._recent: deque[tuple[int, list[tuple[int, ...]]]] = deque()
        self._num_recent = 0

    def __len__(self) -> int:
        return len(self._num_updates)

    def update(self, cells: Tensor, num_transitions: int | None = None) -> None:
        """Add the cells of some transitions.

        Args:
            cells (Tensor): of shape ``[n, k]``, see :func:`visited`.
            num_transitions (int, optional): number of transitions that they come from.
                Defaults to ``n``.
        """
        if cells.is_floating_point():
            raise ValueError(f"expected cells as visited() returns them, got {cells.dtype}.")
        size = len(cells) if num_transitions is None else num_transitions
        self._add(size, [tuple(cell) for cell in cells.unique(dim=0).tolist()])

    def _add(self, size: int, cells: list[tuple[int, ...]]) -> None:
        if self.window is None:
            self._num_updates.update(dict.fromkeys(cells, 0))
            return
        self._num_updates.update(cells)
        self._recent.append((size, cells))
        self._num_recent += size
        while self._num_recent - self._recent[0][0] >= self.window:
            old_size, old_cells = self._recent.popleft()
            self._num_recent -= old_size
            for cell in old_cells:
                self._num_updates[cell] -= 1
                if not self._num_updates[cell]:
                    del self._num_updates[cell]

    def state_dict(self) -> dict[str, Any]:
        """The counted cells, as tensors."""
        updates = self._recent if self.window is not None else [(0, list(self._num_updates))]
        return {
            "sizes": torch.tensor([size for size, _ in updates]),
            "cells": [torch.tensor(cells) for _, cells in updates],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self._clear()
        for size, cells in zip(state_dict["sizes"].tolist(), state_dict["cells"], strict=True):
            self._add(size, [tuple(cell) for cell in cells.tolist()])


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
