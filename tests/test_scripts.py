"""The scripts of `examples/`, each from its first to its last line, with few frames."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_metra import SkillPolicy
from torchrl_metra.envs import rendering_available
from torchrl_metra.envs.statistics import random_steps
from torchrl_metra.evaluation import rollouts

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SMALL: dict[str, Any] = {
    "preset": "debug", "total_frames": 200, "frames_per_batch": 100, "min_buffer_size": 100,
    "updates_per_step": 0.01, "batch_size": 8, "progress_bar": False,
}  # fmt: skip
FROM_PIXELS: dict[str, Any] = {
    **SMALL, "total_frames": 40, "frames_per_batch": 20, "min_buffer_size": 20, "num_envs": 1,
    "updates_per_step": 0.05, "backend": "serial", "encoder": {"channels": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _short_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated is short, and what is written goes to a folder of the test."""
    monkeypatch.setattr(rollouts, "LONGEST_EPISODE", 5)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)


def run(name: str, **settings: Any) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**settings)


def needs(*modules: str, pixels: bool = False) -> None:
    for module in modules:
        pytest.importorskip(module)
    if pixels and not rendering_available():
        pytest.skip("MuJoCo cannot draw on this machine")


def test_minimal(capsys: pytest.CaptureFixture[str]) -> None:
    run("minimal", total_frames=1_600)
    assert re.search(r"48 skills visit [1-9]\d* cells", capsys.readouterr().out)


def test_your_robot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    needs("gymnasium", "mujoco")
    measure = partial(random_steps, num_steps=100)
    monkeypatch.setattr("torchrl_metra.envs.make.random_steps", measure)
    run("your_robot", total_frames=1_600)
    assert re.search(r"[1-9]\d* cells before training, [1-9]", capsys.readouterr().out)


def test_ant(capsys: pytest.CaptureFixture[str]) -> None:
    needs("gymnasium", "mujoco")
    run("ant", **SMALL)
    assert re.findall(r"(\w+) +skills end \d", capsys.readouterr().out) == [
        "adaptive", "single", "random"
    ]  # fmt: skip


def test_half_cheetah(capsys: pytest.CaptureFixture[str]) -> None:
    needs("gymnasium", "mujoco", "matplotlib")
    run("half_cheetah", **SMALL)
    assert capsys.readouterr().out.count("ends at") == 8
    assert SkillPolicy.load("outputs/half_cheetah/skill_policy.pt").prior.dim == 8
    assert Path("outputs/half_cheetah/skills.png").stat().st_size > 10_000


def test_quadruped() -> None:
    needs("dm_control", pixels=True)
    run("quadruped", **FROM_PIXELS)
    saved = torch.load("outputs/quadruped/skill_policy.pt", weights_only=True)
    assert saved["prior"]["dim"] == 4
    assert "module.0.0.weight" in saved["encoder"]


def test_humanoid(capsys: pytest.CaptureFixture[str]) -> None:
    """The second time it goes on where the first one ended."""
    needs("dm_control", pixels=True)
    for total_frames in (20, 40):
        run("humanoid", **{**FROM_PIXELS, "total_frames": total_frames})
    printed = capsys.readouterr().out
    assert re.search(r"a new run[^$]*goes on from \S*checkpoint-0*20\n", printed), printed
    assert SkillPolicy.load("outputs/humanoid/skill_policy.pt").env_name == "humanoid"


def test_kitchen(capsys: pytest.CaptureFixture[str]) -> None:
    needs("gymnasium_robotics", pixels=True)
    run("kitchen", **FROM_PIXELS)
    assert "'kettle': 0.0" in capsys.readouterr().out
    logged = {path.stem for path in Path("outputs/kitchen/log/scalars").rglob("*.csv")}
    assert "kettle" in logged, logged


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_stands_alone_and_says_what_it_is_for(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied somewhere else it is complete; its docstring has the line that runs it."""
    source = script.read_text()
    names = "|".join(path.stem for path in SCRIPTS)
    assert not re.search(rf"^(from|import) ({names}|training|hydra)\b|sys\.path", source, re.M)
    assert f"python examples/{script.name}" in source.split('"""')[1]
    needs(*(["gymnasium", "mujoco"] if script.stem == "your_robot" else []))
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert re.search("--preset|--total-frames", capsys.readouterr().out)
