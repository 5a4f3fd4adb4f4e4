from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
import torch
from conftest import SelfResettingPoint
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.envs import (
    EnvBase,
    InitTracker,
    SerialEnv,
    TransformedEnv,
    check_env_specs,
)

from torchrl_metra import (
    GoalPrimer,
    GoalReachingPolicy,
    OneHot,
    PixelOptions,
    PointEnv,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    StandardNormal,
    UnitSphere,
    make_env,
    make_pixel_sac_networks,
    sample_goals,
)
from torchrl_metra.envs import KITCHEN_TASKS, DrawPoint, find_env, rendering_available
from torchrl_metra.envs.kitchen import SOLVED_JOINTS, make_kitchen
from torchrl_metra.envs.locomotion import make_locomotion
from torchrl_metra.evaluation import goal_metrics, rollout_goal_policies, rollout_goals

needs_renderer = pytest.mark.skipif(
    not rendering_available(), reason="no OpenGL backend of MuJoCo works here"
)
COMPASS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


def goals_at(*places: tuple[float, float]) -> TensorDict:
    position = torch.tensor(places)
    return TensorDict({"observation": position.clone(), "position": position}, [len(places)])


def identity() -> TensorDictModule:
    return TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["latent"])


def actor(read: nn.Module | None = None) -> TensorDictModule:
    """Moves along what ``read`` makes of the skill."""
    return TensorDictModule(read or nn.Identity(), in_keys=["skill"], out_keys=["action"])


class Compass(nn.Module):
    """The direction of each of four one-hot skills."""

    def forward(self, skill: Tensor) -> Tensor:
        return skill @ COMPASS


class FourArms(nn.Module):
    """φ of four one-hot skills in the plane: each entry grows along its own direction."""

    def forward(self, observation: Tensor) -> Tensor:
        return observation @ COMPASS.T


def goal_env(
    goals: TensorDict, prior: SkillPrior | None = None, num_envs: int | None = None
) -> EnvBase:
    env = make_env("point", num_envs).append_transform(SkillPrimer(prior or UnitSphere(2)))
    return env.append_transform(GoalPrimer(goals)).append_transform(InitTracker())


