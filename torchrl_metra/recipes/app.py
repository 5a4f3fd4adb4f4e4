"""Commands whose settings Hydra composes: ``metra train``, ``downstream`` and ``finetune``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from torchrl_metra.recipes.downstream import run_downstream
from torchrl_metra.recipes.finetune import run_finetune
from torchrl_metra.recipes.names import suggest_names
from torchrl_metra.recipes.settings import (
    DownstreamSettings,
    FinetuneSettings,
    Settings,
    describe,
    preset_values,
    shown,
    update,
)
from torchrl_metra.recipes.store import named, register_app
from torchrl_metra.recipes.train import train

__all__ = ["compose", "run_app"]


@dataclass(frozen=True)
class App:
    """A command that Hydra composes.

    Attributes:
        settings (type): its settings.
        run (callable): does it, given these.
        env (str): the environment unless another is given; ``"???"``: ask for one.
        example (str): arguments to try.
    """

    settings: type
    run: Callable[[Any], Any]
    env: str
    example: str


APPS = {
    "train": App(Settings, train, "???", "env=ant preset=laptop total_frames=1_000_000"),
    "downstream": App(
        DownstreamSettings, run_downstream, "half_cheetah_goal", "env=ant_multi_goals num_envs=32"
    ),
    "finetune": App(FinetuneSettings, run_finetune, "half_cheetah", "env=ant pretrained=false"),
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
    app = APPS[name]

    @hydra.main(
        version_base="1.3",
        config_path=None,
        config_name=register_app(name, app.settings, app.env, arguments),
    )
    def task(config: DictConfig) -> None:
        try:
            app.run(_in_own_folder(_to_settings(app, config)))
        except ImportError as error:
            # A missing extra: Hydra would hide the line that installs it below a traceback.
            raise SystemExit(str(error)) from None

    # Hydra wants all overrides before the first option, or all after the last.
    ordered = sorted(arguments, key=lambda given: given.startswith("-") or "=" not in given)
    sys.argv = [f"metra {name}", *ordered]
    with suggest_names():
        task()


def compose(name: str, overrides: Sequence[str]) -> Any:
    """The settings that a command would run with.

    Args:
        name (str): of the command.
        overrides (sequence of str): such as ``"env=ant"``.

    Examples:
        >>> compose("train", ["env=gym:Walker2d-v5", "preset=laptop"]).num_cells
        [256, 256]
    """
    app = APPS[name]
    config_name = register_app(name, app.settings, app.env, overrides)
    with hydra.initialize(version_base="1.3"), suggest_names():
        return _to_settings(app, hydra.compose(config_name, overrides=list(overrides)))


def _to_settings(app: App, config: DictConfig) -> Any:
    return update(app.settings(), OmegaConf.to_container(config, resolve=True))


def _in_own_folder(settings: Any) -> Any:
    """The settings; of a job of a multirun, with the folder that Hydra gave it."""
    if HydraConfig.get().mode is not RunMode.MULTIRUN:
        return settings
    sweep = HydraConfig.get().sweep
    return replace(settings, output=f"{sweep.dir}/{sweep.subdir}")


def _print_help(name: str, arguments: Sequence[str]) -> None:
    app = APPS[name]
    settings = app.settings()
    for env in named(arguments, "env")[:1]:
        settings = update(settings, {"env": {"name": env}})
    if name == "train":
        preset = (named(arguments, "preset") or ["paper"])[0]
        try:
            values = preset_values(str(settings.env.name), preset)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        settings = update(settings, {**values, "preset": preset})
    print(f"metra {name} NAME=VALUE ...\n\nfor instance: metra {name} {app.example}\n")
    for key, value, comment in describe(settings):
        print(f"  {f'{key}={shown(value)}':38}  {comment}")
    print(
        "\nOptions of Hydra: --multirun runs all combinations of values such as seed=0,1,2; "
        "--cfg job prints the settings that would be used."
    )
