"""Gymnasium's environments, among them the paper's Ant and HalfCheetah."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torchrl.envs import EnvBase, GymEnv, TransformedEnv
from torchrl.record import PixelRenderTransform

from torchrl_metra._extras import require
from torchrl_metra.envs.envpool import make_envpool
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.registry import EnvEntry, find_env, register_env
from torchrl_metra.envs.rendering import Renderer, following_camera

__all__ = ["EPISODE_STEPS", "HURDLES", "DrawnGymEnv", "gymnasium_entry", "make_gymnasium"]

EPISODE_STEPS = 200

# What tasks whose observation begins by the place of the body call leaving it out.
EXCLUDES = "exclude_current_positions_from_observation"
TERMINATES = "terminate_when_unhealthy"


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
        self._size = size = pixels.resolution
        self._renderer: Renderer | None = None
        mujoco = sys.modules.get("mujoco")
        model = getattr(self._env.unwrapped, "model", None)
        if mujoco is not None and isinstance(model, mujoco.MjModel):
            camera = following_camera(model)
            self._renderer = Renderer(model, size, size, camera, quality=pixels.quality)

    def render(self) -> NDArray[np.uint8]:
        """The present state, ``uint8`` of shape ``[3, resolution, resolution]``."""
        if self._renderer is not None:
            picture = self._renderer.render(self._env.unwrapped.data)
            return np.ascontiguousarray(picture.transpose(2, 0, 1))
        drawn = torch.as_tensor(self._env.render()).permute(2, 0, 1)[None].float()
        size = (self._size, self._size)
        return interpolate(drawn, size, mode="area").round().to(torch.uint8)[0].numpy()

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
    spec = _gymnasium_spec(task_id)
    if max_steps is not None:
        options["max_episode_steps"] = max_steps
    if terminate is not None:
        if TERMINATES not in _parameters(spec):
            raise ValueError(
                f"gymnasium's {task_id} has no {TERMINATES}, but terminate={terminate} was given: "
                "leave it out."
            )
        options[TERMINATES] = terminate
    if pixels is None:
        return GymEnv(task_id, **options)
    return TransformedEnv(DrawnGymEnv(task_id, pixels=pixels, **options), PixelRenderTransform())


def gymnasium_entry(task_id: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of gymnasium.

    Raises:
        ImportError: if gymnasium is not installed; names the extra.
        ValueError: if it has no such task.
    """
    spec = _gymnasium_spec(task_id)
    make, position = partial(make_gymnasium, task_id), None
    if EXCLUDES in _parameters(spec) and EXCLUDES not in options:
        make = partial(make, **{EXCLUDES: False})
        position = tuple(range(_excluded(task_id))) or None
    return EnvEntry(
        name=f"gym:{task_id}",
        make=make,
        summary=f"gymnasium's {task_id}.",
        extra="mujoco",
        position=position,
        max_steps=spec.max_episode_steps,
    )


def _gymnasium_spec(task_id: str) -> Any:
    gymnasium = require("gymnasium", "mujoco")
    module, _, _ = task_id.rpartition(":")
    try:
        if module:  # Registers its tasks when it is imported.
            importlib.import_module(module)
        spec = gymnasium.spec(task_id.rpartition(":")[2])
    except (ImportError, gymnasium.error.Error) as err:
        raise ValueError(f"gymnasium has no task {task_id!r}: {err}") from err
    if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
        require("mujoco", "mujoco")
    return spec


def _parameters(spec: Any) -> Mapping[str, Any]:
    registration = require("gymnasium.envs.registration", "mujoco")
    creator = spec.entry_point
    if isinstance(creator, str):
        creator = registration.load_env_creator(creator)
    return inspect.signature(creator).parameters


@functools.cache
def _excluded(task_id: str) -> int:
    """How many coordinates a task leaves out of its observation, if it tells."""
    env = require("gymnasium", "mujoco").make(task_id, disable_env_checker=True)
    structure = getattr(env.unwrapped, "observation_structure", {})
    env.close()
    return structure.get("skipped_qpos", 0)


def make_hurdle_course(
    *, pixels: PixelOptions | None = None, max_steps: int | None = None, **options: Any
) -> EnvBase:
    """Build HalfCheetah with bars across its way."""
    plain = make_gymnasium("HalfCheetah-v5")
    model = _add_hurdles(plain.unwrapped.fullpath, HURDLES)
    plain.close()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "hurdles.xml"
        path.write_text(model)
        return make_gymnasium(
            "HalfCheetah-v5", pixels=pixels, max_steps=max_steps, xml_file=str(path), **options
        )


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


# The bars of HalfCheetahHurdle, along x.
HURDLES = (-15.0, -13.0, -9.0, -5.0, -1.0, 3.0, 7.0, 11.0, 15.0, 19.0, 23.0, 27.0)

# The mean and standard deviation of each entry were measured by
# `python benchmarks/observation_statistics.py`: 10 000 episodes of 50 uniformly random actions.
register_env(
    "ant",
    partial(
        make_gymnasium,
        "Ant-v5",
        terminate=False,
        include_cfrc_ext_in_observation=False,
        exclude_current_positions_from_observation=False,
    ),
    make_envpool=partial(
        make_envpool,
        "Ant-v5",
        terminate=False,
        use_contact_force=False,
        exclude_current_positions_from_observation=False,
    ),
    summary="gymnasium's Ant, observed by coordinates and velocities.",
    extra="mujoco",
    position=(0, 1),
    observation_norm={
        "loc": (
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
        "scale": (
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
    },
    max_steps=EPISODE_STEPS,
    terminates=False,
    goal_extent=50.0,
)
register_env(
    "half_cheetah",
    partial(make_gymnasium, "HalfCheetah-v5", exclude_current_positions_from_observation=False),
    make_envpool=partial(
        make_envpool, "HalfCheetah-v5", exclude_current_positions_from_observation=False
    ),
    summary="gymnasium's HalfCheetah, observed by coordinates and velocities.",
    extra="mujoco",
    position=(0,),
    observation_norm={
        "loc": (
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
        "scale": (
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
    },
    max_steps=EPISODE_STEPS,
    terminates=False,
    goal_extent=100.0,
)
_CHEETAH = find_env("half_cheetah")
register_env(
    "hurdle_course",
    partial(make_hurdle_course, exclude_current_positions_from_observation=False),
    summary="HalfCheetah with bars across its way.",
    extra="mujoco",
    position=_CHEETAH.position,
    observation_norm=_CHEETAH.observation_norm,
    max_steps=EPISODE_STEPS,
    terminates=False,
    goal_extent=_CHEETAH.goal_extent,
)
