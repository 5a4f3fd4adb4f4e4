from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

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

hydra = pytest.importorskip("hydra")
OmegaConf = pytest.importorskip("omegaconf").OmegaConf
pytest.importorskip("matplotlib")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    modules = {name: __import__(name) for name in ("downstream", "finetune", "learners")}
    yield SimpleNamespace(**modules)
    for name in modules:
        sys.modules.pop(name)


def compose(name: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(EXAMPLES / "conf"), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


def skills(env_name: str, prior: SkillPrior) -> SkillPolicy:
    env = make_env(env_name)
    size = env.observation_spec["observation"].shape[-1]
    networks = make_sac_networks(size, env.action_spec, prior, num_cells=[8])
    return SkillPolicy.from_networks(networks, prior, env)


def walk(observation: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
    """Four directions and standing still."""
    directions = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    return skill @ directions + 0 * observation


SMALL = [
    "num_envs=4", "evaluation_episodes=4", "num_cells=[8]", "total_frames=3200",
    "evaluation_interval=1600",
]  # fmt: skip


@pytest.mark.parametrize(
    ("prior", "overrides"),
    [
        (None, ["baseline.frames_per_batch=800", "baseline.optim_steps_per_batch=1"]),
        (OneHot(3), ["ppo.frames_per_batch=32", "ppo.batch_size=16", "ppo.num_epochs=1"]),
        (UnitSphere(2), ["sac.frames_per_batch=32", "sac.optim_steps_per_batch=1"]),
    ],
    ids=["baseline", "PPO", "SAC"],
)
def test_a_run_leaves_curve_and_summary(
    examples: SimpleNamespace, tmp_path: Path, prior: SkillPrior | None, overrides: list[str]
) -> None:
    config = compose("downstream", "env=point_goal", f"output={tmp_path}", *SMALL, *overrides)
    results = examples.downstream.run(config, prior and skills("point", prior))
    curve = (tmp_path / "returns.csv").read_text().splitlines()
    assert curve[0] == "frames,seconds,return,success"
    assert [int(row.split(",")[0]) for row in curve[1:]] == [0, 1600, 3200]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["return_after"] == results["return_after"]
    assert summary["frames"] == 3200
    assert {"command", "commit", "hardware", "config"} <= summary.keys()
    assert (tmp_path / "returns.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("prior", "overrides"),
    [
        (OneHot(3), ["ppo.frames_per_batch=32", "ppo.batch_size=16", "ppo.num_epochs=1"]),
        (UnitSphere(2), ["sac.frames_per_batch=32", "sac.optim_steps_per_batch=1"]),
    ],
    ids=["PPO", "SAC"],
)
def test_a_run_goes_on_where_it_stopped(
    examples: SimpleNamespace, tmp_path: Path, prior: SkillPrior, overrides: list[str]
) -> None:
    overrides = ["env=point_goal", f"output={tmp_path}", *SMALL, *overrides]
    policy = skills("point", prior)
    examples.downstream.run(compose("downstream", *overrides), policy)
    before = (tmp_path / "returns.csv").read_text()
    more = compose("downstream", *overrides, "total_frames=4800", "resume=auto")
    assert examples.downstream.run(more, policy)["frames"] == 4800
    after = (tmp_path / "returns.csv").read_text()
    assert after.startswith(before)
    assert [int(row.split(",")[0]) for row in after.splitlines()[1:]] == [0, 1600, 3200, 4800]


def test_the_high_level_learns(examples: SimpleNamespace, tmp_path: Path) -> None:
    """It uses skills made by hand: without these, nothing tells where to go."""
    config = compose(
        "downstream", "env=point_goal", f"output={tmp_path}", "total_frames=38_400",
        "evaluation_interval=38_400", "num_cells=[32]", "ppo.lr=5e-3", "ppo.num_epochs=5",
    )  # fmt: skip
    actor = TensorDictModule(walk, in_keys=["observation", "skill"], out_keys=["action"])
    by_hand = SkillPolicy(actor, torch.nn.Identity(), OneHot(5))
    results = examples.downstream.run(config, by_hand)
    torch.manual_seed(0)
    env = examples.downstream.make_task(config, by_hand, 200, seed=0)
    at_random = env.rollout(8)["next", "reward"].sum(dim=1).mean()
    assert results["return_after"] > 2 * at_random
    assert results["return_after"] > results["return_before"] + 10


def test_networks_for_pictures(examples: SimpleNamespace) -> None:
    env = make_env("point_pixels", 2, pixels=PixelOptions(resolution=32, frames=1))
    env.append_transform(ReachGoals(5.0, radius=1.0))
    state = env.reset()
    actor, critics = examples.downstream.make_sac_networks(env, [8])
    state = critics[0](actor(state))
    assert state["action"].shape == (2, 2)
    assert state["state_action_value"].shape == (2, 1)
    actor.zero_grad()
    state["state_action_value"].sum().backward()
    assert all(p.grad is not None for p in critics[0].parameters())


class EndsApart(EnvBase):
    """Two episodes, of one and of three steps, with a reward of 1 for each step."""

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size([2]))
        flag = Categorical(2, (2, 1), dtype=torch.bool)
        self.observation_spec = Composite(observation=Unbounded((2, 1)), shape=[2])
        self.action_spec = Bounded(-1, 1, (2, 1))
        self.reward_spec = Unbounded((2, 1))
        self.done_spec = Composite(done=flag, terminated=flag.clone(), shape=[2])

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        self.count = torch.zeros(2, 1)
        return TensorDict({"observation": self.count}, [2])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.count = self.count + 1
        done = self.count >= torch.tensor([[1], [3]])
        values = {"observation": self.count, "reward": torch.ones(2, 1)}
        return TensorDict({**values, "done": done, "terminated": done.clone()}, [2])

    def _set_seed(self, seed: int | None) -> None:
        del seed


def test_returns_of_episodes_of_different_lengths(
    examples: SimpleNamespace, tmp_path: Path
) -> None:
    policy = TensorDictModule(torch.nn.Identity(), ["observation"], ["action"])
    returns = examples.learners.ReturnCurve(EndsApart(), policy, 10, tmp_path / "returns.csv")
    returns.evaluate()
    assert returns.curve.rows[0][2] == (1 + 3) / 2


@pytest.mark.parametrize("pretrained", [True, False])
def test_finetuning(examples: SimpleNamespace, tmp_path: Path, pretrained: bool) -> None:
    pytest.importorskip("mujoco")
    path = tmp_path / "skill_policy.pt"
    policy = skills("half_cheetah", OneHot(3))
    policy.save(path)
    config = compose(
        "finetune", f"skill_policy={path}", f"output={tmp_path}", f"pretrained={pretrained}",
        "total_frames=600", "evaluation_interval=400", "critic_frames=400", "num_envs=2",
        "evaluation_episodes=2", "candidates=3", "sac.frames_per_batch=200",
        "sac.optim_steps_per_batch=1",
    )  # fmt: skip
    assert examples.finetune.run(config)["frames"] == 600
    assert (tmp_path / "returns.csv").read_text().count("\n") == 4


def test_finetuning_holds_the_best_skill(examples: SimpleNamespace) -> None:
    """Of three skills, the last runs: its actions are its own, the others' are zero."""
    pytest.importorskip("mujoco")
    config = compose("finetune", "candidates=3", "skill_policy=null", "env=half_cheetah")
    gaits = torch.stack([torch.full((6,), 0.0), torch.full((6,), 1.0), torch.zeros(6)])
    actor = TensorDictModule(
        lambda observation, skill: skill @ gaits, ["observation", "skill"], ["action"]
    )
    skill = examples.finetune.best_skill(config, SkillPolicy(actor, None, OneHot(3)))
    assert skill[1] == 0  # an action of all ones only costs
    rollout = examples.finetune.make_task(config, skill, 2, seed=0).rollout(3)
    assert rollout["skill"].eq(skill).all()
    assert rollout["next", "skill"].eq(skill).all()


def test_critics_learn_first(examples: SimpleNamespace) -> None:
    env, prior = make_env("point_goal", 4), OneHot(3)
    config = compose("downstream", *SMALL).baseline
    config.update(frames_per_batch=400, optim_steps_per_batch=2, total_frames=1200)
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[8])
    env = examples.finetune.make_task(
        compose("finetune", "env=point_goal"), prior.grid(1)[0], 4, seed=0
    )
    trainer = examples.learners.make_sac_trainer(config, env, networks.actor, networks.critics)
    examples.learners.learn_critics_first(trainer, 800, lr=1e-3)
    weights, critic = networks.actor.module[0].module.head.linear.weight, networks.critics[0]
    start = weights.detach().clone(), next(critic.parameters()).detach().clone()
    changed = []
    trainer.register_op("post_steps_log", lambda batch: changed.append(not weights.equal(start[0])))
    trainer.train()
    assert changed == [False, False, True]


@pytest.mark.parametrize("name", ["downstream", "finetune"])
def test_settings_are_complete(examples: SimpleNamespace, name: str) -> None:
    assert not OmegaConf.missing_keys(compose(name))
    assert callable(getattr(examples, name).main)


def test_the_papers_settings() -> None:
    config = compose("downstream")
    assert config.skill_steps == 25
    assert config.sac.alpha_init == 0.1
    assert config.sac.fixed_alpha
