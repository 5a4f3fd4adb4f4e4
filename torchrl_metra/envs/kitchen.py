"""The paper's kitchen: a robot arm, seen from above, with six things to move."""

from __future__ import annotations

from contextlib import closing
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase

from torchrl_metra._extras import require
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask, States
from torchrl_metra.envs.pixels import PixelOptions, repeat_frames
from torchrl_metra.envs.registry import register_env
from torchrl_metra.envs.rendering import FreeCamera

if TYPE_CHECKING:
    import mujoco

KITCHEN_TASKS: tuple[str, ...] = (
    "bottom burner",
    "light switch",
    "slide cabinet",
    "hinge cabinet",
    "microwave",
    "kettle",
)

# Where each task's joints are when it is solved. Turning the knob lights the burner and the
# switch the lamp: in the simulation these follow as joints of their own.
SOLVED_JOINTS: dict[str, dict[str, tuple[float, ...]]] = {
    # The authors' is the right one; that of gymnasium-robotics' own tasks, the left.
    "bottom burner": {"knob_Joint_1": (-0.88,), "bottom_right_burner": (-0.88 / 174,)},
    "light switch": {"light_switch": (-0.69,), "light_joint": (-0.69 / 14,)},
    "slide cabinet": {"slide_cabinet": (0.37,)},
    "hinge cabinet": {"right_hinge_cabinet": (0.5,)},
    "microwave": {"microwave": (-0.5,)},
    "kettle": {"kettle": (-0.23, 0.75)},
}

EPISODE_STEPS = 50

CAMERA = FreeCamera(distance=1.86, lookat=(-0.3, 0.5, 2.0), azimuth=90.0, elevation=-60.0)


