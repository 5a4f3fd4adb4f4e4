"""From a skill to a task: SAC on the environment's own reward, started from the best skill.

python examples/finetune.py skill_policy=outputs/quickstart/skill_policy.pt
python examples/finetune.py pretrained=false    # the same networks from scratch

The skill that already earns most is held for good; SAC goes on from its policy. (The paper
leaves this open.)
"""

from __future__ import annotations

from typing import Any

import hydra
import torch
from checkpoints import begin, checkpoint_options
from learners import learn_critics_first, make_sac_trainer, train
from omegaconf import DictConfig
from records import shielded_from_ctrl_c
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, TensorDictPrimer

from torchrl_metra import SkillPolicy, SkillPrimer, make_env
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.trainers.names import suggest_names


def best_skill(config: DictConfig, skills: SkillPolicy) -> Tensor:
    """The skill with the highest return, of shape ``[D]``."""
    candidates = skills.prior.grid(config.candidates)
    env = make_env(config.env, config.candidates, backend=config.backend)
    env = env.append_transform(SkillPrimer(skills.prior))
    env.set_seed(config.seed)
    returns = rollout_skills(env, skills.actor, candidates)["next", "reward"].sum(dim=(1, 2))
    env.close()
    print(f"the best of {config.candidates} skills returns {returns.max():.1f}")
    return candidates[returns.argmax()]


def make_task(config: DictConfig, skill: Tensor, num_envs: int, seed: int) -> EnvBase:
    """The environment with its own reward and always the same skill."""
    env = make_env(config.env, num_envs, backend=config.backend)
    skills = skill.expand(num_envs, -1)
    spec = Composite(skill=Unbounded(skills.shape), shape=[num_envs])
    env.append_transform(TensorDictPrimer(spec, default_value=lambda: skills))
    env.set_seed(seed)
    return env


def run(config: DictConfig) -> dict[str, Any]:
    """Train on the task; returns a summary."""
    config = begin(config)
    torch.manual_seed(config.seed)
    skills = SkillPolicy.load(config.skill_policy)
    skill = best_skill(config, skills)
    with shielded_from_ctrl_c():
        env = make_task(config, skill, config.num_envs, config.seed)
        evaluation_env = make_task(config, skill, config.evaluation_episodes, config.seed + 1_000)
    networks = skills.architecture.build(skills.prior)
    if config.pretrained:
        networks.policy.load_state_dict(skills.actor.state_dict())
    trainer = make_sac_trainer(
        config.sac, env, networks.policy, networks.critics, **checkpoint_options(config)
    )
    if config.pretrained:
        learn_critics_first(trainer, config.critic_frames, config.policy_lr)
    return train(config, trainer, evaluation_env, networks.policy)


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="finetune")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/finetune.yaml``."""
    run(config)


if __name__ == "__main__":
    main()
