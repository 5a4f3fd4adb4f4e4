"""The whole step as one graph does what the step does."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch, make_losses
from tensordict import TensorDict
from torch import nn, optim
from torchrl.data import Bounded
from torchrl.objectives.utils import HardUpdate, SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.trainers import UpdateGraph

# The record is what is ours; PyTorch's compiler takes its time and has its own tests.
FAST = {"backend": "eager"}


LAST_BIAS = "encoder.module.4.bias"


def build(
    action_high: float = 1.0,
    smoothness: float = 0.0,
    ignores: Any = (),
    layer_norm: bool = False,
    **switches: Any,
) -> SimpleNamespace:
    torch.manual_seed(0)
    spec = Bounded(-1, action_high, (2,))
    parts = make_losses(action_spec=spec)
    if smoothness or layer_norm:
        options = {"policy_ignores": ignores, "layer_norm": layer_norm}
        networks = make_sac_networks(2, spec, parts.prior, num_cells=[16, 16], **options)
        parts.metra_loss = METRALoss(networks.encoder, parts.prior)
        parts.sac_loss = BatchedSACLoss(
            networks.actor, networks.critics, target_entropy=-1.0, smoothness=smoothness
        )
    parts.optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, lr=1e-2)
    parts.stepper = METRAOptimizationStepper(
        parts.metra_loss,
        parts.optimizers,
        target_net_updater=SoftUpdate(parts.sac_loss, eps=0.9),
        **switches,
    )
    parts.trainer = SimpleNamespace(loss_module=parts.sac_loss, replay_buffer=None)
    return parts


def run(parts: SimpleNamespace, num_steps: int, batch_size: int = 16) -> list[TensorDict]:
    torch.manual_seed(1)
    return [
        parts.stepper.step(parts.trainer, make_batch(parts.prior, batch_size))
        for _ in range(num_steps)
    ]


def assert_same(first: SimpleNamespace, second: SimpleNamespace, atol: float = 1e-5) -> None:
    for name in ("metra_loss", "sac_loss"):
        one, other = (getattr(parts, name).state_dict() for parts in (first, second))
        for key, value in one.items():
            # The bias of φ's last layer cancels in φ(s') - φ(s): its gradient is rounding, which
            # Adam turns into steps of the learning rate.
            if isinstance(value, torch.Tensor) and key != LAST_BIAS:
                torch.testing.assert_close(
                    other[key], value, rtol=1e-4, atol=atol, msg=lambda m, key=key: f"{key}: {m}"
                )


@pytest.mark.parametrize(
    "switches",
    [
        {"cudagraphs": True},
        {"compile": FAST, "autocast": torch.bfloat16, "smoothness": 1.0, "ignores": [0]},
        {"compile": FAST, "action_high": 3.0},
        {"compile": FAST, "layer_norm": True},
        {"compile": FAST, "autocast": torch.bfloat16, "layer_norm": True},
    ],
    ids=[
        "graphs",
        "compile+bfloat16+smooth",
        "compile+bounds",
        "compile+norm",
        "compile+bfloat16+norm",
    ],
)
@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA")
def test_same_training_as_without_graph(switches: dict[str, Any]) -> None:
    plain = build(**{k: v for k, v in switches.items() if k not in ("compile", "cudagraphs")})
    graph = build(**switches)
    for expected, actual in zip(run(plain, 8), run(graph, 8), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    assert ("action_step" in actual.keys()) == ("smoothness" in switches)
    # Rounding that Adam turns into a learning rate: see the parity tests.
    assert_same(plain, graph, atol=5e-3)


class CountingBackend:
    """Counts how often a graph is compiled, and runs it as it is."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.calls += 1
        return graph.forward


