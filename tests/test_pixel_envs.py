from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import RandomPolicy, check_env_specs

from torchrl_metra import SkillPrimer, UnitSphere
from torchrl_metra.envs import KITCHEN_TASKS, PixelOptions, make_env, rendering_available
from torchrl_metra.envs.kitchen import make_kitchen
from torchrl_metra.envs.locomotion import make_locomotion
from torchrl_metra.envs.mujoco import MuJoCoPoolEnv
from torchrl_metra.envs.mujoco_task import MuJoCoTask
from torchrl_metra.envs.rendering import Renderer
from torchrl_metra.evaluation.videos import Film

needs_renderer = pytest.mark.skipif(
    not rendering_available(), reason="no OpenGL backend of MuJoCo works here"
)
SMALL = PixelOptions(resolution=16)
ROBOTS = ["quadruped", "humanoid"]


def robot(name: str, options: PixelOptions = SMALL, max_steps: int = 4) -> MuJoCoPoolEnv:
    pytest.importorskip("dm_control")
    return make_locomotion(name, pixels=options, max_steps=max_steps)


def stacked(num_envs: int | None, frames: int = 3, max_steps: int = 4) -> EnvBase:
    pytest.importorskip("dm_control")
    pixels = PixelOptions(resolution=16, frames=frames)
    return make_env("quadruped", num_envs, pixels=pixels, max_steps=max_steps)


@pytest.fixture(scope="module", params=ROBOTS)
def scene(request: pytest.FixtureRequest) -> Iterator[MuJoCoPoolEnv]:
    env = robot(request.param, PixelOptions())
    env.set_seed(0)
    env.reset()
    yield env
    env.close()


def frame_at(env: MuJoCoPoolEnv, x: float, y: float) -> Tensor:
    """What the camera shows if the robot stands elsewhere."""
    env.states.qpos[0, :2] = x, y
    return env.observe()["pixels"]


@pytest.fixture(scope="module")
def kitchen() -> Iterator[MuJoCoPoolEnv]:
    pytest.importorskip("gymnasium_robotics")
    env = make_kitchen(pixels=PixelOptions(), max_steps=3)
    yield env
    env.close()


def floor_color(picture: Tensor) -> Tensor:
    """Red, green and blue in the lower corners, where no robot is."""
    corners = torch.cat([picture[:, -6:, :6], picture[:, -6:, -6:]], dim=-1)
    return corners.float().mean((1, 2))


def robot_mask(picture: Tensor) -> Tensor:
    """Where the picture has the orange of the suite's robots."""
    red, green, blue = picture.int()
    return (red > green + 20) & (green > blue + 15)


