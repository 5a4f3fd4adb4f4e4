"""From a skill to a task: SAC on the environment's own reward, started from the best skill.

The skill that already earns most is held for good; SAC goes on from its policy. (The paper
leaves this open.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, TensorDictPrimer

from torchrl_metra.envs import SkillPrimer
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.recipes.checkpoints import prepare_run
from torchrl_metra.recipes.collect import build_env
from torchrl_metra.recipes.learners import learn_critics_first, make_sac_trainer, train_task
from torchrl_metra.recipes.records import shielded_from_ctrl_c
from torchrl_metra.recipes.settings import FinetuneSettings


def best_skill(settings: FinetuneSettings, skills: SkillPolicy) -> Tensor:
    """The skill with the highest return, of shape ``[D]``."""
    candidates = skills.prior.grid(settings.candidates)
    env = build_env(settings, settings.candidates, skills)
    env.append_transform(SkillPrimer(skills.prior))
    env.set_seed(settings.seed)
    returns = rollout_skills(env, skills.actor, candidates)["next", "reward"].sum(dim=(1, 2))
    env.close()
    print(f"the best of {settings.candidates} skills returns {returns.max():.1f}")
    return candidates[returns.argmax()]


def make_task(
    settings: FinetuneSettings, skills: SkillPolicy, skill: Tensor, num_envs: int, seed: int
) -> EnvBase:
    """The environment with its own reward and always the same skill."""
    env = build_env(settings, num_envs, skills)
    values = skill.expand(num_envs, -1)
    spec = Composite(skill=Unbounded(values.shape), shape=[num_envs])
    env.append_transform(TensorDictPrimer(spec, default_value=lambda: values))
    env.set_seed(seed)
    return env


def run_finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Train on the environment's own reward.

    Args:
        settings (FinetuneSettings): of the run.

    Returns:
        The results, as in ``summary.json``.
    """
    prepare_run(settings)
    seed = settings.seed
    torch.manual_seed(seed)
    skills = SkillPolicy.load(settings.skill_policy)
    skill = best_skill(settings, skills)
    with shielded_from_ctrl_c():
        env = make_task(settings, skills, skill, settings.num_envs, seed)
        episodes = settings.evaluation_episodes
        evaluation_env = make_task(settings, skills, skill, episodes, seed + 1_000)
    if skills.architecture is None:
        raise ValueError(
            f"{settings.skill_policy} holds networks that were not built by this package."
        )
    networks = skills.architecture.build(skills.prior)
    if settings.pretrained:
        networks.policy.load_state_dict(skills.actor.state_dict())
    trainer = make_sac_trainer(settings, settings.sac, env, networks.policy, networks.critics)
    if settings.pretrained:
        learn_critics_first(trainer, settings.critic_frames, settings.policy_lr)
    return train_task(settings, trainer, evaluation_env, networks.policy)
