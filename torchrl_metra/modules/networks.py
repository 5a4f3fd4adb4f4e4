"""Networks with the authors' settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ValueOperator

from torchrl_metra._checks import check_integer, check_sizes
from torchrl_metra.data import SkillPrior
from torchrl_metra.data.skills import check_prior
from torchrl_metra.modules.actor import SkillConditionedActor, single_action_spec
from torchrl_metra.modules.linear import Float32Linear

__all__ = ["Architecture", "SACNetworks", "make_sac_networks"]


class Recipe(Protocol):
    """What a :class:`~torchrl_metra.SkillPolicy` file keeps to build its networks again."""

    def to_config(self) -> dict[str, Any]:
        """The recipe as plain data."""

    def build(self, prior: SkillPrior) -> SACNetworks:
        """Networks with fresh weights."""


@dataclass(frozen=True)
class Architecture:
    """What it takes to build the networks of :func:`make_sac_networks` again.

    Attributes:
        observation_size (int): size of the observation vector.
        action_low (tuple of float): lower bound of each action.
        action_high (tuple of float): upper bound of each action.
        num_cells (tuple of int): widths of the hidden layers.
        policy_ignores (tuple of int): entries of the observation that the policy does not read.
    """

    observation_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    num_cells: tuple[int, ...]
    policy_ignores: tuple[int, ...] = ()

    def to_config(self) -> dict[str, Any]:
        """The architecture as plain data, for files."""
        config = asdict(self)
        if not self.policy_ignores:
            # Versions of before there was this can build these networks, too.
            del config["policy_ignores"]
        return config

    def build(self, prior: SkillPrior) -> SACNetworks:
        """Networks with fresh weights."""
        action_spec = Bounded(torch.tensor(self.action_low), torch.tensor(self.action_high))
        return make_sac_networks(
            self.observation_size,
            action_spec,
            prior,
            num_cells=self.num_cells,
            policy_ignores=self.policy_ignores,
        )


@dataclass
class SACNetworks:
    """Everything METRA trains with SAC.

    Attributes:
        actor (SkillConditionedActor): policy π(a | s, z).
        critics (list of ValueOperator): twin critics Q(s, z, a), as ``SACLoss`` takes them.
        encoder (TensorDictModule, optional): φ(s), from ``"observation"`` to ``"latent"``;
            ``None`` for an objective that has none.
        architecture (Recipe, optional): what it takes to build them again; ``None`` if one of
            them is of your own.
        shared_encoder (TensorDictModule, optional): the part of φ whose features
            actor and critics read, if they share one.
    """

    actor: SkillConditionedActor
    critics: list[ValueOperator]
    encoder: TensorDictModuleBase | None
    architecture: Recipe | None
    shared_encoder: TensorDictModule | None = None

    @property
    def policy(self) -> TensorDictModuleBase:
        """The actor, behind the shared encoder if there is one; it collects and is evaluated."""
        if self.shared_encoder is None:
            return self.actor
        return TensorDictSequential(self.shared_encoder, self.actor)

    def to(self, device: torch.device | str) -> SACNetworks:
        """Move all networks to a device."""
        for module in (self.policy, *self.critics, self.encoder):
            if module is not None:
                module.to(device)
        return self


def make_sac_networks(
    observation_size: int,
    action_spec: Bounded,
    prior: SkillPrior,
    *,
    num_cells: Sequence[int] = (1024, 1024),
    value_size: int = 1,
    policy_ignores: Sequence[int] = (),
) -> SACNetworks:
    """Build actor, twin critics and encoder for vector observations.

    The authors' settings (Appendix F.1 and their implementation): a tanh trunk for
    the actor, ReLU for critics and encoder, zero biases, Xavier-normal weights in the
    critics and Xavier-uniform ones elsewhere. Under autocast all of the encoder, and
    the first and last layers of the others, keep their outputs in float32, see
    :class:`~torchrl_metra.modules.Float32Linear`.

    Args:
        observation_size (int): size of the observation vector.
        action_spec (Bounded): spec of the action, such as ``env.action_spec``.
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        num_cells (sequence of int, optional): widths of the hidden layers.
            Defaults to ``(1024, 1024)``.
        value_size (int, optional): size of the critics' output: 1, or the skills' size for
            :class:`~torchrl_metra.SuccessorFeatureSACLoss`. Defaults to 1.
        policy_ignores (sequence of int, optional): entries of the observation that the policy
            does not read, while φ and the critics do. Without those that say where the body is,
            a skill is the same everywhere. Defaults to none, as in the paper.

    Returns:
        The networks, on the CPU.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a size is not positive, if there is no hidden layer, if the actions
            are no vector with finite bounds, or if ``policy_ignores`` names an entry that the
            observation does not have, or one twice.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_env, make_sac_networks
        >>> env = make_env("point", num_envs=4)
        >>> networks = make_sac_networks(2, env.action_spec, UnitSphere(2), num_cells=[64, 64])
        >>> networks.encoder(env.reset())["latent"].shape
        torch.Size([4, 2])
    """
    check_integer("observation_size", observation_size)
    check_prior(prior)
    _check_entries("policy_ignores", policy_ignores, observation_size)
    state_size = observation_size + prior.dim
    spec = single_action_spec(action_spec)
    trunk: nn.Module = make_trunk(state_size - len(policy_ignores), num_cells)
    if len(policy_ignores):
        trunk = _PartialView(trunk, observation_size, policy_ignores)
    critics = [make_critic(state_size + spec.shape[-1], num_cells, value_size) for _ in range(2)]
    encoder = make_encoder(observation_size, prior.dim, num_cells)
    return SACNetworks(
        actor=SkillConditionedActor(trunk, num_cells[-1], action_spec),
        critics=[
            ValueOperator(critic, in_keys=["observation", "skill", "action"]) for critic in critics
        ],
        encoder=TensorDictModule(encoder, in_keys=["observation"], out_keys=["latent"]),
        architecture=Architecture(
            observation_size=observation_size,
            action_low=tuple(spec.space.low.tolist()),
            action_high=tuple(spec.space.high.tolist()),
            num_cells=tuple(num_cells),
            policy_ignores=tuple(sorted(policy_ignores)),
        ),
    )


class _PartialView(nn.Module):
    """A network that does not see some entries of its first input."""

    def __init__(self, network: nn.Module, size: int, ignored: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        # Runs of entries, seen and ignored by turns. They are views: all that is copied is what
        # MLP copies anyway, as it concatenates its inputs.
        runs = [(seen, len([*run])) for seen, run in groupby(i not in ignored for i in range(size))]
        self._sizes = [length for _, length in runs]
        self._first_seen = 0 if runs[0][0] else 1

    def forward(self, observation: Tensor, *others: Tensor) -> Tensor:
        runs = observation.split(self._sizes, dim=-1)
        return self.network(*runs[self._first_seen :: 2], *others)


def _check_entries(name: str, entries: Sequence[int], size: int) -> None:
    """Refuse what are no different entries of a vector."""
    check_sizes(name, entries, minimum=0)
    if len(set(entries)) < len(entries) or max(entries, default=0) >= size:
        raise ValueError(
            f"{name} must be different entries of an observation of {size}, from 0 to {size - 1}, "
            f"got {list(entries)}."
        )


def make_trunk(in_features: int, num_cells: Sequence[int]) -> MLP:
    """The policy's hidden layers."""
    check_sizes("num_cells", num_cells)
    if not len(num_cells):
        raise ValueError("num_cells must name at least one hidden layer, got none.")
    *inner, last = num_cells
    trunk = MLP(
        in_features=in_features,
        out_features=last,
        num_cells=inner,
        activation_class=nn.Tanh,
        activate_last_layer=True,
    )
    _keep_float32(trunk, [0])
    return _initialize(trunk, nn.init.xavier_uniform_)


