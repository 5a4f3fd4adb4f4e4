from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_batch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded, ReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PixelOptions,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_pixel_sac_networks,
)
from torchrl_metra.modules import PixelEncoder, SACNetworks

PRIOR = UnitSphere(2)
SHAPE = (6, 32, 32)


def make_networks(shared_encoder: bool = False) -> SACNetworks:
    return make_pixel_sac_networks(
        SHAPE,
        Bounded(-1, 1, (2,)),
        PRIOR,
        num_cells=[16],
        channels=4,
        shared_encoder=shared_encoder,
    )


def make_pixel_batch(*batch_size: int) -> TensorDictBase:
    batch = make_batch(PRIOR, *batch_size).exclude("observation", ("next", "observation"))
    for entry in (batch, batch["next"]):
        entry["pixels"] = torch.randint(256, (*batch_size, *SHAPE), dtype=torch.uint8)
    return batch


def make_step(
    networks: SACNetworks, smoothness: float = 0.0, **switches: object
) -> SimpleNamespace:
    metra_loss = METRALoss(networks.encoder, PRIOR)
    sac_loss = BatchedSACLoss(
        networks.actor, networks.critics, target_entropy=-1.0, smoothness=smoothness
    )
    stepper = METRAOptimizationStepper(
        metra_loss,
        make_metra_optimizers(metra_loss, sac_loss, lr=1e-2),
        shared_encoder=networks.shared_encoder,
        **switches,
    )
    return SimpleNamespace(metra_loss=metra_loss, sac_loss=sac_loss, stepper=stepper)


