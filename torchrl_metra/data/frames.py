"""A replay memory of single frames, from which stacks are rebuilt when they are sampled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorStorage

from torchrl_metra._private import SelfSamplingStorage


class FrameStackStorage(SelfSamplingStorage):
    """Stores each frame once, where a transition with stacked frames holds it six times.

    A storage for TorchRL's :class:`~torchrl.data.ReplayBuffer`. It takes transitions
    whose observation and next observation are stacks of the latest ``num_frames``
    frames, and gives them back bit by bit as they were. In between, a frame lies in
    memory once for all the stacks that show it: 12.4 kB a transition for 64×64 RGB
    and three frames, in place of 73.7 kB.

    Shared frames are found by comparing pictures, so nothing depends on trajectory ids or
    flags. Transitions may come from any number of environments, in whole or in partial
    episodes, flattened as collectors' batches are by ``reshape(-1)``. An uninterrupted run
    of ``n`` transitions takes ``n + 1`` frames if it starts an episode, and
    ``n + num_frames`` if it continues one.

    With the default :class:`~torchrl.data.RandomSampler`, sampling is uniform over all
    transitions whose frames are still there. If frames run out before transitions,
    because runs were shorter than planned, the oldest transitions are forgotten early;
    ``len`` counts what can be sampled.

    Args:
        max_size (int): number of transitions.

    Keyword Args:
        num_frames (int, optional): frames in a stack, along the channel dimension, the
            newest last, as :class:`~torchrl.envs.CatFrames` makes them. Defaults to 3.
        max_frames (int, optional): number of frames. Defaults to ``max_size`` and a
            64th part more, enough for runs of 64 transitions from the start of an
            episode.
        device (torch.device, optional): where data lie. Defaults to ``"cpu"``.
        scratch_dir (path, optional): folder for memory-mapped files; with it, data lie
            on disk.
        pixel_key (NestedKey, optional): the entry of stacks. Defaults to ``"pixels"``.

    Raises:
        ValueError: when data are written that are not stacks of ``num_frames`` frames or are
            not in the order of time.
        IndexError: when a transition is read whose frames have been overwritten.

    Examples:
        >>> from torchrl.data import ReplayBuffer
        >>> from torchrl_metra import FrameStackStorage, make_env
        >>> buffer = ReplayBuffer(storage=FrameStackStorage(1_000), batch_size=32)
        >>> env = make_env("point_pixels", num_envs=2)
        >>> _ = buffer.extend(env.rollout(50).reshape(-1))
        >>> buffer.sample()["pixels"].shape
        torch.Size([32, 9, 64, 64])
        >>> buffer.storage.num_stored_frames
        102
    """

    def __init__(
        self,
        max_size: int,
        *,
        num_frames: int = 3,
        max_frames: int | None = None,
        device: torch.device | str = "cpu",
        scratch_dir: str | os.PathLike[str] | None = None,
        pixel_key: NestedKey = "pixels",
    ) -> None:
        super().__init__(None, max_size, device=device)
        self.num_frames = num_frames
        self.max_frames = max_size + -(-max_size // 64) if max_frames is None else max_frames
        self.pixel_key = unravel_key(pixel_key)
        self.next_pixel_key = unravel_key(("next", pixel_key))
        self._scratch_dir = scratch_dir
        self.clear()

    def clear(self) -> None:
        """Forget all data."""
        self._transitions = self._make_storage(self.max_size, "transitions")
        self._frames = self._make_storage(self.max_frames, "frames")
        self._next_slot = self._frames_written = self._num_valid = 0

    def _make_storage(self, max_size: int, name: str) -> TensorStorage:
        if self._scratch_dir is None:
            return LazyTensorStorage(max_size, device=self.device)
        folder = str(Path(self._scratch_dir) / name)
        return LazyMemmapStorage(max_size, scratch_dir=folder, device=self.device, existsok=True)

    @property
    def num_stored_frames(self) -> int:
        """Number of frames in memory."""
        return len(self._frames)

    def set(
        self, cursor: int | Sequence[int] | slice, data: TensorDictBase, *, set_cursor: bool = True
    ) -> None:
        """Write transitions behind the last ones, where a ``RoundRobinWriter`` puts them."""
        if isinstance(cursor, int):
            cursor, data = [cursor], data.unsqueeze(0)
        slots = next_slots(self, cursor, self._next_slot)
        data = data.to(self.device)
        frames, frame_index = self._split_frames(data)
        if len(frames) > self.max_frames:
            raise ValueError(
                f"a batch of {len(data)} transitions needs {len(frames)} frames, more than "
                f"max_frames={self.max_frames}: raise it, or write smaller batches."
            )
        transitions = data.exclude(self.pixel_key, self.next_pixel_key)
        transitions["frame_index"] = frame_index
        frame_slots = torch.arange(len(frames), device=self.device) + self._frames_written
        self._frames.set(frame_slots % self.max_frames, frames)
        self._transitions.set(slots, transitions)
        next_slot = (self._next_slot + len(slots)) % self.max_size
        self._set_counters(next_slot, self._frames_written + len(frames))
        self.note_change(slots if set_cursor else None)

    def get(self, index: int | Sequence[int] | slice | Tensor) -> TensorDictBase:
        """Transitions with their stacks; both stacks of a transition share memory."""
        transitions = self._transitions.get(index).copy()
        frame_index = transitions.pop("frame_index")
        # An accelerator would have to wait for the answer; samplers ask for nothing else anyway.
        if frame_index.device.type == "cpu" and (frame_index < self._oldest_frame).any():
            raise IndexError(
                "the frames of the oldest transitions have been overwritten: sample with "
                f"RandomSampler, which leaves them out, or raise max_frames, now {self.max_frames}."
            )
        frames = self._frames.get(frame_index.flatten() % self.max_frames)["frame"]
        channels = frames.shape[1]
        stacks = frames.reshape(*frame_index.shape[:-1], -1, *frames.shape[2:])
        transitions[self.pixel_key] = stacks[..., :-channels, :, :]
        transitions[self.next_pixel_key] = stacks[..., channels:, :, :]
        return transitions

    def read(self, key: NestedKey, slots: Tensor) -> Tensor:
        """One entry of some transitions; of a stack, no more than its own frames are read."""
        transitions = self._transitions.get(slice(None))
        if key not in (self.pixel_key, self.next_pixel_key):
            return transitions.get(key)[slots]
        index = transitions.get("frame_index")[slots]
        index = (index[..., :-1] if key == self.pixel_key else index[..., 1:]) % self.max_frames
        return self._frames.get(slice(None)).get("frame")[index].flatten(-4, -3)

    def _split_frames(self, data: TensorDictBase) -> tuple[TensorDict, Tensor]:
        """Frames not yet stored, and the numbers of each transition's ``num_frames + 1``."""
        stack, next_stack = self._unstack(data)
        # A run is a sequence of transitions, each of which starts where the last one ended.
        continues = torch.zeros(len(stack), dtype=torch.bool, device=stack.device)
        continues[1:] = _equal(stack[1:], next_stack[:-1])
        last_slot = (self._next_slot - 1) % self.max_size
        if self._num_valid:
            continues[0] = _equal(stack[:1], self._unstack(self.get([last_slot]))[1])

        # New frames are each transition's last one and, where a run begins, its first stack
        # without the repetitions which fill the stack at the start of an episode.
        is_new = continues.new_ones(len(stack), self.num_frames + 1)
        is_new[:, 1:-1] = ~_equal(stack[:, 1:], stack[:, :-1], num_dims=2)
        is_new[:, :-1] &= ~continues.unsqueeze(-1)
        frame_index = is_new.flatten().cumsum(0).view_as(is_new) - 1 + self._frames_written
        frames = torch.cat([stack, next_stack[:, -1:]], dim=1)[is_new]

        # Where a run goes on, the first stack is the last one of the transition before.
        if continues[0]:
            frame_index[0, :-1] = self._transitions.get(last_slot)["frame_index"][1:]
        for k in reversed(range(self.num_frames)):
            before = frame_index[:-1, k + 1]
            frame_index[1:, k] = torch.where(continues[1:], before, frame_index[1:, k])
        return TensorDict({"frame": frames}, batch_size=[len(frames)]), frame_index

    def _unstack(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Both stacks, each of shape ``[B, num_frames, C, H, W]``."""
        stack, next_stack = (
            data[key].unflatten(-3, (self.num_frames, -1))
            for key in (self.pixel_key, self.next_pixel_key)
        )
        if data.ndim != 1 or not next_stack[:, :-1].equal(stack[:, 1:]):
            raise ValueError(
                f"expected a flat batch of transitions in which {self.next_pixel_key!r} is "
                f"{self.pixel_key!r} moved on by one of {self.num_frames} frames. Flatten batches "
                f"with reshape(-1), and stack frames with CatFrames(N={self.num_frames}, dim=-3)."
            )
        return stack, next_stack

    @property
    def _oldest_frame(self) -> int:
        return self._frames_written - self.max_frames

    def draw(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """Indices of transitions whose frames are still there."""
        age = torch.randint(self._num_valid, (batch_size,), generator=generator, device=self.device)
        return (self._next_slot - 1 - age) % self.max_size

    def __len__(self) -> int:
        return self._num_valid

    def dumps(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to a folder."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self._transitions.dumps(path / "transitions")
        self._frames.dumps(path / "frames")
        torch.save(self._counters(), path / "counters.pt")

    def loads(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`dumps` wrote."""
        path = Path(path)
        self._transitions.loads(path / "transitions")
        self._frames.loads(path / "frames")
        self._set_counters(**torch.load(path / "counters.pt", weights_only=True))
        self.note_change()

    def state_dict(self) -> dict[str, Any]:
        return {
            "transitions": self._transitions.state_dict(),
            "frames": self._frames.state_dict(),
            **self._counters(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._transitions.load_state_dict(state_dict["transitions"])
        self._frames.load_state_dict(state_dict["frames"])
        self._set_counters(state_dict["next_slot"], state_dict["frames_written"])
        self.note_change()

    def _counters(self) -> dict[str, int]:
        return {"next_slot": self._next_slot, "frames_written": self._frames_written}

    def _set_counters(self, next_slot: int, frames_written: int) -> None:
        self._next_slot, self._frames_written = next_slot, frames_written
        # Older transitions show older frames: counting tells where the valid ones begin.
        first_frame = self._transitions.get(slice(None))["frame_index"][:, 0]
        self._num_valid = int((first_frame >= self._oldest_frame).sum())
        self.initialized = True


def next_slots(storage: TensorStorage, cursor: Sequence[int] | slice, next_slot: int) -> Tensor:
    """Where to write, if it is where a ``RoundRobinWriter`` goes on from ``next_slot``."""
    slots = torch.as_tensor(cursor, device=storage.device)
    expected = (torch.arange(len(slots), device=storage.device) + next_slot) % storage.max_size
    if len(slots) > storage.max_size or not slots.equal(expected):
        raise ValueError(
            f"expected at most {storage.max_size} transitions, in the order of time and next at "
            f"slot {next_slot}, got {len(slots)}. Use the default RoundRobinWriter."
        )
    return slots


def _equal(left: Tensor, right: Tensor, num_dims: int = 1) -> Tensor:
    """Whether entries are equal, over all but the leading dimensions."""
    return (left == right).flatten(num_dims).all(-1)
