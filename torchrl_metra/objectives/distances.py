r"""Distances between adjacent states, other than METRA's own, for its constraint.

METRA bounds a latent step by the time that it takes: :math:`\|\phi(s') - \phi(s)\|^2 \le 1`.
Given to :class:`~torchrl_metra.METRALoss` as ``distance``, these put :math:`d(s, s')` in place
of the one. Both read vectors of floats, such as joint positions and velocities: for pictures,
give them the key of a vector that comes along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_metra.modules.networks import make_encoder
from torchrl_metra.objectives.functional import normal_log_prob


class L2Distance:
    r"""Mean squared change of the observation, :math:`d(s, s') = \frac1S \|s' - s\|_2^2`.

    With it, latent space mirrors observation space, the scales of its dimensions included,
    as in LSD (https://arxiv.org/abs/2202.00914). The authors' ``dual_dist="l2"``, with the
    mean over dimensions that their code takes.

    Keyword Args:
        observation_key (NestedKey, optional): the vector to compare, of shape ``[*B, S]``.
            Defaults to ``"observation"``.

    Raises:
        TypeError: by a call, if the observations are not floats.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import L2Distance, METRALoss, UnitSphere
        >>> batch = TensorDict(
        ...     {"observation": torch.zeros(2), "next": {"observation": torch.tensor([3.0, 4.0])}}
        ... )
        >>> L2Distance()(batch)
        tensor(12.5000)
        >>> encoder = MLP(in_features=2, out_features=2)
        >>> metra_loss = METRALoss(encoder, UnitSphere(2), distance=L2Distance())
    """

    def __init__(self, *, observation_key: NestedKey = "observation") -> None:
        self.in_keys = _both_ends(observation_key)

    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Squared bound on the latent step of each transition, of shape ``[*B]``."""
        _, step = _read_step(tensordict, self.in_keys)
        return step.square().mean(dim=-1)


class ControllabilityDistance(nn.Module):
    r"""Surprise of a transition under a learned density of transitions (CSD).

    Presented in "Controllability-Aware Unsupervised Skill Discovery", Park, Lee, Lee and
    Abbeel, ICML 2023, https://arxiv.org/abs/2302.05103; here as the bound of METRA's
    constraint, the METRA authors' ``dual_dist="s2_from_s"``. A Gaussian predicts the change
    of the observation from the observation alone; what it expects anyway counts little, a
    rare change much:

    .. math::
        q(s' - s \mid s) = \mathcal N(\mu(s), \sigma(s)^2), \qquad
        d(s, s') = \frac1S \sum_j w_j^2 \, (s'_j - s_j - \mu_j)^2, \qquad
        w_j = \frac{1 / \sigma_j}{(\prod_k 1 / \sigma_k)^{1/S}}

    The predictor is trained by :meth:`loss`, beside the encoder and by an optimizer of its
    own: :class:`~torchrl_metra.METRALoss` registers it and returns ``loss_distance``.

    Args:
        mean (nn.Module): :math:`\mu`, from observations ``[*B, S]`` to ``[*B, S]``.
        log_std (nn.Module): :math:`\log\sigma`, likewise; clamped to
            :math:`[\log 10^{-6}, \log 10^6]`.

    Keyword Args:
        observation_key (NestedKey, optional): the vector that is predicted. Defaults to
            ``"observation"``.

    Raises:
        TypeError: by a call, if the observations are not floats.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import ControllabilityDistance, METRALoss, UnitSphere
        >>> distance = ControllabilityDistance.from_size(4, num_cells=[32, 32])
        >>> prior = UnitSphere(2)
        >>> metra_loss = METRALoss(MLP(in_features=4, out_features=2), prior, distance=distance)
        >>> batch = TensorDict(
        ...     {
        ...         "observation": torch.randn(8, 4),
        ...         "skill": prior.sample([8]),
        ...         "next": {"observation": torch.randn(8, 4)},
        ...     },
        ...     batch_size=[8],
        ... )
        >>> metra_loss(batch)["loss_distance"].backward()
        >>> distance(batch).shape
        torch.Size([8])
    """

    log_std_bounds = (math.log(1e-6), math.log(1e6))

    def __init__(
        self, mean: nn.Module, log_std: nn.Module, *, observation_key: NestedKey = "observation"
    ) -> None:
        super().__init__()
        self.mean = mean
        self.log_std = log_std
        self.in_keys = _both_ends(observation_key)

    @classmethod
    def from_size(
        cls, observation_size: int, *, num_cells: Sequence[int] = (1024, 1024)
    ) -> ControllabilityDistance:
        """With the authors' networks: two of them, of the encoder's kind."""
        mean, log_std = (
            make_encoder(observation_size, observation_size, num_cells) for _ in range(2)
        )
        return cls(mean, log_std)

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Squared bound on the latent step of each transition, of shape ``[*B]``."""
        error, log_std = self._predict(tensordict)
        weight = (log_std.mean(dim=-1, keepdim=True) - log_std).exp()
        return (weight * error).square().mean(dim=-1)

    def loss(self, tensordict: TensorDictBase) -> Tensor:
        r"""Negative log-likelihood :math:`-\log q(s' - s \mid s)`, of shape ``[*B]``."""
        error, log_std = self._predict(tensordict)
        return -normal_log_prob(error / log_std.exp(), log_std)

    def _predict(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """What the mean misses of the step, and the logarithm of the spread around it."""
        observation, step = _read_step(tensordict, self.in_keys)
        mean, log_std = self.mean(observation), self.log_std(observation)
        # Small differences of large numbers: under autocast, at least take them in float32.
        return step - mean.to(step.dtype), log_std.to(step.dtype).clamp(*self.log_std_bounds)


def _both_ends(key: NestedKey) -> list[NestedKey]:
    return [unravel_key(key), unravel_key(("next", key))]


def _read_step(tensordict: TensorDictBase, keys: list[NestedKey]) -> tuple[Tensor, Tensor]:
    """The observation, and its change to the next one."""
    observation, following = (tensordict[key] for key in keys)
    if not torch.is_floating_point(observation):
        raise TypeError(
            f"the distance compares vectors of floats, but {keys[0]!r} is {observation.dtype}: "
            "set its observation_key to a vector that comes along."
        )
    return observation, following - observation
