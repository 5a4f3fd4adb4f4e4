from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
import torch
from torchrl.checkpoint import Checkpoint, CheckpointError
from torchrl.collectors import Collector

from torchrl_metra import METRATrainer, SkillPrimer, UnitSphere, VerifiedCheckpoint, make_env
from torchrl_metra.trainers import CollectorState, DamagedCheckpointError, resume


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[METRATrainer, Path]:
    """A trainer after its last frame, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = runs.make_trainer(folder)
    trainer.train()
    return trainer, folder


@pytest.fixture
def folder(trained: tuple[METRATrainer, Path], tmp_path: Path) -> Path:
    """Checkpoints of 640 and 800 frames, to spoil."""
    return Path(shutil.copytree(trained[1], tmp_path / "checkpoints"))


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoint-*"))


def write_digests(checkpoint: Path) -> None:
    """What somebody does who changes a checkpoint on purpose."""
    names = json.loads((checkpoint / "digests.json").read_text())
    paths = {p for p in checkpoint.rglob("*") if p.is_file() and p.name != "digests.json"}
    names = {
        p.relative_to(checkpoint).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
    }
    (checkpoint / "digests.json").write_text(json.dumps(names))


def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    trained: tuple[METRATrainer, Path], tmp_path: Path
) -> None:
    stopped = runs.make_trainer(tmp_path)
    stopped.register_op(
        "post_steps", lambda: stopped.request_stop() if stopped.collected_frames == 400 else None
    )
    stopped.train()
    resumed = runs.make_trainer(tmp_path)
    assert resume(resumed) == tmp_path / "checkpoint-000000000400"
    resumed.train()
    assert runs.state(resumed) == runs.state(trained[0])


def test_without_a_replay_buffer_a_run_fills_a_new_one_first(tmp_path: Path) -> None:
    first = runs.make_trainer(tmp_path, exclude=("replay_buffer",), min_buffer_size=200)
    first.register_op(
        "post_steps", lambda: first.request_stop() if first.collected_frames == 400 else None
    )
    first.train()
    again = runs.make_trainer(tmp_path, exclude=("replay_buffer",), min_buffer_size=200)
    resume(again)
    updates: list[Any] = []
    again.register_op("process_optim_batch", updates.append)
    assert (again.collected_frames, len(again.replay_buffer)) == (400, 0)
    again.train()
    # Rounds of 80 frames: the third has filled it, the fifth is the last.
    assert len(updates) == 3 * 2
    # One that wants the buffer can load the rest all the same.
    other = runs.make_trainer(tmp_path)
    assert resume(other) is not None


def test_a_memory_mapped_replay_buffer_is_copied(tmp_path: Path) -> None:
    from torchrl.data import LazyMemmapStorage, ReplayBuffer

    def make() -> ReplayBuffer:
        storage = LazyMemmapStorage(100, scratch_dir=str(tmp_path / "scratch"), existsok=True)
        return ReplayBuffer(storage=storage, batch_size=4)

    source = make()
    source.extend(make_env("point", num_envs=2).rollout(20).reshape(-1))
    expected = source[:]["observation"].clone()
    VerifiedCheckpoint(replay_buffer=source).save(tmp_path / "checkpoint")
    source.extend(torch.zeros_like(source[:]))
    target = make()
    VerifiedCheckpoint(replay_buffer=target).load(tmp_path / "checkpoint")
    assert (target[:]["observation"] == expected).all()
    target.extend(torch.zeros_like(target[:]))
    VerifiedCheckpoint.verify(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("loss_module/state.pt", "truncate"),
        ("observation.memmap", "flip"),
        ("manifest.json", "remove"),
    ],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(
    folder: Path, part: str, spoil: str
) -> None:
    (file,) = (
        p
        for p in newest(folder).rglob("*")
        if p.as_posix().endswith(part) and "next" not in p.parts
    )
    if spoil == "truncate":
        os.truncate(file, file.stat().st_size // 2)
    elif spoil == "flip":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    with pytest.raises(DamagedCheckpointError, match="not what was written"):
        resume(runs.make_trainer(folder), newest(folder))
    trainer = runs.make_trainer(folder)
    with pytest.warns(UserWarning, match="Trying the one before it"):
        assert resume(trainer) == folder / "checkpoint-000000000640"
    assert trainer.collected_frames == 640
    assert (folder / "damaged-checkpoint-000000000800").is_dir()


def test_if_all_are_damaged_training_does_not_start_anew(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        (path / "digests.json").unlink()
    with (
        pytest.warns(UserWarning, match="Trying"),
        pytest.raises(DamagedCheckpointError, match=r"digests\.json"),
    ):
        resume(runs.make_trainer(folder))


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert resume(runs.make_trainer(tmp_path)) is None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        resume(runs.make_trainer(tmp_path), tmp_path / "nothing")


class _Exploit:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("replay_buffer/prefetch.pkl", "execute code"),
        ("replay_buffer/storage/other.pickle", "execute code"),
        ("loss_module/state.pt", "component 'loss_module'"),
    ],
)
def test_loading_never_executes_code(folder: Path, tmp_path: Path, name: str, match: str) -> None:
    component, _, file = name.partition("/")
    (place,) = newest(folder).glob(f"components/*-{component}")
    mark = tmp_path / "executed"
    if file == "state.pt":
        torch.save({"weight": _Exploit(mark)}, place / file)
    else:
        (place / file).write_bytes(pickle.dumps({"weight": _Exploit(mark)}))
    write_digests(newest(folder))
    with pytest.raises(CheckpointError, match=match):
        resume(runs.make_trainer(folder), newest(folder))
    assert not mark.exists()


def test_a_newer_version_is_refused(folder: Path) -> None:
    path = newest(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["metadata"]["torchrl_metra"] = "7.3.1"
    path.write_text(json.dumps(manifest))
    write_digests(newest(folder))
    trainer = runs.make_trainer(folder)
    with pytest.raises(CheckpointError, match=r"torchrl_metra 7\.3\.1.*update"):
        resume(trainer)
    assert trainer.collected_frames == 0


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"skill": {"dim": 2}, "gamma": 0.99, "objective": "metra"}
    trainer = runs.make_trainer(tmp_path, settings=settings)
    trainer.train()
    settings = {"skill": {"dim": 4}, "gamma": 0.99, "slack": 1e-3}
    other = runs.make_trainer(tmp_path, settings=settings)
    before = [value.clone() for value in other.loss_module.parameters()]
    with pytest.raises(CheckpointError) as error:
        resume(other)
    for difference in ("skill.dim (2 there, 4 here)", "objective", "slack", "train anew"):
        assert difference in str(error.value)
    assert "gamma" not in str(error.value)
    assert all(map(torch.equal, other.loss_module.parameters(), before))


def test_other_networks_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="component 'loss_module'"):
        resume(runs.make_trainer(folder, num_cells=24))


def test_only_whole_checkpoints_have_a_name(tmp_path: Path) -> None:
    class Failing(torch.nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
            if self.fails:
                raise RuntimeError("half-way")
            return super().state_dict(*args, **kwargs)

    module = Failing(2, 2)
    module.fails = True
    checkpoint = VerifiedCheckpoint(module=module)
    with pytest.raises(CheckpointError, match="half-way"):
        checkpoint.save(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []
    module.fails = False
    checkpoint.save(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_stock_checkpoints_work_as_well(tmp_path: Path) -> None:
    source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    path = VerifiedCheckpoint(policy=source).save(tmp_path / "verified")
    Checkpoint(policy=target).load(path)
    assert (source.weight == target.weight).all()


def test_simulators_start_new_episodes_with_other_seeds() -> None:
    pytest.importorskip("mujoco")

    def make() -> Collector:
        env = make_env("half_cheetah", num_envs=2, backend="serial")
        env = env.append_transform(SkillPrimer(UnitSphere(2)))
        collector = Collector(env, frames_per_batch=20, total_frames=100)
        collector.set_seed(3)
        collector.reset()
        return collector

    def first(collector: Collector) -> torch.Tensor:
        return next(iter(collector))["observation"][:, 0]

    source = make()
    beginning = first(source)
    state = CollectorState(source, seed=3).state_dict()
    goes_on = []
    for _ in range(2):
        collector = make()
        CollectorState(collector, seed=3).load_state_dict(state)
        goes_on.append(first(collector))
    assert (goes_on[0] == goes_on[1]).all()
    assert not (goes_on[0] == beginning).any(dim=-1).all()


def test_each_resume_of_a_run_with_worker_processes_has_seeds_of_its_own() -> None:
    seeds: list[int] = []
    workers = SimpleNamespace(set_seed=seeds.append)
    state = CollectorState(workers, seed=3).state_dict()
    for _ in range(3):
        leg = CollectorState(workers, seed=3)
        leg.load_state_dict(state)
        state = leg.state_dict()
    assert len({3, *seeds}) == 4
