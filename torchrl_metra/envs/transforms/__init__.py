"""Transforms for skills."""

from torchrl_metra.envs.transforms.reward import IntrinsicRewardTransform
from torchrl_metra.envs.transforms.skill import SkillPrimer

__all__ = ["IntrinsicRewardTransform", "SkillPrimer"]
