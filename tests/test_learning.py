"""METRA really learns: PointEnv's fan of skills, in about a minute each."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import needs_compiler
from torch import optim
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.objectives import SACLoss, SoftUpdate
from torchrl.trainers.algorithms import SACTrainer

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PixelOptions,
    SkillHook,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
    sample_goals,
)
from torchrl_metra.evaluation import (
    coverage,
    goal_metrics,
    rollout_goal_policies,
    rollout_skills,
    sector_coverage,
    skill_alignment,
)
from torchrl_metra.modules import SACNetworks

PRIOR = UnitSphere(2)
TOTAL_FRAMES = 60_000


def skill_env(num_envs: int):
    return make_env("point", num_envs).append_transform(SkillPrimer(PRIOR))


def build(seed: int = 0, total_frames: int = TOTAL_FRAMES) -> SimpleNamespace:
    torch.manual_seed(seed)
    env = skill_env(16)
    networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[64, 64])
    sac_loss = SACLoss(
        networks.actor, networks.critics, loss_function="l2", alpha_init=0.01, target_entropy=-1.0
    )
    return SimpleNamespace(
        networks=networks,
        metra_loss=METRALoss(networks.encoder, PRIOR, dual_init=10.0),
        sac_loss=sac_loss,
        trainer={
            "collector": Collector(
                env, networks.actor, frames_per_batch=1_600, total_frames=total_frames
            ),
            "total_frames": total_frames,
            "optim_steps_per_batch": 50,
            "loss_module": sac_loss,
            "replay_buffer": ReplayBuffer(storage=LazyTensorStorage(total_frames), batch_size=256),
            "progress_bar": False,
        },
    )


def evaluate(actor: Any, metra_loss: METRALoss, make: Any = skill_env) -> SimpleNamespace:
    """48 deterministic episodes with skills evenly spaced on the circle."""
    rollouts = rollout_skills(make(48), actor, PRIOR.grid(48))
    with torch.no_grad():
        latent, next_latent = metra_loss.encode_pair(rollouts)
    position = rollouts["next", "position"]
    return SimpleNamespace(
        coverage=coverage(position),
        sectors=sector_coverage(position[:, -1]),
        alignment=skill_alignment(latent[:, 0], next_latent[:, -1], rollouts["skill"][:, 0]),
        squared_step=(next_latent - latent).square().sum(dim=-1).mean().item(),
    )


def assert_learned_the_fan(result: SimpleNamespace, untrained: SimpleNamespace) -> None:
    assert abs(untrained.alignment) < 0.6, untrained
    assert result.sectors >= 9, result
    assert result.alignment >= 0.85, result
    assert result.coverage >= 3 * untrained.coverage, (result, untrained)
    assert result.squared_step <= 1.05, result


def assert_reaches_goals(networks: SACNetworks) -> None:
    """Zero-shot: goals were no part of the training."""
    policy = SkillPolicy.from_networks(networks, PRIOR)
    rollouts = rollout_goal_policies(make_env("point", 50), policy, sample_goals("point", 50))
    result = {name: goal_metrics(episodes) for name, episodes in rollouts.items()}
    distance = {name: metrics["goal/final_distance"] for name, metrics in result.items()}
    assert distance["adaptive"] < 0.2 * min(distance["single"], distance["random"]), result
    assert result["adaptive"]["goal/end_3"] > 0.8, result


@needs_compiler
def test_metra_trainer_learns_the_fan() -> None:
    """With all switches of a CPU; without them, hook and script below, and tests/smoke.py."""
    parts = build()
    untrained = evaluate(parts.networks.actor, parts.metra_loss)
    optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, lr=2e-3)
    stepper = METRAOptimizationStepper(
        parts.metra_loss,
        optimizers,
        target_net_updater=SoftUpdate(parts.sac_loss, eps=0.995),
        compile=True,
        autocast=torch.bfloat16,
    )
    METRATrainer(
        **parts.trainer,
        skill_loss=parts.metra_loss,
        optimization_stepper=stepper,
        min_buffer_size=1_600,
    ).train()
    assert_learned_the_fan(evaluate(parts.networks.actor, parts.metra_loss), untrained)
    assert_reaches_goals(parts.networks)


@pytest.mark.nightly
def test_actions_are_smoother_with_smoothness() -> None:
    def mean_step(smoothness: float, seed: int) -> float:
        """How far actions of deterministic episodes change from step to step."""
        parts = build(seed, total_frames=8_000)
        networks = parts.networks
        parts.trainer["loss_module"] = sac_loss = BatchedSACLoss(
            networks.actor, networks.critics, loss_function="l2", alpha_init=0.01,
            target_entropy=-1.0, smoothness=smoothness,
        )  # fmt: skip
        optimizers = make_metra_optimizers(parts.metra_loss, sac_loss, lr=2e-3)
        METRATrainer(
            **parts.trainer,
            skill_loss=parts.metra_loss,
            optimization_stepper=METRAOptimizationStepper(parts.metra_loss, optimizers),
        ).train()
        rollouts = rollout_skills(skill_env(16), networks.actor, PRIOR.grid(16))
        return float(rollouts["action"].diff(dim=1).norm(dim=-1).mean())

    plain, smooth = (sum(mean_step(weight, seed) for seed in range(3)) for weight in (0.0, 10.0))
    assert smooth < 0.7 * plain


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:SACTrainer is an experimental")
def test_stock_sac_trainer_with_hook_learns_the_fan() -> None:
    parts = build()
    untrained = evaluate(parts.networks.actor, parts.metra_loss)
    trainer = SACTrainer(
        **parts.trainer,
        frame_skip=1,
        optimizer=optim.Adam(parts.sac_loss.parameters(), lr=1e-3),
        target_net_updater=SoftUpdate(parts.sac_loss, eps=0.995),
        log_rewards=False,
    )
    optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, lr=2e-3)
    SkillHook(parts.metra_loss, {name: optimizers[name] for name in ("encoder", "dual")}).register(
        trainer
    )
    trainer.train()
    assert_learned_the_fan(evaluate(parts.networks.actor, parts.metra_loss), untrained)


@pytest.mark.nightly
def test_learns_the_fan_from_pixels() -> None:
    """The whole pixel path: pictures, convolutions, single-frame replay memory."""
    torch.manual_seed(0)
    pixels = PixelOptions(resolution=32, frames=1)

    def pixel_env(num_envs: int):
        env = make_env("point_pixels", num_envs, pixels=pixels)
        return env.append_transform(SkillPrimer(PRIOR))

    env, total_frames = pixel_env(16), 22_400
    networks = make_pixel_sac_networks(
        (3, 32, 32), env.action_spec, PRIOR, num_cells=[128], channels=8
    )
    metra_loss = METRALoss(networks.encoder, PRIOR, dual_init=10.0)
    sac_loss = BatchedSACLoss(
        networks.actor, networks.critics, loss_function="l2", alpha_init=0.01, target_entropy=-1.0
    )
    untrained = evaluate(networks.policy, metra_loss, pixel_env)
    optimizers = make_metra_optimizers(metra_loss, sac_loss, lr=1e-3)
    METRATrainer(
        collector=Collector(
            env, networks.policy, frames_per_batch=1_600, total_frames=total_frames
        ),
        total_frames=total_frames,
        optim_steps_per_batch=50,
        loss_module=sac_loss,
        skill_loss=metra_loss,
        optimization_stepper=METRAOptimizationStepper(metra_loss, optimizers),
        replay_buffer=ReplayBuffer(
            storage=FrameStackStorage(total_frames, num_frames=1), batch_size=128
        ),
        min_buffer_size=1_600,
        progress_bar=False,
    ).train()
    assert_learned_the_fan(evaluate(networks.policy, metra_loss, pixel_env), untrained)


class TestAddMETRAToSAC:
    script = Path(__file__).parents[1] / "examples" / "add_metra_to_sac.py"
    source = script.read_text()

    @pytest.mark.nightly
    def test_learns_the_fan(self) -> None:
        train = runpy.run_path(str(self.script))["train"]
        reference = build()
        untrained = evaluate(reference.networks.actor, reference.metra_loss)
        parts = train(total_frames=TOTAL_FRAMES)
        assert_learned_the_fan(evaluate(parts["actor"], parts["metra_loss"]), untrained)

    def test_is_plain_sac_without_the_marked_lines(self) -> None:
        lines = [line for line in self.source.splitlines() if not line.endswith("# METRA")]
        namespace: dict[str, Any] = {"__name__": "plain_sac"}
        exec(compile("\n".join(lines), "plain_sac", "exec"), namespace)
        parts = namespace["train"](total_frames=3_200)
        assert parts["actor"].in_keys == ["observation"]
        assert "skill" not in parts["env"].rollout(2).keys()
