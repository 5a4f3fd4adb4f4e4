"""Evaluation of trained skills."""

from torchrl_metra.evaluation.metrics import coverage, sector_coverage, skill_alignment, visited
from torchrl_metra.evaluation.plots import plot_coverage, plot_latents, plot_positions
from torchrl_metra.evaluation.rollouts import rollout_skills
from torchrl_metra.evaluation.videos import write_video

__all__ = [
    "coverage",
    "plot_coverage",
    "plot_latents",
    "plot_positions",
    "rollout_skills",
    "sector_coverage",
    "skill_alignment",
    "visited",
    "write_video",
]
