"""Goals for zero-shot goal reaching: what an environment shows in states to be reached."""

from __future__ import annotations

from contextlib import closing

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_metra._checks import check_integer, check_positive, check_type
from torchrl_metra.envs.dm_control import LOCOMOTION, Locomotion, make_locomotion
from torchrl_metra.envs.kitchen import KITCHEN_TASKS, make_kitchen
from torchrl_metra.envs.make import PIXEL_TASKS, POINTS, make_env
from torchrl_metra.envs.mujoco import TASKS
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.point import DrawPoint

__all__ = ["GOAL_EXTENTS", "sample_goals"]

# Goals lie within plus or minus this many metres along each axis: as in the paper, and as far as
# any point can go in an episode, even against the wind.
GOAL_EXTENTS: dict[str, float] = {
    "point": 20.0,
    "windy_point": 20.0,
    "ant": 50.0,
    "half_cheetah": 100.0,
    "point_pixels": 20.0,
    "quadruped": 15.0,
    "humanoid": 10.0,
}


def sample_goals(
    name: str,
    num_goals: int,
    *,
    extent: float | None = None,
    seed: int = 0,
    pixels: PixelOptions | None = None,
) -> TensorDict:
    """Goals for an environment of :func:`~torchrl_metra.make_env` (Section 5).

    A goal is a state after a reset, moved to a place drawn uniformly from a square around
    the origin. In the kitchen it is such a state with one of the tasks solved, each task
    in turn.

    Args:
        name (str): name of the environment.
        num_goals (int): number of goals ``M``.

    Keyword Args:
        extent (float, optional): half the edge of the square, in metres. Defaults to the
            paper's: 50 for Ant, 100 for HalfCheetah, 15 for Quadruped, 10 for Humanoid; to
            20 for points. Not for the kitchen.
        seed (int, optional): the same seed gives the same goals. Torch's global generator
            is left alone. Defaults to 0.
        pixels (PixelOptions, optional): how the pictures of a pixel task look, as given to
            ``make_env``.

    Returns:
        A TensorDict of batch size ``[M]`` with what the encoder reads, ``"observation"``
        (normalised as the environment does) or ``"pixels"``, and what evaluation reads:
        the ``"position"`` in metres, or the solved ``"tasks"``. Give it to
        :class:`~torchrl_metra.GoalPrimer`.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the environment is unknown or does not have such an option, or if
            a number is not positive.
        ImportError: if the environment is not installed; names the extra to install.

    Examples:
        >>> goals = sample_goals("half_cheetah", 50)
        >>> goals["observation"].shape, goals["position"].shape
        (torch.Size([50, 18]), torch.Size([50, 1]))
        >>> bool(goals["position"].abs().max() <= 100)
        True
    """
    if name not in (*GOAL_EXTENTS, "kitchen"):
        raise ValueError(
            f"unknown environment {name!r}, expected one of {[*GOAL_EXTENTS, 'kitchen']}. For an "
            "environment of your own, give GoalPrimer a TensorDict of goals."
        )
    check_integer("num_goals", num_goals)
    check_integer("seed", seed, minimum=0)
    check_type("pixels", pixels, PixelOptions | None, "PixelOptions or None")
    if extent is not None:
        check_positive("extent", extent)
    if pixels is not None and name not in ("point_pixels", *PIXEL_TASKS):
        raise ValueError(f"{name!r} is observed by its state, but pixels={pixels} was given.")
    options = pixels or PixelOptions()
    if name == "kitchen":
        if extent is not None:
            raise ValueError(f"the kitchen's goals are tasks, but extent={extent} was given.")
        return _solve_tasks(num_goals, seed, options)
    position = _draw_positions(name, num_goals, seed, extent)
    if name in POINTS:
        entries = {"observation": position.clone()}
    elif name == "point_pixels":
        drawn = DrawPoint(options.resolution)(TensorDict({"position": position}, [num_goals]))
        entries = {"pixels": _stack(drawn["pixels"], options)}
    elif name in LOCOMOTION:
        entries = {"pixels": _photograph(LOCOMOTION[name], position, seed, options)}
    else:
        entries = {"observation": _move(name, position, seed)}
    return TensorDict({**entries, "position": position}, [num_goals])


def _draw_positions(name: str, num_goals: int, seed: int, extent: float | None) -> Tensor:
    extent = GOAL_EXTENTS[name] if extent is None else extent
    size = TASKS[name].position_size if name in TASKS else 2
    uniform = torch.rand(num_goals, size, generator=torch.Generator().manual_seed(seed))
    return extent * (2 * uniform - 1)


def _move(name: str, position: Tensor, seed: int) -> Tensor:
    """Observations of states after a reset, moved: the position leads in them."""
    with closing(make_env(name, 1)) as env:
        env.set_seed(seed)
        observation = torch.cat([env.base_env.reset()["observation"] for _ in position])
        observation[:, : position.shape[-1]] = position
        states = TensorDict({"observation": observation}, [len(position)])
        # In the form that the networks read, normalised too.
        return env.transform(states)["observation"]


def _photograph(task: Locomotion, position: Tensor, seed: int, options: PixelOptions) -> Tensor:
    """Pictures of a robot after a reset, moved."""
    frames = []
    with closing(make_locomotion(task, options)) as env:
        env.set_seed(seed)
        for x, y in position.tolist():
            env.reset()
            frames.append(env.frame_at(x, y))
    return _stack(torch.stack(frames), options)


def _solve_tasks(num_goals: int, seed: int, options: PixelOptions) -> TensorDict:
    """What the kitchen shows after a reset, with each task solved in turn."""
    goals = []
    with closing(make_kitchen(options)) as env:
        env.set_seed(seed)
        for index in range(num_goals):
            env.reset()
            goals.append(env.observe_solved(KITCHEN_TASKS[index % len(KITCHEN_TASKS)]))
    frames, tasks = (torch.stack([goal[key] for goal in goals]) for key in ("pixels", "tasks"))
    return TensorDict({"pixels": _stack(frames, options), "tasks": tasks}, [num_goals])


def _stack(frames: Tensor, options: PixelOptions) -> Tensor:
    # As after a reset, where the first frame stands in for those before it.
    return frames.repeat(1, options.frames, 1, 1)
