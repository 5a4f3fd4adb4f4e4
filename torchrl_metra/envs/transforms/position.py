"""Where a body is, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform

from torchrl_metra._checks import check_integer, check_sizes, check_type

__all__ = ["ReadPosition"]


class ReadPosition(Transform):
    """Copies the position out of the observation.

    Evaluation reads the entry ``"position"``; no network does. Append it before
    any normalisation.

    Args:
        entries (int, sequence of int or callable): number of leading entries of the observation
            to copy; or which entries, ``[0, 2]``; or a function of a TensorDict of states,
            ``[*B]``, that returns positions, ``[*B, k]``.

    Raises:
        TypeError: if ``entries`` is none of these.
        ValueError: if the observation has no such entries, or the function returns no vector.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), ReadPosition(2))
        >>> env.reset()["position"].shape
        torch.Size([2])
    """

    def __init__(self, entries: int | Sequence[int] | Callable[[TensorDictBase], Tensor]) -> None:
        super().__init__(in_keys=["observation"], out_keys=["position"])
        self.entries: Any = entries
        if callable(entries):
            return
        if isinstance(entries, Sequence):
            check_sizes("entries", entries, minimum=0)
            if not entries:
                raise ValueError("entries must name at least one entry of the observation.")
            leading = list(entries) == list(range(len(entries)))
            self.index: Any = slice(len(entries)) if leading else list(entries)
            self.size, self.largest = len(entries), max(entries)
        else:
            check_integer("entries", entries)
            self.index, self.size, self.largest = slice(entries), entries, entries - 1

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set("position", self._read(next_tensordict))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the position to a TensorDict of states."""
        return self._call(tensordict)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _read(self, tensordict: TensorDictBase) -> Tensor:
        if callable(self.entries):
            return self.entries(tensordict)
        return tensordict.get("observation")[..., self.index]

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the position's spec."""
        if not callable(self.entries):
            source = observation_spec["observation"]
            if source.shape[-1] <= self.largest:
                raise ValueError(
                    f"ReadPosition({self.entries}) reads entry {self.largest} of an observation "
                    f"that has only {source.shape[-1]}."
                )
        position = self._read(observation_spec.zero())
        check_type("a position", position, Tensor, "a tensor")
        if position.ndim != len(observation_spec.shape) + 1:
            raise ValueError(
                f"positions must be vectors, [*B, k], got shape {list(position.shape)} for batch "
                f"size {list(observation_spec.shape)}."
            )
        observation_spec["position"] = Unbounded(
            shape=position.shape, dtype=position.dtype, device=position.device
        )
        return observation_spec
