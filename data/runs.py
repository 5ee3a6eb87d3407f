"""What a training run learns from and what a test judges: a data root, divided by its split, in batches."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.augment import Augmentation
from data.colour_record import COLOURS, ColourRecord, score_colours
from data.datasets import (
    Dataset,
    Decoding,
    Grading,
    LeaksFound,
    Side,
    describe_split,
    labels_found,
    open_dataset,
    print_data,
    sides,
)
from data.images import otsu_mask, read_smear, read_truth
from data.leaks import (
    FINGERPRINTS,
    Learned,
    find_leaks,
    learned_before,
    learned_by_all,
    near_words,
    open_leaks,
    read_fingerprints,
    write_fingerprints,
)
from data.loader import Batch, BatchLoader, DecodedSmears, free_memory
from data.mask_polarity import polarity_warning
from data.mask_record import MASKS, MaskRecord
from data.records import ANEMIC, CLASS_NAMES, HEALTHY, SmearRecord
from data.run_split import SplitPlan, split_for_training
from data.split_file import leak_error
from data.splits import SplitRow, read_split, rows_digest, write_split
from data.stain import STAIN, Restained, StainReference, grey_scaled
from util.distributed import ALONE, Ranks
from util.errors import UserError
from util.runlog import weights_file


@dataclass(frozen=True)
class TrainingData:
    """What a training run learns from and is checked on.

    Attributes:
        smears: decoded images of train and val; the test images are not even read.
        train: augmented, shuffled batches at fineSize.
        val: whole images at loadSize, of several processes this one's part of them.
        rows: the split.
        facts: plain description for checkpoints and reports.
        learned: the images of train and val, by name and fingerprint.
        colours: of the train images.
        stain: of the train images.
        masks: of the true masks of train and val.
        learned_from: the records of the train side.
    """

    smears: DecodedSmears
    train: BatchLoader
    val: Iterable[Batch]
    rows: list[SplitRow]
    facts: dict[str, Any]
    learned: Learned
    colours: ColourRecord
    stain: StainReference
    masks: MaskRecord
    learned_from: Sequence[SmearRecord] = ()

    def record(self, split_path: Path) -> None:
        """Write the split, and beside it what a test compares its images with: fingerprints, colours, stain.

        And what a run that goes on compares its masks with.

        Raises:
            UserError: the folder cannot be written.
        """
        write_split(split_path, self.rows)
        write_fingerprints(split_path.with_name(FINGERPRINTS), self.learned, rows_digest(self.rows))
        COLOURS.write(split_path.parent, self.colours)
        STAIN.write(split_path.parent, self.stain)
        MASKS.write(split_path.parent, self.masks)

    @property
    def class_counts(self) -> tuple[int, int]:
        """How many training images are labelled Healthy and Anemic."""
        labels = self.smears.labels[self.train.indices]
        return int((labels == HEALTHY).sum()), int((labels == ANEMIC).sum())

    @property
    def grade_counts(self) -> dict[str, int]:
        """How many training images bear each grade of severity."""
        return dict(Counter(record.severity for record in self.learned_from if record.severity))

    def graded(self) -> Iterator[tuple[np.ndarray, str]]:
        """Pixels, as the files hold them, and grade of every graded training image.

        Raises:
            UserError: a file cannot be read any more.
        """
        return ((read_smear(record), record.severity) for record in self.learned_from if record.severity)

    def whole(self, device: torch.device) -> tuple[BatchLoader, list[str]]:
        """The training images as a test sees them, not cut and not varied, each once; and the group of each smear."""
        batches = BatchLoader(
            self.smears,
            self.train.indices.tolist(),
            self.train.batch_size,
            self.smears.load_size,
            device=device,
            augment=None,
            shuffle=False,
            seed=0,
        )
        group_of = {row.image: row.group for row in self.rows}
        return batches, [group_of[name] for name in self.smears.names]

    @property
    def any_masks(self) -> bool:
        """Whether some image has a true mask."""
        return bool(self.smears.has_mask.any())

    @property
    def all_masks(self) -> bool:
        """Whether every image has one."""
        return bool(self.smears.has_mask.all())


def load_training_data(
    options: Any,
    device: torch.device,
    split_path: Path,
    ranks: Ranks = ALONE,
    choose_batch: Callable[[int, int | None], int] | None = None,
) -> TrainingData:
    """Read, split and decode what the options of a training run name.

    Args:
        options: the training command's options.
        device: where the batches are made.
        split_path: the run's split.csv; read when the run is continued, else not yet written.
        ranks: the processes that train together.
        choose_batch: finds the number for --batchSize auto, which is then put into the options; see
            ``models.building.batch_chooser``.

    Raises:
        UserError: the data cannot be read or split, the recorded split does not fit it, a run that goes on finds other
            masks, train or val is empty, or train lacks a class; --batchSize is too small for so many processes.
    """
    dataset = open_options_dataset(options)
    recorded = split_path if options.continue_train else Path(options.split_file) if options.split_file else None
    rows = split_for_training(
        dataset, SplitPlan.of(options), split_file=recorded, leaks=options.leaks, continued=options.continue_train
    )
    parts = sides(dataset, rows)
    earlier = _learned_by_start(options, split_path)
    facts = describe_split(dataset, rows, _leaks_of_start(dataset, parts["test"], earlier, options))
    print_data(facts)
    if ranks.first:
        _say_of_masks(parts["train"].records)
    _check_sides(parts)
    smears = _decoded(dataset, parts["train"].records + parts["val"].records)
    masks = MaskRecord.of(smears)
    if options.continue_train:
        _check_same_masks(dataset, smears.names, masks, split_path)
    count = len(parts["train"].records)
    if options.batchSize == "auto" and choose_batch is not None:
        if device.type == "cuda":
            smears.entries_on(device)  # what the trial steps must leave room for
        options.batchSize = choose_batch(count, free_memory())
        print(f"--batchSize auto: {options.batchSize}", flush=True)
    train = _training_batches(smears, count, options, device, ranks)
    val = _validation_batches(smears, count, options, device, ranks)
    learned = learned_by_all(_learned(dataset, rows), earlier, options.init_from)
    colours, stain = ColourRecord.of(smears, count), StainReference.of(smears, count)
    return TrainingData(smears, train, val, rows, facts, learned, colours, stain, masks, parts["train"].records)


def _say_of_masks(records: Sequence[SmearRecord]) -> list[str]:
    """Warn of masks that would teach, or be taken for, the background; gives what was said."""
    warning = polarity_warning(records)
    if warning is None:
        return []
    print(f"warning: {warning}", file=sys.stderr, flush=True)
    return [warning]


def _check_same_masks(dataset: Dataset, names: Sequence[str], masks: MaskRecord, split_path: Path) -> None:
    """Refuse to go on with true masks that were drawn anew; say so where that cannot be told."""
    before = MASKS.read(split_path.parent)
    changed = masks.changed_since(before) if before else None
    if changed is None and masks.digests.any():
        why = "were recorded at another --loadSize or by another decoder" if before else "were not recorded"
        print(f"warning: the run's masks {why}: whether they have changed cannot be told", file=sys.stderr)
    if changed:
        raise UserError(
            f"{dataset.root} is not what the run was trained on ({split_path})",
            expected="the true masks as they were when it began",
            found=f"true mask changed: {len(changed)} images, first {names[changed[0]]!r}",
            remedy="restore the masks, or start a new run",
        )


def _training_batches(
    smears: DecodedSmears, count: int, options: Any, device: torch.device, ranks: Ranks
) -> BatchLoader:
    """Batches of the first ``count`` smears, each process its share of each."""
    fewest = 2 * ranks.world
    if ranks.several and min(options.batchSize, count) < fewest:
        raise UserError(
            f"--batchSize {options.batchSize} is too small for {ranks.world} processes",
            expected=f"at least {fewest}, two images for each, and as many training images",
            found=f"--batchSize {options.batchSize}, {count} training images",
            remedy=f"raise --batchSize to {fewest} or more, or start fewer processes",
        )
    return BatchLoader(
        smears,
        range(count),
        options.batchSize,
        options.fineSize,
        device=device,
        augment=None if options.no_augment else Augmentation(),
        shuffle=True,
        seed=options.seed,
        share=(ranks.rank, ranks.world),
    )


def _validation_batches(
    smears: DecodedSmears, count: int, options: Any, device: torch.device, ranks: Ranks
) -> BatchLoader | list[Batch]:
    """Whole images of the smears after the first ``count``; of several processes each judges its own, none twice."""
    own = ranks.share(range(count, len(smears)))
    if not own:
        return []
    return BatchLoader(
        smears, own, options.batchSize, options.loadSize, device=device, augment=None, shuffle=False, seed=options.seed
    )


def _learned_by_start(options: Any, split_path: Path) -> Learned | None:
    """What the run that --init_from names has learned from; None without one, or where it kept no record of that.

    A run that goes on has that in its own record: the weights that it started from may be gone.
    """
    if not options.init_from:
        return None
    if options.continue_train:
        rows = read_split(split_path)
        learned = read_fingerprints(split_path.with_name(FINGERPRINTS), rows_digest(rows))
        return _parted_by_run(learned, {row.image for row in rows})[1] if learned else None
    theirs = weights_file(options.init_from, options.checkpoints_dir).with_name("split.csv")
    if not theirs.is_file():
        return None
    return read_fingerprints(theirs.with_name(FINGERPRINTS), rows_digest(read_split(theirs)))


def _leaks_of_start(dataset: Dataset, tested: Side, earlier: Learned | None, options: Any) -> LeaksFound | None:
    """Look for test images among what the weights that the run starts from have learned; stop or tell, as --leaks says.

    None where the run starts from no other.
    """
    if not options.init_from or dataset.fingerprints is None:
        return None
    if earlier is None:
        print(
            f"warning: --init_from {options.init_from} kept no record of what it has learned from (split.csv and "
            f"{FINGERPRINTS} beside the weights): whether it knows the test images cannot be told",
            file=sys.stderr,
        )
        return LeaksFound([], searched=False)
    names = {record.name for record in tested.records}
    asked = [index for index, record in enumerate(dataset.records) if record.name in names]
    known = learned_before(earlier, [dataset.records[index].name for index in asked], dataset.fingerprints[asked])
    words = [f"{a!r} in test, {b!r} learned by {options.init_from}: {near_words(value)}" for a, b, value in known]
    if known and options.leaks == "stop":
        raise UserError(
            f"--init_from {options.init_from} has learned from images of this run's test side, or from near duplicates",
            expected="a start that has seen no test image",
            found=f"{len(known)} pairs, first {words[0]}",
            remedy="use the split of that run (--split_file), other weights, or --leaks report to go on and say so",
        )
    return LeaksFound(words, searched=True)


def _decoded(dataset: Dataset, records: Sequence[SmearRecord]) -> DecodedSmears:
    """The decoded smears of some records of a data set, in the order of ``records``."""
    if dataset.decoded is None:
        raise ValueError(f"{dataset.root} was opened without its pixels")
    position = {record.name: index for index, record in enumerate(dataset.records)}
    return dataset.decoded.smears([position[record.name] for record in records])


def _learned(dataset: Dataset, rows: Sequence[SplitRow]) -> Learned:
    """The images of train and val, by name and fingerprint."""
    if dataset.fingerprints is None:
        raise ValueError(f"{dataset.root} was opened without fingerprints")
    on_side = {row.image for row in rows if row.split in ("train", "val")}
    chosen = [index for index, record in enumerate(dataset.records) if record.name in on_side]
    return Learned([dataset.records[index].name for index in chosen], dataset.fingerprints[chosen])


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
            found=labels_found(parts["train"]),
            remedy="add labelled smears of the other class, or use another --split_file",
        )
    if len(classes["val"]) < len(CLASS_NAMES):
        words = f"({labels_found(parts['val'])})"
        print(f"warning: validation holds one class only: AUROC cannot be computed {words}", file=sys.stderr)


def open_options_dataset(options: Any, *, true_masks: bool = True) -> Dataset:
    """``open_dataset`` from a command's options.

    Args:
        options: of training or test.
        true_masks: False hides the true masks from the decoded images.
    """
    cache_dir = None if options.no_cache else Path(options.cache_dir)
    return open_dataset(
        options.dataroot,
        image_root=Path(options.image_root) if options.image_root else None,
        synthetic_count=options.synthetic_count,
        seed=options.seed,
        workers=options.num_workers or None,
        grading=Grading(options.severity_from, options.chronic_below, options.normal_from),
        decoding=Decoding(options.loadSize, cache_dir, options.cache_gb, true_masks),
    )


@dataclass(frozen=True)
class TestData:
    """What a test judges.

    Attributes:
        sides: the images of train, val and test.
        masks_from: "decoder", or "otsu" where the network draws no masks: then Otsu's stands in for what it would draw.
        binary_sees: what the binary stream is given: "predicted", "gt", or "otsu" where it is always Otsu's mask.
        facts: plain description for the report.
        dataset: the data root, decoded.
        batch_size: images in a batch.
        colours: of what the run has learned from, or None where that was not recorded.
        stain: of the images that the run has learned from, likewise.
    """

    sides: dict[str, Side]
    masks_from: str
    binary_sees: str
    facts: dict[str, Any]
    dataset: Dataset
    batch_size: int
    colours: ColourRecord | None
    stain: StainReference | None

    def batches(self, side: str, device: torch.device, only: Sequence[int] | None = None) -> BatchLoader | None:
        """Whole images of a side at loadSize, or None where it has none; no true masks if Otsu's are to be seen.

        Args:
            side: train, val or test.
            device: where the batches are made.
            only: the places of those to give, in this order; by default all.
        """
        records = self.sides[side].records
        if not records:
            return None
        smears = _decoded(self.dataset, records)
        return BatchLoader(
            smears,
            range(len(records)) if only is None else only,
            self.batch_size,
            smears.load_size,
            device=device,
            augment=None,
            shuffle=False,
            seed=0,
        )

    def restained(self, side: str, device: torch.device) -> dict[str, Restained | None]:
        """Whole images of a side as ``batches`` gives them, but without their stain, by what was done to it.

        Masks that stand in for predicted ones are those of the images as they are. None where it cannot be done: the
        side has no images, or the stain of the training images was not recorded.
        """
        changes = {"grey": grey_scaled, "stain_normalised": self.stain.normalised if self.stain else None}
        batches = self.batches(side, device)
        return {
            name: Restained(batches, change) if batches is not None and change is not None else None
            for name, change in changes.items()
        }

    def colour_chances(self, side: str, seed: int) -> np.ndarray | None:
        """What colour alone says of a side's labelled images: (N,) chances of Anemic by the training images' colours.

        None where there is no labelled image, or the colours of the training were measured at another size or not at
        all.
        """
        part = self.sides[side]
        if self.colours is None or not part.records:
            return None
        smears = _decoded(self.dataset, part.records)
        if smears.load_size != self.colours.load_size:
            return None
        scored = score_colours(self.colours, smears, part.records, part.groups, seed)
        return None if scored is None else scored.probability

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
    dataset = open_options_dataset(options, true_masks=binary_sees != "otsu")
    parts = sides(dataset, rows)
    found = _leaks_at_test(
        dataset, rows, parts["test"] if "test" in options.splits else None, split_path, options.leaks
    )
    facts = describe_split(dataset, rows, found)
    print_data(facts)
    judged = [record for side in options.splits for record in parts[side].records]
    facts["warnings"] = _say_of_masks(judged)
    if not judged:
        raise UserError(
            f"{dataset.root} holds no image of the splits {', '.join(options.splits)}",
            found="; ".join(f"{side}: {len(part.records)}" for side, part in parts.items()),
            remedy="choose other --splits, or another --dataroot",
        )
    if options.binary_from == "gt":
        _check_true_masks(judged, masks_from)
    kept = COLOURS.read(split_path.parent), STAIN.read(split_path.parent)
    return TestData(parts, masks_from, binary_sees, facts, dataset, options.batchSize, *kept)


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
    side_of = {row.image: row.split for row in rows}
    own, before = _parted_by_run(learned, set(side_of))
    known = learned_before(own, [dataset.records[index].name for index in asked], dataset.fingerprints[asked])
    every = [index for index, record in enumerate(dataset.records) if record.name in names]
    known += learned_before(before, [dataset.records[index].name for index in every], dataset.fingerprints[every])
    where = {name: side_of.get(name, "the run that it started from") for name in learned.names}
    known_words = [f"{a!r} in test, {b!r} in {where[b]}: {near_words(value)}" for a, b, value in known]
    if known and leaks == "stop":
        raise UserError(
            f"{dataset.root}: images to be tested are near duplicates of images that the run has learned from",
            expected="smears that the network has not seen, in no crop and no copy",
            found=f"{len(known)} pairs, first {known_words[0]}",
            remedy="leave them out of the test, or go on and have the report say so (--leaks report)",
        )
    return LeaksFound([*words, *known_words], searched=True)


def _parted_by_run(learned: Learned, own: set[str]) -> tuple[Learned, Learned]:
    """What a run has learned from itself, and what the run that it started from had."""
    mine = np.array([name in own for name in learned.names], dtype=bool)
    parts = []
    for chosen in (mine, ~mine):
        names = [name for name, taken in zip(learned.names, chosen, strict=True) if taken]
        parts.append(Learned(names, learned.fingerprints[chosen]))
    return parts[0], parts[1]


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
