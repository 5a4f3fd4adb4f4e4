"""Where a body is, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform

from torchrl_metra._imports import import_object


class ReadPosition(Transform):
    """Copies the position out of the observation.

    Evaluation reads the entry ``"position"``; no network does. Append it before
    any normalization.

    Args:
        entries (int, sequence of int, callable or str): number of leading entries of the
            observation to copy; or which entries, ``[0, 2]``; or a function of a TensorDict of
            states, ``[*B]``, that returns positions, ``[*B, k]``, or its name
            ``"package.module:function"``.

    Raises:
        ValueError: once specs are asked for, if positions are not vectors.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), ReadPosition(2))
        >>> env.reset()["position"].shape
        torch.Size([2])
    """

    def __init__(
        self, entries: int | Sequence[int] | Callable[[TensorDictBase], Tensor] | str
    ) -> None:
        super().__init__(in_keys=["observation"], out_keys=["position"])
        if isinstance(entries, str):
            entries = import_object(entries)
        self.entries: Any = list(range(entries)) if isinstance(entries, int) else entries

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        if callable(self.entries):
            position = self.entries(next_tensordict)
        else:
            position = next_tensordict.get("observation")[..., list(self.entries)]
        return next_tensordict.set("position", position)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the position to a TensorDict of states."""
        return self._call(tensordict)

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the position's spec."""
        position = self._call(observation_spec.zero())["position"]
        if position.ndim != len(observation_spec.shape) + 1:
            raise ValueError(
                f"positions must be vectors, [*B, k], got shape {list(position.shape)} for batch "
                f"size {list(observation_spec.shape)}."
            )
        observation_spec["position"] = Unbounded(
            shape=position.shape, dtype=position.dtype, device=position.device
        )
        return observation_spec
