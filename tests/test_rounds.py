"""What a round tells: everything that was collected and learned, or what is wrong with it."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from torchrl_metra import make_env
from torchrl_metra.evaluation import visited
from torchrl_metra.evaluation.coverage import cells_of
from torchrl_metra.trainers import DivergenceError
from torchrl_metra.trainers.rounds import Round

KEYS = ["observation", ("next", "observation")]


def batch() -> TensorDict:
    return make_env("point", 4).rollout(5)


def test_tells_scales_places_and_metrics() -> None:
    data = batch()
    data["observation"] = torch.randn(4, 5, 3) * torch.tensor([0.1, 10.0, 0.0])
    round_ = Round(data, KEYS, ["observation"])
    round_.set_metrics(7, TensorDict({"dual": torch.tensor(30.0), "entropy": torch.tensor(-1.5)}))
    metrics, places = round_.read()
    assert (metrics["dual"], metrics["entropy"], metrics["optim_steps"]) == (30.0, -1.5, 7)
    spread = data["observation"].reshape(-1, 3).std(dim=0)
    assert metrics["observation_spread_min"] == pytest.approx(spread[0].item())
    assert metrics["observation_spread_max"] == pytest.approx(spread[1].item())
    assert cells_of(places).equal(visited(data))


def test_tasks_are_places_too() -> None:
    data = batch()
    data["next", "tasks"] = torch.rand(4, 5, 3) < 0.5
    _, places = Round(data, KEYS).read()
    assert places.dtype == torch.bool
    assert cells_of(places).equal(visited(data))


def test_a_collector_that_stores_by_itself_shows_no_batch() -> None:
    round_ = Round()
    assert round_.read() == ({}, None)
    round_.set_metrics(1, TensorDict({"dual": torch.tensor(2.0)}))
    assert round_.read() == ({"dual": 2.0, "optim_steps": 1}, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    data = batch()
    data["next", "observation"][1, 2] = value
    with pytest.raises(ValueError, match=r"\('next', 'observation'\): 2"):
        Round(data, KEYS)
    round_ = Round(batch(), KEYS)
    metrics = {"loss_qvalue": torch.tensor(value), "grad_norm_qvalue": torch.tensor(value)}
    round_.set_metrics(7, TensorDict(dict(reversed(metrics.items()))))
    with pytest.raises(DivergenceError, match=r"loss_qvalue.*after 7"):
        round_.read()


def test_pixels_and_entries_that_nobody_reads_do_not_count() -> None:
    data = batch()
    data["pixels"] = torch.randint(255, (4, 5, 3, 8, 8), dtype=torch.uint8)
    data["other"] = torch.full((4, 5), math.nan)
    metrics, _ = Round(data, [*KEYS, "pixels"], ["pixels"]).read()
    assert metrics == {}
