"""A skill as an action."""

from __future__ import annotations

import copy
from itertools import takewhile

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.transforms import Transform
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_metra._private import step_below, steps_mask
from torchrl_metra._transforms import base_of, transforms_of
from torchrl_metra.data import SkillPrior


class SkillAction(Transform):
    """Makes the environment's action a skill, which a frozen policy follows for some steps.

    The way to use skills for a task (Section 5): a high-level policy writes a skill to
    ``"action"``; a frozen copy of the skill policy acts on it, deterministically, for
    ``num_steps`` steps, whose rewards are summed. An environment that is done before stops
    there, with the observation and the reward of its last step, while others of the batch
    go on. Discounts then count skills, not steps: so do the frames of a collector.

    The action has the prior's spec, or that of a box if it has no bounds.
    :meth:`~torchrl_metra.SkillPrior.as_skill` makes a skill of it: of one on the sphere only the
    direction counts. The skill policy reads the entries it was trained on;
    the high-level policy is free to read more. The entry ``"inner_steps"``, ``int64`` of
    shape ``[*B, 1]``, is the number of steps that the action took.

    Append it after all transforms that the skill policy relies on.

    Args:
        policy (TensorDictModuleBase): skill policy, from its observation and ``"skill"``
            to ``"action"``, such as the ``actor`` of a :class:`~torchrl_metra.SkillPolicy`.
            Copied.
        prior (SkillPrior): distribution of the skills it was trained with.

    Keyword Args:
        num_steps (int, optional): how long a skill is held. Defaults to 25, the paper's.

    Raises:
        ValueError: if the policy reads no skill, or, once the environment's specs are asked for,
            if the environment draws skills of its own.

    Examples:
        >>> from torchrl_metra import SkillAction, UnitSphere, make_env, make_sac_networks
        >>> env, prior = make_env("point_goal", num_envs=3), UnitSphere(2)
        >>> skills = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> env = env.append_transform(SkillAction(skills.actor, prior, num_steps=25))
        >>> rollout = env.rollout(100)
        >>> rollout.shape, int(rollout["next", "inner_steps"][0].sum())
        (torch.Size([3, 8]), 200)
    """

    def __init__(
        self, policy: TensorDictModuleBase, prior: SkillPrior, *, num_steps: int = 25
    ) -> None:
        if "skill" not in policy.in_keys:
            raise ValueError(
                f"policy must read the entry 'skill', but it reads {list(policy.in_keys)}: it is "
                "not conditioned on skills."
            )
        super().__init__()
        self.policy = copy.deepcopy(policy).requires_grad_(False).eval()
        self.prior = prior
        self.num_steps = num_steps

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        steps = torch.zeros(
            *tensordict_reset.batch_size, 1, dtype=torch.int64, device=tensordict_reset.device
        )
        return tensordict_reset.set("inner_steps", steps)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        skill = self.prior.as_skill(self.prior.validate(tensordict.get("action").float()))
        return self._act(tensordict.set("skill", skill))

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        # The first step is done. A rollout may have excluded environments that ended before.
        active = steps_mask(tensordict, next_tensordict.get("done"))
        reward = next_tensordict.get("reward").float()
        steps = active.long()
        for _ in range(self.num_steps - 1):
            active = active & ~next_tensordict.get("done")
            if not active.any():
                break
            following = self._inner_step(tensordict.copy().update(next_tensordict), active)
            reward = reward + following.get("reward").float().where(active, 0.0)
            steps = steps + active
            if not active.all():
                # Whatever a finished environment does when it is stepped again, unseen.
                kept = next_tensordict.select(*following.keys())
                following = following.where(active.reshape(following.batch_size), kept)
            next_tensordict = following
        return next_tensordict.set("reward", reward).set("inner_steps", steps)

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = tensordict.select(*self.policy.in_keys)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return tensordict.set("action", self.policy(inputs).get("action"))

    def _inner_step(self, tensordict: TensorDictBase, active: Tensor) -> TensorDictBase:
        """A step of the environment below this transform.

        By the very transforms that come before: ``self.parent`` has copies of them, whose
        memories, of frames above all, would not be reset.
        """
        env = self.container
        before = list(takewhile(lambda other: other is not self, transforms_of(env)))
        return step_below(base_of(env), before, self._act(tensordict), active)

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Put a skill in the place of the action."""
        actions = input_spec["full_action_spec"]
        spec = self.prior.spec
        if isinstance(spec, Unbounded):
            spec = Bounded(-1.0, 1.0, shape=spec.shape)
        if actions.device is not None:
            spec = spec.to(actions.device)
        actions["action"] = spec.expand(*actions.shape, *spec.shape)
        return input_spec

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        """Without the bounds of a single step's reward."""
        reward_spec["reward"] = Unbounded(
            shape=reward_spec["reward"].shape, device=reward_spec.device, dtype=torch.float32
        )
        return reward_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the number of steps."""
        if "skill" in observation_spec.keys():
            raise ValueError(
                "the environment draws skills of its own, in the entry 'skill'. SkillAction "
                "leaves that to the high-level policy: build it without SkillPrimer."
            )
        # A copy of its own acts where the environment is.
        self.policy.to(observation_spec.device or "cpu")
        observation_spec["inner_steps"] = Unbounded(
            shape=(*observation_spec.shape, 1), dtype=torch.int64, device=observation_spec.device
        )
        return observation_spec
