"""What the package touches of the insides of its dependencies: one room, and a test for each."""

from __future__ import annotations

import ast
import gc
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import SelfResettingPoint
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    EnvBase,
    GymWrapper,
    RewardScaling,
    SerialEnv,
    Transform,
    TransformedEnv,
)

import torchrl_metra
from torchrl_metra import PointEnv, _private
from torchrl_metra.envs import rendering_available

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


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


# ---- torchrl: environments


class CountsUp(EnvBase):
    """Two environments that count their steps; the second is done at its second step."""

    def __init__(self) -> None:
        super().__init__(batch_size=[2])
        self.observation_spec = Composite(count=Unbounded((2, 1)), shape=[2])
        self.action_spec = Bounded(-1, 1, (2, 1))
        self.reward_spec = Unbounded((2, 1))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        return TensorDict({"count": torch.zeros(2, 1)}, [2])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get("_step", torch.ones(2, dtype=torch.bool)).reshape(2, 1)
        count = tensordict["count"] + mask * tensordict["action"].abs().ceil()
        done = (count >= 2) & torch.tensor([[False], [True]])
        return TensorDict({"count": count, "reward": count.clone(), "done": done}, [2])

    def _set_seed(self, seed: int | None) -> None:
        pass


def test_SpecsMixin() -> None:
    gymnasium = pytest.importorskip("gymnasium")

    class Renamed(_private.SpecsMixin, GymWrapper):
        def adjust_specs(self) -> None:
            self.observation_spec["again"] = self.observation_spec["observation"].clone()

    env = Renamed(gymnasium.make("Pendulum-v1"))
    assert env.observation_spec["again"].shape == (3,)
    assert env.action_spec.shape == (1,)


def test_AutoResetMixin() -> None:
    class Marks(_private.AutoResetMixin, Transform):
        def update_where_reset(
            self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
        ) -> TensorDictBase:
            resets.append(tensordict["_reset"].flatten().tolist())
            return tensordict_reset

    resets: list[list[bool]] = []
    env = TransformedEnv(SelfResettingPoint(2, max_steps=3), Marks())
    env.rollout(4, break_when_any_done=False)
    assert [True, True] in resets


def test_WorkerCheckMixin() -> None:
    class Outside(_private.WorkerCheckMixin, Transform):
        def check_in_worker(self) -> None:
            raise RuntimeError("not in a worker")

    with pytest.raises(RuntimeError, match="not in a worker"):
        SerialEnv(1, lambda: TransformedEnv(PointEnv(), Outside())).reset()


def test_steps_mask() -> None:
    seen = []

    class Looks(Transform):
        def _step(self, tensordict: TensorDictBase, following: TensorDictBase) -> TensorDictBase:
            seen.append(_private.steps_mask(tensordict, following["done"]).flatten().tolist())
            return following

    env = TransformedEnv(CountsUp(), Looks())
    env.rollout(4, break_when_any_done=False, break_when_all_done=True)
    assert seen == [[True, True], [True, True], [True, False], [True, False]]


def test_step_below() -> None:
    env = CountsUp()
    start = env.reset().set("action", torch.ones(2, 1))
    doubled = RewardScaling(loc=0.0, scale=2.0)
    active = torch.tensor([[True], [False]])
    for mask in (active | True, active):
        out = _private.step_below(env, [doubled], start.clone(), mask)
        assert out["count"].equal(mask.float())
        assert out["reward"].equal(2 * mask.float())
        assert not out["terminated"].any()  # Which the environment does not write.


# ---- torch


# ---- mujoco and dm_control


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_open_gl_context() -> None:
    mujoco = pytest.importorskip("mujoco")
    if not rendering_available():
        pytest.skip("no OpenGL backend of MuJoCo works here")

    class Broken(mujoco.GLContext):
        def __init__(self, width: int, height: int) -> None:
            assert self._context is None
            raise OSError("no device")

    with pytest.raises(OSError, match="no device"):
        _private.open_gl_context(Broken, 4, 3)
    gc.collect()


def test_suite_step_limit() -> None:
    suite = pytest.importorskip("dm_control.suite")
    env = suite.load("cartpole", "balance", task_kwargs={"time_limit": 0.05})
    assert _private.suite_step_limit(env) == pytest.approx(5)
    assert _private.suite_step_limit(suite.load("lqr", "lqr_2_1")) == float("inf")


# ---- hydra


# ---- the standard library
