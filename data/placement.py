"""Where images that are read later stand by a recorded split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from data.groups import Sets, blood_counts, exclusions, parent_name
from data.records import SmearRecord
from data.split_file import EXCLUDED, SIDES, SplitRow


class Placement(NamedTuple):
    """Where an image stands by a recorded split.

    Attributes:
        side: "train", "val", "test" or "excluded".
        group: the recorded group that it belongs to, or a new one where it belongs to none.
    """

    side: str
    group: str


def place(records: Sequence[SmearRecord], digests: Sequence[str], rows: Sequence[SplitRow]) -> list[Placement]:
    """Say where each image of a data root that was read later stands by a recorded split.

    Where name and content are as recorded, the record holds. Every other image is joined to the recorded groups by
    patient, parent, content and blood count, and takes the side of the group that it belongs to: train before val
    before test where there are several. An equal parent joins nothing where both have blood counts and these differ:
    then two data sets only number their smears alike. Of a content that the split knows, no more files are judged than
    it kept, the first by name; the others are excluded, as are all of a content that it left out. Of equal images that
    it does not list the first alone is judged, and none where they stand in both classes. What joins nothing is for
    testing.

    Args:
        records: the images found now.
        digests: the hash of each one's pixels.
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
    fresh = [pair for pair in pairs if (pair[0].name, pair[1]) not in recorded]
    surplus |= exclusions([record for record, _ in fresh], [digest for _, digest in fresh]).keys()
    placements = []
    for (record, digest), place_of_set in zip(pairs, joined, strict=True):
        row = recorded.get((record.name, digest))
        if row:
            placements.append(Placement(row.split, row.group))
        else:
            placements.append(place_of_set._replace(side=EXCLUDED) if record.name in surplus else place_of_set)
    return placements


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
    counts = blood_counts([record for record, _ in pairs])
    keys = [_found_keys(*pair, count, reports) for pair, count in zip(pairs, counts, strict=True)]
    sets = Sets([*map(_row_keys, rows), *keys])
    placements: dict[Hashable, Placement] = {}
    order = (*SIDES, EXCLUDED)
    for row in sorted(rows, key=lambda row: (order.index(row.split), row.image)):
        # A set of excluded files only was never learned from.
        side = "test" if row.split == EXCLUDED else row.split
        placements.setdefault(sets.leader(_row_keys(row)[0]), Placement(side, row.group))
    taken = {row.group for row in rows}
    for (record, _), (key, *_) in sorted(zip(pairs, keys, strict=True), key=lambda item: item[0][0].name):
        name = parent_name(record)
        placements.setdefault(sets.leader(key), Placement("test", f"{name} (new)" if name in taken else name))
    return [placements[sets.leader(key)] for key, *_ in keys]


def _row_keys(row: SplitRow) -> list[Hashable]:
    """List what joins a recorded image to others."""
    keys: list[Hashable] = [("group", row.group), ("parent", row.parent or row.image), ("content", row.content)]
    keys += [("report", row.cbc)] if row.cbc else []
    return [*keys, ("patient", row.patient)] if row.patient else keys


def _found_keys(record: SmearRecord, digest: str, report: str, reports: Mapping[str, set[str]]) -> list[Hashable]:
    """List what joins an image found now to others; ``reports`` has the recorded blood counts by parent."""
    parent = parent_name(record)
    keys: list[Hashable] = [("found parent", parent), ("content", digest)]
    known = reports.get(parent)
    if not (report and known) or report in known:
        keys.append(("parent", parent))
    keys += [("report", report)] if report else []
    return [*keys, ("patient", record.patient)] if record.patient else keys
