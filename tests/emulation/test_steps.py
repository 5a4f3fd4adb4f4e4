"""A gradient step of each objective on the device: nothing is mixed, read or copied."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    CICLoss,
    ControllabilityDistance,
    CSDLoss,
    CSFLoss,
    DADSLoss,
    DIAYNLoss,
    L2Distance,
    LSDLoss,
    METRALoss,
    METRAOptimizationStepper,
    OneHot,
    RNDBaseline,
    SkillLoss,
    SkillPrior,
    StandardNormal,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.modules.networks import make_encoder

from .device import watch

SIZE, ACTIONS, BATCH = 5, 3, 32


def batch(device: torch.device | str, prior: SkillPrior, pixels: bool = False) -> TensorDict:
    """Random transitions, drawn on the CPU: the same on all devices."""

    def observe() -> dict[str, torch.Tensor]:
        if pixels:
            return {"pixels": torch.randint(256, (BATCH, 9, 32, 32), dtype=torch.uint8)}
        return {"observation": torch.randn(BATCH, SIZE)}

    flag = torch.zeros(BATCH, 1, dtype=torch.bool)
    return TensorDict(
        {
            **observe(),
            "skill": prior.sample([BATCH]),
            "action": torch.rand(BATCH, ACTIONS) * 2 - 1,
            "next": {**observe(), "done": flag, "terminated": flag.clone()},
        },
        [BATCH],
    ).to(device)


def network(in_features: int, out_features: int) -> nn.Module:
    return make_encoder(in_features, out_features, [16])


# From encoder, prior and where to put what comes besides.
LOSSES: dict[str, Callable[[nn.Module, SkillPrior, Any], SkillLoss]] = {
    "metra": lambda phi, prior, d: METRALoss(phi, prior),
    "l2": lambda phi, prior, d: METRALoss(phi, prior, distance=L2Distance()),
    "csd": lambda phi, prior, d: CSDLoss(
        phi, prior, ControllabilityDistance(network(SIZE, SIZE).to(d), network(SIZE, SIZE).to(d))
    ),
    "lsd": lambda phi, prior, d: LSDLoss(phi, prior),
    "diayn": lambda phi, prior, d: DIAYNLoss(phi, prior),
    "diayn_scale": lambda phi, prior, d: DIAYNLoss(phi, prior, log_std=network(SIZE, 2).to(d)),
    "dads": lambda phi, prior, d: DADSLoss(network(SIZE + 2, SIZE).to(d), prior, SIZE),
    "cic": lambda phi, prior, d: CICLoss(
        phi, prior, network(2, 2).to(d), network(4, 2).to(d), num_neighbors=4
    ),
    "csf": lambda phi, prior, d: CSFLoss(phi, prior),
    "rnd": lambda phi, prior, d: RNDBaseline(
        network(SIZE, 4).to(d), network(SIZE, 4).to(d), prior, SIZE
    ),
}


def build(
    objective: str, device: Any, prior: SkillPrior | None = None, **switches: Any
) -> SimpleNamespace:
    """What a step is made of, of networks that are on the device already."""
    prior = prior or UnitSphere(2)
    torch.manual_seed(0)
    spec = Bounded(-1, 1, (ACTIONS,))
    options = {"value_size": prior.dim} if objective == "csf" else {}
    networks = make_sac_networks(SIZE, spec, prior, num_cells=[16], **options).to(device)
    skill_loss = LOSSES[objective](networks.encoder, prior, device)
    kind = switches.pop("sac", BatchedSACLoss)
    if objective == "csf":
        sac_loss = SuccessorFeatureSACLoss(networks.actor, networks.critics, prior)
    else:
        sac_loss = kind(networks.actor, networks.critics, target_entropy=-1.5)
    return parts(prior, networks, skill_loss, sac_loss, **switches)


def parts(
    prior: SkillPrior, networks: Any, skill_loss: SkillLoss, sac_loss: SACLoss, **switches: Any
) -> SimpleNamespace:
    sac_loss.make_value_estimator(gamma=0.99)
    eyes = switches.get("shared_encoder")
    optimizers = make_metra_optimizers(skill_loss, sac_loss, shared_encoder=eyes)
    stepper = METRAOptimizationStepper(
        skill_loss, optimizers, target_net_updater=SoftUpdate(sac_loss, eps=0.995), **switches
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    return SimpleNamespace(**locals())


def steps(built: SimpleNamespace, device: Any, pixels: bool = False) -> Any:
    """Three steps; what was seen in the last two, and the last metrics."""
    torch.manual_seed(1)
    for _ in range(3):
        data = batch(device, built.prior, pixels)
        # The optimizers make their state in the first step.
        with watch() as record:
            metrics = built.stepper.step(built.trainer, data)
        if built.stepper.optimizers["actor"].state:
            last = record
    return last, metrics


CASES: dict[str, dict[str, Any]] = {
    **{name: {"objective": name} for name in LOSSES},
    "discrete": {"objective": "metra", "prior": OneHot(2)},
    "normal": {"objective": "dads", "prior": StandardNormal(2)},
    "stock_sac": {"objective": "metra", "sac": SACLoss},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_stays_on_the_device(cuda: torch.device, case: str) -> None:
    record, metrics = steps(build(**CASES[case], device=cuda), cuda)
    assert not record
    assert {value.device for value in metrics.values()} == {cuda}
    expected = steps(build(**CASES[case], device="cpu"), "cpu")[1]
    assert metrics.cpu().to_dict() == expected.to_dict()


@pytest.mark.parametrize(("shared", "features"), [(False, None), (True, None), ("critics", 8)])
def test_a_step_from_pixels_stays_on_the_device(
    cuda: torch.device, shared: bool | str, features: int | None
) -> None:
    prior = UnitSphere(2)
    networks = make_pixel_sac_networks(
        (9, 32, 32),
        Bounded(-1, 1, (ACTIONS,)),
        prior,
        num_cells=[16],
        channels=2,
        features=features,
        shared_encoder=shared,
    ).to(cuda)
    sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.5)
    skill_loss = METRALoss(networks.encoder, prior)
    built = parts(prior, networks, skill_loss, sac_loss, shared_encoder=networks.shared_encoder)
    record, metrics = steps(built, cuda, pixels=True)
    assert not record
    assert {value.device for value in metrics.values()} == {cuda}


def test_priorities_stay_on_the_device(cuda: torch.device) -> None:
    built = build("metra", cuda)
    for loss in (built.skill_loss, built.sac_loss):
        loss.use_prioritized_weights = True
    data = batch(cuda, built.prior)
    data["priority_weight"] = torch.rand(BATCH).to(cuda)
    built.stepper.update(built.sac_loss, data)
    with watch() as record:
        metrics = built.stepper.update(built.sac_loss, data)
    assert not record
    assert metrics["td_error"].device == cuda


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (lambda: torch.ones(BATCH), None),
        (lambda: torch.ones(BATCH, device="cuda").sum().item(), "wait"),
        (lambda: torch.tensor(1.0), "scalar"),
        (lambda: torch.ones(BATCH).to("cuda"), "to device"),
    ],
    ids=["mixed", "read", "scalar", "copy"],
)
def test_planted_faults_are_found(
    cuda: torch.device, fault: Callable[[], Any], found: str | None
) -> None:
    class Faulty(METRALoss):
        def compute(self, tensordict: TensorDict) -> dict[str, torch.Tensor]:
            entries = super().compute(tensordict)
            return entries | {"loss_encoder": entries["loss_encoder"] * fault()}

    built = build("metra", cuda)
    loss = Faulty(built.networks.encoder, built.prior)
    data = batch(cuda, built.prior)
    with watch() as record:
        if found is None:
            with pytest.raises(RuntimeError, match="same device"):
                loss(data)
        else:
            loss(data)
            assert [how for how, _, _ in record] == [found]
