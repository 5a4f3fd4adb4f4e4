"""What the documentation shows, run or checked: code, commands, settings, links, patches."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import pytest
import torch
from pages import BUILT, ROOT, Page, pages
from torch.testing import assert_close
from torchrl.collectors import Collector
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.envs import EnvBase, GymEnv
from torchrl.modules import MLP
from torchrl.record.loggers import CSVLogger

import torchrl_metra
from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRATrainer,
    OneHot,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra._private import num_updates
from torchrl_metra.envs import make, rendering_available
from torchrl_metra.envs.registry import _ENTRIES
from torchrl_metra.envs.statistics import random_steps
from torchrl_metra.recipes import OBJECTIVES
from torchrl_metra.recipes.command import COMMANDS
from torchrl_metra.recipes.settings import Settings, describe, shown

Names = dict[str, Any]
PAGES = pages()
PRIOR = UnitSphere(2)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# Python: each page from top to bottom, in one namespace.


# test_the_configuration_files runs that one, as the script that it is.
WITH_PYTHON = [name for name in PAGES if Page(name).code("python")]
WITH_PYTHON.remove("docs/guides/configuration.md")


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(name)
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    # As in a clone, but with a place to write.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names = vars(main)
    try:
        save_quickstart(page)
        around = AROUND[name]() if name in AROUND else nullcontext({})
        # Names that pages register are theirs alone. Few random steps normalize well enough.
        few_steps = patch.object(
            make, "random_steps", functools.partial(random_steps, num_steps=400)
        )
        with patch.dict(OBJECTIVES), patch.dict(_ENTRIES), few_steps, around as given:
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
def your_environment() -> Iterator[Names]:
    """So short a training moves the policy, but whether it counts more cells is chance."""
    names: Names = {}
    yield names
    loaded, policy = SkillPolicy.load("car.pt"), names["policy"]
    assert_close(dict(loaded.named_parameters()), dict(policy.named_parameters()))
    assert num_updates(names["trainer"]) > 0
    assert loaded.env_options["max_steps"] == 200


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
    trainer = METRATrainer(
        collector=given["collector"],
        total_frames=160,
        optim_steps_per_batch=2,
        loss_module=given["sac_loss"],
        skill_loss=given["metra_loss"],
        replay_buffer=given["replay_buffer"],
        logger=CSVLogger("log", log_dir="."),
        log_interval=0,
        progress_bar=False,
    )
    evaluation_env = GymEnv("Pendulum-v1", max_episode_steps=10)
    evaluation_env = evaluation_env.append_transform(SkillPrimer(PRIOR))
    names = {key: given[key] for key in ("actor", "encoder", "prior")}
    names.update(trainer=trainer, evaluation_env=evaluation_env)
    yield names
    assert 1 < names["report"]["skills"]["policy_coverage"] <= 361
    assert Path("pendulum_report/report.html").exists()
    trainer.train()
    for name in ("skill_alignment", "total_coverage"):
        assert Path(f"log/scalars/{name}.csv").exists()


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
    names: Names = {}
    yield names
    assert names["trainer"].collected_frames == 3_200
    assert list(Path("run/checkpoints").iterdir())


AROUND: dict[str, Callable[[], AbstractContextManager[Names]]] = {
    "README.md": readme,
    "docs/index.md": front_page,
    "docs/objectives.md": objectives,
    "docs/guides/evaluation.md": evaluation,
    "docs/guides/extending.md": extending,
    "docs/guides/reliability.md": reliability,
    "docs/guides/your_environment.md": your_environment,
    "docs/results/ablations.md": ablations,
    "docs/results/performance.md": performance,
}


def test_the_configuration_files(tmp_path: Path) -> None:
    pytest.importorskip("hydra")
    page = Page("docs/guides/configuration.md")
    (tmp_path / "metra.yaml").write_text(page.code("yaml")[0].code)
    (tmp_path / "train.py").write_text(page.code("python")[0].code)
    settings = ("total_frames=1_600", "num_cells=[16]", "progress_bar=false")
    # In a process of its own: Hydra sets up logging anew, and closes what pytest captures.
    command = [sys.executable, "train.py", *(f"trainer.{given}" for given in settings)]
    run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert re.search(r"1600 frames, \d+ cells visited", run.stdout)


def test_the_table_of_settings() -> None:
    rows = ["| setting | default | |", "|---|---|---|"]
    for name, value, comment in describe(Settings()):
        comment = comment.replace("|", "\\|")
        rows.append(f"| `{name}` | `{shown(value)}` | {comment} |")
    table = "\n".join(rows)
    assert table in Page("docs/guides/configuration.md").text, f"the table should be\n{table}"


# Commands: understood, not run.


@pytest.mark.parametrize("name", PAGES)
def test_commands(name: str) -> None:
    page = Page(name)
    ours = r"(make [a-z]|pip install .*\[|python (examples|benchmarks)/|metra [a-z]+ ).*"
    scripts = [block.code for block in page.code("sh")]
    scripts += [code for code in page.inline_code if re.fullmatch(ours, code)]
    for line in "\n".join(scripts).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program in CHECKS and "..." not in line:
            CHECKS[program](*arguments)


def check_metra(name: str, *arguments: str) -> None:
    assert name in COMMANDS
    if name not in ("train", "downstream", "finetune"):
        check_options(ROOT / "torchrl_metra" / "recipes" / f"{name}.py", *arguments)
        return
    app = pytest.importorskip("torchrl_metra.recipes.app")
    choices = []
    for item in arguments:
        if "=" not in item or item.startswith("-"):
            continue
        key, _, values = item.partition("=")
        is_sweep = "--multirun" in arguments and "[" not in values
        choices.append([f"{key}={value}" for value in values.split(",")] if is_sweep else [item])
        if item.startswith("objective="):
            assert set(values.split(",")) <= set(OBJECTIVES)
    # The first of each sweep's values and the last.
    for job in {0, -1}:
        compose(app, name, *(values[job] for values in choices))


@functools.cache
def compose(app: ModuleType, name: str, *chosen: str) -> None:
    """Once, where pages have the same command."""
    app.compose(name, chosen)


def check_options(path: Path, *arguments: str) -> None:
    text = path.read_text() if path.exists() else ""
    for argument in arguments:
        assert not argument.startswith("--") or f'"{argument}"' in text, argument


def check_python(script: str, *arguments: str) -> None:
    assert (ROOT / script).exists(), script
    check_options(ROOT / script, *arguments)


def check_make(*arguments: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        rule = rf"^{name} \?=" if is_variable else rf"^{name}:"
        assert re.search(rule, makefile, re.MULTILINE), f"Makefile has no {argument!r}"


def check_pip(*arguments: str) -> None:
    for chosen in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        assert set(chosen.split(",")) <= PROJECT["optional-dependencies"].keys(), chosen


CHECKS: dict[str, Callable[..., None]] = {
    "metra": check_metra,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
}


# The rest.


@pytest.mark.parametrize("name", PAGES)
def test_included_lines_exist(name: str) -> None:
    for block in Page(name).blocks:
        directive, _, path = block.info.partition(" ")
        if "include}" in directive:
            text = (block.path.parent / path).read_text()
            for bound in re.findall("^:(?:start|end)-at: (.*)", block.code, re.MULTILINE):
                assert bound in text, f"{name}:{block.line}: {path} has no {bound!r}"


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs the command patch")
@pytest.mark.parametrize("block", Page("docs/upstream.md").code("diff"), ids=lambda b: b.line)
def test_patches_apply(block: Any) -> None:
    project = re.match(r"--- a/(\w+)/", block.code)[1]
    pytest.importorskip(project)
    installed = distribution(project)
    if installed.version not in ("0.14.1", "3.10.0"):
        pytest.skip(f"written for another version than {installed.version}")
    command = ["patch", "--dry-run", "--strip=1", "--directory", installed.locate_file("")]
    done = subprocess.run(command, input=block.code, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def fault(page: Page, link: str) -> str | None:
    """Why a link leads nowhere."""
    if link.startswith(("https:", "mailto:")):
        return None
    file, _, anchor = unquote(link).partition("#")
    target = (page.path.parent / file).resolve() if file else page.path
    if not target.exists() or BUILT & set(target.relative_to(ROOT).parts):
        return "is not in the repository"
    if anchor and anchor not in (anchors := Page(str(target)).anchors):
        return f"is not one of {sorted(anchors)}"
    return None


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    page = Page(name)
    faults = {link: why for link in page.links if (why := fault(page, link))}
    assert not faults
    for code in page.inline_code:
        if re.fullmatch(r"(examples|benchmarks|tests|docs|torchrl_metra)/[\w./-]+", code):
            assert (ROOT / code).exists() or BUILT & set(Path(code).parts), code


ROOMS = [
    "data",
    "envs",
    "modules",
    "objectives",
    "objectives.functional",
    "trainers",
    "recipes",
    "evaluation",
]


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room: str) -> None:
    pages = (path.read_text() for path in (ROOT / "docs" / "reference").glob("*.rst"))
    listed = set(
        re.findall(r"^(?:   |\.\. (?:auto)?data:: )(\w+)$", "\n".join(pages), re.MULTILINE)
    )
    module = importlib.import_module(f"torchrl_metra.{room}")
    names = set(getattr(module, "__all__", ())) or {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    }
    assert names - listed <= {"ConstraintNorm"}  # a type


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[1]
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert citation == latest
    assert torchrl_metra.__version__ == latest or ".dev" in torchrl_metra.__version__
