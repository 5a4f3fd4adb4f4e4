"""Settings and presets in Hydra's ``ConfigStore``, for the command ``metra`` and for files.

Hydra's config groups refuse a choice that they do not know, but any environment can be trained. So
the choices of ``env`` are made from what a command line names, and the preset of each beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product
from typing import Any

from hydra.core.config_store import ConfigStore

from torchrl_metra.envs import registered_envs
from torchrl_metra.recipes.settings import preset_names, preset_values

WORKERS = {
    "multi_sync": {"kind": "multi_sync", "workers": 2},
    "multi_async": {"kind": "multi_async", "workers": 1},
    "ray": {"kind": "ray", "workers": 2},
}


def register_app(name: str, settings: type, arguments: Iterable[str]) -> str:
    """Put the configuration of a command into the store.

    Args:
        name (str): of the command.
        settings (type): its settings, a dataclass.
        arguments (iterable of str): overrides, of which those of ``env`` become choices.

    Returns:
        The name of the configuration, for ``hydra.main`` or ``hydra.compose``.
    """
    _add(settings, f"metra_{name}_settings")
    given = [item.removeprefix("env=") for item in arguments if item.startswith("env=")]
    # Hydra's sweeper writes a colon as `\:`.
    given = ",".join(given).replace("\\", "").split(",")
    # Only names that say how they are built; others are mistyped.
    envs = {*registered_envs(), *(env for env in given if ":" in env)}
    for choice in envs:
        _add({"name": choice}, choice, group="env", package="env")
    defaults: list[Any] = [f"metra_{name}_settings", {"env": settings().env.name or "???"}]
    if name == "train":
        register_presets(envs)
        for preset in preset_names():
            _add({"preset": preset}, preset, group="preset", package="_global_")
        for kind, node in WORKERS.items():
            _add(node, kind, group="distributed")
        defaults += [{"preset": "paper"}, {"metra_preset": "${env}.${preset}"}]
        defaults += [{"distributed": None}]
    sweep = {"dir": "${output}", "subdir": "${hydra.job.override_dirname}"}
    # In the names of folders, where a run writes says nothing.
    job = {"name": name, "config": {"override_dirname": {"exclude_keys": ["output"]}}}
    hydra = {"run": {"dir": "${output}"}, "sweep": sweep, "job": job}
    _add({"defaults": [*defaults, "_self_"], "hydra": hydra}, f"metra_{name}")
    return f"metra_{name}"


def register_presets(envs: Iterable[str] = ()) -> None:
    """Put the presets into the group ``metra_preset``, as ``ENVIRONMENT.PRESET``.

    Args:
        envs (iterable of str, optional): environments beside the registered ones.
    """
    for env, preset in product({*registered_envs(), *envs}, preset_names()):
        values = {**preset_values(env, preset), "preset": preset}
        values["env"] = {"name": env, **values.get("env", {})}
        folder = re.sub(r"[^\w.-]+", "_", env)
        values["output"] = f"outputs/{folder}" + (f"_{preset}" if preset != "paper" else "")
        _add(values, f"{env}.{preset}", group="metra_preset", package="_global_")


def _add(node: Any, name: str, group: str | None = None, package: str | None = None) -> None:
    # A name with slashes, as gymnasium has, is a path of groups to Hydra.
    path, _, name = name.rpartition("/")
    group = "/".join(filter(None, (group, path))) or None
    ConfigStore.instance().store(name, node, group, package, provider="torchrl_metra")
