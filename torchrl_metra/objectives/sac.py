"""SAC with all of its critics in one batched matrix product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torch.func import functional_call
from torchrl.modules import TanhNormal
from torchrl.objectives import SACLoss

from torchrl_metra._checks import call_network, check_number, check_type, read_tensors
from torchrl_metra.modules import Float32Linear, PixelEncoder, PixelNetwork

__all__ = ["BatchedSACLoss"]


class BatchedSACLoss(SACLoss):
    r"""TorchRL's ``SACLoss``, faster where the critics are multilayer perceptrons.

    Evaluates all critics by one batched matrix product per layer in place of
    :func:`torch.vmap`, whose overhead weighs on small networks. Convolutions before
    them, which ``vmap`` would turn into slow grouped ones, run for one critic after
    another. Arguments but ``value_network``, keys, state_dict, outputs and numbers are those
    of :class:`~torchrl.objectives.SACLoss`; as there, a NaN in the batch becomes one in the
    losses, which :class:`~torchrl_metra.METRATrainer` refuses.

    With ``smoothness``, which the paper does not have, the policy's loss has one more term, for
    actions that change little from a state to the next:

    .. math::
        \text{smoothness} \cdot \mathbb{E}_{(s, z, s')}
        \lVert a(s', z) - a(s, z) \rVert_2^2, \qquad a = \tanh(\text{loc}) \in [-1, 1]^A.

    It is the temporal term of CAPS (https://arxiv.org/abs/2012.06644), with the square of the
    distance; the squared distance without the weight, its root taken, is the output
    ``"action_step"``. It trains the policy alone, and takes one more pass of the policy
    through both ends of all transitions.

    Args:
        *args: see :class:`~torchrl.objectives.SACLoss`.

    Keyword Args:
        smoothness (float, optional): weight of that term. Defaults to 0, without it.
        **kwargs: see :class:`~torchrl.objectives.SACLoss`.

    Raises:
        KeyError: if the batch lacks what the critics read.
        ValueError: if it does not fit them, if there is a ``value_network``, if ``smoothness``
            is negative or not finite, or, by a call with it, if the policy's distribution is no
            :class:`~torchrl.modules.TanhNormal`.
        TypeError: if actor or critics are no TensorDict modules, or if a critic is not an
            ``nn.Sequential`` of linear layers with biases and of elementwise activations,
            such as TorchRL's ``MLP``, or a :class:`~torchrl_metra.modules.PixelNetwork` that
            ends in one.

    Examples:
        >>> from torchrl_metra import BatchedSACLoss, UnitSphere, make_env, make_sac_networks
        >>> env = make_env("point", num_envs=4)
        >>> networks = make_sac_networks(2, env.action_spec, UnitSphere(2), num_cells=[32])
        >>> sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    """

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: Any,
        *args: Any,
        smoothness: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_type("actor_network", actor_network, TensorDictModuleBase, "a TensorDictModule")
        if qvalue_network == []:
            raise ValueError("qvalue_network must be critics, at least one of them, got none.")
        for critic in qvalue_network if isinstance(qvalue_network, list) else [qvalue_network]:
            check_type("qvalue_network", critic, TensorDictModuleBase, "critics, TensorDictModules")
        if (args[0] if args else kwargs.get("value_network")) is not None:
            raise ValueError(
                f"{type(self).__name__} has no value_network: its targets come from the critics. "
                "SACLoss takes one."
            )
        check_number("smoothness", smoothness)
        if not 0 <= smoothness < float("inf"):
            raise ValueError(f"smoothness must be finite and not negative, got {smoothness}.")
        super().__init__(actor_network, qvalue_network, *args, **kwargs)
        self.smoothness = smoothness
        if smoothness:
            self.out_keys = [*self.out_keys, "action_step"]  # type: ignore[has-type]
        network = getattr(self.qvalue_network, "module", None)
        if isinstance(network, PixelNetwork):
            network = network.head
        if not isinstance(network, nn.Sequential) or not all(map(_is_supported, network)):
            raise TypeError(
                f"{type(self).__name__} needs critics that are an nn.Sequential of linear layers "
                "with biases and of elementwise activations, got "
                f"{type(network).__name__}. SACLoss takes others."
            )

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All of the losses, as of :class:`~torchrl.objectives.SACLoss`."""
        losses = super().forward(tensordict)
        if self.smoothness and self.reduction != "none":
            # The base class keeps what it logs of the policy's loss to itself.
            with torch.no_grad():
                losses["action_step"] = self._squared_steps(tensordict).mean().sqrt()
        return losses

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy's loss, and what there is to log of it."""
        loss, metadata = super().actor_loss(tensordict)
        if self.smoothness:
            steps = self._squared_steps(tensordict)
            weights = self._maybe_get_priority_weight(tensordict)
            penalty = self._reduce_loss(steps, tensordict=tensordict, weights=weights)
            loss = loss + self.smoothness * penalty
            metadata["action_step"] = steps.detach().mean().sqrt()
        return loss, metadata

    def _squared_steps(self, tensordict: TensorDictBase) -> Tensor:
        """How far the policy's mean actions at both ends of transitions are apart, ``[*B]``."""
        keys = self.actor_network.in_keys
        starts, ends = (
            read_tensors(entries, keys, f"smoothness, at {name} of a transition,")
            for name, entries in (("the start", tensordict), ("the end", tensordict.get("next")))
        )
        # Both in one pass: of small networks it takes hardly longer than one of them.
        states = TensorDict(
            {
                key: torch.stack(pair)
                for key, pair in zip(keys, zip(starts, ends, strict=True), strict=True)
            },
            batch_size=(2, *tensordict.batch_size),
        )
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            distribution = self.actor_network.get_dist(states)
        if not isinstance(distribution, TanhNormal):
            raise ValueError(
                "smoothness needs a policy whose distribution is a TanhNormal, such as "
                f"SkillConditionedActor's, got {type(distribution).__name__}. Leave it at 0."
            )
        action, following = distribution.loc.tanh()
        return (following - action).square().sum(dim=-1)

    def _make_vmap(self) -> None:
        """Nothing to build: the call of the critics is the method below."""

    def _vmap_qnetworkN0(self, tensordict: TensorDictBase, params: TensorDictBase) -> TensorDict:
        values = call_network(
            "the critics' networks",
            partial(self._evaluate, params=params),
            *read_tensors(tensordict, self.qvalue_network.in_keys, "a critic"),
        )
        batch_size = (self.num_qvalue_nets, *tensordict.batch_size)
        value = values.mT.reshape(*batch_size, values.shape[1])
        return TensorDict({self.tensor_keys.state_action_value: value}, batch_size=batch_size)

    def _evaluate(self, *inputs: Tensor, params: TensorDictBase) -> Tensor:
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
            else:
                hidden = layer(hidden)
        return hidden


def _encode(encoder: PixelEncoder, params: TensorDictBase, pixels: Tensor) -> Tensor:
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


def _is_supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.bias is not None
    # Elementwise activations only, whatever the order of the dimensions.
    is_activation = type(layer).__module__ == nn.ReLU.__module__
    return is_activation and not hasattr(layer, "dim") and not list(layer.parameters())
