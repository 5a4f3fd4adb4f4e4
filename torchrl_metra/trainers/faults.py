"""What stops a run, and what is left of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torchrl.checkpoint import CheckpointError
from torchrl.trainers import Trainer


class DivergenceError(ValueError):
    """A loss or another metric of training is NaN or infinite: the networks are lost."""


class CollectionTimeoutError(RuntimeError):
    """No batch came from the collector for too long: a worker hangs."""


class TrainingStoppedError(RuntimeError):
    """Training stopped because of a fault; the message says what to do, ``__cause__`` what it was.

    Args:
        message (str): what happened, and how to go on.
        checkpoint (Path, optional): the checkpoint to go on from, ``None`` without one.
    """

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """A context that ends with an error if it takes too long, even while it waits for a process.

    It works through ``SIGALRM``, so only on Unix and in the main thread. Native code that never
    returns to Python cannot be interrupted.

    Args:
        seconds (float, optional): how long is too long; ``None`` for no limit.

    Raises:
        CollectionTimeoutError: if it takes too long.

    Examples:
        >>> try:
        ...     with time_limit(0.01):
        ...         time.sleep(5)
        ... except CollectionTimeoutError:
        ...     "too long"
        'too long'
    """
    if seconds is None:
        yield
        return
    has_expired = False

    def expire(number: int, frame: Any) -> None:
        nonlocal has_expired
        has_expired = True
        # Collectors and Ray ignore other exceptions, or take them for their workers'.
        raise KeyboardInterrupt

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except KeyboardInterrupt:
        if not has_expired:
            raise
        raise CollectionTimeoutError(
            f"the collector did not answer for {seconds} s: an environment or its worker hangs. If "
            "it is only slow, raise collection_timeout."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            # Somebody else's alarm, who is still waiting for it.
            left = remaining - (time.monotonic() - start)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))


class TimedCollector:
    """A trainer's collector, each batch of which must come before ``collection_timeout``."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._collector = trainer.collector

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self._collector), object()
        while True:
            with time_limit(self._trainer.collection_timeout):
                batch = next(batches, end)
            if batch is end:
                return
            yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collector, name)


def stop_training(trainer: Trainer, error: Exception, *, save: bool) -> NoReturn:
    """Save what can be saved, and say how to go on.

    Args:
        trainer (Trainer): whose training has failed.
        error (Exception): what happened.
        save (bool): whether networks and data are as they should be.

    Raises:
        TrainingStoppedError: with the checkpoint to go on from; the error itself, if the trainer
            writes no checkpoints.
    """
    rotation, file = trainer.checkpoint_rotation, trainer.save_trainer_file
    if rotation is None and file is None:
        raise error
    state = "The networks are not saved, for they were being updated."
    if save:
        state = "Everything up to there is saved."
        try:
            trainer.save_trainer(force_save=True)
        except CheckpointError as failure:
            state = f"It could not be saved: {failure}"
    if rotation is not None:
        path = rotation.latest()
    else:
        path = Path(file) if Path(file).exists() else None
    story = (
        f"training stopped after {trainer.collected_frames:,} frames: {error}\n{state} Fix the "
        f"cause, then go on from {path or 'the start'} with resume(trainer)."
    )
    raise TrainingStoppedError(story, path) from error
