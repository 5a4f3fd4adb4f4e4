"""Robots of the control suite in the plane: the paper's Quadruped and Humanoid, and others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDict

from torchrl_metra._extras import require
from torchrl_metra.envs.dm_control import SuiteTask, lay_rainbow, load, recolour_floor
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask, States, add_frame_sensors, measured
from torchrl_metra.envs.pixels import PixelOptions, repeat_frames
from torchrl_metra.envs.places import draw_positions
from torchrl_metra.envs.registry import register_env

if TYPE_CHECKING:
    import mujoco

EPISODE_STEPS = 200
ACTION_REPEAT = 2


def stand_upright(model: mujoco.MjModel, data: mujoco.MjData, random: np.random.Generator) -> None:
    """Start a robot on its feet, tilted by a few degrees, just above the floor.

    As the authors' Quadruped does. The suite's own starts in any orientation, so that every
    skill would have to get up first. The height is the lowest of whole centimeters at which
    nothing touches.
    """
    mujoco = require("mujoco", "dm-control")
    orientation = np.array([1.0, 0.0, 0.0, 0.0]) + 0.02 * random.standard_normal(4)
    orientation /= np.linalg.norm(orientation)

    def touches(centimeters: int) -> bool:
        data.qpos[:7] = 0.0, 0.0, 0.01 * centimeters, *orientation
        mujoco.mj_fwdPosition(model, data)
        return bool(data.ncon)

    low, high = 0, 100
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if touches(middle) else (low, middle)
    touches(low)


Array = NDArray[np.float64]


class Robot:
    """A robot of the control suite, for whole batches: what it observes and what it is paid for.

    The observation is that of the suite's task, by the same names and in the same order, after
    ``x``, ``y`` and ``z`` of the torso. What the suite reads from its frames and from sensors of
    position and velocity lags one substep here, as all sensors do in
    :class:`~torchrl_metra.MuJoCoPoolEnv`.

    Args:
        model (mujoco.MjModel): the robot, with the sensors of :attr:`frames`.
    """

    #: Of bodies, what :func:`~torchrl_metra.envs.add_frame_sensors` measures.
    frames: ClassVar[dict[str, str]] = {}
    #: The same, of geoms.
    geom_frames: ClassVar[dict[str, str]] = {}
    #: Of ``(qpos, qvel, act, sensordata)``: which robots lie where they do not get up from.
    fallen: Callable[..., NDArray[np.bool_]] | None = None

    def __init__(self, model: mujoco.MjModel) -> None:
        is_hinge = model.jnt_type == require("mujoco", "dm-control").mjtJoint.mjJNT_HINGE
        self.angles, self.speeds = model.jnt_qposadr[is_hinge], model.jnt_dofadr[is_hinge]
        self._where: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._model = model

    def read(self, sensordata: Array, *names: str) -> Array:
        """The numbers of sensors, one after the other."""
        if names not in self._where:
            self._where[names] = measured(self._model, *names)
        return sensordata[:, self._where[names]]

    def verticals(self, sensordata: Array, *bodies: str) -> Array:
        """The last row of each body's rotation matrix: how its axes point upwards."""
        axes = [f"{body}/{axis}" for body in bodies for axis in ("xaxis", "yaxis", "zaxis")]
        return self.read(sensordata, *axes)[:, 2::3]

    def in_frame(self, sensordata: Array, body: str, vectors: Array) -> Array:
        """Vectors ``[N, M, 3]`` in the frame of a body."""
        axes = self.read(sensordata, f"{body}/xaxis", f"{body}/yaxis", f"{body}/zaxis")
        return vectors @ axes.reshape(-1, 3, 3).transpose(0, 2, 1)

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        """What a task of states observes."""
        raise NotImplementedError

    def place(self, qpos: Array) -> Array:
        """Where it is, for evaluation: x and y, in meters."""
        return qpos[:, :2]

    def heading(self, qpos: Array) -> Array:
        """Where the x and the y axis of the root point in the plane, ``[N, 4]``.

        Two axes, since that of a robot that lies on its back points upwards.
        """
        w, x, y, z = qpos[:, 3:7].T
        x_axis = 1 - 2 * (y * y + z * z), 2 * (x * y + w * z)
        y_axis = 2 * (x * y - w * z), 1 - 2 * (x * x + z * z)
        return np.stack([*x_axis, *y_axis], axis=1)

    #: ``reward(before, after, control)``, the suite's ``run``; ``None``: there is none.
    reward: Callable[[States, States, Array], Array] | None = None


