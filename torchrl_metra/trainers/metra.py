"""The METRA algorithm on TorchRL's trainer loop."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from tensordict.utils import unravel_key
from torch import Tensor, optim
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.objectives import DiscreteSACLoss, SACLoss
from torchrl.objectives.utils import SoftUpdate, TargetNetUpdater
from torchrl.trainers import OptimizationStepper, Trainer
from torchrl.trainers.trainers import TargetNetUpdaterHook, TrainerHookBase, UpdateWeights

from torchrl_metra._checks import check_integer, check_type
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.objectives import SkillLoss
from torchrl_metra.trainers.batches import (
    MASK_KEY,
    drop_masked,
    refuse_multi_step,
    unknown_ends,
)
from torchrl_metra.trainers.checkpoint import RandomState, load_optimizer
from torchrl_metra.trainers.collector_state import CollectorState
from torchrl_metra.trainers.diagnosis import Diagnosis
from torchrl_metra.trainers.faults import (
    CollectionTimeoutError,
    DivergenceError,
    TimeLimit,
    TrainingStoppedError,
)
from torchrl_metra.trainers.hooks import LogCoverage, LogRates, check_workers
from torchrl_metra.trainers.optimizers import (
    check_losses,
    check_optimizers,
    make_metra_optimizers,
)
from torchrl_metra.trainers.remote import RemoteLearner
from torchrl_metra.trainers.rounds import Round
from torchrl_metra.trainers.stepper import (
    METRAOptimizationStepper,
    read_keys,
    relabel,
    step_skill_loss,
)

__all__ = ["METRAHook", "METRATrainer"]


class METRAHook(TrainerHookBase):
    """METRA in a trainer that you already have, such as TorchRL's ``SACTrainer``.

    Before each step of the trainer, φ and λ are updated on the sampled batch, and
    the batch gets the intrinsic reward in place of the task's, under the key that the
    trainer's loss reads. The rest of the trainer stays as it is.

    Args:
        skill_loss (SkillLoss): :class:`~torchrl_metra.METRALoss` or another.
        optimizers (mapping of str to Optimizer): an optimiser for each of its
            ``parameter_groups()``: METRA's are ``"encoder"``, ``"dual"`` unless λ is fixed,
            and ``"distance"`` if it is learned. A group without one is held fixed.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no optimiser for the first group, if the critics are not made
            for this objective, or if the trainer optimises remotely.

    Examples:
        >>> from torch.optim import Adam
        >>> from torchrl.collectors import Collector
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl.objectives import SACLoss, SoftUpdate
        >>> from torchrl.trainers.algorithms import SACTrainer
        >>> from torchrl_metra import (
        ...     METRAHook, METRALoss, SkillPrimer, UnitSphere, make_env, make_sac_networks
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
        >>> hook = METRAHook(
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
        self._metrics: list[TensorDictBase] = []

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        refuse_multi_step(batch)
        losses = self.skill_loss(batch)
        self._metrics.append(step_skill_loss(losses, self.optimizers, self._trainer))
        relabel(self.skill_loss, batch, self._trainer.loss_module)
        return batch

    def log(self, optim_steps: int, losses: TensorDictBase | None) -> dict[str, Any] | None:
        """The skill loss's metrics, averaged over the gradient steps since the last call."""
        if not self._metrics:
            return None
        means = {
            key: torch.stack([metrics[key] for metrics in self._metrics]).mean()
            for key in self._metrics[0].keys()
        }
        self._metrics.clear()
        return means

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
                "METRAHook runs between sampling and optimisation, which a trainer with "
                f"learner_backend={trainer.learner_backend!r} does remotely: use METRATrainer."
            )
        check_losses(self.skill_loss, trainer.loss_module)
        # TorchRL builds it at its first use, but a checkpoint must find it before that.
        _ = getattr(trainer.loss_module, "value_estimator", None)
        self._trainer = trainer
        trainer.register_module(name, self)
        trainer.register_op("process_optim_batch", self)
        trainer.register_op("post_optim_complete_log", self.log)


class METRATrainer(Trainer):
    """The whole of METRA on TorchRL's :class:`~torchrl.trainers.Trainer`.

    Collected transitions go to the replay buffer, reduced to the entries that the
    losses read; from ``min_buffer_size`` transitions on,
    ``optim_steps_per_batch`` batches are drawn after each collection and given to
    the stepper; the new policy is pushed to the collector. Metrics are averaged over
    all of these steps. The progress bar shows frames and updates per second, λ, the
    intrinsic reward and the coverage of training.

    What the batch's ``("collector", "mask")`` leaves out, as padding, is not stored, nor are
    transitions whose end is unknown: in an environment that resets itself (Isaac Lab, MJLab),
    the last one of each episode. They count as collected frames.

    With a ``checkpoint``, best a :class:`~torchrl_metra.VerifiedCheckpoint`, and a
    ``checkpoint_rotation``, all that training is made of is written every
    ``save_trainer_interval`` frames, and :func:`~torchrl_metra.trainers.resume` goes on from
    there. A fault, such as a worker that died or an environment that returned NaN, then stops
    training with its state saved.

    With ``learner_backend="ray"``, a ``RayCollector`` and a replay buffer with
    ``service_backend="ray"``, the stepper runs in a process of Ray's, maybe on another machine.
    Weights come home after each round of updates; hooks see of a batch what is stored.

    Args:
        collector (BaseCollector): collects with the policy, from environments with a
            :class:`~torchrl_metra.SkillPrimer`.
        total_frames (int): number of transitions to collect.
        optim_steps_per_batch (int): gradient steps after each collected batch.
        loss_module (SACLoss or DiscreteSACLoss): trains the policy on the intrinsic reward.
        skill_loss (SkillLoss): trains φ and λ: :class:`~torchrl_metra.METRALoss` or another.
        replay_buffer (ReplayBuffer): with a batch size.

    Keyword Args:
        optimization_stepper (OptimizationStepper, optional): defaults to
            :class:`METRAOptimizationStepper` with the authors' optimisers.
        target_net_updater (TargetNetUpdater, optional): defaults to the stepper's
            own, and to the authors' ``SoftUpdate(loss_module, eps=0.995)`` without one.
        min_buffer_size (int, optional): transitions that the initial policy collects
            before the first update. Defaults to 0.
        collection_timeout (float, optional): seconds after which a collector that has
            returned no batch counts as hanging. No limit by default.
        **kwargs: passed on to :class:`~torchrl.trainers.Trainer` (``logger``,
            ``seed``, ``progress_bar``, ``log_interval``, ``checkpoint``,
            ``checkpoint_rotation``, ``save_trainer_interval``, ...). ``clip_norm`` and
            ``clip_grad_norm`` hold for the gradient of each part by itself.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the replay buffer has no batch size, if targets would be updated
            twice, if ``optimizer`` or SAC's first version is given, if a collected batch or a
            loss is not finite, or if transitions span several steps, as those of ``MultiStep``
            do.
        CollectionTimeoutError: if the collector hangs.
        TrainingStoppedError: in place of these and of other errors while training, if there
            is a checkpoint to go on from.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl.objectives import SACLoss
        >>> from torchrl_metra import (
        ...     METRALoss, METRATrainer, SkillPrimer, UnitSphere, make_env, make_sac_networks
        ... )
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> trainer = METRATrainer(
        ...     collector=Collector(env, networks.actor, frames_per_batch=80, total_frames=160),
        ...     total_frames=160,
        ...     optim_steps_per_batch=2,
        ...     loss_module=SACLoss(networks.actor, networks.critics, target_entropy=-1.0),
        ...     skill_loss=METRALoss(networks.encoder, prior),
        ...     replay_buffer=ReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=32),
        ...     progress_bar=False,
        ... )
        >>> trainer.train()
        >>> trainer.collected_frames
        160
    """

    #: What remains of training, if :func:`~torchrl_metra.make_metra` built the trainer.
    skill_policy: SkillPolicy | None = None

    def __init__(
        self,
        *,
        collector: BaseCollector,
        total_frames: int,
        optim_steps_per_batch: int,
        loss_module: SACLoss | DiscreteSACLoss,
        skill_loss: SkillLoss,
        replay_buffer: ReplayBuffer,
        optimization_stepper: OptimizationStepper | None = None,
        target_net_updater: TargetNetUpdater | None = None,
        min_buffer_size: int = 0,
        collection_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_type("collector", collector, BaseCollector, "a collector")
        check_integer("total_frames", total_frames)
        check_integer("optim_steps_per_batch", optim_steps_per_batch)
        check_type(
            "loss_module", loss_module, SACLoss | DiscreteSACLoss, "a SACLoss or DiscreteSACLoss"
        )
        check_type("skill_loss", skill_loss, SkillLoss, "a SkillLoss such as METRALoss")
        check_type("replay_buffer", replay_buffer, ReplayBuffer, "a ReplayBuffer")
        check_losses(skill_loss, loss_module)
        if kwargs.get("optimizer") is not None:
            raise ValueError(
                "METRATrainer has an optimizer for each part, and none for all: give them to "
                "METRAOptimizationStepper(skill_loss, optimizers), see make_metra_optimizers."
            )
        if replay_buffer.batch_size is None:
            raise ValueError(
                "the replay buffer has no batch size: build it with ReplayBuffer(batch_size=256, "
                "...)."
            )
        # TorchRL builds it at its first use, but a checkpoint must find it before that.
        _ = loss_module.value_estimator
        if optimization_stepper is None:
            optimizers = make_metra_optimizers(skill_loss, loss_module)
            optimization_stepper = METRAOptimizationStepper(skill_loss, optimizers)
        if getattr(optimization_stepper, "target_net_updater", None) is None:
            target_net_updater = target_net_updater or SoftUpdate(loss_module, eps=0.995)
        elif target_net_updater is not None:
            raise ValueError(
                "both the stepper and the trainer have a target_net_updater, which would move the "
                "targets twice: give it to one of them."
            )
        kwargs.setdefault("frame_skip", 1)
        self._collector_state = CollectorState(collector, kwargs.get("seed"))
        if (checkpoint := kwargs.get("checkpoint")) is not None:
            # The base class leaves what is registered already as it is.
            checkpoint.register("collector", self._collector_state)
            checkpoint.register("rng", RandomState())
        super().__init__(
            collector=collector,
            total_frames=total_frames,
            optim_steps_per_batch=optim_steps_per_batch,
            loss_module=loss_module,
            replay_buffer=replay_buffer,
            optimization_stepper=optimization_stepper,
            target_net_updater=target_net_updater,
            **kwargs,
        )
        # The base class keeps its counters on the class, shared by all trainers of a process.
        self._optim_count = self.collected_frames = self._last_save = 0
        self._last_log: dict[str, int] = {}
        # All that was ever logged would fill the memory of a long run.
        self._log_dict: Mapping[str, Any] = defaultdict(partial(deque, maxlen=1))
        self._shows_ends = False
        self._round = Round()
        self._logged: dict[str, Any] = {}
        self._places: Tensor | None = None
        self._is_unchecked = False
        self._collection_limit = TimeLimit(collection_timeout)

        self.skill_loss = skill_loss
        self.min_buffer_size = min_buffer_size
        # Rewards are made anew for each batch, and a skill is the same at both ends of a step.
        self._replay_keys = read_keys(skill_loss, loss_module) - {
            unravel_key(("next", skill_loss.tensor_keys.skill)),
            unravel_key(("next", loss_module.tensor_keys.reward)),
        }
        policy = loss_module.actor_network
        shared_encoder = getattr(optimization_stepper, "shared_encoder", None)
        if shared_encoder is not None:
            policy = TensorDictSequential(shared_encoder, policy)
            for key in shared_encoder.out_keys:
                self._replay_keys -= {key, unravel_key(("next", key))}
        self.register_module("skill_loss", skill_loss)
        self.register_op("batch_process", self._store)
        if self.learner_backend == "local":
            self.register_op("setup", self._show_start)
            self.register_op("process_optim_batch", self._sample)
            if target_net_updater is not None:
                self.register_op("post_optim", TargetNetUpdaterHook(target_net_updater))
            weights = partial(TensorDict.from_module, policy)
            # What the base class would log number by number, waiting for each.
            self.auto_log_optim_steps = False
            self.register_op("post_optim_complete_log", self._keep_metrics)
            self.register_op("post_steps", self._read_round)
            self.register_op("post_steps", self._collection_limit.start)
            self.register_op("post_steps", partial(check_workers, collector))
            UpdateWeights(collector, 1, policy_weights_getter=weights).register(self)
            self.register_op("post_steps", self._collection_limit.stop)
        else:
            self.register_op("post_steps", self._read_round)
            learner = self._execution_backend  # type: ignore[has-type]
            self._execution_backend = RemoteLearner(learner, self)
            # What coverage is counted by.
            self._replay_keys |= {("next", "position"), ("next", "tasks")}
        LogRates().register(self)
        log_coverage = LogCoverage()
        self.register_module("log_coverage", log_coverage)
        self.log_coverage = log_coverage
        self.register_op("post_steps_log", self._log_round)
        self.register_op("post_steps_log", self._log_coverage)
        self.diagnosis = Diagnosis(skill_loss, _learning_rate(optimization_stepper))
        self.diagnosis.register(self)

    def _store(self, batch: TensorDictBase) -> TensorDictBase:
        self._collection_limit.stop()
        refuse_multi_step(batch)
        unknown = self._unknown_ends(batch)
        if unknown is not None:
            mask = batch.get(MASK_KEY, default=torch.ones_like(unknown))
            batch = batch.copy().set(MASK_KEY, mask & ~unknown)
            # TorchRL counts what the mask leaves, but the collector has counted all.
            self.collected_frames += int(unknown.sum()) * self.frame_skip
        kept = drop_masked(batch)
        self._round = Round(
            kept,
            self.skill_loss.in_keys,
            self.skill_loss.state_keys,
            projection=self.log_coverage.projection,
        )
        transitions = kept.select(*self._replay_keys, strict=False)
        if self.learner_backend == "ray":
            # TorchRL's own loop for it stores, and shows to the hooks, what it gets from here.
            return transitions
        self.replay_buffer.extend(transitions.reshape(-1))
        return batch

    def _unknown_ends(self, batch: TensorDictBase) -> Tensor | None:
        """Transitions into a state that nobody has seen; asked until an episode ended otherwise.

        An environment resets itself always or never, and asking waits for an accelerator.
        """
        if self._shows_ends:
            return None
        done_key, skill_key = self.loss_module.tensor_keys.done, self.skill_loss.tensor_keys.skill
        unknown = unknown_ends(batch, self.skill_loss.state_keys, skill_key, done_key)
        done = batch.get(("next", done_key), default=None)
        self._shows_ends = unknown is None and done is not None and bool(done.any())
        return unknown

    def _sample(self, batch: TensorDictBase) -> TensorDictBase:
        return self.replay_buffer.sample()

    def _keep_metrics(self, optim_steps: int, metrics: TensorDictBase | None) -> None:
        if metrics is not None:
            self._round.set_metrics(optim_steps, metrics)

    def _read_round(self) -> None:
        """Check the round, and keep its numbers for the log."""
        self._logged, self._places = self._round.read()
        self._is_unchecked = False
        self._show_progress(self._logged)
        self.diagnosis.observe(self._logged)

    def _log_round(self, batch: TensorDictBase | None) -> dict[str, Any]:
        return self._logged

    def _log_coverage(self, batch: TensorDictBase | None) -> dict[str, Any] | None:
        if self._places is None:
            return None
        return self.log_coverage.count(self._places, self._round.num_transitions)

    def _show_start(self) -> None:
        if self.progress_bar:
            self._pbar.update(self.collected_frames)

    def _show_progress(self, metrics: Mapping[str, Any]) -> None:
        if self.progress_bar:
            shown = {"λ": "dual", "reward": "intrinsic_reward"}
            self._pbar_str.update(
                {name: float(metrics[key]) for name, key in shown.items() if key in metrics}
            )

    def optim_steps(self, batch: TensorDictBase) -> None:
        """Update ``optim_steps_per_batch`` times, once the replay buffer is filled enough."""
        if len(self.replay_buffer) >= self.min_buffer_size:
            self._is_unchecked = True
            super().optim_steps(batch)

    def train(self) -> None:
        """Train until ``total_frames``, a fault, or ``request_stop()``."""
        self._collection_limit.start()
        try:
            super().train()
        except CheckpointError:
            raise
        except Exception as error:
            self._stop(error)
        except KeyboardInterrupt:
            if not self._collection_limit.has_expired:
                raise
            self._stop(
                CollectionTimeoutError(
                    f"the collector did not answer for {self._collection_limit.seconds} s: an "
                    "environment or its worker hangs. If it is only slow, raise "
                    "collection_timeout."
                )
            )
        finally:
            self._collection_limit.stop()

    def _stop(self, error: Exception) -> NoReturn:
        """Save what can be saved, and say how to go on."""
        self._collection_limit.stop()
        if not self._has_checkpoint_destination():
            raise error
        if self._is_unchecked or isinstance(error, DivergenceError):
            state = "The networks are not saved, for they were being updated."
        else:
            state = "Everything up to there is saved."
            self._collector_state.give_up(self.collected_frames // self.frame_skip)
            try:
                self._save_trainer()
            except CheckpointError as failure:
                state = f"It could not be saved: {failure}"
        path = self._last_checkpoint()
        story = (
            f"training stopped after {self.collected_frames:,} frames: {error}\n{state} Mend the "
            f"cause, then go on from {path or 'the start'} with resume(trainer)."
        )
        raise TrainingStoppedError(story, path) from error

    def _last_checkpoint(self) -> Path | None:
        if self.checkpoint_rotation is not None:
            return self.checkpoint_rotation.latest()
        path = Path(self.save_trainer_file)
        return path if path.exists() else None

    def save_trainer(self, force_save: bool = False) -> None:
        """Save if it is time for it; a disk that is full stops the training at its end only."""
        try:
            super().save_trainer(force_save)
        except CheckpointError as error:
            if force_save:
                raise
            warnings.warn(f"{error} Training goes on, until the next.", stacklevel=2)
        # The last that happens before the collector's turn.
        self._collection_limit.start()

    def _save_execution_checkpoint(self, **kwargs: Any) -> None:
        # With a remote learner, this is the last.
        super()._save_execution_checkpoint(**kwargs)
        self._collection_limit.start()


def _learning_rate(stepper: OptimizationStepper) -> float:
    """The largest of φ's, the critics' and the policy's; the authors' if the stepper has none."""
    optimizers = getattr(stepper, "optimizers", {})
    groups = [
        group
        for part, optimizer in optimizers.items()
        if part not in ("dual", "alpha")
        for group in optimizer.param_groups
    ]
    return max((float(group["lr"]) for group in groups), default=1e-4)
