"""The replay memory of episodes finds first, last and later states, however it was written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.data import (
    LazyMemmapStorage,
    LazyTensorStorage,
    ListStorage,
    PrioritizedSampler,
    ReplayBuffer,
    SamplerWithoutReplacement,
    TensorStorage,
)

from torchrl_metra import EpisodeStorage, FrameStackStorage, SkillPrimer, UnitSphere, make_env

# Environment, number of the episode, step.
Place = tuple[int, int, int]


def vectors(places: Sequence[Place]) -> dict[str, Any]:
    return {"observation": torch.tensor(places, dtype=torch.float32)}


def nested(places: Sequence[Place]) -> dict[str, Any]:
    """Two entries, neither of which alone tells where one is."""
    number = torch.tensor(places)
    return {"agents": {"position": number[:, [0, 2]]}, "episode": number[:, 1].double()}


def crossing(places: Sequence[Place]) -> dict[str, Any]:
    """All environments meet at each fourth step."""
    number = torch.tensor(places)
    return {"observation": torch.where(number[:, 2:] % 4 == 0, 0, number).float()}


def lockstep(places: Sequence[Place]) -> dict[str, Any]:
    """All environments do the same."""
    return {"observation": torch.tensor(places)[:, 1:].float()}


def pictures(places: Sequence[Place]) -> dict[str, Any]:
    """Stacks of three frames, which are filled with the first one at the start."""
    frames = [[[e, n, max(step - age, 0) % 256] for age in (2, 1, 0)] for e, n, step in places]
    stacks = torch.tensor(frames, dtype=torch.uint8).flatten(1)
    return {"pixels": stacks[:, :, None, None].expand(-1, -1, 2, 2).clone()}


class World:
    """Environments whose states say where they are, and a list of all transitions so far."""

    def __init__(
        self,
        num_envs: int,
        length: Callable[[int, int], int] = lambda env, episode: 7,
        states: Callable[[Sequence[Place]], dict[str, Any]] = vectors,
        done: bool = True,
        skill: bool = False,
    ) -> None:
        self.length, self.states, self.done, self.skill = length, states, done, skill
        self.places = [(env, 0, 0) for env in range(num_envs)]
        self.log: list[Place] = []

    def step(self, env: int) -> bool:
        """Whether an episode has ended by it."""
        _, episode, step = place = self.places[env]
        self.log.append(place)
        is_done = step + 1 == self.length(env, episode)
        self.places[env] = (env, episode + 1, 0) if is_done else (env, episode, step + 1)
        return is_done

    def collect(self, num_steps: int, envs: Sequence[int] | None = None) -> TensorDictBase:
        """A collector's batch, flattened: one environment after the other."""
        begin = len(self.log)
        envs = range(len(self.places)) if envs is None else envs
        done = [self.step(env) for env in envs for _ in range(num_steps)]
        places = self.log[begin:]
        data = {
            **self.states(places),
            "number": torch.arange(begin, len(self.log)),
            "next": self.states([after(place) for place in places]),
        }
        if self.done:
            data["next"]["done"] = torch.tensor(done).unsqueeze(-1)
        if self.skill:
            data["skill"] = torch.tensor(places)[:, :2].float()
        return TensorDict(data, batch_size=[len(places)])

    def live(self, size: int) -> list[Place]:
        return self.log[len(self.log) - size :]


def after(place: Place, num_steps: int = 1) -> Place:
    env, episode, step = place
    return (env, episode, step + num_steps)


def in_memory(storage: EpisodeStorage, world: World) -> TensorDictBase:
    """All transitions that can be sampled, in the order of time."""
    numbers = torch.arange(len(world.log) - len(storage), len(world.log))
    return storage.get(numbers % storage.max_size)