@needs_renderer
class TestLocomotion:
    def test_each_meter_along_x_and_y_shows(self, scene: MuJoCoPoolEnv) -> None:
        places = (-10.0, -9.0, -1.0, 0.0, 1.0, 9.0, 10.0)
        colors = torch.stack(
            [torch.stack([floor_color(frame_at(scene, x, y)) for y in places]) for x in places]
        )
        red, green, _ = colors.unbind(-1)
        meters = torch.tensor(places).diff()
        # Green grows with x wherever y is, red falls with y wherever x is: x and y can be
        # read off. A meter is worth at least three of 255 levels.
        assert (green.diff(dim=0) > 3 * meters[:, None]).all()
        assert (red.diff(dim=1) < -3 * meters).all()

    def test_fast_pictures_show_what_full_ones_do(self, scene: MuJoCoPoolEnv) -> None:
        name = "quadruped" if scene.task.model.na else "humanoid"
        full = robot(name, PixelOptions(quality="full"))
        frames = []
        for env in (scene, full):
            env.set_seed(3)
            env.reset()
            frames.append(frame_at(env, 2.0, 1.0))
        full.close()
        difference = (frames[0].int() - frames[1].int()).abs().float().mean()
        assert 0 < difference < 25
        masks = [robot_mask(frame) for frame in frames]
        assert masks[0].sum() > 40
        assert (masks[0] & masks[1]).sum() > 0.6 * (masks[0] | masks[1]).sum()

    def test_zoom_shows_the_middle(self) -> None:
        pictures = []
        for look in (PixelOptions(resolution=64), PixelOptions(resolution=32, zoom=2.0)):
            env = robot("quadruped", look)
            fields = env.task.model.cam_fovy.copy()
            env.set_seed(3)
            pictures.append(env.reset()["pixels"].float())
            assert (env.task.model.cam_fovy == fields).all()
            env.close()
        middle = pictures[0][:, 16:-16, 16:-16]
        assert (middle - pictures[1]).abs().mean() < 6
        assert (middle - pictures[0][:, ::2, ::2]).abs().mean() > 12

    @pytest.mark.parametrize("zoom", [0.0, -1.0])
    def test_no_zoom_is_not_zero(self, zoom: float) -> None:
        with pytest.raises(ValueError, match="zoom must be positive"):
            PixelOptions(zoom=zoom)

    def test_cheetahs_way_has_the_colors_of_a_rainbow(self) -> None:
        env = robot("cheetah", PixelOptions(resolution=32, zoom=1.5))
        env.reset()
        places = (-19.0, -10.0, 0.0, 10.0, 19.0)
        colors = []
        for place in places:
            env.states.qpos[0, 0] = place
            picture = env.observe()
            assert picture["position"].tolist() == [place]
            colors.append(picture["pixels"][:, -2:].float().mean((1, 2)))
        # Red, yellow, green, blue, violet.
        assert [int(color.argmax()) for color in colors] == [0, 1, 1, 2, 2]
        assert all((a - b).abs().max() > 40 for a, b in itertools.pairwise(colors))
        env.close()

    def test_states_are_drawn_in_another_way_beside_observations(self) -> None:
        look = PixelOptions(resolution=48, frames=1)
        env = make_env("quadruped", 2, pixels=SMALL, max_steps=3)
        env = env.append_transform(SkillPrimer(UnitSphere(2)))
        env.set_seed(0)
        policy = RandomPolicy(env.action_spec)
        filmed = env.append_transform(Film(look))
        rollout = filmed.rollout(3, policy)
        assert rollout["film"].shape == (2, 3, 3, 48, 48)
        assert rollout["pixels"].shape == (2, 3, 9, 16, 16)
        assert not rollout["next", "film"][:, 0].equal(rollout["next", "film"][:, 2])
        assert rollout["film"][:, 1:].equal(rollout["next", "film"][:, :-1])
        env.close()

    def test_nothing_is_drawn_beyond_the_floor(self, scene: MuJoCoPoolEnv) -> None:
        inside, outside = (floor_color(frame_at(scene, place, place)) for place in (0.0, 40.0))
        assert (inside - outside).abs().max() > 30
        assert floor_color(frame_at(scene, 60.0, 60.0)).sub(outside).abs().max() < 10

    @pytest.mark.parametrize("name", ROBOTS)
    def test_a_step_is_two_of_the_suite_and_position_the_torso(self, name: str) -> None:
        env = robot(name)
        env.reset()
        env.states.qpos[0, :2] = 3.0, -2.0
        position = env.rand_step()["next", "position"]
        assert position.dtype == torch.float32
        torch.testing.assert_close(position, torch.tensor([3.0, -2.0]), atol=0.3, rtol=0)
        seconds = env.task.frame_skip * env.task.model.opt.timestep
        assert seconds == pytest.approx({"quadruped": 0.04, "humanoid": 0.05}[name])
        env.close()

    @pytest.mark.parametrize("name", ["quadruped", "quadruped_goal"])
    def test_quadruped_starts_upright(self, name: str) -> None:
        pytest.importorskip("dm_control")
        mujoco = pytest.importorskip("mujoco")
        env = make_env(name, pixels=SMALL)
        base = env.base_env
        model, data = base.task.model, mujoco.MjData(base.task.model)
        starts = []
        for seed in (0, 0, 1):
            env.set_seed(seed)
            for _ in range(10):
                env.reset()
                starts.append(base.states.qpos[0].copy())
                data.qpos[:] = starts[-1]
                mujoco.mj_forward(model, data)
                assert data.body("torso").xmat[8] > 0.99
                assert not data.ncon
                assert not base.states.qvel.any()
                # A centimeter lower its feet would touch the floor.
                data.qpos[2] -= 0.01
                mujoco.mj_forward(model, data)
                assert data.ncon
        first, same, other = np.split(np.array(starts), 3)
        np.testing.assert_array_equal(first, same)
        assert len(np.unique(np.concatenate([first, other])[:, 3:7], axis=0)) == 20
        env.close()

    def test_a_diverging_simulation_is_truncated(self) -> None:
        env = stacked(2, max_steps=20)
        first = env.reset()
        env.base_env.states.qvel[1, 0] = np.nan
        with pytest.warns(RuntimeWarning, match="diverged"):
            data, following = env.step_and_maybe_reset(env.rand_action(first.clone()))
        ended = data["next"]
        assert ended["truncated"].flatten().tolist() == [False, True]
        assert ended["done"].flatten().tolist() == [False, True]
        assert not ended["terminated"].any()
        assert ended["reward"][1] == 0
        assert ended["pixels"][1, -3:].equal(first["pixels"][1, -3:])
        assert ended["position"][1].equal(first["position"][1])
        # The episode that follows is as any other.
        rollout = env.rollout(5, auto_reset=False, tensordict=following)
        assert rollout["next", "position"].isfinite().all()
        assert not rollout["next", "done"].any()
        env.close()


