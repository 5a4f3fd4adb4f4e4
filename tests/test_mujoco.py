"""Any MuJoCo model, many at a time."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from torchrl_metra import MuJoCoPoolEnv, MuJoCoTask, make_env, make_metra
from torchrl_metra.envs import add_frame_sensors, measured
from torchrl_metra.trainers import CollectorState

mujoco = pytest.importorskip("mujoco")
gymnasium = pytest.importorskip("gymnasium")

TRIPOD, INCHWORM = "examples/tripod.xml", "examples/inchworm.xml"
WITHOUT_FORCES = {"include_cfrc_ext_in_observation": False}
GYMNASIUM = {"Ant-v5": WITHOUT_FORCES, "HalfCheetah-v5": {}, "Walker2d-v5": {}, "Hopper-v5": {}}
SUITE = {"quadruped_state": "quadruped-run", "humanoid_state": "humanoid-run"}


def pool(name: str, num_envs: int | None = 5, **options: Any) -> MuJoCoPoolEnv:
    """A batch on MuJoCo's threads, without transforms."""
    if name in SUITE:
        pytest.importorskip("dm_control")
    if name in GYMNASIUM:
        options["terminate"] = None if name == "HalfCheetah-v5" else False
        options["options"] = GYMNASIUM[name]
        name = f"gym:{name}"
    return make_env(name, num_envs, backend="mujoco", normalize=False, **options).base_env


def states_of(env: MuJoCoPoolEnv) -> NDArray[np.float64]:
    qpos, qvel, act, _ = env.states
    return np.concatenate([qpos, qvel, act], axis=1)


def act(env: MuJoCoPoolEnv, current: TensorDict) -> tuple[NDArray[Any], TensorDict]:
    """Controls of random actions, and what follows them."""
    current = env.rand_action(current)
    control = env.task.control(current["action"].double().numpy(), env.states).copy()
    return control, env.step(current)["next"]


def visited(env: MuJoCoPoolEnv, number: int) -> list[tuple[NDArray[Any], ...]]:
    """States, controls, the states after them and what was observed, in episodes of 50 steps."""
    env.set_seed(0)
    torch.manual_seed(0)
    steps: list[tuple[NDArray[Any], ...]] = []
    current = env.reset()
    while len(steps) < number:
        before = states_of(env)
        control, current = act(env, current)
        observed = current["observation"].numpy(), current["reward"].numpy()[:, 0]
        steps += zip(before, control, states_of(env), *observed, strict=True)
        if len(steps) % (50 * len(before)) == 0:
            current = env.reset()
    return steps[:number]


class Alone:
    """The untouched simulator of gymnasium or the suite, set to a state."""

    def __init__(self, name: str) -> None:
        self.is_suite = name in SUITE
        if self.is_suite:
            from dm_control import suite

            self.env = suite.load(*SUITE[name].split("-"))
            self.model, self.data = self.env.physics.model.ptr, self.env.physics.data.ptr
        else:
            shows_x = {"exclude_current_positions_from_observation": False}
            self.env = gymnasium.make(name, **shows_x, **GYMNASIUM[name]).unwrapped
            self.model, self.data = self.env.model, self.env.data

    def set(self, state: NDArray[Any]) -> None:
        self.env.reset()
        nq, nv = self.model.nq, self.model.nv
        qpos, qvel, act = np.split(state, [nq, nq + nv])
        if not self.is_suite:
            return self.env.set_state(qpos, qvel)
        with self.env.physics.reset_context():
            self.data.qpos[:], self.data.qvel[:], self.data.act[:] = qpos, qvel, act
        return None

    def step(self, control: NDArray[Any]) -> tuple[NDArray[Any], float]:
        """What is observed, and the reward."""
        if not self.is_suite:
            return self.env.step(control)[:2]
        for _ in range(2):
            step = self.env.step(control)
        torso = self.env.physics.named.data.geom_xpos["torso"]
        parts = [torso, *map(np.ravel, step.observation.values())]
        return np.concatenate(parts), step.reward

    @property
    def state(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel, self.data.act])


