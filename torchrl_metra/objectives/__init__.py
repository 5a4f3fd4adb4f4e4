"""Skill-discovery objectives."""

from torchrl_metra.objectives.cic import CICLoss
from torchrl_metra.objectives.common import EncoderLoss, SkillLoss
from torchrl_metra.objectives.csd import CSDLoss
from torchrl_metra.objectives.csf import CSFLoss
from torchrl_metra.objectives.dads import DADSLoss
from torchrl_metra.objectives.diayn import DIAYNLoss
from torchrl_metra.objectives.distances import ControllabilityDistance, L2Distance
from torchrl_metra.objectives.genda import GenDaLoss
from torchrl_metra.objectives.lsd import LSDLoss
from torchrl_metra.objectives.metra import METRALoss
from torchrl_metra.objectives.relabeling import RelabelSkills
from torchrl_metra.objectives.rnd import RNDBaseline
from torchrl_metra.objectives.sac import BatchedSACLoss
from torchrl_metra.objectives.successor import SuccessorFeatureSACLoss

__all__ = [
    "BatchedSACLoss",
    "CICLoss",
    "CSDLoss",
    "CSFLoss",
    "ControllabilityDistance",
    "DADSLoss",
    "DIAYNLoss",
    "EncoderLoss",
    "GenDaLoss",
    "L2Distance",
    "LSDLoss",
    "METRALoss",
    "RNDBaseline",
    "RelabelSkills",
    "SkillLoss",
    "SuccessorFeatureSACLoss",
]
