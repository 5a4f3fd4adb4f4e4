"""What TorchRL asks of every loss, and this package of every objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_batch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_metra import (
    CICLoss,
    ControllabilityDistance,
    CSDLoss,
    CSFLoss,
    DADSLoss,
    DIAYNLoss,
    LSDLoss,
    METRALoss,
    OneHot,
    RNDBaseline,
    SkillLoss,
    SkillPrior,
    StandardNormal,
    UnitSphere,
)
from torchrl_metra.trainers import UpdateGraph
from torchrl_metra.trainers.stepper import step_skill_loss

Build = Callable[..., SkillLoss]


def network(in_features: int, out_features: int) -> MLP:
    return MLP(in_features=in_features, out_features=out_features, num_cells=[16])


def encoder(prior: SkillPrior, key: NestedKey = "observation", out: str = "latent") -> nn.Module:
    return TensorDictModule(network(2, prior.dim), in_keys=[key], out_keys=[out])


def csd(prior: SkillPrior, phi: nn.Module, **keywords: Any) -> CSDLoss:
    distance = ControllabilityDistance(network(2, 2), network(2, 2), observation_key=phi.in_keys[0])
    return CSDLoss(phi, prior, distance, **keywords)


def diayn(prior: SkillPrior, phi: nn.Module, **keywords: Any) -> DIAYNLoss:
    log_std = None if isinstance(prior, OneHot) else network(2, prior.dim)
    return DIAYNLoss(phi, prior, log_std=log_std, **keywords)


def dads(prior: SkillPrior, phi: nn.Module, **keywords: Any) -> DADSLoss:
    keywords = {"num_alternatives": 5, **keywords}
    loss = DADSLoss(network(2 + prior.dim, 2), prior, 2, **keywords)
    loss.set_keys(observation=phi.in_keys[0])
    return loss


def cic(prior: SkillPrior, phi: nn.Module, **keywords: Any) -> CICLoss:
    keywords = {"num_neighbors": 3, **keywords}
    return CICLoss(phi, prior, network(prior.dim, 4), network(2 * prior.dim, 4), **keywords)


def rnd(prior: SkillPrior, phi: nn.Module, **keywords: Any) -> RNDBaseline:
    loss = RNDBaseline(network(2, 4), network(2, 4), prior, 2, **keywords)
    loss.set_keys(observation=phi.in_keys[0])
    return loss


BUILD: dict[str, Build] = {
    "METRA": lambda prior, phi, **keywords: METRALoss(phi, prior, **keywords),
    "CSD": csd,
    "LSD": lambda prior, phi, **keywords: LSDLoss(phi, prior, **keywords),
    "DIAYN": diayn,
    "DADS": dads,
    "CIC": cic,
    "CSF": lambda prior, phi, **keywords: CSFLoss(phi, prior, **keywords),
    "RND": rnd,
}
WITH_ENCODER = ["METRA", "CSD", "LSD", "DIAYN", "CIC", "CSF"]
CONTINUOUS = {"METRA": UnitSphere(2), "DIAYN": StandardNormal(3), "DADS": StandardNormal(3)}
CASES = [
    (name, prior) for name in BUILD for prior in (CONTINUOUS.get(name, UnitSphere(2)), OneHot(4))
] + [("METRA", StandardNormal(3))]


class Objective:
    """One objective with one kind of skills: builds its losses, with weights of their own."""

    def __init__(self, name: str, prior: SkillPrior) -> None:
        self.name = name
        self.prior = prior

    def __call__(
        self, *, key: NestedKey = "observation", out: str = "latent", **keywords: Any
    ) -> SkillLoss:
        return BUILD[self.name](self.prior, encoder(self.prior, key, out), **keywords)

    def batch(self, *batch_size: int) -> TensorDict:
        batch = make_batch(self.prior, *batch_size)
        batch["next", "done"][..., -1, :] = True
        return batch


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]!r}")
def objective(request: pytest.FixtureRequest) -> Objective:
    return Objective(*request.param)


@pytest.fixture(params=BUILD)
def continuous(request: pytest.FixtureRequest) -> Objective:
    """Each objective once."""
    return Objective(request.param, CONTINUOUS.get(request.param, UnitSphere(2)))


def evaluate(loss: SkillLoss, batch: TensorDict, method: str = "forward") -> Any:
    """What a loss returns; draws, power iterations and running statistics are as before."""
    torch.manual_seed(0)
    return getattr(copy.deepcopy(loss), method)(batch)


def losses_of(out: TensorDict) -> dict[str, Tensor]:
    return {key: value for key, value in out.items() if key.startswith("loss_")}


class TestContract:
    def test_out_keys_and_scalars(self, objective: Objective) -> None:
        loss = objective()
        out = loss(objective.batch(8))
        assert set(out.keys()) == set(loss.out_keys)
        assert all(value.shape == () for value in out.values())
        for key, value in out.items():
            assert value.requires_grad == key.startswith("loss_"), key

    def test_what_it_logs_is_explained(self, objective: Objective) -> None:
        page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
        assert [key for key in objective().out_keys if f"`{key}`" not in page] == []

    def test_each_loss_reaches_its_group_and_no_other(self, objective: Objective) -> None:
        loss = objective()
        losses, groups = losses_of(loss(objective.batch(8))), loss.parameter_groups()
        assert list(losses) == [f"loss_{name}" for name in groups]
        for name, group in groups.items():
            loss.zero_grad()
            losses[f"loss_{name}"].backward(retain_graph=True)
            reached = {key for key, p in loss.named_parameters() if p.grad is not None}
            ids = {id(parameter) for parameter in group}
            assert reached == {key for key, p in loss.named_parameters() if id(p) in ids}
        members = [id(parameter) for group in groups.values() for parameter in group]
        assert len(members) == len(set(members))
        assert set(members) == {id(p) for p in loss.parameters() if p.requires_grad}

    def test_dispatch_equals_tensordict(self, objective: Objective) -> None:
        loss, batch = objective(), objective.batch(8)
        out = evaluate(loss, batch)
        arguments = {
            key if isinstance(key, str) else "_".join(key): batch[key] for key in loss.in_keys
        }
        torch.manual_seed(0)
        values = loss(**arguments)
        for key, value in zip(loss.out_keys, values, strict=True):
            torch.testing.assert_close(value, out[key])

    def test_select_out_keys(self, objective: Objective) -> None:
        loss = objective()
        *_, last = loss.parameter_groups()
        loss.select_out_keys(f"loss_{last}")
        assert list(loss(objective.batch(8)).keys()) == [f"loss_{last}"]

    def test_renamed_keys(self, objective: Objective) -> None:
        loss, renamed = objective(), objective(key=("state", "x"), out="phi")
        renamed.load_state_dict(loss.state_dict())
        renamed.set_keys(skill=("task", "z"))
        keys: set[NestedKey] = {("state", "x"), ("next", "state", "x"), ("task", "z")}
        if objective.name == "DADS":
            renamed.set_keys(done=("flags", "over"))
            keys.add(("next", "flags", "over"))
        assert set(renamed.in_keys) == keys
        batch = objective.batch(8)
        other = TensorDict(
            {
                "state": {"x": batch["observation"]},
                "task": {"z": batch["skill"]},
                "next": {
                    "state": {"x": batch["next", "observation"]},
                    "flags": {"over": batch["next", "done"]},
                },
            },
            [8],
        )
        torch.testing.assert_close(evaluate(renamed, other), evaluate(loss, batch))
        rewards = [evaluate(*pair, "reward") for pair in ((renamed, other), (loss, batch))]
        torch.testing.assert_close(*rewards)

    def test_reductions(self, objective: Objective) -> None:
        reference, batch = objective(), objective.batch(8)
        out = {}
        for name in ("none", "mean", "sum"):
            loss = objective(reduction=name)
            loss.load_state_dict(reference.state_dict())
            out[name] = evaluate(loss, batch)
        assert out["none"].batch_size == (8,)
        for key, value in out["none"].items():
            assert value.shape == (8,), key
            torch.testing.assert_close(value.mean(), out["mean"][key])
            # Metrics are means all the same.
            total = value.sum() if key.startswith("loss_") else value.mean()
            torch.testing.assert_close(total, out["sum"][key])

    def test_priority_weights_scale_the_losses(self, objective: Objective) -> None:
        loss, batch, weights = objective(), objective.batch(8), torch.rand(8)
        out = evaluate(loss, batch.copy().set("priority_weight", weights))
        loss.reduction = "none"
        for key, value in losses_of(evaluate(loss, batch)).items():
            torch.testing.assert_close(out[key], (value * weights).sum() / weights.sum())

    def test_state_dict_round_trip(self, objective: Objective) -> None:
        loss, other, batch = objective(), objective(), objective.batch(8)
        loss(batch)
        key = f"loss_{next(iter(loss.parameter_groups()))}"
        assert not evaluate(loss, batch)[key].isclose(evaluate(other, batch)[key])
        other.load_state_dict(loss.state_dict())
        torch.testing.assert_close(evaluate(loss, batch), evaluate(other, batch))
        rewards = [evaluate(each, batch, "reward") for each in (loss, other)]
        torch.testing.assert_close(*rewards)
        assert {key for key, _ in loss.named_buffers()} <= loss.state_dict().keys()

    @pytest.mark.parametrize("batch_size", [(), (5,), (3, 4)])
    def test_any_batch_size(self, objective: Objective, batch_size: tuple[int, ...]) -> None:
        loss = objective(num_neighbors=1) if objective.name == "CIC" else objective()
        batch = objective.batch(3, 4)
        batch = {(): batch[0, 0], (5,): batch.reshape(-1)[:5], (3, 4): batch}[batch_size]
        flat = batch.reshape(-1)
        reward, cumulant = (evaluate(loss, batch, name) for name in ("reward", "cumulant"))
        assert reward.shape == (*batch_size, 1)
        torch.testing.assert_close(reward.reshape(-1, 1), evaluate(loss, flat, "reward"))
        assert cumulant.shape == (*batch_size, loss.cumulant_size)
        if loss.cumulant_size == 1:
            assert cumulant.equal(reward)
        if batch_size:
            torch.testing.assert_close(evaluate(loss, batch), evaluate(loss, flat))

    def test_logs_its_reward(self, objective: Objective) -> None:
        loss, batch = objective(), objective.batch(8)
        if objective.name == "DADS":
            # Its rewards cost too much to be logged.
            assert "intrinsic_reward" not in loss.out_keys
            return
        if objective.name == "LSD":
            # Else each call would bring the norms forward.
            loss.encoder.eval()
        logged = loss(batch)["intrinsic_reward"]
        torch.testing.assert_close(logged, loss.reward(batch).mean().detach())

    def test_deepcopy_is_independent(self, objective: Objective) -> None:
        loss, batch = objective(), objective.batch(8)
        before = copy.deepcopy(loss.state_dict())
        clone = copy.deepcopy(loss)
        for tensor in (*clone.parameters(), *clone.buffers()):
            tensor.data.zero_()
        after = loss.state_dict()
        assert before.keys() == after.keys()
        for key, value in before.items():
            if isinstance(value, Tensor):
                assert value.equal(after[key]), key
        assert loss.reward(batch).isfinite().all()

    def test_autocast_keeps_float32(self, objective: Objective) -> None:
        loss, batch = objective(), objective.batch(8)
        exact = evaluate(loss, batch)
        with torch.autocast("cpu", torch.bfloat16):
            out, reward = evaluate(loss, batch), evaluate(loss, batch, "reward")
        assert all(value.dtype == torch.float32 for value in (*out.values(), reward))
        for key, value in losses_of(out).items():
            torch.testing.assert_close(value, exact[key], rtol=5e-2, atol=5e-2)

    @pytest.mark.parametrize("name", ["METRA", "CIC"])
    def test_compiles_to_one_graph(self, name: str) -> None:
        """Of the others, the tests of whole steps as graphs say it."""
        objective = Objective(name, UnitSphere(2))
        loss, batch = objective(), objective.batch(8)
        twin = copy.deepcopy(loss)
        torch.compiler.reset()  # it refuses to compile one function for too many modules
        calls = (loss, torch.compile(twin, fullgraph=True, backend="aot_eager"))
        outs, gradients, rewards = [], [], []
        for call, module in zip(calls, (loss, twin), strict=True):
            torch.manual_seed(0)
            outs.append(call(batch))
            sum(losses_of(outs[-1]).values()).backward()
            gradients.append([p.grad for p in module.parameters()])
        torch.testing.assert_close(*[out.detach() for out in outs])
        torch.testing.assert_close(*gradients)
        for call in (
            loss.reward,
            torch.compile(twin.reward, fullgraph=True, backend="aot_eager"),
        ):
            torch.manual_seed(0)
            rewards.append(call(batch).detach())
        torch.testing.assert_close(*rewards)
        for first, second in zip(loss.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", ["CIC", "CSF", "RND"])
def test_same_training_as_one_graph(name: str) -> None:
    """Of the others, the parity tests say it."""
    objective = Objective(name, UnitSphere(2))
    loss = objective()
    twin, metrics = copy.deepcopy(loss), []
    for each, is_graph in ((loss, False), (twin, True)):
        groups = each.parameter_groups().items()
        optimizers = {key: torch.optim.Adam(group, fused=True) for key, group in groups}

        def update(batch: TensorDict, each: SkillLoss = each, optimizers: Any = optimizers) -> Any:
            logged = step_skill_loss(each(batch), optimizers)
            with torch.no_grad():
                return TensorDict({**logged, "cumulant": each.cumulant(batch)})

        if is_graph:
            fast = {"backend": "eager"}
            update = UpdateGraph(update, optimizers, each.in_keys, compile=fast)
        torch.manual_seed(0)
        metrics.append([update(objective.batch(16)) for _ in range(5)])
    torch.testing.assert_close(*metrics, rtol=1e-4, atol=1e-5)
    for first, second in zip(loss.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(first, second)


class TestBadInput:
    """What every objective refuses; arguments of one alone are in the tests of that one."""

    def test_wrong_skill_size(self, continuous: Objective) -> None:
        loss, batch = continuous(), continuous.batch(8)
        batch["skill"] = torch.zeros(8, 1)  # It would broadcast.
        with pytest.raises(ValueError, match=r"\[8, 1\]"):
            loss(batch)

    def test_nan_shows_in_the_losses(self, continuous: Objective) -> None:
        loss, batch = continuous(), continuous.batch(8)
        batch["next", "observation"][3] = float("nan")
        losses = [value for key, value in loss(batch).items() if key.startswith("loss_")]
        assert not torch.stack(losses).isfinite().all()

    @pytest.mark.parametrize("name", WITH_ENCODER)
    def test_encoder_of_the_wrong_size(self, name: str) -> None:
        prior = CONTINUOUS.get(name, UnitSphere(2))
        wrong = TensorDictModule(network(2, 1), in_keys=["observation"], out_keys=["latent"])
        loss, batch = BUILD[name](prior, wrong), make_batch(prior, 8)
        for call in (loss, loss.reward):
            with pytest.raises(ValueError, match=rf"to the {prior.dim} dimensions of .*, 1\]"):
                call(batch)
