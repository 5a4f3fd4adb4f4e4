"""Where a run's transitions come from, and where they go: one process, many, or Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer, TensorStorage
from torchrl.envs import EnvBase, ObservationNorm, TransformedEnv

from torchrl_metra._checks import check_choice
from torchrl_metra._extras import require
from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import EpisodeStorage, FrameStackStorage
from torchrl_metra.envs import PixelOptions, SkillPrimer, make_env
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.objectives import SkillLoss
from torchrl_metra.recipes.objectives import make_prior, relabels, sees_pictures
from torchrl_metra.recipes.settings import Settings


def build_env(settings: Any, num_envs: int, skills: SkillPolicy | None = None) -> TransformedEnv:
    """The environment that settings describe.

    Args:
        settings (dataclass): of any command, with ``env``, ``backend`` and ``pixels``.
        num_envs (int): environments side by side.
        skills (SkillPolicy, optional): decides on pictures in place of ``pixels``, and shares
            the constants of its observations, and the options by which they are built.
    """
    options, pixels = dict(vars(settings.env)), None
    if skills is not None:
        pixels = pixels_of(skills)
        for name in ("normalize", "options"):
            if options[name] is None:
                options[name] = (skills.env_options or {}).get(name)
    elif settings.pixels.resolution is not None:
        pixels = PixelOptions(**vars(settings.pixels))
    name = options.pop("name")
    return make_env(name, num_envs, backend=settings.backend, pixels=pixels, **options)


def pixels_of(skills: SkillPolicy) -> PixelOptions | None:
    """The pictures that a policy has learned from, if any."""
    return None if skills.pixels is None else PixelOptions(**skills.pixels)


def pixel_options(settings: Settings, env: EnvBase) -> dict[str, Any] | None:
    """How the pictures look that the networks see, if they see any."""
    if not sees_pictures(settings, env):
        return None
    *_, channels, _, width = env.observation_spec["pixels"].shape
    return {**vars(settings.pixels), "resolution": width, "frames": channels // 3}


def make_skill_env(settings: Settings, num_envs: int, seed: int) -> TransformedEnv:
    """The environment of a run, with a skill for every episode."""
    env = build_env(settings, num_envs)
    env.append_transform(SkillPrimer(make_prior(settings), switch=settings.skill.switch))
    env.set_seed(seed)
    return env


def with_constants(settings: Settings, env: EnvBase) -> Settings:
    """The settings with the constants of ``env``, so that they are not measured again."""
    if settings.env.normalize is False:
        return settings
    norms = [part for part in transforms_of(env) if isinstance(part, ObservationNorm)]
    # That of make_env comes last.
    constants = {"loc": norms[-1].loc, "scale": norms[-1].scale} if norms else None
    return replace(settings, env=replace(settings.env, normalize=constants))


class WorkerEnv(TransformedEnv):
    """Seeds torch too, whose generator draws skills and actions: Ray does not do it."""

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the environment and this process."""
        if seed is not None:
            torch.manual_seed(seed)
        return super().set_seed(seed, static_seed)


def make_worker_env(settings: Settings, worker: int) -> EnvBase:
    """The environments of one of several workers, with skills and actions of its own."""
    torch.manual_seed(settings.seed + worker)
    env = make_skill_env(settings, settings.num_envs, settings.seed + worker)
    return WorkerEnv(env, auto_unwrap=False)


def make_collector(settings: Settings, env: EnvBase, policy: nn.Module) -> BaseCollector:
    """Collect in this process, or as the section ``distributed`` says."""
    options: dict[str, Any] = {
        "frames_per_batch": settings.frames_per_batch,
        "total_frames": settings.total_frames,
        "policy_device": "cpu",
        "storing_device": "cpu",
    }
    # The policy remembers nothing between steps, so TorchRL has no transform to add for it.
    local_options = {**options, "auto_register_policy_transforms": False}
    kind = settings.distributed.kind
    if kind is None:
        # Environments step in threads of their own, which would compete with those of torch.
        learner_threads = torch.get_num_threads()
        return Collector(
            env,
            policy,
            track_traj_ids=False,
            pre_collect_hook=lambda: torch.set_num_threads(1),
            post_collect_hook=lambda batch: torch.set_num_threads(learner_threads),
            **local_options,
        )
    if settings.env.name is None:
        raise ValueError(
            f"distributed.kind={kind} builds environments in other processes: give the name of the "
            "environment, or a function that builds it."
        )
    kinds = {"multi_sync": MultiSyncCollector, "multi_async": MultiAsyncCollector}
    check_choice("distributed.kind", kind, [*kinds, "ray"])
    env.close()
    workers = range(settings.distributed.workers)
    makers = [partial(make_worker_env, settings, worker) for worker in workers]
    if kind in kinds:
        return kinds[kind](makers, policy, **local_options)
    return make_ray_collector(settings, makers, policy, options)


