"""One table of many runs: what was set differently, and what came of it.

    metra summarize outputs/half_cheetah
    metra summarize outputs/half_cheetah --results coverage_after skill_alignment

Reads every ``summary.json`` below the folders, or files with a list of such summaries. Runs that
differ by their seed only share a row, which shows the mean of their results and, in brackets, the
lowest and the highest. Prints Markdown. ``--save FILE`` keeps the summaries in one file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrl_metra.trainers.checkpoint import flatten

# What runs may differ in without being other settings.
NO_SETTINGS = ("output", "seed")


def read_runs(places: Iterable[Path]) -> list[dict[str, Any]]:
    """All summaries below the folders and in the files."""
    runs: list[dict[str, Any]] = []
    for place in places:
        for file in sorted(place.rglob("summary.json")) if place.is_dir() else [place]:
            content = json.loads(file.read_text())
            runs += content if isinstance(content, list) else [content]
    return runs


def differing_settings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    settings = [flatten(run["config"]) for run in runs]
    names = list(dict.fromkeys(name for each in settings for name in each))
    return [
        name
        for name in names
        if name not in NO_SETTINGS and len({repr(each.get(name)) for each in settings}) > 1
    ]


def result_names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers beside ``"config"``, in the order of the first run."""
    names = dict.fromkeys(name for run in runs for name in run if name != "threads")
    return [name for name in names if any(isinstance(run.get(name), (int, float)) for run in runs)]


def summarize(runs: Sequence[Mapping[str, Any]], results: Sequence[str] | None = None) -> str:
    """A Markdown table with a row for each combination of settings.

    Args:
        runs (sequence of mappings): contents of ``summary.json`` files.
        results (sequence of str, optional): names of the results. Defaults to all that are
            numbers.

    Returns:
        The table: settings that differ, number of seeds, then the results.
    """
    names = differing_settings(runs)
    results = results or result_names(runs)
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        settings = flatten(run["config"])
        groups[tuple(settings.get(name) for name in names)].append(run)
    lines = [[*names, "seeds", *results], ["---"] * (len(names) + 1 + len(results))]
    for values, group in sorted(groups.items(), key=lambda item: [_order(v) for v in item[0]]):
        cells = [_spread([run[name] for run in group if name in run]) for name in results]
        lines.append([*map(str, values), str(len(group)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, before anything else by its name."""
    is_number = isinstance(value, (int, float))
    return not is_number, value if is_number else str(value)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.4g}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):.4g}–{max(values):.4g})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(prog="metra summarize", description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="+", type=Path, help="folders of runs, or files of them")
    parser.add_argument("--results", nargs="+", help="columns; all numbers without it")
    parser.add_argument("--save", type=Path, help="file that takes all of the summaries")
    args = parser.parse_args(arguments)
    runs = read_runs(args.places)
    if not runs:
        parser.error("no summary.json there: runs write one at their end.")
    if unknown := set(args.results or ()) - set(result_names(runs)):
        parser.error(f"no results {sorted(unknown)}, expected some of {result_names(runs)}.")
    print(summarize(runs, args.results))
    if args.save:
        args.save.write_text(json.dumps(runs) + "\n")
