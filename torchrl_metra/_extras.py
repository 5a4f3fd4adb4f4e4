"""Optional dependencies."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module (str): module to import.
        extra (str): extra of this package that installs it.

    Returns:
        The imported module.

    Raises:
        ImportError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise ImportError(
            f"{module} is needed here and not installed. "
            f"Install it with: pip install 'torchrl-metra[{extra}]'"
        ) from err
