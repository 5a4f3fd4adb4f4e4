from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import SelfResettingPoint, make_losses
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import (
    Compose,
    EnvBase,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
    check_env_specs,
)

from torchrl_metra import (
    IntrinsicRewardTransform,
    METRALoss,
    OneHot,
    PointEnv,
    SkillPrimer,
    UnitSphere,
    make_env,
)
from torchrl_metra.envs import DrawPoint, PixelOptions

ROBOTS = {"ant": 2, "half_cheetah": 1}  # and the size of their position


def skill_env(max_steps: int = 200) -> TransformedEnv:
    return TransformedEnv(PointEnv(max_steps=max_steps), SkillPrimer(UnitSphere(2)))


BATCHED: dict[str, Callable[[], EnvBase]] = {
    "single": skill_env,
    "batched": lambda: TransformedEnv(PointEnv(3), SkillPrimer(UnitSphere(2))),
    "serial, primer inside": lambda: SerialEnv(3, skill_env),
    "serial, primer outside": lambda: TransformedEnv(
        SerialEnv(3, PointEnv), SkillPrimer(UnitSphere(2))
    ),
    "parallel, primer inside": lambda: ParallelEnv(3, skill_env),
    "parallel, primer outside": lambda: TransformedEnv(
        ParallelEnv(3, PointEnv), SkillPrimer(UnitSphere(2))
    ),
    "compose": lambda: TransformedEnv(
        PointEnv(3), Compose(StepCounter(), RewardSum(), SkillPrimer(OneHot(4)))
    ),
}


# Worker processes take seconds to start: one environment serves all tests of its kind.
@pytest.fixture(params=BATCHED, ids=str, scope="module")
def env(request: pytest.FixtureRequest):
    env = BATCHED[request.param]()
    env.set_seed(0)  # Workers, which are forked from one process, would draw the same skills.
    yield env
    env.close()


class TestPointEnv:
    def test_moves_by_its_action_and_no_further(self) -> None:
        env = PointEnv(2)
        start = env.reset()
        assert start["observation"].tolist() == [[0, 0], [0, 0]]
        moved = env.step(start.set("action", torch.tensor([[0.1, -0.2], [9.0, 0.0]])))
        torch.testing.assert_close(
            moved["next", "observation"], torch.tensor([[0.1, -0.2], [0.2, 0.0]])
        )

    def test_ends_by_truncation_after_200_steps(self) -> None:
        rollout = PointEnv(2).rollout(300)
        assert rollout.shape == (2, 200)
        assert rollout["next", "truncated"][:, -1].all()
        assert not rollout["next", "terminated"].any()
        assert not rollout["next", "done"][:, :-1].any()

    def test_partial_reset(self) -> None:
        env = PointEnv(2)
        moved = env.rand_step(env.reset())["next"]
        reset = env.reset(moved.clone().set("_reset", torch.tensor([[True], [False]])))
        assert reset["observation"][0].tolist() == [0, 0]
        torch.testing.assert_close(reset["observation"][1], moved["observation"][1])


class TestDrawPoint:
    def pixels(self, *position: float, resolution: int = 64) -> torch.Tensor:
        draw = DrawPoint(resolution)
        return draw(TensorDict({"position": torch.tensor(position)}))["pixels"]

    @pytest.mark.parametrize("resolution", [32, 64, 128])
    @pytest.mark.parametrize("position", [(0.0, 0.0), (0.3, 0.0), (17.25, -39.9)])
    def test_the_disc_lies_where_the_point_is(
        self, position: tuple[float, float], resolution: int
    ) -> None:
        white = self.pixels(*position, resolution=resolution)[0].double()
        scale = 96 / resolution
        centers = (torch.arange(resolution) + 0.5) * scale - 48
        x = (white.sum(0) * centers).sum() / white.sum()
        y = -(white.sum(1) * centers).sum() / white.sum()
        assert (x.item(), y.item()) == pytest.approx(position, abs=0.05)
        area = white.sum().item() / 255 * scale**2
        assert area == pytest.approx(math.pi * 6**2, rel=0.05)

    def test_a_step_shows(self) -> None:
        for step in ((0.2, 0.0), (0.0, 0.2)):
            change = self.pixels(*step).int() - self.pixels(0.0, 0.0).int()
            assert change.abs().max() > 20

    def test_gone_far_away(self) -> None:
        assert not self.pixels(100.0, -100.0).any()

    @pytest.mark.parametrize("num_envs", [None, 3])
    def test_make_env(self, num_envs: int | None) -> None:
        env = make_env("point_pixels", num_envs, pixels=PixelOptions(resolution=32, frames=2))
        check_env_specs(env)
        rollout = env.rollout(5)
        assert rollout["pixels"].shape[-3:] == (6, 32, 32)
        assert rollout["next", "pixels"][..., :3, :, :].equal(rollout["pixels"][..., 3:, :, :])
        with pytest.raises(ValueError, match="'point_pixels' has no backends"):
            make_env("point_pixels", backend="serial")


