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
from torchrl_metra.modules import PatchColors, PatchEncoder, PixelEncoder, SACNetworks
from torchrl_metra.recipes import make_metra

PRIOR = UnitSphere(2)
SHAPE = (6, 32, 32)


def make_networks(shared_encoder: bool | str = False, features: int | None = None) -> SACNetworks:
    return make_pixel_sac_networks(
        SHAPE,
        Bounded(-1, 1, (2,)),
        PRIOR,
        num_cells=[16],
        channels=4,
        features=features,
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
        make_metra_optimizers(
            metra_loss, sac_loss, lr=1e-2, shared_encoder=networks.shared_encoder
        ),
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


class TestPatchEncoder:
    def test_pictures_of_a_stack_are_read_as_by_one_convolution(self) -> None:
        encoder = PatchEncoder((6, 16, 16), channels=3, num_features=5)
        pixels = torch.randint(256, (7, 6, 16, 16), dtype=torch.uint8)
        weight = torch.cat([layer.weight for layer in encoder.patches], dim=1)
        hidden = nn.functional.conv2d(pixels / 255, weight, encoder.patches[0].bias, stride=4)
        hidden = encoder.neighbors(hidden.relu()).relu().flatten(1)
        expected = nn.functional.layer_norm(encoder.features(hidden), [5]).tanh()
        torch.testing.assert_close(encoder(pixels), expected)

    @pytest.mark.parametrize("make", [PatchEncoder, PatchColors])
    def test_batches_of_any_shape(self, make: type[nn.Module]) -> None:
        encoder = make((3, 16, 24))
        pixels = torch.randint(256, (2, 3, 3, 16, 24), dtype=torch.uint8)
        found = encoder(pixels)
        assert found.shape == (2, 3, encoder.num_features)
        torch.testing.assert_close(found[1, 2], encoder(pixels[1, 2]))

    @pytest.mark.parametrize(
        ("make", "size", "multiple"), [(PatchEncoder, 20, 8), (PatchColors, 18, 4)]
    )
    def test_parts_of_patches_are_refused(
        self, make: type[nn.Module], size: int, multiple: int
    ) -> None:
        with pytest.raises(ValueError, match=f"multiples of {multiple}, got"):
            make((3, size, size))

    @pytest.mark.parametrize("make", [PatchEncoder, PatchColors, PixelEncoder])
    def test_floats_are_refused(self, make: type[nn.Module]) -> None:
        with pytest.raises(TypeError, match="pixels must be uint8"):
            make((3, 32, 32))(torch.zeros(3, 32, 32))

    def test_gray_pictures(self) -> None:
        pixels = torch.randint(256, (2, 2, 16, 16), dtype=torch.uint8)
        assert len(PatchEncoder((2, 16, 16)).patches) == 1
        assert PatchColors((2, 16, 16))(pixels).shape == (2, 32)


def test_colors_are_the_means_of_the_newest_picture() -> None:
    pixels = torch.randint(256, (6, 8, 8), dtype=torch.uint8)
    found = PatchColors((6, 8, 8))(pixels).view(3, 2, 2)
    patch = pixels[4, 4:, :4].double()
    torch.testing.assert_close(found[1, 1, 0].double(), patch.mean() / 127.5 - 1, atol=1e-6, rtol=0)
    older = pixels.clone()
    older[:3] = 0
    assert PatchColors((6, 8, 8))(older).view(3, 2, 2).equal(found)


def test_colors_change_alike_in_a_step() -> None:
    torch.manual_seed(0)
    # One patch: red drifts, green and blue shake together, by far more in a step.
    red = 60 + torch.arange(120.0).repeat(20, 1) + torch.randn(20, 120)
    shaking = 100 + 30 * torch.randn(20, 120)
    episodes = torch.stack([red, shaking, 0.5 * shaking], dim=-1).clamp(0, 255)
    pixels = episodes.to(torch.uint8)[..., None, None].expand(-1, -1, -1, 4, 4)
    colors = PatchColors((3, 4, 4))
    colors.fit(pixels[:, :-1], pixels[:, 1:])
    found = colors(pixels).double()
    torch.testing.assert_close(
        found[:, :-1].mean((0, 1)), torch.zeros(3).double(), atol=0.02, rtol=0
    )
    assert found[:, :-1].square().mean() == pytest.approx(1.0, abs=0.01)
    steps = found.diff(dim=1).flatten(0, 1)
    covariance = steps.T @ steps / len(steps)
    size = covariance[0, 0]
    # Red and the brightness of the others; half a level is what is not known.
    torch.testing.assert_close(
        covariance[0], size * torch.eye(3)[0].double(), atol=0.1 * size, rtol=0
    )
    assert found[..., 0].std() > 10 * steps[:, 0].std()
    with torch.autocast("cpu", torch.bfloat16):
        assert colors(pixels).dtype == torch.float32


class TestMakePixelSACNetworks:
    @pytest.mark.parametrize("features", [None, 12])
    @pytest.mark.parametrize("shared_encoder", [False, True, "critics"])
    def test_shapes(self, shared_encoder: bool | str, features: int | None) -> None:
        networks = make_networks(shared_encoder, features)
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

    def test_phi_has_eyes_of_its_own_beside_the_critics(self) -> None:
        networks = make_networks("critics", 12)
        shared = {id(weight) for weight in networks.shared_encoder.parameters()}
        assert shared
        for module in (networks.encoder, networks.actor, *networks.critics):
            assert not shared & {id(weight) for weight in module.parameters()}
        assert networks.encoder.in_keys == ["pixels"]

    def test_another_way_to_share_is_refused(self) -> None:
        with pytest.raises(ValueError, match="shared_encoder"):
            make_networks("actor")

    @pytest.mark.parametrize("features", [None, 12])
    @pytest.mark.parametrize("shared_encoder", [False, True, "critics"])
    def test_skill_policy_round_trip(
        self, tmp_path: Path, shared_encoder: bool | str, features: int | None
    ) -> None:
        networks = make_networks(shared_encoder, features)
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
    @pytest.mark.parametrize("features", [None, 12])
    @pytest.mark.parametrize("shared_encoder", [False, True, "critics"])
    def test_every_part_learns(self, shared_encoder: bool | str, features: int | None) -> None:
        networks = make_networks(shared_encoder, features)
        parts = make_step(networks)
        before = copy.deepcopy([parts.metra_loss.state_dict(), parts.sac_loss.state_dict()])
        batch = make_pixel_batch(8)
        keys = set(batch.keys(True, True))
        parts.stepper.update(parts.sac_loss, batch)
        assert set(batch.keys(True, True)) == keys
        for old, loss in zip(before, (parts.metra_loss, parts.sac_loss), strict=True):
            for name, value in loss.state_dict().items():
                # By what φ normalizes colors is constant.
                is_constant = "target" in name or name.endswith("encoder.scale")
                if isinstance(value, torch.Tensor) and not is_constant and value.ndim > 1:
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

    def test_only_critics_train_an_encoder_of_theirs(self) -> None:
        networks = make_networks("critics", 12)
        parts = make_step(networks)
        eyes = list(networks.shared_encoder.parameters())
        assert parts.stepper.trains_shared_encoder
        # By the gradient of the critics' loss in features made of today's pictures.
        batch = make_pixel_batch(8)
        seen = batch.clone()
        losses = parts.metra_loss(seen)
        losses["loss_encoder"].mean().backward()
        assert all(weight.grad is None for weight in eyes)
        before = [weight.clone() for weight in eyes]
        optimizers = parts.stepper.optimizers
        optimizers["qvalue"] = torch.optim.SGD(optimizers["qvalue"].param_groups[0]["params"], 0.0)
        parts.stepper.update(parts.sac_loss, batch)
        assert all(weight.equal(old) for weight, old in zip(eyes, before, strict=True))
        optimizers["qvalue"] = torch.optim.SGD(optimizers["qvalue"].param_groups[0]["params"], 1.0)
        parts.stepper.update(parts.sac_loss, batch)
        assert all(not weight.equal(old) for weight, old in zip(eyes, before, strict=True))
        assert all(weight.grad is None for weight in eyes)

    def test_the_gradient_of_the_critics_is_that_of_their_loss(self) -> None:
        networks = make_networks("critics", 12)
        parts = make_step(networks)
        eyes = list(networks.shared_encoder.parameters())
        batch = make_pixel_batch(8)
        found = {}
        optimizers = parts.stepper.optimizers
        for name in ("encoder", "dual", "actor", "alpha"):
            optimizers[name] = torch.optim.SGD(optimizers[name].param_groups[0]["params"], 0.0)
        qvalue = optimizers["qvalue"] = torch.optim.SGD(
            optimizers["qvalue"].param_groups[0]["params"], 0.0
        )
        qvalue.register_step_pre_hook(
            lambda *_: found.update(grads=[weight.grad.clone() for weight in eyes])
        )
        torch.manual_seed(1)
        parts.stepper.update(parts.sac_loss, batch)

        torch.manual_seed(1)
        data = batch.clone()
        with torch.no_grad():
            data["next", "reward"] = parts.metra_loss.cumulant(data)
            data["next", "features"] = networks.shared_encoder(data["next"])["features"]
        data["next", "skill"] = data["skill"]
        data = networks.shared_encoder(data)
        parts.sac_loss.qvalue_v2_loss(data)[0].backward()
        for grad, weight in zip(found["grads"], eyes, strict=True):
            torch.testing.assert_close(grad, weight.grad)
            assert grad.abs().sum() > 0

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

    @pytest.mark.parametrize(("shared_encoder", "features"), [(True, None), ("critics", 12)])
    def test_as_one_graph(self, shared_encoder: bool | str, features: int | None) -> None:
        torch.manual_seed(3)
        networks = make_networks(shared_encoder, features)
        results = []
        for switches in ({}, {"compile": {"backend": "eager"}}):
            parts = make_step(copy.deepcopy(networks), **switches)
            trainer = SimpleNamespace(loss_module=parts.sac_loss, replay_buffer=None)
            for step in range(4):
                torch.manual_seed(step)
                metrics = parts.stepper.step(trainer, make_pixel_batch(8))
            results.append(metrics)
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_with_the_encoder_of_its_critics(tmp_path: Path) -> None:
    options = {
        "pixels": {"resolution": 32, "frames": 2, "zoom": 1.0},
        "encoder": {"features": 8, "channels": 4, "shared_encoder": "critics"},
        "preset": "debug",
        "checkpoint": {"interval": 400},
        "total_frames": 800,
        "evaluation_interval": 10**9,
        "progress_bar": False,
    }

    def run(name: str, **changes: object) -> list[torch.Tensor]:
        trainer = make_metra("point_pixels", output=str(tmp_path / name), **{**options, **changes})
        trainer.train()
        return [weight.clone() for weight in trainer.skill_policy.parameters()]

    whole = run("whole")
    run("parts", total_frames=400)
    resumed = run("parts", resume="auto")
    assert all(one.equal(other) for one, other in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("shared_encoder", [False, True, "critics"])
def test_trainer(shared_encoder: bool | str) -> None:
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
