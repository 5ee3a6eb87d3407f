"""A data root opened for a run: its smears, their content, and which side of the split each stands on."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.augment import Augmentation
from data.images import otsu_mask, read_mask, read_rgb
from data.loader import BatchLoader, DecodedSmears, decode
from data.readers import read_dataroot
from data.records import CLASS_NAMES, SmearRecord
from data.splits import SIDES, SplitRow, assign, content_digests, group_ids, make_split, read_split
from data.synthetic_writer import NOTICE, TREE, read_severities, write_dataset
from util.errors import UserError

SYNTHETIC = "synthetic"
SYNTHETIC_FOLDER = Path("datasets")


@dataclass(frozen=True)
class Dataset:
    """What a data root holds.

    Attributes:
        root: as given, or where the embedded data set was written.
        records: its smears, sorted by name.
        digests: hash of the decoded pixels of each.
        synthetic: everything here was made by the synthesiser.
    """

    root: Path
    records: list[SmearRecord]
    digests: list[str]
    synthetic: bool


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


def is_synthetic(root: Path) -> bool:
    """Whether the synthesiser's notice lies in a data root, at the top or inside its one tree."""
    return any((folder / NOTICE).is_file() for folder in (root, root / TREE))


def open_dataset(dataroot: str, *, synthetic_count: int = 240, seed: int = 0, workers: int | None = None) -> Dataset:
    """Read a data root, or the embedded data set where ``dataroot`` is the word ``synthetic``.

    Raises:
        UserError: it is missing, empty, of no known layout, or holds a file that cannot be read.
    """
    root = embedded_root(synthetic_count, seed) if dataroot == SYNTHETIC else Path(dataroot)
    records, synthetic = read_dataroot(root), is_synthetic(root)
    if synthetic:
        grades = read_severities(root)
        records = [replace(record, severity=grades.get(_within_tree(record.name))) for record in records]
    return Dataset(root, records, content_digests(records, workers), synthetic)


def _within_tree(name: str) -> str:
    """A record's name relative to the AneRBC-I folder, whether the root was that folder or the one around it."""
    return name.removeprefix(f"{TREE}/")


def split_for_training(
    dataset: Dataset,
    *,
    split_file: Path | None,
    fractions: tuple[float, float, float],
    seed: int,
    drop_duplicates: bool,
) -> list[SplitRow]:
    """The split of a run: from a file, or drawn by group and stratified.

    Raises:
        UserError: the file is no split of this data root, or there are too few groups to draw one.
    """
    if split_file is None:
        return make_split(
            dataset.records, dataset.digests, fractions=fractions, seed=seed, drop_duplicates=drop_duplicates
        )
    rows = read_split(split_file)
    listed = {row.image: row.content for row in rows}
    changed = [r.name for r, d in zip(dataset.records, dataset.digests, strict=True) if listed.get(r.name) != d]
    if changed:
        raise UserError(
            f"{split_file} is not the split of {dataset.root}",
            expected="every image listed, with the content that it has",
            found=f"{len(changed)} images not listed or changed, first {changed[0]}",
            remedy="use the data it was made from, or leave --split_file out to draw a new split",
        )
    return rows


def sides(dataset: Dataset, rows: Sequence[SplitRow]) -> dict[str, Side]:
    """Divide a data root by a recorded split; images that the split does not know are test images.

    Returns:
        train, val and test; what the split excludes is on none of them.
    """
    recorded = {row.image: row.group for row in rows}
    drawn = group_ids(dataset.records, dataset.digests)
    placed = assign(dataset.records, dataset.digests, rows)
    result = {side: Side([], []) for side in SIDES}
    for record, group, side in zip(dataset.records, drawn, placed, strict=True):
        if side in result:
            result[side].records.append(record)
            result[side].groups.append(recorded.get(record.name, group))
    return result


def class_counts(side: Side) -> str:
    """For the console: "412 images in 300 groups (244 Healthy, 168 Anemic)"."""
    counts = Counter(r.label for r in side.records)
    words = [f"{counts[label]} {name}" for label, name in enumerate(CLASS_NAMES)]
    words += [f"{counts[None]} unknown"] if counts[None] else []
    return f"{len(side.records)} images in {len(set(side.groups))} groups ({', '.join(words)})"


def exclusion_summary(rows: Sequence[SplitRow]) -> dict[str, int]:
    """How many files the split leaves out, by kind of reason."""
    kinds = Counter(
        "duplicate" if row.reason.startswith("duplicate") else row.reason for row in rows if row.split not in SIDES
    )
    return dict(kinds)


def describe_split(dataset: Dataset, rows: Sequence[SplitRow]) -> dict[str, Any]:
    """What a checkpoint and the report say of the data: root, size, counts by side, what was left out."""
    parts = sides(dataset, rows)
    return {
        "dataroot": str(dataset.root),
        "synthetic": dataset.synthetic,
        "files": len(dataset.records),
        "excluded": exclusion_summary(rows),
        "sides": {name: class_counts(side) for name, side in parts.items()},
    }


