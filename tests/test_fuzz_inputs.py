"""Random and spoiled data: nothing hangs, no NaN hides, and nothing is left half changed.

Who raises, and in which words, is nobody's business here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from conftest import make_losses
from fuzzing import fuzz, is_finite
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from test_skill_losses import BUILD, CONTINUOUS, encoder
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    METRATrainer,
    OneHot,
    PointEnv,
    SkillLoss,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    StandardNormal,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_sac_networks,
)
from torchrl_metra.evaluation import (
    CoverageCounter,
    encode_trajectories,
    goal_metrics,
    measure_skills,
    temporal_check,
    visited,
)

PRIOR = UnitSphere(2)
ACTIONS = Bounded(-1.0, 1.0, (2,))
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (6,), (20,), (2, 3), (0, 3)]
PRIORS = [UnitSphere(1), UnitSphere(3), StandardNormal(2), OneHot(1), OneHot(4)]
Fault = Callable[[Tensor], Any]


# ---- Batches, and what may be wrong with an entry.


def transitions(prior: SkillPrior, shape: tuple[int, ...], seed: int) -> TensorDict:
    draw = torch.Generator().manual_seed(seed)

    def normal(size: int) -> Tensor:
        return torch.randn(*shape, size, generator=draw)

    def flags() -> Tensor:
        return torch.rand(*shape, 1, generator=draw) < 0.3

    skill = prior.sample(shape, generator=draw)
    observation, position = normal(2), 10 * normal(2)
    following = {
        "observation": observation + normal(2),
        "position": position + normal(2),
        "skill": skill,
        "reward": normal(1),
        "done": flags(),
        "terminated": flags(),
    }
    goal = TensorDict({"observation": normal(2), "position": 10 * normal(2)}, shape)
    return TensorDict(
        {
            "observation": observation,
            "position": position,
            "skill": skill,
            "action": normal(2).tanh(),
            "goal": goal,
            "next": following,
        },
        shape,
    )


def put(number: float) -> Fault:
    def spoil(value: Tensor) -> Tensor:
        value = value.clone()
        value.view(-1)[:1] = number
        return value

    return spoil


# Numbers may lead to finite results and to errors; the others to errors, unless nobody looks.
NUMBERS: dict[str, Fault] = {
    "NaN": put(math.nan),
    "infinite": put(math.inf),
    "1e30": lambda value: value * 1e30,
    "1e-30": lambda value: value * 1e-30,
    "one 3e38": put(3e38),
    "constant": torch.zeros_like,
}
KINDS: dict[str, Fault] = {
    "missing": lambda value: None,
    "int64": lambda value: value.long(),
    "bool": lambda value: value.bool(),
    "float16": lambda value: value.half(),
    "float64": lambda value: value.double(),
    "wide": lambda value: torch.cat([value] * 3, dim=-1),
    "narrow": lambda value: value[..., :1],
    "empty": lambda value: value[..., :0],
    "deep": lambda value: value.unsqueeze(-1).expand(*value.shape, 3),
    "flat": lambda value: value[..., 0],
    "nested": lambda value: TensorDict({"x": value}, value.shape[:1]),
}
FAULTS = NUMBERS | KINDS
STATES: list[NestedKey] = ["observation", ("next", "observation"), "skill"]


def spoil(batch: TensorDict, key: NestedKey, fault: str) -> TensorDict:
    value = batch.get(key)
    if fault in NUMBERS and not value.is_floating_point():
        return batch
    value = FAULTS[fault](value)
    return batch.exclude(key) if value is None else batch.set(key, value)


def batches(prior: SkillPrior, keys: list[NestedKey]) -> st.SearchStrategy[TensorDict]:
    """Transitions, none or one of whose entries is spoiled."""

    def build(shape: tuple[int, ...], seed: int, key: NestedKey, fault: str | None) -> TensorDict:
        batch = transitions(prior, shape, seed)
        return batch if fault is None else spoil(batch, key, fault)

    return st.builds(
        build,
        st.sampled_from(SHAPES),
        st.integers(0, 9),
        st.sampled_from(keys),
        st.none() | st.sampled_from(sorted(FAULTS)),
    )


def build(name: str, **keywords: Any) -> SkillLoss:
    prior = CONTINUOUS.get(name, PRIOR)
    return BUILD[name](prior, encoder(prior), **keywords)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def is_same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return all(value.equal(now[name]) for name, value in before.items())


# ---- Losses.


@pytest.mark.parametrize("name", BUILD)
@fuzz(max_examples=60)
@given(data=st.data())
def test_objectives(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    loss = build(name)
    batch = data.draw(batches(loss.prior, STATES))
    before, read = weights_of(loss), batch.select(*loss.in_keys, strict=False)
    # Some read the next state alone, and RND not the skill.
    ignored = {"DIAYN": ["observation"], "RND": ["observation", "skill"]}.get(name, [])
    # Infinite numbers may saturate, and be as good as others.
    values = read.exclude(*ignored).values(True, True)
    is_spoiled = any(value.isnan().any() for value in values)
    try:
        out, reward = loss(batch), loss.reward(batch)
    except Exception:
        assert is_same(loss, before), "an error must leave no trace"
        return
    assert set(out.keys()) == set(loss.out_keys)
    assert reward.shape == (*batch["skill"].shape[:-1], 1)
    losses = [value for key, value in out.items() if key.startswith("loss_")]
    assert not (is_spoiled and is_finite([*losses, reward])), "a NaN hides"


@pytest.mark.parametrize("kind", [BatchedSACLoss, SuccessorFeatureSACLoss])
@fuzz(max_examples=40)
@given(data=st.data())
def test_sac(kind: type[BatchedSACLoss], data: st.DataObject) -> None:
    torch.manual_seed(0)
    shape = data.draw(st.sampled_from([(1,), (6,), (2, 3)]))
    batch = transitions(PRIOR, shape, data.draw(st.integers(0, 9)))
    size = 1
    if kind is SuccessorFeatureSACLoss:
        batch["next", "reward"], size = torch.randn(*shape, 2), 2
    fault = data.draw(st.none() | st.sampled_from(sorted(FAULTS)))
    if fault is not None:
        batch = spoil(batch, data.draw(st.sampled_from([*STATES, "action"])), fault)
    networks = make_sac_networks(2, ACTIONS, PRIOR, num_cells=[8], value_size=size)
    prior = [PRIOR] if kind is SuccessorFeatureSACLoss else []
    loss = kind(networks.actor, networks.critics, *prior, target_entropy=-1.0)
    before = weights_of(loss)
    with suppress(Exception):
        out = loss(batch)
        assert is_finite(out) or fault in NUMBERS
        assert not is_finite(out) or fault not in ("NaN", "infinite"), "a NaN hides"
    assert is_same(loss, before)


# ---- Training: an environment that goes wrong in any round stops it, and poisons nothing.


class SpoiledPoint(PointEnv):
    """Returns a number once, after so many steps."""

    number, after = math.nan, 10

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        following = super()._step(tensordict)
        self.after -= 1
        if not self.after:
            following["observation"][0, 0] = self.number
        return following


@fuzz(max_examples=6)
@given(number=st.sampled_from([math.nan, math.inf]), after=st.integers(1, 50))
def test_an_environment_that_goes_wrong_stops_training(number: float, after: int) -> None:
    torch.manual_seed(0)
    env = SpoiledPoint(2, max_steps=10)
    env.number, env.after = number, after
    parts = make_losses()
    replay = ReplayBuffer(storage=LazyTensorStorage(200), batch_size=8)
    trainer = METRATrainer(
        collector=Collector(
            env.append_transform(SkillPrimer(PRIOR)),
            parts.networks.actor,
            frames_per_batch=20,
            total_frames=100,
        ),
        total_frames=100,
        optim_steps_per_batch=2,
        loss_module=parts.sac_loss,
        skill_loss=parts.metra_loss,
        replay_buffer=replay,
        progress_bar=False,
    )
    with pytest.raises(ValueError, match=r"NaN|numbers"):
        trainer.train()
    assert len(replay) == 20 * ((after - 1) // 10)
    assert not len(replay) or is_finite(replay[:])
    assert all(map(is_finite, (parts.metra_loss.state_dict(), parts.sac_loss.state_dict())))


# ---- Policies and priors.


@fuzz(max_examples=40)
@given(batch=batches(PRIOR, [*STATES, ("goal", "observation")]), reaches_goals=st.booleans())
def test_policies(batch: TensorDict, reaches_goals: bool) -> None:
    torch.manual_seed(0)
    networks = make_sac_networks(2, Bounded(-3.0, 1.0, (2,)), PRIOR, num_cells=[8])
    policy = SkillPolicy.from_networks(networks, PRIOR)
    batch = batch.exclude("action", "next")
    batch["is_init"] = torch.rand(*batch.batch_size, 1) < 0.5
    is_sound = is_finite(batch)
    with suppress(RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        action = (policy.reach_goals() if reaches_goals else policy.actor)(batch)["action"]
        assert action.shape == (*batch.batch_size, 2)
        assert not is_sound or bool(((action >= -3) & (action <= 1)).all())


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
@fuzz(max_examples=30)
@given(
    shape=st.sampled_from(SHAPES), count=st.integers(0, 9), scale=st.sampled_from([1e-30, 1, 1e30])
)
def test_priors(prior: SkillPrior, shape: tuple[int, ...], count: int, scale: float) -> None:
    skills, grid = prior.sample(shape), prior.grid(count)
    assert skills.shape == (*shape, prior.dim)
    assert grid.shape == (count, prior.dim)
    assert is_finite([skills, grid, prior.center(skills)])
    assert all(prior.spec.is_in(skill) for skill in (*skills.reshape(-1, prior.dim), *grid))
    along = prior.toward(scale * torch.randn(*shape, prior.dim))
    expected = math.sqrt(prior.dim) if isinstance(prior, StandardNormal) else 1.0
    torch.testing.assert_close(along.norm(dim=-1), torch.full(shape, expected))
    spoiled = torch.full((1, prior.dim), math.nan)
    assert not prior.toward(spoiled).isfinite().any()


# ---- Data and evaluation.


@fuzz(max_examples=40)
@given(data=st.data())
def test_frame_stack_storage(data: st.DataObject) -> None:
    torch.manual_seed(0)
    num_frames = data.draw(st.integers(1, 3))
    storage = FrameStackStorage(data.draw(st.integers(4, 12)), num_frames=num_frames)
    replay = ReplayBuffer(storage=storage, batch_size=4)
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 6))
        frames = torch.randint(3, (count + num_frames, 1, 2, 2), dtype=torch.uint8)
        stacks = torch.stack([frames[i : i + num_frames, 0] for i in range(count + 1)])
        batch = TensorDict({"pixels": stacks[:-1], "next": {"pixels": stacks[1:]}}, [count])
        fault = data.draw(st.none() | st.sampled_from(sorted(KINDS)))
        if fault is not None:
            batch = spoil(batch, "pixels", fault)
        length = len(replay)
        try:
            replay.extend(batch)
        except Exception:
            assert len(replay) == length
        if len(replay):
            sample = replay.sample()
            assert sample["pixels"].shape == (4, num_frames, 2, 2)


EPISODE_KEYS: list[NestedKey] = [
    "position", ("next", "position"), ("goal", "position"), "observation", ("next", "observation"),
]  # fmt: skip


def measured(batch: TensorDictBase) -> object:
    latents = encode_trajectories(batch, nn.Linear(2, 2))
    measures = measure_skills(batch, latents, PRIOR) | temporal_check(latents)
    # By its documentation, NaN if a distance is the same for all pairs.
    return {name: value for name, value in measures.items() if name != "rank_correlation"}


def counted(batch: TensorDictBase) -> object:
    counter, cells = CoverageCounter(window=4), visited(batch)
    for _ in range(2):
        counter.update(cells, batch.numel())
    twin = copy.copy(CoverageCounter(window=4))
    twin.load_state_dict(counter.state_dict())
    assert len(twin) == len(counter) <= max(batch.numel(), 1)
    return cells


MEASURES: list[Callable[[TensorDictBase], object]] = [measured, counted, goal_metrics]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
@fuzz(max_examples=40)
@given(data=st.data())
def test_measures(measure: Callable[[TensorDictBase], object], data: st.DataObject) -> None:
    torch.manual_seed(0)
    shape = data.draw(st.sampled_from([(1, 2), (3, 4), (2, 3)]))
    batch = transitions(PRIOR, shape, data.draw(st.integers(0, 9)))
    assert is_finite(measure(batch))
    key, fault = (data.draw(st.sampled_from(x)) for x in (EPISODE_KEYS, sorted(FAULTS)))
    batch = spoil(batch, key, fault)
    # Whatever it says of them, it comes to an end and changes nothing.
    before = batch.clone()
    with suppress(Exception):
        measure(batch)
    torch.testing.assert_close(batch, before, equal_nan=True)
