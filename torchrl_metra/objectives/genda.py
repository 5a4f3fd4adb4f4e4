"""The GenDa loss module."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_metra._checks import check_positive
from torchrl_metra.data import SkillPrior
from torchrl_metra.modules import Bottleneck
from torchrl_metra.objectives.functional import pairwise_products
from torchrl_metra.objectives.metra import METRALoss


class GenDaLoss(METRALoss):
    r"""GenDa: METRA whose episodes go in all directions of the latent space.

    Presented in "GenDa", Park et al., ICML 2026, https://arxiv.org/abs/2607.00392. It goes with
    :class:`~torchrl_metra.RelabelSkills`: φ is trained with the skills that episodes have shown.
    So that these do not all become one, the loss of φ has one more term, which pushes the
    directions of the batch's episodes apart:

    .. math::
        L_\text{unif} = \frac{1}{B} \sum_i \log \sum_{j \ne i} e^{v_i^\top v_j}, \qquad
        v = \frac{\phi(s_T) - \phi(s_0)}{\|\phi(s_T) - \phi(s_0)\|}.

    With a ``bottleneck`` :math:`q(\ell \mid s)`, which the policy reads in place of the state, one
    more loss trains it and a ``decoder``. Beside φ(s), which has no gradient of this loss,
    :math:`\ell` is to say what else there is to know of a state:

    .. math::
        L_\text{bottleneck} = \lVert \text{decoder}(\phi(s), \ell) - s \rVert_2^2
        + 0.1 \, D_\text{KL}(q(\ell \mid s) \parallel \mathcal N(0, I)), \qquad
        \ell \sim q(\ell \mid s).

    Args:
        encoder (nn.Module or TensorDictModule): see :class:`~torchrl_metra.METRALoss`.
        prior (SkillPrior): likewise.

    Keyword Args:
        uniformity (float, optional): weight of that term. Defaults to 1.0.
        bottleneck (TensorDictModule, optional): around a
            :class:`~torchrl_metra.modules.Bottleneck`, such as the ``shared_encoder`` of
            ``make_sac_networks(..., bottleneck=256)``. It reads what φ reads, a single vector.
        decoder (nn.Module, optional): from ``[*B, D + L]``, a latent and :math:`\ell`, to states.
        **kwargs: see :class:`~torchrl_metra.METRALoss`.

    Raises:
        ValueError: if there is a bottleneck without a decoder, or the other way round, or if it
            does not read what φ reads; by a call, if the decoder's output is not of the states'
            shape, as with pictures.
        KeyError: by a call, if the batch lacks the first or the last state of its episodes, which
            :class:`~torchrl_metra.EpisodeStorage` brings.

    The output holds, beside METRA's, ``uniformity``, the term without its weight, and with a
    bottleneck ``loss_bottleneck`` and ``reconstruction``, the first part of it.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_metra import EpisodeStorage, SkillPrimer, UnitSphere, make_env
        >>> prior = UnitSphere(2)
        >>> genda_loss = GenDaLoss(nn.Linear(2, 2), prior)
        >>> storage = EpisodeStorage(LazyTensorStorage(1_000))
        >>> buffer = ReplayBuffer(storage=storage, batch_size=32)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> _ = buffer.extend(env.rollout(50).reshape(-1))
        >>> genda_loss(buffer.sample())["loss_encoder"].backward()
    """

    out_keys = [*METRALoss.out_keys, "uniformity"]

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        uniformity: float = 1.0,
        bottleneck: TensorDictModule | None = None,
        decoder: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, prior, **kwargs)
        check_positive("uniformity", uniformity)
        if (bottleneck is None) != (decoder is None):
            raise ValueError("a bottleneck is trained with a decoder: give both, or neither.")
        self.uniformity = uniformity
        self.bottleneck = bottleneck
        self.decoder = decoder
        if bottleneck is not None:
            if list(bottleneck.in_keys) != list(self.state_keys):
                raise ValueError(
                    f"the bottleneck reads {bottleneck.in_keys}, but φ {list(self.state_keys)}."
                )
            self.out_keys = [*self.out_keys, "loss_bottleneck", "reconstruction"]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().parameter_groups()
        if self.bottleneck is not None and self.decoder is not None:
            groups["bottleneck"] = [*self.bottleneck.parameters(), *self.decoder.parameters()]
        return groups

    def read_keys(self) -> list[NestedKey]:
        ends = [(end, key) for end in ("first", "last") for key in self.state_keys]
        return [*super().read_keys(), *ends]

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        ends = self.encode_ends(tensordict, "", "next", "first", "last")
        latent, next_latent, first, last = ends
        entries = self.evaluate(tensordict, latent, next_latent)
        uniformity = crowding(last - first)
        entries["loss_encoder"] = entries["loss_encoder"] + self.uniformity * uniformity
        entries["uniformity"] = uniformity
        if self.bottleneck is not None and self.decoder is not None:
            state = self.read(tensordict, self.state_keys[0])
            known = latent.detach()
            entries |= _reconstruct(state, known, self.bottleneck.module, self.decoder)
        return entries


def _reconstruct(
    state: Tensor, latent: Tensor, bottleneck: Bottleneck, decoder: nn.Module
) -> dict[str, Tensor]:
    """The bottleneck's loss, and the first part of it."""
    mean, log_scale = bottleneck.moments(state)
    sample = mean + log_scale.exp() * torch.randn_like(mean)
    decoded = decoder(torch.cat([latent, sample.to(latent.dtype)], dim=-1))
    if decoded.shape != state.shape:  # One number per state would broadcast in silence.
        raise ValueError(
            f"the decoder must return states of shape {list(state.shape)}, vectors and no "
            f"pictures, got {list(decoded.shape)}."
        )
    error = (decoded - state).square().sum(dim=-1)
    divergence = (mean.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(dim=-1) / 2
    return {"loss_bottleneck": error + 0.1 * divergence, "reconstruction": error}


def crowding(displacements: Tensor) -> Tensor:
    r"""How crowded the direction of each displacement is.

    Args:
        displacements (Tensor): of shape ``[*B, D]``, with ``N`` rows in all.

    Returns:
        :math:`\log \sum_{j \ne i} e^{v_i^\top v_j}` of their directions :math:`v`, of shape
        ``[*B]``: :math:`\log(N - 1)` plus a number between -1 and 1.

    Examples:
        >>> crowding(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
        tensor([0., 0.])
    """
    # Without displacement there is no direction, only a gradient as large as 1 / eps.
    rows = nn.functional.normalize(displacements.flatten(0, -2), dim=-1, eps=1e-3)
    products = pairwise_products(rows, rows)
    if len(rows) == 1:  # Nothing crowds it.
        return rows.sum(dim=-1).view(displacements.shape[:-1]) * 0
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return products.masked_fill(itself, -torch.inf).logsumexp(-1).view(displacements.shape[:-1])
