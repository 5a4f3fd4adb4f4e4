"""Draw the committed coverage curves, one picture per group of seeds.

    python benchmarks/plot_curves.py

Reads ``benchmarks/results/NAME[_seedN].csv``, as ``examples/training.py`` writes
them, and draws ``NAME_coverage.png`` beside them.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import torch

from torchrl_metra.evaluation import plot_coverage

RESULTS = Path(__file__).parent / "results"


def read_curve(path: Path) -> torch.Tensor:
    """Frames and cells, of shape ``[n, 2]``."""
    with path.open() as file:
        rows = [(int(row["frames"]), int(row["policy_coverage"])) for row in csv.DictReader(file)]
    return torch.tensor(rows)


def main() -> None:
    """Draw every group."""
    groups: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("*.csv")):
        name, _, seed = path.stem.partition("_seed")
        groups[name][f"seed {seed or 0}"] = read_curve(path)
    for name, curves in groups.items():
        plot_coverage(curves, RESULTS / f"{name}_coverage.png", title=name.replace("_", " "))


if __name__ == "__main__":
    main()
