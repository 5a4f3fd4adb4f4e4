"""What the documentation shows, run or checked: code, commands, settings, links."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import torchrl.collectors.distributed
import torchrl.data
from pages import BUILT, ROOT, Block, Page, pages
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase, GymEnv
from torchrl.modules import MLP
from torchrl.trainers import Trainer

import torchrl_metra
from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRATrainer,
    OneHot,
    SkillPolicy,
    SkillPrimer,
    SkillPrior,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.envs import rendering_available
from torchrl_metra.envs.make import MUJOCO_TASKS, PIXEL_TASKS, POINTS
from torchrl_metra.envs.tasks import DOWNSTREAM
from torchrl_metra.evaluation.__main__ import _parse as parse_evaluation

Names = dict[str, Any]
EXAMPLES = ROOT / "examples"
PAGES = pages()
PRIOR = UnitSphere(2)


# Python: each page from top to bottom, in one namespace.


def with_blocks(*languages: str) -> list[str]:
    return [name for name in PAGES if Page(name).code(*languages)]


# test_configs.py runs this one, as the file that it is.
@pytest.mark.parametrize(
    "name", [name for name in with_blocks("python") if name != "docs/guides/configuration.md"]
)
def test_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(name)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    names = vars(main)
    try:
        save_quickstart(page)
        with AROUND[name]() if name in AROUND else nothing() as given:
            names.update(given)
            for block in page.code("python"):
                block.run(names)
            given.update(names)
    except Exception as error:
        skip_without_extras(page, error)
        raise
    finally:
        for value in list(names.values()):
            if isinstance(value, EnvBase):
                value.close(raise_if_closed=False)


def skip_without_extras(page: Page, error: BaseException | None) -> None:
    """Skip what an installation without all the extras cannot run."""
    if "pixels" in page.text and not rendering_available():
        pytest.skip("no OpenGL backend of MuJoCo works here")
    while error is not None:
        if isinstance(error, ImportError):
            module = (error.name or "torch").partition(".")[0]
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
        error = error.__cause__ or error.__context__


# What a page takes for granted, before its first block, and what it promises, after its last.


def save_quickstart(page: Page) -> None:
    """The skill policy of `make quickstart`, untrained."""
    path = Path("outputs/quickstart/skill_policy.pt")
    if str(path) in page.text:
        pytest.importorskip("mujoco")
        path.parent.mkdir(parents=True)
        prior = OneHot(8)
        networks = make_sac_networks(18, Bounded(-1, 1, (6,)), prior, num_cells=[16])
        SkillPolicy.from_networks(networks, prior, env_name="half_cheetah").save(path)


@contextmanager
def nothing() -> Iterator[Names]:
    yield {}


def sac_script(env: EnvBase, total_frames: int = 160) -> Names:
    """What a script with METRA has, by the names that pages use."""
    env = env.append_transform(SkillPrimer(PRIOR))
    size = env.observation_spec["observation"].shape[-1]
    networks = make_sac_networks(size, env.action_spec, PRIOR, num_cells=[16])
    sac_loss = BatchedSACLoss(networks.actor, networks.critics, target_entropy=-1.0)
    metra_loss = METRALoss(networks.encoder, PRIOR)
    return {
        "torch": torch,
        "prior": PRIOR,
        "actor": networks.actor,
        "encoder": networks.encoder,
        "collector": Collector(env, networks.actor, frames_per_batch=80, total_frames=total_frames),
        "replay_buffer": ReplayBuffer(storage=LazyTensorStorage(1_000), batch_size=16),
        "sac_loss": sac_loss,
        "metra_loss": metra_loss,
        "optimizers": make_metra_optimizers(metra_loss, sac_loss),
    }


def trainer_parts(names: Names) -> Names:
    """The arguments of a METRATrainer."""
    return {
        "collector": names["collector"],
        "total_frames": 160,
        "optim_steps_per_batch": 2,
        "loss_module": names["sac_loss"],
        "skill_loss": names["metra_loss"],
        "replay_buffer": names["replay_buffer"],
        "progress_bar": False,
    }


@contextmanager
def readme() -> Iterator[Names]:
    """A SAC script, whose environment is the reader's."""
    given = sac_script(make_env("point", 4))
    encoder = MLP(2, 2, num_cells=[16])
    before = [weight.detach().clone() for weight in encoder.parameters()]
    names = {key: given[key] for key in ("torch", "collector", "replay_buffer")}
    names.update(env=make_env("point", 4), encoder=encoder)
    yield names
    moved = zip(encoder.parameters(), before, strict=True)
    assert not any(new.equal(old) for new, old in moved)
    assert names["batch"]["next", "reward"].isfinite().all()


