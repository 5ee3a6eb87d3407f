"""Decoded smears kept on disk: packs of bytes that are mapped into memory, found by content, and made again if damaged.

A pack is one file: a header, a table with a row for each entry, and the entries, an image and its mask each, at one
size. What an entry is called follows from the bytes of the files that it was made from, how they are read, its size and
the versions of the code that made it: nothing in the folder is ever out of date, only unused. Equal files share an
entry.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import features
from tqdm import tqdm

from data.images import content_digest, read_size
from data.loader import (
    BYTES_PER_PIXEL,
    DECODING_VERSION,
    DecodedSmears,
    check_memory,
    check_some,
    decode_smear,
    in_order,
)
from data.records import SmearRecord
from util.errors import UserError
from util.files import unwritable

try:
    import fcntl
except ImportError:  # Windows: no locks; the last of two builders wins, with equal bytes
    fcntl = None  # type: ignore[assignment]

CACHE_GB = 20.0  # of packs in a folder: about 55,000 smears at 300 x 300
_MAGIC = b"DCFPACK1"
# Magic, load size, entries, fingerprint bytes, checksum of these numbers and the table.
_HEADER = struct.Struct("<8s4I")
_PAGE = 4096
_SUFFIX = ".smears"
_PACK_NAME = re.compile(r"\d+-[0-9a-f]{8}-[0-9a-f]{32}\.smears")
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_ELSEWHERE = "choose another folder by --cache_dir, or decode at every start (--no_cache)"
_PARTIAL_NAME = re.compile(r"(\d+-[0-9a-f]{8}-[0-9a-f]{32}\.smears)\.[0-9a-f]{16}\.partial")


@dataclass(frozen=True)
class Fingerprint:
    """Something small to be kept of each whole image beside its pixels.

    Attributes:
        compute: from uint8 (H, W, 3) to uint8 (length,).
        length: bytes.
        version: of what ``compute`` does; entries of another version are not used.
    """

    compute: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]
    length: int
    version: int


class _Entry(NamedTuple):
    """One row of a pack: what the table says, and the pixels, uint8 (4 S S,)."""

    facts: Any
    pixels: npt.NDArray[np.uint8]


class _UnsoundError(Exception):
    """A file that is no whole pack of the kind that was looked for; the message says why."""


@dataclass(frozen=True)
class _Recipe:
    """How entries are made: decides what they are called.

    Attributes:
        load_size: side S of the entries, pixels.
        fingerprint: what is kept beside them.
    """

    load_size: int
    fingerprint: Fingerprint | None

    @property
    def text(self) -> str:
        """Everything but the files that an entry's bytes depend on."""
        kept = f"{self.fingerprint.version}x{self.fingerprint.length}" if self.fingerprint else "none"
        decoders = f"pillow {PIL.__version__} jpeg {features.version('jpg')}"
        return f"decoding {DECODING_VERSION} {decoders} size {self.load_size} fingerprint {kept}"

    @property
    def entry_bytes(self) -> int:
        """Bytes of pixels in an entry."""
        return BYTES_PER_PIXEL * self.load_size**2

    @property
    def table_type(self) -> np.dtype[np.void]:
        """A row of the table: key, hash of the whole image's pixels, CRC-32 of the entry, size, fingerprint."""
        length = self.fingerprint.length if self.fingerprint else 0
        return np.dtype(
            [
                ("key", "u1", (32,)),
                ("digest", "u1", (32,)),
                ("checksum", "<u4"),
                ("width", "<u4"),
                ("height", "<u4"),
                ("fingerprint", "u1", (length,)),
            ]
        )

    def key_of(self, record: SmearRecord) -> bytes:
        """What the record's entry is called: SHA-256 over the recipe, the files' bytes, and how they are to be read.

        Raises:
            UserError: a file cannot be read.
        """
        # The extension counts because a file that is not what it says is refused.
        parts = [self.text, f"side by side {record.side_by_side}", record.image.suffix.lower()]
        parts.append(_file_digest(record.image))
        if record.mask is None:
            parts.append(f"otsu {_otsu_versions()}")
        else:
            same = record.mask == record.image
            parts += [f"dark {record.mask_dark}", record.mask.suffix.lower()]
            parts.append(parts[3] if same else _file_digest(record.mask))
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def make(self, record: SmearRecord, key: bytes) -> _Entry:
        """Decode a record into the entry called ``key``.

        Raises:
            UserError: it cannot be decoded, or its files are no longer those that gave it this key.
        """
        entry, rgb = smear = decode_smear(record, self.load_size)
        facts = np.zeros((), self.table_type)
        facts["key"] = np.frombuffer(key, np.uint8)
        facts["digest"] = np.frombuffer(bytes.fromhex(content_digest(rgb)), np.uint8)
        facts["checksum"] = zlib.crc32(entry.data)
        facts["width"], facts["height"] = smear.size
        if self.fingerprint:
            facts["fingerprint"] = self.fingerprint.compute(rgb)
        if self.key_of(record) != key:
            raise UserError(
                f"{record.image}: the file, or its mask, changed while it was read",
                remedy="start again once nothing writes to the data root",
            )
        return _Entry(facts[()], entry)


