"""Mistyped names, refused with the nearest right one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torchrl_metra._extras import require
from torchrl_metra._names import unknown

__all__ = ["suggest_names"]

hydra_errors = require("hydra.errors", extra="run")
omegaconf_errors = require("omegaconf.errors", extra="run")
_UNKNOWN_KEY = (omegaconf_errors.ConfigAttributeError, omegaconf_errors.ConfigKeyError)


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
    except hydra_errors.ConfigCompositionException as error:
        if suggestion := _suggestion(error):
            error.args = ("\n".join(filter(None, (str(error), suggestion))),)
        raise
    except SystemExit as exit_:
        # Hydra has caught and printed the error already.
        if suggestion := _suggestion(exit_.__context__):
            print(suggestion, file=sys.stderr)
        raise


def _suggestion(error: BaseException | None) -> str | None:
    """What the error should have said of a name, if it is Hydra's and for a name."""
    if isinstance(error, hydra_errors.MissingConfigException):
        return _for_choice(error)
    if isinstance(error, hydra_errors.ConfigCompositionException):
        return _for_key(error.__cause__ or error.__context__)
    return None


def _for_key(error: Any) -> str | None:
    if not isinstance(error, _UNKNOWN_KEY) or not isinstance(error.parent_node, Mapping):
        return None
    section = str(error.full_key).removesuffix(str(error.key))
    names = [f"{section}{name}" for name in error.parent_node if not str(name).startswith("_")]
    return unknown("setting", str(error.full_key), names)


def _for_choice(error: Any) -> str | None:
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return None
    if error.options:
        return unknown("choice", f"{group}={choice}", [f"{group}={name}" for name in error.options])
    store = require("hydra.core.config_store", extra="run").ConfigStore.instance()
    return unknown("group", group, [name for name in store.repo if "." not in name])
