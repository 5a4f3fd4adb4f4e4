"""Every public name, given arguments that are wrong: it is built, or says what was wrong."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import clear_errors, fuzz, is_finite
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss

import torchrl_metra
from torchrl_metra import (
    ControllabilityDistance,
    L2Distance,
    LSDLoss,
    METRALoss,
    OneHot,
    PixelOptions,
    SkillLoss,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    UnitSphere,
    envs,
    evaluation,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
    modules,
    objectives,
    sample_goals,
    trainers,
)
from torchrl_metra import data as data_room

ROOMS = (torchrl_metra, data_room, envs, evaluation, modules, objectives, trainers)
PRIOR, SPEC = UnitSphere(2), Bounded(-1.0, 1.0, (2,))
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))


# It takes a run on disk: test_resume.py damages those.
ELSEWHERE = {"resume"}


def is_fuzzed(component: object) -> bool:
    """Not constants, errors and protocols."""
    is_error = isinstance(component, type) and issubclass(component, BaseException)
    return callable(component) and not is_error and not getattr(component, "_is_protocol", False)


PUBLIC: dict[str, Callable[..., object]] = {
    name: getattr(room, name)
    for room in ROOMS
    for name in room.__all__
    if is_fuzzed(getattr(room, name)) and name not in ELSEWHERE
}


# ---- Arguments that fit: by name of the component, a strategy for each argument.


def made(make: Callable[[], object]) -> st.SearchStrategy[Any]:
    """A new object for each example: some components change their arguments."""
    return st.builds(make)


def network(in_features: int, out_features: int) -> st.SearchStrategy[Any]:
    return st.builds(nn.Linear, st.just(in_features), st.just(out_features))


def networks() -> Any:
    return make_sac_networks(2, SPEC, PRIOR, num_cells=[4])


def skill_env() -> EnvBase:
    return make_env("point", 2).append_transform(SkillPrimer(PRIOR))


def episodes() -> TensorDict:
    position = torch.arange(12.0).reshape(2, 3, 2)
    done = torch.tensor([[False, True, True], [False, False, True]]).unsqueeze(-1)
    goal = TensorDict({"position": torch.ones(2, 3, 2)}, [2, 3])
    state = {"observation": position, "position": position}
    following = {"observation": position + 1, "position": position + 1, "done": done}
    skill = PRIOR.grid(2).unsqueeze(1).expand(2, 3, 2)
    return TensorDict({**state, "skill": skill, "goal": goal, "next": following}, [2, 3])


def distance() -> ControllabilityDistance:
    return ControllabilityDistance.from_size(2, num_cells=[4])


def sac_loss(trained: Any = None) -> SACLoss:
    trained = networks() if trained is None else trained
    return SACLoss(trained.actor, trained.critics, target_entropy=-1.0)


def optimizers() -> dict[str, Adam]:
    trained = networks()
    return make_metra_optimizers(METRALoss(trained.encoder, PRIOR), sac_loss(trained))


def collector() -> Collector:
    return Collector(skill_env(), networks().actor, frames_per_batch=4, total_frames=8)


def buffer() -> ReplayBuffer:
    return ReplayBuffer(storage=LazyTensorStorage(8), batch_size=4)


size, positive = st.integers(1, 4), st.floats(0.1, 10.0)
sizes = st.lists(size, min_size=1, max_size=2)
key = st.sampled_from(["a", ("a", "b")])
flag, number, text = st.booleans(), st.floats(-9, 9), st.sampled_from(["", "title"])
reduction, norm = st.sampled_from(["mean", "sum", "none"]), st.sampled_from(["l2", "rms"])
device = st.sampled_from([None, "cpu", torch.device("cpu")])
prior, spec, module = st.just(PRIOR), st.just(SPEC), network(2, 2)
rollouts = made(episodes)
latents = st.sampled_from([torch.zeros(2, 4, 2), torch.randn(2, 4, 2)])
lengths = st.sampled_from([None, torch.tensor([1, 3])])
vectors = st.sampled_from([torch.zeros(3, 2), torch.randn(3, 2), 1e30 * torch.randn(3, 2)])
projection = st.sampled_from([None, lambda state: state["position"][..., :1]])
goals = made(lambda: sample_goals("point", 3))
pixels = st.just(torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8))
picture = st.none() | st.just(FOLDER / "p.png")
options = st.sampled_from([None, PixelOptions(8, 1)])
bounds = st.just((-1.0, 1.0))
objective = {"encoder": module, "prior": prior, "reduction": reduction}
rolled = {"env": made(skill_env), "policy": made(lambda: networks().actor), "max_steps": size}
policy = made(lambda: SkillPolicy.from_networks(networks(), PRIOR))
metra_loss = made(lambda: METRALoss(nn.Linear(2, 2), PRIOR))

CASES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    # data
    "OneHot": {"dim": size},
    "StandardNormal": {"dim": size},
    "UnitSphere": {"dim": size},
    "SkillPrior": {"config": st.just({"kind": "OneHot", "dim": 3})},
    "FrameStackStorage": {
        "max_size": size,
        "num_frames": size,
        "max_frames": st.integers(5, 9),
        "device": st.sampled_from(["cpu", torch.device("cpu")]),
        "scratch_dir": st.sampled_from([None, str(FOLDER)]),
        "pixel_key": key,
    },
    # objectives
    "SkillLoss": {k: objective[k] for k in ("prior", "reduction")},
    "EncoderLoss": objective,
    "LSDLoss": objective,
    "METRALoss": objective
    | {
        "constraint_norm": norm,
        "slack": st.floats(0, 1),
        "dual_init": positive,
        "fixed_dual": flag,
        "distance": st.sampled_from([None, L2Distance()]),
    },
    "CSDLoss": objective | {"distance": made(distance)},
    "DIAYNLoss": objective | {"log_std": st.none() | module},
    "CSFLoss": objective | {"num_negatives": size, "negative_weight": positive},
    "CICLoss": objective
    | {
        "query": module,
        "key": network(4, 2),
        "temperature": positive,
        "num_neighbors": size,
    },
    "DADSLoss": {
        "dynamics": network(4, 2),
        "prior": prior,
        "observation_size": size,
        "num_alternatives": size,
        "reduction": reduction,
    },
    "RNDBaseline": {
        "predictor": module,
        "target": module,
        "prior": prior,
        "observation_size": size,
        "reduction": reduction,
    },
    "L2Distance": {"observation_key": key},
    "ControllabilityDistance": {"mean": module, "log_std": module, "observation_key": key},
    "BatchedSACLoss": {
        "actor_network": made(lambda: networks().actor),
        "qvalue_network": made(lambda: networks().critics),
    },
    "SuccessorFeatureSACLoss": {
        "actor": made(lambda: networks().actor),
        "critics": made(
            lambda: make_sac_networks(2, SPEC, PRIOR, num_cells=[4], value_size=2).critics
        ),
        "prior": prior,
    },
    # modules
    "Architecture": {
        "observation_size": size, "action_low": bounds, "action_high": bounds, "num_cells": sizes
    },
    "PixelArchitecture": {
        "pixel_shape": st.just((3, 32, 32)), "action_low": bounds, "action_high": bounds,
        "num_cells": sizes, "channels": size, "shared_encoder": flag,
    },
    "Float32Linear": {"bias": flag},
    "NormalHead": {"num_features": size, "action_size": size},
    "PixelEncoder": {"shape": st.just((3, 32, 32)), "channels": size, "float32": flag},
    "PixelNetwork": {"encoder": network(3, 2), "head": module},
    "GoalReachingPolicy": {
        "actor": made(lambda: networks().actor), "encoder": module, "prior": prior,
        "adaptive": flag,
    },
    "SkillConditionedActor": {
        "network": network(2, 4), "num_features": size, "action_spec": spec,
        "in_keys": st.just(["observation", "skill"]),
    },
    "SkillPolicy": {
        "actor": module, "encoder": module, "prior": prior, "observation_norm": st.none(),
        "architecture": st.none(), "env_name": st.none(), "constraint_norm": norm | st.none(),
    },
    "SACNetworks": {
        "actor": module, "critics": st.just([]), "encoder": module, "architecture": st.none()
    },
    "make_sac_networks": {
        "observation_size": size, "action_spec": spec, "prior": prior, "num_cells": sizes,
        "value_size": size,
    },
    "make_pixel_sac_networks": {
        "pixel_shape": st.just((3, 32, 32)), "action_spec": spec, "prior": prior,
        "num_cells": sizes, "channels": size, "shared_encoder": flag, "value_size": size,
    },
    # envs
    "PointEnv": {"num_envs": st.none() | size, "max_steps": size, "device": device},
    "WindyPointEnv": {"num_envs": st.none() | size, "max_steps": size, "device": device},
    "DrawPoint": {"resolution": size},
    "PixelOptions": {
        "resolution": size, "frames": size, "quality": st.sampled_from(["fast", "full"])
    },
    "FreeCamera": {
        "distance": number, "lookat": st.just((0.0, 0.0, 0.0)), "azimuth": number,
        "elevation": number,
    },
    "ReadPosition": {"size": size},
    "ReachGoals": {
        "goal_range": positive, "radius": positive, "steps_per_goal": st.none() | size
    },
    "PassHurdles": {"hurdles": st.lists(positive, min_size=1)},
    "GoalPrimer": {"goals": goals},
    "SkillPrimer": {"prior": prior, "skill_key": key, "reset_key": st.none()},
    "SkillAction": {
        "policy": made(lambda: networks().actor), "prior": prior, "num_steps": size
    },
    "IntrinsicRewardTransform": {"skill_loss": metra_loss, "reward_key": key},
    "EnvPoolEnv": {
        "task_id": st.just("HalfCheetah-v5"), "num_envs": size, "num_threads": st.just(1),
        "seed": size,
    },
    "Renderer": {
        "model": made(lambda: empty_model()), "width": size, "height": size,
        "camera": st.just(envs.FreeCamera(1.0, (0.0, 0.0, 0.0), 0.0, 0.0)),
        "quality": st.sampled_from(["fast", "full"]), "backend": st.none(),
    },
    "rendering_available": {},
    "make_env": {
        "name": st.sampled_from(["point", "windy_point", "point_pixels", "point_goal"]),
        "num_envs": st.none() | size, "backend": st.none(), "device": device,
        "pixels": options,
    },
    "sample_goals": {
        "name": st.sampled_from(["point", "windy_point"]), "num_goals": size,
        "extent": st.none() | positive, "seed": size, "pixels": st.none(),
    },
    # evaluation
    "CoverageCounter": {"window": st.none() | size},
    "coverage": {"position": vectors.map(lambda v: v / 1e12), "cell_size": positive},
    "sector_coverage": {"position": vectors, "num_sectors": size},
    "visited": {"transitions": rollouts, "projection": projection, "cell_size": positive},
    "episode_lengths": {"rollouts": rollouts},
    "positions": {"rollouts": rollouts, "projection": projection},
    "trajectories": {"rollouts": rollouts, "read": st.just(lambda state: state["observation"])},
    "encode_trajectories": {"rollouts": rollouts, "encoder": module},
    "goal_metrics": {"rollouts": rollouts, "radii": st.lists(positive)},
    "latent_steps": {"latents": latents, "lengths": lengths, "norm": norm},
    "pair_distances": {"latents": latents, "lengths": lengths, "norm": norm},
    "temporal_check": {"latents": latents, "lengths": lengths, "norm": norm},
    "rank_correlation": {"x": vectors.map(lambda v: v[:, 0]), "y": vectors.map(lambda v: v[:, 0])},
    "skill_accuracy": {"displacement": vectors, "skills": vectors, "prior": prior},
    "skill_alignment": {"latent": vectors, "next_latent": vectors, "skill": vectors},
    "measure_skills": {
        "rollouts": rollouts, "latents": latents, "prior": prior, "norm": norm | st.none(),
        "projection": projection, "cell_size": positive,
    },
    "rollout_skills": rolled | {"skills": vectors},
    "rollout_goals": rolled | {"goals": goals},
    "rollout_goal_policies": {
        "env": made(lambda: make_env("point", 2)), "policy": policy, "goals": goals,
        "max_steps": size,
    },
    "plot_coverage": {
        "curves": st.just({"run": torch.ones(3, 2)}), "path": picture,
        "title": text, "unit": text,
    },
    "plot_goals": {
        "goals": vectors, "reached": vectors.map(lambda v: {"adaptive": v}),
        "path": picture,
    },
    "plot_skills": {
        "latents": latents, "skills": st.just(torch.eye(2)), "path": picture,
        "position": st.none() | latents, "title": text, "unit": text,
    },
    "plot_temporal_distances": {
        "latents": latents, "path": picture, "lengths": lengths, "norm": norm
    },
    "write_video": {"pixels": pixels, "path": st.just(FOLDER / "v.gif"), "fps": positive},
    "evaluate": {
        "policy": policy, "env": made(lambda: make_env("point", 2)),
        "output": st.just(FOLDER / "report"), "projection": projection, "goals": st.none(),
        "video_env": st.none(), "num_episodes": size, "max_steps": size, "title": text,
    },
    # trainers
    "make_metra_optimizers": {"skill_loss": metra_loss, "sac_loss": made(sac_loss)},
    "METRAOptimizationStepper": {"skill_loss": metra_loss, "optimizers": made(optimizers)},
    "METRAHook": {"skill_loss": metra_loss, "optimizers": made(optimizers)},
    "METRATrainer": {
        "collector": made(collector), "total_frames": st.just(8),
        "optim_steps_per_batch": size, "loss_module": made(sac_loss), "skill_loss": metra_loss,
        "replay_buffer": made(buffer),
    },
    "LogCoverage": {"window": size, "projection": projection, "cell_size": positive},
    "LogRates": {},
    "SkillEvaluation": {
        "env": made(skill_env), "policy": made(lambda: networks().actor), "skills": vectors,
        "interval": size,
    },
    "UpdateGraph": {
        "update": st.just(lambda batch: batch), "optimizers": made(optimizers),
        "in_keys": st.just(["x"]), "compile": flag, "cudagraphs": flag,
    },
    "CollectorState": {"collector": made(collector), "seed": st.none() | size},
    "VerifiedCheckpoint": {},
}  # fmt: skip


def empty_model() -> Any:
    mujoco = pytest.importorskip("mujoco")
    return mujoco.MjModel.from_xml_string("<mujoco/>")


class AnyObjective(SkillLoss):
    """The least that an objective is."""

    out_keys, state_keys = ["loss_x"], ["observation"]

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        return {"loss_x": self.read(tensordict, "observation").sum(dim=-1)}

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        return self.read(tensordict, "observation")[..., :1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"x": []}


# What is called in place of a class that is abstract, or that only holds what it is given.
CALLED: dict[str, Callable[..., object]] = {
    "SkillLoss": AnyObjective,
    "EncoderLoss": LSDLoss,
    "SkillPrior": SkillPrior.from_config,
    "Architecture": lambda **keywords: modules.Architecture(**keywords).build(PRIOR),
    "PixelArchitecture": lambda **keywords: modules.PixelArchitecture(**keywords).build(PRIOR),
    "Float32Linear": lambda **keywords: modules.Float32Linear(3, 2, **keywords),
}
SLOW = {
    "CollectorState",
    "METRATrainer", "evaluate", "make_env", "plot_coverage", "plot_goals", "plot_skills",
    "plot_temporal_distances", "rollout_goal_policies", "write_video",
}  # fmt: skip
# NaN by their documentation: of constants, and of an encoder that does not move.
MAY_BE_NAN = {"evaluate", "rank_correlation", "temporal_check", "measure_skills"}


# What is written by SkillPolicy.save alone, and what TorchRL's own classes are given.
UNCHECKED = {
    "Architecture": {"action_low", "action_high"},
    "PixelArchitecture": {"action_low", "action_high"},
}


# ---- Arguments that do not fit.

ANYTHING = st.one_of(
    st.sampled_from(
        [None, True, "", b"x", (), [], {}, object(), nn.Linear, nn.Identity(), lambda: None,
         PRIOR, SPEC, OneHot(3), torch.zeros(0), torch.zeros(()), torch.zeros(2, 3),
         torch.zeros(2, 4, 2, dtype=torch.int64), torch.full((3, 2), math.nan),
         torch.full((2, 4, 2), math.inf), TensorDict({}, []), TensorDict({}, [2, 3]),
         TensorDict({"x": torch.zeros(0, 2)}, [0])]
    ),
    # Not so large that memory would be asked for.
    st.integers(-3, 0) | st.just(2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 0) | st.none() | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.none() | st.floats(), max_size=2),
)  # fmt: skip
# A path may be any string: what the file system says to it is none of our business. What a
# function raises that was given is not either.
NO_PATH = ANYTHING.filter(lambda value: not isinstance(value, str))
NO_FUNCTION = ANYTHING.filter(lambda value: not callable(value))
BUT_FOR = dict.fromkeys(["path", "output", "scratch_dir"], NO_PATH) | dict.fromkeys(
    ["projection", "read", "distance", "policy"], NO_FUNCTION
)


@pytest.fixture(autouse=True, scope="module")
def _scratch() -> Iterator[None]:
    """Whatever is written by mistake does not end up here."""
    before = Path.cwd()
    os.chdir(FOLDER)
    yield
    os.chdir(before)
    shutil.rmtree(FOLDER)


def call(name: str, keywords: dict[str, Any]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CALLED.get(name, PUBLIC[name])(**keywords)
    if isinstance(result, EnvBase) and not result.is_closed:
        result.close()
    return result


def check(name: str, data: st.DataObject) -> None:
    arguments = CASES[name]
    # Of a flag, only the truth counts.
    checked = [argument for argument, fits in arguments.items() if fits is not flag]
    checked = sorted(set(checked) - UNCHECKED.get(name, set()))
    keywords = {argument: data.draw(fits, argument) for argument, fits in arguments.items()}
    spoiled = data.draw(st.sampled_from(checked)) if checked else None
    about: list[str] = []
    if spoiled is not None:
        value = data.draw(BUT_FOR.get(spoiled, ANYTHING), spoiled)
        keywords[spoiled] = value
        about = [*(word for word in spoiled.split("_") if len(word) > 1), spoiled, repr(value)]
    with clear_errors(*about):
        result = call(name, keywords)
        if name not in MAY_BE_NAN:
            assert is_finite(result)


def test_all_public_names_are_here() -> None:
    assert PUBLIC.keys() <= CASES.keys()


@pytest.mark.parametrize("name", sorted(PUBLIC))
@fuzz(max_examples=2)
@given(data=st.data())
def test_takes_what_fits(name: str, data: st.DataObject) -> None:
    keywords = {argument: data.draw(fits, argument) for argument, fits in CASES[name].items()}
    result = call(name, keywords)
    assert name in MAY_BE_NAN or is_finite(result)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - SLOW))
@fuzz(max_examples=40)
@given(data=st.data())
def test_says_what_does_not_fit(name: str, data: st.DataObject) -> None:
    check(name, data)


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() & SLOW))
@fuzz(max_examples=8)
@given(data=st.data())
def test_slow_ones_say_what_does_not_fit(name: str, data: st.DataObject) -> None:
    check(name, data)
