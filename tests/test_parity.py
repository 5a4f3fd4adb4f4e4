"""One gradient step against the numbers of the authors' implementation.

``tests/data`` holds what their code computed on tiny networks: weights before and
after, gradients, losses, and the noise that it drew.
"""

from __future__ import annotations

import functools
import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import needs_compiler
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    ControllabilityDistance,
    L2Distance,
    METRALoss,
    METRAOptimizationStepper,
    OneHot,
    UnitSphere,
    make_metra_optimizers,
    make_sac_networks,
)

DATA = Path(__file__).parent / "data"
EXACT = {"rtol": 1e-4, "atol": 1e-5}
# TorchRL's Tanh-Normal guards its log-density otherwise than the authors' code does.
LOG_PROB = {"rtol": 1e-3, "atol": 1e-5}

MLP_LAYERS = {"0": "_layers.0.linear", "2": "_layers.1.linear", "4": "_output_layers.0.linear"}
ENCODER_LAYERS = {
    "0": "_mean_module._layers.0.linear",
    "2": "_mean_module._layers.1.linear",
    "4": "_mean_module._output_layers.0.linear",
}
TRUNK = "_module._shared_mean_log_std_network"


class Golden:
    """A file of recorded numbers."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(DATA / f"{name}.npz")

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def mlp(self, stage: str, module: str, layers: dict[str, str]) -> dict[str, torch.Tensor]:
        return {
            f"{ours}.{kind}": self[f"{stage}/{module}/{theirs}.{kind}"]
            for ours, theirs in layers.items()
            for kind in ("weight", "bias")
        }

    def encoder(self, stage: str) -> dict[str, torch.Tensor]:
        return self.mlp(stage, "traj_encoder", ENCODER_LAYERS)

    def predictor(self, stage: str) -> dict[str, torch.Tensor]:
        return {
            f"{ours}.{key}": value
            for ours, theirs in (("mean", "_mean_module"), ("log_std", "_log_std_module"))
            for key, value in self.mlp(
                stage,
                "dist_predictor",
                {key: name.replace("_mean_module", theirs) for key, name in ENCODER_LAYERS.items()},
            ).items()
        }

    def critic(self, stage: str, name: str) -> dict[str, torch.Tensor]:
        return self.mlp(stage, name, MLP_LAYERS)

    def actor(self, stage: str) -> dict[str, torch.Tensor]:
        prefix = f"{stage}/option_policy/{TRUNK}"
        weights = {
            f"network.{ours}.{kind}": self[f"{prefix}._layers.{layer}.linear.{kind}"]
            for layer, ours in enumerate("02")
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            heads = [self[f"{prefix}._output_layers.{head}.linear.{kind}"] for head in (0, 1)]
            weights[f"head.linear.{kind}"] = torch.cat(heads)
        return weights


class Noise:
    """Gives back the recorded noise, once for the target's action and once for the actor's."""

    def __init__(self, golden: Golden) -> None:
        self.draws = itertools.cycle([golden["next/eps"], golden["new/eps"]])

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        return next(self.draws)


SWITCHES = {
    "eager": {},
    "compiled": {"compile": True},
    "graphs": {"compile": {"backend": "aot_eager"}, "cudagraphs": True},
    "bfloat16": {"autocast": torch.bfloat16},
}
KINDS = ["continuous", "discrete", "l2", "csd"]
# Distances change a few lines of the step: PyTorch's compiler has enough to do with the others.
STEPS = [
    *[(kind, path) for kind in KINDS for path in ("eager", "graphs")],
    *[
        pytest.param((kind, "compiled"), marks=needs_compiler)
        for kind in ("continuous", "discrete")
    ],
]
DISTANCES = {
    "l2": L2Distance,
    "csd": lambda: ControllabilityDistance.from_size(5, num_cells=(32, 32)),
}


def run_step(kind: str, path: str) -> SimpleNamespace:
    """One METRA step from the recorded weights, batch and noise."""
    golden = Golden(kind)
    dim = int(golden["cfg/dim_option"])
    prior = OneHot(dim) if golden["cfg/discrete"] else UnitSphere(dim)
    networks = make_sac_networks(5, Bounded(-1, 1, (2,)), prior, num_cells=(32, 32))
    distance = DISTANCES[kind]() if kind in DISTANCES else None
    metra_loss = METRALoss(networks.encoder, prior, constraint_norm="rms", distance=distance)
    sac_loss = SACLoss(
        networks.actor,
        networks.critics,
        loss_function="l2",
        alpha_init=0.01,
        target_entropy=float(golden["out/target_entropy"]),
    )
    sac_loss.make_value_estimator(gamma=0.99)
    optimizers = make_metra_optimizers(metra_loss, sac_loss)
    stepper = METRAOptimizationStepper(
        metra_loss,
        optimizers,
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        **SWITCHES[path],
    )
    done = golden["in/dones"].bool().unsqueeze(-1)
    batch = TensorDict(
        {
            "observation": golden["in/obs"],
            "action": golden["in/actions"],
            "skill": golden["in/options"],
            "next": {
                "observation": golden["in/next_obs"],
                "done": done,
                "terminated": done.clone(),
            },
        },
        batch_size=[16],
    )
    step = SimpleNamespace(
        golden=golden,
        networks=networks,
        metra_loss=metra_loss,
        sac_loss=sac_loss,
        optimizers=optimizers,
        batch=batch,
        gradients={},
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributions.normal._standard_normal", Noise(golden))
        if stepper.compile:
            # The first steps run as they are and make the graph.
            stepper.step(trainer, batch)
            stepper.step(trainer, batch)
        rewind(step)
        if path == "eager":
            for name, optimizer in optimizers.items():
                optimizer.register_step_pre_hook(partial(_record_gradients, step.gradients, name))
        step.reward_before = metra_loss.reward(batch).detach().squeeze(-1)
        metra_loss.reduction = "none"
        step.per_pair = metra_loss(batch).detach()
        metra_loss.reduction = "mean"
        step.metrics = stepper.step(trainer, batch)
    return step


step_of = functools.cache(run_step)


def rewind(step: SimpleNamespace) -> None:
    """Put every weight and every optimiser back to the recorded start, in place."""
    golden = step.golden
    step.networks.encoder.module.load_state_dict(golden.encoder("init"))
    step.networks.actor.module[0].module.load_state_dict(golden.actor("init"))
    for name, params in (
        ("qf", step.sac_loss.qvalue_network_params),
        ("target_qf", step.sac_loss.target_qvalue_network_params),
    ):
        for index in (0, 1):
            for key, value in golden.critic("init", f"{name}{index + 1}").items():
                params.get(("module", *key.split("."))).data[index] = value
    if "distance" in step.optimizers:
        step.metra_loss.distance.load_state_dict(golden.predictor("init"))
    step.metra_loss.log_dual.data.fill_(float(golden["init/dual_lam/param"]))
    step.sac_loss.log_alpha.data.fill_(float(golden["init/log_alpha/param"]))
    for optimizer in step.optimizers.values():
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=STEPS, ids="-".join)
def step(request: pytest.FixtureRequest) -> SimpleNamespace:
    return step_of(*request.param)


@pytest.fixture(params=["eager", "graphs"])
def csd_step(request: pytest.FixtureRequest) -> SimpleNamespace:
    return step_of("csd", request.param)


@pytest.fixture
def eager_step(kind: str) -> SimpleNamespace:
    return step_of(kind, "eager")


def _record_gradients(
    gradients: dict[str, list[torch.Tensor]],
    name: str,
    optimizer: torch.optim.Optimizer,
    *_: object,
) -> None:
    gradients[name] = [p.grad.clone() for p in optimizer.param_groups[0]["params"]]


def assert_matches(
    actual: torch.Tensor, expected: torch.Tensor, tolerance: dict[str, float]
) -> None:
    torch.testing.assert_close(actual.detach(), expected.reshape(actual.shape), **tolerance)


def test_rewards(step: SimpleNamespace) -> None:
    assert_matches(step.reward_before, step.golden["out/rewards_before"], EXACT)
    after = step.metra_loss.reward(step.batch).detach()
    assert_matches(after, step.golden["out/rewards_after"], EXACT)
    # The relabelled rewards must really be others than those before the update.
    assert (after.squeeze(-1) - step.reward_before).abs().max() > 1e-3


def test_constraint(step: SimpleNamespace) -> None:
    expected = step.golden["out/cst_penalty"]
    assert (expected < 0).any()
    assert (expected > 0).any()
    assert_matches(step.per_pair["constraint"], expected, EXACT)
    assert_matches(-step.per_pair["loss_encoder"], step.golden["out/te_obj"], EXACT)


def test_encoder_and_dual_losses(step: SimpleNamespace) -> None:
    assert_matches(step.metrics["loss_encoder"], step.golden["out/LossTe"], EXACT)
    assert_matches(step.metrics["loss_dual"], step.golden["out/LossDualLam"], EXACT)
    assert_matches(step.metrics["dual"], step.golden["out/DualLam"], EXACT)


def test_encoder_gradients(eager_step: SimpleNamespace) -> None:
    step = eager_step
    names = [key for key, _ in step.metra_loss.encoder_params.named_parameters()]
    expected = step.golden.encoder("grad")
    assert len(names) == len(expected)
    for name, gradient in zip(names, step.gradients["encoder"], strict=True):
        assert_matches(gradient, expected[name.removeprefix("module.")], EXACT)
    assert_matches(step.gradients["dual"][0], step.golden["grad/dual_lam/param"], EXACT)


def test_encoder_and_dual_after_one_step(step: SimpleNamespace) -> None:
    gradients = step.golden.encoder("grad")
    for name, expected in step.golden.encoder("after").items():
        actual = step.networks.encoder.module.get_parameter(name)
        # A bias that serves s and s' alike cancels in φ(s') - φ(s): its gradient is zero up to
        # rounding, which Adam blows up to one learning rate in either direction.
        cancels = gradients[name] == 0
        assert_matches(actual[~cancels], expected[~cancels], EXACT)
        assert_matches(actual[cancels], expected[cancels], {"rtol": 0, "atol": 2e-4})
    assert_matches(step.metra_loss.log_dual, step.golden["after/dual_lam/param"], EXACT)


def test_distance(csd_step: SimpleNamespace) -> None:
    step = csd_step
    assert_matches(step.metrics["loss_distance"], step.golden["out/LossDp"], EXACT)
    before = step.golden.predictor("init")
    for name, expected in step.golden.predictor("after").items():
        assert_matches(step.metra_loss.distance.get_parameter(name), expected, EXACT)
        assert not expected.equal(before[name])


def test_distance_gradients() -> None:
    step = step_of("csd", "eager")
    names = [name for name, _ in step.metra_loss.distance.named_parameters()]
    expected = step.golden.predictor("grad")
    for name, gradient in zip(names, step.gradients["distance"], strict=True):
        assert_matches(gradient, expected[name], EXACT)


def test_critics(step: SimpleNamespace) -> None:
    # TorchRL's l2 is twice the authors' 0.5 · MSE, which Adam does not notice.
    expected = 2 * (step.golden["out/LossQf1"] + step.golden["out/LossQf2"])
    assert_matches(step.metrics["loss_qvalue"], expected, LOG_PROB)
    for index, critic in enumerate(("qf1", "qf2")):
        for name, after in step.golden.critic("after", critic).items():
            parameter = step.sac_loss.qvalue_network_params.get(("module", *name.split(".")))
            assert_matches(parameter[index], after, EXACT)


def test_critic_gradients(eager_step: SimpleNamespace) -> None:
    step = eager_step
    names = [key for key, _ in step.sac_loss.qvalue_network_params.named_parameters()]
    for index, critic in enumerate(("qf1", "qf2")):
        expected = step.golden.critic("grad", critic)
        for name, gradient in zip(names, step.gradients["qvalue"], strict=True):
            assert_matches(gradient[index] / 2, expected[name.removeprefix("module.")], LOG_PROB)


def test_critic_target(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = run_step(kind, "eager")
    reward = step.metra_loss.reward(step.batch).detach()
    rewind(step)
    step.batch["next", "reward"] = reward
    step.batch["next", "skill"] = step.batch["skill"]
    monkeypatch.setattr("torch.distributions.normal._standard_normal", Noise(step.golden))
    target = step.sac_loss._compute_target_v2(step.batch)
    assert_matches(target, step.golden["out/q_target"], LOG_PROB)


def test_actor_and_entropy_coefficient(step: SimpleNamespace) -> None:
    assert_matches(step.metrics["loss_actor"], step.golden["out/LossSacp"], LOG_PROB)
    assert_matches(step.metrics["loss_alpha"], step.golden["out/LossAlpha"], LOG_PROB)
    assert_matches(-step.metrics["entropy"], step.golden["out/SacpNewActionLogProbMean"], LOG_PROB)
    after = step.golden.actor("after")
    for name, expected in after.items():
        assert_matches(step.networks.actor.module[0].module.get_parameter(name), expected, EXACT)
    assert_matches(step.sac_loss.log_alpha, step.golden["after/log_alpha/param"], EXACT)


def test_target_networks(step: SimpleNamespace) -> None:
    for index, name in enumerate(("target_qf1", "target_qf2")):
        for key, expected in step.golden.critic("after", name).items():
            path = ("module", *key.split("."))
            assert_matches(
                step.sac_loss.target_qvalue_network_params.get(path)[index], expected, EXACT
            )


def test_bfloat16_stays_close(kind: str) -> None:
    """Two to three digits of the policy's losses; all of the encoder's, which is exact."""
    step = step_of(kind, "bfloat16")
    golden = step.golden
    expected = {
        "loss_encoder": golden["out/LossTe"],
        "loss_dual": golden["out/LossDualLam"],
        "loss_qvalue": 2 * (golden["out/LossQf1"] + golden["out/LossQf2"]),
        "loss_actor": golden["out/LossSacp"],
        "loss_alpha": golden["out/LossAlpha"],
    }
    for name, value in expected.items():
        assert step.metrics[name].dtype == torch.float32
        assert_matches(step.metrics[name], value, {"rtol": 2e-2, "atol": 2e-3})
    assert_matches(step.metrics["loss_encoder"], expected["loss_encoder"], EXACT)
    exact = step_of(kind, "eager").metrics
    assert step.metrics["loss_qvalue"] != exact["loss_qvalue"], "nothing ran in bfloat16"
    for module in (step.metra_loss, step.sac_loss):
        assert all(p.dtype == torch.float32 for p in module.parameters())
