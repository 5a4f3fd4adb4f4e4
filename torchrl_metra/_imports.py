"""Objects that are named by where they are."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["import_object"]


def import_object(name: str, what: str = "the function") -> Any:
    """Import ``"package.module:object"``, from the current folder too.

    Args:
        name (str): module and object, separated by a colon.
        what (str, optional): what is looked for, for errors.

    Returns:
        The object.

    Raises:
        ValueError: if the module cannot be imported or has no such object.

    Examples:
        >>> import_object("math:sqrt")(9.0)
        3.0
    """
    module_name, _, attribute = name.partition(":")
    try:
        with _current_folder_on_the_path():
            found = importlib.import_module(module_name)
    # ValueError: of an empty name. TypeError: of a relative one.
    except (ImportError, ValueError, TypeError) as err:
        raise ValueError(
            f"{what} {name!r} cannot be imported: {type(err).__name__}: {err}. Expected "
            "'package.module:function', of an installed package or a file in the current folder."
        ) from err
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"{what} {name!r} cannot be imported: module {module_name!r} "
                f"({getattr(found, '__file__', None)}) has no {attribute!r}."
            )
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def _current_folder_on_the_path() -> Iterator[None]:
    """As ``python -m`` has it, and a command that was installed does not."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
