"""Skill-discovery objectives."""

from torchrl_metra.objectives.distances import ControllabilityDistance, L2Distance
from torchrl_metra.objectives.metra import METRALoss
from torchrl_metra.objectives.sac import BatchedSACLoss

__all__ = ["BatchedSACLoss", "ControllabilityDistance", "L2Distance", "METRALoss"]