def assert_right(storage: EpisodeStorage, world: World) -> None:
    """All that is in memory is what a search through the list finds."""
    live = world.live(len(storage))
    members: dict[tuple[int, int], list[int]] = {}
    for env, episode, step in live:
        members.setdefault((env, episode), []).append(step)
    expected: dict[str, list[Place]] = {"first": [], "last": [], "ahead": []}
    for env, episode, step in live:
        steps = members[env, episode]
        assert steps == list(range(steps[0], steps[-1] + 1))
        end = steps[-1] + 1
        expected["first"].append((env, episode, steps[0]))
        expected["last"].append((env, episode, end))
        expected["ahead"].append((env, episode, min(step + storage.steps_ahead, end)))
    found = in_memory(storage, world)
    assert found["number"].tolist() == list(range(len(world.log) - len(live), len(world.log)))
    wanted = {
        (): live,
        "next": [after(place) for place in live],
        **expected,
    }
    for name, places in wanted.items():
        states = TensorDict(world.states(places), batch_size=[len(live)])
        for key in storage.state_keys:
            part = found if name == () else found[name]
            assert part[key].dtype == states[key].dtype
            assert part[key].equal(states[key]), (name, key)
    assert storage.num_stored_episodes == len(members)
    if world.done:
        ends = {episode: steps[-1] + 1 for episode, steps in members.items()}
        under_way = [key for key, end in ends.items() if world.length(*key) != end]
        assert len(storage._open) == len(under_way)
    assert len(storage._open) <= len(storage)


LENGTHS: dict[str, Callable[[int, int], int]] = {
    "equal": lambda env, episode: 7,
    "single": lambda env, episode: 1,
    "varied": lambda env, episode: (1, 2, 11, 5)[(3 * env + episode) % 4],
    "endless": lambda env, episode: 10_000,
}


@pytest.mark.parametrize("num_envs", [1, 3, 7])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("num_steps", [1, 4, 10])
@pytest.mark.parametrize("batches", [1, 1.7, 4.3], ids="batches={}".format)
@pytest.mark.parametrize("steps_ahead", [1, 3, 40], ids="ahead={}".format)
def test_what_a_search_finds(
    num_envs: int, length: str, num_steps: int, batches: float, steps_ahead: int
) -> None:
    world = World(num_envs, LENGTHS[length])
    size = round(num_envs * num_steps * batches)
    storage = EpisodeStorage(LazyTensorStorage(size), steps_ahead=steps_ahead)
    buffer = ReplayBuffer(storage=storage, batch_size=5)
    while len(world.log) < 3.5 * size + 20:
        buffer.extend(world.collect(num_steps))
        assert_right(storage, world)


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("skill", [False, True])
@pytest.mark.parametrize("states", [vectors, nested, crossing, lockstep])
@pytest.mark.parametrize("length", LENGTHS)
def test_kinds_of_states(
    done: bool, skill: bool, states: Callable[..., dict[str, Any]], length: str
) -> None:
    if states is crossing and not skill:
        pytest.skip("only skills tell these environments apart")
    if states is lockstep and not skill and length == "varied":
        pytest.skip("environments that do the same end their episodes together")
    world = World(3, LENGTHS[length], states, done, skill)
    keys = [("agents", "position"), "episode"] if states is nested else ["observation"]
    storage = EpisodeStorage(LazyTensorStorage(50), state_keys=keys, steps_ahead=6)
    buffer = ReplayBuffer(storage=storage, batch_size=5)
    for _ in range(20):
        buffer.extend(world.collect(4))
        assert_right(storage, world)


def test_batches_of_any_size_from_any_environments() -> None:
    """As from collectors that do not wait for each other."""
    generator = torch.Generator().manual_seed(0)
    world = World(6, LENGTHS["varied"])
    storage = EpisodeStorage(LazyTensorStorage(61), steps_ahead=4)
    buffer = ReplayBuffer(storage=storage, batch_size=5)
    for _ in range(150):
        envs = torch.randperm(6, generator=generator)[: int(torch.randint(1, 5, (1,)))]
        buffer.extend(world.collect(int(torch.randint(1, 9, (1,))), envs.tolist()))
        assert_right(storage, world)


def test_an_endless_episode_beside_many() -> None:
    world = World(2, lambda env, episode: 10_000 if env == 0 else 1)
    storage = EpisodeStorage(LazyTensorStorage(10), steps_ahead=2)
    buffer = ReplayBuffer(storage=storage, batch_size=5)
    for _ in range(100):
        buffer.extend(world.collect(1))
        assert_right(storage, world)


