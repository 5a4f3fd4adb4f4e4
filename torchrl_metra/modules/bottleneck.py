"""What the policy may read in place of the state."""

from __future__ import annotations

from torch import Tensor, nn


class Bottleneck(nn.Module):
    r"""A normal distribution :math:`q(\ell \mid s)`, of which the policy reads the mean.

    Trained to say of a state what φ(s) does not, see :class:`~torchrl_metra.GenDaLoss`. φ says
    where the body is, so :math:`\ell` leaves it out, and skills work from other places too.

    Args:
        network (nn.Module): from states to ``2 L`` numbers: the mean, and what becomes
            :math:`\log\sigma` between -5 and 2.

    Examples:
        >>> import torch
        >>> bottleneck = Bottleneck(nn.Linear(3, 8))
        >>> bottleneck(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    log_scale_bounds = (-5.0, 2.0)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def size(self) -> int:
        """Size ``L`` of what the policy reads."""
        *_, last = (layer for layer in self.network.modules() if isinstance(layer, nn.Linear))
        return last.out_features // 2

    def forward(self, observation: Tensor) -> Tensor:
        """The mean, of shape ``[*B, L]``."""
        return self.moments(observation)[0]

    def moments(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ, each of shape ``[*B, L]``."""
        mean, raw = self.network(observation).chunk(2, dim=-1)
        low, high = self.log_scale_bounds
        return mean, low + (high - low) * (raw.tanh() + 1) / 2
