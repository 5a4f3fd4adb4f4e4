"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor, fx, nn
from torchrl.checkpoint import Checkpoint
from torchrl.collectors import BaseCollector, Collector
from torchrl.data import Storage, TensorStorage
from torchrl.envs import EnvBase, Transform
from torchrl.modules import TanhNormal
from torchrl.objectives.common import LossModule
from torchrl.record.loggers import CSVLogger
from torchrl.trainers import Trainer

# ---- torchrl: losses


def reduce_loss(loss_module: LossModule, values: Tensor, tensordict: TensorDictBase) -> Tensor:
    """Reduce a loss by the module's ``reduction``, with the batch's masks and priority weights.

    TorchRL 0.14.1: ``LossModule._reduce_loss``, ``LossModule._maybe_get_priority_weight``.
    """
    weights = loss_module._maybe_get_priority_weight(tensordict)
    return loss_module._reduce_loss(values, tensordict, weights=weights)


def reduce_metric(loss_module: LossModule, values: Tensor, tensordict: TensorDictBase) -> Tensor:
    """The detached mean of what is logged, without weights; all of it with ``reduction="none"``.

    TorchRL 0.14.1: ``LossModule._reduce_loss``.
    """
    if loss_module.reduction == "none":
        return values.detach()
    return loss_module._reduce_loss(values.detach(), tensordict, reduction="mean")


class BatchedCritics:
    """Base of SAC losses that evaluate all critics in ``evaluate_critics(tensordict, params)``.

    TorchRL 0.14.1: ``SACLoss._make_vmap``, ``SACLoss._vmap_qnetworkN0``, which hold
    :func:`torch.vmap` of one critic.
    """

    evaluate_critics: Any

    def _make_vmap(self) -> None:
        """There is nothing to build."""

    def _vmap_qnetworkN0(self, tensordict: TensorDictBase, params: TensorDictBase) -> Any:
        return self.evaluate_critics(tensordict, params)


# ---- torchrl: distributions


def unchecked_tanh_normal(
    loc: Tensor, scale: Tensor, low: Tensor | None = None, high: Tensor | None = None
) -> TanhNormal:
    """TorchRL 0.14.1: ``TanhNormal.__init__`` skipped; ``_t``, ``_event_dims``, ``tanh_loc`` set.

    The constructor reads the values of ``low`` and ``high``, which waits for a GPU and cannot
    become part of a graph. Bounds are checked once, when the policy is built.

    Args:
        loc (Tensor): mean before the tanh, of shape ``[*B, A]``.
        scale (Tensor): standard deviation before the tanh, of the same shape.
        low (Tensor, optional): lower bounds, of shape ``[A]``. By default all bounds are ±1.
        high (Tensor, optional): upper bounds, of shape ``[A]``.
    """
    from torch.distributions import AffineTransform, ComposeTransform
    from torchrl.modules.distributions.continuous import SafeTanhTransform

    distribution = TanhNormal.__new__(TanhNormal)
    distribution.tanh_loc = False
    distribution._event_dims = min(1, loc.ndim)
    distribution.device = loc.device
    distribution.low, distribution.high = -1.0, 1.0
    distribution._t = SafeTanhTransform()
    if low is not None and high is not None:
        distribution.low, distribution.high = low, high
        affine = AffineTransform((high + low) / 2, (high - low) / 2)
        distribution._t = ComposeTransform([distribution._t, affine])
    distribution.update(loc, scale)
    return distribution


# ---- torchrl: trainers


def add_learner_models(
    learner: Any, losses: list[LossModule], shared_encoder: nn.Module | None
) -> None:
    """Name what a learner on Ray gives away; other trainers have nothing to name.

    TorchRL 0.14.1: ``models`` of the runtime that builds a Ray learner.
    """
    if (models := getattr(learner, "models", None)) is None:
        return
    models["losses"] = nn.ModuleList(losses)
    if shared_encoder is not None:
        models["policy"] = TensorDictSequential(shared_encoder, models["policy"])


