"""The cache's folder: making packs, finding them again, and room for them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from data.cache_locks import only_builder, remove_unused
from data.cache_pack import HEADER, MAGIC, Pack, UnsoundError, data_offset, open_pack, pack_bytes, table_checksum
from data.cache_recipe import Entry, Recipe
from data.loader import check_memory, in_order
from data.records import SmearRecord
from util.errors import UserError
from util.files import unwritable

_SUFFIX = ".smears"
_PACK_NAME = re.compile(r"\d+-[0-9a-f]{8}-[0-9a-f]{32}\.smears")
_PARTIAL_NAME = re.compile(r"(\d+-[0-9a-f]{8}-[0-9a-f]{32}\.smears)\.[0-9a-f]{16}\.partial")
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
ELSEWHERE = "choose another folder by --cache_dir, or decode at every start (--no_cache)"


class Source:
    """Makes packs: which entries are wanted, and which record each can be made from.

    Args:
        recipe: how.
        records: by key.
        workers: decoding threads, by default one per usable core.
        progress: show bars on stderr.
    """

    def __init__(
        self, recipe: Recipe, records: Mapping[bytes, SmearRecord], workers: int | None, progress: bool
    ) -> None:
        self.recipe, self.workers, self.progress = recipe, workers, progress
        self.records = dict(sorted(records.items()))  # the same entries give the same pack, in whatever order they come

    @property
    def keys(self) -> list[bytes]:
        """Keys of the entries, in the order of the pack's rows."""
        return list(self.records)

    def entries(self, donors: Iterable[Pack] = ()) -> Iterator[Entry]:
        """Every entry in order: copied from a pack that holds it undamaged, or made.

        Raises:
            UserError: as ``Recipe.make``.
        """
        held = {key: (pack, row) for pack in donors for key, row in pack.rows().items() if key in self.records}

        def entry(key: bytes) -> Entry:
            pack, row = held.get(key, (None, 0))
            if pack is not None and pack.is_sound(row):
                return Entry(pack.table[row], pack.entries[row])
            return self.recipe.make(self.records[key], key)

        bar = {"total": len(self.records), "desc": "decoding", "unit": "img", "disable": not self.progress}
        with contextlib.closing(in_order(entry, self.records, self.workers)) as entries:
            yield from tqdm(entries, **bar)

    def in_memory(self) -> Pack:
        """A pack in memory.

        Raises:
            UserError: there is too little, or an entry cannot be made.
        """
        check_memory(len(self.records), self.recipe.load_size)
        table = np.zeros(len(self.records), self.recipe.table_type)
        pixels = np.empty((len(self.records), self.recipe.entry_bytes), np.uint8)
        for row, entry in enumerate(self.entries()):
            table[row], pixels[row] = entry
        return Pack(table, pixels)


