"""On a GPU: the step waits for nothing, and is the CPU's, however it is run.

Skipped where there is none; ``make gpu`` begins with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
import torch
from conftest import make_batch, needs_compiler
from tensordict import TensorDict, TensorDictBase
from test_skill_losses import BUILD, CONTINUOUS, encoder
from torch import Tensor, nn, optim
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    L2Distance,
    METRALoss,
    METRAOptimizationStepper,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.trainers import UpdateGraph, resume

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use"),
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable"),
]

GPU = torch.device("cuda", 0)
OBJECTIVES = {**BUILD, "L2": lambda prior, phi: METRALoss(phi, prior, distance=L2Distance())}
GRAPHS = {
    "compiled": {"compile": True},
    "cudagraphs": {"cudagraphs": True},
    "compiled+cudagraphs": {"compile": True, "cudagraphs": True},
}
# Without a graph; recorded; to warm up; captured; replayed, twice.
STEPS_TO_REPLAY = 7


@contextmanager
def waiting_refused() -> Iterator[None]:
    """An error where the host waits for the GPU, or copies what it would have to wait for."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def make_step(
    name: str = "METRA", device: torch.device | str = GPU, **switches: Any
) -> Callable[[], TensorDictBase]:
    """A step of an objective on a batch: of the same weights and numbers on each device."""
    torch.manual_seed(0)
    prior = CONTINUOUS.get(name, UnitSphere(2))
    skill_loss = OBJECTIVES[name](prior, encoder(prior).to(device)).to(device)
    size = skill_loss.cumulant_size
    networks = make_sac_networks(2, Bounded(-1, 1, (2,)), prior, num_cells=[32], value_size=size)
    networks = networks.to(device)
    batch = make_batch(prior, 64).to(device)
    if size > 1:
        sac_loss = SuccessorFeatureSACLoss(networks.actor, networks.critics, prior)
    else:
        sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    return step_on(lambda: batch, skill_loss, sac_loss.to(device), **switches)


def step_on(
    sample: Callable[[], TensorDictBase], skill_loss: Any, sac_loss: Any, **switches: Any
) -> Callable[[], TensorDictBase]:
    sac_loss.make_value_estimator(gamma=0.99)
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(
            skill_loss, sac_loss, lr=1e-3, shared_encoder=switches.get("shared_encoder")
        ),
        target_net_updater=SoftUpdate(sac_loss, eps=0.9),
        **switches,
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    return lambda: stepper.step(trainer, sample())


