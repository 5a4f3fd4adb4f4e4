"""What the package touches of the insides of its dependencies: one room, and a test for each."""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import Trainer

import torchrl_metra
from torchrl_metra import _private

PACKAGE = Path(torchrl_metra.__file__).parent
ROOM = PACKAGE / "_private.py"
# Methods that the documentation of a dependency tells subclasses to write.
EXTENSION_POINTS = {
    "_AcceptedKeys",
    "_apply_transform",
    "_call",
    "_forward_value_estimator_keys",
    "_inv_apply_transform",
    "_inv_call",
    "_reset",
    "_set_seed",
    "_step",
}
# Private by their look only.
PUBLIC = {"_asdict", "_replace"}


def test_each_touch_has_a_test() -> None:
    touches = {
        name
        for name, value in vars(_private).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == _private.__name__
        and not name.startswith("_")
    }
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert touches
    assert touches <= tests


def test_nobody_else_reads_private_attributes() -> None:
    sources = [path for path in PACKAGE.rglob("*.py") if path != ROOM]
    trees = {path: ast.parse(path.read_text()) for path in sources}
    own = {path: _defined(tree) for path, tree in trees.items()}
    everywhere = set().union(*own.values())
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path, tree in trees.items()
        for line, name, is_of_self in _private_names(tree)
        if name not in (everywhere if is_of_self else own[path])
    ]
    assert not found, "\n".join(found)


def test_nobody_else_overrides_private_methods() -> None:
    modules = pkgutil.walk_packages([str(PACKAGE)], "torchrl_metra.")
    names = [module.name for module in modules if not module.name.endswith("__main__")]
    found = set()
    for module in map(import_module, names):
        for cls in filter(inspect.isclass, vars(module).values()):
            if cls.__module__ != module.__name__ or cls.__module__ == _private.__name__:
                continue
            strangers = [base for base in cls.__mro__ if not _is_ours(base)]
            for name, value in vars(cls).items():
                is_private = name.startswith("_") and not name.startswith("__")
                # Others are made by metaclasses.
                is_written = getattr(value, "__module__", None) == cls.__module__
                if is_private and is_written and any(name in vars(base) for base in strangers):
                    found.add(f"{cls.__module__}.{cls.__name__}.{name}")
    found = {name for name in found if name.rpartition(".")[2] not in EXTENSION_POINTS}
    assert not found, "\n".join(sorted(found))


def test_the_import_touches_nothing() -> None:
    # A room that cannot be entered: whatever is called there fails.
    program = """
import sys
def trace(frame, event, argument):
    code = frame.f_code
    assert not (event == "call" and code.co_filename.endswith("_private.py")
                and code.co_name != "<module>" and not code.co_name[0].isupper()), code.co_name
sys.setprofile(trace)
import torchrl_metra
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torchrl_metra"


def _defined(tree: ast.Module) -> set[str]:
    """Private names that this module makes itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _private_names(tree: ast.Module) -> list[tuple[int, str, bool]]:
    """Attributes that are read, whether of self, and names that are imported from elsewhere."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        is_of_self = False
        if isinstance(node, ast.Attribute):
            names = [node.attr]
            is_of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
            "torchrl_metra"
        ):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        found += [
            (node.lineno, name, is_of_self)
            for name in names
            if name.startswith("_") and not name.startswith("__") and name not in PUBLIC
        ]
    return found


# ---- torchrl: losses


# ---- torchrl: distributions


# ---- torchrl: trainers


def test_reset_counters() -> None:
    class Bare(Trainer):
        def __init__(self) -> None:
            """Nothing but the counters."""

    first, second = Bare(), Bare()
    assert "_optim_count" not in vars(first), "TorchRL keeps them on the class"
    _private.reset_counters(first)
    type(first)._optim_count = type(first)._last_save = type(first).collected_frames = 3
    assert (second.collected_frames, second._optim_count, second._last_save) == (3, 3, 3)
    assert (first.collected_frames, first._optim_count, first._last_save) == (0, 0, 0)


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


def test_forget_scalars(tmp_path: Path) -> None:
    logger = CSVLogger("log", log_dir=str(tmp_path))
    logger.log_scalar("loss", 1.0, step=1)
    assert logger.experiment.scalars["loss"]
    _private.forget_scalars(logger)
    assert not logger.experiment.scalars
    logger.log_scalar("loss", 2.0, step=2)
    rows = (tmp_path / "log" / "scalars" / "loss.csv").read_text()
    assert rows == "1,1.0\n2,2.0\n"


# ---- torchrl: environments


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("loss=metro", ("choice", "loss=metro", "loss=metra")),
        ("loss.slak=1", ("setting", "loss.slak", "loss.slack")),
    ],
)
def test_refused_name(override: str, refused: tuple[str, str, str]) -> None:
    hydra = pytest.importorskip("hydra")
    import_module("torchrl_metra.trainers.configs")
    with (
        hydra.initialize(version_base="1.3"),
        pytest.raises(hydra.errors.ConfigCompositionException) as error,
    ):
        hydra.compose(overrides=["+loss=metra", override])
    exit_ = SystemExit()
    exit_.__context__ = error.value
    for found in map(_private.refused_name, (error.value, exit_)):
        kind, name, names = found
        assert (kind, name) == refused[:2]
        assert refused[2] in names
    assert _private.refused_name(SystemExit()) is None


# ---- the standard library


def test_start_resource_tracker() -> None:
    _private.start_resource_tracker()
    pid = resource_tracker._resource_tracker._pid
    os.kill(pid, 0)
    _private.start_resource_tracker()
    assert resource_tracker._resource_tracker._pid == pid
