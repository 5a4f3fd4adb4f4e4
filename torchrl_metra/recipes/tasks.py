"""Tasks with skills: ``metra downstream`` and ``metra finetune``, on TorchRL's SAC and PPO.

Downstream (Section 5): a high-level policy picks a skill, which the frozen skill policy follows for
25 steps. It learns by SAC if skills are continuous, by PPO if they are discrete. Without skills,
SAC learns the task itself.

Finetuning (which the paper leaves open): SAC on the environment's own reward, started from the
policy of the skill that already earns most. That skill is held for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn, optim
from torchrl.collectors import Collector
from torchrl.data import (
    Composite,
    LazyTensorStorage,
    OneHot,
    ReplayBuffer,
    SamplerWithoutReplacement,
    Unbounded,
)
from torchrl.envs import CatTensors, EnvBase, TensorDictPrimer, UnaryTransform
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms import PPOTrainer, SACTrainer

from torchrl_metra._private import reset_counters
from torchrl_metra._transforms import transforms_of
from torchrl_metra.envs import SkillAction, SkillPrimer
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.modules import PixelEncoder, PixelNetwork, SkillConditionedActor, SkillPolicy
from torchrl_metra.objectives import BatchedSACLoss
from torchrl_metra.recipes import records
from torchrl_metra.recipes.collect import build_env
from torchrl_metra.recipes.settings import (
    DownstreamSettings,
    FinetuneSettings,
    PPOSettings,
    TaskSACSettings,
    TaskSettings,
)
from torchrl_metra.trainers import CollectorState
from torchrl_metra.trainers.checkpoint import RandomState


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
    records.prepare_run(settings)
    torch.manual_seed(settings.seed)
    with records.shielded_from_ctrl_c():
        env = make_downstream_env(settings, skills, settings.num_envs, settings.seed)
        evaluation_env = make_downstream_env(
            settings, skills, settings.evaluation_episodes, settings.seed + 1_000
        )
    trainer: Trainer
    if isinstance(env.action_spec, OneHot):
        policy, critic = make_ppo_networks(env, settings.num_cells)
        trainer = make_ppo_trainer(settings, settings.ppo, env, policy, critic)
    else:
        sac = settings.baseline if skills is None else settings.sac
        policy, critics = make_sac_networks(env, settings.num_cells)
        trainer = make_sac_trainer(settings, sac, env, policy, critics)
    return train_task(settings, trainer, evaluation_env, policy)


def make_downstream_env(
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


def run_finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Train on the environment's own reward.

    Args:
        settings (FinetuneSettings): of the run.

    Returns:
        The results, as in ``summary.json``.
    """
    records.prepare_run(settings)
    seed = settings.seed
    torch.manual_seed(seed)
    skills = SkillPolicy.load(settings.skill_policy)
    skill = best_skill(settings, skills)
    with records.shielded_from_ctrl_c():
        env = make_finetune_env(settings, skills, skill, settings.num_envs, seed)
        episodes = settings.evaluation_episodes
        evaluation_env = make_finetune_env(settings, skills, skill, episodes, seed + 1_000)
    assert skills.architecture is not None  # or load() would have said so
    networks = skills.architecture.build(skills.prior)
    if networks.shared_encoder is not None:
        raise ValueError(
            f"{settings.skill_policy} reads states through a shared encoder or a bottleneck: SAC "
            "would have to train it too. Take a policy that reads the state itself."
        )
    if settings.pretrained:
        networks.policy.load_state_dict(skills.actor.state_dict())
    trainer = make_sac_trainer(settings, settings.sac, env, networks.policy, networks.critics)
    if settings.pretrained:
        learn_critics_first(trainer, settings.critic_frames, settings.policy_lr)
    return train_task(settings, trainer, evaluation_env, networks.policy)


def best_skill(settings: FinetuneSettings, skills: SkillPolicy) -> Tensor:
    """The skill with the highest return, of shape ``[D]``."""
    candidates = skills.prior.grid(settings.candidates)
    env = build_env(settings, settings.candidates, skills)
    env.append_transform(SkillPrimer(skills.prior))
    env.set_seed(settings.seed)
    returns = rollout_skills(env, skills.actor, candidates)["next", "reward"].sum(dim=(1, 2))
    env.close()
    print(f"the best of {settings.candidates} skills returns {returns.max():.1f}")
    return candidates[returns.argmax()]


