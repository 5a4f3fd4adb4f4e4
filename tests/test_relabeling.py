"""Skills in hindsight: RelabelSkills by hand, GenDa's loss, and both in a training step."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
import torch
from conftest import make_batch
from tensordict import TensorDict
from torch import Tensor, nn, optim
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    CSFLoss,
    EpisodeStorage,
    GenDaLoss,
    LSDLoss,
    METRALoss,
    METRAOptimizationStepper,
    OneHot,
    RelabelSkills,
    SkillPrimer,
    SkillPrior,
    StandardNormal,
    UnitBall,
    UnitSphere,
    make_env,
    make_metra,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.objectives.genda import crowding

PRIOR = UnitSphere(2)
EAST, NORTH, WEST = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


def linear(*rows: list[float]) -> nn.Linear:
    """φ(s) = W s in float64, without loss of digits."""
    layer = nn.Linear(len(rows[0]), len(rows), dtype=torch.float64)
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    nn.init.ones_(layer.bias)  # cancels
    return layer


def transitions(**states: list[list[float]]) -> TensorDict:
    """A batch whose states are given: ``here``, ``first``, ``last``, ``ahead`` and ``skill``."""
    values = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in states.items()}
    ends = {end: {"observation": values[end]} for end in ("first", "last", "ahead")}
    following = {"observation": values["ahead"], "skill": values["skill"].float()}
    batch = {"observation": values["here"], "skill": values["skill"].float(), "next": following}
    return TensorDict({**batch, **ends}, [len(values["here"])])


def circle_batch() -> TensorDict:
    return transitions(
        here=[[0, 0], [1, 1], [7, 7], [7, 7]],
        ahead=[[1.5, -4], [1, 3], [9, -9], [9, -9]],
        first=[[0, 0], [1, 1], [0, 0], [5, 5]],
        last=[[3, 8], [1, -1], [-2, 3], [5.5, 5]],
        skill=[[0, 1], [0, -1], [0, 1], [0, -1]],
    )


# With φ(x, y) = (y, 2x).
EPISODE = torch.tensor([[0.8, 0.6], [-1, 0], [0.6, -0.8], [0, 1]], dtype=torch.float64)
AHEAD = torch.tensor([[-0.8, 0.6], [1, 0]], dtype=torch.float64)


def test_skills_by_hand() -> None:
    relabel, batch = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=0.0), circle_batch()
    out = relabel(batch.clone())
    torch.testing.assert_close(out["episode_skill"], EPISODE, rtol=0, atol=1e-12)
    # The first half of the policy's skills is that of some steps, the other that of the episode.
    expected = torch.cat([AHEAD, EPISODE[2:]]).float()
    torch.testing.assert_close(out["skill"], expected)
    assert out["next", "skill"].equal(out["skill"])
    others = ["observation", ("next", "observation"), "first", "last", "ahead"]
    assert (out.select(*others) == batch.select(*others)).all()


def test_names_of_ones_own() -> None:
    keys = {"skill_key": ("agent", "z"), "episode_skill_key": ("agent", "z_episode")}
    relabel = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=0.0, **keys)
    batch = circle_batch().rename_key_("skill", ("agent", "z"))
    expected = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=0.0)(circle_batch())
    out = relabel(batch)
    assert out["agent", "z"].equal(expected["skill"])
    assert out["next", "agent", "z"].equal(expected["skill"])
    assert out["agent", "z_episode"].equal(expected["episode_skill"])
    assert "episode_skill" not in out.keys()


def test_half_of_an_odd_batch() -> None:
    relabel = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=0.0)
    out = relabel(circle_batch()[:3])
    torch.testing.assert_close(out["skill"], torch.cat([AHEAD[:1], EPISODE[1:3]]).float())


def test_one_hot_skills_by_hand() -> None:
    relabel = RelabelSkills(linear([1, 0], [0, 1], [-1, -1]), OneHot(3), rarity=0.0)
    batch = transitions(
        here=[[1, 1], [7, 7]],
        ahead=[[0, 1.5], [9, -9]],  # φ goes by (-1, 0.5, 0.5), and two are largest; then anywhere
        first=[[0, 0], [4, 4]],
        last=[[2, 1], [3, 2]],  # (2, 1, -3) and (-1, -2, 3)
        skill=[[1, 0, 0], [1, 0, 0]],
    )
    batch["ahead", "observation"][0, 1] += 0.25
    out = relabel(batch)
    assert out["episode_skill"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert out["skill"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert out["skill"].dtype == torch.float32
    assert relabel.episode_mass.shape == (3,)


@pytest.mark.parametrize(
    "prior", [UnitSphere(1), UnitSphere(3), UnitBall(2), StandardNormal(2), OneHot(5)]
)
def test_every_prior(prior: SkillPrior) -> None:
    relabel = RelabelSkills(nn.Linear(2, prior.dim), prior)
    batch = with_episodes(make_batch(prior, 64))
    out = relabel(batch.clone())
    lengths = prior.grid(1).norm()
    torch.testing.assert_close(out["episode_skill"].norm(dim=-1), lengths.expand(64))
    masses = torch.stack([relabel.prior_mass, relabel.episode_mass])
    torch.testing.assert_close(masses.sum(-1), torch.ones(2))
    assert (relabel.prior_mass > 0).all()
    assert relabel.probability(prior.sample([7, 3])).shape == (7, 3)


def test_turned_skills_keep_their_speed() -> None:
    """φ learns where episodes went, and the policy is asked for the same speed."""
    batch = with_episodes(make_batch(UnitBall(2), 64))
    out = RelabelSkills(nn.Linear(2, 2), UnitBall(2), rarity=0.0)(batch.clone())
    assert not out["skill"].equal(batch["skill"])
    torch.testing.assert_close(out["skill"].norm(dim=-1), batch["skill"].norm(dim=-1))
    torch.testing.assert_close(out["episode_skill"].norm(dim=-1), torch.ones(64))


def test_all_skills_or_none_are_kept() -> None:
    batch = circle_batch()
    out = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=1.0)(batch.clone())
    assert out["skill"].equal(batch["skill"])
    assert out["next", "skill"].equal(batch["skill"])
    torch.testing.assert_close(out["episode_skill"], EPISODE)


def test_rare_skills_are_kept() -> None:
    relabel, batch = RelabelSkills(linear([0, 1], [2, 0]), PRIOR, rarity=0.4), circle_batch()
    assert relabel.probability(batch["skill"]).tolist() == [0.5] * 4
    # Episodes go south a tenth as often as skills point there.
    south = relabel.anchors[:, 1].argmin()
    relabel.episode_mass[south] *= 0.1
    expected = torch.tensor([0.5, 0.1 / 1.1, 0.5, 0.1 / 1.1])
    torch.testing.assert_close(relabel.probability(batch["skill"]), expected)
    out = relabel(batch.clone())
    assert out["skill"][[1, 3]].equal(batch["skill"][[1, 3]])
    torch.testing.assert_close(out["skill"][[0, 2]], torch.stack([AHEAD[0], EPISODE[2]]).float())
    torch.testing.assert_close(out["episode_skill"], EPISODE)


def test_probability_becomes_that_of_the_episodes() -> None:
    relabel = RelabelSkills(linear([1, 0], [0, 1]), PRIOR)
    rows = [EAST.tolist()] * 7 + [NORTH.tolist()] * 3
    nothing = [[0.0, 0.0]] * 10
    batch = transitions(here=nothing, ahead=rows, first=nothing, last=rows, skill=rows)
    before = relabel.episode_mass.clone()
    (east, north), share = relabel._cell(torch.stack([EAST, NORTH])), torch.zeros(16)
    share[east], share[north] = 0.7, 0.3
    for _ in range(3):
        relabel(batch.clone())
    torch.testing.assert_close(relabel.episode_mass, share + 0.99**3 * (before - share))
    for _ in range(1_500):
        relabel(batch.clone())
    torch.testing.assert_close(relabel.episode_mass, share, rtol=1e-4, atol=1e-6)
    prior = relabel.prior_mass
    torch.testing.assert_close(prior, torch.full((16,), 1 / 16), rtol=0.05, atol=0)
    skills = torch.stack([EAST, NORTH, WEST])
    expected = torch.stack([0.7 / (0.7 + prior[east]), 0.3 / (0.3 + prior[north]), 0 * EAST[0]])
    torch.testing.assert_close(relabel.probability(skills), expected, rtol=1e-4, atol=1e-5)


def test_cells_are_exact_under_autocast() -> None:
    relabel, skills = RelabelSkills(nn.Linear(2, 2), PRIOR), PRIOR.sample([10_000])
    nn.init.uniform_(relabel.episode_mass)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = relabel.probability(skills)
    assert mixed.equal(relabel.probability(skills))


def test_the_average_by_hand() -> None:
    encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    relabel = RelabelSkills(encoder, PRIOR, tau=0.1)
    weight = encoder[0].weight
    expected, average = weight.detach().clone(), relabel.encoder.module
    for _ in range(4):
        nn.init.normal_(weight)
        encoder(torch.randn(8, 2))
        relabel.step(encoder)
        expected = 0.9 * expected + 0.1 * weight.detach()
    torch.testing.assert_close(average[0].weight, expected)
    assert average[1].running_mean.equal(encoder[1].running_mean)
    assert average[1].num_batches_tracked == 4


def test_nothing_is_trained_by_relabeling() -> None:
    encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    relabel = RelabelSkills(encoder, PRIOR)
    before = copy.deepcopy(relabel.encoder.state_dict())
    out = relabel(with_episodes(make_batch(PRIOR, 8)))
    assert not any(value.requires_grad for value in out.values(True, True))
    assert not any(weight.requires_grad for weight in relabel.parameters())
    for name, value in relabel.encoder.state_dict().items():
        assert value.equal(before[name]), name
    assert encoder.training
    assert all(weight.requires_grad for weight in encoder.parameters())


def test_state_of_relabeling() -> None:
    one, other = (RelabelSkills(nn.Linear(2, 2), PRIOR) for _ in range(2))
    for _ in range(3):
        one(with_episodes(make_batch(PRIOR, 8)))
        one.step(nn.Linear(2, 2))
    other.load_state_dict(one.state_dict())
    batch = with_episodes(make_batch(PRIOR, 8))
    assert (one(batch.clone()) == other(batch.clone())).all()
    assert one.episode_mass.equal(other.episode_mass)


def test_what_relabeling_needs() -> None:
    for keyword in ({"rarity": -0.1}, {"rarity": math.nan}, {"tau": 1.1}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            RelabelSkills(nn.Linear(2, 2), PRIOR, **keyword)
    with pytest.raises(TypeError, match="SkillPrior"):
        RelabelSkills(nn.Linear(2, 2), 2)
    batch = with_episodes(make_batch(PRIOR, 8))
    for missing in ("first", "last", "ahead", "skill"):
        with pytest.raises(KeyError, match=missing):
            RelabelSkills(nn.Linear(2, 2), PRIOR)(batch.exclude(missing))


def with_episodes(batch: TensorDict) -> TensorDict:
    """States of each transition's episode, at random."""
    for end in ("first", "last", "ahead"):
        batch[end] = {"observation": torch.randn_like(batch["observation"])}
    return batch


