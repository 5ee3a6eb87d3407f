"""Splits that a file states and no leak crosses: what is left out, what belongs together, which side it is on.

A group is all that must not be parted: tiles of one image, files of equal content, smears with an equal blood count.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.images import content_digest, read_smear
from data.records import CLASS_NAMES, SmearRecord
from util.errors import UserError

SIDES = ("train", "val", "test")
EXCLUDED = "excluded"
_ATTEMPTS = 20
_FIRST_COLUMNS = 6  # image to reason: all that a split file once had
# A number that stands for itself, unlike those in the unit "10^3/uL".
_FIGURE = re.compile(r"(?<![\w^.])\d+(?:\.\d+)?(?![\w^])")


@dataclass(frozen=True)
class SplitRow:
    """What the split file says of one image.

    Attributes:
        image: name of the image (posix path relative to the data root).
        label: HEALTHY, ANEMIC or None where unknown.
        group: name of the group that it may not be parted from.
        content: digest of its pixels.
        split: "train", "val", "test" or "excluded".
        reason: why it is excluded, else empty.
        parent: what the image was cut from; empty stands for the image itself.
        cbc: digest of its blood count, empty where there is none.
        mask: whether it had a true mask.
    """

    image: str
    label: int | None
    group: str
    content: str
    split: str
    reason: str = ""
    parent: str = ""
    cbc: str = ""
    mask: bool = False


class Placement(NamedTuple):
    """Where an image stands by a recorded split.

    Attributes:
        side: "train", "val", "test" or "excluded".
        group: the recorded group that it belongs to, or a new one where it belongs to none.
    """

    side: str
    group: str


def content_digests(records: Sequence[SmearRecord], workers: int | None = None, progress: bool = True) -> list[str]:
    """Hash the decoded pixels of every image.

    Args:
        records: the images.
        workers: threads that decode; decoding and hashing both run outside Python's lock.
        progress: whether a bar is drawn on stderr.

    Returns:
        One digest a record, in order.

    Raises:
        UserError: an image cannot be read.
    """
    from tqdm import tqdm

    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda record: content_digest(read_smear(record)), records)
        return list(tqdm(digests, total=len(records), desc="hashing images", unit="image", disable=not progress))


def group_ids(records: Sequence[SmearRecord], digests: Sequence[str]) -> list[str]:
    """Join what must not be parted: equal parent, equal content or equal blood count, and what these chain together.

    Args:
        records: the images; an empty parent means that an image is its own.
        digests: their ``content_digests``.

    Returns:
        One group a record, in order: the parent of the group's first record by name.

    Raises:
        UserError: a blood-count report cannot be read.
        ValueError: ``records`` and ``digests`` differ in length.
    """
    keys = [_joining_keys(record, digest) for record, digest in zip(records, digests, strict=True)]
    sets = _Sets(keys)
    first_of: dict[Hashable, SmearRecord] = {}
    for record, (key, *_) in sorted(zip(records, keys, strict=True), key=lambda item: item[0].name):
        first_of.setdefault(sets.leader(key), record)
    return [_parent(first_of[sets.leader(key)]) for key, *_ in keys]


def exclusions(records: Sequence[SmearRecord], digests: Sequence[str]) -> dict[str, str]:
    """Say which files are left out: all but the first of each set of equal images, and sets that stand in both classes.

    Args:
        records: the images.
        digests: their ``content_digests``.

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
            reasons |= {record.name: "stands in both classes" for record in same}
        else:
            reasons |= {record.name: f"duplicate of {first.name}" for record in others}
    return reasons


def make_split(
    records: Sequence[SmearRecord],
    digests: Sequence[str],
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    drop_duplicates: bool = True,
) -> list[SplitRow]:
    """Divide images into train, val and test, by whole groups and with the classes in balance.

    Groups are dealt from the largest to the smallest, each to the side that it brings nearest to its share of every
    class; then single groups are moved for as long as that helps. ``seed`` decides among groups of equal size.

    Args:
        records: the images.
        digests: their ``content_digests``.
        fractions: shares of the kept images for train, val and test; a share of 0 leaves that side empty.
        seed: the same seed gives the same split.
        drop_duplicates: whether the ``exclusions`` are left out; False keeps every file (equal files stay together).

    Returns:
        One row a record, in order.

    Raises:
        UserError: a class has fewer groups than there are sides, fractions that are none, equal names.
    """
    _check_fractions(fractions)
    groups = group_ids(records, digests)
    reasons = exclusions(records, digests) if drop_duplicates else {}
    kept = [index for index, record in enumerate(records) if record.name not in reasons]
    side_of = _deal([groups[index] for index in kept], [records[index].label for index in kept], fractions, seed)
    rows = []
    for record, group, digest in zip(records, groups, digests, strict=True):
        reason = reasons.get(record.name, "")
        rows.append(described(record, group, digest, EXCLUDED if reason else side_of[group], reason))
    _check_rows(rows, "the split")
    return rows


