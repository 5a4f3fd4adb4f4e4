"""Networks with the authors' settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ValueOperator

from torchrl_metra._checks import check_integer
from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.actor import SkillConditionedActor, single_action_spec
from torchrl_metra.modules.bottleneck import Bottleneck
from torchrl_metra.modules.linear import Float32Linear
from torchrl_metra.modules.pixels import PatchColors, PatchEncoder, PixelEncoder, PixelNetwork


@dataclass(frozen=True)
class Architecture:
    """What it takes to build networks again: the arguments of the function that built them.

    That is :func:`~torchrl_metra.make_pixel_sac_networks` if there is a ``pixel_shape``, else
    :func:`~torchrl_metra.make_sac_networks`. What the function does not take is ``None``.

    Attributes:
        action_low (tuple of float): lower bound of each action.
        action_high (tuple of float): upper bound of each action.
        num_cells (tuple of int): widths of the hidden layers.
        observation_size (int, optional): size of the observation vector.
        policy_ignores (tuple of int, optional): entries of the observation that the policy does
            not read.
        pixel_shape (tuple of int, optional): shape ``[C, H, W]`` of a picture.
        channels (int, optional): channels of the first convolution.
        features (int, optional): size of what a small encoder makes of a picture.
        shared_encoder (bool or str, optional): whether networks share an encoder, and which.
        layer_norm (bool, optional): whether the critics have layer normalization.
        bottleneck (int, optional): size of what the policy reads in place of the observation.
    """

    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    num_cells: tuple[int, ...]
    observation_size: int | None = None
    policy_ignores: tuple[int, ...] | None = None
    pixel_shape: tuple[int, ...] | None = None
    channels: int | None = None
    features: int | None = None
    shared_encoder: bool | str | None = None
    layer_norm: bool | None = None
    bottleneck: int | None = None

    def to_config(self) -> dict[str, Any]:
        """The architecture as plain data, for files: ``Architecture(**config)`` reads it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def build(self, prior: SkillPrior) -> SACNetworks:
        """Networks with fresh weights."""
        options = self.to_config()
        low, high = (torch.tensor(options.pop(name)) for name in ("action_low", "action_high"))
        build = make_sac_networks if self.pixel_shape is None else make_pixel_sac_networks
        return build(action_spec=Bounded(low, high), prior=prior, **options)


