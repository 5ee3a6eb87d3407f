"""Leaks of a split: images that belong together on two sides, and images to be tested that a run has learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.groups import JoiningKey, Sets, blood_counts, joining_keys
from data.near_duplicates import FINGERPRINT_BYTES, FINGERPRINT_VERSION, NearPair, find_near_duplicates
from data.records import SmearRecord
from data.split_file import ACCEPTED, EXCLUDED, SplitRow, leak_error
from util.arrays import damaged, read_arrays, write_arrays

FINGERPRINTS = "fingerprints.npz"
_CONTENT = {"what": "the fingerprints", "without": "a check for near duplicates"}
_KINDS = {"content": "equal images", "parent": "images of one parent", "report": "images with one blood count"}


class Leak(NamedTuple):
    """Two images that belong together and stand on two sides.

    Attributes:
        one: the row of the first.
        other: the row of the second.
        bond: what they are to each other, in words.
    """

    one: SplitRow
    other: SplitRow
    bond: str

    def words(self) -> str:
        """For a page: who, where, and why they belong together."""
        places = f"{self.one.image!r} in {self.one.split}, {self.other.image!r} in {self.other.split}"
        return f"{places}: {self.bond}"


def find_leaks(
    records: Sequence[SmearRecord], digests: Sequence[str], rows: Sequence[SplitRow], near: Sequence[NearPair] = ()
) -> list[Leak]:
    """Compute what belongs together anew from the files, whatever the split says, and name what was parted.

    Args:
        records: the images found now; those that the split does not list by name and content are passed over.
        digests: the hash of each one's pixels.
        rows: the recorded split.
        near: pairs of ``records`` that show the same cells, by position.

    Returns:
        Every pair of near duplicates on two sides, then two images of each other group that was parted: a direct bond
        where there is one, else a chain.

    Raises:
        UserError: a blood-count report cannot be read.
        ValueError: ``records`` and ``digests`` differ in length.
    """
    recorded = {(row.image, row.content): row for row in rows}
    found = [recorded.get(pair) for pair in zip((record.name for record in records), digests, strict=True)]
    reports = blood_counts(records)
    keys = [joining_keys(*known) for known in zip(records, digests, reports, strict=True)]
    present = [(row, own) for row, own in zip(found, keys, strict=True) if row]
    bound = [pair for pair in near if found[pair.first] and found[pair.second]]
    sets = Sets([*(own for _, own in present), *([keys[pair.first][0], keys[pair.second][0]] for pair in bound)])
    leaks = [leak for pair in bound if (leak := _near_leak(found[pair.first], found[pair.second], pair.similarity))]
    group_of = {row.image: sets.leader(own[0]) for row, own in present}
    named = {group_of[leak.one.image] for leak in leaks}
    for leak in (*_direct(present), *_chained(present, sets)):
        if group_of[leak.one.image] not in named:
            named.add(group_of[leak.one.image])
            leaks.append(leak)
    return leaks


def _near_leak(one: SplitRow | None, other: SplitRow | None, similarity: float) -> Leak | None:
    """The leak of a near-duplicate pair; equal images are left to their content."""
    if one is None or other is None or one.content == other.content or not _parted(one, other):
        return None
    return Leak(one, other, near_words(similarity))


def near_words(similarity: float) -> str:
    """The bond of near duplicates."""
    return f"near-duplicate images (similarity {similarity:.2f})"


def _parted(one: SplitRow, other: SplitRow) -> bool:
    return one.split != other.split and EXCLUDED not in (one.split, other.split)


def _direct(present: Sequence[tuple[SplitRow, list[JoiningKey]]]) -> Iterator[Leak]:
    """Two images on two sides that share a patient, parent, content or blood count."""
    first_of: dict[object, SplitRow] = {}
    for row, keys in present:
        for key in keys if row.split != EXCLUDED else ():
            first = first_of.setdefault(key, row)
            if _parted(first, row):
                yield Leak(first, row, _KINDS.get(key[0], f"images of one {key[0]}"))


def _chained(present: Sequence[tuple[SplitRow, list[JoiningKey]]], sets: Sets) -> Iterator[Leak]:
    """Two images on two sides that others link."""
    first_of: dict[object, SplitRow] = {}
    for row, keys in present:
        if row.split != EXCLUDED:
            first = first_of.setdefault(sets.leader(keys[0]), row)
            if _parted(first, row):
                yield Leak(first, row, "one group, linked by other images")


def check_groups(
    records: Sequence[SmearRecord],
    digests: Sequence[str],
    rows: Sequence[SplitRow],
    what: str,
    near: Sequence[NearPair] = (),
) -> None:
    """Refuse a split with leaks, but for those that it says are accepted.

    Args:
        records: as for ``find_leaks``.
        digests: as for ``find_leaks``.
        rows: the recorded split.
        what: what an error calls the split.
        near: as for ``find_leaks``.

    Raises:
        UserError: what belongs together stands on two of train, val and test (two of its files are named).
        ValueError: ``records`` and ``digests`` differ in length.
    """
    for leak in open_leaks(find_leaks(records, digests, rows, near)):
        raise leak_error(what, leak.bond, leak.one, leak.other)


def open_leaks(leaks: Sequence[Leak]) -> list[Leak]:
    """Those that the split does not say are accepted."""
    return [leak for leak in leaks if not (accepted(leak.one) and accepted(leak.other))]


def accepted(row: SplitRow) -> bool:
    """Whether a row says that it leaks and that the user would have it so."""
    return row.reason.startswith(ACCEPTED)


def accept(rows: Sequence[SplitRow], leaks: Sequence[Leak]) -> list[SplitRow]:
    """Write into the rows of leaking groups that this is known and accepted; the leaks' own images name each other."""
    reasons: dict[str, str] = {}
    for leak in leaks:
        reasons.setdefault(leak.one.image, f"{ACCEPTED}{leak.bond}, {leak.other.image!r} in {leak.other.split}")
        reasons.setdefault(leak.other.image, f"{ACCEPTED}{leak.bond}, {leak.one.image!r} in {leak.one.split}")
    sides: dict[str, set[str]] = {}
    for row in rows:
        if row.split != EXCLUDED:
            sides.setdefault(row.group, set()).add(row.split)
    others = {row.image: f"{ACCEPTED}group {row.group!r}" for row in rows if len(sides.get(row.group, ())) > 1}
    return [row if row.split == EXCLUDED else _with_reason(row, others | reasons) for row in rows]