class TestMakeEnv:
    @pytest.mark.parametrize("num_envs", [None, 3])
    def test_point(self, num_envs: int | None) -> None:
        env = make_env("point", num_envs)
        check_env_specs(env)
        assert env.action_spec.space.high.eq(1).all()

    @pytest.mark.parametrize("name", list(ROBOTS))
    @pytest.mark.parametrize(
        ("num_envs", "backend"),
        [(None, "serial"), (2, "serial"), (2, "envpool")],
    )
    def test_mujoco(self, name: str, num_envs: int | None, backend: str) -> None:
        pytest.importorskip("mujoco")
        if backend == "envpool":
            pytest.importorskip("envpool")
        env = make_env(name, num_envs, backend=backend)
        check_env_specs(env)
        rollout = env.rollout(3)
        assert rollout["observation"].dtype == torch.float32
        assert rollout["observation"].shape[-1] == {"ant": 29, "half_cheetah": 18}[name]
        assert rollout["position"].shape[-1] == ROBOTS[name]
        env.close()

    def test_mujoco_in_worker_processes(self) -> None:
        pytest.importorskip("mujoco")
        env = make_env("half_cheetah", 2, backend="parallel")
        check_env_specs(env)
        env.close()

    @pytest.mark.parametrize("name", list(ROBOTS))
    def test_never_terminates_and_is_truncated_after_200_steps(self, name: str) -> None:
        pytest.importorskip("envpool")
        env = make_env(name, 2, backend="envpool")
        rollout = env.rollout(300)
        assert rollout.shape == (2, 200)
        assert not rollout["next", "terminated"].any()
        env.close()

    @pytest.mark.parametrize("name", list(ROBOTS))
    def test_backends_simulate_the_same_model(self, name: str) -> None:
        """The same spread of joint angles and velocities, and x, y in meters."""
        pytest.importorskip("mujoco")
        pytest.importorskip("envpool")
        # The pose of the torso comes first; its tails are too heavy for a small sample.
        joints = {"ant": slice(7, None), "half_cheetah": slice(3, None)}[name]
        spread = {}
        for backend in ("serial", "envpool"):
            env = make_env(name, 50, backend=backend, normalize=False)
            env.set_seed(0)
            rollout = env.rollout(50)
            low, high = rollout["observation"].flatten(0, 1).quantile(torch.tensor([0.2, 0.8]), 0)
            spread[backend] = (high - low)[joints]
            positions = rollout["observation"][..., : ROBOTS[name]]
            torch.testing.assert_close(rollout["position"], positions)
            env.close()
        torch.testing.assert_close(spread["serial"], spread["envpool"], rtol=0.35, atol=0.1)

    def test_normalization_constants_normalize(self) -> None:
        pytest.importorskip("envpool")
        for name in ROBOTS:
            env = make_env(name, 50, backend="envpool")
            observation = env.rollout(50)["observation"].flatten(0, 1)
            assert observation.mean(0).abs().max() < 0.5
            assert (observation.std(0) - 1).abs().max() < 0.4
            env.close()

    def test_envpool_partial_reset(self) -> None:
        pytest.importorskip("envpool")
        env = make_env("half_cheetah", 3, backend="envpool")
        env.reset()
        last = env.rollout(5)["next"][:, -1]
        mask = torch.tensor([[False], [True], [False]])
        reset = env.reset(last.clone().set("_reset", mask))
        torch.testing.assert_close(reset["observation"][[0, 2]], last["observation"][[0, 2]])
        assert not reset["observation"][1].allclose(last["observation"][1])
        env.close()

    def test_seed(self) -> None:
        pytest.importorskip("envpool")
        env = make_env("half_cheetah", 2, backend="envpool")
        observations = []
        for seed in (3, 3, 4):
            env.set_seed(seed)
            observations.append(env.reset()["observation"])
        assert observations[0].equal(observations[1])
        assert not observations[0].equal(observations[2])
        env.close()


