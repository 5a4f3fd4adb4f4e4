"""The authors' convolutions, before the multilayer perceptrons."""

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
        # Pictures of floats in [0, 1] would be scaled down once more without a word.
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels must be uint8, got {pixels.dtype}.")
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

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> encoder = PixelEncoder((3, 64, 64), channels=8)
        >>> network = PixelNetwork(encoder, nn.Linear(encoder.num_features + 2, 16))
        >>> network(torch.zeros(5, 3, 64, 64, dtype=torch.uint8), torch.zeros(5, 2)).shape
        torch.Size([5, 16])
    """

    def __init__(self, encoder: PixelEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixels: Tensor, *vectors: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(pixels), *vectors], dim=-1))