@contextmanager
def front_page() -> Iterator[Names]:
    batch = make_env("point", 8).append_transform(SkillPrimer(PRIOR)).rollout(8).reshape(-1)
    yield {"env": make_env("point", 8), "encoder": MLP(2, 2, num_cells=[16]), "batch": batch}
    assert batch["next", "reward"].isfinite().all()


@contextmanager
def objectives() -> Iterator[Names]:
    env = make_env("point", 8).append_transform(SkillPrimer(PRIOR))
    yield {"env": env, "batch": env.rollout(8).reshape(-1)}


@contextmanager
def ablations() -> Iterator[Names]:
    yield {"encoder": MLP(2, 2, num_cells=[16]), "prior": PRIOR, "observation_size": 2}


@contextmanager
def performance() -> Iterator[Names]:
    given = sac_script(make_env("point", 4))
    yield {key: given[key] for key in ("metra_loss", "sac_loss", "optimizers")}


@contextmanager
def evaluation() -> Iterator[Names]:
    """METRA on the pendulum of the page."""
    pytest.importorskip("gymnasium")
    pytest.importorskip("matplotlib")
    given = sac_script(GymEnv("Pendulum-v1"))
    trainer = METRATrainer(**trainer_parts(given))
    evaluation_env = GymEnv("Pendulum-v1", max_episode_steps=10)
    evaluation_env = evaluation_env.append_transform(SkillPrimer(PRIOR))
    names = {key: given[key] for key in ("actor", "encoder", "prior")}
    names.update(trainer=trainer, evaluation_env=evaluation_env)
    yield names
    assert 1 < names["report"]["skills"]["policy_coverage"] <= 361
    assert Path("pendulum_report/report.html").exists()
    trainer.train()
    assert {"skill_alignment", "total_coverage"} <= trainer._log_dict.keys()


@contextmanager
def extending() -> Iterator[Names]:
    names: Names = {}
    yield names
    untrained, trained = names["untrained"], names["trained"]
    assert untrained["skill_alignment"] < 0.5
    assert trained["skill_alignment"] > 0.7
    assert trained["policy_coverage"] > 5 * untrained["policy_coverage"]
    assert names["concentrated_loss"].log_concentration > 0.5


@contextmanager
def reliability() -> Iterator[Names]:
    names: Names = {"parts": trainer_parts(sac_script(make_env("point", 4)))}
    yield names
    assert names["trainer"].collected_frames == 160
    assert list(Path("run/checkpoints").iterdir())


@contextmanager
def scaling() -> Iterator[Names]:
    """Without Ray, which test_ray.py starts."""
    names: Names = {"parts": trainer_parts(sac_script(make_env("point", 4)))}
    for name in ("collector", "replay_buffer", "total_frames"):
        del names["parts"][name]
    names.update(make_env_0=None, make_env_1=None, policy=None, stepper=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchrl.collectors.distributed, "RayCollector", stand_in(RayCollector))
        patch.setattr(torchrl.data, "ReplayBuffer", stand_in(ReplayBuffer))
        patch.setattr(torchrl_metra, "METRATrainer", stand_in(METRATrainer, Trainer))
        yield names


def stand_in(kind: type, base: type | None = None) -> Callable[..., None]:
    """Takes what a constructor takes, and what it passes on; builds nothing."""
    signatures = [inspect.signature(each.__init__) for each in (kind, base or kind)]
    known = {name for signature in signatures for name in signature.parameters}

    def build(*arguments: Any, **options: Any) -> None:
        signatures[0].bind(None, *arguments, **options)
        assert options.keys() <= known, f"{kind.__name__} takes no {options.keys() - known}"

    return build


AROUND: dict[str, Callable[[], AbstractContextManager[Names]]] = {
    "README.md": readme,
    "docs/index.md": front_page,
    "docs/objectives.md": objectives,
    "docs/guides/evaluation.md": evaluation,
    "docs/guides/extending.md": extending,
    "docs/guides/reliability.md": reliability,
    "docs/guides/scaling.md": scaling,
    "docs/results/ablations.md": ablations,
    "docs/results/performance.md": performance,
}


def test_what_pages_take_for_granted_belongs_to_pages() -> None:
    assert AROUND.keys() <= set(with_blocks("python"))


def test_the_users_own_environment_is_short() -> None:
    code, *_ = Page("docs/guides/evaluation.md").code("python")
    assert len(code.code.strip().splitlines()) < 20


# Commands: understood, not run.


def make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        rule = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(rule, makefile, re.MULTILINE), f"Makefile has no {argument!r}"


