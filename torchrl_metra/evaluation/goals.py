"""Zero-shot goal reaching: episodes with given goals, and numbers from them."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, EnvBase, InitTracker, TransformedEnv

from torchrl_metra.envs import GoalPrimer, SkillPrimer
from torchrl_metra.evaluation.rollouts import roll_out
from torchrl_metra.modules import SkillPolicy


def rollout_goals(
    env: EnvBase,
    policy: TensorDictModuleBase,
    goals: TensorDictBase,
    *,
    max_steps: int | None = None,
) -> TensorDictBase:
    """Roll out one deterministic episode per goal.

    Args:
        env (EnvBase): environment with a :class:`~torchrl_metra.GoalPrimer`, of batch size
            ``[N]`` or ``[]``.
        policy (TensorDictModuleBase): a :class:`~torchrl_metra.GoalReachingPolicy` or, for
            comparison, any other. A plain skill policy keeps the random skills that a
            :class:`~torchrl_metra.SkillPrimer` draws.
        goals (TensorDictBase): goals of batch size ``[M]``, rolled out ``N`` at a time, with
            the entries of those in the ``GoalPrimer``.

    Keyword Args:
        max_steps (int, optional): length of the episodes, see
            :func:`~torchrl_metra.evaluation.rollout_skills`.

    Returns:
        The transitions, of batch size ``[M, T]``, with the goals under ``"goal"``.

    Examples:
        >>> from torchrl_metra import (
        ...     GoalPrimer, SkillPrimer, UnitSphere, make_env, make_sac_networks, sample_goals
        ... )
        >>> prior, goals = UnitSphere(2), sample_goals("point", 6)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> env = env.append_transform(GoalPrimer(goals))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> rollouts = rollout_goals(env, networks.policy, goals)
        >>> rollouts.shape, rollouts["goal", "position"].shape
        (torch.Size([6, 200]), torch.Size([6, 200, 2]))
    """
    starts = TensorDict({"goal": goals}, [len(goals)])
    # Pictures of a goal at every step would be half of the data.
    rollouts = roll_out(env, policy, starts, max_steps, without=["goal", ("next", "goal")])
    goals = goals.to(rollouts.device or "cpu")
    return rollouts.set("goal", goals.unsqueeze(1).expand(rollouts.shape))


def goal_metrics(
    rollouts: TensorDictBase, *, radii: Sequence[float] = (3.0, 1.0)
) -> dict[str, float]:
    """How well episodes reach their goals (Section 5).

    * ``"goal/start_distance"`` and ``"goal/final_distance"``: mean distance between position
      and goal before the first step and after the last one, in meters.
    * ``"goal/hit_r"``: share of the episodes that come within ``r`` meters at any time.
    * ``"goal/end_r"``: share of the episodes that end within ``r`` meters.
    * ``"goal/at_r"``: share of all steps that lead to within ``r`` meters.

    In the kitchen ``"goal/hit"``, ``"goal/end"`` and ``"goal/at"``: the same shares, with
    the goal's tasks solved in place of a distance.

    Args:
        rollouts (TensorDictBase): episodes of batch size ``[M, T]``, from
            :func:`rollout_goals`.

    Keyword Args:
        radii (sequence of float, optional): distances ``r``. Defaults to 3 and 1.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> walk = torch.tensor([[[0.0], [4.0], [8.0], [12.0]]])
        >>> goal = TensorDict({"position": torch.full((1, 3, 1), 10.0)}, [1, 3])
        >>> rollouts = TensorDict(
        ...     {"position": walk[:, :-1], "next": {"position": walk[:, 1:]}, "goal": goal}, [1, 3]
        ... )
        >>> metrics = goal_metrics(rollouts, radii=[2.0])
        >>> metrics["goal/final_distance"], metrics["goal/hit_2"], metrics["goal/at_2"]
        (2.0, 1.0, 0.6666666865348816)
    """
    goal = rollouts["goal"]
    if "tasks" in goal.keys():
        return _rates((rollouts["next", "tasks"] | ~goal["tasks"]).all(-1), "")
    # In double precision, there is room for the squares of all that float32 holds.
    target = goal["position"].double()
    start = (rollouts["position"].double() - target)[:, 0].norm(dim=-1)
    distance = (rollouts["next", "position"].double() - target).norm(dim=-1)
    metrics = {
        "goal/start_distance": start.mean().item(),
        "goal/final_distance": distance[:, -1].mean().item(),
    }
    for radius in radii:
        metrics |= _rates(distance <= radius, f"_{radius:g}")
    return metrics


def _rates(reached: Tensor, suffix: str) -> dict[str, float]:
    rates = {"hit": reached.any(1), "end": reached[:, -1], "at": reached}
    return {f"goal/{name}{suffix}": rate.float().mean().item() for name, rate in rates.items()}


def rollout_goal_policies(
    env: EnvBase, policy: SkillPolicy, goals: TensorDictBase, *, max_steps: int | None = None
) -> dict[str, TensorDictBase]:
    """Roll out the same goals with skills chosen at every step, chosen once, and drawn at random.

    Args:
        env (EnvBase): environment of batch size ``[N]`` or ``[]``, without a
            :class:`~torchrl_metra.SkillPrimer`. It is left as it is.
        policy (SkillPolicy): the trained policy, with an encoder.
        goals (TensorDictBase): goals of batch size ``[M]``.

    Keyword Args:
        max_steps (int, optional): length of the episodes, see
            :func:`~torchrl_metra.evaluation.rollout_skills`.

    Returns:
        What :func:`rollout_goals` returns, without ``"pixels"``, under ``"adaptive"``,
        ``"single"`` and ``"random"``.

    Examples:
        >>> from torchrl_metra import (
        ...     SkillPolicy, UnitSphere, make_env, make_sac_networks, sample_goals
        ... )
        >>> env, prior = make_env("point", num_envs=6), UnitSphere(2)
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> policy = SkillPolicy.from_networks(networks, prior)
        >>> rollouts = rollout_goal_policies(env, policy, sample_goals("point", 6), max_steps=20)
        >>> sorted(rollouts)
        ['adaptive', 'random', 'single']
    """
    # Around the environment, not appended to it: it belongs to the caller.
    env = TransformedEnv(
        env,
        Compose(SkillPrimer(policy.prior), GoalPrimer(goals), InitTracker()),
        auto_unwrap=False,
    )
    policies = {
        "adaptive": policy.reach_goals(),
        "single": policy.reach_goals(adaptive=False),
        "random": policy,
    }
    # Nobody measures pictures, and three times 50 episodes of them are gigabytes.
    pictures = ("pixels", ("next", "pixels"))
    return {
        name: rollout_goals(env, module, goals, max_steps=max_steps).exclude(*pictures)
        for name, module in policies.items()
    }
