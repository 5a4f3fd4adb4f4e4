"""The replay memory of single frames gives back what the policy saw."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_metra import FrameStackStorage, make_env


class NumberedFrames:
    """Environments whose every frame is another picture, and whose transitions have numbers."""

    def __init__(self, num_envs: int, num_frames: int, episode_lengths: list[int]) -> None:
        self.num_frames = num_frames
        self.episode_lengths = episode_lengths
        self.stacks: list[Tensor | None] = [None] * num_envs
        self.steps_left = [0] * num_envs
        self.frame_count = 0
        self.transitions: list[TensorDict] = []

    def new_frame(self) -> Tensor:
        self.frame_count += 1
        number = torch.tensor([self.frame_count // 256, self.frame_count % 256, 7])
        return number.to(torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)

    def step(self, env: int) -> TensorDict:
        if self.steps_left[env] == 0:
            self.steps_left[env] = random.choice(self.episode_lengths)
            self.stacks[env] = self.new_frame().repeat(self.num_frames, 1, 1, 1)
        self.steps_left[env] -= 1
        stack = self.stacks[env]
        next_stack = torch.cat([stack[1:], self.new_frame()])
        self.stacks[env] = next_stack
        transition = TensorDict(
            {
                "pixels": stack.flatten(0, 1),
                "number": torch.tensor([len(self.transitions)]),
                "next": {"pixels": next_stack.flatten(0, 1)},
            }
        )
        self.transitions.append(transition)
        return transition

    def collect(self, num_steps: int) -> TensorDictBase:
        """A collector's batch, flattened: one environment after the other."""
        return torch.stack(
            [self.step(env) for env in range(len(self.stacks)) for _ in range(num_steps)]
        )


def assert_as_seen(sample: TensorDictBase, env: NumberedFrames) -> None:
    seen = torch.stack([env.transitions[number] for number in sample["number"].flatten()])
    for key in ("pixels", ("next", "pixels")):
        assert sample[key].dtype == torch.uint8
        assert sample[key].equal(seen[key])


def in_memory(storage: FrameStackStorage) -> TensorDictBase:
    """Every transition that can be sampled, the newest first."""
    age = torch.arange(len(storage))
    return storage.get((storage._next_slot - 1 - age) % storage.max_size)


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("episode_lengths", [[1], [1, 2, 7], [20, 30], [1_000]])
@pytest.mark.parametrize("max_frames", [60, 400], ids="max_frames={}".format)
def test_stacks_are_what_the_policy_saw(
    num_frames: int, episode_lengths: list[int], max_frames: int
) -> None:
    random.seed(num_frames)
    env = NumberedFrames(random.choice([1, 2, 5]), num_frames, episode_lengths)
    storage = FrameStackStorage(97, num_frames=num_frames, max_frames=max_frames)
    buffer = ReplayBuffer(storage=storage, batch_size=32)
    while len(env.transitions) < 250:
        # Partial episodes, which a full buffer overwrites from its start.
        buffer.extend(env.collect(random.randint(1, 5)))
        assert_as_seen(buffer.sample(), env)
        stored = in_memory(storage)
        assert_as_seen(stored, env)
        newest = len(env.transitions) - 1
        assert stored["number"].flatten().tolist() == list(range(newest, newest - len(stored), -1))
    assert storage.num_stored_frames <= storage.max_frames
    if max_frames == 400:
        assert len(storage) == 97


def test_sampling_is_uniform_over_all_that_is_valid() -> None:
    env = NumberedFrames(1, 3, [10])
    buffer = ReplayBuffer(storage=FrameStackStorage(50, max_frames=44), batch_size=4_000)
    for _ in range(9):
        buffer.extend(env.collect(7))
    valid = len(buffer)
    assert 35 <= valid <= 44
    count = torch.bincount(buffer.sample()["number"].flatten(), minlength=63)
    assert not count[: 63 - valid].any()
    expected = 4_000 / valid
    assert (count[63 - valid :] - expected).abs().max() < 5 * expected**0.5


def test_forgotten_transitions_are_refused() -> None:
    env = NumberedFrames(1, 3, [10])
    storage = FrameStackStorage(50, max_frames=20)
    buffer = ReplayBuffer(storage=storage, batch_size=8)
    for _ in range(5):
        buffer.extend(env.collect(5))
    with pytest.raises(IndexError, match=r"overwritten.*max_frames, now 20"):
        storage.get(0)


