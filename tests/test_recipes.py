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

from torchrl_metra import (
    CICLoss,
    CSDLoss,
    CSFLoss,
    DADSLoss,
    DIAYNLoss,
    LSDLoss,
    METRALoss,
    OneHot,
    RNDBaseline,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    StandardNormal,
    UnitSphere,
    make_env,
)
from torchrl_metra.envs import rendering_available
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
    for name in ("skills.png", "coverage.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    curve = (tmp_path / "coverage.csv").read_text().splitlines()
    assert curve[0] == "frames,seconds,policy_coverage"
    assert curve[1].startswith("0,")
    assert curve[-1].startswith("4800,")
    explained = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    logged = {path.stem for path in (tmp_path / "log" / "scalars").iterdir()}
    assert {"dual", "loss_qvalue", "policy_coverage", "total_coverage"} <= logged
    assert {name for name in logged if f"`{name}`" not in explained} == set()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["seed"] == 3
    assert summary["coverage_after"] == results["coverage_after"]
    assert {"command", "commit", "hardware", "torch"} <= summary.keys()
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    assert (policy.env_name, policy.constraint_norm) == ("point", "l2")
    env = make_env("point", 48).append_transform(SkillPrimer(policy.prior))
    rollouts = rollout_skills(env, policy.actor, policy.prior.evaluation_skills(48))
    assert coverage(rollouts["next", "position"]) == results["coverage_after"]


def test_without_checkpoints_an_interrupted_run_is_evaluated(training: Any, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    overrides = [f"output={tmp_path}", "total_frames=1_000_000", "checkpoint.interval=null"]
    config = compose("point", *overrides)
    timer = threading.Timer(10, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        results = training.train(config)
    finally:
        timer.cancel()
    assert 0 < results["frames"] < 1_000_000
    assert (tmp_path / "skills.png").exists()
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


OBJECTIVES = {
    "metra": METRALoss,
    "l2": METRALoss,
    "csd": CSDLoss,
    "lsd": LSDLoss,
    "diayn": DIAYNLoss,
    "dads": DADSLoss,
    "cic": CICLoss,
    "csf": CSFLoss,
    "rnd": RNDBaseline,
}


@pytest.mark.parametrize("kind", ["UnitSphere", "OneHot"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(training: Any, tmp_path: Path, objective: str, kind: str) -> None:
    config = compose(
        "point", f"objective={objective}", f"skill.kind={kind}", f"output={tmp_path}",
        "total_frames=1600", "optim_steps_per_batch=3", "evaluation_episodes=4", "num_cells=[16]",
    )  # fmt: skip
    parts = training.build(config)
    skill_loss = parts.trainer.skill_loss
    assert type(skill_loss) is OBJECTIVES[objective]
    assert isinstance(skill_loss.prior, OneHot) == (kind == "OneHot")
    before = [parameter.clone() for parameter in skill_loss.parameters()]
    parts.trainer.train()
    after = skill_loss.parameters()
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("objective", ["csd", "dads", "lsd"])
def test_a_run_of_another_objective_is_recorded(
    training: Any, tmp_path: Path, objective: str
) -> None:
    """Without φ or without a temporal constraint, a run shows what there is to show."""
    config = compose(
        "point", f"objective={objective}", f"output={tmp_path}", "total_frames=1600",
        "optim_steps_per_batch=1", "evaluation_episodes=4", "num_cells=[16]",
    )  # fmt: skip
    results = training.train(config)
    assert (tmp_path / "skills.png").stat().st_size > 10_000
    assert results["coverage_after"] > 0
    assert results["total_coverage"] > 0
    assert ("skill_alignment" in results) == (objective != "dads")
    assert "pairs_beyond" not in results
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    assert policy.constraint_norm is None
    assert (policy.encoder is None) == (objective == "dads")


def test_normal_skills_for_those_that_want_them(training: Any) -> None:
    make_prior = __import__("objectives").make_prior
    assert make_prior(compose("point", "objective=diayn")) == StandardNormal(2)
    assert make_prior(compose("point", "objective=lsd")) == UnitSphere(2)
    assert make_prior(compose("half_cheetah", "objective=dads")) == OneHot(16)


def test_objectives_that_cannot_be(training: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown objective 'visr', expected .*'rnd'"):
        training.build(compose("point", "objective=visr"))
    with pytest.raises(ValueError, match=r"objective=dads models vectors.*'point_pixels'.*'metra'"):
        training.build(compose("point_pixels", "objective=dads"))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("point", []),
        ("half_cheetah", []),
        ("half_cheetah", ["+experiment=quickstart"]),
        ("ant", []),
        ("ant", ["+experiment=ant_cpu"]),
        *[
            (name, overrides)
            for name in ("quadruped", "humanoid", "kitchen")
            for overrides in ([], ["+experiment=debug"])
        ],
        ("point_pixels", []),
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
    for name, dim in (("quadruped", 4), ("humanoid", 2)):
        config = compose(name)
        assert config.skill == {"kind": "UnitSphere", "dim": dim}
        assert (config.optim_steps_per_batch, config.frames_per_batch) == (200, 1_600)
        assert config.buffer_size == 300_000
    config = compose("kitchen")
    assert config.skill == {"kind": "OneHot", "dim": 24}
    assert (config.optim_steps_per_batch, config.frames_per_batch) == (100, 400)
    assert config.sac == {"alpha_init": 0.01, "fixed_alpha": True}
    assert config.buffer_size == 100_000
    assert config.encoder == {"channels": 48, "shared_encoder": False}
    assert config.pixels == {"resolution": 64, "frames": 3, "quality": "fast"}


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
    for name in (
        "ant", "half_cheetah", "point", "quadruped", "humanoid", "kitchen", "point_pixels"
    ):  # fmt: skip
        assert callable(__import__(name).main)
        sys.modules.pop(name)


@pytest.mark.parametrize(
    "switches",
    [["distributed=multi_async"], ["autocast=bfloat16", "compile={backend: eager}"]],
    ids=["asynchronous", "compiled+bfloat16"],
)
def test_switches(training: Any, tmp_path: Path, switches: list[str]) -> None:
    config = compose("point", f"output={tmp_path}", "total_frames=4800", *switches)
    assert training.train(config)["frames"] >= 4_800


SMALL = [
    "total_frames=1600", "frames_per_batch=400", "min_buffer_size=400", "optim_steps_per_batch=1",
    "evaluation_episodes=3", "num_envs=4", "batch_size=8", "num_cells=[8]", "buffer_size=1500",
]  # fmt: skip


@pytest.mark.parametrize(
    "switches",
    [
        ["storage=cpu", "pixels.frames=1"],
        ["storage=disk", "encoder.shared_encoder=true", "encoder.channels=2"],
    ],
    ids=["in memory", "on disk, shared encoder"],
)
def test_a_run_from_pixels(
    training: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.chdir(tmp_path)
    config = compose("point_pixels", f"output={tmp_path}", *SMALL, *switches)
    config.pixels.resolution = 32
    assert training.train(config)["frames"] == 1_600
    for name in ("skills.png", "coverage.png", "skills.mp4"):
        assert (tmp_path / name).stat().st_size > 1_000
    assert any((tmp_path / "disk").rglob("*.memmap")) == ("storage=disk" in switches)
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    assert policy.architecture.shared_encoder == ("encoder.shared_encoder=true" in switches)


@pytest.mark.parametrize("name", ["quadruped", "kitchen"])
def test_debug_run_of_a_simulator(training: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip({"quadruped": "dm_control", "kitchen": "gymnasium_robotics"}[name])
    if not rendering_available():
        pytest.skip("MuJoCo cannot draw on this machine")
    overrides = ["+experiment=debug", f"output={tmp_path}", "backend=serial", "total_frames=400"]
    results = training.train(compose(name, *overrides, "evaluation_episodes=2"))
    assert results["frames"] == 400
    assert (tmp_path / "skills.mp4").stat().st_size > 1_000
    assert (tmp_path / "skills.png").exists()
