from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import runs

pytest.importorskip("hydra")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run from its first to its last frame, and the seconds until its first checkpoint."""
    output = tmp_path_factory.mktemp("uninterrupted")
    start = time.monotonic()
    process = runs.start(output)
    while process.is_alive() and not _checkpoints(output):
        time.sleep(0.01)
    seconds = time.monotonic() - start
    process.join()
    assert process.exitcode == 0
    return output, seconds


def _checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("checkpoint-*"))


def _assert_equal(output: Path, expected: Path) -> None:
    found, wanted = runs.results(output), runs.results(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.timeout(600)
def test_a_run_killed_at_twenty_random_moments_ends_like_an_uninterrupted_one(
    uninterrupted: tuple[Path, float], tmp_path: Path
) -> None:
    expected, until_checkpoint = uninterrupted
    moments, seen = random.Random(0), set()
    for _ in range(20):
        process = runs.start(tmp_path, "resume=auto")
        process.join(moments.uniform(0, 1.5 * until_checkpoint))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen |= set(_checkpoints(tmp_path))
    assert len(seen) > 2, "it should have been killed here and there along the run"
    process = runs.start(tmp_path, "resume=auto")
    process.join()
    assert process.exitcode == 0
    _assert_equal(tmp_path, expected)
