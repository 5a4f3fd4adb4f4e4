"""The CSD loss module: METRA's, with a learned distance."""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import nn

from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.distances import ControllabilityDistance
from torchrl_metra.objectives.metra import METRALoss


class CSDLoss(METRALoss):
    r"""CSD: skills that seek what is hard to control.

    Presented in "Controllability-Aware Unsupervised Skill Discovery", Park, Lee, Lee and
    Abbeel, ICML 2023, https://arxiv.org/abs/2302.05103. Its objective (Equations 5 and 6) is
    METRA's with another bound on a latent step than time: how surprising the transition is
    under a density model that is trained along,

    .. math::
        \max_\phi \; \mathbb{E}\left[(\phi(s') - \phi(s))^\top z\right]
        \quad \text{s.t.} \quad \|\phi(s') - \phi(s)\|_2^2 \le d(s, s').

    Here in the form that the METRA authors compare with (their ``dual_dist="s2_from_s"``), see
    :class:`~torchrl_metra.ControllabilityDistance`.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.
        distance (ControllabilityDistance): :math:`d`.

    Keyword Args:
        **kwargs: those of :class:`~torchrl_metra.METRALoss` but ``distance``.

    The output is that of :class:`~torchrl_metra.METRALoss` and ``loss_distance``.

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import (
        ...     ControllabilityDistance, CSDLoss, SkillPrimer, UnitSphere, make_env
        ... )
        >>> prior = UnitSphere(2)
        >>> distance = ControllabilityDistance.from_size(2, num_cells=[32])
        >>> csd_loss = CSDLoss(MLP(in_features=2, out_features=2), prior, distance)
        >>> list(csd_loss.parameter_groups())
        ['encoder', 'dual', 'distance']
        >>> transitions = make_env("point", 4).append_transform(SkillPrimer(prior)).rollout(5)
        >>> csd_loss(transitions)["loss_distance"].backward()
    """

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        distance: ControllabilityDistance,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, prior, distance=distance, **kwargs)
