"""What observations are like under random actions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchrl.envs import EnvBase

NUM_STEPS, NUM_ENVS = 10_000, 10

# Entries that vary less are constants, whose deviation is noise of rounding.
SMALLEST_DEVIATION = 1e-4


def measure_observations(
    env: EnvBase, num_steps: int = NUM_STEPS, *, seed: int = 0
) -> dict[str, Tensor]:
    """Mean and standard deviation of each entry of ``"observation"`` under random actions.

    An entry that deviates by less than 1e-4 hardly varies: its scale is 1.

    Args:
        env (EnvBase): an environment that does not normalize its observations. It is seeded and
            stepped; torch's global random state stays as it was.
        num_steps (int, optional): number of steps, of all environments of a batch together.
            Defaults to 10 000.

    Keyword Args:
        seed (int, optional): of the actions and the environment. Defaults to 0.

    Returns:
        ``"loc"`` and ``"scale"``, ``float32`` of the shape of one observation: constants for
        ``make_env(..., normalize=...)`` or for TorchRL's
        :class:`~torchrl.envs.transforms.ObservationNorm` with ``standard_normal=True``.

    Raises:
        ValueError: if there is no ``"observation"`` or it is not finite.

    Examples:
        >>> from torchrl_metra import make_env
        >>> env = make_env("point", 10, normalize=False)
        >>> measure_observations(env, 100)["scale"].shape
        torch.Size([2])
    """
    with same_random_state():
        observations, _ = random_steps(env, num_steps, seed=seed)
    if observations is None:
        raise ValueError(f"the environment shows no 'observation': {env.observation_spec}.")
    return constants_of(observations)


def random_steps(
    env: EnvBase, num_steps: int = NUM_STEPS, *, seed: int = 0
) -> tuple[Tensor | None, bool]:
    """Observations after random actions, ``[steps, size]``, and whether a time limit was met."""
    torch.manual_seed(seed)
    env.set_seed(seed)
    observations, truncates = [], False
    current = env.reset()
    for _ in range(max(1, num_steps // max(1, env.batch_size.numel()))):
        step, current = env.step_and_maybe_reset(env.rand_action(current))
        following = step["next"]
        if "observation" in following:
            observations.append(following["observation"].flatten(0, -2))
        truncates |= "truncated" in following and bool(following["truncated"].any())
    return (torch.cat(observations).double().cpu() if observations else None), truncates


def constants_of(observations: Tensor) -> dict[str, Tensor]:
    """What normalizes observations, ``[steps, size]``."""
    if not observations.isfinite().all():
        raise ValueError("observations under random actions must be finite.")
    scale = observations.std(0, correction=0)
    scale[scale < SMALLEST_DEVIATION] = 1.0
    return {"loc": observations.mean(0).float(), "scale": scale.float()}


@contextmanager
def same_random_state() -> Iterator[None]:
    """Draw random numbers without a trace in the global generators."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