# Losses.


def test_crowding_by_hand() -> None:
    displacements = torch.tensor([[2, 0], [0, 3], [-1, 0], [0.5, 0]], dtype=torch.float64)
    e = math.e
    sums = [1 + 1 / e + e, 3, 2 / e + 1, e + 1 + 1 / e]
    expected = torch.tensor(sums, dtype=torch.float64).log()
    torch.testing.assert_close(crowding(displacements), expected)
    # With all rows in one, whatever the shape of the batch.
    folded = crowding(displacements.reshape(2, 2, 2))
    torch.testing.assert_close(folded, expected.reshape(2, 2))


def test_gradient_of_crowding() -> None:
    displacements = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(crowding, displacements)
    # It turns directions, and does not lengthen.
    crowding(displacements).sum().backward()
    along = (displacements.grad * displacements).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


def test_gradient_of_no_displacement_is_bounded() -> None:
    displacements = torch.tensor([[0.0, 0.0], [1e-9, 0.0], [1.0, 0.0]], requires_grad=True)
    crowding(displacements).sum().backward()
    assert displacements.grad.abs().max() < 1e4


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_genda_is_metra_with_uniformity(reduction: str) -> None:
    batch, phi = circle_batch(), linear([0, 1], [2, 0])
    batch["episode_skill"] = EPISODE
    options = {"slack": 0.1, "dual_init": 3.0, "reduction": reduction}
    metra_loss = METRALoss(phi, PRIOR, **options)
    genda_loss = GenDaLoss(phi, PRIOR, uniformity=0.5, **options)
    expected, out = metra_loss(batch), genda_loss(batch)
    products = EPISODE @ EPISODE.T  # these are the directions of the episodes
    uniformity = (products.exp().sum(-1) - math.e).log()
    uniformity = uniformity if reduction == "none" else uniformity.mean()
    torch.testing.assert_close(out.pop("uniformity"), uniformity)
    expected["loss_encoder"] = expected["loss_encoder"] + 0.5 * uniformity
    torch.testing.assert_close(out.to_dict(), expected.to_dict())
    torch.testing.assert_close(genda_loss.reward(batch), metra_loss.reward(batch))
    ends = {("first", "observation"), ("last", "observation")}
    assert set(genda_loss.in_keys) - set(metra_loss.in_keys) == ends


