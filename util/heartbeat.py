"""Losing a process is noticed even where no message tells of it: each says again and again that it lives.

A collective operation mostly fails at once when a process dies. But gloo was seen to miss it now and then, and then
waits for as long as a process may take to decode its data.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0  # seconds without a beat: longer than any call that keeps Python from running another thread
BEATS = 24  # in that time
OVER = "over"


class Heartbeat:
    """A thread that beats for this process and listens for the others', until it is closed.

    Args:
        store: a connection of its own to the store that all processes share: a wait on another would stop the beats.
        rank: this process.
        world: how many there are.
        lost: called once, in the thread, with the process that was not heard of for ``patience``.
        patience: seconds.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        lost: Callable[[int], None],
        patience: float,
    ) -> None:
        self.store, self.rank, self.lost, self.patience = store, rank, lost, patience
        self.every = patience / BEATS
        now = time.monotonic()
        self._heard = {other: ("", now) for other in range(world) if other != rank}  # last word, and when it came
        self._beats = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self, *, well: bool) -> None:
        """End the thread.

        Args:
            well: whether this process came to its end, which the others are told; one that failed just falls silent.
        """
        self._closing.set()
        self._thread.join(timeout=self.every)
        if well:
            self._say(OVER)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closing.wait(self.every):
            now = time.monotonic()
            if now - before > self.patience / 2:  # it is this process that slept, perhaps with its whole machine
                self._heard = {other: (word, now) for other, (word, _) in self._heard.items()}
            before = now
            self._beats += 1
            self._say(str(self._beats))
            for other in self._heard:
                if self._silent_for(other, now) > self.patience and not self._closing.is_set():
                    self.lost(other)
                    return

    def _say(self, word: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store has gone with the process that keeps it: silence tells that
            self.store.set(f"lives/{self.rank}", word)

    def _silent_for(self, other: int, now: float) -> float:
        """Seconds until ``now`` since another process was heard of; 0 of one that has come to its end."""
        word, since = self._heard[other]
        if word == OVER:
            return 0.0
        try:
            key = f"lives/{other}"
            found = self.store.get(key).decode() if self.store.check([key]) else ""
        except RuntimeError:
            found = word
        if found != word:
            self._heard[other] = found, now
            return 0.0
        return now - since
