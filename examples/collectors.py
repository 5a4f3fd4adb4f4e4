"""Where a run's transitions come from, and where they go: one process, many, or Ray."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import objectives
import torch
from objectives import make_prior
from omegaconf import DictConfig
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_metra import FrameStackStorage, PixelOptions, SkillPrimer, make_env
from torchrl_metra._extras import require

# The policy remembers nothing between steps, so TorchRL has no transform to add for it.
AS_IT_IS = {"auto_register_policy_transforms": False}


def make_skill_env(config: DictConfig, num_envs: int, seed: int) -> EnvBase:
    """The environment of a run, with a skill for every episode."""
    pixels = PixelOptions(**config.pixels) if config.pixels else None
    env = make_env(config.env, num_envs, backend=config.backend, pixels=pixels)
    env = env.append_transform(SkillPrimer(make_prior(config)))
    env.set_seed(seed)
    return env


class WorkerEnv(TransformedEnv):
    """Seeds torch too, whose generator draws skills and actions: on Ray, nobody else does."""

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the environment and this process."""
        if seed is not None:
            torch.manual_seed(seed)
        return super().set_seed(seed, static_seed)


def make_worker_env(config: DictConfig, worker: int) -> EnvBase:
    """The environments of one of several workers, with skills and actions of its own."""
    torch.manual_seed(config.seed + worker)
    env = make_skill_env(config, config.num_envs, config.seed + worker)
    return WorkerEnv(env, auto_unwrap=False)


def make_collector(config: DictConfig, env: EnvBase, policy: nn.Module) -> BaseCollector:
    """Collect in this process, or with what ``distributed`` says."""
    options = {
        "frames_per_batch": config.frames_per_batch,
        "total_frames": config.total_frames,
        "policy_device": "cpu",
        "storing_device": "cpu",
    }
    if config.distributed is not None:
        env.close()
        workers = range(config.distributed.workers)
        makers = [partial(make_worker_env, config, worker) for worker in workers]
        if config.distributed.kind == "ray":
            return make_ray_collector(config, makers, policy, options)
        kinds = {"multi_sync": MultiSyncCollector, "multi_async": MultiAsyncCollector}
        return kinds[config.distributed.kind](makers, policy, **options, **AS_IT_IS)
    # Environments step in threads of their own, with which those of torch would quarrel.
    learner_threads = torch.get_num_threads()
    return Collector(
        env,
        policy,
        track_traj_ids=False,
        pre_collect_hook=lambda: torch.set_num_threads(1),
        post_collect_hook=lambda batch: torch.set_num_threads(learner_threads),
        **options,
        **AS_IT_IS,
    )


def make_ray_collector(
    config: DictConfig, makers: list[Any], policy: nn.Module, options: dict[str, Any]
) -> BaseCollector:
    """Collect on Ray; a worker that dies ends the run with Ray's ``ActorDiedError``."""
    ray = require("ray", extra="ray")
    from torchrl.collectors.distributed import RayCollector

    if config.distributed.address is not None:
        join_cluster(config)
    # Workers have the package, but not these files.
    for module in (objectives, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    collector = RayCollector(
        makers,
        policy,
        sync=True,
        remote_configs={"num_cpus": 1},
        ray_init_config=ray_options(config),
        **options,
    )
    if not is_learner_remote(config):
        collector.update_policy_weights_()
    return collector


def make_replay_buffer(config: DictConfig) -> ReplayBuffer:
    """Transitions on a device or, memory-mapped, in a folder; single frames for pictures."""
    is_device = config.storage == "cpu" or config.storage.startswith("cuda")
    place = {"device": config.storage} if is_device else {"scratch_dir": config.storage}
    if config.pixels:
        storage = partial(FrameStackStorage, num_frames=config.pixels.frames)
    else:
        # A run that goes on finds its own files in the folder.
        storage = LazyTensorStorage if is_device else partial(LazyMemmapStorage, existsok=True)
    storage = partial(storage, config.buffer_size, **place)
    if is_learner_remote(config):
        if config.storage.startswith("cuda"):
            raise ValueError(
                f"storage={config.storage}, but with distributed.learner=ray the replay buffer "
                "is a process without a GPU: set storage=cpu, or a folder."
            )
        return ReplayBuffer(
            storage=storage,
            batch_size=config.batch_size,
            service_backend="ray",
            service_backend_options={
                "ray_init_config": ray_options(config),
                "remote_config": {"num_cpus": 1},
            },
        )
    buffer = ReplayBuffer(storage=storage(), batch_size=config.batch_size)
    if torch.device(config.device).type != torch.device(place.get("device", "cpu")).type:
        buffer.append_transform(lambda batch: batch.to(config.device))
    return buffer


def learner_options(config: DictConfig) -> dict[str, Any]:
    """What a trainer takes to learn where ``distributed`` says."""
    if not is_learner_remote(config):
        return {}
    resources = {"num_cpus": 1, "num_gpus": int(torch.device(config.device).type == "cuda")}
    return {
        "learner_backend": "ray",
        "learner_backend_options": {
            "ray_init_config": ray_options(config),
            "resources_per_rank": resources,
            "command_timeout": 1_800,  # seconds for a round of gradient steps
        },
    }


def is_learner_remote(config: DictConfig) -> bool:
    """Whether the learner is a Ray process."""
    return config.distributed is not None and config.distributed.get("learner") == "ray"


def ray_options(config: DictConfig) -> dict[str, Any]:
    """How Ray is joined or, without an address, started for this run alone."""
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if config.distributed.address is not None:
        return {"address": config.distributed.address, **quiet}
    cpus = max(os.cpu_count() or 1, num_ray_cpus(config))
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, **quiet}


def num_ray_cpus(config: DictConfig) -> int:
    """One for each worker, and with them one for the learner and one for its replay buffer."""
    return config.distributed.workers + 2 * is_learner_remote(config)


def join_cluster(config: DictConfig) -> None:
    """Connect to a Ray cluster, and refuse one where workers would wait for a CPU for ever."""
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        ray.init(**ray_options(config))
    needed, found = num_ray_cpus(config), int(ray.cluster_resources().get("CPU", 0))
    if found < needed:
        raise ValueError(
            f"{config.distributed.workers} workers need {needed} CPUs in all, but the Ray cluster "
            f"has {found}: lower distributed.workers, or add machines with `ray start --address`."
        )