@functools.cache
def noise(shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same actions and the same skills are drawn on each device, and by each graph."""
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: noise(tuple(shape), device),
    )
    for kind in {type(prior) for prior in CONTINUOUS.values()}:
        monkeypatch.setattr(
            kind,
            "sample",
            lambda self, size, device="cpu", **_: noise((*size, self.dim), device),
        )


def assert_same_losses(
    step: Callable[[], Any], expected: Callable[[], Any], num_steps: int, **tolerance: float
) -> None:
    for _ in range(num_steps):
        metrics, others = step().cpu(), expected().cpu()
        names = [name for name in others.keys() if name.startswith("loss_")]
        torch.testing.assert_close(
            {name: metrics[name] for name in names},
            {name: others[name] for name in names},
            **tolerance,
        )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_for_nothing(name: str) -> None:
    step = make_step(name)
    step()  # Optimizers make their state.
    with waiting_refused():
        step()
        metrics = step()
    assert {value.device for value in metrics.values()} == {GPU}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_that_of_the_cpu(name: str, same_noise: None) -> None:
    assert_same_losses(make_step(name), make_step(name, "cpu"), 4, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("METRA", "cudagraphs"),
        ("CSF", "cudagraphs"),
        # PyTorch's compiler takes its time.
        pytest.param("METRA", "compiled", marks=needs_compiler),
        pytest.param("METRA", "compiled+cudagraphs", marks=needs_compiler),
    ],
)
def test_a_graph_does_what_the_step_does(name: str, graph: str, same_noise: None) -> None:
    step, plain = make_step(name, **GRAPHS[graph]), make_step(name)
    assert_same_losses(step, plain, STEPS_TO_REPLAY, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "switches",
    [{}, pytest.param(GRAPHS["compiled+cudagraphs"], marks=needs_compiler)],
    ids=["eager", "compiled+cudagraphs"],
)
def test_bfloat16_stays_close(switches: dict[str, Any], same_noise: None) -> None:
    step = make_step(autocast=torch.bfloat16, **switches)
    assert_same_losses(step, make_step(), STEPS_TO_REPLAY, rtol=5e-2, atol=1e-2)


def test_a_graph_draws_new_noise_at_each_replay() -> None:
    step = make_step(cudagraphs=True)
    entropies = [step()["entropy"].item() for _ in range(STEPS_TO_REPLAY + 2)]
    assert len(set(entropies[-3:])) == 3


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.filterwarnings("ignore:an optimizer has changed")
def test_a_graph_follows_a_scheduled_learning_rate(kind: Any, compile: bool) -> None:
    weight = nn.Parameter(torch.tensor(1.0, device=GPU))
    lr = 0.1 if kind is float else torch.tensor(0.1, device=GPU)
    optimizer = optim.Adam([weight], lr=lr, fused=True, capturable=True)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: float(epoch == 0))

    def update(batch: TensorDictBase) -> TensorDict:
        loss = (weight * batch["x"]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return TensorDict({"loss": loss.detach()})

    graph = UpdateGraph(update, {"all": optimizer}, ["x"], compile=compile, cudagraphs=True)
    batch = TensorDict({"x": torch.ones(4, device=GPU)}, [4])
    weights = []
    for epoch in (0, 1):
        for _ in range(STEPS_TO_REPLAY):
            graph(batch)
            weights.append(weight.item())
        if epoch == 0:
            scheduler.step()
    trained, kept = weights[:STEPS_TO_REPLAY], weights[STEPS_TO_REPLAY - 1 :]
    assert trained == sorted(set(trained), reverse=True), "each of the steps must move the weight"
    assert len(set(kept)) == 1


@pytest.mark.parametrize(
    ("shared_encoder", "features"), [(False, None), (True, None), ("critics", 8)]
)
def test_pixels_are_sampled_and_learned_from_without_waiting(
    shared_encoder: bool | str, features: int | None
) -> None:
    torch.manual_seed(0)
    prior, env = UnitSphere(2), make_env("point_pixels", num_envs=2)
    data = env.rollout(40).reshape(-1)
    data["skill"] = prior.sample(data.shape)
    buffer = ReplayBuffer(storage=FrameStackStorage(200, device=GPU), batch_size=16)
    buffer.extend(data)
    stored = buffer[:].cpu()
    for key in ("pixels", ("next", "pixels"), "action", "skill"):
        assert stored[key].equal(data[key]), key
    networks = make_pixel_sac_networks(
        (9, 64, 64),
        env.action_spec,
        prior,
        num_cells=[16],
        channels=4,
        features=features,
        shared_encoder=shared_encoder,
    ).to(GPU)
    step = step_on(
        buffer.sample,
        METRALoss(networks.encoder, prior).to(GPU),
        BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0).to(GPU),
        shared_encoder=networks.shared_encoder,
        autocast=torch.bfloat16,
    )
    step()
    with waiting_refused():
        step()
        metrics = step()
    assert all(value.isfinite().all() for value in metrics.values())


def test_states_are_sampled_without_waiting() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(100, device=GPU), batch_size=16)
    buffer.extend(make_batch(UnitSphere(2), 100))
    buffer.sample()
    with waiting_refused():
        batch = buffer.sample()
    assert {value.device for value in batch.values(True, True)} == {GPU}


def test_training_on_the_gpu_alone(tmp_path: Path) -> None:
    trainer = runs.make_trainer(tmp_path, device=GPU, switches={"cudagraphs": True})
    weights = [*trainer.skill_loss.parameters(), *trainer.loss_module.parameters()]
    before = [weight.detach().clone() for weight in weights]
    trainer.train()
    assert trainer.collected_frames == 800
    stored = trainer.replay_buffer[:]
    assert {value.device for value in [*stored.values(True, True), *weights]} == {GPU}
    for old, new in zip(before, weights, strict=True):
        assert new.isfinite().all()
        assert not new.equal(old)


@pytest.mark.parametrize("devices", [(GPU, "cpu", GPU), ("cpu", GPU, "cpu")], ids=str)
@pytest.mark.filterwarnings("ignore:an optimizer has changed")
def test_a_run_goes_on_on_the_other_device_and_back(tmp_path: Path, devices: Any) -> None:
    saved: dict[str, Any] = {}
    for number, device in enumerate(devices, start=1):
        switches = {"cudagraphs": device == GPU}
        trainer = runs.make_trainer(tmp_path, device=device, switches=switches)
        if saved:
            assert resume(trainer) is not None
            found = runs.state(trainer)
            # Of the device, not of the run.
            changed = {name for name in saved if saved[name] != found[name]}
            assert {name for name in changed if "capturable" not in name} == set()
        frames = 240 * number
        trainer.register_op("post_steps", functools.partial(stop_after, trainer, frames))
        trainer.train()
        assert trainer.collected_frames == frames
        saved = runs.state(trainer)
        on = {parameter.device.type for parameter in trainer.loss_module.parameters()}
        assert on == {torch.device(device).type}


def stop_after(trainer: Any, frames: int) -> None:
    if trainer.collected_frames >= frames:
        trainer.request_stop()
