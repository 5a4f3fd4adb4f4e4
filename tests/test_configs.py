"""Structured configs: what they hold, what they build, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_losses
from pages import Page
from tensordict import TensorDict
from torchrl.envs import TransformedEnv
from torchrl.modules import MLP
from torchrl.objectives import SACLoss
from torchrl.trainers.algorithms.configs import (
    HookConfig,
    LossConfig,
    TrainerConfig,
    TransformConfig,
)

import torchrl_metra
import torchrl_metra.trainers
from torchrl_metra import (
    BatchedSACLoss,
    CSDLoss,
    GenDaLoss,
    METRALoss,
    METRATrainer,
    SACNetworks,
    SkillPolicy,
    SkillPrimer,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
    sample_goals,
)

hydra = pytest.importorskip("hydra")
instantiate = hydra.utils.instantiate
from hydra.core.config_store import ConfigStore  # noqa: E402
from hydra.errors import ConfigCompositionException  # noqa: E402

from torchrl_metra.trainers import configs  # noqa: E402
from torchrl_metra.trainers.configs import suggest_names  # noqa: E402

PAGE = Page("docs/guides/configuration.md")
# That of the trainer has the settings as its fields: test_settings.py.
CONFIGS = [
    name for name in configs.__all__ if name.endswith("Config") and name != "METRATrainerConfig"
]

# Functions, whose configs are called after what they make.
FUNCTIONS = {
    "METRAOptimizers": make_metra_optimizers,
    "MakeEnv": make_env,
    "PixelSACNetworks": make_pixel_sac_networks,
    "SACNetworks": make_sac_networks,
    "SampleGoals": sample_goals,
    "SkillPolicy": SkillPolicy.load,
}
# Classes whose **kwargs are those of another one.
PASSED_ON = {
    BatchedSACLoss: SACLoss,
    CSDLoss: METRALoss,
    GenDaLoss: METRALoss,
    SuccessorFeatureSACLoss: BatchedSACLoss,
}
# Components without a config, and why.
EXCEPTIONS = {
    "METRAHook": "another name of SkillHook",
    "METRATrainer": "built by make_metra",
    "MuJoCoPoolEnv": "environments have names",
    "MuJoCoTask": "has functions",
    "make_metra": "METRATrainerConfig",
    "register_env": "environments have names",
    "EncoderLoss": "abstract",
    "SkillLoss": "abstract",
    "SkillPrior": "abstract",
    "VerifiedCheckpoint": "its components are objects that the trainer registers",
}


def constructor_of(name: str) -> Any:
    component = name.removesuffix("Config")
    if component in FUNCTIONS:
        return FUNCTIONS[component]
    return getattr(torchrl_metra, component, None) or getattr(torchrl_metra.trainers, component)


def signature_of(constructor: Any) -> dict[str, Any]:
    """Defaults by name, ``???`` where there is none."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    found = {
        name: "???" if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and not str(parameter).startswith("*")
    }
    if constructor in PASSED_ON:
        found = {**signature_of(PASSED_ON[constructor]), **found}
    return found


