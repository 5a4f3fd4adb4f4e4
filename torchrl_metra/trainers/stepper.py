"""One gradient step of METRA, and of its neighbors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torchrl.objectives import DiscreteSACLoss, LossModule, SACLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_metra._private import add_learner_models
from torchrl_metra.objectives import EncoderLoss, RelabelSkills, SkillLoss
from torchrl_metra.trainers.checkpoint import load_optimizer
from torchrl_metra.trainers.graph import UpdateGraph
from torchrl_metra.trainers.optimizers import check_optimizers


class METRAOptimizationStepper(OptimizationStepper):
    """One gradient step of METRA, in the authors' order (Algorithm 1).

    φ, λ and what is learned of the constraint's distance (with another skill loss: all of its
    parameter groups), then the rewards anew with the φ just updated, then critics, policy and
    entropy coefficient, each with its own optimizer, then the targets.

    Rewards are written where the trainer's ``SACLoss`` reads them. Priorities of a prioritized
    replay buffer are updated from the critics' error.

    Args:
        skill_loss (SkillLoss): :class:`~torchrl_metra.METRALoss` or another.
        optimizers (mapping of str to Optimizer): see :func:`make_metra_optimizers`;
            a part without an entry is held fixed.

    Keyword Args:
        target_net_updater (SoftUpdate, optional): updates the target networks as
            part of the step. Without one that is left to the trainer.
        compile (bool or dict, optional): compile the whole step into one graph, see
            :class:`~torchrl_metra.trainers.UpdateGraph`; a dict holds arguments of
            ``torch.compile``. The second step takes half a minute. Defaults to ``False``.
        cudagraphs (bool, optional): replay the step as a CUDA graph. Without CUDA it
            runs as before, with a warning. Defaults to ``False``.
        autocast (torch.dtype, optional): compute the losses under autocast in this
            type, ``torch.bfloat16``. Weights, optimizers and latents stay in float32.
        shared_encoder (TensorDictModule, optional): what policy and critics read, see
            :func:`~torchrl_metra.make_pixel_sac_networks`, or a bottleneck that the policy reads.
            It adds its ``out_keys`` to both ends of each transition: without gradient or, if the
            critics' optimizer has its parameters, with one for the critics' loss.
        relabeling (RelabelSkills, optional): skills in hindsight, for a replay buffer with an
            :class:`~torchrl_metra.EpisodeStorage`. The stepper moves its average of φ.

    Raises:
        ValueError: if ``optimizers`` lacks ``"qvalue"``, ``"actor"`` or the skill loss's
            first part, such as ``"encoder"``.

    Examples:
        >>> from torchrl.objectives import SACLoss
        >>> from torchrl_metra import METRALoss, UnitSphere, make_env, make_sac_networks
        >>> from torchrl_metra import make_metra_optimizers
        >>> prior = UnitSphere(2)
        >>> networks = make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[32])
        >>> metra_loss = METRALoss(networks.encoder, prior)
        >>> sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0)
        >>> optimizers = make_metra_optimizers(metra_loss, sac_loss, lr=3e-4)
        >>> stepper = METRAOptimizationStepper(metra_loss, optimizers, autocast=torch.bfloat16)
    """

    updates_replay_priority = True

    def __init__(
        self,
        skill_loss: SkillLoss,
        optimizers: Mapping[str, optim.Optimizer],
        *,
        target_net_updater: SoftUpdate | None = None,
        compile: bool | dict[str, Any] = False,
        cudagraphs: bool = False,
        autocast: torch.dtype | None = None,
        shared_encoder: TensorDictModule | None = None,
        relabeling: RelabelSkills | None = None,
    ) -> None:
        check_optimizers(optimizers, skill_loss, "qvalue", "actor")
        if not isinstance(target_net_updater, SoftUpdate | None):
            raise TypeError(
                "the stepper takes a SoftUpdate, got "
                f"{type(target_net_updater).__name__}: give it to the trainer."
            )
        self.skill_loss = skill_loss
        self.optimizers = dict(optimizers)
        self.target_net_updater = target_net_updater
        self.compile = compile
        self.cudagraphs = cudagraphs
        self.autocast = autocast
        self.shared_encoder = shared_encoder
        self.relabeling = relabeling
        self.trains_shared_encoder = shared_encoder is not None and has_parameters_of(
            optimizers["qvalue"], shared_encoder
        )
        self._graph: UpdateGraph | None = None
        self._trainer: Any = None

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        """Update every part once; returns detached scalars to log."""
        self._trainer = trainer
        if not (self.compile or self.cudagraphs):
            metrics = self.update(trainer.loss_module, sub_batch)
        else:
            if self._graph is None:
                self._graph = self._make_graph(trainer.loss_module)
            metrics = self._graph(sub_batch)
        self._update_priority(trainer, sub_batch, metrics.pop("td_error"))
        return metrics

    def update(self, sac_loss: SACLoss | DiscreteSACLoss, batch: TensorDictBase) -> TensorDictBase:
        """One gradient step of every part; the batch stays as it is.

        Args:
            sac_loss (SACLoss or DiscreteSACLoss): loss of critics, policy and entropy coefficient.
            batch (TensorDictBase): transitions with skills, of batch size ``*B``.

        Returns:
            Detached scalars, and ``"td_error"`` of shape ``[*B]``.
        """
        batch = batch.copy()
        with self._autocast():
            if self.relabeling is not None:
                batch = self.relabeling(batch)
            losses = self.skill_loss(batch)
        metrics = step_skill_loss(losses, self.optimizers, self._trainer)

        with self._autocast():
            add_reward(self.skill_loss, batch, sac_loss)
            if self.shared_encoder is not None:
                add_features(self.shared_encoder, batch, with_grad=self.trains_shared_encoder)

        is_discrete = isinstance(sac_loss, DiscreteSACLoss)
        with self._autocast():
            name = "qvalue_loss" if is_discrete else "qvalue_v2_loss"
            loss_qvalue, critic = self._evaluate(sac_loss, name, batch)
        self._descend(loss_qvalue, "qvalue", metrics)
        if self.shared_encoder is not None:
            for key in self.shared_encoder.out_keys:
                batch.set(key, batch.get(key).detach())

        with self._autocast():
            loss_actor, actor = self._evaluate(sac_loss, "actor_loss", batch)
        self._descend(loss_actor, "actor", metrics)

        log_prob = actor.pop("log_prob")
        loss_alpha = sac_loss.alpha_loss(log_prob)
        weight = batch.get(sac_loss.tensor_keys.priority_weight, default=None)
        if weight is not None:
            loss_alpha = loss_alpha * weight / weight.mean()
        loss_alpha = loss_alpha.mean()
        self._descend(loss_alpha, "alpha", metrics)

        if self.target_net_updater is not None:
            self.target_net_updater.step()
        if self.relabeling is not None:
            self.relabeling.step(self.skill_loss.encoder)
        return TensorDict(
            {
                **metrics,
                "loss_qvalue": loss_qvalue.detach(),
                "loss_actor": loss_actor.detach(),
                "loss_alpha": loss_alpha.detach(),
                "alpha": sac_loss.log_alpha.detach().exp(),
                "entropy": -log_prob.mean(),
                **actor,
                "td_error": critic["td_error"],
            }
        )

    def _make_graph(self, sac_loss: LossModule) -> UpdateGraph:
        in_keys = read_keys(self.skill_loss, sac_loss)
        in_keys |= {loss.tensor_keys.priority_weight for loss in (self.skill_loss, sac_loss)}
        if isinstance(self.skill_loss, EncoderLoss):
            in_keys |= {self.skill_loss.tensor_keys.episode_skill}
        if self.relabeling is not None:
            in_keys |= {*self.relabeling.in_keys}
        return UpdateGraph(
            partial(self.update, sac_loss),
            self.optimizers,
            sorted(in_keys, key=str),
            compile=self.compile,
            cudagraphs=self.cudagraphs,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        # The cache would outlive the weights, which change between two losses.
        device = self.skill_loss.device or torch.device("cpu")
        return torch.autocast(device.type, self.autocast, cache_enabled=False)

    def _evaluate(self, sac_loss: LossModule, method: str, batch: TensorDictBase) -> Any:
        # A trainer may have its own way. A learner on Ray would go through
        # DistributedDataParallel, which takes no step in parts, and it is alone there.
        if isinstance(self._trainer, Trainer):
            return self._trainer.compute_loss(batch, method=method)
        return getattr(sac_loss, method)(batch)

    def _descend(self, loss: Tensor, part: str, metrics: dict[str, Tensor]) -> None:
        if part in self.optimizers:
            loss.backward()
            metrics[f"grad_norm_{part}"] = _step(self.optimizers[part], self._trainer)

    def _update_priority(self, trainer: Trainer, batch: TensorDictBase, td_error: Tensor) -> None:
        # A buffer in another process does not show its sampler, but what is sampled does.
        keys, buffer = trainer.loss_module.tensor_keys, trainer.replay_buffer
        if buffer is not None and keys.priority_weight in batch.keys():
            batch.set(keys.priority, td_error)
            buffer.update_tensordict_priority(batch)

    def register(self, trainer: Trainer, name: str = "optimization_stepper") -> None:
        super().register(trainer, name)
        add_learner_models(trainer, [self.skill_loss, trainer.loss_module], self.shared_encoder)

    def state_dict(self) -> dict[str, Any]:
        state = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        if self.relabeling is not None:
            state["relabeling"] = self.relabeling.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.relabeling is not None:
            self.relabeling.load_state_dict(state_dict["relabeling"])
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state_dict[name])


def step_skill_loss(
    losses: TensorDictBase, optimizers: Mapping[str, optim.Optimizer], trainer: Any = None
) -> dict[str, Tensor]:
    """One step of each part of a skill loss; returns its output detached, and gradient norms.

    Args:
        losses (TensorDictBase): output of a :class:`~torchrl_metra.SkillLoss`.
        optimizers (mapping of str to Optimizer): by part; a part without one is held fixed.
        trainer (Trainer, optional): its ``clip_norm`` and ``clip_grad_norm`` say how gradients
            are clipped.
    """
    # No loss reaches another's parameters, so one backward pass serves all.
    names = [key.removeprefix("loss_") for key in losses.keys() if key.startswith("loss_")]
    parts = [name for name in names if name in optimizers]
    sum(losses[f"loss_{name}"] for name in parts).backward()
    metrics = {name: value.detach() for name, value in losses.items()}
    for name in parts:
        metrics[f"grad_norm_{name}"] = _step(optimizers[name], trainer)
    return metrics


def read_keys(skill_loss: SkillLoss, sac_loss: LossModule) -> set[NestedKey]:
    """What a gradient step reads of a batch."""
    # TorchRL leaves out what only the critics read of the next state.
    observed = {*sac_loss.qvalue_network.in_keys} - {sac_loss.tensor_keys.action}
    following = {unravel_key(("next", key)) for key in observed}
    return {*map(unravel_key, [*skill_loss.in_keys, *sac_loss.in_keys]), *following}


def add_reward(skill_loss: SkillLoss, batch: TensorDictBase, sac_loss: LossModule) -> None:
    """Write today's reward, or what else the critics accumulate, where their loss reads it."""
    skill_key = skill_loss.tensor_keys.skill
    with torch.no_grad():
        batch.set(("next", sac_loss.tensor_keys.reward), skill_loss.cumulant(batch))
    # Critics value a skill as if it were kept, also where an episode changes it.
    batch.set(("next", skill_key), batch.get(skill_key))


