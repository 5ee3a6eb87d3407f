"""Being asked to stop (Ctrl-C, SIGTERM): at the next point where everything can be saved, not in the middle."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_BASE = 128  # a shell's status of a process that a signal ended: this and the signal's number


class StopAsked(Exception):  # noqa: N818 - no error: somebody wants the run to pause
    """The run was asked to stop and has saved what is needed to go on."""


class StopRequest:
    """Whether somebody asked this process to stop.

    Attributes:
        signal: the number of the signal that asked, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that the signal ended."""
        return EXIT_BASE + (self.signal or signal.SIGTERM)  # of several processes one may have been asked for all

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Remember a signal; a second one is not waited for: it interrupts at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = int(number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM instead of ending at once; outside of the main thread nothing is changed."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
