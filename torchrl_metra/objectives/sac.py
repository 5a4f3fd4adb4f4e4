"""SAC with all of its critics in one batched matrix product."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call
from torchrl.modules import TanhNormal
from torchrl.objectives import SACLoss

from torchrl_metra._private import BatchedCritics, reduce_loss
from torchrl_metra.modules import Float32Linear, PixelNetwork


class BatchedSACLoss(BatchedCritics, SACLoss):
    r"""TorchRL's ``SACLoss``, faster where the critics are multilayer perceptrons.

    All critics are evaluated by one batched matrix product per layer in place of
    :func:`torch.vmap`, whose overhead weighs on small networks. Convolutions before them, which
    ``vmap`` would turn into slow grouped ones, run for one critic after another. Arguments, keys,
    state_dict, outputs and numbers are those of :class:`~torchrl.objectives.SACLoss`, without
    ``value_network``.

    With ``smoothness``, which the paper does not have, the policy's loss has one more term, for
    actions that change little from one state to the next:

    .. math::
        \text{smoothness} \cdot \mathbb{E}_{(s, z, s')}
        \lVert a(s', z) - a(s, z) \rVert_2^2, \qquad a = \tanh(\text{loc}) \in [-1, 1]^A.

    It is the temporal term of CAPS (https://arxiv.org/abs/2012.06644), with the square of the
    distance. It takes one more pass of the policy through both ends of all transitions. The root
    of the mean squared distance is logged as ``"action_step"``.

    Args:
        actor_network (ProbabilisticActor): see :class:`~torchrl.objectives.SACLoss`.
        qvalue_network (TensorDictModule or list of TensorDictModule): likewise. Each critic is an
            ``nn.Sequential`` of linear layers with biases, of layer normalizations and of
            elementwise activations, such as TorchRL's ``MLP``, or a
            :class:`~torchrl_metra.modules.PixelNetwork` that ends in one.

    Keyword Args:
        smoothness (float, optional): weight of that term. Defaults to 0, without it.
        **kwargs: see :class:`~torchrl.objectives.SACLoss`.

    Raises:
        TypeError: if critics are built in another way.
        ValueError: if there is a ``value_network``, if ``smoothness`` is negative, or, by a call
            with it, if the policy's distribution is not a :class:`~torchrl.modules.TanhNormal`.

    Examples:
        >>> from torchrl_metra import BatchedSACLoss, UnitSphere, make_env, make_sac_networks
        >>> env = make_env("point", num_envs=4)
        >>> networks = make_sac_networks(2, env.action_spec, UnitSphere(2), num_cells=[32])
        >>> sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    """

    def __init__(
        self, actor_network: Any, qvalue_network: Any, *, smoothness: float = 0.0, **kwargs: Any
    ) -> None:
        if kwargs.get("value_network") is not None:
            raise ValueError(
                f"{type(self).__name__} takes its targets from the critics: leave value_network "
                "out, or use SACLoss."
            )
        if not smoothness >= 0:
            raise ValueError(f"smoothness must not be negative, got {smoothness}.")
        super().__init__(actor_network, qvalue_network, **kwargs)
        self.smoothness = smoothness
        network = getattr(self.qvalue_network, "module", None)
        if isinstance(network, PixelNetwork):
            network = network.head
        if not isinstance(network, nn.Sequential) or not all(map(_is_supported, network)):
            raise TypeError(
                f"{type(self).__name__} needs critics that are an nn.Sequential of linear layers "
                "with biases, of layer normalizations and of elementwise activations, got "
                f"{type(network).__name__}. SACLoss takes others."
            )

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss, and what there is to log of it."""
        loss, metadata = super().actor_loss(tensordict)
        if self.smoothness:
            steps = self._squared_steps(tensordict)
            loss = loss + self.smoothness * reduce_loss(self, steps, tensordict)
            metadata["action_step"] = steps.detach().mean().sqrt()
        return loss, metadata

    def _squared_steps(self, tensordict: TensorDictBase) -> Tensor:
        """How far the policy's mean actions at both ends of transitions are apart, ``[*B]``."""
        keys = self.actor_network.in_keys
        # Both in one pass: with small networks it takes hardly longer than one of them.
        states = torch.stack([end.select(*keys) for end in (tensordict, tensordict["next"])])
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            distribution = self.actor_network.get_dist(states)
        if not isinstance(distribution, TanhNormal):
            raise ValueError(
                "smoothness needs a policy whose distribution is a TanhNormal, such as "
                f"SkillConditionedActor's, got {type(distribution).__name__}. Leave it at 0."
            )
        action, following = distribution.loc.tanh()
        return (following - action).square().sum(dim=-1)

    def evaluate_critics(self, tensordict: TensorDictBase, params: TensorDictBase) -> TensorDict:
        """What each of ``N`` critics says with these parameters, of batch size ``[N, *B]``."""
        values = self._evaluate([tensordict[key] for key in self.qvalue_network.in_keys], params)
        batch_size = (self.num_qvalue_nets, *tensordict.batch_size)
        value = values.mT.reshape(*batch_size, values.shape[1])
        return TensorDict({self.tensor_keys.state_action_value: value}, batch_size=batch_size)

    def _evaluate(self, inputs: list[Tensor], params: TensorDictBase) -> Tensor:
        """What the critics say of flat batches, of shape ``[N, values, B]``."""
        network, params, features = self.qvalue_network.module, params.get("module"), None
        if isinstance(network, PixelNetwork):
            pixels, inputs = inputs[0], inputs[1:]
            features = _encode(network.encoder, params.get("encoder"), pixels)
            network, params = network.head, params.get("head")
        # Features before batch: weight @ hidden then gives gradients in the weights' own layout,
        # where hidden @ weight.T would have each of them copied.
        hidden = torch.cat(inputs, dim=-1)
        hidden = hidden.reshape(-1, hidden.shape[-1]).t()
        hidden = hidden.expand(self.num_qvalue_nets, *hidden.shape)
        if features is not None:
            features = features.reshape(len(features), -1, features.shape[-1])
            hidden = torch.cat([features.mT, hidden], dim=1)
        for name, layer in network.named_children():
            if isinstance(layer, nn.Linear):
                hidden = _batched_linear(layer, params.get(name), hidden)
            elif isinstance(layer, nn.LayerNorm):
                hidden = _batched_norm(layer, params.get(name), hidden)
            else:
                hidden = layer(hidden)
        return hidden


def _encode(encoder: nn.Module, params: TensorDictBase, pixels: Tensor) -> Tensor:
    """The features that each critic sees, of shape ``[N, *B, F]``."""
    weights = {name: value.unbind(0) for name, value in params.flatten_keys(".").items()}
    num_critics = params.batch_size[0]
    return torch.stack(
        [
            functional_call(encoder, {name: value[i] for name, value in weights.items()}, pixels)
            for i in range(num_critics)
        ]
    )


def _batched_linear(layer: nn.Linear, params: TensorDictBase, hidden: Tensor) -> Tensor:
    weight, bias = params.get("weight"), params.get("bias").unsqueeze(-1)
    if isinstance(layer, Float32Linear) and torch.is_autocast_enabled(hidden.device.type):
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.baddbmm(bias, weight, hidden.to(weight.dtype))
    return torch.baddbmm(bias, weight, hidden)


def _batched_norm(layer: nn.LayerNorm, params: TensorDictBase, hidden: Tensor) -> Tensor:
    weight, bias = params.get("weight").unsqueeze(-1), params.get("bias").unsqueeze(-1)
    normed = nn.functional.layer_norm(hidden.mT, layer.normalized_shape, eps=layer.eps).mT
    return torch.addcmul(bias, weight, normed)


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.bias is not None
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) == 1 and layer.bias is not None
    # Elementwise activations only, whatever the order of the dimensions.
    is_activation = type(layer).__module__ == nn.ReLU.__module__
    return is_activation and not hasattr(layer, "dim") and not list(layer.parameters())
