"""Entries that are drawn for every episode."""

from __future__ import annotations

import abc
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, expand_as_right, unravel_key
from torch import Tensor
from torchrl.data import Composite, TensorSpec
from torchrl.envs.transforms import TensorDictPrimer

from torchrl_metra._private import AutoResetMixin

Entry = TypeVar("Entry", Tensor, TensorDictBase)


class EpisodePrimer(AutoResetMixin, TensorDictPrimer, abc.ABC):
    """Draws an entry at reset and carries it through the episode.

    What was passed to ``env.reset`` is kept, but where a ``"_reset"`` mask asks for a new
    episode: there it is what the last episode had.

    Args:
        key (NestedKey): entry to write.
        spec (TensorSpec): spec of one draw.

    Keyword Args:
        reset_key (NestedKey, optional): see :class:`~torchrl.envs.TensorDictPrimer`.
    """

    def __init__(
        self, key: NestedKey, spec: TensorSpec, *, reset_key: NestedKey | None = None
    ) -> None:
        super().__init__(
            primers=Composite({key: spec}), random=True, reset_key=reset_key, expand_specs=True
        )
        self.key = unravel_key(key)
        self._mask_key = reset_key if reset_key is None else unravel_key(reset_key)

    @abc.abstractmethod
    def draw(self, batch_size: torch.Size, device: torch.device | None) -> Tensor | TensorDictBase:
        """New values, of batch size ``batch_size``."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Refuse to run outside of an environment."""
        name = type(self).__name__
        raise RuntimeError(
            f"{name} draws when an environment is reset; on a replay buffer or as a postproc it "
            f"would overwrite {self.key!r} of the stored episodes. Append it to the environment "
            f"instead: env.append_transform({name}(...))."
        )

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        value = tensordict.get(self.key, default=None)
        if value is None or self._mask(tensordict) is not None:
            # One for every environment: TorchRL drops those of environments that go on.
            value = self.draw(tensordict_reset.batch_size, tensordict_reset.device)
        return tensordict_reset.set(self.key, value)

    def update_where_reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        reset = self._mask(tensordict)
        if reset is None:
            return tensordict_reset
        # Called at every step, and here nobody drops anything.
        drawn = self.draw(tensordict_reset.batch_size, tensordict_reset.device)
        value = where_reset(reset, drawn, tensordict_reset.get(self.key))
        return tensordict_reset.set(self.key, value)

    def _mask(self, tensordict: TensorDictBase) -> Tensor | None:
        """Which environments are reset, of shape ``[*B]``, if there is a mask that says so."""
        # Not by the base class's reset_key, which refuses environments with several.
        keys = self.parent.reset_keys if self._mask_key is None else [self._mask_key]
        masks = [tensordict.get(key) for key in keys if key in tensordict.keys(True)]
        return masks[0].reshape(*tensordict.batch_size, -1).any(-1) if masks else None


def where_reset(reset: Tensor, fresh: Entry, current: Entry) -> Entry:
    """``fresh`` where an environment was reset, ``current`` elsewhere.

    Args:
        reset (Tensor): flags of shape ``[*B]``.
        fresh (Tensor or TensorDictBase): of shape ``[*B, ...]``.
        current (Tensor or TensorDictBase): likewise.
    """
    return torch.where(expand_as_right(reset, fresh), fresh, current)
