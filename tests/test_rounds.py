"""What a round tells: the scale of what was collected, what was learned, or what is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from torchrl_metra import make_env
from torchrl_metra.trainers import DivergenceError
from torchrl_metra.trainers.rounds import check_data, observation_spread, read_metrics

KEYS = ["observation", ("next", "observation")]


def batch() -> TensorDict:
    return make_env("point", 4).rollout(5)


def test_tells_the_scale_of_observations() -> None:
    data = batch()
    data["observation"] = torch.randn(4, 5, 3) * torch.tensor([0.1, 10.0, 0.0])
    spread = data["observation"].reshape(-1, 3).std(dim=0)
    # The third never changes.
    assert observation_spread(data, ["observation"]) == {
        "observation_spread_min": pytest.approx(spread[0].item()),
        "observation_spread_max": pytest.approx(spread[1].item()),
    }
    assert observation_spread(data[:1, :1], ["observation"]) == {}


def test_tells_metrics() -> None:
    metrics = {"dual": torch.tensor(30.0), "entropy": torch.tensor(-1.5)}
    assert read_metrics(7, metrics) == {"dual": 30.0, "entropy": -1.5}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    data = batch()
    check_data(data, KEYS)
    data["next", "observation"][1, 2] = value
    with pytest.raises(ValueError, match=r"\('next', 'observation'\): 2"):
        check_data(data, KEYS)
    with pytest.raises(DivergenceError, match=r"loss_qvalue.*after 7"):
        read_metrics(7, {"loss_qvalue": torch.tensor(value), "dual": torch.tensor(1.0)})


def test_pixels_and_entries_that_nobody_reads_do_not_count() -> None:
    data = batch()
    data["pixels"] = torch.randint(255, (4, 5, 3, 8, 8), dtype=torch.uint8)
    data["other"] = torch.full((4, 5), math.nan)
    check_data(data, [*KEYS, "pixels", "absent"])
    assert observation_spread(data, ["pixels"]) == {}
