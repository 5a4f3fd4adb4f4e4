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
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_metra._checks import check_type
from torchrl_metra._private import unchecked_tanh_normal
from torchrl_metra.modules.linear import Float32Linear


class NormalHead(nn.Module):
    """Linear map from features to the mean and the standard deviation of a normal.

    Initialized as in the authors' implementation: Xavier-normal weights times 0.1,
    so that the first actions are close to tanh of a unit normal; log σ is clamped to
    ``[log 1e-6, 2]``.

    Args:
        num_features (int): size of the features.
        action_size (int): number of actions ``A``.

    Examples:
        >>> import torch
        >>> loc, scale = NormalHead(8, 2)(torch.randn(5, 8))
        >>> loc.shape, scale.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    log_scale_bounds = (math.log(1e-6), 2.0)

    def __init__(self, num_features: int, action_size: int) -> None:
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
        spec = single_action_spec(action_spec)
        low, high = spec.space.low, spec.space.high
        is_unit = bool((low == -1).all() and (high == 1).all())
        bounds = {} if is_unit else {"low": low, "high": high}
        module = _NormalNetwork(network, NormalHead(num_features, spec.shape[-1]))
        super().__init__(
            TensorDictModule(module, in_keys=list(in_keys), out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            spec=spec,
            distribution_class=TanhNormal,
            distribution_kwargs=bounds,
        )
        self._bounds = None if is_unit else (low, high)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Write ``"loc"``, ``"scale"`` and ``"action"``, as any ``ProbabilisticActor`` does."""
        exploration = exploration_type()
        is_stock = exploration not in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC)
        if is_stock or torch.is_grad_enabled() or len(args) != 1 or kwargs:
            return super().forward(*args, **kwargs)
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
        low, high = self._bounds_on(action.device)
        if low is not None:
            action = (high + low) / 2 + action * (high - low) / 2
        return tensordict.update({"loc": loc, "scale": scale, "action": action})

    def get_dist(self, tensordict: TensorDictBase, **kwargs: Any) -> TanhNormal:
        """The policy's distribution of actions in these states."""
        loc, scale = self._loc_and_scale(tensordict)
        return unchecked_tanh_normal(loc, scale, *self._bounds_on(loc.device))

    def _bounds_on(self, device: torch.device) -> tuple[Any, Any]:
        """Smallest and largest actions, moved once; ``None`` for those from -1 to 1."""
        # No buffers: a loss would save them among the parameters.
        if self._bounds is not None and self._bounds[0].device != device:
            self._bounds = tuple(bound.to(device) for bound in self._bounds)
        return (None, None) if self._bounds is None else self._bounds

    def _loc_and_scale(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        # Without the detour of writing them into the tensordict.
        network = self.module[0]
        return network.module(*(tensordict[key] for key in network.in_keys))


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
    while action_spec.ndim > 1:
        action_spec = action_spec[0]
    return action_spec
