"""What arguments are checked by, so that all errors read alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, optim

__all__ = [
    "call_network",
    "check_choice",
    "check_device",
    "check_finite",
    "check_floats",
    "check_integer",
    "check_key",
    "check_number",
    "check_optimizers",
    "check_positive",
    "check_sizes",
    "check_type",
    "read_tensors",
]


def check_type(name: str, value: object, expected: Any, description: str) -> None:
    """Refuse a value of another type.

    Raises:
        TypeError: if it is none.

    Examples:
        >>> check_type("path", 3, str, "a string")
        Traceback (most recent call last):
        TypeError: path must be a string, got int.
    """
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {description}, got {type(value).__name__}.")


def check_integer(name: str, value: object, *, minimum: int = 1) -> None:
    """Refuse what is no integer, and one that is too small.

    Raises:
        TypeError: if it is no integer; ``True`` is none.
        ValueError: if it is below ``minimum``, or no tensor could be of that size.

    Examples:
        >>> check_integer("num_steps", 0)
        Traceback (most recent call last):
        ValueError: num_steps must be at least 1, got 0.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")
    if value > sys.maxsize:
        raise ValueError(f"{name} must be at most {sys.maxsize}, got {value}.")


def check_positive(name: str, value: object) -> None:
    """Refuse what is no positive, finite number.

    Raises:
        TypeError: if it is no number; ``True`` is none.
        ValueError: if it is not positive, or not finite.

    Examples:
        >>> check_positive("radius", 0.0)
        Traceback (most recent call last):
        ValueError: radius must be positive, got 0.0.
    """
    check_number(name, value)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be positive, got {value}.")
    if math.isinf(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be finite, got {value}.")


def check_number(name: str, value: object) -> None:
    """Refuse what is no real number.

    Raises:
        TypeError: if it is none; ``True`` is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse an unknown choice with the known ones.

    Raises:
        ValueError: if ``value`` is not one of ``choices``.

    Examples:
        >>> check_choice("norm", "l3", ["l2", "rms"])
        Traceback (most recent call last):
        ValueError: unknown norm 'l3', expected one of ['l2', 'rms'].
    """
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}, expected one of {list(choices)}.")


def check_key(name: str, value: Any) -> None:
    """Refuse what is no key of a TensorDict.

    Raises:
        TypeError: if it is neither a string nor a tuple of strings.

    Examples:
        >>> check_key("observation_key", 3)
        Traceback (most recent call last):
        TypeError: observation_key must be a string or a tuple of strings, got 3.
    """
    if not _is_key(value):
        raise TypeError(f"{name} must be a string or a tuple of strings, got {value!r}.")


