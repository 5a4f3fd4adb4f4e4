"""A run that fails says so, once and in the right words; a healthy one is left in peace."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_losses
from pages import Page
from test_trainers import build_trainer
from torch import nn

from torchrl_metra import METRALoss, OneHot, SkillPrior, UnitSphere, make_metra_optimizers
from torchrl_metra.trainers import Diagnosis, FailureWarning, METRAOptimizationStepper
from torchrl_metra.trainers import diagnosis as diagnosis_module
from torchrl_metra.trainers.diagnosis import FAILURES, PAGE

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Priors, learning rates and norms of the recorded runs.
POINT = (UnitSphere(2), 2e-3, "l2")
CHEETAH = (OneHot(8), 2e-3, "rms")
ANT = (UnitSphere(2), 3e-4, "rms")


def diagnosis_of(prior: SkillPrior, rate: float, norm: Any = "l2") -> Diagnosis:
    return Diagnosis(METRALoss(nn.Linear(2, prior.dim), prior, constraint_norm=norm), rate)


def replay(curves: dict[str, Any], prior: SkillPrior, rate: float, norm: Any) -> list[str]:
    """What is found in a run, of which the log was kept."""
    rounds: dict[int, dict[str, float]] = {}
    for name, points in curves.items():
        for frames, value in points:
            rounds.setdefault(frames, {})[name] = value
    diagnosis = diagnosis_of(prior, rate, norm)
    for _, metrics in sorted(rounds.items()):
        diagnosis.observe(metrics)
        diagnosis.find()
    return diagnosis.found


def recorded(name: str) -> list[Any]:
    runs = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return [
        pytest.param(run, id=f"{run['fails_by'] or 'healthy'}-{run['seed']}")
        for run in runs
        if run["error"] is None
    ]


@pytest.mark.parametrize("run", [*recorded("diagnosis_chosen_by"), *recorded("diagnosis_held_out")])
def test_recorded_runs_show_what_they_showed(run: dict[str, Any]) -> None:
    settings = POINT if run["case"]["env"] == "point" else CHEETAH
    found = replay(run["curves"], *settings)
    assert found == run["found"]
    if run["fails_by"] is None:
        assert not found


@pytest.mark.parametrize("seed", [1])
def test_a_healthy_ant_is_left_in_peace(seed: int) -> None:
    # Its skills cover next to nothing for the first 200 000 steps.
    curves = json.loads((RESULTS / "ant_long" / f"seed{seed}_log.json").read_text())["curves"]
    assert dict(curves["policy_coverage"])[102400] < 10
    assert replay(curves, *ANT) == []


HEALTHY = {
    "optim_steps": 20_000.0, "latent_step": 0.9, "intrinsic_reward": 0.7, "latent_rank": 1.9,
    "constraint_violation": 0.03, "dual": 8.0, "entropy": -3.0, "alpha": 0.02,
    "observation_spread_max": 2.0, "observation_spread_min": 0.5, "policy_coverage": 50.0,
    "skill_alignment": 0.9, "skill_accuracy": 0.3,
}  # fmt: skip
BY_HAND = [
    ("observations too small", {}, {"latent_step": 0.01, "observation_spread_max": 1e-3}),
    ("observations too large", {"observation_spread_max": 300.0}, {"intrinsic_reward": 0.1}),
    (
        "entropy wins",
        {"entropy": 1.2},
        {"entropy": 1.38, "alpha": 3.0, "latent_step": 0.3, "intrinsic_reward": 0.01},
    ),
    ("dual too small", {}, {"constraint_violation": 0.9, "latent_step": 20.0}),
    ("dual explodes", {"dual": 10.0}, {"dual": 1e5, "constraint_violation": 0.0}),
    ("dual too large", {"dual": 1e4}, {"dual": 2e3, "constraint_violation": 0.0}),
    ("skills ignored", {}, {"intrinsic_reward": 0.05}),
    ("skills ignored", {}, {"skill_alignment": 0.02}),
    ("one direction", {}, {"latent_rank": 1.01}),
    ("posture", {"policy_coverage": 2.0}, {"policy_coverage": 3.0}),
    ("encoder does not move", {}, {"latent_step": 0.01}),
    ("no coverage", {"policy_coverage": 2.0}, {"policy_coverage": 3.0, "skill_alignment": 0.4}),
]


@pytest.mark.parametrize(("name", "first", "latest"), BY_HAND)
def test_signature(name: str, first: dict[str, float], latest: dict[str, float]) -> None:
    healthy, failing = (diagnosis_of(UnitSphere(2), 2e-3) for _ in range(2))
    for diagnosis, changes in ((healthy, {}), (failing, latest)):
        diagnosis.observe({**HEALTHY, "optim_steps": 50.0, **(first if changes else {})})
        for _ in range(5):
            diagnosis.observe({**HEALTHY, **changes})
    assert healthy.find() is None
    assert failing.find() == name


def test_rare_evaluations_do_not_make_a_slow_robot_ignore_its_skills() -> None:
    # As Humanoid's at the published learning rate, with an evaluation in 40 000 updates.
    diagnosis = diagnosis_of(UnitSphere(2), 1e-4)
    found = []
    for updates, alignment in [(800, -0.01), (39_200, 0.06), (78_400, 0.05)]:
        diagnosis.observe({**HEALTHY, "optim_steps": float(updates), "skill_alignment": alignment})
        diagnosis.observe({"optim_steps": updates + 12_000.0})
        found.append(diagnosis.find())
    # Only the third evaluation is the second of a policy that had time to learn.
    assert found == [None, None, "skills ignored"]


def test_every_failure_is_tried_and_explained() -> None:
    assert FAILURES.keys() == {name for name, _, _ in BY_HAND}
    anchors = Page(PAGE).anchors
    for failure in FAILURES.values():
        assert failure.section in anchors


def test_says_nothing_of_what_was_not_logged() -> None:
    diagnosis = diagnosis_of(UnitSphere(2), 2e-3)
    for _ in range(5):
        diagnosis.observe({"optim_steps": 50_000.0})
    assert diagnosis.find() is None


def test_a_slow_learning_rate_is_given_time() -> None:
    for rate, expected in ((2e-3, "encoder does not move"), (2e-5, None)):
        diagnosis = diagnosis_of(UnitSphere(2), rate)
        diagnosis.observe({**HEALTHY, "optim_steps": 1_000.0, "latent_step": 0.01})
        assert diagnosis.find() == expected


def test_resumed_it_does_not_repeat_itself() -> None:
    diagnosis, resumed = (diagnosis_of(UnitSphere(2), 2e-3) for _ in range(2))
    for _ in range(5):
        diagnosis.observe({**HEALTHY, "latent_rank": 1.0})
    resumed.load_state_dict(diagnosis.state_dict())
    assert diagnosis.find() == resumed.find() == "one direction"
    resumed.load_state_dict(diagnosis.state_dict())
    assert resumed.find() is None


def test_the_trainer_warns_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis_module, "FEWEST_UPDATES", 3)
    parts = make_losses()
    with torch.no_grad():
        # φ as flat as if its learning rate were far too small.
        for parameter in parts.metra_loss.encoder.parameters():
            parameter.mul_(1e-4)
    optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, lr=0.5, encoder=1e-9)
    trainer = build_trainer(
        parts, optimization_stepper=METRAOptimizationStepper(parts.metra_loss, optimizers)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    messages = [str(w.message) for w in caught if issubclass(w.category, FailureWarning)]
    assert trainer.collected_frames == 120
    assert len([m for m in messages if "encoder does not move" in m]) == 1
    assert all(re.search(r"docs/guides/tuning\.md#\S+", message) for message in messages)
