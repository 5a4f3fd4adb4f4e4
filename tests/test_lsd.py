"""What spectral normalization makes of φ."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_batch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchrl.modules import MLP, ConvNet

from torchrl_metra import LSDLoss, UnitSphere

PRIOR = UnitSphere(2)


def wide_mlp() -> MLP:
    """Far from 1-Lipschitz as it is."""
    network = MLP(in_features=2, out_features=2, num_cells=[32, 32])
    for parameter in network.parameters():
        parameter.data *= 5
    return network


def norms(network: nn.Module) -> list[float]:
    """Largest singular values of the weights that are used."""
    network.eval()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    values = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in layers]
    network.train()
    return values


def stretch(network: nn.Module) -> Tensor:
    """How far φ moves apart what it maps."""
    first, second = torch.randn(2, 1_000, 2)
    with torch.no_grad():
        moved = network.eval()(first) - network(second)
    network.train()
    return moved.norm(dim=-1) / (first - second).norm(dim=-1)


def test_phi_is_lipschitz_from_the_start_and_stays_so() -> None:
    network = wide_mlp()
    assert stretch(network).max() > 3
    loss = LSDLoss(network, PRIOR)
    assert norms(network) == pytest.approx([1.0] * 3, rel=2e-2)
    assert stretch(network).max() <= 1.02
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(100):
        loss(make_batch(PRIOR, 64))["loss_encoder"].backward()
        optimizer.step()
        optimizer.zero_grad()
        assert norms(network) == pytest.approx([1.0] * 3, rel=1e-1)
    assert norms(network) == pytest.approx([1.0] * 3, rel=2e-2)
    assert stretch(network).max() <= 1.02


def test_learns_to_follow_skills_within_the_bound() -> None:
    loss = LSDLoss(nn.Sequential(nn.Linear(2, 2)), PRIOR)
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
    for _ in range(200):
        batch = make_batch(PRIOR, 64)
        batch["next", "observation"] = batch["observation"] + batch["skill"]
        out = loss(batch)
        out["loss_encoder"].backward()
        optimizer.step()
        optimizer.zero_grad()
    # Steps have length one, and so has what φ makes of them at the most.
    assert 0.75 < out["intrinsic_reward"] <= out["latent_step"] < 1.02


def test_convolutions_are_normalized_as_matrices() -> None:
    network = nn.Sequential(ConvNet(in_features=3, num_cells=[4], kernel_sizes=3), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 8, 8))
    LSDLoss(TensorDictModule(network, in_keys=["pixels"], out_keys=["latent"]), PRIOR)
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(
                1.0, rel=2e-2
            )


def test_own_parametrizations_are_kept() -> None:
    network = nn.Sequential(spectral_norm(nn.Linear(2, 8)), nn.Tanh(), nn.Linear(8, 2))
    before = network[0].parametrizations.weight[0]
    loss = LSDLoss(network, PRIOR)
    assert list(network[0].parametrizations.weight) == [before]
    assert len(network[2].parametrizations.weight) == 1
    # Nor is a network normalized twice that two losses share.
    LSDLoss(network, PRIOR)
    assert len(network[2].parametrizations.weight) == 1
    loss(make_batch(PRIOR, 4))["loss_encoder"].backward()


def test_two_iterations_a_call_in_training_and_none_in_evaluation() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    loss, batch = LSDLoss(network, PRIOR), make_batch(PRIOR, 4)
    original = network[0].parametrizations.weight.original
    original.data = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    vectors = network[0].parametrizations.weight[0]
    vectors._u.copy_(torch.tensor([1.0, 0.0]))
    expected, u = [], vectors._u.clone()
    for _ in range(2):
        v = original.T @ u / (original.T @ u).norm()
        u = original @ v / (original @ v).norm()
        expected.append((v @ (original.T @ u)).item())
    assert expected[0] < expected[1] < torch.linalg.matrix_norm(original, 2)
    start, end = loss.encode_pair(batch)
    bias = network[0].bias
    torch.testing.assert_close(start, batch["observation"] @ original.T / expected[0] + bias)
    torch.testing.assert_close(end, batch["next", "observation"] @ original.T / expected[1] + bias)
    network.eval()
    before = copy.deepcopy(loss.state_dict())
    assert loss.reward(batch).equal(loss.reward(batch))
    assert all(value.equal(before[key]) for key, value in loss.state_dict().items())


def test_nothing_to_normalize() -> None:
    with pytest.raises(ValueError, match=r"linear and convolutional layers.*Identity has none"):
        LSDLoss(nn.Identity(), PRIOR)
