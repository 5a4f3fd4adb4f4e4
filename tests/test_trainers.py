from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SelfResettingPoint, make_batch, make_losses
from tensordict import TensorDict, TensorDictBase
from torch import optim
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, MultiStep, ReplayBuffer
from torchrl.envs import ActionScaling, RewardSum, Transform, TransformedEnv, UnaryTransform
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import OptimizationStepper, Trainer
from torchrl.trainers.algorithms import SACTrainer

import torchrl_metra
from torchrl_metra import (
    BatchedSACLoss,
    METRAOptimizationStepper,
    METRATrainer,
    OneHot,
    PointEnv,
    SkillHook,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_metra_optimizers,
)
from torchrl_metra.trainers import DivergenceError, LogCoverage, SkillEvaluation
from torchrl_metra.trainers.batches import unknown_ends


def skill_env(parts: SimpleNamespace, num_envs: int = 4) -> TransformedEnv:
    return make_env("point", num_envs).append_transform(SkillPrimer(parts.prior))


def build_trainer(
    parts: SimpleNamespace, of: type[METRATrainer] = METRATrainer, **overrides: Any
) -> METRATrainer:
    collector = Collector(
        skill_env(parts), parts.networks.actor, frames_per_batch=40, total_frames=10_000
    )
    keywords: dict[str, Any] = {
        "collector": collector,
        "total_frames": 120,
        "optim_steps_per_batch": 3,
        "loss_module": parts.sac_loss,
        "skill_loss": parts.metra_loss,
        "replay_buffer": ReplayBuffer(storage=LazyTensorStorage(500), batch_size=16),
        "progress_bar": False,
        "log_interval": 0,
    }
    return of(**{**keywords, **overrides})


class Log(dict):
    """A logger that keeps the last value of each metric."""

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        self[name] = value


