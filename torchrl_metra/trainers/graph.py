"""A whole update as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from tensordict.utils import NestedKey
from torch import Tensor, fx, optim
from torch.fx.experimental.proxy_tensor import make_fx

from torchrl_metra._checks import check_key, check_optimizers, check_type

__all__ = ["UpdateGraph"]


class UpdateGraph:
    """An update as one graph: its losses, backward passes and optimiser steps together.

    On its own, ``torch.compile`` cuts an update at each ``backward()`` and at each
    optimiser, and Python holds the pieces together. Here the update is recorded while it
    runs (:func:`~torch.fx.experimental.proxy_tensor.make_fx`), and the record is compiled
    in one piece, captured as CUDA graph, or both. The first call runs as it is, so that
    optimisers have their state; the second is recorded; later ones run the graph.

    A graph knows one batch size (batches of another are updated without it), and keeps
    what is a Python number while it is recorded. It is recorded anew where an optimiser
    has loaded another state or changed its settings: let schedulers work on a tensor on the
    device of the parameters, ``Adam(lr=torch.tensor(1e-4, device=...))``.

    Args:
        update (Callable): from a batch to a TensorDict of detached tensors, without
            branches on tensors' values.
        optimizers (mapping of str to Optimizer): optimisers that the update steps.
        in_keys (sequence of NestedKey): entries that the update reads; absent ones are
            skipped.

    Keyword Args:
        compile (bool or dict, optional): compile the record; a dict holds arguments of
            ``torch.compile``. On a CPU that takes a C++ compiler. Defaults to ``True``.
        cudagraphs (bool, optional): replay as CUDA graph through TensorDict's
            ``CudaGraphModule``. Defaults to ``False``.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: by a call with ``cudagraphs``, if a learning rate is a tensor elsewhere than
            the parameters: the graph would keep its value.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> weight = torch.nn.Parameter(torch.tensor(1.0))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> def update(batch):
        ...     loss = (weight * batch["x"]).mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     return TensorDict({"loss": loss.detach()})
        >>> graph = UpdateGraph(update, {"all": optimizer}, ["x"], compile={"backend": "eager"})
        >>> batch = TensorDict({"x": torch.ones(2)}, batch_size=[2])
        >>> [graph(batch)["loss"].item() for _ in range(4)]
        [1.0, 0.5, 0.0, -0.5]
    """

    def __init__(
        self,
        update: Callable[[TensorDictBase], TensorDictBase],
        optimizers: Mapping[str, optim.Optimizer],
        in_keys: Sequence[NestedKey],
        *,
        compile: bool | dict[str, Any] = True,
        cudagraphs: bool = False,
    ) -> None:
        check_type("update", update, Callable, "a function of batches")
        check_optimizers(optimizers)
        check_type("in_keys", in_keys, list | tuple, "a list of entries")
        for index, key in enumerate(in_keys):
            check_key(f"in_keys[{index}]", key)
        self._update = update
        self._optimizers = list(optimizers.values())
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        self._device = groups[0]["params"][0].device if groups else torch.device("cpu")
        self._in_keys = in_keys
        self._compile = compile
        self._cudagraphs = cudagraphs
        # Modes of the compiler that may make CUDA graphs of their own.
        modes = {"mode", "options"}
        self._reuses_outputs = isinstance(compile, Mapping) and not modes.isdisjoint(compile)
        self._is_warm = False
        self._graph: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        """Update once.

        Args:
            batch (TensorDictBase): holds ``in_keys``.

        Returns:
            What the update returns.
        """
        if not self._is_warm:
            self._is_warm = True
            return self._update(batch)
        if self._graph is None or not self._is_current():
            return self._record(batch)
        if batch.batch_size != self._batch_size:
            return self._update(batch)
        with self._on_device():
            values = self._graph(*[batch.get(key) for key in self._keys])
        if self._reuses_outputs:
            # The next call would write over them.
            values = [value.clone() for value in values]
        return TensorDict(dict(zip(self._out_keys, values, strict=True)))

    def _record(self, batch: TensorDictBase) -> TensorDictBase:
        """Make the graph by a real update, and return what that gave."""
        if self._graph is not None:
            warnings.warn(
                "an optimiser has changed: its graph is made anew, which takes a while. Give "
                "schedulers a tensor to work on, Adam(lr=torch.tensor(1e-4)).",
                stacklevel=4,
            )
        if self._cudagraphs:
            self._check_learning_rates()
        self._keys = [key for key in self._in_keys if batch.get(key, default=None) is not None]
        self._batch_size = batch.batch_size
        self._optimizer_states = [optimizer.state for optimizer in self._optimizers]
        self._settings = _settings(self._optimizers)
        leaves = [batch.get(key) for key in self._keys]
        update: Callable[..., Sequence[Tensor]] = self._on_leaves
        if self._compile:
            record = make_fx(update, decomposition_table=_DECOMPOSITIONS)(*leaves)
            options = {} if self._compile is True else self._compile
            # Its backward passes are operations like others by now.
            update = torch.no_grad()(
                torch.compile(_without_profiling(record), fullgraph=True, **options)
            )
        else:
            update(*leaves)
        with self._on_device():
            self._graph = CudaGraphModule(update) if self._cudagraphs else update
        return self._metrics

    def _on_device(self) -> AbstractContextManager[Any]:
        """Streams and captures belong to the current device, which need not be that of weights."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _check_learning_rates(self) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                rate = group.get("lr")
                if isinstance(rate, Tensor) and rate.device != self._device:
                    raise ValueError(
                        f"a learning rate is a tensor on {rate.device}, of which a CUDA graph of "
                        f"parameters on {self._device} would keep the present value: build the "
                        f'optimiser with lr=torch.tensor({float(rate):g}, device="{self._device}").'
                    )

    def _on_leaves(self, *leaves: Tensor) -> list[Tensor]:
        batch = TensorDict(dict(zip(self._keys, leaves, strict=True)), self._batch_size)
        self._metrics = self._update(batch)
        self._out_keys = list(self._metrics.keys())
        return list(self._metrics.values())

    def _is_current(self) -> bool:
        """Whether the optimisers are as they were when the graph was made."""
        states = zip(self._optimizers, self._optimizer_states, strict=True)
        return all(optimizer.state is state for optimizer, state in states) and _are_same(
            _settings(self._optimizers), self._settings
        )


