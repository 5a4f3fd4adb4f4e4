"""Environment steps per second with the policy in the loop.

The yardstick of one collector is bare simulation: the same number of environments on the same
backend with random actions, without TorchRL, policy or transforms. The yardstick of several
worker processes is one collector, in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from measuring import Result, compare, in_turns, seconds_per_call
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.envs import EnvBase

from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
from torchrl_metra._extras import require

ROUNDS = 5
EPISODE_STEPS = 200
# What bare simulators are given: a name, options of gymnasium, options of EnvPool.
X = {"exclude_current_positions_from_observation": False}
ALIVE = {"terminate_when_unhealthy": False}
TASKS = {
    "ant": (
        "Ant-v5",
        {**X, **ALIVE, "include_cfrc_ext_in_observation": False},
        {**X, **ALIVE, "use_contact_force": False},
    ),
    "half_cheetah": ("HalfCheetah-v5", X, X),
}
Task = tuple[str, dict[str, Any], dict[str, Any]]
# EnvPool spreads the cost of Python over many environments. The other backends are measured with 8
# environments, as many as the authors use.
NUM_ENVS = {
    ("ant", "envpool"): 200,
    ("half_cheetah", "envpool"): 800,
    ("ant", "serial"): 8,
    ("half_cheetah", "serial"): 8,
    ("ant", "parallel"): 2,
    ("half_cheetah", "parallel"): 2,
}
# The workers together have as many environments as the single collector.
WORKERS, NUM_WORKER_ENVS, FRAMES_PER_BATCH = 2, 16, 800
WORKER_ROUNDS, SECONDS = 3, 3.0


def measure(task: str, backend: str, width: int = 256) -> list[Result]:
    """One task on one backend."""
    torch.set_num_threads(2)
    num_envs = NUM_ENVS[task, backend]
    collector = make_collector(task, backend, num_envs, width)
    batches = iter(collector)
    env, step = SIMULATORS[backend](TASKS[task], num_envs)
    functions = {"ours": lambda: next(batches), "bare": step}
    try:
        seconds = in_turns(functions, ROUNDS, warm_up=2)
    finally:
        collector.shutdown()
        env.close()
    frames = collector.requested_frames_per_batch
    rates = {
        "ours": [frames / value for value in seconds["ours"]],
        "bare": [num_envs / value for value in seconds["bare"]],
    }
    suffix = "best" if backend == "envpool" and width == 256 else f"{backend}_{width}"
    return [compare(f"collection/{task}/{suffix}", "frames/s", rates["ours"], rates["bare"])]


def make_collector(task: str, backend: str, num_envs: int, width: int) -> Collector:
    """A stock collector with METRA's policy."""
    env = make_skill_env(task, backend, num_envs)
    return Collector(
        env,
        make_policy(env, width),
        frames_per_batch=8 * num_envs,
        total_frames=-1,
        track_traj_ids=False,
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


def simulate_envpool(task: Task, num_envs: int) -> tuple[Any, Callable[[], object]]:
    """EnvPool alone."""
    env = require("envpool", "envpool").make_gymnasium(
        task[0], num_envs=num_envs, max_episode_steps=EPISODE_STEPS, **task[2]
    )
    env.reset()
    low, high = env.action_space.low, env.action_space.high
    generator = np.random.default_rng(0)
    return env, lambda: env.step(generator.uniform(low, high, (num_envs, len(low))))


def simulate_gymnasium(
    task: Task, num_envs: int, *, kind: type[VectorEnv]
) -> tuple[Any, Callable[[], object]]:
    """Gymnasium's own vector environments."""
    options = {"max_episode_steps": EPISODE_STEPS, **task[1]}
    env = kind([partial(gymnasium.make, task[0], **options)] * num_envs)
    env.reset()
    return env, lambda: env.step(env.action_space.sample())


SIMULATORS = {
    "envpool": simulate_envpool,
    "serial": partial(simulate_gymnasium, kind=SyncVectorEnv),
    "parallel": partial(simulate_gymnasium, kind=AsyncVectorEnv),
}
