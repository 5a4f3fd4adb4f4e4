"""One vocabulary: a setting has the same name and default wherever it can be set."""

from __future__ import annotations

import dataclasses
import inspect
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from torchrl_metra import (
    BatchedSACLoss,
    EpisodeStorage,
    GenDaLoss,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PixelOptions,
    RelabelSkills,
    UnitSphere,
    make_metra,
    make_metra_optimizers,
    make_pixel_sac_networks,
    make_sac_networks,
)
from torchrl_metra.envs import registered_envs
from torchrl_metra.recipes import DownstreamSettings, FinetuneSettings, Settings, make_settings
from torchrl_metra.recipes import settings as settings_module
from torchrl_metra.recipes.settings import describe, preset_names, preset_values, update

pytest.importorskip("hydra")
import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from torchrl_metra.recipes.app import compose
from torchrl_metra.recipes.command import main
from torchrl_metra.trainers.configs import METRATrainerConfig
from torchrl_metra.trainers.configs.common import parameters

PRESETS = tomllib.loads(Path(settings_module.__file__).with_name("presets.toml").read_text())
ENVS = [*registered_envs(), "gym:Walker2d-v5", "package.module:function"]
NAMES = [field.name for field in dataclasses.fields(Settings)]
# What can be given to the factory in place of what settings would build.
PARTS = {
    name
    for name, parameter in inspect.signature(make_metra).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}


def without_output(settings: Settings) -> Settings:
    return dataclasses.replace(settings, output=None)


def test_the_command_and_the_factory_mean_the_same() -> None:
    pairs = list(product(ENVS, preset_names()))
    # All pairs would take their time.
    for env, preset in pairs[:: 3 * len(preset_names()) + 1]:
        composed = compose("train", [f"env={env}", f"preset={preset}"])
        assert composed.output is not None
        assert without_output(composed) == make_settings(env, preset=preset)
    for env, preset in product(registered_envs(), preset_names()):
        node = ConfigStore.instance().load(f"metra_preset/{env}.{preset}.yaml").node
        values = {**preset_values(env, preset), "preset": preset, "output": node.output}
        assert node == {**values, "env": {"name": env, **values.get("env", {})}}


def test_a_file_means_what_the_factory_means() -> None:
    with hydra.initialize(version_base="1.3"):
        for env, preset in (("ant", "laptop"), ("quadruped", "debug")):
            config = hydra.compose(
                overrides=[
                    "+trainer=metra", f"+metra_preset@trainer={env}.{preset}",
                    "trainer.seed=3", "trainer.metra.slack=0.1",
                ]
            )  # fmt: skip
            assert config.trainer._target_ == "torchrl_metra.make_metra"
            given = OmegaConf.to_container(config.trainer)
            settings = {name: given[name] for name in NAMES}
            same = make_settings(env, preset=preset, seed=3, metra={"slack": 0.1})
            assert without_output(make_settings(**settings)) == same


def test_the_config_of_the_trainer_has_the_settings_as_its_fields() -> None:
    fields = {
        field.name: getattr(METRATrainerConfig(), field.name)
        for field in dataclasses.fields(METRATrainerConfig)
        if not field.name.startswith("_")
    }
    defaults = {name: getattr(Settings(), name) for name in NAMES if name != "env"}
    assert defaults.items() <= {name: fields[name] for name in defaults}.items()
    assert fields["env"] == "???"
    assert set(fields) - set(NAMES) <= PARTS


def test_no_setting_is_called_as_a_part_or_a_group_of_torchrl() -> None:
    assert set(NAMES) & PARTS == {"env"}
    groups = {
        name for name, entry in ConfigStore.instance().repo.items() if isinstance(entry, dict)
    }
    assert {"logger", "loss"} <= groups, "TorchRL's are there"
    # The command's own, and one that is written part by part: pixels.resolution=64.
    expected = {"env", "pixels", "preset", "distributed"}
    for kind in (Settings, DownstreamSettings, FinetuneSettings):
        assert groups & {field.name for field in dataclasses.fields(kind)} <= expected


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        ("train", [], Settings()),
        (
            "train",
            ["env=ant", "preset=laptop"],
            make_settings("ant", preset="laptop", output="outputs/ant_laptop"),
        ),
        ("downstream", [], DownstreamSettings()),
        ("finetune", [], FinetuneSettings()),
    ],
)
def test_help_shows_each_setting_as_it_can_be_typed(
    capsys: pytest.CaptureFixture[str], name: str, chosen: list[str], expected: Any
) -> None:
    main([name, *chosen, "--help"])
    rows = [row.strip() for row in capsys.readouterr().out.splitlines() if row.startswith("  ")]
    shown = [row.partition("  ")[::2] for row in rows]
    assert [setting.partition("=")[0] for setting, _ in shown] == [
        setting for setting, *_ in describe(expected)
    ]
    assert all(comment for _, comment in shown)
    typed = [setting for setting, _ in shown if not setting.startswith("preset=")]
    env = [] if chosen or name != "train" else ["env=point"]
    assert compose(name, [*env, *chosen, *typed]) == expected


@pytest.mark.parametrize("env", PRESETS)
def test_presets_set_what_there_is(env: str) -> None:
    assert env == "any" or env in registered_envs()
    assert set(PRESETS[env]) <= set(preset_names())
    for values in PRESETS[env].values():
        extended = values.get("extends", "paper")
        assert extended in PRESETS["any"]
        changed = update(Settings(), {k: v for k, v in values.items() if k != "extends"})
        # A preset repeats no default, unless to take back what the paper's sets.
        if env != "any" and values is PRESETS[env].get("paper"):
            kept = dict(leaves(values)).items() & dict(leaves(Settings())).items()
            assert {name for name, _ in kept} <= {"skill.kind", "skill.dim", "pixels.frames"}
        assert changed != Settings() or not values