class TestPhysics:
    @pytest.mark.parametrize("name", [f"mujoco:{TRIPOD}", f"mujoco:{INCHWORM}", *GYMNASIUM, *SUITE])
    def test_bit_by_bit_that_of_one_simulation_at_a_time(self, name: str) -> None:
        env = pool(name)
        current = env.reset()
        model = env.task.model
        alone = [mujoco.MjData(model) for _ in range(5)]
        for data, *state in zip(alone, *env.states[:3], strict=True):
            data.qpos[:], data.qvel[:], data.act[:] = state
        for _ in range(20):
            control, current = act(env, current)
            for data, controls in zip(alone, control, strict=True):
                data.qacc_warmstart[:] = 0
                data.ctrl[:] = controls
                for _ in range(env.task.frame_skip):
                    mujoco.mj_step(model, data)
        expected = np.stack([np.concatenate([one.qpos, one.qvel, one.act]) for one in alone])
        np.testing.assert_array_equal(states_of(env), expected)
        np.testing.assert_array_equal(
            env.states.sensordata, np.stack([one.sensordata for one in alone])
        )

    @pytest.mark.parametrize("name", [*GYMNASIUM, *SUITE])
    def test_one_decision_from_1000_states_is_that_of_the_untouched_simulator(
        self, name: str
    ) -> None:
        alone = Alone(name)
        # What the suite measures by position and velocity lags one substep here.
        lagging = {"quadruped_state": [*range(47, 51), *range(54, 57)]}
        lagging["humanoid_state"] = list(range(24, 43))
        for before, control, after, observation, reward in visited(pool(name, 10), 1_000):
            alone.set(before)
            observed, rewarded = alone.step(control)
            np.testing.assert_allclose(after, alone.state, rtol=0, atol=1e-6)
            exact = np.delete(np.arange(len(observed)), lagging.get(name, []))
            np.testing.assert_allclose(observation[exact], observed[exact], rtol=1e-5, atol=1e-5)
            # Ant's is that of the substep before, and has costs of contacts.
            tolerance = 0.1 if name == "Ant-v5" else 0.03 if name in SUITE else 1e-5
            assert reward == pytest.approx(rewarded, abs=tolerance)

    @pytest.mark.parametrize("name", [*GYMNASIUM, *SUITE])
    def test_200_random_steps_lead_as_far_as_those_of_the_untouched_simulator(
        self, name: str
    ) -> None:
        number = 24 if name in SUITE else 48
        env, alone = pool(name, number), Alone(name)
        env.set_seed(1)
        torch.manual_seed(1)
        current, start, controls, speeds = env.reset(), states_of(env), [], [[], []]
        for _ in range(200):
            control, current = act(env, current)
            controls.append(control)
            speeds[0].append(np.linalg.norm(env.states.qvel, axis=1))
        ends = [states_of(env), np.zeros_like(start)]
        for i in range(number):
            alone.set(start[i])
            for control in controls:
                alone.step(control[i])
                speeds[1].append(np.linalg.norm(alone.data.qvel))
            ends[1][i] = alone.state
        place = slice(0, 1 if name in ("HalfCheetah-v5", "Walker2d-v5", "Hopper-v5") else 2)
        # Contacts make single trajectories part; their means agree within what chance allows.
        ways = np.stack([np.linalg.norm((end - start)[:, place], axis=1) for end in ends])
        error = np.sqrt(ways.var(axis=1, ddof=1).sum() / number)
        assert abs(np.diff(ways.mean(axis=1))) < 3 * error
        assert np.mean(speeds[0]) == pytest.approx(np.mean(speeds[1]), rel=0.05)

    def test_the_number_of_threads_changes_nothing(self) -> None:
        task = MuJoCoTask.of(TRIPOD)
        ends = []
        for num_threads in (1, 3):
            env = MuJoCoPoolEnv(task, 7, num_threads=num_threads, max_steps=15)
            assert env.num_threads == num_threads
            env.set_seed(3)
            torch.manual_seed(3)
            ends.append(env.rollout(40, break_when_any_done=False)["next", "observation"])
            env.close()
        assert ends[0].equal(ends[1])

    def test_one_diverges_and_the_others_go_on(self) -> None:
        outcomes = []
        for breaks in (False, True):
            env = MuJoCoPoolEnv(MuJoCoTask.of(TRIPOD, frame_skip=1), 3)
            env.set_seed(0)
            first = env.reset().set("action", torch.full((3, 6), 0.5))
            shown = first["observation"].clone()
            if breaks:
                env.states.qvel[1, 0] = 1e11  # MuJoCo takes that for bad, and resets it.
                with pytest.warns(RuntimeWarning, match="1 of 3"):
                    outcomes.append(env.step(first)["next"])
            else:
                outcomes.append(env.step(first)["next"])
        well, ill = outcomes
        assert ill["truncated"].flatten().tolist() == [False, True, False]
        assert not ill["terminated"].any()
        assert ill["observation"][[0, 2]].equal(well["observation"][[0, 2]])
        assert ill["observation"].isfinite().all()
        assert ill["position"][1].equal(shown[1, :2])