class PackFolder:
    """Packs in a folder, the least recently used of which go when it grows too large.

    Args:
        folder: made when the first pack is.
        limit: bytes of packs to keep.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def path_of(self, source: Source) -> Path:
        """Where a source's pack is: the name says size, recipe and entries."""
        made = hashlib.sha256(source.recipe.text.encode()).hexdigest()[:8]
        held = hashlib.sha256(b"".join(source.keys)).hexdigest()[:32]
        return self.folder / f"{source.recipe.load_size}-{made}-{held}{_SUFFIX}"

    def obtain(self, source: Source) -> Pack:
        """Map the source's pack, after making it where it is missing or unsound.

        Raises:
            UserError: an entry cannot be made, the folder cannot be written, or the pack alone is above the limit.
        """
        path = self.path_of(source)
        pack = self._open(path, source)
        if pack is None:
            pack = self._build(path, source)
        with contextlib.suppress(OSError):  # a folder that is only to be read from serves as well
            os.utime(path)
        return pack

    def renew(self, pack: Pack, source: Source) -> Pack:
        """Replace a pack of which entries are damaged; whoever uses the old one keeps it.

        Raises:
            UserError: as ``obtain``.
        """
        return self._build(self.path_of(source), source, damaged=pack)

    def _open(self, path: Path, source: Source, *, warn: bool = True) -> Pack | None:
        try:
            return open_pack(path, source.recipe, source.keys)
        except FileNotFoundError:
            return None
        except (UnsoundError, OSError) as error:
            if warn:
                print(f"warning: {path} is damaged ({error}): it is made again", file=sys.stderr)
            return None

    def _build(self, path: Path, source: Source, damaged: Pack | None = None) -> Pack:
        size = pack_bytes(source.recipe, len(source.keys))
        self._check_limit(size)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with only_builder(path, wait=True):
                # Another process may have made it while this one waited.
                pack = None if damaged else self._open(path, source, warn=False)
                if pack is None:
                    donors = [damaged] if damaged else list(self._donors(path, source.recipe))
                    self._remove_leavings(path)
                    self._make_room(size)
                    self._write(path, source, donors)
                    del donors  # no longer in use
                    pack = open_pack(path, source.recipe, source.keys)
        except OSError as error:
            raise _cannot_write(path, error) from error
        except UnsoundError as error:
            raise UserError(f"{path} was written and reads back damaged ({error})", remedy=ELSEWHERE) from error
        self._make_room(0, warn=True)
        return pack

    def _check_limit(self, size: int) -> None:
        """Refuse a pack that the folder may not hold."""
        if size > self.limit:
            raise UserError(
                f"the decoded smears take {size / 1e9:.2g} GB, more than the cache may hold",
                expected=f"at most {self.limit / 1e9:.2g} GB in {self.folder} (--cache_gb)",
                remedy=f"give --cache_gb {size / 1e9 + 0.5:.0f} or more, a lower --loadSize, or --no_cache",
            )

    def _donors(self, path: Path, recipe: Recipe) -> Iterator[Pack]:
        """Packs made by the same recipe: most entries of a data set that has changed are there."""
        for other in sorted(self.folder.glob(f"{path.name[: -32 - len(_SUFFIX)]}*{_SUFFIX}")):
            if other != path:
                with contextlib.suppress(UnsoundError, OSError):
                    yield open_pack(other, recipe)

    def _write(self, path: Path, source: Source, donors: Iterable[Pack]) -> None:
        """Write a pack beside its place and put it there when the disk has it whole."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        recipe, count = source.recipe, len(source.keys)
        table = np.zeros(count, recipe.table_type)
        numbers = (recipe.load_size, count, recipe.table_type["fingerprint"].itemsize)
        try:
            with partial.open("xb") as file:
                _reserve(file, pack_bytes(recipe, count))
                file.seek(data_offset(recipe, count))
                for row, entry in enumerate(source.entries(donors)):
                    table[row] = entry.facts
                    file.write(entry.pixels.data)
                file.seek(0)
                rows = table.tobytes()
                file.write(HEADER.pack(MAGIC, *numbers, table_checksum(numbers, rows)) + rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)  # noqa: PTH105 - the plain call is the atomic one on every system
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _remove_leavings(self, mine: Path) -> None:
        """Remove what killed builders left; one at work holds its pack's lock, as the caller does that of ``mine``."""
        for partial in [path for path in self.folder.iterdir() if _PARTIAL_NAME.fullmatch(path.name)]:
            pack = self.folder / partial.name.rsplit(".", 2)[0]
            held = contextlib.nullcontext(True) if pack == mine else only_builder(pack, wait=False)
            with held as alone, contextlib.suppress(OSError):
                if alone:
                    partial.unlink()

    def _make_room(self, size: int, *, warn: bool = False) -> None:
        """Remove packs, least recently used first, until ``size`` more bytes fit; never one that is in use."""
        packs = [path for path in self.folder.iterdir() if _PACK_NAME.fullmatch(path.name)]
        found = []
        for path in packs:
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = size + sum(held for _, held, _ in found)
        for _, held, path in sorted(found):
            if total > self.limit and remove_unused(path):
                total -= held
        if warn and total > self.limit:
            words = f"{self.folder} holds {total / 1e9:.2f} GB, more than --cache_gb {self.limit / 1e9:g}"
            print(f"warning: {words}: its packs are in use", file=sys.stderr)


def _cannot_write(path: Path, error: OSError) -> UserError:
    """The user's error for a cache folder that is full or may not be written."""
    plain = unwritable(path, error)
    return UserError(f"{plain.what} (cache of decoded smears)", found=plain.found, remedy=ELSEWHERE)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space at once where the system can, so that a disk that is too full is found before the work is done."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVING:
                raise
