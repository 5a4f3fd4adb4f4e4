"""Collection and learning on a real local Ray with two workers, through the recipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from test_learning import assert_learned_the_fan, evaluate

from torchrl_metra import SkillPolicy, make_metra
from torchrl_metra.recipes import Settings, make_settings
from torchrl_metra.recipes.records import resume_run
from torchrl_metra.trainers import (
    CollectionTimeoutError,
    TrainingStoppedError,
    VerifiedCheckpoint,
)

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A local Ray for the tests of this file."""
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield context.address_info["address"]
    ray.shutdown()


def settings(learner: str = "local", address: str | None = None, **others: Any) -> Settings:
    """Two workers with eight environments each: the point's 16 environments in all."""
    distributed = {"kind": "ray", "learner": learner, "address": address}
    return make_settings("point", distributed=distributed, num_envs=8, progress_bar=False, **others)


def watch_workers(trainer: Any, policy: torch.nn.Module) -> list[float]:
    """How far the policies of both workers are from the learner's, after each of three rounds."""
    differences = []

    def look(batch: TensorDict) -> None:
        if trainer.collected_frames > 4_800:
            return
        assert not batch["skill"][0].equal(batch["skill"][1])
        assert not batch["action"][0].equal(batch["action"][1])
        here = TensorDict.from_module(policy).data
        for there in trainer.collector.get_distant_attr("policy"):
            difference = TensorDict.from_module(there).data - here
            differences.append(max(value.abs().max() for value in difference.values(True, True)))

    trainer.register_op("post_steps_log", look)
    return differences


def logged(output: Path, name: str) -> list[tuple[float, ...]]:
    """Frames and values of a metric."""
    rows = (output / "log" / "scalars" / f"{name}.csv").read_text().split()
    return [tuple(map(float, row.split(","))) for row in rows]


@pytest.mark.nightly
def test_metra_learns_the_fan(address: str) -> None:
    trainer = make_metra(settings(total_frames=28_000))
    policy = trainer.skill_policy.actor
    untrained = evaluate(policy, trainer.skill_loss)
    differences = watch_workers(trainer, policy)
    trainer.train()
    assert differences == [0.0] * 6
    assert_learned_the_fan(evaluate(policy, trainer.skill_loss), untrained)


def test_the_learner_on_ray_learns_and_goes_on(tmp_path: Path, address: str) -> None:
    config = settings(
        "ray", total_frames=24_000, min_buffer_size=3_000, checkpoint={"interval": 100_000},
        output=str(tmp_path), resume="auto",
    )  # fmt: skip
    trainer = make_metra(config)
    policy = trainer.skill_policy.actor
    untrained = evaluate(policy, trainer.skill_loss)
    losses = {"skill": trainer.skill_loss, "sac": trainer.loss_module}
    before = {name: loss.state_dict() for name, loss in losses.items()}
    before = {name: {k: v.clone() for k, v in state.items()} for name, state in before.items()}
    differences, seen = watch_workers(trainer, policy), []
    trainer.register_op(
        "post_steps_log",
        lambda batch: seen.append(len(trainer.replay_buffer)),
    )
    trainer.train()
    assert differences == [0.0] * 6
    # Every transition is stored once, and the first are not learned from before there are enough.
    assert seen[:3] == [1_600, 3_200, 4_800]
    assert logged(tmp_path, "optim_steps")[:2] == [(3_200, 50), (4_800, 100)]
    constants = {"alpha_init", "_target_entropy", "_value_estimator.gamma"}
    for name, loss in losses.items():
        moved = {k for k, v in loss.state_dict().items() if not v.equal(before[name][k])}
        assert before[name].keys() - moved <= constants, name
    # Metrics are those of a learner in this process.
    assert 0 < logged(tmp_path, "dual")[-1][1] < 10
    assert logged(tmp_path, "total_coverage")[-1][1] > 100
    assert all(logged(tmp_path, name) for name in ("intrinsic_reward", "loss_qvalue"))
    trainer.replay_buffer.shutdown()
    result = evaluate(policy, trainer.skill_loss)
    assert result.coverage >= 3 * untrained.coverage, (result, untrained)
    assert result.alignment >= 0.6 > untrained.alignment + 0.3, (result, untrained)

    # The checkpoint of its end holds what the learner has.
    resumed = make_metra(config)
    assert resume_run(resumed, config)
    for loss, again in (("skill_loss", resumed.skill_loss), ("loss_module", resumed.loss_module)):
        states = getattr(trainer, loss).state_dict(), again.state_dict()
        assert all(states[0][key].equal(states[1][key]) for key in states[0]), loss
    assert len(resumed.replay_buffer) == 24_000
    resumed.shutdown()
    resumed._execution_backend.shutdown()
    resumed.replay_buffer.shutdown()


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, ray.exceptions.ActorDiedError),
        pytest.param(signal.SIGSTOP, CollectionTimeoutError, marks=pytest.mark.nightly),
    ],
    ids=["killed", "hanging"],
)
def test_a_lost_worker_stops_the_run_saved(
    tmp_path: Path, address: str, number: signal.Signals, cause: type
) -> None:
    trainer = make_metra(settings(total_frames=1_000_000, output=str(tmp_path), logging=None))
    workers = ray.get([a.__ray_call__.remote(lambda _: os.getpid()) for a in actors(trainer)])
    struck = []

    def strike(batch: TensorDict) -> None:
        if trainer.collected_frames == 3_200:
            # Not before: workers take their time to start.
            trainer.collection_timeout = 4
            os.kill(workers[0], number)
            struck.append(time.perf_counter())

    trainer.register_op("post_steps_log", strike)
    with pytest.raises(TrainingStoppedError, match="stopped after 3,200 frames") as stopped:
        trainer.train()
    assert isinstance(stopped.value.__cause__, cause)
    VerifiedCheckpoint.verify(stopped.value.checkpoint)
    trainer.shutdown()
    assert time.perf_counter() - struck[0] < 30
    wait_for_the_end_of(workers)


def actors(trainer: Any) -> list[Any]:
    return trainer.collector.remote_collectors


def wait_for_the_end_of(pids: list[int]) -> None:
    deadline = time.perf_counter() + 10
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.perf_counter() < deadline, alive
        time.sleep(0.1)


def test_a_script_joins_a_cluster_from_anywhere(tmp_path: Path, address: str) -> None:
    subprocess.run(
        [
            sys.executable, "-m", "torchrl_metra", "train", "env=point", "distributed=ray",
            f"distributed.address={address}", "num_envs=8", "total_frames=3200", "output=run",
            "evaluation_episodes=4", "updates_per_step=0.003125", "checkpoint.interval=null",
        ],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert SkillPolicy.load(tmp_path / "run" / "skill_policy.pt").env_name == "point"
    # The cluster belongs to this test, not to the script.
    assert ray.cluster_resources()["CPU"] == 4


def test_a_cluster_that_is_too_small(address: str) -> None:
    config = settings(address=address)
    config.distributed.workers = 5
    with pytest.raises(ValueError, match=r"distributed\.workers=5 takes 5 CPUs.*has 4"):
        make_metra(config)
