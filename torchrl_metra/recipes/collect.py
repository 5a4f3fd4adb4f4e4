"""Where a run's transitions come from, and where they go: one process, many, or Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiAsyncCollector, MultiSyncCollector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase, ObservationNorm, TransformedEnv

from torchrl_metra._extras import require
from torchrl_metra._transforms import transforms_of
from torchrl_metra.data import FrameStackStorage
from torchrl_metra.envs import PixelOptions, SkillPrimer, make_env
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.recipes.objectives import make_prior, sees_pictures
from torchrl_metra.recipes.settings import EnvSettings, PixelSettings, Settings

__all__ = [
    "build_env",
    "env_options",
    "is_learner_remote",
    "learner_options",
    "make_collector",
    "make_replay_buffer",
    "make_skill_env",
    "of_skills",
]

# The policy remembers nothing between steps, so TorchRL has no transform to add for it.
NO_POLICY_TRANSFORMS = {"auto_register_policy_transforms": False}


def build_env(
    env: EnvSettings,
    num_envs: int,
    *,
    backend: Any = None,
    pixels: PixelSettings | None = None,
    normalize: Any = None,
) -> TransformedEnv:
    """The environment that settings describe.

    Args:
        env (EnvSettings): the section ``env``.
        num_envs (int): environments side by side.

    Keyword Args:
        backend (str, optional): see :func:`~torchrl_metra.make_env`.
        pixels (PixelSettings, optional): the section ``pixels``.
        normalize (mapping, optional): constants in place of those that would be measured.
    """
    options = asdict(env)
    if env.normalize is None:
        options["normalize"] = normalize
    pictures = None
    if pixels is not None and pixels.resolution is not None:
        pictures = PixelOptions(**asdict(pixels))
    return make_env(options.pop("name"), num_envs, backend=backend, pixels=pictures, **options)


def make_skill_env(
    settings: Settings, num_envs: int, seed: int, normalize: Any = None
) -> TransformedEnv:
    """The environment of a run, with a skill for every episode."""
    backend, pixels = settings.backend, settings.pixels
    env = build_env(settings.env, num_envs, backend=backend, pixels=pixels, normalize=normalize)
    env.append_transform(SkillPrimer(make_prior(settings)))
    env.set_seed(seed)
    return env


def of_skills(skills: SkillPolicy) -> dict[str, Any]:
    """What of :func:`build_env` an environment for these skills must have in common with theirs."""
    shape = getattr(skills.architecture, "pixel_shape", None)
    return {
        "pixels": shape and PixelSettings(resolution=shape[1], frames=shape[0] // 3),
        "normalize": (skills.env_options or {}).get("normalize"),
    }


def env_options(settings: Settings, env: EnvBase) -> dict[str, Any]:
    """What :func:`~torchrl_metra.make_env` needs to build the same environment again.

    Constants that were measured are among them, so that nothing is measured twice.
    """
    options = asdict(settings.env)
    del options["name"]
    if options["normalize"] is not False:
        norms = [part for part in transforms_of(env) if isinstance(part, ObservationNorm)]
        # That of make_env comes last.
        constants = {"loc": norms[-1].loc, "scale": norms[-1].scale} if norms else None
        options["normalize"] = constants
    return options


class WorkerEnv(TransformedEnv):
    """Seeds torch too, whose generator draws skills and actions: on Ray, nobody else does."""

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the environment and this process."""
        if seed is not None:
            torch.manual_seed(seed)
        return super().set_seed(seed, static_seed)


def make_worker_env(settings: Settings, normalize: Any, worker: int) -> EnvBase:
    """The environments of one of several workers, with skills and actions of its own."""
    torch.manual_seed(settings.seed + worker)
    env = make_skill_env(settings, settings.num_envs, settings.seed + worker, normalize)
    return WorkerEnv(env, auto_unwrap=False)


def make_collector(
    settings: Settings, env: EnvBase, policy: nn.Module, normalize: Any = None
) -> BaseCollector:
    """Collect in this process, or with what ``distributed`` says."""
    options = {
        "frames_per_batch": settings.frames_per_batch,
        "total_frames": settings.total_frames,
        "policy_device": "cpu",
        "storing_device": "cpu",
    }
    kind = settings.distributed.kind
    if kind is not None:
        if settings.env.name is None:
            raise ValueError(
                f"distributed.kind={kind} builds environments in other processes, but one "
                "environment was given: give its name, or a function that builds one."
            )
        env.close()
        makers = [
            partial(make_worker_env, settings, normalize, worker)
            for worker in range(settings.distributed.workers)
        ]
        if kind == "ray":
            return make_ray_collector(settings, makers, policy, options)
        kinds = {"multi_sync": MultiSyncCollector, "multi_async": MultiAsyncCollector}
        if kind not in kinds:
            raise ValueError(f"unknown distributed.kind {kind!r}, expected {[*kinds, 'ray']}.")
        return kinds[kind](makers, policy, **options, **NO_POLICY_TRANSFORMS)
    # Environments step in threads of their own, which would compete with those of torch.
    learner_threads = torch.get_num_threads()
    return Collector(
        env,
        policy,
        track_traj_ids=False,
        pre_collect_hook=lambda: torch.set_num_threads(1),
        post_collect_hook=lambda batch: torch.set_num_threads(learner_threads),
        **options,
        **NO_POLICY_TRANSFORMS,
    )


def make_ray_collector(
    settings: Settings,
    makers: Sequence[Callable[[], EnvBase]],
    policy: nn.Module,
    options: dict[str, Any],
) -> BaseCollector:
    """Collect on Ray; a worker that dies ends the run with Ray's ``ActorDiedError``."""
    require("ray", extra="ray")
    from torchrl.collectors.distributed import RayCollector

    if settings.distributed.address is not None:
        join_cluster(settings)
    collector = RayCollector(
        list(makers),
        policy,
        sync=True,
        remote_configs={"num_cpus": 1},
        ray_init_config=ray_options(settings),
        **options,
    )
    if not is_learner_remote(settings):
        collector.update_policy_weights_()
    return collector


def make_replay_buffer(settings: Settings, env: EnvBase) -> ReplayBuffer:
    """Transitions on a device or, memory-mapped, in a folder; single frames for pictures."""
    home = settings.buffer_device or settings.device
    is_device = home == "cpu" or home.startswith("cuda")
    place = {"device": home} if is_device else {"scratch_dir": home}
    if sees_pictures(settings, env):
        storage = partial(FrameStackStorage, num_frames=settings.pixels.frames)
    else:
        # A run that goes on finds its own files in the folder.
        storage = LazyTensorStorage if is_device else partial(LazyMemmapStorage, existsok=True)
    storage = partial(storage, settings.buffer_size, **place)
    if is_learner_remote(settings):
        if home.startswith("cuda"):
            raise ValueError(
                f"buffer_device={home}, but with distributed.learner=ray the replay buffer is a "
                "process without a GPU: set buffer_device=cpu, or a folder."
            )
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


def join_cluster(settings: Settings) -> None:
    """Connect to a Ray cluster, and refuse one where workers would wait for a CPU for ever."""
    ray = require("ray", extra="ray")
    if not ray.is_initialized():
        ray.init(**ray_options(settings))
    needed, found = num_ray_cpus(settings), int(ray.cluster_resources().get("CPU", 0))
    if found < needed:
        raise ValueError(
            f"{settings.distributed.workers} workers need {needed} CPUs in all, but the Ray "
            f"cluster has {found}: lower distributed.workers, or add machines with "
            "`ray start --address`."
        )
