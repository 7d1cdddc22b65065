"""SIGTERM, SIGUSR1 (which schedulers send before they kill) and Ctrl-C as a request to stop after the current step.

A second one stops the run wherever it is, without saving.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mae_transfer.errors import StoppedBySignal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REPEAT = 0.5
"""Seconds in which two signals are one under torchrun, which passes on what the scheduler sends to every process."""


class StopRequest:
    """As a context, notes the first of `SIGNALS` instead of dying of it; `received` is its name or None.

    Python lets only the main thread handle signals; in another thread the context changes nothing.
    """

    received: str | None = None
    _at = 0.0

    def __enter__(self) -> "StopRequest":
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self._at > REPEAT:
            raise StoppedBySignal(
                "stopped at once by a second signal; --resume goes on from the newest checkpoint, if there is one"
            )
        if not self.received:
            self._at = time.monotonic()
        self.received = self.received or signal.Signals(number).name


@contextmanager
def stop_at_once(message: str) -> Iterator[None]:
    """Raise StoppedBySignal as soon as one of `SIGNALS` comes: for work that leaves nothing to save."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedBySignal(message)

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker() -> None:
    """Let a loader process outlive a signal sent to the whole process group: the step still needs its samples."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
