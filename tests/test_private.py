"""What the package touches of the insides of its dependencies: one room, and a test for each."""

from __future__ import annotations

import ast
import gc
import inspect
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SelfResettingPoint, make_batch, make_losses
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Bounded, Composite, LazyTensorStorage, ReplayBuffer, Unbounded
from torchrl.envs import (
    EnvBase,
    GymWrapper,
    RewardScaling,
    SerialEnv,
    Transform,
    TransformedEnv,
)
from torchrl.modules import TanhNormal
from torchrl.objectives import SACLoss
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import OptimizationStepper, Trainer, _execution

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


@pytest.fixture
def losses() -> SimpleNamespace:
    return make_losses()


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


def test_BatchedCritics(losses: SimpleNamespace) -> None:
    calls = []

    class Loss(_private.BatchedCritics, SACLoss):
        def evaluate_critics(self, tensordict: TensorDict, params: TensorDict) -> TensorDict:
            calls.append(params)
            value = params["module", "0", "weight"].sum(dim=(1, 2)).view(2, 1, 1).expand(2, 32, 1)
            return TensorDict({"state_action_value": value}, [2, 32])

    loss = Loss(losses.networks.actor, losses.networks.critics, target_entropy=-1.0)
    loss(make_batch(losses.prior, 32))
    # The targets', the critics' own, and theirs without gradient for the policy.
    assert len(calls) == 3
    assert calls[0] is loss.target_qvalue_network_params


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


def test_reset_counters() -> None:
    first, second = _make_trainer(), _make_trainer()
    state = dict(first.state_dict()["state"])
    assert state == {"collected_frames": 0, "_last_log": {}, "_last_save": 0, "_optim_count": 0}
    for trainer in (first, second):
        _private.reset_counters(trainer)
    first.train()
    assert first._last_log == {"optim_steps": 20}
    assert second.state_dict()["state"] == state


def test_num_updates() -> None:
    trainer = _make_trainer()
    trainer.train()
    assert _private.num_updates(trainer) == 4


def test_keep_only_the_latest() -> None:
    trainer = _make_trainer()
    _private.keep_only_the_latest(trainer)
    trainer.register_op("post_steps_log", lambda batch: {"frames": trainer.collected_frames})
    trainer.train()
    assert list(trainer._log_dict["frames"]) == [20]


def test_the_progress_bar() -> None:
    """What ``show_numbers`` and ``show_collected_frames`` show."""
    trainer = _make_trainer(progress_bar=True)
    trainer.collected_frames = 5
    trainer.register_op("setup", lambda: _private.show_collected_frames(trainer))
    trainer.register_op("post_steps", lambda: _private.show_numbers(trainer, {"lambda": 2.0}))
    trainer.train()
    assert trainer._pbar.n == 25
    assert "lambda: 2.0000" in trainer._pbar.desc


test_show_numbers = test_show_collected_frames = test_the_progress_bar


def test_LearnerProxy() -> None:
    stepper = _Stepper()
    worker = _execution._Learner(
        loss_module=make_losses().sac_loss,
        replay_buffer=None,
        local_batch_size=1,
        optimizer=None,
        optimization_stepper=stepper,
        target_net_updater=None,
    ).initialize()
    worker.models["losses"] = torch.nn.Linear(2, 1)
    assert "rng" in worker.state_dict()
    # What it is within processes of Ray, without these.
    backend = SimpleNamespace(
        get_weights=worker.get_weights,
        model_version=3,
        state_dict=lambda: {"ranks": [worker.state_dict()]},
        step=lambda num_steps: num_steps,
    )
    trainer = _make_trainer()
    assert trainer._execution_backend is None
    trainer._execution_backend = backend
    learner = _private.LearnerProxy(trainer)
    assert trainer._execution_backend is learner
    assert (learner.step(2), learner.model_version) == (2, 3)
    assert learner.weights("losses")["weight"].shape == (1, 2)
    (state,) = learner.state_dict()["ranks"]
    assert worker.state_dict().keys() - state.keys() == {"rng"}


def _make_trainer(**options: Any) -> Trainer:
    """Two rounds of ten frames and two updates, without anything of ours."""
    return Trainer(
        **{
            "collector": Collector(CountingEnv(), frames_per_batch=10, total_frames=20),
            "total_frames": 20,
            "frame_skip": 1,
            "optim_steps_per_batch": 2,
            "loss_module": torch.nn.Linear(1, 1),
            "optimization_stepper": _Stepper(),
            "progress_bar": False,
            "log_interval": 0,
            **options,
        }
    )


class _Stepper(OptimizationStepper):
    def step(self, trainer: Trainer, sub_batch: TensorDictBase) -> TensorDictBase:
        return TensorDict()


