"""CIC against its formulas, computed transition by transition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_metra import CICLoss, OneHot, UnitSphere


def transitions(count: int, prior: UnitSphere | OneHot) -> TensorDict:
    observation, following = torch.randn(2, count, 3, dtype=torch.float64)
    skill = prior.sample([count]).double()
    return TensorDict(
        {"observation": observation, "skill": skill, "next": {"observation": following}}, [count]
    )


def networks(dim: int) -> list[nn.Module]:
    return [nn.Linear(*size).double() for size in ((3, dim), (dim, 4), (2 * dim, 4))]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


@pytest.mark.parametrize("prior", [UnitSphere(2), OneHot(4)], ids=repr)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_values(prior: UnitSphere | OneHot, temperature: float) -> None:
    phi, query, key = networks(prior.dim)
    loss = CICLoss(phi, prior, query, key, temperature=temperature, num_neighbors=2)
    loss.reduction = "none"
    batch = transitions(5, prior)
    out = loss(batch)

    start, end = phi(batch["observation"]), phi(batch["next", "observation"])
    queries = [unit(query(batch["skill"][i])) for i in range(5)]
    keys = [unit(key(torch.cat([start[i], end[i]]))) for i in range(5)]
    losses, own, nearest = [], [], []
    for i in range(5):
        scores = [math.exp((queries[i] @ keys[j]).item() / temperature) for j in range(5)]
        others = max(sum(scores) - math.exp(1 / temperature), 1e-6) + 1e-6
        losses.append(-math.log(scores[i] / others))
        own.append(float(scores[i] == max(scores)))
        nearest.append(sorted((start[i] - end[j]).norm().item() for j in range(5))[:2])
    distances = torch.tensor(nearest, dtype=torch.float64)

    def close(actual: Tensor, expected: object) -> None:
        expected = torch.as_tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-5, atol=1e-7)

    close(out["loss_encoder"], losses)
    close(out["query_accuracy"], own)
    close(out["neighbor_distance"], distances.mean(dim=1))

    # Statistics start as 1e-4 values of mean 0 and variance 1.
    variance = (
        1e-4
        + 10 * distances.var(unbiased=False)
        + distances.mean().square() * 1e-4 * 10 / (10 + 1e-4)
    ) / (10 + 1e-4)
    scaled = distances / variance.sqrt()
    rewards = ((scaled - 5e-4).clamp(min=0).mean(dim=1) + 1).log()
    close(out["intrinsic_reward"], rewards)
    before = copy.deepcopy(loss.state_dict())
    close(loss.reward(batch).squeeze(-1), rewards)
    assert all(value.equal(before[name]) for name, value in loss.state_dict().items())


def test_no_reward_for_staying_together() -> None:
    """Distances below the floor of 5e-4 count as none."""
    loss = CICLoss(nn.Identity(), UnitSphere(2), nn.Identity(), nn.Linear(4, 2), num_neighbors=2)
    batch = TensorDict({"skill": UnitSphere(2).sample([3]), "observation": torch.ones(3, 2)}, [3])
    batch["next", "observation"] = batch["observation"] + 1e-5
    assert loss.reward(batch).tolist() == [[0.0]] * 3
    batch["next", "observation"] = batch["observation"] + torch.tensor([3.0, 4.0])
    # Statistics as at the start: a standard deviation of one.
    expected = torch.full((3, 1), math.log(1 + 5.0 - 5e-4))
    torch.testing.assert_close(loss.reward(batch), expected)


def test_loss_of_the_only_transition() -> None:
    """Nothing to tell it from: the guards of the logarithm are left."""
    key = nn.Linear(4, 2, bias=False).double()
    key.weight.data = torch.tensor([[-1.0, 0, 1, 0], [0, -1, 0, 1]], dtype=torch.float64)
    loss = CICLoss(nn.Identity(), UnitSphere(2), nn.Identity(), key, num_neighbors=1)
    skill = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    batch = TensorDict(
        {"observation": skill, "skill": skill, "next": {"observation": 3 * skill}}, [1]
    )
    out = loss(batch)
    assert out["loss_encoder"].item() == pytest.approx(math.log(2e-6) - 2)
    assert out["query_accuracy"].item() == 1.0


def test_learns_to_tell_skills_apart() -> None:
    """Where steps follow the skill, the key nearest to a query is that of nearly its skill."""
    prior = UnitSphere(2)
    phi, query, key = (nn.Linear(*size) for size in ((2, 2), (2, 8), (4, 8)))
    loss = CICLoss(phi, prior, query, key)
    optimizer = torch.optim.Adam(loss.parameter_groups()["encoder"], lr=1e-2)
    for _ in range(200):
        skill, observation = prior.sample([256]), torch.randn(256, 2)
        following = observation + skill
        batch = TensorDict({"skill": skill, "observation": observation}, [256])
        out = loss(batch.set(("next", "observation"), following))
        optimizer.zero_grad()
        out["loss_encoder"].backward()
        optimizer.step()
    keys = key(torch.cat([phi(observation), phi(following)], dim=-1))
    nearest = (query(skill) @ nn.functional.normalize(keys, dim=-1).T).argmax(dim=-1)
    assert (skill * skill[nearest]).sum(-1).mean() > 0.95


def test_batches_without_enough_neighbors_are_refused() -> None:
    prior, (phi, query, key) = UnitSphere(2), networks(2)
    loss, batch = CICLoss(phi, prior, query, key), transitions(15, prior)
    for call in (loss, loss.reward):
        with pytest.raises(ValueError, match="15"):
            call(batch)
