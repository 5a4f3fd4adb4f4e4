"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

# ---- torchrl: losses


def reduce_loss(loss_module: LossModule, values: Tensor, tensordict: TensorDictBase) -> Tensor:
    """Reduce a loss by the module's ``reduction``, with the batch's masks and priority weights.

    torchrl 0.14.1: ``LossModule._reduce_loss``, ``LossModule._maybe_get_priority_weight``.
    """
    weights = loss_module._maybe_get_priority_weight(tensordict)
    return loss_module._reduce_loss(values, tensordict, weights=weights)


def reduce_metric(loss_module: LossModule, values: Tensor, tensordict: TensorDictBase) -> Tensor:
    """The detached mean of what is logged, without weights; all of it with ``reduction="none"``.

    torchrl 0.14.1: ``LossModule._reduce_loss``.
    """
    if loss_module.reduction == "none":
        return values.detach()
    return loss_module._reduce_loss(values.detach(), tensordict, reduction="mean")


class BatchedCritics:
    """Base of SAC losses that evaluate all critics in ``evaluate_critics(tensordict, params)``.

    torchrl 0.14.1: ``SACLoss._make_vmap``, ``SACLoss._vmap_qnetworkN0``, which hold
    :func:`torch.vmap` of one critic.
    """

    evaluate_critics: Any

    def _make_vmap(self) -> None:
        """There is nothing to build."""

    def _vmap_qnetworkN0(self, tensordict: TensorDictBase, params: TensorDictBase) -> Any:
        return self.evaluate_critics(tensordict, params)


# ---- torchrl: distributions


# ---- torchrl: trainers


def add_learner_models(
    learner: Any, losses: list[LossModule], shared_encoder: nn.Module | None
) -> None:
    """Name what a learner on Ray gives away; other trainers have nothing to name.

    torchrl 0.14.1: ``models`` of the runtime that builds a Ray learner.
    """
    if (models := getattr(learner, "models", None)) is None:
        return
    models["losses"] = nn.ModuleList(losses)
    if shared_encoder is not None:
        models["policy"] = TensorDictSequential(shared_encoder, models["policy"])


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


# ---- torchrl: environments


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


# ---- the standard library
