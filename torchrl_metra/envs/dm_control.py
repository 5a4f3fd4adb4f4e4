"""DeepMind's control suite, among it the paper's Quadruped and Humanoid."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import DMControlWrapper

from torchrl_metra._extras import require
from torchrl_metra._private import suite_step_limit
from torchrl_metra.envs.pixels import PixelOptions, SimulationEnv, repeat_frames
from torchrl_metra.envs.places import draw_positions
from torchrl_metra.envs.registry import EnvEntry, register_env
from torchrl_metra.envs.rendering import following_camera

if TYPE_CHECKING:
    import mujoco

EPISODE_STEPS = 200
ACTION_REPEAT = 2

FLOOR_HALF_SIZE = 15.0


@dataclass(frozen=True)
class Locomotion:
    """One task of the control suite, ``run``, as the paper sees it.

    Attributes:
        domain (str): name of the robot in the suite.
        camera (str): name of the camera, which follows the robot without turning.
        control_timestep (float): duration of one of the suite's steps, in seconds.
        start (callable, optional): puts the robot where an episode starts, given the suite's
            task and physics. ``None``: the suite's own start.
    """

    domain: str
    camera: str
    control_timestep: float
    start: Callable[[Any, Any], None] | None = None


def stand_upright(task: Any, physics: Any) -> None:
    """Start a robot on its feet, tilted by a few degrees, just above the floor.

    As the authors' Quadruped does. The suite's own starts in any orientation, so that every
    skill would have to get up first.

    Args:
        task (dm_control.suite.base.Task): owns the random numbers.
        physics (dm_control.mujoco.Physics): set to the start.
    """
    orientation = np.array([1.0, 0.0, 0.0, 0.0]) + 0.02 * task.random.standard_normal(4)
    orientation /= np.linalg.norm(orientation)
    # Up from within the floor, by a centimetre at a time, until nothing touches.
    for centimetres in count():
        physics.data.qpos[:7] = 0.0, 0.0, 0.01 * centimetres, *orientation
        physics.after_reset()
        if not physics.data.ncon:
            return


LOCOMOTION: dict[str, Locomotion] = {
    "quadruped": Locomotion("quadruped", "y", control_timestep=0.02, start=stand_upright),
    "humanoid": Locomotion("humanoid", "back", control_timestep=0.025),
}


class SimulatedTask(SimulationEnv, DMControlWrapper):
    """A task of the control suite whose errors of physics end episodes, not runs."""

    @property
    def simulation(self) -> mujoco.MjData:
        return self.simulator.physics.data.ptr

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        # The base class handles a divergence, for all simulators alike.
        with self.simulator.physics.suppress_physics_errors():
            return super()._step(tensordict)


class LocomotionPixelEnv(SimulatedTask):
    """A robot of the control suite, seen by the camera that follows it.

    Entries: ``"pixels"``, ``uint8`` of shape ``[3, height, width]``, and ``"position"``,
    ``float32`` of shape ``[2]``: x and y of the torso in meters, for evaluation. The reward
    is the suite's, summed over the repeated action. Build it by :func:`make_locomotion`.
    """

    def read_state(self, observations: Any) -> dict[str, Tensor]:
        position = self.simulation.body("torso").xpos[:2]
        return {"position": torch.as_tensor(position, dtype=torch.float32)}

    def frame_at(self, x: float, y: float) -> Tensor:
        """What the camera would show if the robot stood elsewhere, in its present pose.

        Args:
            x (float): in meters.
            y (float): in meters.

        Returns:
            A picture, ``uint8`` of shape ``[3, height, width]``. The simulation is left as
            it was.
        """
        physics = self.simulator.physics
        qpos = physics.data.qpos.copy()
        physics.data.qpos[:2] = x, y
        physics.forward()
        picture = self.draw()
        physics.data.qpos[:] = qpos
        physics.forward()
        return picture


class SuiteEnv(SimulatedTask):
    """A task of the control suite, observed by its state.

    Entries: ``"observation"``, ``float32``: where the root of a robot is in the plane, which the
    suite leaves out (:func:`root_coordinates`), then the suite's own observations; and with a
    renderer ``"pixels"``, ``uint8`` of shape ``[3, height, width]``. Build it by
    :func:`make_suite`.
    """

    @property
    def max_steps(self) -> int | None:
        """After how many steps episodes are truncated."""
        limit = suite_step_limit(self.simulator)
        return None if math.isinf(limit) else math.ceil(limit)

    @functools.cached_property
    def _root(self) -> list[int]:
        return root_coordinates(self.simulator.physics.model.ptr)

    def read_state(self, observations: Any) -> dict[str, Tensor]:
        root = self.simulation.qpos[self._root]
        state = np.concatenate([root, *map(np.ravel, observations.values())])
        return {"observation": torch.as_tensor(state, dtype=torch.float32)}


def root_coordinates(model: mujoco.MjModel) -> list[int]:
    """Which entries of ``qpos`` say where a robot is: x and y, in a planar model x alone."""
    kinds = require("mujoco", "dm-control").mjtJoint
    found = []
    for joint in map(model.joint, range(model.njnt)):
        start = int(joint.qposadr[0])
        if joint.name == "root" and joint.type[0] == kinds.mjJNT_FREE:
            found += [start, start + 1]
        # The "rooty" of planar robots is a hinge.
        elif joint.name in ("rootx", "rooty") and joint.type[0] == kinds.mjJNT_SLIDE:
            found.append(start)
    return found


def make_suite(
    task: str, *, pixels: PixelOptions | None = None, max_steps: int | None = None, **options: Any
) -> SuiteEnv:
    """Build a task of the control suite, ``"walker-run"``; see :func:`~torchrl_metra.make_env`."""
    if max_steps is not None:
        timestep = _load(task, options).control_timestep()
        # Half a step less, whichever way the quotient of the two is rounded.
        options["time_limit"] = (max_steps - 0.5) * timestep
    env = _load(task, options)
    if pixels is None:
        return SuiteEnv(env, None)
    model = env.physics.model.ptr
    recolour_floor(model)
    return SuiteEnv(env, pixels.renderer(model, following_camera(model)))


def suite_entry(task: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of the control suite."""
    return EnvEntry(
        name=f"dm_control:{task}",
        make=partial(make_suite, task),
        position=tuple(range(_root_size(task))) or None,
    )


