"""``make_metra``: each way to name an environment, each part of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_batch
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.record.loggers import CSVLogger

from torchrl_metra import (
    BatchedSACLoss,
    LSDLoss,
    METRALoss,
    METRATrainer,
    OneHot,
    PointEnv,
    SkillPolicy,
    SkillPrimer,
    StandardNormal,
    UnitBall,
    UnitSphere,
    make_env,
    make_metra,
    make_sac_networks,
)
from torchrl_metra._transforms import transforms_of
from torchrl_metra.recipes import make_settings, train
from torchrl_metra.recipes.settings import EnvSettings

PRIOR = UnitSphere(2)
SMALL = {
    "num_envs": 4, "num_cells": [8], "total_frames": 160, "frames_per_batch": 80,
    "updates_per_step": 0.0125, "batch_size": 16, "buffer_size": 200, "min_buffer_size": 80,
    "learning_rate": {"lr": 1e-3}, "progress_bar": False,
}  # fmt: skip


def make(env: Any = "point", *args: Any, **given: Any) -> METRATrainer:
    return make_metra(env, *args, **{**SMALL, **given})


def networks(prior: Any = PRIOR) -> Any:
    return make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[8])


def make_point(num_envs: int | None = None, max_steps: int = 200) -> PointEnv:
    return PointEnv(num_envs, max_steps=max_steps)


@pytest.mark.parametrize(
    ("env", "max_steps"),
    [
        ("point", 200),
        ({"name": "point", "max_steps": 20}, 20),
        (EnvSettings("point", max_steps=20), 20),
        (make_point, 200),
        ({"name": make_point, "max_steps": 20}, 20),
        (PointEnv(4, max_steps=20), 20),
        (PointEnv(4, max_steps=20).append_transform(SkillPrimer(PRIOR)), 20),
    ],
    ids=[
        "name",
        "mapping",
        "settings",
        "function",
        "function and settings",
        "environment",
        "with primer",
    ],
)
def test_each_way_to_give_an_environment(
    env: Any, max_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make(env)
    parts = transforms_of(trainer.collector.env)
    assert sum(isinstance(part, SkillPrimer) for part in parts) == 1
    rollout = trainer.collector.env.rollout(max_steps, break_when_any_done=False)
    assert rollout["next", "done"].sum(dim=1).eq(1).all()
    trainer.train()
    assert trainer.collected_frames == 160
    assert trainer.replay_buffer[:]["skill"].shape == (160, 2)
    assert not list(tmp_path.iterdir()), "nothing is written without output"


def test_a_setting_of_the_environment_reaches_it() -> None:
    with pytest.raises(ValueError, match=r"'env\.max_step': did you mean 'env\.max_steps'"):
        make({"name": "point", "max_step": 20})


@pytest.mark.parametrize(
    ("frames", "rate", "updates"), [(80, 0.05, 4), (80, 4, 320), (49, 1 / 7, 7)]
)
def test_updates_per_step(frames: int, rate: float, updates: int) -> None:
    trainer = make(frames_per_batch=frames, updates_per_step=rate)
    assert trainer.optim_steps_per_batch == updates


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.03, -0.0125, math.nan, math.inf])
def test_a_round_has_a_whole_number_of_updates(rate: float) -> None:
    with pytest.raises(ValueError, match=r"updates_per_step.*frames_per_batch"):
        make(updates_per_step=rate)


@pytest.mark.parametrize("given", ["prior", "skill_loss", "env"])
@pytest.mark.parametrize("prior", [OneHot(3), StandardNormal(3)], ids=repr)
def test_skills_of_ones_own(prior: Any, given: str) -> None:
    if given == "prior":
        trainer = make("point", prior)
    elif given == "env":
        trainer = make(PointEnv(4).append_transform(SkillPrimer(prior)))
    else:
        trainer = make(skill_loss=METRALoss(networks(prior).encoder, prior))
    assert trainer.skill_loss.prior is prior
    assert trainer.skill_policy.prior is prior
    trainer.train()
    assert trainer.replay_buffer[:]["skill"].shape == (160, 3)


def test_environments_draw_the_skills_that_the_objective_models() -> None:
    trainer = make("point", UnitSphere(2), objective="diayn")
    assert isinstance(trainer.skill_loss.prior, StandardNormal)
    trainer.train()
    assert trainer.replay_buffer[:]["skill"].norm(dim=-1).std() > 0.1


def test_skills_change_in_training_and_not_in_evaluation(tmp_path: Path) -> None:
    def switches(trainer: METRATrainer) -> list[float]:
        parts = transforms_of(trainer.collector.env)
        return [part.switch for part in parts if isinstance(part, SkillPrimer)]

    skill = {"kind": "UnitBall", "switch": 0.25}
    assert switches(make(skill=skill)) == [0.25]
    assert switches(make(PointEnv(4, max_steps=20), skill=skill)) == [0.25]
    given = PointEnv(4).append_transform(SkillPrimer(UnitBall(2), switch=0.5))
    assert switches(make(given)) == [0.5]

    # rollout_skills would refuse an environment that changes skills.
    output = str(tmp_path)
    train(make_settings("point", **SMALL, skill=skill, evaluation_episodes=3, output=output))


@pytest.mark.parametrize("objective", ["diayn", "csf"])
def test_objectives_that_cannot_pay_for_a_speed_say_so(objective: str) -> None:
    with pytest.raises(ValueError, match=r"UnitBall\(2\)"):
        make(skill={"kind": "UnitBall"}, objective=objective)


class Scaled(LSDLoss):
    """An objective of one's own."""


