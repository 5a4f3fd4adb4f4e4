"""The skill-conditioned policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.modules.distributions.continuous import SafeTanhTransform

from torchrl_metra._checks import call_network, check_integer, check_key, check_type, read_tensors
from torchrl_metra.modules.linear import Float32Linear

__all__ = ["NormalHead", "SkillConditionedActor"]


class NormalHead(nn.Module):
    """Linear map from features to the mean and the standard deviation of a normal.

    Initialised as in the authors' implementation: Xavier-normal weights times 0.1,
    so that the first actions are close to tanh of a unit normal; log σ is clamped to
    ``[log 1e-6, 2]``.

    Args:
        num_features (int): size of the features.
        action_size (int): number of actions ``A``.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if a size is not positive.

    Examples:
        >>> import torch
        >>> loc, scale = NormalHead(8, 2)(torch.randn(5, 8))
        >>> loc.shape, scale.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    log_scale_bounds = (math.log(1e-6), 2.0)

    def __init__(self, num_features: int, action_size: int) -> None:
        check_integer("num_features", num_features)
        check_integer("action_size", action_size)
        super().__init__()
        self.linear = Float32Linear(num_features, 2 * action_size)
        # Mean and log σ are separate heads: each half has its own fan-out.
        for weight in self.linear.weight.detach().chunk(2):
            nn.init.xavier_normal_(weight, gain=0.1)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each of shape ``[*B, A]``."""
        loc, log_scale = self.linear(features).chunk(2, dim=-1)
        return loc, log_scale.clamp(*self.log_scale_bounds).exp()


class SkillConditionedActor(ProbabilisticActor):
    """Tanh-Normal policy π(a | s, z) on top of any feature network.

    An ordinary TorchRL :class:`~torchrl.modules.ProbabilisticActor`: it goes into
    collectors, ``SACLoss`` and rollouts as it is. Under
    ``ExplorationType.DETERMINISTIC`` the action is the tanh of the mean.

    Args:
        network (nn.Module): maps the entries of ``in_keys``, given as positional
            arguments, to features ``[*B, num_features]``. TorchRL's ``MLP``
            concatenates its arguments.
        num_features (int): size of the features.
        action_spec (Bounded): spec of the action, one-dimensional; leading batch
            dimensions of an environment's spec are ignored.

    Keyword Args:
        in_keys (sequence of NestedKey, optional): what the network reads.
            Defaults to ``("observation", "skill")``.

    A NaN in what it reads becomes one in the action: it looks at no value, which would hold up
    a GPU at every step. :class:`~torchrl_metra.METRATrainer` refuses such data.

    Raises:
        TypeError: if ``network`` is no module or ``action_spec`` no
            :class:`~torchrl.data.Bounded` spec.
        ValueError: if ``num_features`` is not positive, if the action is a single number, or,
            by a call, if the network's inputs or its features have not the right size.
        KeyError: by a call, if an entry is missing.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Bounded
        >>> from torchrl.modules import MLP
        >>> network = MLP(in_features=4 + 2, out_features=32, num_cells=[32])
        >>> actor = SkillConditionedActor(network, 32, Bounded(-1, 1, (3,)))
        >>> states = TensorDict(
        ...     {"observation": torch.randn(5, 4), "skill": torch.randn(5, 2)}, [5]
        ... )
        >>> actor(states)["action"].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        num_features: int,
        action_spec: Bounded,
        *,
        in_keys: Sequence[NestedKey] = ("observation", "skill"),
    ) -> None:
        check_type("network", network, nn.Module, "an nn.Module")
        check_integer("num_features", num_features)
        if isinstance(in_keys, str) or not isinstance(in_keys, Sequence):
            raise TypeError(f"in_keys must be a sequence of entries, got {in_keys!r}.")
        for index, key in enumerate(in_keys):
            check_key(f"in_keys[{index}]", key)
        spec = single_action_spec(action_spec)
        module = TensorDictModule(
            _NormalNetwork(network, NormalHead(num_features, spec.shape[-1])),
            in_keys=list(in_keys),
            out_keys=["loc", "scale"],
        )
        low, high = spec.space.low, spec.space.high
        is_unit = bool((low == -1).all() and (high == 1).all())
        super().__init__(
            module,
            in_keys=["loc", "scale"],
            spec=spec,
            distribution_class=TanhNormal,
            distribution_kwargs={} if is_unit else {"low": low, "high": high},
        )
        self._bounds = None if is_unit else (low, high)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Write ``"loc"``, ``"scale"`` and ``"action"``, as any ``ProbabilisticActor`` does."""
        exploration = exploration_type()
        if (
            len(args) != 1
            or kwargs
            or torch.is_grad_enabled()
            or exploration not in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC)
        ):
            return self._forward(*args, **kwargs)
        # Collectors come here at every step: half of their time would go into building a
        # distribution to draw a single sample of.
        (tensordict,) = args
        loc, scale = self._loc_and_scale(tensordict)
        action = loc
        if exploration is ExplorationType.RANDOM:
            action = torch.addcmul(loc, scale, torch.randn_like(loc))
        # TanhNormal too keeps clear of the bounds.
        limit = 1 - torch.finfo(loc.dtype).resolution
        action = action.tanh().clamp(-limit, limit)
        bounds = self._bounds_on(action.device)
        if bounds is not None:
            low, high = bounds
            action = (high + low) / 2 + action * (high - low) / 2
        return tensordict.update({"loc": loc, "scale": scale, "action": action})

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or not isinstance(args[0], TensorDictBase):
            return super().forward(*args, **kwargs)
        forward = super().forward
        return call_network(
            "the policy's network", lambda *_: forward(*args, **kwargs), *self._read(args[0])
        )

    def get_dist(self, tensordict: TensorDictBase, **kwargs: Any) -> TanhNormal:
        """The policy's distribution of actions in these states."""
        # Without the detour of writing its parameters into the tensordict.
        loc, scale = self._loc_and_scale(tensordict)
        return _CheckedTanhNormal(loc, scale, self._bounds_on(loc.device))

    def _bounds_on(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        if self._bounds is not None and self._bounds[0].device != device:
            low, high = self._bounds
            self._bounds = low.to(device), high.to(device)
        return self._bounds

    def _loc_and_scale(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        network = self.module[0]
        return call_network("the policy's network", network.module, *self._read(tensordict))

    def _read(self, tensordict: TensorDictBase) -> list[Tensor]:
        hint = " Append a SkillPrimer to the environment, or name the network's in_keys."
        return read_tensors(tensordict, self.module[0].in_keys, type(self).__name__, hint)


class _CheckedTanhNormal(TanhNormal):
    """TanhNormal whose bounds were checked when the policy was built.

    It looks at no value, so that it can become part of a graph and does not wait for a GPU.
    """

    def __init__(self, loc: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor] | None) -> None:
        self.tanh_loc, self._event_dims, self.device = False, min(1, loc.ndim), loc.device
        self.low: Tensor | float = -1.0
        self.high: Tensor | float = 1.0
        self._t = SafeTanhTransform()
        if bounds is not None:
            self.low, self.high = low, high = bounds
            affine = AffineTransform((high + low) / 2, (high - low) / 2)
            self._t = ComposeTransform([self._t, affine])
        self.update(loc, scale)


class _NormalNetwork(nn.Module):
    """A feature network of any number of arguments, with its head."""

    def __init__(self, network: nn.Module, head: NormalHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.network(*inputs))


def single_action_spec(action_spec: Bounded) -> Bounded:
    """The spec of one action, of shape ``[A]``, out of a batched environment's spec."""
    check_type("action_spec", action_spec, Bounded, "a Bounded spec such as env.action_spec")
    if not action_spec.shape.numel() or not action_spec.ndim:
        raise ValueError(
            "action_spec must be that of a vector, of shape [..., A], got "
            f"{list(action_spec.shape)}."
        )
    bounds = torch.stack([action_spec.space.low, action_spec.space.high])
    if not (bounds.is_floating_point() and bounds.isfinite().all()):
        raise ValueError(f"action_spec must have finite bounds of floats, got {action_spec}.")
    while action_spec.ndim > 1:
        action_spec = action_spec[0]
    return action_spec
