from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import pytest
import torch
from conftest import SelfResettingPoint
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import SerialEnv, TransformedEnv

from torchrl_metra import (
    LSDLoss,
    OneHot,
    PointEnv,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_sac_networks,
)
from torchrl_metra.evaluation import (
    CoverageCounter,
    coverage,
    encode_trajectories,
    episode_lengths,
    latent_steps,
    measure_skills,
    pair_distances,
    plot_goals,
    plot_skills,
    plot_temporal_distances,
    rank_correlation,
    rollout_skills,
    sector_coverage,
    skill_accuracy,
    skill_alignment,
    temporal_check,
    trajectories,
    visited,
    write_video,
)


def follow_the_skill() -> TensorDictModule:
    return TensorDictModule(lambda skill: skill, in_keys=["skill"], out_keys=["action"])


class TestRollouts:
    @pytest.mark.parametrize("num_envs", [None, 2, 4, 8])
    def test_one_episode_per_skill_whatever_the_batch(self, num_envs: int | None) -> None:
        env = make_env("point", num_envs).append_transform(SkillPrimer(UnitSphere(2)))
        skills = UnitSphere(2).grid(5)
        rollouts = rollout_skills(env, follow_the_skill(), skills, max_steps=10)
        assert rollouts.shape == (5, 10)
        torch.testing.assert_close(rollouts["skill"][:, 0], skills)
        expected = 10 * PointEnv.max_displacement * skills
        torch.testing.assert_close(rollouts["next", "position"][:, -1], expected)

    def test_long_episodes_are_seen_to_their_end(self) -> None:
        env = TransformedEnv(PointEnv(2, max_steps=300), SkillPrimer(UnitSphere(2)))
        rollouts = rollout_skills(env, follow_the_skill(), UnitSphere(2).grid(2))
        assert rollouts.shape == (2, 300)

    @pytest.mark.parametrize("key", ["z", ("task", "z")])
    def test_skills_under_another_key(self, key: str | tuple[str, ...]) -> None:
        env = TransformedEnv(PointEnv(2), SkillPrimer(UnitSphere(2), skill_key=key))
        policy = TensorDictModule(lambda skill: skill, in_keys=[key], out_keys=["action"])
        skills = UnitSphere(2).grid(4)
        rollouts = rollout_skills(env, policy, skills, max_steps=3)
        for name in (key, "skill"):
            assert rollouts[name].equal(skills[:, None].expand(4, 3, 2))
        torch.testing.assert_close(rollouts["next", "position"][:, 0], 0.2 * skills)

    def test_a_self_resetting_environment_stays_where_its_episode_ended(self) -> None:
        env = TransformedEnv(SelfResettingPoint(2, max_steps=5), SkillPrimer(UnitSphere(2)))
        start = env.reset
        # Out of step: the first one's episode is shorter.
        env.reset = lambda td: (start(td), env.base_env._steps.add_(torch.tensor([[2], [0]])))[0]
        skills = UnitSphere(2).grid(2)
        rollouts = rollout_skills(env, follow_the_skill(), skills)
        assert episode_lengths(rollouts).tolist() == [3, 5]
        x = rollouts["next", "position"][..., 0].abs() / 0.2
        expected = torch.tensor([[1.0, 2, 2, 2, 2], [1, 2, 3, 4, 4]])
        torch.testing.assert_close(x, expected)
        assert rollouts["skill"].equal(skills[:, None].expand(2, 5, 2))

    def test_no_entry_for_skills(self) -> None:
        def make() -> TransformedEnv:
            return TransformedEnv(PointEnv(), SkillPrimer(UnitSphere(2), skill_key="z"))

        for env in (PointEnv(2), SerialEnv(2, make)):
            with pytest.raises(ValueError, match=r"no entry 'skill'.*SkillPrimer"):
                rollout_skills(env, follow_the_skill(), UnitSphere(2).grid(2))


def brute_force_cells(position: torch.Tensor, cell_size: float) -> set[tuple[int, ...]]:
    points = position.reshape(-1, position.shape[-1]).tolist()
    return {tuple(math.floor(x / cell_size) for x in point) for point in points}


def random_walks(seed: int, size: int) -> torch.Tensor:
    """Trajectories around the origin, a third of their points exactly on borders of cells."""
    generator = torch.Generator().manual_seed(seed)
    walks = torch.randn(7, 50, size, generator=generator).cumsum(1) * 3
    on_border = torch.rand(walks.shape, generator=generator) < 1 / 3
    return torch.where(on_border, (walks * 2).round() / 2, walks)


