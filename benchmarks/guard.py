"""Has learning become worse? PointEnv and the quickstart, five seeds each.

Seeds scatter, so a single run says little. The five runs are ranked together with five stored runs.
The guard fails if they rank so low that it would happen by chance in less than one of forty cases.

python benchmarks/guard.py           # compare
python benchmarks/guard.py --store   # compare, then store these runs in place of the old ones
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import environment

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).parent / "results" / "learning.json"
RUNS = {"point": ["env=point"], "quickstart": ["env=half_cheetah", "preset=laptop"]}
SEEDS = range(5)
LEAST = 1 / 40


def train(name: str, seed: int) -> dict[str, Any]:
    """A run in a process of its own, on one core."""
    with tempfile.TemporaryDirectory() as output:
        settings = [f"seed={seed}", f"output={output}", "checkpoint.interval=null"]
        subprocess.run(
            [sys.executable, "-m", "torchrl_metra", "train", *RUNS[name], *settings],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        summary = json.loads(Path(output, "summary.json").read_text())
    kept = ("coverage_last_three", "coverage_after", "frames", "seconds", "failures_found", "curve")
    return {"seed": seed, **{key: summary[key] for key in kept}}


def chance_to_rank_so_low(new: Sequence[float], old: Sequence[float]) -> float:
    """Probability that five of these ten, taken at random, rank as low as the new or lower.

    Examples:
        >>> chance_to_rank_so_low([1, 2], [3, 4])
        0.16666666666666666
    """
    pool = sorted([*new, *old])

    def rank(value: float) -> float:
        # Equal values share the mean of their ranks.
        return pool.index(value) + (pool.count(value) - 1) / 2

    total = sum(rank(value) for value in new)
    draws = [sum(map(rank, draw)) for draw in itertools.combinations(pool, len(new))]
    return sum(draw <= total for draw in draws) / len(draws)


def main() -> None:
    """Train all, compare with what is stored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="replace the stored runs by these")
    store = parser.parse_args().store
    record: dict[str, Any] = {"environment": environment(), "runs": {}}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: [pool.submit(train, name, seed) for seed in SEEDS] for name in RUNS}
        for name, futures in jobs.items():
            record["runs"][name] = [future.result() for future in futures]
    before = json.loads(STORED.read_text())["runs"] if STORED.exists() else {}
    is_worse = False
    for name, runs in record["runs"].items():
        new = [run["coverage_last_three"] for run in runs]
        print(f"{name}: {', '.join(f'{value:.0f}' for value in new)} cells")
        if name in before:
            old = [run["coverage_last_three"] for run in before[name]]
            chance = chance_to_rank_so_low(new, old)
            is_worse |= chance < LEAST
            print(
                f"  stored: {', '.join(f'{value:.0f}' for value in old)}; "
                f"{'worse than' if chance < LEAST else 'within'} them (p = {chance:.3f})"
            )
    if store:
        STORED.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if is_worse else 0)


if __name__ == "__main__":
    main()
