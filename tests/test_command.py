"""The command ``metra``: what it prints, what it refuses and how, what it runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchrl_metra.envs import registered_envs
from torchrl_metra.recipes.command import COMMANDS, main
from torchrl_metra.recipes.objectives import OBJECTIVES

pytest.importorskip("hydra")
Metra = Callable[..., SimpleNamespace]
#: A run of the point in no time.
TINY = [
    "env=point", "env.max_steps=20", "preset=debug", "total_frames=400", "num_cells=[8]",
    "evaluation_episodes=2", "updates_per_step=0.0025", "progress_bar=false",
    "checkpoint.interval=null",
]  # fmt: skip


@pytest.fixture
def metra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Metra:
    """Runs the command in this process; gives what it prints, and how it ends."""
    # Hydra closes the handlers of all libraries, and absl's closes what pytest captures with.
    monkeypatch.setattr(logging, "shutdown", lambda *handlers: None)

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["metra", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


def test_what_there_is(metra: Metra) -> None:
    said = metra()
    assert said == metra("--help")
    assert said.code == 0
    assert all(f"  {name} " in said.out for name in COMMANDS)
    for name, expected in (("envs", registered_envs()), ("objectives", OBJECTIVES)):
        rows = metra(name).out.splitlines()
        assert [row.split()[0] for row in rows[: len(expected)]] == list(expected)
        assert all(len(row.split()) > 1 for row in rows[: len(expected)])


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("envs", "objectives")])
def test_each_command_explains_itself(metra: Metra, name: str) -> None:
    said = metra(name, "--help")
    assert not said.code
    assert f"metra {name}" in said.out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trian"], "did you mean 'train'?"),
        (["train"], "env"),
        (["train", "env=pont"], "did you mean 'env=point'?"),
        (["train", "-m", "env=point", "metra.slak=1,2"], "did you mean 'metra.slack'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(metra: Metra, given: list[str], message: str) -> None:
    said = metra(*given)
    # Python prints a message that a SystemExit carries.
    printed = f"{said.out}\n{said.err}\n{said.code}"
    assert said.code not in (0, None)
    assert message in printed
    assert "Traceback" not in printed


def test_what_only_the_run_can_refuse(metra: Metra, tmp_path: Path) -> None:
    said = metra("train", *TINY, f"output={tmp_path}", "objective=mettra")
    assert said.code not in (0, None)
    assert "did you mean 'metra'?" in f"{said.err}\n{said.code}"


def test_a_missing_extra_is_named(
    metra: Metra, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = metra("train", *TINY, "logging=wandb", f"output={tmp_path}")
    assert "pip install 'torchrl-metra[logging]'" in said.code
    assert "Traceback" not in said.err


def test_a_multirun_its_table_and_a_report(metra: Metra, tmp_path: Path) -> None:
    """Every job writes into a folder of its own; runs of other seeds share a row of the table."""
    pytest.importorskip("matplotlib")
    # Options may stand anywhere.
    said = metra("train", *TINY, "--multirun", "seed=0,1", f"output={tmp_path}")
    assert said.code == 0, said.err
    files = sorted(tmp_path.rglob("summary.json"))
    assert len({file.parent for file in files}) == 2
    for seed, file in enumerate(files):
        assert f"seed={seed}" in file.parent.name
        assert json.loads(file.read_text())["config"]["seed"] == seed
        assert (file.parent / "skill_policy.pt").exists()
        assert (file.parent / "log" / "scalars" / "dual.csv").exists()
    header, _, row = metra("summarize", str(tmp_path)).out.splitlines()
    assert header.startswith("| seeds | coverage_before | coverage_after |")
    assert row.startswith("| 2 | ")

    run = files[0].parent
    assert "policy_coverage" in metra("evaluate", str(run), "--episodes=2", "--goals=2").out
    assert (run / "report" / "report.html").exists()


def test_settings_are_printed(metra: Metra) -> None:
    printed = metra("train", *TINY, "--cfg", "job").out
    assert "total_frames: 400" in printed
    assert "output: outputs/point_debug" in printed