def _is_key(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(map(_is_key, value))
    return isinstance(value, str)


def check_device(name: str, value: Any) -> None:
    """Refuse what is no device.

    Raises:
        TypeError: if it is none.
        ValueError: if PyTorch knows no device of that name.

    Examples:
        >>> check_device("device", "gpu")
        Traceback (most recent call last):
        ValueError: device must be a device such as 'cpu' or 'cuda:0', got 'gpu'.
    """
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{name} must be a device such as 'cpu' or 'cuda:0', got {value!r}.")
    try:
        torch.device(value)
    except RuntimeError as err:
        raise ValueError(
            f"{name} must be a device such as 'cpu' or 'cuda:0', got {value!r}."
        ) from err


def check_optimizers(optimizers: Any) -> None:
    """Refuse what is no mapping of parts to optimisers.

    Raises:
        TypeError: if it is none.

    Examples:
        >>> check_optimizers({"encoder": 1e-4})
        Traceback (most recent call last):
        TypeError: optimizers['encoder'] must be an optimiser, got float.
    """
    if isinstance(optimizers, TensorDictBase):  # Else a mapping, too.
        raise TypeError("optimizers must be a mapping of parts to optimisers, got a TensorDict.")
    check_type("optimizers", optimizers, Mapping, "a mapping of parts to optimisers")
    for name, optimizer in optimizers.items():
        check_type(f"optimizers[{name!r}]", optimizer, optim.Optimizer, "an optimiser")


def check_sizes(name: str, value: Any, *, minimum: int = 1) -> None:
    """Refuse what is no sequence of sizes.

    Raises:
        TypeError: if it is no sequence of integers.
        ValueError: if one of them is below ``minimum``.

    Examples:
        >>> check_sizes("num_cells", 32)
        Traceback (most recent call last):
        TypeError: num_cells must be a sequence of integers, got 32.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of integers, got {value!r}.")
    for index, size in enumerate(value):
        check_integer(f"{name}[{index}]", size, minimum=minimum)


def check_floats(name: str, value: Any, *shape: int | None) -> None:
    """Refuse what is no tensor of floats, or of another shape.

    Args:
        name (str): of the argument.
        value: what was given.
        *shape (int, optional): sizes of the last dimensions, ``None`` for any.

    Raises:
        TypeError: if it is no tensor of floats.
        ValueError: if its shape is another one.

    Examples:
        >>> check_floats("position", torch.zeros(3), None, 2)
        Traceback (most recent call last):
        ValueError: position must be of shape [..., *, 2], got [3].
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floats, got {value.dtype}.")
    last = value.shape[-len(shape) :] if shape else ()
    fits = len(last) == len(shape) and all(
        size is None or size == found for size, found in zip(shape, last, strict=True)
    )
    if not fits:
        expected = ", ".join(["...", *("*" if size is None else str(size) for size in shape)])
        raise ValueError(f"{name} must be of shape [{expected}], got {list(value.shape)}.")


def check_finite(name: str, value: Tensor) -> None:
    """Refuse a tensor that holds NaN or infinite numbers.

    Raises:
        ValueError: if it does.

    Examples:
        >>> check_finite("latents", torch.tensor([0.0, float("nan")]))
        Traceback (most recent call last):
        ValueError: latents must be finite, but 1 of 2 numbers are NaN or infinite.
    """
    if not value.isfinite().all():
        raise ValueError(
            f"{name} must be finite, but {int((~value.isfinite()).sum())} of {value.numel()} "
            "numbers are NaN or infinite."
        )


def read_tensors(
    tensordict: TensorDictBase, keys: Iterable[NestedKey], reader: str, hint: str = ""
) -> list[Tensor]:
    """Entries of a TensorDict, each of which must be there.

    Args:
        tensordict (TensorDictBase): where to look.
        keys (iterable of NestedKey): entries to read.
        reader (str): who needs them.
        hint (str, optional): what to do where one is missing.

    Raises:
        KeyError: if one is missing.
        TypeError: if one is no tensor.

    Examples:
        >>> from tensordict import TensorDict
        >>> read_tensors(TensorDict({"x": torch.zeros(3)}, [3]), ["y"], "the encoder")
        Traceback (most recent call last):
        KeyError: "the encoder needs 'y', but found only ['x']."
    """
    values = []
    for key in keys:
        value = tensordict.get(key, default=None)
        if value is None:
            raise KeyError(
                f"{reader} needs {key!r}, but found only "
                f"{sorted(map(str, tensordict.keys(True, True)))}.{hint}"
            )
        check_type(repr(key), value, Tensor, "a tensor")
        values.append(value)
    return values


def call_network(name: str, network: Callable[..., Any], *inputs: Tensor | TensorDictBase) -> Any:
    """What a network returns; where its inputs do not fit, an error that names it.

    Raises:
        ValueError: if PyTorch refuses the shapes or the types of the inputs.

    Examples:
        >>> call_network("encoder", torch.nn.Linear(3, 2), torch.zeros(4, 5))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: encoder does not fit its inputs, torch.float32 of shape [4, 5]: mat1...
    """
    if torch.compiler.is_compiling():
        return network(*inputs)
    try:
        return network(*inputs)
    except RuntimeError as err:
        # Those that are no fault of the inputs, such as a lack of memory, have types of their own.
        if type(err) is not RuntimeError:
            raise
        found = " and ".join(map(_describe, inputs))
        raise ValueError(f"{name} does not fit its inputs, {found}: {err}") from err


def _describe(value: Tensor | TensorDictBase) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return ", ".join(f"{key!r}: {_describe(entry)}" for key, entry in value.items(True, True))
