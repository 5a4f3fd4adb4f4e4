"""Relabeled skills on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchrl_metra import METRATrainer, make_metra

ENV = {"name": "point", "max_steps": 30}
SMALL: dict[str, Any] = {
    "objective": "genda", "policy": {"bottleneck": 3}, "layer_norm": True, "num_cells": [16],
    "total_frames": 400, "frames_per_batch": 80, "min_buffer_size": 80, "batch_size": 32,
    "updates_per_step": 0.025, "num_envs": 4, "buffer_size": 200, "progress_bar": False,
}  # fmt: skip


def weights(trainer: METRATrainer) -> list[Any]:
    relabeling = trainer.optimization_stepper.relabeling
    values = [*trainer.skill_loss.parameters(), relabeling.episode_mass]
    return [value.tolist() for value in (*values, *relabeling.encoder.parameters())]


@pytest.mark.parametrize(("buffer_device", "kind"), [("cuda", "UnitSphere"), ("cpu", "OneHot")])
def test_training_gives_the_numbers_of_the_cpu(
    cuda: torch.device, buffer_device: str, kind: str
) -> None:
    skill = {"kind": kind}
    trainer = make_metra(ENV, device="cuda", buffer_device=buffer_device, skill=skill, **SMALL)
    trainer.train()
    relabeling = trainer.optimization_stepper.relabeling
    assert {value.device for value in relabeling.state_dict().values()} == {cuda}
    storage = trainer.replay_buffer.storage
    assert storage[:2]["first", "observation"].device.type == buffer_device
    expected = make_metra(ENV, skill=skill, **SMALL)
    expected.train()
    assert weights(trainer) == weights(expected)
