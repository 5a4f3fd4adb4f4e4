"""A folder that shows what a skill policy has learned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_metra._record import describe_run
from torchrl_metra.data import OneHot
from torchrl_metra.envs import SkillPrimer
from torchrl_metra.evaluation.goals import goal_metrics, rollout_goal_policies
from torchrl_metra.evaluation.metrics import measure_skills
from torchrl_metra.evaluation.plots import plot_goals, plot_skills, plot_temporal_distances
from torchrl_metra.evaluation.rollouts import rollout_skills
from torchrl_metra.evaluation.trajectories import (
    Projection,
    encode_trajectories,
    episode_lengths,
    positions,
)
from torchrl_metra.evaluation.videos import film_skills, skills_to_film, write_video
from torchrl_metra.modules import SkillPolicy

SKILLS_CAPTION = (
    "One line per episode, colored by its skill, in {}. A good set of skills is a fan: every "
    "color leaves the start in a direction of its own, and far."
)
TEMPORAL_CAPTION = (
    "The constraint that METRA trains with. Adjacent states should be at most one apart (left "
    "of the dashed line), and states of an episode at most as far apart as the steps between "
    "them (below it). The nearer the median is to that line, the better distances tell the time."
)
GOALS_CAPTION = (
    "Zero-shot goals: the skill points from φ of the state to φ of the goal, at every step "
    "(adaptive) or at the first one only (single). Random skills, which know of no goal, show "
    "what chance gives."
)


def evaluate(
    policy: SkillPolicy,
    env: EnvBase,
    output: str | os.PathLike[str],
    *,
    projection: Projection | None = None,
    goals: TensorDictBase | None = None,
    video_env: EnvBase | None = None,
    num_episodes: int = 48,
    max_steps: int | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Measure a skill policy and write a folder that shows it (Section 5).

    Rolls out one deterministic episode for each of some skills and, with goals, episodes that
    are sent to them. Numbers are those of skills drawn from the prior, always the same
    (:meth:`SkillPrior.evaluation_skills`), pictures those of an even grid. The
    folder holds ``report.json``, ``skills.png`` (trajectories in space and in latent space),
    ``temporal.png`` (do latent distances tell the time?), ``goals.png``, videos of skills, and
    ``report.html``, which shows all of that in one file.

    What does not apply is left out: ``temporal.png`` and its numbers if the policy was not
    trained with METRA's temporal constraint; all that has to do with latent space, goals
    included, if it has no encoder.

    Args:
        policy (SkillPolicy): the trained policy.
        env (EnvBase): environment to evaluate in, of any batch size, without a
            :class:`~torchrl_metra.SkillPrimer`.
        output (path): folder to write; it is created.

    Keyword Args:
        projection (Callable, optional): maps states, a TensorDict of batch size ``*B``, to
            coordinates of shape ``[*B, k]``, in which trajectories are drawn and coverage is
            counted in cells of edge 1: scale it to choose their size. By default these are
            the entry ``"position"`` in meters, where there is one.
        goals (TensorDictBase, optional): goals of batch size ``[M]``, see
            :func:`~torchrl_metra.envs.sample_goals`.
        video_env (EnvBase, optional): an environment of the same task that has ``"pixels"``
            too, through TorchRL's :class:`~torchrl.record.PixelRenderTransform` for instance;
            ``env`` itself where it has them.
        num_episodes (int, optional): number of skills to roll out. Defaults to 48.
        max_steps (int, optional): length of the episodes, see
            :func:`~torchrl_metra.evaluation.rollout_skills`.
        title (str, optional): title of the page.

    Returns:
        What ``report.json`` holds: ``"skills"``, see
        :func:`~torchrl_metra.evaluation.measure_skills`; ``"goals"``, by policy what
        :func:`~torchrl_metra.evaluation.goal_metrics` measures; and how to repeat it.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from torchrl_metra import SkillPolicy, UnitSphere, make_env, make_sac_networks
        >>> env, prior = make_env("point", num_envs=8), UnitSphere(2)
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> policy = SkillPolicy.from_networks(networks, prior)
        >>> with TemporaryDirectory() as folder:
        ...     report = evaluate(policy, env, folder, num_episodes=8, max_steps=20)
        >>> report["skills"]["policy_coverage"] > 0
        True
    """
    from torchrl_metra.evaluation.page import write_page

    norm, prior, encoder = policy.constraint_norm, policy.prior, policy.encoder
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    skills, grid = prior.evaluation_skills(num_episodes), prior.grid(num_episodes)
    rollouts = _roll_out(policy, env, skills, max_steps)
    latents = None if encoder is None else encode_trajectories(rollouts, encoder)
    results = measure_skills(rollouts, latents, prior, norm=norm, projection=projection)
    report: dict[str, Any] = {"skills": results}
    if not skills.equal(grid):
        # Counted are skills as they are drawn; an even fan is easier to look at.
        rollouts = _roll_out(policy, env, grid, max_steps)
        latents = None if encoder is None else encode_trajectories(rollouts, encoder)
    position = positions(rollouts, projection)
    sections: list[tuple[str, str, Path]] = []
    spaces = {"space": position, "the latent space of φ": latents}
    shown = [name for name, lines in spaces.items() if lines is not None]
    if shown:
        picture = output / "skills.png"
        unit = "m" if projection is None else "projection"
        plot_skills(latents, grid, picture, position=position, unit=unit)
        sections.append(("Skills", SKILLS_CAPTION.format(" and in ".join(shown)), picture))
    if latents is not None and norm is not None:
        picture = output / "temporal.png"
        plot_temporal_distances(latents, picture, lengths=episode_lengths(rollouts), norm=norm)
        sections.append(("Temporal distances", TEMPORAL_CAPTION, picture))
    if goals is not None and encoder is not None:
        reached = rollout_goal_policies(env, policy, goals, max_steps=max_steps)
        report["goals"] = {name: goal_metrics(episodes) for name, episodes in reached.items()}
        if "position" in goals.keys():
            picture = output / "goals.png"
            ends = {name: part["next", "position"][:, -1].cpu() for name, part in reached.items()}
            plot_goals(goals["position"].cpu(), ends, picture)
            sections.append(("Zero-shot goals", GOALS_CAPTION, picture))
    filmed = env if video_env is None else video_env
    if "pixels" in filmed.observation_spec.keys():
        caption = _film_skills(policy, filmed, output, max_steps)
        sections.append(("What it looks like", caption, output / "skills.mp4"))
    report |= {"prior": repr(prior), "episodes": num_episodes, **describe_run()}
    # Without the digits that float32 does not have.
    report = json.loads(json.dumps(report), parse_float=lambda digits: round(float(digits), 6))
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    write_page(output / "report.html", title or "Skills", report, sections)
    return report


