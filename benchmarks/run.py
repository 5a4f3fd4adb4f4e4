"""Measure everything: ``make bench``, or ``python benchmarks/run.py learner collection``.

Prints a table; a whole run writes ``benchmarks/results/latest.json`` as well. Each measurement
runs in a process of its own, one after the other; let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from measuring import Result, environment

OUTPUT = Path(__file__).parent / "results" / "latest.json"
WIDTHS = (256, 512, 1024)
# Idle threads of PyTorch spin, which is good for the learner and bad for simulators.
VARIABLES = {"collection": {"OMP_WAIT_POLICY": "PASSIVE"}}


def plan(has_cuda: bool) -> dict[str, list[tuple[Any, ...]]]:
    """Calls of each module's ``measure``, and of ``measure_cuda`` where there is a GPU."""
    calls: dict[str, list[tuple[Any, ...]]] = {
        "learner": [("measure", width, threads) for threads in (2, 1) for width in WIDTHS]
        + [("measure_relabeling", 256, switch) for switch in ("compiled", "best")],
        "collection": [
            ("measure_pool", task, num_envs)
            for task in ("ant", "half_cheetah", "quadruped_state", "humanoid_state")
            for num_envs in (64, 512, 1024)
        ]
        + [
            ("measure_backends", "gym:Walker2d-v5", 64, "serial"),
            ("measure_backends", "dm_control:walker-walk", 64, "serial"),
            ("measure_backends", "ant", 64, "envpool"),
            ("measure_backends", "ant", 200, "envpool"),
            ("measure_backends", "half_cheetah", 64, "envpool"),
            ("measure_backends", "half_cheetah", 800, "envpool"),
        ]
        + [("measure_drawing", task) for task in ("ant", "quadruped_state")]
        + [("measure_pixels", task) for task in ("quadruped", "humanoid", "kitchen")]
        + [("measure_workers", "ant", kind) for kind in ("multi_sync", "multi_async", "ray")],
        "end_to_end": [("measure", switches) for switches in ("fp32", "best", "best_asynchronous")]
        + [("measure_backends",)],
        "replay": [("measure",), ("measure_pixels",)],
        "rendering": [("measure", task) for task in ("quadruped", "humanoid", "kitchen")],
        "pixel_learner": [
            ("measure", shared, switches)
            for shared in (False, True)
            for switches in ("fp32", "bfloat16")
        ]
        + [("measure_convolutions", switches) for switches in ("fp32", "compiled")]
        + [("measure_laptop", channels) for channels in (8, 12, 16, 24, 32)],
    }
    if has_cuda:
        calls["collection_cuda"] = [
            ("measure_pool", task, num_envs, "cuda")
            for task in ("ant", "half_cheetah")
            for num_envs in (64, 512, 4096)
        ] + [("measure_drawing", "ant")]
        calls["end_to_end_cuda"] = [("measure_laptop", "cuda")]
        calls["learner"] += [("measure_cuda", width) for width in WIDTHS]
        calls["end_to_end"] += [("measure", switches, "cuda") for switches in ("fp32", "best")]
        calls["replay"] += [("measure_pixels", 100_000, "cuda")]
        calls["pixel_learner"] += [
            ("measure", shared, switches, "cuda")
            for shared in (False, True)
            for switches in ("fp32", "best")
        ]
    return calls


def run(module: str, function: str, *args: Any) -> list[Result]:
    """One measurement, in this process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    found = importlib.import_module(module.removesuffix("_cuda"))
    return getattr(found, function)(*args)


def in_own_process(*call: Any) -> list[Result]:
    """One measurement, in a fresh process: nothing is warm, and memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *call).result()


def main() -> None:
    """Measure what the command line names, or everything."""
    has_cuda = importlib.import_module("torch").cuda.is_available()
    calls = plan(has_cuda)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", choices=[[], *calls], help="default: all")
    parser.add_argument("--output", type=Path, help=f"default of a whole run: {OUTPUT}")
    arguments = parser.parse_args()
    output = arguments.output or (None if arguments.modules else OUTPUT)
    results = []
    print(f"{'':42} {'ours':>10} {'yardstick':>10} {'ratio':>6}")
    for module in arguments.modules or calls:
        os.environ.update(VARIABLES.get(module, {}))
        for call in calls[module]:
            for result in in_own_process(module, *call):
                results.append(result.to_json())
                print(row(result), flush=True)
        for variable in VARIABLES.get(module, {}):
            del os.environ[variable]
    if output is not None:
        record = {"environment": environment(), "results": results}
        output.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written to {output}")


def row(result: Result) -> str:
    """A line of the table."""
    if result.yardstick is None or result.ratio is None:
        return f"{result.name:42} {result.value:>10.4g} {'':>17}  {result.unit}"
    return (
        f"{result.name:42} {result.value:>10.4g} {result.yardstick:>10.4g} "
        f"{result.ratio:>6.2f}  {result.unit}"
    )


if __name__ == "__main__":
    main()
