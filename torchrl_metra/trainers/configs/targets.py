"""What a config calls in place of the constructor: ``make_NAME_GROUP``, if there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn, optim
from torchrl.objectives import SACLoss

from torchrl_metra import (
    BatchedSACLoss,
    SkillHook,
    SkillLoss,
    SuccessorFeatureSACLoss,
    make_metra_optimizers,
)


def make_metra_optimizer(
    *,
    skill_loss: SkillLoss,
    sac_loss: SACLoss,
    lr: float,
    shared_encoder: nn.Module | None,
    lrs: dict[str, float],
) -> dict[str, optim.Optimizer]:
    """:func:`~torchrl_metra.make_metra_optimizers`, whose ``lrs`` are a mapping."""
    return make_metra_optimizers(skill_loss, sac_loss, lr, shared_encoder=shared_encoder, **lrs)


def make_metra_hook(
    *, skill_loss: SkillLoss, optimizers: Callable[..., Any] | Mapping[str, Any]
) -> SkillHook:
    """:class:`~torchrl_metra.SkillHook` with optimizers from constructors.

    Args:
        skill_loss (SkillLoss): the objective.
        optimizers (Callable or mapping): one constructor for all of the skill loss's parameter
            groups, such as ``optimizer: adam`` of TorchRL's configs, or one for each.
    """
    groups = {
        name: parameters
        for name, parameters in skill_loss.parameter_groups().items()
        if parameters and all(parameter.requires_grad for parameter in parameters)
    }
    if not isinstance(optimizers, Mapping):
        optimizers = dict.fromkeys(groups, optimizers)
    made = {name: make(params=groups[name]) for name, make in optimizers.items()}
    return SkillHook(skill_loss, made)


def make_batched_sac_loss(*, gamma: float | None, **arguments: Any) -> SACLoss:
    """:class:`~torchrl_metra.BatchedSACLoss` with its discount."""
    return _with_discount(BatchedSACLoss(**arguments), gamma)


def make_successor_sac_loss(*, gamma: float | None, **arguments: Any) -> SACLoss:
    """:class:`~torchrl_metra.SuccessorFeatureSACLoss` with its discount."""
    return _with_discount(SuccessorFeatureSACLoss(**arguments), gamma)


def _with_discount(loss: SACLoss, gamma: float | None) -> SACLoss:
    # The constructor refuses the discount in favor of this method.
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    return loss
