"""Tables and pictures of many runs, and the point in the wind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import asymmetry
import plot_curves
import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_metra import (
    SkillPolicy,
    UnitSphere,
    make_env,
    make_sac_networks,
)
from torchrl_metra.envs import PixelOptions, WindyPointEnv
from torchrl_metra.recipes import make_settings
from torchrl_metra.recipes.summarize import main, read_runs, summarize


class TestWindyPoint:
    def test_downwind_is_faster_than_upwind(self) -> None:
        env = WindyPointEnv(3)
        action = torch.tensor([[0.2, 0.1], [-0.2, 0.0], [9.0, -9.0]])
        moved = env.step(env.reset().set("action", action))["next", "position"]
        torch.testing.assert_close(moved, torch.tensor([[0.3, 0.1], [-0.1, 0.0], [0.3, -0.2]]))

    @pytest.mark.parametrize("num_envs", [None, 3])
    def test_specs(self, num_envs: int | None) -> None:
        env = make_env("windy_point", num_envs)
        check_env_specs(env)
        rollout = env.rollout(300)
        assert rollout.shape == (*env.batch_size, 200)
        assert rollout["next", "truncated"][..., -1, :].all()

    def test_partial_reset(self) -> None:
        env = WindyPointEnv(2)
        moved = env.rand_step(env.reset())["next"]
        reset = env.reset(moved.clone().set("_reset", torch.tensor([[True], [False]])))
        assert reset["observation"][0].tolist() == [0, 0]
        torch.testing.assert_close(reset["observation"][1], moved["observation"][1])

    def test_pictures(self) -> None:
        env = make_env("windy_point", 2, pixels=PixelOptions(resolution=32))
        assert env.reset()["pixels"].shape[-2:] == (32, 32)


def test_windy_point_is_the_point_in_the_wind() -> None:
    windy, calm = make_settings("windy_point"), make_settings("point")
    assert replace(windy, env=calm.env) == calm


class TestSummary:
    def runs(self) -> list[dict[str, Any]]:
        return [
            {
                "coverage_after": coverage,
                "alignment": 0.5,
                "threads": 1,
                "config": {
                    "seed": seed,
                    "output": f"outputs/{seed}",
                    "skill": {"kind": "OneHot", "dim": dim},
                    "metra": {} if dim == 8 else {"slack": 1e-3},
                },
            }
            for dim, seed, coverage in ((16, 0, 70), (8, 0, 10), (8, 1, 25), (8, 2, 4))
        ]

    def test_mean_and_range_over_seeds(self) -> None:
        table = summarize(self.runs())
        assert table.splitlines() == [
            "| skill.dim | metra.slack | seeds | coverage_after | alignment |",
            "| --- | --- | --- | --- | --- |",
            "| 8 | None | 3 | 13 (4–25) | 0.5 |",
            "| 16 | 0.001 | 1 | 70 | 0.5 |",
        ]

    def test_settings_that_are_lists(self) -> None:
        runs = self.runs()[:2]
        runs[0]["config"]["num_cells"], runs[1]["config"]["num_cells"] = [64, 64], [128]
        table = summarize(runs, ["coverage_after"])
        assert "| [64, 64] | 1 | 70 |" in table
        assert "| [128] | 1 | 10 |" in table

    def test_a_result_that_only_some_runs_have(self) -> None:
        runs = self.runs()
        del runs[3]["alignment"]
        runs[1]["alignment"] = 0.7
        del runs[1]["config"]["skill"], runs[2]["config"]["skill"], runs[3]["config"]["skill"]
        assert "| None | None | 3 | 13 (4–25) | 0.6 (0.5–0.7) |" in summarize(runs)

    def test_files_of_many_runs(self, tmp_path: Path) -> None:
        first, *rest = self.runs()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "summary.json").write_text(json.dumps(first))
        (tmp_path / "many.json").write_text(json.dumps(rest))
        assert read_runs([tmp_path, tmp_path / "many.json"]) == self.runs()

    def test_command(self, tmp_path: Path, capsys: Any) -> None:
        def run(*arguments: str) -> None:
            main([str(tmp_path), *arguments])

        with pytest.raises(SystemExit):
            run()
        assert "no summary.json" in capsys.readouterr().err
        (tmp_path / "summary.json").write_text(json.dumps(self.runs()))
        run("--results", "alignment")
        assert "| 8 | None | 3 | 0.5 |" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            run("--results", "coverage")
        assert "['coverage'], expected some of ['coverage_after', " in capsys.readouterr().err


class TestAsymmetry:
    def test_fewest_steps(self) -> None:
        """Against the environment: as many steps lead there, and one less does not."""
        fewest_steps = asymmetry.fewest_steps
        goals = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [3.0, -3.0], [-1.0, 3.0]])
        steps = fewest_steps(goals, 0.1)
        assert steps.tolist() == pytest.approx([10, 30, 15, 15, 15])
        torch.testing.assert_close(fewest_steps(goals, 0.0), goals.abs().amax(-1) / 0.2)
        env = WindyPointEnv(len(goals))
        state = env.reset()
        for _ in range(30):
            remaining = goals - state["position"]
            is_there = remaining.norm(dim=-1) < 1e-3
            state = env.step(state.set("action", remaining - torch.tensor([0.1, 0.0])))["next"]
            steps = steps - 1
            assert (is_there == (steps < -0.5)).all()
        assert (goals - state["position"]).abs().max() < 1e-3

    def test_measure(self, tmp_path: Path) -> None:
        prior = UnitSphere(2)
        networks = make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[8])
        policy = SkillPolicy.from_networks(networks, prior)
        # φ(s) = 2 s: a step of 0.3 becomes 0.6.
        policy.encoder.module = torch.nn.Linear(2, 2, bias=False)
        policy.encoder.module.weight.data = 2 * torch.eye(2)
        results = asymmetry.measure(policy, "windy_point")
        for name, step, time in (
            ("downwind", 0.6, 100 / 3), ("upwind", 0.2, 100), ("across, left", 0.4, 50)
        ):  # fmt: skip
            assert results[name]["latent_step"] == pytest.approx(step, rel=1e-3)
            assert results[name]["temporal_distance"] == pytest.approx(time)
            assert results[name]["latent_distance"] == pytest.approx(20)
            assert results[name]["final_distance"] > 0
        assert results["pairs"]["beyond_longer_way"] == 0.0
        asymmetry.draw({"windy_point": policy}, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_many_runs_in_one_file_and_one_picture(tmp_path: Path, capsys: Any) -> None:
    for env, objective, seed in (("point", "metra", 0), ("point", "metra", 1), ("ant", "csf", 0)):
        folder = tmp_path / f"{env}_{objective}_{seed}"
        folder.mkdir()
        config = {"env": {"name": env}, "objective": objective, "seed": seed}
        curve = [[0, 0.1, 2], [100, 1.0, 10 + seed]]
        summary = {"coverage_after": 10 + seed, "curve": curve, "config": config}
        (folder / "summary.json").write_text(json.dumps(summary))
    saved = tmp_path / "runs.json"
    main([str(tmp_path), "--save", str(saved)])
    assert "| point | metra | 2 | 10.5 (10–11) |" in capsys.readouterr().out
    runs = json.loads(saved.read_text())
    assert len(runs) == 3
    plot_curves.draw_objectives([saved, saved], tmp_path / "objectives.png")
    assert (tmp_path / "objectives.png").stat().st_size > 10_000
