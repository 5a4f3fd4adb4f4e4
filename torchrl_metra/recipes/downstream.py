"""A task with frozen skills, or without (Section 5).

The high-level policy picks a skill, which the skill policy follows for 25 steps: by SAC for
continuous skills, by PPO for discrete ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import OneHot as OneHotSpec
from torchrl.envs import CatTensors, EnvBase, UnaryTransform
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator

from torchrl_metra.envs import SkillAction
from torchrl_metra.modules import PixelEncoder, PixelNetwork, SkillConditionedActor, SkillPolicy
from torchrl_metra.recipes.checkpoints import prepare_run
from torchrl_metra.recipes.collect import build_env
from torchrl_metra.recipes.learners import make_ppo_trainer, make_sac_trainer, train_task
from torchrl_metra.recipes.records import shielded_from_ctrl_c
from torchrl_metra.recipes.settings import DownstreamSettings


def make_task(
    settings: DownstreamSettings, skills: SkillPolicy | None, num_envs: int, seed: int
) -> EnvBase:
    """The task, in which an action is a skill if there are some."""
    env = build_env(settings, num_envs, skills)
    if skills is not None:
        steps = settings.skill_steps
        env.append_transform(SkillAction(skills.actor, skills.prior, num_steps=steps))
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


def run_downstream(
    settings: DownstreamSettings, skills: SkillPolicy | None = None
) -> dict[str, Any]:
    """Train on the task, with skills or without.

    Args:
        settings (DownstreamSettings): of the run.
        skills (SkillPolicy, optional): by default those of the file ``skill_policy``.

    Returns:
        The results, as in ``summary.json``.
    """
    if skills is None and settings.skill_policy is not None:
        skills = SkillPolicy.load(settings.skill_policy)
    settings = replace(settings, output=settings.output or f"outputs/{settings.env.name}")
    prepare_run(settings)
    seed, num_cells, steps = settings.seed, settings.num_cells, settings.skill_steps
    torch.manual_seed(seed)
    with shielded_from_ctrl_c():
        env = make_task(settings, skills, settings.num_envs, seed)
        evaluation_env = make_task(settings, skills, settings.evaluation_episodes, seed + 1_000)
    if skills is None:
        policy, critics = make_sac_networks(env, num_cells)
        trainer = make_sac_trainer(settings, settings.baseline, env, policy, critics)
    elif isinstance(env.action_spec, OneHotSpec):
        policy, critic = make_ppo_networks(env, num_cells)
        trainer = make_ppo_trainer(settings, settings.ppo, env, policy, critic, steps)
    else:
        policy, critics = make_sac_networks(env, num_cells)
        trainer = make_sac_trainer(settings, settings.sac, env, policy, critics, steps)
    return train_task(settings, trainer, evaluation_env, policy)
