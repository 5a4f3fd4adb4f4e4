"""Episodes with given skills."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

__all__ = ["rollout_skills"]


@torch.no_grad()
def rollout_skills(
    env: EnvBase,
    policy: TensorDictModuleBase,
    skills: Tensor,
    *,
    max_steps: int = 200,
) -> TensorDictBase:
    """Roll out one deterministic episode per skill.

    Args:
        env (EnvBase): environment with a :class:`~torchrl_metra.SkillPrimer`, of
            batch size ``[N]`` or ``[]``.
        policy (TensorDictModuleBase): skill-conditioned policy.
        skills (Tensor): skills of shape ``[M, D]``, rolled out ``N`` at a time.

    Keyword Args:
        max_steps (int, optional): length of the episodes. Defaults to 200.

    Returns:
        The transitions, of batch size ``[M, T]``.

    Examples:
        >>> from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> rollout_skills(env, networks.actor, prior.grid(6)).shape
        torch.Size([6, 200])
    """
    width = env.batch_size.numel()
    # The last chunk is filled up by skills whose episodes are dropped again.
    index = torch.arange(-(-len(skills) // width) * width) % len(skills)
    episodes = []
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        for chunk in skills[index].split(width):
            skill = chunk.reshape(*env.batch_size, -1).to(env.device or "cpu")
            start = env.reset(TensorDict({"skill": skill}, env.batch_size, device=env.device))
            rollout = env.rollout(
                max_steps,
                policy,
                auto_reset=False,
                tensordict=start,
                auto_cast_to_device=True,
                break_when_any_done=False,
                break_when_all_done=True,
            )
            episodes.append(rollout.reshape(width, -1))
    return torch.cat(episodes)[: len(skills)]
