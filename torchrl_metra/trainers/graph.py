"""A whole update as one graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
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
    has loaded another state or changed its settings: let schedulers work on a tensor,
    ``Adam(lr=torch.tensor(1e-4))``.

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
        self._in_keys = in_keys
        self._compile = compile
        self._cudagraphs = cudagraphs
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
        values = self._graph(*[batch.get(key) for key in self._keys])
        return TensorDict(dict(zip(self._out_keys, values, strict=True)))

    def _record(self, batch: TensorDictBase) -> TensorDictBase:
        """Make the graph by a real update, and return what that gave."""
        if self._graph is not None:
            warnings.warn(
                "an optimiser has changed: its graph is made anew, which takes a while. Give "
                "schedulers a tensor to work on, Adam(lr=torch.tensor(1e-4)).",
                stacklevel=4,
            )
        self._keys = [key for key in self._in_keys if batch.get(key, default=None) is not None]
        self._batch_size = batch.batch_size
        self._optimizer_states = [optimizer.state for optimizer in self._optimizers]
        self._hyperparameters = [_hyperparameters(optimizer) for optimizer in self._optimizers]
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
        self._graph = CudaGraphModule(update) if self._cudagraphs else update
        return self._metrics

    def _on_leaves(self, *leaves: Tensor) -> list[Tensor]:
        batch = TensorDict(dict(zip(self._keys, leaves, strict=True)), self._batch_size)
        self._metrics = self._update(batch)
        self._out_keys = list(self._metrics.keys())
        return list(self._metrics.values())

    def _is_current(self) -> bool:
        """Whether the optimisers are as they were when the graph was made."""
        return all(
            optimizer.state is state and _hyperparameters(optimizer) == hyperparameters
            for optimizer, state, hyperparameters in zip(
                self._optimizers, self._optimizer_states, self._hyperparameters, strict=True
            )
        )


def _hyperparameters(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


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
