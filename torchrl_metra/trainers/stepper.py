"""One gradient step of METRA, and of its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn, optim
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torchrl.objectives import DiscreteSACLoss, LossModule, SACLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.trainers import OptimizationStepper, Trainer

from torchrl_metra._checks import check_optimizers, check_type
from torchrl_metra.objectives import SkillLoss
from torchrl_metra.trainers.checkpoint import load_optimizer
from torchrl_metra.trainers.graph import UpdateGraph

__all__ = ["METRAOptimizationStepper", "make_metra_optimizers", "relabel", "step_skill_loss"]


def make_metra_optimizers(
    skill_loss: SkillLoss, sac_loss: SACLoss | DiscreteSACLoss, lr: float = 1e-4, **lrs: float
) -> dict[str, optim.Optimizer]:
    """One fused Adam per part, as the authors have it (Appendix F.1).

    Args:
        skill_loss (SkillLoss): owns what its ``parameter_groups`` say: METRA's are φ
            (``"encoder"``), λ (``"dual"``) and what is learned of the constraint's distance
            (``"distance"``).
        sac_loss (SACLoss or DiscreteSACLoss): owns the critics (``"qvalue"``), the policy
            (``"actor"``) and the entropy coefficient (``"alpha"``).
        lr (float, optional): learning rate. Defaults to 1e-4.
        **lrs: learning rates of single parts, such as ``dual=3e-3``.

    Returns:
        The optimisers by part; parts held fixed or without parameters have none.

    Raises:
        TypeError: if a loss is of the wrong kind.
        ValueError: if a learning rate is given for an unknown part, or if the critics are
            not made for what the skill loss has them predict.

    Examples:
        >>> from torchrl.objectives import SACLoss
        >>> from torchrl_metra import METRALoss, UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> networks = make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[32])
        >>> metra_loss = METRALoss(networks.encoder, prior)
        >>> sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0)
        >>> sorted(make_metra_optimizers(metra_loss, sac_loss, lr=3e-4, dual=1e-3))
        ['actor', 'alpha', 'dual', 'encoder', 'qvalue']
    """
    check_type("skill_loss", skill_loss, SkillLoss, "a skill loss such as METRALoss")
    check_type("sac_loss", sac_loss, SACLoss | DiscreteSACLoss, "a SACLoss or DiscreteSACLoss")
    check_cumulant(skill_loss, sac_loss)
    check_policy_loss(sac_loss)
    parts = {
        **skill_loss.parameter_groups(),
        "qvalue": list(sac_loss.qvalue_network_params.parameters()),
        "actor": list(sac_loss.actor_network_params.parameters()),
        "alpha": [sac_loss.log_alpha],
    }
    if unknown := lrs.keys() - parts.keys():
        raise ValueError(
            f"learning rates for unknown parts {sorted(unknown)}, expected {sorted(parts)}."
        )
    return {
        # On CUDA the count of steps lives there too: nothing to wait for, and graphs can be made.
        name: optim.Adam(
            parameters, lr=lrs.get(name, lr), fused=True, capturable=parameters[0].is_cuda
        )
        for name, parameters in parts.items()
        if parameters and all(parameter.requires_grad for parameter in parameters)
    }


class METRAOptimizationStepper(OptimizationStepper):
    """One gradient step of METRA, in the authors' order (Algorithm 1).

    φ, λ and what is learned of the constraint's distance (of another skill loss: all of its
    parameter groups), then the rewards anew with the φ just updated, then critics, policy and
    entropy coefficient, each with an optimiser of its own, then the targets.

    The rewards go where the trainer's ``SACLoss`` reads them. Priorities of a
    prioritised replay buffer are updated from the critics' error.

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
            type, ``torch.bfloat16``. Weights, optimisers and latents stay in float32.
        shared_encoder (TensorDictModule, optional): a part of φ whose output policy and
            critics read, see :func:`~torchrl_metra.make_pixel_sac_networks`. Without
            gradient, it adds its ``out_keys`` to both ends of each transition.

    Raises:
        ValueError: if ``optimizers`` lacks ``"qvalue"``, ``"actor"`` or the skill loss's
            first part, such as ``"encoder"``.
        TypeError: if ``target_net_updater`` is no ``SoftUpdate``, or another argument of the
            wrong type.

    Examples:
        >>> from torchrl.objectives import SACLoss
        >>> from torchrl_metra import METRALoss, UnitSphere, make_env, make_sac_networks
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
    ) -> None:
        check_type("skill_loss", skill_loss, SkillLoss, "a skill loss such as METRALoss")
        check_optimizers(optimizers)
        main = next(iter(skill_loss.parameter_groups()))
        if missing := {main, "qvalue", "actor"} - optimizers.keys():
            raise ValueError(
                f"optimizers lack {sorted(missing)}; make_metra_optimizers builds them all."
            )
        if not isinstance(target_net_updater, SoftUpdate | None):
            raise TypeError(
                "target_net_updater must be a SoftUpdate, got "
                f"{type(target_net_updater).__name__}: give others to the trainer."
            )
        self.skill_loss = skill_loss
        self.optimizers = dict(optimizers)
        self.target_net_updater = target_net_updater
        self.compile = compile
        self.cudagraphs = cudagraphs
        self.autocast = autocast
        self.shared_encoder = shared_encoder
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
            losses = self.skill_loss(batch)
        metrics = step_skill_loss(losses, self.optimizers, self._clip)

        with self._autocast():
            relabel(self.skill_loss, batch, sac_loss)
            if self.shared_encoder is not None:
                add_features(self.shared_encoder, batch)

        with self._autocast():
            loss_qvalue, critic = self._evaluate(sac_loss, critic_loss(sac_loss), batch)
        self._descend(loss_qvalue, "qvalue", metrics)

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
        return metrics.update(
            {
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
        return UpdateGraph(
            partial(self.update, sac_loss),
            self.optimizers,
            sorted(in_keys, key=str),
            compile=self.compile,
            cudagraphs=self.cudagraphs,
        )

    def _autocast(self) -> torch.autocast:
        # The cache would outlive the weights, which change between two losses.
        device = next(self.skill_loss.parameters()).device.type
        return torch.autocast(
            device, self.autocast, enabled=self.autocast is not None, cache_enabled=False
        )

    def _evaluate(self, sac_loss: LossModule, method: str, batch: TensorDictBase) -> Any:
        # The trainer's way, which may be one of its own. A learner on Ray would go through
        # DistributedDataParallel, which takes no step in parts, and it is alone there.
        if isinstance(self._trainer, Trainer):
            return self._trainer.compute_loss(batch, method=method)
        return getattr(sac_loss, method)(batch)

    @property
    def _clip(self) -> Clip:
        return Clip.of(self._trainer)

    def _descend(self, loss: Tensor, part: str, metrics: TensorDictBase) -> None:
        if part in self.optimizers:
            loss.backward()
            metrics[f"grad_norm_{part}"] = _step(self.optimizers[part], self._clip)

    def _update_priority(self, trainer: Trainer, batch: TensorDictBase, td_error: Tensor) -> None:
        # A buffer in another process does not show its sampler, but what is sampled does.
        keys, buffer = trainer.loss_module.tensor_keys, trainer.replay_buffer
        if buffer is not None and keys.priority_weight in batch.keys():
            batch.set(keys.priority, td_error)
            buffer.update_tensordict_priority(batch)

    def register(self, trainer: Trainer, name: str = "optimization_stepper") -> None:
        super().register(trainer, name)
        if (models := getattr(trainer, "models", None)) is None:
            return
        # A learner on Ray: what it gives away, by name.
        models["losses"] = nn.ModuleList([self.skill_loss, trainer.loss_module])
        if self.shared_encoder is not None:
            models["policy"] = TensorDictSequential(self.shared_encoder, models["policy"])

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state_dict[name])


class Clip(NamedTuple):
    """How gradients are clipped, in the words of TorchRL's trainers.

    Attributes:
        clip_norm (float, optional): largest norm of the gradient of each part, or largest
            absolute value of its entries; ``None`` (default): nothing is clipped.
        clip_grad_norm (bool): the norm (default), or the entries.
    """

    clip_norm: float | None = None
    clip_grad_norm: bool = True

    @classmethod
    def of(cls, trainer: Any) -> Clip:
        """What the trainer asks for."""
        return cls(getattr(trainer, "clip_norm", None), getattr(trainer, "clip_grad_norm", True))


NO_CLIP = Clip()


def critic_loss(sac_loss: SACLoss | DiscreteSACLoss) -> str:
    """The name of the method that computes the critics' loss."""
    return "qvalue_loss" if isinstance(sac_loss, DiscreteSACLoss) else "qvalue_v2_loss"


def step_skill_loss(
    losses: TensorDictBase, optimizers: Mapping[str, optim.Optimizer], clip: Clip = NO_CLIP
) -> TensorDictBase:
    """One step of each part of a skill loss; returns its output detached, and gradient norms."""
    # No loss reaches another's parameters, so one backward pass serves all.
    names = [key.removeprefix("loss_") for key in losses.keys() if key.startswith("loss_")]
    parts = [name for name in names if name in optimizers]
    sum(losses[f"loss_{name}"] for name in parts).backward()
    metrics = losses.detach()
    for name in parts:
        metrics[f"grad_norm_{name}"] = _step(optimizers[name], clip)
    return metrics


def read_keys(skill_loss: SkillLoss, sac_loss: LossModule) -> set[NestedKey]:
    """What a gradient step reads of a batch."""
    # TorchRL leaves out what only the critics read of the next state.
    observed = {*sac_loss.qvalue_network.in_keys} - {sac_loss.tensor_keys.action}
    following = {unravel_key(("next", key)) for key in observed}
    return {*map(unravel_key, [*skill_loss.in_keys, *sac_loss.in_keys]), *following}


def relabel(skill_loss: SkillLoss, batch: TensorDictBase, sac_loss: LossModule) -> None:
    """Write today's reward, or what else the critics accumulate, where their loss reads it."""
    skill_key = skill_loss.tensor_keys.skill
    with torch.no_grad():
        batch.set(("next", sac_loss.tensor_keys.reward), skill_loss.cumulant(batch))
    # A skill lasts for the whole episode: no need to store it twice.
    batch.set(("next", skill_key), batch.get(skill_key))


def check_cumulant(skill_loss: SkillLoss, sac_loss: LossModule) -> None:
    """Refuse critics that were not made for what the skill loss has them predict."""
    expected, found = skill_loss.cumulant_size, getattr(sac_loss, "cumulant_size", 1)
    if expected != found:
        raise ValueError(
            f"{type(skill_loss).__name__} needs critics that predict {expected} "
            f"{'numbers' if expected > 1 else 'number'}, but those of {type(sac_loss).__name__} "
            f"predict {found}: CSFLoss goes with SuccessorFeatureSACLoss, the others with SACLoss."
        )


def check_policy_loss(sac_loss: LossModule) -> None:
    """Refuse a policy loss with a part that no step would train.

    Raises:
        ValueError: if it has a value network beside the critics, SAC's first version.
    """
    if getattr(sac_loss, "value_network_params", None) is not None:
        raise ValueError(
            f"{type(sac_loss).__name__} has a value_network, which nothing here trains: build it "
            "without, so that targets come from the critics."
        )


@torch.no_grad()
def add_features(shared_encoder: TensorDictModule, batch: TensorDictBase) -> None:
    """Write what policy and critics read of a shared encoder, for both ends of each transition."""
    ends = [end.select(*shared_encoder.in_keys) for end in (batch, batch.get("next"))]
    features = shared_encoder(torch.stack(ends).flatten(0, batch.ndim))
    features = features.select(*shared_encoder.out_keys).unflatten(0, (2, *batch.batch_size))
    batch.update(features[0])
    batch.get("next").update(features[1])


def _step(optimizer: optim.Optimizer, clip: Clip) -> Tensor:
    """A step along gradients, clipped if asked for; returns their norm before that."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients)
    if clip.clip_norm is not None:
        if clip.clip_grad_norm:
            clip_grads_with_norm_(parameters, clip.clip_norm, norm)
        else:
            clip_grad_value_(parameters, clip.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
