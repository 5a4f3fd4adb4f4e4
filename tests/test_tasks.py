from __future__ import annotations

import pytest
import torch
from conftest import SelfResettingPoint
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, TransformedEnv, check_env_specs

from torchrl_metra import PixelOptions, PointEnv, make_env
from torchrl_metra.envs import PassHurdles, ReachGoals, rendering_available

BASES = {
    "point_goal": "point",
    "ant_multi_goals": "ant",
    "half_cheetah_goal": "half_cheetah",
    "half_cheetah_hurdle": "half_cheetah",
}


def toward(state: TensorDictBase, target: torch.Tensor) -> TensorDictBase:
    """Moves a point of PointEnv to a place, as fast as it can."""
    return state.set("action", (target - state["position"]).clamp(-0.2, 0.2))


def walk(env: EnvBase, targets: list[torch.Tensor]) -> TensorDictBase:
    states, state = [], env.reset()
    for target in targets:
        states.append(env.step(toward(state, target)).clone())
        state = env.step_mdp(states[-1])
    return torch.stack(states, dim=-1)


class TestReachGoals:
    def make(self, num_envs: int | None = 4, **kwargs: int) -> TransformedEnv:
        return TransformedEnv(PointEnv(num_envs), ReachGoals(3.0, radius=0.5, **kwargs))

    @pytest.mark.parametrize("steps_per_goal", [None, 3])
    @pytest.mark.parametrize("num_envs", [None, 2])
    def test_specs(self, num_envs: int | None, steps_per_goal: int | None) -> None:
        check_env_specs(self.make(num_envs, steps_per_goal=steps_per_goal))

    def test_one_for_every_step_near_the_goal(self) -> None:
        env = self.make()
        torch.manual_seed(0)
        goal = env.reset()["goal_position"].clone()
        torch.manual_seed(0)
        steps = walk(env, [goal] * 20)
        distance = (steps["next", "position"] - goal[:, None]).norm(dim=-1, keepdim=True)
        assert steps["next", "reward"].equal((distance <= 0.5).float())
        assert steps["next", "reward"][:, -1].eq(1).all()
        assert not steps["next", "done"].any()
        assert steps["next", "goal_position"].equal(goal[:, None].expand(4, 20, 2))

    def test_self_resetting_environment_has_a_goal_per_episode(self) -> None:
        env = TransformedEnv(SelfResettingPoint(2, max_steps=3), ReachGoals(3.0, radius=0.5))
        start = env.reset()
        env.base_env._steps[0] = 1
        steps = env.rollout(6, auto_reset=False, tensordict=start, break_when_any_done=False)
        goal = steps["goal_position"]
        changes = (goal[:, 1:] != goal[:, :-1]).any(-1).int()
        assert changes.tolist() == [[0, 1, 0, 0, 1], [0, 0, 1, 0, 0]]
        assert steps["to_goal"].allclose((goal - steps["position"]) / 0.5)

    def test_goals_are_uniform(self) -> None:
        goals = self.make(5_000).reset()["goal_position"]
        assert goals.abs().max() <= 3
        assert goals.mean(dim=0).abs().max() < 0.1
        assert goals.abs().mean() == pytest.approx(1.5, abs=0.05)

    def test_partial_reset(self) -> None:
        env = self.make(2)
        state = env.step_mdp(env.rand_step(env.reset())).clone()
        reset = env.reset(state.clone().set("_reset", torch.tensor([[True], [False]])))
        assert not reset["goal_position"][0].equal(state["goal_position"][0])
        assert reset["goal_position"][1].equal(state["goal_position"][1])
        assert reset["to_goal"][1].equal(state["to_goal"][1])

    def test_a_new_goal_follows(self) -> None:
        env = self.make(300, steps_per_goal=3)
        steps = walk(env, [torch.tensor([9.0, 9.0])] * 7)
        goals = steps["goal_position"]
        assert goals[:, 0].equal(goals[:, 2])
        for change in (3, 6):
            moved = goals[:, change] - goals[:, change - 1]
            assert 2.5 < moved.abs().max() <= 3
            assert moved.mean(dim=0).abs().max() < 0.4
        # The step that ends a goal's time still counts for that goal.
        distance = (steps["next", "position"] - goals).norm(dim=-1, keepdim=True)
        assert steps["next", "reward"].equal((distance <= 0.5).float())
        assert not steps["next", "to_goal"][:, 2].equal(steps["next", "to_goal"][:, 1])


