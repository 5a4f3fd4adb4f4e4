"""A CUDA device that is none: tensors say ``cuda:0``, and hold real numbers on the CPU.

They refuse to mix with those of the CPU, as on a GPU, and what the host waits for or copies is
recorded. Nothing here has an effect before :func:`install`.

What it cannot tell: graph capture, autocast and kernels of CUDA, pinned memory, speed.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensordict import MemoryMappedTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

COMPILER = os.environ.get("CXX", "g++")
LIBRARY = "libdevice.so"
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")

# These take tensors of both, or look at the devices by themselves.
_MAY_MIX = {
    "_foreach_copy_", "_fused_adam_", "_has_compatible_shallow_copy_type", "_index_put_impl_",
    "_to_copy", "copy_", "index", "index_put", "index_put_", "is_set_to", "set_data",
}  # fmt: skip
_COPIES = {"_foreach_copy_", "_to_copy", "copy_"}
# Their result, or its size, is known to the host.
_READS = {
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
_INDEXING = {"_index_put_impl_", "index", "index_put", "index_put_"}


def build(folder: Path) -> str:
    """Compile the library that :func:`environment` has a process load; returns errors."""
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    result = subprocess.run(
        [
            COMPILER, "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{torch_folder / 'include'}",
            str(Path(__file__).with_suffix(".cpp")), "-o", str(folder / LIBRARY),
            f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}",
        ],
        check=False,
        capture_output=True,
        text=True,
    )  # fmt: skip
    return result.stderr if result.returncode else ""


def environment(folder: Path) -> dict[str, str]:
    """Of a process that is to have the device."""
    return {**os.environ, "LD_PRELOAD": str(folder / LIBRARY)}


def install() -> None:
    """Make this process, started in that :func:`environment`, believe in the device."""
    # torch.tensor(..., device="cuda") goes by the CPU, on which there are numbers to put in.
    torch._C._set_only_lift_cpu_tensors(True)
    # Modules that move keep their parameters, as on a GPU.
    torch.__future__.set_swap_module_params_on_conversion(True)
    cuda: dict[str, Any] = {
        "Event": Event,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_name": lambda device=None: "an emulated device",
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "manual_seed_all": lambda seed: None,
        "set_rng_state_all": lambda states: None,
        "synchronize": lambda device=None: _note("wait", "synchronize"),
    }
    for name, function in cuda.items():
        setattr(torch.cuda, name, function)
    torch.load = functools.partial(_load, torch.load)
    _keep_lazy_tensors_on_the_cpu()
    make = MemoryMappedTensor.__new__

    def make_on_cpu(*args: Any, **kwargs: Any) -> Any:
        # What comes from a mode's dispatch cannot become a tensor of another class.
        with _disable_current_modes():
            return make(*args, **kwargs)

    MemoryMappedTensor.__new__ = staticmethod(make_on_cpu)


def _keep_lazy_tensors_on_the_cpu() -> None:
    """Those without a shape have no place yet; whoever gives them one moves them."""
    mixin = torch.nn.parameter.UninitializedTensorMixin
    make = torch.nn.parameter.UninitializedBuffer.__new__
    call, materialize = mixin.__torch_function__.__func__, mixin.materialize

    def make_on_cpu(cls: Any, requires_grad=False, device=None, dtype=None, persistent=True) -> Any:
        return make(cls, requires_grad, CPU, dtype, persistent)

    def call_on_cpu(cls: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_move = getattr(func, "__name__", "") == "to"
        return args[0] if is_move else call(cls, func, types, args, kwargs)

    def materialize_on_cpu(self: Any, shape: Any, device: Any = None, dtype: Any = None) -> None:
        materialize(self, shape, CPU, dtype)

    torch.nn.parameter.UninitializedBuffer.__new__ = staticmethod(make_on_cpu)
    mixin.__torch_function__ = classmethod(call_on_cpu)
    mixin.materialize = materialize_on_cpu


def _load(load: Any, *args: Any, map_location: Any = None, **kwargs: Any) -> Any:
    if map_location is None or torch.device(map_location).type == "cpu":
        return load(*args, map_location=map_location, **kwargs)
    content = load(*args, map_location="cpu", **kwargs)
    return tree_map(lambda x: CudaTensor(x) if isinstance(x, torch.Tensor) else x, content)


class Event:
    """All work is done when it is asked for."""

    def __init__(self, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        _note("wait", "synchronize")


class CudaTensor(torch.Tensor):
    """Says that it is on ``cuda:0``."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> CudaTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=CUDA,
        )
        tensor.host = host
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"CudaTensor({self.host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy: Any = CudaTensor(self.host.detach().clone())
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, requires_grad=self.requires_grad)
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As what reads files to the CPU finds them.
        return self.host.detach().clone().__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        _note("to host", "numpy")
        return self.host.numpy(force=True)

    def tolist(self) -> Any:
        _note("wait", "tolist")
        return self.host.tolist()


