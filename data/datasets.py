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
from data.images import otsu_mask, read_smear, read_truth
from data.loader import BatchLoader, DecodedSmears, decode
from data.readers import read_dataroot
from data.records import CLASS_NAMES, SmearRecord
from data.splits import (
    SIDES,
    SplitRow,
    check_groups,
    content_digests,
    described,
    make_split,
    place,
    read_split,
    rows_digest,
)
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
    continued: bool = False,
) -> list[SplitRow]:
    """The split of a run: from a file, or drawn by group and stratified.

    A user's file says which image stands on which side; labels, masks and blood counts are taken from the data. The
    file of a run that is continued must also agree with the data in labels and in which images have masks.

    Args:
        dataset: the images.
        split_file: the file, or None to draw a split.
        fractions: shares of train, val and test of a split that is drawn.
        seed: of a split that is drawn.
        drop_duplicates: whether a split that is drawn leaves the ``exclusions`` out.
        continued: the file is the record of the run that goes on.

    Raises:
        UserError: the file is no split of this data root or parts what belongs together, or there are too few groups
            to draw one.
    """
    if split_file is None:
        return make_split(
            dataset.records, dataset.digests, fractions=fractions, seed=seed, drop_duplicates=drop_duplicates
        )
    rows = read_split(split_file)
    _check_same_images(dataset, rows, split_file, continued)
    if continued:
        _check_same_truth(dataset, rows, split_file)
    else:
        rows = _refreshed(dataset, rows)
    check_groups(dataset.records, dataset.digests, rows, str(split_file))
    return rows


def _check_same_images(dataset: Dataset, rows: Sequence[SplitRow], split_file: Path, continued: bool) -> None:
    """Refuse data that is not image by image what the split lists."""
    found = {record.name: digest for record, digest in zip(dataset.records, dataset.digests, strict=True)}
    listed = {row.image: row.content for row in rows}
    for names, problem in (
        ([name for name in listed if name not in found], "listed images are missing in the data"),
        ([name for name, digest in found.items() if listed.get(name) != digest], "images are not listed or changed"),
    ):
        if names:
            instead = "start a new run" if continued else "leave --split_file out to draw a new split"
            raise UserError(
                f"{split_file} is not the split of {dataset.root}",
                expected="the images listed, with the content recorded, and no others",
                found=f"{len(names)} {problem}, first {names[0]!r}",
                remedy=f"use the data it was made from, or {instead}",
            )


def _check_same_truth(dataset: Dataset, rows: Sequence[SplitRow], split_file: Path) -> None:
    """Refuse to continue on other labels, or with masks come or gone."""
    found = {record.name: record for record in dataset.records}
    for problem, names in {
        "label changed": [row.image for row in rows if row.label != found[row.image].label],
        "true mask came or went": [row.image for row in rows if row.mask != (found[row.image].mask is not None)],
    }.items():
        if names:
            raise UserError(
                f"{dataset.root} is not what the run was trained on ({split_file})",
                expected="the labels and masks recorded when it began",
                found=f"{problem}: {len(names)} images, first {names[0]!r}",
                remedy="restore the data, or start a new run",
            )


def _refreshed(dataset: Dataset, rows: Sequence[SplitRow]) -> list[SplitRow]:
    """The rows with label, parent, blood count and mask as the data has them now."""
    found = {record.name: record for record in dataset.records}
    return [described(found[row.image], row.group, row.content, row.split, row.reason) for row in rows]


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
    words = _labels_found(side).removesuffix(", 0 unknown")
    return f"{len(side.records)} images in {len(set(side.groups))} groups ({words})"


def _labels_found(side: Side) -> str:
    counts = Counter(record.label for record in side.records)
    words = [f"{counts[label]} {name}" for label, name in enumerate(CLASS_NAMES)]
    return ", ".join([*words, f"{counts[None]} unknown"])


def exclusion_summary(rows: Sequence[SplitRow]) -> dict[str, int]:
    """How many files the split leaves out, by kind of reason."""
    kinds = Counter(
        "duplicate" if row.reason.startswith("duplicate") else row.reason for row in rows if row.split not in SIDES
    )
    return dict(kinds)


def describe_split(dataset: Dataset, rows: Sequence[SplitRow]) -> dict[str, Any]:
    """What a checkpoint and the report say of the data: root, size, counts by side, what was left out, digest."""
    parts = sides(dataset, rows)
    return {
        "dataroot": str(dataset.root),
        "synthetic": dataset.synthetic,
        "files": len(dataset.records),
        "excluded": exclusion_summary(rows),
        "sides": {name: class_counts(side) for name, side in parts.items()},
        "split_digest": rows_digest(rows),
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
        UserError: the data cannot be read or split, the recorded split does not fit it, train or val is empty, or train
            lacks a class.
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
        continued=options.continue_train,
    )
    facts = describe_split(dataset, rows)
    print_data(facts)
    parts = sides(dataset, rows)
    _check_sides(parts)
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


