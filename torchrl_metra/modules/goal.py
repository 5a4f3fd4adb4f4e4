"""Zero-shot goal reaching: a skill policy, steered by the latent space."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import unravel_key
from torch import Tensor, nn

from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.encoder import as_encoder, latent_key


class GoalReachingPolicy(TensorDictModuleBase):
    """Reaches goals without further training: the skill points from φ(s) to φ(g) (Section 4.2).

    The skill is ``prior.skill_along(φ(g) - φ(s))``: for continuous skills the direction of the
    goal in latent space, of a :class:`~torchrl_metra.UnitBall` the slower the nearer, for discrete
    ones the entry along which the goal is farthest. The goal is what φ reads, below ``"goal"``;
    :class:`~torchrl_metra.GoalPrimer` brings it into
    an environment. No gradient flows through the skill.

    Args:
        actor (TensorDictModuleBase): policy π(a | s, z), which reads ``"skill"``.
        encoder (nn.Module or TensorDictModuleBase): φ. A plain module reads
            ``"observation"``.
        prior (SkillPrior): the skills that the actor was trained with.

    Keyword Args:
        adaptive (bool, optional): if ``True`` (default) the skill is chosen again at every
            step, so that the policy turns around at the goal and corrects its course. If
            ``False`` it is chosen once, in the first step of an episode: the environment
            must then have TorchRL's :class:`~torchrl.envs.InitTracker` to tell that step,
            and a :class:`~torchrl_metra.SkillPrimer` to carry the skill.

    Examples:
        >>> from torchrl_metra import (
        ...     GoalPrimer, SkillPrimer, UnitSphere, make_env, make_sac_networks, sample_goals
        ... )
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> env = env.append_transform(GoalPrimer(sample_goals("point", 10)))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> policy = GoalReachingPolicy(networks.policy, networks.encoder, prior)
        >>> env.rollout(5, policy)["skill"].shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        encoder: TensorDictModuleBase | nn.Module,
        prior: SkillPrior,
        *,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        self.actor = actor
        self.encoder: TensorDictModuleBase = as_encoder(encoder)
        self.prior = prior
        self.adaptive = adaptive
        observed = self.encoder.in_keys
        others = [key for key in actor.in_keys if key != "skill" and key not in observed]
        goals = [unravel_key(("goal", key)) for key in observed]
        kept = [] if adaptive else ["is_init", "skill"]
        self.in_keys = [*observed, *others, *goals, *kept]
        self.out_keys = ["skill", *actor.out_keys]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``"skill"``, of shape ``[*B, D]``, and what the actor writes."""
        return self.actor(tensordict.set("skill", self._skill(tensordict)))

    @torch.no_grad()
    def _skill(self, tensordict: TensorDictBase) -> Tensor:
        if self.adaptive:
            return self._skill_to_goal(tensordict)
        is_init, skill = tensordict["is_init"], tensordict["skill"]
        if not is_init.any():
            return skill
        return torch.where(is_init, self._skill_to_goal(tensordict), skill)

    def _skill_to_goal(self, tensordict: TensorDictBase) -> Tensor:
        latent, goal = self._encode(tensordict), self._encode(tensordict["goal"])
        return self.prior.skill_along(goal - latent)

    def _encode(self, tensordict: TensorDictBase) -> Tensor:
        # A copy, so that features and latents do not enter the data.
        states = tensordict.select(*self.encoder.in_keys)
        return self.encoder(states).get(latent_key(self.encoder))
