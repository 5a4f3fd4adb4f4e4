"""Bytes and sampling rate of the replay buffer, for vectors and for pictures."""

from __future__ import annotations

from functools import partial

import torch
from bare_loop import BareLoop, Sizes
from learner import make_transitions
from measuring import Result, compare, in_turns
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_metra import FrameStackStorage, UnitSphere

_NUM_ENVS, _STEPS, _BATCH = 8, 200, 256


def measure() -> list[Result]:
    """Ant's transitions, against tensors indexed by hand."""
    torch.set_num_threads(1)
    sizes = Sizes(width=8)
    transitions = make_transitions(sizes, UnitSphere(sizes.skill))
    buffer = ReplayBuffer(storage=LazyTensorStorage(sizes.replay), batch_size=sizes.batch)
    buffer.extend(transitions)
    bare = BareLoop(sizes)

    def sample_by_hand() -> None:
        index = torch.randint(sizes.replay, (sizes.batch,))
        _ = {key: value[index] for key, value in bare.replay.items()}

    seconds = in_turns({"ours": buffer.sample, "bare": sample_by_hand}, rounds=5)
    rates = {key: [sizes.batch / value for value in values] for key, values in seconds.items()}
    stored = transitions.bytes() / sizes.replay
    by_hand = sum(value.nbytes for value in bare.replay.values()) / sizes.replay
    return [
        Result("replay/state/bytes", "bytes per transition", stored, by_hand, stored / by_hand),
        compare("replay/state/samples", "transitions/s", rates["ours"], rates["bare"]),
    ]


def measure_pixels(num_transitions: int = 100_000, device: str = "cpu") -> list[Result]:
    """Quadruped's transitions: single frames, against the stacks that the authors store."""
    torch.set_num_threads(2)
    storages = {
        "ours": FrameStackStorage(num_transitions, device=device),
        "stacks": LazyTensorStorage(num_transitions, device=device),
    }
    buffers = {
        name: ReplayBuffer(storage=storage, batch_size=_BATCH) for name, storage in storages.items()
    }
    for _ in range(num_transitions // _NUM_ENVS // _STEPS):
        episodes = make_episodes()
        for buffer in buffers.values():
            buffer.extend(episodes)
    stored = storages["ours"]
    frames = stored._frames._storage[: stored.num_stored_frames]
    size = (stored._transitions._storage.bytes() + frames.bytes()) / len(stored)
    stacks = storages["stacks"]._storage.bytes() / num_transitions

    def sample(name: str) -> None:
        # As a network reads them: what is lazy or a view has to be gathered here.
        batch = buffers[name].sample()
        _ = batch["pixels"].float(), batch["next", "pixels"].float()

    seconds = in_turns(
        {
            **{name: buffer.sample for name, buffer in buffers.items()},
            **{f"{name}/read": partial(sample, name) for name in buffers},
        },
        rounds=5,
    )
    milliseconds = {name: [1000 * value for value in values] for name, values in seconds.items()}
    prefix = "replay/pixels" if device == "cpu" else f"replay/pixels/{device}"
    return [
        Result(f"{prefix}/bytes", "bytes per transition", size, stacks, size / stacks),
        compare(f"{prefix}/sample", "ms", milliseconds["ours"], milliseconds["stacks"]),
        compare(
            f"{prefix}/sample and read",
            "ms",
            milliseconds["ours/read"],
            milliseconds["stacks/read"],
        ),
    ]


def make_episodes() -> TensorDictBase:
    """A collector's batch of whole episodes of noise, flattened."""
    frames = torch.randint(256, (_NUM_ENVS, _STEPS + 3, 3, 64, 64), dtype=torch.uint8)
    frames[:, :2] = frames[:, 2:3]
    # [environment, step, frame, channel, y, x]: windows of three frames along time.
    stacks = frames.unfold(1, 3, 1).movedim(-1, 2).flatten(2, 3)
    flag = torch.zeros(_NUM_ENVS, _STEPS, 1, dtype=torch.bool)
    data = {
        "pixels": stacks[:, :-1],
        "action": torch.rand(_NUM_ENVS, _STEPS, 12) * 2 - 1,
        "skill": UnitSphere(4).sample([_NUM_ENVS, 1]).expand(-1, _STEPS, -1),
        "done": flag,
        "terminated": flag,
        "next": {"pixels": stacks[:, 1:], "done": flag, "terminated": flag},
    }
    return TensorDict(data, batch_size=[_NUM_ENVS, _STEPS]).reshape(-1)
