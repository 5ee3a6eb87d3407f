"""One writer at a time in a folder of outputs: two runs under one name would mix their files."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from util.errors import UserError
from util.files import make_folder, not_through_a_link, unwritable


@contextlib.contextmanager
def sole_writer(folder: Path, *, remedy: str) -> Iterator[None]:
    """Hold a folder for this process alone; the system lets go of it when the process ends, however it ends.

    The lock lies beside the folder, as ``.NAME.lock``, and holds the process's number and command; the file stays
    behind, the lock on it does not. On a file system without locks there is none, and that is said.

    Args:
        folder: what will be written; its parent is made where it is missing.
        remedy: what to do when another process holds it.

    Raises:
        UserError: another process holds the folder, or the lock cannot be made.
    """
    from filelock import FileLock, Timeout

    make_folder(folder.parent)
    path = folder.parent / f".{folder.name}.lock"
    owner = path.with_name(f"{path.name}_owner")
    lock = FileLock(path, timeout=0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is being written by another process",
            expected="one run at a time under a name",
            found=_words_of(owner),
            remedy=remedy,
        ) from None
    except NotImplementedError:  # filelock's word for a file system without locks
        print(f"warning: {folder.parent} cannot be locked: let no second run use {folder.name}", file=sys.stderr)
        yield
        return
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        with contextlib.suppress(OSError):  # it only serves the words of the error above
            _write_words(owner, f"process {os.getpid()}: {shlex.join(sys.argv)}\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _write_words(owner: Path, words: str) -> None:
    with open(owner, "w", encoding="utf-8", opener=not_through_a_link) as file:  # noqa: PTH123 - Path has no opener
        file.write(words)


def _words_of(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8", errors="replace").strip()[:300] or "a process that does not say which"
    except OSError:
        return "a process that does not say which"
