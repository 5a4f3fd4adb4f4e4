"""Environments that the package does not know: registered, by their source, by a function."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, ObservationNorm, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_metra import (
    PixelOptions,
    PointEnv,
    SkillPolicy,
    UnitSphere,
    make_env,
    make_sac_networks,
    register_env,
    sample_goals,
)
from torchrl_metra._transforms import base_of, transforms_of
from torchrl_metra.envs import (
    DrawPoint,
    ReadPosition,
    find_env,
    make,
    measure_observations,
    registered_envs,
    registry,
    rendering_available,
)
from torchrl_metra.envs.statistics import random_steps

gymnasium = pytest.importorskip("gymnasium")

needs_renderer = pytest.mark.skipif(
    not rendering_available(), reason="no OpenGL backend of MuJoCo works here"
)
SMALL = PixelOptions(resolution=32, frames=2)


@pytest.fixture(autouse=True)
def short_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few random steps, and nothing that stays registered."""
    monkeypatch.setattr(make, "random_steps", partial(random_steps, num_steps=400))
    monkeypatch.setattr(make, "_MEASURED", {})
    monkeypatch.setattr(registry, "_ENTRIES", dict(registered_envs()))


class Drift(EnvBase):
    """Several entries, float64, unbounded in time: y is moved by the action, 5 stays 5."""

    def __init__(self, num_envs: int | None = None) -> None:
        super().__init__(batch_size=[] if num_envs is None else [num_envs])
        shape = self.batch_size
        self.observation_spec = Composite(
            height=Unbounded(shape, dtype=torch.float64),
            place=Unbounded((*shape, 2), dtype=torch.float64),
            name=Unbounded((*shape, 1), dtype=torch.int64),
            shape=shape,
        )
        self.action_spec = Bounded(-2, 2, (*shape, 1), dtype=torch.float64)
        self.reward_spec = Unbounded((*shape, 1))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return self.observation_spec.zero() + self._height()

    def _height(self) -> TensorDictBase:
        zero = self.observation_spec.zero()
        return zero.set("height", zero["height"] + 5)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        place = tensordict["place"].clone()
        place[..., 1:] += tensordict["action"]
        done = self.full_done_spec.zero()
        out = self._height().set("place", place).update(done)
        return out.set("reward", self.reward_spec.zero())

    def _set_seed(self, seed: int | None) -> None:
        pass


class Clock(gymnasium.Env):
    """A gymnasium environment that ends by its own limit and draws itself."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, length: int = 30, render_mode: str | None = None) -> None:
        self.length, self.render_mode, self.steps = length, render_mode, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        return self._observe(), 0.0, False, self.steps >= self.length, {}

    def render(self) -> Any:
        picture = np.zeros((40, 60, 3), np.uint8)
        picture[:20] = 200
        return picture

    def _observe(self) -> Any:
        return np.array([self.steps / self.length, 0.0], np.float32)


def kinds_of(env: EnvBase) -> list[str]:
    return [type(transform).__name__ for transform in transforms_of(env)]


class TestRegistry:
    def test_an_environment_of_ones_own(self) -> None:
        norm = {"loc": torch.tensor([1.0, 2.0]), "scale": torch.tensor([2.0, 4.0])}
        entry = register_env(
            "mine", PointEnv, summary="Mine.", max_steps=6, observation_norm=norm, goal_extent=3.0
        )
        assert find_env("mine") is entry
        rollout = make_env("mine", 2).rollout(100)
        assert rollout.shape == (2, 6)
        raw = rollout["observation"] * norm["scale"] + norm["loc"]
        torch.testing.assert_close(raw, rollout["position"])

    def test_on_top_of_another(self) -> None:
        register_env("walker", "gym:Walker2d-v5", summary="A walker.", max_steps=9, position=(1,))
        env = make_env("walker", normalize=False)
        rollout = env.rollout(3)
        assert rollout["position"].equal(rollout["observation"][:, 1:2])
        assert env.base_env.spec.max_episode_steps == 9
        assert find_env("half_cheetah_goal").goal_extent == find_env("half_cheetah").goal_extent

    def test_episodes_may_end_apart(self) -> None:
        """One episode is over while another goes on, with the simulator's own floats."""
        register_env("walker", "gym:Walker2d-v5", summary="A walker.")
        env = make_env("walker", 2, backend="serial", normalize=False)
        env.set_seed(0)
        actions = torch.stack([torch.ones(6), torch.zeros(6)])
        rollout = env.rollout(
            200,
            TensorDictModule(lambda observation: actions, ["observation"], ["action"]),
            break_when_any_done=False,
            break_when_all_done=True,
        )
        ends = rollout["next", "done"].squeeze(-1).int().argmax(dim=1)
        assert ends[0] != ends[1]
        assert rollout["observation"].dtype is torch.float32

    def test_a_name_is_taken_once(self) -> None:
        register_env("mine", PointEnv, summary="Mine.")
        with pytest.raises(ValueError, match="'mine' already"):
            register_env("mine", Drift, summary="Mine.")
        measured = make_env("mine").transform[-1].loc
        register_env("mine", Drift, summary="Another.", max_steps=9, replace=True)
        assert make_env("mine").transform[-1].loc.shape != measured.shape

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'half_cheetah'"):
            make_env("half_cheeta")


