"""Hooks for TorchRL trainers: METRA beside SAC, and what to log of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, optim
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

from torchrl_metra._private import num_updates, show_numbers
from torchrl_metra.evaluation import CoverageCounter, rollout_skills, visited
from torchrl_metra.evaluation.trajectories import Projection
from torchrl_metra.objectives import SkillLoss
from torchrl_metra.trainers.batches import drop_masked, refuse_multi_step
from torchrl_metra.trainers.checkpoint import load_optimizer
from torchrl_metra.trainers.diagnosis import Diagnosis
from torchrl_metra.trainers.optimizers import check_losses, check_optimizers
from torchrl_metra.trainers.rounds import read_metrics
from torchrl_metra.trainers.stepper import add_reward, step_skill_loss


class SkillHook(TrainerHookBase):
    """Skill discovery in a trainer that you already have, such as TorchRL's ``SACTrainer``.

    Before each step of the trainer, φ and λ are updated on the sampled batch, and
    the batch gets the intrinsic reward in place of the task's, under the key that the
    trainer's loss reads. The rest of the trainer stays as it is.

    Args:
        skill_loss (SkillLoss): :class:`~torchrl_metra.METRALoss` or another.
        optimizers (mapping of str to Optimizer): an optimizer for each of its
            ``parameter_groups()``: METRA's are ``"encoder"``, ``"dual"`` unless λ is fixed,
            and ``"distance"`` if it is learned. A group without one is held fixed.

    Raises:
        ValueError: if there is no optimizer for the first group; by :meth:`register`, if the
            critics are not made for this objective, or if the trainer optimizes remotely.
        DivergenceError: while training, if a metric is not finite.

    Examples:
        >>> from torch.optim import Adam
        >>> from torchrl.collectors import Collector
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl.objectives import SACLoss, SoftUpdate
        >>> from torchrl.trainers.algorithms import SACTrainer
        >>> from torchrl_metra import (
        ...     METRALoss, SkillHook, SkillPrimer, UnitSphere, make_env, make_sac_networks
        ... )
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0)
        >>> trainer = SACTrainer(
        ...     collector=Collector(env, networks.actor, frames_per_batch=80, total_frames=160),
        ...     total_frames=160,
        ...     frame_skip=1,
        ...     optim_steps_per_batch=2,
        ...     loss_module=sac_loss,
        ...     optimizer=Adam(sac_loss.parameters()),
        ...     replay_buffer=ReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        ...     target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        ...     log_rewards=False,
        ...     progress_bar=False,
        ... )
        >>> metra_loss = METRALoss(networks.encoder, prior)
        >>> hook = SkillHook(
        ...     metra_loss,
        ...     {
        ...         "encoder": Adam(metra_loss.encoder.parameters(), lr=1e-4),
        ...         "dual": Adam([metra_loss.log_dual], lr=1e-4),
        ...     },
        ... )
        >>> hook.register(trainer)
        >>> trainer.train()
    """

    _trainer: Trainer

    def __init__(self, skill_loss: SkillLoss, optimizers: Mapping[str, optim.Optimizer]) -> None:
        check_optimizers(optimizers, skill_loss)
        self.skill_loss = skill_loss
        self.optimizers = dict(optimizers)
        self._metrics: list[dict[str, Tensor]] = []

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        refuse_multi_step(batch)
        losses = self.skill_loss(batch)
        self._metrics.append(step_skill_loss(losses, self.optimizers, self._trainer))
        add_reward(self.skill_loss, batch, self._trainer.loss_module)
        return batch

    def log(self, optim_steps: int, losses: TensorDictBase | None) -> dict[str, Any] | None:
        """The skill loss's metrics, averaged over the gradient steps since the last call."""
        if not self._metrics:
            return None
        rounds = torch.stack([torch.stack(list(metrics.values())) for metrics in self._metrics])
        means = dict(zip(self._metrics[0], rounds.mean(dim=0), strict=True))
        self._metrics.clear()
        return read_metrics(optim_steps, means)

    def state_dict(self) -> dict[str, Any]:
        optimizers = {name: value.state_dict() for name, value in self.optimizers.items()}
        return {"skill_loss": self.skill_loss.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skill_loss.load_state_dict(state_dict["skill_loss"])
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state_dict["optimizers"][name])

    def register(self, trainer: Trainer, name: str = "metra") -> None:
        if trainer.learner_backend != "local":
            raise ValueError(
                "SkillHook runs between sampling and optimization, which a trainer with "
                f"learner_backend={trainer.learner_backend!r} does remotely: use METRATrainer."
            )
        check_losses(self.skill_loss, trainer.loss_module)
        # TorchRL builds it at its first use, but a checkpoint must find it before that.
        _ = getattr(trainer.loss_module, "value_estimator", None)
        self._trainer = trainer
        trainer.register_module(name, self)
        trainer.register_op("process_optim_batch", self)
        trainer.register_op("post_optim_complete_log", self.log)


#: The name of :class:`SkillHook` in version 0.1.
METRAHook = SkillHook


class LogRates(TrainerHookBase):
    """Logs frames and updates per second, collection and learning included.

    :class:`~torchrl_metra.METRATrainer` registers one; on another trainer, do it with
    ``LogRates().register(trainer)``.
    """

    _trainer: Trainer

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        now = (time.perf_counter(), self._trainer.collected_frames, num_updates(self._trainer))
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


