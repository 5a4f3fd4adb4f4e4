"""Configs of objectives, of their distances, and of the losses of the policy."""

from __future__ import annotations

from typing import Any

from torchrl.objectives import SACLoss
from torchrl.trainers.algorithms.configs.objectives import LossConfig

from torchrl_metra import (
    BatchedSACLoss,
    CICLoss,
    ControllabilityDistance,
    CSDLoss,
    CSFLoss,
    DADSLoss,
    DIAYNLoss,
    L2Distance,
    LSDLoss,
    METRALoss,
    RNDBaseline,
    SuccessorFeatureSACLoss,
)
from torchrl_metra.trainers.configs.common import PlainConfig, configures

__all__ = [
    "BatchedSACLossConfig",
    "CICLossConfig",
    "CSDLossConfig",
    "CSFLossConfig",
    "ControllabilityDistanceConfig",
    "DADSLossConfig",
    "DIAYNLossConfig",
    "L2DistanceConfig",
    "LSDLossConfig",
    "METRALossConfig",
    "RNDBaselineConfig",
    "SuccessorFeatureSACLossConfig",
]


@configures(METRALoss, group="loss", name="metra")
class METRALossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.METRALoss`.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl.trainers.algorithms.configs import MLPConfig
        >>> from torchrl_metra.trainers.configs import METRALossConfig, UnitSphereConfig
        >>> encoder = MLPConfig(in_features=2, out_features=2)
        >>> config = METRALossConfig(encoder=encoder, prior=UnitSphereConfig(dim=2), slack=0.01)
        >>> instantiate(config).slack
        0.01
    """


@configures(CSDLoss, group="loss", name="csd")
class CSDLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.CSDLoss`."""


@configures(LSDLoss, group="loss", name="lsd")
class LSDLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.LSDLoss`."""


@configures(DIAYNLoss, group="loss", name="diayn")
class DIAYNLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.DIAYNLoss`."""


@configures(DADSLoss, group="loss", name="dads")
class DADSLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.DADSLoss`."""


@configures(CICLoss, group="loss", name="cic")
class CICLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.CICLoss`."""


@configures(CSFLoss, group="loss", name="csf")
class CSFLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.CSFLoss`."""


@configures(RNDBaseline, group="loss", name="rnd")
class RNDBaselineConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.RNDBaseline`."""


@configures(L2Distance, group="distance", name="l2")
class L2DistanceConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.L2Distance`."""


@configures(ControllabilityDistance, group="distance", name="controllability")
class ControllabilityDistanceConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.ControllabilityDistance`."""


def _with_discount(loss: SACLoss, gamma: float | None) -> SACLoss:
    # The constructor refuses the discount in favour of this method.
    if gamma is not None:
        loss.make_value_estimator(gamma=gamma)
    return loss


def _make_batched_sac_loss(*, gamma: float | None, **arguments: Any) -> BatchedSACLoss:
    return _with_discount(BatchedSACLoss(**arguments), gamma)


@configures(BatchedSACLoss, group="loss", name="batched_sac", target=_make_batched_sac_loss)
class BatchedSACLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.BatchedSACLoss`; ``gamma`` is its discount."""


def _make_successor_sac_loss(*, gamma: float | None, **arguments: Any) -> SuccessorFeatureSACLoss:
    return _with_discount(SuccessorFeatureSACLoss(**arguments), gamma)


@configures(
    SuccessorFeatureSACLoss,
    group="loss",
    name="successor_sac",
    target=_make_successor_sac_loss,
    # Its actor and its critics, by the names of the base class.
    without=("actor_network", "qvalue_network"),
)
class SuccessorFeatureSACLossConfig(LossConfig):
    """Fields of :class:`~torchrl_metra.SuccessorFeatureSACLoss`; ``gamma`` is its discount."""