def _check_sides(parts: dict[str, Side]) -> None:
    """Refuse an empty train or val side and a train side of one class; say so where val holds one class only."""
    for side in ("train", "val"):
        if not parts[side].records:
            raise UserError(
                f"the {side} side of the split is empty",
                expected="images to train on and images to validate on",
                found="; ".join(f"{name}: {len(part.records)}" for name, part in parts.items()),
                remedy="give a --val_fraction above 0 that leaves some to train on, or a --split_file with both sides",
            )
    classes = {side: {record.label for record in part.records} - {None} for side, part in parts.items()}
    if len(classes["train"]) < len(CLASS_NAMES):
        raise UserError(
            "the train side of the split lacks a class",
            expected=f"labelled images of both, {' and '.join(CLASS_NAMES)}",
            found=_labels_found(parts["train"]),
            remedy="add labelled smears of the other class, or use another --split_file",
        )
    if len(classes["val"]) < len(CLASS_NAMES):
        words = f"({_labels_found(parts['val'])})"
        print(f"warning: validation holds one class only: AUROC cannot be computed {words}", file=sys.stderr)


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
        masks_from: "decoder", or "otsu" where the network draws no masks: then Otsu's stands in for what it would draw.
        binary_sees: what the binary stream is given: "predicted", "gt", or "otsu" where it is always Otsu's mask.
        facts: plain description for the report.
        load_size: side of the decoded images, pixels.
        batch_size: images in a batch.
        workers: decoding threads, None for one a core.
    """

    sides: dict[str, Side]
    masks_from: str
    binary_sees: str
    facts: dict[str, Any]
    load_size: int
    batch_size: int
    workers: int | None

    def batches(self, side: str, device: torch.device) -> BatchLoader | None:
        """Whole images of a side at loadSize, or None where it has none; no true masks if Otsu's are to be seen."""
        records = self.sides[side].records
        if not records:
            return None
        if self.binary_sees == "otsu":
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
        rgb = read_smear(record)
        true = read_truth(record) if record.mask else None
        return rgb, true, otsu_mask(rgb) if self.masks_from == "otsu" else None


def load_test_data(
    options: Any, split_path: Path, *, masks_from: str, binary_sees: str, split_digest: str | None = None
) -> TestData:
    """Open what the options of a test name and divide it by the run's split.

    Args:
        options: the test command's options.
        split_path: the run's split.csv.
        masks_from: "decoder" or "otsu", see ``TestData``.
        binary_sees: "predicted", "otsu" or "gt", see ``TestData``.
        split_digest: ``rows_digest`` of the split that the network was trained by, or None where it is not known.

    Raises:
        UserError: the data or the split cannot be read, the split was changed or leaks, no image is left to test, or
            true masks are asked for (``--binary_from gt``) that cannot be used or are not there.
    """
    rows = read_split(split_path)
    _check_digest(rows, split_path, split_digest)
    dataset = open_options_dataset(options)
    check_groups(dataset.records, dataset.digests, rows, str(split_path))
    facts = describe_split(dataset, rows)
    print_data(facts)
    parts = sides(dataset, rows)
    judged = [record for side in options.splits for record in parts[side].records]
    if not judged:
        raise UserError(
            f"{dataset.root} holds no image of the splits {', '.join(options.splits)}",
            found="; ".join(f"{side}: {len(part.records)}" for side, part in parts.items()),
            remedy="choose other --splits, or another --dataroot",
        )
    if options.binary_from == "gt":
        _check_true_masks(judged, masks_from)
    sizes = (options.loadSize, options.batchSize, options.num_workers or None)
    return TestData(parts, masks_from, binary_sees, facts, *sizes)


def _check_digest(rows: Sequence[SplitRow], split_path: Path, split_digest: str | None) -> None:
    """Refuse a split other than the one that the network was trained by."""
    found = rows_digest(rows)
    if split_digest is not None and found != split_digest:
        raise UserError(
            f"{split_path}: split.csv was changed since the run was trained",
            expected=f"digest {split_digest}",
            found=f"digest {found}",
            remedy="restore the file that the training wrote, or train again",
        )


def _check_true_masks(judged: Sequence[SmearRecord], masks_from: str) -> None:
    """Refuse ``--binary_from gt`` where the network ignores masks or images have none."""
    without = [record.name for record in judged if record.mask is None]
    if masks_from == "otsu":
        raise UserError(
            "--binary_from gt cannot be used: the network was trained without masks and never looks at them",
            remedy="leave --binary_from out",
        )
    if without:
        raise UserError(
            "--binary_from gt needs a true mask for every image",
            expected=f"masks for {len(judged)} images",
            found=f"{len(without)} without, first {without[0]!r}",
            remedy="add the masks, or leave --binary_from out",
        )
