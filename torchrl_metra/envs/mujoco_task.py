"""What is simulated: a MuJoCo model, and what makes an environment of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchrl_metra._checks import check_integer
from torchrl_metra._extras import require
from torchrl_metra.envs.rendering import FreeCamera, following_camera

if TYPE_CHECKING:
    import mujoco

# How long a decision lasts if nothing is said, in seconds: as in the paper's tasks.
DECISION_SECONDS = 0.04

# By which velocities differ at the start of an episode if nothing is said.
START_NOISE = 0.01


class States(NamedTuple):
    """States of ``N`` simulations, in float64.

    Attributes:
        qpos (array): coordinates, ``[N, nq]``.
        qvel (array): velocities, ``[N, nv]``.
        act (array): states of the actuators, ``[N, na]``.
        sensordata (array): what the model's sensors measured, ``[N, nsensordata]``. MuJoCo computes
            it at the beginning of a substep: after a step it lags one substep behind ``qpos``.
    """

    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    act: NDArray[np.float64]
    sensordata: NDArray[np.float64]


Observation = NDArray[Any] | Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class MuJoCoTask:
    """A MuJoCo model, and what makes an environment of it.

    Functions of states are given whole batches, as arrays in float64; ``States`` is a named tuple
    of ``qpos``, ``qvel``, ``act`` and ``sensordata``. What they need of ``xpos`` or ``xmat`` they
    read from sensors, see :func:`add_frame_sensors`.

    Attributes:
        model (mujoco.MjModel): the model. Sizes and constants are read from it when an
            environment is built, so change it before.
        frame_skip (int): number of substeps in a step.
        observation (callable): ``observation(qpos, qvel, act, sensordata)``, what is observed: an
            array ``[N, size]``, or several by their entries, such as ``"observation"`` and
            ``"position"``.
        reset (callable): ``reset(model, data, random)`` puts ``data``, an ``mujoco.MjData`` just
            after ``mj_resetData``, where an episode begins; ``random`` is a
            :class:`numpy.random.Generator`.
        control (callable): ``control(action, states)``, what actuators are given, ``[N, nu]``,
            for actions in [-1, 1]. The state is that before the step.
        reward (callable, optional): ``reward(before, after, control)``, of shape ``[N]``, given the
            ``States`` before and after a step. Defaults to ``None``: no reward.
        terminated (callable, optional): ``terminated(qpos, qvel, act, sensordata)``, which
            episodes are over, ``[N]``. Defaults to ``None``: none before their time.
        camera (str, int or FreeCamera): draws pictures.

    Examples:
        >>> from torchrl_metra import MuJoCoPoolEnv
        >>> task = MuJoCoTask.of("examples/tripod.xml", frame_skip=5)
        >>> MuJoCoPoolEnv(task, 2, max_steps=9).rollout(20)["next", "observation"].shape
        torch.Size([2, 9, 25])
    """

    model: mujoco.MjModel
    frame_skip: int
    observation: Callable[..., Observation]
    reset: Callable[[mujoco.MjModel, mujoco.MjData, np.random.Generator], None]
    control: Callable[[NDArray[np.float64], States], NDArray[np.float64]]
    reward: Callable[[States, States, NDArray[np.float64]], NDArray[Any]] | None = None
    terminated: Callable[..., NDArray[np.bool_]] | None = None
    camera: str | int | FreeCamera

    @classmethod
    def of(
        cls, model: mujoco.MjModel | str | Path, *, frame_skip: int | None = None, **parts: Any
    ) -> MuJoCoTask:
        """A task of a model, with defaults for what is not said.

        Args:
            model (mujoco.MjModel, str or Path): the model, or the path of an MJCF or URDF file.

        Keyword Args:
            frame_skip (int, optional): number of substeps in a step. By default a step lasts
                about 0.04 seconds.
            **parts: any other attribute. By default ``qpos``, ``qvel`` and ``act`` are observed,
                and with a free joint, or slide joints named ``"rootx"`` and ``"rooty"``, its x and
                y are the ``"position"``; episodes begin at the model's first keyframe, or at
                ``qpos0``, with velocities from N(0, 0.01²); actions are scaled to the actuators'
                ``ctrlrange``, where they have one; the camera is the first that follows a body,
                else the first, else one that sees all.

        Raises:
            ValueError: if MuJoCo cannot read the file, or the model has no actuators.
        """
        if isinstance(model, str | Path):
            model = load_model(Path(model))
        if not model.nu:
            raise ValueError("the model has no actuators, so there is nothing to act with.")
        if frame_skip is None:
            frame_skip = max(1, round(DECISION_SECONDS / model.opt.timestep))
        check_integer("frame_skip", frame_skip)
        defaults: dict[str, Any] = {
            "observation": partial(coordinates, root_coordinates(model)),
            "reset": start_at_keyframe,
            "control": partial(scale_to_range, *control_range(model)),
        }
        if "camera" not in parts:
            parts["camera"] = following_camera(model)
        return cls(model=model, frame_skip=frame_skip, **defaults | parts)


# What a task does if nothing is said.


def coordinates(root: list[int], qpos: NDArray[Any], *others: NDArray[Any]) -> Observation:
    """All coordinates, velocities and states of actuators; and where the root is."""
    qvel, act, _ = others
    observed = {"observation": np.concatenate([qpos, qvel, act], axis=1)}
    return {**observed, "position": qpos[:, root]} if root else observed


def start_at_keyframe(
    model: mujoco.MjModel, data: mujoco.MjData, random: np.random.Generator
) -> None:
    """The first keyframe, if there is one, with some noise in the velocities."""
    if model.nkey:
        require("mujoco", "mujoco").mj_resetDataKeyframe(model, data, 0)
    data.qvel += START_NOISE * random.standard_normal(model.nv)


def scale_to_range(
    low: NDArray[Any], high: NDArray[Any], action: NDArray[Any], states: States
) -> NDArray[np.float64]:
    """From [-1, 1] to the range of each actuator."""
    return low + (high - low) / 2 * (action + 1)


def control_range(model: mujoco.MjModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest control of each actuator, -1 and 1 where it has no limits."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = np.where(limited[:, None], model.actuator_ctrlrange, [-1.0, 1.0]).T
    return low.copy(), high.copy()


def root_coordinates(model: mujoco.MjModel) -> list[int]:
    """Which entries of ``qpos`` say where a robot is: x and y, in a planar model x alone."""
    kinds = require("mujoco", "mujoco").mjtJoint
    joints = [model.joint(number) for number in range(model.njnt)]
    free = [int(joint.qposadr[0]) for joint in joints if joint.type[0] == kinds.mjJNT_FREE]
    if free:
        return [free[0], free[0] + 1]
    # The "rooty" of planar robots is a hinge.
    return [
        int(joint.qposadr[0])
        for joint in joints
        if joint.name in ("rootx", "rooty") and joint.type[0] == kinds.mjJNT_SLIDE
    ]


def add_frame_sensors(
    spec: mujoco.MjSpec, frames: Mapping[str, str], of: Literal["body", "geom", "site"] = "body"
) -> None:
    """Sensors for what a vectorised function would read from ``xpos`` and ``xmat``.

    Args:
        spec (mujoco.MjSpec): a model before it is compiled, changed in place. They come last, so
            that its own sensors stay where they are.
        frames (mapping): of each body by its name, what is measured, by words: ``"pos"`` (3
            numbers), ``"quat"`` (4), or columns of its rotation matrix: ``"xaxis"``, ``"yaxis"``,
            ``"zaxis"`` (3 each). The sensors are called ``"NAME/WORD"``, see :func:`measured`.
        of (str, optional): what the names are names of. Defaults to ``"body"``.

    Examples:
        >>> import mujoco
        >>> spec = mujoco.MjSpec.from_file("examples/tripod.xml")
        >>> add_frame_sensors(spec, {"torso": "pos zaxis"})
        >>> measured(spec.compile(), "torso/pos", "torso/zaxis")
        array([0, 1, 2, 3, 4, 5])
    """
    mujoco = require("mujoco", "mujoco")
    objects = {"body": "mjOBJ_XBODY", "geom": "mjOBJ_GEOM", "site": "mjOBJ_SITE"}
    for name, words in frames.items():
        for word in words.split():
            spec.add_sensor(
                name=f"{name}/{word}",
                type=getattr(mujoco.mjtSensor, f"mjSENS_FRAME{word.upper()}"),
                objtype=getattr(mujoco.mjtObj, objects[of]),
                objname=name,
            )


def measured(model: mujoco.MjModel, *names: str) -> NDArray[np.int64]:
    """Where in ``sensordata`` the numbers of sensors are, one sensor after the other."""
    sensors = [model.sensor(name) for name in names]
    return np.concatenate([sensor.adr[0] + np.arange(sensor.dim[0]) for sensor in sensors])


def load_model(path: Path) -> mujoco.MjModel:
    """The model of an MJCF or URDF file."""
    mujoco = require("mujoco", "mujoco")
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as err:
        raise ValueError(f"MuJoCo cannot read {str(path)!r}: {err}") from err
