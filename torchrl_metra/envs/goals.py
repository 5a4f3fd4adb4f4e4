"""Goals for zero-shot goal reaching: what an environment shows in states to be reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import ObservationNorm

from torchrl_metra._transforms import transforms_of
from torchrl_metra.envs.make import make_env, resolve
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.places import draw_positions


def sample_goals(
    env: str | Callable[..., Any],
    num_goals: int,
    *,
    extent: float | None = None,
    seed: int = 0,
    pixels: PixelOptions | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> TensorDictBase:
    """Goals for an environment of :func:`~torchrl_metra.make_env` (Section 5).

    A goal is a state after a reset, moved to a place drawn uniformly from a square around
    the origin. In the kitchen it is such a state with one of the tasks solved, each task
    in turn. An environment of your own may have goals of another kind, see
    :func:`~torchrl_metra.register_env`; else it needs a ``position`` that is a set of entries of
    its observation, in which states are moved.

    Args:
        env (str or callable): what ``make_env`` takes.
        num_goals (int): number of goals ``M``.

    Keyword Args:
        extent (float, optional): half the edge of the square, in meters. Defaults to the
            paper's: 50 for Ant, 100 for HalfCheetah, 15 for Quadruped, 10 for Humanoid; to
            20 for points. Not for the kitchen. Others need it, in units of their position.
        seed (int, optional): the same seed gives the same goals. Torch's global generator
            is left alone. Defaults to 0.
        pixels (PixelOptions, optional): how the pictures of a pixel task look, as given to
            ``make_env``.
        env_options (mapping, optional): what else is given to ``make_env``, such as
            ``normalize``, ``position`` and ``options``.

    Returns:
        A TensorDict of batch size ``[M]`` with what the encoder reads, ``"observation"``
        (normalized as the environment does) or ``"pixels"``, and what evaluation reads:
        the ``"position"`` in meters, or the solved ``"tasks"``. Give it to
        :class:`~torchrl_metra.GoalPrimer`.

    Raises:
        ValueError: if the environment has no goals of its own, and no position or extent is
            known, or if it cannot do what is asked for.

    Examples:
        >>> goals = sample_goals("half_cheetah", 50)
        >>> goals["observation"].shape, goals["position"].shape
        (torch.Size([50, 18]), torch.Size([50, 1]))
        >>> bool(goals["position"].abs().max() <= 100)
        True
    """
    options = dict(env_options or {})
    entry = resolve(env, options.get("options") or {})
    if entry.observes == "pixels":
        pixels = pixels or PixelOptions()
    elif pixels is not None:
        raise ValueError(f"{entry.name!r} is observed by its state, but pixels={pixels} was given.")
    extent = entry.goal_extent if extent is None else extent
    if entry.goals is not None:
        return entry.goals(num_goals, extent=extent, seed=seed, pixels=pixels)
    where = options.get("position") or entry.position
    if entry.observes == "pixels" or isinstance(where, str) or not isinstance(where, Sequence):
        raise ValueError(
            f"states of {entry.name!r} cannot be moved to a goal: no position is known that is a "
            "set of entries of its observation. Give env_options={'position': [0, 1]}, or give "
            "GoalPrimer a TensorDict of goals."
        )
    if extent is None:
        raise ValueError(f"how far do goals of {entry.name!r} lie? Give extent.")
    entries = [int(entry) for entry in where]
    position = draw_positions(num_goals, len(entries), extent, seed)
    with closing(make_env(env, 1, **options)) as built:
        built.set_seed(seed)
        observation = torch.cat([built.reset()["observation"] for _ in range(num_goals)])
        # Where the states are moved to, in the form that networks read.
        moved = torch.zeros_like(observation)
        moved[:, entries] = position
        states = TensorDict({"observation": moved}, [num_goals])
        for transform in transforms_of(built):
            if isinstance(transform, ObservationNorm):
                states = transform(states)
    observation[:, entries] = states["observation"][:, entries]
    return TensorDict({"observation": observation, "position": position}, [num_goals])
