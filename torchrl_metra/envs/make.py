"""One function that builds every environment."""

from __future__ import annotations

import importlib.util

import torch
from torchrl.envs import ActionScaling, TransformedEnv

from torchrl_metra.envs.mujoco import TASKS, Backend, make_mujoco_env
from torchrl_metra.envs.point import PointEnv

__all__ = ["make_env"]


def make_env(
    name: str,
    num_envs: int | None = None,
    *,
    backend: Backend | None = None,
    device: torch.device | str | None = None,
) -> TransformedEnv:
    """Build an environment of the paper, ready for METRA.

    All of them have actions in [-1, 1], a normalised ``float32`` ``"observation"``,
    the raw ``"position"`` in metres for evaluation, and episodes of 200 steps that
    end by truncation only.

    Args:
        name (str): ``"point"``, ``"ant"`` or ``"half_cheetah"``.
        num_envs (int, optional): number of environments side by side. ``None``
            (default) builds a single one without a batch dimension.

    Keyword Args:
        backend (str, optional): how the MuJoCo tasks are stepped: ``"envpool"``
            (C++ threads), ``"serial"`` (gymnasium, in this process) or
            ``"parallel"`` (gymnasium, a process each). Defaults to EnvPool where it
            is installed and ``num_envs`` is given, else to ``"serial"``.
        device (torch.device, optional): device of the tensors.

    Returns:
        The environment. Append a :class:`~torchrl_metra.SkillPrimer` to it.

    Raises:
        ValueError: if the name or the backend is unknown.
        ImportError: if the backend is not installed; names the extra to install.

    Examples:
        >>> make_env("point", num_envs=4).rollout(3)["observation"].shape
        torch.Size([4, 3, 2])
    """
    if name == "point":
        if backend is not None:
            raise ValueError(f"'point' has no backends, but backend={backend!r} was given.")
        point = PointEnv(num_envs, device=device)
        return TransformedEnv(point, ActionScaling())
    if name not in TASKS:
        raise ValueError(f"unknown environment {name!r}, expected one of {['point', *TASKS]}.")
    if backend is None:
        has_envpool = importlib.util.find_spec("envpool") is not None
        backend = "envpool" if has_envpool and num_envs is not None else "serial"
    if backend not in ("envpool", "serial", "parallel"):
        raise ValueError(
            f"unknown backend {backend!r}, expected 'envpool', 'serial' or 'parallel'."
        )
    env = make_mujoco_env(TASKS[name], num_envs, backend)
    return env if device is None else env.to(device)
