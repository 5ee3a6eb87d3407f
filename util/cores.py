"""How many processors there are to use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_threads() -> int:
    """Threads for work that keeps a core busy: this process's share of the cores that it may run on.

    ``OMP_NUM_THREADS``, with which numerical libraries are told to use fewer, holds here as well; processes that
    torchrun started on one machine share its cores.

    Returns:
        at least 1.
    """
    usable, processes = usable_cores(), _number("LOCAL_WORLD_SIZE") or 1
    return max(1, min(usable // processes, _number("OMP_NUM_THREADS") or usable))


def _number(variable: str) -> int | None:
    """A positive number of the environment; None where there is none (OpenMP allows lists, whose first one counts)."""
    said = os.environ.get(variable, "").split(",")[0].strip()
    return int(said) or None if said.isdecimal() else None
