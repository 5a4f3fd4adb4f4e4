"""The command ``metra evaluate``: a report of a skill policy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_metra.envs import PixelOptions, make_env, registered_envs, sample_goals
from torchrl_metra.evaluation import evaluate
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.recipes.collect import pixels_of

VIDEO = PixelOptions(resolution=128, frames=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the policy, build its environment and write the report."""
    options = _parse(arguments)
    path = options.policy / "skill_policy.pt" if options.policy.is_dir() else options.policy
    policy = SkillPolicy.load(path)
    name = options.env or policy.env_name
    if name is None:
        raise SystemExit(f"{path} does not say where it was trained: add --env half_cheetah.")
    torch.manual_seed(options.seed)
    pixels, env_options = pixels_of(policy), policy.env_options or {}
    num_envs = options.episodes if pixels is None else min(options.episodes, os.cpu_count() or 1)
    env = make_env(name, num_envs, pixels=pixels, **env_options)
    env.set_seed(options.seed)
    goals, entry = None, registered_envs().get(name)
    has_goals = options.extent or (entry is not None and entry.has_goals)
    if policy.encoder is None and has_goals and options.goals:
        print("The policy has no encoder to point skills to goals: the report is without goals.")
    elif has_goals and options.goals:
        goals = sample_goals(
            name,
            options.goals,
            extent=options.extent,
            pixels=pixels,
            seed=options.seed,
            env_options=policy.env_options,
        )
    output = options.output or path.parent / "report"
    video_env = _video_env(name, env_options, options.seed) if pixels is None else None
    report = evaluate(
        policy,
        env,
        output,
        goals=goals,
        video_env=video_env,
        num_episodes=options.episodes,
        title=f"{name}, {policy.prior!r}",
    )
    for one in (env, video_env):
        if one is not None:
            one.close()
    for key, value in report["skills"].items():
        print(f"{key:18} {value:.4g}")
    for key, metrics in report.get("goals", {}).items():
        print(f"goals, {key}: " + ", ".join(f"{k[5:]} {v:.3g}" for k, v in metrics.items()))
    print(f"Written to {output}: open report.html in a browser.")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="metra evaluate",
        description="Measure a skill policy; write a folder with numbers, pictures and videos.",
    )
    add = parser.add_argument
    add("policy", type=Path, help="file of a SkillPolicy, or a run's folder")
    add("--env", help="name for make_env; by default where it was trained")
    add("--output", type=Path, help="folder to write; default: report beside it")
    add("--episodes", type=int, default=48, help="skills to roll out (48)")
    add("--goals", type=int, default=50, help="zero-shot goals (50); 0: none")
    add("--extent", type=float, help="goals lie within ± this, in meters; default: the paper's")
    add("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _video_env(name: str, env_options: dict[str, Any], seed: int) -> EnvBase | None:
    try:
        env = make_env(name, pixels=VIDEO, **env_options)
        # Whether a machine can draw shows in its first picture.
        env.reset()
    except (ImportError, RuntimeError, ValueError) as error:
        print(f"The report is without videos: {error}")
        return None
    env.set_seed(seed)
    return env