@dataclass(frozen=True)
class TrainingData:
    """What a training run learns from and is checked on.

    Attributes:
        smears: decoded images of train and val; the test images are not even read.
        train: augmented, shuffled batches at fineSize.
        val: whole images at loadSize.
        rows: the split.
        facts: plain description for checkpoints and reports.
    """

    smears: DecodedSmears
    train: BatchLoader
    val: BatchLoader
    rows: list[SplitRow]
    facts: dict[str, Any]

    @property
    def any_masks(self) -> bool:
        """Whether some image has a true mask."""
        return bool(self.smears.has_mask.any())

    @property
    def all_masks(self) -> bool:
        """Whether every image has one."""
        return bool(self.smears.has_mask.all())


def load_training_data(options: Any, device: torch.device, split_path: Path) -> TrainingData:
    """Read, split and decode what the options of a training run name.

    Args:
        options: the training command's options.
        device: where the batches are made.
        split_path: the run's split.csv; read when the run is continued, else not yet written.

    Raises:
        UserError: the data cannot be read or split, or a side lacks images.
    """
    dataset = open_options_dataset(options)
    recorded = split_path if options.continue_train else Path(options.split_file) if options.split_file else None
    held_out = options.val_fraction + options.test_fraction
    rows = split_for_training(
        dataset,
        split_file=recorded,
        fractions=(1 - held_out, options.val_fraction, options.test_fraction),
        seed=options.seed,
        drop_duplicates=options.duplicates == "drop",
    )
    facts = describe_split(dataset, rows)
    print_data(facts)
    parts = sides(dataset, rows)
    learned = parts["train"].records + parts["val"].records
    smears = decode(learned, options.loadSize, workers=options.num_workers or None)
    count = len(parts["train"].records)
    common = {"batch_size": options.batchSize, "device": device, "seed": options.seed}
    augment = None if options.no_augment else Augmentation()
    train = BatchLoader(smears, range(count), crop_size=options.fineSize, augment=augment, shuffle=True, **common)
    val = BatchLoader(
        smears, range(count, len(learned)), crop_size=options.loadSize, augment=None, shuffle=False, **common
    )
    return TrainingData(smears, train, val, rows, facts)


def open_options_dataset(options: Any) -> Dataset:
    """``open_dataset`` from a command's options."""
    return open_dataset(
        options.dataroot,
        synthetic_count=options.synthetic_count,
        seed=options.seed,
        workers=options.num_workers or None,
    )


def print_data(facts: dict[str, Any]) -> None:
    """Tell the console what the data is, and what was left out and why."""
    print(f"data: {facts['files']} images in {facts['dataroot']}" + (" (SYNTHETIC)" if facts["synthetic"] else ""))
    for reason, count in facts["excluded"].items():
        print(f"  left out: {count} ({reason})")
    for side, words in facts["sides"].items():
        print(f"  {side:5s}: {words}")
    sys.stdout.flush()


@dataclass(frozen=True)
class TestData:
    """What a test judges.

    Attributes:
        sides: the images of train, val and test.
        masks_from: "decoder", or "otsu" where the network draws no masks: then the given mask is always Otsu's.
        facts: plain description for the report.
        load_size: side of the decoded images, pixels.
        batch_size: images in a batch.
        workers: decoding threads, None for one a core.
    """

    sides: dict[str, Side]
    masks_from: str
    facts: dict[str, Any]
    load_size: int
    batch_size: int
    workers: int | None

    def batches(self, side: str, device: torch.device) -> BatchLoader | None:
        """Whole images of a side at loadSize, or None where it has none."""
        records = self.sides[side].records
        if not records:
            return None
        if self.masks_from == "otsu":
            records = [replace(record, mask=None) for record in records]
        smears = decode(records, self.load_size, workers=self.workers)
        return BatchLoader(
            smears,
            range(len(records)),
            self.batch_size,
            self.load_size,
            device=device,
            augment=None,
            shuffle=False,
            seed=0,
        )

    def pixels(self, side: str, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """An image as its files hold it: RGB, true mask or None, Otsu's mask or None unless it stands in."""
        record = self.sides[side].records[index]
        rgb = read_rgb(record.image)
        true = read_mask(record.mask, dark=record.mask_dark) if record.mask else None
        return rgb, true, otsu_mask(rgb) if self.masks_from == "otsu" else None


def load_test_data(options: Any, split_path: Path, *, masks_from: str) -> TestData:
    """Open what the options of a test name and divide it by the run's split.

    Args:
        options: the test command's options.
        split_path: the run's split.csv.
        masks_from: "decoder" or "otsu".

    Raises:
        UserError: the data or the split cannot be read, or no image is left to test.
    """
    dataset = open_options_dataset(options)
    rows = read_split(split_path)
    facts = describe_split(dataset, rows)
    print_data(facts)
    parts = sides(dataset, rows)
    if not any(parts[side].records for side in options.splits):
        raise UserError(
            f"{dataset.root} holds no image of the splits {', '.join(options.splits)}",
            found="; ".join(f"{side}: {len(part.records)}" for side, part in parts.items()),
            remedy="choose other --splits, or another --dataroot",
        )
    return TestData(parts, masks_from, facts, options.loadSize, options.batchSize, options.num_workers or None)
