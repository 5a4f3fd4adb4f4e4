"""The LSD loss module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from torchrl_metra.data import SkillPrior
from torchrl_metra.objectives.common import EncoderLoss


class LSDLoss(EncoderLoss):
    r"""LSD: skills that move far in the space of observations.

    Presented in "Lipschitz-constrained Unsupervised Skill Discovery", Park, Choi, Kim, Lee and
    Kim, ICLR 2022, https://arxiv.org/abs/2202.00914 (Equation 4):

    .. math::
        \max_\phi \; \mathbb{E}\left[(\phi(s') - \phi(s))^\top z\right]
        \quad \text{s.t.} \quad \|\phi(x) - \phi(y)\|_2 \le \|x - y\|_2 .

    Spectral normalization of every layer of φ keeps the bound. Activations must not stretch, as
    ReLU and Tanh do not. A convolution is treated as the matrix of its weights, as is usual, which
    bounds its norm only up to a constant.

    Args:
        encoder (nn.Module or TensorDictModule): :math:`\phi`, from observations
            to ``[*B, D]``. Changed in place: its linear and convolutional layers are
            normalized from now on.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    Raises:
        ValueError: if the encoder has no layer to normalize.

    The output holds ``loss_encoder`` and, detached, ``intrinsic_reward`` and ``latent_step``
    (:math:`\|\phi(s') - \phi(s)\|_2`).

    Examples:
        >>> from torchrl.modules import MLP
        >>> from torchrl_metra import LSDLoss, SkillPrimer, UnitSphere, make_env
        >>> prior = UnitSphere(2)
        >>> lsd_loss = LSDLoss(MLP(in_features=2, out_features=2, num_cells=[32]), prior)
        >>> transitions = make_env("point", 4).append_transform(SkillPrimer(prior)).rollout(5)
        >>> lsd_loss(transitions)["loss_encoder"].backward()
        >>> lsd_loss.reward(transitions).shape
        torch.Size([4, 5, 1])
    """

    out_keys = ["loss_encoder", "intrinsic_reward", "latent_step"]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        _normalize_layers(encoder)
        super().__init__(encoder, prior, reduction=reduction)

    def encode_pair(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """φ of both states of each transition, each in a call of its own.

        A call brings the estimate of each layer's norm forward by one iteration while the
        encoder is in training mode, so that two bring it twice as far.

        """
        return self.encode(tensordict), self.encode(tensordict, following=True)

    def _encode(self, inputs: Sequence[Tensor], batch_size: Sequence[int]) -> Tensor:
        # Under autocast norms would be rounded, and iterated at each access to a weight.
        with torch.autocast(inputs[0].device.type, enabled=False):
            return super()._encode(inputs, batch_size)

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        latent, next_latent = self.encode_pair(tensordict)
        step = next_latent - latent
        reward, along = self.rewards(step, tensordict)
        return {
            "loss_encoder": -along,
            "intrinsic_reward": reward,
            "latent_step": step.norm(dim=-1),
        }


def _normalize_layers(encoder: nn.Module) -> None:
    """Divide the weight of each layer by its largest singular value."""
    layers = [
        layer
        for layer in encoder.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    if not layers:
        raise ValueError(
            f"LSD bounds the linear and convolutional layers of its encoder, but "
            f"{type(encoder).__name__} has none."
        )
    for layer in layers:
        if not is_parametrized(layer, "weight"):
            register_parametrization(layer, "weight", _SpectralNorm(layer.weight))


class _SpectralNorm(nn.Module):
    """The authors' iteration; PyTorch's own has another order, and no compiler follows it."""

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        for name, size in zip(("_u", "_v"), matrix.shape, strict=True):
            self.register_buffer(name, nn.functional.normalize(torch.randn(size).to(matrix), dim=0))
        self._iterate(matrix, 100)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        if self.training:
            self._iterate(matrix, 1)
        # Copies, for gradients: the next call changes the vectors in place.
        return weight / (self._u.clone() @ matrix @ self._v.clone())

    @torch.no_grad()
    def _iterate(self, matrix: Tensor, times: int) -> None:
        for _ in range(times):
            self._v.copy_(nn.functional.normalize(matrix.T @ self._u, dim=0))
            self._u.copy_(nn.functional.normalize(matrix @ self._v, dim=0))