class TestSkillPrimer:
    def test_specs(self, env: EnvBase) -> None:
        check_env_specs(env)

    def test_one_skill_per_episode_and_environment(self, env: EnvBase) -> None:
        skill = env.rollout(5)["skill"]
        assert (skill == skill[..., :1, :]).all()
        if env.batch_size and skill.shape[-1] == 2:
            assert len(skill[:, 0].unique(dim=0)) == len(skill)
        assert not env.rollout(5)["skill"].equal(skill) or skill.shape[-1] == 4

    def test_fixed_skill(self, env: EnvBase) -> None:
        dim = env.observation_spec["skill"].shape[-1]
        fixed = torch.eye(dim)[0].expand(*env.batch_size, dim).clone()
        start = env.reset(TensorDict({"skill": fixed}, env.batch_size))
        assert start["skill"].equal(fixed)
        rollout = env.rollout(4, auto_reset=False, tensordict=start)
        assert (rollout["skill"] == fixed.unsqueeze(-2)).all()
        assert (rollout["next", "skill"] == fixed.unsqueeze(-2)).all()

    def test_partial_reset_redraws_only_what_is_reset(self, env: EnvBase) -> None:
        start = env.reset()
        mask = torch.zeros(*env.batch_size, 1, dtype=torch.bool)
        mask[0] = True
        ended = start.clone()
        for key in ("done", "truncated"):
            ended[key] = mask
        draws = [env.maybe_reset(ended.clone())["skill"] for _ in range(8)]
        draws = torch.stack(draws)
        changed = (draws != start["skill"]).any(-1).any(0)
        assert changed.reshape(-1).equal(mask.reshape(-1))
        torch.testing.assert_close(draws.norm(dim=-1), torch.ones(draws.shape[:-1]))

    def test_self_resetting_environment_has_a_skill_per_episode(self) -> None:
        primer = SkillPrimer(UnitSphere(2), skill_key=("task", "z"))
        env = TransformedEnv(SelfResettingPoint(2, max_steps=3), primer)
        given = UnitSphere(2).grid(2)
        start = env.reset(TensorDict({"task": {"z": given}}, [2]))
        # Out of step, so that only one of them ends an episode at a time.
        env.base_env._steps[0] = 1
        rollout = env.rollout(9, auto_reset=False, tensordict=start, break_when_any_done=False)
        skill = rollout["task", "z"]
        assert skill[:, 0].equal(given)
        for row, changes in zip(skill, ([1, 4, 7], [2, 5]), strict=True):
            assert (row[1:] != row[:-1]).any(-1).nonzero().flatten().tolist() == changes

    def test_collector_with_episodes_of_different_lengths(self) -> None:
        lengths = [3, 5, 7]
        env = SerialEnv(3, [partial(skill_env, length) for length in lengths])
        collector = Collector(env, frames_per_batch=3 * 105, total_frames=3 * 105)
        batch = next(iter(collector))
        for row, length in enumerate(lengths):
            episodes = batch["skill"][row].unflatten(0, (-1, length))
            assert (episodes == episodes[:, :1]).all()
            assert len(episodes[:, 0].unique(dim=0)) == 105 // length
            # The last transition of an episode keeps the skill that it was made with.
            assert batch["next", "skill"][row].equal(batch["skill"][row])
        collector.shutdown()

    def test_seed(self, env: EnvBase) -> None:
        skills = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            env.set_seed(seed)
            skills.append(torch.stack([env.reset()["skill"] for _ in range(8)]))
        assert skills[0].equal(skills[1])
        assert not skills[0].equal(skills[2])

    def test_skills_that_change_within_an_episode(self) -> None:
        env = TransformedEnv(PointEnv(50), SkillPrimer(UnitSphere(2), switch=0.1))
        check_env_specs(env)
        rollout = env.rollout(200)
        before, after = rollout["skill"], rollout["next", "skill"]
        assert before[:, 1:].equal(after[:, :-1]), "an action is for the skill that it read"
        changes = (before != after).any(-1).float()
        assert abs(float(changes.mean()) - 0.1) < 0.01
        torch.testing.assert_close(after.norm(dim=-1), torch.ones(50, 200))

    def test_a_skill_that_changes_at_each_step_or_never(self) -> None:
        for switch, share in ((1, 1.0), (0, 0.0)):
            env = TransformedEnv(PointEnv(4), SkillPrimer(UnitSphere(2), switch=switch))
            rollout = env.rollout(20)
            changed = (rollout["skill"] != rollout["next", "skill"]).any(-1)
            assert float(changed.float().mean()) == share
        with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
            SkillPrimer(UnitSphere(2), switch=1.5)

    def test_refuses_replay_buffers(self) -> None:
        buffer = ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2)
        buffer.append_transform(SkillPrimer(OneHot(3)))
        buffer.extend(TensorDict({"skill": torch.eye(3)}, [3]))
        with pytest.raises(RuntimeError, match=r"overwrite 'skill'.*env\.append_transform"):
            buffer.sample()


