from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import TransformedEnv

from torchrl_metra import OneHot, PointEnv, SkillPrimer, UnitSphere, make_env
from torchrl_metra.evaluation import (
    coverage,
    plot_latents,
    plot_positions,
    rollout_skills,
    sector_coverage,
    skill_alignment,
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

    def test_ends_with_the_episode(self) -> None:
        env = TransformedEnv(PointEnv(3, max_steps=7), SkillPrimer(UnitSphere(2)))
        assert rollout_skills(env, follow_the_skill(), UnitSphere(2).grid(3)).shape == (3, 7)


class TestMetrics:
    def test_coverage_counts_cells_once(self) -> None:
        position = torch.tensor([[[0.1, 0.1], [0.9, 0.9]], [[1.1, 0.0], [-0.1, 0.0]]])
        assert coverage(position) == 3
        assert coverage(position, cell_size=10.0) == 2
        assert coverage(torch.tensor([[0.2], [0.7], [5.5]])) == 2

    def test_sectors(self) -> None:
        angle = (torch.arange(16) + 0.5) / 16 * 2 * math.pi
        assert sector_coverage(3 * torch.stack([angle.cos(), angle.sin()], dim=-1)) == 16
        assert sector_coverage(torch.tensor([[1.0, 0.01], [5.0, 0.02]])) == 1

    def test_alignment(self) -> None:
        skills = UnitSphere(2).grid(8)
        origin = torch.zeros(8, 2)
        assert skill_alignment(origin, 3 * skills, skills) == pytest.approx(1.0)
        assert skill_alignment(origin, -skills, skills) == pytest.approx(-1.0)
        assert skill_alignment(origin, skills.flip(-1) * torch.tensor([1.0, -1.0]), skills) == (
            pytest.approx(0.0, abs=1e-5)
        )


class TestPlots:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    @pytest.mark.parametrize("skills", [UnitSphere(2).grid(6), OneHot(3).grid(6)])
    @pytest.mark.parametrize("size", [1, 2, 5])
    def test_pictures_are_written(self, tmp_path: Path, skills: torch.Tensor, size: int) -> None:
        walks = torch.randn(6, 20, size).cumsum(1)
        plot_latents(walks, skills, tmp_path / "a" / "latents.png", title="φ")
        plot_positions(walks[..., :2], skills, tmp_path / "positions.svg")
        assert (tmp_path / "a" / "latents.png").stat().st_size > 10_000
        axis = "x (m)" if size > 1 else "environment step"
        assert axis.split()[0] in (tmp_path / "positions.svg").read_text()

    def test_missing_matplotlib_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"torchrl-metra\[plots\]"):
            plot_positions(torch.zeros(1, 2, 2), torch.zeros(1, 2), tmp_path / "a.png")


def test_rollout_passes_skills_on_to_the_data() -> None:
    env = make_env("point", 2).append_transform(SkillPrimer(OneHot(2)))
    start = env.reset(TensorDict({"skill": OneHot(2).grid(2)}, [2]))
    assert start["skill"].equal(torch.eye(2))


class TestVisited:
    def test_cells_of_positions(self) -> None:
        position = torch.randn(3, 5, 2) * 4
        cells = visited(TensorDict({"next": {"position": position}}, [3, 5]))
        assert cells.shape == (15, 2)
        assert len(cells.unique(dim=0)) == coverage(position)

    def test_tasks_of_the_kitchen(self) -> None:
        tasks = torch.zeros(2, 7, 6, dtype=torch.bool)
        assert len(visited(TensorDict({"next": {"tasks": tasks}}, [2, 7])).unique(dim=0)) == 0
        tasks[0, 3, 5] = tasks[0, 4, 5] = tasks[1, 6, 2] = True
        solved = visited(TensorDict({"next": {"tasks": tasks}}, [2, 7])).unique()
        assert solved.tolist() == [2, 5]

    def test_neither(self) -> None:
        assert visited(TensorDict({"next": {"observation": torch.zeros(2, 1)}}, [2])) is None


class TestWriteVideo:
    @pytest.fixture(autouse=True)
    def _needs_imageio(self) -> None:
        pytest.importorskip("imageio_ffmpeg")

    @pytest.mark.parametrize("suffix", ["gif", "mp4"])
    def test_episodes_side_by_side(self, tmp_path: Path, suffix: str) -> None:
        """Five episodes of one colour each, the last of nine channels counting."""
        shades = torch.tensor([40, 80, 120, 160, 200], dtype=torch.uint8)
        pixels = torch.zeros(5, 12, 9, 32, 32, dtype=torch.uint8)
        pixels[:, :, -3:] = shades.reshape(5, 1, 1, 1, 1)
        # Pictures that are alike would be one in a gif.
        pixels[:, :, -3:, :4, :4] = 20 * torch.arange(12, dtype=torch.uint8)[:, None, None, None]
        write_video(pixels, tmp_path / "new" / f"skills.{suffix}", fps=10)
        video = pytest.importorskip("imageio.v3").imread(tmp_path / "new" / f"skills.{suffix}")
        assert video.shape == (12, 64, 96, 3)
        centres = torch.as_tensor(video[-1, 16::32, 16::32, 0].astype(int)).flatten()
        assert (centres - torch.tensor([*shades.tolist(), 0])).abs().max() <= 6

    def test_other_shapes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\[episodes, steps, channels.*found \[5, 3, 8, 8\]"):
            write_video(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), tmp_path / "skills.gif")

    def test_missing_package_names_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "imageio.v3", None)
        with pytest.raises(ImportError, match=r"torchrl-metra\[video\]"):
            write_video(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), tmp_path / "skills.gif")
