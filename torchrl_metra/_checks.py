"""Checks of arguments, made once, where they are given.

They are for mistakes that would otherwise go wrong in silence or far from their cause. What
fails by itself, with an error that one understands, needs none.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any


def check_type(name: str, value: object, expected: Any, description: str) -> None:
    """Raise a ``TypeError`` for a value of another type.

    Examples:
        >>> check_type("path", 3, str, "a string")
        Traceback (most recent call last):
        TypeError: path must be a string, got int.
    """
    if not isinstance(value, expected):
        raise TypeError(f"{name} must be {description}, got {type(value).__name__}.")


def check_positive(name: str, value: float) -> None:
    """Raise a ``ValueError`` for a number that is not above zero, or not finite.

    Examples:
        >>> check_positive("radius", 0.0)
        Traceback (most recent call last):
        ValueError: radius must be positive, got 0.0.
    """
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive, got {value}.")


def check_integer(name: str, value: object) -> None:
    """Raise an error for what is not an integer of at least one.

    Examples:
        >>> check_integer("num_steps", 3.5)
        Traceback (most recent call last):
        TypeError: num_steps must be an integer, got float.
    """
    check_type(name, value, int, "an integer")
    check_positive(name, value)  # type: ignore[arg-type]


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise a ``ValueError`` for an unknown choice, with the nearest one or all that there are.

    Examples:
        >>> check_choice("norm", "l3", ["l2", "rms"])
        Traceback (most recent call last):
        ValueError: unknown norm 'l3', expected one of ['l2', 'rms'].
    """
    if value not in choices:
        raise ValueError(unknown(name, value, choices))


def unknown(name: str, value: object, choices: Collection[str]) -> str:
    """What an error says about an unknown choice.

    Examples:
        >>> unknown("objective", "mettra", ["metra", "csd"])
        "unknown objective 'mettra': did you mean 'metra'?"
    """
    if nearest := get_close_matches(str(value), choices, n=1):
        return f"unknown {name} {value!r}: did you mean {nearest[0]!r}?"
    return f"unknown {name} {value!r}, expected one of {list(choices)}."
