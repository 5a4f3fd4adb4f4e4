"""A learner in another process, maybe on another machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tensordict import TensorDict
from torch import nn

from torchrl_metra._private import LearnerProxy, num_updates


class RemoteLearner(LearnerProxy):
    """TorchRL's learner on Ray, with what a :class:`~torchrl_metra.METRATrainer` adds to it.

    It waits for ``min_buffer_size``, gives its metrics to the trainer's round, and fetches the
    learned weights after each round, for evaluation, pictures and checkpoints.

    Args:
        trainer (METRATrainer): with ``learner_backend="ray"``, in this process.

    Raises:
        ValueError: if the learner is meant to run in several processes.
    """

    def __init__(self, trainer: Any) -> None:
        if (world_size := trainer.learner_backend_options.get("world_size", 1)) > 1:
            raise ValueError(
                f"learner_backend='ray' has one learner, got world_size={world_size}: TorchRL "
                "would synchronize the gradients of SAC's loss, but not those of φ and λ. Leave "
                "it out, and scale collection."
            )
        super().__init__(trainer)
        self._trainer = trainer

    def step(self, num_steps: int) -> Any:
        """A round of gradient steps, once the replay buffer is filled enough."""
        trainer, done = self._trainer, 0
        if len(trainer.replay_buffer) >= trainer.min_buffer_size:
            receipt = super().step(num_steps)
            done = receipt.optim_steps
            trainer.keep_metrics(num_updates(trainer) + done, receipt.metrics)
            self._fetch_weights()
        # The trainer logs the metrics.
        return SimpleNamespace(optim_steps=done, metrics=TensorDict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._fetch_weights()

    def _fetch_weights(self) -> None:
        losses = nn.ModuleList([self._trainer.skill_loss, self._trainer.loss_module])
        TensorDict.from_module(losses).data.update_(self.weights("losses"))
