"""Checkpoints of whole runs, from which training goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, optim
from torchrl.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointLoadResult,
    GlobalRNGState,
    StateDictCheckpointAdapter,
)
from torchrl.data import ReplayBuffer
from torchrl.trainers import Trainer

import torchrl_metra
from torchrl_metra._private import SealedCheckpoint, drop_prefetched

_DIGESTS = "digests.json"


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written; nothing of it was loaded."""


class VerifiedCheckpoint(SealedCheckpoint):
    """TorchRL's :class:`~torchrl.checkpoint.Checkpoint` for long runs on machines that fail.

    What is written is complete on disk before it gets its name, with a digest of each file:
    neither a crash nor a power cut leaves a checkpoint that looks whole and is not. Disk
    space is reserved first. What is loaded is compared with the digests, and never
    executed: state dicts are read with ``weights_only=True``, pickles are refused.

    Give it to a :class:`~torchrl_metra.METRATrainer`, with a
    :class:`~torchrl.checkpoint.CheckpointRotation`. The trainer registers its networks,
    optimizers, targets, counters, replay buffer, collector and random generators.

    Keyword Args:
        exclude (collection of str, optional): components that are neither written nor asked
            for, such as ``("replay_buffer",)``, which is by far the largest; a run resumed
            without it collects ``min_buffer_size`` transitions before it learns on.
        settings (mapping, optional): JSON values that make the run what it is, such as sizes
            and coefficients. A checkpoint written with other ones is refused.
        **components: named objects or JSON values, as for ``Checkpoint``.

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

    def register(self, name: str, component: Any, **kwargs: Any) -> Checkpoint:
        """Register a component; see ``Checkpoint.register``."""
        if not hasattr(component, "dump") and hasattr(component, "load_state_dict"):
            # One file for a component, instead of one for each of its tensors.
            kwargs.setdefault("adapter", StateDictCheckpointAdapter("torch"))
        return super().register(name, component, **kwargs)

    def save(
        self,
        path: str | Path,
        *,
        components: Collection[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write the components, all of them or nothing.

        Args:
            path (path): folder to write.

        Keyword Args:
            components (collection of str, optional): defaults to all but ``exclude``.
            metadata (mapping, optional): JSON values, beside which settings and the version
                of this package are noted.
            **kwargs: see ``Checkpoint.save``.

        Returns:
            The path.

        Raises:
            CheckpointError: if the disk is full or does not take the files. Checkpoints
                written before are as they were.
        """
        folder = Path(path).expanduser().absolute().parent
        selected = set(self.components if components is None else components) - self.exclude
        notes = {
            **(metadata or {}),
            "torchrl_metra": torchrl_metra.__version__,
            "excluded": sorted(self.exclude),
            "settings": self.settings,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _reserve(folder, sum(_num_bytes(self.components[name]) for name in selected))
            destination = super().save(path, components=selected, metadata=notes, **kwargs)
            _flush(folder)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint {path} could not be written: {error}. Those written before are "
                "as they were. If the disk is full, free space, keep fewer of them, or exclude "
                "'replay_buffer'."
            ) from error
        return destination

    def seal(self, folder: Path) -> None:
        """Note the digests, and have the operating system write everything to disk."""
        drop_prefetched(folder)
        (folder / _DIGESTS).write_text(json.dumps(_digests(folder), indent=2))
        for path in (*folder.rglob("*"), folder):
            _flush(path)

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
        if differences := _differences(metadata["settings"], self.settings):
            raise CheckpointError(
                f"{path} belongs to a run with other settings: {', '.join(differences)}. Restore "
                "these to go on, or train anew in another folder."
            )
        if components is None:
            components = set(self.components) - self.exclude - set(metadata["excluded"])
        return super().load(path, components=components, **kwargs)

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
        if _numbers(written_by) > _numbers(torchrl_metra.__version__):
            raise CheckpointError(
                f"{path} was written by torchrl_metra {written_by}, which is newer than this one: "
                "update torchrl_metra, or train anew."
            )
        return manifest


class RandomState(GlobalRNGState):
    """TorchRL's random generators, of those devices that are here when a run goes on."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        here = self.state_dict()
        state = {name: value for name, value in state_dict.items() if name in here}
        if "torch_cuda" in state:
            state["torch_cuda"] = state["torch_cuda"][: len(here["torch_cuda"])]
        super().load_state_dict(state)


def load_optimizer(optimizer: optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load an optimizer's state; settings that depend on the device stay as they were built.

    Args:
        optimizer (Optimizer): of parameters on any device.
        state_dict (mapping): from ``optimizer.state_dict()`` of parameters on any other device.
    """
    built, groups = optimizer.param_groups, []
    for saved, own in zip(state_dict["param_groups"], built, strict=True):
        kept = {name: own[name] for name in ("capturable", "foreach", "fused") if name in own}
        groups.append({**saved, **kept})
    optimizer.load_state_dict({**state_dict, "param_groups": groups})
    for group, own in zip(optimizer.param_groups, built, strict=True):
        # A tensor stays the one that graphs read and schedulers write to.
        rate, saved_rate = own["lr"], float(group["lr"])
        group["lr"] = rate.fill_(saved_rate) if isinstance(rate, Tensor) else saved_rate


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
        >>> def train_on(trainer: METRATrainer) -> None:
        ...     if resume(trainer) is None:
        ...         print("no checkpoint: training starts anew")
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


_ADVICE = "Go on from another checkpoint; resume() takes the newest that is intact."


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor: states change with these only."""
    return tuple(int(part) for part in version.split(".")[:2])


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What two runs' settings differ in, by dotted name."""
    theirs, ours, absent = flatten(theirs), flatten(ours), object()
    return [
        f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} here)"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name, absent) != ours.get(name, absent)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names, as on a command line; lists as text.

    Examples:
        >>> flatten({"seed": 0, "skill": {"dim": 2}, "num_cells": [64, 64]})
        {'seed': 0, 'skill.dim': 2, 'num_cells': '[64, 64]'}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value) if isinstance(value, list) else value
    return flat


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _DIGESTS:
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _num_bytes(component: Any) -> int:
    """What a replay buffer of this process writes, through memory maps; 0 for others."""
    is_here = isinstance(component, ReplayBuffer) and component.service_backend != "ray"
    return _size(component.state_dict()) if is_here else 0


def _size(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return 0
    return sum(map(_size, tree))


def _reserve(folder: Path, num_bytes: int) -> None:
    """Fail now rather than half-way: writing through memory maps to a full disk is fatal."""
    if num_bytes and hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)


def _flush(path: Path) -> None:
    """Have the operating system write a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
