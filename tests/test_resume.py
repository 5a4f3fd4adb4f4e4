from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs

pytest.importorskip("matplotlib")


def uninterrupted(folder: Path, env: str) -> tuple[Path, float]:
    """A run from its first to its last frame, and the seconds until its first checkpoint."""
    output = folder / "uninterrupted"
    # The first one waits until everything is imported.
    runs.start(folder / "first", env=env, total_frames=400).join()
    start = time.monotonic()
    process = runs.start(output, env=env)
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
@pytest.mark.parametrize(
    ("env", "kills"), [("point", 20), ("mujoco:examples/inchworm.xml", 8)], ids=["point", "mujoco"]
)
def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(
    env: str, kills: int, tmp_path: Path
) -> None:
    if env != "point":
        pytest.importorskip("mujoco")
    expected, until_checkpoint = uninterrupted(tmp_path, env)
    moments, seen = random.Random(0), set()
    output = tmp_path / "killed"
    for _ in range(kills):
        process = runs.start(output, env=env, resume="auto")
        process.join(moments.uniform(0, 1.3 * until_checkpoint))
        process.kill()
        process.join()
        seen |= set(_checkpoints(output))
        if process.exitcode == 0:  # through before its time: the machine got faster meanwhile
            break
        assert process.exitcode == -signal.SIGKILL
    assert len(seen) > 1, "it should have been killed here and there along the run"
    process = runs.start(output, env=env, resume="auto")
    process.join()
    assert process.exitcode == 0
    _assert_equal(output, expected)


def run(output: Path, **settings: Any) -> str:
    """What a short run prints."""
    process = runs.start(output, **{"total_frames": 2_400, **settings})
    process.join()
    assert process.exitcode == 0
    return runs.printed(output)


def test_a_run_that_begins_anew_sets_earlier_checkpoints_aside(tmp_path: Path) -> None:
    run(tmp_path, seed=1, total_frames=1_600)
    earlier = _checkpoints(tmp_path)
    (tmp_path / "checkpoints" / ".checkpoint-000000009999.stage-1").mkdir()
    run(tmp_path, seed=2, total_frames=800)
    assert _checkpoints(tmp_path) == ["checkpoint-000000000800"]
    assert sorted(p.name for p in (tmp_path / "checkpoints.previous").iterdir()) == earlier
    assert not list((tmp_path / "checkpoints").glob(".*"))
    rows = (tmp_path / "log" / "scalars" / "dual.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["800"]


def test_a_finished_run_is_evaluated_again_gone_back_in_or_goes_further(tmp_path: Path) -> None:
    buffer = str(tmp_path / "replay")  # memory-mapped files
    run(tmp_path, buffer_device=buffer)
    assert (tmp_path / "replay" / "observation.memmap").exists()
    expected = runs.results(tmp_path)
    names = _checkpoints(tmp_path)
    assert names == ["checkpoint-000000001600", "checkpoint-000000002400"]

    assert "after 2,400 frames" in run(tmp_path, buffer_device=buffer, resume="auto")
    assert runs.results(tmp_path) == expected

    back = str(tmp_path / "checkpoints" / names[0])
    assert "after 1,600 frames" in run(tmp_path, buffer_device=buffer, resume=back)
    assert _checkpoints(tmp_path) == names
    assert (tmp_path / "checkpoints.previous" / names[1]).is_dir()
    assert runs.results(tmp_path) == expected

    # What is learned does not depend on where the transitions are.
    assert "after 3,200 frames" in run(tmp_path, resume="auto", total_frames=3_200)
    assert _checkpoints(tmp_path)[-1] == "checkpoint-000000003200"
