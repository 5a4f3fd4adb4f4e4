"""The commands of the documentation: understood and checked, not run."""

from __future__ import annotations

import argparse
import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from torchrl_metra.evaluation.__main__ import _parse as parse_evaluation

import torchrl_metra
from torchrl_metra import SkillPrior
from torchrl_metra.envs import registered_envs

EXAMPLES = ROOT / "examples"


def make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        rule = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(rule, makefile, re.MULTILINE), f"Makefile has no {argument!r}"


def pip(arguments: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(
        re.findall(
            r'"([\w-]+)[^"]*"', text.partition("\ndependencies = ")[2].partition("\n[tool")[0]
        )
    )
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        option = r"--?(e|editable|U|upgrade|index-url|extra-index-url)|https://\S+"
        if re.fullmatch(option, argument):
            continue
        package, chosen = re.match(r"([\w.-]+)(?:\[([\w,-]*)\])?", argument).groups()
        assert package in known | {".", "torchrl-metra"}, f"not in pyproject.toml: {package}"
        if package in (".", "torchrl-metra"):
            for extra in filter(None, (chosen or "").split(",")):
                assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"no extra {extra!r}"


def python(arguments: list[str]) -> None:
    match arguments:
        case ["-m", "torchrl_metra.evaluation", *given]:
            parse_evaluation(given)
        case ["-m", "pip", *given]:
            pip(given)
        case [script, *given] if script.endswith(".py"):
            source = (ROOT / script).read_text()
            if config := re.search(r'config_name="(\w+)"', source):
                compose(config[1], given)
            elif "argparse" in source:
                parse(ROOT / script, given)
            else:
                assert not given, f"{script} takes no arguments"
        case _:
            pytest.fail(f"unknown: python {shlex.join(arguments)}")


def compose(name: str, arguments: list[str]) -> None:
    """The settings of an example; of several values, each one."""
    hydra = pytest.importorskip("hydra")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    multirun = "--multirun" in arguments
    choices = []
    for override in OverridesParser.create().parse_overrides(
        [argument for argument in arguments if argument != "--multirun"]
    ):
        key, values = override.get_key_element(), [override.get_value_string()]
        if override.is_sweep_override():
            assert multirun, f"{override.input_line} needs --multirun"
            values = list(override.sweep_string_iterator())
        choices.append([f"{key}={value}" for value in values])
    for job in range(max(map(len, choices), default=1)):
        overrides = [values[min(job, len(values) - 1)] for values in choices]
        with hydra.initialize_config_dir(str(EXAMPLES / "conf"), version_base="1.3"):
            check_settings(hydra.compose(name, overrides=overrides))


def check_settings(config: Any) -> None:
    """Names that Hydra does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        from objectives import OBJECTIVES
    known: dict[str, tuple[str, ...]] = {
        "env": tuple(registered_envs()),
        "objective": tuple(OBJECTIVES),
        "device": ("cpu", "cuda"),
        "logger": ("csv", "tensorboard", "wandb"),
        "compile": (True, False),
        "cudagraphs": (True, False),
        "autocast": (None, "bfloat16"),
        "backend": (None, "envpool", "serial", "parallel"),
    }
    for key, values in known.items():
        if key in config:
            assert config[key] in values, f"{key}={config[key]}"
    if "skill" in config:
        assert issubclass(getattr(torchrl_metra, config.skill.kind), SkillPrior)


class Parsed(Exception):
    pass


def parse(script: Path, arguments: list[str]) -> None:
    """A script, until it has parsed its arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser) -> None:
        original(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script.name, *arguments])
        patch.syspath_prepend(str(script.parent))
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def only(*patterns: str) -> Callable[[list[str]], None]:
    """Commands of others, with arguments of these forms."""

    def check(arguments: list[str]) -> None:
        found = shlex.join(arguments)
        assert any(re.fullmatch(pattern, found) for pattern in patterns), f"unknown: {found}"

    return check


COMMANDS: dict[str, Callable[[list[str]], None]] = {
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


def read_commands(script: str) -> Iterator[list[str]]:
    """The commands of a script; those in loops, with each value."""
    loops: dict[str, list[str]] = {}
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        for is_end, words in itertools.groupby(lexer, lambda word: word in (";", "&&")):
            match [] if is_end else list(words):
                case [] | ["do"] | ["done"]:
                    pass
                case ["for", variable, "in", *values]:
                    loops[f"${variable}"] = values
                case [*command]:
                    used = [name for name in loops if name in command]
                    for values in itertools.product(*(loops[name] for name in used)):
                        value_of = dict(zip(used, values, strict=True))
                        yield [value_of.get(word, word) for word in command]


def check_commands(script: str) -> None:
    for command in read_commands(script):
        while re.match(r"[A-Z_]+=", command[0]):  # variables of the environment
            command = command[1:]
        program = command[0].removeprefix(".venv/bin/")
        assert program in COMMANDS, f"unknown: {shlex.join(command)}"
        try:
            COMMANDS[program](command[1:])
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{shlex.join(command)}: {error}") from error