def weights(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


class TestStepper:
    def step(self, parts: SimpleNamespace, optimizers: dict[str, Any]) -> TensorDictBase:
        stepper = METRAOptimizationStepper(parts.metra_loss, optimizers)
        trainer = SimpleNamespace(loss_module=parts.sac_loss, replay_buffer=None)
        return stepper.step(trainer, make_batch(parts.prior, 16))

    def test_every_part_moves_and_no_gradient_is_left(self) -> None:
        parts = make_losses()
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        before = weights(parts.metra_loss, parts.sac_loss)
        metrics = self.step(parts, optimizers)
        after = weights(parts.metra_loss, parts.sac_loss)
        assert all(not a.equal(b) for a, b in zip(before, after, strict=True))
        for parameter in (*parts.metra_loss.parameters(), *parts.sac_loss.parameters()):
            assert parameter.grad is None
        assert not any(value.requires_grad for value in metrics.values())
        assert {"loss_encoder", "loss_dual", "loss_qvalue", "loss_actor", "loss_alpha"} <= set(
            metrics.keys()
        )

    @pytest.mark.parametrize("part", ["dual", "alpha"])
    def test_a_part_without_optimizer_is_held_fixed(self, part: str) -> None:
        parts = make_losses()
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        del optimizers[part]
        fixed = parts.metra_loss.log_dual if part == "dual" else parts.sac_loss.log_alpha
        before = fixed.item()
        self.step(parts, optimizers)
        assert fixed.item() == before
        assert fixed.grad is None

    def test_optimizers_of_fixed_parts_are_not_built(self) -> None:
        parts = make_losses(fixed_dual=True)
        sac_loss = SACLoss(
            parts.networks.actor, parts.networks.critics, fixed_alpha=True, target_entropy=-1.0
        )
        optimizers = make_metra_optimizers(parts.metra_loss, sac_loss)
        assert set(optimizers) == {"encoder", "qvalue", "actor"}
        parts.sac_loss = sac_loss
        self.step(parts, optimizers)

    @pytest.mark.parametrize("by_norm", [True, False])
    def test_gradients_are_clipped_as_the_trainer_says(self, by_norm: bool) -> None:
        limit, seen = 1e-3, {}

        class Watched(optim.SGD):
            def step(self) -> None:  # type: ignore[override]
                gradients = [p.grad for group in self.param_groups for p in group["params"]]
                seen[self.param_groups[0]["name"]] = torch.cat([g.flatten() for g in gradients])
                super().step()

        def metrics(clip_norm: float | None) -> TensorDictBase:
            torch.manual_seed(0)
            parts = make_losses()
            optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
            watched = {
                name: Watched([{"params": o.param_groups[0]["params"], "name": name}], lr=1e-4)
                for name, o in optimizers.items()
            }
            stepper = METRAOptimizationStepper(parts.metra_loss, watched)
            trainer = build_trainer(
                parts, optimization_stepper=stepper, clip_norm=clip_norm, clip_grad_norm=by_norm
            )
            return stepper.step(trainer, make_batch(parts.prior, 16))

        free = metrics(None)
        norms = {name: gradient.norm() for name, gradient in seen.items()}
        clipped = metrics(limit)
        for name, norm in norms.items():
            assert norm > limit, "else there is nothing to clip"
            # Each part's norm is logged, as it was before it was clipped.
            torch.testing.assert_close(free[f"grad_norm_{name}"], norm)
            size = seen[name].norm() if by_norm else seen[name].abs().max()
            torch.testing.assert_close(size, torch.tensor(limit), rtol=1e-2, atol=0)
        torch.testing.assert_close(clipped["grad_norm_encoder"], norms["encoder"])

    def test_losses_are_evaluated_by_the_trainer(self) -> None:
        parts, methods = make_losses(), []

        class Trainer(METRATrainer):
            def compute_loss(self, sub_batch: TensorDictBase, method: str | None = None) -> Any:
                methods.append(method)
                return super().compute_loss(sub_batch, method)

        trainer = build_trainer(parts, of=Trainer)
        trainer.optimization_stepper.step(trainer, make_batch(parts.prior, 16))
        assert methods == ["qvalue_v2_loss", "actor_loss"]

    def test_a_value_network_is_refused(self) -> None:
        parts = make_losses()
        value = ValueOperator(MLP(in_features=6, out_features=1), ["observation", "skill"])
        networks = parts.networks.actor, parts.networks.critics, value
        first_version = SACLoss(*networks, target_entropy=-1.0)
        with pytest.raises(ValueError, match="value_network"):
            build_trainer(parts, loss_module=first_version)

    def test_one_optimizer_for_all_is_refused(self) -> None:
        parts = make_losses()
        with pytest.raises(ValueError, match="METRAOptimizationStepper"):
            build_trainer(parts, optimizer=optim.Adam(parts.sac_loss.parameters()))

    def test_learning_rates(self) -> None:
        parts = make_losses()
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, lr=1e-3, dual=5e-3)
        rates = {name: opt.param_groups[0]["lr"] for name, opt in optimizers.items()}
        assert rates.pop("dual") == 5e-3
        assert set(rates.values()) == {1e-3}
        with pytest.raises(ValueError, match=r"\['phi'\].*'encoder'"):
            make_metra_optimizers(parts.metra_loss, parts.sac_loss, phi=1e-3)

    def test_missing_optimizer(self) -> None:
        loss = make_losses().metra_loss
        optimizer = optim.Adam(loss.encoder.parameters())
        with pytest.raises(ValueError, match="qvalue"):
            METRAOptimizationStepper(loss, {"encoder": optimizer})

    def test_updates_priorities(self) -> None:
        parts = make_losses()
        priorities = []
        # Stands for a prioritized buffer, whose C++ trees not every build of TorchRL has.
        buffer = SimpleNamespace(
            update_tensordict_priority=lambda batch: priorities.append(batch["td_error"]),
        )
        stepper = METRAOptimizationStepper(
            parts.metra_loss, make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        )
        trainer = SimpleNamespace(loss_module=parts.sac_loss, replay_buffer=buffer)
        batch = make_batch(parts.prior, 16)
        stepper.step(trainer, batch)
        assert not priorities
        stepper.step(trainer, batch.set("priority_weight", torch.ones(16)))
        assert priorities[0].shape == (16,)
        assert (priorities[0] > 0).all()

    def test_the_entropy_coefficient_is_weighed_by_priorities_too(self) -> None:
        parts = make_losses()
        batch = make_batch(parts.prior, 16)
        halves = [torch.arange(16) < 8, torch.arange(16) >= 8]

        def loss(batch: TensorDictBase) -> float:
            torch.manual_seed(0)
            stepper = METRAOptimizationStepper(
                parts.metra_loss,
                {name: optim.SGD([torch.zeros(1)], 0.0) for name in ("encoder", "qvalue", "actor")},
            )
            metrics = stepper.update(parts.sac_loss, batch)
            return metrics["loss_alpha"].item()

        unweighted = loss(batch)
        assert loss(batch.set("priority_weight", torch.full((16,), 0.3))) == pytest.approx(
            unweighted
        )
        first, second = (loss(batch.set("priority_weight", half.float())) for half in halves)
        assert (first + second) / 2 == pytest.approx(unweighted)
        assert first != pytest.approx(unweighted)