class LogCoverage(TrainerHookBase):
    """Logs how much was visited in all of training, and of late (Section 5).

    ``total_coverage`` counts the cells of all transitions, ``queue_coverage`` those of the
    latest; in the kitchen, the tasks solved. Silent where the environment gives neither
    ``"position"`` nor ``"tasks"``, unless there is a projection.

    Args:
        window (int, optional): number of latest transitions. Defaults to 100 000.

    Keyword Args:
        projection (Callable, optional): coordinates of states, see
            :func:`~torchrl_metra.evaluation.visited`.
        cell_size (float, optional): edge of a cell. Defaults to 1.

    Examples:
        >>> from torchrl_metra import make_env
        >>> logged = LogCoverage()(make_env("point", num_envs=2).rollout(3))
        >>> logged["total_coverage"] == logged["queue_coverage"] > 0
        True
    """

    def __init__(
        self,
        window: int = 100_000,
        *,
        projection: Projection | None = None,
        cell_size: float = 1.0,
    ) -> None:
        self.projection = projection
        self.cell_size = cell_size
        self.total = CoverageCounter()
        self.queue = CoverageCounter(window)

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        if batch is None:
            return None
        batch = drop_masked(batch)
        cells = visited(batch, projection=self.projection, cell_size=self.cell_size)
        if cells is None:
            return None
        for counter in (self.total, self.queue):
            counter.update(cells, batch.numel())
        return {
            "total_coverage": len(self.total),
            "queue_coverage": len(self.queue),
            "log_pbar": True,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total.state_dict(), "queue": self.queue.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total.load_state_dict(state_dict["total"])
        self.queue.load_state_dict(state_dict["queue"])

    def register(self, trainer: Trainer, name: str = "log_coverage") -> None:
        """Attach it to a trainer; that of a ``METRATrainer`` takes its place."""
        own = getattr(trainer, "log_coverage", None)
        if own is not None and name == "log_coverage":
            # The trainer's own is held by its checkpoint and its hooks: it becomes this one.
            own.__dict__ = self.__dict__
            return
        trainer.register_module(name, self)
        trainer.register_op("pre_steps_log", self)


class SkillEvaluation(TrainerHookBase):
    """Rolls out skills at intervals and logs what they are worth (Section 5).

    Without ``measure`` it logs ``policy_coverage``, counted as
    :func:`~torchrl_metra.evaluation.visited` does, and nothing where the environment gives
    nothing to count. Videos of a :class:`~torchrl.record.VideoRecorder` among the
    environment's transforms are written each time.

    Args:
        env (EnvBase): environment with a :class:`~torchrl_metra.SkillPrimer`, not
            the one that collects.
        policy (nn.Module): the policy that is trained.
        skills (Tensor): skills to roll out, of shape ``[M, D]``: ``prior.evaluation_skills()``,
            by which published coverage is counted.
        interval (int): frames between two evaluations.

    Keyword Args:
        max_steps (int, optional): length of the episodes, see
            :func:`~torchrl_metra.evaluation.rollout_skills`.
        measure (Callable, optional): from rollouts to numbers to log, such as those of
            :func:`~torchrl_metra.evaluation.measure_skills`.
        callback (Callable, optional): called with the number of frames and the
            rollouts, to draw or to save them.
        seed (int, optional): of ``env`` in each evaluation, so that all of them begin in the same
            states, those of a run that goes on, too. Defaults to ``None``: in others.

    Examples:
        >>> from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
        >>> from torchrl_metra.evaluation import encode_trajectories, measure_skills
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> def measure(rollouts):
        ...     latents = encode_trajectories(rollouts, networks.encoder)
        ...     return measure_skills(rollouts, latents, prior)
        >>> evaluation = SkillEvaluation(
        ...     env, networks.actor, prior.evaluation_skills(8), interval=10_000, measure=measure
        ... )

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
        max_steps: int | None = None,
        measure: Callable[[TensorDictBase], dict[str, float]] | None = None,
        callback: Callable[[int, TensorDictBase], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self.env = env
        self.policy = policy
        self.skills = skills
        self.seed = seed
        self.interval = interval
        self.max_steps = max_steps
        self.measure = measure or _policy_coverage
        self.callback = callback
        self._next = 0

    def __call__(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        frames = self._trainer.collected_frames
        if frames < self._next:
            return None
        self._next = frames + self.interval
        rollouts = self.roll_out()
        if self.callback is not None:
            self.callback(frames, rollouts)
        if isinstance(self.env, TransformedEnv):
            self.env.transform.dump()
        results = self.measure(rollouts)
        if isinstance(diagnosis := getattr(self._trainer, "diagnosis", None), Diagnosis):
            diagnosis.observe(results)
        if "policy_coverage" in results:
            # All of the numbers would be too many for the bar.
            show_numbers(self._trainer, {"policy_coverage": results["policy_coverage"]})
        return results

    def roll_out(self) -> TensorDictBase:
        """One episode for each skill."""
        if self.seed is not None:
            self.env.set_seed(self.seed)
        return rollout_skills(self.env, self.policy, self.skills, max_steps=self.max_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]

    def register(self, trainer: Trainer, name: str = "skill_evaluation") -> None:
        self._trainer = trainer
        trainer.register_module(name, self)
        trainer.register_op("post_steps_log", self)


def _policy_coverage(rollouts: TensorDictBase) -> dict[str, float]:
    cells = visited(rollouts)
    return {} if cells is None else {"policy_coverage": len(cells.unique(dim=0))}