def pip(arguments: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    known = set(
        re.findall(
            r'"([\w-]+)[^"]*"', text.partition("\ndependencies = ")[2].partition("\n[tool")[0]
        )
    )
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        option = r"--?(e|editable|U|upgrade|index-url|extra-index-url)|https://\S+"
        if re.fullmatch(option, argument):
            continue
        package, chosen = re.match(r"([\w.-]+)(?:\[([\w,-]*)\])?", argument).groups()
        assert package in known | {".", "torchrl-metra"}, f"not in pyproject.toml: {package}"
        if package in (".", "torchrl-metra"):
            for extra in filter(None, (chosen or "").split(",")):
                assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"no extra {extra!r}"


def python(arguments: list[str]) -> None:
    match arguments:
        case ["-m", "torchrl_metra.evaluation", *given]:
            parse_evaluation(given)
        case ["-m", "pip", *given]:
            pip(given)
        case [script, *given] if script.endswith(".py"):
            source = (ROOT / script).read_text()
            if config := re.search(r'config_name="(\w+)"', source):
                compose(config[1], given)
            elif "argparse" in source:
                parse(ROOT / script, given)
            else:
                assert not given, f"{script} takes no arguments"
        case _:
            pytest.fail(f"unknown: python {shlex.join(arguments)}")


def compose(name: str, arguments: list[str]) -> None:
    """The settings of an example; of several values, each one."""
    hydra = pytest.importorskip("hydra")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    multirun = "--multirun" in arguments
    choices = []
    for override in OverridesParser.create().parse_overrides(
        [argument for argument in arguments if argument != "--multirun"]
    ):
        key, values = override.get_key_element(), [override.get_value_string()]
        if override.is_sweep_override():
            assert multirun, f"{override.input_line} needs --multirun"
            values = list(override.sweep_string_iterator())
        choices.append([f"{key}={value}" for value in values])
    for job in range(max(map(len, choices), default=1)):
        overrides = [values[min(job, len(values) - 1)] for values in choices]
        with hydra.initialize_config_dir(str(EXAMPLES / "conf"), version_base="1.3"):
            check_settings(hydra.compose(name, overrides=overrides))


def check_settings(config: Any) -> None:
    """Names that Hydra does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        from objectives import OBJECTIVES
    known: dict[str, tuple[str, ...]] = {
        "env": (*POINTS, *MUJOCO_TASKS, "point_pixels", *PIXEL_TASKS, *DOWNSTREAM),
        "objective": tuple(OBJECTIVES),
        "device": ("cpu", "cuda"),
        "logger": ("csv", "tensorboard", "wandb"),
        "compile": (True, False),
        "cudagraphs": (True, False),
        "autocast": (None, "bfloat16"),
        "backend": (None, "envpool", "serial", "parallel"),
    }
    for key, values in known.items():
        if key in config:
            assert config[key] in values, f"{key}={config[key]}"
    if "skill" in config:
        assert issubclass(getattr(torchrl_metra, config.skill.kind), SkillPrior)


class Parsed(Exception):
    pass


def parse(script: Path, arguments: list[str]) -> None:
    """A script, until it has parsed its arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser) -> None:
        original(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [script.name, *arguments])
        patch.syspath_prepend(str(script.parent))
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def only(*patterns: str) -> Callable[[list[str]], None]:
    """Commands of others, with arguments of these forms."""

    def check(arguments: list[str]) -> None:
        found = shlex.join(arguments)
        assert any(re.fullmatch(pattern, found) for pattern in patterns), f"unknown: {found}"

    return check


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "make": make,
    "pip": pip,
    "python": python,
    "pre-commit": only("install"),
    "ray": only("start --head --port=[0-9]+", r"start --address=\S+:[0-9]+", "stop"),
    "apt-get": only("update", "install [a-z0-9 .+-]+"),
    "git": only(r"clone https://\S+"),
    "cd": only(r"[\w-]+"),
    "export": only(r"[A-Z_]+=\S+"),
}


def read_commands(script: str) -> Iterator[list[str]]:
    """The commands of a script; those in loops, with each value."""
    loops: dict[str, list[str]] = {}
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
        lexer.whitespace_split = True
        for is_end, words in itertools.groupby(lexer, lambda word: word in (";", "&&")):
            match [] if is_end else list(words):
                case [] | ["do"] | ["done"]:
                    pass
                case ["for", variable, "in", *values]:
                    loops[f"${variable}"] = values
                case [*command]:
                    used = [name for name in loops if name in command]
                    for values in itertools.product(*(loops[name] for name in used)):
                        value_of = dict(zip(used, values, strict=True))
                        yield [value_of.get(word, word) for word in command]


