"""What docs/guides/reliability.md says of each fault, by causing it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
from tensordict import TensorDictBase
from torchrl.envs import ParallelEnv, TransformedEnv
from torchrl.envs.transforms import ActionScaling

from torchrl_metra import METRATrainer, PointEnv
from torchrl_metra.trainers import (
    CollectionTimeoutError,
    TrainingStoppedError,
    resume,
)


def at(trainer: METRATrainer, frames: int, action: Callable[[], Any]) -> METRATrainer:
    """Have something happen after so many frames, before the next are collected."""

    def happen() -> None:
        if trainer.collected_frames == frames:
            action()

    trainer.register_op("post_steps", happen)
    return trainer


def stop(trainer: METRATrainer) -> TrainingStoppedError:
    with pytest.raises(TrainingStoppedError) as error:
        trainer.train()
    return error.value


def parallel_point() -> TransformedEnv:
    return TransformedEnv(ParallelEnv(2, PointEnv), ActionScaling())


def workers(trainer: METRATrainer) -> list[Any]:
    return trainer.collector.env.base_env._workers


def assert_it_goes_on(folder: Path, frames: int) -> None:
    trainer = runs.make_trainer(folder)
    resume(trainer)
    assert trainer.collected_frames == frames
    trainer.train()
    assert trainer.collected_frames == 800


def test_a_dead_worker_stops_training_with_its_state_saved(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, parallel_point())
    at(trainer, 240, lambda: os.kill(workers(trainer)[0].pid, signal.SIGKILL))
    error = stop(trainer)
    assert "worker 0" in str(error)
    assert error.checkpoint == tmp_path / "checkpoint-000000000240"
    assert "after 240 frames" in str(error)
    assert_it_goes_on(tmp_path, 240)


def test_a_hanging_worker_stops_training_with_its_state_saved(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, parallel_point(), collection_timeout=60)
    (pid, *_) = (worker.pid for worker in workers(trainer))

    def strike() -> None:
        trainer.collection_timeout = 1
        os.kill(pid, signal.SIGSTOP)

    at(trainer, 240, strike)
    start = time.monotonic()
    try:
        error = stop(trainer)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert time.monotonic() - start < 60
    assert isinstance(error.__cause__, CollectionTimeoutError)
    assert "raise collection_timeout" in str(error)
    assert_it_goes_on(tmp_path, 240)


def test_the_time_limit_is_for_collection_only(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, collection_timeout=0.5)
    at(trainer, 240, lambda: time.sleep(1))
    trainer.train()
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 60, "pytest's own alarm is set again"


class DivergingPoint(PointEnv):
    """Its observation is NaN from the end of the fourth round on."""

    steps = 0
    diverges_at = 80

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        out = super()._step(tensordict)
        if self.steps >= self.diverges_at:
            out["observation"] = out["observation"] * float("nan")
        return out


def test_nan_in_observations_is_not_stored_and_the_rest_is_saved(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, DivergingPoint(4))
    error = stop(trainer)
    assert "NaN or infinite" in str(error)
    assert error.checkpoint == tmp_path / "checkpoint-000000000240"
    assert trainer.replay_buffer[:].isfinite().all()
    # The episodes that diverged do not come back.
    assert_it_goes_on(tmp_path, 240)


def test_nan_in_a_loss_is_not_saved(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path)
    optimizers = trainer.optimization_stepper.optimizers

    def explode() -> None:
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = 1e30

    error = stop(at(trainer, 400, explode))
    assert "not finite" in str(error)
    assert "not saved" in str(error)
    assert error.checkpoint == tmp_path / "checkpoint-000000000320"
    resumed = runs.make_trainer(tmp_path)
    resume(resumed)
    parameters = [*resumed.loss_module.parameters(), *resumed.skill_loss.parameters()]
    assert all(value.isfinite().all() for value in parameters)
    assert_it_goes_on(tmp_path, 320)


def test_without_checkpoints_an_error_is_what_it_was(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, DivergingPoint(4))
    trainer.checkpoint_rotation = None
    with pytest.raises(ValueError, match="NaN or infinite"):
        trainer.train()


def test_a_full_disk_costs_checkpoints_not_the_run(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("a small disk is mounted with unshare, of Linux")
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    script = Path(__file__).with_name("full_disk.py")
    run = f"{sys.executable} {script} {tmp_path} 560 -1"
    answer = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {run}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    freed, full, _ = answer.stdout.split("end of run")
    for printed in (freed, full):
        assert "frames: 800" in printed
        for told in ("free space", "Training goes on", "No space left"):
            assert told in printed
    assert "stopped" not in freed
    assert "names: ['checkpoint-000000000640', 'checkpoint-000000000800']" in freed
    assert re.search("stopped: .*No space left", full, re.DOTALL)
    assert "checkpoint-000000000320" in full


def started(output: Path) -> Any:
    """A run of the point that has written its first checkpoint."""
    process = runs.start(output)
    while process.is_alive() and not any((output / "checkpoints").glob("checkpoint-*")):
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_round_and_it_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = started(tmp_path)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    output = runs.printed(tmp_path)
    assert f"stopped by {number.name} after" in output
    assert "resume=auto goes on" in output
    assert not (tmp_path / "summary.json").exists()
    frames = int(max((tmp_path / "checkpoints").glob("checkpoint-*")).name.partition("-")[2])
    assert f"after {frames:,} frames" in output
    process = runs.start(tmp_path, resume="auto", total_frames=frames + 400)
    process.join()
    assert process.exitcode == 0
    assert f"after {frames:,} frames" in runs.printed(tmp_path)
    assert (tmp_path / "summary.json").exists()


def test_ctrl_c_in_a_terminal_does_not_reach_the_workers(tmp_path: Path) -> None:
    """It goes to all processes of the group, but only the one that trains may act on it."""
    pytest.importorskip("mujoco")
    overrides = [
        "env=half_cheetah", f"output={tmp_path}", "backend=parallel", "num_envs=1",
        "evaluation_num_envs=1", "evaluation_episodes=2", "num_cells=[16]",
        "frames_per_batch=100", "min_buffer_size=100", "checkpoint.interval=100",
        "updates_per_step=0.01", "total_frames=1_000_000", "evaluation_interval=1_000_000",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "torchrl_metra", "train", *overrides],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(tmp_path.glob("checkpoints/checkpoint-*")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "stopped by SIGINT after" in output
    assert "Traceback" not in errors
