"""Numbers from skill rollouts."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_metra.data import OneHot, SkillPrior
from torchrl_metra.evaluation.coverage import sector_coverage, visited
from torchrl_metra.evaluation.temporal import temporal_check
from torchrl_metra.evaluation.trajectories import Projection, episode_lengths, positions
from torchrl_metra.objectives.functional import ConstraintNorm, effective_rank


def skill_alignment(latent: Tensor, next_latent: Tensor, skill: Tensor) -> float:
    """Mean cosine between skills and displacements in latent space.

    Args:
        latent (Tensor): φ at the start of each displacement, of shape ``[*B, D]``.
        next_latent (Tensor): φ at its end, of shape ``[*B, D]``.
        skill (Tensor): skills of shape ``[*B, D]``, one-hot ones centered.

    Examples:
        >>> import torch
        >>> skill_alignment(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[2.0, 2.0]]))
        1.0
    """
    cosine = torch.nn.functional.cosine_similarity(next_latent - latent, skill, dim=-1)
    return round(float(cosine.mean()), 6)


def skill_accuracy(displacement: Tensor, skills: Tensor, prior: SkillPrior) -> float:
    """How often a skill is recovered from where it led in latent space.

    The skill along the displacement, :meth:`SkillPrior.skill_along`, is compared with the one that
    was followed: one-hot skills must be equal, of continuous ones the followed skill must be
    the nearest of all in ``skills``. By chance it is 1 out of the number of distinct skills.

    Args:
        displacement (Tensor): ``φ(s_T) - φ(s_0)`` of each episode, of shape ``[M, D]``.
        skills (Tensor): the skills they followed, of shape ``[M, D]``.
        prior (SkillPrior): distribution of the skills.

    Returns:
        The share of episodes, between 0 and 1.

    Examples:
        >>> import torch
        >>> from torchrl_metra import OneHot
        >>> skill_accuracy(torch.tensor([[3.0, 1.0], [3.0, 2.0]]), torch.eye(2), OneHot(2))
        0.5
    """
    recovered = prior.skill_along(displacement)
    if isinstance(prior, OneHot):
        hits = recovered.argmax(-1) == skills.argmax(-1)
    else:
        candidates = skills.unique(dim=0)
        directions = torch.nn.functional.normalize(candidates, dim=-1)
        nearest = (recovered @ directions.T).argmax(-1)
        hits = (candidates[nearest] == skills).all(-1)
    return round(float(hits.float().mean()), 6)


def measure_skills(
    rollouts: TensorDictBase,
    latents: Tensor | None,
    prior: SkillPrior,
    *,
    norm: ConstraintNorm | None = "l2",
    projection: Projection | None = None,
    cell_size: float = 1.0,
) -> dict[str, float]:
    """Everything that can be told from one episode per skill.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``, as
            :func:`~torchrl_metra.evaluation.rollout_skills` returns them.
        latents (Tensor, optional): φ of all of their states, of shape ``[M, T + 1, D]``, see
            :func:`~torchrl_metra.evaluation.encode_trajectories`; ``None`` without an encoder.
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        norm (str, optional): the norm of METRA's constraint in training, ``None`` if there was
            no temporal constraint. Defaults to ``"l2"``.
        projection (Callable, optional): coordinates of states, see
            :func:`~torchrl_metra.evaluation.visited`.
        cell_size (float, optional): edge of a cell in these coordinates. Defaults to 1.

    Returns:
        ``policy_coverage`` (and ``sectors``, out of 16, in two dimensions) where there are
        coordinates or tasks; with latents, ``skill_alignment`` and ``skill_accuracy`` of whole
        episodes and ``latent_rank_episode``, in how many directions these lead; with latents and
        a norm, :func:`~torchrl_metra.evaluation.temporal_check`.

    Examples:
        >>> from torchrl_metra import SkillPrimer, UnitSphere, make_env, make_sac_networks
        >>> from torchrl_metra.evaluation import encode_trajectories, rollout_skills
        >>> prior = UnitSphere(2)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> rollouts = rollout_skills(env, networks.actor, prior.evaluation_skills(4), max_steps=20)
        >>> latents = encode_trajectories(rollouts, networks.encoder)
        >>> sorted(measure_skills(rollouts, latents, prior))[:3]
        ['latent_rank_episode', 'latent_step_max', 'latent_step_mean']
    """
    results: dict[str, float] = {}
    cells = visited(rollouts, projection=projection, cell_size=cell_size)
    if cells is not None:
        results["policy_coverage"] = len(cells.unique(dim=0))
        position = positions(rollouts, projection)
        if position is not None and position.shape[-1] == 2:
            results["sectors"] = sector_coverage(position[:, -1] - position[:, 0])
    if latents is None:
        return results
    skills = prior.validate(rollouts["skill"][:, 0]).cpu()
    start, end = latents[:, 0], latents[:, -1]
    results["skill_alignment"] = skill_alignment(start, end, prior.center(skills))
    results["skill_accuracy"] = skill_accuracy(end - start, skills, prior)
    results["latent_rank_episode"] = round(float(effective_rank(end - start)), 6)
    if norm is not None:
        results |= temporal_check(latents, episode_lengths(rollouts), norm=norm)
    return results
