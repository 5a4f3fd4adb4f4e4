"""Skill priors, and replay memories for pictures and for whole episodes."""

from torchrl_metra.data.episodes import EpisodeStorage
from torchrl_metra.data.frames import FrameStackStorage
from torchrl_metra.data.skills import OneHot, SkillPrior, StandardNormal, UnitBall, UnitSphere

__all__ = [
    "EpisodeStorage",
    "FrameStackStorage",
    "OneHot",
    "SkillPrior",
    "StandardNormal",
    "UnitBall",
    "UnitSphere",
]
