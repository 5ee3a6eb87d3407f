"""What 3TDCFNet_data.py does to data beyond one call: the doctor with its outputs, and split files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.errors import UserError
from util.files import atomic_write

if TYPE_CHECKING:
    from data.datasets import Dataset
    from data.doctor import Diagnosis
    from data.run_split import SplitPlan
    from data.splits import SplitRow

ERRORS_FOUND = 1  # exit status; a bad call leaves with 2, see util.errors


@dataclass(frozen=True)
class DoctorOutputs:
    """What the doctor writes beside its words.

    Attributes:
        json: where the whole diagnosis is written, or None.
        html: where the page is written, or None.
        fix: where the cleaned manifest is written, or None.
        drop_near: whether the cleaned manifest keeps the first of near duplicates only.
        overwrite: whether outputs that are there may be replaced.
    """

    json: Path | None = None
    html: Path | None = None
    fix: Path | None = None
    drop_near: bool = False
    overwrite: bool = False

    def check(self, dataroot: Path, diagnosis: Diagnosis | None = None) -> None:
        """Refuse what may not be written; with the diagnosis also what would replace a file of the data.

        Raises:
            UserError: an output may not be written.
        """
        from data.doctor_manifest import check_outputs, data_files, left_out_path

        paths = [path for path in (self.json, self.html, self.fix, self.fix and left_out_path(self.fix)) if path]
        held = data_files(diagnosis.case.records) if diagnosis else ()
        check_outputs(held, dataroot, paths, overwrite=self.overwrite)


def doctor(
    dataroot: Path, outputs: DoctorOutputs, *, image_root: Path | None, workers: int | None, **settings: Any
) -> int:
    """Examine a data root, say what is wrong with it, and write what was asked for.

    Args:
        dataroot: folder or manifest of the smears.
        outputs: what is written.
        image_root: what a manifest's paths are relative to, or None for its own folder.
        workers: processes.
        settings: split_by, block_size, folds and seed, see ``data.doctor.examine_dataroot``; the outputs name them.

    Returns:
        The exit status: 1 where an error was found in the data, else 0.

    Raises:
        UserError: there is no such data root, or an output cannot be written; nothing was written then but what came
            before it. The summary is printed all the same.
    """
    from data.doctor import examine_dataroot, summary

    outputs.check(dataroot)  # before the work, which may take minutes
    diagnosis = examine_dataroot(dataroot, image_root=image_root, workers=workers, **settings)
    outputs.check(dataroot, diagnosis)
    # Whoever reads the words may stop early ("| head"): all files are written before the first of them.
    words = [summary(diagnosis)]
    try:
        words.extend(_written(diagnosis, outputs, dataroot, image_root, settings))
    finally:
        print("\n".join(words))
    return ERRORS_FOUND if diagnosis.has_errors else 0


def _written(
    diagnosis: Diagnosis, outputs: DoctorOutputs, dataroot: Path, image_root: Path | None, settings: dict[str, Any]
) -> Iterator[str]:
    """Write what was asked for, and yield a line for each once it is there."""
    from data.doctor import as_json, printable

    if outputs.json:
        atomic_write(outputs.json, as_json(diagnosis, settings), make_parents=True)
        yield f"\nall of it: {printable(outputs.json)}"
    if outputs.html:
        from data.doctor_pictures import write_page

        write_page(outputs.html, diagnosis, {"dataroot": dataroot, **settings})
        yield f"page: {printable(outputs.html)}"
    if outputs.fix:
        base = image_root or (dataroot if dataroot.is_dir() else dataroot.parent)
        yield from _fix(diagnosis, outputs.fix, base, drop_near=outputs.drop_near)


def _fix(diagnosis: Diagnosis, path: Path, image_root: Path, *, drop_near: bool) -> list[str]:
    """Write the cleaned manifest and word what it leaves out and how it is used."""
    from collections import Counter
    from shlex import quote

    from data.doctor_manifest import left_out_path, write_cleaned

    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = write_cleaned(path, diagnosis, image_root=image_root, drop_near=drop_near)
    kinds = Counter(_kind(reason) for reason in reasons.values())
    return [
        f"\ncleaned manifest: {path} ({len(diagnosis.case.records) - len(reasons):,} images)",
        *(f"  left out: {count:,} ({kind})" for kind, count in kinds.most_common()),
        f"  each with its reason: {left_out_path(path)}",
        f"use it: --dataroot {quote(str(path))} --image_root {quote(str(image_root))}",
    ]


def _kind(reason: str) -> str:
    """The kind of a reason: what stands before the name or the error in it."""
    from data.groups import DUPLICATE_OF

    return reason.partition(" of ")[0] if DUPLICATE_OF in reason else reason.partition(":")[0]


def fold_path(out: Path, fold: int) -> Path:
    """Where the split of one of several folds is written: split.csv gives split.fold1.csv."""
    return out.with_name(f"{out.stem}.fold{fold}{out.suffix}")


def write_splits(
    dataroot: Path, out: Path, plan: SplitPlan, *, image_root: Path | None = None, overwrite: bool = False
) -> None:
    """Write a split file, or with folds and no fold one for each fold, and say what stands where.

    Args:
        dataroot: folder or manifest of the smears.
        out: the file; of several folds each stands beside it, see ``fold_path``.
        plan: how the split is made.
        image_root: what a manifest's paths are relative to, or None for its own folder.
        overwrite: whether files that are there may be replaced.

    Raises:
        UserError: a file is there already or is one of the data, which cannot be read or split, or no image is left.
    """
    from data.datasets import describe_split, open_dataset, print_data
    from data.run_split import split_for_training
    from data.splits import write_split

    wanted = [plan.fold] if plan.fold or not plan.folds else range(1, plan.folds + 1)
    paths = {fold: out if len(wanted) == 1 else fold_path(out, fold) for fold in wanted}
    _check_free(list(paths.values()), overwrite)
    dataset = open_dataset(str(dataroot), image_root=image_root, seed=plan.seed)
    _check_no_data(list(paths.values()), dataset)
    splits = {path: split_for_training(dataset, replace(plan, fold=fold)) for fold, path in paths.items()}
    for path, rows in splits.items():
        _check_some_left(path, rows)
    for path, rows in splits.items():
        write_split(path, rows)
        print_data(describe_split(dataset, rows))
        print(f"split file: {path}")


def _check_some_left(path: Path, rows: Sequence[SplitRow]) -> None:
    """Refuse a split with every image left out."""
    from data.splits import EXCLUDED

    reasons = {row.reason for row in rows if row.split == EXCLUDED}
    if all(row.split == EXCLUDED for row in rows):
        raise UserError(
            f"{path}: no image would stand on any side",
            expected="images that may be trained on or tested",
            found=f"{len(rows)} images, all left out ({', '.join(sorted(reasons)[:3])})",
            remedy="mend the data (3TDCFNet_data.py doctor says what is wrong), or keep copies (--duplicates keep)",
        )


def _check_no_data(paths: Sequence[Path], dataset: Dataset) -> None:
    """Refuse to replace what the data consists of, its tables among it."""
    from data.doctor_manifest import data_files
    from data.labels_file import LABELS_FILE
    from data.manifest import MANIFEST_FILE

    tables = (dataset.root, dataset.root / MANIFEST_FILE, dataset.root / LABELS_FILE)
    taken = {path.resolve() for path in (*data_files(dataset.records), *tables)}
    for path in paths:
        if path.resolve() in taken:
            raise UserError(
                f"{path}: would replace or change the data", expected="a split file", remedy="choose another --out"
            )


def _check_free(paths: Sequence[Path], overwrite: bool) -> None:
    from data.doctor_manifest import check_writable

    for path in paths:
        check_writable(path)
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists", remedy="choose another --out, or replace it (--overwrite)")
