"""Transforms for skills."""

from torchrl_metra.envs.transforms.goal import GoalPrimer
from torchrl_metra.envs.transforms.hierarchy import SkillAction
from torchrl_metra.envs.transforms.position import ReadPosition
from torchrl_metra.envs.transforms.reward import IntrinsicRewardTransform
from torchrl_metra.envs.transforms.skill import SkillPrimer

__all__ = ["GoalPrimer", "IntrinsicRewardTransform", "ReadPosition", "SkillAction", "SkillPrimer"]
