"""Episodes with given skills."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, expand_as_right
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_metra._private import resets_itself
from torchrl_metra._transforms import transforms_of
from torchrl_metra.envs import SkillPrimer
from torchrl_metra.evaluation.trajectories import episode_lengths

# Of episodes that do not end by themselves: as long as gymnasium's for MuJoCo.
LONGEST_EPISODE = 1_000


def rollout_skills(
    env: EnvBase,
    policy: TensorDictModuleBase,
    skills: Tensor,
    *,
    max_steps: int | None = None,
) -> TensorDictBase:
    """Roll out one deterministic episode per skill.

    The policy acts on the device of its weights, wherever the environment is.

    Args:
        env (EnvBase): environment with a :class:`~torchrl_metra.SkillPrimer`, of
            batch size ``[N]`` or ``[]``. Skills go where it writes them.
        policy (TensorDictModuleBase): skill-conditioned policy.
        skills (Tensor): skills of shape ``[M, D]``, rolled out ``N`` at a time.

    Keyword Args:
        max_steps (int, optional): length of the episodes. By default they last until they
            end, and 1000 steps if they do not.

    Returns:
        The transitions, of batch size ``[M, T]``, with ``T`` the length of the longest
        episode. Episodes that ended before it repeat their last transition. Skills are
        under ``"skill"``, and where the environment has them. All of it is on the
        environment's device, that of simulators on the CPU.

    Raises:
        ValueError: if the environment has no skills, or changes them within episodes.

    Examples:
        >>> from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> rollout_skills(env, networks.actor, prior.evaluation_skills(6)).shape
        torch.Size([6, 200])
    """
    key: NestedKey = "skill"
    for part in transforms_of(env):
        if isinstance(part, SkillPrimer):
            key = part.skill_key
            if part.switch > 0:
                raise ValueError(
                    "an episode is to follow one skill, but this environment's SkillPrimer has "
                    f"switch={part.switch:g}: evaluate in one without."
                )
    if key not in env.observation_spec.keys(True):
        raise ValueError(
            f"the environment has no entry {key!r} for skills: append a SkillPrimer to it. One "
            "inside of workers must write to 'skill'."
        )
    starts = TensorDict({}, [len(skills)]).set(key, skills)
    rollouts = roll_out(env, policy, starts, max_steps)
    return rollouts if key == "skill" else rollouts.set("skill", rollouts.get(key))


@torch.no_grad()
def roll_out(
    env: EnvBase,
    policy: TensorDictModuleBase,
    starts: TensorDictBase,
    max_steps: int | None,
    *,
    without: Sequence[NestedKey] = (),
) -> TensorDictBase:
    """One deterministic episode per start, as many at a time as the environment is wide.

    Args:
        env (EnvBase): environment of batch size ``[N]`` or ``[]``.
        policy (TensorDictModuleBase): the policy.
        starts (TensorDictBase): what each episode's reset is given, of batch size ``[M]``.
        max_steps (int, optional): length of the episodes, ``None``: until they end.

    Keyword Args:
        without (sequence of NestedKey, optional): entries that are dropped along the way.

    Returns:
        The transitions, of batch size ``[M, T]``, on the environment's device. Episodes that
        ended before the longest repeat their last transition.
    """
    max_steps = LONGEST_EPISODE if max_steps is None else max_steps
    width = env.batch_size.numel()
    # The last chunk is filled up by starts whose episodes are dropped again.
    index = torch.arange(-(-len(starts) // width) * width) % len(starts)
    # Environments that name no device are simulators, on the CPU.
    home = env.device or torch.device("cpu")
    act = _at_home(policy, home)
    chunks = []
    for chunk in starts[index].split(width):
        start = chunk.reshape(env.batch_size).to(home)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            rollout = env.rollout(
                max_steps,
                act,
                auto_reset=False,
                tensordict=env.reset(start),
                break_when_any_done=False,
                break_when_all_done=True,
            )
        rollout = rollout.reshape(width, -1)
        rollout = _hide_resets(rollout, env) if resets_itself(env) else rollout
        chunks.append(rollout.exclude(*without))
    # An index past the end of an episode stands for its last transition.
    steps = torch.arange(max(chunk.shape[1] for chunk in chunks))
    rollouts = torch.cat([chunk[:, steps.clamp(max=chunk.shape[1] - 1)] for chunk in chunks])
    return rollouts[: len(starts)]


def _hide_resets(rollout: TensorDictBase, env: EnvBase) -> TensorDictBase:
    """Episodes that stay at the last state that was seen, in place of the next one's first."""
    last = (episode_lengths(rollout) - 1).to(rollout.device)
    steps = torch.arange(rollout.shape[1], device=rollout.device)
    rollout = rollout.gather(1, torch.minimum(steps, last.unsqueeze(-1)))
    done = rollout["next", "done"].reshape(rollout.shape)
    for key in env.observation_spec.keys(True, True):
        seen, following = rollout.get(key), rollout.get(("next", key))
        rollout.set(("next", key), torch.where(expand_as_right(done, seen), seen, following))
    return rollout


def _at_home(
    policy: TensorDictModuleBase, home: torch.device
) -> Callable[[TensorDictBase], TensorDictBase]:
    """The policy, acting on the device of its weights, for states of another."""
    device = next((weight.device for weight in policy.parameters()), home)
    if device == home:
        return policy

    def act(tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.update(policy(tensordict.to(device)).to(home))

    return act
