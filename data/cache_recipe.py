"""How the cache makes an entry, an image and its mask at one size, and what the entry is called."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import features

from data.images import content_digest, read_size
from data.loader import BYTES_PER_PIXEL, DECODING_VERSION, decode_smear
from data.records import SmearRecord
from util.errors import UserError


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


class Entry(NamedTuple):
    """One row of a pack: what the table says, and the pixels, uint8 (4 S S,)."""

    facts: Any
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
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

    def make(self, record: SmearRecord, key: bytes) -> Entry:
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
        return Entry(facts[()], entry)


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
