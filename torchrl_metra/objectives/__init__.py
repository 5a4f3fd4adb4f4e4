"""Skill-discovery objectives."""

from torchrl_metra.objectives.metra import METRALoss
from torchrl_metra.objectives.sac import BatchedSACLoss

__all__ = ["BatchedSACLoss", "METRALoss"]
