from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch, make_losses
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import MLP

from torchrl_metra import METRALoss, OneHot, SkillPrior, StandardNormal, UnitSphere
from torchrl_metra.objectives import functional as F

PRIORS = [UnitSphere(2), StandardNormal(3), OneHot(4)]


def encoder(prior: SkillPrior) -> TensorDictModule:
    network = MLP(in_features=2, out_features=prior.dim, num_cells=[16])
    return TensorDictModule(network, in_keys=["observation"], out_keys=["latent"])


class TestFunctional:
    def test_reward_is_the_displacement_along_the_skill(self) -> None:
        reward = F.intrinsic_reward(
            torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 3.0]]), torch.tensor([[0.6, 0.8]])
        )
        torch.testing.assert_close(reward, torch.tensor([3.4]))

    @pytest.mark.parametrize(("norm", "expected"), [("l2", 25.0), ("rms", 12.5)])
    def test_norms(self, norm: Any, expected: float) -> None:
        step = F.squared_step(torch.zeros(2), torch.tensor([3.0, 4.0]), norm)
        assert step.item() == expected

    def test_constraint_is_limited_by_the_slack_and_passes_no_gradient_there(self) -> None:
        latent = torch.tensor([[0.1], [2.0]], requires_grad=True)
        constraint = F.temporal_constraint(torch.zeros(2, 1), latent, slack=0.01)
        torch.testing.assert_close(constraint, torch.tensor([0.01, -3.0]))
        constraint.sum().backward()
        assert latent.grad.tolist() == [[0.0], [-4.0]]

    def test_losses_keep_their_gradients_apart(self) -> None:
        reward, constraint = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
        log_dual = torch.tensor(1.0, requires_grad=True)
        F.encoder_loss(reward, constraint, log_dual.exp()).sum().backward()
        assert log_dual.grad is None
        torch.testing.assert_close(constraint.grad, -torch.ones(3) * torch.e)
        constraint.grad = None
        F.dual_loss(log_dual, constraint).mean().backward()
        assert constraint.grad is None
        assert log_dual.grad.item() == 1.0


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
class TestContract:
    """What TorchRL asks of every loss."""

    def test_out_keys_and_scalars(self, prior: SkillPrior) -> None:
        loss = METRALoss(encoder(prior), prior)
        out = loss(make_batch(prior, 8))
        assert set(out.keys()) == set(loss.out_keys)
        assert all(value.shape == () for value in out.values())
        for key in set(loss.out_keys) - {"loss_encoder", "loss_dual"}:
            assert not out[key].requires_grad, key

    def test_gradients_flow_only_where_they_should(self, prior: SkillPrior) -> None:
        loss = METRALoss(encoder(prior), prior)
        out = loss(make_batch(prior, 8))
        out["loss_encoder"].backward(retain_graph=True)
        assert all(p.grad is not None for p in loss.encoder_params.parameters())
        assert loss.log_dual.grad is None
        loss.zero_grad()
        out["loss_dual"].backward()
        assert all(p.grad is None for p in loss.encoder_params.parameters())
        assert loss.log_dual.grad is not None

    def test_dispatch_equals_tensordict(self, prior: SkillPrior) -> None:
        loss = METRALoss(encoder(prior), prior)
        batch = make_batch(prior, 8)
        values = loss(
            observation=batch["observation"],
            next_observation=batch["next", "observation"],
            skill=batch["skill"],
        )
        out = loss(batch)
        for key, value in zip(loss.out_keys, values, strict=True):
            torch.testing.assert_close(value, out[key])

    def test_select_out_keys(self, prior: SkillPrior) -> None:
        loss = METRALoss(encoder(prior), prior).select_out_keys("loss_dual")
        assert list(loss(make_batch(prior, 8)).keys()) == ["loss_dual"]

    def test_renamed_keys(self, prior: SkillPrior) -> None:
        network = encoder(prior)
        module = TensorDictModule(network.module, in_keys=[("state", "x")], out_keys=["phi"])
        renamed = METRALoss(module, prior)
        renamed.set_keys(skill=("task", "z"))
        assert set(renamed.in_keys) == {("state", "x"), ("next", "state", "x"), ("task", "z")}
        batch = make_batch(prior, 8)
        other = TensorDict(
            {
                "state": {"x": batch["observation"]},
                "task": {"z": batch["skill"]},
                "next": {"state": {"x": batch["next", "observation"]}},
            },
            [8],
        )
        expected = METRALoss(network, prior)(batch)
        torch.testing.assert_close(renamed(other)["loss_encoder"], expected["loss_encoder"])

    def test_reductions(self, prior: SkillPrior) -> None:
        network, batch = encoder(prior), make_batch(prior, 8)
        out = {
            name: METRALoss(network, prior, reduction=name)(batch)
            for name in ("none", "mean", "sum")
        }
        assert out["none"].batch_size == (8,)
        assert all(value.shape == (8,) for value in out["none"].values())
        for key in ("loss_encoder", "loss_dual"):
            torch.testing.assert_close(out["none"][key].mean(), out["mean"][key])
            torch.testing.assert_close(out["none"][key].sum(), out["sum"][key])
        torch.testing.assert_close(
            out["none"]["constraint_violation"].mean(), out["mean"]["constraint_violation"]
        )

    def test_state_dict_round_trip(self, prior: SkillPrior) -> None:
        loss, other = (
            METRALoss(encoder(prior), prior, dual_init=3.0),
            METRALoss(encoder(prior), prior),
        )
        batch = make_batch(prior, 8)
        assert not loss(batch)["loss_encoder"].isclose(other(batch)["loss_encoder"])
        other.load_state_dict(loss.state_dict())
        torch.testing.assert_close(loss(batch), other(batch))

    @pytest.mark.parametrize("batch_size", [(), (5,), (3, 4)])
    def test_any_batch_size(self, prior: SkillPrior, batch_size: tuple[int, ...]) -> None:
        loss = METRALoss(encoder(prior), prior)
        batch = make_batch(prior, 3, 4)
        flat = loss.reward(batch.reshape(-1))
        selected = {(): batch[0, 0], (5,): batch.reshape(-1)[:5], (3, 4): batch}[batch_size]
        reward = loss.reward(selected)
        assert reward.shape == (*batch_size, 1)
        torch.testing.assert_close(reward.reshape(-1, 1), flat[: reward.numel()])

    def test_deepcopy_is_independent(self, prior: SkillPrior) -> None:
        loss = METRALoss(encoder(prior), prior)
        clone = copy.deepcopy(loss)
        for parameter in clone.parameters():
            parameter.data.zero_()
        assert loss.log_dual.item() != 0
        assert any(p.abs().sum() > 0 for p in loss.encoder_params.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_to_one_graph(autocast: bool) -> None:
    prior = UnitSphere(2)
    loss, batch = METRALoss(encoder(prior), prior), make_batch(prior, 16)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected, actual = loss(batch), compiled(batch)
    assert all(value.dtype == torch.float32 for value in actual.values())
    torch.testing.assert_close(actual, expected)
    gradients = []
    for out in (expected, actual):
        loss.zero_grad()
        (out["loss_encoder"] + out["loss_dual"]).backward()
        gradients.append([p.grad.clone() for p in loss.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    compiled_reward = torch.compile(loss.reward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_reward(batch), loss.reward(batch))


def test_metrics_say_what_they_say() -> None:
    prior = UnitSphere(2)
    loss = METRALoss(nn.Identity(), prior, dual_init=7.0)
    batch = TensorDict(
        {
            "observation": torch.zeros(4, 2),
            "skill": torch.tensor([[1.0, 0.0]]).expand(4, 2),
            "next": {"observation": torch.tensor([[0.5, 0.0], [0.0, 0.5], [2.0, 0.0], [0.0, 0.0]])},
        },
        [4],
    )
    out = loss(batch)
    assert out["intrinsic_reward"].item() == pytest.approx(2.5 / 4)
    assert out["constraint"].item() == pytest.approx((3 * 1e-3 - 3.0) / 4)
    assert out["constraint_violation"].item() == 0.25
    assert out["latent_step"].item() == pytest.approx(3.0 / 4)
    assert out["dual"].item() == pytest.approx(7.0)
    assert out["loss_encoder"].item() == pytest.approx(
        -(2.5 / 4 + 7.0 * (3 * 1e-3 - 3.0) / 4), rel=1e-5
    )


def test_dual_variable_rises_while_the_constraint_is_violated_and_falls_else() -> None:
    prior = UnitSphere(2)
    for scale, rises in ((3.0, True), (0.1, False)):
        loss = METRALoss(nn.Identity(), prior)
        optimizer = torch.optim.SGD([loss.log_dual], lr=0.1)
        batch = make_batch(prior, 8)
        batch["next", "observation"] = batch["observation"] + scale
        loss(batch)["loss_dual"].backward()
        optimizer.step()
        assert bool(loss.dual > 30.0) == rises


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


def test_priority_weights_scale_the_losses() -> None:
    prior = UnitSphere(2)
    loss = METRALoss(encoder(prior), prior)
    batch = make_batch(prior, 8)
    reference = METRALoss(loss.encoder, prior, reduction="none")(batch)
    weights = torch.rand(8)
    out = loss(batch.set("priority_weight", weights))
    expected = (reference["loss_encoder"] * weights).sum() / weights.sum()
    torch.testing.assert_close(out["loss_encoder"], expected)


def test_plain_module_may_be_convolutional() -> None:
    prior = UnitSphere(2)
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 2), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 8, 8))
    loss = METRALoss(network, prior)
    images = TensorDict(
        {
            "observation": torch.rand(2, 5, 3, 8, 8),
            "skill": prior.sample([2, 5]),
            "next": {"observation": torch.rand(2, 5, 3, 8, 8)},
        },
        [2, 5],
    )
    assert loss.reward(images).shape == (2, 5, 1)


