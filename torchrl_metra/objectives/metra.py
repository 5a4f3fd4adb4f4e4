"""The METRA loss module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_metra._checks import check_choice, check_positive
from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.common import EncoderLoss
from torchrl_metra.objectives.functional import ConstraintNorm, effective_rank


class METRALoss(EncoderLoss):
    r"""METRA: a metric-aware abstraction of states, learned without reward.

    Presented in "METRA: Scalable Unsupervised RL with Metric-Aware Abstraction",
    Park, Rybkin and Levine, ICLR 2024, https://arxiv.org/abs/2310.08887.

    Trains an encoder :math:`\phi` so that skills move far along their own
    direction of the latent space, while adjacent states stay within a temporal
    distance of one (Equations 8 and 9):

    .. math::
        \max_\phi \; \mathbb{E}\left[(\phi(s') - \phi(s))^\top z\right]
        \quad \text{s.t.} \quad \|\phi(s') - \phi(s)\|_2 \le 1

    The constraint is enforced by a dual variable :math:`\lambda`, trained along.
    The policy is trained by any stock RL loss on :meth:`reward`; this module knows
    nothing of actors or critics.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        constraint_norm (str, optional): ``"l2"`` (default), the paper's Euclidean
            norm, or ``"rms"``, the authors' implementation, where the bound is
            :math:`\|\Delta\phi\|_2 \le \sqrt D`.
        slack (float, optional): :math:`\varepsilon \ge 0`, the most that a satisfied
            pair contributes to the constraint. Defaults to ``1e-3``.
        dual_init (float, optional): initial :math:`\lambda > 0`. Defaults to ``30.0``.
        fixed_dual (bool, optional): keep :math:`\lambda` at ``dual_init``.
            Defaults to ``False``.
        distance (Callable, optional): ``distance(tensordict) -> Tensor`` of shape
            ``[*B]``, the squared bound :math:`d(s, s')` on a latent step, to which the
            encoder's loss has no gradient. Its ``in_keys``, if it has any, are read of the
            batch. A module with a method ``loss(tensordict)``, also of shape ``[*B]``, is
            trained along, see :class:`~torchrl_metra.ControllabilityDistance`.
            Defaults to 1, METRA's temporal distance.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if a keyword is out of range, or, by a call, if the distance is not of shape
            ``[*B]``.

    The output holds ``loss_encoder``, ``loss_dual`` and, for a distance that is trained
    along, ``loss_distance``, to be minimized by one optimizer each, and detached values
    to log: ``intrinsic_reward``,
    ``constraint``, ``constraint_violation`` (fraction of pairs beyond the bound),
    ``dual`` (:math:`\lambda`), ``latent_step`` (:math:`\|\phi(s') - \phi(s)\|_2`) and
    ``latent_rank``, in how many directions they point
    (:func:`~torchrl_metra.objectives.functional.effective_rank`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import METRALoss, UnitSphere
        >>> prior = UnitSphere(2)
        >>> metra_loss = METRALoss(MLP(in_features=4, out_features=2), prior)
        >>> batch = TensorDict(
        ...     {
        ...         "observation": torch.randn(8, 4),
        ...         "skill": prior.sample([8]),
        ...         "next": {"observation": torch.randn(8, 4)},
        ...     },
        ...     batch_size=[8],
        ... )
        >>> losses = metra_loss(batch)
        >>> (losses["loss_encoder"] + losses["loss_dual"]).backward()
        >>> metra_loss.reward(batch).shape
        torch.Size([8, 1])

        Without TensorDict:

        >>> _ = metra_loss.select_out_keys("loss_encoder", "loss_dual")
        >>> loss_encoder, loss_dual = metra_loss(
        ...     observation=torch.randn(8, 4),
        ...     next_observation=torch.randn(8, 4),
        ...     skill=prior.sample([8]),
        ... )
    """

    out_keys = [
        "loss_encoder",
        "loss_dual",
        "intrinsic_reward",
        "constraint",
        "constraint_violation",
        "dual",
        "latent_step",
        "latent_rank",
    ]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        constraint_norm: ConstraintNorm = "l2",
        slack: float = 1e-3,
        dual_init: float = 30.0,
        fixed_dual: bool = False,
        distance: Callable[[TensorDictBase], Tensor] | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(encoder, prior, reduction=reduction)
        check_choice("constraint_norm", constraint_norm, get_args(ConstraintNorm))
        if not slack >= 0:
            raise ValueError(f"slack must not be negative, got {slack}.")
        check_positive("dual_init", dual_init)
        self.constraint_norm = constraint_norm
        self.slack = slack
        self.distance: Any = distance
        self._trains_distance = isinstance(distance, nn.Module) and hasattr(distance, "loss")
        if self._trains_distance:
            self.out_keys = [*self.out_keys, "loss_distance"]
        log_dual = torch.tensor(math.log(dual_init), device=self.device)
        if fixed_dual:
            self.register_buffer("log_dual", log_dual)
        else:
            self.log_dual = nn.Parameter(log_dual)

    def read_keys(self) -> list[NestedKey]:
        return [*super().read_keys(), *getattr(self.distance, "in_keys", [])]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        if isinstance(self.log_dual, nn.Parameter):
            groups["dual"] = [self.log_dual]
        if self._trains_distance:
            groups["distance"] = list(self.distance.parameters())
        return groups

    @property
    def dual(self) -> Tensor:
        """Dual variable λ, a detached scalar."""
        return self.log_dual.detach().exp()

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        return self.evaluate(tensordict, *self.encode_pair(tensordict))

    def evaluate(
        self, tensordict: TensorDictBase, latent: Tensor, next_latent: Tensor
    ) -> dict[str, Tensor]:
        """Losses and what else is logged, of shape ``[*B]``, from φ(s) and φ(s') ``[*B, D]``."""
        step = next_latent - latent
        # Equation 7: how far the transition moves along its skill.
        reward, along = self.rewards(step, tensordict)
        # Equations 8 and 9: negative where a pair of adjacent states is too far apart.
        squares = step.square()
        length = squares.sum(dim=-1) if self.constraint_norm == "l2" else squares.mean(dim=-1)
        constraint = (self._bound(tensordict) - length).clamp(max=self.slack)
        entries = {
            "loss_encoder": -(along + self.dual * constraint),
            # The derivative is taken with respect to log λ itself, so that λ moves by a constant
            # factor whatever its size, as in the authors' implementation.
            "loss_dual": self.log_dual * constraint.detach(),
            "intrinsic_reward": reward,
            "constraint": constraint,
            "constraint_violation": (constraint < 0).to(reward.dtype),
            "latent_step": step.norm(dim=-1),
            "latent_rank": effective_rank(step).expand(reward.shape),
            "dual": self.dual.expand(reward.shape),
        }
        if self._trains_distance:
            entries["loss_distance"] = self.distance.loss(tensordict)
        return entries

    def _bound(self, tensordict: TensorDictBase) -> Tensor | float:
        """The squared bound on each latent step."""
        if self.distance is None:
            return 1.0
        # Detached only then: what autocast keeps of weights seen without gradient would go on
        # to the distance's own loss.
        distance = self.distance(tensordict).detach()
        if distance.shape != tensordict.batch_size:  # [*B, 1] would broadcast in silence.
            raise ValueError(
                f"the distance must return a tensor of the batch's shape "
                f"{list(tensordict.batch_size)}, got {list(distance.shape)}."
            )
        return distance