def test_done_ends_an_episode_whose_last_state_is_the_next_ones_first() -> None:
    state = torch.tensor([[0.0], [1.0], [0.0], [2.0]])
    next_state = torch.tensor([[1.0], [0.0], [2.0], [3.0]])
    for shape in ([4], [4, 1]):
        done = torch.tensor([False, True, False, False]).reshape(shape)
        for sizes in ([4], [2, 2], [1, 1, 1, 1]):
            storage = EpisodeStorage(LazyTensorStorage(4))
            buffer = ReplayBuffer(storage=storage, batch_size=2)
            data = {"observation": state, "next": {"observation": next_state, "done": done}}
            for part in TensorDict(data, [4]).split(sizes):
                buffer.extend(part)
            assert buffer[:]["last", "observation"].flatten().tolist() == [0, 0, 3, 3]
            assert buffer[:]["first", "observation"].flatten().tolist() == [0, 0, 0, 0]
            assert storage.num_stored_episodes == 2


@pytest.mark.parametrize("key", ["skill", ("agent", "z")])
def test_skills_tell_equal_states_apart(key: Any) -> None:
    storage = EpisodeStorage(LazyTensorStorage(20), skill_key=key)
    # Two episodes that meet after a step, and change places in each batch.
    for step, order in enumerate([[0, 1], [1, 0], [0, 1], [1, 0]]):
        here = torch.tensor([[step], [step or 10]])[order]
        data = TensorDict({"observation": here, "next": {"observation": [[step + 1]] * 2}}, [2])
        data[key] = torch.tensor([[1.0], [2.0]])[order]
        storage.set([2 * step, 2 * step + 1], data)
    assert storage.num_stored_episodes == 2
    sampled = storage.get(range(8))
    assert sampled["first", "observation"].equal(torch.where(sampled[key] == 1, 0, 10))


def test_states_are_compared_bit_by_bit() -> None:
    state = torch.tensor([0.0, torch.nan, 0.0]).unsqueeze(-1)
    next_state = torch.tensor([torch.nan, -0.0, 1.0]).unsqueeze(-1)
    data = TensorDict({"observation": state, "next": {"observation": next_state}}, [3])
    for sizes in ([3], [1, 1, 1]):
        storage = EpisodeStorage(LazyTensorStorage(3))
        buffer = ReplayBuffer(storage=storage, batch_size=2)
        for part in data.split(sizes):
            buffer.extend(part)
        # Not a number is itself, and minus zero is not zero.
        assert buffer[:]["last", "observation"].flatten().tolist() == [0, 0, 1]
        assert storage.num_stored_episodes == 2


@pytest.mark.parametrize("max_frames", [30, 43, 44, 200])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("num_envs", "num_steps"), [(1, 3), (3, 5), (1, 26), (2, 11)])
def test_frames(max_frames: int, length: str, num_envs: int, num_steps: int) -> None:
    """Also where they run out before the transitions."""
    world = World(num_envs, LENGTHS[length], pictures)
    if length == "single":
        world.length = lambda env, episode: 2
    frames = FrameStackStorage(39, max_frames=max_frames)
    storage = EpisodeStorage(frames, state_keys=["pixels"], steps_ahead=4)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    early = False
    for _ in range(12):
        try:
            buffer.extend(world.collect(num_steps))
        except ValueError:
            assert num_envs * num_steps * 2 > max_frames
            return
        assert_right(storage, world)
        live = set(world.live(len(storage)))
        sample = buffer.sample()
        assert {world.log[number] for number in sample["number"]} <= live
        early |= len(storage) < min(39, len(world.log))
    if max_frames in (30, 200):
        assert early == (max_frames == 30)


def make(kind: str, size: int, folder: Path) -> tuple[EpisodeStorage, Callable[..., Any]]:
    storage = {
        "ram": lambda: LazyTensorStorage(size),
        "memmap": lambda: LazyMemmapStorage(size, scratch_dir=folder, existsok=True),
        "frames": lambda: FrameStackStorage(size, max_frames=size),
        "frames_on_disk": lambda: FrameStackStorage(size, scratch_dir=folder),
    }[kind]()
    states = pictures if kind.startswith("frames") else vectors
    keys = ["pixels"] if kind.startswith("frames") else ["observation"]
    return EpisodeStorage(storage, state_keys=keys, steps_ahead=3), states