class TestCoverage:
    @pytest.mark.parametrize("cell_size", [1.0, 0.1, 3.0])
    @pytest.mark.parametrize("size", [1, 2])
    def test_agrees_with_brute_force(self, size: int, cell_size: float) -> None:
        walks = random_walks(0, size)
        expected = brute_force_cells(walks, cell_size)
        assert coverage(walks, cell_size) == len(expected)
        cells = visited(TensorDict({"next": {"position": walks}}, [7, 50]), cell_size=cell_size)
        assert {tuple(cell) for cell in cells.tolist()} == expected

    def test_a_border_belongs_to_the_cell_above(self) -> None:
        assert coverage(torch.tensor([[-1.0], [-0.5], [0.0], [1.0]])) == 3

    def test_far_from_the_origin(self) -> None:
        assert coverage(torch.tensor([[5e9], [6e9], [-5e9]])) == 3

    def test_sectors(self) -> None:
        angle = (torch.arange(16) + 0.5) / 16 * 2 * math.pi
        assert sector_coverage(3 * torch.stack([angle.cos(), angle.sin()], dim=-1)) == 16
        assert sector_coverage(torch.tensor([[1.0, 0.01], [5.0, 0.02]])) == 1


class TestCoverageCounter:
    def test_total_as_it_grows_equals_recomputation(self) -> None:
        counter, walks = CoverageCounter(), random_walks(0, 2)
        for step in range(walks.shape[1]):
            counter.update(walks[:, step].floor().long())
            assert len(counter) == coverage(walks[:, : step + 1])

    @pytest.mark.parametrize("window", [1, 7, 20, 70, 1_000])
    def test_window_equals_recomputation(self, window: int) -> None:
        """Updates of 7 transitions leave when those after them fill the window."""
        counter, walks = CoverageCounter(window), random_walks(1, 2)
        for step in range(walks.shape[1]):
            counter.update(walks[:, step].floor().long())
            first = max(0, step + 1 - math.ceil(window / 7))
            assert len(counter) == coverage(walks[:, first : step + 1])

    def test_transitions_may_be_more_than_cells(self) -> None:
        """In the kitchen, most transitions solve nothing."""
        counter = CoverageCounter(window=100)
        counter.update(torch.tensor([[3]]), num_transitions=100)
        assert len(counter) == 1
        counter.update(torch.zeros(0, 1, dtype=torch.long), num_transitions=100)
        assert len(counter) == 0

    @pytest.mark.parametrize("window", [None, 20])
    def test_goes_on_from_a_state_dict(self, window: int | None) -> None:
        walks = random_walks(2, 2).floor().long()
        whole, first, second = (CoverageCounter(window) for _ in range(3))
        for step in range(30):
            whole.update(walks[:, step])
            if step < 15:
                first.update(walks[:, step])
        second.load_state_dict(first.state_dict())
        for step in range(15, 30):
            second.update(walks[:, step])
            first.update(walks[:, step])
        assert len(second) == len(first) == len(whole)

    @pytest.mark.parametrize("window", [None, 5_000])
    def test_memory_follows_the_ground_and_not_the_transitions(self, window: int | None) -> None:
        counter = CoverageCounter(window)
        generator = torch.Generator().manual_seed(0)

        def run(num_updates: int) -> int:
            for _ in range(num_updates):
                counter.update(torch.randint(-5, 5, (1_000, 2), generator=generator))
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        before, after = run(20), run(60)
        tracemalloc.stop()
        assert len(counter) == 100
        assert after - before < 50_000