def add_features(
    shared_encoder: TensorDictModule, batch: TensorDictBase, with_grad: bool = False
) -> None:
    """Write what policy and critics read of a shared encoder, for both ends of each transition.

    Args:
        shared_encoder (TensorDictModule): writes the features.
        batch (TensorDictBase): transitions, changed in place.
        with_grad (bool, optional): whether the first end has a gradient. Defaults to ``False``.
    """
    for end, is_trained in ((batch, with_grad), (batch.get("next"), False)):
        with torch.set_grad_enabled(is_trained):
            features = shared_encoder(end.select(*shared_encoder.in_keys))
        end.update(features.select(*shared_encoder.out_keys))


def has_parameters_of(optimizer: optim.Optimizer, module: nn.Module) -> bool:
    """Whether an optimizer trains a module."""
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    return any(id(weight) in trained for weight in module.parameters())


def _step(optimizer: optim.Optimizer, trainer: Any) -> Tensor:
    """A step along gradients, clipped if the trainer says so; returns their norm before that."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    clip_norm = getattr(trainer, "clip_norm", None)
    if clip_norm is not None:
        if getattr(trainer, "clip_grad_norm", True):
            clip_grads_with_norm_(parameters, clip_norm, norm)
        else:
            clip_grad_value_(parameters, clip_norm)
    optimizer.step()
    # What zero_grad() does, without its profiling marks.
    for parameter in parameters:
        parameter.grad = None
    return norm
