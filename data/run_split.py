"""The split of a run: from a file, as the data set gives it, or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.datasets import Dataset
from data.groups import blood_counts
from data.leaks import accept, accepted, check_groups, find_leaks
from data.split_file import check_rows
from data.splits import SIDES, SplitRow, described, given_split, make_split, read_split
from util.errors import UserError


@dataclass(frozen=True)
class SplitPlan:
    """How a split is made where no file gives it.

    Attributes:
        fractions: shares of train, val and test of a split that is drawn.
        seed: of a split that is drawn.
        drop_duplicates: whether the ``exclusions`` are left out.
        split_by: "group", or "blocks" for contiguous blocks of the numbers in the images' names.
        block_size: numbers in a block.
        folds: how many folds a drawn split has; 0 draws one hold-out split.
        fold: which of them is the test side, from 1; 0 without folds.
        split_from: "data" takes the sides that the data set gives, "draw" never, "auto" where it gives some.
    """

    fractions: tuple[float, float, float]
    seed: int
    drop_duplicates: bool = True
    split_by: str = "group"
    block_size: int = 50
    folds: int = 0
    fold: int = 0
    split_from: str = "auto"

    @classmethod
    def of(cls, options: Any) -> SplitPlan:
        """As the options of a training, or of the command that writes splits, ask for one."""
        return cls(
            fractions=(1 - options.val_fraction - options.test_fraction, options.val_fraction, options.test_fraction),
            seed=options.seed,
            drop_duplicates=options.duplicates == "drop",
            split_by=options.split_by,
            block_size=options.block_size,
            folds=options.folds,
            fold=options.fold,
            split_from=options.split_from,
        )


def split_for_training(
    dataset: Dataset, plan: SplitPlan, *, split_file: Path | None = None, leaks: str = "stop", continued: bool = False
) -> list[SplitRow]:
    """The split of a run.

    A user's file says which image stands on which side; labels, masks and blood counts are taken from the data. The
    file of a run that is continued must also agree with the data in labels and in which images have masks.

    Args:
        dataset: the images.
        plan: how it is made without a file.
        split_file: the file, or None.
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
    if _takes_given(dataset, plan):
        rows = given_split(dataset.records, dataset.digests, drop_duplicates=plan.drop_duplicates, near=dataset.near)
        return _settled(dataset, rows, f"the split that {dataset.root} gives", leaks)
    return _drawn(dataset, plan)


def _drawn(dataset: Dataset, plan: SplitPlan) -> list[SplitRow]:
    """A split that is drawn."""
    how = asdict(plan)
    del how["split_from"]  # which was to draw one
    return make_split(dataset.records, dataset.digests, near=dataset.near, **how)


def _takes_given(dataset: Dataset, plan: SplitPlan) -> bool:
    """Whether the data's own split is used; refuses to choose where that and a drawn one are asked for at once."""
    gives = any(record.split in SIDES for record in dataset.records)
    if plan.split_from == "draw" or (plan.split_from == "auto" and not gives):
        return False
    if not gives:
        raise UserError(
            f"{dataset.root} gives no split",
            expected="train, val or test for every image, in a manifest or as folders (--split_from data)",
            found="none for any image",
            remedy="draw one (--split_from draw)",
        )
    if plan.split_by != "group" or plan.folds > 0:
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
        # What another run accepted is no licence for this one.
        rows = [replace(row, reason="") if accepted(row) else row for row in rows]
        check_rows(rows, str(split_file), leaks=leaks == "report")
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
