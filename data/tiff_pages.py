"""The pages of a TIFF file: where each begins, and opening the file at one of them.

Pillow walks from page to page through all before the one asked for; to read every page of a stack of 10,000 so is 50
million steps. Here the way is walked once a file, and a page is opened as if it were the first.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

_FILES_REMEMBERED = 16
_ORDER_OF_MARK = {b"II": "<", b"MM": ">"}


class _Form(NamedTuple):
    """How a TIFF file writes numbers: the classic form, or BigTIFF's.

    Attributes:
        tag_count: of a page's tags.
        tag_bytes: of one tag.
        offset: of a page.
        first_at: where the offset of the first page stands.
    """

    tag_count: struct.Struct
    tag_bytes: int
    offset: struct.Struct
    first_at: int


def page_offsets(path: Path) -> tuple[int, ...]:
    """Where the pages of a TIFF file begin, in order; none where it is no TIFF file.

    A chain that leads back to a page that was passed ends there, as in Pillow.

    Raises:
        OSError: it cannot be read.
    """
    known = path.stat()
    return _offsets(path, known.st_size, known.st_mtime_ns)


def open_at_page(path: Path, offset: int) -> IO[bytes]:
    """Open a TIFF file whose first page seems to be the one at ``offset``; the caller closes it.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no TIFF file.
    """
    with path.open("rb") as file:
        form = _form(file.read(8))
        if form is None:
            raise ValueError(f"{path} is no TIFF file")
        file.seek(0)
        header = file.read(form.first_at) + form.offset.pack(offset)
    return io.BufferedReader(_OtherHeader(path, header))


@lru_cache(maxsize=_FILES_REMEMBERED)
def _offsets(path: Path, size: int, changed: int) -> tuple[int, ...]:
    """``page_offsets`` of a file of this size and time of change, which say whether it is still the one remembered."""
    with path.open("rb") as file:
        form = _form(file.read(8))
        return tuple(_walk(file, form)) if form else ()


def _form(start: bytes) -> _Form | None:
    """The form of a file that begins so, or None where that is no TIFF file."""
    order = _ORDER_OF_MARK.get(start[:2])
    if order is None or len(start) < 8:
        return None
    if start[2] == 43 and order == "<":  # big-endian BigTIFF is none that Pillow reads
        return _Form(struct.Struct("<Q"), 20, struct.Struct("<Q"), 8)
    return _Form(struct.Struct(order + "H"), 12, struct.Struct(order + "L"), 4)


def _walk(file: IO[bytes], form: _Form) -> Iterator[int]:
    """Follow the chain of pages; a page that is cut off is the last."""
    passed: set[int] = set()
    place = form.first_at
    while len(found := _read_at(file, place, form.offset.size)) == form.offset.size:
        (page,) = form.offset.unpack(found)
        if page == 0 or page in passed or page >= 2**63:
            return
        passed.add(page)
        yield page
        count = _read_at(file, page, form.tag_count.size)
        if len(count) < form.tag_count.size:
            return
        place = page + form.tag_count.size + form.tag_bytes * form.tag_count.unpack(count)[0]


def _read_at(file: IO[bytes], place: int, size: int) -> bytes:
    """Bytes at a place; none beyond the largest that a file can have."""
    if place >= 2**63:
        return b""
    file.seek(place)
    return file.read(size)


class _OtherHeader(io.RawIOBase):
    """A file that shows other bytes in place of its first."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._file, self._header = path.open("rb", buffering=0), header

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The file's own: libtiff reads that, and is told by Pillow at which page."""
        return self._file.fileno()

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._file.seek(place, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        """Read on, the header's place showing the other header."""
        place = self._file.tell()
        count = self._file.readinto(buffer) or 0
        shown = self._header[place : place + count]
        memoryview(buffer).cast("B")[: len(shown)] = shown
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