class TestSkillMetrics:
    def test_alignment(self) -> None:
        skills = UnitSphere(2).grid(8)
        origin = torch.zeros(8, 2)
        assert skill_alignment(origin, 3 * skills, skills) == pytest.approx(1.0)
        assert skill_alignment(origin, -skills, skills) == pytest.approx(-1.0)
        assert skill_alignment(origin, skills.flip(-1) * torch.tensor([1.0, -1.0]), skills) == (
            pytest.approx(0.0, abs=1e-5)
        )

    def test_accuracy_of_one_hot_skills(self) -> None:
        prior = OneHot(4)
        skills = prior.grid(8)
        displacement = 7 * skills + torch.rand(8, 4)
        assert skill_accuracy(displacement, skills, prior) == 1.0
        displacement[:2] = displacement[:2].roll(1, dims=-1)
        assert skill_accuracy(displacement, skills, prior) == 0.75

    def test_accuracy_of_directions(self) -> None:
        prior = UnitSphere(2)
        skills = prior.grid(8)
        turned = math.pi / 8  # half of the way to the next skill
        for angle, expected in ((0.9 * turned, 1.0), (1.1 * turned, 0.0)):
            rotation = torch.tensor(
                [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
            )
            assert skill_accuracy(30 * skills @ rotation, skills, prior) == expected

    def test_measures_the_point_by_hand(self) -> None:
        """Where φ is the position and skills are followed, all is known."""
        env = make_env("point", 4).append_transform(SkillPrimer(UnitSphere(2)))
        rollouts = rollout_skills(env, follow_the_skill(), UnitSphere(2).grid(4), max_steps=10)
        latents = encode_trajectories(rollouts, torch.nn.Identity())
        results = measure_skills(rollouts, latents, UnitSphere(2))
        assert results["policy_coverage"] == coverage(rollouts["next", "position"])
        assert results["sectors"] == len({0, 4, 8, 12})
        assert results["skill_alignment"] == pytest.approx(1.0)
        assert results["skill_accuracy"] == 1.0
        assert results["latent_step_mean"] == pytest.approx(0.2, rel=1e-4)
        assert results["steps_beyond"] == results["pairs_beyond"] == 0.0
        assert results["rank_correlation"] > 0.98

    def test_projection_of_the_users_own(self) -> None:
        env = make_env("point", 4).append_transform(SkillPrimer(UnitSphere(2)))
        rollouts = rollout_skills(env, follow_the_skill(), UnitSphere(2).grid(4), max_steps=10)
        results = measure_skills(
            rollouts,
            encode_trajectories(rollouts, torch.nn.Identity()),
            UnitSphere(2),
            projection=lambda states: states["observation"][..., :1],
            cell_size=0.5,
        )
        # From -2 to 2 in cells of half a meter, -2 itself and 2 being borders.
        assert results["policy_coverage"] in range(8, 11)
        assert "sectors" not in results


class TestTrajectories:
    def test_first_and_last_state_are_there(self) -> None:
        rollouts = make_env("point", 3).rollout(5)
        path = trajectories(rollouts, lambda states: states["position"])
        assert path[:, :-1].equal(rollouts["position"])
        assert path[:, -1].equal(rollouts["next", "position"][:, -1])

    def test_lengths_of_episodes_that_end_early(self) -> None:
        done = torch.zeros(3, 6, 1, dtype=torch.bool)
        done[0, 3:] = True  # a finished episode repeats its last transition
        done[1, 5] = True
        assert episode_lengths(TensorDict({"next": {"done": done}}, [3, 6])).tolist() == [4, 6, 6]

    def test_encoder_is_given_what_it_reads(self) -> None:
        rollouts = make_env("point", 3).rollout(5)
        encoder = TensorDictModule(
            torch.nn.Linear(2, 4), in_keys=["position"], out_keys=["features"]
        )
        latents = encode_trajectories(rollouts, encoder)
        assert latents.shape == (3, 6, 4)
        assert not latents.requires_grad
        torch.testing.assert_close(latents[:, 2], encoder.module(rollouts["position"][:, 2]))

    def test_an_encoder_in_training_is_left_as_it_is(self) -> None:
        rollouts = make_env("point", 3).rollout(5)
        encoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout())
        LSDLoss(encoder, UnitSphere(4))
        encoder[0].parametrizations.weight.original.data *= torch.tensor([3.0, 1.0])
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        latents = encode_trajectories(rollouts, encoder)
        assert all(value.equal(before[key]) for key, value in encoder.state_dict().items())
        assert all(module.training for module in encoder.modules())
        torch.testing.assert_close(latents[:, :-1], encoder.eval()(rollouts["observation"]).data)


class TestTemporalCheck:
    def test_a_leap_is_found(self) -> None:
        line = 0.5 * torch.arange(11.0).reshape(1, 11, 1)
        line[:, 5:] += 4.0
        check = temporal_check(line)
        assert check["steps_beyond"] == pytest.approx(1 / 10)
        assert check["latent_step_max"] == pytest.approx(4.5)
        times, distances = pair_distances(line)
        expected = sum(
            abs(float(line[0, i] - line[0, j])) > 1.05 * abs(i - j)
            for i in range(11)
            for j in range(i)
        )
        assert check["pairs_beyond"] == pytest.approx(expected / 55)
        assert len(times) == len(distances) == 55

    def test_what_follows_the_end_of_an_episode_does_not_count(self) -> None:
        line = torch.arange(11.0).reshape(1, 11, 1).clamp(max=4.0)
        assert temporal_check(line, torch.tensor([4])) == temporal_check(line[:, :5])
        assert temporal_check(line)["rank_correlation"] < 1.0

    def test_rms_norm_divides_by_the_root_of_the_dimensions(self) -> None:
        walks = torch.randn(3, 20, 4).cumsum(1)
        for function in (latent_steps, lambda x, norm: pair_distances(x, norm=norm)[1]):
            torch.testing.assert_close(function(walks, norm="rms"), function(walks, norm="l2") / 2)

    def test_large_latents_are_subtracted_exactly(self) -> None:
        line = 1e4 + 0.25 * torch.arange(60.0).reshape(1, 60, 1).expand(1, 60, 2)
        times, distances = pair_distances(line)
        torch.testing.assert_close(distances, 0.25 * math.sqrt(2) * times.float())

    def test_long_episodes_are_thinned_out(self) -> None:
        times, distances = pair_distances(torch.arange(1_001.0).reshape(1, -1, 1))
        assert len(times) < 60_000
        assert distances.equal(times.float())

    def test_rank_correlation_with_ties(self) -> None:
        """Against Spearman's coefficient as scipy 1.17 computes it."""
        x, y = torch.tensor([1, 2, 2, 3, 5, 5]), torch.tensor([2.0, 1.0, 4.0, 3.0, 7.0, 4.0])
        assert rank_correlation(x, y) == pytest.approx(0.716498, abs=1e-5)
        assert rank_correlation(x, -y) == pytest.approx(-0.716498, abs=1e-5)


