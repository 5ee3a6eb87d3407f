"""Locks of the cache: who builds a pack, and which packs are in use."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: no locks; the last of two builders wins, with equal bytes
    fcntl = None  # type: ignore[assignment]


def take_lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another holds it. Where there are no locks: True."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def only_builder(path: Path, *, wait: bool) -> Iterator[bool]:
    """Be the one process that builds the pack at ``path``; yields False where another is, and is not waited for.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    file = _lock_file(lock, path, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
            file.close()


def _lock_file(lock: Path, path: Path, wait: bool) -> IO[bytes] | None:
    """Make and lock a lock file; one that was removed while it was waited for locks nobody out, so try again."""
    while True:
        file = lock.open("ab")
        held = take_lock(file)
        if not held and wait:
            print(f"waiting for another process that fills the cache ({path.name})", file=sys.stderr)
            held = take_lock(file, wait=True)
        if held:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    return file
        file.close()
        if not held:
            return None


def remove_unused(path: Path) -> bool:
    """Remove a pack unless some process has it open."""
    try:
        with path.open("rb") as file:
            if not take_lock(file):
                return False
            path.unlink()
    except OSError:  # gone already, or not ours to remove
        return False
    return True
