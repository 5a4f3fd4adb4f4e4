"""What the package touches of the insides of its dependencies: one room, and a test for each."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import SACLoss
from torchrl.trainers import _execution

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


def make_batch_of_three() -> TensorDict:
    weights = torch.tensor([1.0, 2.0, 3.0])
    mask = torch.tensor([True, True, False])
    return TensorDict({"priority_weight": weights, "collector": {"mask": mask}}, [3])


def test_reduce_loss(losses: SimpleNamespace) -> None:
    batch, values = make_batch_of_three(), torch.tensor([5.0, 8.0, 100.0])
    assert _private.reduce_loss(losses.metra_loss, values, batch) == (5 + 2 * 8) / 3
    batch.pop("priority_weight")
    assert _private.reduce_loss(losses.metra_loss, values, batch) == (5 + 8) / 2


def test_reduce_metric(losses: SimpleNamespace) -> None:
    values = torch.tensor([5.0, 8.0, 100.0], requires_grad=True)
    metric = _private.reduce_metric(losses.metra_loss, values, make_batch_of_three())
    assert metric == (5 + 8) / 2
    assert not metric.requires_grad
    losses.metra_loss.reduction = "none"
    assert _private.reduce_metric(losses.metra_loss, values, make_batch_of_three()).equal(values)


def test_BatchedCritics(losses: SimpleNamespace, batch: TensorDict) -> None:
    calls = []

    class Loss(_private.BatchedCritics, SACLoss):
        def evaluate_critics(self, tensordict: TensorDict, params: TensorDict) -> TensorDict:
            calls.append(params)
            value = params["module", "0", "weight"].sum(dim=(1, 2)).view(2, 1, 1).expand(2, 32, 1)
            return TensorDict({"state_action_value": value}, [2, 32])

    loss = Loss(losses.networks.actor, losses.networks.critics, target_entropy=-1.0)
    loss(batch)
    # The targets', the critics' own, and theirs without gradient for the policy.
    assert len(calls) == 3
    assert calls[0] is loss.target_qvalue_network_params


# ---- torchrl: distributions


# ---- torchrl: trainers


def test_add_learner_models(losses: SimpleNamespace) -> None:
    policy = losses.networks.actor
    learner = SimpleNamespace(models={"policy": policy})
    encoder = TensorDictModule(nn.Identity(), ["pixels"], ["features"])
    _private.add_learner_models(learner, [losses.metra_loss, losses.sac_loss], encoder)
    assert list(learner.models["losses"]) == [losses.metra_loss, losses.sac_loss]
    assert list(learner.models["policy"].module) == [encoder, policy]
    _private.add_learner_models(SimpleNamespace(), [losses.sac_loss], None)
    # Starting Ray takes long: tests/test_ray.py does.
    assert "self.models = " in inspect.getsource(_execution)


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


# ---- torchrl: environments


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


# ---- the standard library