def make_finetune_env(
    settings: FinetuneSettings, skills: SkillPolicy, skill: Tensor, num_envs: int, seed: int
) -> EnvBase:
    """The environment with its own reward and always the same skill."""
    env = build_env(settings, num_envs, skills)
    values = skill.expand(num_envs, -1)
    spec = Composite(skill=Unbounded(values.shape), shape=[num_envs])
    env.append_transform(TensorDictPrimer(spec, default_value=lambda: values))
    env.set_seed(seed)
    return env


def learn_critics_first(trainer: SACTrainer, frames: int, lr: float) -> None:
    """Hold the policy for so many frames, and let it learn at its own rate from then on.

    New critics would have it unlearn what it can do.
    """
    (group,) = trainer.optimizer.param_groups
    parameters = trainer.loss_module.named_parameters()
    policy = {id(p): p for name, p in parameters if "qvalue" not in name}
    group["params"] = [p for p in group["params"] if id(p) not in policy]
    trainer.optimizer.add_param_group({"params": list(policy.values()), "lr": 0.0})

    def release() -> None:
        if trainer.collected_frames >= frames:
            trainer.optimizer.param_groups[1]["lr"] = lr

    trainer.register_op("post_steps", release)


# Networks of the high level.


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
    """What the networks read."""
    return ["state"] if "state" in env.observation_spec.keys() else ["pixels", "to_goal"]


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


# TorchRL's trainers.


def make_sac_trainer(
    settings: TaskSettings,
    sac: TaskSACSettings,
    env: EnvBase,
    actor: TensorDictModuleBase,
    critics: Sequence[TensorDictModuleBase],
) -> SACTrainer:
    """SAC, whose loss is TorchRL's in a faster form."""
    loss = BatchedSACLoss(
        actor,
        list(critics),
        loss_function="l2",
        alpha_init=sac.alpha_init,
        fixed_alpha=sac.fixed_alpha,
        target_entropy=-env.action_spec.shape[-1],
    )
    loss.make_value_estimator(gamma=sac.gamma)
    options = {
        "target_net_updater": SoftUpdate(loss, eps=0.995),
        "replay_buffer": ReplayBuffer(
            storage=LazyTensorStorage(sac.buffer_size), batch_size=sac.batch_size
        ),
        "optim_steps_per_batch": sac.optim_steps_per_batch,
    }
    return _make_trainer(SACTrainer, settings, sac, env, actor, loss, options)


def make_ppo_trainer(
    settings: TaskSettings,
    ppo: PPOSettings,
    env: EnvBase,
    actor: TensorDictModuleBase,
    critic: TensorDictModuleBase,
) -> PPOTrainer:
    """PPO as TorchRL has it."""
    loss = ClipPPOLoss(actor, critic, entropy_coeff=ppo.entropy_coeff, normalize_advantage=True)
    options = {
        "replay_buffer": ReplayBuffer(
            storage=LazyTensorStorage(ppo.frames_per_batch),
            sampler=SamplerWithoutReplacement(),
            batch_size=ppo.batch_size,
        ),
        "num_epochs": ppo.num_epochs,
        "optim_steps_per_batch": ppo.frames_per_batch // ppo.batch_size,
        "gamma": ppo.gamma,
        "lmbda": ppo.lmbda,
    }
    return _make_trainer(PPOTrainer, settings, ppo, env, actor, loss, options)


