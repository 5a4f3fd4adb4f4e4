"""One function that builds every environment."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from tensordict import unravel_key
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.envs import (
    ActionScaling,
    CatFrames,
    CatTensors,
    DoubleToFloat,
    EnvBase,
    ExcludeTransform,
    GymWrapper,
    ObservationNorm,
    ParallelEnv,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
    UnsqueezeTransform,
)

from torchrl_metra._checks import check_choice
from torchrl_metra._imports import import_object
from torchrl_metra._transforms import base_of, transforms_of
from torchrl_metra.envs.dm_control import suite_entry
from torchrl_metra.envs.envpool import envpool_entry
from torchrl_metra.envs.gymnasium import gymnasium_entry
from torchrl_metra.envs.mujoco import model_entry
from torchrl_metra.envs.pixels import PixelOptions
from torchrl_metra.envs.registry import EnvEntry, Position, find_env, registered_envs
from torchrl_metra.envs.statistics import NUM_ENVS, constants_of, random_steps, same_random_state
from torchrl_metra.envs.transforms.position import ReadPosition

Backend = Literal["envpool", "mujoco", "serial", "parallel"]
Norm = Mapping[str, Any] | Literal[False] | None

# What names of other environments begin with.
SOURCES: dict[str, Callable[[str, Mapping[str, Any]], EnvEntry]] = {
    "gym": gymnasium_entry,
    "dm_control": suite_entry,
    "envpool": envpool_entry,
    "mujoco": model_entry,
}


def make_env(
    env: str | Callable[..., Any],
    num_envs: int | None = None,
    *,
    backend: Backend | None = None,
    device: torch.device | str | None = None,
    pixels: PixelOptions | None = None,
    max_steps: int | None = None,
    terminate: bool | None = None,
    position: Position | None = None,
    normalize: Norm = None,
    options: Mapping[str, Any] | None = None,
) -> TransformedEnv:
    """Build an environment, ready for METRA.

    ``env`` is one of these:

    - the name of a registered one, see :func:`~torchrl_metra.registered_envs`. They are
      observed by their state (``"point"``, ``"windy_point"``, ``"ant"``, ``"half_cheetah"``,
      ``"quadruped_state"``, ``"humanoid_state"``, ``"dog_state"``, ``"fish_state"``), or
      by pixels (``"quadruped"``, ``"humanoid"``, ``"kitchen"``, ``"point_pixels"``), or are tasks
      to use skills for (``"point_goal"``, ``"ant_multi_goals"``, ``"half_cheetah_goal"``,
      ``"half_cheetah_hurdle"``, ``"quadruped_goal"``, ``"humanoid_goal"``, and
      ``"quadruped_state_goal"``, ``"humanoid_state_goal"`` from states), which add ``"to_goal"``
      and replace the reward, see :class:`~torchrl_metra.envs.ReachGoals`;
    - ``"mujoco:path/to/robot.xml"``, a MuJoCo model of yours, see
      :meth:`~torchrl_metra.MuJoCoTask.of`; ``options`` may have ``frame_skip``;
    - ``"gym:Walker2d-v5"``, any environment of gymnasium; ``"dm_control:walker-run"``, domain and
      task of DeepMind's control suite; ``"envpool:Ant-v5"``;
    - ``"package.module:function"``, a function of yours, of an installed package or a file in
      the current folder, or the function itself. It builds one environment anew at each call,
      TorchRL's or gymnasium's. Of ``num_envs``, ``device``, ``pixels``, ``max_steps`` and
      ``terminate`` it is given what was asked for and is among its parameters; with
      ``num_envs`` it builds the whole batch.

    All of them come out alike: ``float32`` actions, in [-1, 1] where they have bounds; the state
    as one normalized ``float32`` vector, ``"observation"``; and, for evaluation, the raw
    ``"position"``, where it is known (in the kitchen ``"tasks"``, see
    :data:`~torchrl_metra.envs.KITCHEN_TASKS`). Pictures are ``"pixels"``, ``uint8`` of shape
    ``[3 * frames, resolution, resolution]``, channels first and the newest frame last. The
    paper's environments end by truncation only, after 200 steps (kitchen: 50).

    Args:
        env (str or callable): what to build.
        num_envs (int, optional): number of environments side by side. ``None``
            (default) builds a single one without a batch dimension.

    Keyword Args:
        backend (str, optional): what steps the environments: ``"mujoco"`` (MuJoCo's own threads,
            see :class:`~torchrl_metra.MuJoCoPoolEnv`), ``"serial"`` (one after the other),
            ``"parallel"`` (a process each) or, for Ant and HalfCheetah, ``"envpool"`` (EnvPool's
            threads). Defaults to ``"mujoco"`` where it serves, for batches and for pictures;
            else to ``"serial"``, and for pictures to ``"parallel"``.
        device (torch.device, optional): device of the tensors.
        pixels (PixelOptions, optional): resolution, number of frames and quality of the
            pictures of a pixel task, which default to three frames of 64 x 64. With it, others
            have ``"pixels"`` beside their state; networks choose what they read.
        max_steps (int, optional): length of an episode. Defaults to that of the environment.
        terminate (bool, optional): whether a simulator may end an episode before that, such as
            when a robot falls. Defaults to what the environment does.
        position (optional): where ``"position"`` is: indices of the raw observation vector, such
            as ``[0, 1]``; or a function of a TensorDict of states, or its name
            ``"package.module:function"``. Gymnasium's and EnvPool's MuJoCo tasks, which leave x
            (and y) out by default, are built with them, and begin by them; so do the robots of
            the control suite. That is their default.
        normalize (optional): ``None`` (default) normalizes the observation by constants: those of
            the registered environment, for others the mean and the standard deviation in 10 000
            random steps, see :func:`~torchrl_metra.envs.measure_observations`. ``False`` does
            not. A mapping with ``"loc"`` and ``"scale"`` gives the constants, such as a
            :class:`~torchrl_metra.SkillPolicy`'s ``observation_norm``.
        options (mapping, optional): passed on to ``gymnasium.make``, as ``task_kwargs`` to the
            control suite, to EnvPool or to the function.

    Returns:
        The environment. Append a :class:`~torchrl_metra.SkillPrimer` to it.

    Raises:
        ValueError: if there is no such environment, or it cannot do what is asked for; if its
            actions are discrete; if its episodes have no end and ``max_steps`` is not given.
        ImportError: if the simulator is not installed; names the extra to install.

    Examples:
        >>> make_env("point", num_envs=4).rollout(3)["observation"].shape
        torch.Size([4, 3, 2])

        Any environment of gymnasium:

        >>> env = make_env("gym:MountainCarContinuous-v0", 2, max_steps=200, position=[0])
        >>> env.rollout(3)["position"].shape
        torch.Size([2, 3, 1])

        Pixel tasks need OpenGL and draw in threads of this process:

        >>> env = make_env("kitchen", 4, pixels=PixelOptions(resolution=128))  # doctest: +SKIP
        >>> env.reset()["pixels"].shape  # doctest: +SKIP
        torch.Size([4, 9, 128, 128])
    """
    if backend is not None:
        check_choice("backend", backend, get_args(Backend))
    options = dict(options or {})
    entry = resolve(env, options)
    if pixels is None and entry.observes == "pixels":
        pixels = PixelOptions()
    if max_steps is not None:
        entry = replace(entry, max_steps=max_steps)
    if position is not None:
        entry = replace(entry, position=position)
    if terminate is False and not entry.terminates:
        terminate = None
    plan = _Plan(env, entry, device, pixels, terminate, options)
    if backend is not None and plan.makes_batches:
        raise ValueError(f"{entry.name!r} has no backends, it steps a batch itself: leave it out.")
    norm = entry.observation_norm if normalize is None else normalize
    if norm is None and entry.observes == "state":
        norm = plan.measure()[0]
    if entry.max_steps is None and not plan.ends():
        raise ValueError(
            f"the episodes of {entry.name!r} have no time limit, and a skill lasts for one "
            "episode: give max_steps=200, or another number (on the command line "
            "env.max_steps=200)."
        )
    return plan.build(num_envs, backend, norm)


def resolve(env: str | Callable[..., Any], options: Mapping[str, Any]) -> EnvEntry:
    """All that is known about an environment, registered or not, before it is built."""
    if callable(env):
        return EnvEntry(name=getattr(env, "__name__", repr(env)), make=env)
    source, colon, task = env.partition(":")
    if not colon:
        entry = find_env(env)
        return entry if callable(entry.make) else entry.on_top_of(resolve(entry.make, options))
    if source in SOURCES:
        return SOURCES[source](task, options)
    return EnvEntry(name=env, make=env)


# What random steps have shown, so that a run and its evaluation do not both take them: constants
# that normalize the observation, and whether a time limit was met.
_MEASURED: dict[tuple[Any, ...], tuple[dict[str, Tensor] | None, bool]] = {}


@dataclass(frozen=True)
class _Plan:
    """An environment, and all that was asked of a single one."""

    env: str | Callable[..., Any]
    entry: EnvEntry
    device: torch.device | str | None
    pixels: PixelOptions | None
    terminate: bool | None
    options: dict[str, Any]

    def build(
        self, num_envs: int | None, backend: Backend | None, norm: Norm = None
    ) -> TransformedEnv:
        """Simulators, side by side, and what stands between them and the networks."""
        env = self._simulators(num_envs, backend)
        for transform in self._transforms(env, norm):
            env = env.append_transform(transform)
        if not isinstance(env, TransformedEnv):
            env = TransformedEnv(env)
        return env if self.device is None else env.to(self.device)

    def measure(self) -> tuple[dict[str, Tensor] | None, bool]:
        """What random steps show of the observation and of the ends of episodes."""
        # Drawing is slow, and changes neither.
        plan = self if self.entry.observes == "pixels" else replace(self, pixels=None)
        registered = registered_envs().get(plan.env)  # type: ignore[arg-type]
        source = plan.env if registered is None else registered.make  # A name may be given anew.
        key = (source, plan.entry.max_steps, plan.terminate, repr(plan.options))
        if key not in _MEASURED:
            backend: Backend = "serial" if plan.entry.make_pool is None else "mujoco"
            with same_random_state(), closing(plan.build(NUM_ENVS, backend)) as env:
                observations, truncates = random_steps(env)
            norm = None if observations is None else constants_of(observations)
            _MEASURED[key] = norm, truncates
        return _MEASURED[key]

    def ends(self) -> bool:
        """Whether episodes have a time limit, as far as can be told."""
        with same_random_state(), closing(self.build(None, None)) as env:
            limits = [t.max_steps for t in transforms_of(env) if isinstance(t, StepCounter)]
            base = base_of(env)
        limits.append(getattr(base, "max_steps", None))
        limits.append(getattr(getattr(base, "spec", None), "max_episode_steps", None))
        return any(limit is not None for limit in limits) or self.measure()[1]

    @property
    def makes_batches(self) -> bool:
        """Whether the environment's function builds a whole batch."""
        return self.entry.make_pool is None and "num_envs" in _parameters(self.entry.make)

    def _simulators(self, num_envs: int | None, backend: Backend | None) -> EnvBase:
        make = self.entry.make
        if self.makes_batches:
            size = {} if num_envs is None else {"num_envs": num_envs}
            return _build_one(make, {**self._arguments(make), **size})
        if backend is None:
            backend = self._default_backend(num_envs)
        if backend in ("envpool", "mujoco"):
            is_envpool = backend == "envpool"
            make_batch = self.entry.make_envpool if is_envpool else self.entry.make_pool
            if make_batch is None or (is_envpool and self.pixels is not None):
                raise ValueError(
                    f"{self.entry.name!r} does not run on backend {backend!r}, or not with pixels: "
                    "choose 'serial' or 'parallel'."
                )
            return make_batch(num_envs, **self._arguments(make_batch))
        # Episodes that never end apart are converted all at once.
        make_one = partial(_build_one, make, self._arguments(make), floats=self.entry.terminates)
        if num_envs is None:
            return make_one()
        return (SerialEnv if backend == "serial" else ParallelEnv)(num_envs, make_one)

    def _default_backend(self, num_envs: int | None) -> Backend:
        draws = self.pixels is not None
        if self.entry.make_pool is not None and (num_envs is not None or draws):
            return "mujoco"
        # Pictures beside the state of a registered task are to look at, and few.
        is_to_look_at = self.env in registered_envs() and self.entry.observes == "state"
        return "parallel" if draws and not is_to_look_at else "serial"

    def _arguments(self, make: Callable[..., Any] | str) -> dict[str, Any]:
        """What a function is given, of what was asked for."""
        accepted = _parameters(make)
        if self.terminate is not None and "terminate" not in accepted:
            raise ValueError(
                f"{self.entry.name!r} cannot be told whether to terminate: its function has no "
                "parameter 'terminate'."
            )
        asked = {
            "device": self.device,
            "pixels": self.pixels,
            "max_steps": self.entry.max_steps,
            "terminate": self.terminate,
        }
        given = {key: asked[key] for key in asked if key in accepted and asked[key] is not None}
        return {**given, **self.options}

    def _transforms(self, env: EnvBase, norm: Norm) -> list[Transform]:
        name = self.entry.name
        leaves = dict(env.observation_spec.items(True, True))
        found: list[Transform] = []
        max_steps = self.entry.max_steps
        if max_steps is not None and "max_steps" not in _parameters(self.entry.make):
            found.append(StepCounter(max_steps))
        found += _to_floats(env)
        state = _state_keys(leaves, env.batch_dims) if self.entry.observes == "state" else []
        if state and state != ["observation"]:
            found += _concatenate(state, leaves, env.batch_dims)
            if "position" in state and self.entry.position is None:
                found.append(ExcludeTransform("position"))  # A state, and no place.
        if self.entry.position is not None:
            found.append(ReadPosition(self.entry.position))
        if _has_other_bounds(env.action_spec, name):
            found.append(ActionScaling())
        if norm and state:
            size = sum(leaves[key].shape[env.batch_dims :].numel() for key in state)
            found.append(_normalize(norm, size, env.device, name))
        if self.pixels is not None:
            shape = (*env.batch_size, 3, self.pixels.resolution, self.pixels.resolution)
            pictures = leaves.get("pixels")
            if pictures is None or pictures.dtype is not torch.uint8 or pictures.shape != shape:
                raise ValueError(
                    f"{name!r} must show 'pixels', torch.uint8 of shape {list(shape)} for "
                    f"{self.pixels}, but its 'pixels' are {pictures}. Draw them in the function "
                    "that builds it, which may have a parameter 'pixels'."
                )
            # The latest along the channels, the newest last.
            found.append(CatFrames(self.pixels.frames, -3, in_keys=["pixels"], padding="same"))
        if self.entry.transform is not None:
            found.append(self.entry.transform())
        return found


