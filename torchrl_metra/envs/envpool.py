"""EnvPool's C++ environments as a TorchRL environment."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_metra._checks import check_integer, check_type
from torchrl_metra._extras import require
from torchrl_metra.envs.registry import EnvEntry

__all__ = ["EnvPoolEnv", "envpool_entry", "make_envpool"]

EXCLUDES = "exclude_current_positions_from_observation"
TERMINATES = "terminate_when_unhealthy"


class EnvPoolEnv(EnvBase):
    """A batch of environments that EnvPool steps in its own C++ threads.

    Covers tasks with one continuous action and one flat observation, as EnvPool's
    MuJoCo tasks are. Unlike TorchRL's ``MultiThreadedEnv`` it needs neither ``gym``
    nor ``treevalue``.

    Args:
        task_id (str): EnvPool's name of the task, such as ``"HalfCheetah-v5"``.
        num_envs (int): number of environments.

    Keyword Args:
        num_threads (int, optional): C++ threads; 0 (default) leaves it to EnvPool.
        seed (int, optional): seed of the first environment. Defaults to 0.
        **options: passed on to ``envpool.make_gymnasium``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, or if EnvPool knows no such task, or one of
            another kind.
        ImportError: if EnvPool is not installed.

    Examples:
        >>> env = EnvPoolEnv("HalfCheetah-v5", num_envs=2)
        >>> env.rollout(3)["next", "observation"].shape
        torch.Size([2, 3, 17])
    """

    def __init__(
        self,
        task_id: str,
        num_envs: int,
        *,
        num_threads: int = 0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        check_type("task_id", task_id, str, "a string")
        check_integer("num_envs", num_envs)
        check_integer("num_threads", num_threads, minimum=0)
        check_integer("seed", seed, minimum=0)
        super().__init__(batch_size=torch.Size([num_envs]), device=torch.device("cpu"))
        envpool = require("envpool", "envpool")
        if task_id not in envpool.list_all_envs():
            raise ValueError(f"EnvPool has no task_id {task_id!r}: see envpool.list_all_envs().")
        self._make = partial(
            envpool.make_gymnasium, task_id, num_envs=num_envs, num_threads=num_threads, **options
        )
        self._env = self._make(seed=seed)
        if self._env.observation_space.shape is None or not self._env.action_space.shape:
            raise ValueError(
                f"EnvPool's {task_id} has no flat observation or no continuous action, but "
                f"{self._env.observation_space} and {self._env.action_space}."
            )
        #: After how many steps episodes are truncated.
        self.max_steps: int = self._env.config["max_episode_steps"]
        batch = (num_envs,)
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool)
        self.observation_spec = Composite(
            observation=Unbounded(shape=(*batch, *self._env.observation_space.shape)),
            shape=batch,
        )
        space = self._env.action_space
        self.action_spec = Bounded(
            torch.as_tensor(space.low, dtype=torch.float32).expand(*batch, -1),
            torch.as_tensor(space.high, dtype=torch.float32).expand(*batch, -1),
        )
        self.reward_spec = Unbounded(shape=(*batch, 1))
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch
        )

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        # The simulator is on the CPU, wherever the environment was moved.
        observation = torch.zeros(self.observation_spec["observation"].shape, device="cpu")
        if reset is None or reset.all():
            values, _ = self._env.reset()
            observation.copy_(torch.from_numpy(values))
        else:
            index = reset.cpu().reshape(-1).nonzero().squeeze(-1)
            values, _ = self._env.reset(index.numpy())
            observation[index] = torch.from_numpy(values).float()
        return TensorDict(
            {"observation": observation}, batch_size=self.batch_size, device=self.device
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action").detach().cpu().numpy().astype(np.float64)
        observation, reward, terminated, truncated, _ = self._env.step(action)
        terminated = torch.from_numpy(terminated).unsqueeze(-1)
        truncated = torch.from_numpy(truncated).unsqueeze(-1)
        return TensorDict(
            {
                "observation": torch.from_numpy(observation).float(),
                "reward": torch.from_numpy(reward).float().unsqueeze(-1),
                "done": terminated | truncated,
                "terminated": terminated,
                "truncated": truncated,
            },
            batch_size=self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        # EnvPool takes its seed at construction only.
        if seed is not None:
            self._env.close()
            self._env = self._make(seed=seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Stop EnvPool's threads."""
        if not self.is_closed:
            self._env.close()
        super().close(raise_if_closed=raise_if_closed)


def make_envpool(
    task_id: str,
    num_envs: int | None = None,
    *,
    max_steps: int | None = None,
    terminate: bool | None = None,
    **options: Any,
) -> EnvPoolEnv:
    """Build a batch of a task of EnvPool; see :func:`~torchrl_metra.make_env`."""
    if num_envs is None:
        raise ValueError("EnvPool's environments are always batched: give num_envs.")
    if max_steps is not None:
        options["max_episode_steps"] = max_steps
    if terminate is not None:
        if TERMINATES not in _config(task_id):
            raise ValueError(
                f"EnvPool's {task_id} has no {TERMINATES}, but terminate={terminate} was given: "
                "leave it out."
            )
        options[TERMINATES] = terminate
    return EnvPoolEnv(task_id, num_envs, **options)


def envpool_entry(task_id: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of EnvPool.

    Raises:
        ImportError: if EnvPool is not installed; names the extra.
        ValueError: if it has no such task.
    """
    config = _config(task_id)
    make, position = partial(make_envpool, task_id), None
    if EXCLUDES in config and EXCLUDES not in options:
        make = partial(make, **{EXCLUDES: False})
        make_spec = require("envpool", "envpool").make_spec
        sizes = [
            make_spec(task_id, **{EXCLUDES: excludes}).observation_space.shape[0]
            for excludes in (False, True)
        ]
        position = tuple(range(sizes[0] - sizes[1]))
    return EnvEntry(
        name=f"envpool:{task_id}",
        make=make,
        summary=f"EnvPool's {task_id}.",
        extra="envpool",
        position=position,
        max_steps=config["max_episode_steps"],
    )


def _config(task_id: str) -> dict[str, Any]:
    envpool = require("envpool", "envpool")
    if task_id not in envpool.list_all_envs():
        raise ValueError(f"EnvPool has no task_id {task_id!r}: see envpool.list_all_envs().")
    return envpool.make_spec(task_id).config._asdict()
