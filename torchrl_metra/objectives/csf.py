"""The CSF loss module."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.common import EncoderLoss
from torchrl_metra.objectives.functional import pairwise_products
from torchrl_metra.objectives.successor import check_linear


class CSFLoss(EncoderLoss):
    r"""CSF: contrastive successor features, mutual information in place of METRA's constraint.

    Presented in "Can a MISL Fly? Analysis and Ingredients for Mutual Information Skill
    Learning", Zheng, Tuyls, Peng and Eysenbach, ICLR 2025, https://arxiv.org/abs/2412.08021.
    φ tells the skill that was followed from others, by a contrastive lower bound of the mutual
    information with scaled negatives:

    .. math::
        \max_\phi \; \mathbb{E}\left[(\phi(s') - \phi(s))^\top z
        - \xi \, \log \sum_{k=1}^K e^{(\phi(s') - \phi(s))^\top z_k}\right],
        \qquad z_k \sim p(z).

    The policy's critics are successor features: they predict the sum of
    :math:`\phi(s') - \phi(s)` to come, a vector, and so this loss goes with
    :class:`~torchrl_metra.SuccessorFeatureSACLoss`.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``. The authors take
            :class:`~torchrl_metra.UnitSphere`.

    Keyword Args:
        num_negatives (int, optional): :math:`K`, skills drawn anew for each batch and shared
            by its transitions. Defaults to 256.
        negative_weight (float, optional): :math:`\xi > 0`. Defaults to 5.0.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if skills have a speed, as those of :class:`~torchrl_metra.UnitBall`.

    The output holds ``loss_encoder`` and, detached, ``intrinsic_reward`` and ``latent_step``
    (:math:`\|\phi(s') - \phi(s)\|_2`).

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import CSFLoss, SkillPrimer, UnitSphere, make_env
        >>> prior = UnitSphere(2)
        >>> csf_loss = CSFLoss(MLP(in_features=2, out_features=2), prior)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> data = env.rollout(5)
        >>> csf_loss(data)["loss_encoder"].backward()
        >>> csf_loss.reward(data).shape, csf_loss.cumulant(data).shape
        (torch.Size([4, 5, 1]), torch.Size([4, 5, 2]))
    """

    out_keys = ["loss_encoder", "latent_step", "intrinsic_reward"]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        num_negatives: int = 256,
        negative_weight: float = 5.0,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(encoder, prior, reduction=reduction)
        check_linear(prior)
        self.num_negatives = num_negatives
        self.negative_weight = negative_weight
        self.cumulant_size = prior.dim

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        step = self.cumulant(tensordict)
        reward, along = self.rewards(step, tensordict)
        negatives = self.prior.center(
            self.prior.sample([self.num_negatives], device=step.device).to(step.dtype)
        )
        normalizer = torch.logsumexp(pairwise_products(step, negatives), dim=-1)
        return {
            "loss_encoder": self.negative_weight * normalizer - along,
            "intrinsic_reward": reward,
            "latent_step": step.norm(dim=-1),
        }

    def cumulant(self, tensordict: TensorDictBase) -> Tensor:
        r"""Latent step :math:`\phi(s') - \phi(s)`, of shape ``[*B, D]``."""
        latent, next_latent = self.encode_pair(tensordict)
        return next_latent - latent
