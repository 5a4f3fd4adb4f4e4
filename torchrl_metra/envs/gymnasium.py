"""Gymnasium's environments, among them the paper's Ant and HalfCheetah."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torchrl.envs import EnvBase, GymEnv, TransformedEnv
from torchrl.record import PixelRenderTransform

from torchrl_metra._extras import require
from torchrl_metra.envs.envpool import EXCLUDES, add_limits, make_envpool
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask, States
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.registry import EnvEntry, register_env
from torchrl_metra.envs.rendering import Renderer, following_camera

EPISODE_STEPS = 200


class DrawnGymEnv(GymEnv):
    """A task of gymnasium whose ``render`` returns pictures of the size that is asked for.

    Those of MuJoCo are drawn by this package's renderer. It follows the robot, needs no
    ``MUJOCO_GL`` to be set and draws faster than gymnasium's.

    Args:
        task_id (str): name in gymnasium.

    Keyword Args:
        pixels (PixelOptions): how the pictures look.
        **options: passed on to :class:`~torchrl.envs.GymEnv`.
    """

    def __init__(self, task_id: str, *, pixels: PixelOptions, **options: Any) -> None:
        super().__init__(task_id, render_mode="rgb_array", **options)
        self._size = (pixels.resolution, pixels.resolution)
        self._task = self.unwrapped  # gymnasium's
        self._renderer: Renderer | None = None
        mujoco = sys.modules.get("mujoco")
        model = getattr(self._task, "model", None)
        if mujoco is not None and isinstance(model, mujoco.MjModel):
            self._renderer = pixels.renderer(model, following_camera(model))

    def render(self) -> NDArray[np.uint8]:
        """The present state, ``uint8`` of shape ``[3, resolution, resolution]``."""
        if self._renderer is not None:
            picture = self._renderer.render(self._task.data)
            return np.ascontiguousarray(picture.transpose(2, 0, 1))
        drawn = torch.as_tensor(self._task.render()).permute(2, 0, 1)[None].float()
        return interpolate(drawn, self._size, mode="area").round().to(torch.uint8)[0].numpy()

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the OpenGL context and close the environment."""
        if self._renderer is not None:
            self._renderer.close()
        super().close(raise_if_closed=raise_if_closed)


def make_gymnasium(
    task_id: str,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int | None = None,
    terminate: bool | None = None,
    **options: Any,
) -> EnvBase:
    """Build one task of gymnasium; see :func:`~torchrl_metra.make_env`."""
    _gymnasium_spec(task_id)  # A better error where something is not installed.
    add_limits(options, max_steps, terminate)
    if pixels is None:
        return GymEnv(task_id, **options)
    return TransformedEnv(DrawnGymEnv(task_id, pixels=pixels, **options), PixelRenderTransform())


_WITH_POSITION: dict[str, Any] = {EXCLUDES: False}
FORCES = "include_cfrc_ext_in_observation"

Array = NDArray[np.float64]


