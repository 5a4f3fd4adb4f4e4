"""A stress test: half an hour of training with everything around it, and what it leaks.

    python benchmarks/soak.py --minutes 30

METRA trains on PointEnv, with evaluations, videos, OpenGL contexts that are opened and closed, and
rotated checkpoints. Every ten seconds it counts everything that could leak. ``results/soak.json``
has the series and the slope of resident memory, by least squares over all but the first third.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from torchrl_metra import PixelOptions, SkillPrimer, make_env, make_metra
from torchrl_metra._record import describe_run
from torchrl_metra.envs import Renderer
from torchrl_metra.evaluation import measure_skills, write_video
from torchrl_metra.trainers import SkillEvaluation

RESULTS = Path(__file__).parent / "results" / "soak.json"
INTERVAL = 10.0


def main() -> None:
    """Train for so many minutes and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    # Now, before the repository changes.
    run = describe_run()
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Path(folder), 60 * arguments.minutes)
    record = {**run, **summarize(rows), "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({key: record[key] for key in summarize(rows)}, indent=2))


def soak(folder: Path, seconds: float) -> list[dict[str, float]]:
    """Train in a folder; returns what was counted, row by row."""
    trainer = make_metra("point", output=str(folder), total_frames=10**9, progress_bar=False)
    policy, prior = trainer.skill_policy, trainer.skill_policy.prior
    skills = prior.grid(8)
    env = make_env("point", len(skills), pixels=PixelOptions(resolution=64, frames=1))
    env = env.append_transform(SkillPrimer(prior))
    env.set_seed(1)
    done = {"evaluations": 0, "videos": 0}

    def draw(frames: int, rollouts: Any) -> None:
        write_video(rollouts["pixels"], folder / f"{done['videos'] % 3}.mp4")
        robot = make_env("half_cheetah", backend="serial", pixels=PixelOptions(frames=1))
        robot.rollout(3)
        robot.close()
        done["evaluations"] += 1
        done["videos"] += 1

    def measure(rollouts: Any) -> dict[str, float]:
        return measure_skills(rollouts, None, prior)

    evaluation = SkillEvaluation(env, policy, skills, 15_000, measure=measure, callback=draw)
    evaluation.register(trainer)

    rows: list[dict[str, float]] = []
    start = time.monotonic()

    def count() -> None:
        elapsed = time.monotonic() - start
        if elapsed < INTERVAL * len(rows):
            return
        rows.append({"seconds": round(elapsed, 1), **held(), **done})
        rows[-1]["frames"] = trainer.collected_frames
        rows[-1]["checkpoints"] = len(list((folder / "checkpoints").glob("*")))
        if elapsed > seconds:
            trainer.request_stop("time is over")

    trainer.register_op("post_steps", count)
    trainer.train()
    return rows


def held() -> dict[str, float]:
    """Resources of this process and its children, after a garbage collection."""
    gc.collect()
    process = psutil.Process()
    children = process.children(recursive=True)
    return {
        "resident_mb": round(process.memory_info().rss / 2**20, 2),
        "processes": 1 + len(children),
        "threads": process.num_threads(),
        "file_handles": process.num_fds(),
        "render_contexts": sum(
            isinstance(item, Renderer) and item.is_open for item in gc.get_objects()
        ),
    }


def summarize(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Slope of memory after warm-up, and the counts then and at the end."""
    after = rows[len(rows) // 3 :]
    hours = torch.tensor([row["seconds"] / 3600 for row in after], dtype=torch.float64)
    memory = torch.tensor([row["resident_mb"] for row in after], dtype=torch.float64)
    hours = hours - hours.mean()
    slope = (hours * (memory - memory.mean())).sum() / hours.square().sum()
    counts = ("processes", "threads", "file_handles", "render_contexts", "checkpoints")
    return {
        "minutes": round(rows[-1]["seconds"] / 60, 1),
        "frames": rows[-1]["frames"],
        "evaluations": rows[-1]["evaluations"],
        "resident_mb_after_warm_up": after[0]["resident_mb"],
        "resident_mb_at_the_end": after[-1]["resident_mb"],
        "resident_mb_per_hour": round(slope.item(), 2),
        **{f"{name}_after_warm_up": after[0][name] for name in counts},
        **{f"{name}_at_the_end": after[-1][name] for name in counts},
    }


if __name__ == "__main__":
    main()
