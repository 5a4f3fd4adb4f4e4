"""Random and spoiled TensorDicts: a finite result, or an error that says why."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fuzzing import clear_errors, fuzz, is_finite
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from test_skill_losses import BUILD, CONTINUOUS, WITH_ENCODER, encoder
from torch import Tensor, nn
from torchrl.data import Bounded, ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    GoalPrimer,
    GoalReachingPolicy,
    IntrinsicRewardTransform,
    METRALoss,
    OneHot,
    PointEnv,
    SkillLoss,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    StandardNormal,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_env,
    make_sac_networks,
    sample_goals,
)
from torchrl_metra.evaluation import (
    CoverageCounter,
    encode_trajectories,
    episode_lengths,
    goal_metrics,
    measure_skills,
    positions,
    rollout_skills,
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


# ---- Objectives.


def build(name: str, **keywords: Any) -> SkillLoss:
    prior = CONTINUOUS.get(name, PRIOR)
    return BUILD[name](prior, encoder(prior), **keywords)


def buffers(loss: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in loss.named_buffers()}


@pytest.mark.parametrize("name", BUILD)
@fuzz(max_examples=80)
@given(data=st.data())
def test_forward(name: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    reduction = data.draw(st.sampled_from(["mean", "sum", "none"]))
    loss = build(name, reduction=reduction)
    done: NestedKey = ("next", "done")
    batch = data.draw(batches(loss.prior, [*STATES, done] if name == "DADS" else STATES))
    before = buffers(loss)
    with clear_errors() as errors:
        out = loss(batch)
        assert set(out.keys()) == set(loss.out_keys)
        expected = batch["skill"].shape[:-1] if reduction == "none" else ()
        assert all(value.shape == expected for value in out.values())
        assert is_finite(out)
    after = buffers(loss)
    assert is_finite(after)
    if errors:
        assert all(value.equal(after[key]) for key, value in before.items())


@pytest.mark.parametrize("method", ["reward", "cumulant"])
@pytest.mark.parametrize("name", BUILD)
@fuzz(max_examples=30)
@given(data=st.data())
def test_rewards(name: str, method: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    loss = build(name)
    batch = data.draw(batches(loss.prior, STATES))
    with clear_errors():
        reward = getattr(loss, method)(batch)
        size = 1 if method == "reward" else loss.cumulant_size
        assert reward.shape == (*batch.batch_size, size)
        assert is_finite(reward)


@pytest.mark.parametrize("name", WITH_ENCODER)
@fuzz(max_examples=20)
@given(data=st.data())
def test_encode(name: str, data: st.DataObject) -> None:
    loss = build(name)
    batch = data.draw(batches(loss.prior, STATES[:2]))
    with clear_errors():
        latent = loss.encode(batch)
        assert latent.shape == (*batch.batch_size, loss.prior.dim)
        assert is_finite(latent) or not batch["observation"].abs().le(1e31).all()


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name in ("CIC", "DADS", "RND") for number in (math.nan, math.inf)]
    # A single outlier is nobody's neighbour: it does not reach the statistics of CIC.
    + [("DADS", 1e30), ("RND", 1e30)],
)
def test_refused_batches_leave_no_trace(name: str, number: float) -> None:
    loss, batch = build(name), transitions(CONTINUOUS.get(name, PRIOR), (20,), 0)
    loss(batch)
    before, spoiled = buffers(loss), batch.clone()
    spoiled["next", "observation"][3] = number
    with pytest.raises(ValueError, match="not finite"):
        loss(spoiled)
    assert all(value.equal(before[key]) for key, value in buffers(loss).items())
    assert is_finite(loss(batch))


@pytest.mark.parametrize("weights", [math.nan, 0.0])
def test_priority_weights_that_spoil_the_mean(weights: float) -> None:
    loss = build("METRA")
    batch = transitions(loss.prior, (6,), 0).set("priority_weight", torch.full((6,), weights))
    with pytest.raises(ValueError, match="weighted by priorities, are not finite"):
        loss(batch)


SAC_KEYS: list[NestedKey] = ["observation", ("next", "observation"), "skill", "action"]


@pytest.mark.parametrize("kind", [BatchedSACLoss, SuccessorFeatureSACLoss])
@fuzz(max_examples=60)
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
        batch = spoil(batch, data.draw(st.sampled_from(SAC_KEYS)), fault)
    networks = make_sac_networks(2, ACTIONS, PRIOR, num_cells=[8], value_size=size)
    prior = [PRIOR] if kind is SuccessorFeatureSACLoss else []
    loss = kind(networks.actor, networks.critics, *prior, target_entropy=-1.0)
    with clear_errors():
        out = loss(batch)
        # As by TorchRL's, NaN is handed on.
        assert is_finite(out) or fault in NUMBERS


# ---- Policies.


@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
@pytest.mark.parametrize("with_grad", [False, True])
@fuzz(max_examples=30)
@given(batch=batches(PRIOR, STATES))
def test_actor(batch: TensorDict, with_grad: bool, exploration: ExplorationType) -> None:
    torch.manual_seed(0)
    actor = make_sac_networks(2, Bounded(-3.0, 1.0, (2,)), PRIOR, num_cells=[8]).actor
    batch = batch.exclude("action", "next")
    is_sound = is_finite(batch)
    with clear_errors(), torch.set_grad_enabled(with_grad), set_exploration_type(exploration):
        action = actor(batch)["action"]
        assert action.shape == (*batch.batch_size, 2)
        # NaN is handed on, as the documentation has it.
        assert not is_sound or bool(((action >= -3) & (action <= 1)).all())


@pytest.mark.parametrize("adaptive", [True, False])
@fuzz(max_examples=40)
@given(data=st.data())
def test_goal_reaching_policy(adaptive: bool, data: st.DataObject) -> None:
    torch.manual_seed(0)
    keys: list[NestedKey] = ["observation", ("goal", "observation"), "skill"]
    batch = data.draw(batches(PRIOR, keys)).exclude("next", "action")
    batch["is_init"] = torch.rand(*batch.batch_size, 1) < 0.5
    networks = make_sac_networks(2, ACTIONS, PRIOR, num_cells=[8])
    policy = SkillPolicy.from_networks(networks, PRIOR).reach_goals(adaptive=adaptive)
    assert isinstance(policy, GoalReachingPolicy)
    is_sound = is_finite(batch)
    with clear_errors():
        out = policy(batch)
        assert out["skill"].shape == (*batch.batch_size, 2)
        assert not is_sound or is_finite(out.select("skill", "action"))


# ---- Priors.


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
@fuzz(max_examples=40)
@given(data=st.data())
def test_priors(prior: SkillPrior, data: st.DataObject) -> None:
    shape, count = data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(0, 9))
    skills, grid = prior.sample(shape), prior.grid(count)
    assert skills.shape == (*shape, prior.dim)
    assert grid.shape == (count, prior.dim)
    assert is_finite([skills, grid, prior.center(skills)])
    assert all(prior.spec.is_in(skill) for skill in (*skills.reshape(-1, prior.dim), *grid))
    value = torch.randn(*shape, prior.dim)
    fault = data.draw(st.sampled_from(sorted(FAULTS.keys() - {"missing", "nested"})))
    value = FAULTS[fault](value)
    with clear_errors():
        toward = prior.toward(value)
        assert toward.shape == value.shape
        sound = value.isfinite().all(dim=-1)
        assert is_finite(toward[sound])
        # Half precision ends at 65504 and 1e-7.
        if value.dtype != torch.float16 and (value[sound] != 0).any():
            length = toward[sound & (value != 0).any(dim=-1)].norm(dim=-1)
            expected = math.sqrt(prior.dim) if isinstance(prior, StandardNormal) else 1.0
            torch.testing.assert_close(length, torch.full_like(length, expected))
    with clear_errors():
        assert prior.validate(value).shape[-1] == prior.dim


# ---- Environments and transforms.


@fuzz(max_examples=25)
@given(
    num_envs=st.none() | st.integers(1, 3),
    max_steps=st.integers(1, 4),
    prior=st.sampled_from(PRIORS),
    steps=st.integers(1, 9),
    number=st.sampled_from([math.nan, math.inf, 1e30, 0.1]),
)
def test_rollouts(
    num_envs: int | None, max_steps: int, prior: SkillPrior, steps: int, number: float
) -> None:
    env = PointEnv(num_envs, max_steps=max_steps).append_transform(SkillPrimer(prior))
    env = env.append_transform(GoalPrimer(sample_goals("point", 3)))
    env = env.append_transform(IntrinsicRewardTransform(METRALoss(nn.Linear(2, prior.dim), prior)))
    rollout = env.rollout(steps, break_when_any_done=False)
    assert rollout.batch_size == (*env.batch_size, steps)
    assert is_finite(rollout)
    start = env.reset()
    with clear_errors():
        action = torch.full((*env.batch_size, 2), number)
        assert is_finite(env.step(start.set("action", action))["next"])


@fuzz(max_examples=40)
@given(data=st.data())
def test_given_skills_and_goals(data: st.DataObject) -> None:
    env = make_env("point", 3).append_transform(SkillPrimer(PRIOR))
    env = env.append_transform(GoalPrimer(sample_goals("point", 3)))
    key = data.draw(st.sampled_from(["skill", ("goal", "observation")]))
    fault = data.draw(st.sampled_from(sorted(FAULTS)))
    given_start = TensorDict({"skill": PRIOR.grid(3), "goal": sample_goals("point", 3)}, [3])
    given_start = spoil(given_start, key, fault)
    with clear_errors():
        start = env.reset(given_start)
        assert start["skill"].shape == (3, 2)
        assert is_finite(start) or fault in ("NaN", "infinite")


@fuzz(max_examples=40)
@given(batch=batches(PRIOR, STATES))
def test_intrinsic_reward_transform(batch: TensorDict) -> None:
    loss = METRALoss(nn.Linear(2, 2), PRIOR)
    with clear_errors():
        reward = IntrinsicRewardTransform(loss)(batch)["next", "intrinsic_reward"]
        assert reward.shape == (*batch.batch_size, 1)
        assert is_finite(reward)


@fuzz(max_examples=40)
@given(data=st.data())
def test_frame_stack_storage(data: st.DataObject) -> None:
    torch.manual_seed(0)
    num_frames = data.draw(st.integers(1, 3))
    storage = FrameStackStorage(data.draw(st.integers(4, 12)), num_frames=num_frames)
    replay = ReplayBuffer(storage=storage, batch_size=4)
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(0, 6))
        frames = torch.randint(3, (count + num_frames, 1, 2, 2), dtype=torch.uint8)
        stacks = torch.stack([frames[i : i + num_frames, 0] for i in range(count + 1)])
        batch = TensorDict({"pixels": stacks[:-1], "next": {"pixels": stacks[1:]}}, [count])
        fault = data.draw(st.none() | st.sampled_from(sorted(KINDS)))
        if fault is not None:
            batch = spoil(batch, "pixels", fault)
        length = len(replay)
        if not count:
            continue
        with clear_errors() as errors:
            replay.extend(batch)
        if errors:
            assert len(replay) == length
        if len(replay):
            sample = replay.sample()
            assert sample.batch_size == (4,)
            assert sample["pixels"].shape == (4, num_frames, 2, 2)


# ---- Evaluation.

EPISODE_KEYS: list[NestedKey] = [
    "position", ("next", "position"), ("goal", "position"), ("next", "done"), "skill",
    "observation", ("next", "observation"),
]  # fmt: skip


def measured(batch: TensorDictBase) -> list[object]:
    latents = encode_trajectories(batch, nn.Linear(2, 2))
    measures = measure_skills(batch, latents, PRIOR) | temporal_check(latents)
    # By its documentation, NaN if a distance is the same for all pairs.
    del measures["rank_correlation"]
    return measures


def counted(batch: TensorDictBase) -> object:
    counter, cells = CoverageCounter(window=4), visited(batch)
    for _ in range(2):
        if cells is not None:
            counter.update(cells, batch.numel())
    copy = CoverageCounter(window=4)
    copy.load_state_dict(counter.state_dict())
    assert len(copy) == len(counter) <= max(batch.numel(), 1)
    return cells


MEASURES: list[Callable[[TensorDictBase], object]] = [
    measured, counted, goal_metrics, episode_lengths
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
@fuzz(max_examples=60)
@given(data=st.data())
def test_measures(measure: Callable[[TensorDictBase], object], data: st.DataObject) -> None:
    torch.manual_seed(0)
    shape = data.draw(st.sampled_from([(1, 2), (3, 4), (2, 3), (6,), (), (0, 3), (2, 0)]))
    batch = transitions(PRIOR, shape, data.draw(st.integers(0, 9)))
    key, fault = (data.draw(st.sampled_from(x)) for x in (EPISODE_KEYS, [None, *sorted(FAULTS)]))
    batch = batch if fault is None else spoil(batch, key, fault)
    with clear_errors():
        assert is_finite(measure(batch))
    with clear_errors():
        places = positions(batch)
        assert places is None or places.shape[1] == batch.shape[1] + 1


@fuzz(max_examples=25)
@given(
    fault=st.none() | st.sampled_from(sorted(FAULTS.keys() - {"missing", "nested"})),
    count=st.integers(0, 5),
    num_envs=st.none() | st.integers(1, 3),
)
def test_rollout_skills(fault: str | None, count: int, num_envs: int | None) -> None:
    env = make_env("point", num_envs).append_transform(SkillPrimer(PRIOR))
    actor = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[4]).actor
    skills = torch.randn(count, 2) if fault is None else FAULTS[fault](torch.randn(count, 2))
    with clear_errors():
        rollouts = rollout_skills(env, actor, skills, max_steps=3)
        assert rollouts.batch_size == (count, 3)
        assert is_finite(rollouts) or fault in ("NaN", "infinite")
