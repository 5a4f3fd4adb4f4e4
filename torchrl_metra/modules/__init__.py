"""Skill-conditioned networks."""

from torchrl_metra.modules.actor import NormalHead, SkillConditionedActor
from torchrl_metra.modules.linear import Float32Linear
from torchrl_metra.modules.networks import Architecture, SACNetworks, make_sac_networks
from torchrl_metra.modules.skill_policy import SkillPolicy

__all__ = [
    "Architecture",
    "Float32Linear",
    "NormalHead",
    "SACNetworks",
    "SkillConditionedActor",
    "SkillPolicy",
    "make_sac_networks",
]