@functools.cache
def _root_size(task: str) -> int:
    return len(root_coordinates(_load(task, {}).physics.model.ptr))


def _load(task: str, options: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        # On a machine without a display dm_control complains when it is imported.
        warnings.filterwarnings("ignore", message=".*DISPLAY")
        suite = require("dm_control.suite", "dm-control")
    domain, _, name = task.partition("-")
    return suite.load(domain, name, task_kwargs=dict(options))


def make_locomotion(
    task: Locomotion, pixels: PixelOptions, *, max_steps: int = EPISODE_STEPS
) -> LocomotionPixelEnv:
    """Build one environment of a task; its first picture opens an OpenGL context.

    Args:
        task (Locomotion): the task.
        pixels (PixelOptions): how the pictures look; ``frames`` are stacked elsewhere.

    Keyword Args:
        max_steps (int, optional): length of an episode, which ends by truncation.
            Defaults to 200.

    Returns:
        The environment, with the suite's own range of actions.
    """
    duration = max_steps * ACTION_REPEAT * task.control_timestep
    env = _load(f"{task.domain}-run", {"time_limit": duration})
    if task.start is not None:
        env.task.initialize_episode = MethodType(task.start, env.task)
    model = env.physics.model.ptr
    recolour_floor(model)
    return LocomotionPixelEnv(env, pixels.renderer(model, task.camera), frame_skip=ACTION_REPEAT)


def recolour_floor(model: mujoco.MjModel) -> None:
    """Give each place of the floor a color of its own, so that pictures tell the position.

    The floor becomes a plane of 30 m by 30 m around the origin, and nothing is drawn beyond
    it. Its texture changes in red along one axis and in green along the other. To the
    simulation it has no bounds. A model without a floor stays as it is.

    Args:
        model (mujoco.MjModel): a model of the suite, changed in place; before a renderer
            has uploaded its textures.
    """
    grids = [index for index in range(model.nmat) if model.mat(index).name == "grid"]
    is_floor = model.geom_type == require("mujoco", "dm-control").mjtGeom.mjGEOM_PLANE
    floors = (is_floor & np.isin(model.geom_matid, grids)).nonzero()[0]
    if not len(floors):
        return
    floor = floors[0]
    model.geom_size[floor, :2] = FLOOR_HALF_SIZE
    model.geom_pos[floor, :2] = 0.0  # Planar robots' begins where they do.
    material = model.geom_matid[floor]
    # One copy of the texture over the whole plane, not one per meter.
    model.mat_texuniform[material] = False
    model.mat_texrepeat[material] = 1.0
    texture = model.tex("grid").id
    height, width = model.tex_height[texture], model.tex_width[texture]
    colors = np.full((height, width, 3), 128, dtype=np.uint8)
    colors[..., 0] = (255 * np.arange(height) / height).astype(np.uint8)[:, None]
    colors[..., 1] = (255 * np.arange(width) / width).astype(np.uint8)
    start = model.tex_adr[texture]
    model.tex_data[start : start + colors.size] = colors.ravel()


def pictures_of_places(
    task: Locomotion, num_goals: int, *, seed: int, pixels: PixelOptions, extent: float
) -> TensorDict:
    """Pictures of a robot after a reset, moved."""
    position = draw_positions(num_goals, 2, extent, seed)
    frames = []
    with closing(make_locomotion(task, pixels)) as env:
        env.set_seed(seed)
        for x, y in position.tolist():
            env.reset()
            frames.append(env.frame_at(x, y))
    pictures = repeat_frames(torch.stack(frames), pixels)
    return TensorDict({"pixels": pictures, "position": position}, [num_goals])


for _name, _extent in (("quadruped", 15.0), ("humanoid", 10.0)):
    register_env(
        _name,
        partial(make_locomotion, LOCOMOTION[_name]),
        summary=f"The control suite's {_name}, seen by a camera that follows it.",
        observes="pixels",
        max_steps=EPISODE_STEPS,
        terminates=False,
        goals=partial(pictures_of_places, LOCOMOTION[_name]),
        goal_extent=_extent,
    )
