"""SAC and PPO on TorchRL's trainers, and the curve of a run.

``downstream.py`` and ``finetune.py`` say what they learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn, optim
from torchrl.checkpoint import GlobalRNGState
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms import PPOTrainer, SACTrainer

from torchrl_metra._extras import require
from torchrl_metra._private import reset_counters
from torchrl_metra.objectives import BatchedSACLoss
from torchrl_metra.recipes.checkpoints import checkpoint_options, resume_run
from torchrl_metra.recipes.records import Curve, stop_on_signal, write_summary
from torchrl_metra.recipes.settings import PPOSettings, TaskSACSettings, TaskSettings
from torchrl_metra.trainers import CollectorState


def make_sac_trainer(
    settings: TaskSettings,
    sac: TaskSACSettings,
    env: EnvBase,
    actor: TensorDictModuleBase,
    critics: Sequence[TensorDictModuleBase],
    skill_steps: int = 1,
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
    return _make_trainer(SACTrainer, settings, sac, env, actor, loss, skill_steps, options)


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


def make_ppo_trainer(
    settings: TaskSettings,
    ppo: PPOSettings,
    env: EnvBase,
    actor: TensorDictModuleBase,
    critic: TensorDictModuleBase,
    skill_steps: int = 1,
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
    return _make_trainer(PPOTrainer, settings, ppo, env, actor, loss, skill_steps, options)


def _make_trainer(
    kind: Callable[..., Any],
    settings: TaskSettings,
    learner: TaskSACSettings | PPOSettings,
    env: EnvBase,
    actor: nn.Module,
    loss: nn.Module,
    skill_steps: int,
    options: dict[str, Any],
) -> Any:
    """A trainer of TorchRL's, with what both of them take."""
    # A frame of the collector is a whole skill, one of the trainer a step within.
    collector = Collector(
        env,
        actor,
        frames_per_batch=learner.frames_per_batch,
        total_frames=-1,
        track_traj_ids=False,
        postproc=lambda batch: batch.exclude("loc", "scale", "goal_position", "position"),
    )
    options |= checkpoint_options(settings)
    if "checkpoint" in options:
        # Before the trainer registers what TorchRL would write of them.
        options["checkpoint"].register("collector", CollectorState(collector, torch.initial_seed()))
        options["checkpoint"].register("rng", GlobalRNGState())
    trainer = kind(
        loss_module=loss,
        collector=collector,
        total_frames=settings.total_frames,
        frame_skip=skill_steps,
        optimizer=optim.Adam(loss.parameters(), lr=learner.lr),
        progress_bar=settings.progress_bar,
        enable_logging=False,
        seed=None,
        **options,
    )
    reset_counters(trainer)
    return trainer


class ReturnCurve:
    """Evaluates a policy at intervals, always on the same goals; a hook for a trainer."""

    def __init__(
        self, env: EnvBase, policy: TensorDictModuleBase, interval: int, path: Path
    ) -> None:
        self.env, self.policy, self.interval = env, policy, interval
        self.curve = Curve(path, "return", "success")
        self.frames = 0

    def __call__(self, batch: TensorDictBase) -> None:
        """Count a batch; evaluate when it is time."""
        before = self.frames // self.interval
        steps = batch.get(("next", "inner_steps"), None)
        self.frames += batch.numel() if steps is None else int(steps.sum())
        if self.frames // self.interval > before:
            self.evaluate()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"curve": self.curve.state_dict(), "frames": self.frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curve.load_state_dict(state_dict["curve"])
        self.frames = state_dict["frames"]

    @torch.no_grad()
    def evaluate(self) -> None:
        """One deterministic episode in each environment, of which it adds the means."""
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
        self.curve.append(self.frames, round(returns.mean().item(), 3), round(success.item(), 3))


def train_task(
    settings: TaskSettings, trainer: Trainer, env: EnvBase, policy: TensorDictModuleBase
) -> dict[str, Any]:
    """Train, evaluating in ``env``; writes the curve, its picture and a summary."""
    output = Path(settings.output or "")
    returns = ReturnCurve(env, policy, settings.evaluation_interval, output / "returns.csv")
    trainer.register_op("post_steps_log", returns)
    trainer.register_module("return_curve", returns)
    try:
        if not resume_run(trainer, settings):
            returns.evaluate()
        with stop_on_signal(trainer):
            trainer.train()
        if returns.curve.rows[-1][0] < returns.frames:
            returns.evaluate()
    finally:
        env.close(raise_if_closed=False)
    rows, seconds = returns.curve.rows, returns.curve.seconds
    results = {
        "return_before": rows[0][2],
        "return_after": rows[-1][2],
        "return_mean": round(sum(row[2] for row in rows) / len(rows), 3),
        "success_after": rows[-1][3],
        "frames": returns.frames,
        "seconds": seconds,
    }
    _plot(returns.curve, output / "returns.png", str(settings.env.name))
    write_summary(output / "summary.json", results, settings)
    print(
        f"return {rows[0][2]:.1f} before training, {rows[-1][2]:.1f} after {returns.frames:,} "
        f"frames ({seconds:.0f} s). Written to {output}/"
    )
    return results


def _plot(curve: Curve, path: Path, title: str) -> None:
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*curve.points().T.tolist())
    axes.set(xlabel="environment steps", ylabel="return", title=title)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=150)
