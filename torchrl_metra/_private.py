"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

if TYPE_CHECKING:
    from torchrl.envs import EnvBase, Transform

# ---- torchrl: losses


# ---- torchrl: distributions


# ---- torchrl: trainers


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


# ---- torchrl: environments


class SpecsMixin:
    """torchrl 0.14.1: ``_make_specs`` of environment wrappers, called once by their constructor.

    Stands before the wrapper among the bases, and lets :meth:`adjust_specs` change its specs.
    """

    def _make_specs(self, env: Any, batch_size: Any = None) -> None:
        super()._make_specs(env)  # type: ignore[misc]
        self.adjust_specs()

    def adjust_specs(self) -> None:
        """Change the specs that the wrapper has made."""
        raise NotImplementedError


class AutoResetMixin:
    """torchrl 0.14.1: ``Transform._reset_on_native_autoreset``.

    Called after each step of an environment that resets itself, with the reset mask in the first
    TensorDict and what the environment shows in the second.
    """

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self.update_where_reset(tensordict, tensordict_reset)

    def update_where_reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        """Return the second TensorDict with new entries where environments were reset."""
        raise NotImplementedError


class WorkerCheckMixin:
    """torchrl 0.14.1: ``Transform._check_batched_worker_compat``.

    Called by batched environments for each transform in a worker.
    """

    def _check_batched_worker_compat(self) -> None:
        self.check_in_worker()

    def check_in_worker(self) -> None:
        """Raise an error if the transform cannot work inside of a worker."""
        raise NotImplementedError


def steps_mask(tensordict: TensorDictBase, done: Tensor) -> Tensor:
    """torchrl 0.14.1: the entry ``"_step"``, by which rollouts leave out finished environments.

    Returns:
        Which environments a step is for, of the shape of ``done``.
    """
    mask = tensordict.get("_step", None)
    return torch.ones_like(done) if mask is None else mask.reshape(done.shape)


def step_below(
    env: EnvBase, transforms: Sequence[Transform], tensordict: TensorDictBase, active: Tensor
) -> TensorDictBase:
    """torchrl 0.14.1: ``TransformedEnv._step``, with some of its transforms only.

    ``EnvBase._complete_done``, ``EnvBase._step`` and ``Transform._step`` are called, with the
    entry ``"_step"`` where not all environments are active.

    Args:
        env (EnvBase): the environment below all transforms.
        transforms (sequence of Transform): those that see the step.
        tensordict (TensorDictBase): with the action for the last of them.
        active (Tensor): which environments are stepped, flags of shape ``[*B, 1]``.

    Returns:
        What follows, as below ``"next"``.
    """
    for transform in reversed(transforms):
        tensordict = transform.inv(tensordict)
    if active.all():
        tensordict.pop("_step", None)
    else:
        tensordict.set("_step", active.reshape(tensordict.batch_size))
    following = env._step(tensordict)
    env._complete_done(env.full_done_spec, following)
    for transform in transforms:
        following = transform._step(tensordict, following)
    return following


# ---- torch


# ---- mujoco and dm_control


def open_gl_context(cls: Any, width: int, height: int) -> Any:
    """mujoco 3.10.0: ``GLContext._context``, which its ``__del__`` reads.

    It is missing where the constructor has failed early: Python would report an ignored
    ``AttributeError`` for every backend that does not work.
    """
    context = cls.__new__(cls)
    context._context = None
    context.__init__(width, height)
    return context


def suite_step_limit(env: Any) -> float:
    """dm_control 1.0.43: ``Environment._step_limit``, infinite where episodes have no end."""
    return env._step_limit


# ---- hydra


# ---- the standard library