def described(record: SmearRecord, group: str, digest: str, split: str, reason: str = "") -> SplitRow:
    """Make the row of an image as its files are now.

    Raises:
        UserError: its blood-count report cannot be read.
    """
    parent, cbc = _parent(record), _blood_count(record)
    return SplitRow(record.name, record.label, group, digest, split, reason, parent, cbc, record.mask is not None)


def write_split(path: str | Path, rows: Sequence[SplitRow]) -> None:
    """Write a split file at once or not at all.

    It is made for machines: every cell is quoted and holds the exact string, also where a spreadsheet would take a name
    that begins with ``=``, ``+``, ``-`` or ``@`` for a formula. Labels are 0, 1 or nothing, masks 0 or 1. An existing
    file is replaced.

    Args:
        path: the CSV file; its folder is made where it is missing.
        rows: what ``make_split`` gave.

    Raises:
        UserError: the rows leak (see ``read_split``), or the file cannot be written.
    """
    path = Path(path)
    _check_rows(rows, str(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
            writer.writerow(_columns())
            writer.writerows(_cells(row) for row in rows)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        found = error.strerror or str(error)
        raise UserError(f"{path}: cannot be written", found=found, remedy="check the folder and the disk") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_split(path: str | Path) -> list[SplitRow]:
    """Read a split file and refuse one that leaks.

    Args:
        path: a file that ``write_split`` wrote, possibly edited by hand.

    Returns:
        Its rows, in order.

    Raises:
        UserError: no such file, other columns, an unknown split or label, an image twice, or a group, a content, a
            parent or a blood count on two sides (two of the files are named).
    """
    path = Path(path)
    rows = [_parse_row(path, line, cells) for line, cells in _csv_lines(path)]
    if not rows:
        raise UserError(
            f"{path}: the split is empty", expected="a row for each image", found="none", remedy="make it again"
        )
    _check_rows(rows, str(path))
    return rows


def rows_digest(rows: Sequence[SplitRow]) -> str:
    """Hash all that a split says, in order; a file that is written and read again keeps its digest."""
    return hashlib.sha256(json.dumps([astuple(row) for row in rows]).encode()).hexdigest()


def check_groups(records: Sequence[SmearRecord], digests: Sequence[str], rows: Sequence[SplitRow], what: str) -> None:
    """Compute the groups anew from the files, whatever the split says they are, and refuse one that was parted.

    Args:
        records: the images found now; those that the split does not list by name and content are passed over.
        digests: their ``content_digests``.
        rows: the recorded split.
        what: what an error calls the split.

    Raises:
        UserError: a group stands on two of train, val and test (two of its files are named).
        ValueError: ``records`` and ``digests`` differ in length.
    """
    recorded = {(row.image, row.content): row for row in rows}
    found = [pair for pair in zip(records, digests, strict=True) if (pair[0].name, pair[1]) in recorded]
    groups = group_ids([record for record, _ in found], [digest for _, digest in found])
    first_of: dict[str, SplitRow] = {}
    for (record, digest), group in zip(found, groups, strict=True):
        row = recorded[record.name, digest]
        if row.split != EXCLUDED and first_of.setdefault(group, row).split != row.split:
            raise _leak(what, f"group {group!r} (by parent, pixels and blood count)", first_of[group], row)


def place(records: Sequence[SmearRecord], digests: Sequence[str], rows: Sequence[SplitRow]) -> list[Placement]:
    """Say where each image of a data root that was read later stands by a recorded split.

    Where name and content are as recorded, the record holds. Every other image is joined to the recorded groups by
    parent, content and blood count, and takes the side of the group that it belongs to: train before val before test
    where there are several. An equal parent joins nothing where both have blood counts and these differ: then two data
    sets only number their smears alike. Of a content that the split knows, no more files are judged than it kept, the
    first by name; the others are excluded, as are all of a content that it left out. What joins nothing is for testing.

    Args:
        records: the images found now.
        digests: their ``content_digests``.
        rows: the recorded split.

    Returns:
        One placement a record, in order.

    Raises:
        UserError: a blood-count report cannot be read.
        ValueError: ``records`` and ``digests`` differ in length.
    """
    pairs = list(zip(records, digests, strict=True))
    recorded = {(row.image, row.content): row for row in rows}
    surplus = _surplus(pairs, rows)
    joined = _joined(pairs, rows)
    placements = []
    for (record, digest), place_of_set in zip(pairs, joined, strict=True):
        row = recorded.get((record.name, digest))
        if row:
            placements.append(Placement(row.split, row.group))
        else:
            placements.append(place_of_set._replace(side=EXCLUDED) if record.name in surplus else place_of_set)
    return placements


def assign(records: Sequence[SmearRecord], digests: Sequence[str], rows: Sequence[SplitRow]) -> list[str]:
    """Say on which side of a recorded split each image stands: the sides that ``place`` finds, with its errors."""
    return [placement.side for placement in place(records, digests, rows)]


# --- placing ----------------------------------------------------------------------------------------------------------


def _surplus(pairs: Sequence[tuple[SmearRecord, str]], rows: Sequence[SplitRow]) -> set[str]:
    """Name the files not recorded whose content is, beyond as many as the split kept of it."""
    recorded = {(row.image, row.content): row for row in rows}
    spare = Counter({row.content: 0 for row in rows})
    spare.update(row.content for row in rows if row.split != EXCLUDED)
    surplus = set()
    present = [recorded[record.name, digest] for record, digest in pairs if (record.name, digest) in recorded]
    spare.subtract(row.content for row in present if row.split != EXCLUDED)
    for record, digest in sorted(pairs, key=lambda pair: pair[0].name):
        if (record.name, digest) not in recorded and digest in spare:
            if spare[digest] < 1:
                surplus.add(record.name)
            spare[digest] -= 1
    return surplus


def _joined(pairs: Sequence[tuple[SmearRecord, str]], rows: Sequence[SplitRow]) -> list[Placement]:
    """Place each image by what it is joined to."""
    reports: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        reports[row.parent or row.image] |= {row.cbc} - {""}
    keys = [_found_keys(record, digest, reports) for record, digest in pairs]
    sets = _Sets([*map(_row_keys, rows), *keys])
    placements: dict[Hashable, Placement] = {}
    order = (*SIDES, EXCLUDED)
    for row in sorted(rows, key=lambda row: (order.index(row.split), row.image)):
        # A set of excluded files only was never learned from.
        side = "test" if row.split == EXCLUDED else row.split
        placements.setdefault(sets.leader(_row_keys(row)[0]), Placement(side, row.group))
    taken = {row.group for row in rows}
    for (record, _), (key, *_) in sorted(zip(pairs, keys, strict=True), key=lambda item: item[0][0].name):
        name = _parent(record)
        placements.setdefault(sets.leader(key), Placement("test", f"{name} (new)" if name in taken else name))
    return [placements[sets.leader(key)] for key, *_ in keys]


def _row_keys(row: SplitRow) -> list[Hashable]:
    """List what joins a recorded image to others."""
    keys: list[Hashable] = [("group", row.group), ("parent", row.parent or row.image), ("content", row.content)]
    return [*keys, ("report", row.cbc)] if row.cbc else keys


def _found_keys(record: SmearRecord, digest: str, reports: Mapping[str, set[str]]) -> list[Hashable]:
    """List what joins an image found now to others; ``reports`` has the recorded blood counts by parent."""
    parent, report = _parent(record), _blood_count(record)
    keys: list[Hashable] = [("found parent", parent), ("content", digest)]
    known = reports.get(parent)
    if not (report and known) or report in known:
        keys.append(("parent", parent))
    return [*keys, ("report", report)] if report else keys


# --- groups -----------------------------------------------------------------------------------------------------------


def _parent(record: SmearRecord) -> str:
    """Name what a record was cut from: itself where nothing else is known."""
    return record.parent or record.name


def _joining_keys(record: SmearRecord, digest: str) -> list[Hashable]:
    """List what joins a record to others."""
    keys: list[Hashable] = [("parent", _parent(record)), ("content", digest)]
    report = _blood_count(record)
    return [*keys, ("report", report)] if report else keys


def _blood_count(record: SmearRecord) -> str:
    """Hash a record's blood count; empty where it has none."""
    return _report_digest(record.cbc) if record.cbc else ""


def _report_digest(path: Path) -> str:
    """Hash a blood count's text without regard to case and spacing; one without any figure gives an empty digest."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        remedy = "restore the report, or remove it"
        found = error.strerror or str(error)
        raise UserError(f"{path}: cannot be read", expected="a text", found=found, remedy=remedy) from error
    normal = " ".join(text.casefold().split())
    return hashlib.sha256(normal.encode()).hexdigest() if _FIGURE.search(normal) else ""


class _Sets:
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


# --- dealing ----------------------------------------------------------------------------------------------------------


def _check_fractions(fractions: Sequence[float]) -> None:
    """Refuse what are no three shares of a whole."""
    valid = len(fractions) == len(SIDES) and all(math.isfinite(share) and share >= 0 for share in fractions)
    if not valid or not math.isclose(sum(fractions), 1, abs_tol=1e-6) or fractions[0] == 0:
        raise UserError(
            "the fractions of the split cannot be used",
            expected="three shares for train, val and test that add up to 1, with some for train",
            found=str(tuple(fractions)),
            remedy="for example 0.7 0.15 0.15",
        )


def _deal(groups: Sequence[str], labels: Sequence[int | None], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Give every group a side."""
    names = sorted(set(groups))
    classes = sorted(set(labels), key=lambda label: -1 if label is None else label)
    counts = np.zeros((len(names), len(classes)))
    position = {name: index for index, name in enumerate(names)}
    for group, label in zip(groups, labels, strict=True):
        counts[position[group], classes.index(label)] += 1
    known = np.array([label is not None for label in classes], dtype=bool)
    open_sides = [side for side, share in enumerate(fractions) if share > 0]
    _check_enough_groups(counts, classes, len(open_sides))
    targets = np.array([fractions[side] for side in open_sides])[:, None] * counts.sum(axis=0)
    generator = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        deal = _deal_once(counts, targets, known, generator)
        if not deal.missing():
            return {name: SIDES[open_sides[side]] for name, side in zip(names, deal.sides, strict=True)}
    raise UserError(
        "no split gives each side a group of each class",
        expected=f"for each class, groups on {len(open_sides)} sides",
        found=f"{len(names)} groups, none of the {_ATTEMPTS} ways tried fits",
        remedy="add smears, or do without a test side (--test_fraction 0)",
    )


def _check_enough_groups(counts: npt.NDArray[np.float64], classes: Sequence[int | None], sides: int) -> None:
    """Refuse a class that cannot stand on every side."""
    for label, groups in zip(classes, (counts > 0).sum(axis=0), strict=True):
        if label is not None and groups < sides:
            raise UserError(
                f"too few groups of {CLASS_NAMES[label]} to split",
                expected=f"at least {sides}, one on each side",
                found=f"{groups} (tiles of one image, equal images and smears with an equal blood count are one group)",
                remedy="add smears of other patients, or do without a test side (--test_fraction 0)",
            )


def _deal_once(
    counts: npt.NDArray[np.float64],
    targets: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    generator: np.random.Generator,
) -> _Deal:
    """Deal the groups in order of size, then improve by moving one at a time."""
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    deal = _Deal(counts, targets, known)
    for group in order:
        distances = [score.distance for score in deal.scores(group)]
        deal.place(group, distances.index(min(distances)))
    while sum(_improve(deal, group) for group in order):
        pass  # a whole round, until none moved
    return deal


def _improve(deal: _Deal, group: int) -> bool:
    """Move a group to its best side, if that is better: first fewer missing classes, then nearer shares."""
    before = deal.lift(group)
    scores = deal.scores(group)
    best = min(range(len(scores)), key=scores.__getitem__)
    fewer = scores[best].missing < scores[before].missing
    # The margin keeps rounding errors from moving a group to and fro for ever.
    nearer = scores[best].missing == scores[before].missing and scores[best].distance < scores[before].distance - 1e-9
    deal.place(group, best if fewer or nearer else before)
    return fewer or nearer


class _Score(NamedTuple):
    """How good a deal is, the smaller the better; the first field counts before the second."""

    missing: int
    distance: float


class _Deal:
    """Groups on sides, with the sums that tell how good the deal is.

    Args:
        counts: images by group and class, shape (groups, classes).
        targets: images wanted by side and class, shape (sides, classes), all above 0.
        known: which classes must stand on every side, shape (classes,).
    """

    def __init__(
        self, counts: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]
    ) -> None:
        self.counts, self.targets, self.known = counts, targets, known
        self.sides = np.full(len(counts), -1, dtype=np.intp)
        self.images = np.zeros_like(targets)
        self.groups = np.zeros_like(targets)

    def place(self, group: int, side: int) -> None:
        """Put a group that lies nowhere on a side."""
        self.sides[group] = side
        self.images[side] += self.counts[group]
        self.groups[side] += self.counts[group] > 0

    def lift(self, group: int) -> int:
        """Take a group off its side and give that side."""
        side = int(self.sides[group])
        self.images[side] -= self.counts[group]
        self.groups[side] -= self.counts[group] > 0
        self.sides[group] = -1
        return side

    def missing(self) -> int:
        """Count the known classes that a side lacks, over all sides."""
        return int((self.groups[:, self.known] == 0).sum())

    def scores(self, group: int) -> list[_Score]:
        """Score the deal with a lifted group on each side in turn; distance is chi-square from the wanted numbers."""
        scores = []
        for side in range(len(self.targets)):
            self.place(group, side)
            distance = float((np.square(self.images - self.targets) / self.targets).sum())
            scores.append(_Score(self.missing(), distance))
            self.lift(group)
        return scores


# --- split file -------------------------------------------------------------------------------------------------------


def _columns() -> list[str]:
    """Name the columns of the split file."""
    return [field.name for field in fields(SplitRow)]


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) below a checked header."""
    expected = f"a CSV file with the columns {','.join(_columns())}"
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            if header != _columns():
                raise _header_error(path, header, expected)
            for cells in reader:
                yield reader.line_num, cells
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read", expected=expected, found=str(error), remedy="make the split again"
        ) from error


def _header_error(path: Path, header: Sequence[str], expected: str) -> UserError:
    """Tell a split file of before parent, blood count and mask were recorded from what is none."""
    older = len(header) >= _FIRST_COLUMNS and list(header) == _columns()[: len(header)]
    missing = ", ".join(_columns()[len(header) :])
    what = f"{path}: an older split file, without {missing}" if older else f"{path}: no split file"
    remedy = "draw it again (3TDCFNet_data.py split)"
    return UserError(what, expected=expected, found=",".join(header) or "nothing", remedy=remedy)


def _cells(row: SplitRow) -> list[str]:
    """Write a row's fields as the file holds them."""
    return ["" if cell is None else str(int(cell)) if isinstance(cell, bool) else str(cell) for cell in astuple(row)]


