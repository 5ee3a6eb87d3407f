"""A data root opened for a run: its smears, their content, and which side of the split each stands on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.cache import CACHE_GB, DecodedDataset, Fingerprint, open_decoded
from data.contents import describe_contents
from data.groups import DUPLICATE_OF
from data.images import read_smear
from data.leaks import accepted
from data.near_duplicates import (
    FINGERPRINT_BYTES,
    FINGERPRINT_VERSION,
    NearPair,
    find_near_duplicates,
    fingerprint,
)
from data.notice import SYNTHETIC, is_synthetic, with_truth
from data.overlaps import confirmed
from data.readers import read_dataroot
from data.records import CLASS_NAMES, SmearRecord
from data.severity import CHRONIC_BELOW, NORMAL_FROM, SeverityReport, with_severities
from data.splits import ACCEPTED, SIDES, SplitRow, place, rows_digest
from data.synthetic_writer import NOTICE, TREE, write_dataset
from util.errors import visible
from util.figures import counted

SYNTHETIC_FOLDER = Path("datasets")
_SOON_COMPARED = 2000  # images up to which a search for near duplicates needs no bar
_LEAKS_NAMED = 5
NOT_JUDGED = "not in the split, and equal to another image or left out by it"


@dataclass(frozen=True)
class Decoding:
    """How the images of a run are kept decoded.

    Attributes:
        load_size: side of the decoded images, pixels.
        cache_dir: folder of the cache, or None to decode into memory at every start.
        cache_gb: size of that folder, GB, above which what was not used for longest goes.
        true_masks: False hides the true masks, so that Otsu's stand in for all.
    """

    load_size: int
    cache_dir: Path | None = None
    cache_gb: float = CACHE_GB
    true_masks: bool = True

    def open(self, records: Sequence[SmearRecord], workers: int | None) -> DecodedDataset:
        """Decode smears, or find them decoded.

        Raises:
            UserError: as ``data.cache.open_decoded``.
        """
        shown = records if self.true_masks else [replace(record, mask=None) for record in records]
        kept = Fingerprint(fingerprint, FINGERPRINT_BYTES, FINGERPRINT_VERSION)
        return open_decoded(
            shown,
            self.load_size,
            cache_dir=self.cache_dir,
            cache_gb=self.cache_gb,
            fingerprint=kept,
            workers=workers,
        )


@dataclass(frozen=True)
class Grading:
    """Where the severity of a smear comes from: one source in a run, see ``data.severity.with_severities``.

    Attributes:
        source: "auto", "none", "labels" or "haemoglobin".
        chronic_below: haemoglobin below which an anemia is Chronic (severe), g/dL.
        normal_from: haemoglobin from which there is none, g/dL.
    """

    source: str = "auto"
    chronic_below: float = CHRONIC_BELOW
    normal_from: float = NORMAL_FROM["female"]


@dataclass(frozen=True)
class Dataset:
    """What a data root holds.

    Attributes:
        root: as given, or where the embedded data set was written.
        records: its smears, sorted by name.
        digests: hash of the decoded pixels of each.
        synthetic: everything here was made by the synthesiser.
        fingerprints: of each image, uint8 (N, FINGERPRINT_BYTES), or None where near duplicates are not looked for.
        severities: where the grades are from, and how many there are.
        decoded: the images and masks at one size, in the order of ``records``, or None where nobody asked for them.
    """

    root: Path
    records: list[SmearRecord]
    digests: list[str]
    synthetic: bool
    fingerprints: npt.NDArray[np.uint8] | None = None
    severities: SeverityReport | None = None
    decoded: DecodedDataset | None = None

    @cached_property
    def near(self) -> list[NearPair]:
        """Pairs of its images that show the same cells, by fingerprint and, where that is weak, by pixels."""
        if self.fingerprints is None:
            return []
        many = len(self.records) > _SOON_COMPARED
        pairs = find_near_duplicates(self.fingerprints, progress=many)
        return confirmed(
            pairs, self.fingerprints, lambda index: read_smear(self.records[index]), progress=many and bool(pairs)
        )


@dataclass(frozen=True)
class Side:
    """The images of one side of a split.

    Attributes:
        records: sorted by name.
        groups: the group of each.
    """

    records: list[SmearRecord]
    groups: list[str]


def embedded_root(count: int, seed: int) -> Path:
    """Write the embedded data set of synthetic smears unless it is there, and say where."""
    root = SYNTHETIC_FOLDER / f"synthetic-{count}-seed{seed}"
    if not (root / TREE / NOTICE).is_file():
        print(f"synthesising {count} smears into {root}", file=sys.stderr)
        write_dataset(root, count=count, seed=seed)
    return root


def open_dataset(
    dataroot: str,
    *,
    image_root: Path | None = None,
    synthetic_count: int = 240,
    seed: int = 0,
    workers: int | None = None,
    grading: Grading | None = None,
    decoding: Decoding | None = None,
) -> Dataset:
    """Read a data root, or the embedded data set where ``dataroot`` is the word ``synthetic``.

    Args:
        dataroot: the folder, the manifest, or the word.
        image_root: folder to which the paths in a manifest are relative, by default its own.
        synthetic_count: images of the embedded data set.
        seed: its series.
        workers: threads that read images, by default one a core.
        grading: where the severities come from, by default the data's own words.
        decoding: at what size and where the images are kept decoded; None reads them once and keeps no pixels.

    Raises:
        UserError: it is missing, empty, of no known layout, or holds a file that cannot be read; the severities are not
            where they are said to be; the cache cannot be written.
    """
    root = embedded_root(synthetic_count, seed) if dataroot == SYNTHETIC else Path(dataroot)
    records = read_dataroot(root, image_root=image_root)
    synthetic = is_synthetic(records)
    if synthetic:
        records = with_truth(records)
    chosen = grading or Grading()
    records, severities = with_severities(
        records, chosen.source, chronic_below=chosen.chronic_below, normal_from=chosen.normal_from
    )
    if decoding is None:
        digests, fingerprints = describe_contents(records, workers)
        return Dataset(root, records, digests, synthetic, fingerprints, severities)
    decoded = decoding.open(records, workers)
    return Dataset(root, records, decoded.digests, synthetic, decoded.fingerprints, severities, decoded)


def sides(dataset: Dataset, rows: Sequence[SplitRow]) -> dict[str, Side]:
    """Divide a data root by a recorded split, as ``data.splits.place`` does.

    Returns:
        train, val and test; images joined to a recorded group bear its name; what the split excludes is on none.
    """
    result = {side: Side([], []) for side in SIDES}
    placements = place(dataset.records, dataset.digests, rows)
    for record, placement in zip(dataset.records, placements, strict=True):
        if placement.side in result:
            result[placement.side].records.append(record)
            result[placement.side].groups.append(placement.group)
    return result


def class_counts(side: Side) -> str:
    """For the console: "412 images in 300 groups (244 Healthy, 168 Anemic)"."""
    words = labels_found(side).removesuffix(", 0 unknown")
    return f"{counted(len(side.records), 'images')} in {counted(len(set(side.groups)), 'groups')} ({words})"


def labels_found(side: Side) -> str:
    """For the console: "244 Healthy, 168 Anemic, 0 unknown"."""
    counts = Counter(record.label for record in side.records)
    words = [f"{counts[label]} {name}" for label, name in enumerate(CLASS_NAMES)]
    return ", ".join([*words, f"{counts[None]} unknown"])


def exclusion_summary(rows: Sequence[SplitRow]) -> dict[str, int]:
    """How many files the split leaves out, by kind of reason."""
    kinds = Counter(
        "duplicate" if row.reason.startswith(DUPLICATE_OF) else row.reason for row in rows if row.split not in SIDES
    )
    return dict(kinds)


@dataclass(frozen=True)
class LeaksFound:
    """What a test found out about leaks.

    Attributes:
        words: each leak, in words.
        searched: whether the images to be tested were compared with those that the run has learned from.
    """

    words: list[str]
    searched: bool


def describe_split(dataset: Dataset, rows: Sequence[SplitRow], found: LeaksFound | None = None) -> dict[str, Any]:
    """What a checkpoint and the report say of the data: root, size, counts by side, what was left out, leaks, digest.

    Args:
        dataset: the images.
        rows: the split.
        found: leaks that a test found and goes on with; those that the rows own up to are named in any case.
    """
    parts = sides(dataset, rows)
    placed = sum(len(part.records) for part in parts.values())
    listed = {row.image for row in rows if row.split not in SIDES} & {record.name for record in dataset.records}
    left_out = exclusion_summary(rows)
    if len(dataset.records) > placed + len(listed):
        left_out[NOT_JUDGED] = len(dataset.records) - placed - len(listed)
    owned = [f"{row.image!r} in {row.split}: {row.reason.removeprefix(ACCEPTED)}" for row in rows if accepted(row)]
    searched = dataset.fingerprints is not None if found is None else found.searched
    words = [*owned, *(found.words if found else [])]
    return {
        "dataroot": str(dataset.root),
        "synthetic": dataset.synthetic,
        "files": len(dataset.records),
        "excluded": left_out,
        "severity": dataset.severities.text if dataset.severities and dataset.severities.source != "none" else None,
        "sides": {name: class_counts(side) for name, side in parts.items()},
        "split_digest": rows_digest(rows),
        "leaks": {
            "count": len(words),
            "first": words[:_LEAKS_NAMED],
            "near_duplicates": "checked" if searched else "not checked",
        },
    }


def print_data(facts: dict[str, Any]) -> None:
    """Tell the console what the data is, and what was left out and why."""
    drawn = " (SYNTHETIC)" if facts["synthetic"] else ""
    print(f"data: {counted(facts['files'], 'images')} in {facts['dataroot']}{drawn}")
    for reason, count in facts["excluded"].items():
        print(f"  left out: {count} ({reason})")
    if facts["severity"]:
        print(f"  {facts['severity']}")
    for side, words in facts["sides"].items():
        print(f"  {side:5s}: {words}")
    leaks = facts["leaks"]
    for words in leaks["first"]:
        print(f"  LEAK: {visible(words)}")
    if leaks["count"] > len(leaks["first"]):
        print(f"  LEAK: and {leaks['count'] - len(leaks['first'])} more")
    if leaks["near_duplicates"] != "checked":
        print("  near duplicates of what the run has learned from: not checked")
    sys.stdout.flush()
