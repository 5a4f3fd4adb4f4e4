"""Humanoid from pixels: on a GPU, with checkpoints from which the same command goes on.

    python examples/humanoid.py                  # the paper's settings; wants a GPU
    python examples/humanoid.py --preset debug   # all of it, in two minutes

What you learn: how a long run is kept fast and safe. Stop it and start it again.
"""

import argparse
from typing import Any

import torch

from torchrl_metra import make_metra
from torchrl_metra.trainers import resume

FOLDER = "outputs/humanoid"


def main(preset: str = "paper", **settings: Any) -> None:
    """Train, from the newest checkpoint if there is one."""
    has_gpu = torch.cuda.is_available()
    fast = {"device": "cuda", "compile": True, "autocast": "bfloat16"} if has_gpu else {}
    settings = {"checkpoint": {"interval": 100_000, "keep": 2}, **fast, **settings}
    trainer = make_metra("humanoid", preset=preset, output=FOLDER, **settings)

    # Weights, optimizers, replay buffer, counters and random state: the run goes on as it was.
    checkpoint = resume(trainer)
    print("a new run" if checkpoint is None else f"goes on from {checkpoint}")
    trainer.train()
    trainer.skill_policy.save(f"{FOLDER}/skill_policy.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", help="paper (default), laptop or debug")
    main(**vars(parser.parse_args()))
