"""Structured configs: what they hold, what they build, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_losses
from pages import ROOT, Page
from tensordict import TensorDict
from torchrl.envs import TransformedEnv
from torchrl.modules import MLP
from torchrl.objectives import SACLoss
from torchrl.objectives.utils import SoftUpdate
from torchrl.trainers import Trainer
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
    CSFLoss,
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
from hydra.errors import ConfigCompositionException, InstantiationException  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from torchrl_metra.trainers import configs  # noqa: E402
from torchrl_metra.trainers.configs import suggest_names  # noqa: E402

EXAMPLES = ROOT / "examples"
PAGE = Page("docs/guides/configuration.md")
CONFIGS = [name for name in configs.__all__ if name.endswith("Config")]

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
    METRATrainer: Trainer,
    SuccessorFeatureSACLoss: SACLoss,
}
# Components without a config, and why.
EXCEPTIONS = {
    "EncoderLoss": "abstract",
    "SkillLoss": "abstract",
    "SkillPrior": "abstract",
    "register_env": "its entries are functions",
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
    if name == "METRATrainerConfig":
        expected |= {"networks": None, "optimizers": None, "hooks": None, "frame_skip": 1}
    assert fields_of(getattr(configs, name)) == expected


def test_fields_in_full() -> None:
    assert fields_of(configs.CSDLossConfig) == {
        "encoder": "???", "prior": "???", "distance": "???", "constraint_norm": "l2",
        "slack": 1e-3, "dual_init": 30.0, "fixed_dual": False, "reduction": "mean",
    }  # fmt: skip
    fields = {field.name: field.type for field in dataclasses.fields(configs.MakeEnvConfig)}
    assert fields["max_steps"] == int | None
    assert fields["num_envs"] == int | None
    assert fields["backend"] == str | None
    assert fields["pixels"] is Any


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
        if getattr(node, "provider", None) == "torchrl_metra"
    }


def test_names_beside_torchrls() -> None:
    names = registered()
    assert set(names) == set(CONFIGS)
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
        "FrameStackStorageConfig": {"max_size": 10},
        "GoalPrimerConfig": {"goals": goals},
        "GoalReachingPolicyConfig": {"actor": networks.actor, **of_encoder},
        "IntrinsicRewardTransformConfig": {"skill_loss": parts.metra_loss},
        "L2DistanceConfig": {},
        "LSDLossConfig": of_encoder,
        "LogCoverageConfig": {},
        "LogRatesConfig": {},
        "METRAHookConfig": {"skill_loss": parts.metra_loss, "optimizers": adam},
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


# The trainer has tests of its own below.
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"METRATrainerConfig"}))
def test_builds_what_it_is_named_after(name: str, tmp_path: Path) -> None:
    choice = registered()[name]
    with hydra.initialize(version_base="1.3"):
        config = hydra.compose(overrides=[f"+{choice}"])[choice.partition("=")[0]]
    made = instantiate(config, **arguments(tmp_path)[name])
    assert type(made) is MADE.get(name, constructor_of(name))


def test_what_is_given_arrives(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    made = {
        name: instantiate(getattr(configs, name)(), **given[name])
        for name in ("BatchedSACLossConfig", "METRAOptimizersConfig", "METRAHookConfig",
                     "METRAOptimizationStepperConfig")
    }  # fmt: skip
    assert made["BatchedSACLossConfig"].value_estimator.gamma == pytest.approx(0.9)
    rates = {key: adam.defaults["lr"] for key, adam in made["METRAOptimizersConfig"].items()}
    assert (rates["encoder"], rates["dual"]) == (0.1, 0.2)
    assert made["METRAOptimizationStepperConfig"].autocast is torch.bfloat16
    hook = made["METRAHookConfig"]
    assert set(hook.optimizers) == {"encoder", "dual"}
    (group,) = hook.optimizers["dual"].param_groups
    assert group["params"][0] is hook.skill_loss.log_dual


def test_lists_and_dicts_are_plain() -> None:
    config = OmegaConf.structured(configs.L2DistanceConfig)
    config.observation_key = {"_target_": "builtins.tuple", "_args_": [["agent", "observation"]]}
    assert instantiate(config).in_keys[0] == ("agent", "observation")


def block(language: str) -> str:
    (found,) = PAGE.code(language)
    return found.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's two files."""
    (tmp_path / "metra.yaml").write_text(block("yaml"))
    (tmp_path / "train.py").write_text(block("python"))
    return tmp_path


