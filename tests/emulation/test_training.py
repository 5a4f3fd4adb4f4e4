"""Training on the device: rounds, replay memory, checkpoints, whole runs."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn, optim
from torchrl.checkpoint import CheckpointRotation
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import TransformedEnv
from torchrl.objectives import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PointEnv,
    SkillPrimer,
    UnitSphere,
    VerifiedCheckpoint,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.envs import rendering_available
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.recipes import make_settings, train
from torchrl_metra.trainers import UpdateGraph, resume
from torchrl_metra.trainers.checkpoint import load_optimizer

from .device import Record, watch

CPU = torch.device("cpu")


def make_trainer(
    device: Any,
    folder: Path | None = None,
    *,
    storage: Any = None,
    env_on: Any = None,
    total_frames: int = 240,
    track_traj_ids: bool = False,
) -> METRATrainer:
    """METRA on PointEnv in rounds of 80 frames."""
    torch.manual_seed(0)
    prior = UnitSphere(2)
    env = TransformedEnv(PointEnv(4, max_steps=10, device=env_on), SkillPrimer(prior))
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[16]).to(device)
    skill_loss = METRALoss(networks.encoder, prior)
    sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    sac_loss.make_value_estimator(gamma=0.99)
    buffer = ReplayBuffer(storage=LazyTensorStorage(1_000, device=storage or device), batch_size=32)
    if torch.device(storage or device).type != torch.device(device).type:
        buffer.append_transform(lambda batch: batch.to(device))
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(skill_loss, sac_loss),
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
    )
    place = {"policy_device": "cpu", "storing_device": "cpu"} if env_on is None else {}
    options: dict[str, Any] = {}
    if folder is not None:
        options["checkpoint"] = VerifiedCheckpoint()
        options["checkpoint_rotation"] = CheckpointRotation(folder, keep_last=2)
        options["save_trainer_interval"] = 80
    return METRATrainer(
        collector=Collector(
            env,
            networks.policy,
            frames_per_batch=80,
            total_frames=total_frames,
            auto_register_policy_transforms=False,
            track_traj_ids=track_traj_ids,
            **place,
        ),
        total_frames=total_frames,
        optim_steps_per_batch=2,
        loss_module=sac_loss,
        skill_loss=skill_loss,
        replay_buffer=buffer,
        optimization_stepper=stepper,
        progress_bar=False,
        log_interval=0,
        seed=0,
        **options,
    )


def weights(trainer: METRATrainer) -> list[Any]:
    losses = (trainer.skill_loss, trainer.loss_module)
    return [parameter.tolist() for loss in losses for parameter in loss.parameters()]


@pytest.mark.parametrize("storage", ["cuda", "cpu"])
def test_training_gives_the_numbers_of_the_cpu(cuda: torch.device, storage: str) -> None:
    trainer = make_trainer(cuda, storage=storage)
    trainer.train()
    assert {weight.device for weight in trainer.loss_module.parameters()} == {cuda}
    assert trainer.replay_buffer.storage[:2]["observation"].device.type == storage
    expected = make_trainer(CPU)
    expected.train()
    assert weights(trainer) == weights(expected)


@pytest.fixture
def looks(cuda: torch.device) -> Record:
    """How often, and in which files, the host looks at values in a round; everything is there."""
    moments: list[Record] = []
    trainer = make_trainer(cuda, env_on=cuda)
    with watch() as record:
        trainer.register_op("batch_process", lambda batch: moments.append(Counter(record)))
        trainer.train()
    places: Record = Counter()
    for (how, _, where), count in (moments[-1] - moments[-2]).items():
        if how in ("wait", "to host"):
            places[where.rpartition(":")[0]] += count
    return places


def test_a_round_is_read_in_four_copies(looks: Record) -> None:
    """Whether data are finite, before they are stored; their scale; metrics; and the coverage."""
    # TorchRL's own collector asks at every step whether episodes are done.
    ours = {place: count for place, count in looks.items() if not place.startswith("torchrl/")}
    assert ours == {
        "torchrl_metra/trainers/rounds.py": 3,
        "torchrl_metra/evaluation/coverage.py": 1,
    }


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_another_device(
    cuda: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
) -> None:
    load = torch.load

    def load_to_the_cpu(*args: Any, **kwargs: Any) -> Any:
        # Without it, files of a GPU cannot be read where there is none.
        assert kwargs["map_location"] == "cpu"
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", load_to_the_cpu)
    make_trainer(first, tmp_path, total_frames=160).train()
    if second == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = make_trainer(second, tmp_path)
    assert resume(trainer) is not None
    assert trainer.collected_frames == 160
    for optimizer in trainer.optimization_stepper.optimizers.values():
        (group,) = optimizer.param_groups
        # CUDA graphs need it, and the CPU does not have it.
        assert group["capturable"] == (second == "cuda")
        for state in optimizer.state.values():
            assert {value.device.type for value in state.values()} == {second}
    trainer.train()
    uninterrupted = make_trainer(CPU)
    uninterrupted.train()
    assert weights(trainer) == weights(uninterrupted)


@pytest.mark.parametrize("track_traj_ids", [False, True])
def test_episodes_go_on_on_another_device(
    cuda: torch.device, tmp_path: Path, track_traj_ids: bool
) -> None:
    # TorchRL keeps the numbers of episodes on the CPU.
    tracking = {"track_traj_ids": track_traj_ids}
    make_trainer(CPU, tmp_path, env_on=CPU, total_frames=160, **tracking).train()
    trainer = make_trainer(cuda, tmp_path, env_on=cuda, **tracking)
    assert resume(trainer) is not None
    trainer.train()
    assert trainer.collected_frames == 240


def test_a_learning_rate_stays_where_the_graph_reads_it(cuda: torch.device) -> None:
    def make(device: Any) -> optim.Adam:
        rate = torch.tensor(0.1, device=device)
        return optim.Adam([nn.Parameter(torch.ones(2, device=device))], lr=rate, fused=True)

    saved, optimizer = make(CPU), make(cuda)
    saved.param_groups[0]["lr"].fill_(0.5)
    rate = optimizer.param_groups[0]["lr"]
    load_optimizer(optimizer, saved.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.tolist() == 0.5


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA")
def test_graphs_want_learning_rates_on_the_device(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    entered = []

    class OnDevice:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            entered.append(self.device)

        def __exit__(self, *error: Any) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    for rate_on in (CPU, cuda):
        rate = torch.tensor(0.1, device=rate_on)
        weight = nn.Parameter(torch.ones(2, device=cuda))
        optimizer = optim.SGD([weight], lr=rate, fused=False)
        graph = UpdateGraph(
            lambda batch: batch.exclude("absent"), {"all": optimizer}, ["x"],
            compile=False, cudagraphs=True,
        )  # fmt: skip
        batch = TensorDict({"x": torch.ones(3, device=cuda)}, [3])
        graph(batch)
        if rate_on == CPU:
            with pytest.raises(ValueError, match='device="cuda:0"'):
                graph(batch)
        else:
            graph(batch)
            graph(batch)
    assert set(entered) == {cuda}


SMALL = {
    "device": "cuda", "num_envs": 2, "num_cells": [8], "total_frames": 80, "frames_per_batch": 40,
    "updates_per_step": 0.05, "batch_size": 16, "buffer_size": 100, "min_buffer_size": 40,
    "evaluation_interval": 40, "evaluation_episodes": 2, "checkpoint": {"interval": 40},
    "collection_timeout": None,
}  # fmt: skip
TINY = {"pixels": {"resolution": 32}, "encoder": {"channels": 2}, "backend": "serial"}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("point", {}),
        ("point", {"objective": "cic", "buffer_device": "cpu"}),
        ("half_cheetah", {}),
        ("quadruped", TINY),
    ],
    ids=["point", "cic", "half_cheetah", "quadruped"],
)
def test_a_run_from_first_to_last_line(
    cuda: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    others: dict[str, Any],
) -> None:
    pytest.importorskip("matplotlib")
    if name == "quadruped":
        pytest.importorskip("dm_control")
        pytest.importorskip("imageio_ffmpeg")
        if not rendering_available():
            pytest.skip("MuJoCo cannot draw on this machine")
    elif name == "half_cheetah":
        pytest.importorskip("mujoco")
    for module in ("torchrl_metra.evaluation", "torchrl_metra.trainers.hooks"):
        short = partial(rollout_skills, max_steps=8)
        monkeypatch.setattr(sys.modules[module], "rollout_skills", short)
    results = train(make_settings(name, output=str(tmp_path), **SMALL | others))
    assert results["frames"] == 80
    assert results["policy_coverage"] > 0
    assert (tmp_path / "skills.png").exists()