class TestPassHurdles:
    def test_rewards_and_distances(self) -> None:
        """The back is 0.62 behind: hurdles at 0.5 and 1 are passed at x > 1.12 and x > 1.62."""
        env = TransformedEnv(PointEnv(2), PassHurdles((-1.0, 0.5, 1.0)))
        check_env_specs(env)
        there, back = torch.tensor([2.0, 0.0]), torch.tensor([1.4, 0.0])
        steps = walk(env, [there] * 10 + [back] * 3)
        assert steps["next", "reward"][0].flatten().tolist() == [0] * 5 + [1, 0, 0, 1] + [
            0,
            0,
            -1,
            0,
        ]
        x = steps["next", "position"][0, :, 0]
        following = torch.tensor([0.5] * 5 + [1.0] * 3 + [x[8] - 0.62, x[9] - 0.62, x[10] - 0.62])
        torch.testing.assert_close(
            steps["next", "to_goal"][0, :11, 0], following - (x[:11] - 0.62), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(steps["next", "to_goal"][0, 12], torch.tensor([0.22]))


class TestMakeEnv:
    @pytest.mark.parametrize(
        ("name", "num_envs"),
        [
            ("point_goal", None),
            ("ant_multi_goals", 2),
            ("half_cheetah_goal", None),
            ("half_cheetah_hurdle", 2),
        ],
    )
    def test_by_state(self, name: str, num_envs: int | None) -> None:
        pytest.importorskip("mujoco")
        env, base = make_env(name, num_envs), make_env(BASES[name], num_envs)
        check_env_specs(env)
        # The skill policy finds what it was trained on.
        assert env.observation_spec["observation"] == base.observation_spec["observation"]
        assert env.action_spec == base.action_spec
        rollout = env.rollout(3)
        assert rollout["next", "reward"].eq(rollout["next", "reward"].round()).all()
        env.close()

    def test_by_pixels(self) -> None:
        pytest.importorskip("dm_control")
        if not rendering_available():
            pytest.skip("MuJoCo cannot draw on this machine")
        env = make_env("humanoid_goal", pixels=PixelOptions(resolution=32, frames=2))
        rollout = env.rollout(2)
        assert rollout["pixels"].shape == (2, 6, 32, 32)
        assert rollout["goal_position"].abs().max() <= 5
        displacement = rollout["goal_position"] - rollout["position"]
        torch.testing.assert_close(rollout["to_goal"], displacement / 1.5)
        env.close()

    def test_hurdles_stand_in_the_simulation(self) -> None:
        mujoco = pytest.importorskip("mujoco")
        plain, course = make_env("half_cheetah"), make_env("half_cheetah_hurdle")
        models = [env.base_env._env.unwrapped.model for env in (plain, course)]
        assert models[1].ngeom == models[0].ngeom + 12
        assert models[1].body_mass.tolist() == pytest.approx(models[0].body_mass.tolist())
        simulation = course.base_env._env.unwrapped
        # Not the pose after a reset, which is random: the foot may be beside the bar.
        simulation.data.qpos[:] = 0
        simulation.data.qpos[0] = 3.62  # the back foot in the hurdle at 3
        mujoco.mj_forward(simulation.model, simulation.data)
        hit = {int(geom) for contact in simulation.data.contact for geom in contact.geom}
        assert hit & set(range(models[0].ngeom, models[1].ngeom))
