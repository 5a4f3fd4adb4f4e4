"""METRA in one file: all of the algorithm in a plain loop, on a point in the plane.

    python examples/minimal.py

What you learn: the whole method, from TorchRL's parts; nothing else trains here. It takes about a
minute. (add_metra_to_sac.py is for those who have a SAC script: it marks the lines that change.)
"""

import argparse

import torch
from torch import optim
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_metra import METRALoss, SkillPrimer, UnitSphere, make_env, make_sac_networks
from torchrl_metra.evaluation import coverage, rollout_skills, sector_coverage


def main(total_frames: int = 60_800) -> None:
    """Train, and say how far the skills get."""
    torch.manual_seed(0)

    # A skill z is a direction of the latent plane. One is drawn for every episode.
    prior = UnitSphere(2)
    env = make_env("point", num_envs=16).append_transform(SkillPrimer(prior))

    # Policy π(a|s,z), critics Q(s,z,a) and encoder φ(s).
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[64, 64])

    # φ and λ:  max E[(φ(s') - φ(s))·z]  such that  |φ(s') - φ(s)| <= 1.
    metra_loss = METRALoss(networks.encoder, prior, dual_init=10.0)
    metra_optimizer = optim.Adam(metra_loss.parameters(), lr=2e-3)

    # The policy: SAC, as it comes with TorchRL. Its reward is (φ(s') - φ(s))·z.
    sac_loss = SACLoss(
        networks.actor, networks.critics, loss_function="l2", alpha_init=0.01, target_entropy=-1.0
    )
    sac_optimizer = optim.Adam(sac_loss.parameters(), lr=2e-3)
    target_updater = SoftUpdate(sac_loss, eps=0.995)

    collector = Collector(env, networks.actor, frames_per_batch=1_600, total_frames=total_frames)
    replay_buffer = ReplayBuffer(storage=LazyTensorStorage(total_frames), batch_size=256)
    frames = 0
    for data in collector:
        frames += data.numel()
        replay_buffer.extend(data.reshape(-1))
        for _ in range(50):
            batch = replay_buffer.sample()

            losses = metra_loss(batch)
            (losses["loss_encoder"] + losses["loss_dual"]).backward()
            metra_optimizer.step()
            metra_optimizer.zero_grad()

            # Rewards are made anew for each batch, as φ changes.
            batch["next", "reward"] = metra_loss.reward(batch).detach()
            sac_losses = sac_loss(batch)
            sum(sac_losses[f"loss_{name}"] for name in ("qvalue", "actor", "alpha")).backward()
            sac_optimizer.step()
            sac_optimizer.zero_grad()
            target_updater.step()
        collector.update_policy_weights_()
        print(f"{frames:6} frames: reward {losses['intrinsic_reward']:.2f}, λ {losses['dual']:.1f}")
    collector.shutdown()

    env = make_env("point", num_envs=48).append_transform(SkillPrimer(prior))
    position = rollout_skills(env, networks.actor, prior.evaluation_skills(48))["next", "position"]
    sectors = sector_coverage(position[:, -1])
    print(f"48 skills visit {coverage(position)} cells and end in {sectors} of 16 sectors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--total-frames", type=int, help="environment steps")
    main(**vars(parser.parse_args()))
