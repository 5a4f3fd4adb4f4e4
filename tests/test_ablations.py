"""Tables and pictures of many runs, and the point in the wind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.envs import check_env_specs

from torchrl_metra import (
    make_env,
)
from torchrl_metra.envs import WindyPointEnv
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
