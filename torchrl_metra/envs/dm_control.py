"""DeepMind's control suite."""

from __future__ import annotations

import colorsys
import functools
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import DMControlWrapper

from torchrl_metra._extras import require
from torchrl_metra._private import SpecsMixin, suite_step_limit
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask, States, root_coordinates
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.registry import EnvEntry
from torchrl_metra.envs.rendering import Renderer, following_camera

if TYPE_CHECKING:
    import mujoco

FLOOR_HALF_SIZE = 15.0
RAINBOW_HALF_SIZE = 20.0
WAY_HALF_SIZE = 60.0


class SuiteEnv(SpecsMixin, DMControlWrapper):
    """One environment of a task of the control suite, observed by its state.

    For the tasks that :class:`SuiteTask` cannot put on MuJoCo's threads. A simulation that
    diverges ends its episode by truncation, with the last good observation, no reward and a
    warning. Rewards and actions are ``float32``.

    Entries: ``"observation"``, ``float32``: where the root of a robot is in the plane, which the
    suite leaves out, then the suite's own observations; and with a renderer ``"pixels"``, ``uint8``
    of shape ``[3, height, width]``. Build it by :func:`make_suite`.

    Args:
        env (dm_control.rl.control.Environment): the task.
        renderer (Renderer, optional): draws the pictures; closed with the environment.

    Raises:
        ValueError: by a step, if the action is not finite. MuJoCo would take it for zero.
    """

    def __init__(self, env: Any, renderer: Renderer | None) -> None:
        self.simulator = env
        self.renderer = renderer
        self._last_observation: dict[str, Tensor] = {}
        super().__init__(env=env)

    @property
    def max_steps(self) -> int | None:
        """After how many steps episodes are truncated."""
        return step_limit(self.simulator)

    def adjust_specs(self) -> None:
        state = self._read_state(self.full_observation_spec.zero())
        specs = Composite(observation=Unbounded(state.shape))
        if self.renderer is not None:
            shape = (3, self.renderer.height, self.renderer.width)
            specs["pixels"] = Bounded(0, 255, shape=shape, dtype=torch.uint8)
        self.observation_spec = specs
        self.reward_spec = Unbounded(shape=(1,))
        self.action_spec = self.full_action_spec["action"].to(torch.float32)

    def read_obs(self, observations: Any) -> dict[str, Tensor]:
        """What is shown for the suite's observations."""
        if not self._has_diverged():
            self._last_observation = {"observation": self._read_state(observations)}
            if self.renderer is not None:
                picture = self.renderer.render(self.simulator.physics.data.ptr)
                self._last_observation["pixels"] = torch.from_numpy(picture.transpose(2, 0, 1))
        return dict(self._last_observation)

    @functools.cached_property
    def _root(self) -> list[int]:
        return root_coordinates(self.simulator.physics.model.ptr)

    def _read_state(self, observations: Any) -> Tensor:
        root = self.simulator.physics.data.qpos[self._root]
        state = np.concatenate([root, *map(np.ravel, observations.values())])
        return torch.as_tensor(state, dtype=torch.float32)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        if not action.isfinite().all():
            raise ValueError(f"actions must be finite, got {action.tolist()}.")
        with self.simulator.physics.suppress_physics_errors():
            out = super()._step(tensordict)
        if self._has_diverged():
            warnings.warn(
                "The simulation diverged: its episode is truncated.", RuntimeWarning, stacklevel=2
            )
            for key in ("truncated", "done"):
                out[key] = torch.ones_like(out[key])
            out["reward"] = torch.zeros_like(out["reward"])
        return out

    def _has_diverged(self) -> bool:
        kinds = require("mujoco", "mujoco").mjtWarning
        # MuJoCo counts these since the last reset, and repairs the state by resetting it.
        counts = self.simulator.physics.data.ptr.warning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)
        return any(counts[int(kind)].number for kind in bad)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the OpenGL context and close the wrapped environment."""
        if self.renderer is not None:
            self.renderer.close()
        super().close(raise_if_closed=raise_if_closed)


class SuiteTask:
    """A task of the control suite on MuJoCo's threads: its own start, observation and reward.

    The suite's functions are written for one simulation. They are asked for each state in turn,
    after what the suite computes at the end of a step: ``mj_step1``, with which positions,
    velocities and their sensors are those of the present state, and forces and accelerations
    those of the last substep.

    Args:
        env (dm_control.rl.control.Environment): the task.
    """

    def __init__(self, env: Any) -> None:
        self.physics, self.task = env.physics, env.task
        self.model: mujoco.MjModel = env.physics.model.ptr
        self.frame_skip = round(env.control_timestep() / env.physics.timestep())
        self._root = root_coordinates(self.model)
        # Looked up once: they are needed for each state.
        self._step1 = require("mujoco", "dm-control").mj_step1
        data = self._data = env.physics.data.ptr
        self._parts = data.qpos, data.qvel, data.act, data.sensordata
        self._control = data.ctrl

    @property
    def is_poolable(self) -> bool:
        """Whether states of one model are all that there is to the task.

        Others put a target somewhere in the model for each episode, or do more in a step than to
        act.
        """
        base = require("dm_control.suite.base", "dm-control").Task
        hooks = ("before_step", "after_step", "get_termination", "action_spec", "step_spec")
        if any(
            getattr(type(self.task), name, None) is not getattr(base, name, None) for name in hooks
        ):
            return False
        kept = []
        for _ in range(3):
            with self.physics.reset_context():
                self.task.initialize_episode(self.physics)
            kept.append((_bytes_of(self.model), _attributes(self.task)))
        return kept[0] == kept[1] == kept[2]

    def pooled(self, **parts: Any) -> MuJoCoTask:
        """The task; ``parts`` are what differs from the suite's."""
        suites = {
            "frame_skip": self.frame_skip,
            "observation": self.observation,
            "reset": self.reset,
            "reward": self.reward,
        }
        return MuJoCoTask.of(self.model, **suites | parts)

    def reset(
        self, model: mujoco.MjModel, data: mujoco.MjData, random: np.random.Generator
    ) -> None:
        self.task.random.seed(random.integers(2**32))
        with self.physics.reset_context():
            self.task.initialize_episode(self.physics)
        for name in ("qpos", "qvel", "act"):
            getattr(data, name)[:] = getattr(self.physics.data, name)

    def observation(self, *states: NDArray[Any]) -> NDArray[Any]:
        observed = []
        for row in zip(*states, strict=True):
            self._show(row)
            parts = self.task.get_observation(self.physics).values()
            observed.append(np.concatenate([np.ravel(part) for part in parts]))
        return np.concatenate([states[0][:, self._root], np.stack(observed)], axis=1)

    def reward(self, before: States, after: States, control: NDArray[Any]) -> NDArray[Any]:
        rewards = []
        for *row, controls in zip(*after, control, strict=True):
            self._show(row, controls)
            rewards.append(self.task.get_reward(self.physics))
        return np.array(rewards)

    def _show(self, state: Any, control: NDArray[Any] | float = 0.0) -> None:
        for part, values in zip(self._parts, state, strict=True):
            part[:] = values
        self._control[:] = control
        self._step1(self.model, self._data)


