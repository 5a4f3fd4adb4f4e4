"""HalfCheetah: eight discrete skills, kept in a file, loaded again and drawn.

    python examples/half_cheetah.py

What you learn: how to choose the skills, and how to use them without the trainer.
It takes about five minutes on two cores.
"""

import argparse
from typing import Any

from torchrl_metra import OneHot, SkillPolicy, SkillPrimer, make_env, make_metra
from torchrl_metra.evaluation import encode_trajectories, plot_skills, positions, rollout_skills

FOLDER = "outputs/half_cheetah"


def main(preset: str = "laptop", **settings: Any) -> None:
    """Train and save; then load, act and draw."""
    # METRA as published; the preset's objective wants skills on the circle.
    prior = OneHot(8)
    trainer = make_metra("half_cheetah", prior, objective="metra", preset=preset, **settings)
    trainer.train()
    trainer.skill_policy.save(f"{FOLDER}/skill_policy.pt")

    # From here on nothing is left of training but the file.
    policy = SkillPolicy.load(f"{FOLDER}/skill_policy.pt")
    env = make_env("half_cheetah", 8).append_transform(SkillPrimer(policy.prior))
    skills = policy.prior.grid(8)  # each skill once
    episodes = rollout_skills(env, policy, skills)
    for index, x in enumerate(episodes["next", "position"][:, -1, 0].tolist()):
        print(f"skill {index} ends at {x:.1f} m")
    latents = encode_trajectories(episodes, policy.encoder)
    plot_skills(latents, skills, f"{FOLDER}/skills.png", position=positions(episodes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", help="paper, laptop (default) or debug")
    main(**vars(parser.parse_args()))
