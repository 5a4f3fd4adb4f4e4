"""Skill priors, and a replay memory for pictures."""

from torchrl_metra.data.episodes import EpisodeStorage
from torchrl_metra.data.frames import FrameStackStorage
from torchrl_metra.data.skills import OneHot, SkillPrior, StandardNormal, UnitSphere

__all__ = [
    "EpisodeStorage",
    "FrameStackStorage",
    "OneHot",
    "SkillPrior",
    "StandardNormal",
    "UnitSphere",
]
