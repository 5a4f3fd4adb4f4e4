"""The first run on a GPU: ``make gpu``, or ``PYTHONPATH=. python benchmarks/gpu.py``.

Five stages run in separate processes with ten minutes at most: the tests that need a GPU, gradient
steps on states and on pixels, and ``metra train`` on Ant and on Quadruped at the paper's sizes,
stopped after ``--minutes``. If a stage fails or takes too long, the others still run. One folder
has all results: ``gpu.json``, which is rewritten after each stage, ``log.txt``, and the pictures of
the runs. Nothing is installed, and no network is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import measuring
import torch

ROOT = Path(__file__).resolve().parents[1]
SECONDS, SECONDS_TO_END = 600.0, 120.0
GRAPHS: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "cudagraphs": {"cudagraphs": True},
    "compiled_cudagraphs": {"compile": True, "cudagraphs": True},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"autocast": torch.bfloat16},
}
STATES = {
    f"{graph}/{precision}": {**GRAPHS[graph], **PRECISIONS[precision]}
    for graph, precision in product(GRAPHS, PRECISIONS)
}
PIXELS = {
    f"{encoder}/{name}": {"shared_encoder": encoder == "shared_encoder", **STATES[name]}
    for encoder in ("own_encoders", "shared_encoder")
    for name in STATES
    if name.startswith(("eager", "compiled_cudagraphs"))
}
VARIANTS = {"learner": STATES, "pixels": PIXELS}
# For the runs, in place of the paper's sizes: these only test the code.
DRY_RUN = ["preset=debug", "frames_per_batch=200", "updates_per_step=0.025"]
DRY_RUN += ["min_buffer_size=200", "total_frames=99999"]


@dataclass
class Stage:
    """A process to run.

    Attributes:
        command (list of str): its command.
        results (Path, optional): JSON that it writes, for ``gpu.json``.
        stop_after (float, optional): seconds until it is asked to end, by SIGTERM.
        seconds (float): until it is killed, with its children.
        variables (dict): of its environment, besides those here.
    """

    command: list[str]
    results: Path | None = None
    stop_after: float | None = None
    seconds: float = SECONDS
    variables: dict[str, str] = field(default_factory=dict)


def plan(output: Path, minutes: float, dry_run: bool) -> dict[str, Stage]:
    """The stages, in their order."""
    # Without the project's options of pytest, which need a plug-in.
    options = ["-o", "addopts=", "-p", "no:cacheprovider", "--tb=short", "-m", "gpu", "-rfEs"]
    stages = {"tests": Stage([sys.executable, "-m", "pytest", *options, "tests/test_gpu.py"])}
    for name in VARIANTS:
        command = [sys.executable, __file__, "--measure", name, "--output", str(output)]
        command += ["--dry-run"] if dry_run else []
        stages[name] = Stage(command, output / f"{name}.json")
    for name in ("ant", "quadruped"):
        # Without checkpoints, a run that is stopped ends with its evaluation.
        command = [sys.executable, "-m", "torchrl_metra", "train", f"env={name}"]
        command += ["checkpoint.interval=null"]
        command += DRY_RUN if dry_run else ["device=cuda"]
        stages[name] = Stage(
            [*command, f"output={output / name}"],
            output / name / "summary.json",
            stop_after=min(60 * minutes, SECONDS - SECONDS_TO_END),
            variables={} if dry_run else {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
        )
    return stages


def run(stages: dict[str, Stage], output: Path) -> bool:
    """Run them one after the other; returns whether all of them ended well."""
    output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {**measuring.environment(), "cuda": torch.version.cuda, "stages": {}}
    if torch.cuda.is_available():
        record["gpu"] = str(torch.cuda.get_device_properties(0))
    write_json(output / "gpu.json", record)
    for name, stage in stages.items():
        print(f"{name} ...", end=" ", flush=True)
        result = record["stages"][name] = run_stage(stage, output / "log.txt")
        write_json(output / "gpu.json", record)
        print(f"{result['outcome']}, {result['seconds']} s", flush=True)
    print(f"written to {output}/gpu.json; what the stages printed is in {output}/log.txt")
    return all(result["outcome"] == "done" for result in record["stages"].values())


def run_stage(stage: Stage, log: Path) -> dict[str, Any]:
    """Run one to its end, or kill it; returns its outcome and its results."""
    if stage.results is not None:
        stage.results.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **stage.variables}
    start, is_late = time.monotonic(), False
    with log.open("ab") as file:
        file.write(f"\n==== {' '.join(stage.command)}\n".encode())
        file.flush()
        begin = file.tell()
        # A session of its own, so that its workers can be killed with it.
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if stage.stop_after is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(stage.stop_after)
                process.terminate()
            process.wait(max(0.0, start + stage.seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    rc, numbers = process.wait(), None
    if stage.results is not None and stage.results.exists():
        numbers = json.loads(stage.results.read_text())
    is_complete = rc == 0 and (stage.results is None or numbers is not None)
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 4_000))
        tail = file.read().decode(errors="replace")
    return {
        "outcome": "took too long" if is_late else "done" if is_complete else "failed",
        "rc": rc,
        "seconds": round(time.monotonic() - start, 1),
        "numbers": numbers,
        "tail": tail,
    }


def measure(name: str, output: Path, dry_run: bool) -> bool:
    """One measurement, in this process; each row is written as soon as it is known."""
    import bare_loop
    import learner
    import pixel_learner

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = "cpu" if dry_run else "cuda"
    rounds, measuring.SECONDS_PER_ROUND = (1, 0.01) if dry_run else (5, 1.0)
    if name == "learner":
        sizes = bare_loop.Sizes(16, replay=512) if dry_run else bare_loop.Sizes(1024)
        make, yardstick = partial(learner.make_step, sizes), bare_loop.BareLoop(sizes, device).step
    else:
        small = {"width": 16, "channels": 4, "batch_size": 16} if dry_run else {}
        make = partial(pixel_learner.make_step, **small)
        yardstick = make(shared_encoder=False, device=device)
    rows: list[dict[str, Any]] = []
    for variant, switches in VARIANTS[name].items():
        if dry_run and "compile" in switches:
            switches = {**switches, "compile": {"backend": "eager"}}
        row = f"{name}/{device}/{variant}"
        try:
            step = make(device=device, **switches)
            seconds = measuring.in_turns({"ours": step, "yardstick": yardstick}, rounds)
            series = [[1e3 * value for value in values] for values in seconds.values()]
            rows.append(measuring.compare(row, "ms", *series).to_json())
        except Exception as error:
            traceback.print_exc()
            rows.append({"name": row, "error": repr(error)[:500]})
        print(rows[-1], flush=True)
        write_json(output / f"{name}.json", rows)
    return not any("error" in row for row in rows)


def write_json(path: Path, value: Any) -> None:
    """Write a file so that it is never half written."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.replace(path)


def main() -> None:
    """Run what the command line names, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(plan(Path(), 1.0, False))
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--minutes", type=float, help="until a run is stopped; 8, at most")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu")
    parser.add_argument("--dry-run", action="store_true", help="tiny and on the CPU")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    if not (arguments.dry_run or torch.cuda.is_available()):
        parser.error("PyTorch finds no GPU here; --dry-run tries this script without one.")
    if arguments.measure:
        sys.exit(not measure(arguments.measure, output, arguments.dry_run))
    os.chdir(ROOT)  # The commit that is noted is that of the working directory.
    minutes = arguments.minutes or (2.0 if arguments.dry_run else 8.0)
    stages = plan(output, minutes, arguments.dry_run)
    sys.exit(not run({name: stages[name] for name in arguments.stages}, output))


if __name__ == "__main__":
    main()
