"""The command ``metra``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_metra._extras import require
from torchrl_metra._names import unknown

__all__ = ["main"]


@dataclass(frozen=True)
class Command:
    """One of the things that ``metra`` does.

    Attributes:
        summary (str): what it does, in a line.
        run (callable): does it, given the arguments that follow the command's name.
    """

    summary: str
    run: Callable[[Sequence[str]], None]


def _hydra(name: str) -> Callable[[Sequence[str]], None]:
    """A command whose arguments are settings, which Hydra composes."""

    def run(arguments: Sequence[str]) -> None:
        require("hydra", extra="run")
        importlib.import_module("torchrl_metra.recipes.app").run_app(name, arguments)

    return run


def _evaluate(arguments: Sequence[str]) -> None:
    importlib.import_module("torchrl_metra.recipes.evaluate").main(arguments)


def _summarize(arguments: Sequence[str]) -> None:
    importlib.import_module("torchrl_metra.recipes.summarize").main(arguments)


def _list_envs(arguments: Sequence[str]) -> None:
    from torchrl_metra.envs import registered_envs

    _print_table((name, entry.summary) for name, entry in registered_envs().items())
    print(
        "\nAny other one:\n"
        "  gym:Walker2d-v5         a task of gymnasium\n"
        "  dm_control:walker-run   a task of DeepMind's control suite\n"
        "  envpool:Ant-v5          a task of EnvPool, in C++ threads\n"
        "  package.module:make_env a function that builds one environment"
    )


def _list_objectives(arguments: Sequence[str]) -> None:
    from torchrl_metra.recipes.objectives import OBJECTIVES

    _print_table((name, objective.summary) for name, objective in OBJECTIVES.items())


def _print_table(rows: Any) -> None:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        print(f"  {name:{width}}  {summary}")


COMMANDS = {
    "train": Command("learn skills: metra train env=ant preset=laptop", _hydra("train")),
    "evaluate": Command("measure skills and write a report: metra evaluate RUN_OR_FILE", _evaluate),
    "downstream": Command("a task with frozen skills, or without", _hydra("downstream")),
    "finetune": Command("an environment's own reward, from a skill", _hydra("finetune")),
    "summarize": Command("one table of many runs: metra summarize FOLDER ...", _summarize),
    "envs": Command("the environments there are", _list_envs),
    "objectives": Command("the objectives there are", _list_objectives),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the first argument names.

    Args:
        arguments (sequence of str, optional): by default those of the command line.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("metra COMMAND ...: skills without rewards.\n")
        _print_table((name, command.summary) for name, command in COMMANDS.items())
        print("\nmetra COMMAND --help says more of each.")
        return
    if name not in COMMANDS:
        raise SystemExit(unknown("command", name, COMMANDS))
    try:
        COMMANDS[name].run(rest)
    except ImportError as error:
        # A missing extra: its message is the line that installs it.
        raise SystemExit(str(error)) from None
