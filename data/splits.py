"""Making splits that no leak crosses: by group, by fold, by block of numbers, or as the data set gives them.

What belongs together is in ``data.groups``, the dealing in ``data.dealing``, the file in ``data.split_file``, and where
images found later stand in ``data.placement``; their names are here too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from data.dealing import check_fractions, deal
from data.groups import DUPLICATE_OF, blood_count, blood_counts, exclusions, group_ids, parent_name
from data.leaks import Leak, check_groups, find_leaks
from data.near_duplicates import NearPair
from data.placement import Placement, place
from data.records import SmearRecord
from data.split_file import (
    ACCEPTED,
    EXCLUDED,
    SIDES,
    SplitRow,
    check_rows,
    read_split,
    rows_digest,
    write_split,
)
from util.errors import UserError

__all__ = [
    "ACCEPTED",
    "EXCLUDED",
    "SIDES",
    "Leak",
    "Placement",
    "SplitRow",
    "block_ids",
    "check_groups",
    "described",
    "exclusions",
    "find_leaks",
    "given_split",
    "group_ids",
    "make_split",
    "place",
    "read_split",
    "rows_digest",
    "write_split",
]

GIVEN = "given by the data"
ELSEWHERE = "group stands in another block"
_NUMBER = re.compile(r"[0-9]+")
# Where a group would be cut, the side that judges keeps its images: fewer train, none are judged after being seen.
STATED = "excluded by the data"
_STRICTEST = ("test", "val", "train")


def make_split(
    records: Sequence[SmearRecord],
    digests: Sequence[str],
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    drop_duplicates: bool = True,
    near: Sequence[NearPair] = (),
    split_by: str = "group",
    block_size: int = 50,
    folds: int = 0,
    fold: int = 0,
) -> list[SplitRow]:
    """Divide images into train, val and test, by whole groups and with the classes in balance.

    With ``folds`` the images are dealt into so many parts; part ``fold`` is the test side, and val is dealt from the
    rest. The parts depend on the seed only, so that over all folds each kept image is tested once.

    By blocks it is not groups that are dealt but blocks of consecutive numbers in the images' names, both classes
    together: pictures taken one after the other share their stain, lamp and focus, and no block is both learned from
    and judged. Images of a group that stands in blocks of several sides are kept on the test side, else on the val
    side, and left out of the others; over all folds such an image may be tested once or not at all.

    Args:
        records: the images.
        digests: the hash of each one's pixels.
        fractions: shares of the kept images for train, val and test; a share of 0 leaves that side empty. With folds
            only the val share counts.
        seed: the same seed gives the same split.
        drop_duplicates: whether the ``exclusions`` are left out; False keeps every file (equal files stay together).
        near: pairs of ``records`` that show the same cells, by position; they belong together.
        split_by: "group" or "blocks".
        block_size: numbers in a block.
        folds: how many folds, or 0 for one split with the fractions.
        fold: which of them is tested, from 1; 0 without folds.

    Returns:
        One row a record, in order.

    Raises:
        UserError: a class has fewer groups (or blocks) than there are sides, fractions or folds that are none, equal
            names, or by blocks an image without a number in its name.
    """
    check_fractions(fractions)
    _check_folds(fractions, folds, fold)
    groups = group_ids(records, digests, near)
    reasons = _stated(records) | (_exclusions_of_the_rest(records, digests) if drop_duplicates else {})
    units = _blocks(records, block_size) if split_by == "blocks" else groups
    kept = [index for index, record in enumerate(records) if record.name not in reasons]
    sides = _dealt([units[i] for i in kept], [records[i].label for i in kept], fractions, seed, folds, fold)
    side_of = {records[index].name: sides[units[index]] for index in kept}
    if split_by == "blocks":
        reasons |= _cut_groups({records[index].name: groups[index] for index in kept}, side_of)
    side_of |= dict.fromkeys(reasons, EXCLUDED)
    return _rows(records, groups, digests, side_of, reasons)


def given_split(
    records: Sequence[SmearRecord],
    digests: Sequence[str],
    *,
    drop_duplicates: bool = True,
    near: Sequence[NearPair] = (),
) -> list[SplitRow]:
    """The split that the data set itself gives, whether or not it leaks.

    Args:
        records: the images, each with a ``split``.
        digests: the hash of each one's pixels.
        drop_duplicates: whether of equal images on one side the first alone is kept, and those that stand in both
            classes are left out.
        near: pairs of ``records`` that show the same cells, by position.

    Returns:
        One row a record, in order.

    Raises:
        UserError: an image without a side or with an unknown one, or equal names.
    """
    _check_given(records)
    reasons = _stated(records)
    if drop_duplicates:
        pairs = list(zip(records, digests, strict=True))
        for side in SIDES:
            there = [pair for pair in pairs if pair[0].split == side]
            reasons |= exclusions([record for record, _ in there], [digest for _, digest in there])
        everywhere = _exclusions_of_the_rest(records, digests)
        reasons |= {name: reason for name, reason in everywhere.items() if not reason.startswith(DUPLICATE_OF)}
    side_of = {record.name: EXCLUDED if record.name in reasons else str(record.split) for record in records}
    kept = {record.name: GIVEN for record in records}
    return _rows(records, group_ids(records, digests, near), digests, side_of, kept | reasons, leaks=True)


def described(
    record: SmearRecord, group: str, digest: str, split: str, reason: str = "", report: str | None = None
) -> SplitRow:
    """Make the row of an image as its files are now; ``report`` is its ``blood_count`` where that is known already.

    Raises:
        UserError: its blood-count report cannot be read.
    """
    found = blood_count(record) if report is None else report
    masked = record.mask is not None
    parent = parent_name(record)
    return SplitRow(record.name, record.label, group, digest, split, reason, parent, found, masked, record.patient)


def block_ids(records: Sequence[SmearRecord], groups: Sequence[str], block_size: int) -> list[str]:
    """Name the block of each image, with groups whole: one that stands in several blocks counts to its commonest.

    Args:
        records: the images.
        groups: the group of each.
        block_size: numbers in a block.

    Raises:
        UserError: an image without a number in its name.
    """
    blocks = _blocks(records, block_size)
    counts: dict[str, Counter[str]] = {}
    for group, block in zip(groups, blocks, strict=True):
        counts.setdefault(group, Counter())[block] += 1
    return [counts[group].most_common(1)[0][0] for group in groups]


# --- parts ------------------------------------------------------------------------------------------------------------


def _rows(
    records: Sequence[SmearRecord],
    groups: Sequence[str],
    digests: Sequence[str],
    side_of: Mapping[str, str],
    reasons: Mapping[str, str],
    *,
    leaks: bool = False,
) -> list[SplitRow]:
    """The rows of all records, checked."""
    known = zip(records, groups, digests, blood_counts(records), strict=True)
    rows = [
        described(record, group, digest, side_of[record.name], reasons.get(record.name, ""), report)
        for record, group, digest, report in known
    ]
    check_rows(rows, "the split", leaks=leaks)
    return rows


def _dealt(
    units: Sequence[str], labels: Sequence[int | None], fractions: Sequence[float], seed: int, folds: int, fold: int
) -> dict[str, str]:
    """The side of each unit: by the fractions, or with one fold for the test and val from the rest."""
    if not folds:
        return {unit: SIDES[side] for unit, side in deal(units, labels, fractions, seed).items()}
    part_of = deal(units, labels, [1 / folds] * folds, seed)
    rest = [index for index, unit in enumerate(units) if part_of[unit] != fold - 1]
    val = min(1.0, fractions[1] * len(units) / max(1, len(rest)))
    sides = deal([units[index] for index in rest], [labels[index] for index in rest], (1 - val, val), seed)
    return {unit: SIDES[sides[unit]] if unit in sides else "test" for unit in part_of}


def _check_folds(fractions: Sequence[float], folds: int, fold: int) -> None:
    """Refuse folds that are none."""
    if folds == 0 and fold == 0:
        return
    if folds < 2 or not 1 <= fold <= folds:
        raise UserError(
            "the folds of the split cannot be used",
            expected="--folds 2 or more, and as --fold one of 1 to --folds",
            found=f"--folds {folds} --fold {fold}",
            remedy="for example --folds 5 --fold 1; leave both out for one split without folds",
        )
    if fractions[1] >= 1 - 1 / folds:
        raise UserError(
            "the folds leave nothing to train on",
            expected=f"--val_fraction below {1 - 1 / folds:.2f} with --folds {folds}",
            found=f"{fractions[1]}",
            remedy="lower --val_fraction, or take more folds",
        )


def _blocks(records: Sequence[SmearRecord], block_size: int) -> list[str]:
    """Name the block that each image stands in by the first number in its parent's name; numbers begin at 1."""
    if block_size < 1:
        raise UserError("--block_size", expected="1 or more", found=str(block_size), remedy="for example 50")
    blocks = []
    for record in records:
        number = _NUMBER.search(PurePosixPath(parent_name(record)).stem)
        if number is None:
            raise UserError(
                f"{record.name!r} stands in no block",
                expected="a number in the name of each image, such as 001_a.png, for a split by blocks",
                found=f"none in {PurePosixPath(parent_name(record)).stem!r}",
                remedy="split by group (--split_by group), or number the images in the order they were taken",
            )
        block = max(0, int(number[0]) - 1) // block_size
        blocks.append(f"{block * block_size + 1} to {(block + 1) * block_size}")
    return blocks


