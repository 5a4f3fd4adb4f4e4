"""Networks that see: the authors' convolutions before the multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ValueOperator

from torchrl_metra._checks import check_integer, check_sizes, check_type
from torchrl_metra.data import SkillPrior
from torchrl_metra.data.skills import check_prior
from torchrl_metra.modules.actor import SkillConditionedActor, single_action_spec
from torchrl_metra.modules.networks import SACNetworks, make_critic, make_encoder, make_trunk

__all__ = ["PixelArchitecture", "PixelEncoder", "PixelNetwork", "make_pixel_sac_networks"]

_SMALLEST_RESOLUTION = 32


class PixelEncoder(nn.Module):
    """The authors' convolutional network, from a picture to features.

    Convolutions of 4×4 with stride 2 and ELU, each with twice the channels of the one
    before up to eight times the first's, down to a map of 2×2: four of them for
    64×64 pixels (Appendix F.1 and the authors' implementation), five for 128×128,
    six for 256×256.

    Args:
        shape (sequence of int): shape ``[C, H, W]`` of a picture; ``H = W`` is a power
            of two, 32 at least.

    Keyword Args:
        channels (int, optional): channels of the first convolution. Defaults to 48.
        float32 (bool, optional): compute in float32 under autocast too, as φ needs to
            (see :class:`~torchrl_metra.modules.Float32Linear`). Defaults to ``False``.

    Raises:
        TypeError: if a size is no integer.
        ValueError: if the shape is another one, or ``channels`` is not positive.

    Examples:
        >>> import torch
        >>> encoder = PixelEncoder((9, 64, 64))
        >>> encoder.num_features
        1536
        >>> encoder(torch.zeros(5, 9, 64, 64, dtype=torch.uint8)).shape
        torch.Size([5, 1536])
    """

    def __init__(self, shape: Sequence[int], *, channels: int = 48, float32: bool = False) -> None:
        super().__init__()
        check_sizes("shape", shape)
        check_integer("channels", channels)
        if len(shape) != 3 or shape[1] != shape[2] or not _is_resolution(shape[1]):
            raise ValueError(
                "pixels must be of shape [C, H, W] with H = W a power of two from "
                f"{_SMALLEST_RESOLUTION} on, got {list(shape)}."
            )
        num_layers = int(shape[1]).bit_length() - 3
        widths = [channels * min(2**layer, 8) for layer in range(num_layers)]
        layers: list[nn.Module] = []
        for in_channels, out_channels in zip([shape[0], *widths], widths, strict=False):
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2), nn.ELU()]
        self.layers = nn.Sequential(*layers)
        self.shape = tuple(shape)
        self.num_features = 4 * widths[-1]
        self.float32 = float32

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[*B, num_features]`` of ``uint8`` pictures ``[*B, C, H, W]``.

        Raises:
            ValueError: if the pictures have another shape or type.
        """
        if pixels.dtype != torch.uint8 or pixels.shape[-3:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(
                f"pixels must be uint8 of shape [..., {expected}], found {pixels.dtype} of "
                f"shape {list(pixels.shape)}."
            )
        device = pixels.device.type
        autocast = torch.is_autocast_enabled(device) and not self.float32
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=autocast):
            # The layout in which convolutions are fastest, on CPUs as on GPUs.
            pictures = pixels.reshape(-1, *pixels.shape[-3:]).to(
                torch.float32, memory_format=torch.channels_last
            )
            features = self.layers(pictures / 255)
        return features.float().reshape(*pixels.shape[:-3], self.num_features)


class PixelNetwork(nn.Module):
    """A picture's features, beside any vectors, into a multilayer perceptron.

    Args:
        encoder (PixelEncoder): makes features of the first argument.
        head (nn.Module): reads features and the other arguments, concatenated.

    Raises:
        TypeError: if one of them is no module.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> encoder = PixelEncoder((3, 64, 64), channels=8)
        >>> network = PixelNetwork(encoder, nn.Linear(encoder.num_features + 2, 16))
        >>> network(torch.zeros(5, 3, 64, 64, dtype=torch.uint8), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def __init__(self, encoder: PixelEncoder, head: nn.Module) -> None:
        check_type("encoder", encoder, nn.Module, "a PixelEncoder")
        check_type("head", head, nn.Module, "an nn.Module")
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixels: Tensor, *vectors: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(pixels), *vectors], dim=-1))


@dataclass(frozen=True)
class PixelArchitecture:
    """What it takes to build the networks of :func:`make_pixel_sac_networks` again.

    Attributes:
        pixel_shape (tuple of int): shape ``[C, H, W]`` of a picture.
        action_low (tuple of float): lower bound of each action.
        action_high (tuple of float): upper bound of each action.
        num_cells (tuple of int): widths of the hidden layers.
        channels (int): channels of the first convolution.
        shared_encoder (bool): whether all networks share one encoder.
    """

    pixel_shape: tuple[int, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    num_cells: tuple[int, ...]
    channels: int
    shared_encoder: bool

    def to_config(self) -> dict[str, Any]:
        """The architecture as plain data, for files."""
        return asdict(self)

    def build(self, prior: SkillPrior) -> SACNetworks:
        """Networks with fresh weights."""
        action_spec = Bounded(torch.tensor(self.action_low), torch.tensor(self.action_high))
        return make_pixel_sac_networks(
            self.pixel_shape,
            action_spec,
            prior,
            num_cells=self.num_cells,
            channels=self.channels,
            shared_encoder=self.shared_encoder,
        )


def make_pixel_sac_networks(
    pixel_shape: Sequence[int],
    action_spec: Bounded,
    prior: SkillPrior,
    *,
    num_cells: Sequence[int] = (1024, 1024),
    channels: int = 48,
    shared_encoder: bool = False,
    value_size: int = 1,
) -> SACNetworks:
    """Build actor, twin critics and encoder for pictures under ``"pixels"``.

    The authors' settings: convolutions (:class:`PixelEncoder`) of their own for the
    actor, for each critic and for φ, then the networks of
    :func:`~torchrl_metra.make_sac_networks`, which read the skill beside the features.

    With ``shared_encoder`` there is a single set of convolutions. φ's loss trains it;
    actor and critics read its ``"features"`` without a gradient. A step takes half of
    the time. Give it to the stepper, which keeps the features up to date:
    ``METRAOptimizationStepper(..., shared_encoder=networks.shared_encoder)``.

    Args:
        pixel_shape (sequence of int): shape ``[C, H, W]`` of a picture, or of a stack
            of them along ``C``.
        action_spec (Bounded): spec of the action, such as ``env.action_spec``.
        prior (SkillPrior): distribution of the skills.

    Keyword Args:
        num_cells (sequence of int, optional): widths of the hidden layers.
            Defaults to ``(1024, 1024)``.
        channels (int, optional): channels of the first convolution. Defaults to 48.
        shared_encoder (bool, optional): see above. Defaults to ``False``.
        value_size (int, optional): see :func:`~torchrl_metra.make_sac_networks`.
            Defaults to 1.

    Returns:
        The networks, on the CPU.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the shape is none of a square picture, see :class:`PixelEncoder`, or as
            by :func:`~torchrl_metra.make_sac_networks`.

    Examples:
        >>> from torchrl_metra import UnitSphere, make_env, make_pixel_sac_networks
        >>> env = make_env("point_pixels", num_envs=4)
        >>> networks = make_pixel_sac_networks(
        ...     (9, 64, 64), env.action_spec, UnitSphere(2), num_cells=[64], channels=8
        ... )
        >>> networks.encoder(env.reset())["latent"].shape
        torch.Size([4, 2])
    """
    check_sizes("pixel_shape", pixel_shape)
    check_sizes("num_cells", num_cells)
    check_prior(prior)
    spec = single_action_spec(action_spec)
    architecture = PixelArchitecture(
        pixel_shape=tuple(pixel_shape),
        action_low=tuple(spec.space.low.tolist()),
        action_high=tuple(spec.space.high.tolist()),
        num_cells=tuple(num_cells),
        channels=channels,
        shared_encoder=shared_encoder,
    )
    build = _build_shared if shared_encoder else _build_separate
    return build(architecture, spec, prior, value_size)


def _build_separate(
    architecture: PixelArchitecture, action_spec: Bounded, prior: SkillPrior, value_size: int
) -> SACNetworks:
    num_cells, input_size = architecture.num_cells, prior.dim + action_spec.shape[-1]

    def see(make_head: Callable[[int], nn.Module], float32: bool = False) -> PixelNetwork:
        encoder = PixelEncoder(
            architecture.pixel_shape, channels=architecture.channels, float32=float32
        )
        return PixelNetwork(encoder, make_head(encoder.num_features))

    trunk = see(lambda size: make_trunk(size + prior.dim, num_cells))
    critics = [
        see(lambda size: make_critic(size + input_size, num_cells, value_size)) for _ in range(2)
    ]
    encoder = see(lambda size: make_encoder(size, prior.dim, num_cells), float32=True)
    return SACNetworks(
        SkillConditionedActor(trunk, num_cells[-1], action_spec, in_keys=["pixels", "skill"]),
        [ValueOperator(critic, in_keys=["pixels", "skill", "action"]) for critic in critics],
        TensorDictModule(encoder, in_keys=["pixels"], out_keys=["latent"]),
        architecture,
    )


def _build_shared(
    architecture: PixelArchitecture, action_spec: Bounded, prior: SkillPrior, value_size: int
) -> SACNetworks:
    num_cells, input_size = architecture.num_cells, prior.dim + action_spec.shape[-1]
    encoder = PixelEncoder(architecture.pixel_shape, channels=architecture.channels, float32=True)
    size = encoder.num_features
    trunk = make_trunk(size + prior.dim, num_cells)
    critics = [make_critic(size + input_size, num_cells, value_size) for _ in range(2)]
    head = make_encoder(size, prior.dim, num_cells)
    shared_encoder = TensorDictModule(encoder, in_keys=["pixels"], out_keys=["features"])
    return SACNetworks(
        SkillConditionedActor(trunk, num_cells[-1], action_spec, in_keys=["features", "skill"]),
        [ValueOperator(critic, in_keys=["features", "skill", "action"]) for critic in critics],
        TensorDictSequential(
            shared_encoder, TensorDictModule(head, in_keys=["features"], out_keys=["latent"])
        ),
        architecture,
        shared_encoder,
    )


def _is_resolution(size: int) -> bool:
    return size >= _SMALLEST_RESOLUTION and size & (size - 1) == 0