@needs_renderer
class TestStackedFrames:
    @pytest.mark.parametrize("num_envs", [None, 2])
    def test_specs(self, num_envs: int | None) -> None:
        env = stacked(num_envs)
        check_env_specs(env)
        batch = () if num_envs is None else (num_envs,)
        assert env.observation_spec["pixels"].shape == (*batch, 9, 16, 16)
        assert env.observation_spec["pixels"].dtype == torch.uint8
        assert env.action_spec.shape == (*batch, 12)
        assert env.action_spec.dtype == torch.float32
        assert (env.action_spec.space.low == -1).all()
        assert (env.action_spec.space.high == 1).all()
        env.close()

    def test_shift_by_one_frame_each_step(self) -> None:
        env = stacked(2)
        rollout = env.rollout(10)
        assert rollout.shape == (2, 4)
        now, after = rollout["pixels"], rollout["next", "pixels"]
        assert now.dtype == after.dtype == torch.uint8
        assert after[:, :, :6].equal(now[:, :, 3:])
        assert now[:, 1:].equal(after[:, :-1])
        assert not after[:, :, 6:].equal(now[:, :, 6:])
        first = now[:, 0].unflatten(1, (3, 3))
        assert (first == first[:, :1]).all()
        assert rollout["next", "truncated"][:, -1].all()
        assert not rollout["next", "truncated"][:, :-1].any()
        assert not rollout["next", "terminated"].any()
        assert rollout["next", "reward"].dtype == torch.float32
        env.close()

    def test_partial_reset(self) -> None:
        env = stacked(2)
        last = env.rollout(3)["next"][:, -1]
        reset = env.reset(last.clone().set("_reset", torch.tensor([[False], [True]])))
        assert reset["pixels"][0].equal(last["pixels"][0])
        first = reset["pixels"][1].unflatten(0, (3, 3))
        assert (first == first[:1]).all()
        assert not first[-1].equal(last["pixels"][1, -3:])
        following = env.step(env.rand_action(reset))["next", "pixels"]
        assert following[:, :6].equal(reset["pixels"][:, 3:])
        env.close()

    def test_closing_ends_the_threads_that_draw(self) -> None:
        before = set(threading.enumerate())
        env = stacked(2)
        env.reset()
        drawing = set(threading.enumerate()) - before
        assert drawing
        env.close()
        assert not any(thread.is_alive() for thread in drawing)


@needs_renderer
@pytest.mark.parametrize("on_cpu", [True, False])
def test_threads_share_the_drawing_where_the_cpu_draws(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Renderer, "is_software", on_cpu)
    task = MuJoCoTask.of("examples/tripod.xml")
    drawn, before = [], set(threading.enumerate())
    for num_threads in (1, 3):
        env = MuJoCoPoolEnv(task, 7, pixels=SMALL, num_threads=num_threads)
        env.reset()
        env.states.qpos[:, 8] = np.linspace(-1, 1, 7)
        drawn.append(env.observe()["pixels"])
        assert len(set(threading.enumerate()) - before) == (num_threads if on_cpu else 1)
        env.close()
    assert drawn[0].equal(drawn[1])
    assert len(drawn[0].flatten(1).unique(dim=0)) == 7