class TestPlots:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize(
        ("size", "skills"), [(1, UnitSphere(2).grid(6)), (5, OneHot(3).grid(6))]
    )
    def test_pictures_are_written(self, tmp_path: Path, skills: torch.Tensor, size: int) -> None:
        walks = torch.randn(6, 20, size).cumsum(1)
        plot_skills(walks, skills, tmp_path / "a" / "skills.png", position=walks, title="Skills")
        plot_temporal_distances(walks, tmp_path / "temporal.png")
        plot_goals(walks[:, 0], {"adaptive": walks[:, 1]}, tmp_path / "goals.png")
        for picture in ("a/skills.png", "temporal.png", "goals.png"):
            assert (tmp_path / picture).stat().st_size > 10_000

    def test_a_panel_for_what_is_given(self) -> None:
        walks, skills = torch.randn(6, 20, 2), UnitSphere(2).grid(6)
        figures = [
            plot_skills(walks, skills, position=walks),
            plot_skills(walks, skills),
            plot_skills(None, skills, position=walks),
        ]
        names = [[axes.get_xlabel() for axes in figure.axes] for figure in figures]
        assert names == [["x (m)", "φ, dimension 1"], ["φ, dimension 1"], ["x (m)"]]


class TestVisited:
    def test_tasks_of_the_kitchen(self) -> None:
        tasks = torch.zeros(2, 7, 6, dtype=torch.bool)
        assert len(visited(TensorDict({"next": {"tasks": tasks}}, [2, 7])).unique(dim=0)) == 0
        tasks[0, 3, 5] = tasks[0, 4, 5] = tasks[1, 6, 2] = True
        solved = visited(TensorDict({"next": {"tasks": tasks}}, [2, 7])).unique()
        assert solved.tolist() == [2, 5]


class TestWriteVideo:
    @pytest.fixture(autouse=True)
    def _needs_imageio(self) -> None:
        pytest.importorskip("imageio_ffmpeg")

    @pytest.mark.parametrize("suffix", ["gif", "mp4"])
    def test_episodes_side_by_side(self, tmp_path: Path, suffix: str) -> None:
        """Five episodes of one color each, the last of nine channels counting."""
        shades = torch.tensor([40, 80, 120, 160, 200], dtype=torch.uint8)
        pixels = torch.zeros(5, 12, 9, 32, 32, dtype=torch.uint8)
        pixels[:, :, -3:] = shades.reshape(5, 1, 1, 1, 1)
        # Pictures that are alike would be one in a gif.
        pixels[:, :, -3:, :4, :4] = 20 * torch.arange(12, dtype=torch.uint8)[:, None, None, None]
        write_video(pixels, tmp_path / "new" / f"skills.{suffix}", fps=10)
        video = pytest.importorskip("imageio.v3").imread(tmp_path / "new" / f"skills.{suffix}")
        assert video.shape == (12, 64, 96, 3)
        centers = torch.as_tensor(video[-1, 16::32, 16::32, 0].astype(int)).flatten()
        assert (centers - torch.tensor([*shades.tolist(), 0])).abs().max() <= 6

    def test_channels_may_come_last(self, tmp_path: Path) -> None:
        pixels = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)
        write_video(pixels, tmp_path / "first.gif")
        write_video(pixels.permute(0, 1, 3, 4, 2), tmp_path / "last.gif")
        assert (tmp_path / "first.gif").read_bytes() == (tmp_path / "last.gif").read_bytes()


def test_an_episode_follows_one_skill() -> None:
    prior = UnitSphere(2)
    env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior, switch=0.1))
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[16])
    with pytest.raises(ValueError, match=r"follow one skill, but .* switch=0\.1"):
        rollout_skills(env, networks.actor, prior.grid(4))
