"""Structured configs from the signatures of what they configure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torchrl.trainers.algorithms.configs.common import ConfigBase

_VAR_POSITIONAL, _VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


@dataclass
class PlainConfig(ConfigBase):
    """Base of configs in groups for which TorchRL has none."""

    def __post_init__(self) -> None:
        """Nothing to do."""


def make_config(
    name: str,
    constructor: Callable[..., Any],
    *,
    target: str,
    base: type[ConfigBase] = PlainConfig,
    without: Sequence[str] = (),
) -> type[ConfigBase]:
    """Make a structured config, whose fields are the constructor's parameters.

    Fields have the parameters' names and defaults, so that the two cannot drift apart. A
    parameter without default becomes ``???``; lists and dicts reach the constructor as such.

    Args:
        name (str): name of the config's class.
        constructor (Callable): class or function that is configured.

    Keyword Args:
        target (str): what is called with the fields, the constructor or something around it.
        base (type, optional): base class of the config.
        without (sequence of str, optional): parameters that are not fields.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl_metra import UnitSphere
        >>> UnitSphereConfig = make_config(
        ...     "UnitSphereConfig", UnitSphere, target="torchrl_metra.UnitSphere"
        ... )
        >>> instantiate(UnitSphereConfig(dim=3))
        UnitSphere(3)
    """
    fields: list[Any] = [("_target_", str, target), ("_convert_", str, "all")]
    for parameter in parameters(constructor):
        if parameter.name in without:
            continue
        default = MISSING if parameter.default is parameter.empty else parameter.default
        if parameter.kind is _VAR_KEYWORD:
            fields.append((parameter.name, dict[str, Any], field(default_factory=dict)))
        else:
            fields.append((parameter.name, Any, default))
    return make_dataclass(name, fields, bases=(base,), namespace={"__module__": __package__})


def store(name: str, group: str, config: type[ConfigBase]) -> None:
    """Register a config beside TorchRL's."""
    ConfigStore.instance().store(name, config, group=group, provider="torchrl_metra")


def parameters(constructor: Callable[..., Any]) -> list[inspect.Parameter]:
    """All parameters of a constructor, with those that it passes on to its base class.

    Args:
        constructor (Callable): class or function. ``**kwargs`` of a class stand for the
            parameters of the next class that takes them, those of a function for a mapping.

    Examples:
        >>> from torchrl_metra import CSDLoss
        >>> [parameter.name for parameter in parameters(CSDLoss)][:4]
        ['encoder', 'prior', 'distance', 'constraint_norm']
    """
    if not inspect.isclass(constructor):
        return list(inspect.signature(constructor).parameters.values())
    found: dict[str, inspect.Parameter] = {}
    for cls in constructor.__mro__:
        # Not the signature of the class: metaclasses of environments hide it.
        if "__init__" not in vars(cls):
            continue
        own = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (_VAR_POSITIONAL, _VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is _VAR_KEYWORD for parameter in own):
            break
    return list(found.values())
