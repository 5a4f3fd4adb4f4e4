"""The state-based MuJoCo tasks of the paper: Ant and HalfCheetah."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import (
    Compose,
    DoubleToFloat,
    EnvBase,
    GymEnv,
    ObservationNorm,
    ParallelEnv,
    SerialEnv,
    Transform,
    TransformedEnv,
)
from torchrl.record import PixelRenderTransform

from torchrl_metra._checks import check_integer
from torchrl_metra._extras import require
from torchrl_metra.envs.envpool import EnvPoolEnv
from torchrl_metra.envs.pixels import PixelOptions, stack_frames
from torchrl_metra.envs.rendering import Renderer

__all__ = [
    "HURDLES",
    "HURDLE_COURSE",
    "TASKS",
    "Backend",
    "MujocoTask",
    "ReadPosition",
    "make_mujoco_env",
]

Backend = Literal["envpool", "serial", "parallel"]

EPISODE_STEPS = 200


@dataclass(frozen=True)
class MujocoTask:
    """One locomotion task: gymnasium's model, seen and ended as in the paper (Appendix F).

    Attributes:
        task_id (str): name in gymnasium and in EnvPool.
        position_size (int): number of leading entries of the observation that are
            the position in the plane, in metres.
        loc (tuple of float): mean of each entry of the observation.
        scale (tuple of float): standard deviation of each entry.
        gymnasium_options (mapping): options of the task in gymnasium.
        envpool_options (mapping): the same options in EnvPool's spelling.
        hurdles (tuple of float): where bars lie across the way, x in metres. EnvPool has
            none.
    """

    task_id: str
    position_size: int
    loc: tuple[float, ...]
    scale: tuple[float, ...]
    gymnasium_options: Mapping[str, Any] = field(default_factory=dict)
    envpool_options: Mapping[str, Any] = field(default_factory=dict)
    hurdles: tuple[float, ...] = ()


class ReadPosition(Transform):
    """Copies the position in the plane out of the observation, in metres.

    Evaluation reads the entry ``"position"``; no network does. Append it before
    any normalisation.

    Args:
        size (int): number of leading entries of the observation to copy.

    Raises:
        TypeError: if ``size`` is no integer.
        ValueError: if it is not positive, or larger than the observation.

    Examples:
        >>> from torchrl.envs import GymEnv, TransformedEnv
        >>> env = TransformedEnv(GymEnv("Pendulum-v1"), ReadPosition(2))
        >>> env.reset()["position"].shape
        torch.Size([2])
    """

    def __init__(self, size: int) -> None:
        check_integer("size", size)
        super().__init__(in_keys=["observation"], out_keys=["position"])
        self.size = size

    def _apply_transform(self, obs: Tensor) -> Tensor:
        return obs[..., : self.size]

    def _reset(self, tensordict: Any, tensordict_reset: Any) -> Any:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the position's spec."""
        source = observation_spec["observation"]
        if source.shape[-1] < self.size:
            raise ValueError(
                f"ReadPosition(size={self.size}) reads the first entries of an observation that "
                f"has only {source.shape[-1]}."
            )
        observation_spec["position"] = Unbounded(
            shape=(*source.shape[:-1], self.size), dtype=source.dtype, device=source.device
        )
        return observation_spec


