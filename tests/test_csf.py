"""CSF against its formulas: the encoder's loss, and SAC with successor features."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch, make_losses
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ValueOperator

from torchrl_metra import (
    BatchedSACLoss,
    CSFLoss,
    METRALoss,
    OneHot,
    SkillPrior,
    SuccessorFeatureSACLoss,
    UnitBall,
    UnitSphere,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
)

ACTION_SPEC = Bounded(-1, 1, (2,))


def make_csf(prior: SkillPrior, value_size: int | None = None, **keywords: Any) -> SimpleNamespace:
    """CSF on PointEnv with small networks."""
    size = prior.dim if value_size is None else value_size
    networks = make_sac_networks(2, ACTION_SPEC, prior, num_cells=[16, 16], value_size=size)
    keywords = {"alpha_init": 0.1, "target_entropy": -1.0, "loss_function": "l2", **keywords}
    return SimpleNamespace(
        prior=prior,
        networks=networks,
        csf_loss=CSFLoss(networks.encoder, prior),
        sac_loss=SuccessorFeatureSACLoss(networks.actor, networks.critics, prior, **keywords),
    )


class TestCSFLoss:
    @pytest.mark.parametrize("prior", [UnitSphere(2), OneHot(3)], ids=repr)
    def test_values(self, prior: SkillPrior, monkeypatch: pytest.MonkeyPatch) -> None:
        phi = nn.Linear(2, prior.dim).double()
        loss = CSFLoss(phi, prior, num_negatives=4, negative_weight=3.0, reduction="none")
        batch, negatives = make_batch(prior, 6).double(), prior.sample([4])
        shapes = []

        def sample(batch_size: list[int], device: torch.device) -> Tensor:
            shapes.append(tuple(batch_size))
            return negatives

        monkeypatch.setattr(prior, "sample", sample)
        out = loss(batch)
        assert shapes == [(4,)]
        for i in range(6):
            step = phi(batch["next", "observation"][i]) - phi(batch["observation"][i])
            reward = (step @ centered(prior, batch["skill"][i])).item()
            scores = [(step @ centered(prior, z.double())).exp().item() for z in negatives]
            expected = -(reward - 3.0 * math.log(sum(scores)))
            assert out["loss_encoder"][i].item() == pytest.approx(expected)
            assert out["intrinsic_reward"][i].item() == pytest.approx(reward)
            assert loss.reward(batch)[i].item() == pytest.approx(reward)
            assert out["latent_step"][i].item() == pytest.approx(step.norm().item())
            torch.testing.assert_close(loss.cumulant(batch)[i], step)
        assert loss.cumulant_size == prior.dim

    def test_draws_others_anew(self) -> None:
        loss, batch = CSFLoss(nn.Linear(2, 2), UnitSphere(2)), make_batch(UnitSphere(2), 6)
        assert loss(batch)["loss_encoder"] != loss(batch)["loss_encoder"]

    def test_learns_the_direction_of_skills(self) -> None:
        prior = UnitSphere(2)
        loss = CSFLoss(nn.Linear(2, 2), prior)
        optimizer = torch.optim.Adam(loss.parameter_groups()["encoder"], lr=1e-2)
        rewards = []
        for _ in range(200):
            skill, observation = prior.sample([64]), torch.randn(64, 2)
            following = observation + skill + 0.5 * torch.randn(64, 2)
            batch = TensorDict({"skill": skill, "observation": observation}, [64])
            out = loss(batch.set(("next", "observation"), following))
            rewards.append(out["intrinsic_reward"].item())
            optimizer.zero_grad()
            out["loss_encoder"].backward()
            optimizer.step()
        # No constraint bounds φ, but the scaled normalizer does.
        assert 0.1 < rewards[-1] < 1.0
        assert loss.encoder.module.weight.det() > 0


def centered(prior: SkillPrior, skill: Tensor) -> Tensor:
    """1 at a one-hot skill and -1/2 elsewhere; continuous skills as they are."""
    return torch.where(skill == 1, 1.0, -0.5).double() if isinstance(prior, OneHot) else skill


class Constant:
    """Noise that is known."""

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)


class TestSuccessorFeatures:
    """In double precision, with linear critics: features are matrices times [s, z, a]."""

    @pytest.fixture(params=[UnitSphere(2), OneHot(3)], ids=repr)
    def parts(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> SimpleNamespace:
        prior, noise = request.param, Constant()
        monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)
        critics = [
            ValueOperator(
                nn.Sequential(nn.Linear(4 + prior.dim, prior.dim)),
                in_keys=["observation", "skill", "action"],
            )
            for _ in range(2)
        ]
        actor = make_sac_networks(2, ACTION_SPEC, prior, num_cells=[8]).actor.double()
        loss = SuccessorFeatureSACLoss(
            actor, critics, prior, alpha_init=0.5, target_entropy=-1.0, loss_function="l2"
        ).double()
        loss.make_value_estimator(gamma=0.9)
        for value in loss.target_qvalue_network_params.values(True, True):
            value.data.normal_()
        batch = make_batch(prior, 6).double()
        batch["next", "reward"] = torch.randn(6, prior.dim, dtype=torch.float64)
        for key in ("done", "terminated"):
            batch["next", key] = torch.tensor([0, 1, 0, 0, 0, 1], dtype=torch.bool).unsqueeze(-1)
        # The last was only cut off.
        batch["next", "terminated"][-1] = False
        return SimpleNamespace(prior=prior, loss=loss, batch=batch, noise=noise())

    @staticmethod
    def action(parts: SimpleNamespace, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's action at the known noise, and its log-density."""
        network = parts.loss.actor_network.module[0].module
        with parts.loss.actor_network_params.to_module(parts.loss.actor_network):
            loc, scale = network(observation, parts.batch["skill"])
        raw = loc + scale * parts.noise
        log_normal = -(parts.noise**2) / 2 - scale.log() - math.log(2 * math.pi) / 2
        return raw.tanh(), (log_normal - (1 - raw.tanh() ** 2).log()).sum(-1)

    @staticmethod
    def features(parts: SimpleNamespace, params: str, index: int, *inputs: Tensor) -> Tensor:
        params = getattr(parts.loss, params)["module", "0"]
        return torch.cat(inputs, dim=-1) @ params["weight"][index].T + params["bias"][index]

    def target(self, parts: SimpleNamespace) -> Tensor:
        batch, following = parts.batch, parts.batch["next", "observation"]
        action, _ = self.action(parts, following)
        rows, chosen = [], []
        for i in range(6):
            inputs = following[i], batch["skill"][i], action[i]
            psi = [self.features(parts, "target_qvalue_network_params", k, *inputs) for k in (0, 1)]
            values = [(each @ centered(parts.prior, batch["skill"][i])).item() for each in psi]
            chosen.append(values.index(min(values)))
            goes_on = 0.0 if i == 1 else 1.0
            rows.append(batch["next", "reward"][i] + 0.9 * goes_on * psi[chosen[-1]])
        # The batch tells the critics apart, and their minimum from that of each entry.
        assert {0, 1} == set(chosen)
        return torch.stack(rows).detach()

    def test_target(self, parts: SimpleNamespace) -> None:
        target = parts.loss._compute_target(parts.batch)
        torch.testing.assert_close(target, self.target(parts))
        assert not target.requires_grad

    def test_critic_loss(self, parts: SimpleNamespace) -> None:
        batch, target = parts.batch, self.target(parts)
        inputs = [batch[key] for key in ("observation", "skill", "action")]
        errors = torch.stack(
            [self.features(parts, "qvalue_network_params", k, *inputs) - target for k in (0, 1)]
        )
        loss, metrics = parts.loss.qvalue_v2_loss(batch)
        expected = errors.square().mean(dim=(1, 2)).sum()
        torch.testing.assert_close(loss, expected)
        expected_error = errors.abs().mean(dim=-1).amax(dim=0)
        torch.testing.assert_close(metrics["td_error"], expected_error.detach())
        loss.backward()
        assert all(p.grad is None for p in parts.loss.actor_network_params.parameters())
        assert all(p.grad is not None for p in parts.loss.qvalue_network_params.parameters())

    def test_actor_loss(self, parts: SimpleNamespace) -> None:
        batch = parts.batch
        action, log_prob = self.action(parts, batch["observation"])
        inputs = batch["observation"], batch["skill"], action
        values = [
            (self.features(parts, "qvalue_network_params", k, *inputs)
             * centered(parts.prior, batch["skill"])).sum(-1)
            for k in (0, 1)
        ]  # fmt: skip
        loss, metrics = parts.loss.actor_loss(batch)
        expected = (0.5 * log_prob - torch.minimum(*values)).mean()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(metrics["log_prob"], log_prob.detach())
        loss.backward()
        assert all(p.grad is None for p in parts.loss.qvalue_network_params.parameters())
        assert all(p.grad is not None for p in parts.loss.actor_network_params.parameters())

    def test_smooth_actions(self) -> None:
        losses = []
        for smoothness in (0.0, 0.5):
            torch.manual_seed(0)
            parts = make_csf(UnitSphere(2), smoothness=smoothness)
            torch.manual_seed(1)
            losses.append(parts.sac_loss.actor_loss(make_batch(parts.prior, 16)))
        (before, _), (after, metrics) = losses
        assert metrics["action_step"] > 0
        torch.testing.assert_close(after - before, 0.5 * metrics["action_step"] ** 2)

    @pytest.mark.parametrize("batch_size", [(), (2, 3)])
    def test_any_batch_size(self, batch_size: tuple[int, ...]) -> None:
        options = {"reduction": "none", "scalar_output_mode": "exclude", "smoothness": 0.5}
        parts = make_csf(UnitSphere(2), **options)
        batch = make_batch(parts.prior, 2, 3)
        batch["next", "reward"] = torch.randn(2, 3, 2)
        batch = batch if batch_size else batch[1, 1]
        outs = []
        for data in (batch, batch.reshape(-1)):
            torch.manual_seed(0)
            outs.append(parts.sac_loss(data.clone()))
        assert outs[0].batch_size == batch_size
        torch.testing.assert_close(outs[0].reshape(-1), outs[1])


