"""Goals that are kept: how near skills come to goals, and how near they stay.

    python benchmarks/goals.py FILE.pt [FILE.pt ...]   # measure, and add to the record
    python benchmarks/goals.py                         # only print the record

Fifty goals within ±20 m, the same for all policies of a task, episodes of 200 steps.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from measuring import environment
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, EnvBase

from torchrl_metra import (
    GoalPrimer,
    GoalReachingPolicy,
    SkillPolicy,
    SkillPrimer,
    UnitBall,
    UnitSphere,
    make_env,
    sample_goals,
)
from torchrl_metra.evaluation import goal_metrics, rollout_goals

RECORD = Path(__file__).parent / "results" / "goals.json"
GOALS = 50
EXTENT = 20.0  # meters
WAYS = ("skills", "made shorter", "with a stop")
NEAR = 1.0  # meters within which the hand-coded stop takes the hands off
SHORTER = 10.0  # latent distance below which skills are made shorter


class Shorter(GoalReachingPolicy):
    """Skills that are shorter near the goal, which policies of the unit sphere have never seen."""

    def _skill_to_goal(self, tensordict: TensorDictBase) -> Tensor:
        latent, goal = self._encode(tensordict), self._encode(tensordict["goal"])
        length = (goal - latent).norm(dim=-1, keepdim=True) / SHORTER
        return super()._skill_to_goal(tensordict) * length.clamp(max=1.0)


class Stop(TensorDictModuleBase):
    """A policy that acts no more where the body is at its goal, for comparison.

    Args:
        module (TensorDictModuleBase): the policy.
    """

    def __init__(self, module: TensorDictModuleBase) -> None:
        super().__init__()
        self.module = module
        self.in_keys = [*module.in_keys, "position", ("goal", "position")]
        self.out_keys = module.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The policy's action, or none."""
        tensordict = self.module(tensordict)
        distance = (tensordict["position"] - tensordict["goal", "position"]).norm(dim=-1)
        is_far = (distance > NEAR).unsqueeze(-1)
        return tensordict.set("action", tensordict["action"] * is_far)


def measure(path: str) -> dict[str, Any]:
    """How a policy's skills reach goals, alone and with the stop."""
    policy = SkillPolicy.load(path)
    options = policy.env_options or {}
    goals = sample_goals(
        str(policy.env_name), GOALS, extent=EXTENT, seed=0, env_options=policy.env_options
    )
    env: EnvBase = make_env(str(policy.env_name), GOALS, **options)
    env = env.append_transform(Compose(SkillPrimer(policy.prior), GoalPrimer(goals)))
    ways = {
        "skills": policy.reach_goals(),
        "with a stop": Stop(policy.reach_goals()),
    }
    if isinstance(policy.prior, UnitSphere) and not isinstance(policy.prior, UnitBall):
        ways["made shorter"] = Shorter(policy.actor, policy.encoder, policy.prior)
    result: dict[str, Any] = {"file": path, "env": policy.env_name, "prior": repr(policy.prior)}
    with closing(env):
        for name, module in ways.items():
            env.set_seed(0)
            torch.manual_seed(0)
            metrics = goal_metrics(rollout_goals(env, module, goals))
            result[name] = {key.removeprefix("goal/"): round(v, 3) for key, v in metrics.items()}
    return result


def show(results: list[dict[str, Any]]) -> None:
    """A table, and a row for each policy and way."""
    print("| policy | way | hit, 3 m | final distance | at the end within 3 m | within 1 m |")
    print("|---|---|---|---|---|---|")
    for result in results:
        name = Path(result["file"]).with_suffix("")
        for way in (way for way in WAYS if way in result):
            row = result[way]
            print(
                f"| {name.parent.name}/{name.name} | {way} | {row['hit_3']:.2f} "
                f"| {row['final_distance']:.1f} m | {row['end_3']:.2f} | {row['end_1']:.2f} |"
            )


def main() -> None:
    """Measure what the command line names; print the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="*", metavar="FILE.pt")
    files = parser.parse_args().policies
    known = json.loads(RECORD.read_text())["policies"] if RECORD.exists() else []
    results = [entry for entry in known if entry["file"] not in files] + [*map(measure, files)]
    if files:
        content = {"goals": GOALS, "extent": EXTENT, "policies": results, **environment()}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    main()