SMALL = [
    "trainer.total_frames=480", "collector.frames_per_batch=160", "trainer.min_buffer_size=160",
    "trainer.optim_steps_per_batch=2", "trainer.progress_bar=false", "replay_buffer.batch_size=16",
    "trainer.log_interval=0", "networks.num_cells=[16]",
]  # fmt: skip


def compose(folder: Path, *overrides: str) -> Any:
    overrides = (*SMALL, f"logger.log_dir={folder}", *overrides)
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("metra", overrides=list(overrides))


def build(folder: Path, *overrides: str) -> METRATrainer:
    return instantiate(compose(folder, *overrides).trainer)


def test_the_pages_file_trains(folder: Path) -> None:
    trainer = build(folder)
    stepper, sac_loss = trainer.optimization_stepper, trainer.loss_module
    assert type(trainer) is METRATrainer
    assert isinstance(sac_loss, BatchedSACLoss)
    assert trainer.skill_loss.prior == UnitSphere(2)
    # One and the same networks and losses wherever they are used.
    assert trainer.collector.policy is sac_loss.actor_network
    assert stepper.skill_loss is trainer.skill_loss
    (encoder,) = stepper.optimizers["encoder"].param_groups
    assert encoder["params"][0] is next(trainer.skill_loss.encoder_params.parameters())
    assert encoder["lr"] == 2e-3
    assert isinstance(stepper.target_net_updater, SoftUpdate)
    weights = [*trainer.skill_loss.parameters(), *sac_loss.parameters()]
    before = [weight.detach().clone() for weight in weights]
    trainer.train()
    assert trainer.collected_frames == 480
    assert len(trainer.log_coverage.total) > 0
    assert all(
        not old.equal(new)
        for old, new in zip(before, weights, strict=True)
        if new.requires_grad
    )  # fmt: skip
    assert list(folder.rglob("*.csv"))


@pytest.mark.parametrize(
    ("overrides", "skill_loss", "policy_loss"),
    [
        (["loss=lsd"], torchrl_metra.LSDLoss, BatchedSACLoss),
        (["loss@policy_loss=sac"], METRALoss, SACLoss),
        (
            ["loss=csf", "loss@policy_loss=successor_sac", "networks.value_size=2",
             "policy_loss.prior=${skill_prior}"],
            CSFLoss,
            SuccessorFeatureSACLoss,
        ),
    ],
    ids=["lsd", "TorchRL's SAC", "csf"],
)  # fmt: skip
def test_other_parts(folder: Path, overrides: list[str], skill_loss: Any, policy_loss: Any) -> None:
    trainer = build(folder, *overrides)
    assert type(trainer.skill_loss) is skill_loss
    assert type(trainer.loss_module) is policy_loss
    trainer.train()


def test_pictures_and_a_shared_encoder(folder: Path) -> None:
    trainer = build(
        folder, "network@networks=pixel_sac", "networks.channels=2", "networks.num_cells=[8]",
        "networks.shared_encoder=true", "env@env.base_env=make_env", "env.base_env.num_envs=2",
        "env.base_env.env=point_pixels", "storage=frame_stack", "storage.max_size=500",
        "trainer.total_frames=160", "trainer.optim_steps_per_batch=1",
    )  # fmt: skip
    assert trainer.optimization_stepper.shared_encoder is not None
    trainer.train()


def test_a_collector_in_another_process(folder: Path) -> None:
    trainer = build(folder, "collector=multi_async", "collector.create_env_fn=[${env}]")
    (make,) = trainer.collector.create_env_fn
    trainer.train()
    trainer.collector.shutdown()
    assert trainer.collected_frames >= 480
    assert isinstance(make(), TransformedEnv)


def test_hooks(folder: Path) -> None:
    config = compose(folder)
    evaluation = {
        "_target_": configs.SkillEvaluationConfig._target_,
        "env": "${env}",
        "policy": None,
        "skills": {"_target_": "torchrl_metra.UnitSphere.grid", "_args_": ["${skill_prior}", 16]},
        "interval": 100,
    }
    config.trainer.hooks = [evaluation]
    trainer = instantiate(config.trainer)
    trainer.train()
    logged = {path.stem for path in folder.rglob("*.csv")}
    assert "policy_coverage" in logged


def test_plain_settings_stay_plain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no config of a part reaches the trainer without a trace of OmegaConf."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(METRATrainer, "__init__", lambda self, **given: seen.update(given))
    config = compose(folder)
    config.trainer.learner_backend_options = {"resources": [1, 2]}
    instantiate(config.trainer)
    assert type(seen["learner_backend_options"]) is dict
    assert type(seen["learner_backend_options"]["resources"]) is list