class Runner:
    """What gymnasium's robots that run along x do, for whole batches.

    The same observation, reward, end and start as of the classes in :attr:`CLASSES`, but Ant's
    reward has no costs of contacts.

    Args:
        env (gymnasium.envs.mujoco.MujocoEnv): one environment of the task.
        options (mapping): how it was made.
    """

    CLASSES = tuple(
        f"gymnasium.envs.mujoco.{module}_v5:{name}Env"
        for module, name in (
            ("ant", "Ant"),
            ("half_cheetah", "HalfCheetah"),
            ("hopper", "Hopper"),
            ("swimmer", "Swimmer"),
            ("walker2d", "Walker2d"),
        )
    )

    def __init__(self, env: Any, options: Mapping[str, Any]) -> None:
        parameters = inspect.signature(type(env).__init__).parameters.values()
        self.given = {parameter.name: parameter.default for parameter in parameters} | dict(options)
        self.name = type(env).__name__.removesuffix("Env")
        self.init_qpos, self.init_qvel = env.init_qpos.copy(), env.init_qvel.copy()
        self.seconds = env.model.opt.timestep * env.frame_skip
        self.skipped = env.observation_structure["skipped_qpos"]
        self.is_planar = self.name in ("Hopper", "Walker2d")

    def observation(self, qpos: Array, qvel: Array, *others: Array) -> Array:
        if self.is_planar:
            qvel = qvel.clip(-10, 10)
        return np.concatenate([qpos[:, self.skipped :], qvel], axis=1)

    def reset(self, model: Any, data: Any, random: np.random.Generator) -> None:
        scale = self.given["reset_noise_scale"]
        data.qpos[:] = self.init_qpos + random.uniform(-scale, scale, model.nq)
        is_normal = self.name in ("Ant", "HalfCheetah")
        noise = random.standard_normal if is_normal else partial(random.uniform, -1.0, 1.0)
        data.qvel[:] = self.init_qvel + scale * noise(size=model.nv)

    def is_healthy(self, qpos: Array, qvel: Array, *others: Array) -> NDArray[np.bool_]:
        """Whether robots stand as they should."""
        lowest, highest = self.given["healthy_z_range"]
        if not self.is_planar:
            return (lowest <= qpos[:, 2]) & (qpos[:, 2] <= highest)
        least, most = self.given["healthy_angle_range"]
        height, angle = qpos[:, 1], qpos[:, 2]
        healthy = (lowest < height) & (height < highest) & (least < angle) & (angle < most)
        if "healthy_state_range" in self.given:
            low, high = self.given["healthy_state_range"]
            state = np.concatenate([qpos[:, 2:], qvel], axis=1)
            healthy &= ((low < state) & (state < high)).all(axis=1)
        return healthy

    @property
    def terminated(self) -> Callable[..., NDArray[np.bool_]] | None:
        """Which episodes end, if any may."""
        if not self.given.get("terminate_when_unhealthy", False):
            return None
        return lambda *states: ~self.is_healthy(*states)

    def reward(self, before: States, after: States, control: Array) -> Array:
        speed = (after.qpos[:, 0] - before.qpos[:, 0]) / self.seconds
        reward = self.given["forward_reward_weight"] * speed
        if "healthy_reward" in self.given:
            reward = reward + self.given["healthy_reward"] * self.is_healthy(*after)
        return reward - self.given["ctrl_cost_weight"] * np.square(control).sum(axis=1)


def make_runner(
    task_id: str,
    num_envs: int | None = None,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int | None = None,
    terminate: bool | None = None,
    **options: Any,
) -> MuJoCoPoolEnv:
    """Build a batch of a task of :class:`Runner` on MuJoCo's threads."""
    add_limits(options, None, terminate)
    gymnasium = require("gymnasium", "mujoco")
    with closing(gymnasium.make(task_id, disable_env_checker=True, **options)) as env:
        runner, model = Runner(env.unwrapped, env.spec.kwargs), env.unwrapped.model
        task = MuJoCoTask.of(
            model,
            frame_skip=env.unwrapped.frame_skip,
            observation=runner.observation,
            reset=runner.reset,
            reward=runner.reward,
            terminated=runner.terminated,
        )
        limit = env.spec.max_episode_steps if max_steps is None else max_steps
    return MuJoCoPoolEnv(task, num_envs, max_steps=limit, pixels=pixels)


