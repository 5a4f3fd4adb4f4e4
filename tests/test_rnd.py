"""RND as a skill loss: novelty is rewarded, until it is none."""

from __future__ import annotations

import torch
from conftest import make_batch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP

from torchrl_metra import OneHot, RNDBaseline, UnitSphere

PRIOR = UnitSphere(2)


def states(x: float, count: int = 256) -> TensorDict:
    """Transitions to states around (x, 0)."""
    batch = make_batch(PRIOR, count)
    batch["next", "observation"] = torch.tensor([x, 0.0]) + 0.2 * torch.randn(count, 2)
    return batch


def test_reward_falls_for_what_was_seen_and_not_for_what_is_new() -> None:
    predictor, target = (
        MLP(in_features=2, out_features=8, num_cells=[64], activation_class=nn.ReLU)
        for _ in range(2)
    )
    for parameter in target.parameters():
        parameter.data *= 3  # far from what the predictor starts with
    rnd = RNDBaseline(predictor, target, PRIOR, 2)
    optimizer = torch.optim.Adam(rnd.parameter_groups()["predictor"], lr=1e-3)
    seen, new = states(-1.0), states(1.0)
    rnd(torch.cat([seen, new]))
    before = [rnd.reward(batch).mean() for batch in (seen, new)]
    for _ in range(300):
        rnd(states(-1.0))["loss_predictor"].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [rnd.reward(batch).mean() for batch in (seen, new)]
    assert after[0] < 0.2 * before[0]
    assert after[1] > 0.5 * before[1]


def test_values() -> None:
    predictor, target = nn.Linear(2, 3), nn.Linear(2, 3)
    rnd, batch = RNDBaseline(predictor, target, PRIOR, 2, reduction="none"), make_batch(PRIOR, 6)
    out, following = rnd(batch), batch["next", "observation"]
    # Statistics start as 1e-4 values of mean 0 and variance 1: nothing, to these digits.
    mean, std = following.mean(0), following.std(0, unbiased=False)
    normed = ((following - mean) / std).clamp(-5, 5)
    error = (predictor(normed) - target(normed)).square().mean(-1)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(out["loss_predictor"], error, **close)
    reward = error.detach() / error.detach().std(unbiased=False)
    torch.testing.assert_close(out["intrinsic_reward"], reward.clamp(max=5), **close)
    assert not any(p.requires_grad for p in target.parameters())


def test_the_skill_does_not_matter() -> None:
    prior = OneHot(4)
    rnd = RNDBaseline.from_size(2, prior, num_cells=[8])
    batch = make_batch(prior, 8)
    before = rnd.reward(batch)
    assert rnd.reward(batch.set("skill", prior.sample([8]))).equal(before)
