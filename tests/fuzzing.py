"""What fuzz tests share: how many examples they try, and what counts as finite."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from tensordict import TensorDictBase
from torch import Tensor

# More of them, at random, by FUZZ_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(max_examples: int) -> Callable[..., Any]:
    """The same examples in every run, and none written to disk; one that hangs fails."""
    return settings(
        max_examples=EXAMPLES or max_examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=20_000,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def is_finite(value: object) -> bool:
    """Whether all numbers in it are, however they are nested."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, float):
        return bool(torch.tensor(value).isfinite())
    if isinstance(value, TensorDictBase):
        return all(map(is_finite, value.values(True, True)))
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, tuple | list):
        return all(map(is_finite, value))
    return True