def weight_update(compile: dict[str, Any] | None = None, **keywords: Any) -> SimpleNamespace:
    """Adam on one weight, towards zero."""
    backend = CountingBackend()
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = optim.Adam([weight], fused=True, **keywords)

    def update(batch: TensorDict) -> TensorDict:
        loss = (weight * batch["x"]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return TensorDict({"loss": loss.detach()})

    graph = UpdateGraph(
        update, {"all": optimizer}, ["x", "absent"], compile=compile or {"backend": backend}
    )
    return SimpleNamespace(graph=graph, weight=weight, optimizer=optimizer, backend=backend)


def batch_of(size: int) -> TensorDict:
    return TensorDict({"x": torch.ones(size)}, batch_size=[size])


def test_one_graph_for_the_whole_update() -> None:
    parts = weight_update(lr=0.1)
    values = [parts.graph(batch_of(4))["loss"].item() for _ in range(6)]
    assert parts.backend.calls == 1
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert parts.optimizer.state[parts.weight]["step"] == 6


def test_a_batch_of_another_size_is_updated_all_the_same() -> None:
    parts = weight_update(lr=0.1)
    for size in (4, 4, 4, 3, 4):
        parts.graph(batch_of(size))
    assert parts.backend.calls == 1
    assert parts.optimizer.state[parts.weight]["step"] == 5


def test_a_tensor_learning_rate_can_be_scheduled() -> None:
    parts = weight_update(lr=torch.tensor(0.1))
    for _ in range(3):
        parts.graph(batch_of(4))
    parts.optimizer.param_groups[0]["lr"].fill_(0.0)
    before = parts.weight.item()
    parts.graph(batch_of(4))
    assert parts.weight.item() == before
    assert parts.backend.calls == 1


def test_a_changed_learning_rate_makes_a_new_graph() -> None:
    parts = weight_update(lr=0.1)
    for _ in range(3):
        parts.graph(batch_of(4))
    parts.optimizer.param_groups[0]["lr"] = 0.0
    with pytest.warns(UserWarning, match=r"made anew.*lr=torch\.tensor"):
        parts.graph(batch_of(4))
    before = parts.weight.item()
    parts.graph(batch_of(4))
    assert parts.weight.item() == before
    assert parts.backend.calls == 2


def test_a_learning_rate_in_another_tensor_makes_a_new_graph() -> None:
    parts = weight_update(lr=torch.tensor(0.1))
    for _ in range(3):
        parts.graph(batch_of(4))
    # As large as the one before, which the graph would go on to read.
    parts.optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.warns(UserWarning, match="made anew"):
        parts.graph(batch_of(4))
    parts.optimizer.param_groups[0]["lr"].fill_(0.0)
    before = parts.weight.item()
    parts.graph(batch_of(4))
    assert parts.weight.item() == before


class ReusedOutputs:
    """A compiler whose graphs write their outputs to the same memory each time, as CUDA's do."""

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        kept: list[torch.Tensor] = []

        def run(*values: Any) -> list[torch.Tensor]:
            outputs = graph.forward(*values)
            if not kept:
                kept.extend(output.clone() for output in outputs)
            return [old.copy_(new) for old, new in zip(kept, outputs, strict=True)]

        return run


def test_metrics_outlive_the_next_replay() -> None:
    options = {"backend": ReusedOutputs(), "mode": "reduce-overhead"}
    expected = [values["loss"].item() for values in run_weight(FAST)]
    assert [values["loss"].item() for values in run_weight(options)] == expected
    assert len(set(expected)) == len(expected)


def run_weight(options: dict[str, Any]) -> list[TensorDict]:
    parts = weight_update(lr=0.1, compile=options)
    return [parts.graph(batch_of(4)) for _ in range(5)]


def test_a_loaded_state_is_gone_on_with() -> None:
    plain, graph = build(), build(compile=FAST)
    for parts in (plain, graph):
        run(parts, 4)
        state = {name: value.state_dict() for name, value in parts.optimizers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts.stepper.load_state_dict(state)
            run(parts, 4)
    for name, optimizer in graph.optimizers.items():
        (state, *_) = optimizer.state.values()
        assert state["step"] == 8, name
    assert_same(plain, graph, atol=5e-3)


def test_priority_weights_reach_the_losses() -> None:
    metrics = []
    for switches in ({}, {"compile": FAST}):
        parts = build(**switches)
        for module in (parts.metra_loss, parts.sac_loss):
            module.use_prioritized_weights = True
        torch.manual_seed(2)
        batch = make_batch(parts.prior, 16)
        batch["priority_weight"] = torch.rand(16)
        for _ in range(3):
            last = parts.stepper.step(parts.trainer, batch)
        metrics.append(last["loss_encoder"])
    torch.testing.assert_close(*metrics, rtol=1e-3, atol=1e-4)


def test_only_soft_updates_become_part_of_the_step() -> None:
    parts = make_losses()
    optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
    with pytest.raises(TypeError, match="HardUpdate"):
        METRAOptimizationStepper(
            parts.metra_loss,
            optimizers,
            target_net_updater=HardUpdate(parts.sac_loss, value_network_update_interval=10),
        )
