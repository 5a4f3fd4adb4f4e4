"""
Skills as actions
=================

A second policy can act through a frozen skill policy: it chooses a skill, which is then followed
for some steps. This tutorial solves a task with sparse rewards by SAC, once on top of skills and
once on the environment's own actions, with the same number of environment steps. You will learn how
:class:`~torchrl_metra.SkillAction` changes an environment, and how to make a fair comparison.
"""

# %%
# The skills
# ----------
#
# First, we need skills of the point in the plane, as in :doc:`/auto_tutorials/first_skills`. You
# can also load a saved policy: ``skills = SkillPolicy.load("skill_policy.pt")``.
import matplotlib.pyplot as plt
import torch
import torchrl
from torch import nn, optim
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import ExplorationType, RenameTransform, set_exploration_type
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    SkillAction,
    SkillConditionedActor,
    UnitSphere,
    make_env,
    make_metra,
)

torchrl.logger.setLevel("WARNING")
skill_frames = 32_000
trainer = make_metra("point", UnitSphere(2), seed=1, total_frames=skill_frames, progress_bar=False)
trainer.train()
skills = trainer.skill_policy

# %%
# The task
# --------
#
# In ``point_goal`` each episode has a goal, uniform within ±20 m along each axis. Each step that
# ends within 3 m of it gives a reward of 1, all others give 0. ``"to_goal"`` is the vector to the
# goal. With :class:`~torchrl_metra.SkillAction`, an action is a skill: the environment takes ten
# steps with the actions of the frozen policy, and sums their rewards.
num_envs, num_steps = 32, 10


def make_task(with_skills):
    env = make_env("point_goal", num_envs)
    if with_skills:
        env.append_transform(SkillAction(skills, skills.prior, num_steps=num_steps))
    return env


for with_skills in (True, False):
    print(f"an episode takes {make_task(with_skills).rollout(1_000).shape[1]} decisions")

# %%
# SAC, twice
# ----------
#
# One function trains both, with the same networks and settings. The policy only reads
# ``"to_goal"``. A round is one episode of each environment, 6400 steps, and 50 updates. A frame of
# the collector is one decision. With skills there are ten times fewer of them, and their discount
# is that of ten steps.
#
# Skills are not free: they took 32 000 steps of training. SAC on raw actions gets these steps in
# addition, which makes 15 rounds instead of 10.
updates = 50


def learn(with_skills, rounds):
    """SAC on the task; returns the policy and the mean return of each round of episodes."""
    torch.manual_seed(0)
    env = make_task(with_skills)
    steps = num_steps if with_skills else 1
    frames = num_envs * 200 // steps

    layers = {"num_cells": [64, 64], "activation_class": nn.ReLU}
    features = MLP(2, 64, activate_last_layer=True, **layers)
    actor = SkillConditionedActor(features, 64, env.action_spec, in_keys=["to_goal"])
    critic = ValueOperator(MLP(2 + 2, 1, **layers), in_keys=["to_goal", "action"])
    loss = BatchedSACLoss(actor, critic, loss_function="l2", alpha_init=0.1, target_entropy=-2.0)
    loss.make_value_estimator(gamma=0.99**steps)
    optimizer, target_updater = optim.Adam(loss.parameters(), lr=2e-3), SoftUpdate(loss, eps=0.99)

    replay_buffer = ReplayBuffer(storage=LazyTensorStorage(rounds * frames), batch_size=256)
    collector = Collector(
        env,
        actor,
        frames_per_batch=frames,
        total_frames=rounds * frames,
        auto_register_policy_transforms=False,
    )
    returns = []
    for data in collector:
        returns.append(data["next", "reward"].sum(dim=1).mean().item())
        replay_buffer.extend(data.reshape(-1))
        for _ in range(updates):
            losses = loss(replay_buffer.sample())
            sum(losses[f"loss_{name}"] for name in ("actor", "qvalue", "alpha")).backward()
            optimizer.step()
            optimizer.zero_grad()
            target_updater.step()
        collector.update_policy_weights_()
    collector.shutdown()
    return actor, returns


actors, curves = {}, {}
actors["SAC above skills"], curves["SAC above skills"] = learn(True, rounds=10)
actors["SAC on raw actions"], curves["SAC on raw actions"] = learn(False, rounds=15)

figure, axes = plt.subplots(figsize=(7, 4), dpi=150, layout="constrained")
for name, returns in curves.items():
    # Both end after 96 000 steps, including the 32 000 of METRA.
    steps = [96_000 - 6_400 * i for i in reversed(range(len(returns)))]
    axes.plot(steps, returns, marker=".", label=name)
axes.axvspan(0, skill_frames, color="0.9", label="METRA learns the skills")
axes.set(xlabel="environment steps, those of the skills included", ylabel="return while exploring")
axes.set_xlim(left=0)
axes.set_ylim(bottom=0)
axes.legend()
axes.grid(alpha=0.2)


# %%
# The same goals for all
# ----------------------
#
# Deterministic episodes count, here 32 with the same goals. We compare both with a third policy
# that has not learned the task: *zero-shot* follows φ(goal) − φ(s), see
# :doc:`/auto_tutorials/reaching_goals`. It is told where the goal is, while the other two learn
# from a reward.
def evaluate(env, policy):
    torch.manual_seed(1)  # goals
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        episodes = env.rollout(200, policy)
    returns = episodes["next", "reward"].sum(dim=1)
    return returns.mean().item(), (returns > 0).float().mean().item()


goal_env = make_task(False).append_transform(
    RenameTransform(["goal_position"], [("goal", "observation")], create_copy=True)
)
results = {
    "SAC above skills": evaluate(make_task(True), actors["SAC above skills"]),
    "SAC on raw actions": evaluate(make_task(False), actors["SAC on raw actions"]),
    "zero-shot": evaluate(goal_env, skills.reach_goals()),
}
for name, (mean, share) in results.items():
    print(f"{name:18} return {mean:6.1f}, {share:4.0%} of goals touched")

# %%
# With skills, SAC explores by walking in one direction for ten steps at a time, and finds goals
# that single random actions hardly reach. On raw actions the return rises as well, but later.
#
# A high-level policy is as good as its skills. These are from seed 1. With the skills of seed 0 it
# ends at 51 and zero-shot at 75; with those of seed 2, at 98 and 100. Some of their skills do not
# turn around, see :doc:`/auto_tutorials/reaching_goals`. Records of HalfCheetah and Ant, with three
# seeds each, are in :doc:`/guides/downstream`.
#
# Here zero-shot does as well as the high-level policy or better, because the task is to be at a
# place, which φ knows. A high-level policy is for other rewards: to visit several places in turn,
# to collect things, or to avoid them.