def test_one_dimension_is_sac_without_entropy_in_the_target() -> None:
    """With the skill 1 of a single dimension, ψ is the value of SAC."""
    prior = UnitSphere(1)
    batch = make_batch(prior, 16)
    batch["skill"] = batch["next", "skill"] = torch.ones(16, 1)
    batch["next", "reward"] = torch.randn(16, 1)
    batch["next", "terminated"][::4] = True
    keywords = {"alpha_init": 0.5, "target_entropy": -1.0, "loss_function": "l2"}
    networks = make_sac_networks(2, ACTION_SPEC, prior, num_cells=[16])
    sac_loss = BatchedSACLoss(networks.actor, networks.critics, **keywords)
    loss = SuccessorFeatureSACLoss(networks.actor, networks.critics, prior, **keywords)
    loss.load_state_dict(sac_loss.state_dict())
    actor, target, critic = [], [], []
    for each in (sac_loss, loss):
        each.make_value_estimator(gamma=0.9)
        torch.manual_seed(1)
        actor.append(each.actor_loss(batch)[0])
        torch.manual_seed(1)
        compute_target = loss._compute_target if each is loss else each._compute_target_v2
        target.append(compute_target(batch).squeeze(-1))
    torch.testing.assert_close(*actor)
    torch.manual_seed(1)
    policy = sac_loss.actor_network.get_dist(batch["next"])
    entropy_term = 0.9 * 0.5 * policy.log_prob(policy.rsample()).detach()
    goes_on = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(target[1], target[0] + goes_on * entropy_term)
    # Without entropy, all is the same.
    for each in (sac_loss, loss):
        each.log_alpha.data.fill_(-50.0)
        torch.manual_seed(1)
        value, metrics = each.qvalue_v2_loss(batch)
        critic.append((value, metrics["td_error"]))
    torch.testing.assert_close(*critic)