@needs_renderer
class TestKitchen:
    def test_specs_and_end(self) -> None:
        pytest.importorskip("gymnasium_robotics")
        env = make_env("kitchen", max_steps=3)
        check_env_specs(env)
        rollout = env.rollout(10)
        assert rollout["next", "truncated"].flatten().tolist() == [False, False, True]
        assert not rollout["next", "terminated"].any()
        assert rollout["pixels"].shape == (3, 9, 64, 64)
        assert rollout["pixels"].dtype == torch.uint8
        assert rollout["action"].shape == (3, 9)
        assert rollout["tasks"].dtype == torch.bool
        assert rollout["tasks"].shape == (3, len(KITCHEN_TASKS))
        assert not rollout["tasks"].any()
        env.close()

    @pytest.mark.parametrize(
        ("task", "joint", "solved", "unsolved"),
        [
            ("bottom burner", "knob_Joint_1", [-0.4], [-0.36]),
            ("light switch", "light_switch", [-0.27], [-0.23]),
            ("slide cabinet", "slide_cabinet", [0.28], [0.26]),
            ("hinge cabinet", "right_hinge_cabinet", [0.31], [0.29]),
            ("microwave", "microwave", [-0.69], [-0.71]),
            ("kettle", "kettle", [-0.23, 0.56], [-0.09, 0.6]),
        ],
    )
    def test_each_joint_solves_its_task_alone(
        self,
        kitchen: MuJoCoPoolEnv,
        task: str,
        joint: str,
        solved: list[float],
        unsolved: list[float],
    ) -> None:
        kitchen.reset()
        start = kitchen.task.model.joint(joint).qposadr[0]
        place = kitchen.states.qpos[0, start : start + len(solved)]
        place[:] = unsolved
        assert not kitchen.observe()["tasks"].any()
        place[:] = solved
        assert kitchen.observe()["tasks"].tolist() == [name == task for name in KITCHEN_TASKS]

    def test_pictures_show_the_tasks(self, kitchen: MuJoCoPoolEnv) -> None:
        before = kitchen.reset()["pixels"].int()
        start = kitchen.task.model.joint("kettle").qposadr[0]
        kitchen.states.qpos[0, start : start + 2] = -0.23, 0.75
        after = kitchen.observe()["pixels"].int()
        assert ((after - before).abs().amax(0) > 30).sum() > 40

    def test_fast_pictures_show_what_full_ones_do(self, kitchen: MuJoCoPoolEnv) -> None:
        full = make_kitchen(pixels=PixelOptions(quality="full"))
        pictures = [env.reset()["pixels"].int() for env in (kitchen, full)]
        full.close()
        difference = (pictures[0] - pictures[1]).abs().float().mean()
        assert 0 < difference < 20

    def test_simplifying_leaves_the_simulation(self, kitchen: MuJoCoPoolEnv) -> None:
        full = make_kitchen(pixels=PixelOptions(quality="full", resolution=4))
        states = []
        for env in (kitchen, full):
            start = env.reset()
            for _ in range(2):
                start = env.step(start.set("action", torch.ones(9)))["next"]
            states.append(env.states.qpos.copy())
        full.close()
        np.testing.assert_array_equal(*states)


class TestMakeEnv:
    @needs_renderer
    def test_worker_processes_draw_the_same(self) -> None:
        pytest.importorskip("dm_control")
        pixels = PixelOptions(resolution=16, frames=2)
        frames, processes = [], len(multiprocessing.active_children())
        for backend in ("serial", "parallel", None):
            env = make_env("quadruped", 2, backend=backend, pixels=pixels)
            env.set_seed(0)
            torch.manual_seed(0)
            frames.append(env.rollout(3)["next", "pixels"])
            started = len(multiprocessing.active_children()) - processes
            assert started == (2 if backend == "parallel" else 0)
            env.close()
        assert frames[0].shape == (2, 3, 6, 16, 16)
        assert frames[0].equal(frames[1])
        assert len(multiprocessing.active_children()) == processes

    @needs_renderer
    def test_resolution(self) -> None:
        pytest.importorskip("dm_control")
        env = make_env("humanoid", pixels=PixelOptions(resolution=128))
        assert env.reset()["pixels"].shape == (9, 128, 128)
        env.close()