KINDS = ["ram", "memmap", "frames", "frames_on_disk"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["dumps", "state_dict"])
@pytest.mark.parametrize("num_batches", [1, 2, 9])
@pytest.mark.parametrize("is_used", [False, True])
def test_round_trip(kind: str, way: str, num_batches: int, is_used: bool, tmp_path: Path) -> None:
    storage, states = make(kind, 60, tmp_path / "one")
    world = World(3, LENGTHS["varied"], states)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    restored_storage, _ = make(kind, 60, tmp_path / "other")
    restored = ReplayBuffer(storage=restored_storage, batch_size=16)
    if is_used:
        restored.extend(World(4, states=states).collect(5))
    for _ in range(num_batches):
        buffer.extend(world.collect(4))
        if way == "dumps":
            buffer.dumps(tmp_path / "dump")
    if way == "dumps":
        restored.loads(tmp_path / "dump")
    else:
        restored.load_state_dict(copy.deepcopy(buffer.state_dict()))
    for _ in range(9):
        assert_right(restored_storage, world)
        samples = []
        for either in (buffer, restored):
            torch.manual_seed(0)
            samples.append(either.sample())
        assert (samples[0] == samples[1]).all()
        batch = world.collect(4)
        for either in (buffer, restored):
            either.extend(batch)
    assert restored_storage._counters() == storage._counters()
    assert (restored_storage._links == storage._links).all()


def test_no_pickle_in_files(tmp_path: Path) -> None:
    storage, _ = make("ram", 60, tmp_path)
    ReplayBuffer(storage=storage, batch_size=2).extend(World(3).collect(4))
    storage.dumps(tmp_path / "dump")
    suffixes = {file.suffix for file in (tmp_path / "dump").rglob("*") if file.is_file()}
    assert suffixes == {".memmap", ".json", ".pt"}
    for file in (tmp_path / "dump").rglob("*.pt"):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_batches", [1, 9])
def test_empty(kind: str, num_batches: int, tmp_path: Path) -> None:
    storage, states = make(kind, 60, tmp_path)
    world = World(3, LENGTHS["varied"], states)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    for _ in range(num_batches):
        buffer.extend(world.collect(4))
    buffer.empty()
    assert len(buffer) == len(storage) == storage.num_stored_episodes == 0
    # Episodes that were under way are not known anymore.
    del world.log[:]
    for _ in range(9):
        buffer.extend(world.collect(4))
        assert_right(storage, world)


@pytest.mark.parametrize("kind", KINDS)
def test_one_transition_at_a_time(kind: str, tmp_path: Path) -> None:
    storage, states = make(kind, 30, tmp_path)
    world = World(1, LENGTHS["varied"], states)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    for _ in range(75):
        buffer.add(world.collect(1)[0])
        assert_right(storage, world)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda storage: pickle.loads(pickle.dumps(storage))]
)
def test_copies(kind: str, way: Callable[..., EpisodeStorage], tmp_path: Path) -> None:
    if kind in ("memmap", "frames_on_disk"):
        pytest.skip("copies would share their files")
    storage, states = make(kind, 60, tmp_path)
    empty = way(storage)
    world = World(3, LENGTHS["varied"], states)
    buffer = ReplayBuffer(storage=storage, batch_size=16)
    other = ReplayBuffer(storage=empty, batch_size=16)
    for _ in range(7):
        batch = world.collect(4)
        buffer.extend(batch)
        other.extend(batch)
    assert_right(empty, world)
    twin = way(storage)
    batch = world.collect(4)
    twin.set((torch.arange(12) + 84) % 60, batch)
    assert_right(twin, world)
    assert len(storage._open) != 0
    buffer.extend(batch)
    assert_right(storage, world)


