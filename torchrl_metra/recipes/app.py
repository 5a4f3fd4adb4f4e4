"""Commands whose settings Hydra composes: ``metra train``, ``downstream`` and ``finetune``.

Hydra's config groups refuse a choice that they do not know, but any environment can be trained. So the
choices of ``env`` are made from what the command line names, and the preset of each beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from torchrl_metra.envs import registered_envs
from torchrl_metra.recipes import settings as names
from torchrl_metra.recipes.downstream import run_downstream
from torchrl_metra.recipes.finetune import run_finetune
from torchrl_metra.recipes.names import suggest_names
from torchrl_metra.recipes.train import train

__all__ = ["register", "run_app"]


@dataclass(frozen=True)
class App:
    """A command that Hydra composes.

    Attributes:
        settings (type): its settings.
        run (callable): does it, given these.
        env (str): the environment's name unless another is given; ``"???"``: ask for one.
        example (str): how it is called.
    """

    settings: type
    run: Callable[[Any], Any]
    env: str
    example: str


APPS = {
    "train": App(names.Settings, train, "???", "env=ant preset=laptop total_frames=1_000_000"),
    "downstream": App(
        names.DownstreamSettings,
        run_downstream,
        names.DownstreamSettings().env.name,
        "env=half_cheetah_goal skill_policy=outputs/quickstart/skill_policy.pt",
    ),
    "finetune": App(
        names.FinetuneSettings,
        run_finetune,
        names.FinetuneSettings().env.name,
        "env=half_cheetah skill_policy=outputs/quickstart/skill_policy.pt",
    ),
}

WORKERS = {
    "multi_sync": {"kind": "multi_sync", "workers": 2},
    "multi_async": {"kind": "multi_async", "workers": 1},
    "ray": {"kind": "ray", "workers": 2},
}


def run_app(name: str, arguments: Sequence[str]) -> None:
    """Compose the settings and run.

    Args:
        name (str): of the command.
        arguments (sequence of str): overrides, and options of Hydra's such as ``--multirun``.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help(name, arguments)
        return
    config_name = register(name, arguments)

    @hydra.main(version_base="1.3", config_path=None, config_name=config_name)
    def task(config: DictConfig) -> None:
        APPS[name].run(to_settings(name, config))

    sys.argv = [f"metra {name}", *arguments]
    with suggest_names():
        task()


def register(name: str, arguments: Sequence[str] = ()) -> str:
    """Put a command's configuration into Hydra's ``ConfigStore``; returns its name there.

    Args:
        name (str): of the command.
        arguments (sequence of str, optional): overrides, of which those of ``env`` become choices.

    Examples:
        >>> from hydra import compose, initialize
        >>> overrides = ["env=gym:Walker2d-v5", "preset=laptop"]
        >>> with initialize(version_base="1.3"):
        ...     compose(register("train", overrides), overrides).env.name
        'gym:Walker2d-v5'
    """
    store, app = ConfigStore.instance(), APPS[name]

    def add(node: Any, name: str, group: str | None = None, package: str | None = None) -> None:
        store.store(name, node, group=group, package=package, provider="torchrl_metra")

    add(app.settings, f"metra_{name}_settings")
    defaults: list[Any] = [f"metra_{name}_settings", {"env": app.env}]
    for env in {*registered_envs(), *_named(arguments, "env")}:
        path, _, last = f"env/{env}".rpartition("/")
        add({"name": env}, last, group=path, package="env")
    if name == "train":
        defaults += [{"preset": "paper"}, {"metra_preset": "${env}.${preset}"}]
        defaults += [{"distributed": None}]
        for preset in names.preset_names():
            add({"preset": preset}, preset, group="preset", package="_global_")
            for env in {*registered_envs(), *_named(arguments, "env")}:
                values = {**names.preset_values(env, preset), "output": _folder(env, preset)}
                path, _, last = f"metra_preset/{env}.{preset}".rpartition("/")
                add(values, last, group=path, package="_global_")
        for kind, node in WORKERS.items():
            add(node, kind, group="distributed")
    sweep = {"dir": "${output}", "subdir": "${hydra.job.override_dirname}"}
    job = {"name": name, "config": {"override_dirname": {"exclude_keys": ["output"]}}}
    add(
        {
            "defaults": [*defaults, "_self_"],
            "hydra": {"run": {"dir": "${output}"}, "sweep": sweep, "job": job},
        },
        f"metra_{name}",
    )
    return f"metra_{name}"


def to_settings(name: str, config: DictConfig) -> Any:
    """The composed settings; for a job of a multirun, with the folder that Hydra gave it."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    settings = names.update(APPS[name].settings(), values)  # type: ignore[arg-type]
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return settings
    sweep = HydraConfig.get().sweep
    return replace(settings, output=f"{sweep.dir}/{sweep.subdir}")


def _named(arguments: Sequence[str], key: str) -> Iterator[str]:
    """The values that the command line gives to a key."""
    for argument in arguments:
        if argument.startswith(f"{key}="):
            yield from argument.removeprefix(f"{key}=").split(",")


def _folder(env: str, preset: str) -> str:
    """Where a run writes unless ``output`` says so."""
    name = re.sub(r"[^\w.-]+", "_", env)
    return f"outputs/{name}" if preset == "paper" else f"outputs/{name}_{preset}"


def _print_help(name: str, arguments: Sequence[str]) -> None:
    app = APPS[name]
    settings = app.settings()
    env = next(_named(arguments, "env"), None)
    if name == "train":
        preset = next(_named(arguments, "preset"), "paper")
        values = names.preset_values(str(env), preset)
        settings = names.update(settings, {**values, "preset": preset, "env": {"name": env}})
    print(f"metra {name} NAME=VALUE ...   for instance: metra {name} {app.example}\n")
    for key, value, comment in names.describe(settings):
        shown = {None: "null", True: "true", False: "false"}.get(value, value) \
            if isinstance(value, (bool, type(None))) else value
        print(f"  {f'{key}={shown}':36} {comment}")
    print(
        "\n--multirun runs all combinations of values such as seed=0,1,2; --cfg job prints the "
        "settings that would be used."
    )
