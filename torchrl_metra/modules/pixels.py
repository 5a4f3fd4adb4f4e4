"""What makes features of pictures, before the multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
        ValueError: if pictures are not square, or their size is not such a power of two.

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
        in_channels, height, width = shape
        if height != width or width < _SMALLEST_RESOLUTION or width & (width - 1):
            raise ValueError(
                "pixels must be of shape [C, H, W] with H = W a power of two from "
                f"{_SMALLEST_RESOLUTION} on, got {list(shape)}."
            )
        num_layers = int(width).bit_length() - 3
        widths = [channels * min(2**layer, 8) for layer in range(num_layers)]
        layers: list[nn.Module] = []
        for out_channels in widths:
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size=4, stride=2), nn.ELU()]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.shape = tuple(shape)
        self.num_features = 4 * widths[-1]
        self.float32 = float32

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[*B, num_features]`` of ``uint8`` pictures ``[*B, C, H, W]``."""
        check_pictures(pixels)
        device = pixels.device.type
        autocast = torch.is_autocast_enabled(device) and not self.float32
        with torch.autocast(device, torch.get_autocast_dtype(device), enabled=autocast):
            # The layout in which convolutions are fastest, on CPUs as on GPUs.
            pictures = pixels.reshape(-1, *pixels.shape[-3:]).to(
                torch.float32, memory_format=torch.channels_last
            )
            features = self.layers(pictures / 255)
        return features.float().reshape(*pixels.shape[:-3], self.num_features)


class PatchEncoder(nn.Module):
    """A small network from a picture to features, made for CPUs.

    Patches of 4×4 pixels are mapped to ``channels`` numbers each, 2×2 neighbors of these to twice
    as many, and all of them to the features, whose scale layer normalization sets, between -1
    and 1, so that a skill of two numbers beside them is not drowned. Patches do not overlap: each
    layer is one matrix product, and a pixel is read once.

    Of a stack, each RGB picture has a convolution of its own, and their outputs are summed. That is
    the same as one convolution of the whole stack, and avoids channel counts such as 9, for which
    kernels on CPUs are slow.

    Args:
        shape (sequence of int): shape ``[C, H, W]`` of a picture; ``H`` and ``W`` are multiples
            of 8.

    Keyword Args:
        channels (int, optional): numbers for a patch. Defaults to 16.
        num_features (int, optional): size of the output. Defaults to 64.

    Raises:
        ValueError: if height or width is not such a multiple.

    Examples:
        >>> import torch
        >>> encoder = PatchEncoder((6, 32, 32))
        >>> encoder(torch.zeros(5, 6, 32, 32, dtype=torch.uint8)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels: int = 16,
        num_features: int = 64,
    ) -> None:
        super().__init__()
        num_channels, height, width = shape
        check_multiple(shape, 8)
        # Colors stay together.
        self._group = group = colors_of(num_channels)
        self.patches = nn.ModuleList(
            nn.Conv2d(group, channels, kernel_size=4, stride=4, bias=index == 0)
            for index in range(num_channels // group)
        )
        self.neighbors = nn.Conv2d(channels, 2 * channels, kernel_size=2, stride=2)
        size = 2 * channels * (height // 8) * (width // 8)
        self.features = nn.Linear(size, num_features)
        self.norm = nn.LayerNorm(num_features)
        self.shape = tuple(shape)
        self.num_features = num_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Features ``[*B, num_features]`` of ``uint8`` pictures ``[*B, C, H, W]``."""
        check_pictures(pixels)
        frames = pixels.reshape(-1, *pixels.shape[-3:]).split(self._group, dim=1)
        hidden = sum(
            layer(frame.float() / 255) for layer, frame in zip(self.patches, frames, strict=True)
        )
        hidden = self.neighbors(hidden.relu()).relu().flatten(1)
        features = self.norm(self.features(hidden)).tanh()
        return features.float().reshape(*pixels.shape[:-3], self.num_features)