class RecordingStepper(OptimizationStepper):
    """Returns 0, 1, 2, ... as its metrics."""

    def __init__(self) -> None:
        self.batches: list[TensorDictBase] = []

    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        self.batches.append(sub_batch)
        value = torch.tensor(float(len(self.batches) - 1))
        return TensorDict({"dual": value, "intrinsic_reward": value.clone()})


class TestTrainer:
    def test_trains_every_network(self) -> None:
        parts = make_losses()
        before = weights(parts.metra_loss, parts.sac_loss)
        targets = parts.sac_loss.target_qvalue_network_params.clone()
        trainer = build_trainer(parts)
        trainer.train()
        assert trainer.collected_frames == 120
        after = weights(parts.metra_loss, parts.sac_loss)
        assert all(not a.equal(b) for a, b in zip(before, after, strict=True))
        moved = parts.sac_loss.target_qvalue_network_params
        assert not same(list(targets.values(True, True)), list(moved.values(True, True)))

    def test_initial_policy_fills_the_buffer_before_the_first_update(self) -> None:
        parts = make_losses()
        stepper = RecordingStepper()
        trainer = build_trainer(parts, min_buffer_size=100, optimization_stepper=stepper)
        sizes = []
        trainer.register_op("post_steps", lambda: sizes.append(len(stepper.batches)))
        trainer.train()
        assert sizes == [0, 0, 3]

    def test_buffer_holds_what_the_losses_read_and_no_more(self) -> None:
        trainer = build_trainer(make_losses(), optimization_stepper=RecordingStepper())
        trainer.train()
        assert len(trainer.replay_buffer) == 120
        stored = trainer.replay_buffer.sample().keys(True, True)
        assert {key for key in stored if key != "index"} == {
            "observation",
            "skill",
            "action",
            ("next", "observation"),
            ("next", "done"),
            ("next", "terminated"),
        }

    def test_metrics_are_averaged_over_all_inner_steps(self) -> None:
        trainer = build_trainer(
            make_losses(), total_frames=40, optimization_stepper=RecordingStepper(), logger=Log()
        )
        trainer.train()
        assert trainer.logger["dual"] == 1.0

    def test_policy_weights_reach_the_collector(self) -> None:
        parts = make_losses()
        env = skill_env(parts)
        # A policy of its own, as a collector on another device or in another process has.
        collector = Collector(
            env,
            policy_factory=lambda: make_losses().networks.actor,
            frames_per_batch=40,
            total_frames=400,
        )
        build_trainer(parts, collector=collector).train()
        assert same(weights(collector.policy), weights(parts.networks.actor))

    def test_logs_rates_and_coverage_to_csv(self, tmp_path) -> None:
        logger = CSVLogger(exp_name="run", log_dir=str(tmp_path))
        trainer = build_trainer(make_losses(), logger=logger)
        trainer.train()
        names = ("frames_per_second", "updates_per_second", "total_coverage", "queue_coverage")
        for name in (*names, "dual"):
            file = tmp_path / "run" / "scalars" / f"{name}.csv"
            assert file.exists(), name
        assert float(file.read_text().split()[-1].split(",")[1]) == pytest.approx(30, rel=0.01)

    def test_evaluation_hook_logs_what_is_measured_and_dumps_videos(self) -> None:
        parts = make_losses()
        trainer = build_trainer(parts, logger=Log())
        dumped, seen = [], []

        class Recorder(Transform):
            def dump(self, **kwargs: object) -> None:
                dumped.append(trainer.collected_frames)

        env = skill_env(parts, 3).append_transform(Recorder(in_keys=[], out_keys=[]))
        actor, skills = parts.networks.actor, parts.prior.grid(3)
        SkillEvaluation(
            env,
            actor,
            skills,
            interval=80,
            measure=lambda rollouts: {"size": rollouts.numel()},
            callback=lambda frames, rollouts: seen.append((frames, tuple(rollouts.shape))),
        ).register(trainer)
        trainer.train()
        assert seen == [(40, (3, 200)), (120, (3, 200))]
        assert trainer.logger["size"] == 600
        assert "policy_coverage" not in trainer.logger
        assert dumped == [40, 120]

    @pytest.mark.parametrize(("max_steps", "seen"), [(None, 250), (20, 20)])
    def test_evaluation_hook_sees_whole_episodes_or_so_many_steps(
        self, max_steps: int | None, seen: int
    ) -> None:
        parts = make_losses()
        env = TransformedEnv(PointEnv(3, max_steps=250), SkillPrimer(parts.prior))
        trainer, skills = build_trainer(parts, logger=Log()), parts.prior.grid(3)
        SkillEvaluation(
            env,
            parts.networks.actor,
            skills,
            1_000,
            max_steps=max_steps,
            measure=lambda rollouts: {"steps": rollouts.shape[1]},
        ).register(trainer)
        trainer.train()
        assert trainer.logger["steps"] == seen

    def test_padding_is_no_transition(self) -> None:
        parts = make_losses()
        env = TransformedEnv(PointEnv(4, max_steps=7), SkillPrimer(parts.prior))
        options = {"frames_per_batch": 40, "total_frames": 120, "split_trajs": True}
        collector = Collector(env, parts.networks.actor, **options)
        trainer = build_trainer(parts, collector=collector)
        trainer.train()
        assert trainer.collected_frames == len(trainer.replay_buffer) == 120
        lengths = trainer.replay_buffer[:]["skill"].norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones(120))

    def test_no_transition_of_a_self_resetting_environment_leads_into_the_next_episode(
        self,
    ) -> None:
        parts = make_losses()
        env = TransformedEnv(SelfResettingPoint(4, max_steps=7), SkillPrimer(parts.prior))
        collector = Collector(env, parts.networks.actor, frames_per_batch=40, total_frames=120)
        trainer = build_trainer(parts, collector=collector)
        trainer.train()
        assert trainer.collected_frames == 120, "those that were dropped are counted"
        # 30 steps in each environment, of which 4 ended an episode.
        stored = trainer.replay_buffer[:]
        assert len(stored) == 4 * (30 - 4)
        step = stored["next", "observation"] - stored["observation"]
        assert not step.isnan().any()
        assert step.abs().max() <= 0.2 + 1e-6
        assert not stored["next", "done"].any()

    @pytest.mark.parametrize("unseen", ["observation", "skill"])
    def test_last_states_that_torchrl_has_taken_out(self, unseen: str) -> None:
        batch = make_batch(UnitSphere(2), 2, 4)
        batch["next", "done"][0, 3] = batch["next", "done"][1, 1] = True
        batch["next", unseen][0, 3] = torch.nan
        unknown = unknown_ends(batch, ["observation"], "skill", "done")
        assert unknown.tolist() == [[False, False, False, True], [False] * 4]

    def test_transitions_of_several_steps_are_refused(self) -> None:
        parts = make_losses()
        env, options = skill_env(parts), {"frames_per_batch": 40, "total_frames": 120}
        collector = Collector(env, parts.networks.actor, postproc=MultiStep(0.99, 3), **options)
        with pytest.raises(ValueError, match="MultiStep"):
            build_trainer(parts, collector=collector).train()

    @pytest.mark.parametrize("loss_class", [SACLoss, BatchedSACLoss])
    def test_what_only_critics_read_is_stored(self, loss_class: type[SACLoss]) -> None:
        parts = make_losses()
        secret = UnaryTransform(["position"], ["secret"], fn=lambda position: 2 * position)
        env = TransformedEnv(PointEnv(4), secret).append_transform(SkillPrimer(parts.prior))
        in_keys = ["observation", "secret", "skill", "action"]
        critics = [ValueOperator(MLP(8, 1, num_cells=[16]), in_keys=in_keys) for _ in range(2)]
        parts.sac_loss = loss_class(parts.networks.actor, critics, target_entropy=-1.0)
        collector = Collector(env, parts.networks.actor, frames_per_batch=40, total_frames=120)
        trainer = build_trainer(parts, collector=collector)
        trainer.train()
        stored = trainer.replay_buffer[:]
        assert stored["next", "secret"].allclose(2 * stored["next", "observation"])

    def test_targets_are_updated_once_by_the_stepper_or_by_the_trainer(self) -> None:
        parts = make_losses()
        calls = []

        class CountingUpdate(SoftUpdate):
            def step(self) -> None:
                calls.append(self)
                super().step()

        updater = CountingUpdate(parts.sac_loss, eps=0.9)
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        stepper = METRAOptimizationStepper(parts.metra_loss, optimizers, target_net_updater=updater)
        build_trainer(parts, optimization_stepper=stepper).train()
        assert len(calls) == 9
        with pytest.raises(ValueError, match="twice"):
            build_trainer(parts, optimization_stepper=stepper, target_net_updater=updater)

    def assert_continue_alike(
        self, trainer: METRATrainer, restored: METRATrainer, batch: TensorDictBase
    ) -> None:
        """Two more steps each must give the same numbers: optimizers included."""
        assert restored.collected_frames == 120
        metrics = []
        for one in (trainer, restored):
            torch.manual_seed(5)
            one.optimization_stepper.step(one, batch.clone())
            metrics.append(one.optimization_stepper.step(one, batch.clone()))
        torch.testing.assert_close(*metrics)
        assert same(weights(trainer.skill_loss), weights(restored.skill_loss))

    def test_state_dict_round_trip(self) -> None:
        parts = make_losses()
        trainer = build_trainer(parts)
        states: list[Any] = []
        trainer.register_op(
            "post_steps", lambda: states.append(copy.deepcopy(trainer.state_dict()))
        )
        trainer.train()
        restored = build_trainer(make_losses())
        restored.load_state_dict(states[-1])
        self.assert_continue_alike(trainer, restored, make_batch(parts.prior, 16))

    def test_torchrl_checkpoint_round_trip(self, tmp_path) -> None:
        parts = make_losses()
        saving = {"checkpoint": Checkpoint(), "save_trainer_file": tmp_path / "checkpoint"}
        trainer = build_trainer(parts, **saving)
        trainer.train()
        restored = build_trainer(make_losses(), checkpoint=Checkpoint())
        restored.load_from_file(tmp_path / "checkpoint")
        assert len(restored.replay_buffer) == 120
        self.assert_continue_alike(trainer, restored, make_batch(parts.prior, 16))