def test_a_preset_extends_one_of_any_environment() -> None:
    values, shared = preset_values("quadruped", "laptop"), PRESETS["any"]["pixels"]
    assert "extends" not in values
    assert values["encoder"] == shared["encoder"]
    assert values["pixels"] == {**shared["pixels"], **PRESETS["quadruped"]["laptop"]["pixels"]}
    assert values["metra"]["constraint_norm"] == "rms"  # the paper's, below both
    assert preset_values("ant", "pixels")["objective"] == "genda"


def leaves(settings: Any, prefix: str = "") -> Any:
    """Dotted names and values, which are strings to compare lists as well."""
    values = dataclasses.asdict(settings) if dataclasses.is_dataclass(settings) else settings
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", repr(value)


def test_options_of_the_environment_on_the_command_line() -> None:
    typed = ["env=gym:Ant-v5", "env.options={exclude_current_positions_from_observation:false}"]
    options = {"exclude_current_positions_from_observation": False}
    assert compose("train", typed).env.options == options


def test_the_papers_settings() -> None:
    circle = {"kind": "UnitSphere", "switch": 0.0}
    assert preset_values("quadruped", "paper")["skill"] == {"kind": "UnitSphere", "dim": 4}
    settings = make_settings("half_cheetah")
    assert dataclasses.asdict(settings.skill) == {"kind": "OneHot", "dim": 16, "switch": 0.0}
    assert settings.num_cells == [1024, 1024]
    assert settings.learning_rate == {"lr": 1e-4}
    assert dataclasses.astuple(settings.metra) == ("rms", 1e-3, 30.0)
    assert dataclasses.asdict(make_settings("ant").skill) == {**circle, "dim": 2}
    for name, dim in (("quadruped", 4), ("humanoid", 2)):
        settings = make_settings(name)
        assert dataclasses.asdict(settings.skill) == {**circle, "dim": dim}
        assert (settings.updates_per_step, settings.frames_per_batch) == (200 / 1_600, 1_600)
        assert settings.buffer_size == 300_000
    settings = make_settings("kitchen")
    assert dataclasses.asdict(settings.skill) == {"kind": "OneHot", "dim": 24, "switch": 0.0}
    assert (settings.updates_per_step, settings.frames_per_batch) == (100 / 400, 400)
    assert dataclasses.astuple(settings.sac) == (0.01, True, -0.5)
    assert settings.buffer_size == 100_000
    assert dataclasses.astuple(settings.encoder) == (48, None, False)
    assert dataclasses.astuple(settings.pixels) == (64, 3, "fast", 1.0)


# Whose parameters have the names of settings, by section.
CONSTRUCTORS = {
    "": [METRATrainer, METRAOptimizationStepper, make_sac_networks, make_pixel_sac_networks],
    "metra.": [METRALoss],
    "sac.": [BatchedSACLoss],
    "policy.": [BatchedSACLoss],
    "encoder.": [make_pixel_sac_networks],
    "relabel.": [EpisodeStorage, GenDaLoss, RelabelSkills],
    "pixels.": [PixelOptions],
    "skill.": [UnitSphere],
    "learning_rate.": [make_metra_optimizers],
}
# Where the setting has another default than the parameter, and why.
DIFFERENT = {
    "sac.alpha_init": "the authors' 0.01, where TorchRL's SAC has 1",
    "sac.target_entropy": "that of each action, where SAC's is that of all of them",
    "pixels.resolution": "null: no pictures",
    "batch_size": "null: that of the replay buffer",
    "collection_timeout": "only who runs it knows how long a round of a trainer of one's own takes",
    "min_buffer_size": "TorchRL's trainers learn from the first batch on",
    "seed": "runs can be repeated; TorchRL's trainers draw a seed",
}


def test_constructors_have_the_defaults_of_the_settings() -> None:
    defaults = {name: value for name, value, _ in describe(Settings())}
    defaults |= {f"learning_rate.{part}": rate for part, rate in Settings().learning_rate.items()}
    compared, different = set(), set()
    for section, constructors in CONSTRUCTORS.items():
        for constructor in constructors:
            for parameter in parameters(constructor):
                name = f"{section}{parameter.name}"
                if name not in defaults or parameter.default is parameter.empty:
                    continue
                compared.add(name)
                default = parameter.default
                default = list(default) if isinstance(default, tuple) else default
                if default != defaults[name]:
                    different.add(name)
    assert different == set(DIFFERENT)
    assert {name for name in defaults if name.startswith(("metra.", "encoder.", "pixels."))} <= (
        compared
    )
    assert {"num_cells", "collection_timeout", "compile", "autocast"} <= compared


@pytest.mark.parametrize(
    ("values", "meant"),
    [({"metra": {"slak": 1.0}}, "'metra.slack'"), ({"preset": "lptop"}, "'laptop'")],
    ids=str,
)
def test_mistyped_settings(values: dict[str, Any], meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        make_settings("point", **values)


def test_defaults_stay() -> None:
    settings = make_settings("point", learning_rate={"dual": 1e-3})
    assert settings.learning_rate == {"lr": 2e-3, "dual": 1e-3}
    settings.learning_rate["lr"] = settings.num_cells[0] = 0
    assert Settings() == Settings(learning_rate={"lr": 1e-4}, num_cells=[1024, 1024])
    assert make_settings("point").learning_rate == {"lr": 2e-3}
    assert make_settings("point").num_cells == [64, 64]