def _bytes_of(model: mujoco.MjModel) -> bytes:
    mujoco = require("mujoco", "mujoco")
    buffer = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def _attributes(task: Any) -> str:
    return repr({key: value for key, value in vars(task).items() if value is not task.random})


def step_limit(env: Any) -> int | None:
    """After how many steps the suite truncates episodes."""
    limit = suite_step_limit(env)
    return None if math.isinf(limit) else math.ceil(limit)


def make_suite(
    task: str, *, pixels: PixelOptions | None = None, max_steps: int | None = None, **options: Any
) -> SuiteEnv:
    """Build one task of the control suite; see :func:`~torchrl_metra.make_env`."""
    if max_steps is not None:
        timestep = load(task, options).control_timestep()
        # Half a step less, whichever way the quotient of the two is rounded.
        options["time_limit"] = (max_steps - 0.5) * timestep
    env = load(task, options)
    if pixels is None:
        return SuiteEnv(env, None)
    model = env.physics.model.ptr
    recolour_floor(model)
    return SuiteEnv(env, pixels.renderer(model, following_camera(model)))


def make_suite_pool(
    task: str,
    num_envs: int | None = None,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int | None = None,
    **options: Any,
) -> MuJoCoPoolEnv:
    """Build a batch of a task of the control suite on MuJoCo's threads."""
    env = load(task, options)
    if pixels is not None:
        recolour_floor(env.physics.model.ptr)
    limit = step_limit(env) if max_steps is None else max_steps
    return MuJoCoPoolEnv(SuiteTask(env).pooled(), num_envs, max_steps=limit, pixels=pixels)


