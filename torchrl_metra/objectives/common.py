"""What skill-discovery objectives have in common."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictParams, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torchrl.objectives.common import LossModule

from torchrl_metra._checks import call_network, check_choice, read_tensors
from torchrl_metra.data import SkillPrior
from torchrl_metra.data.skills import check_prior
from torchrl_metra.modules.encoder import as_encoder, latent_key
from torchrl_metra.objectives import functional as F

__all__ = ["EncoderLoss", "SkillLoss"]

_REDUCTIONS = ("mean", "sum", "none")


class SkillLoss(LossModule, abc.ABC):
    """Base of all skill-discovery objectives: named groups of parameters, and a reward.

    Each entry ``"loss_x"`` of the output is minimised by an optimiser of its own over
    ``parameter_groups()["x"]``; the policy is trained on :meth:`reward` by any loss that
    TorchRL has. That is all that :class:`~torchrl_metra.METRATrainer`, the stepper and the
    hook know of an objective.

    A subclass names its ``out_keys`` and the ``state_keys`` that it reads, and implements
    :meth:`compute`, :meth:`reward` and :meth:`parameter_groups`.

    Args:
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        TypeError: if ``prior`` is no :class:`~torchrl_metra.SkillPrior`.
        ValueError: if ``reduction`` is unknown, if a batch is empty, if skills have not the
            prior's size, or if an output on the CPU is not finite. A batch that was refused
            there leaves no trace in running statistics.
        KeyError: if the batch lacks an entry.

    Examples:
        >>> from torchrl_metra import METRALoss, UnitSphere
        >>> metra_loss = METRALoss(torch.nn.Linear(3, 2), UnitSphere(2))
        >>> isinstance(metra_loss, SkillLoss), list(metra_loss.parameter_groups())
        (True, ['encoder', 'dual'])
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys, set with ``.set_keys(key_name=key_value)``.

        Attributes:
            skill (NestedKey): where the skill is read. Defaults to ``"skill"``.
            priority_weight (NestedKey): where the weights of a prioritised replay
                buffer are read, if there are any. Defaults to ``"priority_weight"``.
        """

        skill: NestedKey = "skill"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    # Number of entries of cumulant().
    cumulant_size = 1

    @property
    @abc.abstractmethod
    def state_keys(self) -> Sequence[NestedKey]:
        """Entries of a state, read at both ends of each transition."""

    def __init__(
        self, prior: SkillPrior, *, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> None:
        super().__init__()
        check_prior(prior)
        check_choice("reduction", reduction, _REDUCTIONS)
        self.prior = prior
        self.reduction = reduction

    @abc.abstractmethod
    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Losses and what else is logged, one number per transition.

        Args:
            tensordict (TensorDictBase): transitions of batch size ``*B``.

        Returns:
            Tensors of shape ``[*B]`` for each of ``out_keys``.
        """

    @abc.abstractmethod
    def reward(self, tensordict: TensorDictBase) -> Tensor:
        """Intrinsic reward with today's weights.

        Args:
            tensordict (TensorDictBase): transitions of batch size ``*B``.

        Returns:
            A tensor of shape ``[*B, 1]``, as TorchRL's rewards are.

        Raises:
            ValueError: if, on the CPU, it is not finite.
        """

    @abc.abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the loss that trains them: group ``"x"`` minimises ``"loss_x"``."""

    def cumulant(self, tensordict: TensorDictBase) -> Tensor:
        """What critics accumulate over time: the reward, unless critics are vector-valued.

        Args:
            tensordict (TensorDictBase): transitions of batch size ``*B``.

        Returns:
            A tensor of shape ``[*B, cumulant_size]``.
        """
        return self.reward(tensordict)

    @property
    def in_keys(self) -> list[NestedKey]:
        """What is read of a batch, without repetitions."""
        return list(dict.fromkeys(map(unravel_key, self.read_keys())))

    def read_keys(self) -> list[NestedKey]:
        """What is read of a batch: the states at both ends of a transition, and the skill."""
        following = [("next", key) for key in self.state_keys]
        return [*self.state_keys, *following, self.tensor_keys.skill]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Nothing to forward: keys are read where they are used."""

    # Without a TensorDict, the skills tell the batch size: guessing it from all entries would
    # take one shape of observations and skills, as in [B, 2] and [B, 2], for a batch.
    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses, and detached values to log, on a batch of transitions.

        Args:
            tensordict (TensorDictBase): transitions with skills, of any batch size ``*B``.

        Returns:
            A TensorDict of scalars, or of entries of shape ``[*B]`` with
            ``reduction="none"``.
        """
        batch_size = self.skill(tensordict).shape[:-1]
        if tensordict.batch_size != batch_size:
            tensordict = _with_batch_size(tensordict, batch_size)
        if not batch_size.numel():
            raise ValueError(f"the batch, of shape {list(batch_size)}, has no transitions.")
        if _is_traced():
            return self._reduce(self.compute(tensordict), tensordict)
        before = [(buffer, buffer.clone()) for buffer in self.buffers() if buffer.is_cpu]
        try:
            return self._compute_checked(tensordict)
        except Exception:
            # NaN would stay in running statistics for good.
            for buffer, value in before:
                buffer.copy_(value)
            raise

    def _compute_checked(self, tensordict: TensorDictBase) -> TensorDictBase:
        entries = self.compute(tensordict)
        output = self._reduce(entries, tensordict)
        values = [value.detach() for value in entries.values()]
        if values[0].device.type != "cpu":
            # An accelerator would have to wait for the answer.
            return output
        # One look at all of them costs less than one at each.
        if not torch.stack(values).isfinite().all():
            for name, value in entries.items():
                self.finite(value, name)
        for name, buffer in self.named_buffers():
            if buffer.is_floating_point():
                self.finite(buffer, name)
        if self._maybe_get_priority_weight(tensordict) is not None:
            for name, value in output.items():
                self.finite(value, f"{name}, weighted by priorities,")
        return output

    def skill(self, tensordict: TensorDictBase) -> Tensor:
        """The batch's skills, of shape ``[*B, D]``, checked."""
        return self.prior.validate(self.read(tensordict, self.tensor_keys.skill))

    def read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry of the batch.

        Raises:
            KeyError: if the batch lacks it.
            TypeError: if it is no tensor.
        """
        hint = (
            " Add a SkillPrimer to the environment."
            if key == self.tensor_keys.skill
            else " Rename the networks' in_keys or the batch's entries."
        )
        (value,) = read_tensors(tensordict, [unravel_key(key)], type(self).__name__, hint)
        return value

    def read_pair(self, tensordict: TensorDictBase, key: NestedKey) -> tuple[Tensor, Tensor]:
        """An entry at both ends of each transition.

        Raises:
            KeyError: if the batch lacks one of them.
            ValueError: if they have not the same shape.
        """
        first, second = (self.read(tensordict, end) for end in (key, ("next", key)))
        if first.shape != second.shape:
            raise ValueError(
                f"{key!r} and {('next', key)!r} must have the same shape, found "
                f"{list(first.shape)} and {list(second.shape)}."
            )
        return first, second

    @staticmethod
    def finite(value: Tensor, name: str = "reward") -> Tensor:
        """The value, if it is finite; looked at on the CPU only, and in no graph.

        Graphs have no branches, and an accelerator would stall: there, trainers check.

        Raises:
            ValueError: if it holds NaN or infinite numbers.
        """
        if value.device.type == "cpu" and not _is_traced() and not value.isfinite().all():
            raise ValueError(
                f"{int((~value.isfinite()).sum())} of {value.numel()} numbers of {name} are not "
                "finite: look for NaN, infinite or huge observations in the batch, else for "
                "diverged weights."
            )
        return value

    def _reduce(self, entries: dict[str, Tensor], tensordict: TensorDictBase) -> TensorDictBase:
        weights = self._maybe_get_priority_weight(tensordict)
        reduced = {
            key: self._reduce_loss(value, tensordict, weights=weights)
            if key.startswith("loss_")
            else self._reduce_metric(value.detach(), tensordict)
            for key, value in entries.items()
        }
        return TensorDict(
            reduced, batch_size=tensordict.batch_size if self.reduction == "none" else []
        )

    def _reduce_metric(self, metric: Tensor, tensordict: TensorDictBase) -> Tensor:
        if self.reduction == "none":
            return metric
        return self._reduce_loss(metric, tensordict, reduction="mean")


class EncoderLoss(SkillLoss):
    r"""Base of objectives with an encoder :math:`\phi`, whose latent space is that of the skills.

    Unless a subclass says otherwise, it has one group of parameters, ``"encoder"``, and its
    reward is how far φ moves along the skill, :math:`(\phi(s') - \phi(s))^\top z`.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. A plain ``nn.Module`` reads ``"observation"``.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        TypeError: if the encoder is no module; see also :class:`SkillLoss`.
        ValueError: if the encoder's output does not have ``D`` entries.

    Examples:
        >>> from torchrl_metra import LSDLoss, UnitSphere
        >>> lsd_loss = LSDLoss(torch.nn.Linear(3, 2), UnitSphere(2))
        >>> isinstance(lsd_loss, EncoderLoss), lsd_loss.in_keys
        (True, ['observation', ('next', 'observation'), 'skill'])
    """

    @dataclass
    class _AcceptedKeys(SkillLoss._AcceptedKeys):
        """Configurable tensordict keys, set with ``.set_keys(key_name=key_value)``.

        Attributes:
            skill (NestedKey): where the skill is read. Defaults to ``"skill"``.
            priority_weight (NestedKey): where the weights of a prioritised replay
                buffer are read, if there are any. Defaults to ``"priority_weight"``.
            latent (NestedKey): where the encoder writes its output. Defaults to
                ``"latent"``, or to the encoder's first out-key if it has none of that name.
        """

        latent: NestedKey = "latent"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    encoder: TensorDictModule
    encoder_params: TensorDictParams
    target_encoder_params: TensorDictParams

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(prior, reduction=reduction)
        encoder = as_encoder(encoder)
        self.tensor_keys.latent = latent_key(encoder)
        self.convert_to_functional(encoder, "encoder")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.encoder_params.parameters())}

    @property
    def state_keys(self) -> Sequence[NestedKey]:
        return self.encoder.in_keys

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        reward = self.step_along_skill(*self.encode_pair(tensordict), tensordict)
        return self.finite(reward.unsqueeze(-1))

    def step_along_skill(
        self, latent: Tensor, next_latent: Tensor, tensordict: TensorDictBase
    ) -> Tensor:
        """How far φ moves along the batch's skills, of shape ``[*B]``."""
        skill = self.prior.center(self.skill(tensordict))
        return F.intrinsic_reward(latent, next_latent, skill)

    def encode_pair(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """φ of both states of each transition, in a single call of the encoder.

        Args:
            tensordict (TensorDictBase): observations and next observations.

        Returns:
            φ(s) and φ(s'), each of shape ``[*B, D]``, NaN where the state is.
        """
        ends = [torch.stack(self.read_pair(tensordict, key)) for key in self.state_keys]
        latent, next_latent = self._encode(ends, (2, *tensordict.batch_size)).unbind(0)
        return latent, next_latent

    def encode(self, tensordict: TensorDictBase, *, following: bool = False) -> Tensor:
        """φ of one state of each transition.

        Args:
            tensordict (TensorDictBase): observations and next observations.

        Keyword Args:
            following (bool, optional): the state at the end of the transition, φ(s'), in place
                of φ(s). Defaults to ``False``.

        Returns:
            A tensor of shape ``[*B, D]``, NaN where the state is.
        """
        keys = [("next", key) if following else key for key in self.state_keys]
        inputs = [self.read(tensordict, key).unsqueeze(0) for key in keys]
        return self._encode(inputs, (1, *tensordict.batch_size))[0]

    def _encode(self, inputs: Sequence[Tensor], batch_size: Sequence[int]) -> Tensor:
        """φ of shape ``[*batch_size, D]``, for the encoder's inputs."""
        inputs = [value.flatten(0, len(batch_size) - 1) for value in inputs]
        with self.encoder_params.to_module(self.encoder):
            if type(self.encoder) is TensorDictModule and len(self.encoder.out_keys) == 1:
                # What it would write is read once: no need for a tensordict.
                latents = call_network("encoder", self.encoder.module, *inputs)
            else:
                states = TensorDict(
                    dict(zip(self.encoder.in_keys, inputs, strict=True)),
                    batch_size=[len(inputs[0])],
                )
                latents = call_network("encoder", self.encoder, states).get(self.tensor_keys.latent)
        if latents.shape[-1] != self.prior.dim:
            raise ValueError(
                f"the encoder must map to the {self.prior.dim} dimensions of {self.prior!r}, "
                f"but its output has shape {list(latents.shape)}."
            )
        # Latents grow to hundreds while their differences stay near one: under autocast, at
        # least subtract in float32.
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return latents.unflatten(0, batch_size)


def _is_traced() -> bool:
    """Whether a graph is made of what runs."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _with_batch_size(tensordict: TensorDictBase, batch_size: torch.Size) -> TensorDictBase:
    tensordict = tensordict.copy()
    try:
        tensordict.batch_size = batch_size
    except RuntimeError as err:
        shapes = {str(key): list(value.shape) for key, value in tensordict.items(True, True)}
        raise ValueError(
            f"skills make a batch of shape {list(batch_size)}, which the entries do not share: "
            f"{shapes}."
        ) from err
    return tensordict
