"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchrl.data import TensorStorage
from torchrl.envs import EnvBase
from torchrl.modules import TanhNormal

# ---- torchrl: losses


# ---- torchrl: distributions


def unchecked_tanh_normal(
    loc: Tensor, scale: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> TanhNormal:
    """TorchRL 0.14.1: ``TanhNormal.__init__`` skipped; ``_t``, ``_event_dims``, ``tanh_loc`` set.

    The constructor reads the values of ``low`` and ``high``, which waits for a GPU and cannot
    become part of a graph. Bounds are checked once, when the policy is built.

    Args:
        loc (Tensor): mean before the tanh, of shape ``[*B, A]``.
        scale (Tensor): standard deviation before the tanh, of the same shape.
        low (Tensor, optional): lower bounds, of shape ``[A]``. By default all bounds are ±1.
        high (Tensor, optional): upper bounds, of shape ``[A]``.
    """
    from torch.distributions import AffineTransform, ComposeTransform
    from torchrl.modules.distributions.continuous import SafeTanhTransform

    distribution = TanhNormal.__new__(TanhNormal)
    distribution.tanh_loc = False
    distribution._event_dims = min(1, loc.ndim)
    distribution.device = loc.device
    distribution.low, distribution.high = -1.0, 1.0
    distribution._t = SafeTanhTransform()
    if low is not None and high is not None:
        distribution.low, distribution.high = low, high
        affine = AffineTransform((high + low) / 2, (high - low) / 2)
        distribution._t = ComposeTransform([distribution._t, affine])
    distribution.update(loc, scale)
    return distribution


# ---- torchrl: trainers


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


class SelfSamplingStorage(TensorStorage):
    """TorchRL 0.14.1: ``Storage._rand_given_ndim`` and four others.

    The others are ``_rng``, ``_empty``, ``_set_last_cursor`` and ``_bump_mutation_revision``.
    A storage that chooses itself which of its entries a ``RandomSampler`` draws. Subclasses write
    ``draw`` and ``clear``, and call ``note_change`` when they have changed their data.
    """

    def draw(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """Indices to sample, of shape ``[batch_size]``."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget all data."""
        raise NotImplementedError

    def note_change(self, cursor: Tensor | None = None) -> None:
        """Tell samplers that data have changed, and where the last ones were written."""
        if cursor is not None:
            self._set_last_cursor(cursor)
        self._bump_mutation_revision()

    def _rand_given_ndim(self, batch_size: int) -> Tensor:
        return self.draw(batch_size, self._rng)

    def _empty(self) -> None:
        self.clear()
        self.note_change()


# ---- torchrl: environments


def resets_itself(env: EnvBase) -> bool:
    """TorchRL 0.14.1: ``EnvBase._torchrl_native_autoreset``, set where a step starts an episode."""
    return vars(env).get("_torchrl_native_autoreset", False)


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


# ---- the standard library
