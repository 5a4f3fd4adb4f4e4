"""Environment steps per second with the policy in the loop.

The yardstick of MuJoCo's threads is bare ``mujoco.rollout``: as many simulations of the same model
with random controls, without TorchRL, policy or transforms; that of a faster path, the slower one;
that of several worker processes, one collector. All of a line in the same run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from measuring import Result, compare, in_turns, seconds_per_call
from mujoco import rollout
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase

from torchrl_metra import (
    MuJoCoPoolEnv,
    PixelOptions,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_sac_networks,
)
from torchrl_metra._extras import require
from torchrl_metra.envs import rendering_available
from torchrl_metra.modules import make_pixel_sac_networks

ROUNDS = 5
# From so many environments on, the policy is evaluated by two threads; a run always takes one.
MANY_ENVS = 512
# The workers together have as many environments as the single collector.
WORKERS, NUM_WORKER_ENVS, FRAMES_PER_BATCH = 2, 16, 800
WORKER_ROUNDS, SECONDS = 3, 3.0
PIXEL_ENVS = 32
STEPS_PER_BATCH = 25  # as the preset laptop of Ant has


def measure_pool(task: str, num_envs: int, device: str = "cpu") -> list[Result]:
    """MuJoCo's threads with a policy of 2×256 on a device, beside bare simulation."""
    if device == "cpu":
        torch.set_num_threads(2)
    collector = make_collector(task, "mujoco", num_envs, device=device)
    functions = {"ours": partial(next, iter(collector)), "bare": bare_rollout(task, num_envs)}
    torch.set_num_threads(1 + (num_envs >= MANY_ENVS))
    where = "" if device == "cpu" else f"{device}/"
    frames = {"ours": collector.requested_frames_per_batch, "bare": num_envs}
    rates = rates_of(functions, frames)
    collector.shutdown()
    name = f"collection/{where}{task}/{num_envs}"
    return [compare(name, "frames/s", rates["ours"], rates["bare"])]


def measure_drawing(task: str, num_envs: int = 64) -> list[Result]:
    """Pictures of 64×64 per second, and of one thread for comparison."""
    if not rendering_available():
        return []
    task_of = make_pool_env(task, 1).task
    torch.set_num_threads(2)
    functions: dict[str, Callable[[], object]] = {}
    for name, threads in (("ours", None), ("one", 1)):
        env = MuJoCoPoolEnv(task_of, num_envs, pixels=PixelOptions(), num_threads=threads)
        env.reset()
        functions[name] = env.observe
    rates = rates_of(functions, dict.fromkeys(functions, num_envs))
    return [compare(f"drawing/{task}/over_one_thread", "pictures/s", rates["ours"], rates["one"])]


def measure_backends(task: str, num_envs: int, backend: str) -> list[Result]:
    """MuJoCo's threads beside another backend, with the same policy."""
    torch.set_num_threads(2)
    collectors = {name: make_collector(task, name, num_envs) for name in ("mujoco", backend)}
    functions = {name: partial(next, iter(one)) for name, one in collectors.items()}
    torch.set_num_threads(1)
    frames = {name: one.requested_frames_per_batch for name, one in collectors.items()}
    rates = rates_of(functions, frames)
    for collector in collectors.values():
        collector.shutdown()
    name = f"collection/{task.partition(':')[2] or task}/over_{backend}_{num_envs}"
    return [compare(name, "frames/s", rates["mujoco"], rates[backend])]


def measure_pixels(task: str) -> list[Result]:
    """Pictures of 64×64 in this process, and the memory that 32 environments add."""
    if not rendering_available():
        return []
    torch.set_num_threads(2)
    before = resident_mebibytes()
    env = make_env(task, PIXEL_ENVS).append_transform(SkillPrimer(UnitSphere(2)))
    env.rollout(3)
    added = resident_mebibytes() - before
    actor = make_pixel_sac_networks(
        env.observation_spec["pixels"].shape[-3:],
        env.action_spec,
        UnitSphere(2),
        num_cells=[256, 256],
        channels=8,
    ).actor
    frames = STEPS_PER_BATCH * PIXEL_ENVS
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=-1)
    torch.set_num_threads(1)
    seconds = in_turns({"ours": partial(next, iter(collector))}, ROUNDS, warm_up=2)["ours"]
    collector.shutdown()
    rate = frames / float(np.median(seconds))
    return [
        Result(f"collection/{task}/pixels_{PIXEL_ENVS}", "frames/s", rate),
        Result(f"memory/{task}/pixels_{PIXEL_ENVS}", "MiB added", added),
    ]


def rates_of(
    functions: dict[str, Callable[[], object]], frames: dict[str, int]
) -> dict[str, list[float]]:
    """Frames per second of each function, round by round."""
    seconds = in_turns(functions, ROUNDS, warm_up=2)
    return {name: [frames[name] / value for value in seconds[name]] for name in functions}


