"""Bytes and sampling rate of the replay buffer, against tensors indexed by hand."""

from __future__ import annotations

import torch
from bare_loop import BareLoop, Sizes
from learner import make_transitions
from measuring import Result, compare, in_turns
from torchrl.data import LazyTensorStorage, ReplayBuffer

from torchrl_metra import UnitSphere


def measure() -> list[Result]:
    """Ant's transitions."""
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
