"""A skill for every episode."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_metra.data import SkillPrior
from torchrl_metra.envs.transforms.primer import EpisodePrimer, where_reset


class SkillPrimer(EpisodePrimer):
    """Draws a skill at reset and, unless it is to change, carries it through the episode.

    Every environment of a batch has its own skill, redrawn only where that
    environment is reset, by TorchRL, by a ``"_reset"`` mask of yours or by itself. Draws come
    from torch's global generator: seed it by ``torch.manual_seed``, ``env.set_seed`` does not.
    A skill passed to ``env.reset`` without a mask is kept instead of a new draw, for
    evaluation.

    Args:
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        switch (float, optional): the probability, at each step, that the skill changes within the
            episode, as it does on the way to goals. An action is for the skill that it read, and
            ``("next", "skill")`` is the one that follows. METRA's trainer values a skill as if it
            were kept; in a loop of your own, copy ``"skill"`` there. Defaults to 0.
        skill_key (NestedKey, optional): entry to write. Defaults to ``"skill"``.
        reset_key (NestedKey, optional): see :class:`~torchrl.envs.TensorDictPrimer`.

    Raises:
        RuntimeError: when applied to a replay buffer, where it would overwrite the stored skills.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl_metra import OneHot, SkillPrimer, make_env
        >>> prior = OneHot(4)
        >>> env = make_env("point", num_envs=2).append_transform(SkillPrimer(prior))
        >>> rollout = env.rollout(3)
        >>> rollout["skill"].shape
        torch.Size([2, 3, 4])
        >>> fixed = TensorDict({"skill": prior.grid(2)}, batch_size=[2])
        >>> env.reset(fixed)["skill"]
        tensor([[1., 0., 0., 0.],
                [0., 0., 1., 0.]])
    """

    def __init__(
        self,
        prior: SkillPrior,
        *,
        switch: float = 0.0,
        skill_key: NestedKey = "skill",
        reset_key: NestedKey | None = None,
    ) -> None:
        super().__init__(skill_key, prior.spec, reset_key=reset_key)
        if not 0 <= switch <= 1:
            raise ValueError(f"switch must be a probability between 0 and 1, got {switch}.")
        self.prior = prior
        self.switch = switch
        self.skill_key = skill_key

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        following = super()._step(tensordict, next_tensordict)
        if self.switch == 0:
            return following
        shape, device = tensordict.batch_size, tensordict.device
        is_new = torch.rand(shape, device=device) < self.switch
        skill = where_reset(is_new, self.draw(shape, device), following.get(self.key))
        return following.set(self.key, skill)

    def draw(self, batch_size: torch.Size, device: torch.device | None) -> Tensor:
        """Skills of the prior."""
        return self.prior.sample(batch_size, device=device)