def test_parts_of_ones_own(tmp_path: Path) -> None:
    """Each of them is used as it is, and trained."""
    own = networks()
    skill_loss = Scaled(own.encoder, PRIOR)
    sac_loss = BatchedSACLoss(own.actor, own.critics, target_entropy=-1.0)
    buffer = ReplayBuffer(storage=LazyTensorStorage(500), batch_size=32)
    logger = CSVLogger("own", log_dir=str(tmp_path))
    given = {"skill_loss": skill_loss, "loss_module": sac_loss, "replay_buffer": buffer}
    trainer = make("point", PRIOR, networks=own, logger=logger, **given)
    assert {name: getattr(trainer, name) for name in given} == given
    assert trainer.logger is logger
    weights = [own.actor, own.encoder]
    before = [[weight.clone() for weight in module.parameters()] for module in weights]
    trainer.train()
    for module, old in zip(weights, before, strict=True):
        assert any(not new.equal(was) for new, was in zip(module.parameters(), old, strict=True))
    assert len(buffer) == 160
    assert list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("part", ["networks", "skill_loss", "loss_module"])
def test_what_is_not_given_is_built_around_what_is(part: str) -> None:
    own = networks()
    given: Any = {
        "networks": own,
        "skill_loss": METRALoss(own.encoder, PRIOR, slack=0.5),
        "loss_module": BatchedSACLoss(own.actor, own.critics, target_entropy=-1.0),
    }[part]
    trainer = make("point", PRIOR, **{part: given})
    if part != "networks":
        assert getattr(trainer, part) is given
    parts = [trainer.loss_module.actor_network_params, trainer.skill_loss.encoder]
    weights = [next(iter(part.parameters())) for part in parts]
    before = [weight.detach().clone() for weight in weights]
    trainer.train()
    assert all((new != old).any() for new, old in zip(weights, before, strict=True))
    policy = trainer.skill_policy
    # What remains is what was trained, not what was built beside it.
    batch = make_batch(PRIOR, 3)
    with trainer.loss_module.actor_network_params.to_module(trainer.loss_module.actor_network):
        expected = trainer.loss_module.actor_network(batch.clone())["loc"]
    assert policy.actor(batch.clone())["loc"].equal(expected)
    latent, _ = trainer.skill_loss.encode_pair(batch)
    torch.testing.assert_close(policy.encoder(batch["observation"]), latent)


def test_the_skill_policy_acts_the_same_from_its_file(tmp_path: Path) -> None:
    trainer = make("point", PRIOR, metra={"constraint_norm": "rms"})
    trainer.train()
    policy = trainer.skill_policy
    policy.save(tmp_path / "skills.pt")
    loaded = SkillPolicy.load(tmp_path / "skills.pt")
    batch = make_batch(PRIOR, 5)
    for key in ("loc", "scale"):
        assert loaded.actor(batch.clone())[key].equal(policy.actor(batch.clone())[key])
    assert loaded.encoder(batch["observation"]).equal(policy.encoder(batch["observation"]))
    assert (loaded.prior, loaded.env_name, loaded.constraint_norm) == (PRIOR, "point", "rms")
