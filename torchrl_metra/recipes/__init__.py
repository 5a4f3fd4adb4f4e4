"""Runs from settings: the factory, training, and what the command ``metra`` does."""

from torchrl_metra.recipes.build import make_metra, make_settings
from torchrl_metra.recipes.objectives import OBJECTIVES, Ingredients, Objective
from torchrl_metra.recipes.settings import (
    BaselineSettings,
    CheckpointSettings,
    DistributedSettings,
    DownstreamSettings,
    EncoderSettings,
    EnvSettings,
    FinetuneSettings,
    HighLevelSettings,
    METRASettings,
    PixelSettings,
    PolicySettings,
    PPOSettings,
    SACSettings,
    Settings,
    SkillSettings,
)
from torchrl_metra.recipes.train import train

__all__ = [
    "OBJECTIVES",
    "BaselineSettings",
    "CheckpointSettings",
    "DistributedSettings",
    "DownstreamSettings",
    "EncoderSettings",
    "EnvSettings",
    "FinetuneSettings",
    "HighLevelSettings",
    "Ingredients",
    "METRASettings",
    "Objective",
    "PPOSettings",
    "PixelSettings",
    "PolicySettings",
    "SACSettings",
    "Settings",
    "SkillSettings",
    "make_metra",
    "make_settings",
    "train",
]
