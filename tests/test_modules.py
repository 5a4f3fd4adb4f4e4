from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Bounded
from torchrl.envs import Compose, EnvBase, ObservationNorm, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, TanhNormal

from torchrl_metra import (
    LSDLoss,
    OneHot,
    PointEnv,
    SkillConditionedActor,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.evaluation import rollout_skills
from torchrl_metra.modules import Float32Linear, NormalHead, SACNetworks

PRIOR = UnitSphere(3)
ACTION_SPEC = Bounded(-1, 1, (2,))


def states(batch: int = 6) -> TensorDict:
    return TensorDict(
        {"observation": torch.randn(batch, 4), "skill": PRIOR.sample([batch])}, [batch]
    )


class TestSkillConditionedActor:
    def test_any_feature_network(self) -> None:
        class Features(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bilinear = nn.Bilinear(4, 3, 8)

            def forward(self, observation: torch.Tensor, skill: torch.Tensor) -> torch.Tensor:
                return self.bilinear(observation, skill)

        actor = SkillConditionedActor(Features(), 8, Bounded(-1, 1, (2,)))
        assert actor(states())["action"].shape == (6, 2)
        assert actor.in_keys == ["observation", "skill"]

    def test_deterministic_action_is_tanh_of_the_mean(self) -> None:
        networks = make_sac_networks(4, Bounded(-1, 1, (2,)), PRIOR, num_cells=[8])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            out = networks.actor(states())
        torch.testing.assert_close(out["action"], out["loc"].tanh())
        with set_exploration_type(ExplorationType.RANDOM):
            again = networks.actor(out.clone())["action"]
        assert not again.allclose(out["action"])

    def test_respects_the_bounds_of_the_action(self) -> None:
        spec = Bounded(torch.tensor([-3.0, 0.0]), torch.tensor([-1.0, 5.0]))
        actor = make_sac_networks(4, spec, PRIOR, num_cells=[8]).actor
        with set_exploration_type(ExplorationType.RANDOM):
            action = actor(states(500))["action"]
        assert spec.expand(500, 2).is_in(action)
        assert (action[:, 1] > 1).any()

    def test_standard_deviation_is_clamped(self) -> None:
        head = NormalHead(1, 1)
        nn.init.zeros_(head.linear.weight)
        for bias, expected in ((99.0, math.exp(2)), (-99.0, 1e-6)):
            nn.init.constant_(head.linear.bias, bias)
            assert head(torch.zeros(1))[1].item() == pytest.approx(expected, rel=1e-4)


class TestMakeSACNetworks:
    def test_the_authors_initialization(self) -> None:
        networks = make_sac_networks(29, Bounded(-1, 1, (8,)), UnitSphere(2))
        trunk = networks.actor.module[0].module
        for module in (networks.encoder, *networks.critics, networks.actor):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    assert parameter.eq(0).all()
        xavier_std = math.sqrt(2 / (1024 + 1024))
        for layer in (
            networks.encoder.module[2],
            networks.critics[0].module[2],
            trunk.network[2],
        ):
            assert layer.weight.std().item() == pytest.approx(xavier_std, rel=0.05)
        # Uniform weights end at √3 standard deviations, normal ones do not.
        assert networks.encoder.module[2].weight.abs().max() < 1.74 * xavier_std
        assert networks.critics[0].module[2].weight.abs().max() > 3 * xavier_std
        head = trunk.head.linear.weight
        assert head.std().item() == pytest.approx(0.1 * math.sqrt(2 / (1024 + 8)), rel=0.05)
        assert isinstance(trunk.network[1], nn.Tanh)
        assert isinstance(networks.encoder.module[1], nn.ReLU)

    @pytest.mark.parametrize("has_encoder", [True, False])
    def test_move_to_a_device(self, has_encoder: bool) -> None:
        networks = make_pixel_sac_networks(
            (3, 32, 32), ACTION_SPEC, PRIOR, num_cells=[8], channels=4, shared_encoder=True
        )
        if not has_encoder:
            networks.encoder = None
        modules = [networks.to("meta").policy, *networks.critics, networks.encoder]
        assert all(p.is_meta for m in modules if m is not None for p in m.parameters())


class TestPolicyIgnores:
    ignored = (0, 2)

    def build(self) -> SACNetworks:
        return make_sac_networks(
            4, ACTION_SPEC, PRIOR, num_cells=[8, 8], policy_ignores=self.ignored
        )

    def outputs(self, networks: SACNetworks, inputs: TensorDict) -> dict[str, torch.Tensor]:
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            out = networks.encoder(networks.critics[0](networks.actor(inputs.clone())))
        return {key: out[key] for key in ("action", "scale", "state_action_value", "latent")}

    def test_the_policy_sees_the_others_and_the_rest_sees_all(self) -> None:
        networks, inputs = self.build(), states()
        before = self.outputs(networks, inputs)
        for entry in range(4):
            changed = inputs.clone()
            changed["observation"][:, entry] += 100.0
            after = self.outputs(networks, changed)
            same = {key for key, value in before.items() if value.equal(after[key])}
            assert same == ({"action", "scale"} if entry in self.ignored else set())
        changed["observation"][:, list(self.ignored)] = math.nan
        assert self.outputs(networks, changed)["action"].isfinite().all()

    def test_is_the_policy_of_the_remaining_entries(self) -> None:
        networks, inputs = self.build(), states()
        small = make_sac_networks(2, ACTION_SPEC, PRIOR, num_cells=[8, 8]).actor
        small.load_state_dict(
            dict(zip(small.state_dict(), networks.actor.state_dict().values(), strict=True))
        )
        expected = small.get_dist(inputs.clone().set("observation", inputs["observation"][:, 1::2]))
        assert networks.actor.get_dist(inputs).loc.equal(expected.loc)

    def test_a_policy_may_read_the_skill_alone(self) -> None:
        networks = make_sac_networks(4, ACTION_SPEC, PRIOR, num_cells=[8], policy_ignores=range(4))
        inputs = states()
        with torch.no_grad():
            loc = networks.actor.get_dist(inputs).loc
            moved = networks.actor.get_dist(inputs.set("observation", torch.randn(6, 4))).loc
        assert loc.equal(moved)
        assert not loc[0].allclose(loc[1])

    def test_round_trip(self, tmp_path: Path) -> None:
        networks = self.build()
        SkillPolicy.from_networks(networks, PRIOR).save(tmp_path / "skills.pt")
        loaded = SkillPolicy.load(tmp_path / "skills.pt")
        assert loaded.architecture == networks.architecture
        inputs = states()
        assert loaded.actor.get_dist(inputs).loc.equal(networks.actor.get_dist(inputs).loc)

    def test_files_without_it_are_as_they_were(self, tmp_path: Path) -> None:
        networks = make_sac_networks(4, ACTION_SPEC, PRIOR, num_cells=[8])
        SkillPolicy.from_networks(networks, PRIOR).save(tmp_path / "skills.pt")
        content = torch.load(tmp_path / "skills.pt")
        assert content["architecture"] == {
            "observation_size": 4, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0),
            "num_cells": (8,),
        }  # fmt: skip
        assert list(content["actor"]) == [
            f"module.0.module.{layer}.{kind}"
            for layer in ("network.0", "head.linear")
            for kind in ("weight", "bias")
        ]

    @pytest.mark.parametrize("ignored", [[4], [-1], [1, 1]])
    def test_entries_that_do_not_exist(self, ignored: list[int]) -> None:
        with pytest.raises(ValueError, match="policy_ignores"):
            make_sac_networks(4, ACTION_SPEC, PRIOR, num_cells=[8], policy_ignores=ignored)


class TestSkillPolicy:
    @pytest.mark.parametrize("prior", [UnitSphere(3), OneHot(5)])
    def test_round_trip(self, tmp_path: Path, prior) -> None:
        spec = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]))
        networks = make_sac_networks(4, spec, prior, num_cells=[8, 12])
        policy = SkillPolicy.from_networks(networks, prior, env_name="ant", constraint_norm="rms")
        policy.save(tmp_path / "new" / "skills.pt")
        loaded = SkillPolicy.load(tmp_path / "new" / "skills.pt")
        assert loaded.prior == prior
        assert (loaded.env_name, loaded.constraint_norm) == ("ant", "rms")
        assert loaded.architecture == networks.architecture
        inputs = TensorDict({"observation": torch.randn(6, 4), "skill": prior.sample([6])}, [6])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            torch.testing.assert_close(
                loaded.actor(inputs.clone())["action"], networks.actor(inputs.clone())["action"]
            )
        torch.testing.assert_close(
            loaded.encoder(inputs.clone())["latent"], networks.encoder(inputs.clone())["latent"]
        )
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["skills.pt"]

    def test_keeps_all_normalizations_together(self) -> None:
        norms = [
            ObservationNorm(
                loc=torch.tensor([1.0, 2.0 * number]),
                scale=torch.tensor([2.0, 4.0 + number]),
                in_keys=["observation"],
                standard_normal=number != 1,
            )
            for number in range(3)
        ]
        inside = TransformedEnv(PointEnv(2), Compose(norms[0], Compose(norms[1])))
        around = Compose(SkillPrimer(PRIOR), norms[2])
        env = TransformedEnv(inside, around, auto_unwrap=False)
        networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[8])
        kept = SkillPolicy.from_networks(networks, PRIOR, env).observation_norm
        raw = torch.tensor([5.0, 6.0])
        shown = TensorDict({"observation": raw}, [])
        for norm in norms:
            shown = norm(shown)
        torch.testing.assert_close(shown["observation"], (raw - kept["loc"]) / kept["scale"])

    def test_a_normalization_in_workers_is_out_of_sight(self) -> None:
        def make() -> TransformedEnv:
            norm = ObservationNorm(loc=0.0, scale=2.0, in_keys=["observation"])
            return TransformedEnv(PointEnv(), norm)

        env = TransformedEnv(SerialEnv(2, make), SkillPrimer(PRIOR))
        networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[8])
        with pytest.warns(UserWarning, match=r"ObservationNorm inside of its workers"):
            assert SkillPolicy.from_networks(networks, PRIOR, env).observation_norm is None

    def test_own_networks(self, tmp_path: Path) -> None:
        def build() -> tuple[SkillConditionedActor, nn.Module]:
            trunk = MLP(in_features=7, out_features=8, num_cells=[5])
            return SkillConditionedActor(trunk, 8, Bounded(-1, 1, (2,))), nn.Linear(4, 3)

        actor, encoder = build()
        SkillPolicy(actor, encoder, PRIOR).save(tmp_path / "skills.pt")
        with pytest.raises(ValueError, match=r"pass them as `actor` and `encoder`"):
            SkillPolicy.load(tmp_path / "skills.pt")
        fresh_actor, fresh_encoder = build()
        SkillPolicy.load(tmp_path / "skills.pt", actor=fresh_actor, encoder=fresh_encoder)
        assert fresh_encoder.weight.equal(encoder.weight)

    def test_round_trip_without_an_encoder(self, tmp_path: Path) -> None:
        path = tmp_path / "skills.pt"
        networks = make_sac_networks(4, ACTION_SPEC, PRIOR, num_cells=[8])
        networks.encoder = None
        SkillPolicy.from_networks(networks, PRIOR, constraint_norm=None).save(path)
        loaded = SkillPolicy.load(path)
        assert (loaded.encoder, loaded.constraint_norm) == (None, None)
        assert loaded.architecture == networks.architecture
        inputs = states()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = networks.actor(inputs.clone())["action"]
            assert loaded.actor(inputs)["action"].equal(action)

    def test_normalized_layers_become_plain_ones(self, tmp_path: Path) -> None:
        networks = make_sac_networks(4, ACTION_SPEC, PRIOR, num_cells=[8])
        lsd_loss = LSDLoss(networks.encoder, PRIOR)
        batch = states()
        batch["next", "observation"] = torch.randn(6, 4)
        for parameter in lsd_loss.encoder.parameters():
            parameter.data += torch.randn_like(parameter)  # iterations would show
        before = {key: value.clone() for key, value in networks.encoder.state_dict().items()}
        SkillPolicy.from_networks(networks, PRIOR).save(tmp_path / "skills.pt")
        after = networks.encoder.state_dict()
        assert any(key.endswith("_u") for key in after)
        assert all(value.equal(before[key]) for key, value in after.items())
        assert all(module.training for module in networks.encoder.modules())
        loaded = SkillPolicy.load(tmp_path / "skills.pt").encoder
        assert not any("parametrizations" in key for key in loaded.state_dict())
        latent = networks.encoder.eval()(batch.clone())["latent"]
        torch.testing.assert_close(loaded(batch.clone())["latent"], latent)
        lsd_loss(batch)["loss_encoder"].backward()

    def test_normalized_layers_that_the_actor_shares(self, tmp_path: Path) -> None:
        networks = make_pixel_sac_networks(
            (3, 32, 32), ACTION_SPEC, PRIOR, num_cells=[8], channels=4, shared_encoder=True
        )
        LSDLoss(networks.encoder, PRIOR)
        SkillPolicy.from_networks(networks, PRIOR).save(tmp_path / "skills.pt")
        policy = SkillPolicy.load(tmp_path / "skills.pt").actor
        pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        inputs = TensorDict({"pixels": pixels, "skill": PRIOR.sample([5])}, [5])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = networks.policy.eval()(inputs.clone())["action"]
            torch.testing.assert_close(policy(inputs)["action"], action)

    def test_files_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "other.pt"
        for content in ({"format": "something.else"}, [1, 2]):
            torch.save(content, path)
            with pytest.raises(ValueError, match="not a skill policy file"):
                SkillPolicy.load(path)

    def test_newer_format(self, tmp_path: Path) -> None:
        path = tmp_path / "skills.pt"
        networks = make_sac_networks(4, Bounded(-1, 1, (2,)), PRIOR, num_cells=[8])
        SkillPolicy.from_networks(networks, PRIOR).save(path)
        content = torch.load(path, weights_only=True)
        torch.save({**content, "format_version": 99}, path)
        with pytest.raises(ValueError, match=r"version 99.*Upgrade"):
            SkillPolicy.load(path)


