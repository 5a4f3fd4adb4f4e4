from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_batch, make_losses
from tensordict import TensorDict
from torch import nn, optim

from torchrl_metra import (
    ControllabilityDistance,
    CSDLoss,
    L2Distance,
    METRALoss,
    UnitSphere,
    make_metra_optimizers,
)
from torchrl_metra.trainers.stepper import step_skill_loss


class Constant(nn.Module):
    """The same row for every state."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.values.expand_as(observation)


def transitions(*steps: tuple[float, float]) -> TensorDict:
    """Transitions from (1, 2) by the given steps."""
    start = torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(len(steps), 2)
    following = start + torch.tensor(steps, dtype=torch.float64)
    return TensorDict(
        {"observation": start, "next": {"observation": following}}, batch_size=[len(steps)]
    )


def csd(num_cells: int = 16) -> ControllabilityDistance:
    return ControllabilityDistance.from_size(2, num_cells=[num_cells])


class TestL2:
    def test_values(self) -> None:
        distance = L2Distance()(transitions((3.0, 4.0), (0.0, 0.0), (0.0, -2.0)))
        assert distance.tolist() == [12.5, 0.0, 2.0]

    def test_other_key(self) -> None:
        batch = make_batch(UnitSphere(2), 3)
        batch["body", "pose"], batch["next", "body", "pose"] = torch.zeros(3, 1), torch.ones(3, 1)
        distance = L2Distance(observation_key=("body", "pose"))
        assert distance(batch).tolist() == [1.0, 1.0, 1.0]
        # What the distance reads is kept in the replay buffer and handed to graphs.
        loss = METRALoss(nn.Identity(), UnitSphere(2), distance=distance)
        assert loss.in_keys == [
            "observation",
            ("next", "observation"),
            "skill",
            ("body", "pose"),
            ("next", "body", "pose"),
        ]


class TestControllability:
    def test_values(self) -> None:
        distance = ControllabilityDistance(
            Constant(1.0, -1.0), Constant(math.log(2.0), math.log(0.5))
        )
        batch = transitions((1.0, -1.0), (3.0, -1.0), (1.0, 0.0))
        # w = (1/2, 2), whose geometric mean is 1.
        expected = torch.tensor([0.0, (0.5 * 2) ** 2 / 2, (2 * 1) ** 2 / 2], dtype=torch.float64)
        torch.testing.assert_close(distance(batch), expected)
        # Twice the spread in both directions is no other distance, but other odds.
        wide = ControllabilityDistance(Constant(1.0, -1.0), Constant(math.log(4.0), 0.0))
        torch.testing.assert_close(wide(batch), expected)
        normal = torch.distributions.Normal(
            torch.tensor([1.0, -1.0], dtype=torch.float64),
            torch.tensor([2.0, 0.5], dtype=torch.float64),
        )
        step = batch["next", "observation"] - batch["observation"]
        torch.testing.assert_close(distance.loss(batch), -normal.log_prob(step).sum(-1))

    def test_spread_is_bounded(self) -> None:
        batch = transitions((1.0, 1.0))
        for log_std, bound in ((-50.0, 1e-6), (50.0, 1e6)):
            distance = ControllabilityDistance(Constant(1.0, 1.0), Constant(log_std, log_std))
            expected = 2 * (math.log(bound) + 0.5 * math.log(2 * math.pi))
            assert distance.loss(batch).item() == pytest.approx(expected)
            assert distance(batch).item() == 0.0

    def test_the_predictor_learns(self) -> None:
        """A drift along x that differs in width: expected steps count little, odd ones much."""
        distance = csd(32)
        optimizer = optim.Adam(distance.parameters(), lr=1e-2)
        start = torch.rand(512, 2)
        noise = torch.randn(512, 2) * torch.tensor([0.5, 0.05])
        batch = TensorDict(
            {"observation": start, "next": {"observation": start + 1.0 + noise}}, [512]
        )
        before = distance.loss(batch).mean().item()
        for _ in range(400):
            optimizer.zero_grad()
            distance.loss(batch).mean().backward()
            optimizer.step()
        best = sum(0.5 * math.log(2 * math.pi * math.e * s**2) for s in (0.5, 0.05))
        after = distance.loss(batch).mean().item()
        assert best - 0.2 < after < best + 0.2 < before
        odd = batch.clone()
        odd["next", "observation"][:, 1] += 0.5
        assert distance(odd).mean() > 30 * distance(batch).mean()


class TestInMETRALoss:
    def losses(self) -> SimpleNamespace:
        return make_losses(distance=csd())

    @pytest.mark.parametrize("autocast", [False, True])
    def test_gradients_flow_only_where_they_should(self, autocast: bool) -> None:
        loss = METRALoss(nn.Linear(2, 2), UnitSphere(2), distance=csd())
        loss.distance.mean[0] = nn.Linear(2, 16)  # whose weights autocast casts, and keeps
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = loss(make_batch(loss.prior, 8))
        predictor = list(loss.distance.parameters())
        (out["loss_encoder"] + out["loss_dual"]).backward(retain_graph=True)
        assert all(p.grad is None for p in predictor)
        loss.zero_grad()
        out["loss_distance"].backward()
        assert all(p.grad is not None for p in predictor)
        assert all(p.grad is None for p in loss.encoder.parameters())
        assert loss.log_dual.grad is None

    def test_the_distance_bounds_the_step(self) -> None:
        prior = UnitSphere(2)
        distance = ControllabilityDistance(Constant(0.0, 0.0), Constant(0.0, 0.0))
        loss = METRALoss(nn.Identity(), prior, distance=distance, constraint_norm="rms")
        # Without weights nor prediction it is l2, by which the identity moves exactly.
        batch = make_batch(prior, 8).double()
        torch.testing.assert_close(loss(batch)["constraint"].item(), 0.0, atol=1e-12, rtol=0)

    def test_csd_is_metra_with_this_distance(self) -> None:
        encoder, distance, prior = nn.Linear(2, 2), csd(), UnitSphere(2)
        losses = (
            CSDLoss(encoder, prior, distance, slack=0.1, dual_init=3.0),
            METRALoss(encoder, prior, distance=distance, slack=0.1, dual_init=3.0),
        )
        batch = make_batch(prior, 8)
        torch.testing.assert_close(*[loss(batch) for loss in losses])

    def test_optimizers(self) -> None:
        parts = self.losses()
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss, distance=3e-3)
        group = optimizers["distance"].param_groups[0]
        assert group["lr"] == 3e-3
        assert group["params"] == list(parts.metra_loss.distance.parameters())
        for distance in (None, L2Distance()):
            parts = make_losses(distance=distance)
            assert "distance" not in make_metra_optimizers(parts.metra_loss, parts.sac_loss)

    @pytest.mark.parametrize("is_trained", [True, False])
    def test_step_of_the_encoder(self, is_trained: bool) -> None:
        parts = self.losses()
        optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
        if not is_trained:
            del optimizers["distance"]
        before = [p.clone() for p in parts.metra_loss.distance.parameters()]
        step_skill_loss(parts.metra_loss(make_batch(parts.prior, 16)), optimizers)
        after = list(parts.metra_loss.distance.parameters())
        assert all(a.equal(b) != is_trained for a, b in zip(before, after, strict=True))
        assert all(p.grad is None for p in parts.metra_loss.parameters())


class TestBadInput:
    def test_distance_of_the_wrong_shape(self) -> None:
        loss = METRALoss(
            nn.Linear(2, 2), UnitSphere(2), distance=lambda batch: torch.ones(len(batch), 1)
        )
        with pytest.raises(ValueError, match=r"shape \[8\], got \[8, 1\]"):
            loss(make_batch(loss.prior, 8))

    @pytest.mark.parametrize("distance", [L2Distance(), csd()])
    def test_pictures(self, distance: L2Distance | ControllabilityDistance) -> None:
        batch = make_batch(UnitSphere(2), 8)
        batch["observation"] = torch.zeros(8, 3, dtype=torch.uint8)
        with pytest.raises(TypeError, match=r"'observation' is torch\.uint8.*observation_key"):
            distance(batch)
