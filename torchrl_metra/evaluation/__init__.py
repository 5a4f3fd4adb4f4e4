"""Evaluation of trained skills."""

from torchrl_metra.evaluation.coverage import CoverageCounter, coverage, sector_coverage, visited
from torchrl_metra.evaluation.goals import goal_metrics, rollout_goal_policies, rollout_goals
from torchrl_metra.evaluation.metrics import measure_skills, skill_accuracy, skill_alignment
from torchrl_metra.evaluation.plots import (
    plot_coverage,
    plot_goals,
    plot_skills,
    plot_temporal_distances,
)
from torchrl_metra.evaluation.report import evaluate
from torchrl_metra.evaluation.rollouts import rollout_skills
from torchrl_metra.evaluation.temporal import (
    latent_steps,
    pair_distances,
    rank_correlation,
    temporal_check,
)
from torchrl_metra.evaluation.trajectories import (
    encode_trajectories,
    episode_lengths,
    positions,
    trajectories,
)
from torchrl_metra.evaluation.videos import film_skills, skills_to_film, write_video

__all__ = [
    "CoverageCounter",
    "coverage",
    "encode_trajectories",
    "episode_lengths",
    "evaluate",
    "film_skills",
    "goal_metrics",
    "latent_steps",
    "measure_skills",
    "pair_distances",
    "plot_coverage",
    "plot_goals",
    "plot_skills",
    "plot_temporal_distances",
    "positions",
    "rank_correlation",
    "rollout_goal_policies",
    "rollout_goals",
    "rollout_skills",
    "sector_coverage",
    "skill_accuracy",
    "skill_alignment",
    "skills_to_film",
    "temporal_check",
    "trajectories",
    "visited",
    "write_video",
]
