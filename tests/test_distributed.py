"""Several worker processes on one machine: they collect, and their death ends a run at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_metra import METRATrainer, VerifiedCheckpoint, make_metra
from torchrl_metra.recipes import make_settings
from torchrl_metra.recipes.collect import make_worker_env
from torchrl_metra.trainers import TrainingStoppedError


def make_trainer(kind: str, total_frames: int = 1_000_000, **settings: Any) -> METRATrainer:
    return make_metra(
        "point", distributed={"kind": kind}, num_envs=8, updates_per_step=0.003125,
        min_buffer_size=0, total_frames=total_frames, progress_bar=False, **settings,
    )  # fmt: skip


def test_several_processes_on_one_machine() -> None:
    trainer, seen = make_trainer("multi_sync", 4_800), []
    trainer.register_op("post_steps_log", lambda batch: seen.append(batch.clone()))
    trainer.train()
    assert [batch.shape for batch in seen] == [(2, 8, 100)] * 3
    for key in ("skill", "action"):
        assert not seen[0][key][0].equal(seen[0][key][1])
    assert len(trainer.replay_buffer) == 4_800


def test_seeding_a_worker_again_changes_its_skills() -> None:
    env = make_worker_env(make_settings("point"), 0)
    skills = []
    for seed in (5, 6, 5):
        env.set_seed(seed)
        skills.append(env.reset()["skill"])
    assert skills[0].equal(skills[2])
    assert not skills[0].equal(skills[1])


@pytest.mark.parametrize("kind", ["multi_sync", "multi_async"])
def test_a_worker_killed_while_the_learner_learns(kind: str) -> None:
    trainer = make_trainer(kind)
    workers = [process.pid for process in trainer.collector.procs]
    struck = []

    def strike(batch: Any) -> None:
        if trainer.collected_frames == 3_200:
            os.kill(workers[0], signal.SIGKILL)
            trainer.collector.procs[0].join(5)
            struck.append(time.perf_counter())

    trainer.register_op("pre_steps_log", strike)
    with pytest.raises(RuntimeError, match=r"worker 0 of the collector has died \(exit code -9\)"):
        trainer.train()
    trainer.shutdown()
    assert time.perf_counter() - struck[0] < 15
    deadline = time.perf_counter() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.perf_counter() < deadline
        time.sleep(0.1)
    assert torch.get_num_threads() == 1


def test_a_worker_that_hangs(tmp_path: Path) -> None:
    trainer = make_trainer("multi_async", output=str(tmp_path), logging=None)
    workers = [process.pid for process in trainer.collector.procs]

    def strike(batch: Any) -> None:
        if trainer.collected_frames == 3_200:
            # Not before: workers take their time to start.
            trainer.collection_timeout = 2
            os.kill(workers[0], signal.SIGSTOP)

    trainer.register_op("pre_steps_log", strike)
    with pytest.raises(TrainingStoppedError, match="the collector did not answer for 2") as stop:
        trainer.train()
    VerifiedCheckpoint.verify(stop.value.checkpoint)
    trainer.shutdown()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