class Kitchen:
    """gymnasium-robotics' ``FrankaKitchen-v1``, for whole batches.

    The action is the velocity of nine joints, from which the robot's position servos get their
    targets. In the original those are read with up to 0.001 rad of noise, here exactly.

    .. note:: The authors of the paper moved the end effector instead, in a kitchen that is no
        longer maintained; its numbers and these are not to be compared one to one.

    Args:
        env (gymnasium_robotics.envs.franka_kitchen.KitchenEnv): one of them.
    """

    def __init__(self, env: Any) -> None:
        robot = env.robot_env
        self.model: mujoco.MjModel = env.model
        self.frame_skip: int = robot.frame_skip
        self._init_qpos = robot.init_qpos.copy()
        size = self.model.nu
        # A step's farthest way, and where the joints may be.
        self._way = (robot.act_rng * robot.dt)[:size]
        self._low, self._high = robot.robot_pos_bound[:size].T
        indices = require("gymnasium_robotics.envs.franka_kitchen.kitchen_env", "kitchen")
        self._goals = [(indices.OBS_ELEMENT_INDICES[task], goal) for task, goal in env.goal.items()]
        self._bonus_distance = indices.BONUS_THRESH

    def joint(self, name: str, size: int = 1) -> slice:
        """Where a joint is in ``qpos``."""
        start = int(self.model.joint(name).qposadr[0])
        return slice(start, start + size)

    def observation(self, qpos: NDArray[Any], *others: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Which of the six tasks are solved, by the rules of the paper's evaluation."""

        def joint(name: str) -> NDArray[Any]:
            return qpos[:, self.joint(name)][:, 0]

        kettle = qpos[:, self.joint("kettle", 2)] - [-0.23, 0.75]
        solved = [
            joint("knob_Joint_1") < -0.38,
            joint("light_switch") < -0.25,
            abs(joint("slide_cabinet") - 0.37) < 0.1,
            abs(joint("right_hinge_cabinet") - 0.5) < 0.2,
            abs(joint("microwave") + 0.5) < 0.2,
            np.square(kettle).sum(axis=1) < 0.2**2,
        ]
        return {"tasks": np.stack(solved, axis=1)}

    def reset(self, model: Any, data: mujoco.MjData, random: np.random.Generator) -> None:
        data.qpos[:] = self._init_qpos

    def control(self, action: NDArray[Any], states: States) -> NDArray[Any]:
        places = states.qpos[:, : action.shape[1]]
        return (places + self._way * action.clip(-1, 1)).clip(self._low, self._high)

    def reward(self, before: States, after: States, control: NDArray[Any]) -> NDArray[Any]:
        """The number of the environment's seven tasks that are solved now."""
        distances = [
            np.linalg.norm(after.qpos[:, entries] - goal, axis=1) for entries, goal in self._goals
        ]
        return (np.stack(distances) < self._bonus_distance).sum(axis=0)

    def solve(self, task: str, qpos: NDArray[Any]) -> None:
        """Change coordinates, ``[nq]``, to those of a solved task, one of :data:`KITCHEN_TASKS`."""
        for joint, values in SOLVED_JOINTS[task].items():
            qpos[self.joint(joint, len(values))] = values


def make_kitchen(
    num_envs: int | None = None, *, pixels: PixelOptions, max_steps: int = EPISODE_STEPS
) -> MuJoCoPoolEnv:
    """Build kitchens; their first pictures open OpenGL contexts.

    Entries: ``"pixels"``, ``uint8`` of shape ``[3, resolution, resolution]``, and ``"tasks"``,
    ``bool`` of shape ``[6]``: which of :data:`KITCHEN_TASKS` the present state solves. The reward
    is the environment's own, the number of its seven tasks solved now.

    Args:
        num_envs (int, optional): number of kitchens, or ``None`` (default) for a single one.

    Keyword Args:
        pixels (PixelOptions): how the pictures look; ``frames`` are stacked elsewhere.
        max_steps (int, optional): length of an episode, which ends by truncation.
            Defaults to 50.

    Returns:
        The environment.
    """
    kitchen = _load()
    if pixels.quality == "fast":
        simplify(kitchen.model)
    task = MuJoCoTask.of(
        kitchen.model,
        frame_skip=kitchen.frame_skip,
        observation=kitchen.observation,
        reset=kitchen.reset,
        control=kitchen.control,
        reward=kitchen.reward,
        camera=CAMERA,
    )
    return MuJoCoPoolEnv(task, num_envs, max_steps=max_steps, pixels=pixels)


def _load() -> Kitchen:
    require("gymnasium_robotics", "kitchen")  # Registers its environments.
    gymnasium = require("gymnasium", "kitchen")
    with closing(gymnasium.make("FrankaKitchen-v1", disable_env_checker=True)) as env:
        return Kitchen(env.unwrapped)


def simplify(model: mujoco.MjModel) -> None:
    """Make a kitchen cheap to draw, and the simulation stays as it is.

    The arm's visual meshes hold 95 % of the kitchen's 142 000 triangles, far more than a
    small picture has pixels: it is drawn by the meshes of its contacts instead, which have
    the same outline. The lamp in the hood goes out, because without shadows it would shine
    through the hood and wash out the burners.

    Args:
        model (mujoco.MjModel): the kitchen's model, changed in place.
    """
    mujoco = require("mujoco", "kitchen")
    model.light_active[model.light("ovenlight").id] = False
    geoms = {
        (model.geom_bodyid[geom], model.mesh(model.geom_dataid[geom]).name): geom
        for geom in range(model.ngeom)
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    }
    for (body, name), visual in geoms.items():
        contact = geoms.get((body, name.replace("_viz", "_col")), visual)
        for look in (model.geom_group, model.geom_rgba, model.geom_matid):
            look[[visual, contact]] = look[[contact, visual]]


def solved_tasks(
    num_goals: int, *, seed: int, pixels: PixelOptions, extent: float | None
) -> TensorDictBase:
    """What the kitchen shows after a reset, with each task solved in turn."""
    if extent is not None:
        raise ValueError(f"the kitchen's goals are tasks, but extent={extent} was given.")
    kitchen = _load()
    with closing(make_kitchen(num_goals, pixels=pixels)) as env:
        env.set_seed(seed)
        env.reset()
        for task, qpos in zip(cycle(KITCHEN_TASKS), env.states.qpos, strict=False):
            kitchen.solve(task, qpos)
        goals = env.observe()
    return goals.set("pixels", repeat_frames(goals["pixels"], pixels))


register_env(
    "kitchen",
    make_kitchen,
    make_pool=make_kitchen,
    summary="A robot arm in gymnasium-robotics' kitchen, with six things to move, from above.",
    observes="pixels",
    max_steps=EPISODE_STEPS,
    terminates=False,
    goals=solved_tasks,
)
