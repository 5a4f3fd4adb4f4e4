"""The commands of the documentation: understood and checked, not run."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from unittest.mock import patch

import pytest
from pages import ROOT

from torchrl_metra.recipes import OBJECTIVES, evaluate, summarize

Command = Callable[[list[str]], None]


def metra(arguments: list[str]) -> None:
    from torchrl_metra.recipes.command import COMMANDS as known

    name, *given = arguments
    assert name in known
    if name in ("train", "downstream", "finetune"):
        compose(name, given)
    elif name in ("evaluate", "summarize"):
        parse({"evaluate": evaluate.main, "summarize": summarize.main}[name], given)
    else:
        assert not given


def compose(name: str, arguments: list[str]) -> None:
    """The settings of a run; of several, with each value once."""
    app = pytest.importorskip("torchrl_metra.recipes.app")
    overrides = re.sub("--(multirun|help|cfg job)", "", " ".join(arguments)).split()
    values = {item: [item] for item in overrides}
    if "--multirun" in arguments:
        for item in filter(lambda item: "[" not in item, overrides):
            key, _, given = item.partition("=")
            values[item] = [f"{key}={value}" for value in given.split(",")]
    for job in range(max(map(len, values.values()), default=1)):
        settings = app.compose(name, [each[min(job, len(each) - 1)] for each in values.values()])
        assert getattr(settings, "objective", "metra") in OBJECTIVES


def parse(main: Callable[[Sequence[str]], object], arguments: list[str]) -> None:
    """A command, until it has parsed its arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> None:
        original(parser, given)
        raise Parsed

    with patch.object(argparse.ArgumentParser, "parse_args", parse_args), suppress(Parsed):
        main(arguments)
        raise AssertionError("it parses no arguments")


class Parsed(Exception):
    pass


def python(arguments: list[str]) -> None:
    script, *given = arguments
    path = ROOT / script
    if "argparse" not in path.read_text():
        assert not given, f"{script} takes no arguments"
        return
    folders = [str(path.parent), *sys.path]
    with patch.object(sys, "argv", arguments), patch.object(sys, "path", folders):
        parse(lambda _: runpy.run_path(str(path), run_name="__main__"), given)


def make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        rule = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(rule, makefile, re.MULTILINE), f"Makefile has no {argument!r}"


def pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = " ".join(sum(extras.values(), project["dependencies"]))
    for argument in re.sub(r"--\S*index-url \S+|-e\b|-U\b", "", " ".join(arguments[1:])).split():
        package, chosen = re.fullmatch(r"([\w.-]+)(?:\[(.*)\])?", argument).groups()
        assert package == "." or package in known, f"not in pyproject.toml: {package}"
        assert set((chosen or "").split(",")) <= {"", *extras}, f"no such extra: {argument}"


def only(*patterns: str) -> Command:
    """Commands of others, with arguments of these forms."""

    def check(arguments: list[str]) -> None:
        assert re.fullmatch("|".join(patterns), shlex.join(arguments))

    return check


COMMANDS: dict[str, Command] = {
    "metra": metra,
    "make": make,
    "pip": pip,
    "python": python,
    "pre-commit": only("install"),
    "ray": only("start --head --port=[0-9]+", r"start --address=\S+:[0-9]+", "stop"),
    "apt-get": only("update", "install [a-z0-9 .+-]+"),
    "git": only(r"clone https://\S+"),
    "cd": only(r"[\w-]+"),
    "export": only(r"[A-Z_]+=\S+"),
}


def read_commands(script: str) -> list[list[str]]:
    """The commands of a script, as bash reads it: each is a function that prints its arguments."""
    prints = (f'{name}() {{ printf "%s\\0" {name} "$@" ""; }}' for name in COMMANDS)
    lines = ["PATH=", "set -e", *prints, script.replace(".venv/bin/", "")]
    bash = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert bash.returncode == 0, f"unknown command: {bash.stderr}"
    return [command.split("\0") for command in bash.stdout.split("\0\0")[:-1]]


def check_commands(script: str) -> None:
    for name, *arguments in read_commands(script):
        try:
            COMMANDS[name](arguments)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{shlex.join([name, *arguments])}: {error}") from error