def fields_of(config: type) -> dict[str, Any]:
    return {
        field.name: getattr(config(), field.name)
        for field in dataclasses.fields(config)
        if not field.name.startswith("_")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_fields_are_those_of_the_constructor(name: str) -> None:
    expected = signature_of(constructor_of(name))
    if name == "SuccessorFeatureSACLossConfig":
        # What SAC calls its actor and critics is called otherwise there.
        del expected["actor_network"], expected["qvalue_network"]
    if name == "METRAOptimizersConfig":
        expected["lrs"] = {}
    assert fields_of(getattr(configs, name)) == expected


def test_every_public_component_has_a_config() -> None:
    configured = {constructor_of(name).__qualname__.partition(".")[0] for name in CONFIGS}
    configured |= {"SACNetworks"}  # make_sac_networks makes them
    assert not set(torchrl_metra.__all__) - configured - set(EXCEPTIONS)
    abstract = {name for name, reason in EXCEPTIONS.items() if reason == "abstract"}
    assert all(inspect.isabstract(getattr(torchrl_metra, name)) for name in abstract)


def registered() -> dict[str, str]:
    """Names in the store by class: ``loss=metra``."""
    return {
        node.node._metadata.object_type.__name__: f"{group}={entry.removesuffix('.yaml')}"
        for group, entries in ConfigStore.instance().repo.items()
        if isinstance(entries, dict)
        for entry, node in entries.items()
        # Presets and choices of the command are mappings.
        if getattr(node, "provider", None) == "torchrl_metra" and "_target_" in node.node
    }


def test_names_beside_torchrls() -> None:
    names = registered()
    assert set(names) == {*CONFIGS, "METRATrainerConfig"}
    assert names["METRATrainerConfig"] == "trainer=metra"
    assert names["METRALossConfig"] == "loss=metra"
    assert names["SkillPrimerConfig"] == "transform=skill_primer"
    bases = {"loss": LossConfig, "trainer": TrainerConfig, "transform": TransformConfig}
    for name, choice in names.items():
        group = choice.partition("=")[0]
        assert issubclass(getattr(configs, name), {**bases, "hook": HookConfig}.get(group, object))


def test_the_pages_table() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", PAGE.text.partition("## What there is")[2], re.MULTILINE
    )
    shown = {f"{group}={name}" for group, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert shown == set(registered().values())


def network(in_features: int, out_features: int) -> MLP:
    return MLP(in_features=in_features, out_features=out_features, num_cells=[8])


def arguments(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What each config must be given to build something real."""
    parts = make_losses()
    # Not the object: Hydra takes dataclasses for configs.
    spec = {"_target_": "torchrl.data.Bounded", "low": -1, "high": 1, "shape": [2]}
    networks, prior = parts.networks, parts.prior
    env = make_env("point", num_envs=2).append_transform(SkillPrimer(prior))
    optimizers = make_metra_optimizers(parts.metra_loss, parts.sac_loss)
    vectors = make_sac_networks(2, env.action_spec, prior, num_cells=[8], value_size=2)
    SkillPolicy.from_networks(networks, prior).save(tmp_path / "skills.pt")
    goals = TensorDict({"observation": torch.randn(3, 2)}, [3])
    sac = {"actor_network": networks.actor, "qvalue_network": networks.critics}
    of_encoder = {"encoder": networks.encoder, "prior": prior}
    losses = {"skill_loss": parts.metra_loss, "sac_loss": parts.sac_loss}
    distance = torchrl_metra.ControllabilityDistance(network(2, 2), network(2, 2))
    adam = {"_target_": "torch.optim.Adam", "_partial_": True}
    return {
        "BatchedSACLossConfig": {**sac, "gamma": 0.9},
        "CICLossConfig": {**of_encoder, "query": network(2, 2), "key": network(4, 2)},
        "CSDLossConfig": {**of_encoder, "distance": distance},
        "CSFLossConfig": of_encoder,
        "ControllabilityDistanceConfig": {"mean": network(2, 2), "log_std": network(2, 2)},
        "DADSLossConfig": {"dynamics": network(4, 4), "prior": prior, "observation_size": 2},
        "DIAYNLossConfig": of_encoder,
        "EpisodeStorageConfig": {
            "storage": {"_target_": "torchrl.data.LazyTensorStorage", "max_size": 10},
        },
        "FrameStackStorageConfig": {"max_size": 10},
        "GenDaLossConfig": {**of_encoder, "slack": 0.1},
        "GoalPrimerConfig": {"goals": goals},
        "GoalReachingPolicyConfig": {"actor": networks.actor, **of_encoder},
        "IntrinsicRewardTransformConfig": {"skill_loss": parts.metra_loss},
        "L2DistanceConfig": {},
        "LSDLossConfig": of_encoder,
        "LogCoverageConfig": {},
        "LogRatesConfig": {},
        "SkillHookConfig": {"skill_loss": parts.metra_loss, "optimizers": adam},
        "METRALossConfig": of_encoder,
        "METRAOptimizationStepperConfig": {
            "skill_loss": parts.metra_loss,
            "optimizers": optimizers,
            "autocast": {"_target_": "hydra.utils.get_object", "path": "torch.bfloat16"},
        },
        "METRAOptimizersConfig": {**losses, "lr": 0.1, "lrs": {"dual": 0.2}},
        "MakeEnvConfig": {"env": "point", "num_envs": 3},
        "OneHotConfig": {"dim": 3},
        "PixelOptionsConfig": {"resolution": 32},
        "PixelSACNetworksConfig": {
            "pixel_shape": [9, 64, 64], "action_spec": spec, "prior": prior,
            "num_cells": [8], "channels": 2,
        },
        "PointEnvConfig": {"num_envs": 3},
        "RelabelSkillsConfig": of_encoder,
        "RNDBaselineConfig": {
            "predictor": network(2, 4), "target": network(2, 4), "prior": prior,
            "observation_size": 2,
        },
        "SACNetworksConfig": {
            "observation_size": 2, "action_spec": spec, "prior": prior, "num_cells": [8],
        },
        "SampleGoalsConfig": {"env": "point", "num_goals": 3},
        "SkillActionConfig": {"policy": networks.actor, "prior": prior},
        "SkillConditionedActorConfig": {
            "network": network(4, 8), "num_features": 8, "action_spec": spec,
        },
        "SkillEvaluationConfig": {
            "env": env, "policy": networks.actor, "skills": prior.grid(2), "interval": 10,
        },
        "SkillPolicyConfig": {"path": str(tmp_path / "skills.pt")},
        "SkillPrimerConfig": {"prior": prior},
        "StandardNormalConfig": {"dim": 3},
        "SuccessorFeatureSACLossConfig": {
            "actor": vectors.actor, "critics": vectors.critics, "prior": prior,
        },
        "UnitBallConfig": {"dim": 3},
        "UnitSphereConfig": {"dim": 3},
    }  # fmt: skip


MADE = {
    "METRAOptimizersConfig": dict,
    "MakeEnvConfig": TransformedEnv,
    "PixelSACNetworksConfig": SACNetworks,
    "SACNetworksConfig": SACNetworks,
    "SampleGoalsConfig": TensorDict,
    "SkillPolicyConfig": SkillPolicy,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_what_it_is_named_after(name: str, tmp_path: Path) -> None:
    made = instantiate(getattr(configs, name)(), **arguments(tmp_path)[name])
    assert type(made) is MADE.get(name, constructor_of(name))


def test_what_is_given_arrives(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    made = {
        name: instantiate(getattr(configs, name)(), **given[name])
        for name in ("BatchedSACLossConfig", "METRAOptimizersConfig", "SkillHookConfig",
                     "METRAOptimizationStepperConfig")
    }  # fmt: skip
    assert made["BatchedSACLossConfig"].value_estimator.gamma == pytest.approx(0.9)
    rates = {key: adam.defaults["lr"] for key, adam in made["METRAOptimizersConfig"].items()}
    assert (rates["encoder"], rates["dual"]) == (0.1, 0.2)
    assert made["METRAOptimizationStepperConfig"].autocast is torch.bfloat16
    hook = made["SkillHookConfig"]
    assert set(hook.optimizers) == {"encoder", "dual"}
    (group,) = hook.optimizers["dual"].param_groups
    assert group["params"][0] is hook.skill_loss.log_dual


def test_a_file_of_parts_and_one_of_the_trainer(tmp_path: Path) -> None:
    """Both kinds in one file, and the trainer with parts of its own."""
    (tmp_path / "metra.yaml").write_text(
        """
        defaults:
          - trainer: metra
          - metra_preset@trainer: ant.laptop
          - skill_prior@trainer.prior: unit_sphere
          - logger@trainer.logger: csv
          - _self_
        trainer:
          env: {name: point}
          prior: {dim: 3}
          policy: {position: true}
          logger: {exp_name: metra}
          total_frames: 160
          num_envs: 2
          num_cells: [8]
          frames_per_batch: 80
          updates_per_step: 0.0125
          batch_size: 16
          buffer_size: 200
          min_buffer_size: 80
          progress_bar: false
          output: null
        """
    )
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = hydra.compose("metra", overrides=[f"trainer.logger.log_dir={tmp_path}"])
    trainer = instantiate(config.trainer)
    assert type(trainer) is METRATrainer
    assert trainer.skill_loss.prior == UnitSphere(3)
    # Of the preset.
    assert trainer.skill_loss.constraint_norm == "rms"
    (group,) = trainer.optimization_stepper.optimizers["encoder"].param_groups
    assert group["lr"] == 3e-4
    trainer.train()
    assert trainer.collected_frames == 160
    assert list(tmp_path.rglob("*.csv"))


def test_an_environment_of_a_config() -> None:
    config = configs.METRATrainerConfig(
        env=configs.PointEnvConfig(num_envs=2), num_cells=[8], buffer_size=100
    )
    trainer = instantiate(config)
    assert trainer.collector.env.batch_size == (2,)
    assert trainer.skill_loss.prior == UnitSphere(2)


def test_a_mistyped_key_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [{loss: metra}, _self_]\nloss: {slak: 1}\n")
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(ConfigCompositionException, match=r"did you mean 'loss\.slack'\?$"),
        suggest_names(),
    ):
        hydra.compose("config")


def test_hydra_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, torchrl_metra.recipes.command; assert 'hydra' not in sys.modules"
    process = multiprocessing.Process(target=exec, args=(code,))
    process.start()
    process.join()
    assert process.exitcode == 0
    for name in ("torchrl_metra.trainers.configs", "torchrl_metra.recipes.names"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "hydra", None)
            patch.setitem(sys.modules, "hydra.errors", None)
            patch.delitem(sys.modules, name)
            with pytest.raises(ImportError, match=r"torchrl-metra\[run\]"):
                importlib.import_module(name)
