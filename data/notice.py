"""Whether smears are synthetic, and what their synthesiser says of them.

The mark is the synthesiser's notice in the folder of a smear or in one above it. So it holds for whatever leads to the
smears: the tree itself, a folder in it, tiles cut from it, or a manifest that lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data.groups import parent_name
from data.records import SmearRecord

SYNTHETIC = "synthetic"  # as a data root: the embedded data set
TRUTH = "truth.csv"


def notice_folders(records: Iterable[SmearRecord]) -> dict[Path, Path]:
    """Find the notices of smears.

    Returns:
        The folder that holds the notice, by folder of smears; folders of smears without one are left out.
    """
    from data.synthetic_writer import NOTICE  # the synthesiser takes longer to import than most callers to run

    holds: dict[Path, bool] = {}
    found = {}
    for folder in {record.image.parent: None for record in records}:
        for above in (folder, *folder.absolute().parents, *folder.resolve().parents):
            if above not in holds:
                holds[above] = (above / NOTICE).is_file()
            if holds[above]:
                found[folder] = above
                break
    return found


def is_synthetic(records: Iterable[SmearRecord]) -> bool:
    """Whether some of the smears are synthetic."""
    return bool(notice_folders(records))


def with_truth(records: Sequence[SmearRecord]) -> list[SmearRecord]:
    """Synthetic records with the grades of truth.csv; and with parents that no other series and no real smear has.

    They are named as AneRBC names its smears: without this, a real 001_a would be taken for the synthetic one, and the
    001_a of one seed for that of another, whom it has nothing in common with.

    Args:
        records: all smears; real ones stay as they are, and so does a grade that a record has already.

    Raises:
        UserError: the notice names no seed, or truth.csv is missing or has lost its columns.
    """
    from data.synthetic_writer import read_severities, series_of

    places = notice_folders(records)
    grades = {folder: read_severities(folder) for folder in set(places.values())}
    series = {folder: series_of(folder) for folder in grades}
    found = []
    for record in records:
        place = places.get(record.image.parent)
        if place is not None:
            grade = None if record.severity else grades[place].get(_within(record.image, place))
            record = replace(
                record,
                severity=grade or record.severity,
                severity_source=TRUTH if grade else record.severity_source,
                parent=f"{SYNTHETIC} {parent_name(record)} of {series[place]}",
            )
        found.append(record)
    return found


def _within(image: Path, place: Path) -> str:
    """An image's name in the truth.csv of the data set whose notice lies at ``place``, be that AneRBC-I or around it.

    Raises:
        ValueError: the image does not lie below ``place``, which is where its notice was found.
    """
    from data.synthetic_writer import TREE

    below = image.absolute() if image.absolute().is_relative_to(place) else image.parent.resolve() / image.name
    return below.relative_to(place).as_posix().removeprefix(f"{TREE}/")