def test_uniformity_moves_both_ends_of_episodes() -> None:
    batch = with_episodes(make_batch(PRIOR, 8))
    for end in ("first", "last"):
        batch[end, "observation"].requires_grad_()
    GenDaLoss(nn.Linear(2, 2), PRIOR)(batch)["loss_encoder"].backward()
    assert all(batch[end, "observation"].grad.abs().sum() > 0 for end in ("first", "last"))


def test_what_genda_needs() -> None:
    with pytest.raises(ValueError, match="uniformity"):
        GenDaLoss(nn.Linear(2, 2), PRIOR, uniformity=-1.0)
    with pytest.raises(KeyError, match="first"):
        GenDaLoss(nn.Linear(2, 2), PRIOR)(make_batch(PRIOR, 4))


@pytest.mark.parametrize("kind", [METRALoss, GenDaLoss, CSFLoss, LSDLoss])
@pytest.mark.parametrize("key", ["episode_skill", ("hindsight", "skill")])
def test_phi_learns_skills_of_episodes_and_the_policy_its_own(kind: Any, key: Any) -> None:
    loss = kind(nn.Linear(2, 2), PRIOR)
    loss.set_keys(episode_skill=key)
    batch = with_episodes(make_batch(PRIOR, 8))
    of_episodes = batch.clone().set("skill", PRIOR.sample([8]))
    both = batch.clone().set(key, of_episodes["skill"])

    def evaluate(name: str, batch: TensorDict) -> Any:
        torch.manual_seed(1)
        return getattr(copy.deepcopy(loss), name)(batch)

    losses = [evaluate("forward", given).to_dict() for given in (both, of_episodes, batch)]
    # What is logged is the policy's reward.
    logged = [each.pop("intrinsic_reward") for each in losses]
    torch.testing.assert_close(logged[0], logged[2], rtol=0, atol=0)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    assert losses[0]["loss_encoder"] != losses[2]["loss_encoder"]
    assert evaluate("reward", both).equal(evaluate("reward", batch))
    assert not evaluate("reward", both).equal(evaluate("reward", of_episodes))


