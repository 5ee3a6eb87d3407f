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
import torch

from data.augment import Augmentation
from data.contents import describe_contents
from data.groups import blood_counts
from data.images import otsu_mask, read_smear, read_truth
from data.leaks import (
    FINGERPRINTS,
    Learned,
    accept,
    accepted,
    check_groups,
    find_leaks,
    learned_before,
    near_words,
    open_leaks,
    read_fingerprints,
    write_fingerprints,
)
from data.loader import BatchLoader, DecodedSmears, decode
from data.near_duplicates import NearPair, find_near_duplicates
from data.readers import read_dataroot
from data.records import CLASS_NAMES, SmearRecord
from data.split_file import leak_error
from data.splits import ACCEPTED, SIDES, SplitRow, described, given_split, make_split, place, read_split, rows_digest
from data.synthetic_writer import NOTICE, TREE, read_severities, write_dataset
from util.errors import UserError

SYNTHETIC = "synthetic"
SYNTHETIC_FOLDER = Path("datasets")
_SOON_COMPARED = 2000  # images up to which a search for near duplicates needs no bar
_LEAKS_NAMED = 5


@dataclass(frozen=True)
class Dataset:
    """What a data root holds.

    Attributes:
        root: as given, or where the embedded data set was written.
        records: its smears, sorted by name.
        digests: hash of the decoded pixels of each.
        synthetic: everything here was made by the synthesiser.
        fingerprints: of each image, uint8 (N, FINGERPRINT_BYTES), or None where near duplicates are not looked for.
    """

    root: Path
    records: list[SmearRecord]
    digests: list[str]
    synthetic: bool
    fingerprints: npt.NDArray[np.uint8] | None = None

    @cached_property
    def near(self) -> list[NearPair]:
        """Pairs of its images that show the same cells."""
        if self.fingerprints is None:
            return []
        return find_near_duplicates(self.fingerprints, progress=len(self.records) > _SOON_COMPARED)


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


def open_dataset(
    dataroot: str,
    *,
    image_root: Path | None = None,
    synthetic_count: int = 240,
    seed: int = 0,
    workers: int | None = None,
) -> Dataset:
    """Read a data root, or the embedded data set where ``dataroot`` is the word ``synthetic``.

    Args:
        dataroot: the folder, the manifest, or the word.
        image_root: folder to which the paths in a manifest are relative, by default its own.
        synthetic_count: images of the embedded data set.
        seed: its series.
        workers: threads that read images, by default one a core.

    Raises:
        UserError: it is missing, empty, of no known layout, or holds a file that cannot be read.
    """
    root = embedded_root(synthetic_count, seed) if dataroot == SYNTHETIC else Path(dataroot)
    records, synthetic = read_dataroot(root, image_root=image_root), is_synthetic(root)
    if synthetic:
        grades = read_severities(root)
        records = [replace(record, severity=grades.get(_within_tree(record.name))) for record in records]
    digests, fingerprints = describe_contents(records, workers)
    return Dataset(root, records, digests, synthetic, fingerprints)


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
    split_by: str = "group",
    block_size: int = 50,
    folds: int = 0,
    fold: int = 0,
    split_from: str = "auto",
    leaks: str = "stop",
    continued: bool = False,
) -> list[SplitRow]:
    """The split of a run: from a file, as the data set gives it, or drawn and stratified.

    A user's file says which image stands on which side; labels, masks and blood counts are taken from the data. The
    file of a run that is continued must also agree with the data in labels and in which images have masks.

    Args:
        dataset: the images.
        split_file: the file, or None.
        fractions: shares of train, val and test of a split that is drawn.
        seed: of a split that is drawn.
        drop_duplicates: whether the ``exclusions`` are left out where no file says what is.
        split_by: "group", or "blocks" for contiguous blocks of the numbers in the images' names.
        block_size: numbers in a block.
        folds: how many folds a drawn split has; 0 draws one hold-out split.
        fold: which of them is the test side, from 1; 0 without folds.
        split_from: "data" takes the sides that the data set gives, "draw" never, "auto" where it gives some.
        leaks: "stop" refuses a file or a given split whose sides share what belongs together; "report" writes it into
            the rows' reasons.
        continued: the file is the record of the run that goes on.

    Raises:
        UserError: the file is no split of this data root; a file or the data's split parts what belongs together; the
            data gives no split that can be used; there are too few groups to draw one.
    """
    if split_file is not None:
        rows = _split_of_file(dataset, split_file, continued, leaks)
        return rows if continued else _settled(dataset, rows, str(split_file), leaks)
    if _takes_given(dataset, split_from, drawn_otherwise=split_by != "group" or folds > 0):
        rows = given_split(dataset.records, dataset.digests, drop_duplicates=drop_duplicates, near=dataset.near)
        return _settled(dataset, rows, f"the split that {dataset.root} gives", leaks)
    return make_split(
        dataset.records,
        dataset.digests,
        fractions=fractions,
        seed=seed,
        drop_duplicates=drop_duplicates,
        near=dataset.near,
        split_by=split_by,
        block_size=block_size,
        folds=folds,
        fold=fold,
    )


