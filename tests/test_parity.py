"""One gradient step against the numbers of the authors' implementation.

``tests/data`` holds what their code computed on tiny networks, of METRA and of the methods
that they compare with: weights before and after, gradients, losses, and the noise that it drew.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import needs_compiler
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.objectives import SACLoss
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    ControllabilityDistance,
    CSDLoss,
    DADSLoss,
    DIAYNLoss,
    L2Distance,
    LSDLoss,
    METRALoss,
    METRAOptimizationStepper,
    OneHot,
    SkillLoss,
    SkillPrior,
    StandardNormal,
    UnitSphere,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.modules import SACNetworks
from torchrl_metra.modules.networks import make_encoder

DATA = Path(__file__).parent / "data"
# Sums of float32 differ with the width of the processor's vectors.
EXACT = {"rtol": 1e-4, "atol": 3e-5}
# TorchRL's Tanh-Normal guards its log-density otherwise than the authors' code does.
LOG_PROB = {"rtol": 1e-3, "atol": 1e-5}

SIZE, NUM_CELLS = 5, (32, 32)


class Golden:
    """A file of recorded numbers."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(DATA / f"{name}.npz")

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files


class Place(NamedTuple):
    """Where of our tensors a recorded array belongs."""

    tensor: Tensor
    index: Any = ...


# By their recorded names.
Places = dict[str, Place]


class Objective(NamedTuple):
    """A skill loss, and where the recorded weights belong."""

    loss: SkillLoss
    parts: dict[str, Places]
    buffers: Places


def linear(network: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in network if isinstance(layer, nn.Linear)]


def layers(network: nn.Sequential, name: str) -> list[tuple[nn.Linear, str]]:
    """The linear layers and what the authors' multilayer perceptrons call them."""
    *hidden, last = linear(network)
    named = [(layer, f"{name}._layers.{i}.linear") for i, layer in enumerate(hidden)]
    return [*named, (last, f"{name}._output_layers.0.linear")]


def weights(network: nn.Sequential, name: str) -> Places:
    return {
        f"{recorded}.{kind}": Place(getattr(layer, kind))
        for layer, recorded in layers(network, name)
        for kind in ("weight", "bias")
    }


