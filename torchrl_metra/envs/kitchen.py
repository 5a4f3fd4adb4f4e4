"""The paper's kitchen: a robot arm, seen from above, with six things to move."""

from __future__ import annotations

from contextlib import closing
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import GymWrapper

from torchrl_metra._extras import require
from torchrl_metra.envs.pixels import PixelOptions, SimulationEnv, repeat_frames
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


class KitchenPixelEnv(SimulationEnv, GymWrapper):
    """gymnasium-robotics' ``FrankaKitchen-v1``, seen from above.

    Entries: ``"pixels"``, ``uint8`` of shape ``[3, height, width]``, and ``"tasks"``,
    ``bool`` of shape ``[6]``: which of :data:`KITCHEN_TASKS` the present state solves.
    The reward is the environment's own, the number of its seven tasks solved now.
    Build it by :func:`make_kitchen`.

    .. note:: The action is the velocity of nine joints. The authors of the paper moved the
        end effector instead, in a kitchen that is no longer maintained; its numbers and
        these are not to be compared one to one.
    """

    @property
    def simulation(self) -> mujoco.MjData:
        return self.simulator.unwrapped.data

    def read_state(self, observations: Any = None) -> dict[str, Tensor]:
        """Which of the six tasks are solved, by the rules of the paper's evaluation."""

        def joint(name: str) -> float:
            return float(self.simulation.joint(name).qpos[0])

        kettle_x, kettle_y = self.simulation.joint("kettle").qpos[:2]
        solved = [
            joint("knob_Joint_1") < -0.38,
            joint("light_switch") < -0.25,
            abs(joint("slide_cabinet") - 0.37) < 0.1,
            abs(joint("right_hinge_cabinet") - 0.5) < 0.2,
            abs(joint("microwave") + 0.5) < 0.2,
            bool((kettle_x + 0.23) ** 2 + (kettle_y - 0.75) ** 2 < 0.2**2),
        ]
        return {"tasks": torch.tensor(solved)}

    def observe_solved(self, task: str) -> dict[str, Tensor]:
        """What the environment would show if a task were solved, and nothing else changed.

        Args:
            task (str): one of :data:`KITCHEN_TASKS`.

        Returns:
            ``"pixels"`` and ``"tasks"``. The simulation is left as it was.
        """
        mujoco = require("mujoco", "kitchen")
        model, data = self.simulator.unwrapped.model, self.simulation
        qpos = data.qpos.copy()
        for joint, value in SOLVED_JOINTS[task].items():
            data.joint(joint).qpos[: len(value)] = value
        mujoco.mj_forward(model, data)
        observed = {"pixels": self.draw(), **self.read_state()}
        data.qpos[:] = qpos
        mujoco.mj_forward(model, data)
        return observed


def make_kitchen(pixels: PixelOptions, *, max_steps: int = EPISODE_STEPS) -> KitchenPixelEnv:
    """Build one kitchen; its first picture opens an OpenGL context.

    Args:
        pixels (PixelOptions): how the pictures look; ``frames`` are stacked elsewhere.

    Keyword Args:
        max_steps (int, optional): length of an episode, which ends by truncation.
            Defaults to 50.

    Returns:
        The environment.
    """
    require("gymnasium_robotics", "kitchen")  # Registers its environments.
    gymnasium = require("gymnasium", "kitchen")
    env = gymnasium.make(
        "FrankaKitchen-v1",
        max_episode_steps=max_steps,
        terminate_on_tasks_completed=False,
        remove_task_when_completed=False,
        disable_env_checker=True,
    )
    if pixels.quality == "fast":
        simplify(env.unwrapped.model)
    return KitchenPixelEnv(env, pixels.renderer(env.unwrapped.model, CAMERA))


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
    solved = []
    with closing(make_kitchen(pixels)) as env:
        env.set_seed(seed)
        for task in islice(cycle(KITCHEN_TASKS), num_goals):
            env.reset()
            solved.append(TensorDict(env.observe_solved(task)))
    goals = TensorDict.stack(solved)
    return goals.set("pixels", repeat_frames(goals["pixels"], pixels))


register_env(
    "kitchen",
    make_kitchen,
    summary="A robot arm in gymnasium-robotics' kitchen, with six things to move, from above.",
    observes="pixels",
    max_steps=EPISODE_STEPS,
    terminates=False,
    goals=solved_tasks,
)
