"""The cache's file, a pack: a header, a table with a row for each entry, and the entries, each an image and its mask.

Nothing in a pack is believed before sizes and checksums agree.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from data.cache_locks import take_lock
from data.cache_recipe import Recipe

MAGIC = b"DCFPACK1"
# Magic, load size, entries, fingerprint bytes, checksum of these numbers and the table.
HEADER = struct.Struct("<8s4I")
_PAGE = 4096


class UnsoundError(Exception):
    """A file that is no whole pack of the kind that was looked for; the message says why."""


@dataclass(eq=False)
class Pack:
    """Entries and their table, in memory or mapped; a mapped one is in use for as long as ``entries`` is held.

    Attributes:
        table: rows of ``Recipe.table_type``, (M,).
        entries: uint8 (M, 4 S S).
        path: the file, or None in memory.
    """

    table: npt.NDArray[np.void]
    entries: npt.NDArray[np.uint8]
    path: Path | None = None

    def rows(self) -> dict[bytes, int]:
        """Where the entries are, by key."""
        return {key.tobytes(): row for row, key in enumerate(self.table["key"])}

    def is_sound(self, row: int) -> bool:
        """Whether an entry's bytes are those that were written."""
        return zlib.crc32(self.entries[row]) == int(self.table["checksum"][row])


def data_offset(recipe: Recipe, count: int) -> int:
    """Where a pack's entries begin: behind header and table, at a whole page."""
    end = HEADER.size + count * recipe.table_type.itemsize
    return -(-end // _PAGE) * _PAGE


def pack_bytes(recipe: Recipe, count: int) -> int:
    """Size of a pack."""
    return data_offset(recipe, count) + count * recipe.entry_bytes


def table_checksum(numbers: Sequence[int], table: bytes) -> int:
    """CRC-32 of load size, entries and fingerprint bytes, and of the table."""
    return zlib.crc32(table, zlib.crc32(struct.pack("<3I", *numbers)))


def open_pack(path: Path, recipe: Recipe, keys: Sequence[bytes] | None = None) -> Pack:
    """Map a pack and check everything but its entries.

    Args:
        path: the file.
        recipe: how its entries must have been made, as far as the header can tell.
        keys: which entries it must hold, in order; None for any.

    Raises:
        OSError: it cannot be opened or mapped.
        UnsoundError: it is no such pack.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        take_lock(file, shared=True)
        size = os.fstat(file.fileno()).st_size
        table = _read_table(file, recipe, size)
        if keys is not None and table["key"].tobytes() != b"".join(keys):
            raise UnsoundError("it holds other entries than its name says")
        # The mapping keeps a copy of the file's handle, and with it the lock that says that the pack is in use.
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    entries = np.frombuffer(mapped, np.uint8, offset=data_offset(recipe, len(table)))
    return Pack(table, entries.reshape(len(table), recipe.entry_bytes), path)


def _read_table(file: IO[bytes], recipe: Recipe, size: int) -> npt.NDArray[np.void]:
    """The table of a pack of ``size`` bytes; nothing is believed, nor memory taken, before the sizes agree."""
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise UnsoundError("it is cut short")
    magic, load_size, count, length, checksum = HEADER.unpack(header)
    if (magic, load_size) != (MAGIC, recipe.load_size) or length != recipe.table_type["fingerprint"].itemsize:
        raise UnsoundError("its header is not that of such a pack")
    if count == 0 or size != pack_bytes(recipe, count):
        raise UnsoundError(f"it has {size} bytes, not the {pack_bytes(recipe, count)} of its {count} entries")
    table = file.read(count * recipe.table_type.itemsize)
    if table_checksum((load_size, count, length), table) != checksum:
        raise UnsoundError("its table does not match its checksum")
    return np.frombuffer(table, recipe.table_type)
