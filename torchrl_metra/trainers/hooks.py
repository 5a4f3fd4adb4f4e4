"""Hooks for TorchRL trainers: METRA beside SAC, and what to log of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

from torchrl_metra.evaluation import rollout_skills, visited

__all__ = ["LogRates", "LogTotalCoverage", "SkillEvaluation", "check_finite"]


def check_finite(batch: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Refuse collected data that would poison the replay buffer.

    Args:
        batch (TensorDictBase): collected transitions.
        keys (iterable of NestedKey): entries to look at; absent ones are skipped.

    Raises:
        ValueError: if an entry holds NaN or infinite values.
    """
    for key in keys:
        value = batch.get(key, default=None)
        if value is None or not value.is_floating_point():
            continue
        if not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"the environment returned {count} values of {key!r} (of {value.numel()}) that "
                "are NaN or infinite. Nothing of this batch was stored: mend the environment, or "
                "end its episodes before they diverge."
            )


class LogRates(TrainerHookBase):
    """Logs frames and updates per second, collection and learning included.

    :class:`~torchrl_metra.METRATrainer` registers one; on another trainer, do it with
    ``LogRates().register(trainer)``.
    """

    _trainer: Trainer

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        now = (time.perf_counter(), self._trainer.collected_frames, self._trainer._optim_count)
        last, self._last = self._last, now
        if last is None:
            return None
        seconds = now[0] - last[0]
        return {
            "frames_per_second": (now[1] - last[1]) / seconds,
            "updates_per_second": (now[2] - last[2]) / seconds,
            "log_pbar": True,
        }

    def register(self, trainer: Trainer, name: str = "log_rates") -> None:
        self._trainer = trainer
        trainer.register_op("post_steps_log", self)


class LogTotalCoverage(TrainerHookBase):
    """Logs the number of cells visited in all of training (Section 5.2).

    In the kitchen, the number of tasks solved. Silent where the environment gives
    neither ``"position"`` nor ``"tasks"``.

    Args:
        cell_size (float, optional): edge of a cell, in metres. Defaults to 1.

    Examples:
        >>> from torchrl_metra import make_env
        >>> LogTotalCoverage()(make_env("point", num_envs=2).rollout(3))["total_coverage"] > 0
        True
    """

    def __init__(self, cell_size: float = 1.0) -> None:
        self.cell_size = cell_size
        self._cells: Tensor | None = None

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        cells = None if batch is None else visited(batch, self.cell_size)
        if cells is None:
            return None
        cells = cells.cpu()
        if self._cells is not None:
            cells = torch.cat([self._cells, cells])
        self._cells = cells.unique(dim=0)
        return {"total_coverage": len(self._cells), "log_pbar": True}

    def state_dict(self) -> dict[str, Any]:
        return {} if self._cells is None else {"cells": self._cells}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._cells = state_dict.get("cells")

    def register(self, trainer: Trainer, name: str = "log_total_coverage") -> None:
        trainer.register_module(name, self)
        trainer.register_op("pre_steps_log", self)


class SkillEvaluation(TrainerHookBase):
    """Rolls out a grid of skills at intervals and logs their coverage (Section 5.2).

    Coverage is counted as :func:`~torchrl_metra.evaluation.visited` does, and not where the
    environment gives nothing to count.

    Args:
        env (EnvBase): environment with a :class:`~torchrl_metra.SkillPrimer`, not
            the one that collects.
        policy (nn.Module): the policy that is trained.
        skills (Tensor): skills to roll out, of shape ``[M, D]``.
        interval (int): frames between two evaluations.

    Keyword Args:
        callback (Callable, optional): called with the number of frames and the
            rollouts, to draw or to save them.

    Examples:
        >>> from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> evaluation = SkillEvaluation(env, networks.actor, prior.grid(8), interval=10_000)

        ``evaluation.register(trainer)`` then attaches it to a trainer.
    """

    _trainer: Trainer

    def __init__(
        self,
        env: EnvBase,
        policy: Any,
        skills: Tensor,
        interval: int,
        *,
        callback: Callable[[int, TensorDictBase], None] | None = None,
    ) -> None:
        self.env = env
        self.policy = policy
        self.skills = skills
        self.interval = interval
        self.callback = callback
        self._next = 0

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        frames = self._trainer.collected_frames
        if frames < self._next:
            return None
        self._next = frames + self.interval
        rollouts = rollout_skills(self.env, self.policy, self.skills)
        if self.callback is not None:
            self.callback(frames, rollouts)
        cells = visited(rollouts)
        if cells is None:
            return None
        return {"policy_coverage": len(cells.unique(dim=0)), "log_pbar": True}

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]

    def register(self, trainer: Trainer, name: str = "skill_evaluation") -> None:
        self._trainer = trainer
        trainer.register_module(name, self)
        trainer.register_op("post_steps_log", self)
