"""Runs from settings: the factory, training, and what the command ``metra`` does."""

from torchrl_metra.recipes.build import make_metra, make_settings
from torchrl_metra.recipes.objectives import OBJECTIVES, LossParts, Objective
from torchrl_metra.recipes.settings import (
    CheckpointSettings,
    DistributedSettings,
    DownstreamSettings,
    EncoderSettings,
    EnvSettings,
    FinetuneSettings,
    METRASettings,
    PixelSettings,
    PolicySettings,
    PPOSettings,
    SACSettings,
    Settings,
    SkillSettings,
    TaskSACSettings,
)
from torchrl_metra.recipes.train import train

__all__ = [
    "OBJECTIVES",
    "CheckpointSettings",
    "DistributedSettings",
    "DownstreamSettings",
    "EncoderSettings",
    "EnvSettings",
    "FinetuneSettings",
    "LossParts",
    "METRASettings",
    "Objective",
    "PPOSettings",
    "PixelSettings",
    "PolicySettings",
    "SACSettings",
    "Settings",
    "SkillSettings",
    "TaskSACSettings",
    "make_metra",
    "make_settings",
    "train",
]
