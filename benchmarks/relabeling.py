"""Skills relabeled in hindsight (GenDa) against none: three seeds each, a core for each run.

    python benchmarks/relabeling.py point half_cheetah   # train, and add to the record
    python benchmarks/relabeling.py                      # only print the record

Both have the same networks, losses of the policy, steps and updates. The table shows the
interquartile mean of coverage and its 95 % interval (stratified bootstrap, `rliable`), at equal
steps and after equal minutes of the faster one. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measuring import environment

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).parent / "results" / "relabeling.json"
RUNS = {
    "point": ["env=point", "preset=laptop"],
    "half_cheetah": ["env=half_cheetah", "preset=laptop"],
    "ant": ["env=ant", "preset=laptop"],
}
OBJECTIVES = ("metra", "genda")
SEEDS = range(3)


def train(env: str, objective: str, seed: int, others: Sequence[str] = ()) -> dict[str, Any]:
    """A run in a process of its own, on one core."""
    with tempfile.TemporaryDirectory() as output:
        settings = [*RUNS[env], f"objective={objective}", f"seed={seed}", *others]
        plain = ["checkpoint.interval=null", "progress_bar=false", f"output={output}"]
        subprocess.run(
            [sys.executable, "-m", "torchrl_metra", "train", *settings, *plain],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        summary = json.loads(Path(output, "summary.json").read_text())
    kept = ("coverage_last_three", "frames", "seconds", "commit", "curve")
    result = {key: summary[key] for key in kept}
    return {"env": env, "objective": objective, "seed": seed, "settings": settings, **result}


def coverage_at(curve: Sequence[Sequence[float]], column: int, limit: float) -> float:
    """Mean of the last three evaluations up to a number of steps (0) or seconds (1).

    Examples:
        >>> coverage_at([[100, 9.0, 1], [200, 20.0, 3], [300, 31.0, 5], [400, 41.0, 7]], 1, 31.0)
        3.0
    """
    values = [row[2] for row in curve if row[column] <= limit]
    return sum(values[-3:]) / len(values[-3:])


def interquartile(values: Sequence[float]) -> str:
    """The interquartile mean over seeds, and its 95 % interval."""
    from rliable import library, metrics

    scores = {"all": np.array(values, dtype=float).reshape(-1, 1)}
    point, interval = library.get_interval_estimates(
        scores, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2_000
    )
    low, high = interval["all"][:, 0]
    return f"{point['all'][0]:.0f} ({low:.0f}–{high:.0f})"


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a row for each environment and each yardstick."""
    lines = ["| environment | compared at | metra | genda |", "|---|---|---|---|"]
    for env in dict.fromkeys(run["env"] for run in runs):
        own = [run for run in runs if run["env"] == env]
        steps = min(run["curve"][-1][0] for run in own)
        minutes = min(run["curve"][-1][1] for run in own)
        for column, limit, name in (
            (0, steps, f"{steps:,} steps"),
            (1, minutes, f"{minutes / 60:.1f} minutes"),
        ):
            cells = []
            for objective in OBJECTIVES:
                curves = [run["curve"] for run in own if run["objective"] == objective]
                values = [coverage_at(curve, column, limit) for curve in curves]
                seeds = ", ".join(f"{value:.0f}" for value in values)
                cells.append(f"{interquartile(values)}: {seeds}")
            lines.append(f"| {env} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what the command line names; print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("envs", nargs="*", choices=[[], *RUNS])
    parser.add_argument("--settings", nargs="*", default=[], help="more settings of every run")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"runs": []}
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
    for env in arguments.envs:
        kept = [run for run in record["runs"] if run["env"] != env]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(train, env, objective, seed, arguments.settings)
                for seed in SEEDS
                for objective in OBJECTIVES
            ]
            record = {"environment": environment(), "runs": kept + [job.result() for job in jobs]}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["runs"]))


if __name__ == "__main__":
    main()
