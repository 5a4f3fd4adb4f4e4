"""The DADS loss module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.networks import make_encoder
from torchrl_metra.objectives.common import SkillLoss
from torchrl_metra.objectives.functional import normal_log_prob

# Of the authors' code: bounds of the log-ratios, and how fast the statistics follow.
_LOG_RATIO_BOUND, _MOMENTUM = 50.0, 0.01


class DADSLoss(SkillLoss):
    r"""DADS: skills whose outcomes are predictable, and differ from those of other skills.

    Presented in "Dynamics-Aware Unsupervised Discovery of Skills", Sharma, Gu, Levine, Kumar
    and Hausman, ICLR 2020, https://arxiv.org/abs/1907.01657. Skill dynamics
    :math:`q(s' - s \mid s, z)` are learned by maximum likelihood (Equation 5), and the reward
    compares the skill with :math:`L` others (Equation 6):

    .. math::
        r = \log (L + 1) - \log \Big(1 + \sum_{l=1}^L
        \frac{q(s' - s \mid s, z_l)}{q(s' - s \mid s, z)}\Big), \qquad z_l \sim p(z).

    As in the METRA authors' code, :math:`q` is a Gaussian of unit variance, states and their
    changes are batch-normalized with slow running statistics, ratios are clipped to
    :math:`e^{\pm 50}`, and the last step of an episode is no example of the dynamics.

    Args:
        dynamics (nn.Module): mean of :math:`q`, from normalized states and skills,
            ``[N, S + D]``, to normalized changes, ``[N, S]``.
        prior (SkillPrior): distribution of the skills, of size ``D``. Continuous skills are
            usually :class:`~torchrl_metra.StandardNormal`.
        observation_size (int): ``S``.

    Keyword Args:
        num_alternatives (int, optional): :math:`L`. Defaults to 100.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    The output holds ``loss_dynamics`` and, detached, ``log_likelihood`` (mean of
    :math:`\log q`); the reward costs :math:`L + 1` passes of the dynamics, so it is left out.

    Examples:
        >>> from torchrl_metra import DADSLoss, SkillPrimer, StandardNormal, make_env
        >>> prior = StandardNormal(2)
        >>> dads_loss = DADSLoss.from_size(2, prior, num_cells=[32])
        >>> rollout = make_env("point", 4).append_transform(SkillPrimer(prior)).rollout(5)
        >>> dads_loss(rollout)["loss_dynamics"].backward()
        >>> dads_loss.reward(rollout).shape
        torch.Size([4, 5, 1])
    """

    @dataclass
    class _AcceptedKeys(SkillLoss._AcceptedKeys):
        """Configurable tensordict keys, set with ``.set_keys(key_name=key_value)``.

        Attributes:
            observation (NestedKey): the vector that is predicted. Defaults to
                ``"observation"``.
            done (NestedKey): where the end of an episode is marked, below ``"next"``.
                Defaults to ``"done"``.
        """

        observation: NestedKey = "observation"
        done: NestedKey = "done"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    out_keys = ["loss_dynamics", "log_likelihood"]

    def __init__(
        self,
        dynamics: nn.Module,
        prior: SkillPrior,
        observation_size: int,
        *,
        num_alternatives: int = 100,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(prior, reduction=reduction)
        self.dynamics = dynamics
        self.num_alternatives = num_alternatives
        self.observation_norm, self.change_norm = (
            nn.BatchNorm1d(observation_size, momentum=_MOMENTUM, affine=False, device=self.device)
            for _ in range(2)
        )

    @classmethod
    def from_size(
        cls, observation_size: int, prior: SkillPrior, *, num_cells: Sequence[int] = (1024, 1024)
    ) -> DADSLoss:
        """With the authors' network, of the encoder's kind."""
        dynamics = make_encoder(observation_size + prior.dim, observation_size, num_cells)
        return cls(dynamics, prior, observation_size)

    @property
    def state_keys(self) -> Sequence[NestedKey]:
        return [self.tensor_keys.observation]

    def read_keys(self) -> list[NestedKey]:
        return [*super().read_keys(), ("next", self.tensor_keys.done)]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"dynamics": list(self.dynamics.parameters())}

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        done = self.read(tensordict, ("next", self.tensor_keys.done))
        goes_on = ~done.reshape(tensordict.batch_size)
        skill = self.skill(tensordict)
        observation, change = self._normalized(tensordict, training=True)
        log_prob = self._log_prob(observation, change, skill)
        # The mean is over the steps that count.
        weight = goes_on / goes_on.to(log_prob.dtype).mean().clamp(min=1e-12)
        return {"loss_dynamics": -log_prob * weight, "log_likelihood": log_prob}

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        observation, change = self._normalized(tensordict, training=False)
        skill = self.skill(tensordict)
        others = self.prior.sample(
            [self.num_alternatives, *skill.shape[:-1]], device=skill.device
        ).to(skill.dtype)
        log_prob, other = (self._log_prob(observation, change, z) for z in (skill, others))
        ratio = (other - log_prob).clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
        normalizer = torch.logsumexp(ratio, dim=0)
        # log(1 + Σ e^x) = softplus(log Σ e^x)
        reward = math.log(self.num_alternatives + 1) - nn.functional.softplus(normalizer)
        return reward.unsqueeze(-1)

    def _log_prob(self, observation: Tensor, change: Tensor, skill: Tensor) -> Tensor:
        """Log-density of the normalized changes, of the shape of the skills' batch."""
        observation = observation.expand(*skill.shape[:-1], -1)
        inputs = torch.cat([observation, skill.to(observation.dtype)], dim=-1)
        mean = self.dynamics(inputs.reshape(-1, inputs.shape[-1]))
        return normal_log_prob(change - mean.reshape(observation.shape))

    def _normalized(self, tensordict: TensorDictBase, *, training: bool) -> tuple[Tensor, Tensor]:
        """Observations and their changes, by statistics of the batch or by running ones."""
        key = self.tensor_keys.observation
        observation, following = (self.read(tensordict, end) for end in (key, ("next", key)))
        dtype = next(self.observation_norm.buffers()).dtype
        observation, following = observation.to(dtype), following.to(dtype)
        change = following - observation
        pairs = ((observation, self.observation_norm), (change, self.change_norm))
        first, second = (_normalize(value, norm, training) for value, norm in pairs)
        return first, second


def _normalize(value: Tensor, norm: nn.BatchNorm1d, training: bool) -> Tensor:
    flat = batch_norm(
        value.reshape(-1, value.shape[-1]),
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        training=training,
        momentum=_MOMENTUM,
        eps=norm.eps,
    )
    return flat.reshape(value.shape)