# ---- torchrl: checkpoints


def test_SealedCheckpoint(tmp_path: Path) -> None:
    class Sealed(_private.SealedCheckpoint):
        def seal(self, folder: Path) -> None:
            assert (folder / "manifest.json").exists()
            assert not (tmp_path / "checkpoint").exists()
            (folder / "seal").touch()

    Sealed(value={"a": 1}).save(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "seal").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_drop_prefetched(tmp_path: Path) -> None:
    def make() -> ReplayBuffer:
        return ReplayBuffer(storage=LazyTensorStorage(10), batch_size=2, prefetch=1)

    source, target = make(), make()
    source.extend(TensorDict({"a": torch.arange(10)}, [10]))
    source.sample()
    Checkpoint(replay_buffer=source).save(tmp_path / "checkpoint")
    assert list(tmp_path.rglob("*.pkl"))
    _private.drop_prefetched(tmp_path)
    assert not list(tmp_path.rglob("*.pkl"))
    Checkpoint(replay_buffer=target).load(tmp_path / "checkpoint")
    assert target[:]["a"].equal(source[:]["a"])


# ---- torchrl: collectors


def test_collector_progress() -> None:
    collector = Collector(CountingEnv(), frames_per_batch=10, total_frames=30)
    next(iter(collector))
    progress = _private.collector_progress(collector)
    assert progress == {"frames": 10, "iter": 0}
    other = Collector(CountingEnv(), frames_per_batch=10, total_frames=30)
    other.load_state_dict(progress, strict=False)
    assert len(list(other)) == 2


def test_episodes_under_way() -> None:
    collector = Collector(CountingEnv(), frames_per_batch=10, total_frames=20)
    batch = next(iter(collector))
    carrier = _private.episodes_under_way(collector)
    assert carrier["observation"].equal(batch["next", "observation"][-1])
    carrier.update(TensorDict({"observation": torch.tensor([7.0])}))
    assert next(iter(collector))["observation"][0] == 7


def test_worker_processes() -> None:
    assert not _private.worker_processes(Collector(CountingEnv(), frames_per_batch=1))
    collector = MultiSyncCollector([CountingEnv] * 2, frames_per_batch=2, total_frames=2)
    workers = list(_private.worker_processes(collector))
    assert [worker.is_alive() for worker in workers] == [True, True]
    collector.shutdown()


class CountingEnv(EnvBase):
    """Its observation is the number of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded(1))
        self.action_spec = Unbounded(1)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        return TensorDict({"observation": torch.zeros(1)})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation, done = tensordict["observation"] + 1, torch.zeros(1, dtype=torch.bool)
        return TensorDict({"observation": observation, "reward": torch.zeros(1), "done": done})

    def _set_seed(self, seed: int | None) -> None:
        """Nothing is drawn."""


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


def test_empty_storage() -> None:
    storage = LazyTensorStorage(10)
    storage.set(range(4), TensorDict({"x": torch.arange(4.0)}, [4]))
    assert len(storage) == 4
    _private.empty_storage(storage)
    assert len(storage) == 0


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


def test_resets_itself() -> None:
    assert not _private.resets_itself(PointEnv())
    env = SelfResettingPoint(1, max_steps=2)
    assert _private.resets_itself(env)
    # By this mark TorchRL goes on with the next episode without a reset.
    steps = env.rollout(4, break_when_any_done=False)["next", "done"].flatten().tolist()
    assert steps == [False, True, False, True]


# ---- torch


def test_record_graph() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.Adam([weight], lr=0.5, fused=True)

    def update(factor: torch.Tensor) -> list[torch.Tensor]:
        loss = (factor * weight).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return [loss.detach()]

    update(torch.ones(1))
    record = _private.record_graph(update, torch.ones(1))
    assert "_record_function" not in record.code
    assert "torchrl_metra.fused_adam" in record.code
    # Each call is an update; the call that is recorded is one too.
    losses = [record(torch.ones(1))[0].item() for _ in range(2)]
    assert losses == pytest.approx([2.0, 1.5])
    assert optimizer.state[weight]["step"] == 4


def test_fused_adam_operators() -> None:
    for theirs, ours in _private.fused_adam_operators().items():
        lr = torch.tensor(0.5) if "tensor_lr" in str(theirs) else 0.5
        results = []
        for operator in (theirs, ours):
            weight, zeros = torch.ones(1), [torch.zeros(1) for _ in range(2)]
            operator(
                [weight], [torch.ones(1)], zeros[:1], zeros[1:], [], [torch.ones(())],
                lr=lr, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False,
                maximize=False,
            )  # fmt: skip
            results.append(weight)
        assert results[0].equal(results[1])
        assert results[0] == pytest.approx(0.5)


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
