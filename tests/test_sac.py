from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_metra import BatchedSACLoss, UnitSphere, make_pixel_sac_networks, make_sac_networks

PRIOR = UnitSphere(2)
KEYWORDS = {"loss_function": "l2", "alpha_init": 0.1, "target_entropy": -1.0}


def build(kind: type[SACLoss]) -> SACLoss:
    torch.manual_seed(0)
    networks = make_sac_networks(2, Bounded(-1, 1, (2,)), PRIOR, num_cells=[16, 16])
    return kind(networks.actor, networks.critics, **KEYWORDS)


@pytest.mark.parametrize("batch_size", [(32,), (4, 8)])
def test_same_numbers_as_sac_loss(batch_size: tuple[int, ...]) -> None:
    batch = make_batch(PRIOR, *batch_size)
    batch["next", "reward"] = torch.randn(*batch_size, 1)
    results = []
    for kind in (SACLoss, BatchedSACLoss):
        loss = build(kind)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        updater = SoftUpdate(loss, eps=0.9)
        torch.manual_seed(1)
        for _ in range(3):
            data = batch.clone()
            out = loss(data)
            (out["loss_actor"] + out["loss_qvalue"] + out["loss_alpha"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            updater.step()
        results.append((out.detach(), data["td_error"], loss.state_dict()))
    (out, error, state), (other_out, other_error, other_state) = results
    torch.testing.assert_close(other_out, out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_error, error, rtol=1e-4, atol=1e-5)
    assert state.keys() == other_state.keys()
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other_state[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [(6,), (2, 3)])
def test_same_numbers_as_sac_loss_from_pixels(batch_size: tuple[int, ...]) -> None:
    batch = make_batch(PRIOR, *batch_size)
    for entry in (batch, batch["next"]):
        entry["pixels"] = torch.randint(256, (*batch_size, 3, 32, 32), dtype=torch.uint8)
    results = []
    for kind, options in ((SACLoss, {"deactivate_vmap": True}), (BatchedSACLoss, {})):
        torch.manual_seed(0)
        networks = make_pixel_sac_networks(
            (3, 32, 32), Bounded(-1, 1, (2,)), PRIOR, num_cells=[16], channels=4
        )
        loss = kind(networks.actor, networks.critics, **KEYWORDS, **options)
        torch.manual_seed(1)
        out = loss(batch.clone())
        (out["loss_actor"] + out["loss_qvalue"]).backward()
        results.append((out.detach(), TensorDict.from_module(loss)["qvalue_network_params"]))
    (out, params), (other_out, other_params) = results
    torch.testing.assert_close(other_out, out, rtol=1e-4, atol=1e-5)
    for key, value in params.items(True, True):
        if isinstance(value, nn.Parameter):
            assert value.grad.abs().sum() > 0
            torch.testing.assert_close(other_params[key].grad, value.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_cells", [[16], [16, 12]], ids=str)
@pytest.mark.parametrize("pixels", [False, True], ids=["vectors", "pixels"])
def test_same_numbers_as_sac_loss_with_layer_norm(pixels: bool, num_cells: list[int]) -> None:
    # Convolutions compute in float32.
    batch = make_batch(PRIOR, 2, 3) if pixels else double(make_batch(PRIOR, 2, 3))
    for entry in (batch, batch["next"]):
        entry["pixels"] = torch.randint(256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    batch["next", "reward"] = torch.randn_like(batch["next", "reward"])
    results = []
    for kind, options in ((SACLoss, {"deactivate_vmap": True}), (BatchedSACLoss, {})):
        loss = build_with_layer_norm(kind, pixels, num_cells, **options)
        loss = loss if pixels else loss.double()
        torch.manual_seed(1)
        out = loss(batch.clone())
        (out["loss_actor"] + out["loss_qvalue"] + out["loss_alpha"]).backward()
        gradients = {
            name: weight.grad
            for name, weight in TensorDict.from_module(loss).items(True, True)
            if isinstance(weight, nn.Parameter)
        }
        results.append((out.detach().to_dict(), gradients))
    (out, gradients), (other_out, other_gradients) = results
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if pixels else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(other_out, out, **tolerance)
    torch.testing.assert_close(other_gradients, gradients, **tolerance)
    norms = [name for name in gradients if name[0] == "qvalue_network_params" and "1" in name]
    assert len(norms) == 2
    assert all(gradients[name].abs().sum() > 0 for name in norms)


def build_with_layer_norm(
    kind: type[SACLoss], pixels: bool = False, num_cells: Any = (16, 16), **options: Any
) -> SACLoss:
    """A loss whose norms have weights of their own."""
    torch.manual_seed(0)
    options, spec = {**KEYWORDS, **options}, Bounded(-1, 1, (2,))
    size = {"num_cells": num_cells, "layer_norm": True}
    if pixels:
        networks = make_pixel_sac_networks((3, 32, 32), spec, PRIOR, channels=4, **size)
    else:
        networks = make_sac_networks(2, spec, PRIOR, **size)
    for critic in networks.critics:
        for layer in critic.modules():
            if isinstance(layer, nn.LayerNorm):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    return kind(networks.actor, networks.critics, **options)


def double(batch: TensorDict) -> TensorDict:
    return batch.apply(lambda value: value.double() if value.is_floating_point() else value)


def test_layer_norm_is_part_of_the_state() -> None:
    one, other = (build_with_layer_norm(BatchedSACLoss) for _ in range(2))
    for weight in other.parameters():
        nn.init.zeros_(weight)
    other.load_state_dict(one.state_dict())
    # SAC's own names, so that it reads the state as well.
    assert build_with_layer_norm(SACLoss).state_dict().keys() == one.state_dict().keys()
    results = []
    for loss in (one, other):
        torch.manual_seed(1)
        results.append(loss(make_batch(PRIOR, 8)).to_dict())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_no_gradient_from_the_policy_into_the_critics() -> None:
    loss = build(BatchedSACLoss)
    loss(make_batch(PRIOR, 8))["loss_actor"].backward()
    assert all(p.grad is None for p in loss.qvalue_network_params.parameters())
    assert all(p.grad is not None for p in loss.actor_network_params.parameters())


class TestSmoothness:
    """The penalty on steps of the policy's actions."""

    weight = 0.3

    def build(self, smoothness: float, **options: Any) -> SimpleNamespace:
        torch.manual_seed(0)
        # Bounds of the action do not matter.
        spec = Bounded(torch.tensor([-3.0, 0.0]), torch.tensor([-1.0, 5.0]))
        networks = make_sac_networks(2, spec, PRIOR, num_cells=[16])
        loss = BatchedSACLoss(
            networks.actor.double(), [critic.double() for critic in networks.critics],
            smoothness=smoothness, **{**KEYWORDS, **options},
        )  # fmt: skip
        return SimpleNamespace(loss=loss.double(), actor=networks.actor, batch=self.batch())

    def batch(self, *batch_size: int) -> TensorDict:
        torch.manual_seed(1)
        batch = make_batch(PRIOR, *(batch_size or (8,)))
        for entry in (batch, batch["next"]):
            for key in ("observation", "skill"):
                entry[key] = entry[key].double()
        return batch

    def actor_loss(self, parts: SimpleNamespace) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(2)
        return parts.loss.actor_loss(parts.batch)

    def squared_steps(self, actor: nn.Module, batch: TensorDict) -> Tensor:
        """By hand, with the weights of a single layer and of the head."""
        network = actor.module[0].module
        actions = []
        for observation in (batch["observation"], batch["next", "observation"]):
            hidden = torch.cat([observation, batch["skill"]], dim=-1)
            hidden = (hidden @ network.network[0].weight.T + network.network[0].bias).tanh()
            linear = network.head.linear
            actions.append((hidden @ linear.weight[:2].T + linear.bias[:2]).tanh())
        return (actions[1] - actions[0]).square().sum(-1)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_value_and_gradient(self, reduction: str) -> None:
        options = {"reduction": reduction, "scalar_output_mode": "exclude"}
        options = options if reduction == "none" else {}
        plain, smooth = (self.build(weight, **options) for weight in (0.0, self.weight))
        (before, _), (after, metadata) = self.actor_loss(plain), self.actor_loss(smooth)
        steps = self.squared_steps(plain.actor, plain.batch)
        expected = self.weight * (steps if reduction == "none" else steps.mean())
        torch.testing.assert_close(after - before, expected)
        torch.testing.assert_close(metadata["action_step"], steps.mean().sqrt().detach())

        (before + expected).sum().backward()
        after.sum().backward()
        for loss in (plain.loss, smooth.loss):
            assert all(p.grad is None for p in loss.qvalue_network_params.parameters())
        gradients = [
            [p.grad for p in loss.actor_network_params.parameters()]
            for loss in (plain.loss, smooth.loss)
        ]
        # By hand, the gradient of the penalty goes to the very parameters of the policy.
        torch.testing.assert_close(*gradients)

    def test_priorities_weigh_it(self) -> None:
        plain, smooth = (self.build(weight) for weight in (0.0, self.weight))
        priority = torch.zeros(8, dtype=torch.float64)
        priority[3] = 8.0
        for parts in (plain, smooth):
            parts.batch["priority_weight"] = priority
        difference = self.actor_loss(smooth)[0] - self.actor_loss(plain)[0]
        expected = self.weight * self.squared_steps(plain.actor, plain.batch)[3]
        torch.testing.assert_close(difference, expected)

    @pytest.mark.parametrize("distribution", [TanhNormal, IndependentNormal])
    def test_a_stock_policy(self, distribution: type) -> None:
        network = TensorDictSequential(
            TensorDictModule(MLP(4, 4, num_cells=[8]), ["observation", "skill"], ["param"]),
            TensorDictModule(NormalParamExtractor(), ["param"], ["loc", "scale"]),
        )
        actor = ProbabilisticActor(
            network, in_keys=["loc", "scale"], distribution_class=distribution
        )
        critics = make_sac_networks(2, Bounded(-1, 1, (2,)), PRIOR, num_cells=[8]).critics
        batch = make_batch(PRIOR, 8)
        keys = set(batch.keys(True, True))
        loss = BatchedSACLoss(actor, critics, smoothness=1.0, **KEYWORDS)
        if distribution is not TanhNormal:
            with pytest.raises(ValueError, match="TanhNormal"):
                loss.actor_loss(batch)
            return
        step = loss.actor_loss(batch.copy())[1]["action_step"]
        locs = [copy.deepcopy(network)(end.copy())["loc"] for end in (batch, batch["next"])]
        expected = (locs[1].tanh() - locs[0].tanh()).square().sum(-1).mean().sqrt()
        torch.testing.assert_close(step, expected.detach())
        assert set(batch.keys(True, True)) == keys


@pytest.mark.parametrize(
    "network",
    [
        MLP(in_features=6, out_features=1, num_cells=[8], norm_class=nn.BatchNorm1d,
            norm_kwargs={"num_features": 8}),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm((8, 8)), nn.ReLU(), nn.Linear(8, 1)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 1)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.Linear(8, 1)),
        MLP(in_features=6, out_features=1, num_cells=[8], bias_last_layer=False),
        MLP(in_features=6, out_features=1, num_cells=[8], activation_class=nn.Softmax,
            activation_kwargs={"dim": -1}),
        nn.Bilinear(3, 3, 1),
    ],
    ids=[
        "other norm", "norm of matrices", "norm without weights", "norm without bias", "no bias",
        "not elementwise", "no sequence",
    ],
)  # fmt: skip
def test_other_critics_are_refused(network: nn.Module) -> None:
    actor = make_sac_networks(2, Bounded(-1, 1, (2,)), PRIOR, num_cells=[8]).actor
    critic = ValueOperator(network, in_keys=["observation", "skill", "action"])
    with pytest.raises(
        TypeError, match=r"linear layers with biases, of layer norm.*SACLoss takes others"
    ):
        BatchedSACLoss(actor, critic, **KEYWORDS)


@pytest.mark.parametrize("build_loss", [build, build_with_layer_norm], ids=["plain", "layer norm"])
def test_first_and_last_layers_stay_in_float32_under_autocast(build_loss: Any) -> None:
    loss = build_loss(BatchedSACLoss)
    batch = make_batch(PRIOR, 32)
    batch["observation"] += 1_000 * torch.tensor([1.0, -1.0])
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            values = loss.evaluate_critics(batch, loss.qvalue_network_params)
        results.append(values["state_action_value"])
    exact, mixed = results
    assert mixed.dtype == torch.float32
    assert not mixed.equal(exact)
    torch.testing.assert_close(mixed, exact, rtol=2e-2, atol=0.5)