class TestEpisodes:
    @pytest.mark.parametrize("num_envs", [None, 1, 4])
    def test_specs(self, num_envs: int | None) -> None:
        env = MuJoCoPoolEnv(MuJoCoTask.of(INCHWORM), num_envs, max_steps=7)
        check_env_specs(env)
        batch = () if num_envs is None else (num_envs,)
        rollout = env.rollout(20)
        assert rollout.shape == (*batch, 7)
        assert rollout["observation"].shape == (*batch, 7, 6 + 6 + 3)
        assert rollout["position"].shape == (*batch, 7, 1)
        assert rollout["next", "truncated"][..., -1, :].all()
        assert not rollout["next", "terminated"].any()

    def test_partial_reset(self) -> None:
        env = MuJoCoPoolEnv(MuJoCoTask.of(TRIPOD), 3, max_steps=6)
        env.set_seed(0)
        last = env.rollout(4)["next"][:, -1].exclude("reward")
        before = states_of(env)
        reset = torch.tensor([[False], [True], [False]])
        fresh = env.reset(last.set("_reset", reset))
        assert (states_of(env)[[0, 2]] == before[[0, 2]]).all()
        assert (states_of(env)[1] != before[1]).any()
        assert fresh["observation"][[0, 2]].equal(last["observation"][[0, 2]])
        # Its episode is a new one of six steps, those of the others end two steps later.
        ends = env.rollout(6, auto_reset=False, tensordict=fresh, break_when_any_done=False)
        first_ends = ends["next", "done"].squeeze(-1).int().argmax(dim=1)
        assert first_ends.tolist() == [1, 5, 1]

    def test_each_simulation_has_random_numbers_of_its_own(self) -> None:
        task = MuJoCoTask.of(TRIPOD)
        starts = []
        for num_envs in (2, 4):
            env = MuJoCoPoolEnv(task, num_envs)
            env.set_seed(5)
            starts.append([env.reset()["observation"] for _ in range(3)])
        for few, many in zip(*starts, strict=True):
            assert few.equal(many[:2])
        assert len(torch.cat(starts[1]).unique(dim=0)) == 12

    def test_unhealthy_robots_end_their_episodes(self) -> None:
        torch.manual_seed(0)
        falls = make_env("gym:Hopper-v5", 4, normalize=False).rollout(200)
        assert falls["next", "terminated"].any()
        assert falls.shape[1] < 200
        stays = make_env("gym:Hopper-v5", 4, normalize=False, terminate=False).rollout(200)
        assert not stays["next", "done"].any()

    def test_a_quadruped_that_falls_ends_its_episode_if_asked_to(self) -> None:
        env, usual = pool("quadruped_state", 2, terminate=True), pool("quadruped_state", 2)
        turned = np.array([np.cos(0.7), np.sin(0.7), 0.0, 0.0])  # 80 degrees about x
        for one in (env, usual):
            start = one.reset()
            one.states.qpos[0, 3:7] = turned
            start["action"] = torch.zeros(2, 12)
            ended = one.step(start)["next"]
            falls = [one is env, False]
            assert ended["terminated"].flatten().tolist() == falls
            assert ended["done"].flatten().tolist() == falls
        with pytest.raises(ValueError, match="humanoid it is not known"):
            pool("humanoid_state", 2, terminate=True)

    def test_heading(self) -> None:
        env = pool("humanoid_state", 8, options={"heading": True})
        env.reset()  # in any orientation
        env.states.qpos[0, 3:7] = np.sqrt(0.5), 0, 0, np.sqrt(0.5)  # faces to the left
        env.states.qpos[1, 3:7] = np.sqrt(0.5), 0, -np.sqrt(0.5), 0  # lies on its back
        heading = env.observe()["observation"][:, 70:].double()
        rotations = np.zeros((8, 9))
        for rotation, qpos in zip(rotations, env.states.qpos, strict=True):
            mujoco.mju_quat2Mat(rotation, qpos[3:7])
        expected = torch.as_tensor(rotations[:, [0, 3, 1, 4]])
        torch.testing.assert_close(heading, expected, atol=1e-5, rtol=0)
        known = torch.tensor([[0.0, 1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        torch.testing.assert_close(heading[:2].float(), known, atol=1e-5, rtol=0)

    def test_a_task_of_ones_own(self) -> None:
        def observation(qpos: Any, qvel: Any, act: Any, sensordata: Any) -> dict[str, Any]:
            return {"height": qpos[:, 2:3], "upright": sensordata[:, upright][:, 2:] > 0.9}

        def reset(model: Any, data: Any, random: np.random.Generator) -> None:
            data.qpos[:2] = random.uniform(-1, 1, 2)
            data.qpos[2] = 2.0

        spec = mujoco.MjSpec.from_file(TRIPOD)
        add_frame_sensors(spec, {"torso": "zaxis"})
        model = spec.compile()
        upright = measured(model, "torso/zaxis")
        task = MuJoCoTask.of(
            model,
            frame_skip=4,
            observation=observation,
            reset=reset,
            reward=lambda before, after, control: after.qpos[:, 2] - before.qpos[:, 2],
            terminated=lambda qpos, *others: qpos[:, 2] < 1.9,
        )
        env = MuJoCoPoolEnv(task, 3)
        check_env_specs(env)
        rollout = env.rollout(50)
        assert rollout["height"][:, 0].allclose(torch.tensor(2.0))
        assert rollout["upright"].dtype is torch.bool
        assert rollout["upright"][:, 0].all()
        # In free fall for 0.14 s, give or take the legs' movements.
        assert 6 <= rollout.shape[1] <= 8
        assert rollout["next", "terminated"][:, -1].any()
        fallen = rollout["next", "reward"].sum(dim=1)
        torch.testing.assert_close(fallen, rollout["next", "height"][:, -1] - 2.0)
        goes_on = MuJoCoPoolEnv(task, 3, terminate=False).rollout(50)
        assert goes_on.shape[1] == 50

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no file 'nowhere\.xml'"):
            make_env("mujoco:nowhere.xml", 2)
        wrong = tmp_path / "wrong.xml"
        wrong.write_text("<mujoco><worldbody><joint/></worldbody></mujoco>")
        with pytest.raises(ValueError, match="cannot read"):
            make_env(f"mujoco:{wrong}", 2)
        wrong.write_text("<mujoco/>")
        with pytest.raises(ValueError, match="no actuators"):
            MuJoCoTask.of(wrong)
        with pytest.raises(TypeError, match=r"MuJoCoTask\.of"):
            MuJoCoPoolEnv(TRIPOD, 2)  # type: ignore[arg-type]
        env = MuJoCoPoolEnv(MuJoCoTask.of(TRIPOD), 2)
        current = env.reset().set("action", torch.full((2, 6), torch.nan))
        with pytest.raises(ValueError, match="must be finite"):
            env.step(current)


class TestSuite:
    @pytest.mark.parametrize("task", ["walker-walk", "cheetah-run", "cartpole-swingup"])
    def test_same_observation_and_reward_as_alone(self, task: str) -> None:
        pytest.importorskip("dm_control")
        from dm_control import suite

        env = make_env(f"dm_control:{task}", 3, max_steps=20, normalize=False).base_env
        assert isinstance(env, MuJoCoPoolEnv)
        alone = suite.load(*task.split("-"))
        data = alone.physics.data.ptr
        current = env.reset()
        before = [part.copy() for part in env.states[:3]]
        control, current = act(env, current)
        for i in range(3):
            alone.reset()
            with alone.physics.reset_context():
                data.qpos[:], data.qvel[:], data.act[:] = (part[i] for part in before)
            step = alone.step(control[i])
            observed = np.concatenate([np.ravel(part) for part in step.observation.values()])
            shown = current["observation"][i, -len(observed) :].numpy()
            np.testing.assert_allclose(shown, observed, rtol=1e-5, atol=1e-5)
            assert current["reward"][i].item() == pytest.approx(step.reward, abs=1e-5)

    def test_tasks_that_change_their_model_stay_with_the_suite(self) -> None:
        pytest.importorskip("dm_control")
        for task, backend in (
            ("reacher-easy", False),
            ("lqr-lqr_2_1", False),
            ("walker-run", True),
        ):
            env = make_env(f"dm_control:{task}", 2, max_steps=5, normalize=False)
            assert isinstance(env.base_env, MuJoCoPoolEnv) is backend
            env.close(raise_if_closed=False)
        with pytest.raises(ValueError, match="does not run on backend 'mujoco'"):
            make_env("dm_control:reacher-easy", 2, backend="mujoco", max_steps=5, normalize=False)

    @pytest.mark.parametrize(
        ("name", "size"),
        [("quadruped", 81), ("humanoid", 70), ("cheetah", 18), ("dog", 226), ("fish", 27)],
    )
    def test_state_tasks(self, name: str, size: int) -> None:
        suite = pytest.importorskip("dm_control.suite")
        env = make_env(f"{name}_state", 2, normalize=False)
        assert env.observation_spec["observation"].shape == (2, size)
        env.set_seed(0)
        rollout = env.rollout(4)
        assert rollout["observation"].isfinite().all()
        place = rollout["observation"][..., : 1 if name == "cheetah" else 2]
        if name == "fish":
            place = 100 * rollout["observation"][..., :3]
        torch.testing.assert_close(rollout["position"], place)
        # At a reset sensors do not lag: all entries are the suite's.
        task = {"dog": "run", "fish": "swim"}.get(name, "run")
        alone = suite.load(name, task)
        env.reset()
        base = env.base_env
        shown = base.observe()["observation"].numpy()
        with alone.physics.reset_context():
            for part in ("qpos", "qvel", "act"):
                getattr(alone.physics.data, part)[:] = getattr(base.states, part)[0]
        if name == "fish":
            target = base.task.model.geom("target").pos
            alone.physics.named.model.geom_pos["target"] = target
        mujoco.mj_forward(alone.physics.model.ptr, alone.physics.data.ptr)
        observed = alone.task.get_observation(alone.physics).values()
        expected = np.concatenate([np.ravel(part) for part in observed])
        first = 1 if name == "cheetah" else 3
        np.testing.assert_allclose(shown[0, first:], expected, rtol=1e-5, atol=1e-5)


class TestResume:
    def test_state_dict_goes_on_exactly(self) -> None:
        def make() -> MuJoCoPoolEnv:
            env = MuJoCoPoolEnv(MuJoCoTask.of(INCHWORM), 3, max_steps=8)
            env.set_seed(11)
            return env

        source, target = make(), make()
        torch.manual_seed(0)
        current = source.rollout(5)["next"][:, -1].exclude("reward", "done", "truncated")
        target.load_state_dict(source.state_dict())
        ends = []
        for env in (source, target):
            torch.manual_seed(1)
            ends.append(
                env.rollout(
                    12, auto_reset=False, tensordict=current.clone(), break_when_any_done=False
                )
            )
        assert (ends[0] == ends[1]).all()
        assert ends[0]["next", "done"].sum() == 6
        with pytest.raises(ValueError, match="does not fit"):
            MuJoCoPoolEnv(MuJoCoTask.of(INCHWORM), 2).load_state_dict(source.state_dict())

    @pytest.mark.parametrize("name", [f"mujoco:{TRIPOD}", "half_cheetah", "quadruped"])
    def test_a_collector_goes_on_exactly(self, name: str) -> None:
        from torchrl_metra import PixelOptions, SkillPrimer, UnitSphere
        from torchrl_metra.envs import rendering_available

        pixels = None
        if name == "quadruped":
            pytest.importorskip("dm_control")
            if not rendering_available():
                pytest.skip("no OpenGL backend of MuJoCo works here")
            pixels = PixelOptions(resolution=8)

        def make() -> Collector:
            torch.manual_seed(0)
            env = make_env(name, 2, max_steps=7, pixels=pixels, normalize=False)
            env.append_transform(SkillPrimer(UnitSphere(2)))
            env.set_seed(0)
            return Collector(env, frames_per_batch=10, total_frames=-1, track_traj_ids=False)

        source = make()
        batches = iter(source)
        for _ in range(2):
            next(batches)
        state = copy.deepcopy(CollectorState(source).state_dict())
        generator = torch.get_rng_state()
        expected = [next(batches).clone() for _ in range(2)]
        target = make()
        CollectorState(target).load_state_dict(state)
        torch.set_rng_state(generator)
        resumed = iter(target)
        for batch in expected:
            for key, value in next(resumed).items(True, True):
                assert value.equal(batch[key]), key
        source.shutdown()
        target.shutdown()


class TestTraining:
    @pytest.mark.parametrize("model", [TRIPOD, INCHWORM])
    def test_one_command_trains_a_model_of_ones_own(self, model: str, tmp_path: Path) -> None:
        pytest.importorskip("hydra")
        command = [sys.executable, "-m", "torchrl_metra", "train", f"env=mujoco:{model}"]
        command += ["preset=debug", f"output={tmp_path}", "progress_bar=false"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert "coverage" in printed
        assert (tmp_path / "skill_policy.pt").is_file()

    def test_a_model_from_pictures_and_with_a_blind_policy(self) -> None:
        trainer = make_metra(
            f"mujoco:{TRIPOD}", preset="debug", policy={"position": False}, progress_bar=False
        )
        trainer.train()
        assert trainer.collected_frames == 1_200