def metra(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    return _metra(METRALoss(encoder, prior, constraint_norm="rms"))


def l2(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    return _metra(METRALoss(encoder, prior, constraint_norm="rms", distance=L2Distance()))


def csd(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    distance = ControllabilityDistance.from_size(SIZE, num_cells=NUM_CELLS)
    objective = _metra(CSDLoss(encoder, prior, distance, constraint_norm="rms"))
    objective.parts["distance"] = {
        **weights(distance.mean, "dist_predictor/_mean_module"),
        **weights(distance.log_std, "dist_predictor/_log_std_module"),
    }
    return objective


def _metra(loss: METRALoss) -> Objective:
    parts = {
        "encoder": weights(loss.encoder.module, "traj_encoder/_mean_module"),
        "dual": {"dual_lam/param": Place(loss.log_dual)},
    }
    return Objective(loss, parts, {})


def lsd(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    loss = LSDLoss(encoder, prior)
    parameters, buffers = {}, {}
    for layer, name in layers(encoder.module, "traj_encoder/_mean_module"):
        parametrization = layer.parametrizations.weight
        parameters[f"{name}.weight_orig"] = Place(parametrization.original)
        parameters[f"{name}.bias"] = Place(layer.bias)
        for key, vector in parametrization[0].named_buffers():
            buffers[f"{name}.weight{key}"] = Place(vector)
    return Objective(loss, {"encoder": parameters}, buffers)


def diayn(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    parameters, log_std = weights(encoder.module, "traj_encoder/_mean_module"), None
    if not isinstance(prior, OneHot):
        log_std = make_encoder(SIZE, prior.dim, NUM_CELLS)
        parameters |= weights(log_std, "traj_encoder/_log_std_module")
    return Objective(DIAYNLoss(encoder, prior, log_std=log_std), {"encoder": parameters}, {})


def dads(golden: Golden, prior: SkillPrior, encoder: TensorDictModule) -> Objective:
    loss = DADSLoss.from_size(SIZE, prior, num_cells=NUM_CELLS)
    # The authors' has weights, which they never train.
    loss.observation_norm = nn.BatchNorm1d(SIZE, momentum=0.01).requires_grad_(False)
    norms = {"input": loss.observation_norm, "target": loss.change_norm}
    buffers = {
        f"sd_{name}_batch_norm/{key}": Place(value)
        for name, norm in norms.items()
        for key, value in norm.state_dict().items()
        if key != "num_batches_tracked"
    }
    others = golden["in/alt_options"].reshape(loss.num_alternatives, -1, prior.dim)
    prior.sample = lambda *args, **kwargs: others  # type: ignore[method-assign]
    dynamics = weights(loss.dynamics, "skill_dynamics/_mean_module")
    return Objective(loss, {"dynamics": dynamics}, buffers)


OBJECTIVES: dict[str, Callable[[Golden, SkillPrior, TensorDictModule], Objective]] = {
    "continuous": metra,
    "discrete": metra,
    "l2": l2,
    "csd": csd,
    "lsd": lsd,
    "diayn": diayn,
    "diayn_discrete": diayn,
    "dads": dads,
}

SWITCHES = {
    "eager": {},
    "compiled": {"compile": True},
    "graphs": {"compile": {"backend": "eager"}, "cudagraphs": True},
    "bfloat16": {"autocast": torch.bfloat16},
}
# Objectives change a few lines of the step: PyTorch's compiler has enough to do with METRA's.
STEPS = [
    *[(kind, "eager") for kind in OBJECTIVES],
    *[(kind, "graphs") for kind in ("discrete", "csd", "lsd", "diayn", "dads")],
    pytest.param(("continuous", "compiled"), marks=needs_compiler),
]


def policy(networks: SACNetworks, sac_loss: SACLoss) -> dict[str, Places]:
    """Where the recorded weights of SAC belong."""
    trunk, head = (networks.actor.module[0].module.get_submodule(n) for n in ("network", "head"))
    name = "option_policy/_module._shared_mean_log_std_network"
    actor = {
        f"{name}._layers.{index}.linear.{kind}": Place(getattr(layer, kind))
        for index, layer in enumerate(linear(trunk))
        for kind in ("weight", "bias")
    }
    for kind, value in head.linear.named_parameters():
        mean, log_std = range(2), range(2, 4)
        actor[f"{name}._output_layers.0.linear.{kind}"] = Place(value, mean)
        actor[f"{name}._output_layers.1.linear.{kind}"] = Place(value, log_std)
    return {
        "qvalue": _critics(sac_loss.qvalue_network_params, "qf"),
        "target": _critics(sac_loss.target_qvalue_network_params, "target_qf"),
        "actor": actor,
        "alpha": {"log_alpha/param": Place(sac_loss.log_alpha)},
    }


def _critics(params: TensorDict, name: str) -> Places:
    names = {"0": "_layers.0.linear", "2": "_layers.1.linear", "4": "_output_layers.0.linear"}
    return {
        f"{name}{index + 1}/{recorded}.{kind}": Place(params.get(("module", layer, kind)), index)
        for index in range(2)
        for layer, recorded in names.items()
        for kind in ("weight", "bias")
    }


class RecordingStepper(METRAOptimizationStepper):
    """Returns the rewards, too, that the critics were trained on."""

    def update(self, sac_loss: SACLoss, batch: TensorDict) -> TensorDict:
        rewards, cumulant = [], self.skill_loss.cumulant

        def recorded(batch: TensorDict) -> Tensor:
            rewards.append(cumulant(batch))
            return rewards[0]

        with patch.object(self.skill_loss, "cumulant", recorded):
            metrics = super().update(sac_loss, batch)
        (reward,) = rewards
        return metrics.set("rewards", reward.squeeze(-1))


class Noise:
    """Gives back the recorded noise, once for the target's action and once for the actor's."""

    def __init__(self, golden: Golden) -> None:
        self.draws = itertools.cycle([golden["next/eps"], golden["new/eps"]])

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        return next(self.draws)


def run_step(kind: str, path: str) -> SimpleNamespace:
    """One step from the recorded weights, batch and noise."""
    golden = Golden(kind)
    continuous = UnitSphere if golden["cfg/unit_length"] else StandardNormal
    prior = (OneHot if golden["cfg/discrete"] else continuous)(int(golden["cfg/dim_option"]))
    networks = make_sac_networks(SIZE, Bounded(-1, 1, (2,)), prior, num_cells=NUM_CELLS)
    objective = OBJECTIVES[kind](golden, prior, networks.encoder)
    sac_loss = SACLoss(
        networks.actor,
        networks.critics,
        loss_function="l2",
        alpha_init=0.01,
        target_entropy=float(golden["out/target_entropy"]),
    )
    sac_loss.make_value_estimator(gamma=0.99)
    optimizers = make_metra_optimizers(objective.loss, sac_loss)
    stepper = RecordingStepper(
        objective.loss,
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
        skill_loss=objective.loss,
        sac_loss=sac_loss,
        skill_parts=list(objective.parts),
        parts={**objective.parts, **policy(networks, sac_loss)},
        buffers=objective.buffers,
        optimizers=optimizers,
        batch=batch,
        gradients={},
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.distributions.normal._standard_normal", Noise(golden))
        if stepper.compile:
            # The first steps run as they are and make the graph.
            stepper.step(trainer, batch)
            stepper.step(trainer, batch)
        if path == "eager":
            for optimizer in optimizers.values():
                optimizer.register_step_pre_hook(partial(_record_gradients, step.gradients))
        rewind(step)
        step.reward_before = objective.loss.reward(batch).detach().squeeze(-1)
        # Some objectives are others after each call: spectral norms, running statistics.
        rewind(step)
        objective.loss.reduction = "none"
        step.per_pair = objective.loss(batch).detach()
        objective.loss.reduction = "mean"
        rewind(step)
        step.metrics = stepper.step(trainer, batch)
    return step


step_of = functools.cache(run_step)


def rewind(step: SimpleNamespace) -> None:
    """Put every weight and every optimizer back to the recorded start, in place."""
    for places in (*step.parts.values(), step.buffers):
        for name, (tensor, index) in places.items():
            value = step.golden[f"init/{name}"]
            tensor.data[index] = value.reshape(tensor.data[index].shape)
    for optimizer in step.optimizers.values():
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()


@pytest.fixture(params=OBJECTIVES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=STEPS, ids="-".join)
def step(request: pytest.FixtureRequest) -> SimpleNamespace:
    return step_of(*request.param)


@pytest.fixture(params=["continuous", "discrete", "l2", "csd"])
def constrained_step(request: pytest.FixtureRequest) -> SimpleNamespace:
    return step_of(request.param, "eager")


@pytest.fixture
def eager_step(kind: str) -> SimpleNamespace:
    return step_of(kind, "eager")


def _record_gradients(
    gradients: dict[Tensor, Tensor], optimizer: torch.optim.Optimizer, *_: object
) -> None:
    gradients.update({p: p.grad.clone() for p in optimizer.param_groups[0]["params"]})


def assert_matches(
    actual: Tensor, expected: Tensor, tolerance: dict[str, float], name: str = ""
) -> None:
    torch.testing.assert_close(
        actual.detach(),
        expected.reshape(actual.shape),
        **tolerance,
        msg=lambda message: f"{name}: {message}",
    )


def assert_weights(step: SimpleNamespace, part: str) -> None:
    """The weights of a part are the recorded ones after the step, others than before."""
    for name, (tensor, index) in step.parts[part].items():
        actual = tensor[index]
        # A bias that serves s and s' alike cancels in φ(s') - φ(s): its gradient is zero up to
        # rounding, which Adam blows up to one learning rate in either direction.
        cancels = torch.zeros(actual.shape, dtype=torch.bool)
        if part == "encoder":
            cancels = step.golden[f"grad/{name}"] == 0
        before, expected = (
            step.golden[f"{stage}/{name}"].reshape(actual.shape) for stage in ("init", "after")
        )
        assert_matches(actual[~cancels], expected[~cancels], EXACT, name)
        assert_matches(actual[cancels], expected[cancels], {"rtol": 0, "atol": 2e-4}, name)
        assert cancels.all() or not actual.equal(before), name


def assert_gradients(
    step: SimpleNamespace, part: str, tolerance: dict[str, float], scale: float = 1.0
) -> None:
    """The gradients of a part are the recorded ones, and there are no others."""
    places = step.parts[part]
    parameters = step.optimizers[part].param_groups[0]["params"]
    assert {id(tensor) for tensor, _ in places.values()} == {id(p) for p in parameters}
    for name, (tensor, index) in places.items():
        gradient = step.gradients[tensor][index] * scale
        assert_matches(gradient, step.golden[f"grad/{name}"], tolerance, name)


def test_rewards(step: SimpleNamespace) -> None:
    if "out/rewards_before" in step.golden:
        assert_matches(step.reward_before, step.golden["out/rewards_before"], EXACT)
    after = step.metrics["rewards"]
    assert_matches(after, step.golden["out/rewards_after"], EXACT)
    # The relabelled rewards must really be others than those before the update.
    assert (after - step.reward_before).abs().max() > 1e-3


def test_losses(step: SimpleNamespace) -> None:
    recorded = {
        "loss_encoder": "LossTe",
        "loss_dual": "LossDualLam",
        "loss_distance": "LossDp",
        "loss_dynamics": "LossSd",
    }
    names = {f"loss_{part}" for part in step.skill_parts}
    assert names == {name for name in step.skill_loss.out_keys if name.startswith("loss_")}
    for name in names:
        expected = step.golden[f"out/{recorded[name]}"]
        assert_matches(step.metrics[name], expected, EXACT, name)


def test_weights_after_one_step(step: SimpleNamespace) -> None:
    for part in step.skill_parts:
        assert_weights(step, part)
    for name, (tensor, index) in step.buffers.items():
        assert_matches(tensor[index], step.golden[f"after/{name}"], EXACT, name)


def test_gradients(eager_step: SimpleNamespace) -> None:
    for part in eager_step.skill_parts:
        assert_gradients(eager_step, part, EXACT)


def test_constraint(constrained_step: SimpleNamespace) -> None:
    step = constrained_step
    expected = step.golden["out/cst_penalty"]
    assert (expected < 0).any()
    assert (expected > 0).any()
    assert_matches(step.per_pair["constraint"], expected, EXACT)
    assert_matches(-step.per_pair["loss_encoder"], step.golden["out/te_obj"], EXACT)
    assert_matches(step.metrics["dual"], step.golden["out/DualLam"], EXACT)


def test_critics(step: SimpleNamespace) -> None:
    # TorchRL's l2 is twice the authors' 0.5 · MSE, which Adam does not notice.
    expected = 2 * (step.golden["out/LossQf1"] + step.golden["out/LossQf2"])
    assert_matches(step.metrics["loss_qvalue"], expected, LOG_PROB)
    assert_weights(step, "qvalue")
    assert_weights(step, "target")


def test_critic_gradients(eager_step: SimpleNamespace) -> None:
    assert_gradients(eager_step, "qvalue", LOG_PROB, scale=0.5)


def test_critic_target(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = run_step(kind, "eager")
    rewind(step)
    step.batch["next", "reward"] = step.metrics["rewards"].unsqueeze(-1)
    step.batch["next", "skill"] = step.batch["skill"]
    monkeypatch.setattr("torch.distributions.normal._standard_normal", Noise(step.golden))
    target = step.sac_loss._compute_target_v2(step.batch)
    assert_matches(target, step.golden["out/q_target"], LOG_PROB)


def test_actor_and_entropy_coefficient(step: SimpleNamespace) -> None:
    assert_matches(step.metrics["loss_actor"], step.golden["out/LossSacp"], LOG_PROB)
    assert_matches(step.metrics["loss_alpha"], step.golden["out/LossAlpha"], LOG_PROB)
    assert_matches(-step.metrics["entropy"], step.golden["out/SacpNewActionLogProbMean"], LOG_PROB)
    assert_weights(step, "actor")
    assert_weights(step, "alpha")


def test_actor_gradients(eager_step: SimpleNamespace) -> None:
    for part in ("actor", "alpha"):
        assert_gradients(eager_step, part, LOG_PROB)


def test_bfloat16_stays_close(kind: str) -> None:
    """Two to three digits of the policy's losses; all of the skills', which are exact."""
    step, exact = step_of(kind, "bfloat16"), step_of(kind, "eager")
    for name, expected in exact.metrics.items():
        if name.startswith("loss_"):
            assert step.metrics[name].dtype == torch.float32
            assert_matches(step.metrics[name], expected, {"rtol": 2e-2, "atol": 2e-3}, name)
    for part in step.skill_parts:
        assert_matches(step.metrics[f"loss_{part}"], exact.metrics[f"loss_{part}"], EXACT, part)
    loss_qvalue = step.metrics["loss_qvalue"]
    assert loss_qvalue != exact.metrics["loss_qvalue"], "nothing ran in bfloat16"
    for module in (step.skill_loss, step.sac_loss):
        assert all(p.dtype == torch.float32 for p in module.parameters())
