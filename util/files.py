"""Writing files so that none is ever half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from util.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write, or change its permissions",
    errno.EPERM: "choose a folder that you may write, or change its permissions",
    errno.ENOTDIR: "a file stands where a folder is needed: move it or choose another folder",
    errno.EEXIST: "a file stands where a folder is needed: move it or choose another folder",
}


def unwritable(path: Path, error: OSError) -> UserError:
    """The user's error for a file or folder that could not be written."""
    remedy = _REMEDIES.get(error.errno or 0, "check the folder and the disk")
    return UserError(f"cannot write {path}", found=error.strerror or str(error), remedy=remedy)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents and check that files can be written in it.

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def atomic_write(path: Path, content: str | bytes, *, make_parents: bool = False) -> None:
    """Write a whole file or leave the old one: temporary file in the same folder, fsync, replace.

    The file's permissions are those of any new file under the process's umask.

    Args:
        path: the file to write or replace.
        content: what it shall hold; text is UTF-8, bytes of a file name that were not UTF-8 go back as they came.
        make_parents: make missing parent folders instead of refusing.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with _replacing(path) as temporary:
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, data)


def write_unhurried(path: Path, content: bytes) -> None:
    """Write a whole file or leave the old one, as ``atomic_write`` does, but without waiting for the disk.

    For one of many files that something written later makes whole; see ``wait_for_disk``. Missing folders are made.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is untouched.
    """
    with _replacing(path) as temporary:
        try:
            temporary.write_bytes(content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)


def wait_for_disk(paths: Iterable[Path]) -> None:
    """Wait until the disk has files that were written without waiting: together that takes little longer than for one.

    Raises:
        UserError: one of them is gone, or the disk failed.
    """
    for path in paths:
        try:
            with path.open("rb+") as file:  # some systems flush only what may be written
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(path, error) from None


def keep_before(path: Path, before: Path) -> None:
    """Keep a file under a second name, at no moment without it under the first; where it is not there, do nothing.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    if not path.is_file():
        return
    with _replacing(before) as second:
        try:
            os.link(path, second)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, second)


def move(path: Path, to: Path) -> None:
    """Give a file another name in its folder; what had that name is replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        os.replace(path, to)  # noqa: PTH105 - as in _replacing
    except OSError as error:
        raise unwritable(to, error) from None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside a file, for what takes the file's place at the block's end; where the block fails, the old stays.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = unfinished_name(path)
    try:
        yield temporary
        os.replace(temporary, path)  # noqa: PTH105 - the plain call is the atomic one on every system
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unfinished_name(path: Path) -> Path:
    """A name beside a file, for what will take its place; no other file has it, and ``remove_unfinished`` knows it."""
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}"


def remove_unfinished(folder: Path, *, name: str = "*", below: bool = False) -> None:
    """Remove what was begun in a folder under an ``unfinished_name`` when its process was killed.

    Only for who is the folder's sole writer: another process may be at work on such a file.

    Args:
        folder: it need not be there.
        name: of the file that was begun; all of them.
        below: in the folders below as well.

    Raises:
        UserError: a file cannot be removed.
    """
    pattern = f".{name}.{'[0-9a-f]' * 16}"
    try:
        for begun in folder.rglob(pattern) if below else folder.glob(pattern):
            begun.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None


def not_through_a_link(path: str, flags: int) -> int:
    """An opener for ``open`` that refuses links: in a folder from elsewhere one may lead to any file of the user's."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
