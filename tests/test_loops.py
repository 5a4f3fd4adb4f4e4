"""Loops that users write: METRA learns in each of them, in a few seconds."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SelfResettingPoint
from runs import leaves
from tensordict import TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import optim
from torchrl.checkpoint import CheckpointRotation, GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, OneHot, ReplayBuffer, TensorDictPrioritizedReplayBuffer
from torchrl.envs import EnvBase, RenameTransform, TransformedEnv
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import DiscreteSACLoss, SACLoss, SoftUpdate
from torchrl.trainers.algorithms import SACTrainer

from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PointEnv,
    SkillHook,
    SkillPrimer,
    UnitSphere,
    VerifiedCheckpoint,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra._private import reset_counters
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.trainers import CollectorState, resume

PRIOR = UnitSphere(2)
STEPS = 20
# Untrained policies come to about one.
FAN = 4
FRAMES = 4_480


class FencedPoint(PointEnv):
    """Terminates where the point leaves a disc, which it does after 8 steps straight on."""

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        following = super()._step(tensordict)
        outside = self._position.norm(dim=-1, keepdim=True) > 1.5
        following["terminated"] = outside
        following["done"] = outside | following["truncated"]
        return following


class Grid(PointEnv):
    """A square of 15 x 15 cells, of which an action leads into one of four neighbors."""

    moves = torch.tensor([[0.2, 0.0], [-0.2, 0.0], [0.0, 0.2], [0.0, -0.2]])

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.action_spec = OneHot(4, shape=(num_envs, 4))

    def _displacement(self, action: torch.Tensor) -> torch.Tensor:
        return (self._position + action.float() @ self.moves).clamp(-1.4, 1.4) - self._position


def train(
    env: EnvBase,
    sac_loss: Any,
    skill_loss: METRALoss,
    replay_buffer: ReplayBuffer | None = None,
) -> METRATrainer:
    """A small run of METRA."""
    sac_loss.make_value_estimator(gamma=0.9)
    optimizers = make_metra_optimizers(skill_loss, sac_loss, lr=3e-3)
    if replay_buffer is None:
        replay_buffer = ReplayBuffer(storage=LazyTensorStorage(FRAMES), batch_size=128)
    trainer = METRATrainer(
        collector=Collector(env, sac_loss.actor_network, frames_per_batch=640, total_frames=FRAMES),
        total_frames=FRAMES,
        optim_steps_per_batch=40,
        loss_module=sac_loss,
        skill_loss=skill_loss,
        replay_buffer=replay_buffer,
        optimization_stepper=METRAOptimizationStepper(skill_loss, optimizers),
        progress_bar=False,
    )
    trainer.train()
    return trainer


def train_point(env: EnvBase, replay_buffer: ReplayBuffer | None = None) -> METRATrainer:
    """With the networks of this package."""
    networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[32, 32])
    sac_loss = BatchedSACLoss(
        networks.actor, networks.critics,
        loss_function="l2", alpha_init=0.01, target_entropy=-1.0,
    )  # fmt: skip
    skill_loss = METRALoss(networks.encoder, PRIOR, dual_init=10.0)
    return train(env, sac_loss, skill_loss, replay_buffer)


def spread(env: EnvBase, actor: Any) -> float:
    """How far the ends of episodes follow their skills, in steps: 0 if skills do not matter."""
    skills = PRIOR.grid(16)
    end = rollout_skills(env, actor, skills, max_steps=STEPS)["next", "position"][:, -1]
    end, skills = torch.view_as_complex(end), torch.view_as_complex(skills)
    # The fan may be turned, and be a mirror image.
    return max(float((end * skill).mean().abs()) for skill in (skills, skills.conj())) / 0.2


def skill_env(env: EnvBase) -> TransformedEnv:
    return TransformedEnv(env, SkillPrimer(PRIOR))


def test_episodes_that_terminate() -> None:
    env = skill_env(FencedPoint(16, max_steps=STEPS))
    trainer = train_point(env)
    stored = trainer.replay_buffer[:]
    assert stored["next", "terminated"].sum() > 50
    assert spread(skill_env(FencedPoint(16)), trainer.loss_module.actor_network) > FAN


def test_an_environment_that_resets_itself() -> None:
    trainer = train_point(skill_env(SelfResettingPoint(16, max_steps=STEPS)))
    assert trainer.collected_frames == FRAMES
    assert len(trainer.replay_buffer) == FRAMES * (STEPS - 1) / STEPS
    assert spread(skill_env(PointEnv(16)), trainer.loss_module.actor_network) > FAN


def test_a_prioritized_buffer() -> None:
    try:
        importlib.import_module("torchrl._torchrl")
    except ImportError as error:
        pytest.skip(
            "TorchRL's sum trees are C++ that loads with the torch it was built for alone: for "
            f"TorchRL 0.14.1 that is torch 2.14.1, here is {torch.__version__} ({error})."[:300]
        )
    buffer = TensorDictPrioritizedReplayBuffer(
        alpha=0.7, beta=0.5, storage=LazyTensorStorage(FRAMES), batch_size=128
    )
    trainer = train_point(skill_env(PointEnv(16, max_steps=STEPS)), buffer)
    weights = buffer.sample(1_000)["priority_weight"]
    assert weights.std() > 0, "priorities were never updated"
    assert spread(skill_env(PointEnv(16)), trainer.loss_module.actor_network) > FAN


def test_renamed_and_nested_keys() -> None:
    observation, skill, action = ("agents", "obs"), ("agents", "z"), ("agents", "move")

    def make(max_steps: int = 200) -> TransformedEnv:
        renamed = RenameTransform(
            ["observation", "reward"], [observation, "gain"], ["action"], [action]
        )
        env = TransformedEnv(PointEnv(16, max_steps=max_steps), renamed)
        return env.append_transform(SkillPrimer(PRIOR, skill_key=skill))

    env = make(STEPS)
    trunk = TensorDictSequential(
        TensorDictModule(
            MLP(4, 4, num_cells=[32, 32]), in_keys=[observation, skill], out_keys=["params"]
        ),
        TensorDictModule(NormalParamExtractor(), in_keys=["params"], out_keys=["loc", "scale"]),
    )
    actor = ProbabilisticActor(
        trunk,
        in_keys=["loc", "scale"], out_keys=[action], spec=env.action_spec,
        distribution_class=TanhNormal, distribution_kwargs={"low": -0.2, "high": 0.2},
    )  # fmt: skip
    critics = [
        ValueOperator(
            MLP(6, 1, num_cells=[32, 32]),
            in_keys=[observation, skill, action], out_keys=["state_action_value"],
        )
        for _ in range(2)
    ]  # fmt: skip
    sac_loss = BatchedSACLoss(
        actor, critics, loss_function="l2", alpha_init=0.01, target_entropy=-1.0
    )
    sac_loss.set_keys(action=action, reward="gain")
    encoder = TensorDictModule(
        MLP(2, 2, num_cells=[32, 32]), in_keys=[observation], out_keys=["latent"]
    )
    skill_loss = METRALoss(encoder, PRIOR, dual_init=10.0)
    skill_loss.set_keys(skill=skill)
    trainer = train(env, sac_loss, skill_loss)
    stored = trainer.replay_buffer[:]
    assert not {"observation", "skill", "action"} & set(stored.keys())
    assert spread(make(), actor) > FAN


def test_discrete_actions() -> None:
    env = skill_env(Grid(16, max_steps=STEPS))
    logits = TensorDictModule(
        MLP(4, 4, num_cells=[32, 32]), in_keys=["observation", "skill"], out_keys=["logits"]
    )
    actor = ProbabilisticActor(
        logits, in_keys=["logits"], spec=env.action_spec, distribution_class=OneHotCategorical
    )
    critic = ValueOperator(
        MLP(4, 4, num_cells=[32, 32]), in_keys=["observation", "skill"], out_keys=["action_value"]
    )
    sac_loss = DiscreteSACLoss(
        actor, critic,
        action_space=env.action_spec, num_actions=4, loss_function="l2",
        alpha_init=0.01, target_entropy_weight=0.2,
    )  # fmt: skip
    skill_loss = METRALoss(MLP(2, 2, num_cells=[32, 32]), PRIOR, dual_init=10.0)
    train(env, sac_loss, skill_loss)
    assert spread(skill_env(Grid(16)), actor) > FAN


@pytest.mark.filterwarnings("ignore:SACTrainer is an experimental")
def test_a_hook_in_a_sac_trainer_that_is_resumed(tmp_path: Path) -> None:
    def make(folder: str, total_frames: int) -> SACTrainer:
        torch.manual_seed(0)
        env = skill_env(PointEnv(4, max_steps=7))
        networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[16])
        sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0)
        metra_loss = METRALoss(networks.encoder, PRIOR)
        collector = Collector(env, networks.actor, frames_per_batch=40, total_frames=400)
        checkpoint = VerifiedCheckpoint()
        checkpoint.register("collector", CollectorState(collector, 0))
        checkpoint.register("rng", GlobalRNGState())
        trainer = SACTrainer(
            collector=collector,
            total_frames=total_frames,
            frame_skip=1,
            optim_steps_per_batch=2,
            loss_module=sac_loss,
            optimizer=optim.Adam(sac_loss.parameters(), lr=1e-3),
            replay_buffer=ReplayBuffer(storage=LazyTensorStorage(400), batch_size=16),
            target_net_updater=SoftUpdate(sac_loss, eps=0.995),
            log_rewards=False,
            enable_logging=False,
            progress_bar=False,
            checkpoint=checkpoint,
            checkpoint_rotation=CheckpointRotation(tmp_path / folder, keep_last=2),
            save_trainer_interval=10_000,
        )
        reset_counters(trainer)
        optimizers = make_metra_optimizers(metra_loss, sac_loss)
        hook = SkillHook(metra_loss, {name: optimizers[name] for name in ("encoder", "dual")})
        hook.register(trainer)
        return trainer

    whole = make("whole", 160)
    whole.train()
    make("parts", 80).train()
    resumed = make("parts", 160)
    resume(resumed)
    assert resumed.collected_frames == 80
    resumed.train()
    assert resumed.collected_frames == 160
    assert _state(whole) == _state(resumed)


def _state(trainer: SACTrainer) -> dict[str, Any]:
    state = {
        # Trajectories are numbered anew.
        "replay_buffer": trainer.replay_buffer[:].exclude("collector").to_dict(),
        "loss_module": trainer.loss_module.state_dict(),
        "metra": trainer._modules["metra"].state_dict(),
    }
    return dict(leaves(state))
