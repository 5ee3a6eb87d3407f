"""Memory: what a run has taken, keeping what was freed for the next step, and a clear word when it runs out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from util.errors import UserError

# glibc's <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
# What PyTorch and its libraries say when memory runs out and no type of exception tells it.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed instead of giving it back to the system.

    A step on a CPU takes and frees the same large arrays over and over. By default each is fetched from the system,
    which clears its pages first. What was taken once then stays with the process until it ends.

    Returns:
        Whether the C library took it: glibc does, others are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl has a mallopt that does nothing
        return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))
    except (OSError, AttributeError):
        return False


def give_back_memory() -> None:
    """Return freed memory to the system where the C library can (glibc).

    Pictures are freed in many threads, each of which keeps what it freed for itself: without this a process that writes
    12,000 of them grows by gigabytes that nothing uses, and what one thread has read of a large one no other can use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def host_peak() -> int:
    """Most memory of the host that the process has held so far, bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_host_peak() -> bool:
    """Let :func:`recent_host_peak` count from now on; False where the system cannot (only Linux can)."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return recent_host_peak() is not None


def recent_host_peak() -> int | None:
    """Most memory of the host that the process has held since it was forgotten, bytes; None where unknown."""
    return _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a GPU or of the host has run out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def out_of_memory_told(batch_size: int, *, kept: str = "", smaller: str = "") -> Iterator[None]:
    """Turn running out of memory into one message that says what to lower.

    Args:
        batch_size: --batchSize as it is.
        kept: what was saved and how to go on from it.
        smaller: what else takes less memory, such as ``--preset small``.

    Raises:
        UserError: memory ran out inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ways = [f"--batchSize {batch_size // 2}" if batch_size > 1 else "", smaller]
        remedy = ", or ".join(way for way in ways if way) or "a machine with more memory"
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"out of memory with --batchSize {batch_size}",
            expected="a step that fits into the memory of the device",
            found=first[:300],
            remedy=f"use {remedy}" + (f"; {kept}" if kept else ""),
        ) from None
