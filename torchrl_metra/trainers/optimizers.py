"""The optimizers of a gradient step, and which losses go together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn, optim
from torchrl.objectives import DiscreteSACLoss, LossModule, SACLoss

from torchrl_metra.objectives import SkillLoss


def make_metra_optimizers(
    skill_loss: SkillLoss,
    sac_loss: SACLoss | DiscreteSACLoss,
    lr: float = 1e-4,
    *,
    shared_encoder: nn.Module | None = None,
    **lrs: float,
) -> dict[str, optim.Optimizer]:
    """One fused Adam per part, as the authors have it (Appendix F.1).

    Args:
        skill_loss (SkillLoss): owns what its ``parameter_groups`` say: METRA's are φ
            (``"encoder"``), λ (``"dual"``) and what is learned of the constraint's distance
            (``"distance"``).
        sac_loss (SACLoss or DiscreteSACLoss): owns the critics (``"qvalue"``), the policy
            (``"actor"``) and the entropy coefficient (``"alpha"``).
        lr (float, optional): learning rate. Defaults to 1e-4.

    Keyword Args:
        shared_encoder (nn.Module, optional): what policy and critics read, see
            :func:`~torchrl_metra.make_pixel_sac_networks`. If the skill loss does not train it, it
            belongs to ``"qvalue"``.
        **lrs: learning rates of single parts, such as ``dual=3e-3``.

    Returns:
        The optimizers by part; parts held fixed or without parameters have none.

    Raises:
        ValueError: if a learning rate is given for an unknown part, or if the losses do not go
            together.

    Examples:
        >>> from torchrl.objectives import SACLoss
        >>> from torchrl_metra import METRALoss, UnitSphere, make_env, make_sac_networks
        >>> prior = UnitSphere(2)
        >>> networks = make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[32])
        >>> metra_loss = METRALoss(networks.encoder, prior)
        >>> sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0)
        >>> sorted(make_metra_optimizers(metra_loss, sac_loss, lr=3e-4, dual=1e-3))
        ['actor', 'alpha', 'dual', 'encoder', 'qvalue']
    """
    check_losses(skill_loss, sac_loss)
    parts = {
        **skill_loss.parameter_groups(),
        "qvalue": list(sac_loss.qvalue_network_params.parameters()),
        "actor": list(sac_loss.actor_network_params.parameters()),
        "alpha": [sac_loss.log_alpha],
    }
    if shared_encoder is not None:
        trained = {id(weight) for weight in skill_loss.parameters()}
        own = [weight for weight in shared_encoder.parameters() if id(weight) not in trained]
        parts["qvalue"] += own
    if unknown := lrs.keys() - parts.keys():
        raise ValueError(
            f"learning rates for unknown parts {sorted(unknown)}, expected {sorted(parts)}."
        )
    return {
        # On CUDA the count of steps lives there too: nothing to wait for, and graphs can be made.
        name: optim.Adam(
            parameters, lr=lrs.get(name, lr), fused=True, capturable=parameters[0].is_cuda
        )
        for name, parameters in parts.items()
        if parameters and all(parameter.requires_grad for parameter in parameters)
    }


def check_losses(skill_loss: SkillLoss, policy_loss: LossModule) -> None:
    """Refuse a policy loss that would learn something else than the skill loss asks for.

    Raises:
        ValueError: if critics were not made for what the skill loss has them predict, or if
            there is a value network beside the critics (SAC's first version), which no step
            would train.
    """
    expected, found = skill_loss.cumulant_size, getattr(policy_loss, "cumulant_size", 1)
    if expected != found:
        raise ValueError(
            f"{type(skill_loss).__name__} needs critics that predict {expected} "
            f"{'numbers' if expected > 1 else 'number'}, but those of {type(policy_loss).__name__} "
            f"predict {found}: CSFLoss goes with SuccessorFeatureSACLoss, the others with SACLoss."
        )
    if getattr(policy_loss, "value_network_params", None) is not None:
        raise ValueError(
            f"{type(policy_loss).__name__} has a value_network, which nothing here trains: build "
            "it without, so that targets come from the critics."
        )


def check_optimizers(
    optimizers: Mapping[str, optim.Optimizer], skill_loss: SkillLoss, *others: str
) -> None:
    """Refuse optimizers without one for the skill loss's first part, or for others.

    Raises:
        ValueError: if one is missing.
    """
    main = next(iter(skill_loss.parameter_groups()))
    if missing := {main, *others} - optimizers.keys():
        raise ValueError(
            f"optimizers lack {sorted(missing)}, found {sorted(optimizers)}: "
            "make_metra_optimizers builds them all."
        )
