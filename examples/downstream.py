"""A task with frozen skills, or without (Section 5).

python examples/downstream.py skill_policy=outputs/quickstart/skill_policy.pt
python examples/downstream.py skill_policy=null    # SAC on the environment's own actions
python examples/downstream.py env=half_cheetah_hurdle

The high-level policy picks a skill, which the skill policy follows for 25 steps: by SAC for
continuous skills, by PPO for discrete ones.
"""

from __future__ import annotations

from typing import Any

import hydra
import torch
from checkpoints import begin, checkpoint_options
from learners import make_ppo_trainer, make_sac_trainer, train
from omegaconf import DictConfig
from records import shielded_from_ctrl_c
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import OneHot as OneHotSpec
from torchrl.envs import CatTensors, EnvBase, UnaryTransform
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator

from torchrl_metra import PixelOptions, SkillAction, SkillConditionedActor, SkillPolicy, make_env
from torchrl_metra.modules import PixelEncoder, PixelNetwork
from torchrl_metra.trainers.names import suggest_names


def make_task(config: DictConfig, skills: SkillPolicy | None, num_envs: int, seed: int) -> EnvBase:
    """The task, in which an action is a skill if there are some."""
    pixels = PixelOptions(**config.pixels) if config.pixels else None
    env = make_env(config.env, num_envs, backend=config.backend, pixels=pixels)
    if skills is not None:
        env.append_transform(SkillAction(skills.actor, skills.prior, num_steps=config.skill_steps))
    if "observation" in env.observation_spec.keys():
        entries = ["observation", "to_goal"]
        env.append_transform(CatTensors(entries, out_key="state", del_keys=False))
        # HalfCheetah's x lies 100 standard deviations from the mean at 40 m.
        env.append_transform(UnaryTransform(["state"], ["state"], fn=torch.asinh))
    env.set_seed(seed)
    return env


def make_network(
    env: EnvBase, num_cells: list[int], num_outputs: int, action_size: int = 0, **options: Any
) -> nn.Module:
    """A perceptron for what there is to see, with convolutions before it for pictures."""
    spec, encoder = env.observation_spec, None
    if "state" in spec.keys():
        size = spec["state"].shape[-1]
    else:
        encoder = PixelEncoder(spec["pixels"].shape[-3:])
        size = encoder.num_features + spec["to_goal"].shape[-1]
    options = {"num_cells": num_cells, "activation_class": nn.ReLU, **options}
    mlp = MLP(in_features=size + action_size, out_features=num_outputs, **options)
    return mlp if encoder is None else PixelNetwork(encoder, mlp)


def make_sac_networks(env: EnvBase, num_cells: list[int]) -> tuple[nn.Module, list[nn.Module]]:
    """A Tanh-Normal policy and twin critics."""
    inputs = observed(env)
    *inner, last = num_cells
    features = make_network(env, inner, last, activate_last_layer=True)
    actor = SkillConditionedActor(features, last, env.action_spec, in_keys=inputs)
    size = env.action_spec.shape[-1]
    critics = [make_network(env, num_cells, 1, size) for _ in range(2)]
    return actor, [ValueOperator(critic, in_keys=[*inputs, "action"]) for critic in critics]


def make_ppo_networks(env: EnvBase, num_cells: list[int]) -> tuple[nn.Module, nn.Module]:
    """A policy over the discrete skills and a critic."""
    inputs = observed(env)
    logits = make_network(env, num_cells, env.action_spec.shape[-1])
    actor = ProbabilisticActor(
        TensorDictModule(logits, in_keys=inputs, out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(make_network(env, num_cells, 1), in_keys=inputs)


def observed(env: EnvBase) -> list[str]:
    """What the networks of the high level read."""
    return ["state"] if "state" in env.observation_spec.keys() else ["pixels", "to_goal"]


def run(config: DictConfig, skills: SkillPolicy | None) -> dict[str, Any]:
    """Train on the task, with skills or without; returns a summary."""
    config = begin(config)
    checkpoints = checkpoint_options(config)
    torch.manual_seed(config.seed)
    with shielded_from_ctrl_c():
        env = make_task(config, skills, config.num_envs, config.seed)
        evaluation_env = make_task(config, skills, config.evaluation_episodes, config.seed + 1_000)
    num_cells = list(config.num_cells)
    if skills is None:
        policy, critics = make_sac_networks(env, num_cells)
        trainer = make_sac_trainer(config.baseline, env, policy, critics, **checkpoints)
    elif isinstance(env.action_spec, OneHotSpec):
        policy, critic = make_ppo_networks(env, num_cells)
        trainer = make_ppo_trainer(
            config.ppo, env, policy, critic, config.skill_steps, **checkpoints
        )
    else:
        policy, critics = make_sac_networks(env, num_cells)
        trainer = make_sac_trainer(
            config.sac, env, policy, critics, config.skill_steps, **checkpoints
        )
    return train(config, trainer, evaluation_env, policy)


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="downstream")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/downstream.yaml``."""
    run(config, SkillPolicy.load(config.skill_policy) if config.skill_policy else None)


if __name__ == "__main__":
    main()
