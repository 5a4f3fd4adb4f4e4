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

from torchrl_metra._extras import require
from torchrl_metra.envs.registry import EnvEntry

# What tasks whose observation begins by the place of the body call leaving it out.
EXCLUDES = "exclude_current_positions_from_observation"


class EnvPoolEnv(EnvBase):
    """A batch of environments that EnvPool steps in its own C++ threads.

    Covers tasks with one continuous action and one flat observation, as EnvPool's
    MuJoCo tasks are. Unlike TorchRL's ``MultiThreadedEnv`` it needs neither ``gym``
    nor ``treevalue``.

    Args:
        task_id (str): EnvPool's name of the task, such as ``"HalfCheetah-v5"``.
        num_envs (int): number of environments.

    Keyword Args:
        seed (int, optional): seed of the first environment. Defaults to 0.
        **options: passed on to ``envpool.make_gymnasium``, such as ``num_threads``.

    Raises:
        ValueError: if the task is of another kind.

    Examples:
        >>> env = EnvPoolEnv("HalfCheetah-v5", num_envs=2)
        >>> env.rollout(3)["next", "observation"].shape
        torch.Size([2, 3, 17])
    """

    def __init__(self, task_id: str, num_envs: int, *, seed: int = 0, **options: Any) -> None:
        super().__init__(batch_size=torch.Size([num_envs]), device=torch.device("cpu"))
        make = require("envpool", "envpool").make_gymnasium
        self._make = partial(make, task_id, num_envs=num_envs, **options)
        self._env = self._make(seed=seed)
        if self._env.observation_space.shape is None or not self._env.action_space.shape:
            raise ValueError(
                f"EnvPool's {task_id} has no flat observation or no continuous action, but "
                f"{self._env.observation_space} and {self._env.action_space}."
            )
        #: After how many steps episodes are truncated.
        self.max_steps: int = self._env.config["max_episode_steps"]
        batch = self.batch_size
        flag = Categorical(2, shape=(*batch, 1), dtype=torch.bool)
        observation = Unbounded(shape=(*batch, *self._env.observation_space.shape))
        self.observation_spec = Composite(observation=observation, shape=batch)
        space = self._env.action_space
        self.action_spec = Bounded(
            torch.as_tensor(space.low, dtype=torch.float32).expand(*batch, -1),
            torch.as_tensor(space.high, dtype=torch.float32).expand(*batch, -1),
        )
        self.reward_spec = Unbounded(shape=(*batch, 1))
        flags = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        # The simulator is on the CPU, wherever the environment was moved.
        observation = torch.zeros(self.observation_spec["observation"].shape, device="cpu")
        numbers = torch.arange(len(observation))
        if tensordict is not None and "_reset" in tensordict:
            numbers = numbers[tensordict["_reset"].cpu().reshape(-1)]
        values, _ = self._env.reset(numbers.numpy())
        observation[numbers] = torch.from_numpy(values).float()
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
    add_limits(options, max_steps, terminate)
    return EnvPoolEnv(task_id, num_envs, **options)


def add_limits(options: dict[str, Any], max_steps: int | None, terminate: bool | None) -> None:
    """Add what EnvPool and gymnasium call the ends of an episode, where they are given."""
    if max_steps is not None:
        options["max_episode_steps"] = max_steps
    if terminate is not None:
        options["terminate_when_unhealthy"] = terminate


def envpool_entry(task_id: str, options: Mapping[str, Any]) -> EnvEntry:
    """What is known about a task of EnvPool."""
    make_spec = require("envpool", "envpool").make_spec
    config = make_spec(task_id).config._asdict()
    make, position = partial(make_envpool, task_id), None
    if EXCLUDES in config and EXCLUDES not in options:
        make = partial(make, **{EXCLUDES: False})
        sizes = [
            make_spec(task_id, **{EXCLUDES: excludes}).observation_space.shape[0]
            for excludes in (False, True)
        ]
        position = tuple(range(sizes[0] - sizes[1]))
    return EnvEntry(
        name=f"envpool:{task_id}",
        make=make,
        position=position,
        max_steps=config["max_episode_steps"],
    )
