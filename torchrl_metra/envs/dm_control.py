"""The pixel tasks of the paper in DeepMind's control suite: Quadruped and Humanoid."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import DMControlWrapper

from torchrl_metra._extras import require
from torchrl_metra.envs.pixels import PixelObservation, PixelOptions
from torchrl_metra.envs.rendering import Renderer

if TYPE_CHECKING:
    import mujoco

__all__ = ["LOCOMOTION", "Locomotion", "LocomotionPixelEnv", "make_locomotion", "recolour_floor"]

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
    "quadruped": Locomotion(
        domain="quadruped", camera="y", control_timestep=0.02, start=stand_upright
    ),
    "humanoid": Locomotion(domain="humanoid", camera="back", control_timestep=0.025),
}


class LocomotionPixelEnv(PixelObservation, DMControlWrapper):
    """A robot of the control suite, seen by the camera that follows it.

    Entries: ``"pixels"``, ``uint8`` of shape ``[3, height, width]``, and ``"position"``,
    ``float32`` of shape ``[2]``: x and y of the torso in metres, for evaluation. The reward
    is the suite's, summed over the repeated action. Build it by :func:`make_locomotion`.
    """

    def _simulation(self) -> mujoco.MjData:
        return self._env.physics.data.ptr

    def _read_state(self) -> dict[str, Tensor]:
        position = self._simulation().body("torso").xpos[:2]
        return {"position": torch.as_tensor(position, dtype=torch.float32)}

    def _state_spec(self) -> dict[str, Any]:
        return {"position": Unbounded(shape=(2,))}

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        # A divergence is handled by the base class, for all simulators alike.
        with self._env.physics.suppress_physics_errors():
            return super()._step(tensordict)

    def frame_at(self, x: float, y: float) -> Tensor:
        """What the camera would show if the robot stood elsewhere, in its present pose.

        Args:
            x (float): in metres.
            y (float): in metres.

        Returns:
            A picture, ``uint8`` of shape ``[3, height, width]``. The simulation is left as
            it was.
        """
        physics = self._env.physics
        qpos = physics.data.qpos.copy()
        physics.data.qpos[:2] = x, y
        physics.forward()
        picture = self._draw()
        physics.data.qpos[:] = qpos
        physics.forward()
        return picture


def make_locomotion(
    task: Locomotion, options: PixelOptions, *, max_steps: int = EPISODE_STEPS
) -> LocomotionPixelEnv:
    """Build one environment of a task; its first picture opens an OpenGL context.

    Args:
        task (Locomotion): the task.
        options (PixelOptions): how the pictures look; ``frames`` are stacked elsewhere.

    Keyword Args:
        max_steps (int, optional): length of an episode, which ends by truncation.
            Defaults to 200.

    Returns:
        The environment, with the suite's own range of actions.

    Raises:
        ImportError: if dm_control is not installed; names the extra.
    """
    with warnings.catch_warnings():
        # On a machine without a display dm_control complains when it is imported.
        warnings.filterwarnings("ignore", message=".*DISPLAY")
        suite = require("dm_control.suite", "dm-control")
    duration = max_steps * ACTION_REPEAT * task.control_timestep
    env = suite.load(task.domain, "run", task_kwargs={"time_limit": duration})
    if task.start is not None:
        env.task.initialize_episode = MethodType(task.start, env.task)
    model = env.physics.model.ptr
    recolour_floor(model)
    renderer = Renderer(
        model, options.resolution, options.resolution, task.camera, quality=options.quality
    )
    return LocomotionPixelEnv(env, renderer, frame_skip=ACTION_REPEAT)


def recolour_floor(model: mujoco.MjModel) -> None:
    """Give each place of the floor a colour of its own, so that pictures tell the position.

    The floor becomes a plane of 30 m by 30 m around the origin, and nothing is drawn beyond
    it. Its texture changes in red along one axis and in green along the other.

    Args:
        model (mujoco.MjModel): a model of the suite, changed in place; before a renderer
            has uploaded its textures.
    """
    floor = model.geom("floor").id
    model.geom_size[floor, :2] = FLOOR_HALF_SIZE
    material = model.geom_matid[floor]
    # One copy of the texture over the whole plane, not one per metre.
    model.mat_texuniform[material] = False
    model.mat_texrepeat[material] = 1.0
    texture = model.tex("grid").id
    height, width = model.tex_height[texture], model.tex_width[texture]
    rows, columns = np.mgrid[:height, :width]
    colours = np.stack(
        [255 * rows / height, 255 * columns / width, np.full((height, width), 128)], axis=-1
    )
    start = model.tex_adr[texture]
    model.tex_data[start : start + colours.size] = colours.astype(np.uint8).ravel()
