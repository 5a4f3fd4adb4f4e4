"""The METRA algorithm on TorchRL's trainer loop."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from tensordict.utils import unravel_key
from torchrl.checkpoint import CheckpointError
from torchrl.collectors import BaseCollector
from torchrl.data import ReplayBuffer
from torchrl.objectives import DiscreteSACLoss, SACLoss
from torchrl.objectives.utils import SoftUpdate, TargetNetUpdater
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_metra._private import (
    keep_only_the_latest,
    reset_counters,
    show_collected_frames,
    show_numbers,
    worker_processes,
)
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.objectives import SkillLoss
from torchrl_metra.trainers.batches import MASK_KEY, drop_masked, refuse_multi_step, unknown_ends
from torchrl_metra.trainers.checkpoint import RandomState
from torchrl_metra.trainers.collector_state import CollectorState
from torchrl_metra.trainers.diagnosis import Diagnosis
from torchrl_metra.trainers.faults import DivergenceError, TimedCollector, stop_training, time_limit
from torchrl_metra.trainers.hooks import LogCoverage, LogRates
from torchrl_metra.trainers.optimizers import check_losses, make_metra_optimizers
from torchrl_metra.trainers.remote import RemoteLearner
from torchrl_metra.trainers.rounds import check_data, observation_spread, read_metrics
from torchrl_metra.trainers.stepper import METRAOptimizationStepper, read_keys


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
            :class:`METRAOptimizationStepper` with the authors' optimizers.
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
        ValueError: if the replay buffer has no batch size, if targets would be updated
            twice, or if ``optimizer`` or SAC's first version is given.
        TrainingStoppedError: by :meth:`train`, for any error, if there is a checkpoint to go on
            from; ``__cause__`` is the error itself.
        DivergenceError: by :meth:`train`, if a loss is not finite.
        CollectionTimeoutError: by :meth:`train`, if the collector hangs.

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
        check_losses(skill_loss, loss_module)
        if kwargs.get("optimizer") is not None:
            raise ValueError(
                "METRATrainer has an optimizer for each part, and none for all: give them to "
                "METRAOptimizationStepper(skill_loss, optimizers), see make_metra_optimizers."
            )
        if replay_buffer.batch_size is None:
            raise ValueError("the replay buffer needs a batch size: ReplayBuffer(batch_size=256).")
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
            **{"frame_skip": 1, **kwargs},
        )
        reset_counters(self)
        keep_only_the_latest(self)
        self.skill_loss = skill_loss
        self.min_buffer_size = min_buffer_size
        self.collection_timeout = collection_timeout
        self.log_coverage = LogCoverage()
        self.diagnosis = Diagnosis(skill_loss, _learning_rate(optimization_stepper))
        shared_encoder = getattr(optimization_stepper, "shared_encoder", None)
        self._policy: TensorDictModuleBase = loss_module.actor_network
        features: list[Any] = []
        if shared_encoder is not None:
            self._policy = TensorDictSequential(shared_encoder, self._policy)
            features = shared_encoder.out_keys
            if getattr(optimization_stepper, "trains_shared_encoder", False):
                # No loss has it.
                self.register_module("shared_encoder", shared_encoder)
        # Rewards and features are made anew for each batch, and critics take skills as kept.
        skill, reward = skill_loss.tensor_keys.skill, loss_module.tensor_keys.reward
        made_anew = [*features, *(("next", key) for key in (*features, skill, reward))]
        self._replay_keys = read_keys(skill_loss, loss_module) - {*map(unravel_key, made_anew)}
        self._shows_ends = False
        self._logged: dict[str, Any] = {}
        self._is_updating = False
        self._register_hooks()

    def _register_hooks(self) -> None:
        self.register_module("skill_loss", self.skill_loss)
        self.register_module("log_coverage", self.log_coverage)
        self.register_op("batch_process", self._store)
        # What the base class would log number by number, waiting for each.
        self.auto_log_optim_steps = False
        if self.learner_backend == "local":
            self.register_op("setup", partial(show_collected_frames, self))
            self.register_op("process_optim_batch", self._sample)
            if self.target_net_updater is not None:
                self.register_op("post_optim", self.target_net_updater.step)
            self.register_op("post_optim_complete_log", self.keep_metrics)
            self.register_op("post_steps", self._push_weights)
        else:
            RemoteLearner(self)
            # What coverage is counted by.
            self._replay_keys |= {("next", "position"), ("next", "tasks")}
        LogRates().register(self)
        self.register_op("post_steps_log", self._log_round)
        self.register_op("post_steps_log", self.log_coverage)
        self.diagnosis.register(self)

    def _store(self, batch: TensorDictBase) -> TensorDictBase:
        refuse_multi_step(batch)
        batch = self._mask_unknown_ends(batch)
        kept = drop_masked(batch)
        check_data(kept, self.skill_loss.in_keys)
        self._logged = observation_spread(kept, self.skill_loss.state_keys)
        transitions = kept.select(*self._replay_keys, strict=False)
        if self.learner_backend == "ray":
            # TorchRL's own loop for it stores, and shows to the hooks, what it gets from here.
            return transitions
        self.replay_buffer.extend(transitions.reshape(-1))
        return batch

    def _mask_unknown_ends(self, batch: TensorDictBase) -> TensorDictBase:
        """Leave out transitions into a state that nobody has seen.

        An environment resets itself always or never, and asking waits for an accelerator: so it is
        asked until an episode has ended.
        """
        if self._shows_ends:
            return batch
        done_key, skill_key = self.loss_module.tensor_keys.done, self.skill_loss.tensor_keys.skill
        unknown = unknown_ends(batch, self.skill_loss.state_keys, skill_key, done_key)
        num_unknown = 0 if unknown is None else int(unknown.sum())
        self._shows_ends = unknown is not None and num_unknown == 0
        if unknown is None or self._shows_ends:
            return batch
        # TorchRL counts what the mask leaves, but the collector has counted all.
        self.collected_frames += num_unknown * self.frame_skip
        mask = batch.get(MASK_KEY, default=torch.ones_like(unknown))
        return batch.copy().set(MASK_KEY, mask & ~unknown)

    def _sample(self, batch: TensorDictBase) -> TensorDictBase:
        return self.replay_buffer.sample()

    def keep_metrics(self, optim_steps: int, metrics: TensorDictBase | None) -> None:
        """Check what a round of updates gave, and keep it for the log."""
        if metrics is not None:
            values = read_metrics(optim_steps, dict(metrics.items()))
            self._logged |= {**values, "optim_steps": optim_steps}

    def _push_weights(self) -> None:
        # TorchRL would wait for a dead worker to take the new weights.
        for index, process in enumerate(worker_processes(self.collector)):
            if not process.is_alive():
                raise RuntimeError(
                    f"worker {index} of the collector has died (exit code {process.exitcode}): see "
                    "its own messages above, or the kernel's if it ran out of memory."
                )
        with time_limit(self.collection_timeout):
            self.collector.update_policy_weights_(TensorDict.from_module(self._policy))

    def _log_round(self, batch: TensorDictBase | None) -> dict[str, Any]:
        shown = {"λ": "dual", "reward": "intrinsic_reward"}
        show_numbers(
            self, {name: self._logged[k] for name, k in shown.items() if k in self._logged}
        )
        self.diagnosis.observe(self._logged)
        return self._logged

    def optim_steps(self, batch: TensorDictBase) -> None:
        """Update ``optim_steps_per_batch`` times, once the replay buffer is filled enough."""
        if len(self.replay_buffer) >= self.min_buffer_size:
            self._is_updating = True
            super().optim_steps(batch)
            self._is_updating = False

    def train(self) -> None:
        """Train until ``total_frames``, a fault, or ``request_stop()``."""
        collector: Any = self.collector  # type: ignore[has-type]
        self.collector = TimedCollector(self)
        try:
            super().train()
        except CheckpointError:
            raise
        except Exception as error:
            is_sound = not (self._is_updating or isinstance(error, DivergenceError))
            if is_sound:
                self._collector_state.discard_episodes(self.collected_frames // self.frame_skip)
            stop_training(self, error, save=is_sound)
        finally:
            self.collector = collector

    def save_trainer(self, force_save: bool = False) -> None:
        """Save if it is time for it; a disk that is full stops the training at its end only."""
        try:
            super().save_trainer(force_save)
        except CheckpointError as error:
            if force_save:
                raise
            warnings.warn(f"{error} Training goes on, until the next.", stacklevel=2)


def _learning_rate(stepper: OptimizationStepper) -> float:
    """The largest of φ's, the critics' and the policy's; the authors' if the stepper has none."""
    rates = [
        float(group["lr"])
        for part, optimizer in getattr(stepper, "optimizers", {}).items()
        if part not in ("dual", "alpha")
        for group in optimizer.param_groups
    ]
    return max(rates, default=1e-4)
