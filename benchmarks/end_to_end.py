"""The whole training loop on Ant, against the authors' code.

Their rate was measured once, beside the bare loop, on two cores of this kind; here it is scaled
by what the bare loop takes now.
"""

from __future__ import annotations

import resource
import statistics
import time
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bare_loop import BareLoop, Sizes
from measuring import Result, compare, seconds_per_call

from torchrl_metra import make_metra

# The authors' code as it comes (one worker, one thread): 1600 frames and 50 steps in 14.3 s,
# when the bare loop took 115 ms a step. At its best (learner on two threads, two workers) it
# made 194 frames/s.
AUTHORS_FRAMES_PER_SECOND = 112.0
BARE_MILLISECONDS_BESIDE_THEM = 115.0
FRAMES_PER_ROUND = 1_600
FILLING, WARM_UP, ROUNDS = 6, 1, 6

BF16 = {"autocast": "bfloat16"}
BEST = {"compile": True, **BF16}
SWITCHES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "best": BEST,
    "best_asynchronous": {**BEST, "distributed": {"kind": "multi_async", "workers": 1}},
}
CUDA_SWITCHES: dict[str, dict[str, Any]] = {"fp32": {}, "best": {**BEST, "cudagraphs": True}}


def measure(switches: str, device: str = "cpu") -> list[Result]:
    """Frames per second of the paper's Ant, and the memory it takes."""
    torch.set_num_threads(2)
    bare = BareLoop(Sizes(width=1024))
    before = seconds_per_call(bare.step, duration=4.0)
    stamps = train(switches, device)
    after = seconds_per_call(bare.step, duration=4.0)

    scale = BARE_MILLISECONDS_BESIDE_THEM / (1e3 * statistics.mean([before, after]))
    rounds = [end - start for start, end in pairwise(stamps[FILLING + WARM_UP :])]
    rate = FRAMES_PER_ROUND / statistics.median(rounds)
    theirs = AUTHORS_FRAMES_PER_SECOND * scale
    where = "" if device == "cpu" else "cuda/"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        Result(f"end_to_end/{where}ant/{switches}", "frames/s", rate, theirs, rate / theirs),
        Result(f"memory/{where}ant/{switches}", "MiB at most", peak),
    ]


def measure_backends() -> list[Result]:
    """The preset ``laptop`` of Ant on MuJoCo's threads, against EnvPool, in turns."""
    torch.set_num_threads(2)
    rates: dict[str, list[float]] = {"mujoco": [], "envpool": []}
    for _ in range(2):
        for backend, found in rates.items():
            stamps = run("ant", preset="laptop", autocast="bfloat16", compile=True, backend=backend)
            rounds = [end - start for start, end in pairwise(stamps[FILLING + WARM_UP :])]
            found.append(FRAMES_PER_ROUND / statistics.median(rounds))
    return [compare("end_to_end/ant/laptop_over_envpool", "frames/s", *rates.values())]


def measure_laptop(device: str) -> list[Result]:
    """The preset ``laptop`` of Ant with all that makes it fast on a device."""
    stamps = run("ant", preset="laptop", device=device, compile=True, cudagraphs=True, **BF16)
    rounds = [end - start for start, end in pairwise(stamps[FILLING + WARM_UP :])]
    rate = FRAMES_PER_ROUND / statistics.median(rounds)
    return [Result(f"end_to_end/{device}/ant/laptop", "frames/s", rate)]


def train(switches: str, device: str) -> list[float]:
    """Train as the paper does, without evaluation; returns the time after each round."""
    options = (SWITCHES if device == "cpu" else CUDA_SWITCHES)[switches]
    return run("ant", num_envs=200, device=device, **options)


def run(env: str, **settings: Any) -> list[float]:
    """The time after each round of a short run."""
    stamps: list[float] = []
    with TemporaryDirectory() as output:
        trainer = make_metra(
            env,
            total_frames=FRAMES_PER_ROUND * (FILLING + WARM_UP + ROUNDS + 1),
            output=output,
            progress_bar=False,
            **settings,
        )
        trainer.register_op("post_steps", lambda: stamps.append(time.perf_counter()))
        trainer.train()
    return stamps
