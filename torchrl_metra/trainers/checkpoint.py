"""Checkpoints of whole runs, from which training goes on as if nothing had happened."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, optim
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointAdapter,
    CheckpointError,
    CheckpointLoadResult,
    CheckpointOptions,
    DumpLoadCheckpointAdapter,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)
from torchrl.data import ReplayBuffer
from torchrl.trainers import Trainer

__all__ = ["DamagedCheckpointError", "VerifiedCheckpoint", "resume"]

_DIGESTS = "digests.json"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written; nothing of it was loaded."""


class VerifiedCheckpoint(Checkpoint):
    """TorchRL's :class:`~torchrl.checkpoint.Checkpoint` for long runs on machines that fail.

    What is written is complete on disk before it gets its name, with a digest of each file:
    neither a crash nor a power cut leaves a checkpoint that looks whole and is not. Disk
    space is reserved first. What is loaded is compared with the digests, and never
    executed: state dicts are read with ``weights_only=True``, pickles are refused.

    Give it to a :class:`~torchrl_metra.METRATrainer`, with a
    :class:`~torchrl.checkpoint.CheckpointRotation`. The trainer registers its networks,
    optimisers, targets, counters, replay buffer, collector and random generators.

    Keyword Args:
        exclude (collection of str, optional): components that are neither written nor asked
            for, such as ``("replay_buffer",)``, which is by far the largest; a run resumed
            without it collects ``min_buffer_size`` transitions before it learns on.
        settings (mapping, optional): JSON values that make the run what it is, such as sizes
            and coefficients. A checkpoint written with other ones is refused.
        **components: named objects or JSON values, as for ``Checkpoint``.

    Raises:
        CheckpointError: by :meth:`save` where the disk is full, by :meth:`load` for other
            settings, and for what a newer version of this package has written.
        DamagedCheckpointError: by :meth:`load` for files that are missing, truncated or
            changed.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = VerifiedCheckpoint(policy=source).save(f"{folder}/checkpoint")
        ...     result = VerifiedCheckpoint(policy=target).load(path)
        >>> result.loaded
        {'policy'}
        >>> bool((source.weight == target.weight).all())
        True
    """

    def __init__(
        self,
        *,
        exclude: Collection[str] = (),
        settings: Mapping[str, Any] | None = None,
        **components: Any,
    ) -> None:
        super().__init__(**components)
        self.exclude = frozenset(exclude)
        self.settings = dict(settings or {})
        self.register_adapter(ReplayBuffer, _ReplayBufferAdapter())

    def save(
        self,
        path: str | Path,
        *,
        components: Collection[str] | None = None,
        component_options: Mapping[str, CheckpointOptions] | None = None,
        format: None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the components, all of them or nothing.

        Args:
            path (path): folder to write.

        Keyword Args:
            components (collection of str, optional): defaults to all but ``exclude``.
            component_options (mapping, optional): see ``Checkpoint.save``.
            format (None): always a folder.
            metadata (mapping, optional): JSON values, beside which settings and the version
                of this package are noted.

        Returns:
            The path.

        Raises:
            CheckpointError: if the disk is full or does not take the files. Checkpoints
                written before are as they were.
        """
        destination = Path(path).expanduser().absolute()
        stage = destination.with_name(f".{destination.name}.stage-{uuid.uuid4().hex}")
        selected = set(self.components if components is None else components) - self.exclude
        notes = {
            **(metadata or {}),
            "torchrl_metra": _version(),
            "excluded": sorted(self.exclude),
            "settings": self.settings,
        }
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            _reserve(destination.parent, _num_bytes(self.components[name] for name in selected))
            super().save(
                stage, components=selected, component_options=component_options, metadata=notes
            )
            (stage / _DIGESTS).write_text(json.dumps(_digests(stage), indent=2))
            _flush(stage)
            self._publish_path(stage, destination)
            _flush_entry(destination.parent)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint {destination} could not be written: {error}. Those written "
                "before are as they were. If the disk is full, free space, keep fewer of them, "
                "or exclude 'replay_buffer'."
            ) from error
        finally:
            self._remove_path(stage)
        return destination

    def load(
        self, path: str | Path, *, components: Collection[str] | None = None, **kwargs: Any
    ) -> CheckpointLoadResult:
        """Restore components, after a look at every file.

        Args:
            path (path): folder that :meth:`save` wrote.

        Keyword Args:
            components (collection of str, optional): defaults to all but those that were
                excluded when the checkpoint was written, or are here.
            **kwargs: see ``Checkpoint.load``. Files are read to the CPU by default.

        Returns:
            What was loaded.

        Raises:
            FileNotFoundError: if there is no such folder.
            DamagedCheckpointError: if files are missing, truncated or changed.
            CheckpointError: if a newer version of this package has written it, or with other
                settings, or if a component does not fit.
        """
        # Components bring their states to their own devices; the run's may not be here.
        kwargs.setdefault("map_location", "cpu")
        metadata = self.verify(path)["metadata"]
        self._compare_settings(path, metadata["settings"])
        if components is None:
            components = set(self.components) - self.exclude - set(metadata["excluded"])
        try:
            return super().load(path, components=components, **kwargs)
        except CheckpointError as error:
            raise CheckpointError(
                f"{path} does not fit: was it written with the same networks, objective and "
                f"sizes? {str(error)[:300]}",
                error.result,
            ) from error

    @classmethod
    def verify(cls, path: str | Path) -> dict[str, Any]:
        """Compare every file with what was written.

        Args:
            path (path): folder that :meth:`save` wrote.

        Returns:
            The checkpoint's manifest.

        Raises:
            FileNotFoundError: if there is no such folder.
            DamagedCheckpointError: if files are missing, truncated or changed.
            CheckpointError: if a newer version of this package has written it.
        """
        path = Path(path).expanduser().absolute()
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}.")
        try:
            expected = json.loads((path / _DIGESTS).read_text())
            found = _digests(path)
        except (OSError, ValueError) as error:
            raise DamagedCheckpointError(
                f"{path} has no readable {_DIGESTS}: it is damaged, or not written by "
                f"VerifiedCheckpoint. {_ADVICE}"
            ) from error
        names = expected.keys() | found.keys()
        if changed := sorted(name for name in names if expected.get(name) != found.get(name)):
            raise DamagedCheckpointError(
                f"{len(changed)} of {len(names)} files of {path} are not what was written, among "
                f"them {changed[:3]}. {_ADVICE}"
            )
        if pickles := sorted(name for name in names if name.endswith((".pickle", ".pkl"))):
            raise DamagedCheckpointError(
                f"{path} holds {pickles[:3]}, whose loading would execute code. {_ADVICE}"
            )
        manifest = cls.manifest(path)
        written_by = manifest["metadata"]["torchrl_metra"]
        if _numbers(written_by) > _numbers(_version()):
            raise CheckpointError(
                f"{path} was written by torchrl_metra {written_by}, this is {_version()}: update "
                "torchrl_metra, or train anew."
            )
        return manifest

    def _compare_settings(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        theirs, ours = _flat(settings), _flat(self.settings)
        absent = object()
        different = [
            f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name, absent) != ours.get(name, absent)
        ]
        if different:
            raise CheckpointError(
                f"{path} belongs to a run with other settings: {', '.join(different)}. Restore "
                "these to go on, or train anew in another folder."
            )

    def _resolve_adapter(self, component: Any) -> CheckpointAdapter:
        # One file for a component, instead of one for each of its tensors.
        adapter = super()._resolve_adapter(component)
        is_default = type(adapter) is StateDictCheckpointAdapter
        return StateDictCheckpointAdapter("torch") if is_default else adapter


class RandomState(GlobalRNGState):
    """TorchRL's random generators, of those devices that are here when a run goes on."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        here, state = self.state_dict(), dict(state_dict)
        for name in state.keys() - here.keys():
            del state[name]
        if "torch_cuda" in state:
            state["torch_cuda"] = state["torch_cuda"][: len(here["torch_cuda"])]
        super().load_state_dict(state)


def load_optimizer(optimizer: optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load an optimiser's state, but for what depends on the device, which stays as it was built.

    Args:
        optimizer (Optimizer): of parameters on any device.
        state_dict (mapping): from ``optimizer.state_dict()`` of parameters on any other.
    """
    groups = [
        {**saved, **{name: group[name] for name in _OF_THE_DEVICE if name in group}}
        for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True)
    ]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({**state_dict, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        # A tensor stays the one that graphs read and schedulers write to.
        saved_rate = float(group["lr"])
        group["lr"] = rate.fill_(saved_rate) if isinstance(rate, Tensor) else saved_rate


_OF_THE_DEVICE = ("capturable", "foreach", "fused")


def resume(trainer: Trainer, path: str | Path | None = None) -> Path | None:
    """Have a trainer go on from a checkpoint, by default the newest one that is intact.

    Damaged ones are renamed, ``damaged-...``, and the one before is tried.

    Args:
        trainer (Trainer): any trainer of TorchRL, built as it was when the checkpoint was
            written.
        path (path, optional): the checkpoint. Without it, the trainer needs a
            ``checkpoint_rotation``.

    Returns:
        The checkpoint, or ``None`` if the rotation has none at all.

    Raises:
        ValueError: if there is neither a path nor a rotation.
        FileNotFoundError: if there is nothing at ``path``.
        DamagedCheckpointError: if the checkpoint at ``path``, or every one of the rotation, is
            damaged.
        CheckpointError: if the checkpoint does not fit the trainer.

    Examples:
        >>> from torchrl_metra import METRATrainer
        >>> def go_on(trainer: METRATrainer) -> None:
        ...     if resume(trainer) is None:
        ...         print("nothing to go on from: training starts anew")
        ...     trainer.train()
    """
    if path is not None:
        _load(trainer, path)
        return Path(path)
    rotation = trainer.checkpoint_rotation
    if rotation is None:
        raise ValueError(
            "the trainer has no checkpoints to go on from: give it a checkpoint and a "
            "checkpoint_rotation, or give resume() a path."
        )
    damage = None
    for newest in sorted(rotation.directory.glob(f"{rotation.prefix}-*"), reverse=True):
        try:
            _load(trainer, newest)
        except DamagedCheckpointError as error:
            damage = error
            warnings.warn(f"{error} Trying the one before it.", stacklevel=2)
            # Under its own name it would count as the newest, and outlive those to come.
            newest.rename(newest.with_name(f"damaged-{newest.name}"))
        else:
            return newest
    if damage is not None:
        raise damage
    return None


def _load(trainer: Trainer, path: str | Path) -> None:
    if not Checkpoint.is_checkpoint(path):
        # The trainer would take it for a file of an earlier format, and say so.
        VerifiedCheckpoint.verify(path)
    # Mapped files would keep the checkpoint on disk after it was rotated out.
    trainer.load_from_file(path, mmap=False)


class _ReplayBufferAdapter(DumpLoadCheckpointAdapter):
    """Replay buffers without the batches that they have prefetched, which are a pickle."""

    def save(
        self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        super().save(component, path, args=args, kwargs=kwargs)
        (path / "prefetch.pkl").unlink(missing_ok=True)


_ADVICE = "Go on from another checkpoint; resume() takes the newest that is intact."


def _version() -> str:
    from torchrl_metra import __version__

    return __version__


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor: states change with these only."""
    return tuple(int(part) for part in version.split(".")[:2])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_group = isinstance(value, Mapping) and value
        flat.update(_flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value})
    return flat


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _DIGESTS
    }


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _num_bytes(components: Iterable[Any]) -> int:
    """Size of the replay buffers of this process: all that is written through memory maps."""
    states = [
        value.state_dict()
        for value in components
        if isinstance(value, ReplayBuffer) and value.service_backend != "ray"
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(states))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _reserve(folder: Path, num_bytes: int) -> None:
    """Fail now rather than half-way: a full disk kills who writes to it through memory maps."""
    file = folder / f".reserve-{uuid.uuid4().hex}"
    try:
        with file.open("wb") as handle:
            if num_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, num_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, f"{error.strerror}: {num_bytes:,} bytes needed") from error
        raise
    finally:
        file.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Have the operating system write all files and their names to disk."""
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