def rewarding_env(metra_loss: METRALoss) -> EnvBase:
    return TransformedEnv(
        PointEnv(), Compose(SkillPrimer(metra_loss.prior), IntrinsicRewardTransform(metra_loss))
    )


class TestIntrinsicReward:
    @pytest.fixture
    def losses(self) -> SimpleNamespace:
        return make_losses(OneHot(4))

    def expected(self, losses: SimpleNamespace, data: TensorDict) -> torch.Tensor:
        encoder = losses.networks.encoder.module
        step = encoder(data["next", "observation"]) - encoder(data["observation"])
        return (step * losses.prior.center(data["skill"])).sum(-1, keepdim=True).detach()

    @pytest.mark.parametrize("num_envs", [None, 3])
    def test_on_an_environment(self, losses: SimpleNamespace, num_envs: int | None) -> None:
        env = TransformedEnv(PointEnv(num_envs), SkillPrimer(losses.prior))
        env.append_transform(IntrinsicRewardTransform(losses.metra_loss))
        check_env_specs(env)
        rollout = env.rollout(5)
        reward = rollout["next", "intrinsic_reward"]
        assert not reward.requires_grad
        torch.testing.assert_close(reward, self.expected(losses, rollout))
        assert not env.state_dict()

    def test_on_a_replay_buffer_relabels_with_todays_encoder(self, losses: SimpleNamespace) -> None:
        env = TransformedEnv(PointEnv(2), SkillPrimer(losses.prior))
        buffer = ReplayBuffer(storage=LazyTensorStorage(50), batch_size=8)
        transform = IntrinsicRewardTransform(losses.metra_loss, reward_key="reward")
        buffer.append_transform(transform)
        buffer.extend(env.rollout(10).reshape(-1))
        sample = buffer.sample()
        torch.testing.assert_close(sample["next", "reward"], self.expected(losses, sample))
        before = losses.metra_loss.reward(sample)
        with torch.no_grad():
            for parameter in losses.metra_loss.encoder.parameters():
                parameter.mul_(2)
        again = transform(sample.clone())["next", "reward"]
        torch.testing.assert_close(again, self.expected(losses, sample))
        assert not again.allclose(before)
        assert not again.requires_grad

    def test_around_worker_processes(self, losses: SimpleNamespace) -> None:
        env = TransformedEnv(
            ParallelEnv(2, skill_env), IntrinsicRewardTransform(make_losses().metra_loss)
        )
        try:
            check_env_specs(env)
        finally:
            env.close()

    def test_refuses_to_go_stale_in_worker_processes(self, losses: SimpleNamespace) -> None:
        with pytest.raises(RuntimeError, match="Put it outside"):
            ParallelEnv(2, partial(rewarding_env, losses.metra_loss)).reset()
