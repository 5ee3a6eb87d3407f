"""What may not be parted, and which files are left out.

A group is all that must stay together: images of one patient, tiles of one image, files of equal content, smears with
an equal blood count, and images that show the same cells.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from data.blood_counts import report_text
from data.near_duplicates import NearPair
from data.records import SmearRecord

# A number that stands for itself, unlike those in the unit "10^3/uL".
_FIGURE = re.compile(r"(?<![\w^.])\d+(?:\.\d+)?(?![\w^])")
_READERS = 16
# How the reasons of ``exclusions`` are worded; split files hold them.
DUPLICATE_OF, BOTH_CLASSES = "duplicate of ", "stands in both classes"

JoiningKey: TypeAlias = tuple[str, str]  # the kind of bond, and what is shared


def group_ids(records: Sequence[SmearRecord], digests: Sequence[str], near: Sequence[NearPair] = ()) -> list[str]:
    """Join what must not be parted, and what these bonds chain together.

    The bonds: equal patient, parent, content or blood count, and near duplicates.

    Args:
        records: the images; an empty parent means that an image is its own.
        digests: the hash of each one's pixels.
        near: pairs of ``records`` that show the same cells, by position.

    Returns:
        One group a record, in order: the parent of the group's first record by name.

    Raises:
        UserError: a blood-count report cannot be read.
        ValueError: ``records`` and ``digests`` differ in length.
    """
    reports = blood_counts(records)
    keys = [joining_keys(*known) for known in zip(records, digests, reports, strict=True)]
    sets = Sets([*keys, *([("content", digests[pair.first]), ("content", digests[pair.second])] for pair in near)])
    first_of: dict[Hashable, SmearRecord] = {}
    for record, (key, *_) in sorted(zip(records, keys, strict=True), key=lambda item: item[0].name):
        first_of.setdefault(sets.leader(key), record)
    return [parent_name(first_of[sets.leader(key)]) for key, *_ in keys]


def exclusions(records: Sequence[SmearRecord], digests: Sequence[str]) -> dict[str, str]:
    """Say which files are left out: all but the first of each set of equal images, and sets that stand in both classes.

    Args:
        records: the images.
        digests: the hash of each one's pixels.

    Returns:
        The reason by image name: ``duplicate of NAME`` or ``stands in both classes``; kept images are not in it.

    Raises:
        ValueError: ``records`` and ``digests`` differ in length.
    """
    equal: dict[str, list[SmearRecord]] = defaultdict(list)
    for record, digest in zip(records, digests, strict=True):
        equal[digest].append(record)
    reasons: dict[str, str] = {}
    for same in equal.values():
        first, *others = sorted(same, key=lambda record: record.name)
        if len({record.label for record in same} - {None}) > 1:
            reasons |= {record.name: BOTH_CLASSES for record in same}
        else:
            reasons |= {record.name: f"{DUPLICATE_OF}{first.name}" for record in others}
    return reasons


def parent_name(record: SmearRecord) -> str:
    """Name what a record was cut from: itself where nothing else is known."""
    return record.parent or record.name


def joining_keys(record: SmearRecord, digest: str, report: str) -> list[JoiningKey]:
    """List what joins a record to others; ``report`` is its ``blood_count``."""
    keys = [("parent", parent_name(record)), ("content", digest)]
    keys += [("report", report)] if report else []
    return [*keys, ("patient", record.patient)] if record.patient else keys


def blood_count(record: SmearRecord) -> str:
    """Hash a record's blood count; empty where it has none.

    Raises:
        UserError: its report cannot be read.
    """
    return _report_digest(record.cbc) if record.cbc else ""


def blood_counts(records: Sequence[SmearRecord]) -> list[str]:
    """``blood_count`` of each record; each file is read once, many at a time.

    Raises:
        UserError: a report cannot be read.
    """
    paths = {record.cbc: None for record in records if record.cbc}
    with ThreadPoolExecutor(_READERS) as pool:
        found = dict(zip(paths, pool.map(_report_digest, paths), strict=True))
    return [found[record.cbc] if record.cbc else "" for record in records]


def _report_digest(path: Path) -> str:
    """Hash a blood count's text without regard to case and spacing; one without any figure gives an empty digest."""
    normal = " ".join(report_text(path).casefold().split())
    return hashlib.sha256(normal.encode()).hexdigest() if _FIGURE.search(normal) else ""


class Sets:
    """Keys in sets that join where one thing has keys of both (union-find).

    Args:
        things: the keys of each thing, at least one.
    """

    def __init__(self, things: Iterable[Sequence[Hashable]]) -> None:
        self._above: dict[Hashable, Hashable] = {}
        for first, *others in things:
            leader = self.leader(first)
            for key in others:
                self._above[self.leader(key)] = leader

    def leader(self, key: Hashable) -> Hashable:
        """Find who leads the set of ``key``, shortening the way for the next time."""
        above = self._above
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key
