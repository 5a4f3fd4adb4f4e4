"""The DIAYN loss module."""

from __future__ import annotations

import math
from typing import Literal

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_metra.data import OneHot, SkillPrior
from torchrl_metra.objectives.common import EncoderLoss
from torchrl_metra.objectives.functional import normal_log_prob


class DIAYNLoss(EncoderLoss):
    r"""DIAYN: skills that can be told from the states that they visit.

    Presented in "Diversity is All You Need: Learning Skills without a Reward Function",
    Eysenbach, Gupta, Ibarz and Levine, ICLR 2019, https://arxiv.org/abs/1802.06070
    (Equation 3):

    .. math::
        \max_{q} \; \mathbb{E}\left[\log q(z \mid s')\right], \qquad
        r = \log q(z \mid s').

    The encoder is the discriminator :math:`q`: the logits of one-hot skills, the mean of a
    Gaussian for continuous ones. As in the METRA authors' code, the reward goes without
    :math:`-\log p(z)`, which for one-hot skills is a constant.

    Args:
        encoder (nn.Module or TensorDictModule): mean or logits of :math:`q`, from
            observations to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``. Continuous skills
            are usually :class:`~torchrl_metra.StandardNormal`.

    Keyword Args:
        log_std (nn.Module, optional): :math:`\log\sigma` of the Gaussian, from what the encoder
            reads to ``[*B, D]``; clamped to :math:`[\log 10^{-6}, \log 10^6]`. Defaults to
            :math:`\sigma = 1`.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if one-hot skills are given a ``log_std``.

    The output holds ``loss_encoder`` and, detached, ``intrinsic_reward``.

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import DIAYNLoss, OneHot, SkillPrimer, make_env
        >>> prior = OneHot(8)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> diayn_loss = DIAYNLoss(MLP(in_features=2, out_features=8), prior)
        >>> batch = env.rollout(5)
        >>> diayn_loss(batch)["loss_encoder"].backward()
        >>> diayn_loss.reward(batch).shape
        torch.Size([4, 5, 1])
    """

    log_std_bounds = (math.log(1e-6), math.log(1e6))
    out_keys = ["loss_encoder", "intrinsic_reward"]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        log_std: nn.Module | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(encoder, prior, reduction=reduction)
        if log_std is not None and isinstance(prior, OneHot):
            raise ValueError(
                f"log_std belongs to continuous skills, but those of {prior!r} are discrete."
            )
        self.log_std = log_std

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        if self.log_std is not None:
            groups["encoder"] += self.log_std.parameters()
        return groups

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        log_prob = self.log_prob(tensordict)
        return {"loss_encoder": -log_prob, "intrinsic_reward": log_prob}

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        return self.log_prob(tensordict).unsqueeze(-1)

    def log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """Logarithm of :math:`q(z | s')`, of shape ``[*B]``."""
        skill, output = self.skill(tensordict), self.encode(tensordict, following=True)
        if isinstance(self.prior, OneHot):
            return (output.log_softmax(dim=-1) * skill).sum(dim=-1)
        if self.log_std is None:
            return normal_log_prob(skill - output)
        states = [self.read(tensordict, ("next", key)) for key in self.state_keys]
        log_std = self.log_std(*states).clamp(*self.log_std_bounds)
        return normal_log_prob((skill - output) / log_std.exp(), log_std)