# In a training step.


def build(kind: Any = GenDaLoss, **switches: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    networks = make_sac_networks(2, Bounded(-1, 1, (2,)), PRIOR, num_cells=[16, 16])
    skill_loss = kind(networks.encoder, PRIOR)
    sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    sac_loss.make_value_estimator(gamma=0.9)
    relabel = RelabelSkills(skill_loss.encoder, PRIOR, tau=0.1)
    stepper = METRAOptimizationStepper(
        skill_loss,
        make_metra_optimizers(skill_loss, sac_loss, lr=1e-2),
        target_net_updater=SoftUpdate(sac_loss, eps=0.9),
        **{"relabeling": relabel, **switches},
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    return SimpleNamespace(
        skill_loss=skill_loss, sac_loss=sac_loss, relabel=relabel, stepper=stepper, trainer=trainer
    )


def run(parts: SimpleNamespace, num_steps: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    batches = [with_episodes(make_batch(PRIOR, 16)) for _ in range(num_steps)]
    return [parts.stepper.step(parts.trainer, batch).to_dict() for batch in batches]


def test_a_step_relabels_and_leaves_the_batch() -> None:
    parts, reference = build(METRALoss), build(METRALoss)
    batch = with_episodes(make_batch(PRIOR, 16))
    given = batch.clone()
    metrics = parts.stepper.step(parts.trainer, batch)
    assert (batch == given).all()
    assert set(batch.keys(True, True)) == set(given.keys(True, True))
    relabeled = reference.relabel(batch.clone())
    assert not relabeled["skill"].equal(batch["skill"])
    expected = reference.skill_loss(relabeled)["loss_encoder"].detach()
    torch.testing.assert_close(metrics["loss_encoder"], expected)
    # The average follows the new φ.
    before = reference.relabel.encoder.state_dict()
    after, source = parts.relabel.encoder.state_dict(), parts.skill_loss.encoder.state_dict()
    for name, value in after.items():
        torch.testing.assert_close(value, before[name].lerp(source[name], 0.1))


@pytest.mark.parametrize(
    ("kind", "autocast"), [(GenDaLoss, torch.bfloat16), (LSDLoss, None)], ids=str
)
def test_same_training_as_a_graph(kind: Any, autocast: torch.dtype | None) -> None:
    plain = build(kind, autocast=autocast)
    graph = build(kind, autocast=autocast, compile={"backend": "eager"})
    torch.testing.assert_close(run(graph, 6), run(plain, 6), rtol=1e-3, atol=1e-3)
    assert graph.stepper._graph._graph is not None
    mass = plain.relabel.episode_mass
    assert not mass.equal(plain.relabel.prior_mass)
    torch.testing.assert_close(graph.relabel.episode_mass, mass)
    averages = [dict(parts.relabel.encoder.named_parameters()) for parts in (graph, plain)]
    # The bias of φ's last layer cancels: its gradient is rounding.
    averages = [{k: v for k, v in each.items() if "4.bias" not in k} for each in averages]
    torch.testing.assert_close(*averages, rtol=1e-3, atol=5e-3)


def test_a_graph_reads_skills_that_the_buffer_has_relabeled() -> None:
    metrics = []
    for compile in (False, {"backend": "eager"}):
        parts = build(METRALoss, relabeling=None, compile=compile)
        torch.manual_seed(2)
        batches = [parts.relabel(with_episodes(make_batch(PRIOR, 16))) for _ in range(4)]
        metrics.append([parts.stepper.step(parts.trainer, batch).to_dict() for batch in batches])
    torch.testing.assert_close(*metrics, rtol=1e-3, atol=1e-4)


def test_state_of_the_stepper() -> None:
    one, other = build(), build()
    run(one, 3)
    other.stepper.load_state_dict(copy.deepcopy(one.stepper.state_dict()))
    for name in ("skill_loss", "sac_loss"):
        getattr(other, name).load_state_dict(getattr(one, name).state_dict())
    torch.testing.assert_close(run(one, 3), run(other, 3), rtol=0, atol=0)
    assert one.relabel.episode_mass.equal(other.relabel.episode_mass)


# With a replay buffer.


def test_as_a_transform_of_a_buffer() -> None:
    encoder = nn.Linear(2, 2)
    relabel, metra_loss = RelabelSkills(encoder, PRIOR, rarity=0.0), METRALoss(encoder, PRIOR)
    storage = EpisodeStorage(LazyTensorStorage(1_000))
    buffer = ReplayBuffer(storage=storage, batch_size=32, transform=relabel)
    env = make_env("point", num_envs=4).append_transform(SkillPrimer(PRIOR))
    data = env.rollout(50).reshape(-1)
    buffer.extend(data)
    optimizer = optim.Adam(metra_loss.parameters(), lr=1e-2)
    for _ in range(3):
        batch = buffer.sample()
        last = batch["last", "observation"] - batch["first", "observation"]
        latents = last @ relabel.encoder.module.weight.T
        torch.testing.assert_close(batch["episode_skill"], PRIOR.skill_along(latents))
        losses = metra_loss(batch)
        (losses["loss_encoder"] + losses["loss_dual"]).backward()
        optimizer.step()
        before = relabel.encoder.module.weight.clone()
        relabel.step(encoder)
        assert not before.equal(relabel.encoder.module.weight)
    assert data["skill"].equal(storage[:]["skill"]), "stored skills are as they were"


SMALL = {
    "num_envs": 4, "num_cells": [8], "total_frames": 800, "frames_per_batch": 400,
    "updates_per_step": 0.005, "batch_size": 16, "buffer_size": 1_500, "min_buffer_size": 400,
    "progress_bar": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["point", "half_cheetah"])
def test_one_hot_skills_from_end_to_end(name: str) -> None:
    if name == "half_cheetah":
        pytest.importorskip("mujoco")
    env, skill = {"name": name, "max_steps": 50}, {"kind": "OneHot", "dim": 4}
    trainer = make_metra(env, objective="genda", skill=skill, **SMALL)
    relabel = trainer.optimization_stepper.relabeling
    trainer.train()
    assert trainer.collected_frames == 800
    assert not relabel.episode_mass.equal(relabel.prior_mass)
    average, encoder = (
        next(part.parameters()) for part in (relabel.encoder, trainer.skill_loss.encoder)
    )
    torch.testing.assert_close(average, encoder, rtol=0, atol=1e-2)
    assert not average.equal(encoder)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    settings: dict[str, Any] = {"objective": "genda", "total_frames": 2_400}
    results = []
    for resume in (None, str(tmp_path / "checkpoints" / "checkpoint-000000001600")):
        process = runs.start(tmp_path, resume=resume, **settings)
        process.join()
        assert process.exitcode == 0
        results.append(runs.results(tmp_path))
    assert results[0] == results[1]


@pytest.mark.parametrize("shared_encoder", [False, True])
def test_from_pictures(shared_encoder: bool) -> None:
    trainer = make_metra(
        "point_pixels", objective="genda", layer_norm=True, num_cells=[8], num_envs=2,
        encoder={"channels": 2, "shared_encoder": shared_encoder}, total_frames=200,
        frames_per_batch=100, min_buffer_size=100, updates_per_step=0.02, batch_size=8,
        buffer_size=150, progress_bar=False,
    )  # fmt: skip
    before = trainer.optimization_stepper.relabeling.episode_mass.clone()
    trainer.train()
    batch = trainer.replay_buffer.sample()
    assert batch["first", "pixels"].shape == batch["pixels"].shape
    assert not trainer.optimization_stepper.relabeling.episode_mass.equal(before)


def test_what_did_not_move_keeps_its_skill() -> None:
    relabel = RelabelSkills(nn.Linear(2, 2), PRIOR, rarity=0.0)
    still = torch.ones(4, 2)
    states = {name: TensorDict({"observation": still}, [4]) for name in ("first", "last", "ahead")}
    skill = PRIOR.sample([4])
    batch = TensorDict({"observation": still, "skill": skill, **states, "next": {}}, [4])
    assert relabel(batch)["skill"].equal(skill)


def test_a_loss_of_ones_own_says_whether_skills_are_relabeled() -> None:
    settings = {"num_cells": [8], "total_frames": 80, "progress_bar": False}
    given = GenDaLoss(nn.Linear(2, 2), PRIOR)
    trainer = make_metra("point", skill_loss=given, **settings)
    assert isinstance(trainer.replay_buffer.storage, EpisodeStorage)
    assert trainer.optimization_stepper.relabeling is not None
    given = METRALoss(nn.Linear(2, 2), PRIOR)
    trainer = make_metra("point", skill_loss=given, objective="genda", **settings)
    assert trainer.optimization_stepper.relabeling is None