def _make_trainer(
    kind: Callable[..., Any],
    settings: TaskSettings,
    learner: TaskSACSettings | PPOSettings,
    env: EnvBase,
    actor: nn.Module,
    loss: nn.Module,
    options: dict[str, Any],
) -> Any:
    """A trainer of TorchRL's, with what both of them take."""
    collector = Collector(
        env,
        actor,
        frames_per_batch=learner.frames_per_batch,
        total_frames=-1,
        track_traj_ids=False,
        postproc=lambda batch: batch.exclude("loc", "scale", "goal_position", "position"),
    )
    options |= records.checkpoint_options(settings)
    if "checkpoint" in options:
        # Before the trainer registers what TorchRL would write of them.
        options["checkpoint"].register("collector", CollectorState(collector, torch.initial_seed()))
        options["checkpoint"].register("rng", RandomState())
    # A frame of the collector is a whole skill, one of the trainer a step within.
    parts = transforms_of(env)
    skill_steps = [part.num_steps for part in parts if isinstance(part, SkillAction)]
    trainer = kind(
        loss_module=loss,
        collector=collector,
        total_frames=settings.total_frames,
        frame_skip=skill_steps[0] if skill_steps else 1,
        optimizer=optim.Adam(loss.parameters(), lr=learner.lr),
        progress_bar=settings.progress_bar,
        enable_logging=False,
        seed=None,
        **options,
    )
    reset_counters(trainer)
    return trainer


# Training and evaluation.


def train_task(
    settings: TaskSettings, trainer: Trainer, env: EnvBase, policy: TensorDictModuleBase
) -> dict[str, Any]:
    """Train, evaluating in ``env``; writes the curve, its picture and a summary."""
    output = Path(settings.output or "")
    returns = ReturnCurve(env, policy, settings.evaluation_interval, output / "returns.csv")
    trainer.register_op("post_steps_log", returns)
    trainer.register_module("return_curve", returns)
    try:
        if not records.resume_run(trainer, settings):
            returns.evaluate()
        with records.stop_on_signal(trainer):
            trainer.train()
        if returns.rows[-1][0] < returns.frames:
            returns.evaluate()
    finally:
        env.close(raise_if_closed=False)
    first, last, seconds = returns.rows[0], returns.rows[-1], returns.seconds
    results = {
        "return_before": first[2],
        "return_after": last[2],
        "return_mean": round(sum(row[2] for row in returns.rows) / len(returns.rows), 3),
        "success_after": last[3],
        "frames": returns.frames,
        "seconds": seconds,
    }
    returns.plot(output / "returns.png", str(settings.env.name))
    records.write_summary(output / "summary.json", results, settings)
    print(
        f"return {first[2]:.1f} before training, {last[2]:.1f} after {returns.frames:,} "
        f"frames ({seconds:.0f} s). Written to {output}/"
    )
    return results


class ReturnCurve(records.Curve):
    """Evaluates a policy at intervals, always on the same goals; a hook for a trainer."""

    def __init__(
        self, env: EnvBase, policy: TensorDictModuleBase, interval: int, path: Path
    ) -> None:
        super().__init__(path, "return", "success")
        self.env, self.policy, self.interval = env, policy, interval
        self.frames = 0

    def __call__(self, batch: TensorDictBase) -> None:
        """Count a batch; evaluate when it is time."""
        before = self.frames // self.interval
        steps = batch.get(("next", "inner_steps"), None)
        self.frames += batch.numel() if steps is None else int(steps.sum())
        if self.frames // self.interval > before:
            self.evaluate()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "frames": self.frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.frames = state_dict["frames"]

    @torch.no_grad()
    def evaluate(self) -> None:
        """Add the means of one deterministic episode in each environment."""
        with torch.random.fork_rng(), set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.manual_seed(0)
            rollout = self.env.rollout(
                10_000, self.policy, break_when_any_done=False, break_when_all_done=True
            )
        done = rollout["next", "done"].long()
        # What is repeated of an episode that ended before others does not count.
        counts = done.cumsum(dim=1) == done
        returns = (rollout["next", "reward"] * counts).sum(dim=1)
        success = (returns > 0).float().mean()
        self.append(self.frames, round(returns.mean().item(), 3), round(success.item(), 3))

    def plot(self, path: Path, title: str) -> None:
        """Draw the returns."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*self.points().T.tolist())
        axes.set(xlabel="environment steps", ylabel="return", title=title)
        axes.grid(alpha=0.2)
        figure.savefig(path, dpi=150)
