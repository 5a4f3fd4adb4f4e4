"""What counts as an encoder φ."""

from __future__ import annotations

from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn


def as_encoder(encoder: nn.Module | TensorDictModuleBase) -> TensorDictModuleBase:
    """The encoder as a TensorDict module; a plain one reads ``"observation"``.

    Args:
        encoder (nn.Module or TensorDictModuleBase): φ, to ``[*B, D]``.

    Examples:
        >>> from torch import nn
        >>> as_encoder(nn.Linear(3, 2)).in_keys
        ['observation']
    """
    if isinstance(encoder, TensorDictModuleBase):
        return encoder
    return TensorDictModule(encoder, in_keys=["observation"], out_keys=["latent"])


def latent_key(encoder: TensorDictModuleBase) -> NestedKey:
    """Where the encoder writes φ: ``"latent"``, or its first entry if none has that name."""
    return "latent" if "latent" in encoder.out_keys else encoder.out_keys[0]