@dataclass
class SACNetworks:
    """Everything METRA trains with SAC.

    Attributes:
        actor (SkillConditionedActor): policy π(a | s, z).
        critics (list of ValueOperator): twin critics Q(s, z, a), as ``SACLoss`` takes them.
        encoder (TensorDictModule, optional): φ(s), from ``"observation"`` to ``"latent"``;
            ``None`` for an objective without one.
        architecture (Architecture, optional): what it takes to build them again; ``None`` if one of
            them is of your own.
        shared_encoder (TensorDictModule, optional): the part of φ whose features actor and
            critics read, if they share one; or the bottleneck that the actor reads.
    """

    actor: SkillConditionedActor
    critics: list[ValueOperator]
    encoder: TensorDictModuleBase | None
    architecture: Architecture | None
    shared_encoder: TensorDictModule | None = None

    @property
    def policy(self) -> TensorDictModuleBase:
        """The actor, behind what it reads of the state; it collects and is evaluated."""
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
    layer_norm: bool = False,
    policy_ignores: Sequence[int] = (),
    bottleneck: int | None = None,
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
        layer_norm (bool, optional): whether each hidden layer of the critics is normalized before
            its activation. Then they learn well from many more updates per step. Defaults to
            ``False``, as in the paper.
        policy_ignores (sequence of int, optional): entries of the observation that the policy
            does not read, while φ and the critics do. Without those that say where the body is,
            a skill is the same everywhere. By default it reads all, as in the paper.
        bottleneck (int, optional): size of a :class:`~torchrl_metra.modules.Bottleneck` that the
            policy reads in place of the observation, while φ and the critics read the observation.
            It becomes ``shared_encoder`` of the result, for the stepper, and is trained by
            :class:`~torchrl_metra.GenDaLoss`. By default there is none.

    Returns:
        The networks, on the CPU.

    Raises:
        ValueError: if ``policy_ignores`` names an entry that the observation does not have, or
            one twice, or comes with a ``bottleneck``.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_env, make_sac_networks
        >>> env = make_env("point", num_envs=4)
        >>> networks = make_sac_networks(2, env.action_spec, UnitSphere(2), num_cells=[64, 64])
        >>> networks.encoder(env.reset())["latent"].shape
        torch.Size([4, 2])
    """
    if len({*policy_ignores} & {*range(observation_size)}) < len(policy_ignores):
        raise ValueError(
            f"policy_ignores must be different numbers from 0 to {observation_size - 1}, "
            f"got {list(policy_ignores)}."
        )
    if bottleneck is not None:
        check_integer("bottleneck", bottleneck)
        if len(policy_ignores):
            raise ValueError(
                "a bottleneck leaves out what it can: policy_ignores does not go with it."
            )
    spec = single_action_spec(action_spec)
    state_size = observation_size + prior.dim
    seen = (bottleneck or observation_size) + prior.dim - len(policy_ignores)
    trunk: nn.Module = make_trunk(seen, num_cells)
    if len(policy_ignores):
        trunk = _PartialView(trunk, observation_size, policy_ignores)
    size = state_size + spec.shape[-1]
    critics = [make_critic(size, num_cells, value_size, layer_norm) for _ in range(2)]
    encoder = make_encoder(observation_size, prior.dim, num_cells)
    ignores = tuple(sorted(policy_ignores)) or None
    options = {
        "observation_size": observation_size,
        "policy_ignores": ignores,
        "layer_norm": layer_norm or None,
        "bottleneck": bottleneck,
    }
    narrow = None
    if bottleneck is not None:
        narrow = Bottleneck(make_encoder(observation_size, 2 * bottleneck, num_cells))
    return _assemble(
        "observation", trunk, critics, encoder, spec, num_cells, options, bottleneck=narrow
    )


def make_pixel_sac_networks(
    pixel_shape: Sequence[int],
    action_spec: Bounded,
    prior: SkillPrior,
    *,
    num_cells: Sequence[int] = (1024, 1024),
    channels: int = 48,
    features: int | None = None,
    shared_encoder: bool | Literal["critics"] = False,
    value_size: int = 1,
    layer_norm: bool = False,
) -> SACNetworks:
    """Build actor, twin critics and encoder for pictures under ``"pixels"``.

    The authors' settings: convolutions (:class:`PixelEncoder`) of their own for the
    actor, for each critic and for φ, then the networks of
    :func:`~torchrl_metra.make_sac_networks`, which read the skill beside the features.

    With ``shared_encoder="critics"`` actor and critics read the ``"features"`` of one encoder,
    which the critics' loss trains, as in DrQ-v2 (https://arxiv.org/abs/2107.09645), and φ has its
    own. With ``shared_encoder=True`` there is a single set of convolutions. φ's loss trains it;
    actor and critics read its features without a gradient. Give it to the stepper, which keeps
    the features up to date, and to the optimizers:
    ``METRAOptimizationStepper(..., shared_encoder=networks.shared_encoder)``,
    ``make_metra_optimizers(..., shared_encoder=networks.shared_encoder)``.

    With ``features`` encoders are small ones for CPUs (:class:`PatchEncoder`), and φ sees the mean
    colors of patches (:class:`PatchColors`).

    Args:
        pixel_shape (sequence of int): shape ``[C, H, W]`` of a picture, or of a stack
            of them along ``C``.
        action_spec (Bounded): spec of the action, such as ``env.action_spec``.
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        num_cells (sequence of int, optional): widths of the hidden layers.
            Defaults to ``(1024, 1024)``.
        channels (int, optional): channels of the first convolution. Defaults to 48.
        features (int, optional): size of what a small encoder makes of a picture. By default
            there are the authors' convolutions.
        shared_encoder (bool or str, optional): see above. Defaults to ``False``: each network has
            its own.
        value_size (int, optional): see :func:`~torchrl_metra.make_sac_networks`.
            Defaults to 1.
        layer_norm (bool, optional): likewise. Defaults to ``False``.

    Returns:
        The networks, on the CPU.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_env, make_pixel_sac_networks
        >>> env = make_env("point_pixels", num_envs=4)
        >>> networks = make_pixel_sac_networks(
        ...     (9, 64, 64), env.action_spec, UnitSphere(2), num_cells=[64], channels=8
        ... )
        >>> networks.encoder(env.reset())["latent"].shape
        torch.Size([4, 2])
    """
    spec = single_action_spec(action_spec)
    if shared_encoder not in (False, True, "critics"):
        raise ValueError(
            f'shared_encoder must be False, True or "critics", got {shared_encoder!r}.'
        )
    make_eyes: Callable[[], PixelEncoder | PatchEncoder]
    if features is None:
        make_eyes = partial(PixelEncoder, pixel_shape, channels=channels)
        phi_eyes: Any = PixelEncoder(pixel_shape, channels=channels, float32=True)
    else:
        make_eyes = partial(PatchEncoder, pixel_shape, channels=channels, num_features=features)
        phi_eyes = make_eyes() if shared_encoder is True else PatchColors(pixel_shape)
    shared: Any = phi_eyes if shared_encoder is True else None
    if shared_encoder == "critics":
        shared = make_eyes()

    def see(make_head: Callable[[int], nn.Module]) -> nn.Module:
        if shared is not None:
            return make_head(shared.num_features)
        eyes = make_eyes()
        return PixelNetwork(eyes, make_head(eyes.num_features))

    def critic(size: int) -> nn.Module:
        size += prior.dim + spec.shape[-1]
        return make_critic(size, num_cells, value_size, layer_norm)

    trunk = see(lambda size: make_trunk(size + prior.dim, num_cells))
    critics = [see(critic) for _ in range(2)]
    encoder = make_encoder(phi_eyes.num_features, prior.dim, num_cells)
    options = {
        "pixel_shape": tuple(pixel_shape),
        "channels": channels,
        "features": features,
        "shared_encoder": shared_encoder,
        "layer_norm": layer_norm or None,
    }
    phi = encoder if shared is phi_eyes else PixelNetwork(phi_eyes, encoder)
    return _assemble("pixels", trunk, critics, phi, spec, num_cells, options, shared)


def _assemble(
    key: str,
    trunk: nn.Module,
    critics: Sequence[nn.Module],
    encoder: nn.Module,
    spec: Bounded,
    num_cells: Sequence[int],
    options: dict[str, Any],
    shared: nn.Module | None = None,
    bottleneck: nn.Module | None = None,
) -> SACNetworks:
    """Networks of ``key``, or of its features, with the entries that they read and write."""
    features, phi_key, actor_key = None, key, key
    if shared is not None:
        features = TensorDictModule(shared, in_keys=[key], out_keys=["features"])
        key = actor_key = "features"
        # φ may have eyes of its own.
        phi_key = phi_key if isinstance(encoder, PixelNetwork) else key
    elif bottleneck is not None:
        features = TensorDictModule(bottleneck, in_keys=[key], out_keys=["bottleneck"])
        actor_key = "bottleneck"
    phi: TensorDictModuleBase = TensorDictModule(encoder, in_keys=[phi_key], out_keys=["latent"])
    low, high = (tuple(bound.tolist()) for bound in (spec.space.low, spec.space.high))
    return SACNetworks(
        actor=SkillConditionedActor(trunk, num_cells[-1], spec, in_keys=[actor_key, "skill"]),
        critics=[ValueOperator(critic, in_keys=[key, "skill", "action"]) for critic in critics],
        encoder=TensorDictSequential(features, phi) if phi_key == "features" else phi,
        architecture=Architecture(low, high, tuple(num_cells), **options),
        shared_encoder=features,
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


def make_trunk(in_features: int, num_cells: Sequence[int]) -> MLP:
    """The policy's hidden layers."""
    *inner, last = num_cells
    trunk = MLP(
        in_features, last, num_cells=inner, activation_class=nn.Tanh, activate_last_layer=True
    )
    return _initialize(trunk, nn.init.xavier_uniform_, float32_layers=[0])


