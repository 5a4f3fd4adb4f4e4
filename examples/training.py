"""METRA from the first to the last line, for any environment of this package.

The scripts beside this file call :func:`train` with the settings of one environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from records import CoverageCurve, make_logger, stop_on_signal, write_summary
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.evaluation import (
    coverage,
    plot_coverage,
    plot_latents,
    plot_positions,
    rollout_skills,
)
from torchrl_metra.trainers import SkillEvaluation

NUM_EVALUATION_EPISODES = 48


def train(config: DictConfig) -> dict[str, Any]:
    """Train, evaluate, write pictures and the skill policy; returns a summary."""
    torch.manual_seed(config.seed)
    prior = SkillPrior.from_config(config.skill)

    def make_skill_env(num_envs: int):
        env = make_env(config.env, num_envs, backend=config.backend)
        return env.append_transform(SkillPrimer(prior))

    # Environments: one to collect, one to evaluate.
    env, evaluation_env = make_skill_env(config.num_envs), make_skill_env(NUM_EVALUATION_EPISODES)
    env.set_seed(config.seed)
    evaluation_env.set_seed(config.seed + 1_000)

    # Networks and losses: METRA trains φ and λ, SAC the policy.
    networks = make_sac_networks(
        env.observation_spec["observation"].shape[-1],
        env.action_spec,
        prior,
        num_cells=config.num_cells,
    ).to(config.device)
    metra_loss = METRALoss(networks.encoder, prior, **config.metra)
    sac_loss = BatchedSACLoss(
        networks.actor,
        networks.critics,
        loss_function="l2",
        target_entropy=-env.action_spec.shape[-1] / 2,
        **config.sac,
    )
    sac_loss.make_value_estimator(gamma=config.gamma)

    # Data: the policy collects on the CPU, the replay buffer lives beside the learner.
    collector = Collector(
        env,
        networks.actor,
        frames_per_batch=config.frames_per_batch,
        total_frames=config.total_frames,
        policy_device="cpu",
        storing_device="cpu",
    )
    replay_buffer = ReplayBuffer(
        storage=LazyTensorStorage(config.buffer_size, device=config.device),
        batch_size=config.batch_size,
    )

    # The algorithm.
    output = Path(config.output)
    optimizers = make_metra_optimizers(metra_loss, sac_loss, **config.learning_rate)
    trainer = METRATrainer(
        collector=collector,
        total_frames=config.total_frames,
        optim_steps_per_batch=config.optim_steps_per_batch,
        loss_module=sac_loss,
        metra_loss=metra_loss,
        replay_buffer=replay_buffer,
        optimization_stepper=METRAOptimizationStepper(metra_loss, optimizers),
        min_buffer_size=config.min_buffer_size,
        logger=make_logger(config.logger, output),
        log_interval=0,
        seed=config.seed,
    )

    # What to look at while it trains.
    skills = prior.grid(NUM_EVALUATION_EPISODES)
    policy = SkillPolicy.from_networks(networks, prior, env)
    curve = CoverageCurve(output / "coverage.csv")

    def on_evaluation(frames: int, rollouts) -> None:
        curve.append(frames, coverage(rollouts["next", "position"]))
        policy.save(output / "skill_policy.pt")

    evaluation = SkillEvaluation(
        evaluation_env, networks.actor, skills, config.evaluation_interval, callback=on_evaluation
    )
    on_evaluation(0, rollout_skills(evaluation_env, networks.actor, skills))
    evaluation.register(trainer)

    with stop_on_signal(trainer):
        trainer.train()

    # What became of it.
    rollouts = rollout_skills(evaluation_env, networks.actor, skills)
    on_evaluation(trainer.collected_frames, rollouts)
    with torch.no_grad():
        latents = networks.encoder(rollouts.select("observation").to(config.device))["latent"]
    episode_skills = rollouts["skill"][:, 0]
    title = f"{config.env}, {trainer.collected_frames:,} frames"
    plot_positions(rollouts["position"], episode_skills, output / "positions.png", title=title)
    plot_latents(latents.cpu(), episode_skills, output / "latents.png", title=title)
    plot_coverage({config.env: curve.points()}, output / "coverage.png", title=title)
    before, after = curve.rows[0][-1], curve.rows[-1][-1]
    results = {
        "coverage_before": before,
        "coverage_after": after,
        "frames": trainer.collected_frames,
        "seconds": curve.seconds,
    }
    write_summary(output / "summary.json", results, OmegaConf.to_container(config, resolve=True))
    evaluation_env.close()
    print(
        f"policy coverage of {NUM_EVALUATION_EPISODES} episodes: {before} cells before "
        f"training, {after} after {trainer.collected_frames:,} frames "
        f"({curve.seconds:.0f} s). Written to {output}/"
    )
    return results