def _roll_out(
    policy: SkillPolicy, env: EnvBase, skills: Tensor, max_steps: int | None
) -> TensorDictBase:
    # Around the environment, not appended to it: it belongs to the caller.
    env = TransformedEnv(env, SkillPrimer(policy.prior), auto_unwrap=False)
    return rollout_skills(env, policy, skills, max_steps=max_steps)


def _film_skills(policy: SkillPolicy, env: EnvBase, output: Path, max_steps: int | None) -> str:
    """Write videos of some skills.

    Returns:
        The caption, which names the skills.
    """
    prior = policy.prior
    skills = skills_to_film(prior)
    env = TransformedEnv(env, SkillPrimer(prior), auto_unwrap=False)
    pixels = film_skills(env, policy, skills, max_steps=max_steps)
    assert pixels is not None  # the caller has asked
    write_video(pixels, output / "skills.mp4")
    # GIFs become large: every fourth picture, twice as fast.
    write_video(pixels[:, ::4], output / "skills.gif", fps=12.5)
    if isinstance(prior, OneHot):
        names = [str(index) for index in skills.argmax(-1).tolist()]
    else:
        names = ["(" + ", ".join(f"{x:.1f}" for x in skill) + ")" for skill in skills.tolist()]
    return f"Skills, row by row: {', '.join(names)}."
