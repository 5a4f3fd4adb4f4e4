"""Several worker processes on one machine: they collect, and their death ends a run at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import EXAMPLES, compose

from torchrl_metra import VerifiedCheckpoint
from torchrl_metra.trainers import TrainingStoppedError


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return __import__("training")


def settings(output: Path, *overrides: str) -> Any:
    return compose(
        "point", "num_envs=8", "optim_steps_per_batch=5", "min_buffer_size=0",
        f"output={output}", "checkpoint.interval=null", *overrides,
    )  # fmt: skip


def test_several_processes_on_one_machine(training: Any, tmp_path: Path) -> None:
    config = settings(tmp_path, "distributed=multi_sync", "total_frames=4800")
    parts = training.build(config)
    seen = []
    parts.trainer.register_op("post_steps_log", lambda batch: seen.append(batch.clone()))
    parts.trainer.train()
    assert [batch.shape for batch in seen] == [(2, 8, 100)] * 3
    for key in ("skill", "action"):
        assert not seen[0][key][0].equal(seen[0][key][1])
    assert len(parts.trainer.replay_buffer) == 4_800


def test_seeding_a_worker_again_changes_its_skills(training: Any, tmp_path: Path) -> None:
    config = settings(tmp_path, "distributed=multi_sync")
    env = sys.modules["collectors"].make_worker_env(config, 0)
    skills = []
    for seed in (5, 6, 5):
        env.set_seed(seed)
        skills.append(env.reset()["skill"])
    assert skills[0].equal(skills[2])
    assert not skills[0].equal(skills[1])


@pytest.mark.parametrize("kind", ["multi_sync", "multi_async"])
def test_a_worker_killed_while_the_learner_learns(training: Any, tmp_path: Path, kind: str) -> None:
    config = settings(
        tmp_path, f"distributed={kind}", "distributed.workers=2", "total_frames=1_000_000"
    )
    trainer = training.build(config).trainer
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


@pytest.mark.parametrize("kind", ["multi_sync", "multi_async"])
def test_a_worker_that_hangs(training: Any, tmp_path: Path, kind: str) -> None:
    config = settings(
        tmp_path, f"distributed={kind}", "distributed.workers=2", "total_frames=1_000_000"
    )
    config.collection_timeout = 4
    config.checkpoint.interval = 500_000
    trainer = training.build(config).trainer
    workers = [process.pid for process in trainer.collector.procs]

    def strike(batch: Any) -> None:
        if trainer.collected_frames == 3_200:
            os.kill(workers[0], signal.SIGSTOP)

    trainer.register_op("pre_steps_log", strike)
    with pytest.raises(TrainingStoppedError, match="the collector did not answer for 4 s") as stop:
        trainer.train()
    VerifiedCheckpoint.verify(stop.value.checkpoint)
    trainer.shutdown()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
