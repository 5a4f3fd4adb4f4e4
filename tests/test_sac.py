from __future__ import annotations

import pytest
import torch
from conftest import make_batch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ValueOperator
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


def test_no_gradient_from_the_policy_into_the_critics() -> None:
    loss = build(BatchedSACLoss)
    loss(make_batch(PRIOR, 8))["loss_actor"].backward()
    assert all(p.grad is None for p in loss.qvalue_network_params.parameters())
    assert all(p.grad is not None for p in loss.actor_network_params.parameters())


@pytest.mark.parametrize(
    "network",
    [
        MLP(in_features=6, out_features=1, num_cells=[8], norm_class=nn.LayerNorm,
            norm_kwargs={"normalized_shape": 8}),
        MLP(in_features=6, out_features=1, num_cells=[8], bias_last_layer=False),
        MLP(in_features=6, out_features=1, num_cells=[8], activation_class=nn.Softmax,
            activation_kwargs={"dim": -1}),
        nn.Bilinear(3, 3, 1),
    ],
    ids=["norm", "no bias", "not elementwise", "no sequence"],
)  # fmt: skip
def test_other_critics_are_refused(network: nn.Module) -> None:
    actor = make_sac_networks(2, Bounded(-1, 1, (2,)), PRIOR, num_cells=[8]).actor
    critic = ValueOperator(network, in_keys=["observation", "skill", "action"])
    with pytest.raises(
        TypeError, match=r"linear layers with biases and of elementwise.*SACLoss takes others"
    ):
        BatchedSACLoss(actor, critic, **KEYWORDS)


def test_first_and_last_layers_stay_in_float32_under_autocast() -> None:
    loss = build(BatchedSACLoss)
    batch = make_batch(PRIOR, 32)
    batch["observation"] += 1_000 * torch.tensor([1.0, -1.0])
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            values = loss._vmap_qnetworkN0(batch, loss.qvalue_network_params)
        results.append(values["state_action_value"])
    exact, mixed = results
    assert mixed.dtype == torch.float32
    assert not mixed.equal(exact)
    torch.testing.assert_close(mixed, exact, rtol=2e-2, atol=0.5)
