"""METRA and its neighbours from the first to the last line, for any environment of this package.

The scripts beside this file call :func:`train` with the settings of one environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import begin, checkpoint_options, go_on
from collectors import learner_options, make_collector, make_replay_buffer, make_skill_env
from objectives import make_networks, make_policy_loss, make_prior, make_skill_loss
from omegaconf import DictConfig, OmegaConf
from records import (
    CoverageCurve,
    make_logger,
    shielded_from_ctrl_c,
    stop_on_signal,
    write_summary,
)
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    EncoderLoss,
    METRAOptimizationStepper,
    METRATrainer,
    SkillPolicy,
    SkillPrior,
    make_metra_optimizers,
)
from torchrl_metra.evaluation import (
    encode_trajectories,
    measure_skills,
    plot_coverage,
    plot_skills,
    positions,
    rollout_skills,
    visited,
    write_video,
)
from torchrl_metra.modules import SACNetworks
from torchrl_metra.trainers import SkillEvaluation


@dataclass
class Parts:
    """What a run is made of."""

    prior: SkillPrior
    networks: SACNetworks
    trainer: METRATrainer


def build(config: DictConfig) -> Parts:
    """Everything that trains, from the settings."""
    torch.manual_seed(config.seed)
    prior = make_prior(config)
    env = make_skill_env(config, config.num_envs, config.seed)

    # Networks and losses: METRA, or what the settings name, trains φ and λ, SAC the policy.
    networks = make_networks(config, env, prior).to(config.device)
    skill_loss = make_skill_loss(config, env, networks.encoder, prior)
    sac_loss = make_policy_loss(config, env, networks, prior)
    if not isinstance(skill_loss, EncoderLoss):
        networks.encoder = None

    # The algorithm.
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(skill_loss, sac_loss, **config.learning_rate),
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        compile=config.compile,
        cudagraphs=config.cudagraphs,
        autocast=getattr(torch, config.autocast) if config.autocast else None,
        shared_encoder=networks.shared_encoder,
    )
    trainer = METRATrainer(
        collector=make_collector(config, env, networks.policy),
        total_frames=config.total_frames,
        optim_steps_per_batch=config.optim_steps_per_batch,
        loss_module=sac_loss,
        skill_loss=skill_loss,
        replay_buffer=make_replay_buffer(config),
        optimization_stepper=stepper,
        min_buffer_size=config.min_buffer_size,
        logger=make_logger(config.logger, Path(config.output)),
        log_interval=0,
        seed=config.seed,
        collection_timeout=config.collection_timeout,
        **checkpoint_options(config),
        **learner_options(config),
    )
    return Parts(prior, networks, trainer)


def train(config: DictConfig) -> dict[str, Any]:
    """Train, evaluate, write pictures and the skill policy; returns a summary."""
    config = begin(config)
    with shielded_from_ctrl_c():
        parts = build(config)
        num_envs = config.evaluation_num_envs or config.evaluation_episodes
        evaluation_env = make_skill_env(config, num_envs, config.seed + 1_000)
    try:
        return run(config, parts, evaluation_env)
    finally:
        evaluation_env.close(raise_if_closed=False)
        parts.trainer.replay_buffer.shutdown()


def run(config: DictConfig, parts: Parts, evaluation_env: EnvBase) -> dict[str, Any]:
    """What :func:`train` does with the parts."""
    prior, networks, trainer = parts.prior, parts.networks, parts.trainer
    output = Path(config.output)

    # What to look at while it trains.
    skills = prior.evaluation_skills(config.evaluation_episodes)
    policy = SkillPolicy.from_networks(
        networks,
        prior,
        evaluation_env,
        env_name=config.env,
        constraint_norm=config.metra.constraint_norm if config.objective == "metra" else None,
    )
    curve = CoverageCurve(output / "coverage.csv")

    def encode(rollouts: TensorDictBase) -> torch.Tensor | None:
        encoder = networks.encoder
        return None if encoder is None else encode_trajectories(rollouts, encoder)

    def measure(rollouts: TensorDictBase) -> dict[str, float]:
        latents = encode(rollouts)
        return measure_skills(rollouts, latents, prior, norm=policy.constraint_norm)

    def on_evaluation(frames: int, rollouts: TensorDictBase) -> None:
        curve.append(frames, len(visited(rollouts).unique(dim=0)))
        policy.save(output / "skill_policy.pt")

    evaluation = SkillEvaluation(
        evaluation_env,
        networks.policy,
        skills,
        config.evaluation_interval,
        measure=measure,
        callback=on_evaluation,
    )
    evaluation.register(trainer)
    trainer.register_module("coverage_curve", curve)
    if not go_on(trainer, config):
        on_evaluation(0, rollout_skills(evaluation_env, networks.policy, skills))

    with stop_on_signal(trainer):
        trainer.train()

    # What became of it.
    rollouts = rollout_skills(evaluation_env, networks.policy, skills)
    on_evaluation(trainer.collected_frames, rollouts)
    results = measure(rollouts)
    # Of an even grid, to look at.
    skills = prior.grid(config.evaluation_episodes)
    rollouts = rollout_skills(evaluation_env, networks.policy, skills)
    unit = "tasks" if "tasks" in rollouts.keys() else "cells"
    title = f"{config.env}, {trainer.collected_frames:,} frames"
    plot_skills(
        encode(rollouts), skills, output / "skills.png", position=positions(rollouts), title=title
    )
    plot_coverage({config.env: curve.points()}, output / "coverage.png", title=title, unit=unit)
    if "pixels" in rollouts.keys():
        write_video(rollouts["pixels"], output / "skills.mp4")
    before, after = curve.rows[0][-1], curve.rows[-1][-1]
    results = {
        "coverage_before": before,
        "coverage_after": after,
        "coverage_last_three": sum(row[-1] for row in curve.rows[-3:]) / len(curve.rows[-3:]),
        "total_coverage": len(trainer.log_coverage.total),
        "failures_found": trainer.diagnosis.found,
        **results,
        "frames": trainer.collected_frames,
        "seconds": curve.seconds,
        "curve": curve.rows,
    }
    write_summary(output / "summary.json", results, OmegaConf.to_container(config, resolve=True))
    print(
        f"policy coverage of {config.evaluation_episodes} episodes: {before} {unit} before "
        f"training, {after} after {trainer.collected_frames:,} frames ({curve.seconds:.0f} s).\n"
        f"Written to {output}/. For pictures, videos and goals of these skills:\n"
        f"python -m torchrl_metra.evaluation {output}"
    )
    return results