class TestFunctions:
    def test_several_entries_become_one_vector(self) -> None:
        for source, num_envs in ((Drift, 3), (lambda: Drift(), 3), (Drift, None)):
            env = make_env(source, num_envs, max_steps=50, position=[2])
            check_env_specs(env)
            rollout = env.rollout(100)
            assert rollout.shape[-1] == 50
            assert rollout["next", "truncated"][..., -1, :].all()
            assert rollout["observation"].dtype == rollout["action"].dtype == torch.float32
            assert rollout["observation"].shape[-1] == 3
            # A constant is moved to zero and not blown up.
            assert not rollout["observation"][..., 0].any()
            assert env.action_spec.space.high.eq(1).all()
            step = rollout["next", "position"] - rollout["position"]
            torch.testing.assert_close(step, 2 * rollout["action"])
            env.close()

    def test_no_end_asks_for_max_steps(self) -> None:
        with pytest.raises(ValueError, match="give max_steps=200"):
            make_env(Drift, normalize=False)
        limited = make_env(lambda: TransformedEnv(PointEnv(), StepCounter(5)), normalize=False)
        assert limited.rollout(9).shape == (5,)
        # Its limit shows in random steps only.
        assert make_env(Clock, normalize=False).rollout(99).shape == (30,)

    def test_closures_in_this_process_and_in_others(self) -> None:
        length = 4
        for backend, num_envs in (("serial", 2), ("parallel", 1)):
            env = make_env(
                lambda: PointEnv(max_steps=length), num_envs, backend=backend, normalize=False
            )
            assert env.rollout(9).shape == (num_envs, 4)
            env.close()

    def test_by_name_from_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "my_robot.py").write_text(
            "from torchrl_metra import PointEnv\n"
            "def build(speed=1.0):\n    return PointEnv(max_steps=int(3 * speed))\n"
            "def where(states):\n    return 10 * states['observation'][..., :1]\n"
        )
        monkeypatch.chdir(tmp_path)
        path = list(sys.path)
        for backend, num_envs in (("serial", 2), ("parallel", 1)):
            env = make_env(
                "my_robot:build",
                num_envs,
                backend=backend,
                position="my_robot:where",
                normalize=False,
                options={"speed": 2},
            )
            rollout = env.rollout(9)
            env.close()
            assert rollout.shape == (num_envs, 6)
            torch.testing.assert_close(rollout["position"], 10 * rollout["observation"][..., :1])
        assert sys.path == path
        with pytest.raises(ValueError, match="no attribute 'built'"):
            make_env("my_robot:built")
        with pytest.raises(ValueError, match="No module named 'my_robots'"):
            make_env("my_robots:build")

    def test_gymnasium_environments_are_wrapped(self) -> None:
        env = make_env(Clock, 2)
        check_env_specs(env)
        assert env.rollout(99)["observation"][..., 0].std() > 0.5

    def test_pictures_are_its_own(self) -> None:
        def draw(pixels: PixelOptions | None = None) -> EnvBase:
            return TransformedEnv(PointEnv(), DrawPoint(pixels.resolution))

        env = make_env(draw, 2, backend="serial", pixels=SMALL, normalize=False)
        rollout = env.rollout(3)
        assert rollout["pixels"].shape == (2, 3, 6, 32, 32)
        assert "observation" in rollout.keys()

    def test_what_cannot_be(self) -> None:
        with pytest.raises(ValueError, match="discrete ones"):
            make_env("gym:CartPole-v1")
        with pytest.raises(ValueError, match="terminate"):
            make_env(PointEnv, terminate=False)


