"""Pictures per second of 64×64 pixels, against those of the libraries' own renderers."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from measuring import Result, compare, seconds_per_call

from torchrl_metra import PixelOptions, make_env
from torchrl_metra.envs import rendering_available

ROUNDS = 3
STOCK_CAMERAS = {"quadruped": 2, "humanoid": 0}


def measure(task: str) -> list[Result]:
    """Both qualities, against dm_control's or gymnasium's pictures of the same scene.

    Each renderer has a process of its own: they do not share OpenGL. Nothing is measured
    where MuJoCo cannot draw.
    """
    if not rendering_available():
        return []
    os.environ.setdefault("MUJOCO_GL", "egl")
    rates: dict[str, list[float]] = {}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context) as stock,
        ProcessPoolExecutor(1, context) as fast,
        ProcessPoolExecutor(1, context) as full,
    ):
        for _ in range(ROUNDS):
            for name, pool in (("stock", stock), ("fast", fast), ("full", full)):
                rates.setdefault(name, []).append(pool.submit(_rate, task, name).result())
    return [
        compare(f"rendering/{task}/{quality}", "pictures/s", rates[quality], rates["stock"])
        for quality in ("fast", "full")
    ]


def _rate(task: str, kind: str) -> float:
    return 1 / seconds_per_call(_make_draw(task, kind), duration=3.0)


@functools.cache
def _make_draw(task: str, kind: str) -> Callable[[], object]:
    if kind != "stock":
        env = make_env(task, pixels=PixelOptions(quality=kind))
        env.reset()
        return lambda: env.base_env.read_obs(None)
    if task == "kitchen":
        import gymnasium
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
        kitchen = gymnasium.make("FrankaKitchen-v1", render_mode="rgb_array", width=64, height=64)
        kitchen.reset()
        return kitchen.render
    from dm_control import suite

    physics = suite.load(task, "run").physics
    return lambda: physics.render(64, 64, camera_id=STOCK_CAMERAS[task])