def make_ray_collector(
    settings: Settings, makers: list[Any], policy: nn.Module, options: dict[str, Any]
) -> BaseCollector:
    """Collect on Ray; a worker that dies ends the run with Ray's ``ActorDiedError``."""
    ray = require("ray", extra="ray")
    from torchrl.collectors.distributed import RayCollector

    if settings.distributed.address is not None and not ray.is_initialized():
        ray.init(**ray_options(settings))
    if ray.is_initialized():
        needed, found = num_ray_cpus(settings), int(ray.cluster_resources().get("CPU", 0))
        if found < needed:
            # Workers would wait for a CPU for ever.
            raise ValueError(
                f"distributed.workers={settings.distributed.workers} takes {needed} CPUs in all, "
                f"but the Ray cluster has {found}: lower it, or add machines with "
                "`ray start --address`."
            )
    collector = RayCollector(
        makers,
        policy,
        sync=True,
        remote_configs={"num_cpus": 1},
        ray_init_config=ray_options(settings),
        **options,
    )
    if not is_learner_remote(settings):
        collector.update_policy_weights_()
    return collector


def make_replay_buffer(settings: Settings, env: EnvBase, skill_loss: SkillLoss) -> ReplayBuffer:
    """Transitions on a device or, memory-mapped, in a folder; single frames for pictures."""
    is_remote = is_learner_remote(settings)
    # With a remote learner the buffer is a process without a GPU.
    home = settings.buffer_device or ("cpu" if is_remote else settings.device)
    is_device = home == "cpu" or home.startswith("cuda")
    place = {"device": home} if is_device else {"scratch_dir": home}
    if sees_pictures(settings, env):
        storage = partial(FrameStackStorage, num_frames=settings.pixels.frames)
    else:
        # A run that goes on finds its own files in the folder.
        storage = LazyTensorStorage if is_device else partial(LazyMemmapStorage, existsok=True)
    storage = partial(storage, settings.buffer_size, **place)
    if relabels(settings, skill_loss):
        key = "pixels" if sees_pictures(settings, env) else "observation"
        options = {"state_keys": [key], "steps_ahead": settings.relabel.steps_ahead}
        storage = partial(_episodes, storage, options)
    if is_remote:
        return ReplayBuffer(
            storage=storage,
            batch_size=settings.batch_size,
            service_backend="ray",
            service_backend_options={
                "ray_init_config": ray_options(settings),
                "remote_config": {"num_cpus": 1},
            },
        )
    buffer = ReplayBuffer(storage=storage(), batch_size=settings.batch_size)
    if torch.device(settings.device).type != torch.device(place.get("device", "cpu")).type:
        buffer.append_transform(lambda batch: batch.to(settings.device))
    return buffer


def _episodes(make_storage: Callable[[], TensorStorage], options: dict[str, Any]) -> EpisodeStorage:
    return EpisodeStorage(make_storage(), **options)


def learner_options(settings: Settings) -> dict[str, Any]:
    """What a trainer takes to learn where ``distributed`` says."""
    if not is_learner_remote(settings):
        return {}
    resources = {"num_cpus": 1, "num_gpus": int(torch.device(settings.device).type == "cuda")}
    return {
        "learner_backend": "ray",
        "learner_backend_options": {
            "ray_init_config": ray_options(settings),
            "resources_per_rank": resources,
            "command_timeout": 1_800,  # seconds for a round of gradient steps
        },
    }


def is_learner_remote(settings: Settings) -> bool:
    """Whether the learner is a Ray process."""
    return settings.distributed.kind == "ray" and settings.distributed.learner == "ray"


def ray_options(settings: Settings) -> dict[str, Any]:
    """How Ray is joined or, without an address, started for this run alone."""
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if settings.distributed.address is not None:
        return {"address": settings.distributed.address, **quiet}
    cpus = max(os.cpu_count() or 1, num_ray_cpus(settings))
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, **quiet}


def num_ray_cpus(settings: Settings) -> int:
    """One for each worker, and with them one for the learner and one for its replay buffer."""
    return settings.distributed.workers + 2 * is_learner_remote(settings)