def gymnasium_entry(task_id: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of gymnasium."""
    spec = _gymnasium_spec(task_id)
    make, make_pool = partial(make_gymnasium, task_id), partial(make_runner, task_id)
    creator, position = spec.entry_point, None
    if isinstance(creator, str):
        creator = require("gymnasium.envs.registration", "mujoco").load_env_creator(creator)
    if EXCLUDES in inspect.signature(creator).parameters and EXCLUDES not in options:
        make, make_pool = partial(make, **_WITH_POSITION), partial(make_pool, **_WITH_POSITION)
        position = tuple(range(_excluded(task_id))) or None
    return EnvEntry(
        name=f"gym:{task_id}",
        make=make,
        make_pool=make_pool if _is_runner(spec, options) else None,
        position=position,
        max_steps=spec.max_episode_steps,
    )


def _is_runner(spec: Any, options: Mapping[str, Any]) -> bool:
    """Whether :class:`Runner` does what a task of gymnasium does."""
    # Forces of contact, which Ant shows, are not among the states that come out.
    forces = "Ant" in str(spec.entry_point) and {**spec.kwargs, **options}.get(FORCES, True)
    return spec.entry_point in Runner.CLASSES and not forces


def _gymnasium_spec(task_id: str) -> Any:
    gymnasium = require("gymnasium", "mujoco")
    module, _, name = task_id.rpartition(":")
    try:
        if module:  # Registers its tasks when it is imported.
            importlib.import_module(module)
        spec = gymnasium.spec(name)
    except (ImportError, gymnasium.error.Error) as err:
        raise ValueError(f"gymnasium has no task {task_id!r}: {err}") from err
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        require("mujoco", "mujoco")
    return spec


@functools.cache
def _excluded(task_id: str) -> int:
    """How many coordinates a task leaves out of its observation, if it tells."""
    env = require("gymnasium", "mujoco").make(task_id, disable_env_checker=True)
    structure = getattr(env.unwrapped, "observation_structure", {})
    env.close()
    return structure.get("skipped_qpos", 0)


def make_hurdle_course(
    build: Callable[..., EnvBase],
    num_envs: int | None = None,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int | None = None,
    **options: Any,
) -> EnvBase:
    """Build HalfCheetah with bars that it can hit, 17 to 23 cm above the ground."""
    require("mujoco", "mujoco")
    assets = files(require("gymnasium.envs.mujoco", "mujoco")) / "assets"
    tree = ET.parse(str(assets / "half_cheetah.xml"))
    world = next(tree.iter("worldbody"))
    for x in HURDLES:
        ET.SubElement(
            world, "geom", type="box", pos=f"{x} 0 0.2", size="0.05 1 0.03", conaffinity="1"
        )
    options |= {"pixels": pixels, "max_steps": max_steps}
    if num_envs is not None:
        options["num_envs"] = num_envs
    with NamedTemporaryFile(suffix=".xml") as model:
        tree.write(model)
        model.flush()
        return build("HalfCheetah-v5", xml_file=model.name, **options)


# The bars of HalfCheetahHurdle, along x.
HURDLES = (-15.0, -13.0, -9.0, -5.0, -1.0, 3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 27.0)

_NORMS = tomllib.loads(Path(__file__).with_name("observation_norm.toml").read_text())
_WITHOUT_FORCES: dict[str, Any] = {FORCES: False, EXCLUDES: False}

register_env(
    "ant",
    partial(make_gymnasium, "Ant-v5", terminate=False, **_WITHOUT_FORCES),
    make_pool=partial(make_runner, "Ant-v5", terminate=False, **_WITHOUT_FORCES),
    make_envpool=partial(
        make_envpool, "Ant-v5", terminate=False, use_contact_force=False, **_WITH_POSITION
    ),
    summary="gymnasium's Ant, observed by coordinates and velocities.",
    position=(0, 1),
    observation_norm=_NORMS["ant"],
    max_steps=EPISODE_STEPS,
    terminates=False,
    goal_extent=50.0,
)
_CHEETAH: dict[str, Any] = {
    "position": (0,),
    "observation_norm": _NORMS["half_cheetah"],
    "max_steps": EPISODE_STEPS,
    "terminates": False,
    "goal_extent": 100.0,
}
register_env(
    "half_cheetah",
    partial(make_gymnasium, "HalfCheetah-v5", **_WITH_POSITION),
    make_pool=partial(make_runner, "HalfCheetah-v5", **_WITH_POSITION),
    make_envpool=partial(make_envpool, "HalfCheetah-v5", **_WITH_POSITION),
    summary="gymnasium's HalfCheetah, observed by coordinates and velocities.",
    **_CHEETAH,
)
register_env(
    "hurdle_course",
    partial(make_hurdle_course, make_gymnasium, **_WITH_POSITION),
    make_pool=partial(make_hurdle_course, make_runner, **_WITH_POSITION),
    summary="HalfCheetah with bars across its way.",
    **_CHEETAH,
)