def _takes_given(dataset: Dataset, split_from: str, *, drawn_otherwise: bool) -> bool:
    """Whether the data's own split is used; refuses to choose where that and a drawn one are asked for at once."""
    gives = any(record.split is not None for record in dataset.records)
    if split_from == "draw" or (split_from == "auto" and not gives):
        return False
    if not gives:
        raise UserError(
            f"{dataset.root} gives no split",
            expected="train, val or test for every image, in a manifest or as folders (--split_from data)",
            found="none for any image",
            remedy="draw one (--split_from draw)",
        )
    if drawn_otherwise:
        raise UserError(
            f"{dataset.root} gives a split of its own, and another is asked for",
            expected="its split, or one that is drawn by folds or blocks",
            found="both",
            remedy="draw one (--split_from draw), or leave out --folds and --split_by blocks",
        )
    return True


def _split_of_file(dataset: Dataset, split_file: Path, continued: bool, leaks: str) -> list[SplitRow]:
    """The rows of a user's file or of the run that is continued, as far as the data agrees."""
    rows = read_split(split_file, leaks=leaks == "report" and not continued)
    _check_same_images(dataset, rows, split_file, continued)
    if not continued:
        return _refreshed(dataset, rows)
    _check_same_truth(dataset, rows, split_file)
    check_groups(dataset.records, dataset.digests, rows, str(split_file))
    return rows


def _settled(dataset: Dataset, rows: list[SplitRow], what: str, leaks: str) -> list[SplitRow]:
    """The rows without leaks, or with those that there are written into their reasons."""
    if leaks == "stop":
        check_groups(dataset.records, dataset.digests, rows, what, dataset.near)
        return rows
    return accept(rows, find_leaks(dataset.records, dataset.digests, rows, dataset.near))


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
    reports = dict(zip(found, blood_counts(list(found.values())), strict=True))
    return [
        described(found[row.image], row.group, row.content, row.split, row.reason, reports[row.image]) for row in rows
    ]


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


def describe_split(dataset: Dataset, rows: Sequence[SplitRow], found: LeaksFound | None = None) -> dict[str, Any]:
    """What a checkpoint and the report say of the data: root, size, counts by side, what was left out, leaks, digest.

    Args:
        dataset: the images.
        rows: the split.
        found: leaks that a test found and goes on with; those that the rows own up to are named in any case.
    """
    parts = sides(dataset, rows)
    owned = [f"{row.image!r} in {row.split}: {row.reason.removeprefix(ACCEPTED)}" for row in rows if accepted(row)]
    searched = dataset.fingerprints is not None if found is None else found.searched
    words = [*owned, *(found.words if found else [])]
    return {
        "dataroot": str(dataset.root),
        "synthetic": dataset.synthetic,
        "files": len(dataset.records),
        "excluded": exclusion_summary(rows),
        "sides": {name: class_counts(side) for name, side in parts.items()},
        "split_digest": rows_digest(rows),
        "leaks": {
            "count": len(words),
            "first": words[:_LEAKS_NAMED],
            "near_duplicates": "checked" if searched else "not checked",
        },
    }


