"""The CIC loss module."""

from __future__ import annotations

from math import exp
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchrl.envs.transforms.rnd import RunningMeanStd

from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.common import EncoderLoss
from torchrl_metra.objectives.functional import pairwise_products

# Of the authors' code: distances below the first count as none, the second guards a division.
_DISTANCE_FLOOR, _EPSILON = 5e-4, 1e-6
_LOWEST_TEMPERATURE = 0.0125


class CICLoss(EncoderLoss):
    r"""CIC: transitions spread out, in a space where they tell their skill.

    Presented in "Unsupervised Reinforcement Learning with Contrastive Intrinsic Control",
    Laskin, Liu, Peng, Yarats, Rajeswaran and Abbeel, NeurIPS 2022,
    https://arxiv.org/abs/2202.00161. Query :math:`q(z)` and key :math:`k(\phi(s), \phi(s'))`,
    both scaled to unit length, are trained contrastively within a batch of :math:`N`
    transitions (Equation 5),

    .. math::
        \mathcal L_i = -\log \frac{e^{q_i^\top k_i / T}}
        {\sum_{j=1}^N e^{q_i^\top k_j / T} - e^{1 / T}},

    and the reward is a particle estimate of entropy (Equation 7): the :math:`M` shortest
    distances from :math:`\phi(s)_i` to the :math:`\phi(s')_j` of the batch, each divided by
    their running standard deviation and less 5e-4, averaged, as :math:`\log(1 + \cdot)`.
    Rewards hence depend on the batch, and one of fewer than :math:`M` transitions has none. Batches
    should be large: as the loss leaves the pair itself out of the denominator at its largest
    possible value, it favors collapse below some 80 transitions at :math:`T = 0.5`.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.
        query (nn.Module): :math:`q`, from ``[N, D]`` to ``[N, E]``.
        key (nn.Module): :math:`k`, from ``[N, 2 D]``, φ of both states, to ``[N, E]``.

    Keyword Args:
        temperature (float, optional): :math:`T \ge 0.0125`. Defaults to 0.5.
        num_neighbors (int, optional): :math:`M`. Defaults to 16.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if the temperature is too low, or, by a call, if a batch is smaller than
            ``num_neighbors``.

    The output holds ``loss_encoder``, which trains φ, query and key together, and, detached,
    ``intrinsic_reward``, ``query_accuracy`` (how often the key nearest to a query is its own)
    and ``neighbor_distance`` (mean of the :math:`M` distances).

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import CICLoss, SkillPrimer, UnitSphere, make_env
        >>> env = make_env("point", 4).append_transform(SkillPrimer(UnitSphere(2)))
        >>> encoder, query = (MLP(in_features=2, out_features=2) for _ in range(2))
        >>> key = MLP(in_features=4, out_features=2)
        >>> cic_loss = CICLoss(encoder, UnitSphere(2), query, key)
        >>> batch = env.rollout(5)
        >>> cic_loss(batch)["loss_encoder"].backward()
        >>> cic_loss.reward(batch).shape
        torch.Size([4, 5, 1])
    """

    out_keys = ["loss_encoder", "intrinsic_reward", "query_accuracy", "neighbor_distance"]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        query: nn.Module,
        key: nn.Module,
        *,
        temperature: float = 0.5,
        num_neighbors: int = 16,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(encoder, prior, reduction=reduction)
        if temperature < _LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature must be at least {_LOWEST_TEMPERATURE}, got {temperature}: float32 "
                "has no room for exp(1 / temperature) below that."
            )
        self.query = query
        self.key = key
        self.temperature = temperature
        self.num_neighbors = num_neighbors
        self.distance_stats = RunningMeanStd().to(self.device)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        networks = [self.encoder, self.query, self.key]
        return {"encoder": [weight for network in networks for weight in network.parameters()]}

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        batch_size, skill = tensordict.batch_size, self.skill(tensordict)
        latent, next_latent = (
            end.reshape(-1, self.prior.dim) for end in self.encode_pair(tensordict)
        )
        query = self.query(skill.reshape(latent.shape))
        key = self.key(torch.cat([latent, next_latent], dim=-1))
        # Under autocast they may come in low precision.
        query, key = (normalize(output.to(latent.dtype), dim=-1) for output in (query, key))
        similarity = pairwise_products(query, key) / self.temperature
        distance = self._nearest(latent.detach(), next_latent.detach())
        self.distance_stats.update(distance)
        entries = {
            "loss_encoder": _contrast(similarity, 1 / self.temperature),
            "intrinsic_reward": self._entropy(distance),
            "query_accuracy": (similarity.diagonal() >= similarity.amax(dim=-1)).to(latent.dtype),
            "neighbor_distance": distance.mean(dim=-1),
        }
        return {name: value.reshape(batch_size) for name, value in entries.items()}

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        latent, next_latent = self.encode_pair(tensordict)
        distance = self._nearest(
            *(end.reshape(-1, self.prior.dim) for end in (latent, next_latent))
        )
        return self._entropy(distance).reshape(*tensordict.batch_size, 1)

    def _nearest(self, latent: Tensor, next_latent: Tensor) -> Tensor:
        """Shortest distances from each φ(s) to those φ(s') of the batch, of shape ``[N, M]``."""
        if len(latent) < self.num_neighbors:
            raise ValueError(
                f"a batch of {len(latent)} transitions has no {self.num_neighbors} nearest "
                "neighbors: take larger batches, or set num_neighbors."
            )
        # Of close pairs far from the origin, the faster way by products would leave only rounding.
        distance = torch.cdist(latent, next_latent, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.topk(self.num_neighbors, dim=-1, largest=False).values

    def _entropy(self, distance: Tensor) -> Tensor:
        scaled = distance / self.distance_stats.var.sqrt()
        return (scaled - _DISTANCE_FLOOR).clamp(min=0).mean(dim=-1).log1p()


def _contrast(similarity: Tensor, largest: float) -> Tensor:
    """Cross-entropy of the diagonal against the rest, of shape ``[N]``."""
    others = similarity.exp().sum(dim=-1) - exp(largest)
    return (others.clamp(min=_EPSILON) + _EPSILON).log() - similarity.diagonal()