class TestPolicy:
    @pytest.mark.parametrize(
        ("prior", "expected"),
        [
            (UnitSphere(2), [[0.6, 0.8], [0.0, -1.0]]),
            (StandardNormal(2), [[0.6 * 2**0.5, 0.8 * 2**0.5], [0.0, -(2**0.5)]]),
            (OneHot(2), [[0.0, 1.0], [1.0, 0.0]]),
        ],
    )
    def test_skill_points_to_the_goal(self, prior: SkillPrior, expected: list) -> None:
        states = TensorDict({"observation": torch.tensor([[1.0, 1.0], [3.0, 3.0]])}, [2])
        states["goal"] = goals_at((4.0, 5.0), (3.0, -2.0))
        out = GoalReachingPolicy(actor(), identity(), prior)(states)
        torch.testing.assert_close(out["skill"], torch.tensor(expected))
        assert out["action"].equal(out["skill"])
        assert "latent" not in out.keys()

    @pytest.mark.parametrize("batch_size", [[], [4], [2, 3]])
    def test_batches(self, batch_size: list[int]) -> None:
        states = TensorDict({"observation": torch.zeros(*batch_size, 2)}, batch_size)
        states["goal", "observation"] = torch.randn(*batch_size, 2)
        states["is_init"] = torch.ones(*batch_size, 1, dtype=torch.bool)
        states["skill"] = torch.zeros(*batch_size, 2)
        for adaptive in (True, False):
            policy = GoalReachingPolicy(actor(), identity(), UnitSphere(2), adaptive=adaptive)
            skill = policy(states.clone())["skill"]
            torch.testing.assert_close(
                skill, nn.functional.normalize(states["goal", "observation"], dim=-1)
            )

    def test_single_chooses_in_first_steps_only(self) -> None:
        policy = GoalReachingPolicy(actor(), identity(), UnitSphere(2), adaptive=False)
        states = TensorDict(
            {
                "observation": torch.zeros(2, 2),
                "goal": goals_at((2.0, 0.0), (0.0, 2.0)),
                "is_init": torch.tensor([[True], [False]]),
                "skill": torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]),
            },
            [2],
        )
        assert policy(states)["skill"].tolist() == [[1, 0], [-1, 0]]

    def test_plain_encoder_and_other_names(self) -> None:
        states = TensorDict({"observation": torch.zeros(2), "state": torch.zeros(2)}, [])
        states["goal"] = TensorDict({"observation": [1.0, 0.0], "state": [0.0, 1.0]}, [])
        plain = GoalReachingPolicy(actor(), nn.Identity(), UnitSphere(2))
        assert plain(states)["skill"].tolist() == [1, 0]
        renamed = TensorDictModule(nn.Identity(), in_keys=["state"], out_keys=["phi"])
        policy = GoalReachingPolicy(actor(), renamed, UnitSphere(2))
        assert policy.in_keys == ["state", ("goal", "state")]
        assert policy(states)["skill"].tolist() == [0, 1]

    def test_shared_encoder(self) -> None:
        """φ and actor read the same features, which the policy reads along the way."""
        prior, pixels = OneHot(4), PixelOptions(resolution=32, frames=1)
        env = make_env("point_pixels", 3, pixels=pixels)
        networks = make_pixel_sac_networks(
            (3, 32, 32), env.action_spec, prior, num_cells=[16], channels=4, shared_encoder=True
        )
        goals = sample_goals("point_pixels", 5, pixels=pixels)
        env = env.append_transform(SkillPrimer(prior)).append_transform(GoalPrimer(goals))
        rollout = env.rollout(4, SkillPolicy.from_networks(networks, prior).reach_goals())
        with torch.no_grad():
            displacement = (
                networks.encoder(rollout["goal"].select("pixels").flatten())["latent"]
                - networks.encoder(rollout.select("pixels").flatten())["latent"]
            )
        assert rollout["skill"].flatten(0, 1).argmax(-1).equal(displacement.argmax(-1))