@pytest.mark.parametrize(
    "index",
    [3, -1, slice(None), slice(2, 7), slice(1, None, 3), [4, 1], torch.tensor([[0, 5], [2, 2]]),
     torch.arange(20) % 3 == 0],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_index(index: Any, kind: str, tmp_path: Path) -> None:
    storage, states = make(kind, 60, tmp_path)
    ReplayBuffer(storage=storage, batch_size=2).extend(World(4, states=states).collect(5))
    found, everything = storage.get(index), storage.get(torch.arange(20))
    assert found.shape == everything[index].shape
    assert set(found.keys(True, True)) == set(everything.keys(True, True))
    assert (found == everything[index]).all()


def test_what_is_sampled_is_not_the_memory() -> None:
    world = World(3)
    buffer = ReplayBuffer(storage=EpisodeStorage(LazyTensorStorage(50)), batch_size=16)
    for _ in range(3):
        buffer.extend(world.collect(4))
        buffer.sample().zero_()
        assert_right(buffer.storage, world)
        assert set(buffer.storage.storage.get([0]).keys()) == {"number", "observation", "next"}


@pytest.mark.parametrize("kind", ["ram", "frames"])
def test_samples_are_those_of_the_storage_inside(kind: str, tmp_path: Path) -> None:
    storage, states = make(kind, 50, tmp_path)
    alone, _ = make(kind, 50, tmp_path)
    world = World(3, LENGTHS["varied"], states)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    buffers = [ReplayBuffer(storage=s, batch_size=200) for s in (storage, alone.storage)]
    for buffer, generator in zip(buffers, generators, strict=True):
        buffer.set_rng(generator)
    for _ in range(9):
        batch = world.collect(4)
        numbers = []
        for buffer in buffers:
            buffer.extend(batch)
            numbers.append(buffer.sample()["number"])
        assert numbers[0].equal(numbers[1])
        assert set(numbers[0].tolist()) <= set(range(len(world.log)))


def test_sampling_without_replacement() -> None:
    world = World(3)
    storage = EpisodeStorage(LazyTensorStorage(50))
    buffer = ReplayBuffer(storage=storage, batch_size=12, sampler=SamplerWithoutReplacement())
    buffer.extend(world.collect(4))
    assert sorted(buffer.sample()["number"].tolist()) == list(range(12))


def test_prioritized_sampling() -> None:
    try:
        sampler = PrioritizedSampler(50, alpha=1.0, beta=1.0)
    except RuntimeError as error:
        pytest.skip(str(error))
    world = World(3)
    storage = EpisodeStorage(LazyTensorStorage(50), steps_ahead=2)
    buffer = ReplayBuffer(storage=storage, batch_size=12, sampler=sampler)
    for _ in range(9):
        index = buffer.extend(world.collect(4))
        buffer.update_priority(torch.arange(len(storage)), torch.full((len(storage),), 1e-6))
        buffer.update_priority(index[:1], torch.tensor(1e6))
        assert set(buffer.sample()["number"].tolist()) == {len(world.log) - 12}
        assert_right(storage, world)


@pytest.mark.parametrize("has_skills", [False, True])
@pytest.mark.parametrize("size", [60, 400])
def test_behind_a_collector(has_skills: bool, size: int) -> None:
    env = make_env("point", num_envs=3, max_steps=17)
    if has_skills:
        env = env.append_transform(SkillPrimer(UnitSphere(2)))
    storage = EpisodeStorage(LazyTensorStorage(size), steps_ahead=5)
    buffer = ReplayBuffer(storage=storage, batch_size=64)
    seen: list[TensorDictBase] = []
    for batch in Collector(env, frames_per_batch=30, total_frames=300):
        assert batch.shape == (3, 10)
        seen += batch.reshape(-1).unbind(0)
        buffer.extend(batch.reshape(-1))
        begin = max(0, len(seen) - size)
        for number in range(begin, len(seen), 7):
            found = storage.get(number % size)
            episode = [
                other
                for other in seen[begin:]
                if other["collector", "traj_ids"] == seen[number]["collector", "traj_ids"]
            ]
            place = next(i for i, other in enumerate(episode) if other is seen[number])
            ahead = episode[min(place + 4, len(episode) - 1)]
            assert found["observation"].equal(seen[number]["observation"])
            assert found["first", "observation"].equal(episode[0]["observation"])
            assert found["last", "observation"].equal(episode[-1]["next", "observation"])
            assert found["ahead", "observation"].equal(ahead["next", "observation"])
    trajectories = {int(other["collector", "traj_ids"]) for other in seen[begin:]}
    assert storage.num_stored_episodes == len(trajectories)
    assert buffer.sample()["ahead", "observation"].shape == (64, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["ram", "frames"])
def test_on_a_gpu(kind: str) -> None:
    inside = LazyTensorStorage(40, device="cuda")
    if kind == "frames":
        inside = FrameStackStorage(40, max_frames=40, device="cuda")
    states, key = (pictures, "pixels") if kind == "frames" else (vectors, "observation")
    storage = EpisodeStorage(inside, state_keys=[key], steps_ahead=3)
    on_cpu, _ = make(kind, 40, Path())
    world = World(3, LENGTHS["varied"], states)
    buffers = [ReplayBuffer(storage=either, batch_size=16) for either in (storage, on_cpu)]
    for _ in range(9):
        batch = world.collect(4)
        for buffer in buffers:
            buffer.extend(batch)
        found = [in_memory(either, world).cpu() for either in (storage, on_cpu)]
        assert (found[0] == found[1]).all()
        assert buffers[0].sample()["ahead", key].device.type == "cuda"


class TestBadInput:
    @pytest.mark.parametrize(
        "storage",
        [None, 10, ListStorage(10), TensorStorage(torch.zeros(10, 2)),
         EpisodeStorage(LazyTensorStorage(10)), LazyTensorStorage(10, device="auto")],
        ids=lambda storage: type(storage).__name__,
    )  # fmt: skip
    def test_other_storages(self, storage: Any) -> None:
        with pytest.raises(TypeError):
            EpisodeStorage(storage)

    def test_storage_with_time(self) -> None:
        with pytest.raises(ValueError, match="ndim"):
            EpisodeStorage(LazyTensorStorage(10, ndim=2))

    def test_storage_with_data(self) -> None:
        storage = LazyTensorStorage(10)
        storage.set(range(3), World(1).collect(3))
        with pytest.raises(ValueError, match="empty"):
            EpisodeStorage(storage)

    @pytest.mark.parametrize(
        ("steps", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)]
    )
    def test_steps(self, steps: Any, error: type[Exception]) -> None:
        with pytest.raises(error):
            EpisodeStorage(LazyTensorStorage(10), steps_ahead=steps)

    @pytest.mark.parametrize("key", ["observation", ("next", "observation")], ids=str)
    def test_missing_state(self, key: Any) -> None:
        storage = EpisodeStorage(LazyTensorStorage(10))
        with pytest.raises(KeyError, match=r"'number'"):
            storage.set(range(4), World(1).collect(4).exclude(key))
        assert len(storage) == 0

    def test_not_flat(self) -> None:
        buffer = ReplayBuffer(storage=EpisodeStorage(LazyTensorStorage(10)), batch_size=2)
        with pytest.raises(ValueError, match="flat"):
            buffer.extend(World(2).collect(4).reshape(2, 4))

    @pytest.mark.parametrize("cursor", [[3, 4], [1, 0], [0, 0], [0, 2], 1], ids=str)
    def test_out_of_order(self, cursor: Any) -> None:
        storage = EpisodeStorage(LazyTensorStorage(10))
        data = World(1).collect(2)
        with pytest.raises(ValueError, match="RoundRobinWriter"):
            storage.set(cursor, data[0] if isinstance(cursor, int) else data)

    def test_more_than_there_is_room_for(self) -> None:
        storage = EpisodeStorage(LazyTensorStorage(10))
        with pytest.raises(ValueError, match="RoundRobinWriter"):
            ReplayBuffer(storage=storage, batch_size=2).extend(World(1).collect(11))

    def test_a_refused_batch_changes_nothing(self) -> None:
        world = World(2)
        storage = EpisodeStorage(LazyTensorStorage(20), steps_ahead=2)
        storage.set(range(8), world.collect(4))
        batch = world.collect(4)
        for cursor, data in ((range(9, 17), batch), (range(8, 16), batch.exclude("observation"))):
            with pytest.raises((ValueError, KeyError)):
                storage.set(cursor, data)
        storage.set(range(8, 16), batch)
        assert_right(storage, world)