def suite_entry(task: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of the control suite."""
    root_size, is_poolable = _examine(task)
    return EnvEntry(
        name=f"dm_control:{task}",
        make=partial(make_suite, task),
        make_pool=partial(make_suite_pool, task) if is_poolable else None,
        position=tuple(range(root_size)) or None,
    )


@functools.cache
def _examine(task: str) -> tuple[int, bool]:
    suite_task = SuiteTask(load(task, {}))
    return len(root_coordinates(suite_task.model)), suite_task.is_poolable


def load(task: str, options: Mapping[str, Any]) -> Any:
    """The suite's environment of ``"walker-run"``."""
    with warnings.catch_warnings():
        # On a machine without a display dm_control complains when it is imported.
        warnings.filterwarnings("ignore", message=".*DISPLAY")
        suite = require("dm_control.suite", "dm-control")
    domain, _, name = task.partition("-")
    return suite.load(domain, name, task_kwargs=dict(options))


def recolour_floor(model: mujoco.MjModel) -> None:
    """Give each place of the floor a color of its own, so that pictures tell the position.

    The floor becomes a plane of 30 m by 30 m around the origin, and nothing is drawn beyond
    it. Its texture changes in red along one axis and in green along the other. To the
    simulation it has no bounds. A model without a floor stays as it is.

    Args:
        model (mujoco.MjModel): a model of the suite, changed in place; before a renderer
            has uploaded its textures.
    """
    _paint_floor(model, (FLOOR_HALF_SIZE, FLOOR_HALF_SIZE), _red_and_green)


def lay_rainbow(model: mujoco.MjModel) -> None:
    """Give the floor of a planar robot the colors of a rainbow along its way.

    From red at -20 m over green at the start to violet at 20 m, and on in these two to 60 m. The
    authors' rainbow ends at 15 m.

    Args:
        model (mujoco.MjModel): see :func:`recolour_floor`.
    """
    _paint_floor(model, (WAY_HALF_SIZE, 1.0), _rainbow)


def _paint_floor(
    model: mujoco.MjModel,
    half_size: tuple[float, float],
    paint: Callable[[int, int], NDArray[np.float64]],
) -> None:
    grids = [index for index in range(model.nmat) if model.mat(index).name == "grid"]
    is_floor = model.geom_type == require("mujoco", "dm-control").mjtGeom.mjGEOM_PLANE
    floors = (is_floor & np.isin(model.geom_matid, grids)).nonzero()[0]
    if not len(floors):
        return
    floor = floors[0]
    model.geom_size[floor, :2] = half_size
    model.geom_pos[floor, :2] = 0.0  # Planar robots' begins where they do.
    material = model.geom_matid[floor]
    # One copy of the texture over the whole plane, not one per meter.
    model.mat_texuniform[material] = False
    model.mat_texrepeat[material] = 1.0
    texture = model.tex("grid").id
    colors = (255 * paint(model.tex_height[texture], model.tex_width[texture])).astype(np.uint8)
    start = model.tex_adr[texture]
    model.tex_data[start : start + colors.size] = colors.ravel()


def _red_and_green(height: int, width: int) -> NDArray[np.float64]:
    colors = np.full((height, width, 3), 128 / 255)
    colors[..., 0] = np.arange(height)[:, None] / height
    colors[..., 1] = np.arange(width) / width
    return colors


def _rainbow(height: int, width: int) -> NDArray[np.float64]:
    places = np.linspace(-WAY_HALF_SIZE, WAY_HALF_SIZE, width) / RAINBOW_HALF_SIZE
    hues = 0.4 * (1 + places.clip(-1, 1))
    row = np.array([colorsys.hsv_to_rgb(hue, 1.0, 1.0) for hue in hues])
    return np.broadcast_to(row, (height, width, 3))