class TestGoalsOfThePoint:
    goals = goals_at((8.0, 6.0), (-3.0, 4.0), (0.0, -20.0))

    def rollouts(self, adaptive: bool, prior: SkillPrior, *networks: nn.Module) -> TensorDict:
        policy = GoalReachingPolicy(*networks, prior, adaptive=adaptive)
        return rollout_goals(goal_env(self.goals, prior, 3), policy, self.goals)

    def test_adaptive_arrives_and_stays(self) -> None:
        rollouts = self.rollouts(True, UnitSphere(2), actor(), identity())
        metrics = goal_metrics(rollouts)
        assert metrics["goal/final_distance"] < 0.3
        assert metrics["goal/end_1"] == metrics["goal/hit_1"] == 1
        assert metrics["goal/at_1"] > 0.5

    def test_single_goes_straight_on(self) -> None:
        rollouts = self.rollouts(False, UnitSphere(2), actor(), identity())
        direction = nn.functional.normalize(self.goals["position"], dim=-1)
        assert rollouts["skill"].allclose(direction.unsqueeze(1))
        metrics = goal_metrics(rollouts)
        assert metrics["goal/hit_1"] == 1
        assert metrics["goal/end_3"] == 0
        traveled = rollouts["next", "position"][:, -1].norm(dim=-1)
        beyond = traveled - torch.tensor([10.0, 5.0, 20.0])
        assert metrics["goal/final_distance"] == pytest.approx(beyond.mean().item(), rel=1e-3)

    def test_discrete_skills(self) -> None:
        """The compass reaches any place in turns, but only some straight on."""
        networks = actor(Compass()), FourArms()
        adaptive = goal_metrics(self.rollouts(True, OneHot(4), *networks))
        single = goal_metrics(self.rollouts(False, OneHot(4), *networks))
        assert adaptive["goal/final_distance"] < 0.4
        assert single["goal/hit_1"] == pytest.approx(1 / 3)

    @pytest.mark.parametrize("adaptive", [True, False])
    def test_collecting_through_partial_resets(self, adaptive: bool) -> None:
        """Environments that end at different times: each episode keeps to its own goal."""
        env = SerialEnv(2, [lambda: PointEnv(max_steps=5), lambda: PointEnv(max_steps=8)])
        env = TransformedEnv(env, SkillPrimer(UnitSphere(2)))
        env = env.append_transform(GoalPrimer(sample_goals("point", 100)))
        env = env.append_transform(InitTracker())
        policy = GoalReachingPolicy(actor(), identity(), UnitSphere(2), adaptive=adaptive)
        data = next(iter(Collector(env, policy, frames_per_batch=80, total_frames=80)))
        starts = data["is_init"].squeeze(-1)
        assert starts.sum(-1).tolist() == [8, 5]
        goal = data["goal", "position"]
        assert starts[:, 1:].equal((goal[:, 1:] != goal[:, :-1]).any(-1))
        toward = nn.functional.normalize(goal - data["position"], dim=-1)
        assert data["skill"][starts].allclose(toward[starts])
        if adaptive:
            assert data["skill"].allclose(toward)
        else:
            assert data["skill"][:, 1:][~starts[:, 1:]].equal(data["skill"][:, :-1][~starts[:, 1:]])

    def test_comparison(self) -> None:
        torch.manual_seed(0)
        skill_policy = SkillPolicy(actor(), identity(), UnitSphere(2))
        env, goals = make_env("point", 30), sample_goals("point", 30)
        rollouts = rollout_goal_policies(env, skill_policy, goals)
        distance = {
            name: goal_metrics(episodes)["goal/final_distance"]
            for name, episodes in rollouts.items()
        }
        assert "goal" not in env.reset().keys()
        assert distance["adaptive"] < 0.3 < 10 < distance["single"] < distance["random"]


class TestMetrics:
    def rollouts(self, walk: list[list[float]], goal: float) -> TensorDict:
        position = torch.tensor(walk).unsqueeze(-1)
        return TensorDict(
            {
                "position": position[:, :-1],
                "next": {"position": position[:, 1:]},
                "goal": {"position": torch.full_like(position[:, 1:], goal)},
            },
            list(position[:, 1:].shape[:2]),
        )

    def test_by_hand(self) -> None:
        # Distances to 10: [9, 3, 1, 0.5 | 4] and [3.25, 5, 5, 3 | start 2.9].
        walk = [[6.0, 1.0, 7.0, 9.0, 10.5], [7.1, 6.75, 5.0, 15.0, 13.0]]
        assert goal_metrics(self.rollouts(walk, 10.0)) == pytest.approx(
            {
                "goal/start_distance": (4 + 2.9) / 2,
                "goal/final_distance": (0.5 + 3) / 2,
                "goal/hit_3": 1.0,
                "goal/end_3": 1.0,
                "goal/at_3": 4 / 8,
                "goal/hit_1": 0.5,
                "goal/end_1": 0.5,
                "goal/at_1": 2 / 8,
            }
        )

    def test_tasks_of_the_kitchen(self) -> None:
        goal = torch.eye(6, dtype=torch.bool)[:3]
        tasks = torch.zeros(3, 4, 6, dtype=torch.bool)
        tasks[0, 1:, 0] = True
        tasks[1, :3, 1] = True
        tasks[2, :, 5] = True
        rollouts = TensorDict(
            {"next": {"tasks": tasks}, "goal": {"tasks": goal.unsqueeze(1).expand(3, 4, 6)}}, [3, 4]
        )
        assert goal_metrics(rollouts) == pytest.approx(
            {"goal/hit": 2 / 3, "goal/end": 1 / 3, "goal/at": 6 / 12}
        )


