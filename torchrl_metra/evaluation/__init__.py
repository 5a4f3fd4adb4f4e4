"""Evaluation of trained skills."""

from torchrl_metra.evaluation.metrics import coverage, sector_coverage, skill_alignment
from torchrl_metra.evaluation.plots import plot_coverage, plot_latents, plot_positions
from torchrl_metra.evaluation.rollouts import rollout_skills

__all__ = [
    "coverage",
    "plot_coverage",
    "plot_latents",
    "plot_positions",
    "rollout_skills",
    "sector_coverage",
    "skill_alignment",
]
