"""SAC with all of its critics in one batched matrix product."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import SACLoss

from torchrl_metra.modules import Float32Linear

__all__ = ["BatchedSACLoss"]


class BatchedSACLoss(SACLoss):
    """TorchRL's ``SACLoss``, faster where the critics are multilayer perceptrons.

    Evaluates all critics by one batched matrix product per layer in place of
    :func:`torch.vmap`, whose overhead weighs on small networks. Arguments, keys,
    state_dict, outputs and numbers are those of :class:`~torchrl.objectives.SACLoss`.

    Args:
        *args: see :class:`~torchrl.objectives.SACLoss`.
        **kwargs: see :class:`~torchrl.objectives.SACLoss`.

    Raises:
        TypeError: if a critic is not an ``nn.Sequential`` of linear layers with
            biases and of elementwise activations, such as TorchRL's ``MLP``.

    Examples:
        >>> from torchrl_metra import BatchedSACLoss, UnitSphere, make_env, make_sac_networks
        >>> env = make_env("point", num_envs=4)
        >>> networks = make_sac_networks(2, env.action_spec, UnitSphere(2), num_cells=[32])
        >>> sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        network = getattr(self.qvalue_network, "module", None)
        if not isinstance(network, nn.Sequential) or not all(map(_is_supported, network)):
            raise TypeError(
                "BatchedSACLoss needs critics that are an nn.Sequential of linear layers with "
                "biases and of elementwise activations, got "
                f"{type(network).__name__}. Use SACLoss instead."
            )

    def _make_vmap(self) -> None:
        """Nothing to build: the call of the critics is the method below."""

    def _vmap_qnetworkN0(self, tensordict: TensorDictBase, params: TensorDictBase) -> TensorDict:
        inputs = [tensordict.get(key) for key in self.qvalue_network.in_keys]
        # Features before batch: weight @ hidden then gives gradients in the weights' own layout,
        # where hidden @ weight.T would have each of them copied.
        hidden = torch.cat(inputs, dim=-1).flatten(0, -2).t()
        hidden = hidden.expand(self.num_qvalue_nets, *hidden.shape)
        params = params.get("module")
        for name, layer in self.qvalue_network.module.named_children():
            if isinstance(layer, nn.Linear):
                hidden = _batched_linear(layer, params.get(name), hidden)
            else:
                hidden = layer(hidden)
        batch_size = (self.num_qvalue_nets, *tensordict.batch_size)
        value = hidden.mT.reshape(*batch_size, -1)
        return TensorDict({self.tensor_keys.state_action_value: value}, batch_size=batch_size)


def _batched_linear(layer: nn.Linear, params: TensorDictBase, hidden: Tensor) -> Tensor:
    weight, bias = params.get("weight"), params.get("bias").unsqueeze(-1)
    if isinstance(layer, Float32Linear) and torch.is_autocast_enabled(hidden.device.type):
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.baddbmm(bias, weight, hidden.to(weight.dtype))
    return torch.baddbmm(bias, weight, hidden)


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.bias is not None
    # Elementwise activations only, whatever the order of the dimensions.
    is_activation = type(layer).__module__ == nn.ReLU.__module__
    return is_activation and not hasattr(layer, "dim") and not list(layer.parameters())
