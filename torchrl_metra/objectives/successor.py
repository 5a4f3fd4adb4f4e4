"""SAC whose critics are successor features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss
from torchrl.objectives.utils import distance_loss

from torchrl_metra._private import reduce_loss
from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.sac import BatchedSACLoss


class SuccessorFeatureSACLoss(BatchedSACLoss):
    r"""SAC for a reward that is linear in the skill, :math:`r = \Delta\phi^\top z`.

    The critics of CSF (Section 5 of https://arxiv.org/abs/2412.08021) predict a vector, the
    discounted sum of the latent steps to come, whose product with the skill is the value:

    .. math::
        \psi(s, z, a) \leftarrow \Delta\phi + \gamma \, \psi'(s', z, a'), \qquad
        \mathcal L_\pi = \alpha \log \pi(a \mid s, z) - \min_i \psi_i(s, z, a)^\top z,

    where :math:`\psi'` comes from the target critic of the smaller value, with the policy's
    action :math:`a'` and without an entropy term. Arguments, keys, state_dict and outputs are
    otherwise those of :class:`~torchrl.objectives.SACLoss`; the entry ``("next", "reward")``
    holds :math:`\Delta\phi`, of shape ``[*B, D]``, as
    :class:`~torchrl_metra.METRATrainer` writes it with :class:`~torchrl_metra.CSFLoss`.

    Args:
        actor (TensorDictModule): policy π(a | s, z).
        critics (TensorDictModule or list of TensorDictModule): twin critics that read the
            skill and map to ``[*B, D]``, see :func:`~torchrl_metra.make_sac_networks` with
            ``value_size=D``, and :class:`~torchrl_metra.BatchedSACLoss` for their kind.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        **kwargs: see :class:`~torchrl_metra.BatchedSACLoss`.

    Raises:
        ValueError: if the critics do not read the skill or do not map to ``D`` entries, or, by a
            call, if what they accumulate does not have ``D`` entries.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> spec = make_env("point").action_spec
        >>> networks = make_sac_networks(2, spec, prior, num_cells=[32], value_size=2)
        >>> sac_loss = SuccessorFeatureSACLoss(
        ...     networks.actor, networks.critics, prior, target_entropy=-1.0
        ... )
    """

    @dataclass
    class _AcceptedKeys(SACLoss._AcceptedKeys):
        """Configurable tensordict keys, those of SAC and one more.

        Attributes:
            skill (NestedKey): where the skill is read. Defaults to ``"skill"``.
        """

        skill: NestedKey = "skill"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(self, actor: Any, critics: Any, prior: SkillPrior, **kwargs: Any) -> None:
        super().__init__(actor, critics, **kwargs)
        if self.tensor_keys.skill not in self.qvalue_network.in_keys:
            raise ValueError(
                f"critics must read the skill, {self.tensor_keys.skill!r}, but read "
                f"{self.qvalue_network.in_keys}."
            )
        *_, last = (m for m in self.qvalue_network.modules() if isinstance(m, nn.Linear))
        if last.out_features != prior.dim:
            raise ValueError(
                f"critics must map to the {prior.dim} dimensions of {prior!r}, but map to "
                f"{last.out_features}: build them with value_size={prior.dim}."
            )
        check_linear(prior)
        self.prior = prior
        self.cumulant_size = prior.dim

    def evaluate_critics(self, tensordict: TensorDictBase, params: TensorDictBase) -> TensorDict:
        """Successor features of each critic, and what they are worth to the skill."""
        key = self.tensor_keys.state_action_value
        features = super().evaluate_critics(tensordict, params).get(key)
        skill = self.prior.center(tensordict.get(self.tensor_keys.skill))
        value = (features * skill).sum(dim=-1, keepdim=True)
        return TensorDict({"features": features, key: value}, batch_size=features.shape[:-1])

    @torch.no_grad()
    def _compute_target(self, tensordict: TensorDictBase) -> Tensor:
        """Target of the successor features, of shape ``[*B, D]``."""
        tensordict = tensordict.copy()
        following = tensordict.get("next").copy()
        with (
            set_exploration_type(ExplorationType.RANDOM),
            self.actor_network_params.to_module(self.actor_network, preserve_module_state=False),
        ):
            action = self.actor_network.get_dist(following).rsample()
        critics = self.evaluate_critics(
            following.set(self.tensor_keys.action, action), self.target_qvalue_network_params
        )
        features = critics.get("features")
        lower = critics.get(self.tensor_keys.state_action_value).argmin(dim=0, keepdim=True)
        chosen = features.gather(0, lower.expand(1, *features.shape[1:]))[0]

        # TorchRL's estimator wants flags of the value's shape.
        cumulant = following.get(self.tensor_keys.reward)
        if cumulant.shape != chosen.shape:
            raise ValueError(
                f"successor features accumulate vectors of shape {list(chosen.shape)}, but "
                f"('next', {self.tensor_keys.reward!r}) has shape {list(cumulant.shape)}: "
                "CSFLoss.cumulant computes them."
            )
        for name in (self.tensor_keys.done, self.tensor_keys.terminated):
            following.set(name, following.get(name).expand_as(chosen))
        following.set(self.value_estimator.tensor_keys.value, chosen)
        return self.value_estimator.value_estimate(tensordict.set("next", following))

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the successor features, summed over the critics."""
        target = self._compute_target(tensordict)
        inputs = tensordict.select(*self.qvalue_network.in_keys, strict=False)
        features = self.evaluate_critics(inputs, self.qvalue_network_params).get("features")
        loss = distance_loss(features, target.expand_as(features), self.loss_function)
        loss = reduce_loss(self, loss.mean(dim=-1).sum(dim=0), tensordict)
        error = (features - target).detach().abs().mean(dim=-1)
        return loss, {"td_error": error.amax(dim=0)}


def check_linear(prior: SkillPrior) -> None:
    """Successor features are sums of latent steps: a reward must be linear in these."""
    if prior.has_own_reward:
        raise ValueError(
            f"critics that predict sums of latent steps do not know what {prior!r} pays, which is "
            "not linear in a step: use UnitSphere."
        )
