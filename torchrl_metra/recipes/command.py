"""The command ``metra``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence

from torchrl_metra._checks import unknown
from torchrl_metra._extras import require

COMMANDS = {
    "train": "learn skills: metra train env=ant preset=laptop",
    "evaluate": "measure skills and write a report: metra evaluate RUN_OR_FILE",
    "downstream": "a task with frozen skills, or without",
    "finetune": "an environment's own reward, from a skill",
    "summarize": "one table of many runs: metra summarize FOLDER ...",
    "envs": "the environments there are",
    "objectives": "the objectives there are",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the first argument names.

    Args:
        arguments (sequence of str, optional): by default those of the command line.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("metra COMMAND ...: skills without rewards.\n")
        _print_table(COMMANDS.items())
        print("\nmetra COMMAND --help says more of each.")
    elif name in COMMANDS:
        try:
            _run(name, rest)
        except ImportError as error:
            # A missing extra: its message is the line that installs it.
            raise SystemExit(str(error)) from None
    else:
        raise SystemExit(unknown("command", name, COMMANDS))


def _run(name: str, arguments: Sequence[str]) -> None:
    # Imported here, as each takes its time, and some take an extra.
    if name == "envs":
        from torchrl_metra.envs import registered_envs

        _print_table((name, entry.summary) for name, entry in registered_envs().items())
        print(
            "\nAny other one:\n"
            "  mujoco:robot.xml        a MuJoCo model\n"
            "  gym:Walker2d-v5         a task of gymnasium\n"
            "  dm_control:walker-run   a task of DeepMind's control suite\n"
            "  envpool:Ant-v5          a task of EnvPool, in C++ threads\n"
            "  package.module:make_env a function that builds one environment"
        )
    elif name == "objectives":
        from torchrl_metra.recipes.objectives import OBJECTIVES

        _print_table((name, objective.summary) for name, objective in OBJECTIVES.items())
    elif name in ("evaluate", "summarize"):
        importlib.import_module(f"torchrl_metra.recipes.{name}").main(arguments)
    else:
        require("hydra", extra="run")
        importlib.import_module("torchrl_metra.recipes.app").run_app(name, arguments)


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        print(f"  {name:{width}}  {summary}")
