"""The settings of ablations, their multiruns and tables, and the point in the wind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_metra import make_env
from torchrl_metra.envs import PixelOptions, WindyPointEnv

hydra = pytest.importorskip("hydra")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch):
    for folder in ("examples", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield __import__
    for name in ("summarize", "plot_curves", "asymmetry", "measuring", "windy_point"):
        sys.modules.pop(name, None)


def compose(name: str, *overrides: str) -> Any:
    with hydra.initialize_config_dir(str(ROOT / "examples" / "conf"), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


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


class TestSettings:
    def test_windy_point_is_the_point_in_the_wind(self, scripts: Any) -> None:
        windy, calm = compose("windy_point"), compose("point")
        assert (windy.env, calm.env) == ("windy_point", "point")
        windy.env = calm.env
        assert windy == calm
        assert callable(scripts("windy_point").main)


def test_a_multirun_and_its_table(scripts: Any, tmp_path: Path) -> None:
    """Every job writes into a folder of its own, and the table tells them apart."""
    command = [
        sys.executable, "examples/windy_point.py", "--multirun", "objective=metra,csd",
        f"output={tmp_path}", "total_frames=3200", "optim_steps_per_batch=1", "num_cells=[8]",
        "evaluation_episodes=3", "metra.slack=0.01",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    files = sorted(tmp_path.rglob("summary.json"))
    assert len({file.parent for file in files}) == 2
    for file, objective in zip(files, ("csd", "metra"), strict=True):
        assert f"objective={objective}" in file.parent.name
        assert json.loads(file.read_text())["config"]["objective"] == objective
        assert (file.parent / "skill_policy.pt").exists()
        logged = {path.stem for path in file.parent.rglob("scalars/*.csv")}
        assert ("loss_distance" in logged) == (objective == "csd")
    summarize = scripts("summarize")
    lines = summarize.summarize(summarize.read_runs([tmp_path])).splitlines()
    assert lines[0].startswith("| objective | seeds | coverage_before | coverage_after |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| csd", "| metra"]


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

    def test_mean_and_range_over_seeds(self, scripts: Any) -> None:
        table = scripts("summarize").summarize(self.runs())
        assert table.splitlines() == [
            "| skill.dim | metra.slack | seeds | coverage_after | alignment |",
            "| --- | --- | --- | --- | --- |",
            "| 8 | None | 3 | 13 (4–25) | 0.5 |",
            "| 16 | 0.001 | 1 | 70 | 0.5 |",
        ]

    def test_settings_that_are_lists(self, scripts: Any) -> None:
        runs = self.runs()[:2]
        runs[0]["config"]["num_cells"], runs[1]["config"]["num_cells"] = [64, 64], [128]
        table = scripts("summarize").summarize(runs, ["coverage_after"])
        assert "| [64, 64] | 1 | 70 |" in table
        assert "| [128] | 1 | 10 |" in table

    def test_a_result_that_only_some_runs_have(self, scripts: Any) -> None:
        runs = self.runs()
        del runs[3]["alignment"]
        runs[1]["alignment"] = 0.7
        del runs[1]["config"]["skill"], runs[2]["config"]["skill"], runs[3]["config"]["skill"]
        assert "| None | None | 3 | 13 (4–25) | 0.6 (0.5–0.7) |" in scripts("summarize").summarize(
            runs
        )

    def test_files_of_many_runs(self, scripts: Any, tmp_path: Path) -> None:
        first, *rest = self.runs()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "summary.json").write_text(json.dumps(first))
        (tmp_path / "many.json").write_text(json.dumps(rest))
        read_runs = scripts("summarize").read_runs
        assert read_runs([tmp_path, tmp_path / "many.json"]) == self.runs()

    def test_command(
        self, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        def run(*arguments: str) -> None:
            monkeypatch.setattr("sys.argv", ["summarize.py", str(tmp_path), *arguments])
            scripts("summarize").main()

        with pytest.raises(SystemExit):
            run()
        assert "no summary.json" in capsys.readouterr().err
        (tmp_path / "summary.json").write_text(json.dumps(self.runs()))
        run("--results", "alignment")
        assert "| 8 | None | 3 | 0.5 |" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            run("--results", "coverage")
        assert "['coverage'], expected some of ['coverage_after', " in capsys.readouterr().err
