"""Environment steps per second with the policy in the loop, against bare simulation.

The yardstick steps the same number of environments on the same backend with random actions,
without TorchRL, policy or transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from measuring import Result, compare, in_turns
from torchrl.collectors import Collector

from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
from torchrl_metra._extras import require
from torchrl_metra.envs.mujoco import EPISODE_STEPS, TASKS, MujocoTask

ROUNDS = 5
# EnvPool spreads the price of Python over many environments; the authors run 8 episodes side by
# side, which is what the other backends are measured with.
NUM_ENVS = {
    ("ant", "envpool"): 200,
    ("half_cheetah", "envpool"): 800,
    ("ant", "serial"): 8,
    ("half_cheetah", "serial"): 8,
    ("ant", "parallel"): 2,
    ("half_cheetah", "parallel"): 2,
}


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
    prior = UnitSphere(2)
    env = make_env(task, num_envs, backend=backend).append_transform(SkillPrimer(prior))
    networks = make_sac_networks(
        env.observation_spec["observation"].shape[-1],
        env.action_spec,
        prior,
        num_cells=[width] * 2,
    )
    return Collector(
        env,
        networks.actor,
        frames_per_batch=8 * num_envs,
        total_frames=-1,
        track_traj_ids=False,
    )


def simulate_envpool(task: MujocoTask, num_envs: int) -> tuple[Any, Callable[[], object]]:
    """EnvPool alone."""
    env = require("envpool", "envpool").make_gymnasium(
        task.task_id, num_envs=num_envs, max_episode_steps=EPISODE_STEPS, **task.envpool_options
    )
    env.reset()
    low, high = env.action_space.low, env.action_space.high
    generator = np.random.default_rng(0)
    return env, lambda: env.step(generator.uniform(low, high, (num_envs, len(low))))


def simulate_gymnasium(
    task: MujocoTask, num_envs: int, *, kind: type[VectorEnv]
) -> tuple[Any, Callable[[], object]]:
    """Gymnasium's own vector environments."""
    options = {"max_episode_steps": EPISODE_STEPS, **task.gymnasium_options}
    env = kind([partial(gymnasium.make, task.task_id, **options)] * num_envs)
    env.reset()
    return env, lambda: env.step(env.action_space.sample())


SIMULATORS = {
    "envpool": simulate_envpool,
    "serial": partial(simulate_gymnasium, kind=SyncVectorEnv),
    "parallel": partial(simulate_gymnasium, kind=AsyncVectorEnv),
}
