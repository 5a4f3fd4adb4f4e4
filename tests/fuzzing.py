"""What fuzz tests call a clear error, and how many examples they try."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from tensordict import TensorDictBase
from torch import Tensor

import torchrl_metra

PACKAGE = Path(torchrl_metra.__file__).parent

# More of them, at random, by FUZZ_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzz(max_examples: int) -> Callable[..., Any]:
    """The same examples in every run, and none written to disk."""
    return settings(
        max_examples=EXAMPLES or max_examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=20_000,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def clear_errors(*about: str) -> Iterator[list[Exception]]:
    """Takes errors of this package, which name one of these; lets others through.

    Yields:
        A list with the error, if there was one.
    """
    caught: list[Exception] = []
    try:
        yield caught
    except (ValueError, TypeError, KeyError, ImportError) as err:
        raised_by = Path(traceback.extract_tb(err.__traceback__)[-1].filename)
        if not raised_by.is_relative_to(PACKAGE):
            raise AssertionError(f"raised by {raised_by}, not by this package: {err!r}") from err
        if about and not any(name in str(err) for name in about):
            raise AssertionError(f"the error says nothing of {about}: {err!r}") from err
        caught.append(err)


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