class TestGymnasium:
    def test_walker_shows_where_it_is(self) -> None:
        pytest.importorskip("mujoco")
        env = make_env("gym:Walker2d-v5", 2, normalize=False)
        rollout = env.rollout(3)
        assert rollout["observation"].shape == (2, 3, 18)
        x = torch.from_numpy(env.base_env.states.qpos[:, :1]).float()
        torch.testing.assert_close(rollout["next", "position"][:, -1], x)
        own = make_env(
            "gym:Walker2d-v5",
            normalize=False,
            options={"exclude_current_positions_from_observation": True},
        )
        assert own.reset()["observation"].shape == (17,)
        assert "position" not in own.reset().keys()

    def test_normalized_by_random_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        states, norms = [], []
        for normalize in (False, None, None):
            monkeypatch.setattr(make, "_MEASURED", {})
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002
            env = make_env("gym:Pendulum-v1", 5, normalize=normalize)
            states.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))  # noqa: NPY002
            norms.append([t for t in transforms_of(env) if isinstance(t, ObservationNorm)])
        assert states[0][0].equal(states[1][0])
        assert states[0][1] == states[1][1]
        assert not norms[0]
        assert norms[1][0].loc.equal(norms[2][0].loc)
        assert norms[1][0].scale.equal(norms[2][0].scale)
        # In the same steps again, what was measured is removed.
        left = measure_observations(make_env("gym:Pendulum-v1", 10), 400)
        torch.testing.assert_close(left["loc"], torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(left["scale"], torch.ones(3), atol=1e-4, rtol=0)

    def test_a_policy_builds_the_same_environment_again(self) -> None:
        env, prior = make_env("gym:Pendulum-v1"), UnitSphere(2)
        networks = make_sac_networks(3, env.action_spec, prior, num_cells=[8])
        norm = SkillPolicy.from_networks(networks, prior, env).observation_norm
        again = make_env("gym:Pendulum-v1", normalize=norm)
        for one in (env, again):
            one.set_seed(0)
        assert env.reset()["observation"].equal(again.reset()["observation"])

    def test_ends(self) -> None:
        pytest.importorskip("mujoco")
        fall = {"healthy_z_range": (5.0, 6.0)}  # Never healthy.
        for terminate, length in ((None, 1), (True, 1), (False, 7)):
            env = make_env(
                "gym:Walker2d-v5",
                max_steps=7,
                terminate=terminate,
                normalize=False,
                options=fall,
            )
            assert env.rollout(20).shape == (length,)
        with pytest.raises(TypeError, match="terminate_when_unhealthy"):
            make_env("gym:HalfCheetah-v5", terminate=False)
        # Never terminates, which is what was asked for.
        assert make_env("half_cheetah", terminate=False, max_steps=3).rollout(9).shape == (3,)

    @needs_renderer
    def test_pictures_beside_the_state(self) -> None:
        env = make_env(
            "gym:InvertedPendulum-v5", 2, backend="serial", pixels=SMALL, normalize=False
        )
        check_env_specs(env)
        start = env.reset()
        assert start["observation"].shape == (2, 4)
        assert start["pixels"].shape == (2, 6, 32, 32)
        assert start["pixels"].float().std() > 5

    def test_pictures_of_what_draws_itself(self) -> None:
        gymnasium.register("Clock-v0", entry_point=Clock)
        env = make_env("gym:Clock-v0", pixels=SMALL, max_steps=5, normalize=False)
        picture = env.reset()["pixels"]
        assert picture.shape == (6, 32, 32)
        assert picture[:, :16].eq(200).all()
        assert not picture[:, 16:].any()


class TestSuite:
    def test_states(self) -> None:
        pytest.importorskip("dm_control")
        # Where the robot is, then what the suite shows.
        for task, size, position in (
            ("walker-run", 25, 1),
            ("swimmer-swimmer6", 27, 2),
            ("fish-swim", 26, 2),
            ("cartpole-swingup", 5, 0),
        ):
            env = make_env(f"dm_control:{task}", max_steps=4, normalize=False)
            rollout = env.rollout(9)
            assert rollout.shape == (4,)
            assert rollout["next", "truncated"][-1]
            assert rollout["observation"].shape == (4, size)
            assert rollout["observation"].dtype == torch.float32
            if position:
                torch.testing.assert_close(
                    rollout["position"], rollout["observation"][:, :position]
                )
            else:
                assert "position" not in rollout.keys()
            env.close()
        walker = make_env("dm_control:walker-run", normalize=False)
        walker.base_env._env.physics.named.data.qpos["rootx"] = 3.5
        moved = walker.rand_step(walker.reset())["next"]  # A reset moves it back.
        assert abs(float(moved["position"])) < 1

    def test_no_end(self) -> None:
        pytest.importorskip("dm_control")
        with pytest.raises(ValueError, match="give max_steps=200"):
            make_env("dm_control:lqr-lqr_2_1", normalize=False)

    def test_a_diverging_simulation_is_truncated(self) -> None:
        """Of a task that stays with the suite."""
        pytest.importorskip("dm_control")
        env = make_env("dm_control:reacher-easy", 2, max_steps=20, normalize=False)
        first = env.reset()
        base_of(env.base_env._envs[1]).simulator.physics.data.qvel[0] = np.nan
        with pytest.warns(RuntimeWarning, match="diverged"):
            data, following = env.step_and_maybe_reset(env.rand_action(first.clone()))
        ended = data["next"]
        assert ended["truncated"].flatten().tolist() == [False, True]
        assert ended["done"].flatten().tolist() == [False, True]
        assert not ended["terminated"].any()
        assert ended["reward"][1] == 0
        assert ended["observation"][1].equal(first["observation"][1])
        rollout = env.rollout(5, auto_reset=False, tensordict=following)
        assert rollout["next", "observation"].isfinite().all()
        assert not rollout["next", "done"].any()

    @needs_renderer
    @pytest.mark.parametrize("backend", ["mujoco", "serial"])
    def test_pictures_tell_the_position(self, backend: Literal["mujoco", "serial"]) -> None:
        pytest.importorskip("dm_control")
        env = make_env("dm_control:walker-run", backend=backend, pixels=SMALL, normalize=False)
        check_env_specs(env)
        start = env.reset()
        assert start["pixels"].shape == (6, 32, 32)
        assert start["observation"].shape == (25,)
        base = env.base_env
        if backend == "mujoco":
            base.states.qpos[0, base.task.model.joint("rootx").qposadr[0]] = 8.0
            there = base.observe()["pixels"].float()
        else:
            physics = base.simulator.physics
            physics.named.data.qpos["rootx"] = 8.0
            physics.forward()
            there = base.read_obs(base.simulator.task.get_observation(physics))["pixels"].float()
        assert (there - start["pixels"][3:].float()).abs()[:, -4:].max() > 20
        env.close()


class TestEnvPool:
    def test_hopper(self) -> None:
        pytest.importorskip("envpool")
        env = make_env("envpool:Hopper-v5", 4, max_steps=20, terminate=False)
        check_env_specs(env)
        rollout = env.rollout(50)
        assert rollout.shape == (4, 20)
        assert rollout["observation"].shape[-1] == 12
        assert rollout["position"].shape[-1] == 1
        assert kinds_of(env) == ["ReadPosition", "ObservationNorm"]
        env.close()


class TestMeasuring:
    def test_constants(self) -> None:
        env = make_env(Drift, 5, max_steps=10, normalize=False)
        norm = measure_observations(env, 500, seed=1)
        assert norm["loc"][0] == 5
        assert norm["scale"][0] == 1  # 5 stays 5
        assert norm["scale"][2] > 1
        assert norm["loc"].equal(measure_observations(env, 500, seed=1)["loc"])
        assert not norm["loc"].equal(measure_observations(env, 500, seed=2)["loc"])


class TestReadPosition:
    def read(self, entries: Any) -> Tensor:
        states = TensorDict({"observation": torch.arange(8.0).reshape(2, 4)}, [2])
        return ReadPosition(entries)(states)["position"]

    def test_entries(self) -> None:
        assert self.read(2).tolist() == [[0, 1], [4, 5]]
        assert self.read([3, 0]).tolist() == [[3, 0], [7, 4]]
        assert self.read(lambda states: states["observation"][..., :1] * 2).tolist() == [[0], [8]]


class TestGoals:
    def test_by_entries(self) -> None:
        options = {"position": [1], "max_steps": 9}
        goals = sample_goals(Drift, 20, extent=6.0, env_options=options)
        assert 3 < goals["position"].abs().max() <= 6
        norm = make_env(Drift, **options).transform[-1]
        raw = goals["observation"] * norm.scale + norm.loc
        torch.testing.assert_close(raw[:, 1:2], goals["position"])
        assert raw[:, 0].eq(5).all()
