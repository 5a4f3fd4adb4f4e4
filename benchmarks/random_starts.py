"""Frozen skills of Ant from random starts, within ±3.5 m, beside the usual one.

    python benchmarks/random_starts.py FILE.pt [FILE.pt ...]   # measure, and write the record
    python benchmarks/random_starts.py                         # only print the record

The plane is the same everywhere. So a body that starts elsewhere is one at the origin that reads
another position: each episode adds its start to what the policy reads, and the simulator is left
alone. Distances and cells are counted from the start.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measuring import environment
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_metra import SkillPolicy, SkillPrimer, make_env
from torchrl_metra.evaluation import coverage, positions, rollout_skills

RECORD = Path(__file__).parent / "results" / "random_starts.json"
REACH = 3.5  # meters, as in GenDa
EPISODES = 48
DRAWS = 3  # sets of starts


class Displaced(TensorDictModuleBase):
    """A policy that reads observations as of a body somewhere else.

    Args:
        module (TensorDictModuleBase): the policy.
        shift (Tensor): what is added to the first entries of observations, ``[N, 2]``.
    """

    def __init__(self, module: TensorDictModuleBase, shift: Tensor) -> None:
        super().__init__()
        self.module = module
        self.shift = shift
        self.in_keys = module.in_keys
        self.out_keys = module.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The policy's action, written beside the observation as it was."""
        observation = tensordict["observation"]
        moved = observation.clone()
        moved[..., : self.shift.shape[-1]] += self.shift
        output = self.module(tensordict.copy().set("observation", moved))
        return tensordict.update(output.select(*self.out_keys))


def measure(policy: SkillPolicy, starts: Tensor) -> dict[str, float]:
    """Coverage of 48 skills, and how far from their starts they end, in meters, on average.

    Args:
        policy (SkillPolicy): of Ant.
        starts (Tensor): in meters, ``[48, 2]``.
    """
    env = make_env("ant", num_envs=EPISODES).append_transform(SkillPrimer(policy.prior))
    env.set_seed(0)
    shift = starts / policy.observation_norm["scale"][:2]
    skills = policy.prior.evaluation_skills(EPISODES)
    episodes = rollout_skills(env, Displaced(policy, shift), skills)
    env.close()
    place = positions(episodes)
    return {
        "cells": coverage(place),
        "distance": float((place[:, -1] - place[:, 0]).norm(dim=-1).mean()),
    }


def compare(path: str) -> dict[str, Any]:
    """A policy from the usual start, and the mean over some sets of random ones."""
    policy = SkillPolicy.load(path)
    generator = torch.Generator().manual_seed(0)
    draws = [(2 * torch.rand(EPISODES, 2, generator=generator) - 1) * REACH for _ in range(DRAWS)]
    with torch.no_grad():
        usual = measure(policy, torch.zeros(EPISODES, 2))
        found = [measure(policy, starts) for starts in draws]
    elsewhere = {key: sum(row[key] for row in found) / len(found) for key in usual}
    return {"policy": Path(path).name, "usual": usual, "random": elsewhere}


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table, a row for each policy."""
    lines = [
        "| policy | cells | from random starts | mean distance | from random starts |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        usual, other = run["usual"], run["random"]
        lines.append(
            f"| {run['policy']} | {usual['cells']:.0f} | {other['cells']:.0f} "
            f"| {usual['distance']:.1f} m | {other['distance']:.1f} m |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the command line names; print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="*", help="files of SkillPolicy.save")
    arguments = parser.parse_args()
    if arguments.policies:
        runs = [compare(path) for path in arguments.policies]
        RECORD.write_text(json.dumps({"environment": environment(), "runs": runs}, indent=1) + "\n")
    print(table(json.loads(RECORD.read_text())["runs"]))


if __name__ == "__main__":
    main()
