"""The METRA loss module."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictParams, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torchrl.objectives.common import LossModule

from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.encoder import as_encoder, latent_key
from torchrl_metra.objectives import functional as F

__all__ = ["METRALoss"]

_REDUCTIONS = ("mean", "sum", "none")


class METRALoss(LossModule):
    r"""METRA: a metric-aware abstraction of states, learned without reward.

    Presented in "METRA: Scalable Unsupervised RL with Metric-Aware Abstraction",
    Park, Rybkin and Levine, ICLR 2024, https://arxiv.org/abs/2310.08887.

    Trains an encoder :math:`\phi` so that skills move far along their own
    direction of the latent space, while adjacent states stay within a temporal
    distance of one (Equations 8 and 9):

    .. math::
        \max_\phi \; \mathbb{E}\left[(\phi(s') - \phi(s))^\top z\right]
        \quad \text{s.t.} \quad \|\phi(s') - \phi(s)\|_2 \le 1

    The constraint is enforced by a dual variable :math:`\lambda`, trained along.
    The policy is trained by any stock RL loss on :meth:`reward`; this module knows
    nothing of actors or critics.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        constraint_norm (str, optional): ``"l2"`` (default), the paper's Euclidean
            norm, or ``"rms"``, the authors' implementation, where the bound is
            :math:`\|\Delta\phi\|_2 \le \sqrt D`.
        slack (float, optional): :math:`\varepsilon \ge 0`, the most that a satisfied
            pair contributes to the constraint. Defaults to ``1e-3``.
        dual_init (float, optional): initial :math:`\lambda > 0`. Defaults to ``30.0``.
        fixed_dual (bool, optional): keep :math:`\lambda` at ``dual_init``.
            Defaults to ``False``.
        distance (Callable, optional): ``distance(tensordict) -> Tensor`` of shape
            ``[*B]``, the squared bound :math:`d(s, s')` on a latent step, to which the
            encoder's loss has no gradient. Its ``in_keys``, if it has any, are read of the
            batch. A module with a method ``loss(tensordict)``, also of shape ``[*B]``, is
            trained along, see :class:`~torchrl_metra.ControllabilityDistance`.
            Defaults to 1, METRA's temporal distance.
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if a keyword is out of range, if the encoder's output or the
            skills do not have ``D`` entries, if the distance is not of shape ``[*B]``, or
            if observations on the CPU are not finite.
        TypeError: if ``prior`` is no :class:`~torchrl_metra.data.SkillPrior`, the
            encoder no module or the distance not callable.
        KeyError: if the batch lacks an entry.

    The output holds ``loss_encoder``, ``loss_dual`` and, for a distance that is trained
    along, ``loss_distance``, to be minimised by one optimiser each, and detached values
    to log: ``intrinsic_reward``,
    ``constraint``, ``constraint_violation`` (fraction of pairs beyond the bound),
    ``dual`` (:math:`\lambda`) and ``latent_step`` (:math:`\|\phi(s') - \phi(s)\|_2`).

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import METRALoss, UnitSphere
        >>> prior = UnitSphere(2)
        >>> metra_loss = METRALoss(MLP(in_features=4, out_features=2), prior)
        >>> batch = TensorDict(
        ...     {
        ...         "observation": torch.randn(8, 4),
        ...         "skill": prior.sample([8]),
        ...         "next": {"observation": torch.randn(8, 4)},
        ...     },
        ...     batch_size=[8],
        ... )
        >>> losses = metra_loss(batch)
        >>> (losses["loss_encoder"] + losses["loss_dual"]).backward()
        >>> metra_loss.reward(batch).shape
        torch.Size([8, 1])

        Without TensorDict:

        >>> _ = metra_loss.select_out_keys("loss_encoder", "loss_dual")
        >>> loss_encoder, loss_dual = metra_loss(
        ...     observation=torch.randn(8, 4),
        ...     next_observation=torch.randn(8, 4),
        ...     skill=prior.sample([8]),
        ... )
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys, set with ``.set_keys(key_name=key_value)``.

        Attributes:
            skill (NestedKey): where the skill is read. Defaults to ``"skill"``.
            latent (NestedKey): where the encoder writes its output. Defaults to
                ``"latent"``, or to the encoder's first out-key if it has none of that name.
            priority_weight (NestedKey): where the weights of a prioritised replay
                buffer are read, if there are any. Defaults to ``"priority_weight"``.
        """

        skill: NestedKey = "skill"
        latent: NestedKey = "latent"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    encoder: TensorDictModule
    encoder_params: TensorDictParams
    target_encoder_params: TensorDictParams
    distance: Any

    out_keys = [
        "loss_encoder",
        "loss_dual",
        "intrinsic_reward",
        "constraint",
        "constraint_violation",
        "dual",
        "latent_step",
    ]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        constraint_norm: F.ConstraintNorm = "l2",
        slack: float = 1e-3,
        dual_init: float = 30.0,
        fixed_dual: bool = False,
        distance: Callable[[TensorDictBase], Tensor] | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be an nn.Module, got {type(encoder).__name__}.")
        if not isinstance(prior, SkillPrior):
            raise TypeError(
                f"prior must be a SkillPrior such as UnitSphere(2), got {type(prior).__name__}."
            )
        _check_choice("constraint_norm", constraint_norm, get_args(F.ConstraintNorm))
        _check_choice("reduction", reduction, _REDUCTIONS)
        if not slack >= 0:
            raise ValueError(f"slack must not be negative, got {slack}.")
        if not dual_init > 0:
            raise ValueError(f"dual_init, the initial λ, must be positive, got {dual_init}.")
        if distance is not None and not callable(distance):
            raise TypeError(
                "distance must be a callable such as L2Distance(), or None for the temporal "
                f"distance, got {distance!r}."
            )

        encoder = as_encoder(encoder)
        self.tensor_keys.latent = latent_key(encoder)
        self.convert_to_functional(encoder, "encoder")
        self.prior = prior
        self.constraint_norm = constraint_norm
        self.slack = slack
        self.distance = distance
        self._trains_distance = isinstance(distance, nn.Module) and hasattr(distance, "loss")
        if self._trains_distance:
            self.out_keys = [*self.out_keys, "loss_distance"]
        self.reduction = reduction
        log_dual = torch.tensor(math.log(dual_init), device=self._default_device)
        if fixed_dual:
            self.register_buffer("log_dual", log_dual)
        else:
            self.log_dual = nn.Parameter(log_dual)
        self._set_in_keys()

    def _set_in_keys(self) -> None:
        keys = [unravel_key(key) for key in self.encoder.in_keys]
        in_keys = [
            *keys,
            *[unravel_key(("next", key)) for key in keys],
            self.tensor_keys.skill,
            *getattr(self.distance, "in_keys", []),
        ]
        self.in_keys = list(dict.fromkeys(in_keys))

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        self._set_in_keys()

    @property
    def dual(self) -> Tensor:
        """Dual variable λ, a detached scalar."""
        return self.log_dual.detach().exp()

    # Without a TensorDict, the skills tell the batch size: guessing it from all entries would
    # take one shape of observations and skills, as in [B, 2] and [B, 2], for a batch.
    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses of the encoder and of the dual variable, on a batch of transitions.

        Args:
            tensordict (TensorDictBase): observations, next observations and skills,
                of any batch size ``*B``.

        Returns:
            A TensorDict of scalars, or of entries of shape ``[*B]`` with
            ``reduction="none"``.
        """
        skill = self._centered_skill(tensordict)
        if tensordict.batch_size != skill.shape[:-1]:
            tensordict = tensordict.copy()
            tensordict.batch_size = skill.shape[:-1]
        latent, next_latent = self.encode_pair(tensordict)
        reward = F.intrinsic_reward(latent, next_latent, skill)
        constraint = F.temporal_constraint(
            latent,
            next_latent,
            self._bound(tensordict),
            slack=self.slack,
            norm=self.constraint_norm,
        )
        losses = {
            "loss_encoder": F.encoder_loss(reward, constraint, self.dual),
            "loss_dual": F.dual_loss(self.log_dual, constraint),
        }
        if self._trains_distance:
            losses["loss_distance"] = self.distance.loss(tensordict)
        self._check_finite(losses["loss_encoder"])
        metrics = {
            "intrinsic_reward": reward.detach(),
            "constraint": constraint.detach(),
            "constraint_violation": (constraint < 0).to(reward.dtype),
            "latent_step": (next_latent - latent).detach().norm(dim=-1),
        }
        return self._reduce(losses, metrics, tensordict)

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        """Intrinsic reward with today's encoder (Equation 7).

        Args:
            tensordict (TensorDictBase): observations, next observations and skills.

        Returns:
            A tensor of shape ``[*B, 1]``, as TorchRL's rewards are.
        """
        latent, next_latent = self.encode_pair(tensordict)
        skill = self._centered_skill(tensordict)
        return F.intrinsic_reward(latent, next_latent, skill).unsqueeze(-1)

    def encode_pair(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """φ of both states of each transition, in a single call of the encoder.

        Args:
            tensordict (TensorDictBase): observations and next observations.

        Returns:
            φ(s) and φ(s'), each of shape ``[*B, D]``.
        """
        batch_size = tensordict.batch_size
        pair = [
            torch.stack([self._get(tensordict, key), self._get(tensordict, ("next", key))]).flatten(
                0, len(batch_size)
            )
            for key in self.encoder.in_keys
        ]
        with self.encoder_params.to_module(self.encoder):
            latents = self._encode(pair)
        if latents.shape[-1] != self.prior.dim:
            raise ValueError(
                f"the encoder must map to the {self.prior.dim} dimensions of {self.prior!r}, "
                f"but its output has shape {list(latents.shape)}."
            )
        # Latents grow to hundreds while their differences stay near one: under autocast, at
        # least subtract in float32.
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        latent, next_latent = latents.unflatten(0, (2, *batch_size)).unbind(0)
        return latent, next_latent

    def _encode(self, inputs: list[Tensor]) -> Tensor:
        if type(self.encoder) is TensorDictModule and len(self.encoder.out_keys) == 1:
            # What it would write is read once: no need for a tensordict.
            return self.encoder.module(*inputs)
        states = TensorDict(
            dict(zip(self.encoder.in_keys, inputs, strict=True)), batch_size=[len(inputs[0])]
        )
        return self.encoder(states).get(self.tensor_keys.latent)

    def _bound(self, tensordict: TensorDictBase) -> Tensor | float:
        """The squared bound on each latent step."""
        if self.distance is None:
            return 1.0
        # Detached only then: what autocast keeps of weights seen without gradient would go on
        # to the distance's own loss.
        distance = self.distance(tensordict).detach()
        if distance.shape != tensordict.batch_size:
            raise ValueError(
                f"the distance must return a tensor of the batch's shape "
                f"{list(tensordict.batch_size)}, got {list(distance.shape)}."
            )
        return distance

    def _centered_skill(self, tensordict: TensorDictBase) -> Tensor:
        skill = self._get(tensordict, self.tensor_keys.skill)
        return self.prior.center(self.prior.validate(skill))

    def _get(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = tensordict.get(unravel_key(key), default=None)
        if value is None:
            hint = (
                " Add a SkillPrimer to the environment."
                if key == self.tensor_keys.skill
                else " Rename the encoder's in_keys or the batch's entries."
            )
            raise KeyError(
                f"{type(self).__name__} needs {key!r}, but the batch only holds "
                f"{sorted(map(str, tensordict.keys(True, True)))}.{hint}"
            )
        return value

    @staticmethod
    def _check_finite(loss: Tensor) -> None:
        # Graphs have no branches, and an accelerator would stall: there, trainers check.
        is_traced = torch.compiler.is_compiling() or get_proxy_mode() is not None
        if is_traced or loss.device.type != "cpu":
            return
        if not loss.isfinite().all():
            raise ValueError(
                f"{int((~loss.isfinite()).sum())} of {loss.numel()} transitions give a loss that "
                "is not finite: look for NaN or infinite observations in the batch, else for "
                "diverged encoder weights."
            )

    def _reduce(
        self, losses: dict[str, Tensor], metrics: dict[str, Tensor], tensordict: TensorDictBase
    ) -> TensorDictBase:
        weights = self._maybe_get_priority_weight(tensordict)
        out = {
            key: self._reduce_loss(value, tensordict, weights=weights)
            for key, value in losses.items()
        }
        if self.reduction == "none":
            out.update(metrics)
            out["dual"] = self.dual.expand(tensordict.batch_size)
            return TensorDict(out, batch_size=tensordict.batch_size)
        out.update(
            {
                key: self._reduce_loss(value, tensordict, reduction="mean")
                for key, value in metrics.items()
            }
        )
        out["dual"] = self.dual
        return TensorDict(out)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}, expected one of {list(choices)}.")
