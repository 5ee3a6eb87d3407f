"""Decoded smears kept on disk: packs of bytes that are mapped into memory, found by content, and made again if damaged.

A pack is one file: a header, a table with a row for each entry, and the entries, an image and its mask each, at one
size. What an entry is called follows from the bytes of the files that it was made from, how they are read, its size and
the versions of the code that made it: nothing in the folder is ever out of date, only unused. Equal files share an
entry.

How an entry is made is in ``data.cache_recipe``, the file in ``data.cache_pack``, the folder in ``data.cache_folder``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.cache_folder import ELSEWHERE, PackFolder, Source
from data.cache_recipe import Fingerprint, Recipe
from data.loader import DecodedSmears, check_some, in_order
from data.records import SmearRecord
from util.errors import UserError, visible

__all__ = ["CACHE_GB", "DecodedDataset", "Fingerprint", "open_decoded"]

CACHE_GB = 20.0  # of packs in a folder: about 55,000 smears at 300 x 300


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
        self, records: Sequence[SmearRecord], keys: Sequence[bytes], source: Source, folder: PackFolder | None
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
            print(f"warning: {visible(name)} is damaged in {self._pack.path}: it is decoded again", file=sys.stderr)
        self._pack = self._folder.renew(self._pack, self._source)
        self._sound[:] = False
        if self._damaged(rows):
            raise UserError(f"{self._pack.path} was written and reads back damaged", remedy=ELSEWHERE)

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
    recipe = Recipe(load_size, fingerprint)
    bar = {"total": len(records), "desc": "reading files", "unit": "img", "disable": not progress, "delay": 1.0}
    keys = list(tqdm(in_order(recipe.key_of, records, workers), **bar))
    made_from: dict[bytes, SmearRecord] = {}
    for key, record in zip(keys, records, strict=True):
        made_from.setdefault(key, record)
    source = Source(recipe, made_from, workers, progress)
    return DecodedDataset(records, keys, source, PackFolder(Path(cache_dir), cache_gb * 1e9) if cache_dir else None)
