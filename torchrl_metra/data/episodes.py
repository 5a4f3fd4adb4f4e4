"""A replay memory whose transitions know their episodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage

from torchrl_metra._checks import check_integer, check_type
from torchrl_metra._private import SelfSamplingStorage, empty_storage
from torchrl_metra.data.frames import FrameStackStorage, next_slots


class EpisodeStorage(SelfSamplingStorage):
    """Samples each transition with states from elsewhere in its episode.

    A storage for TorchRL's :class:`~torchrl.data.ReplayBuffer`, around another one that holds
    the transitions. For relabeling in hindsight, a sampled transition from :math:`s_t` to
    :math:`s_{t+1}` also brings, for each state key,

    - ``("first", key)``, the first state of its episode that is still stored;
    - ``("last", key)``, the last state of its episode, or the newest one so far;
    - ``("ahead", key)``, the state :math:`s_{t+c}` that is ``c = steps_ahead`` steps later, or
      the last one where the episode has fewer steps left.

    They have the shape of ``key``, and are read when they are sampled: an episode that goes
    on gets new last states.

    Episodes are found by comparing states, so nothing depends on trajectory ids. A
    transition continues another one that is not done if its states equal, bit by bit, the next
    states of the other; and so do their skills, if there are any: where a skill changes within
    an episode, each part with one skill counts as an episode here.
    Transitions may come from any number of environments, in whole or in partial episodes,
    flattened as collectors' batches are by ``reshape(-1)``. Environments with equal states
    and equal skills at the same time cannot be told apart.

    Sampling is as with ``storage`` alone, by any sampler that goes with it. The memory takes
    56 bytes a transition more.

    Args:
        storage (LazyTensorStorage, LazyMemmapStorage or FrameStackStorage): holds the
            transitions, and is empty at first.

    Keyword Args:
        state_keys (sequence of NestedKey, optional): the entries of a state. Defaults to
            ``("observation",)``.
        steps_ahead (int, optional): ``c``, at least one. Defaults to 25.
        skill_key (NestedKey, optional): where skills are. Defaults to ``"skill"``.

    Raises:
        TypeError: for another kind of storage.
        ValueError: for a storage with data or with more than one dimension, and when data are
            written that are not flat or not in the order of time.
        KeyError: when data are written without an entry of the state.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_metra import EpisodeStorage, make_env
        >>> storage = EpisodeStorage(LazyTensorStorage(1_000), steps_ahead=10)
        >>> buffer = ReplayBuffer(storage=storage, batch_size=32)
        >>> env = make_env("point", num_envs=2)
        >>> _ = buffer.extend(env.rollout(50).reshape(-1))
        >>> buffer.sample()["ahead", "observation"].shape
        torch.Size([32, 2])
        >>> storage.num_stored_episodes
        2
    """

    def __init__(
        self,
        storage: LazyTensorStorage | FrameStackStorage,
        *,
        state_keys: Sequence[NestedKey] = ("observation",),
        steps_ahead: int = 25,
        skill_key: NestedKey = "skill",
    ) -> None:
        expected = (LazyTensorStorage, LazyMemmapStorage, FrameStackStorage)
        names = "a LazyTensorStorage, a LazyMemmapStorage or a FrameStackStorage"
        check_type("storage", storage, expected, names)
        check_type("storage.device", storage.device, torch.device, "a device")
        check_integer("steps_ahead", steps_ahead)
        if storage.ndim != 1 or len(storage):
            raise ValueError(
                f"expected an empty storage with ndim=1, got one with ndim={storage.ndim} and "
                f"{len(storage)} transitions."
            )
        super().__init__(None, storage.max_size, device=storage.device)
        self.storage = storage
        self.state_keys = [unravel_key(key) for key in state_keys]
        self.steps_ahead = steps_ahead
        self.skill_key = unravel_key(skill_key)
        self.clear()

    def clear(self) -> None:
        """Forget all data."""
        empty_storage(self.storage)
        # Slots by slot, each -1 where there is none; by id of an episode, its first and last
        # slot; and the ids, those in use in front, where they are in disorder.
        names = ("episode", "previous", "next", "ahead", "first", "last")
        ids = torch.arange(self.max_size, device=self.device)
        links = {"ids": ids, **{name: torch.full_like(ids, -1) for name in names}}
        self._links = TensorDict(links, batch_size=ids.shape, device=self.device)
        self._num_written = self._num_episodes = 0
        # Numbers of the transitions that may be continued, the oldest in front.
        self._open: dict[str, int] = {}

    @property
    def num_stored_episodes(self) -> int:
        """Number of episodes of which at least one transition is in memory."""
        return self._num_episodes

    def get(self, index: int | Sequence[int] | slice | Tensor) -> TensorDictBase:
        """Transitions with the states that belong to them."""
        transitions = self.storage.get(index).copy()
        size, links = min(self._num_written, self.max_size), self._links
        episode, ahead = links["episode"][:size][index], links["ahead"][:size][index]
        first, last = links["first"][episode], links["last"][episode]
        ahead = torch.where(ahead < 0, last, ahead)
        for key in self.state_keys:
            next_key = unravel_key(("next", key))
            transitions[unravel_key(("first", key))] = self._read(key, first)
            transitions[unravel_key(("last", key))] = self._read(next_key, last)
            transitions[unravel_key(("ahead", key))] = self._read(next_key, ahead)
        return transitions

    def _read(self, key: NestedKey, slots: Tensor) -> Tensor:
        """One entry of some transitions."""
        if isinstance(self.storage, FrameStackStorage):
            return self.storage.read(key, slots)
        # A view of all that is stored, of which a single entry is read.
        return self.storage.get(slice(None)).get(key)[slots]

    def set(
        self, cursor: int | Sequence[int] | slice, data: TensorDictBase, *, set_cursor: bool = True
    ) -> None:
        """Write transitions behind the last ones, where a ``RoundRobinWriter`` puts them."""
        if isinstance(cursor, int):
            cursor, data = [cursor], data.unsqueeze(0)
        slots = next_slots(self, cursor, self._num_written % self.max_size)
        data = data.to(self.device)
        starts, ends, done = self._bounds(data)
        oldest = self._oldest
        self.storage.set(cursor, data)
        begin, self._num_written = self._num_written, self._num_written + len(slots)
        self._forget(oldest, self._num_written - self.max_size)

        # A run is a sequence of transitions, each of which continues the last one.
        is_head = done.new_ones(len(slots))
        is_head[1:] = done[:-1]
        for start, end in zip(starts, ends, strict=True):
            is_head[1:] |= (start[1:] != end[:-1]).any(-1)
        heads = is_head.nonzero().squeeze(1)
        tails = torch.cat([heads[1:], heads.new_tensor([len(slots)])]) - 1
        continued = [self._open.pop(key, -1) for key in _names(starts, heads)]
        self._link(slots, heads, tails, torch.tensor(continued, device=self.device))
        tails = tails[~done[tails]]
        for key, number in zip(_names(ends, tails), (tails + begin).tolist(), strict=True):
            self._open.pop(key, None)  # Which would keep its place in the order.
            self._open[key] = number

        # A storage of frames may have run out of them.
        self._forget(max(oldest, self._num_written - self.max_size), self._oldest)
        self.initialized = True
        self.note_change(slots if set_cursor else None)

    def _bounds(self, data: TensorDictBase) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What a transition continues and what continues it, in bytes, and whether it is done."""
        if data.ndim != 1:
            raise ValueError(
                f"expected a flat batch of transitions, got one of shape {list(data.shape)}. "
                "Flatten batches with reshape(-1)."
            )
        entries = list(data.keys(include_nested=True, leaves_only=True))
        next_keys = [unravel_key(("next", key)) for key in self.state_keys]
        for key in (*self.state_keys, *next_keys):
            if key not in entries:
                raise KeyError(f"no {key!r} among a batch's entries {entries}: see state_keys.")
        skill = [self.skill_key] if self.skill_key in entries else []
        starts = [_bytes(data[key]) for key in (*self.state_keys, *skill)]
        ends = [_bytes(data[key]) for key in (*next_keys, *skill)]
        if ("next", "done") not in entries:
            return starts, ends, torch.zeros(len(data), dtype=torch.bool, device=self.device)
        return starts, ends, data["next", "done"].reshape(len(data), -1).any(-1)

    def _link(self, slots: Tensor, heads: Tensor, tails: Tensor, continued: Tensor) -> None:
        """Add runs to episodes: to those of the transitions ``continued``, or to new ones."""
        links = self._links
        is_new = continued < 0
        before = torch.where(is_new, -1, continued % self.max_size)
        episode = links["episode"][before]
        end = self._num_episodes + int(is_new.sum())
        episode[is_new] = links["ids"][self._num_episodes : end]
        self._num_episodes = end
        links["first"][episode[is_new]] = slots[heads[is_new]]
        links["last"][episode] = slots[tails]
        links["episode"][slots] = episode.repeat_interleave(tails - heads + 1)

        previous = slots.roll(1)
        previous[heads] = before
        links["previous"][slots] = previous
        links["next"][slots] = links["ahead"][slots] = -1
        links["next"][previous[previous >= 0]] = slots[previous >= 0]
        # The next state of a transition is that ahead of another, steps_ahead - 1 before it.
        behind = slots
        for _ in range(self.steps_ahead - 1):
            behind = torch.where(behind < 0, behind, links["previous"][behind])
        links["ahead"][behind[behind >= 0]] = slots[behind >= 0]

    def _forget(self, begin: int, end: int) -> None:
        """Forget transitions by their numbers, the oldest that there are."""
        if begin >= end:
            return
        links = self._links
        slots = torch.arange(begin, end, device=self.device) % self.max_size
        episode, following = links["episode"][slots], links["next"][slots]
        # Of each episode, either one is followed by one that stays, or the last one is forgotten.
        stays = (following >= 0) & ((following - slots[0]) % self.max_size >= len(slots))
        links["first"][episode[stays]] = following[stays]
        links["previous"][following[stays]] = -1
        ended = episode[following < 0]
        self._num_episodes -= len(ended)
        links["ids"][self._num_episodes : self._num_episodes + len(ended)] = ended
        while self._open and next(iter(self._open.values())) < end:
            del self._open[next(iter(self._open))]

    @property
    def _oldest(self) -> int:
        """Number of the oldest transition."""
        return self._num_written - len(self.storage)

    def draw(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """Indices of transitions, as the storage draws them."""
        if isinstance(self.storage, FrameStackStorage):
            return self.storage.draw(batch_size, generator)
        size = len(self.storage)
        return torch.randint(size, (batch_size,), generator=generator, device=self.device)

    def __len__(self) -> int:
        return len(self.storage)

    def dumps(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self.storage.dumps(path / "transitions")
        self._links.memmap(path / "links")
        torch.save(self._counters(), path / "counters.pt")

    def loads(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`dumps` wrote."""
        path = Path(path)
        self.storage.loads(path / "transitions")
        links = TensorDict.load_memmap(path / "links")
        self._resume(links, torch.load(path / "counters.pt", weights_only=True))

    def state_dict(self) -> dict[str, Any]:
        links = self._links.to_dict()
        return {"transitions": self.storage.state_dict(), "links": links, **self._counters()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.storage.load_state_dict(state_dict["transitions"])
        self._resume(state_dict["links"], state_dict)

    def _counters(self) -> dict[str, Any]:
        return {
            "num_written": self._num_written,
            "num_episodes": self._num_episodes,
            "open": dict(self._open),
        }

    def _resume(self, links: TensorDictBase | dict[str, Tensor], counters: dict[str, Any]) -> None:
        self._links.update_(links)
        self._num_written = counters["num_written"]
        self._num_episodes = counters["num_episodes"]
        self._open = dict(counters["open"])
        self.initialized = True
        self.note_change()


def _bytes(values: Tensor) -> Tensor:
    """A row of bytes for each transition, so that equal is what has the same bits."""
    return values.reshape(len(values), -1).contiguous().view(torch.uint8)


def _names(states: list[Tensor], index: Tensor) -> list[str]:
    """Digests of states by which they are found again, numbered where they are the same."""
    rows = torch.cat([state[index] for state in states], dim=-1).cpu().numpy()
    count: Counter[str] = Counter()
    names = []
    for row in rows:
        digest = blake2b(row.tobytes(), digest_size=16).hexdigest()
        names.append(f"{digest}-{count[digest]}")
        count[digest] += 1
    return names
