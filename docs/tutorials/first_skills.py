"""
First skills
============

This tutorial adds METRA to a plain TorchRL script for SAC. Without the reward of a task, a point in
the plane learns to move in every direction. You will learn what each line of METRA does, and how to
read the pictures and numbers of the result.
"""

# %%
# The environment
# ---------------
#
# :class:`~torchrl_metra.PointEnv` is a point in an unbounded plane. It observes its position, and
# its action moves it by at most 0.2 m along each axis, for 200 steps. Its reward is always zero.
import torch
import torchrl
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn, optim
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import ActionScaling, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_metra import METRALoss, PointEnv, SkillPrimer, UnitSphere
from torchrl_metra.evaluation import (
    encode_trajectories,
    measure_skills,
    plot_skills,
    positions,
    rollout_skills,
)

torch.manual_seed(0)
torchrl.logger.setLevel("WARNING")
env = TransformedEnv(PointEnv(num_envs=16), ActionScaling())

# %%
# METRA's first lines define the skills. A skill z is a direction of a latent plane, a point on the
# unit circle. :class:`~torchrl_metra.SkillPrimer` draws one at every reset and keeps it for the
# episode, in the entry ``"skill"``.
prior = UnitSphere(2)
env = env.append_transform(SkillPrimer(prior))

# %%
# Networks and losses
# -------------------
#
# Policy and critics are those of any SAC script, but they also read ``"skill"``: there is one
# policy π(a|s, z) for all skills. Its hidden layers use tanh, as in the authors' code; the other
# networks use ReLU.
inputs, num_inputs = ["observation", "skill"], 2 + 2
tanh = {"num_cells": [64, 64], "activation_class": nn.Tanh}
relu = {"num_cells": [64, 64], "activation_class": nn.ReLU}
actor = ProbabilisticActor(
    TensorDictSequential(
        TensorDictModule(MLP(num_inputs, 4, **tanh), in_keys=inputs, out_keys=["param"]),
        TensorDictModule(NormalParamExtractor(), ["param"], ["loc", "scale"]),
    ),
    in_keys=["loc", "scale"],
    spec=env.action_spec,
    distribution_class=TanhNormal,
)
qvalue = ValueOperator(MLP(num_inputs + 2, 1, **relu), in_keys=["action", *inputs])
sac_loss = SACLoss(actor, qvalue, loss_function="l2", alpha_init=0.01, target_entropy=-1.0)
target_updater = SoftUpdate(sac_loss, eps=0.99)
sac_optimizer = optim.Adam(sac_loss.parameters(), lr=2e-3)

# %%
# METRA adds the encoder φ, which maps a state to a point in the latent plane, and its loss. φ is
# trained to make (φ(s′) − φ(s))ᵀz large, so that each skill moves along its own direction, while no
# step from a state to the next is longer than one: ‖φ(s′) − φ(s)‖ ≤ 1. The dual variable λ, the
# price of breaking this bound, is a parameter of the loss and is trained with it.
encoder = MLP(in_features=2, out_features=2, **relu)
metra_loss = METRALoss(encoder, prior, dual_init=10.0)
metra_optimizer = optim.Adam(metra_loss.parameters(), lr=2e-3)

# %%
# Before training
# ---------------
#
# The functions of :doc:`torchrl_metra.evaluation </reference/evaluation>` roll out one
# deterministic episode for each of 48 skills around the circle, encode it by φ, measure it and
# draw it.
skills = prior.evaluation_skills(48)
numbers = {}


def look(title):
    rollouts = rollout_skills(env, actor, skills)
    latents = encode_trajectories(rollouts, encoder)
    numbers[title] = measure_skills(rollouts, latents, prior)
    return plot_skills(latents, skills, position=positions(rollouts), title=title)


# sphinx_gallery_thumbnail_number = 2
figure = look("untrained")

# %%
# Each line is an episode, in the color of its skill: on the left in space, on the right in latent
# space. Skills already differ, but look at the scales. Episodes stay within 7 m, and within a
# distance of one in latent space, where 200 steps could lead to a distance of 200.
#
# Training
# --------
#
# The loop is SAC's: collect, sample, take gradient steps. METRA's part comes before the SAC update
# of each batch. It trains φ and λ, and then writes the reward (φ(s′) − φ(s))ᵀz where the SAC loss
# reads it. Rewards are computed for every batch, since φ changes.
collector = Collector(
    env,
    actor,
    frames_per_batch=1_600,
    total_frames=40_000,
    auto_register_policy_transforms=False,
)
replay_buffer = ReplayBuffer(storage=LazyTensorStorage(40_000), batch_size=256)
for data in collector:
    replay_buffer.extend(data.reshape(-1))
    for _ in range(50):
        batch = replay_buffer.sample()
        # METRA: φ and λ, then the reward.
        metra_losses = metra_loss(batch)
        (metra_losses["loss_encoder"] + metra_losses["loss_dual"]).backward()
        metra_optimizer.step()
        metra_optimizer.zero_grad()
        batch["next", "reward"] = metra_loss.reward(batch).detach()
        # SAC, unchanged.
        losses = sac_loss(batch)
        sum(losses[f"loss_{name}"] for name in ("actor", "qvalue", "alpha")).backward()
        sac_optimizer.step()
        sac_optimizer.zero_grad()
        target_updater.step()
    collector.update_policy_weights_()
collector.shutdown()

# %%
# After 40 000 steps
# ------------------
figure = look("after 40,000 steps")

# %%
# The skills form a fan, in space and in latent space. We did not ask for directions in space. They
# follow from the bound: the latent distance of two states is at most the number of steps between
# them. To go far in latent space, a skill has to go to states that take many steps to reach. φ may
# be rotated or mirrored, so a skill's direction on the left differs from that on the right. Lines
# gather along the diagonals, where the point is fastest, since its action is bounded along each
# axis.
#
# The numbers say the same:
names = ("policy_coverage", "sectors", "skill_alignment", "latent_step_mean", "latent_step_max")
for name in names:
    print(f"{name:17}" + "".join(f"{row[name]:9.2f} {title}" for title, row in numbers.items()))

# %%
# * ``policy_coverage`` counts the cells of 1 m that the 48 episodes visit. A straight line of 200
#   steps along an axis visits 40.
# * ``sectors``: the number of the 16 sectors around the start in which they end, at any distance.
# * ``skill_alignment``: the cosine between a skill and its direction in latent space, at most 1.
# * ``latent_step_mean`` and ``latent_step_max``: the length of steps in latent space, bounded by
#   one. φ uses nearly all of it. Much shorter steps would mean that φ has not grown yet, longer
#   ones that λ is too small.
#
# :doc:`/metrics` explains all of them. This is a short run. With more frames, skills fill the gaps
# between the diagonals; see :doc:`/objectives` for runs of 100 000 frames.
# ``examples/add_metra_to_sac.py`` is a script like this one, with each line of METRA marked. In
# :doc:`the next tutorial </auto_tutorials/your_robot>`, a trainer replaces the loop and learns
# skills for a robot that drives.