def _parse_row(path: Path, line: int, cells: Sequence[str]) -> SplitRow:
    """Check the cells of one line."""
    labels: dict[str, int | None] = {"": None, **{str(label): label for label in range(len(CLASS_NAMES))}}
    complete = len(cells) == len(_columns()) and all(cells[:1]) and all(cells[2:5])
    if not complete or cells[1] not in labels or cells[4] not in (*SIDES, EXCLUDED) or cells[8] not in ("0", "1"):
        raise UserError(
            f"{path}, line {line}: not a row of a split",
            expected=f"{','.join(_columns())}; label 0, 1 or none; split {', '.join(SIDES)} or {EXCLUDED}; mask 0 or 1",
            found=",".join(cells),
            remedy="correct the line, or make the split again",
        )
    image, label, group, content, split, reason, parent, cbc, mask = cells
    return SplitRow(image, labels[label], group, content, split, reason, parent, cbc, mask == "1")


def _check_rows(rows: Sequence[SplitRow], what: str) -> None:
    """Refuse an image listed twice, and a group, content, parent or blood count on two sides."""
    seen: set[str] = set()
    side_of: dict[tuple[str, str], SplitRow] = {}
    for row in rows:
        if row.image in seen:
            found, remedy = repr(row.image), "list each image once"
            raise UserError(f"{what}: an image is listed twice", expected="one row", found=found, remedy=remedy)
        seen.add(row.image)
        bonds = {"group": row.group, "content": row.content, "parent": row.parent, "blood count": row.cbc}
        for kind, value in bonds.items() if row.split != EXCLUDED else ():
            if value and side_of.setdefault((kind, value), row).split != row.split:
                raise _leak(what, f"{kind} {value!r}", side_of[kind, value], row)


def _leak(what: str, bond: str, one: SplitRow, other: SplitRow) -> UserError:
    """Name two files that belong together and stand on two sides."""
    return UserError(
        f"{what}: the split leaks: one {bond} stands on two sides",
        expected="all that belongs together on one side",
        found=f"{one.image!r} in {one.split}, {other.image!r} in {other.split}",
        remedy="draw the split again, or move one of them",
    )
