"""What a round of collection and updates has to tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_metra.evaluation.coverage import read_places
from torchrl_metra.evaluation.trajectories import Projection
from torchrl_metra.trainers.faults import DivergenceError


class Round:
    """Numbers of one round, kept where they are until all of them are read at once.

    Reading a number of an accelerator waits for all that it has to do. So a round reads twice: the
    number of bad values in the collected data, before they are stored, and all else at its end.

    Args:
        batch (TensorDictBase, optional): the collected transitions; none where the collector
            writes to the replay buffer itself.
        keys (iterable of NestedKey, optional): entries that training reads.
        state_keys (iterable of NestedKey, optional): entries that φ reads, whose scale is logged.

    Keyword Args:
        projection (Callable, optional): coordinates of states, see
            :func:`~torchrl_metra.evaluation.visited`.

    Raises:
        ValueError: if a transition holds NaN or infinite numbers.
    """

    def __init__(
        self,
        batch: TensorDictBase | None = None,
        keys: Iterable[NestedKey] = (),
        state_keys: Iterable[NestedKey] = (),
        *,
        projection: Projection | None = None,
    ) -> None:
        self.num_transitions = 0 if batch is None else batch.numel()
        self.optim_steps = 0
        self.metrics: TensorDictBase | None = None
        self._places: Tensor | None = None
        self._spread: dict[NestedKey, Tensor] = {}
        if batch is None:
            return
        self._places = read_places(batch, projection)
        read = {key: batch.get(key, default=None) for key in keys}
        # Numbers only: pixels are always finite.
        read = {k: v for k, v in read.items() if v is not None and v.is_floating_point()}
        check_data(read)
        states = [read[key] for key in state_keys if key in read]
        self._spread = _spread(states, batch.numel())

    def set_metrics(self, optim_steps: int, metrics: TensorDictBase) -> None:
        """Take what the updates gave.

        Args:
            optim_steps (int): gradient steps so far.
            metrics (TensorDictBase): scalars, averaged over the round.
        """
        self.optim_steps, self.metrics = optim_steps, metrics

    def read(self) -> tuple[dict[Any, float], Tensor | None]:
        """Bring everything to the host, in one copy.

        Returns:
            The metrics to log, and coordinates or flags for the coverage, if there are any.

        Raises:
            DivergenceError: if a metric is not finite.
        """
        metrics = {} if self.metrics is None else dict(self.metrics.items())
        places = {} if self._places is None else {_PLACES: self._places}
        host = _to_host({**self._spread, **metrics, **places})
        found = host.pop(_PLACES, None)
        values = {name: value.item() for name, value in host.items()}
        check_metrics(self.optim_steps, {name: values[name] for name in metrics})
        if metrics:
            values["optim_steps"] = self.optim_steps
        return values, found


_PLACES = "places"


def _to_host(tensors: Mapping[NestedKey, Tensor]) -> dict[Any, Tensor]:
    """All of them on the CPU, by one copy from each device."""
    host = {}
    for device in {tensor.device for tensor in tensors.values()}:
        here = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        # Doubles hold every float, flag and count exactly.
        packed = torch.cat([tensor.reshape(-1).double() for tensor in here.values()]).cpu()
        parts = packed.split([tensor.numel() for tensor in here.values()])
        for (name, tensor), part in zip(here.items(), parts, strict=True):
            host[name] = part.to(tensor.dtype).reshape(tensor.shape)
    return host


def _spread(states: list[Tensor], num_transitions: int) -> dict[NestedKey, Tensor]:
    """Standard deviations of the entries that vary least and most; constant ones do not count."""
    if not states or num_transitions < 2:
        return {}
    spread = torch.cat([state.reshape(num_transitions, -1).std(dim=0) for state in states])
    smallest = spread.where(spread > 0, torch.inf).min()
    return {
        "observation_spread_min": torch.minimum(smallest, spread.max()),
        "observation_spread_max": spread.max(),
    }


def check_data(entries: Mapping[NestedKey, Tensor]) -> None:
    """Refuse collected data that would poison the replay buffer.

    Args:
        entries (mapping of NestedKey to Tensor): floats by their keys.

    Raises:
        ValueError: if one of them is not finite.
    """
    counts = _to_host({key: (~value.isfinite()).sum() for key, value in entries.items()})
    if bad := {key: int(count) for key, count in counts.items() if count}:
        raise ValueError(
            f"the environment returned NaN or infinite values, so many in each entry: {bad}. Mend "
            "the environment, or end its episodes before they diverge."
        )


def check_metrics(optim_steps: int, metrics: Mapping[str, float]) -> None:
    """Refuse metrics of a training that has diverged.

    Args:
        optim_steps (int): gradient steps so far.
        metrics (mapping of str to float): metrics of a round, by name.

    Raises:
        DivergenceError: if one is not finite.
    """
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergenceError(
            f"training has diverged: {sorted(bad)} are not finite after {optim_steps} gradient "
            "steps. Lower the learning rates, or train in float32 if autocast is on."
        )