class TestBadInput:
    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"constraint_norm": "l1"}, r"constraint_norm 'l1'.*'l2', 'rms'"),
            ({"reduction": "median"}, r"reduction 'median'.*'mean', 'sum', 'none'"),
            ({"dual_init": 0.0}, r"dual_init.*positive, got 0\.0"),
            ({"dual_init": float("nan")}, r"dual_init.*positive, got nan"),
            ({"slack": -1e-3}, r"slack must not be negative, got -0\.001"),
        ],
    )
    def test_keywords(self, keywords: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            METRALoss(nn.Linear(2, 2), UnitSphere(2), **keywords)

    def test_arguments_of_the_wrong_type(self) -> None:
        with pytest.raises(TypeError, match=r"SkillPrior.*got int"):
            METRALoss(nn.Linear(2, 2), 2)
        with pytest.raises(TypeError, match=r"nn.Module.*got function"):
            METRALoss(lambda x: x, UnitSphere(2))

    def test_wrong_skill_size(self, losses: SimpleNamespace, batch: TensorDict) -> None:
        batch["skill"] = torch.zeros(32, 3)
        with pytest.raises(ValueError, match=r"\[\.\.\., 2\].*\[32, 3\]"):
            losses.metra_loss(batch)

    def test_wrong_latent_size(self, batch: TensorDict) -> None:
        loss = METRALoss(nn.Linear(2, 5), UnitSphere(2))
        with pytest.raises(ValueError, match=r"2 dimensions of UnitSphere\(2\).*\[64, 5\]"):
            loss(batch)

    def test_missing_skill(self, losses: SimpleNamespace, batch: TensorDict) -> None:
        with pytest.raises(KeyError, match=r"needs .*skill.*SkillPrimer"):
            losses.metra_loss(batch.exclude("skill"))

    def test_missing_observation(self, losses: SimpleNamespace, batch: TensorDict) -> None:
        with pytest.raises(KeyError, match=r"needs .*observation.*in_keys"):
            losses.metra_loss(batch.exclude("observation"))

    def test_nan_observations(self, losses: SimpleNamespace, batch: TensorDict) -> None:
        batch["observation"][3] = float("nan")
        with pytest.raises(ValueError, match=r"not finite.*NaN"):
            losses.metra_loss(batch)


def test_distinct_losses_may_share_networks() -> None:
    """The encoder of the loss is the module that was passed in, not a copy."""
    parts = make_losses(OneHot(3))
    optimizer = torch.optim.SGD(parts.metra_loss.encoder_params.parameters(), lr=0.1)
    batch = make_batch(parts.prior, 8)
    before = parts.networks.encoder(batch.copy())["latent"].clone()
    parts.metra_loss(batch)["loss_encoder"].backward()
    optimizer.step()
    assert not parts.networks.encoder(batch.copy())["latent"].allclose(before)
