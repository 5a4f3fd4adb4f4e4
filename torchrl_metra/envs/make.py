"""One function that builds every environment."""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
from torchrl.envs import ActionScaling, Compose, EnvBase, TransformedEnv

from torchrl_metra._checks import check_device, check_integer, check_type
from torchrl_metra.envs.dm_control import LOCOMOTION, make_locomotion
from torchrl_metra.envs.kitchen import make_kitchen
from torchrl_metra.envs.mujoco import HURDLE_COURSE, TASKS, Backend, make_mujoco_env
from torchrl_metra.envs.pixels import PixelOptions, make_pixel_env, pixel_transforms
from torchrl_metra.envs.point import DrawPoint, PointEnv, WindyPointEnv
from torchrl_metra.envs.tasks import DOWNSTREAM

__all__ = ["make_env"]

POINTS = {"point": PointEnv, "windy_point": WindyPointEnv}
PIXEL_TASKS = (*LOCOMOTION, "kitchen")
MUJOCO_TASKS = {**TASKS, "hurdle_course": HURDLE_COURSE}


def make_env(
    name: str,
    num_envs: int | None = None,
    *,
    backend: Backend | None = None,
    device: torch.device | str | None = None,
    pixels: PixelOptions | None = None,
    **ignored,
) -> TransformedEnv:
    """Build an environment of the paper, ready for METRA.

    All of them have ``float32`` actions in [-1, 1] and episodes that end by truncation
    only, after 200 steps (kitchen: 50). State tasks have a normalised ``float32``
    ``"observation"``; pixel tasks have ``"pixels"``, ``uint8`` of shape
    ``[3 * frames, resolution, resolution]``, channels first and the newest frame last. For
    evaluation there is the raw ``"position"`` in metres, in the kitchen ``"tasks"``, see
    :data:`~torchrl_metra.envs.KITCHEN_TASKS`.

    Args:
        name (str): ``"point"``, ``"windy_point"``, ``"ant"`` or ``"half_cheetah"``,
            observed by their state;
            ``"quadruped"``, ``"humanoid"``, ``"kitchen"`` or ``"point_pixels"``, observed
            by pixels; or a task to use skills for: ``"point_goal"``, ``"ant_multi_goals"``,
            ``"half_cheetah_goal"``, ``"half_cheetah_hurdle"``, ``"quadruped_goal"``,
            ``"humanoid_goal"``, which add ``"to_goal"`` and replace the reward, see
            :class:`~torchrl_metra.envs.ReachGoals`.
        num_envs (int, optional): number of environments side by side. ``None``
            (default) builds a single one without a batch dimension.

    Keyword Args:
        backend (str, optional): what steps the environments: ``"serial"`` (this process),
            ``"parallel"`` (a process each) or, for Ant and HalfCheetah, ``"envpool"``
            (C++ threads). Defaults to EnvPool where it serves and is installed, else to
            ``"serial"``; for pixel tasks with ``num_envs`` to ``"parallel"``.
        device (torch.device, optional): device of the tensors.
        pixels (PixelOptions, optional): resolution, number of frames and quality of the
            pictures of a pixel task, which default to three frames of 64 x 64. With it, state
            tasks have ``"pixels"`` beside their state, to look at.

    Returns:
        The environment. Append a :class:`~torchrl_metra.SkillPrimer` to it.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the name, the backend or their combination is unknown, if ``num_envs``
            is not positive, or if EnvPool is asked for pictures.
        ImportError: if the backend is not installed; names the extra to install.

    Examples:
        >>> make_env("point", num_envs=4).rollout(3)["observation"].shape
        torch.Size([4, 3, 2])

        Pixel tasks need OpenGL and draw in their worker processes:

        >>> env = make_env("kitchen", 4, pixels=PixelOptions(resolution=128))  # doctest: +SKIP
        >>> env.reset()["pixels"].shape  # doctest: +SKIP
        torch.Size([4, 9, 128, 128])
    """
    check_type("name", name, str, "a string")
    if num_envs is not None:
        check_integer("num_envs", num_envs)
    if device is not None:
        check_device("device", device)
    check_type("pixels", pixels, PixelOptions | None, "PixelOptions or None")
    if name in DOWNSTREAM:
        task = DOWNSTREAM[name]
        env = make_env(task.base, num_envs, backend=backend, device=device, pixels=pixels)
        return env.append_transform(task.transform())
    if name == "point_pixels" or (name in POINTS and pixels is not None):
        pixels = pixels or PixelOptions()
        transforms = [DrawPoint(pixels.resolution), *pixel_transforms(pixels.frames)]
        return TransformedEnv(_make_point(name, num_envs, backend, device), Compose(*transforms))
    if name in PIXEL_TASKS:
        env = _make_pixel_task(name, num_envs, backend, pixels or PixelOptions())
        return env if device is None else env.to(device)
    if name not in (*POINTS, *MUJOCO_TASKS):
        raise ValueError(
            f"unknown environment {name!r}, expected one of "
            f"{[*POINTS, *MUJOCO_TASKS, 'point_pixels', *PIXEL_TASKS, *DOWNSTREAM]}."
        )
    if name in POINTS:
        return TransformedEnv(_make_point(name, num_envs, backend, device), ActionScaling())
    if backend is None:
        has_envpool = importlib.util.find_spec("envpool") is not None
        serves = num_envs is not None and not MUJOCO_TASKS[name].hurdles and pixels is None
        backend = "envpool" if has_envpool and serves else "serial"
    if backend not in ("envpool", "serial", "parallel"):
        raise ValueError(
            f"unknown backend {backend!r}, expected 'envpool', 'serial' or 'parallel'."
        )
    env = make_mujoco_env(MUJOCO_TASKS[name], num_envs, backend, pixels=pixels)
    return env if device is None else env.to(device)


def _make_point(
    name: str,
    num_envs: int | None,
    backend: Backend | None,
    device: torch.device | str | None,
) -> PointEnv:
    if backend is not None:
        raise ValueError(f"{name!r} has no backends, but backend={backend!r} was given.")
    return POINTS.get(name, PointEnv)(num_envs, device=device)


def _make_pixel_task(
    name: str, num_envs: int | None, backend: Backend | None, pixels: PixelOptions
) -> TransformedEnv:
    if backend == "envpool":
        raise ValueError(f"EnvPool renders no pixels: {name!r} has backend 'serial' or 'parallel'.")
    if backend not in (None, "serial", "parallel"):
        raise ValueError(f"unknown backend {backend!r}, expected 'serial' or 'parallel'.")
    make: partial[EnvBase]
    if name == "kitchen":
        make = partial(make_kitchen, pixels)
    else:
        make = partial(make_locomotion, LOCOMOTION[name], pixels)
    return make_pixel_env(make, num_envs, backend or "parallel", pixels.frames)