class TestPrimer:
    goals = sample_goals("point", 40)

    @pytest.mark.parametrize(
        "make",
        [
            lambda goals: TransformedEnv(PointEnv(), GoalPrimer(goals)),
            lambda goals: TransformedEnv(PointEnv(3), GoalPrimer(goals)),
            lambda goals: TransformedEnv(SerialEnv(3, PointEnv), GoalPrimer(goals)),
            lambda goals: SerialEnv(3, lambda: TransformedEnv(PointEnv(), GoalPrimer(goals))),
        ],
        ids=["single", "batched", "serial, outside", "serial, inside"],
    )
    def test_specs(self, make: object) -> None:
        env = make(self.goals)
        check_env_specs(env)
        rollout = env.rollout(4)
        assert rollout["goal", "observation"].shape == (*env.batch_size, 4, 2)
        assert rollout["next", "goal", "position"].equal(rollout["goal", "position"])
        env.close()

    def test_specs_of_pictures_and_tasks(self) -> None:
        goals = TensorDict(
            {
                "pixels": torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8),
                "tasks": torch.eye(6, dtype=torch.bool)[:5],
                "number": torch.arange(5),
            },
            [5],
        )
        env = TransformedEnv(PointEnv(2), GoalPrimer(goals))
        check_env_specs(env)
        drawn = env.reset()["goal"]
        assert drawn["pixels"].equal(goals["pixels"][drawn["number"]])
        assert drawn["tasks"].equal(goals["tasks"][drawn["number"]])

    def test_each_environment_draws_its_own(self) -> None:
        env = TransformedEnv(PointEnv(200), GoalPrimer(self.goals))
        drawn = env.reset()["goal", "position"]
        assert len(drawn.unique(dim=0)) > 30
        assert (drawn[:, None] == self.goals["position"]).all(-1).any(-1).all()

    def test_a_mask_and_a_self_resetting_environment_change_goals(self) -> None:
        goals = sample_goals("point", 100)
        env = TransformedEnv(PointEnv(2), GoalPrimer(goals))
        start = env.reset()
        mask = torch.tensor([[True], [False]])
        again = env.reset(start.clone().set("_reset", mask))
        changed = (again["goal"] != start["goal"])["position"].any(-1)
        assert changed.tolist() == [True, False]
        env = TransformedEnv(SelfResettingPoint(2, max_steps=3), GoalPrimer(goals))
        goal = env.rollout(6, break_when_any_done=False)["goal", "position"]
        changes = (goal[:, 1:] != goal[:, :-1]).any(-1).int()
        assert changes.tolist() == [[0, 0, 1, 0, 0]] * 2

    def test_goal_passed_to_reset_is_kept(self) -> None:
        env = TransformedEnv(PointEnv(2), GoalPrimer(self.goals))
        mine = goals_at((1.0, 2.0), (3.0, 4.0))
        start = env.reset(TensorDict({"goal": mine}, [2]))
        rollout = env.rollout(5, auto_reset=False, tensordict=start)
        assert rollout["next", "goal", "position"][:, -1].equal(mine["position"])