def _file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; what cannot be read raises what decoding it would raise."""
    try:
        if path.is_file():
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        read_size(path)
        raise UserError(f"{path}: cannot be read", found=error.strerror or str(error)) from error
    read_size(path)
    raise UserError(f"{path}: the file comes and goes", remedy="start again once nothing writes to the data root")


@cache
def _otsu_versions() -> str:
    return f"scikit-image {version('scikit-image')} scipy {version('scipy')}"


@dataclass(eq=False)
class _Pack:
    """Entries and their table, in memory or mapped; a mapped one is in use for as long as ``entries`` is held.

    Attributes:
        table: rows of ``_Recipe.table_type``, (M,).
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


def _data_offset(recipe: _Recipe, count: int) -> int:
    """Where a pack's entries begin: behind header and table, at a whole page."""
    end = _HEADER.size + count * recipe.table_type.itemsize
    return -(-end // _PAGE) * _PAGE


def _pack_bytes(recipe: _Recipe, count: int) -> int:
    return _data_offset(recipe, count) + count * recipe.entry_bytes


def _table_checksum(numbers: Sequence[int], table: bytes) -> int:
    return zlib.crc32(table, zlib.crc32(struct.pack("<3I", *numbers)))


def _open_pack(path: Path, recipe: _Recipe, keys: Sequence[bytes] | None = None) -> _Pack:
    """Map a pack and check everything but its entries.

    Args:
        path: the file.
        recipe: how its entries must have been made, as far as the header can tell.
        keys: which entries it must hold, in order; None for any.

    Raises:
        OSError: it cannot be opened or mapped.
        _UnsoundError: it is no such pack.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        _lock(file, shared=True)
        size = os.fstat(file.fileno()).st_size
        table = _read_table(file, recipe, size)
        if keys is not None and table["key"].tobytes() != b"".join(keys):
            raise _UnsoundError("it holds other entries than its name says")
        # The mapping keeps a copy of the file's handle, and with it the lock that says that the pack is in use.
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    entries = np.frombuffer(mapped, np.uint8, offset=_data_offset(recipe, len(table)))
    return _Pack(table, entries.reshape(len(table), recipe.entry_bytes), path)


def _read_table(file: IO[bytes], recipe: _Recipe, size: int) -> npt.NDArray[np.void]:
    """The table of a pack of ``size`` bytes; nothing is believed, nor memory taken, before the sizes agree."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise _UnsoundError("it is cut short")
    magic, load_size, count, length, checksum = _HEADER.unpack(header)
    if (magic, load_size) != (_MAGIC, recipe.load_size) or length != recipe.table_type["fingerprint"].itemsize:
        raise _UnsoundError("its header is not that of such a pack")
    if count == 0 or size != _pack_bytes(recipe, count):
        raise _UnsoundError(f"it has {size} bytes, not the {_pack_bytes(recipe, count)} of its {count} entries")
    table = file.read(count * recipe.table_type.itemsize)
    if _table_checksum((load_size, count, length), table) != checksum:
        raise _UnsoundError("its table does not match its checksum")
    return np.frombuffer(table, recipe.table_type)


def _lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
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
def _only_builder(path: Path, *, wait: bool) -> Iterator[bool]:
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
        held = _lock(file)
        if not held and wait:
            print(f"waiting for another process that fills the cache ({path.name})", file=sys.stderr)
            held = _lock(file, wait=True)
        if held:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    return file
        file.close()
        if not held:
            return None


class _Source:
    """Makes packs: which entries are wanted, and which record each can be made from.

    Args:
        recipe: how.
        records: by key.
        workers: decoding threads, by default one per usable core.
        progress: show bars on stderr.
    """

    def __init__(
        self, recipe: _Recipe, records: Mapping[bytes, SmearRecord], workers: int | None, progress: bool
    ) -> None:
        self.recipe, self.workers, self.progress = recipe, workers, progress
        self.records = dict(sorted(records.items()))  # the same entries give the same pack, in whatever order they come

    @property
    def keys(self) -> list[bytes]:
        """Keys of the entries, in the order of the pack's rows."""
        return list(self.records)

    def entries(self, donors: Iterable[_Pack] = ()) -> Iterator[_Entry]:
        """Every entry in order: copied from a pack that holds it undamaged, or made.

        Raises:
            UserError: as ``_Recipe.make``.
        """
        held = {key: (pack, row) for pack in donors for key, row in pack.rows().items() if key in self.records}

        def entry(key: bytes) -> _Entry:
            pack, row = held.get(key, (None, 0))
            if pack is not None and pack.is_sound(row):
                return _Entry(pack.table[row], pack.entries[row])
            return self.recipe.make(self.records[key], key)

        bar = {"total": len(self.records), "desc": "decoding", "unit": "img", "disable": not self.progress}
        with contextlib.closing(in_order(entry, self.records, self.workers)) as entries:
            yield from tqdm(entries, **bar)

    def in_memory(self) -> _Pack:
        """A pack in memory.

        Raises:
            UserError: there is too little, or an entry cannot be made.
        """
        check_memory(len(self.records), self.recipe.load_size)
        table = np.zeros(len(self.records), self.recipe.table_type)
        pixels = np.empty((len(self.records), self.recipe.entry_bytes), np.uint8)
        for row, entry in enumerate(self.entries()):
            table[row], pixels[row] = entry
        return _Pack(table, pixels)


class _PackFolder:
    """Packs in a folder, the least recently used of which go when it grows too large.

    Args:
        folder: made when the first pack is.
        limit: bytes of packs to keep.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def path_of(self, source: _Source) -> Path:
        """Where a source's pack is: the name says size, recipe and entries."""
        made = hashlib.sha256(source.recipe.text.encode()).hexdigest()[:8]
        held = hashlib.sha256(b"".join(source.keys)).hexdigest()[:32]
        return self.folder / f"{source.recipe.load_size}-{made}-{held}{_SUFFIX}"

    def obtain(self, source: _Source) -> _Pack:
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

    def renew(self, pack: _Pack, source: _Source) -> _Pack:
        """Replace a pack of which entries are damaged; whoever uses the old one keeps it.

        Raises:
            UserError: as ``obtain``.
        """
        return self._build(self.path_of(source), source, damaged=pack)

    def _open(self, path: Path, source: _Source, *, warn: bool = True) -> _Pack | None:
        try:
            return _open_pack(path, source.recipe, source.keys)
        except FileNotFoundError:
            return None
        except (_UnsoundError, OSError) as error:
            if warn:
                print(f"warning: {path} is damaged ({error}): it is made again", file=sys.stderr)
            return None

    def _build(self, path: Path, source: _Source, damaged: _Pack | None = None) -> _Pack:
        size = _pack_bytes(source.recipe, len(source.keys))
        self._check_limit(size)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _only_builder(path, wait=True):
                # Another process may have made it while this one waited.
                pack = None if damaged else self._open(path, source, warn=False)
                if pack is None:
                    donors = [damaged] if damaged else list(self._donors(path, source.recipe))
                    self._remove_leavings(path)
                    self._make_room(size)
                    self._write(path, source, donors)
                    del donors  # no longer in use
                    pack = _open_pack(path, source.recipe, source.keys)
        except OSError as error:
            raise _cannot_write(path, error) from error
        except _UnsoundError as error:
            raise UserError(f"{path} was written and reads back damaged ({error})", remedy=_ELSEWHERE) from error
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

    def _donors(self, path: Path, recipe: _Recipe) -> Iterator[_Pack]:
        """Packs made by the same recipe: most entries of a data set that has changed are there."""
        for other in sorted(self.folder.glob(f"{path.name[: -32 - len(_SUFFIX)]}*{_SUFFIX}")):
            if other != path:
                with contextlib.suppress(_UnsoundError, OSError):
                    yield _open_pack(other, recipe)

    def _write(self, path: Path, source: _Source, donors: Iterable[_Pack]) -> None:
        """Write a pack beside its place and put it there when the disk has it whole."""
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
        recipe, count = source.recipe, len(source.keys)
        table = np.zeros(count, recipe.table_type)
        numbers = (recipe.load_size, count, recipe.table_type["fingerprint"].itemsize)
        try:
            with partial.open("xb") as file:
                _reserve(file, _pack_bytes(recipe, count))
                file.seek(_data_offset(recipe, count))
                for row, entry in enumerate(source.entries(donors)):
                    table[row] = entry.facts
                    file.write(entry.pixels.data)
                file.seek(0)
                rows = table.tobytes()
                file.write(_HEADER.pack(_MAGIC, *numbers, _table_checksum(numbers, rows)) + rows)
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
            held = contextlib.nullcontext(True) if pack == mine else _only_builder(pack, wait=False)
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
            if total > self.limit and _remove_unused(path):
                total -= held
        if warn and total > self.limit:
            words = f"{self.folder} holds {total / 1e9:.2f} GB, more than --cache_gb {self.limit / 1e9:g}"
            print(f"warning: {words}: its packs are in use", file=sys.stderr)


def _cannot_write(path: Path, error: OSError) -> UserError:
    """The user's error for a cache folder that is full or may not be written."""
    plain = unwritable(path, error)
    return UserError(f"{plain.what} (cache of decoded smears)", found=plain.found, remedy=_ELSEWHERE)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space at once where the system can, so that a disk that is too full is found before the work is done."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _NO_RESERVING:
                raise


def _remove_unused(path: Path) -> bool:
    """Remove a pack unless some process has it open."""
    try:
        with path.open("rb") as file:
            if not _lock(file):
                return False
            path.unlink()
    except OSError:  # gone already, or not ours to remove
        return False
    return True


class DecodedDataset:
    """A data root's smears, decoded once.

    Made by :func:`open_decoded`.

    Attributes:
        records: as given.
        load_size: side S of the decoded images, pixels.
        digests: ``data.images.content_digest`` of each whole image.
        fingerprints: uint8 (N, L), of each whole image; L is 0 where none was asked for.
    """

    def __init__(
        self, records: Sequence[SmearRecord], keys: Sequence[bytes], source: _Source, folder: _PackFolder | None
    ) -> None:
        self.records, self.load_size = list(records), source.recipe.load_size
        self._source, self._folder = source, folder
        self._pack = folder.obtain(source) if folder else source.in_memory()
        self._sound = np.full(len(self._pack.entries), folder is None)
        places = self._pack.rows()
        self._rows = np.array([places[key] for key in keys], dtype=np.int64)
        self.digests = [digest.tobytes().hex() for digest in self._pack.table["digest"][self._rows]]
        self.fingerprints: npt.NDArray[np.uint8] = self._pack.table["fingerprint"][self._rows]

    def __len__(self) -> int:
        return len(self.records)

    def smears(self, indices: Sequence[int]) -> DecodedSmears:
        """The smears at ``indices``, in that order; nothing is copied.

        Entries of a pack are compared with their checksums when they are first asked for. What is damaged is decoded
        again from its files, with a warning.

        Raises:
            UserError: no indices; a damaged entry cannot be made again, or is damaged again.
        """
        chosen = [self.records[i] for i in indices]
        check_some(chosen)
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        self._make_sound(rows)
        facts = self._pack.table[rows]
        sizes = list(zip(facts["width"].tolist(), facts["height"].tolist(), strict=True))
        return DecodedSmears.of_records(chosen, self._pack.entries, rows, self.load_size, sizes)

    def _make_sound(self, rows: npt.NDArray[np.int64]) -> None:
        """Check the rows that were not checked yet, and replace the pack where one is damaged."""
        damaged = self._damaged(rows)
        if not damaged or self._folder is None:
            return
        keys = self._source.keys
        for row in damaged:
            name = self._source.records[keys[row]].name
            print(f"warning: {name} is damaged in {self._pack.path}: it is decoded again", file=sys.stderr)
        self._pack = self._folder.renew(self._pack, self._source)
        self._sound[:] = False
        if self._damaged(rows):
            raise UserError(f"{self._pack.path} was written and reads back damaged", remedy=_ELSEWHERE)

    def _damaged(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Which of the rows are not what was written; the others are known to be sound from now on."""
        unknown = [int(row) for row in np.unique(rows) if not self._sound[row]]
        self._sound[unknown] = list(in_order(self._pack.is_sound, unknown, self._source.workers))
        return [row for row in unknown if not self._sound[row]]


def open_decoded(
    records: Sequence[SmearRecord],
    load_size: int,
    *,
    cache_dir: Path | None,
    cache_gb: float = CACHE_GB,
    fingerprint: Fingerprint | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> DecodedDataset:
    """Decode smears once: into a pack in ``cache_dir`` that later starts map, or into memory.

    The files' bytes are read and hashed at every start; only what no pack holds is decoded. Give all records of a data
    root, so that every split of it shares one pack, and take sides by :meth:`DecodedDataset.smears`.

    Args:
        records: the smears, in the order that the result keeps.
        load_size: side S of the decoded images, pixels.
        cache_dir: folder of packs, made where it is missing; None decodes into memory and writes nothing.
        cache_gb: size of the folder, GB, above which packs that were not used for longest are removed.
        fingerprint: what to keep of each whole image beside its hash.
        workers: threads, by default one per usable core.
        progress: show bars on stderr.

    Raises:
        UserError: no records; a file that cannot be read or changes meanwhile; a mask of another size than its image;
            too little memory (without a cache); a cache folder that is full, too small or may not be written.
    """
    check_some(records)
    recipe = _Recipe(load_size, fingerprint)
    bar = {"total": len(records), "desc": "reading files", "unit": "img", "disable": not progress, "delay": 1.0}
    keys = list(tqdm(in_order(recipe.key_of, records, workers), **bar))
    made_from: dict[bytes, SmearRecord] = {}
    for key, record in zip(keys, records, strict=True):
        made_from.setdefault(key, record)
    source = _Source(recipe, made_from, workers, progress)
    return DecodedDataset(records, keys, source, _PackFolder(Path(cache_dir), cache_gb * 1e9) if cache_dir else None)