@pytest.mark.parametrize(("cut", "frames"), [(50, 4 * 51), (25, 4 * (26 + 28))])
def test_number_of_frames(cut: int, frames: int) -> None:
    """One more than transitions where an episode starts, a stack more where it goes on."""
    env = NumberedFrames(4, 3, [50])
    buffer = ReplayBuffer(storage=FrameStackStorage(200, max_frames=300), batch_size=8)
    for _ in range(50 // cut):
        buffer.extend(env.collect(cut))
    assert buffer.storage.num_stored_frames == frames


def test_a_single_environment_goes_on_where_it_was() -> None:
    env = NumberedFrames(1, 3, [200])
    buffer = ReplayBuffer(storage=FrameStackStorage(200), batch_size=8)
    for transition in env.collect(100).unbind(0):
        buffer.add(transition)
    assert buffer.storage.num_stored_frames == 101
    assert_as_seen(in_memory(buffer.storage), env)


@pytest.fixture
def filled() -> tuple[ReplayBuffer, NumberedFrames]:
    env = NumberedFrames(2, 3, [10])
    buffer = ReplayBuffer(storage=FrameStackStorage(60), batch_size=16)
    for _ in range(9):
        buffer.extend(env.collect(6))
    return buffer, env


@pytest.mark.parametrize("way", ["dumps", "state_dict"])
def test_round_trip(filled: tuple[ReplayBuffer, NumberedFrames], tmp_path: Path, way: str) -> None:
    buffer, env = filled
    restored = ReplayBuffer(storage=FrameStackStorage(60), batch_size=16)
    if way == "dumps":
        buffer.dumps(tmp_path)
        restored.loads(tmp_path)
    else:
        restored.load_state_dict(buffer.state_dict())
    assert (in_memory(restored.storage) == in_memory(buffer.storage)).all()
    # And it goes on as the first one does.
    batch = env.collect(6)
    for either in (buffer, restored):
        either.extend(batch)
    assert (in_memory(restored.storage) == in_memory(buffer.storage)).all()
    assert_as_seen(in_memory(restored.storage), env)


def test_empty(filled: tuple[ReplayBuffer, NumberedFrames]) -> None:
    buffer, env = filled
    buffer.empty()
    assert len(buffer) == 0
    buffer.extend(env.collect(6))
    assert len(buffer) == 12
    assert_as_seen(in_memory(buffer.storage), env)


def test_on_disk(tmp_path: Path) -> None:
    env = NumberedFrames(2, 3, [10])
    storage = FrameStackStorage(60, scratch_dir=tmp_path)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    for _ in range(9):
        buffer.extend(env.collect(6))
    assert_as_seen(buffer.sample(), env)
    files = {file.name for file in tmp_path.rglob("*.memmap")}
    assert {"frame.memmap", "frame_index.memmap", "number.memmap"} <= files


def test_like_a_storage_of_stacks_behind_a_collector() -> None:
    """What TorchRL stores whole, it gives back alike."""
    env = make_env("point_pixels", num_envs=3)
    ours = ReplayBuffer(storage=FrameStackStorage(600, max_frames=700), batch_size=64)
    stock = ReplayBuffer(storage=LazyTensorStorage(600), batch_size=64)
    for batch in Collector(env, frames_per_batch=150, total_frames=600):
        for buffer in (ours, stock):
            buffer.extend(batch.reshape(-1))
    index = torch.randperm(600)[:100]
    ours_sample, stock_sample = ours.storage.get(index), stock.storage.get(index)
    assert set(ours_sample.keys(True, True)) == set(stock_sample.keys(True, True))
    assert (ours_sample == stock_sample).all()


class TestBadInput:
    def test_frames_in_the_wrong_order(self) -> None:
        data = NumberedFrames(1, 3, [10]).collect(5)
        data["pixels"] = data["pixels"].unflatten(1, (3, 3)).flip(1).flatten(1, 2)
        with pytest.raises(ValueError, match=r"moved on by one of 3 frames.*CatFrames"):
            ReplayBuffer(storage=FrameStackStorage(10), batch_size=2).extend(data)

    def test_out_of_order(self) -> None:
        storage = FrameStackStorage(10)
        with pytest.raises(ValueError, match=r"next at slot 0.*RoundRobinWriter"):
            storage.set(torch.tensor([3, 4]), NumberedFrames(1, 3, [10]).collect(2))