class DrawnGymEnv(GymEnv):
    """A MuJoCo task of gymnasium whose ``render`` is this package's renderer.

    It follows the robot, needs no ``MUJOCO_GL`` to be set and draws faster than gymnasium's.

    Args:
        task_id (str): name in gymnasium.

    Keyword Args:
        pixels (PixelOptions): how the pictures look.
        **options: passed on to :class:`~torchrl.envs.GymEnv`.
    """

    def __init__(self, task_id: str, *, pixels: PixelOptions, **options: Any) -> None:
        super().__init__(task_id, **options)
        size = pixels.resolution
        model = self._env.unwrapped.model
        self._renderer = Renderer(model, size, size, "track", quality=pixels.quality)

    def render(self) -> NDArray[np.uint8]:
        """The present state, ``uint8`` of shape ``[3, resolution, resolution]``."""
        picture = self._renderer.render(self._env.unwrapped.data)
        return np.ascontiguousarray(picture.transpose(2, 0, 1))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the OpenGL context and close the environment."""
        self._renderer.close()
        super().close(raise_if_closed=raise_if_closed)


def make_mujoco_env(
    task: MujocoTask,
    num_envs: int | None,
    backend: Backend,
    *,
    pixels: PixelOptions | None = None,
    normalize: bool = True,
) -> TransformedEnv:
    """Build a task on one of its backends; see :func:`~torchrl_metra.envs.make_env`."""
    transforms: list[Transform] = [
        DoubleToFloat(in_keys=["observation"]),
        ReadPosition(task.position_size),
    ]
    if backend == "envpool":
        if num_envs is None:
            raise ValueError("backend 'envpool' is always batched: give num_envs.")
        if task.hurdles:
            raise ValueError("EnvPool has no hurdles: choose backend 'serial' or 'parallel'.")
        if pixels is not None:
            raise ValueError("EnvPool renders no pixels: choose backend 'serial' or 'parallel'.")
        env: EnvBase = EnvPoolEnv(
            task.task_id, num_envs, max_episode_steps=EPISODE_STEPS, **task.envpool_options
        )
        transforms = transforms[1:]
    elif num_envs is None:
        env = _gymnasium_env(task, pixels)
        if pixels is not None:
            transforms.insert(0, PixelRenderTransform())
    else:
        batched = SerialEnv if backend == "serial" else ParallelEnv
        env = batched(num_envs, partial(_worker, task, pixels))
    if normalize:
        transforms.append(
            ObservationNorm(
                loc=torch.tensor(task.loc),
                scale=torch.tensor(task.scale),
                in_keys=["observation"],
                standard_normal=True,
            )
        )
    if pixels is not None:
        transforms.append(stack_frames(pixels.frames))
    return TransformedEnv(env, Compose(*transforms))


def _worker(task: MujocoTask, pixels: PixelOptions | None) -> EnvBase:
    env = _gymnasium_env(task, pixels)
    return env if pixels is None else TransformedEnv(env, PixelRenderTransform())


def _gymnasium_env(task: MujocoTask, pixels: PixelOptions | None = None) -> GymEnv:
    require("mujoco", "mujoco")
    require("gymnasium", "mujoco")
    make = GymEnv if pixels is None else partial(DrawnGymEnv, pixels=pixels)
    build = partial(make, task.task_id, max_episode_steps=EPISODE_STEPS, **task.gymnasium_options)
    return _with_hurdles(build, task.hurdles) if task.hurdles else build()


def _with_hurdles(build: Callable[..., GymEnv], hurdles: tuple[float, ...]) -> GymEnv:
    plain = build()
    model = _add_hurdles(plain._env.unwrapped.fullpath, hurdles)
    plain.close()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "hurdles.xml"
        path.write_text(model)
        return build(xml_file=str(path))


def _add_hurdles(model: str, hurdles: tuple[float, ...]) -> str:
    """Gymnasium's model with bars that the robot can hit, 17 to 23 cm above the ground."""
    root = ET.parse(model).getroot()
    world = root.find("worldbody")
    assert world is not None
    for x in hurdles:
        ET.SubElement(
            world, "geom", type="box", pos=f"{x} 0 0.2", size="0.05 1 0.03", conaffinity="1"
        )
    return ET.tostring(root, encoding="unicode")


# The mean and standard deviation of each entry were measured by
# `python benchmarks/observation_statistics.py`: 10 000 episodes of 50 uniformly random actions.
TASKS: dict[str, MujocoTask] = {
    "ant": MujocoTask(
        task_id="Ant-v5",
        position_size=2,
        loc=(
            0.0001859,
            -0.009999,
            0.712,
            0.8462,
            -0.001003,
            -0.0009789,
            0.001247,
            0.001062,
            0.8561,
            0.0001682,
            -0.8581,
            0.0002901,
            -0.8566,
            0.000108,
            0.8582,
            0.001798,
            -0.008495,
            -0.02064,
            -0.003132,
            -0.003674,
            0.001642,
            -0.0008257,
            0.2767,
            -0.001829,
            -0.2752,
            -0.0001373,
            -0.2777,
            -0.002499,
            0.2737,
        ),
        scale=(
            0.6269,
            0.6273,
            0.171,
            0.285,
            0.2016,
            0.202,
            0.3487,
            0.4024,
            0.3109,
            0.4024,
            0.3113,
            0.402,
            0.3109,
            0.4019,
            0.3112,
            0.8203,
            0.8245,
            0.9769,
            1.744,
            1.74,
            1.853,
            4.513,
            4.377,
            4.514,
            4.368,
            4.508,
            4.372,
            4.505,
            4.381,
        ),
        gymnasium_options={
            "exclude_current_positions_from_observation": False,
            "include_cfrc_ext_in_observation": False,
            "terminate_when_unhealthy": False,
        },
        envpool_options={
            "exclude_current_positions_from_observation": False,
            "use_contact_force": False,
            "terminate_when_unhealthy": False,
        },
    ),
    "half_cheetah": MujocoTask(
        task_id="HalfCheetah-v5",
        position_size=1,
        loc=(
            -0.06537,
            -0.08641,
            0.0906,
            0.008605,
            0.02899,
            -0.007754,
            0.01256,
            -0.05633,
            -0.04811,
            -0.07186,
            -0.05113,
            0.04468,
            0.02276,
            -0.04744,
            0.02767,
            0.01065,
            0.01456,
            -0.01142,
        ),
        scale=(
            0.3991,
            0.07635,
            0.2411,
            0.2511,
            0.2696,
            0.2626,
            0.3225,
            0.2916,
            0.278,
            0.7359,
            0.7753,
            1.579,
            5.528,
            6.667,
            6.837,
            6.281,
            6.426,
            5.957,
        ),
        gymnasium_options={"exclude_current_positions_from_observation": False},
        envpool_options={"exclude_current_positions_from_observation": False},
    ),
}

# The bars of HalfCheetahHurdle, along x.
HURDLES = (-15.0, -13.0, -9.0, -5.0, -1.0, 3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 27.0)
HURDLE_COURSE = replace(TASKS["half_cheetah"], hurdles=HURDLES)