def bare_rollout(task: str, num_envs: int) -> Callable[[], object]:
    """One step of ``mujoco.rollout``, with random controls, from the starts of episodes."""
    env = make_pool_env(task, num_envs)
    env.reset()
    model, steps = env.task.model, env.task.frame_skip
    kind, size = mujoco.mjtState.mjSTATE_FULLPHYSICS, num_envs
    data = [mujoco.MjData(model) for _ in range(env.num_threads)]
    pool = rollout.Rollout(nthread=env.num_threads)
    states = np.zeros((size, mujoco.mj_stateSize(model, kind)))
    for state, qpos, qvel in zip(states, env.states.qpos, env.states.qvel, strict=True):
        data[0].qpos[:], data[0].qvel[:] = qpos, qvel
        mujoco.mj_getState(model, data[0], state, kind)
    low, high = model.actuator_ctrlrange.T
    generator = np.random.default_rng(0)

    def step() -> None:
        controls = generator.uniform(low, high, (size, 1, model.nu)).repeat(steps, axis=1)
        rolled, _ = pool.rollout(model, data, states, controls)
        states[:] = rolled[:, -1]

    return step


def resident_mebibytes() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_pool_env(task: str, num_envs: int) -> MuJoCoPoolEnv:
    """Simulations on MuJoCo's threads, without transforms."""
    return make_env(task, num_envs, backend="mujoco", normalize=False).base_env


def make_collector(
    task: str, backend: str, num_envs: int, width: int = 256, device: str = "cpu"
) -> Collector:
    """A stock collector with METRA's policy."""
    env = make_skill_env(task, backend, num_envs).to(device)
    return Collector(
        env,
        make_policy(env, width).to(device),
        frames_per_batch=STEPS_PER_BATCH * num_envs,
        total_frames=-1,
        track_traj_ids=False,
        auto_register_policy_transforms=False,  # As a run does: the policy has no memory.
    )


def make_skill_env(task: str, backend: str, num_envs: int) -> EnvBase:
    """Environments with skills of two dimensions."""
    return make_env(task, num_envs, backend=backend).append_transform(SkillPrimer(UnitSphere(2)))


def make_policy(env: EnvBase, width: int) -> nn.Module:
    """METRA's policy."""
    size = env.observation_spec["observation"].shape[-1]
    return make_sac_networks(size, env.action_spec, UnitSphere(2), num_cells=[width] * 2).actor


def measure_workers(task: str, kind: str, width: int = 256) -> list[Result]:
    """Worker processes of one kind, against one collector with as many environments."""
    torch.set_num_threads(1)
    env = make_skill_env(task, "serial", NUM_WORKER_ENVS)
    policy = make_policy(env, width)
    make = partial(make_skill_env, task, "serial", NUM_WORKER_ENVS // WORKERS)
    options = {"frames_per_batch": FRAMES_PER_BATCH, "total_frames": 10**9}
    collectors = {
        "ours": WORKER_COLLECTORS[kind]([make] * WORKERS, policy, **options),
        "one": Collector(env, policy, track_traj_ids=False, **options),
    }
    # As a run does; TorchRL's weight synchronization does not end well if it was never used.
    collectors["ours"].update_policy_weights_()
    try:
        batches = {name: iter(collector) for name, collector in collectors.items()}
        rates: dict[str, list[float]] = {name: [] for name in collectors}
        for _ in range(WORKER_ROUNDS):
            for name in collectors:
                rates[name].append(frames_per_second(batches[name]))
    finally:
        for collector in collectors.values():
            collector.shutdown()
    return [compare(f"collection/{task}/{kind}", "frames/s", rates["ours"], rates["one"])]


def frames_per_second(batches: Iterator[Any]) -> float:
    """Rate of collection, without the batches that workers collected during other measurements."""
    for _ in range(WORKERS + 1):
        next(batches)
    return FRAMES_PER_BATCH / seconds_per_call(lambda: next(batches), SECONDS)


def make_ray_collector(
    makers: list[Callable[[], EnvBase]], policy: nn.Module, **options: Any
) -> BaseCollector:
    """Workers on a local Ray."""
    ray = require("ray", "ray")
    from torchrl.collectors.distributed import RayCollector

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    start = {"address": "local", "num_cpus": WORKERS, "include_dashboard": False}
    return RayCollector(
        makers,
        policy,
        sync=True,
        remote_configs={"num_cpus": 1},
        ray_init_config={**start, "log_to_driver": False, "logging_level": "error"},
        **options,
    )


WORKER_COLLECTORS: dict[str, Callable[..., BaseCollector]] = {
    "multi_sync": MultiSyncCollector,
    "multi_async": MultiAsyncCollector,
    "ray": make_ray_collector,
}