def _cut_groups(group_of: Mapping[str, str], side_of: Mapping[str, str]) -> dict[str, str]:
    """The reasons of images left out because others of their group stand on a stricter side."""
    strictest: dict[str, int] = {}
    for name, group in group_of.items():
        strictest[group] = min(strictest.get(group, len(SIDES)), _STRICTEST.index(side_of[name]))
    return {name: ELSEWHERE for name, group in group_of.items() if side_of[name] != _STRICTEST[strictest[group]]}


def _stated(records: Sequence[SmearRecord]) -> dict[str, str]:
    """The reasons of images that the data itself excludes, however the others are divided."""
    return {record.name: STATED for record in records if record.split == EXCLUDED}


def _exclusions_of_the_rest(records: Sequence[SmearRecord], digests: Sequence[str]) -> dict[str, str]:
    """The ``exclusions`` among the images that the data does not exclude itself."""
    rest = [pair for pair in zip(records, digests, strict=True) if pair[0].split != EXCLUDED]
    return exclusions([record for record, _ in rest], [digest for _, digest in rest])


def _check_given(records: Sequence[SmearRecord]) -> None:
    """Refuse data that gives some images a side and others none."""
    without = [record.name for record in records if record.split not in (*SIDES, EXCLUDED)]
    if without:
        raise UserError(
            "the data's own split cannot be used",
            expected=f"one of {', '.join(SIDES)} for every image",
            found=f"{len(without)} of {len(records)} images without, first {without[0]!r}",
            remedy="give the others a side too, or draw a split (--split_from draw)",
        )