class TestPixelEncoder:
    def test_the_authors_convolutions(self) -> None:
        layers = [x for x in PixelEncoder((9, 64, 64)).layers if isinstance(x, nn.Conv2d)]
        assert [x.out_channels for x in layers] == [48, 96, 192, 384]
        assert {(x.kernel_size, x.stride, x.padding) for x in layers} == {((4, 4), (2, 2), (0, 0))}

    @pytest.mark.parametrize("resolution", [32, 64, 128, 256])
    def test_resolutions(self, resolution: int) -> None:
        encoder = PixelEncoder((3, resolution, resolution), channels=2)
        pixels = torch.zeros(2, 3, 3, resolution, resolution, dtype=torch.uint8)
        assert encoder(pixels).shape == (2, 3, encoder.num_features)
        assert encoder.num_features == 4 * encoder.layers[-2].out_channels <= 64

    @pytest.mark.parametrize("shape", [(3, 64, 32), (3, 60, 60), (3, 16, 16)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"H = W a power of two from 32 on, got \["):
            PixelEncoder(shape)

    def test_white_is_one(self) -> None:
        encoder = PixelEncoder((3, 32, 32), channels=2)
        pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
        expected = encoder.layers(torch.ones(1, 3, 32, 32)).flatten()
        torch.testing.assert_close(encoder(pixels).flatten(), expected)

    @pytest.mark.parametrize("float32", [True, False])
    def test_autocast(self, float32: bool) -> None:
        encoder = PixelEncoder((3, 32, 32), channels=8, float32=float32)
        pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
        exact = encoder(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder(pixels)
        assert mixed.dtype == torch.float32
        assert mixed.equal(exact) == float32
        torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.02)


class TestMakePixelSACNetworks:
    @pytest.mark.parametrize("shared_encoder", [False, True])
    def test_shapes(self, shared_encoder: bool) -> None:
        networks = make_networks(shared_encoder)
        batch = make_pixel_batch(3, 5)
        assert networks.encoder(batch.clone())["latent"].shape == (3, 5, 2)
        assert networks.policy(batch.clone())["action"].shape == (3, 5, 2)
        if not shared_encoder:
            assert networks.critics[0](batch)["state_action_value"].shape == (3, 5, 1)

    def test_own_encoders(self) -> None:
        networks = make_networks()
        modules = (networks.actor, *networks.critics, networks.encoder)
        owners = [{id(p) for p in module.parameters()} for module in modules]
        assert sum(map(len, owners)) == len(set.union(*owners))
        assert networks.policy is networks.actor
        for module in modules:
            assert sum(isinstance(layer, PixelEncoder) for layer in module.modules()) == 1

    @pytest.mark.parametrize("shared_encoder", [False, True])
    def test_skill_policy_round_trip(self, tmp_path: Path, shared_encoder: bool) -> None:
        networks = make_networks(shared_encoder)
        SkillPolicy.from_networks(networks, PRIOR).save(tmp_path / "skills.pt")
        loaded = SkillPolicy.load(tmp_path / "skills.pt")
        assert loaded.architecture == networks.architecture
        batch = make_pixel_batch(4)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = networks.policy(batch.clone())["action"]
            assert loaded.actor(batch.clone())["action"].equal(action)
        latent = networks.encoder(batch.clone())["latent"]
        assert loaded.encoder(batch.clone())["latent"].equal(latent)


class TestStep:
    @pytest.mark.parametrize("shared_encoder", [False, True])
    def test_every_part_learns(self, shared_encoder: bool) -> None:
        networks = make_networks(shared_encoder)
        parts = make_step(networks)
        before = copy.deepcopy([parts.metra_loss.state_dict(), parts.sac_loss.state_dict()])
        batch = make_pixel_batch(8)
        keys = set(batch.keys(True, True))
        parts.stepper.update(parts.sac_loss, batch)
        assert set(batch.keys(True, True)) == keys
        for old, loss in zip(before, (parts.metra_loss, parts.sac_loss), strict=True):
            for name, value in loss.state_dict().items():
                if isinstance(value, torch.Tensor) and "target" not in name and value.ndim > 1:
                    assert not value.equal(old[name]), name

    def test_only_phi_trains_the_shared_encoder(self) -> None:
        networks = make_networks(shared_encoder=True)
        parts = make_step(networks)
        assert len(list(parts.sac_loss.qvalue_network_params.parameters())) == 4
        before = copy.deepcopy(networks.shared_encoder.state_dict())
        optimizers = parts.stepper.optimizers
        phi = optimizers.pop("encoder")
        optimizers["encoder"] = torch.optim.SGD(parts.metra_loss.encoder.parameters(), 0.0)
        parts.stepper.update(parts.sac_loss, make_pixel_batch(8))
        assert networks.shared_encoder.state_dict().keys() == before.keys()
        assert all(v.equal(before[k]) for k, v in networks.shared_encoder.state_dict().items())
        optimizers["encoder"] = phi
        parts.stepper.update(parts.sac_loss, make_pixel_batch(8))
        assert all(not v.equal(before[k]) for k, v in networks.shared_encoder.state_dict().items())

    def test_critics_read_the_features_of_todays_phi(self) -> None:
        networks = make_networks(shared_encoder=True)
        parts = make_step(networks)
        seen = []
        loss = parts.sac_loss.qvalue_v2_loss
        parts.sac_loss.qvalue_v2_loss = lambda batch: (seen.append(batch.clone()), loss(batch))[1]
        batch = make_pixel_batch(2, 4)
        parts.stepper.update(parts.sac_loss, batch)
        with torch.no_grad():
            for found, end in ((seen[0], batch), (seen[0]["next"], batch["next"])):
                expected = networks.shared_encoder(end.select("pixels"))["features"]
                torch.testing.assert_close(found["features"], expected)
                assert not found["features"].requires_grad

    @pytest.mark.parametrize("shared_encoder", [False, True])
    def test_smooth_actions(self, shared_encoder: bool) -> None:
        networks = make_networks(shared_encoder)
        parts = make_step(networks, smoothness=0.1)
        batch = make_pixel_batch(8)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            seen = copy.deepcopy(networks.policy)
            if shared_encoder:
                # φ steps first, and the features are those of the φ just updated.
                parts.stepper.optimizers["encoder"] = torch.optim.SGD(
                    parts.metra_loss.encoder.parameters(), 0.0
                )
            actions = [
                seen(batch.select("skill").set("pixels", end["pixels"]))["action"]
                for end in (batch, batch["next"])
            ]
        metrics = parts.stepper.update(parts.sac_loss, batch)
        expected = (actions[1] - actions[0]).square().sum(-1).mean().sqrt()
        torch.testing.assert_close(metrics["action_step"], expected)

    def test_as_one_graph(self) -> None:
        torch.manual_seed(3)
        networks = make_networks(shared_encoder=True)
        results = []
        for switches in ({}, {"compile": {"backend": "eager"}}):
            parts = make_step(copy.deepcopy(networks), **switches)
            trainer = SimpleNamespace(loss_module=parts.sac_loss, replay_buffer=None)
            for step in range(4):
                torch.manual_seed(step)
                metrics = parts.stepper.step(trainer, make_pixel_batch(8))
            results.append(metrics)
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shared_encoder", [False, True])
def test_trainer(shared_encoder: bool) -> None:
    env = make_env("point_pixels", 4, pixels=PixelOptions(resolution=32, frames=2))
    env = env.append_transform(SkillPrimer(PRIOR))
    networks = make_networks(shared_encoder)
    parts = make_step(networks)
    collector = Collector(env, networks.policy, frames_per_batch=80, total_frames=240)
    trainer = METRATrainer(
        collector=collector,
        total_frames=240,
        optim_steps_per_batch=2,
        loss_module=parts.sac_loss,
        skill_loss=parts.metra_loss,
        optimization_stepper=parts.stepper,
        replay_buffer=ReplayBuffer(storage=FrameStackStorage(300, num_frames=2), batch_size=16),
        progress_bar=False,
    )
    trainer.train()
    stored = set(trainer.replay_buffer.sample().keys(True, True))
    done = {"done", "terminated", ("next", "done"), ("next", "terminated")}
    assert stored <= {"pixels", ("next", "pixels"), "action", "skill", *done}
    for ours, learned in zip(
        collector.policy.parameters(), networks.policy.parameters(), strict=True
    ):
        assert ours.equal(learned)