class TestSampleGoals:
    @pytest.mark.parametrize("name", ["point", "windy_point"])
    def test_points(self, name: str) -> None:
        goals = sample_goals(name, 500)
        assert goals.shape == (500,)
        assert goals["observation"].equal(goals["position"])
        assert 19 < goals["position"].abs().max() <= find_env(name).goal_extent
        assert goals["position"].mean(0).abs().max() < 2

    def test_extent_and_seed(self) -> None:
        state = torch.get_rng_state()
        first, again, other = (sample_goals("point", 9, extent=3.0, seed=s) for s in (1, 1, 2))
        assert first["position"].abs().max() <= 3
        assert first["position"].equal(again["position"])
        assert not first["position"].equal(other["position"])
        assert torch.get_rng_state().equal(state)

    def test_point_pixels(self) -> None:
        options = PixelOptions(resolution=16, frames=2)
        goals = sample_goals("point_pixels", 3, pixels=options)
        assert goals["pixels"].shape == (3, 6, 16, 16)
        picture = DrawPoint(16)(goals.select("position"))["pixels"].repeat(1, 2, 1, 1)
        assert goals["pixels"].equal(picture)
        env = make_env("point_pixels", 3, pixels=options)
        assert goals["pixels"].shape == env.reset()["pixels"].shape
        assert goals["pixels"].dtype == torch.uint8

    @pytest.mark.parametrize("name", ["ant", "half_cheetah"])
    @pytest.mark.parametrize("backend", ["envpool", "serial"])
    def test_states_are_moved_and_normalized(
        self, name: str, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("mujoco")
        if backend == "envpool":
            pytest.importorskip("envpool")
        monkeypatch.setattr("torchrl_metra.envs.goals.make_env", partial(make_env, backend=backend))
        entry = find_env(name)
        loc, scale = (torch.tensor(entry.observation_norm[key]) for key in ("loc", "scale"))
        state = torch.get_rng_state()
        goals = sample_goals(name, 6)
        assert torch.get_rng_state().equal(state)
        assert goals["position"].abs().max() > 0.4 * find_env(name).goal_extent
        raw, size = goals["observation"] * scale + loc, len(entry.position)
        position, pose = raw.split([size, raw.shape[-1] - size], -1)
        torch.testing.assert_close(position, goals["position"], atol=1e-3, rtol=1e-4)
        # The pose is one after a reset, with noise of its own.
        start = make_env(name, 1).reset()["observation"]
        start = (start * scale + loc)[:, -pose.shape[-1] :]
        assert (pose - start).abs().max() < 1
        assert len(pose.unique(dim=0)) == 6
        assert sample_goals(name, 6)["observation"].equal(goals["observation"])

    @needs_renderer
    @pytest.mark.parametrize("name", ["quadruped", "humanoid"])
    def test_robot_pictures_are_those_of_a_robot_there(self, name: str) -> None:
        pytest.importorskip("dm_control")
        mujoco = pytest.importorskip("mujoco")
        options = PixelOptions(resolution=32, frames=2)
        goals = sample_goals(name, 2, seed=3, pixels=options)
        assert goals["pixels"].shape == (2, 6, 32, 32)
        assert goals["position"].abs().max() <= find_env(name).goal_extent
        env = make_locomotion(name, 2, pixels=options)
        env.set_seed(3)
        env.reset()
        model, data = env.task.model, mujoco.MjData(env.task.model)
        with closing(options.renderer(model, env.task.camera)) as renderer:
            for goal, qpos in zip(goals, env.states.qpos, strict=True):
                # Really moved there, not drawn there.
                data.qpos[:] = qpos
                data.qpos[:2] = goal["position"]
                mujoco.mj_forward(model, data)
                here = torch.from_numpy(renderer.render(data)).permute(2, 0, 1)
                assert goal["pixels"].equal(here.repeat(2, 1, 1))
        env.close()

    @needs_renderer
    def test_kitchen(self) -> None:
        pytest.importorskip("gymnasium_robotics")
        goals = sample_goals("kitchen", 7, pixels=PixelOptions(frames=1))
        assert goals["pixels"].shape == (7, 3, 64, 64)
        assert goals["tasks"].equal(torch.eye(6, dtype=torch.bool)[[0, 1, 2, 3, 4, 5, 0]])
        assert set(SOLVED_JOINTS) == set(KITCHEN_TASKS)
        env = make_kitchen(pixels=PixelOptions())
        before = env.reset()["pixels"].int()
        env.close()
        # Each task shows, the knob of a burner least.
        difference = (goals["pixels"].int() - before).abs().amax(1)
        assert ((difference > 30).flatten(1).sum(-1) >= 2).all()
