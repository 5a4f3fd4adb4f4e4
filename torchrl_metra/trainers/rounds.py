"""What a round of collection and updates has to tell, and whether it is sound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_metra.trainers.faults import DivergenceError


def check_data(batch: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Refuse collected data that would poison the replay buffer.

    Args:
        batch (TensorDictBase): collected transitions.
        keys (iterable of NestedKey): entries to look at, if they are there.

    Raises:
        ValueError: if one of them is not finite.
    """
    entries = {key: batch.get(key, default=None) for key in keys}
    # Numbers only: pixels are always finite.
    counts = {
        key: (~value.isfinite()).sum()
        for key, value in entries.items()
        if value is not None and value.is_floating_point()
    }
    if bad := {key: int(count) for key, count in read(counts).items() if count}:
        raise ValueError(
            f"the environment returned NaN or infinite values, so many in each entry: {bad}. Mend "
            "the environment, or end its episodes before they diverge."
        )


def observation_spread(batch: TensorDictBase, keys: Iterable[NestedKey]) -> dict[str, float]:
    """Standard deviations of the entries that vary least and most; constant ones do not count.

    Args:
        batch (TensorDictBase): collected transitions.
        keys (iterable of NestedKey): entries of a state; those that are no floats do not count.

    Returns:
        What is logged; nothing for a single transition.
    """
    states = [batch.get(key, default=None) for key in keys]
    states = [state for state in states if state is not None and state.is_floating_point()]
    if not states or batch.numel() < 2:
        return {}
    spread = torch.cat([state.reshape(batch.numel(), -1).std(dim=0) for state in states])
    smallest = spread.where(spread > 0, torch.inf).min()
    bounds = {
        "observation_spread_min": torch.minimum(smallest, spread.max()),
        "observation_spread_max": spread.max(),
    }
    return read(bounds)


def read_metrics(optim_steps: int, metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Bring the metrics of a round to the host.

    Args:
        optim_steps (int): gradient steps so far.
        metrics (mapping of str to Tensor): scalars, averaged over the round.

    Raises:
        DivergenceError: if one is not finite.
    """
    values = read(metrics)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DivergenceError(
            f"training has diverged: {sorted(bad)} are not finite after {optim_steps} gradient "
            "steps. Lower the learning rates, or train in float32 if autocast is on."
        )
    return values


def read(numbers: Mapping[Any, Tensor]) -> dict[Any, float]:
    """Scalars as Python numbers, in one copy: an accelerator is waited for once."""
    values = torch.stack([*numbers.values()]).tolist() if numbers else []
    return dict(zip(numbers, values, strict=True))
