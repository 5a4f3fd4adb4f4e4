"""Objects that are named by where they are."""

from __future__ import annotations

import os
import pkgutil
import sys
from typing import Any


def import_object(name: str) -> Any:
    """Import ``"package.module:object"``, from the current folder too.

    Args:
        name (str): module and object, separated by a colon.

    Returns:
        The object.

    Raises:
        ValueError: if the module cannot be imported or has no such object.

    Examples:
        >>> import_object("math:sqrt")(9.0)
        3.0
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)  # As `python -m` has it, and a command that was installed does not.
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as err:
        raise ValueError(
            f"{name!r} cannot be imported: {type(err).__name__}: {err}. Expected "
            "'package.module:function', of an installed package or a file in the current folder."
        ) from err
    finally:
        sys.path.remove(folder)