def _parameters(function: Any) -> list[str]:
    """Names of the arguments that a function takes."""
    if isinstance(function, str):
        function = import_object(function)
    if isinstance(function, partial):
        # Those that stand by position are taken.
        return _parameters(function.func)[len(function.args) :]
    # Not the signature of a class: TorchRL's metaclass hides it.
    is_class = inspect.isclass(function)
    signature = inspect.signature(function.__init__ if is_class else function)
    return list(signature.parameters)[is_class:]


def _build_one(
    make: Callable[..., Any] | str, arguments: dict[str, Any], floats: bool = False
) -> EnvBase:
    """Call a function that builds an environment, perhaps in a worker process.

    With ``floats`` its numbers are converted there: TorchRL mixes them with ours where some
    episodes have ended.
    """
    env = (import_object(make) if isinstance(make, str) else make)(**arguments)
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is not None and isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        env = GymWrapper(env)
    for transform in _to_floats(env) if floats else []:
        env = env.append_transform(transform)
    return env


def _to_floats(env: EnvBase) -> list[Transform]:
    leaves = env.observation_spec.items(True, True)
    keys = [key for key, leaf in leaves if leaf.dtype is torch.float64]
    if env.reward_spec.dtype is torch.float64:
        keys.append(env.reward_key)
    if env.action_spec.dtype is torch.float64:
        return [DoubleToFloat(in_keys=keys, in_keys_inv=[env.action_key])]
    return [DoubleToFloat(in_keys=keys)] if keys else []


