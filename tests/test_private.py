"""What the package touches of the insides of its dependencies: one room, and a test for each."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SelfResettingPoint
from tensordict import TensorDict
from torchrl.data import ReplayBuffer
from torchrl.modules import TanhNormal

import torchrl_metra
from torchrl_metra import PointEnv, _private

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


@pytest.mark.parametrize("high", [1.0, 3.0])
def test_unchecked_tanh_normal(high: float) -> None:
    loc, scale = torch.randn(5, 2), torch.rand(5, 2) + 0.1
    bounds = () if high == 1.0 else (-torch.ones(2), torch.full([2], high))
    ours = _private.unchecked_tanh_normal(loc, scale, *bounds)
    stock = TanhNormal(loc, scale, low=-1.0, high=high)
    samples = []
    for distribution in (ours, stock):
        torch.manual_seed(0)
        samples.append(distribution.rsample_and_log_prob())
    torch.testing.assert_close(samples[0], samples[1])
    action = samples[1][0]
    torch.testing.assert_close(ours.log_prob(action), stock.log_prob(action))
    torch.testing.assert_close(ours.deterministic_sample, stock.deterministic_sample)
    # What it is for: no value is read, as a tensor without values shows.
    nothing = torch.empty(5, 2, device="meta")
    bounds = tuple(bound.to("meta") for bound in bounds)
    assert _private.unchecked_tanh_normal(nothing, nothing, *bounds).rsample().shape == (5, 2)


# ---- torchrl: trainers


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


def test_SelfSamplingStorage() -> None:
    class Latest(_private.SelfSamplingStorage):
        """Samples its latest entry only."""

        cleared = False

        def set(self, cursor: Any, data: Any, **kwargs: Any) -> None:
            self.latest = int(torch.as_tensor(cursor)[-1])
            super().set(cursor, data, **kwargs)

        def draw(self, batch_size: int, generator: torch.Generator | None) -> torch.Tensor:
            assert generator is rng
            return torch.full([batch_size], self.latest)

        def clear(self) -> None:
            self.cleared = True

    rng = torch.Generator()
    storage = Latest(TensorDict({"x": torch.zeros(9)}, [9]))
    buffer = ReplayBuffer(storage=storage, batch_size=3)
    buffer.set_rng(rng)
    buffer.extend(TensorDict({"x": torch.arange(4.0)}, [4]))
    assert buffer.sample()["x"].tolist() == [3.0] * 3
    before = storage._mutation_revision
    storage.note_change(torch.tensor([4, 5]))
    assert storage._mutation_revision > before
    assert storage._last_cursor.tolist() == [4, 5]
    buffer.empty()
    assert storage.cleared


# ---- torchrl: environments


def test_resets_itself() -> None:
    assert not _private.resets_itself(PointEnv())
    env = SelfResettingPoint(1, max_steps=2)
    assert _private.resets_itself(env)
    # By this mark TorchRL goes on with the next episode without a reset.
    steps = env.rollout(4, break_when_any_done=False)["next", "done"].flatten().tolist()
    assert steps == [False, True, False, True]


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


# ---- the standard library
