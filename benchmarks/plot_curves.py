"""Draw the committed curves: of coverage, of returns, and of all objectives side by side.

    python benchmarks/plot_curves.py

Reads ``benchmarks/results/NAME[_seedN].csv``, as ``metra train`` writes
them, and draws ``NAME_coverage.png`` beside them. Reads
``benchmarks/results/TASK/NAME_seedN.csv``, as ``metra downstream`` and
``metra finetune`` write them, and draws ``returns.png`` beside them. Reads
``benchmarks/results/objectives_*.json``, as ``metra summarize --save`` writes them, and draws
``objectives.png`` with a panel per environment. Puts the runs of a robot beside the ends of
published curves, in ``beside_published.png``.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from torchrl_metra.evaluation import plot_coverage

RESULTS = Path(__file__).parent / "results"
# The same color for an objective in every panel.
_OBJECTIVES = ("metra", "csf", "csd", "lsd", "dads", "cic", "diayn", "rnd", "genda")
COLORS = {name: f"C{index}" for index, name in enumerate(_OBJECTIVES)}


# What GenDa's paper prints of robots observed by their states: environment steps, and cells
# after them (METRA and CSF as read off its figure).
PUBLISHED = {
    "quadruped": (5e6, {"METRA": 822, "CSF": 757, "GenDa": 1794}),
    "humanoid": (10e6, {"METRA": 940, "CSF": 532, "GenDa": 2192}),
}


def read_curve(path: Path, column: str = "policy_coverage") -> torch.Tensor:
    """Frames and values, of shape ``[n, 2]``."""
    with path.open() as file:
        rows = [(float(row["frames"]), float(row[column])) for row in csv.DictReader(file)]
    return torch.tensor(rows)


def draw_returns(folder: Path) -> None:
    """Mean and range over the seeds of what was tried on a task."""
    groups: dict[str, list[torch.Tensor]] = defaultdict(list)
    for path in sorted(folder.glob("*_seed*.csv")):
        groups[path.stem.partition("_seed")[0]].append(read_curve(path, "return"))
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw_groups(axes, groups)
    title = folder.name.replace("_", " ")
    axes.set(xlabel="environment steps", ylabel="return", title=title)
    axes.legend(fontsize="small")
    figure.savefig(folder / "returns.png", dpi=150)


def draw_groups(
    axes: Any,
    groups: Mapping[str, Sequence[torch.Tensor]],
    colors: Mapping[str, str] | None = None,
) -> None:
    """Mean and range of each group of curves, of shape ``[n, 2]`` each, in a panel."""
    for name, curves in groups.items():
        frames, values = torch.stack(list(curves)).float().unbind(dim=-1)
        color = colors[name] if colors else None
        (line,) = axes.plot(
            frames[0], values.mean(dim=0), color=color, label=name.replace("_", " ")
        )
        low, high = values.amin(dim=0), values.amax(dim=0)
        axes.fill_between(frames[0], low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.grid(alpha=0.2)


def draw_objectives(files: Sequence[Path], picture: Path) -> None:
    """Mean and range over the seeds of each objective, in a panel per file."""
    figure = Figure(figsize=(5 * len(files) + 1, 4.5), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, file in zip(figure.subplots(1, len(files), squeeze=False)[0], files, strict=True):
        groups: dict[str, list[torch.Tensor]] = defaultdict(list)
        for run in json.loads(file.read_text()):
            curve = torch.tensor([(frames, cells) for frames, _, cells in run["curve"]])
            groups[run["config"]["objective"]].append(curve)
        draw_groups(axes, {name: groups[name] for name in COLORS if name in groups}, COLORS)
        title = file.stem.removeprefix("objectives_").replace("_", " ")
        axes.set(xlabel="environment steps", ylabel="policy coverage (cells)", title=title)
        axes.locator_params(axis="x", nbins=5)
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles=list(handles.values()), loc="outside right", fontsize="small")
    figure.savefig(picture, dpi=150)


def draw_beside_published(picture: Path) -> None:
    """Runs from states, and where the published curves end, in a panel per robot."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, robot in zip(figure.subplots(1, len(PUBLISHED)), PUBLISHED, strict=True):
        steps, cells = PUBLISHED[robot]
        for name, label in (("metra", "METRA"), ("csf", "CSF"), ("genda", "GenDa")):
            paths = sorted(RESULTS.glob(f"{robot}_{name}*_seed*.csv"))
            for path, line in zip(paths, ("-", "--", ":", "-."), strict=False):
                # What is between the objective and the seed says what is particular.
                what = path.stem.removeprefix(f"{robot}_{name}").partition("_seed")[0]
                text = f"{label}, here" + what.replace("_", ", ")
                axes.plot(*read_curve(path).T, line, color=COLORS[name], label=text)
            color = COLORS[name]
            axes.plot(steps, cells[label], "*", ms=12, color=color, label=f"{label}, published end")
        axes.set(xlabel="environment steps", ylabel="policy coverage (cells)", title=robot)
        axes.set(xlim=(0, 1.05 * steps), ylim=(0, None))
        axes.grid(alpha=0.2)
        axes.legend(fontsize="x-small", loc="best")
    figure.savefig(picture, dpi=120)


def main() -> None:
    """Draw every group and every task."""
    draw_beside_published(RESULTS / "beside_published.png")
    draw_objectives(sorted(RESULTS.glob("objectives_*.json")), RESULTS / "objectives.png")
    for folder in sorted({path.parent for path in RESULTS.glob("*/*_seed*.csv")}):
        draw_returns(folder)
    groups: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("*.csv")):
        name, _, seed = path.stem.partition("_seed")
        groups[name][f"seed {seed or 0}"] = read_curve(path)
    for name, curves in groups.items():
        plot_coverage(curves, RESULTS / f"{name}_coverage.png", title=name.replace("_", " "))


if __name__ == "__main__":
    main()
