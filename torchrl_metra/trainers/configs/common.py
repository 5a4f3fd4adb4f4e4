"""Structured configs from the signatures of what they configure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING
from torchrl.trainers.algorithms.configs.common import ConfigBase

import torchrl_metra

__all__ = ["PlainConfig", "configures", "parameters"]

_Config = TypeVar("_Config", bound=type)
_VAR_POSITIONAL, _VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
_SCALARS = (bool, int, float, str)


@dataclass
class PlainConfig(ConfigBase):
    """Base of configs in groups for which TorchRL has none."""

    def __post_init__(self) -> None:
        """Nothing to do."""


def configures(
    constructor: Callable[..., Any],
    *,
    group: str,
    name: str,
    target: Callable[..., Any] | None = None,
    without: Sequence[str] = (),
) -> Callable[[_Config], _Config]:
    """Make a class a structured config, and register it beside TorchRL's.

    Names, defaults and types of its fields are those of the constructor's parameters, so that
    the two cannot drift apart. Fields that the class declares itself come on top, or in place
    of those. A type that OmegaConf cannot hold becomes ``Any``, a parameter without default
    ``???``, and lists and dicts reach the constructor as such.

    Args:
        constructor (Callable): class or function that is configured.

    Keyword Args:
        group (str): group of Hydra's ``ConfigStore``.
        name (str): name in this group.
        target (Callable, optional): called in place of the constructor, with the same
            arguments.
        without (sequence of str, optional): parameters that are no fields.

    Returns:
        A decorator of classes.

    Examples:
        >>> from hydra.utils import instantiate
        >>> from torchrl_metra import UnitSphere
        >>> @configures(UnitSphere, group="skill_prior", name="unit_sphere")
        ... class UnitSphereConfig(PlainConfig):
        ...     "Fields of UnitSphere."
        >>> instantiate(UnitSphereConfig(dim=3))
        UnitSphere(3)
    """

    def decorate(cls: _Config) -> _Config:
        declared = inspect.get_annotations(cls)
        annotations = dict(declared)
        for parameter in parameters(constructor):
            if parameter.name in declared or parameter.name in without:
                continue
            annotations[parameter.name] = _type(parameter)
            setattr(cls, parameter.name, _default(parameter))
        for key, value in {"_target_": _path(target or constructor), "_convert_": "all"}.items():
            if key not in declared:
                annotations[key] = str
                setattr(cls, key, value)
        cls.__annotations__ = annotations
        dataclass(cls)
        ConfigStore.instance().store(name, cls, group=group, provider="torchrl_metra")
        return cls

    return decorate


def parameters(constructor: Callable[..., Any]) -> list[inspect.Parameter]:
    """All parameters of a constructor, with those that it passes on to its base class.

    Args:
        constructor (Callable): class or function. ``**kwargs`` of a class stand for the
            parameters of the next class that takes them, those of a function for a mapping.

    Returns:
        Parameters without ``self``, annotations resolved where they can be.

    Examples:
        >>> from torchrl_metra import CSDLoss
        >>> [parameter.name for parameter in parameters(CSDLoss)][:4]
        ['encoder', 'prior', 'distance', 'constraint_norm']
    """
    found: dict[str, inspect.Parameter] = {}
    for function in _constructors(constructor):
        own, hints = inspect.signature(function).parameters, _hints(function)
        for name, parameter in own.items():
            found.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not any(parameter.kind is _VAR_KEYWORD for parameter in own.values()):
            break
    if inspect.isclass(constructor):
        variadic = (_VAR_POSITIONAL, _VAR_KEYWORD)
        found = {name: value for name, value in found.items() if value.kind not in variadic}
        found.pop("self")
    return list(found.values())


def _constructors(constructor: Callable[..., Any]) -> list[Callable[..., Any]]:
    if not inspect.isclass(constructor):
        return [constructor]
    # Not the signature of the class: metaclasses of environments hide it.
    return [vars(cls)["__init__"] for cls in constructor.__mro__ if "__init__" in vars(cls)]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # Of a type that is imported for type checkers only.
        return {}


def _type(parameter: inspect.Parameter) -> Any:
    is_mapping = parameter.kind is _VAR_KEYWORD
    return dict[str, Any] if is_mapping else _holdable(parameter.annotation)


def _holdable(hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return str
    if hint in _SCALARS:
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if len(kinds) == 1 and len(get_args(hint)) == 2 and _holdable(kinds[0]) in _SCALARS:
        return _holdable(kinds[0]) | None
    return Any


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.kind is _VAR_KEYWORD:
        return field(default_factory=dict)
    return MISSING if parameter.default is inspect.Parameter.empty else parameter.default


def _path(function: Callable[..., Any]) -> str:
    """Where Hydra finds it: the public name, if there is one."""
    name = function.__qualname__
    is_public = name.partition(".")[0] in torchrl_metra.__all__
    return f"{'torchrl_metra' if is_public else function.__module__}.{name}"
