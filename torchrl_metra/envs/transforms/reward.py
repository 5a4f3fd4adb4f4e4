"""The intrinsic reward of a skill-discovery loss, as a transform."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Composite, Unbounded
from torchrl.envs.transforms import Transform

from torchrl_metra._private import WorkerCheckMixin


class IntrinsicRewardTransform(WorkerCheckMixin, Transform):
    """Writes the intrinsic reward of a skill-discovery loss, with its weights of today.

    Works in three places: on an environment (after :class:`SkillPrimer`), as the
    ``postproc`` of a collector, and on a replay buffer, where each sampled batch is
    relabelled. It never propagates a gradient.

    A process that received a copy of the encoder would go on with the weights of the
    day it started: around a ``ParallelEnv`` this transform belongs outside, and with
    multi-process collectors it belongs on the replay buffer.

    Args:
        skill_loss (SkillLoss): the loss that owns the encoder, such as
            :class:`~torchrl_metra.METRALoss`. Anything with a method ``reward(tensordict)``.

    Keyword Args:
        reward_key (NestedKey, optional): entry written below ``"next"``.
            Defaults to ``"intrinsic_reward"``.

    Raises:
        RuntimeError: inside of the workers of a batched environment.

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import (
        ...     IntrinsicRewardTransform, METRALoss, SkillPrimer, UnitSphere, make_env
        ... )
        >>> prior = UnitSphere(2)
        >>> metra_loss = METRALoss(MLP(in_features=2, out_features=2), prior)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> env = env.append_transform(IntrinsicRewardTransform(metra_loss))
        >>> env.rollout(3)["next", "intrinsic_reward"].shape
        torch.Size([4, 3, 1])
    """

    def __init__(self, skill_loss: Any, *, reward_key: NestedKey = "intrinsic_reward") -> None:
        super().__init__(in_keys=[], out_keys=[reward_key])
        # Not a submodule: the environment's state_dict is not the place for the encoder.
        self.__dict__["skill_loss"] = skill_loss

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the reward to transitions from a collector or a replay buffer."""
        reward = self.skill_loss.reward(tensordict)
        return tensordict.set(("next", self.out_keys[0]), reward)

    @torch.no_grad()
    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        transition = tensordict.copy().set("next", next_tensordict)
        return next_tensordict.set(self.out_keys[0], self.skill_loss.reward(transition))

    def check_in_worker(self) -> None:
        raise RuntimeError(
            "IntrinsicRewardTransform inside of a batched environment's workers would keep the "
            "encoder that they started with. Put it outside: "
            "TransformedEnv(ParallelEnv(...), IntrinsicRewardTransform(skill_loss))."
        )

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        """Add the reward's spec, of shape ``[*B, 1]``."""
        reward_spec[self.out_keys[0]] = Unbounded(
            shape=(*reward_spec.shape, 1), device=reward_spec.device, dtype=torch.float32
        )
        return reward_spec
