"""Measure the mean and standard deviation of observations under random actions.

The paper's state-based tasks normalize observations by constants. This script
measures them as the authors did, over 10 000 episodes of 50 uniformly random
actions, and prints them for ``torchrl_metra/envs/observation_norm.toml``:

    python benchmarks/observation_statistics.py
"""

from __future__ import annotations

import argparse

import torch

from torchrl_metra import make_env

EPISODES, STEPS, NUM_ENVS = 10_000, 50, 100


def measure(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each entry of the observation, in float64."""
    env = make_env(name, NUM_ENVS, backend="envpool", normalize=False)
    env.set_seed(seed)
    torch.manual_seed(seed)  # of the actions
    total = squares = 0.0
    for _ in range(EPISODES // NUM_ENVS):
        observation = env.rollout(STEPS)["observation"].double().flatten(0, -2)
        total = total + observation.sum(0)
        squares = squares + observation.square().sum(0)
    env.close()
    count = EPISODES * STEPS
    mean = total / count
    return mean, (squares / count - mean.square()).sqrt()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("ant", "half_cheetah"):
        mean, std = measure(name, arguments.seed)
        print(f"\n[{name}]")
        for field, values in (("loc", mean), ("scale", std)):
            print(f"{field} = [{', '.join(f'{value:.4g}' for value in values)}]")
