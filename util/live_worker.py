"""A thread that works on the newest item of every key, so that whoever hands items over never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestWorker(Generic[Item]):
    """Works off items in a thread of its own; an item that a newer one of its key overtakes is left out and counted.

    What waits is bounded by the number of keys. The first error ends the work: it is kept, and nothing is raised. The
    thread is a daemon, so that work which never returns cannot hold up the end of the process.

    Args:
        name: of the thread.
        work: gets the items that wait, by key, in the order in which their keys came.
        at_once: give all that waits in one call; else one item a call, each the newest at that moment.
    """

    def __init__(self, name: str, work: Callable[[dict[str, Item]], None], *, at_once: bool) -> None:
        self._work, self._at_once = work, at_once
        self._waiting: dict[str, Item] = {}
        self._changed = threading.Condition()
        self._ending = False
        self._busy_since: float | None = None
        self._error: Exception | None = None
        self.overtaken = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What ended the work early, if anything did."""
        return self._error

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    def busy_for(self) -> float:
        """Seconds that the call in progress has taken so far; 0 where there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def offer(self, items: Mapping[str, Item]) -> None:
        """Hand items over; returns at once. After an error or the end they are dropped."""
        with self._changed:
            if self._error is not None or self._ending:
                return
            self.overtaken += sum(key in self._waiting for key in items)
            self._waiting.update(items)
            self._changed.notify()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until all is worked off or an error has ended the work; False once the seconds are over."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._error is not None or (not self._waiting and self._busy_since is None), seconds
            )

    def close(self, seconds: float) -> bool:
        """Work off what waits for so many seconds at most, then take no more; False where something is left."""
        done = self.wait_idle(seconds)
        with self._changed:
            self._ending = True
            self._changed.notify()
        return done

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if self._ending:
                    return
                items = self._take()
                self._busy_since = time.monotonic()
            try:
                self._work(items)
            except Exception as error:  # noqa: BLE001 - kept for the owner, who asks for it
                self._error = error
            with self._changed:
                self._busy_since = None
                self._changed.notify_all()
                if self._error is not None:
                    self._waiting.clear()
                    return

    def _take(self) -> dict[str, Item]:
        if self._at_once:
            items, self._waiting = self._waiting, {}
            return items
        key = next(iter(self._waiting))
        return {key: self._waiting.pop(key)}
