"""Skill-discovery objectives."""

from torchrl_metra.objectives.metra import METRALoss

__all__ = ["METRALoss"]
