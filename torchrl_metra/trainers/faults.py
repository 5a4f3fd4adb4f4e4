"""What stops a run, and what is left of it."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["CollectionTimeoutError", "DivergenceError", "TimeLimit", "TrainingStoppedError"]


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


class TimeLimit:
    """Interrupts the main thread when something takes too long, even if it waits for a process.

    It works through ``SIGALRM``, so on Unix only. Native code that never returns to Python
    cannot be interrupted.

    Args:
        seconds (float, optional): how long is too long; ``None`` for no limit.

    Attributes:
        has_expired (bool): whether the latest ``KeyboardInterrupt`` was that of this limit.

    Raises:
        ValueError: if ``seconds`` is not positive.
        RuntimeError: by :meth:`start`, outside of the main thread and on other systems.

    Examples:
        >>> limit = TimeLimit(0.01)
        >>> limit.start()
        >>> try:
        ...     time.sleep(5)
        ... except KeyboardInterrupt:
        ...     limit.has_expired
        True
        >>> limit.stop()
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"collection_timeout must be positive or None, got {seconds}.")
        self.seconds = seconds
        self.has_expired = False
        self._outer: tuple[Any, float, float] | None = None

    def start(self) -> None:
        """Begin to count, from the start."""
        if self.seconds is None:
            return
        is_main = threading.current_thread() is threading.main_thread()
        if not (is_main and hasattr(signal, "setitimer")):
            raise RuntimeError(
                "a time limit needs Unix and the main thread: leave it away, or train there."
            )
        self.stop()
        self.has_expired = False
        handler = signal.signal(signal.SIGALRM, self._expire)
        remaining, _ = signal.setitimer(signal.ITIMER_REAL, self.seconds)
        self._outer = (handler, remaining, time.monotonic())

    def stop(self) -> None:
        """End to count, and give back the alarm to whom it belonged."""
        if self._outer is None:
            return
        handler, remaining, since = self._outer
        self._outer = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            left = remaining - (time.monotonic() - since)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-3))

    def _expire(self, number: int, frame: Any) -> None:
        # Collectors and Ray go on after other exceptions, or take them for their workers'.
        self.has_expired = True
        raise KeyboardInterrupt
