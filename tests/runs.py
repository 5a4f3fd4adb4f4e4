"""Runs to stop and to compare: of a trainer in this process, of the command in its own."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import CheckpointRotation
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss

from torchrl_metra import (
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    SkillPrimer,
    UnitSphere,
    VerifiedCheckpoint,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.recipes import make_settings, train


def make_trainer(
    folder: Path,
    env: EnvBase | None = None,
    *,
    device: torch.device | str | None = None,
    num_cells: int = 16,
    lr: float = 1e-3,
    settings: dict[str, Any] | None = None,
    exclude: tuple[str, ...] = (),
    switches: dict[str, Any] | None = None,
    **options: Any,
) -> METRATrainer:
    """METRA on PointEnv, 800 frames in rounds of 80, a checkpoint after every second one."""
    torch.manual_seed(0)
    prior = UnitSphere(2)
    env = make_env("point", num_envs=4, device=device) if env is None else env
    env = env.append_transform(SkillPrimer(prior))
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[num_cells]).to(device)
    sac_loss = SACLoss(networks.actor, networks.critics, target_entropy=-1.0).to(device)
    metra_loss = METRALoss(networks.encoder, prior).to(device)
    optimizers = make_metra_optimizers(metra_loss, sac_loss, lr=lr)
    return METRATrainer(
        collector=Collector(env, networks.actor, frames_per_batch=80, total_frames=800),
        total_frames=800,
        optim_steps_per_batch=2,
        loss_module=sac_loss,
        skill_loss=metra_loss,
        replay_buffer=ReplayBuffer(
            storage=LazyTensorStorage(1_000, device=device or "cpu"), batch_size=32
        ),
        optimization_stepper=METRAOptimizationStepper(metra_loss, optimizers, **(switches or {})),
        progress_bar=False,
        seed=0,
        checkpoint=VerifiedCheckpoint(settings=settings, exclude=exclude),
        checkpoint_rotation=CheckpointRotation(folder, keep_last=2),
        save_trainer_interval=100,
        **options,
    )


def state(trainer: METRATrainer) -> dict[str, Any]:
    """All that training has made, by name."""
    return dict(
        leaves(
            {
                "sac_loss": trainer.loss_module.state_dict(),
                "modules": {name: part.state_dict() for name, part in trainer._modules.items()},
                "replay_buffer": trainer.replay_buffer[:].to_dict(),
                "frames": trainer.collected_frames,
            }
        )
    )


#: PointEnv in 30 rounds of a tenth of a second, with a checkpoint after every second one.
SMALL = {
    "num_envs": 4,
    "num_cells": [32, 32],
    "total_frames": 12_000,
    "frames_per_batch": 400,
    "updates_per_step": 0.02,
    "batch_size": 64,
    "buffer_size": 6_000,
    "min_buffer_size": 800,
    "evaluation_interval": 3_000,
    "evaluation_episodes": 8,
    "checkpoint": {"interval": 600},
}


def start(output: Path, **settings: Any) -> Any:
    """Begin a run, of the point unless ``env`` is given; returns its process."""
    process = multiprocessing.Process(target=_run, args=[output, settings])
    process.start()
    return process


def printed(output: Path) -> str:
    """What the last run in a folder has printed."""
    return output.with_suffix(".out").read_text()


def _run(output: Path, settings: dict[str, Any]) -> None:
    sys.stdout = output.with_suffix(".out").open("w")
    torch.set_num_threads(1)
    env = settings.pop("env", "point")
    train(make_settings(env, output=str(output), **SMALL | settings))


def results(output: Path) -> dict[str, Any]:
    """All that a run left: its metrics, by file and line, and the state it ended in, by name."""
    found: dict[str, Any] = {}
    for path in sorted((output / "log" / "scalars").glob("*.csv")):
        if not path.stem.endswith("_per_second"):
            found[path.name] = path.read_text().splitlines()
    rows = (output / "coverage.csv").read_text().splitlines()
    found["coverage.csv"] = [(row.split(",")[0], row.split(",")[2]) for row in rows]
    newest = max((output / "checkpoints").glob("checkpoint-*"))
    for path in sorted((newest / "components").rglob("*")):
        name = f"{path.relative_to(newest / 'components').as_posix()}"
        if path.suffix == ".pt" and "coverage_curve" not in name:
            state = torch.load(path, weights_only=True)
            for not_seeded in ("python", "log_dir"):
                state.pop(not_seeded, None)
            found.update({f"{name}{key}": value for key, value in leaves(state)})
        elif path.suffix == ".memmap":
            found[name] = path.read_bytes()
    return found


def leaves(tree: Any) -> Any:
    """What a tree of dictionaries and lists holds, by path, with tensors as their bytes."""
    for path, leaf in torch.utils._pytree.tree_flatten_with_path(tree)[0]:
        value = leaf.numpy(force=True).tobytes() if isinstance(leaf, torch.Tensor) else leaf
        yield torch.utils._pytree.keystr(path), value