def _with_reason(row: SplitRow, reasons: dict[str, str]) -> SplitRow:
    return replace(row, reason=reasons[row.image]) if row.image in reasons else row


# --- what a run has learned from --------------------------------------------------------------------------------------


class Learned(NamedTuple):
    """The images of train and val that a run was made with.

    Attributes:
        names: their names.
        fingerprints: their fingerprints, uint8 (N, FINGERPRINT_BYTES).
    """

    names: list[str]
    fingerprints: npt.NDArray[np.uint8]


def write_fingerprints(path: Path, learned: Learned, split_digest: str) -> None:
    """Write the fingerprints of what a run learns from beside its split.

    Args:
        path: the .npz file to write or replace.
        learned: the images of train and val.
        split_digest: ``rows_digest`` of the split that they are of.

    Raises:
        UserError: it cannot be written.
    """
    names = "\0".join(learned.names).encode("utf-8", "surrogatepass")
    write_arrays(
        path,
        version=FINGERPRINT_VERSION,
        split_digest=np.frombuffer(split_digest.encode(), dtype=np.uint8),
        names=np.frombuffer(names, dtype=np.uint8),
        fingerprints=learned.fingerprints,
    )


def read_fingerprints(path: Path, split_digest: str) -> Learned | None:
    """Read what ``write_fingerprints`` wrote; None where there is none of this split and of this version.

    Raises:
        UserError: the file is damaged.
    """
    stored = read_arrays(path, ("version", "split_digest", "names", "fingerprints"), **_CONTENT)
    if stored is None:
        return None
    if stored["version"].tolist() != FINGERPRINT_VERSION or stored["split_digest"].tobytes() != split_digest.encode():
        return None
    try:
        text = stored["names"].tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise damaged(path, str(error), **_CONTENT) from error
    names, prints = text.split("\0") if text else [], stored["fingerprints"]
    if prints.shape != (len(names), FINGERPRINT_BYTES) or prints.dtype != np.uint8:
        raise damaged(path, f"{len(names)} names, array {prints.shape}", **_CONTENT)
    return Learned(names, prints.astype(np.uint8, copy=False))


def learned_by_all(own: Learned, earlier: Learned | None, run: str) -> Learned:
    """What a run learns from itself and what the run that it started from had learned from, under that run's name."""
    if earlier is None:
        return own
    names = [name if name.startswith(f"{run}: ") else f"{run}: {name}" for name in earlier.names]
    return Learned([*own.names, *names], np.concatenate([own.fingerprints, earlier.fingerprints]))


def learned_before(
    learned: Learned, names: Sequence[str], fingerprints: npt.NDArray[np.uint8], progress: bool = True
) -> list[tuple[str, str, float]]:
    """Find images that show the same cells as some that a run has learned from.

    Args:
        learned: what the run has learned from.
        names: the images asked about.
        fingerprints: their fingerprints.
        progress: whether a bar is drawn on stderr.

    Returns:
        Image asked about, image learned from, similarity; the most similar first.
    """
    pairs = find_near_duplicates(fingerprints, learned.fingerprints, progress=progress)
    found = [(names[pair.first], learned.names[pair.second], pair.similarity) for pair in pairs]
    return sorted(found, key=lambda item: (-item[2], item[0], item[1]))
