"""Zero-shot goal reaching: a skill policy, steered by the latent space."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn

from torchrl_metra._checks import call_network, check_type, read_tensors
from torchrl_metra.data import SkillPrior
from torchrl_metra.data.skills import check_prior
from torchrl_metra.modules.encoder import as_encoder, latent_key

__all__ = ["GoalReachingPolicy"]


class GoalReachingPolicy(TensorDictModuleBase):
    """Reaches goals without further training: the skill points from φ(s) to φ(g) (Section 4.2).

    The skill is ``prior.toward(φ(g) - φ(s))``: for continuous skills the direction of the
    goal in latent space, for discrete ones the entry along which the goal is farthest. The
    goal is what φ reads, below ``"goal"``; :class:`~torchrl_metra.GoalPrimer` brings it into
    an environment. No gradient flows through the skill.

    Args:
        actor (TensorDictModuleBase): policy π(a | s, z), which reads ``"skill"``.
        encoder (nn.Module or TensorDictModuleBase): φ. A plain module reads
            ``"observation"``.
        prior (SkillPrior): the skills that the actor was trained with.

    Keyword Args:
        adaptive (bool, optional): if ``True`` (default) the skill is chosen anew at every
            step, so that the policy turns around at the goal and corrects its course. If
            ``False`` it is chosen once, in the first step of an episode: the environment
            must then have TorchRL's :class:`~torchrl.envs.InitTracker` to tell that step,
            and a :class:`~torchrl_metra.SkillPrimer` to carry the skill.

    A NaN in a state or a goal becomes one in skill and action.

    Raises:
        TypeError: if an argument is of the wrong kind.
        KeyError: by a call, if an entry is missing; names the transform that writes it.
        ValueError: by a call, if states or goals do not fit the encoder, or φ the prior.

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
        check_type("actor", actor, TensorDictModuleBase, "a TensorDictModule")
        check_prior(prior)
        encoder = as_encoder(encoder)
        self.actor = actor
        self.encoder: TensorDictModuleBase = encoder
        self.prior = prior
        self.adaptive = adaptive
        self._latent_key = latent_key(encoder)
        # Who writes the entries that an environment of METRA does not have.
        self._writers: dict[NestedKey, str] = {
            unravel_key(("goal", key)): "GoalPrimer(goals)" for key in encoder.in_keys
        }
        if not adaptive:
            self._writers["is_init"] = "torchrl.envs.InitTracker()"
            self._writers["skill"] = "SkillPrimer(prior)"
        observed = [key for key in actor.in_keys if key != "skill" and key not in encoder.in_keys]
        self.in_keys = [*encoder.in_keys, *observed, *self._writers]
        self.out_keys = ["skill", *actor.out_keys]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``"skill"``, of shape ``[*B, D]``, and what the actor writes."""
        for key, transform in self._writers.items():
            if tensordict.get(key, default=None) is None:
                raise KeyError(
                    f"GoalReachingPolicy found no entry {key!r}. Append the transform that "
                    f"writes it to the environment: env.append_transform({transform})."
                )
        return self.actor(tensordict.set("skill", self._skill(tensordict)))

    @torch.no_grad()
    def _skill(self, tensordict: TensorDictBase) -> Tensor:
        if self.adaptive:
            return self._skill_to_goal(tensordict)
        is_init, skill = tensordict.get("is_init"), tensordict.get("skill")
        skill = self.prior.validate(skill)
        if not is_init.any():
            return skill
        return torch.where(is_init, self._skill_to_goal(tensordict), skill)

    def _skill_to_goal(self, tensordict: TensorDictBase) -> Tensor:
        check_type("goal", tensordict.get("goal"), TensorDictBase, "a TensorDict")
        latent, goal = self._encode(tensordict), self._encode(tensordict.get("goal"))
        return self.prior.toward(goal - latent)

    def _encode(self, tensordict: TensorDictBase) -> Tensor:
        # A copy, so that features and latents do not enter the data.
        read_tensors(tensordict, self.encoder.in_keys, "the encoder")
        states = tensordict.select(*self.encoder.in_keys)
        return call_network("encoder", self.encoder, states).get(self._latent_key)
