from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_metra import SkillPolicy, SkillPrimer, SkillPrior, make_env
from torchrl_metra.evaluation import coverage, rollout_skills

hydra = pytest.importorskip("hydra")
OmegaConf = pytest.importorskip("omegaconf").OmegaConf
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return __import__("training")


def compose(name: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(EXAMPLES / "conf"), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


def test_a_run_leaves_pictures_curve_policy_and_record(training: Any, tmp_path: Path) -> None:
    config = compose("point", f"output={tmp_path}", "total_frames=4800", "seed=3")
    results = training.train(config)
    for name in ("positions.png", "latents.png", "coverage.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    curve = (tmp_path / "coverage.csv").read_text().splitlines()
    assert curve[0] == "frames,seconds,policy_coverage"
    assert curve[1].startswith("0,")
    assert curve[-1].startswith("4800,")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["seed"] == 3
    assert summary["coverage_after"] == results["coverage_after"]
    assert {"command", "commit", "hardware", "torch"} <= summary.keys()
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    env = make_env("point", 48).append_transform(SkillPrimer(policy.prior))
    rollouts = rollout_skills(env, policy.actor, policy.prior.grid(48))
    assert coverage(rollouts["next", "position"]) == results["coverage_after"]


def test_an_interrupted_run_is_evaluated_all_the_same(training: Any, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    config = compose("point", f"output={tmp_path}", "total_frames=1_000_000")
    threading.Timer(15, os.kill, (os.getpid(), signal.SIGTERM)).start()
    results = training.train(config)
    assert 0 < results["frames"] < 1_000_000
    assert (tmp_path / "positions.png").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_same_seed_same_result(training: Any, tmp_path: Path) -> None:
    weights = []
    for run, seed in enumerate((0, 0, 1)):
        config = compose("point", f"output={tmp_path}/{run}", "total_frames=3200", f"seed={seed}")
        training.train(config)
        policy = SkillPolicy.load(tmp_path / str(run) / "skill_policy.pt")
        weights.append(torch.cat([p.flatten() for p in policy.actor.parameters()]))
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("point", []),
        ("half_cheetah", []),
        ("half_cheetah", ["+experiment=quickstart"]),
        ("ant", []),
        ("ant", ["+experiment=ant_cpu"]),
    ],
)
def test_settings_are_complete(name: str, overrides: list[str]) -> None:
    config = compose(name, *overrides)
    assert not OmegaConf.missing_keys(config)
    assert config.env == name
    SkillPrior.from_config(config.skill)


def test_the_papers_settings() -> None:
    config = compose("half_cheetah")
    assert config.skill == {"kind": "OneHot", "dim": 16}
    assert list(config.num_cells) == [1024, 1024]
    assert config.learning_rate == {"lr": 1e-4}
    assert config.metra == {"constraint_norm": "rms", "slack": 1e-3, "dual_init": 30.0}
    assert compose("ant").skill == {"kind": "UnitSphere", "dim": 2}


def test_mistyped_setting_is_refused() -> None:
    with pytest.raises(hydra.errors.ConfigCompositionException, match="batchsize"):
        compose("ant", "batchsize=3")


def test_missing_logger_names_the_extra(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"wandb.*torchrl-metra\[logging\]"):
        training.train(compose("point", f"output={tmp_path}", "logger=wandb"))


def test_scripts_have_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("ant", "half_cheetah", "point"):
        assert callable(__import__(name).main)
        sys.modules.pop(name)


@pytest.mark.parametrize(
    "switches",
    [["asynchronous=true"], ["autocast=bfloat16", "compile={backend: aot_eager}"]],
    ids=["asynchronous", "compiled+bfloat16"],
)
def test_switches(training: Any, tmp_path: Path, switches: list[str]) -> None:
    config = compose("point", f"output={tmp_path}", "total_frames=4800", *switches)
    assert training.train(config)["frames"] >= 4_800
