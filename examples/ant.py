"""Ant: watch coverage while it trains, then reach goals that it was never trained for.

    python examples/ant.py --total-frames 2_000_000

What you learn: how to attach an evaluation to the trainer, and how to use skills for goals.
Two million steps take about half an hour on one core.
"""

import argparse
from typing import Any

from torchrl_metra import SkillPrimer, make_env, make_metra, sample_goals
from torchrl_metra.evaluation import goal_metrics, rollout_goal_policies
from torchrl_metra.trainers import SkillEvaluation


def main(preset: str = "laptop", **settings: Any) -> None:
    """Train, then send the skills to goals."""
    trainer = make_metra("ant", preset=preset, **settings)
    policy = trainer.skill_policy

    # A hook: each 50 000 steps, the cells that 48 skills visit appear in the progress bar.
    env = make_env("ant", 48).append_transform(SkillPrimer(policy.prior))
    skills = policy.prior.evaluation_skills(48)
    SkillEvaluation(env, policy, skills, interval=50_000).register(trainer)
    trainer.train()

    # Zero-shot: the skill that points from here to the goal in latent space, chosen at each step.
    goals = sample_goals("ant", 50, extent=20.0)
    for name, episodes in rollout_goal_policies(make_env("ant", 50), policy, goals).items():
        distance = goal_metrics(episodes)["goal/final_distance"]
        print(f"{name:8} skills end {distance:.1f} m from their goals")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", help="paper, laptop (default) or debug")
    parser.add_argument("--total-frames", type=int, help="environment steps")
    main(**vars(parser.parse_args()))