class TestSkillPolicyActs:
    """A SkillPolicy stands wherever TorchRL takes a policy."""

    def make(self, env: EnvBase) -> SkillPolicy:
        networks = make_sac_networks(2, env.action_spec, PRIOR, num_cells=[8])
        return SkillPolicy.from_networks(networks, PRIOR, env)

    def test_rollouts(self) -> None:
        env = make_env("point", num_envs=4).append_transform(SkillPrimer(PRIOR))
        policy = self.make(env)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            rollout = env.rollout(9, policy)
        expected = policy.actor.get_dist(rollout).deterministic_sample
        torch.testing.assert_close(rollout["action"], expected)
        skills = PRIOR.grid(6)
        one, other = (rollout_skills(env, p, skills, max_steps=5) for p in (policy, policy.actor))
        assert one["action"].equal(other["action"])

    def test_a_collector_draws_the_same_actions(self) -> None:
        actions = []
        for of_actor in (False, True):
            torch.manual_seed(3)
            env = make_env("point", num_envs=4).append_transform(SkillPrimer(PRIOR))
            policy = self.make(env)
            collector = Collector(
                env, policy.actor if of_actor else policy, frames_per_batch=40, total_frames=80
            )
            actions.append(torch.stack([batch["action"].clone() for batch in collector]))
            collector.shutdown()
        assert actions[0].equal(actions[1])

    def test_does_not_normalize_again(self) -> None:
        norm = ObservationNorm(loc=1.0, scale=2.0, in_keys=["observation"], standard_normal=True)
        env = TransformedEnv(PointEnv(3), Compose(norm, SkillPrimer(PRIOR)))
        policy = self.make(env)
        states = env.reset()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            assert policy(states.copy())["action"].equal(policy.actor(states.copy())["action"])

    def test_state_dict_and_copies(self) -> None:
        env = make_env("point", num_envs=4)
        policy, other = self.make(env), self.make(env)
        other.load_state_dict(policy.state_dict())
        assert {key.partition(".")[0] for key in policy.state_dict()} == {"actor", "encoder"}
        inputs = TensorDict({"observation": torch.randn(5, 2), "skill": PRIOR.sample([5])}, [5])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            action = policy(inputs.clone())["action"]
            for again in (other, copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
                assert again(inputs.clone())["action"].equal(action)


class TestFloat32Linear:
    def test_output_is_exact_under_autocast_and_gradients_are_close(self) -> None:
        layer = Float32Linear(5, 3)
        results = []
        for enabled in (False, True):
            inputs = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
            inputs.requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                output = layer(inputs)
            output.square().sum().backward()
            results.append((output, inputs.grad, layer.weight.grad, layer.bias.grad))
            layer.zero_grad()
        (exact, *gradients), (output, *low) = results
        assert output.dtype == torch.float32
        assert output.equal(exact)
        for gradient, other in zip(gradients, low, strict=True):
            assert other.dtype == torch.float32
            torch.testing.assert_close(other, gradient, rtol=3e-2, atol=3e-2)
        assert not low[0].equal(gradients[0]), "the products of gradients are still in float32"

    def test_latents_far_from_the_origin_keep_their_differences(self) -> None:
        encoder = make_sac_networks(2, ACTION_SPEC, UnitSphere(2), num_cells=[64, 64]).encoder
        state = torch.tensor([[100.0, 50.0]])
        step = torch.tensor([[0.05, 0.0]])
        with torch.no_grad():
            exact = encoder.module(state + step) - encoder.module(state)
            with torch.autocast("cpu", torch.bfloat16):
                mixed = encoder.module(state + step) - encoder.module(state)
        torch.testing.assert_close(mixed, exact, rtol=1e-3, atol=1e-5)


class TestFastActor:
    """Without gradients the actor draws its actions itself: as TanhNormal would."""

    @pytest.mark.parametrize("high", [1.0, 3.0])
    def test_deterministic_actions_are_the_same(self, high: float) -> None:
        actor = make_sac_networks(2, Bounded(-1, high, (2,)), UnitSphere(2), num_cells=[16]).actor
        states = TensorDict({"observation": torch.randn(7, 2), "skill": torch.randn(7, 2)}, [7])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            stock = actor(states.copy())
            with torch.no_grad():
                fast = actor(states.copy())
        assert set(fast.keys()) == set(stock.keys())
        torch.testing.assert_close(fast["action"], stock["action"])

    def test_random_actions_have_the_same_distribution(self) -> None:
        actor = make_sac_networks(2, Bounded(-1, 3, (2,)), UnitSphere(2), num_cells=[16]).actor
        state = TensorDict({"observation": torch.randn(2), "skill": torch.randn(2)})
        states = state.expand(20_000)
        with set_exploration_type(ExplorationType.RANDOM):
            stock = actor(states.copy())["action"].detach()
            with torch.no_grad():
                fast = actor(states.copy())["action"]
        assert not fast.equal(stock)
        quantiles = torch.linspace(0.02, 0.98, 13)
        torch.testing.assert_close(
            fast.quantile(quantiles, dim=0), stock.quantile(quantiles, dim=0), rtol=0, atol=0.08
        )
        assert fast.max() < 3
        assert fast.min() > -1

    def test_saturated_actions_stay_off_the_bounds(self) -> None:
        actor = make_sac_networks(2, ACTION_SPEC, UnitSphere(2), num_cells=[16]).actor
        torch.nn.init.constant_(actor.module[0].module.head.linear.bias, 50.0)
        state = TensorDict({"observation": torch.randn(3, 2), "skill": torch.randn(3, 2)}, [3])
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            action = actor(state)["action"]
        assert (action < 1).all()
        assert (action > 0.999).all()

    @pytest.mark.parametrize("high", [1.0, 3.0])
    def test_its_distribution_is_the_stock_one(self, high: float) -> None:
        actor = make_sac_networks(2, Bounded(-1, high, (2,)), UnitSphere(2), num_cells=[16]).actor
        states = TensorDict({"observation": torch.randn(7, 2), "skill": torch.randn(7, 2)}, [7])
        dist = actor.get_dist(states)
        loc, scale = (dist.root_dist.loc, dist.root_dist.scale)
        stock = TanhNormal(loc, scale, low=-1.0, high=high)
        torch.manual_seed(0)
        action, log_prob = dist.rsample_and_log_prob()
        torch.manual_seed(0)
        expected = stock.rsample_and_log_prob()
        torch.testing.assert_close((action, log_prob), expected)
        torch.testing.assert_close(dist.log_prob(action), stock.log_prob(action))
        torch.testing.assert_close(dist.deterministic_sample, stock.deterministic_sample)