def make_encoder(in_features: int, out_features: int, num_cells: Sequence[int]) -> MLP:
    """φ, or what of it follows the convolutions."""
    encoder = MLP(in_features, out_features, num_cells=[*num_cells], activation_class=nn.ReLU)
    return _initialize(encoder, nn.init.xavier_uniform_, float32_layers=range(0, len(encoder), 2))


def make_critic(
    in_features: int, num_cells: Sequence[int], out_features: int = 1, layer_norm: bool = False
) -> MLP:
    """A critic, or what of it follows the convolutions."""
    norm: dict[str, Any] = {}
    if layer_norm:
        sizes = [{"normalized_shape": size} for size in num_cells]
        norm = {"norm_class": nn.LayerNorm, "norm_kwargs": sizes}
    critic = MLP(
        in_features, out_features, num_cells=[*num_cells], activation_class=nn.ReLU, **norm
    )
    return _initialize(critic, nn.init.xavier_normal_, float32_layers=[0, -1])


def _initialize(
    network: MLP, init_weight: Callable[[Tensor], Tensor], float32_layers: Iterable[int]
) -> MLP:
    for index in float32_layers:
        layer = network[index]
        network[index] = Float32Linear(layer.in_features, layer.out_features)
    for layer in network:
        if isinstance(layer, nn.Linear):
            init_weight(layer.weight)
            nn.init.zeros_(layer.bias)
    return network
