from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import TransformedEnv

from torchrl_metra import (
    PixelOptions,
    PointEnv,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_sac_networks,
    sample_goals,
)
from torchrl_metra._record import describe_run
from torchrl_metra.evaluation import evaluate, rollout_skills, sector_coverage
from torchrl_metra.recipes.evaluate import main

pytest.importorskip("matplotlib")
PRIOR = UnitSphere(2)


def follow_the_skill() -> SkillPolicy:
    """A policy that goes where its skill points, with positions for φ."""
    actor = TensorDictModule(nn.Identity(), in_keys=["skill"], out_keys=["action"])
    encoder = TensorDictModule(nn.Identity(), in_keys=["observation"], out_keys=["latent"])
    return SkillPolicy(actor, encoder, PRIOR)


class TestEvaluate:
    def test_numbers_pictures_video_and_page(self, tmp_path: Path) -> None:
        pytest.importorskip("imageio_ffmpeg")
        report = evaluate(
            follow_the_skill(),
            make_env("point", 8),
            tmp_path / "new",
            goals=sample_goals("point", 8, extent=10.0),
            video_env=make_env("point", pixels=PixelOptions(resolution=32, frames=1)),
            num_episodes=8,
            max_steps=100,
            title="A <point>",
        )
        # Counted are the skills that were drawn, whatever the picture shows.
        drawn = follow_the_skill().prior.evaluation_skills(8)
        assert report["skills"]["sectors"] == sector_coverage(drawn)
        assert report["skills"]["skill_accuracy"] == 1.0
        assert report["goals"]["adaptive"]["goal/final_distance"] < 0.3
        assert report["goals"]["random"]["goal/final_distance"] > 3
        assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
        page = (tmp_path / "new" / "report.html").read_text()
        assert "<h1>A &lt;point&gt;</h1>" in page
        assert "<code>goal/final_distance</code>" in page
        for name in ("skills.png", "temporal.png", "goals.png", "skills.mp4"):
            data = (tmp_path / "new" / name).read_bytes()
            assert base64.b64encode(data).decode() in page
        assert (tmp_path / "new" / "skills.gif").stat().st_size > 1_000
        # Nothing is loaded from elsewhere.
        assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)"', page))
        assert "http" not in page

    def test_leaves_the_environment_as_it_was(self, tmp_path: Path) -> None:
        env = make_env("point", 4)
        evaluate(follow_the_skill(), env, tmp_path, num_episodes=4, max_steps=5)
        assert "skill" not in env.reset().keys()

    def test_norm_of_training_scales_distances(self, tmp_path: Path) -> None:
        policy, env = follow_the_skill(), make_env("point", 4)
        paper = evaluate(policy, env, tmp_path, num_episodes=4, max_steps=5)["skills"]
        policy.constraint_norm = "rms"
        authors = evaluate(policy, env, tmp_path, num_episodes=4, max_steps=5)["skills"]
        ratio = authors["latent_step_mean"] / paper["latent_step_mean"]
        assert ratio == pytest.approx(2**-0.5, abs=2e-5)

    def test_without_the_temporal_constraint(self, tmp_path: Path) -> None:
        policy = follow_the_skill()
        policy.constraint_norm = None
        goals = sample_goals("point", 3, extent=5.0)
        report = evaluate(
            policy, make_env("point", 4), tmp_path, goals=goals, num_episodes=4, max_steps=5
        )
        names = {"policy_coverage", "sectors"}
        names |= {"skill_alignment", "skill_accuracy", "latent_rank_episode"}
        assert set(report["skills"]) == names
        assert "adaptive" in report["goals"]
        assert not (tmp_path / "temporal.png").exists()

    def test_without_an_encoder(self, tmp_path: Path) -> None:
        policy = follow_the_skill()
        policy.encoder = None
        goals = sample_goals("point", 3, extent=5.0)
        report = evaluate(
            policy, make_env("point", 4), tmp_path, goals=goals, num_episodes=4, max_steps=5
        )
        assert set(report["skills"]) == {"policy_coverage", "sectors"}
        assert "goals" not in report
        assert {file.name for file in tmp_path.iterdir()} == {
            "report.json",
            "report.html",
            "skills.png",
        }
        page = (tmp_path / "report.html").read_text().split("How it was made")[0]
        assert not any(word in page for word in ("latent", "φ", "Temporal", "goal"))


def test_episodes_of_different_lengths_are_evened_out() -> None:
    """Six episodes, two at a time, those of each pair one step longer than the last."""

    class GrowingPoint(PointEnv):
        def _reset(self, tensordict: TensorDict | None, **kwargs: object) -> TensorDict:
            self.max_steps += 1
            return super()._reset(tensordict, **kwargs)

    env = TransformedEnv(GrowingPoint(2, max_steps=3), SkillPrimer(PRIOR))
    rollouts = rollout_skills(env, follow_the_skill().actor, PRIOR.grid(6))
    lengths = (~rollouts["next", "done"]).sum(1).flatten() + 1
    assert rollouts.shape[1] == lengths.max()
    assert len(lengths.unique()) == 3
    for episode, length in zip(rollouts, lengths.tolist(), strict=True):
        last = episode["next", "position"][length - 1]
        assert episode["next", "position"][length:].equal(last.expand(len(episode) - length, -1))


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        pytest.importorskip("mujoco")
        env = make_env("half_cheetah", 2)
        networks = make_sac_networks(18, env.action_spec, PRIOR, num_cells=[16])
        policy = SkillPolicy.from_networks(networks, PRIOR, env, env_name="half_cheetah")
        policy.save(tmp_path / "skill_policy.pt")
        return tmp_path

    def test_writes_a_report_beside_the_policy(
        self, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def draw_nothing(*arguments: object) -> None:
            raise RuntimeError("no OpenGL here")

        monkeypatch.setattr("torchrl_metra.envs.rendering.Renderer.render_into", draw_nothing)
        main([str(run), "--episodes", "4", "--goals", "3"])
        report = json.loads((run / "report" / "report.json").read_text())
        assert report["episodes"] == 4
        assert set(report["goals"]) == {"adaptive", "single", "random"}
        assert (run / "report" / "goals.png").exists()
        printed = capsys.readouterr().out
        assert "policy_coverage" in printed
        assert "without videos" in printed


def test_secrets_of_the_command_line_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["logger.api_key=AAA", "+logger={token: 'AAA', name: run}", "--Password", "AAA"]
    command = ["python", "train.py", *secrets, "--auth-token=AAA", "seed=1", "monitor=x"]
    monkeypatch.setattr("sys.orig_argv", command)
    recorded = describe_run()["command"]
    assert "AAA" not in recorded
    for kept in ("train.py", "logger.api_key=", "name: run", "seed=1", "monitor=x"):
        assert kept in recorded
