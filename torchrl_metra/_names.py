"""Mistyped names."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """What an error says of a name that does not exist: the nearest one, or all that do.

    Examples:
        >>> unknown("objective", "mettra", ["metra", "csd"])
        "unknown objective 'mettra': did you mean 'metra'?"
    """
    names = sorted(names)
    if nearest := get_close_matches(name, names, n=1):
        return f"unknown {kind} {name!r}: did you mean {nearest[0]!r}?"
    return f"unknown {kind} {name!r}: expected one of {', '.join(names)}."
