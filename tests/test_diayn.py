"""DIAYN: what the discriminator learns is what the reward says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_metra import DIAYNLoss, OneHot, SkillLoss, StandardNormal


def batch_of(skill: Tensor, following: Tensor) -> TensorDict:
    """Transitions to given states; where they start does not matter."""
    start = torch.full_like(following, float("inf"))
    return TensorDict(
        {"observation": start, "skill": skill, "next": {"observation": following}}, [len(skill)]
    )


def train(loss: SkillLoss, sample: Callable[[int], TensorDict]) -> None:
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-2)
    for _ in range(400):
        loss(sample(256))["loss_encoder"].backward()
        optimizer.step()
        optimizer.zero_grad()


def test_skills_that_end_up_in_places_of_their_own_are_rewarded() -> None:
    """Of four skills, the last two visit the same place: each is half as likely there."""
    prior = OneHot(4)
    places = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])

    def sample(count: int) -> TensorDict:
        skill = prior.sample([count])
        return batch_of(skill, skill @ places + 0.1 * torch.randn(count, 2))

    loss = DIAYNLoss(MLP(in_features=2, out_features=4, num_cells=[32]), prior)
    train(loss, sample)
    batch = batch_of(prior.grid(4), places)
    expected = torch.tensor([0.0, 0.0, math.log(0.5), math.log(0.5)])
    torch.testing.assert_close(loss.reward(batch).squeeze(-1), expected, rtol=0, atol=0.2)


def test_the_spread_tells_how_well_a_skill_is_known() -> None:
    """The state shows the first entry of the skill up to noise of 0.1, and nothing of the other."""
    prior = StandardNormal(2)

    def sample(count: int) -> TensorDict:
        skill = prior.sample([count])
        shown = skill[:, :1] + 0.1 * torch.randn(count, 1)
        return batch_of(skill, torch.cat([shown, torch.randn(count, 1)], dim=-1))

    loss = DIAYNLoss(nn.Linear(2, 2), prior, log_std=nn.Linear(2, 2))
    train(loss, sample)
    batch = sample(4096)
    log_likelihood = -(math.log(0.1) + math.log(1.0) + math.log(2 * math.pi * math.e))
    assert loss.reward(batch).mean().item() == pytest.approx(log_likelihood, abs=0.15)
    strangers = batch_of(prior.sample([4096]), batch["next", "observation"])
    assert loss.reward(strangers).mean() < log_likelihood - 10


def test_unit_variance_without_log_std() -> None:
    loss = DIAYNLoss(nn.Identity(), StandardNormal(2))
    batch = batch_of(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]]))
    assert loss.reward(batch).item() == pytest.approx(-25 / 2 - math.log(2 * math.pi))


@pytest.mark.parametrize(("log_std", "bound"), [(-50.0, 1e-6), (50.0, 1e6)])
def test_spread_is_bounded(log_std: float, bound: float) -> None:
    network = nn.Linear(2, 2)
    nn.init.zeros_(network.weight)
    nn.init.constant_(network.bias, log_std)
    loss = DIAYNLoss(nn.Identity(), StandardNormal(2), log_std=network)
    batch = batch_of(torch.zeros(1, 2), torch.zeros(1, 2))
    expected = -2 * (math.log(bound) + math.log(2 * math.pi) / 2)
    assert loss.reward(batch).item() == pytest.approx(expected)


def test_discrete_skills_have_no_spread() -> None:
    with pytest.raises(ValueError, match=r"OneHot\(4\)"):
        DIAYNLoss(nn.Linear(2, 4), OneHot(4), log_std=nn.Linear(2, 4))