def reset_counters(trainer: Trainer) -> None:
    """TorchRL 0.14.1: ``Trainer._optim_count``, ``_last_save``, ``_last_log``.

    TorchRL keeps counters on the class, where an earlier trainer has left its own. This gives a
    trainer counters of its own, all at zero.
    """
    trainer.collected_frames = trainer._optim_count = trainer._last_save = 0
    trainer._last_log = {}


def num_updates(trainer: Trainer) -> int:
    """TorchRL 0.14.1: ``Trainer._optim_count``, the gradient steps so far."""
    return trainer._optim_count


def keep_only_the_latest(trainer: Trainer) -> None:
    """TorchRL 0.14.1: ``Trainer._log_dict``, a list of all values that were ever logged.

    In a long run it would fill the memory.
    """
    trainer._log_dict = defaultdict(partial(deque, maxlen=1))


def show_numbers(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """TorchRL 0.14.1: ``Trainer._pbar_str``, the numbers behind the progress bar."""
    if trainer.progress_bar:
        trainer._pbar_str.update(numbers)


def show_collected_frames(trainer: Trainer) -> None:
    """TorchRL 0.14.1: ``Trainer._pbar``, which starts at zero when a run is resumed."""
    if trainer.progress_bar:
        trainer._pbar.update(trainer.collected_frames)


class LearnerProxy:
    """TorchRL 0.14.1: ``Trainer._execution_backend``, a learner in processes of Ray.

    It takes the learner's place in the trainer, and passes on what a subclass leaves as it is.
    States are without ``state["ranks"][i]["rng"]``, generators whose loading would need pickle.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._learner: Any = trainer._execution_backend
        trainer._execution_backend = self

    def step(self, num_steps: int) -> Any:
        return self._learner.step(num_steps)

    def state_dict(self) -> dict[str, Any]:
        state = self._learner.state_dict()
        for process in state["ranks"]:
            del process["rng"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._learner.load_state_dict(state_dict)

    def weights(self, name: str) -> TensorDictBase:
        """Weights of a model that the stepper has added to the learner's ``models``."""
        return self._learner.get_weights(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)


# ---- torchrl: checkpoints


class SealedCheckpoint(Checkpoint):
    """TorchRL 0.14.1: ``Checkpoint._publish_path`` renames a written checkpoint to its name.

    Before that, ``seal`` may add to what was written.
    """

    def seal(self, folder: Path) -> None:
        """Called with a complete checkpoint that does not have its name yet."""

    def _publish_path(self, source: Path, destination: Path) -> None:
        self.seal(source)
        super()._publish_path(source, destination)


def drop_prefetched(folder: Path) -> None:
    """TorchRL 0.14.1: ``prefetch.pkl``, batches that a dumped replay buffer has prefetched.

    Loading such a file would execute code; a replay buffer loads without it.

    Args:
        folder (Path): where to look, below it too.
    """
    for file in folder.rglob("prefetch.pkl"):
        file.unlink()


# ---- torchrl: collectors


def collector_progress(collector: Collector) -> dict[str, int]:
    """TorchRL 0.14.1: ``Collector._frames`` and ``_iter``.

    ``Collector.state_dict()`` has them too, but asks the environment's workers, which may be dead.
    """
    return {"frames": collector._frames, "iter": collector._iter}


def episodes_under_way(collector: Collector) -> TensorDictBase:
    """TorchRL 0.14.1: ``Collector._carrier``, from which the next step is taken."""
    return collector._carrier


def worker_processes(collector: BaseCollector) -> Sequence[Any]:
    """TorchRL 0.14.1: ``procs`` of the collectors that have worker processes."""
    return getattr(collector, "procs", ())


# ---- torchrl: storages and loggers


class SelfSamplingStorage(TensorStorage):
    """TorchRL 0.14.1: ``Storage._rand_given_ndim`` and four others.

    The others are ``_rng``, ``_empty``, ``_set_last_cursor`` and ``_bump_mutation_revision``.
    A storage that chooses itself which of its entries a ``RandomSampler`` draws. Subclasses write
    ``draw`` and ``clear``, and call ``note_change`` when they have changed their data.
    """

    def draw(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        """Indices to sample, of shape ``[batch_size]``."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget all data."""
        raise NotImplementedError

    def note_change(self, cursor: Tensor | None = None) -> None:
        """Tell samplers that data have changed, and where the last ones were written."""
        if cursor is not None:
            self._set_last_cursor(cursor)
        self._bump_mutation_revision()

    def _rand_given_ndim(self, batch_size: int) -> Tensor:
        return self.draw(batch_size, self._rng)

    def _empty(self) -> None:
        self.clear()
        self.note_change()


def empty_storage(storage: Storage) -> None:
    """TorchRL 0.14.1: ``Storage._empty``, which forgets all data."""
    storage._empty()


def forget_scalars(logger: CSVLogger) -> None:
    """TorchRL 0.14.1: ``CSVExperiment.scalars``, a list of all that was ever logged."""
    logger.experiment.scalars.clear()


# ---- torchrl: environments


class SpecsMixin:
    """TorchRL 0.14.1: ``_make_specs`` of environment wrappers, called once by their constructor.

    Stands before the wrapper among the bases, and lets :meth:`adjust_specs` change its specs.
    """

    def _make_specs(self, env: Any, batch_size: Any = None) -> None:
        super()._make_specs(env)  # type: ignore[misc]
        self.adjust_specs()

    def adjust_specs(self) -> None:
        """Change the specs that the wrapper has made."""
        raise NotImplementedError


class AutoResetMixin:
    """TorchRL 0.14.1: ``Transform._reset_on_native_autoreset``.

    Called after each step of an environment that resets itself, with the reset mask in the first
    TensorDict and what the environment shows in the second.
    """

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self.update_where_reset(tensordict, tensordict_reset)

    def update_where_reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        """Return the second TensorDict with new entries where environments were reset."""
        raise NotImplementedError


class WorkerCheckMixin:
    """TorchRL 0.14.1: ``Transform._check_batched_worker_compat``.

    Called by batched environments for each transform in a worker.
    """

    def _check_batched_worker_compat(self) -> None:
        self.check_in_worker()

    def check_in_worker(self) -> None:
        """Raise an error if the transform cannot work inside of a worker."""
        raise NotImplementedError


def steps_mask(tensordict: TensorDictBase, done: Tensor) -> Tensor:
    """TorchRL 0.14.1: the entry ``"_step"``, by which rollouts leave out finished environments.

    Returns:
        Which environments a step is for, of the shape of ``done``.
    """
    mask = tensordict.get("_step", None)
    return torch.ones_like(done) if mask is None else mask.reshape(done.shape)


def step_below(
    env: EnvBase, transforms: Sequence[Transform], tensordict: TensorDictBase, active: Tensor
) -> TensorDictBase:
    """TorchRL 0.14.1: ``TransformedEnv._step``, with some of its transforms only.

    ``EnvBase._complete_done``, ``EnvBase._step`` and ``Transform._step`` are called, with the
    entry ``"_step"`` where not all environments are active.

    Args:
        env (EnvBase): the environment below all transforms.
        transforms (sequence of Transform): those that see the step.
        tensordict (TensorDictBase): with the action for the last of them.
        active (Tensor): which environments are stepped, flags of shape ``[*B, 1]``.

    Returns:
        What follows, as below ``"next"``.
    """
    for transform in reversed(transforms):
        tensordict = transform.inv(tensordict)
    if active.all():
        tensordict.pop("_step", None)
    else:
        tensordict.set("_step", active.reshape(tensordict.batch_size))
    following = env._step(tensordict)
    env._complete_done(env.full_done_spec, following)
    for transform in transforms:
        following = transform._step(tensordict, following)
    return following


def resets_itself(env: EnvBase) -> bool:
    """TorchRL 0.14.1: ``EnvBase._torchrl_native_autoreset``, set where a step starts an episode."""
    return vars(env).get("_torchrl_native_autoreset", False)


# ---- torch


def record_graph(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """PyTorch 2.13.0: ``torch.fx.experimental.proxy_tensor.make_fx``, by a real call.

    Optimizers leave profiling marks, operators with ``_record_function`` in their names, at which
    the compiler would break the graph. They are dropped.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    record = make_fx(function, decomposition_table=fused_adam_operators())(*inputs)
    for node in reversed(record.graph.nodes):
        if "_record_function" in str(node.target):
            record.graph.erase_node(node)
    record.recompile()
    return record


@cache
def fused_adam_operators() -> dict[Any, Callable[..., None]]:
    """PyTorch 2.13.0: ``torch._fused_adam_``, and operators of ours that call it.

    The compiler has no functional form of PyTorch's operators, whose lists of tensors may not be
    empty there.
    """
    arguments = (
        "Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
        "Tensor(d!)[] max_exp_avg_sqs, Tensor[] state_steps, *, {} lr, float beta1, float beta2, "
        "float weight_decay, float eps, bool amsgrad, bool maximize"
    )

    def fused_adam(*tensors: list[Tensor], **hyperparameters: Any) -> None:
        torch._fused_adam_(*tensors, **hyperparameters)

    theirs, ours = torch.ops.aten._fused_adam_, torch.ops.torchrl_metra
    for name, rate in (("fused_adam", "float"), ("fused_adam_tensor_lr", "Tensor")):
        torch.library.define(f"torchrl_metra::{name}", f"({arguments.format(rate)}) -> ()")
        torch.library.impl(f"torchrl_metra::{name}", ("CPU", "CUDA"))(fused_adam)
        torch.library.register_fake(f"torchrl_metra::{name}")(lambda *tensors, **others: None)
    return {theirs.default: ours.fused_adam, theirs.tensor_lr: ours.fused_adam_tensor_lr}


# ---- mujoco and dm_control


def open_gl_context(cls: Any, width: int, height: int) -> Any:
    """mujoco 3.10.0: ``GLContext._context``, which its ``__del__`` reads.

    It is missing where the constructor has failed early: Python would report an ignored
    ``AttributeError`` for every backend that does not work.
    """
    context = cls.__new__(cls)
    context._context = None
    context.__init__(width, height)
    return context


def suite_step_limit(env: Any) -> float:
    """dm_control 1.0.43: ``Environment._step_limit``, infinite where episodes have no end."""
    return env._step_limit


# ---- hydra


def refused_name(error: BaseException) -> tuple[str, str, list[str]] | None:
    """Hydra 1.3.8: what kind of name was refused, the name, and the names that there are.

    ``MissingConfigException.missing_cfg_file`` and ``options``; and omegaconf's error for a key is
    the cause or the context of Hydra's, which is the context of the ``SystemExit`` that
    ``@hydra.main`` raises.
    """
    from hydra.errors import ConfigCompositionException, MissingConfigException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    refused: Any = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(refused, MissingConfigException) and refused.options:
        group, _, choice = str(refused.missing_cfg_file).rpartition("/")
        return "choice", f"{group}={choice}", [f"{group}={name}" for name in refused.options]
    if isinstance(refused, ConfigCompositionException):
        refused = refused.__cause__ or refused.__context__
    if isinstance(refused, ConfigAttributeError | ConfigKeyError) and refused.parent_node:
        key = str(refused.full_key)
        section = key.removesuffix(str(refused.key))
        names = [name for name in refused.parent_node if not str(name).startswith("_")]
        return "setting", key, [f"{section}{name}" for name in names]
    return None


# ---- the standard library


def start_resource_tracker() -> None:
    """Python 3.11: ``multiprocessing.resource_tracker.ensure_running``."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
