from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import make_batch
from tensordict import TensorDict
from torch import nn

from torchrl_metra import METRALoss, UnitSphere
from torchrl_metra.objectives.functional import effective_rank


class TestEquations:
    """By hand, with an encoder that returns the observation: one step of (3, 4), one of (.1, 0)."""

    steps = torch.tensor([[3.0, 4.0], [0.1, 0.0]], dtype=torch.float64)

    def make(self, **keywords: Any) -> tuple[METRALoss, TensorDict]:
        encoder = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        nn.init.eye_(encoder.weight)
        loss = METRALoss(encoder, UnitSphere(2), reduction="none", slack=0.01, **keywords)
        skill = torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
        following = {"observation": 1 + self.steps}
        entries = {"observation": torch.ones_like(self.steps), "skill": skill, "next": following}
        return loss, TensorDict(entries, [2])

    @pytest.mark.parametrize(("norm", "violation"), [("l2", 24.0), ("rms", 11.5)])
    def test_losses(self, norm: Any, violation: float) -> None:
        loss, batch = self.make(constraint_norm=norm, dual_init=2.0)
        out = loss(batch)
        expected = {
            "intrinsic_reward": [5.0, 0.0],
            "constraint": [-violation, 0.01],
            "constraint_violation": [1.0, 0.0],
            "latent_step": [5.0, 0.1],
            "loss_encoder": [-5.0 + 2 * violation, -0.02],
            "loss_dual": [-violation * math.log(2), 0.01 * math.log(2)],
        }
        for key, values in expected.items():
            values = torch.tensor(values, dtype=torch.float64)
            torch.testing.assert_close(out[key].double(), values, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(loss.reward(batch).squeeze(-1), out["intrinsic_reward"])

    def test_a_satisfied_pair_has_the_reward_only(self) -> None:
        loss, batch = self.make()
        loss(batch[1:])["loss_encoder"].sum().backward()
        # d(-stepᵀz) / dW = -z stepᵀ
        expected = -torch.outer(batch["skill"][1], self.steps[1])
        torch.testing.assert_close(loss.encoder.module.weight.grad, expected)

    def test_losses_keep_their_gradients_apart(self) -> None:
        loss, batch = self.make()
        loss(batch)["loss_encoder"].sum().backward()
        assert loss.log_dual.grad is None
        loss.encoder.zero_grad()
        out = loss(batch)
        out["loss_dual"].sum().backward()
        assert loss.encoder.module.weight.grad is None
        # With respect to log λ itself.
        torch.testing.assert_close(loss.log_dual.grad.double(), out["constraint"].sum())


def test_effective_rank() -> None:
    # By its definition: singular values of 3, 1 and 1 here, whatever the scale.
    basis = torch.linalg.qr(torch.randn(20, 3, dtype=torch.float64)).Q
    steps = basis * torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        torch.testing.assert_close(effective_rank(scale * steps).item(), 11**2 / 83)
    assert effective_rank(torch.zeros(4, 2)).item() == 0


def test_fixed_dual_is_no_parameter() -> None:
    loss = METRALoss(nn.Linear(2, 2), UnitSphere(2), dual_init=5.0, fixed_dual=True)
    assert "log_dual" not in dict(loss.named_parameters())
    assert loss.dual.item() == pytest.approx(5.0)
    assert "log_dual" in loss.state_dict()
    assert not loss(make_batch(UnitSphere(2), 4))["loss_dual"].requires_grad


def test_pluggable_distance() -> None:
    prior = UnitSphere(2)

    def squared_distance(tensordict: TensorDict) -> torch.Tensor:
        return (tensordict["next", "observation"] - tensordict["observation"]).square().sum(-1)

    loss = METRALoss(nn.Identity(), prior, distance=squared_distance)
    # The identity moves exactly by that distance: the constraint is tight everywhere.
    out = loss(make_batch(prior, 8))
    torch.testing.assert_close(out["constraint"], torch.tensor(0.0), atol=1e-5, rtol=0)