class TestHook:
    def build(self, parts: SimpleNamespace, **overrides: Any) -> SACTrainer:
        env = TransformedEnv(PointEnv(4), ActionScaling())
        env.append_transform(SkillPrimer(parts.prior)).append_transform(RewardSum())
        collector = Collector(env, parts.networks.actor, frames_per_batch=40, total_frames=10_000)
        keywords: dict[str, Any] = {
            "collector": collector,
            "total_frames": 120,
            "frame_skip": 1,
            "optim_steps_per_batch": 3,
            "loss_module": parts.sac_loss,
            "optimizer": optim.Adam(parts.sac_loss.parameters(), lr=1e-3),
            "replay_buffer": ReplayBuffer(storage=LazyTensorStorage(500), batch_size=16),
            "target_net_updater": SoftUpdate(parts.sac_loss, eps=0.995),
            "progress_bar": False,
            "log_interval": 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SACTrainer(**{**keywords, **overrides})

    def hook(self, parts: SimpleNamespace) -> SkillHook:
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        return SkillHook(parts.metra_loss, {name: optimizers[name] for name in ("encoder", "dual")})

    @pytest.mark.parametrize("reward_key", ["reward", "intrinsic_reward"])
    def test_gives_the_loss_todays_reward(self, reward_key: str) -> None:
        parts = make_losses(OneHot(3))
        trainer = self.build(parts, reward_key=reward_key, log_rewards=False, logger=Log())
        self.hook(parts).register(trainer)
        seen = []
        trainer.register_op("process_optim_batch", lambda batch: seen.append(batch.clone()))
        before = weights(parts.metra_loss)
        trainer.train()
        assert len(seen) == 9
        torch.testing.assert_close(
            seen[-1]["next", reward_key], parts.metra_loss.reward(seen[-1]).detach()
        )
        assert all(not a.equal(b) for a, b in zip(before, weights(parts.metra_loss), strict=True))
        assert "dual" in trainer.logger

    def test_state_dict_round_trip(self) -> None:
        parts, other = make_losses(), make_losses()
        hook = self.hook(parts)
        trainer = self.build(parts, log_rewards=False)
        hook.register(trainer)
        trainer.train()
        restored = self.hook(other)
        restored.load_state_dict(hook.state_dict())
        assert same(weights(parts.metra_loss), weights(other.metra_loss))
        state = restored.optimizers["encoder"].state_dict()["state"]
        assert state[0]["step"] == 9

    def test_a_metric_that_is_not_finite_stops_the_training(self) -> None:
        parts = make_losses()
        trainer = self.build(parts, log_rewards=False)
        self.hook(parts).register(trainer)
        spoil = torch.tensor(torch.nan)
        parts.metra_loss.register_forward_hook(lambda *call: call[-1].set("latent_step", spoil))
        with pytest.raises(DivergenceError, match=r"latent_step.* after 3"):
            trainer.train()

    def test_its_old_name_is_the_same(self) -> None:
        assert torchrl_metra.METRAHook is torchrl_metra.trainers.METRAHook is SkillHook


class TestLogCoverage:
    def test_counts_all_and_the_latest(self) -> None:
        def batch(x: float) -> TensorDict:
            position = torch.full((10, 1), x)
            return TensorDict({"next": {"position": position, "other": -position}}, [10])

        hook = LogCoverage(window=20)
        for x, queue in ((0.5, 1), (1.5, 2), (2.5, 2)):
            logged = hook(batch(x))
            assert logged["total_coverage"] == int(x) + 1
            assert logged["queue_coverage"] == queue
        restored = LogCoverage(window=20)
        restored.load_state_dict(hook.state_dict())
        assert restored(batch(1.5)) == hook(batch(1.5))
        assert restored(batch(7.5)) == hook(batch(7.5)) == {**logged, "total_coverage": 4}

    def test_one_of_mine_takes_the_place_of_the_trainers(self, tmp_path: Path) -> None:
        def make() -> METRATrainer:
            saving = {"checkpoint": Checkpoint(), "save_trainer_file": tmp_path / "checkpoint"}
            trainer = build_trainer(make_losses(), **saving, logger=Log())
            mine = LogCoverage(projection=lambda states: states["observation"], cell_size=0.001)
            mine.register(trainer)
            return trainer

        trainer = make()
        trainer.train()
        logged = trainer.logger["total_coverage"]
        assert logged > 100, "cells of a millimeter, and not of a meter"
        restored = make()
        restored.load_from_file(tmp_path / "checkpoint")
        assert len(restored.log_coverage.total) == logged
        assert restored.log_coverage.cell_size == 0.001

    def test_projection_and_cell_size(self) -> None:
        other = torch.tensor([[0.1], [0.6], [1.2]])
        states = TensorDict({"next": {"other": other}}, [3])
        hook = LogCoverage(projection=lambda states: states["other"], cell_size=0.5)
        assert hook(states)["total_coverage"] == 3
        assert LogCoverage()(states) is None
        assert hook(None) is None