class TestBadInput:
    """Vector-valued critics belong to CSF, and scalar ones to the others."""

    NEEDS = "CSFLoss needs critics that predict 2 numbers"

    def test_scalar_critics_for_csf(self) -> None:
        parts = make_losses()
        csf_loss = CSFLoss(parts.networks.encoder, parts.prior)
        with pytest.raises(ValueError, match=self.NEEDS):
            make_metra_optimizers(csf_loss, parts.sac_loss)

    def test_vector_critics_for_the_others(self) -> None:
        parts = make_csf(UnitSphere(2))
        with pytest.raises(ValueError, match=r"METRALoss needs critics that predict 1 number, but"):
            make_metra_optimizers(METRALoss(parts.networks.encoder, parts.prior), parts.sac_loss)

    def test_critics_that_do_not_read_the_skill(self) -> None:
        networks = make_sac_networks(2, ACTION_SPEC, UnitSphere(2), num_cells=[8])
        critic = ValueOperator(nn.Sequential(nn.Linear(4, 2)), in_keys=["observation", "action"])
        with pytest.raises(ValueError, match=r"must read the skill, 'skill', but read \["):
            SuccessorFeatureSACLoss(networks.actor, critic, UnitSphere(2))

    def test_reward_in_place_of_steps(self) -> None:
        parts = make_csf(UnitSphere(2))
        with pytest.raises(ValueError, match=r"shape \[8, 2\].*\[8, 1\].*CSFLoss\.cumulant"):
            parts.sac_loss(make_batch(parts.prior, 8))


def test_pixel_critics() -> None:
    prior = UnitSphere(2)
    networks = make_pixel_sac_networks(
        (3, 32, 32), ACTION_SPEC, prior, num_cells=[16], channels=4, value_size=2
    )
    loss = SuccessorFeatureSACLoss(networks.actor, networks.critics, prior, target_entropy=-1.0)
    batch = make_batch(prior, 4)
    batch["next", "reward"] = torch.randn(4, 2)
    for entry in (batch, batch["next"]):
        entry["pixels"] = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    out = loss(batch)
    (out["loss_qvalue"] + out["loss_actor"]).backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.qvalue_network_params.parameters())


def test_skills_with_a_speed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"UnitBall\(2\) pays"):
        CSFLoss(nn.Linear(2, 2), UnitBall(2))
    networks = make_csf(UnitSphere(2)).networks
    with pytest.raises(ValueError, match=r"UnitBall\(2\) pays"):
        SuccessorFeatureSACLoss(networks.actor, networks.critics, UnitBall(2))