class Quadruped(Robot):
    """Four legs of three servos, whose states are observed; 81 entries."""

    frames: ClassVar = {"torso": "zaxis"}
    toes = tuple(f"toe_{toe}" for toe in ("front_left", "front_right", "back_right", "back_left"))

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        forces = [f"{kind}_{toe}" for kind in ("force", "torque") for toe in self.toes]
        egocentric = qpos[:, self.angles], qvel[:, self.speeds], act
        velocity = self.read(sensordata, "velocimeter")
        upright = self.read(sensordata, "torso/zaxis")[:, 2:]
        imu = self.read(sensordata, "imu_accel", "imu_gyro")
        force_torque = np.arcsinh(self.read(sensordata, *forces))
        return np.concatenate(
            [qpos[:, :3], *egocentric, velocity, upright, imu, force_torque], axis=1
        )

    def fallen(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> NDArray[np.bool_]:
        """Whether the torso is tilted by more than 72 degrees."""
        return self.read(sensordata, "torso/zaxis")[:, 2] < 0.3

    def reward(self, before: States, after: States, control: Array) -> Array:
        tolerance = require("dm_control.utils.rewards", "dm-control").tolerance
        upright = self.read(after.sensordata, "torso/zaxis")[:, 2]
        speed = self.read(after.sensordata, "velocimeter")[:, 0]
        linear = {"sigmoid": "linear"}
        stands = tolerance(upright, bounds=(1, np.inf), margin=2, value_at_margin=0, **linear)
        runs = tolerance(speed, bounds=(5, np.inf), margin=5, value_at_margin=0.5, **linear)
        return stands * runs


class Humanoid(Robot):
    """Twenty-one motors; 70 entries."""

    limbs = ("left_hand", "left_foot", "right_hand", "right_foot")
    frames: ClassVar = {
        "torso": "pos xaxis yaxis zaxis",
        "head": "pos",
        **dict.fromkeys(limbs, "pos"),
    }

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        height = self.read(sensordata, "head/pos")[:, 2:]
        limbs = self.read(sensordata, *(f"{limb}/pos" for limb in self.limbs)).reshape(-1, 4, 3)
        from_torso = limbs - self.read(sensordata, "torso/pos")[:, None]
        extremities = self.in_frame(sensordata, "torso", from_torso).reshape(-1, 12)
        vertical = self.verticals(sensordata, "torso")
        com_velocity = self.read(sensordata, "torso_subtreelinvel")
        return np.concatenate(
            [qpos[:, :3], qpos[:, 7:], height, extremities, vertical, com_velocity, qvel], axis=1
        )

    def reward(self, before: States, after: States, control: Array) -> Array:
        tolerance = require("dm_control.utils.rewards", "dm-control").tolerance
        linear = {"sigmoid": "linear", "value_at_margin": 0}
        height = self.read(after.sensordata, "head/pos")[:, 2]
        upright = self.read(after.sensordata, "torso/zaxis")[:, 2]
        velocity = self.read(after.sensordata, "torso_subtreelinvel")[:, :2]
        stands = tolerance(height, bounds=(1.4, np.inf), margin=0.35)
        stands = stands * tolerance(upright, bounds=(0.9, np.inf), margin=1.9, **linear)
        effort = tolerance(control, margin=1, value_at_margin=0, sigmoid="quadratic").mean(axis=1)
        speed = np.linalg.norm(velocity, axis=1)
        runs = tolerance(speed, bounds=(10, np.inf), margin=10, **linear)
        return stands * (4 + effort) / 5 * (5 * runs + 1) / 6


class Cheetah(Robot):
    """Six motors, in the plane; 18 entries."""

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        return np.concatenate([qpos, qvel], axis=1)

    def place(self, qpos: Array) -> Array:
        return qpos[:, :1]

    def reward(self, before: States, after: States, control: Array) -> Array:
        tolerance = require("dm_control.utils.rewards", "dm-control").tolerance
        speed = self.read(after.sensordata, "torso_subtreelinvel")[:, 0]
        linear = {"value_at_margin": 0, "sigmoid": "linear"}
        return tolerance(speed, bounds=(10, np.inf), margin=10, **linear)


class Dog(Robot):
    """Thirty-eight servos, whose states are observed; 226 entries."""

    bodies = ("skull", "torso", "pelvis")
    frames: ClassVar = {
        "skull": "xaxis yaxis zaxis",
        "torso": "pos xaxis yaxis zaxis",
        "pelvis": "pos xaxis yaxis zaxis",
    }

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        heights = self.read(sensordata, "torso/pos", "pelvis/pos")[:, 2::3]
        com_velocity = self.read(sensordata, "torso_linvel")[:, None]
        return np.concatenate(
            [
                qpos[:, :3],
                qpos[:, self.angles],
                qvel[:, self.speeds],
                heights,
                self.verticals(sensordata, *self.bodies),
                self.in_frame(sensordata, "torso", com_velocity)[:, 0],
                self.read(sensordata, "accelerometer", "velocimeter", "gyro"),
                self.read(sensordata, "foot_L", "foot_R", "hand_L", "hand_R"),
                self.read(sensordata, "palm_L", "palm_R", "sole_L", "sole_R"),
                act,
            ],
            axis=1,
        )


class Fish(Robot):
    """Five servos of tail and fins; 27 entries.

    The suite's target, to which it is seen from the mouth, stays where the model has it. It is
    small and swims in all directions: its place is x, y and z, in centimeters.
    """

    frames: ClassVar = {"torso": "zaxis"}
    geom_frames: ClassVar = {"mouth": "pos xaxis yaxis zaxis", "target": "pos"}

    def place(self, qpos: Array) -> Array:
        return 100 * qpos[:, :3]

    def observation(self, qpos: Array, qvel: Array, act: Array, sensordata: Array) -> Array:
        upright = self.read(sensordata, "torso/zaxis")[:, 2:]
        to_target = self.read(sensordata, "target/pos") - self.read(sensordata, "mouth/pos")
        target = self.in_frame(sensordata, "mouth", to_target[:, None])[:, 0]
        return np.concatenate([qpos[:, :3], qpos[:, self.angles], upright, target, qvel], axis=1)


@dataclass(frozen=True)
class Locomotion:
    """One robot of the control suite, as METRA's and GenDa's papers see it.

    Attributes:
        task (str): name of the suite's task.
        robot (type): what it observes.
        xml (callable): the model's XML and its assets, given the suite's module.
        camera (str, optional): name of the camera. By default the first that follows the robot.
        paint (callable): colors the floor of a model, so that pictures tell the place.
        start (callable, optional): where an episode starts, see
            :class:`~torchrl_metra.MuJoCoTask`. ``None``: the suite's own start.
    """

    task: str
    robot: type[Robot]
    xml: Callable[[Any], tuple[Any, dict[str, Any]]]
    camera: str | None = None
    paint: Callable[[Any], None] = recolour_floor
    start: Callable[..., None] | None = None


LOCOMOTION: dict[str, Locomotion] = {
    "quadruped": Locomotion(
        "quadruped-run",
        Quadruped,
        # The floor of the suite's run, 100 m to each side.
        lambda suite: (suite.make_model(floor_size=100), suite.common.ASSETS),
        camera="y",
        start=stand_upright,
    ),
    "humanoid": Locomotion(
        "humanoid-run", Humanoid, lambda suite: suite.get_model_and_assets(), camera="back"
    ),
    "cheetah": Locomotion(
        "cheetah-run",
        Cheetah,
        lambda suite: suite.get_model_and_assets(),
        camera="side",
        paint=lay_rainbow,
    ),
    "dog": Locomotion("dog-run", Dog, lambda suite: suite.get_model_and_assets(135)),
    "fish": Locomotion("fish-swim", Fish, lambda suite: suite.get_model_and_assets()),
}


def make_locomotion(
    name: str,
    num_envs: int | None = None,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int = EPISODE_STEPS,
    terminate: bool = False,
    heading: bool = False,
    shows_state: bool = False,
) -> MuJoCoPoolEnv:
    """Build robots of the control suite; an action lasts for two of its steps.

    Entries: with ``shows_state`` ``"observation"``, ``float32``, see :class:`Robot`; with
    ``pixels`` ``"pixels"``, ``uint8`` of shape ``[3, resolution, resolution]``, from a camera that
    follows the robot over a floor that tells the place; and ``"position"``, ``float32``: x and y
    of the torso in meters, of a fish x, y and z in centimeters. The reward is the suite's at the
    end of a step, that of dog and fish zero.

    Args:
        name (str): of :data:`LOCOMOTION`.
        num_envs (int, optional): number of robots, or ``None`` (default) for a single one.

    Keyword Args:
        pixels (PixelOptions, optional): how the pictures look; ``frames`` are stacked elsewhere.
        max_steps (int, optional): length of an episode, which ends by truncation.
            Defaults to 200.
        terminate (bool, optional): whether a Quadruped's fall ends its episode.
            Defaults to ``False``, as in the paper.
        heading (bool, optional): whether the state ends by where the torso's x and y axes point in
            the plane, four entries that the suite leaves out. Defaults to ``False``.
        shows_state (bool, optional): whether the state is observed. Defaults to ``False``.

    Returns:
        The environment.

    Raises:
        ValueError: if it is to end by a fall, of which nothing is known.
    """
    known = LOCOMOTION[name]
    if terminate and known.robot.fallen is None:
        raise ValueError(f"of {name} it is not known when it has fallen: leave out terminate.")
    suite = SuiteTask(load(known.task, {}))
    module = require(f"dm_control.suite.{name}", "dm-control")
    xml, assets = known.xml(module)
    spec = require("mujoco", "dm-control").MjSpec.from_string(
        _text(xml), include=assets, assets=assets
    )
    add_frame_sensors(spec, known.robot.frames)
    add_frame_sensors(spec, known.robot.geom_frames, of="geom")
    model = spec.compile()
    if pixels is not None:
        known.paint(model)
    robot = known.robot(model)

    def observation(*states: Array) -> dict[str, Array]:
        shown = {"position": robot.place(states[0])}
        if shows_state:
            state = robot.observation(*states)
            parts = [state, robot.heading(states[0])] if heading else [state]
            shown["observation"] = np.concatenate(parts, axis=1)
        return shown

    camera = {} if known.camera is None else {"camera": known.camera}
    task = MuJoCoTask.of(
        model,
        frame_skip=ACTION_REPEAT * suite.frame_skip,
        observation=observation,
        reset=known.start or suite.reset,
        reward=robot.reward,
        terminated=robot.fallen if terminate else None,
        **camera,
    )
    return MuJoCoPoolEnv(task, num_envs, max_steps=max_steps, pixels=pixels)


def _text(xml: str | bytes) -> str:
    return xml.decode() if isinstance(xml, bytes) else xml


def pictures_of_places(
    name: str, num_goals: int, *, seed: int, pixels: PixelOptions, extent: float
) -> TensorDict:
    """Pictures of a robot after a reset, moved."""
    with closing(make_locomotion(name, num_goals, pixels=pixels)) as env:
        env.set_seed(seed)
        size = env.reset()["position"].shape[-1]
        position = draw_positions(num_goals, size, extent, seed)
        env.states.qpos[:, :size] = position
        pictures = env.observe()["pixels"]
    return TensorDict(
        {"pixels": repeat_frames(pictures, pixels), "position": position}, [num_goals]
    )


# How far goals lie, in meters; for the fish there are none.
_EXTENTS = {"quadruped": 15.0, "humanoid": 10.0, "cheetah": 20.0, "dog": 10.0, "fish": None}
_PLACES = {"cheetah": (0,), "fish": None}
for _name, _extent in _EXTENTS.items():
    _known: dict[str, Any] = {
        "max_steps": EPISODE_STEPS,
        "terminates": False,
        "goal_extent": _extent,
    }
    _make = partial(make_locomotion, _name, shows_state=True)
    register_env(
        f"{_name}_state",
        _make,
        make_pool=_make,
        summary=f"The control suite's {_name}, observed by its state.",
        position=_PLACES.get(_name, (0, 1)),
        **_known,
    )
    if _name in ("quadruped", "humanoid", "cheetah"):
        _make = partial(make_locomotion, _name)
        register_env(
            _name,
            _make,
            make_pool=_make,
            summary=f"The control suite's {_name}, seen by a camera that follows it.",
            observes="pixels",
            goals=partial(pictures_of_places, _name),
            **_known,
        )
