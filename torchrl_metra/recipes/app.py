"""Commands whose settings Hydra composes: ``metra train``, ``downstream`` and ``finetune``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from torchrl_metra.recipes import settings as known
from torchrl_metra.recipes.names import suggest_names
from torchrl_metra.recipes.store import register_app
from torchrl_metra.recipes.tasks import run_downstream, run_finetune
from torchrl_metra.recipes.train import train

# Of each command: its settings, what runs them, and arguments to try.
APPS: dict[str, tuple[type, Callable[[Any], Any], str]] = {
    "train": (known.Settings, train, "env=ant preset=laptop total_frames=1_000_000"),
    "downstream": (known.DownstreamSettings, run_downstream, "env=ant_multi_goals num_envs=32"),
    "finetune": (known.FinetuneSettings, run_finetune, "env=ant pretrained=false"),
}


def run_app(name: str, arguments: Sequence[str]) -> None:
    """Compose the settings and run.

    Args:
        name (str): of the command.
        arguments (sequence of str): overrides, and options of Hydra's such as ``--multirun``.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help(name, [given for given in arguments if "=" in given])
        return
    kind, run, _ = APPS[name]

    @hydra.main(
        version_base="1.3", config_path=None, config_name=register_app(name, kind, arguments)
    )
    def task(config: DictConfig) -> None:
        settings = known.update(kind(), OmegaConf.to_container(config, resolve=True))
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            # The folder that Hydra gives this job.
            sweep = HydraConfig.get().sweep
            settings = replace(settings, output=f"{sweep.dir}/{sweep.subdir}")
        try:
            run(settings)
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
    kind, *_ = APPS[name]
    config_name = register_app(name, kind, overrides)
    with hydra.initialize(version_base="1.3"), suggest_names():
        config = hydra.compose(config_name, overrides=list(overrides))
    return known.update(kind(), OmegaConf.to_container(config, resolve=True))


def _print_help(name: str, overrides: Sequence[str]) -> None:
    kind, _, example = APPS[name]
    try:
        settings = compose(name, overrides) if overrides else kind()
    except ConfigCompositionException as error:
        raise SystemExit(str(error)) from None
    print(f"metra {name} NAME=VALUE ...\n\nfor instance: metra {name} {example}\n")
    for key, value, comment in known.describe(settings):
        print(f"  {f'{key}={known.shown(value)}':38}  {comment}")
    print(
        "\nOptions of Hydra: --multirun runs all combinations of values such as seed=0,1,2; "
        "--cfg job prints the settings that would be used."
    )
