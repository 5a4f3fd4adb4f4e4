"""What skill-discovery objectives have in common."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_metra._checks import check_choice, check_type
from torchrl_metra._private import reduce_loss, reduce_metric
from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.encoder import as_encoder, latent_key


class SkillLoss(LossModule, abc.ABC):
    """Base of all skill-discovery objectives: named groups of parameters, and a reward.

    Each entry ``"loss_x"`` of the output is minimized by its own optimizer over
    ``parameter_groups()["x"]``; the policy is trained on :meth:`reward` by any loss that
    TorchRL has. That is all that :class:`~torchrl_metra.METRATrainer`, the stepper and the
    hook know of an objective.

    A subclass names its ``out_keys`` and the ``state_keys`` that it reads, and implements
    :meth:`compute`, :meth:`reward` and :meth:`parameter_groups`. Losses look at no values: a NaN
    in the batch becomes one in the output, and trainers refuse it.

    Args:
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        KeyError: by a call, if the batch lacks an entry.
        ValueError: by a call, if the skills do not have the prior's size.

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
            priority_weight (NestedKey): where the weights of a prioritized replay
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
        check_type("prior", prior, SkillPrior, "a SkillPrior such as UnitSphere(2)")
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.prior = prior
        self.reduction = reduction

    @abc.abstractmethod
    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Losses and what else is logged: for each of ``out_keys`` a tensor of shape ``[*B]``."""

    @abc.abstractmethod
    def reward(self, tensordict: TensorDictBase) -> Tensor:
        """Intrinsic reward with today's weights, of shape ``[*B, 1]``, as TorchRL's rewards are."""

    @abc.abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the loss that trains them: group ``"x"`` minimizes ``"loss_x"``."""

    def cumulant(self, tensordict: TensorDictBase) -> Tensor:
        """What critics sum up over time: the reward, or ``[*B, cumulant_size]`` for vectors."""
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
            tensordict = tensordict.copy()
            tensordict.batch_size = batch_size
        output = {}
        for key, value in self.compute(tensordict).items():
            reduce = reduce_loss if key.startswith("loss_") else reduce_metric
            output[key] = reduce(self, value, tensordict)
        return TensorDict(output, batch_size if self.reduction == "none" else [])

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are."""
        return next((parameter.device for parameter in self.parameters()), None)

    def read(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry of the batch; a ``KeyError`` says what there is in its place."""
        value = tensordict.get(key, default=None)
        if value is None:
            writer = "A SkillPrimer in the environment writes skills"
            if isinstance(key, tuple) and key[0] in ("first", "last"):
                writer = "An EpisodeStorage in the replay buffer brings it"
            raise KeyError(
                f"{type(self).__name__} reads {key!r}, but the batch has only "
                f"{sorted(map(str, tensordict.keys(True, True)))}. {writer}; set_keys and in_keys "
                "rename entries."
            )
        return value

    def skill(self, tensordict: TensorDictBase) -> Tensor:
        """The batch's skills, of shape ``[*B, D]``."""
        skill = self.read(tensordict, self.tensor_keys.skill)
        if skill.shape[-1] != self.prior.dim:  # [*B, 1] would broadcast in silence.
            raise ValueError(
                f"expected skills of shape [..., {self.prior.dim}] for {self.prior!r}, got "
                f"{list(skill.shape)}."
            )
        return skill


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
        ValueError: by a call, if the encoder's output does not have ``D`` entries.

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
            latent (NestedKey): where the encoder writes its output. Defaults to
                ``"latent"``, or to the encoder's first out-key if it has none of that name.
            episode_skill (NestedKey): the skill that φ is trained with in place of ``skill``
                where a batch has it, see :class:`~torchrl_metra.RelabelSkills`. Defaults to
                ``"episode_skill"``.
        """

        latent: NestedKey = "latent"
        episode_skill: NestedKey = "episode_skill"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(prior, reduction=reduction)
        self.encoder = as_encoder(encoder)
        self.tensor_keys.latent = latent_key(self.encoder)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"encoder": list(self.encoder.parameters())}

    @property
    def state_keys(self) -> Sequence[NestedKey]:
        return self.encoder.in_keys

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        latent, next_latent = self.encode_pair(tensordict)
        return self.prior.reward(next_latent - latent, self.skill(tensordict)).unsqueeze(-1)

    def rewards(self, step: Tensor, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """What latent steps pay the policy's skills, and how far they go along φ's, ``[*B]``.

        They differ where skills are relabeled: then φ is trained with those of episodes.
        """
        skill = self.skill(tensordict)
        episode_skill = tensordict.get(self.tensor_keys.episode_skill, default=None)
        reward = self.prior.reward(step, skill)
        along = skill if episode_skill is None else episode_skill
        return reward, (step * self.prior.center(along)).sum(dim=-1)

    def encode_pair(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """φ(s) and φ(s') of each transition, of shape ``[*B, D]``, in one call of the encoder."""
        latent, next_latent = self.encode_ends(tensordict, "", "next")
        return latent, next_latent

    def encode_ends(self, tensordict: TensorDictBase, *ends: str) -> tuple[Tensor, ...]:
        """φ of several states of each transition, of shape ``[*B, D]``; vectors in one call.

        Args:
            tensordict (TensorDictBase): transitions.
            *ends (str): where each state lies, such as ``"next"``; ``""`` for the transition's own.
        """
        states = [
            [self.read(tensordict, (end, key) if end else key) for key in self.state_keys]
            for end in ends
        ]
        if any(value.dtype == torch.uint8 for value in states[0]):
            # To copy pictures takes longer than several calls.
            return tuple(self._encode(values, tensordict.batch_size) for values in states)
        stacks = [torch.stack(values) for values in zip(*states, strict=True)]
        return self._encode(stacks, (len(ends), *tensordict.batch_size)).unbind(0)

    def encode(self, tensordict: TensorDictBase, *, following: bool = False) -> Tensor:
        """φ(s) of each transition, or φ(s') if ``following``, of shape ``[*B, D]``."""
        return self.encode_ends(tensordict, "next" if following else "")[0]

    def _encode(self, inputs: Sequence[Tensor], batch_size: Sequence[int]) -> Tensor:
        """φ of shape ``[*batch_size, D]``, for the encoder's inputs."""
        inputs = [value.flatten(0, len(batch_size) - 1) for value in inputs]
        if type(self.encoder) is TensorDictModule and len(self.encoder.out_keys) == 1:
            # What it would write is read once: no need for a tensordict.
            latents = self.encoder.module(*inputs)
        else:
            states = dict(zip(self.encoder.in_keys, inputs, strict=True))
            states = self.encoder(TensorDict(states, [len(inputs[0])]))
            latents = states.get(self.tensor_keys.latent)
        if latents.shape[-1] != self.prior.dim:  # [*B, 1] would broadcast in silence.
            raise ValueError(
                f"the encoder must map to the {self.prior.dim} dimensions of {self.prior!r}, "
                f"but its output has shape {list(latents.shape)}."
            )
        # Latents grow to hundreds while their differences stay near one: under autocast, at
        # least subtract in float32.
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return latents.unflatten(0, batch_size)
