from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, SerialEnv, TransformedEnv, check_env_specs
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor

from torchrl_metra import (
    OneHot,
    PixelOptions,
    PointEnv,
    SkillAction,
    SkillConditionedActor,
    SkillPrior,
    StandardNormal,
    UnitSphere,
    make_env,
)


class Countdown(EnvBase):
    """Ends after ``lengths`` steps and begins anew when it is stepped once more, as EnvPool does.

    The observation is the number of steps since the reset, the reward that times the action.
    """

    def __init__(self, *lengths: int, single: bool = False) -> None:
        batch = () if single else (len(lengths),)
        super().__init__(batch_size=torch.Size(batch))
        self.lengths = torch.tensor(lengths).reshape(*batch, 1)
        self.observation_spec = Composite(observation=Unbounded((*batch, 1)), shape=batch)
        self.action_spec = Bounded(-9.0, 9.0, (*batch, 1))
        self.reward_spec = Bounded(0.0, 300.0, (*batch, 1), dtype=torch.float64)
        self.done_spec = Composite(
            {key: Categorical(2, (*batch, 1), dtype=torch.bool) for key in ("done", "terminated")},
            shape=batch,
        )
        self.count = torch.zeros_like(self.lengths)
        self.calls = 0

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        self.count = self.count * 0 if reset is None else self.count.where(~reset, 0)
        return TensorDict({"observation": self.count.float()}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.calls += 1
        self.count = self.count.where(self.count < self.lengths, 0) + 1
        done = self.count >= self.lengths
        return TensorDict(
            {
                "observation": self.count.float(),
                "reward": (self.count * tensordict["action"]).clamp(0, 300).double(),
                "done": done,
                "terminated": done.clone(),
            },
            self.batch_size,
        )

    def _set_seed(self, seed: int | None) -> None:
        del seed


def follow(observation: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
    """The action of skill k is k + 1, wherever it is."""
    return skill.argmax(-1, keepdim=True).float() + 1 + 0 * observation


def count_policy() -> TensorDictModule:
    return TensorDictModule(follow, in_keys=["observation", "skill"], out_keys=["action"])


def countdown(*lengths: int, num_steps: int = 4) -> TransformedEnv:
    env = TransformedEnv(Countdown(*lengths))
    return env.append_transform(SkillAction(count_policy(), OneHot(3), num_steps=num_steps))


def countdown_serial(*lengths: int, num_steps: int = 4) -> TransformedEnv:
    envs = [lambda length=length: Countdown(length, single=True) for length in lengths]
    env = TransformedEnv(SerialEnv(len(lengths), envs))
    return env.append_transform(SkillAction(count_policy(), OneHot(3), num_steps=num_steps))


def step(env: EnvBase, state: TensorDictBase, *skills: int) -> TensorDictBase:
    action = nn.functional.one_hot(torch.tensor(skills), 3).float()
    return env.step(state.set("action", action))["next"]


def displace(skill: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
    return skill.expand(*observation.shape[:-1], -1)


def direction_policy() -> TensorDictModule:
    return TensorDictModule(displace, in_keys=["skill", "observation"], out_keys=["action"])


def point(num_envs: int | None = None, **kwargs: int) -> TransformedEnv:
    env = TransformedEnv(PointEnv(num_envs))
    return env.append_transform(SkillAction(direction_policy(), UnitSphere(2), **kwargs))


class TestSkillAction:
    def test_a_skill_is_held_and_its_rewards_are_summed(self) -> None:
        env = countdown(100, 100)
        first = step(env, env.reset(), 0, 2)
        assert first["observation"].tolist() == [[4], [4]]
        assert first["reward"].tolist() == [[1 + 2 + 3 + 4], [3 * (1 + 2 + 3 + 4)]]
        second = step(env, first, 1, 0)
        assert second["reward"].tolist() == [[2 * (5 + 6 + 7 + 8)], [5 + 6 + 7 + 8]]
        assert second["inner_steps"].tolist() == [[4], [4]]
        assert second["reward"].dtype == torch.float32
        assert env.reward_spec == Unbounded((2, 1))

    @pytest.mark.parametrize("make", [countdown, countdown_serial])
    def test_environments_end_in_the_middle_of_a_skill(
        self, make: Callable[..., TransformedEnv]
    ) -> None:
        env = make(3, 6, 100)
        first = step(env, env.reset(), 0, 0, 0)
        assert first["observation"].tolist() == [[3], [4], [4]]
        assert first["reward"].tolist() == [[6], [10], [10]]
        assert first["done"].tolist() == [[True], [False], [False]]
        assert first["inner_steps"].tolist() == [[3], [4], [4]]
        # A partial reset: the first begins anew, the others go on.
        state = env.reset(first.exclude("reward").set("_reset", first["done"].clone()))
        assert state["observation"].tolist() == [[0], [4], [4]]
        assert state["inner_steps"].tolist() == [[0], [4], [4]]
        second = step(env, state, 1, 1, 1)
        assert second["observation"].tolist() == [[3], [6], [8]]
        assert second["reward"].tolist() == [[12], [2 * (5 + 6)], [2 * (5 + 6 + 7 + 8)]]
        assert second["done"].tolist() == [[True], [True], [False]]
        assert second["inner_steps"].tolist() == [[3], [2], [4]]

    @pytest.mark.parametrize("make", [countdown, countdown_serial])
    def test_a_rollout_leaves_finished_environments_alone(
        self, make: Callable[..., TransformedEnv]
    ) -> None:
        rollout = make(3, 10).rollout(9, break_when_any_done=False, break_when_all_done=True)
        assert rollout.shape == (2, 3)
        assert rollout["next", "observation"][1].flatten().tolist() == [4, 8, 10]
        assert rollout["next", "observation"][0, 0] == 3
        assert rollout["next", "done"][0].all()

    @pytest.mark.parametrize("make", [countdown, countdown_serial])
    def test_in_a_collector(self, make: Callable[..., TransformedEnv]) -> None:
        collector = Collector(make(3, 6, 9), frames_per_batch=36, total_frames=36)
        batch = next(iter(collector))
        steps = batch["next", "inner_steps"].squeeze(-1)
        assert steps[0].tolist() == [3] * 12
        assert steps[1].tolist() == [4, 2] * 6
        assert steps[2].tolist() == [4, 4, 1] * 4
        first = batch["next", "observation"].squeeze(-1)[2]
        assert first.tolist() == [4, 8, 9] * 4
        collector.shutdown()

    def test_only_the_direction_of_a_continuous_skill_counts(self) -> None:
        env = point(2, num_steps=3)
        action = torch.tensor([[0.1, 0.0], [0.0, -0.7]])
        moved = env.step(env.reset().set("action", action))
        torch.testing.assert_close(
            moved["next", "observation"], torch.tensor([[0.6, 0.0], [0.0, -0.6]])
        )
        assert moved["action"].equal(action)

    @pytest.mark.parametrize("prior", [UnitSphere(2), StandardNormal(2)], ids=str)
    def test_continuous_actions_are_bounded(self, prior: SkillPrior) -> None:
        env = TransformedEnv(PointEnv(3), SkillAction(direction_policy(), prior))
        assert env.action_spec == Bounded(-1.0, 1.0, (3, 2))

    @pytest.mark.parametrize(
        "make",
        [
            point,
            lambda: point(3),
            lambda: SerialEnv(2, point),
            lambda: countdown(3, 5),
            lambda: countdown_serial(3, 5),
        ],
        ids=["single", "batched", "inside", "batched one-hot", "outside, one-hot"],
    )
    def test_specs(self, make: Callable[[], EnvBase]) -> None:
        check_env_specs(make())

    def test_frames_are_stacked_step_by_step(self) -> None:
        """The memory of a transform below sees every step, and is reset with its environment."""
        pixels = PixelOptions(resolution=32, frames=3)
        env, skilled = (make_env("point_pixels", 2, pixels=pixels) for _ in range(2))
        skilled.append_transform(SkillAction(direction_policy(), UnitSphere(2), num_steps=4))
        action = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        state, outer = env.reset(), skilled.reset()
        for reset in (False, True, False):
            if reset:
                mask = torch.tensor([[True], [False]])
                state = env.reset(state.set("_reset", mask))
                outer = skilled.reset(outer.set("_reset", mask))
                assert outer["pixels"].equal(state["pixels"])
            outer = skilled.step_mdp(skilled.step(outer.set("action", action)))
            for _ in range(4):
                state = env.step_mdp(env.step(state.set("action", action)))
            assert outer["pixels"].equal(state["pixels"])

    def test_a_frozen_copy_acts_deterministically(self) -> None:
        prior = OneHot(3)
        actor = SkillConditionedActor(MLP(2 + 3, 8, num_cells=[8]), 8, Bounded(-1, 1, (2,)))
        env = TransformedEnv(PointEnv(2), SkillAction(actor, prior))

        def move() -> torch.Tensor:
            return env.step(env.reset().set("action", prior.grid(2)))["next", "observation"]

        before = move()
        nn.init.ones_(actor.module[0].module.head.linear.weight)
        assert move().equal(before)
        assert not before.requires_grad
        assert not any(parameter.requires_grad for parameter in env.transform.parameters())
        assert all(parameter.requires_grad for parameter in actor.parameters())

    def test_a_discrete_policy_of_torchrl_chooses_skills(self) -> None:
        policy = ProbabilisticActor(
            TensorDictModule(nn.Linear(1, 3), in_keys=["observation"], out_keys=["logits"]),
            in_keys=["logits"],
            distribution_class=OneHotCategorical,
        )
        env = countdown(8, 8)
        collector = Collector(env, policy, frames_per_batch=8, total_frames=8)
        batch = next(iter(collector))
        skill = batch["action"].argmax(-1, keepdim=True) + 1
        sums = torch.tensor([10.0, 26.0]).repeat(2).reshape(4, 1)
        assert batch["next", "reward"][0].equal(sums * skill[0])
        collector.shutdown()


class TestRefusals:
    def test_a_policy_without_skills(self) -> None:
        unconditioned = TensorDictModule(nn.Linear(2, 2), ["observation"], ["action"])
        with pytest.raises(ValueError, match="not conditioned on skills"):
            SkillAction(unconditioned, OneHot(3))
