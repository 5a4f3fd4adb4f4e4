"""A learner in another process, maybe on another machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tensordict import TensorDict
from torch import nn
from torchrl.trainers import Trainer

from torchrl_metra.trainers.rounds import check_metrics
from torchrl_metra.trainers.stepper import METRAOptimizationStepper

__all__ = ["RemoteLearner"]


class RemoteLearner:
    """TorchRL's learner on Ray, with what a :class:`~torchrl_metra.METRATrainer` adds to it.

    It waits for ``min_buffer_size``, refuses metrics that are not finite, and brings the
    learned weights home after each round, for evaluation, pictures and checkpoints.

    Args:
        learner (Any): what TorchRL's trainer has built for ``learner_backend="ray"``.
        trainer (Trainer): the :class:`~torchrl_metra.METRATrainer`, in this process.

    Raises:
        TypeError: if the trainer's stepper is no ``METRAOptimizationStepper``.
        ValueError: if the learner shall run on several processes.
    """

    def __init__(self, learner: Any, trainer: Trainer) -> None:
        if not isinstance(trainer.optimization_stepper, METRAOptimizationStepper):
            raise TypeError(
                "learner_backend='ray' needs a METRAOptimizationStepper, got "
                f"{type(trainer.optimization_stepper).__name__}."
            )
        if learner.world_size > 1:
            raise ValueError(
                f"learner_backend='ray' has one learner, got world_size={learner.world_size}: "
                "TorchRL would synchronise the gradients of SAC's loss, but not those of φ and λ. "
                "Leave it away, and scale collection."
            )
        self._learner = learner
        self._trainer: Any = trainer

    def step(self, num_steps: int) -> Any:
        """A round of gradient steps, once the replay buffer is filled enough."""
        trainer = self._trainer
        if len(trainer.replay_buffer) < trainer.min_buffer_size:
            return SimpleNamespace(optim_steps=0, metrics=TensorDict())
        receipt = self._learner.step(num_steps)
        metrics = {name: value.item() for name, value in receipt.metrics.items()}
        check_metrics(trainer._optim_count + receipt.optim_steps, metrics)
        trainer._show_progress(metrics)
        self._bring_home()
        return receipt

    def state_dict(self) -> dict[str, Any]:
        """State of the learner, without its random generators, whose loading would need pickle."""
        state = self._learner.state_dict()
        for process in state["ranks"]:
            del process["rng"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._learner.load_state_dict(state_dict)
        self._bring_home()

    def _bring_home(self) -> None:
        losses = nn.ModuleList([self._trainer.skill_loss, self._trainer.loss_module])
        TensorDict.from_module(losses).data.update_(self._learner.get_weights("losses"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)