def check_commands(script: str) -> None:
    for command in read_commands(script):
        while re.match(r"[A-Z_]+=", command[0]):  # variables of the environment
            command = command[1:]
        program = command[0].removeprefix(".venv/bin/")
        assert program in COMMANDS, f"unknown: {shlex.join(command)}"
        try:
            COMMANDS[program](command[1:])
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{shlex.join(command)}: {error}") from error


@pytest.mark.parametrize("name", PAGES)
def test_commands(name: str) -> None:
    page = Page(name)
    for block in page.code("sh"):
        check_commands(block.code)
    ours = (
        r"(make [a-z]|pip install .*(torchrl-metra|\.\[)"
        r"|python (-m torchrl_metra\S+ |(examples|benchmarks|docs)/)).*"
    )
    for code in page.inline_code:
        if re.fullmatch(ours, code):
            check_commands(code)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python examples/point.py objectve=lsd", "objectve"),
        ("python examples/point.py objective=lds", "objective=lds"),
        ("python examples/point.py --multirun seed=0,1 objective=metra,lds", "objective=lds"),
        ("python examples/point.py seed=0,1", "needs --multirun"),
        ("python examples/point.py +experiment=quickstar", "quickstar"),
        ("for n in 1 2; do\n  python examples/point.py skill.dims=$n\ndone", "skill.dims"),
        ("python examples/pont.py", "pont.py"),
        ("python examples/summarize.py outputs --result coverage --colour red", "2"),
        ("python benchmarks/plot_curves.py outputs", "takes no arguments"),
        ("python -m torchrl_metra.evaluation outputs --episods 3", "2"),
        ("make quickstrat", "quickstrat"),
        ("make quickstart TROCH=torch", "TROCH"),
        ("pip install '.[mujoco,envpol]'", "envpol"),
        ("pip install torchrl-mtra", "torchrl-mtra"),
        ("cd torchrl_metra && rm -rf outputs", "unknown: rm"),
    ],
)
def test_a_mistaken_command_is_noticed(command: str, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_commands(command)


# The rest.


def skip(block: Block) -> None:
    """What has tests of its own, output, and what Sphinx reads."""


def check_yaml(block: Block) -> None:
    assert pytest.importorskip("yaml").safe_load(block.code)


def check_include(block: Block) -> None:
    text = (block.path.parent / block.argument).read_text()
    for bound in re.findall("^:(?:start|end)-(?:at|after|before): (.*)", block.code, re.MULTILINE):
        assert bound in text, f"{block}: {block.argument} has no {bound!r}"


LANGUAGES: dict[str, Callable[[Block], Any]] = {
    "python": skip,
    "sh": skip,
    "text": skip,
    "yaml": check_yaml,
    "json": lambda block: json.loads(block.code),
    "{toctree}": skip,
    "{include}": check_include,
    "{literalinclude}": check_include,
}


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name: str) -> None:
    for block in Page(name).blocks:
        language = block.language
        assert language in LANGUAGES, f"{block} is {language!r}, known are {list(LANGUAGES)}"
        LANGUAGES[language](block)


def fault(page: Page, link: str) -> str | None:
    """Why a link leads nowhere."""
    if link.startswith(("https:", "mailto:")):
        return None
    if link.startswith("http:"):
        return "is not https"
    file, _, anchor = unquote(link).partition("#")
    target = (page.path.parent / file).resolve() if file else page.path
    if not target.exists() or BUILT & set(target.relative_to(ROOT).parts):
        return "is not in the repository"
    if anchor and anchor not in (anchors := Page(str(target)).anchors):
        return f"is none of {sorted(anchors)}"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    page = Page(name)
    faults = {link: why for link in page.links if (why := fault(page, link))}
    assert not faults


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    for code in Page(name).inline_code:
        if re.fullmatch(r"(examples|benchmarks|tests|docs|torchrl_metra)/[\w./-]+", code):
            assert (ROOT / code).exists() or BUILT & set(Path(code).parts), code


ROOMS = ["data", "envs", "modules", "objectives", "objectives.functional", "trainers", "evaluation"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room: str) -> None:
    pages = (path.read_text() for path in (ROOT / "docs" / "reference").glob("*.rst"))
    listed = set(re.findall(r"^(?:   |\.\. autodata:: )(\w+)$", "\n".join(pages), re.MULTILINE))
    names = set(importlib.import_module(f"torchrl_metra.{room}").__all__)
    assert names - listed <= {"ConstraintNorm"}  # a type


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[1]
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert citation == latest
    assert torchrl_metra.__version__ == latest or ".dev" in torchrl_metra.__version__
