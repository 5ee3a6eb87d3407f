"""The cleaned data as a manifest: one of each set of equal images, nothing that cannot be used; no image is touched."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data.doctor import Diagnosis
from data.doctor_case import Case, joined_sets
from data.manifest import MANIFEST_FILE, write_manifest
from data.records import SmearRecord
from util.errors import UserError
from util.files import atomic_write, unwritable


def left_out_path(manifest: Path) -> Path:
    """Where the list of what a manifest leaves out is written: manifest.csv gives manifest.left_out.csv."""
    return manifest.with_name(f"{manifest.stem}.left_out.csv")


def check_outputs(case_files: Iterable[Path], root: Path, outputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse outputs that are there already, fall together, or would replace a file of the data.

    Args:
        case_files: files that the data consists of.
        root: the data root; nothing that lies inside it is ever replaced.
        outputs: what is to be written.
        overwrite: whether files outside the data root may be replaced.

    Raises:
        UserError: an output may not be written.
    """
    real = [path.resolve() for path in outputs]
    if len(set(real)) < len(real):
        raise UserError("two outputs would be one file", found=", ".join(map(str, outputs)), remedy="name them apart")
    taken = {path.resolve() for path in case_files}
    for path, place in zip(outputs, real, strict=True):
        if path.is_dir():
            raise UserError(f"{path} is a folder", expected="a file to write", remedy="add a file name")
        inside = place.is_relative_to(root.resolve()) if root.is_dir() else place == root.resolve()
        if (path.exists() and (place in taken or inside)) or place == root.resolve() / MANIFEST_FILE:
            raise UserError(
                f"{path}: would replace or change the data",
                expected="a new file, and no manifest in the data root itself, which would make it another data root",
                found="a file in the data root",
                remedy="write it elsewhere",
            )
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists", remedy="choose another name, or replace it (--overwrite)")
        check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a file whose folder may not be written, before the work that it is to hold.

    Raises:
        UserError: the folder, or the one in which it would be made, may not be written.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def data_files(records: Iterable[SmearRecord]) -> Iterable[Path]:
    """Every file that the data consists of."""
    for record in records:
        yield from (path for path in (record.image, record.mask, record.cbc) if path is not None)


def cleaned(case: Case, *, drop_near: bool = False) -> dict[str, str]:
    """Say what the cleaned data leaves out and why, by name.

    Args:
        case: what was examined.
        drop_near: whether only the first of each set of near duplicates stays; where a set stands in both classes,
            none does.
    """
    reasons = {case.records[index].name: reason for index, reason in case.left_out.items()}
    for indices in joined_sets((pair.first, pair.second) for pair in case.near) if drop_near else ():
        first, *others = indices
        if case.in_both_classes(indices):
            reasons |= dict.fromkeys(case.names(indices), "looks like an image of the other class")
        else:
            reasons |= dict.fromkeys(case.names(others), f"near duplicate of {case.records[first].name}")
    return reasons


def _group_names(case: Case) -> list[str]:
    """A name for each image's group that no other data set has; an image by itself keeps its patient's."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(case.groups):
        members[group].append(index)
    names: dict[str, str] = {}
    for group, indices in members.items():
        contents = "".join(sorted(case.facts[index].digest for index in indices))
        names[group] = f"group {hashlib.sha256(contents.encode()).hexdigest()[:16]}"
    return [
        names[group] if len(members[group]) > 1 else record.patient
        for record, group in zip(case.records, case.groups, strict=True)
    ]


def write_cleaned(path: Path, diagnosis: Diagnosis, *, image_root: Path, drop_near: bool = False) -> dict[str, str]:
    """Write the cleaned manifest and, beside it, the list of what it leaves out.

    The manifest's ``group`` keeps together what the computed groups do, near duplicates too. Its names are made of the
    contents, so that no image of another data set is taken for one of the group; an image that belongs to no other
    keeps the patient that the data gives it, if any.

    Args:
        path: the manifest to write or replace.
        diagnosis: what was found.
        image_root: the folder that the manifest's paths are relative to.
        drop_near: see ``cleaned``.

    Returns:
        The reason by name of what was left out.

    Raises:
        UserError: nothing would be left, or a file cannot be written.
    """
    case = diagnosis.case
    reasons = cleaned(case, drop_near=drop_near)
    leaks = any(finding.key == "split_leaks" for finding in diagnosis.findings)
    kept = [
        replace(record, patient=group, split=None if leaks else record.split)
        for record, group in zip(case.records, _group_names(case), strict=True)
        if record.name not in reasons
    ]
    if not kept:
        raise UserError(f"{path}: no image would be left", remedy="mend the errors that the doctor lists first")
    write_manifest(path, kept, image_root=image_root)
    table = io.StringIO(newline="")
    writer = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["image", "reason"])
    writer.writerows(sorted(reasons.items()))
    atomic_write(left_out_path(path), table.getvalue())
    return reasons
