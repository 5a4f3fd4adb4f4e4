from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from test_hierarchy import Countdown

from torchrl_metra import (
    OneHot,
    PixelOptions,
    SkillPolicy,
    SkillPrior,
    UnitSphere,
    make_env,
    make_sac_networks,
)
from torchrl_metra.envs import ReachGoals
from torchrl_metra.recipes import DownstreamSettings, FinetuneSettings, tasks
from torchrl_metra.recipes.settings import update
from torchrl_metra.recipes.tasks import (
    ReturnCurve,
    learn_critics_first,
    make_sac_trainer,
    run_downstream,
    run_finetune,
)

pytest.importorskip("matplotlib")


def settings(output: Path | None = None, **others: Any) -> DownstreamSettings:
    """Of the point's goals."""
    values = {"env": {"name": "point_goal"}, "output": output and str(output), **SMALL, **others}
    return update(DownstreamSettings(), values)


def skills(env_name: str, prior: SkillPrior, **env_options: Any) -> SkillPolicy:
    env = make_env(env_name, **env_options)
    size = env.observation_spec["observation"].shape[-1]
    networks = make_sac_networks(size, env.action_spec, prior, num_cells=[8])
    return SkillPolicy.from_networks(networks, prior, env, env_options=env_options)


def walk(observation: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
    """Four directions and standing still."""
    directions = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    return skill @ directions + 0 * observation


SMALL = {
    "num_envs": 4, "evaluation_episodes": 4, "num_cells": [8], "total_frames": 3_200,
    "evaluation_interval": 1_600,
}  # fmt: skip


def test_a_task_shows_what_the_skills_have_seen() -> None:
    pytest.importorskip("dm_control")
    policy = skills("humanoid_state", UnitSphere(2), options={"heading": True}, normalize=False)
    task = tasks.make_downstream_env(settings(env={"name": "humanoid_state_goal"}), policy, 2, 0)
    rollout = task.rollout(2)
    assert rollout["observation"].shape == (2, 2, 74)
    assert rollout["to_goal"].shape == (2, 2, 2)
    assert (rollout["goal_position"].abs() <= 5).all()
    task.close()


@pytest.mark.parametrize(
    ("prior", "learner"),
    [
        (None, {"baseline": {"frames_per_batch": 800, "optim_steps_per_batch": 1}}),
        (OneHot(3), {"ppo": {"frames_per_batch": 32, "batch_size": 16, "num_epochs": 1}}),
        (UnitSphere(2), {"sac": {"frames_per_batch": 32, "optim_steps_per_batch": 1}}),
    ],
    ids=["baseline", "PPO", "SAC"],
)
def test_a_run_leaves_curve_and_summary_and_goes_on_where_it_stopped(
    tmp_path: Path, prior: SkillPrior | None, learner: dict[str, Any]
) -> None:
    policy = prior and skills("point", prior)
    others = {"skill_policy": None, **learner}
    results = run_downstream(settings(tmp_path, **others), policy)
    before = (tmp_path / "returns.csv").read_text()
    assert before.startswith("frames,seconds,return,success\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["return_after"] == results["return_after"]
    assert summary["frames"] == 3200
    assert {"command", "commit", "hardware", "config"} <= summary.keys()
    assert (tmp_path / "returns.png").stat().st_size > 5_000

    more = settings(tmp_path, **others, resume="auto", total_frames=4_800)
    assert run_downstream(more, policy)["frames"] == 4800
    after = (tmp_path / "returns.csv").read_text()
    assert after.startswith(before)
    assert [int(row.split(",")[0]) for row in after.splitlines()[1:]] == [0, 1600, 3200, 4800]


def test_the_high_level_learns(tmp_path: Path) -> None:
    """It uses skills made by hand: without these, nothing tells where to go."""
    config = settings(
        tmp_path, num_envs=64, evaluation_episodes=64, total_frames=38_400,
        evaluation_interval=38_400, num_cells=[32], ppo={"lr": 5e-3, "num_epochs": 5},
    )  # fmt: skip
    actor = TensorDictModule(walk, in_keys=["observation", "skill"], out_keys=["action"])
    by_hand = SkillPolicy(actor, torch.nn.Identity(), OneHot(5))
    results = run_downstream(config, by_hand)
    torch.manual_seed(0)
    env = tasks.make_downstream_env(config, by_hand, 200, seed=0)
    at_random = env.rollout(8)["next", "reward"].sum(dim=1).mean()
    assert results["return_after"] > 2 * at_random
    assert results["return_after"] > results["return_before"] + 10


def test_networks_for_pictures() -> None:
    env = make_env("point_pixels", 2, pixels=PixelOptions(resolution=32, frames=1))
    env.append_transform(ReachGoals(5.0, radius=1.0))
    state = env.reset()
    actor, critics = tasks.make_sac_networks(env, [8])
    state = critics[0](actor(state))
    assert state["action"].shape == (2, 2)
    assert state["state_action_value"].shape == (2, 1)
    actor.zero_grad()
    state["state_action_value"].sum().backward()
    assert all(p.grad is not None for p in critics[0].parameters())


def test_returns_of_episodes_of_different_lengths(tmp_path: Path) -> None:
    policy = TensorDictModule(torch.ones_like, ["observation"], ["action"])
    returns = ReturnCurve(Countdown(1, 3), policy, 10, tmp_path / "returns.csv")
    returns.evaluate()
    assert returns.rows[0][2] == (1 + (1 + 2 + 3)) / 2


@pytest.mark.parametrize("pretrained", [True, False])
def test_finetuning(tmp_path: Path, pretrained: bool) -> None:
    pytest.importorskip("mujoco")
    path = tmp_path / "skill_policy.pt"
    policy = skills("half_cheetah", OneHot(3))
    policy.save(path)
    values = {
        "skill_policy": str(path), "output": str(tmp_path), "pretrained": pretrained,
        "total_frames": 600, "evaluation_interval": 400, "critic_frames": 400, "num_envs": 2,
        "evaluation_episodes": 2, "candidates": 3,
        "sac": {"frames_per_batch": 200, "optim_steps_per_batch": 1},
    }  # fmt: skip
    assert run_finetune(update(FinetuneSettings(), values))["frames"] == 600
    assert (tmp_path / "returns.csv").read_text().count("\n") == 4


def test_finetuning_holds_the_best_skill() -> None:
    """Of three skills, the last runs: its actions are its own, the others' are zero."""
    pytest.importorskip("mujoco")
    config = FinetuneSettings(candidates=3)
    gaits = torch.stack([torch.full((6,), 0.0), torch.full((6,), 1.0), torch.zeros(6)])
    actor = TensorDictModule(
        lambda observation, skill: skill @ gaits, ["observation", "skill"], ["action"]
    )
    policy = SkillPolicy(actor, None, OneHot(3))
    skill = tasks.best_skill(config, policy)
    assert skill[1] == 0  # an action of all ones only costs
    rollout = tasks.make_finetune_env(config, policy, skill, 2, seed=0).rollout(3)
    assert rollout["skill"].eq(skill).all()
    assert rollout["next", "skill"].eq(skill).all()


def test_critics_learn_first() -> None:
    policy = skills("point_goal", OneHot(3))
    networks = policy.architecture.build(policy.prior)
    values = {
        "env": {"name": "point_goal"},
        "total_frames": 1_200,
        "checkpoint": {"interval": None},
    }
    config = update(FinetuneSettings(), values)
    config.sac.frames_per_batch, config.sac.optim_steps_per_batch = 400, 2
    env = tasks.make_finetune_env(config, policy, policy.prior.grid(1)[0], 4, seed=0)
    trainer = make_sac_trainer(config, config.sac, env, networks.actor, networks.critics)
    learn_critics_first(trainer, 800, lr=1e-3)
    weights, critic = networks.actor.module[0].module.head.linear.weight, networks.critics[0]
    start = weights.detach().clone(), next(critic.parameters()).detach().clone()
    changed = []
    trainer.register_op("post_steps_log", lambda batch: changed.append(not weights.equal(start[0])))
    trainer.train()
    assert changed == [False, False, True]
