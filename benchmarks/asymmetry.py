"""Latent distance, which is symmetric, against temporal distance, which here is not.

    metra train env=point --multirun seed=0,1,2
    metra train env=windy_point --multirun seed=0,1,2
    python benchmarks/asymmetry.py outputs/point outputs/windy_point

For each run below the folders, it measures the latent length of a step and of ten meters with,
against and across the wind, and how many steps the skills take to goals there (none if they miss
them). Writes ``results/windy_point.json`` and draws ``results/windy_point.png``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measuring import environment
from tensordict import TensorDict
from torch import Tensor

from torchrl_metra import GoalPrimer, SkillPolicy, SkillPrimer, make_env
from torchrl_metra.envs import PointEnv, WindyPointEnv
from torchrl_metra.evaluation import rollout_goals, rollout_skills
from torchrl_metra.evaluation.temporal import rank_correlation

RESULTS = Path(__file__).parent / "results"
DIRECTIONS = {
    "downwind": (1.0, 0.0),
    "upwind": (-1.0, 0.0),
    "across, left": (0.0, 1.0),
    "across, right": (0.0, -1.0),
}
DISTANCE = 10.0
REACHED = 1.0
NUM_SKILLS, NUM_PAIRS = 240, 4_000
# The constraint holds on average, so training leaves some violations.
TOLERANCE = 1.05


def fewest_steps(displacement: Tensor, wind: float) -> Tensor:
    """The temporal distance on a point in the wind: steps that a displacement takes, at best.

    Args:
        displacement (Tensor): from one state to another, of shape ``[*B, 2]``.
        wind (float): what the wind adds along x to each step.

    Returns:
        A tensor of shape ``[*B]``; fractions of a step count as such.
    """
    x, y = displacement.unbind(-1)
    limit = PointEnv.max_displacement
    along = torch.maximum(x / (limit + wind), -x / (limit - wind))
    return torch.maximum(along, y.abs() / limit)


@torch.no_grad()
def measure(policy: SkillPolicy, name: str) -> dict[str, Any]:
    """The skills of one run, in every direction of the wind."""
    wind = WindyPointEnv.wind if name == "windy_point" else 0.0
    encode = policy.encoder.module
    env = make_env(name, 48).append_transform(SkillPrimer(policy.prior))
    rollouts = rollout_skills(env, policy, policy.prior.grid(NUM_SKILLS))
    visited, following = rollouts["position"].flatten(0, 1), rollouts["next", "position"]
    made_steps = (encode(following).flatten(0, 1) - encode(visited)).norm(dim=-1)
    x, y = following[:, -1].unbind(-1)

    headings = torch.tensor(list(DIRECTIONS.values()))
    goals = DISTANCE * headings
    steps = goals / fewest_steps(goals, wind)[:, None]
    paths = reach(policy, name, goals)
    results: dict[str, Any] = {
        # How close to straight upwind a skill leads, in degrees.
        "upwind_angle": torch.atan2(y.abs(), -x).rad2deg().min().item(),
        "longest_made_step": made_steps.max().item(),
    }
    for direction, heading, step, goal, path in zip(
        DIRECTIONS, headings, steps, goals, paths, strict=True
    ):
        distance = (path - goal).norm(dim=-1)
        is_there = (distance <= REACHED).nonzero()
        results[direction] = {
            "latent_step": (encode(visited + step) - encode(visited)).norm(dim=-1).mean().item(),
            "temporal_distance": fewest_steps(goal, wind).item(),
            "latent_distance": (encode(goal) - encode(torch.zeros(2))).norm().item(),
            "farthest": (visited @ heading).max().item(),
            "steps_to_goal": is_there[0].item() + 1 if len(is_there) else None,
            "final_distance": distance[-1].item(),
        }
    generator = torch.Generator().manual_seed(0)
    first, second = visited[torch.randint(len(visited), (2, NUM_PAIRS), generator=generator)]
    there, back = fewest_steps(second - first, wind), fewest_steps(first - second, wind)
    latent = (encode(second) - encode(first)).norm(dim=-1)
    results["pairs"] = {
        "rank_correlation": rank_correlation(there, latent),
        "rank_correlation_shorter_way": rank_correlation(torch.minimum(there, back), latent),
        "beyond_longer_way": _share(latent > TOLERANCE * torch.maximum(there, back)),
        "beyond_shorter_way": _share(latent > TOLERANCE * torch.minimum(there, back)),
    }
    return results


def _share(cases: Tensor) -> float:
    return cases.float().mean().item()


def reach(policy: SkillPolicy, name: str, goals: Tensor) -> Tensor:
    """Positions of zero-shot episodes from the origin to each goal, of shape ``[M, T, 2]``."""
    entries = TensorDict({"observation": goals, "position": goals.clone()}, [len(goals)])
    env = make_env(name, len(goals)).append_transform(SkillPrimer(policy.prior))
    env = env.append_transform(GoalPrimer(entries))
    return rollout_goals(env, policy.reach_goals(), entries)["next", "position"]


@torch.no_grad()
def draw(policies: dict[str, SkillPolicy], path: Path) -> None:
    """Latent and temporal distances from the origin along the wind, a panel for each world."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for axes, (name, policy) in zip(panels, policies.items(), strict=True):
        wind = WindyPointEnv.wind if name == "windy_point" else 0.0
        x = torch.linspace(-15.0, 15.0, 121)
        places = torch.stack([x, torch.zeros_like(x)], dim=-1)
        encode = policy.encoder.module
        latent = (encode(places) - encode(torch.zeros(2))).norm(dim=-1)
        axes.plot(x, fewest_steps(places, wind), label="fewest steps there")
        axes.plot(x, fewest_steps(-places, wind), ls="--", label="fewest steps back")
        axes.plot(x, latent, color="black", label="latent distance")
        axes.set(xlabel="x, down the wind (m)", title=name.replace("_", " "))
        axes.grid(alpha=0.2)
        axes.legend(fontsize="small")
    panels[0].set(ylabel="distance from the origin (steps)")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure all runs and draw the first one of each environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="with runs below")
    runs = []
    drawn: dict[str, SkillPolicy] = {}
    folders = parser.parse_args().folders
    for file in sorted(path for folder in folders for path in folder.rglob("summary.json")):
        summary = json.loads(file.read_text())
        policy = SkillPolicy.load(file.with_name("skill_policy.pt"))
        name, seed = policy.env_name, summary["config"]["seed"]
        trained = {key: summary[key] for key in ("command", "commit", "seconds", "coverage_after")}
        runs.append({"env": name, "seed": seed, "trained": trained, **measure(policy, name)})
        drawn.setdefault(name, policy)
    record = {"environment": environment(), "runs": runs}
    (RESULTS / "windy_point.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(drawn, RESULTS / "windy_point.png")


if __name__ == "__main__":
    main()
