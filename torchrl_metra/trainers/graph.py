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
from torch import Tensor, optim

from torchrl_metra._private import record_graph


class UpdateGraph:
    """An update as one graph: its losses, backward passes and optimizer steps together.

    On its own, ``torch.compile`` cuts an update at each ``backward()`` and at each
    optimizer, and Python holds the pieces together. Here the update is recorded while it
    runs, and the record is compiled in one piece, captured as CUDA graph, or both. The first
    call runs as it is, so that optimizers have their state; the second is recorded; later ones
    run the graph.

    A graph is for one batch size (batches of another are updated without it), and keeps
    what is a Python number while it is recorded. It is recorded anew where an optimizer
    has loaded another state or changed its settings: let schedulers work on a tensor on the
    device of the parameters, ``Adam(lr=torch.tensor(1e-4, device=...))``.

    Args:
        update (Callable): from a batch to a TensorDict of detached tensors, without
            branches on tensors' values.
        optimizers (mapping of str to Optimizer): optimizers that the update steps.
        in_keys (sequence of NestedKey): entries that the update reads; absent ones are
            skipped.

    Keyword Args:
        compile (bool or dict, optional): compile the record; a dict holds arguments of
            ``torch.compile``. On a CPU that takes a C++ compiler. Defaults to ``True``.
        cudagraphs (bool, optional): replay as CUDA graph through TensorDict's
            ``CudaGraphModule``. Defaults to ``False``.

    Raises:
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
        if self._graph is None or self._has_changed():
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
                "an optimizer has changed: its graph is made anew, which takes a while. Give "
                "schedulers a tensor to work on, Adam(lr=torch.tensor(1e-4)).",
                stacklevel=4,
            )
        if self._cudagraphs:
            self._check_learning_rates()
        self._keys = [key for key in self._in_keys if batch.get(key, default=None) is not None]
        self._batch_size = batch.batch_size
        self._settings = self._read_settings()
        leaves = [batch.get(key) for key in self._keys]
        update: Callable[..., Sequence[Tensor]] = self._on_leaves
        if self._compile:
            record = record_graph(update, *leaves)
            options = {} if self._compile is True else self._compile
            # Its backward passes are operations like others by now.
            update = torch.no_grad()(torch.compile(record, fullgraph=True, **options))
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
                        f'optimizer with lr=torch.tensor({float(rate):g}, device="{self._device}").'
                    )

    def _on_leaves(self, *leaves: Tensor) -> list[Tensor]:
        batch = TensorDict(dict(zip(self._keys, leaves, strict=True)), self._batch_size)
        self._metrics = self._update(batch)
        self._out_keys = list(self._metrics.keys())
        return list(self._metrics.values())

    def _read_settings(self) -> list[Any]:
        settings: list[Any] = []
        for optimizer in self._optimizers:
            settings.append(optimizer.state)
            for group in optimizer.param_groups:
                settings += [value for name, value in group.items() if name != "params"]
        return settings

    def _has_changed(self) -> bool:
        """Whether optimizers are no longer as they were when the graph was made."""
        settings = self._read_settings()
        return len(settings) != len(self._settings) or any(map(_differ, settings, self._settings))


def _differ(one: Any, other: Any) -> bool:
    """Numbers by value; states and tensors by identity, for the graph reads these anew."""
    if isinstance(one, Tensor | dict) or isinstance(other, Tensor | dict):
        return one is not other
    return one != other