def make_encoder(in_features: int, out_features: int, num_cells: Sequence[int]) -> MLP:
    """φ, or what of it follows the convolutions."""
    encoder = _mlp(in_features, out_features, num_cells)
    _keep_float32(encoder, range(0, len(encoder), 2))
    return _initialize(encoder, nn.init.xavier_uniform_)


def make_critic(in_features: int, num_cells: Sequence[int], out_features: int = 1) -> MLP:
    """A critic, or what of it follows the convolutions."""
    check_integer("value_size", out_features)
    critic = _mlp(in_features, out_features, num_cells)
    _keep_float32(critic, [0, -1])
    return _initialize(critic, nn.init.xavier_normal_)


def _mlp(in_features: int, out_features: int, num_cells: Sequence[int]) -> MLP:
    check_sizes("num_cells", num_cells)
    return MLP(
        in_features=in_features,
        out_features=out_features,
        num_cells=list(num_cells),
        activation_class=nn.ReLU,
    )


def _keep_float32(network: MLP, layers: Iterable[int]) -> None:
    for index in layers:
        layer = network[index]
        network[index] = Float32Linear(layer.in_features, layer.out_features)


def _initialize(network: MLP, init_weight: Any) -> MLP:
    for layer in network:
        if isinstance(layer, nn.Linear):
            init_weight(layer.weight)
            nn.init.zeros_(layer.bias)
    return network