def _settings(optimizers: Sequence[optim.Optimizer]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for name, value in group.items()
        if name != "params"
    ]


def _are_same(settings: list[tuple[str, Any]], others: list[tuple[str, Any]]) -> bool:
    """Whether numbers are equal, and tensors the very ones, for these a graph reads anew."""
    return len(settings) == len(others) and all(
        one is other or (name == other_name and not _has_tensor(one, other) and one == other)
        for (name, one), (other_name, other) in zip(settings, others, strict=True)
    )


def _has_tensor(*values: Any) -> bool:
    return any(isinstance(value, Tensor) for value in values)


def _without_profiling(record: fx.GraphModule) -> fx.GraphModule:
    """Drop the optimisers' profiling marks, at which the compiler would break the graph."""
    for node in reversed(record.graph.nodes):
        if "_record_function" in str(node.target):
            record.graph.erase_node(node)
    record.recompile()
    return record


# PyTorch's fused Adam has no functional form that the compiler could use (its lists of tensors
# may not be empty there): the same kernel as an operator of our own has one.
_ADAM_ARGUMENTS = (
    "Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor[] state_steps, *, {lr} lr, float beta1, float beta2, "
    "float weight_decay, float eps, bool amsgrad, bool maximize"
)


def _define_fused_adam(overload: str, lr: str) -> Callable[..., None]:
    name = f"torchrl_metra::fused_adam_{overload}"
    torch.library.define(name, f"({_ADAM_ARGUMENTS.format(lr=lr)}) -> ()")

    def fused_adam(*tensors: list[Tensor], **hyperparameters: Any) -> None:
        torch._fused_adam_(*tensors, **hyperparameters)

    torch.library.impl(name, ("CPU", "CUDA"))(fused_adam)
    torch.library.register_fake(name)(lambda *tensors, **hyperparameters: None)
    return getattr(torch.ops.torchrl_metra, f"fused_adam_{overload}")


_DECOMPOSITIONS = {
    torch.ops.aten._fused_adam_.default: _define_fused_adam("", "float"),
    torch.ops.aten._fused_adam_.tensor_lr: _define_fused_adam("tensor_lr", "Tensor"),
}