def test_networks_of_ones_own(folder: Path) -> None:
    """Parts that are given stay as they are."""
    encoder = {
        "_target_": "torchrl.modules.MLP", "in_features": 2, "out_features": 2, "num_cells": [5],
    }  # fmt: skip
    config = compose(folder)
    config.loss.encoder = encoder
    trainer = instantiate(config.trainer)
    weights = trainer.skill_loss.encoder_params.parameters()
    assert {len(weight) for weight in weights} == {5, 2}
    config.loss.prior = "???"
    with pytest.raises(InstantiationException, match=r"METRALoss.* argument: 'prior'"):
        instantiate(config.trainer)


def test_the_pages_script(folder: Path) -> None:
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "train.py", *overrides], cwd=folder, text=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip

    trained = run(*SMALL)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"480 frames, \d+ cells visited", trained.stdout)
    refused = run("loss.slak=0.01")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] in PAGE.text
    assert "Traceback" not in refused.stderr


SCRIPTS = [
    "ant", "downstream", "finetune", "half_cheetah", "humanoid", "kitchen", "point",
    "point_pixels", "quadruped", "windy_point",
]  # fmt: skip


def refuse(monkeypatch: pytest.MonkeyPatch, capsys: Any, script: str, *given: str) -> str:
    """What a script says of a wrong name as it exits."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    # Imported, a script looks for its settings elsewhere.
    settings = ["--config-path", str(EXAMPLES / "conf")]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *settings, *given])
    with pytest.raises(SystemExit) as error:
        importlib.import_module(script).main()
    assert error.value.code == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.splitlines()[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_names_the_right_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, script: str
) -> None:
    message = refuse(monkeypatch, capsys, script, "total_frame=10")
    assert message == "Unknown name 'total_frame': did you mean 'total_frames'?"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["gama=0.9"], "'gama': did you mean 'gamma'?"),
        (["metra.slak=1"], "'metra.slak': did you mean 'metra.slack'?"),
        (["metr.slack=1"], "'metr': did you mean 'metra'?"),
        (["+experiment=quikstart"], "did you mean 'experiment/quickstart'?"),
        (["-m", "gama=1,2"], "'gama': did you mean 'gamma'?"),
        (["gama=1", "--cfg", "job"], "'gama': did you mean 'gamma'?"),
        (["sac.zzzzz=1"], "'sac.zzzzz', expected one of ['alpha_init', 'fixed_alpha']."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistyped_names(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, given: list[str], message: str
) -> None:
    assert refuse(monkeypatch, capsys, "point", *given).endswith(message)


def test_right_names_work_as_ever() -> None:
    """In a process of its own: a script's `logger` and `storage` are no groups of TorchRL."""
    names = ["gamma=0.9", "metra.slack=1", "logger=wandb", "storage=folder", "env=windy_point"]
    for switch in ("--help", "--cfg=job"):
        shown = subprocess.run(
            [sys.executable, str(EXAMPLES / "point.py"), *names, switch],
            check=True, text=True, capture_output=True,
        ).stdout  # fmt: skip
        assert "gamma: 0.9" in shown
        assert "logger: wandb" in shown


@pytest.mark.parametrize(
    ("defaults", "overrides", "message"),
    [
        ("loss: metra", ["loss.slak=1"], "'loss.slak': did you mean 'loss.slack'?"),
        ("loss: metra", ["loss=metro"], "'loss/metro': did you mean 'loss/metra'?"),
        ("los: metra", [], "'los': did you mean 'loss'?"),
    ],
)
def test_mistyped_names_in_a_composition(
    tmp_path: Path, defaults: str, overrides: list[str], message: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: [{{{defaults}}}]\n")
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(ConfigCompositionException) as error,
        suggest_names(),
    ):
        hydra.compose("config", overrides=overrides)
    assert str(error.value).endswith(message)


def test_a_mistyped_key_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("defaults: [{loss: metra}, _self_]\nloss: {slak: 1}\n")
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(ConfigCompositionException, match=r"did you mean 'loss\.slack'\?$"),
        suggest_names(),
    ):
        hydra.compose("config")


def test_hydra_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, torchrl_metra.trainers; assert 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in ("torchrl_metra.trainers.configs", "torchrl_metra.trainers.names"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "hydra", None)
            patch.setitem(sys.modules, "hydra.errors", None)
            patch.delitem(sys.modules, name)
            with pytest.raises(ImportError, match=r"torchrl-metra\[examples\]"):
                importlib.import_module(name)
