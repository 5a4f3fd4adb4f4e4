"""Any MuJoCo model, many at a time: MuJoCo's own threads step them all in one process."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_metra._checks import check_integer, check_type
from torchrl_metra._extras import require
from torchrl_metra.envs.mujoco_task import MuJoCoTask, States, load_model, root_coordinates
from torchrl_metra.envs.pixels import Pictures, PixelOptions
from torchrl_metra.envs.registry import EnvEntry

EPISODE_STEPS = 200


class MuJoCoPoolEnv(EnvBase):
    """A batch of one MuJoCo model that MuJoCo's own thread pool steps (``mujoco.rollout``).

    All in this process, at the speed of the physics. The states of all environments go in, and
    those after ``frame_skip`` substeps come out; in between Python waits without its global lock.
    Each environment has random numbers of its own, so an episode depends on the seed and on how
    many its environment had before, not on the number of threads. An episode goes on from a
    checkpoint exactly.

    Entries: those of the task, ``float32`` or ``bool``; with ``pixels`` also ``"pixels"``,
    ``uint8`` of shape ``[3, resolution, resolution]``, drawn in threads of this process.
    Actions are in [-1, 1]. An action lasts for all substeps. The solver starts each step anew,
    without the forces of the step before (``qacc_warmstart`` is zero).

    A simulation that diverges ends its own episode, by truncation, with the last good observation,
    no reward and a warning. The others go on.

    Args:
        task (MuJoCoTask): what to simulate.
        num_envs (int, optional): number of simulations, or ``None`` (default) for a single one
            without a batch dimension.

    Keyword Args:
        max_steps (int, optional): after how many steps episodes are truncated. Defaults to 200.
        terminate (bool, optional): whether the task may end an episode before that. Defaults to
            ``True``.
        pixels (PixelOptions, optional): how pictures look. Defaults to ``None``: there are none.
        num_threads (int, optional): of simulation, and of drawing. Defaults to torch's number of
            threads when the environment is built, at most one for each simulation.

    Raises:
        ValueError: by a step, if an action is not finite. MuJoCo would take it for zero.

    Examples:
        >>> env = MuJoCoPoolEnv(MuJoCoTask.of("examples/tripod.xml"), num_envs=4)
        >>> env.rollout(3)["next", "position"].shape
        torch.Size([4, 3, 2])
    """

    #: Episodes go on from a checkpoint, since ``state_dict()`` holds all that an episode is.
    is_resumable = True

    def __init__(
        self,
        task: MuJoCoTask,
        num_envs: int | None = None,
        *,
        max_steps: int | None = EPISODE_STEPS,
        terminate: bool = True,
        pixels: PixelOptions | None = None,
        num_threads: int | None = None,
    ) -> None:
        check_type("task", task, MuJoCoTask, "a MuJoCoTask; MuJoCoTask.of(model) makes one")
        for name, value in (("num_envs", num_envs), ("max_steps", max_steps)):
            if value is not None:
                check_integer(name, value)
        batch = torch.Size([] if num_envs is None else [num_envs])
        super().__init__(batch_size=batch, device=torch.device("cpu"))
        mujoco, rollout = require("mujoco", "mujoco"), require("mujoco.rollout", "mujoco")
        self.task = task
        self.max_steps = max_steps
        self._terminated = task.terminated if terminate else None
        size, model = batch.numel(), task.model
        num_threads = min(num_threads or torch.get_num_threads(), size)
        self._pool = rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(num_threads)]
        self._models = [model] * size
        self._pictures: Pictures | None = None
        self._film: Pictures | None = None
        if pixels is not None:
            self._pictures = Pictures(model, pixels, task.camera, num_threads=num_threads)
        # Time, qpos, qvel, act and what plugins keep. Then what a step needs and gives.
        self._spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
        ends = np.cumsum([1, model.nq, model.nv, model.na]).tolist()
        self._parts = [slice(*part) for part in itertools.pairwise(ends)]
        self._state = np.zeros((size, mujoco.mj_stateSize(model, self._spec)))
        self._sensordata = np.zeros((size, model.nsensordata))
        self._controls = np.zeros((size, task.frame_skip, model.nu))
        self._rolled = np.zeros((size, task.frame_skip, self._state.shape[1]))
        self._rolled_sensordata = np.zeros((size, task.frame_skip, model.nsensordata))
        # Of each simulation: steps since its reset, and episodes that it had.
        self._steps = np.zeros(size, dtype=np.int64)
        self._episodes = np.zeros(size, dtype=np.int64)
        self._seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._make_specs(batch)

    def _make_specs(self, batch: torch.Size) -> None:
        specs = {
            key: Unbounded((*batch, *value.shape[1:]), dtype=value.dtype)
            for key, value in self._shown(self._state, self._sensordata).items()
        }
        if self._pictures is not None:
            shape = (*batch, *self._pictures.shape)
            specs["pixels"] = Bounded(0, 255, shape=shape, dtype=torch.uint8)
        self.observation_spec = Composite(specs, shape=batch)
        self.action_spec = Bounded(-1.0, 1.0, shape=(*batch, self.task.model.nu))
        self.reward_spec = Unbounded(shape=(*batch, 1))
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool)
        flags = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch)

    @property
    def num_threads(self) -> int:
        """How many threads simulate."""
        return len(self._data)

    @property
    def states(self) -> States:
        """The present states, views of the environment's own memory."""
        return self._split(self._state, self._sensordata)

    def _split(self, state: NDArray[Any], sensordata: NDArray[Any]) -> States:
        qpos, qvel, act = (state[:, part] for part in self._parts)
        return States(qpos, qvel, act, sensordata)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        numbers = np.arange(len(self._state))
        if tensordict is not None and "_reset" in tensordict:
            numbers = numbers[tensordict["_reset"].cpu().reshape(-1).numpy()]
        for number in numbers.tolist():
            self._begin(number)
        return self._observe(numbers)

    def observe(self) -> TensorDict:
        """What the present :attr:`states` show, which may have been changed in place.

        Sensors keep what they measured before.
        """
        return self._observe(np.arange(len(self._state)))

    def draw(self, look: PixelOptions) -> Tensor:
        """Pictures of the present :attr:`states`, ``uint8`` of shape ``[*B, 3, H, W]``.

        Args:
            look (PixelOptions): how they look; that of observations stays as it is.
        """
        if self._film is None or self._film.options != look:
            if self._film is not None:
                self._film.close()
            self._film = Pictures(self.task.model, look, self.task.camera)
        pictures = self._film.draw(self._state)
        return pictures if self.batch_size else pictures[0]

    def _observe(self, drawn: NDArray[np.int64]) -> TensorDict:
        shown = self._shown(self._state, self._sensordata)
        if self._pictures is not None:
            # After a reset TorchRL drops what simulations show that go on: they are not drawn.
            pictures = torch.zeros(len(self._state), *self._pictures.shape, dtype=torch.uint8)
            pictures[drawn] = self._pictures.draw(self._state[drawn])
            shown["pixels"] = pictures
        return self._tensordict(shown)

    def _begin(self, number: int) -> None:
        """Start an episode."""
        mujoco = require("mujoco", "mujoco")
        model, data = self.task.model, self._data[0]
        random = np.random.default_rng((self._seed, number, self._episodes[number]))
        mujoco.mj_resetData(model, data)
        self.task.reset(model, data, random)
        # Not at 0, to which MuJoCo resets what diverges.
        data.time = model.opt.timestep
        mujoco.mj_forward(model, data)
        mujoco.mj_getState(model, data, self._state[number], self._spec)
        self._sensordata[number] = data.sensordata
        self._steps[number] = 0
        self._episodes[number] += 1

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action").detach().cpu().double().numpy()
        if not np.isfinite(action).all():
            raise ValueError(f"actions must be finite, got {action.tolist()}.")
        before = self.states
        control = self.task.control(action.reshape(len(self._state), -1), before)
        state, sensordata, diverged = self._simulate(control)
        after = self._split(state, sensordata)
        shown = self._shown(state, sensordata)
        reward = np.zeros(len(state), dtype=np.float32)
        if self.task.reward is not None:
            reward += self.task.reward(before, after, control)
            reward[diverged] = 0.0
        terminated = np.zeros(len(state), dtype=np.bool_)
        if self._terminated is not None:
            terminated |= self._terminated(*after) & ~diverged
        self._steps += 1
        truncated = diverged
        if self.max_steps is not None:
            truncated = truncated | (self._steps >= self.max_steps)
        self._state, self._sensordata = state, sensordata
        if self._pictures is not None:
            shown["pixels"] = self._pictures.draw(state)
        flags = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        for key, value in {"reward": reward, **flags}.items():
            shown[key] = torch.from_numpy(value).unsqueeze(-1)
        return self._tensordict(shown)

    def _simulate(self, control: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """States and sensors after a step, and which of them are as before: those that diverged."""
        self._controls[:] = control[:, None]
        self._pool.rollout(
            self._models,
            self._data,
            self._state,
            self._controls,
            nstep=self.task.frame_skip,
            state=self._rolled,
            sensordata=self._rolled_sensordata,
            skip_checks=True,  # Shapes and types are right, and copies would cost.
        )
        state, sensordata = self._rolled[:, -1].copy(), self._rolled_sensordata[:, -1].copy()
        # What diverges MuJoCo resets, time included; after any other warning it stops.
        timestep = self.task.model.opt.timestep
        late = state[:, 0] - self._state[:, 0] - self.task.frame_skip * timestep
        diverged = ~(np.abs(late) < timestep / 2) | ~np.isfinite(state).all(axis=1)
        if diverged.any():
            state[diverged], sensordata[diverged] = (
                self._state[diverged],
                self._sensordata[diverged],
            )
            warnings.warn(
                f"{diverged.sum()} of {len(state)} simulations diverged: their episodes are "
                "truncated.",
                RuntimeWarning,
                stacklevel=2,
            )
        return state, sensordata, diverged

    def _shown(self, state: NDArray[Any], sensordata: NDArray[Any]) -> dict[str, Tensor]:
        """What the task observes."""
        observed = self.task.observation(*self._split(state, sensordata))
        entries = observed if isinstance(observed, Mapping) else {"observation": observed}
        return {
            key: torch.from_numpy(value if value.dtype == np.bool_ else value.astype(np.float32))
            for key, value in entries.items()
        }

    def _tensordict(self, shown: dict[str, Tensor]) -> TensorDict:
        if not self.batch_size:
            shown = {key: value.squeeze(0) for key, value in shown.items()}
        return TensorDict(shown, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._seed = seed
            self._episodes[:] = 0

    def get_extra_state(self) -> dict[str, Any]:
        """All that an episode is, for ``state_dict()``."""
        names = ("_state", "_sensordata", "_steps", "_episodes")
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in names}
        return {**arrays, "_seed": self._seed}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """What :meth:`get_extra_state` returned."""
        for name, value in state.items():
            if isinstance(value, Tensor):
                value = value.cpu().numpy().copy()
                if value.shape != getattr(self, name).shape:
                    raise ValueError(
                        f"a state of {len(value)} simulations does not fit {len(self._state)} of "
                        "this model: build the environment as it was."
                    )
            setattr(self, name, value)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Stop the threads and free the OpenGL contexts."""
        self._pool.close()
        for pictures in (self._pictures, self._film):
            if pictures is not None:
                pictures.close()
        super().close(raise_if_closed=raise_if_closed)


def make_model(
    path: str,
    num_envs: int | None = None,
    *,
    pixels: PixelOptions | None = None,
    max_steps: int = EPISODE_STEPS,
    frame_skip: int | None = None,
) -> MuJoCoPoolEnv:
    """Build environments of a model's file; see :func:`~torchrl_metra.make_env`."""
    task = MuJoCoTask.of(path, frame_skip=frame_skip)
    return MuJoCoPoolEnv(task, num_envs, max_steps=max_steps, pixels=pixels)


def model_entry(path: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a model's file."""
    make = partial(make_model, path)
    return EnvEntry(
        name=f"mujoco:{path}",
        make=make,
        make_pool=make,
        # The observation begins with ``qpos``.
        position=tuple(root_coordinates(load_model(Path(path)))) or None,
        max_steps=EPISODE_STEPS,
        terminates=False,
    )
