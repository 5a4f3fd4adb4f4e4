"""Skill-conditioned networks."""

from torchrl_metra.modules.actor import NormalHead, SkillConditionedActor
from torchrl_metra.modules.bottleneck import Bottleneck
from torchrl_metra.modules.goal import GoalReachingPolicy
from torchrl_metra.modules.linear import Float32Linear
from torchrl_metra.modules.networks import (
    Architecture,
    SACNetworks,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.modules.pixels import PatchColors, PatchEncoder, PixelEncoder, PixelNetwork
from torchrl_metra.modules.skill_policy import SkillPolicy

__all__ = [
    "Architecture",
    "Bottleneck",
    "Float32Linear",
    "GoalReachingPolicy",
    "NormalHead",
    "PatchColors",
    "PatchEncoder",
    "PixelEncoder",
    "PixelNetwork",
    "SACNetworks",
    "SkillConditionedActor",
    "SkillPolicy",
    "make_pixel_sac_networks",
    "make_sac_networks",
]
