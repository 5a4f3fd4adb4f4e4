"""DADS: skills are rewarded for outcomes that are theirs."""

from __future__ import annotations

import copy
import math

import torch
from conftest import make_batch
from tensordict import TensorDict

from torchrl_metra import DADSLoss, StandardNormal

PRIOR = StandardNormal(2)


def rollout(count: int, follows: float) -> TensorDict:
    """Steps along the skill as far as they follow it, else at random."""
    batch = make_batch(PRIOR, count)
    step = follows * batch["skill"] + (1 - follows) * torch.randn(count, 2)
    batch["next", "observation"] = batch["observation"] + step
    return batch


def trained(follows: float) -> DADSLoss:
    loss = DADSLoss.from_size(2, PRIOR, num_cells=[32])
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(400):
        loss(rollout(128, follows))["loss_dynamics"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss


def test_outcomes_that_tell_the_skill_are_rewarded() -> None:
    follower, wanderer = trained(1.0), trained(0.0)
    batch = rollout(512, 1.0)
    reward = follower.reward(batch).mean()
    assert reward > 0.5
    # Nothing to be gained where skills make no difference, nor from the outcomes of others.
    assert wanderer.reward(rollout(512, 0.0)).mean().abs() < 0.05
    batch["skill"] = batch["skill"].roll(1, 0)
    assert follower.reward(batch).mean() < 0


def test_the_reward_is_bounded_and_leaves_the_statistics() -> None:
    loss, batch = DADSLoss.from_size(2, PRIOR, num_cells=[8]), rollout(32, 1.0)
    for parameter in loss.parameters():
        parameter.data *= 20
    before = copy.deepcopy(loss.state_dict())
    reward = loss.reward(batch)
    assert all(value.equal(before[key]) for key, value in loss.state_dict().items())
    assert reward.max() <= math.log(101)
    # All ratios are cut off at e^50 at the most.
    assert math.log(101) - 50 - math.log(100) - 1e-3 <= reward.min() < -10


def test_last_steps_of_episodes_are_no_examples() -> None:
    loss, batch = DADSLoss.from_size(2, PRIOR, num_cells=[8]), rollout(8, 1.0)
    loss.reduction = "none"
    each = copy.deepcopy(loss)(batch)["loss_dynamics"]
    batch["next", "done"][2:4] = True
    out = copy.deepcopy(loss)(batch)["loss_dynamics"]
    kept = torch.tensor([0, 1, 4, 5, 6, 7])
    torch.testing.assert_close(out.mean(), each[kept].mean())
    assert out[2:4].tolist() == [0.0, 0.0]
    batch["next", "done"][:] = True
    out = loss(batch)["loss_dynamics"]
    assert out.tolist() == [0.0] * 8


def test_statistics_follow_slowly() -> None:
    loss = DADSLoss.from_size(2, PRIOR, num_cells=[8])
    batch = rollout(64, 1.0)
    loss(batch)
    change = batch["next", "observation"] - batch["observation"]
    for norm, value in ((loss.observation_norm, batch["observation"]), (loss.change_norm, change)):
        torch.testing.assert_close(norm.running_mean, 0.01 * value.mean(0))
        torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * value.var(0))