class CudaMode(TorchDispatchMode):
    """While it is on, tensors can be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


#: What happened: how, by which operation, called where.
Record = collections.Counter[tuple[str, str, str]]
_record: Record | None = None


@contextlib.contextmanager
def watch() -> Iterator[Record]:
    """Record what makes the host wait, and what is copied between the devices.

    Yields:
        A counter of ``(how, operation, where)``, with ``how`` one of ``"wait"`` (the host looks
        at a value), ``"to host"``, ``"to device"`` and ``"scalar"`` (a number of the CPU in an
        operation of the device, which a graph would keep).
    """
    global _record
    before, _record = _record, collections.Counter()
    try:
        yield _record
    finally:
        _record = before


def _note(how: str, operation: str) -> None:
    if _record is not None:
        _record[how, operation, _caller()] += 1


def _caller() -> str:
    """The innermost line of ours, or of the libraries that call us."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        if path != __file__ and f"{os.sep}torch{os.sep}" not in path and path[0] != "<":
            break
        frame = frame.f_back
    parts = Path(frame.f_code.co_filename).parts[-3:]
    return f"{'/'.join(parts)}:{frame.f_lineno}"


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if there and name not in _MAY_MIX and any(tensor.ndim for tensor in here):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (aten.{name})"
        )
    if name in _INDEXING:
        _check_index(name, args)
    if _record is not None:
        _watch(name, args, there, here, target)

    kwargs = {key: tree_map(_on_host, value) for key, value in kwargs.items()}
    if target == "cuda":
        kwargs["device"] = CPU
    kwargs.pop("pin_memory", None)
    output = func(*tree_map(_on_host, args), **kwargs)
    if there and torch.Tag.inplace_view in func.tags:
        # squeeze_ and its like: the shape of what stands for it changes too.
        with no_dispatch(), _as_meta():
            func(*args, **kwargs)
    if target is not None:
        is_there = target == "cuda"
    elif name in ("copy_", "index"):
        is_there = isinstance(args[0], CudaTensor)
    else:
        is_there = bool(there)
    known = {id(tensor.host): tensor for tensor in there} | {id(tensor): tensor for tensor in here}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, CudaTensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return CudaTensor(value) if is_there else value

    return tree_map(wrap, output)


@contextlib.contextmanager
def _as_meta() -> Iterator[None]:
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        yield
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _on_host(value: Any) -> Any:
    return value.host if isinstance(value, CudaTensor) else value


def _check_index(name: str, args: Any) -> None:
    source = args[0]
    indices = [index for index in tree_leaves(args[1]) if isinstance(index, torch.Tensor)]
    if not isinstance(source, CudaTensor) and any(isinstance(i, CudaTensor) for i in indices):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    if name != "index":
        value = args[2]
        if isinstance(value, CudaTensor) != isinstance(source, CudaTensor) and (
            value.ndim or not isinstance(source, CudaTensor)
        ):
            raise RuntimeError(f"expected self and value on one device (aten.{name})")


def _watch(name: str, args: Any, there: list[Any], here: list[Any], target: str | None) -> None:
    if name in _COPIES:
        if name == "_to_copy":
            source = isinstance(args[0], CudaTensor)
            goal = source if target is None else target == "cuda"
        else:
            goal, source = (bool(_any_there(arg)) for arg in args[:2])
        if goal != source:
            _note("to device" if goal else "to host", name)
    elif there and (name in _READS or (name in _INDEXING and _has_mask(args[1]))):
        _note("wait", name)
    elif there and here:
        _note("scalar" if not any(tensor.ndim for tensor in here) else "to device", name)


def _any_there(value: Any) -> bool:
    return any(isinstance(leaf, CudaTensor) for leaf in tree_leaves(value))


def _has_mask(indices: Any) -> bool:
    leaves = tree_leaves(indices)
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in leaves)
