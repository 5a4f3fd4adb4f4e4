"""Skill priors."""

from torchrl_metra.data.skills import OneHot, SkillPrior, StandardNormal, UnitSphere

__all__ = ["OneHot", "SkillPrior", "StandardNormal", "UnitSphere"]
