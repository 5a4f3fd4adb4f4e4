"""Training runs from the first to the last line, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from functools import partial
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
    EpisodeStorage,
    GenDaLoss,
    LSDLoss,
    METRALoss,
    OneHot,
    RNDBaseline,
    SkillPolicy,
    SkillPrimer,
    make_env,
    make_metra,
)
from torchrl_metra.envs import rendering_available
from torchrl_metra.evaluation import coverage, rollout_skills
from torchrl_metra.recipes import build, make_settings, train

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
SMALL = {
    "total_frames": 1_600, "frames_per_batch": 400, "min_buffer_size": 400,
    "updates_per_step": 0.0025, "evaluation_episodes": 3, "num_envs": 4, "batch_size": 16,
    "num_cells": [8], "buffer_size": 1_500, "progress_bar": False,
}  # fmt: skip


def run(name: str, output: Path, **settings: Any) -> dict[str, Any]:
    env = {"name": name, "max_steps": 50}
    return train(make_settings(env, output=str(output), **SMALL | settings))


def test_a_run_leaves_pictures_curve_policy_and_record(tmp_path: Path) -> None:
    results = run("point", tmp_path, evaluation_episodes=48, seed=3)
    for name in ("skills.png", "coverage.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    curve = (tmp_path / "coverage.csv").read_text().splitlines()
    assert curve[0] == "frames,seconds,policy_coverage"
    assert curve[1].startswith("0,")
    assert curve[-1].startswith("1600,")
    explained = (ROOT / "docs" / "metrics.md").read_text()
    logged = {path.stem for path in (tmp_path / "log" / "scalars").iterdir()}
    assert {"dual", "loss_qvalue", "total_coverage"} <= logged
    assert {name for name in logged if f"`{name}`" not in explained} == set()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["seed"] == 3
    assert summary["coverage_after"] == results["coverage_after"]
    assert {"command", "commit", "hardware", "torch"} <= summary.keys()
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    assert (policy.env_name, policy.constraint_norm) == ("point", "l2")
    env = make_env("point", 48, max_steps=50).append_transform(SkillPrimer(policy.prior))
    rollouts = rollout_skills(env, policy, policy.prior.evaluation_skills(48))
    assert coverage(rollouts["next", "position"]) == results["coverage_after"]


def test_without_checkpoints_an_interrupted_run_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    collected = threading.Event()

    def interrupt() -> None:
        collected.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    log_scalar = sys.modules["torchrl_metra.recipes.records"].RunLogger.log_scalar

    def notice(*args: Any, **kwargs: Any) -> None:
        collected.set()
        log_scalar(*args, **kwargs)

    monkeypatch.setattr("torchrl_metra.recipes.records.RunLogger.log_scalar", notice)
    thread = threading.Thread(target=interrupt)
    thread.start()
    results = run("point", tmp_path, total_frames=1_000_000, checkpoint={"interval": None})
    thread.join()
    assert 0 < results["frames"] < 1_000_000
    assert (tmp_path / "skills.png").exists()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_same_seed_same_result() -> None:
    weights = []
    for seed in (0, 0, 1):
        trainer = make_metra("point", **SMALL, seed=seed)
        trainer.train()
        parameters = trainer.skill_policy.actor.parameters()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


OBJECTIVES = {
    "metra": METRALoss,
    "genda": GenDaLoss,
    "l2": METRALoss,
    "csd": CSDLoss,
    "lsd": LSDLoss,
    "diayn": DIAYNLoss,
    "dads": DADSLoss,
    "cic": CICLoss,
    "csf": CSFLoss,
    "rnd": RNDBaseline,
}


@pytest.mark.parametrize(
    ("objective", "kind"),
    [*((name, "UnitSphere") for name in OBJECTIVES), ("metra", "OneHot"), ("genda", "OneHot")],
)
def test_every_objective_trains(objective: str, kind: str) -> None:
    small = SMALL | {"total_frames": 800}
    trainer = make_metra("point", objective=objective, skill={"kind": kind}, **small)
    skill_loss = trainer.skill_loss
    assert type(skill_loss) is OBJECTIVES[objective]
    assert isinstance(skill_loss.prior, OneHot) == (kind == "OneHot")
    before = [parameter.clone() for parameter in skill_loss.parameters()]
    trainer.train()
    after = skill_loss.parameters()
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("objective", ["metra", "csf"])
def test_layer_norm_and_target_entropy(objective: str, tmp_path: Path) -> None:
    options = {"layer_norm": True, "sac": {"target_entropy": -0.25}}
    trainer = make_metra("point", objective=objective, **options, **SMALL)
    trainer.train()
    assert trainer.loss_module.target_entropy == -0.5  # of two actions
    trainer.skill_policy.save(tmp_path / "policy.pt")
    policy = SkillPolicy.load(tmp_path / "policy.pt")
    networks = policy.architecture.build(policy.prior)
    for parts, count in ((networks.critics, 2), ([networks.actor, networks.encoder], 0)):
        layers = [layer for part in parts for layer in part.modules()]
        assert sum(isinstance(layer, torch.nn.LayerNorm) for layer in layers) == count


@pytest.mark.parametrize("objective", ["metra", "csf", "lsd"])
def test_objectives_with_relabeled_skills(objective: str) -> None:
    relabel = {"enabled": True, "steps_ahead": 5, "rarity": 0.1}
    trainer = make_metra("point", objective=objective, relabel=relabel, **SMALL)
    relabeling = trainer.optimization_stepper.relabeling
    assert (relabeling.rarity, relabeling.prior) == (0.1, trainer.skill_loss.prior)
    before = relabeling.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    trainer.train()
    assert trainer.collected_frames == 1_600
    after = relabeling.state_dict()
    assert not after["episode_mass"].equal(before["episode_mass"])
    assert any(not value.equal(before[name]) for name, value in after.items() if "weight" in name)


def test_relabeling_goes_with_the_objective_unless_told_otherwise() -> None:
    for options, expected in (
        ({}, False),
        ({"objective": "genda"}, True),
        ({"objective": "lsd", "relabel": {"enabled": True}}, True),
    ):
        trainer = make_metra("point", **SMALL, **options)
        assert (trainer.optimization_stepper.relabeling is not None) == expected
        assert isinstance(trainer.replay_buffer.storage, EpisodeStorage) == expected


@pytest.mark.parametrize("objective", ["dads", "diayn", "rnd"])
def test_relabels_where_phi_moves_along_skills(objective: str) -> None:
    with pytest.raises(ValueError, match=r"relabel.*(DADS|DIAYN|RND)"):
        make_metra("point", objective=objective, relabel={"enabled": True}, **SMALL)


@pytest.mark.parametrize("objective", ["csd", "dads"])
def test_a_run_of_another_objective_is_recorded(tmp_path: Path, objective: str) -> None:
    """Without φ or without the temporal constraint, a run shows what there is to show."""
    results = run("point", tmp_path, objective=objective, total_frames=800)
    assert (tmp_path / "skills.png").stat().st_size > 10_000
    assert results["coverage_after"] > 0
    assert results["total_coverage"] > 0
    assert ("skill_alignment" in results) == (objective != "dads")


def test_objectives_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"dads.*pictures"):
        make_metra("point_pixels", objective="dads", **SMALL)


def test_the_switches_of_the_stepper(monkeypatch: pytest.MonkeyPatch) -> None:
    # The graph is what matters here; a compiler would take half a minute for it.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(build, "is_fast_on_cpu", lambda dtype: True)
    trainer = make_metra("point", autocast="bfloat16", compile=True, **SMALL)
    assert trainer.optimization_stepper.autocast is torch.bfloat16
    trainer.train()
    assert trainer.collected_frames == 1_600


def test_a_cpu_is_not_made_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.is_fast_on_cpu(torch.float32)
    monkeypatch.setattr(build, "is_fast_on_cpu", lambda dtype: False)
    with pytest.warns(UserWarning, match="no instructions for bfloat16"):
        trainer = make_metra("point", autocast="bfloat16", **SMALL)
    assert trainer.optimization_stepper.autocast is None


@pytest.mark.parametrize(
    "switches",
    [
        {"buffer_device": "cpu", "pixels": {"frames": 1, "resolution": 32}},
        {
            "buffer_device": "disk",
            "pixels": {"resolution": 32},
            "encoder": {"shared_encoder": True, "channels": 2},
        },
    ],
    ids=["in memory", "on disk, shared encoder"],
)
def test_a_run_from_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.chdir(tmp_path)
    assert run("point_pixels", tmp_path, **switches)["frames"] == 1_600
    for name in ("skills.png", "coverage.png", "skills.mp4"):
        assert (tmp_path / name).stat().st_size > 1_000
    on_disk = switches["buffer_device"] == "disk"
    assert any((tmp_path / "disk").rglob("*.memmap")) == on_disk
    policy = SkillPolicy.load(tmp_path / "skill_policy.pt")
    assert policy.architecture.shared_encoder == on_disk


@pytest.mark.parametrize("name", ["quadruped", pytest.param("kitchen", marks=pytest.mark.nightly)])
def test_debug_run_of_a_simulator(tmp_path: Path, name: str) -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip({"quadruped": "dm_control", "kitchen": "gymnasium_robotics"}[name])
    if not rendering_available():
        pytest.skip("MuJoCo cannot draw on this machine")
    settings = make_settings(
        {"name": name, "max_steps": 25}, preset="debug", output=str(tmp_path), backend="serial",
        total_frames=100, frames_per_batch=50, min_buffer_size=50, evaluation_episodes=2,
        updates_per_step=0.04, progress_bar=False,
    )  # fmt: skip
    assert train(settings)["frames"] == 100
    assert (tmp_path / "skills.mp4").stat().st_size > 1_000
    assert (tmp_path / "skills.png").exists()


def test_a_run_that_goes_on_does_not_measure_its_observations_anew(tmp_path: Path) -> None:
    """The constants of an unknown environment are those that the file of its skills has."""
    pytest.importorskip("gymnasium")
    env, path = "gym:Pendulum-v1", tmp_path / "skill_policy.pt"
    small = {"total_frames": 400, "checkpoint": {"interval": 300}}
    run(env, tmp_path, **small)
    policy = SkillPolicy.load(path)
    constants = policy.env_options["normalize"]
    constants["loc"] = constants["loc"] + 1.0
    policy.save(path)
    run(env, tmp_path, **small | {"total_frames": 800, "resume": "auto"})
    gone_on = SkillPolicy.load(path).env_options["normalize"]
    assert gone_on["loc"].equal(constants["loc"])
    assert gone_on["scale"].equal(constants["scale"])


@pytest.mark.parametrize(
    ("compiler", "total_frames", "compiles"),
    [("", 1_000_000, False), ("g++", 1_000_000, True), ("g++", 100_000, False)],
)
def test_compiles_where_it_pays(
    compiler: str, total_frames: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: compiler or None)
    changes = {"total_frames": total_frames, "updates_per_step": 1 / 40, "compile": "auto"}
    trainer = make_metra("point", **SMALL | changes)
    assert trainer.optimization_stepper.compile is compiles
    with pytest.raises(ValueError, match="auto"):
        make_metra("point", **SMALL | {"compile": "atuo"})
