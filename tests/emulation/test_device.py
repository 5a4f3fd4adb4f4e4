"""The emulated device finds the faults that it is there to find."""

from __future__ import annotations

import pytest
import torch

from .device import watch


def test_tensors_of_two_devices_do_not_mix(cuda: torch.device) -> None:
    there, here = torch.ones(3, device=cuda), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.Linear(3, 2)(there)
    with pytest.raises(RuntimeError, match="indices should be"):
        here[torch.zeros(1, dtype=torch.long, device=cuda)]
    assert (there + here.to(cuda)).tolist() == [2, 2, 2]
    assert (there * 2).device == cuda


def test_modules_move_and_learn_there(cuda: torch.device) -> None:
    module = torch.nn.Linear(3, 2)
    weight = module.weight
    module.to(cuda)
    assert module.weight is weight
    assert weight.device == cuda
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True, capturable=True)
    module(torch.ones(4, 3, device=cuda)).sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["step"].device == cuda


def test_what_the_host_waits_for_is_recorded(cuda: torch.device) -> None:
    value = torch.arange(3.0, device=cuda)
    with watch() as record:
        value.add(1).mul(2).clamp(min=0).sum()
        assert not record
        value.sum().item()
        value[value > 1]
        bool(value.isfinite().all())
        value.cpu()
        torch.zeros(3).to(cuda)
        torch.zeros(3).copy_(value)
        value * torch.tensor(2.0)
    counts = dict.fromkeys(("wait", "to host", "to device", "scalar"), 0)
    for (how, _, where), count in record.items():
        counts[how] += count
        assert where.startswith("tests/emulation/test_device.py:")
    assert counts == {"wait": 3, "to host": 2, "to device": 1, "scalar": 1}