@dataclass(frozen=True)
class LeaksFound:
    """What a test found out about leaks.

    Attributes:
        words: each leak, in words.
        searched: whether the images to be tested were compared with those that the run has learned from.
    """

    words: list[str]
    searched: bool


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
        split_path: the run's split.csv; read when the run is continued, else not yet written. The fingerprints of train
            and val are written beside it.

    Raises:
        UserError: the data cannot be read or split, the recorded split does not fit it, train or val is empty, train
            lacks a class, or the run's folder cannot be written.
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
        split_by=options.split_by,
        block_size=options.block_size,
        folds=options.folds,
        fold=options.fold,
        split_from=options.split_from,
        leaks=options.leaks,
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
    _keep_fingerprints(dataset, rows, split_path.with_name(FINGERPRINTS))
    return TrainingData(smears, train, val, rows, facts)


def _keep_fingerprints(dataset: Dataset, rows: Sequence[SplitRow], path: Path) -> None:
    """Write what the run learns from beside its split, so that a test can tell copies of it."""
    if dataset.fingerprints is None:
        return
    learned = {row.image for row in rows if row.split in ("train", "val")}
    chosen = [index for index, record in enumerate(dataset.records) if record.name in learned]
    names = [dataset.records[index].name for index in chosen]
    write_fingerprints(path, Learned(names, dataset.fingerprints[chosen]), rows_digest(rows))


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
    leaks = facts["leaks"]
    for words in leaks["first"]:
        print(f"  LEAK: {words}")
    if leaks["count"] > len(leaks["first"]):
        print(f"  LEAK: and {leaks['count'] - len(leaks['first'])} more")
    if leaks["near_duplicates"] != "checked":
        print("  near duplicates of what the run has learned from: not checked")
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
    parts = sides(dataset, rows)
    found = _leaks_at_test(
        dataset, rows, parts["test"] if "test" in options.splits else None, split_path, options.leaks
    )
    facts = describe_split(dataset, rows, found)
    print_data(facts)
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


def _leaks_at_test(
    dataset: Dataset, rows: Sequence[SplitRow], tested: Side | None, split_path: Path, leaks: str
) -> LeaksFound:
    """Look for what was learned from among what is tested; stop at it, or tell, as ``leaks`` says.

    Images that the split lists with the same content were compared when it was made, and are not compared again.
    """
    parted = open_leaks(find_leaks(dataset.records, dataset.digests, rows))
    if parted and leaks == "stop":
        raise leak_error(str(split_path), parted[0].bond, parted[0].one, parted[0].other)
    words = [leak.words() for leak in parted]
    learned = read_fingerprints(split_path.with_name(FINGERPRINTS), rows_digest(rows))
    if learned is None or dataset.fingerprints is None:
        return LeaksFound(words, searched=False)
    recorded = {(row.image, row.content) for row in rows}
    names = {record.name for record in tested.records} if tested else set()
    pairs = enumerate(zip((record.name for record in dataset.records), dataset.digests, strict=True))
    asked = [index for index, pair in pairs if pair[0] in names and pair not in recorded]
    known = learned_before(learned, [dataset.records[index].name for index in asked], dataset.fingerprints[asked])
    side_of = {row.image: row.split for row in rows}
    known_words = [f"{a!r} in test, {b!r} in {side_of[b]}: {near_words(value)}" for a, b, value in known]
    if known and leaks == "stop":
        raise UserError(
            f"{dataset.root}: images to be tested are near duplicates of images that the run has learned from",
            expected="smears that the network has not seen, in no crop and no copy",
            found=f"{len(known)} pairs, first {known_words[0]}",
            remedy="leave them out of the test, or go on and have the report say so (--leaks report)",
        )
    return LeaksFound([*words, *known_words], searched=True)


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