def _state_keys(leaves: dict[NestedKey, TensorSpec], batch_dims: int) -> list[NestedKey]:
    """The entries that make up the state: vectors and numbers, but not what evaluation reads."""
    keys = [
        key
        for key, leaf in leaves.items()
        if leaf.dtype.is_floating_point and leaf.ndim <= batch_dims + 1
    ]
    if "observation" in keys or (keys == ["position"] and "pixels" in leaves):
        keys = [key for key in keys if key != "position"]
    return keys


def _concatenate(
    state: list[NestedKey], leaves: dict[NestedKey, TensorSpec], batch_dims: int
) -> list[Transform]:
    """The state in one vector. Its parts stay: an environment may read them in the next step."""
    numbers = [key for key in state if leaves[key].ndim == batch_dims]
    vector_of = {key: unravel_key(("vectors", key)) for key in numbers}
    whole = CatTensors(
        [vector_of.get(key, key) for key in state], "observation", del_keys=False, sort=False
    )
    if not numbers:
        return [whole]
    return [UnsqueezeTransform(-1, in_keys=numbers, out_keys=list(vector_of.values())), whole]


def _has_other_bounds(spec: TensorSpec, name: str) -> bool:
    """Whether actions have bounds other than -1 and 1."""
    if not isinstance(spec, Bounded | Unbounded) or not spec.dtype.is_floating_point:
        raise ValueError(
            f"the actions of {name!r} are not a vector of floats but {type(spec).__name__}: build "
            "the environment, a policy and critics for them yourself, as docs/guides/"
            "your_environment.md#actions does for discrete ones."
        )
    low, high = spec.space.low, spec.space.high
    is_unit = bool((low == -1).all() and (high == 1).all())
    is_finite = bool((low.isfinite() & high.isfinite()).all())
    return isinstance(spec, Bounded) and is_finite and not is_unit


def _normalize(
    norm: Mapping[str, Any], size: int, device: torch.device | None, name: str
) -> ObservationNorm:
    constants = {
        key: torch.as_tensor(norm[key], dtype=torch.float32, device=device)
        for key in ("loc", "scale")
    }
    for key, value in constants.items():
        if value.shape != (size,):
            raise ValueError(
                f"normalize[{key!r}] is of shape {list(value.shape)}, but observations of "
                f"{name!r} have {size} entries."
            )
    return ObservationNorm(**constants, in_keys=["observation"], standard_normal=True)