class PatchColors(nn.Module):
    """The mean color of each patch of 4×4 pixels of the newest picture in a stack.

    What φ has to tell is above all where things are. That shows in large areas, and a posture in a
    few pixels, which hardly change a mean. And as states are, colors are normalized by constants:
    after :meth:`fit` they change by the same amount in a step along every direction, as if φ were
    linear and had solved METRA's constraint. What changes slowly and goes far, such as the color
    of a floor, then counts more than limbs that move to and fro, or light that falls on the body.
    So φ finds the way to the place before it finds postures.

    Args:
        shape (sequence of int): shape ``[C, H, W]`` of a picture; ``H`` and ``W`` are multiples
            of 4.

    Raises:
        ValueError: if height or width is not such a multiple.

    Examples:
        >>> import torch
        >>> colors = PatchColors((6, 32, 32))
        >>> colors(torch.full((5, 6, 32, 32), 255, dtype=torch.uint8)).shape
        torch.Size([5, 192])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        num_channels, height, width = shape
        check_multiple(shape, 4)
        self._num_colors = colors_of(num_channels)
        self.shape = tuple(shape)
        self.num_features = self._num_colors * (height // 4) * (width // 4)
        self.register_buffer("loc", torch.full((self.num_features,), 127.5))
        self.register_buffer("scale", torch.eye(self.num_features) / 127.5)

    def fit(self, pixels: Tensor, next_pixels: Tensor) -> None:
        """Normalize so that all directions change alike in a step.

        Colors are mapped by the inverse root of the covariance of their steps, and then scaled to a
        mean square of one.

        Args:
            pixels (Tensor): ``uint8`` pictures, ``[*B, C, H, W]``.
            next_pixels (Tensor): those a step later.
        """
        colors = self._means(pixels).flatten(0, -2).double()
        self.loc.copy_(colors.mean(dim=0))
        steps = self._means(next_pixels).flatten(0, -2).double() - colors
        # Colors that stay the same are known to half of a level.
        covariance = steps.T @ steps / len(steps) + 0.25 * torch.eye(len(self.loc)).to(steps)
        values, vectors = torch.linalg.eigh(covariance)
        scale = vectors / values.sqrt() @ vectors.T
        self.scale.copy_(scale / ((colors - colors.mean(dim=0)) @ scale).square().mean().sqrt())

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized colors ``[*B, num_features]`` of ``uint8`` pictures ``[*B, C, H, W]``."""
        with torch.autocast(pixels.device.type, enabled=False):
            return (self._means(pixels) - self.loc) @ self.scale

    def _means(self, pixels: Tensor) -> Tensor:
        check_pictures(pixels)
        newest = pixels.reshape(-1, *pixels.shape[-3:])[:, -self._num_colors :]
        means = nn.functional.avg_pool2d(newest.float(), 4)
        return means.reshape(*pixels.shape[:-3], self.num_features)


def colors_of(num_channels: int) -> int:
    """How many channels belong to one picture of a stack: RGB, or all."""
    return 3 if num_channels % 3 == 0 else num_channels


def check_multiple(shape: Sequence[int], size: int) -> None:
    """Refuse pictures that are not made of whole patches.

    Raises:
        ValueError: if height or width is not a multiple of ``size``.
    """
    if any(length % size for length in shape[-2:]):
        raise ValueError(
            f"pixels must be of shape [C, H, W] with H and W multiples of {size}, "
            f"got {list(shape)}."
        )


def check_pictures(pixels: Tensor) -> None:
    """Refuse pictures of floats in [0, 1], which would be scaled down once more without a word.

    Raises:
        TypeError: if they are not ``uint8``.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels must be uint8, got {pixels.dtype}.")


class PixelNetwork(nn.Module):
    """A picture's features, beside any vectors, into a multilayer perceptron.

    Args:
        encoder (PixelEncoder, PatchEncoder or PatchColors): makes features of the first argument.
        head (nn.Module): reads features and the other arguments, concatenated.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> encoder = PixelEncoder((3, 64, 64), channels=8)
        >>> network = PixelNetwork(encoder, nn.Linear(encoder.num_features + 2, 16))
        >>> network(torch.zeros(5, 3, 64, 64, dtype=torch.uint8), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def __init__(self, encoder: PixelEncoder | PatchEncoder | PatchColors, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixels: Tensor, *vectors: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(pixels), *vectors], dim=-1))
