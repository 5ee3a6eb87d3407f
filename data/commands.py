"""What 3TDCFNet_data.py does to data beyond one call: the doctor with its outputs, and split files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import atomic_write

ERRORS_FOUND = 1  # exit status; a bad call leaves with 2, see util.errors


def doctor(
    dataroot: Path,
    *,
    image_root: Path | None,
    json_path: Path | None,
    html_path: Path | None,
    fix_path: Path | None,
    near_duplicates: str,
    split_by: str,
    block_size: int,
    folds: int,
    seed: int,
    workers: int | None,
    overwrite: bool,
) -> int:
    """Examine a data root, say what is wrong with it, and write what was asked for.

    Args:
        dataroot: folder or manifest of the smears.
        image_root: what a manifest's paths are relative to, or None for its own folder.
        json_path: where the whole diagnosis is written, or None.
        html_path: where the page is written, or None.
        fix_path: where the cleaned manifest is written, or None.
        near_duplicates: "keep" or "drop": what the cleaned manifest does with them.
        split_by: see ``data.doctor.examine_dataroot``, as the next four.
        block_size: ids in a block.
        folds: of the colour score.
        seed: of the colour score.
        workers: processes.
        overwrite: whether outputs that are there may be replaced.

    Returns:
        The exit status: 1 where an error was found in the data, else 0.

    Raises:
        UserError: there is no such data root, or an output cannot be written; nothing was written then but what came
            before it. The summary is printed all the same.
    """
    from data.doctor import as_json, examine_dataroot, printable, summary
    from data.doctor_manifest import check_outputs, data_files, left_out_path

    outputs = [path for path in (json_path, html_path, fix_path, fix_path and left_out_path(fix_path)) if path]
    check_outputs([], dataroot, outputs, overwrite=overwrite)  # before the work, which may take minutes
    settings: dict[str, Any] = {"split_by": split_by, "block_size": block_size, "folds": folds, "seed": seed}
    diagnosis = examine_dataroot(dataroot, image_root=image_root, workers=workers, **settings)
    check_outputs(data_files(diagnosis.case), dataroot, outputs, overwrite=overwrite)
    # Whoever reads the words may stop early ("| head"): all files are written before the first of them.
    words = [summary(diagnosis)]
    try:
        if json_path:
            atomic_write(json_path, as_json(diagnosis, settings), make_parents=True)
            words.append(f"\nall of it: {printable(json_path)}")
        if html_path:
            from data.doctor_pictures import write_page

            write_page(html_path, diagnosis, {"dataroot": dataroot, **settings})
            words.append(f"page: {printable(html_path)}")
        if fix_path:
            base = image_root or (dataroot if dataroot.is_dir() else dataroot.parent)
            words += _fix(diagnosis, fix_path, base, drop_near=near_duplicates == "drop")
    finally:
        print("\n".join(words))
    return ERRORS_FOUND if diagnosis.has_errors else 0


def _fix(diagnosis: Any, path: Path, image_root: Path, *, drop_near: bool) -> list[str]:
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
    return reason.partition(" of ")[0] if "duplicate of" in reason else reason.partition(":")[0]


def fold_path(out: Path, fold: int) -> Path:
    """Where the split of one of several folds is written: split.csv gives split.fold1.csv."""
    return out.with_name(f"{out.stem}.fold{fold}{out.suffix}")


def write_splits(
    dataroot: Path,
    out: Path,
    *,
    image_root: Path | None,
    fractions: tuple[float, float, float],
    seed: int,
    drop_duplicates: bool,
    split_by: str,
    block_size: int,
    folds: int,
    fold: int,
    split_from: str,
    overwrite: bool,
) -> None:
    """Write a split file, or with ``folds`` and no ``fold`` one for each fold, and say what stands where.

    Raises:
        UserError: a file is there already, or the data cannot be read or split.
    """
    from data.datasets import describe_split, open_dataset, print_data, split_for_training
    from data.splits import write_split

    wanted = [fold] if fold or not folds else range(1, folds + 1)
    paths = {one: out if len(wanted) == 1 else fold_path(out, one) for one in wanted}
    _check_free(list(paths.values()), overwrite)
    dataset = open_dataset(str(dataroot), image_root=image_root, seed=seed)
    for one, path in paths.items():
        rows = split_for_training(
            dataset,
            split_file=None,
            fractions=fractions,
            seed=seed,
            drop_duplicates=drop_duplicates,
            split_by=split_by,
            block_size=block_size,
            folds=folds,
            fold=one,
            split_from=split_from,
        )
        write_split(path, rows)
        print_data(describe_split(dataset, rows))
        print(f"split file: {path}")


def _check_free(paths: Sequence[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists", remedy="choose another --out, or replace it (--overwrite)")
