"""A plain TorchRL SAC script on PointEnv. The lines marked METRA turn it into skill discovery.

    python examples/add_metra_to_sac.py

Without these lines it is SAC on the task's own reward; with them the policy learns, without any
reward, to move in every direction of the plane.
"""

import argparse

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import nn, optim
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import ActionScaling, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_metra import METRALoss, SkillPrimer, UnitSphere  # METRA
from torchrl_metra.envs import PointEnv


def train(total_frames: int = 100_800, seed: int = 0) -> dict:
    """Train and return the parts."""
    torch.manual_seed(seed)
    # Environment
    env = TransformedEnv(PointEnv(num_envs=16), ActionScaling())
    prior = UnitSphere(2)  # METRA
    env.append_transform(SkillPrimer(prior))  # METRA
    inputs, num_inputs = ["observation"], 2
    inputs, num_inputs = ["observation", "skill"], 4  # METRA

    # Networks
    hidden = {"num_cells": [64, 64], "activation_class": nn.ReLU}
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(MLP(num_inputs, 4, **hidden), in_keys=inputs, out_keys=["param"]),
            TensorDictModule(NormalParamExtractor(), ["param"], ["loc", "scale"]),
        ),
        in_keys=["loc", "scale"],
        spec=env.action_spec,
        distribution_class=TanhNormal,
    )
    qvalue = ValueOperator(MLP(num_inputs + 2, 1, **hidden), in_keys=["action", *inputs])
    encoder = MLP(in_features=2, out_features=2, **hidden)  # METRA

    # Losses
    loss_module = SACLoss(actor, qvalue, loss_function="l2", alpha_init=0.01, target_entropy=-1.0)
    target_updater = SoftUpdate(loss_module, eps=0.995)
    optimizer = optim.Adam(loss_module.parameters(), lr=1e-3)
    metra_loss = METRALoss(encoder, prior, dual_init=10.0)  # METRA
    metra_optimizer = optim.Adam(metra_loss.parameters(), lr=1e-3)  # METRA

    # Data
    collector = Collector(env, actor, frames_per_batch=1_600, total_frames=total_frames)
    replay_buffer = ReplayBuffer(storage=LazyTensorStorage(100_000), batch_size=256)

    # Training
    for data in collector:
        replay_buffer.extend(data.reshape(-1))
        for _ in range(50):
            batch = replay_buffer.sample()
            metra_losses = metra_loss(batch)  # METRA
            (metra_losses["loss_encoder"] + metra_losses["loss_dual"]).backward()  # METRA
            metra_optimizer.step()  # METRA
            metra_optimizer.zero_grad()  # METRA
            batch["next", "reward"] = metra_loss.reward(batch).detach()  # METRA
            losses = loss_module(batch)
            sum(losses[f"loss_{name}"] for name in ("actor", "qvalue", "alpha")).backward()
            optimizer.step()
            optimizer.zero_grad()
            target_updater.step()
        collector.update_policy_weights_()
    collector.shutdown()
    parts = {"env": env, "actor": actor}
    parts["metra_loss"] = metra_loss  # METRA
    return parts


if __name__ == "__main__":
    from torchrl_metra.evaluation import rollout_skills, sector_coverage

    parser = argparse.ArgumentParser()
    parser.add_argument("--total-frames", type=int, default=100_800)
    parts = train(parser.parse_args().total_frames)
    skills = parts["metra_loss"].prior.evaluation_skills(48)
    rollouts = rollout_skills(parts["env"], parts["actor"], skills)
    sectors = sector_coverage(rollouts["next", "position"][:, -1])
    print(f"48 skills end in {sectors} of 16 sectors around the origin")
