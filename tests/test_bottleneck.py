"""What the policy may read in place of the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_metra import (
    BatchedSACLoss,
    GenDaLoss,
    METRALoss,
    OneHot,
    SkillPolicy,
    UnitSphere,
    make_env,
    make_metra,
    make_sac_networks,
)
from torchrl_metra.modules import Bottleneck
from torchrl_metra.trainers.stepper import add_features

SMALL: dict[str, Any] = {
    "objective": "genda", "policy": {"bottleneck": 3}, "layer_norm": True, "num_cells": [16],
    "total_frames": 800, "frames_per_batch": 400, "min_buffer_size": 400, "batch_size": 32,
    "updates_per_step": 0.0125, "num_envs": 4, "buffer_size": 800, "progress_bar": False,
}  # fmt: skip


def batch(size: int = 6, observation: int = 3, dim: int = 2) -> TensorDict:
    torch.manual_seed(0)
    states = {
        end: TensorDict({"observation": torch.randn(size, observation)}, [size])
        for end in ("next", "first", "last", "ahead")
    }
    skill = UnitSphere(dim).sample([size])
    entries = {"observation": torch.randn(size, observation), "skill": skill, **states}
    return TensorDict(entries, [size]).double()


def make_loss(**options: Any) -> GenDaLoss:
    torch.manual_seed(1)
    module = TensorDictModule(Bottleneck(nn.Linear(3, 4)), ["observation"], ["bottleneck"])
    options = {"bottleneck": module, "decoder": nn.Linear(4, 3), **options}
    return GenDaLoss(nn.Linear(3, 2), UnitSphere(2), **options).double()


def test_loss_by_hand() -> None:
    loss, data = make_loss(reduction="none"), batch()
    torch.manual_seed(2)
    found = loss(data)
    torch.manual_seed(2)
    noise = torch.randn(6, 2, dtype=torch.float64)

    layer, decoder = loss.bottleneck.module.network, loss.decoder
    raw = data["observation"] @ layer.weight.T + layer.bias
    mean, log_scale = raw[:, :2], -5 + 3.5 * (torch.tanh(raw[:, 2:]) + 1)
    normal = torch.distributions.Normal(mean, log_scale.exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    phi = loss.encoder.module
    latent = data["observation"] @ phi.weight.T + phi.bias
    inputs = torch.cat([latent, mean + log_scale.exp() * noise], dim=-1)
    error = (inputs @ decoder.weight.T + decoder.bias - data["observation"]).square().sum(-1)
    torch.testing.assert_close(found["reconstruction"], error, atol=1e-12, rtol=0)
    expected = error + 0.1 * divergence.sum(-1)
    torch.testing.assert_close(found["loss_bottleneck"], expected, atol=1e-12, rtol=0)


def test_each_loss_reaches_its_own_parameters() -> None:
    loss, data = make_loss(), batch()
    groups = loss.parameter_groups()
    assert list(groups) == ["encoder", "dual", "bottleneck"]
    everything = [weight for group in groups.values() for weight in group]
    assert {id(weight) for weight in everything} == {id(weight) for weight in loss.parameters()}
    for name, group in groups.items():
        loss.zero_grad()
        loss(data)[f"loss_{name}"].backward()
        reached = {id(w) for w in everything if w.grad is not None and w.grad.any()}
        # φ's last bias has no gradient: it is in both states of a difference.
        assert reached
        assert reached <= {id(weight) for weight in group}


def test_only_the_policy_reads_it() -> None:
    spec = make_env("point").action_spec
    networks = make_sac_networks(2, spec, UnitSphere(2), num_cells=[8], bottleneck=3)
    assert networks.actor.in_keys == ["bottleneck", "skill"]
    assert networks.encoder.in_keys == ["observation"]
    assert all("observation" in critic.in_keys for critic in networks.critics)
    assert networks.shared_encoder(TensorDict({"observation": torch.ones(2)}))[
        "bottleneck"
    ].shape == (3,)
    assert networks.architecture.bottleneck == 3


def test_the_policy_does_not_train_it() -> None:
    env, prior = make_env("point", num_envs=4), UnitSphere(2)
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[8], bottleneck=3)
    loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    data = batch(observation=2).float()
    add_features(networks.shared_encoder, data)
    assert data["bottleneck"].shape == data["next", "bottleneck"].shape == (6, 3)
    loss.actor_loss(data)[0].mean().backward()
    assert any(
        w.grad is not None and w.grad.any() for w in loss.actor_network_params.values(True, True)
    )
    assert all(weight.grad is None for weight in networks.shared_encoder.parameters())


def test_policy_files_hold_it(tmp_path: Path) -> None:
    env, prior = make_env("point", num_envs=4), OneHot(3)
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[8], bottleneck=5)
    policy = SkillPolicy.from_networks(networks, prior)
    policy.save(tmp_path / "policy.pt")
    loaded = SkillPolicy.load(tmp_path / "policy.pt")
    data = env.reset().set("skill", prior.sample([4]))
    expected = policy(data.clone())["loc"]
    torch.testing.assert_close(loaded(data.clone())["loc"], expected, atol=0, rtol=0)


def trained(**changes: Any) -> dict[str, Tensor]:
    trainer = make_metra("point", **SMALL | changes)
    before = trainer.skill_loss.bottleneck.module.network[0].weight.detach().clone()
    trainer.train()
    weights = trainer.skill_loss.state_dict()
    assert not trainer.skill_loss.bottleneck.module.network[0].weight.equal(before)
    return {**weights, **trainer.loss_module.actor_network_params.flatten_keys(".").to_dict()}


def test_same_training_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = trained()
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **kwargs: compiler(*args, **kwargs | {"backend": "eager"})
    )
    graph = trained(compile=True)
    for name, value in eager.items():
        torch.testing.assert_close(graph[name], value, atol=1e-5, rtol=1e-4)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = {**SMALL, "total_frames": 1_600, "checkpoint": {"interval": 800}, "logging": None}
    whole = make_metra("point", output=str(tmp_path / "whole"), **settings)
    whole.train()
    part = make_metra("point", output=str(tmp_path / "part"), **settings | {"total_frames": 800})
    part.train()
    resumed = make_metra("point", output=str(tmp_path / "part"), **settings)
    from torchrl_metra.trainers import resume

    assert resume(resumed) is not None
    resumed.train()
    for trainer in (whole, resumed):
        assert trainer.collected_frames == 1_600
    expected = whole.skill_loss.state_dict()
    for name, value in resumed.skill_loss.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)


def test_leaves_out_what_the_latent_says() -> None:
    """A state of a place, which φ is, and a posture: the place goes, the posture stays."""
    torch.manual_seed(0)
    place = nn.Linear(4, 2)
    place.weight.data, place.bias.data = torch.eye(2, 4), torch.zeros(2)
    module = TensorDictModule(Bottleneck(nn.Linear(4, 4)), ["observation"], ["bottleneck"])
    loss = GenDaLoss(place, UnitSphere(2), bottleneck=module, decoder=nn.Linear(4, 4))
    optimizer = torch.optim.Adam(loss.parameter_groups()["bottleneck"], lr=3e-2)
    data = batch(128, observation=4).float()
    for _ in range(1_000):
        data["observation"] = torch.randn(128, 4)
        optimizer.zero_grad()
        loss(data)["loss_bottleneck"].backward()
        optimizer.step()
    states = torch.randn(1_000, 4)
    latent = module.module(states)
    inputs = torch.cat([latent, torch.ones(1_000, 1)], dim=-1)
    residual = states - inputs @ torch.linalg.lstsq(inputs, states).solution
    unexplained = residual.var(0) / states.var(0)
    assert (unexplained[:2] > 0.8).all()
    assert (unexplained[2:] < 0.3).all()


@pytest.mark.parametrize("given", ["bottleneck", "decoder"])
def test_needs_a_decoder(given: str) -> None:
    options = {"bottleneck": None, "decoder": None}
    del options[given]
    with pytest.raises(ValueError, match="both"):
        make_loss(**options)


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="genda"):
        make_metra("point", **SMALL | {"objective": "metra"})
    with pytest.raises(ValueError, match="pictures"):
        make_metra("point_pixels", **SMALL)
    with pytest.raises(ValueError, match=r"policy\.position=true"):
        make_metra("point", **SMALL | {"policy": {"bottleneck": 3, "position": False}})
    spec = make_env("point").action_spec
    with pytest.raises(ValueError, match="policy_ignores"):
        make_sac_networks(2, spec, UnitSphere(2), bottleneck=3, policy_ignores=[0])
    with pytest.raises(ValueError, match="bottleneck"):
        make_sac_networks(2, spec, UnitSphere(2), bottleneck=0)
    networks = make_sac_networks(2, spec, UnitSphere(2), num_cells=[8], bottleneck=3)
    untrained = METRALoss(networks.encoder, UnitSphere(2))
    with pytest.raises(ValueError, match="trains"):
        make_metra("point", networks=networks, skill_loss=untrained, progress_bar=False)


class PictureNetwork(nn.Sequential):
    def __init__(self, size: int) -> None:
        super().__init__(nn.Flatten(-3), nn.Linear(48, size))


def test_its_decoder_draws_no_pictures() -> None:
    with pytest.raises(ValueError, match="of shape"):
        make_loss(decoder=nn.Linear(4, 1))(batch())
    phi = TensorDictModule(PictureNetwork(2), ["pixels"], ["latent"])
    module = TensorDictModule(Bottleneck(PictureNetwork(4)), ["pixels"], ["bottleneck"])
    loss = GenDaLoss(phi, UnitSphere(2), bottleneck=module, decoder=nn.Linear(4, 48))
    pictures = {"pixels": torch.rand(6, 3, 4, 4)}
    ends = {end: TensorDict(pictures, [6]) for end in ("next", "first", "last")}
    with pytest.raises(ValueError, match="no pictures"):
        loss(TensorDict({**pictures, **ends, "skill": UnitSphere(2).sample([6])}, [6]))


def test_networks_of_ones_own_are_trained() -> None:
    spec = make_env("point").action_spec
    networks = make_sac_networks(2, spec, UnitSphere(2), num_cells=[8], bottleneck=3)
    trainer = make_metra("point", networks=networks, **SMALL | {"policy": {}})
    assert trainer.skill_loss.bottleneck is networks.shared_encoder
    assert trainer.skill_loss.decoder(torch.ones(2 + 3)).shape == (2,)
