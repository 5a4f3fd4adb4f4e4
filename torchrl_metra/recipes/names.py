"""Mistyped names, refused with the nearest right one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torchrl_metra._checks import unknown
from torchrl_metra._extras import require
from torchrl_metra._private import refused_name

errors = require("hydra.errors", extra="run")


@contextmanager
def suggest_names() -> Iterator[None]:
    """Have Hydra refuse a mistyped key, or choice of a group, with the nearest right name.

    For a script, the decorator above ``@hydra.main``; for :func:`hydra.compose`, a context.
    It does nothing before Hydra has refused a name.

    Raises:
        ConfigCompositionException: that of :func:`hydra.compose`, with the name in its message.
        SystemExit: that of ``@hydra.main``, after the name was printed.

    Examples:
        >>> from hydra import compose, initialize
        >>> import torchrl_metra.trainers.configs
        >>> from torchrl_metra.recipes.names import suggest_names
        >>> with initialize(version_base="1.3"), suggest_names():
        ...     compose(overrides=["+loss=metra", "loss.slak=0.1"])
        Traceback (most recent call last):
        hydra.errors.ConfigCompositionException: Could not override 'loss.slak'.
        To append to your config use +loss.slak=0.1
        unknown setting 'loss.slak': did you mean 'loss.slack'?
    """
    try:
        yield
    except (errors.ConfigCompositionException, SystemExit) as error:
        if refused := refused_name(error):
            if isinstance(error, SystemExit):
                # Hydra has caught and printed its own error already.
                print(unknown(*refused), file=sys.stderr)
            else:
                error.args = (f"{error}\n{unknown(*refused)}",)
        raise
