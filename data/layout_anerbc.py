"""AneRBC's own tree: class folders with images, masks that are dark on white, and blood counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data.file_listing import check_pairs, child_folder, files_below, images_by_stem, normal, some
from data.problems import Problems
from data.records import ANEMIC, CLASS_NAMES, HEALTHY, SmearRecord
from util.errors import UserError

LOOKED_FOR = "Anemic_individuals/ or Healthy_individuals/ with Original_images/, here or in AneRBC-I/ or AneRBC-II/"

_PARTS = ("AneRBC-I", "AneRBC-II")
_CLASSES = {"Anemic_individuals": ANEMIC, "Healthy_individuals": HEALTHY}
_LABEL_OF_LETTER = {"a": ANEMIC, "h": HEALTHY}
_SUFFIXED = re.compile(r".*_([ah])", re.DOTALL)
FULL_SMEAR = re.compile(r"(\d+)_([ah])", re.ASCII)
_TILE = re.compile(r"(\d+)_(\d{2})_([ah])", re.ASCII)


def parent_of(stem: str) -> str | None:
    """Name the image that a file was cut from, by AneRBC's naming.

    Args:
        stem: a file name without extension: ``001_a`` (AneRBC-I) or ``0001_05_a`` (tile 05 of it, AneRBC-II).

    Returns:
        The parent in AneRBC-I's spelling (``001_a`` for both), or None where the name follows neither pattern.
    """
    matched = FULL_SMEAR.fullmatch(stem) or _TILE.fullmatch(stem)
    return f"{int(matched[1]):03d}_{matched[matched.lastindex or 0]}" if matched else None


def label_of_suffix(stem: str) -> int | None:
    """Read the class from a name that ends in _a or _h; None where it ends otherwise."""
    matched = _SUFFIXED.fullmatch(stem)
    return _LABEL_OF_LETTER[matched[1]] if matched else None


def is_anerbc(folder: Path) -> bool:
    """Say whether this is AneRBC-I, AneRBC-II or the folder around them."""
    return any(_has_classes(part) for part in _candidates(folder))


def read_anerbc(root: Path, problems: Problems) -> list[SmearRecord]:
    """List AneRBC's records: class by folder, masks dark on white, reports where there are any.

    Raises:
        UserError: AneRBC-I and AneRBC-II are both there; and what ``problems`` raises.
    """
    parts = [part for part in _candidates(root) if _has_classes(part)]
    if len(parts) > 1:
        raise UserError(
            f"{root}: holds several AneRBC trees; AneRBC-I and AneRBC-II show the same smears",
            expected="one of them",
            found=" and ".join(str(part) for part in parts),
            remedy=f"pick one: give {parts[-2]} or {parts[-1]} as the data root",
        )
    classes = [(child_folder(parts[0], name), label) for name, label in _CLASSES.items()]
    return [record for folder, label in classes if folder for record in _read_class(root, folder, label, problems)]


def _candidates(folder: Path) -> list[Path]:
    """List the folders in which AneRBC's class folders may be: the folder itself and the two parts of AneRBC."""
    parts = (child_folder(folder, name) for name in _PARTS)
    return [folder, *(part for part in parts if part is not None)]


def _has_classes(folder: Path) -> bool:
    """Say whether a folder holds at least one of AneRBC's class folders with images in it."""
    classes = [child_folder(folder, name) for name in _CLASSES]
    return any(
        child_folder(class_folder, "Original_images") is not None
        for class_folder in classes
        if class_folder is not None
    )


def _read_class(root: Path, folder: Path, label: int, problems: Problems) -> Iterator[SmearRecord]:
    """List the records of one class folder of AneRBC."""
    image_folder = child_folder(folder, "Original_images")
    if image_folder is None:
        problems.add(_no_images_folder(folder))
        return
    images = images_by_stem(image_folder, root, problems)
    mask_folder = child_folder(folder, "Binary_segmented")
    masks = images_by_stem(mask_folder, root, problems) if mask_folder else {}
    if mask_folder:
        check_pairs(images, masks, image_folder, mask_folder, problems)
    report_folder = child_folder(folder, "CBC_reports")
    reports = _reports_by_stem(report_folder, root, problems) if report_folder else {}
    for key, image in images.items():
        name = image.relative_to(root).as_posix()
        parent = parent_of(image.stem) or name
        agreed = _agreed_label(image, label, problems)
        cbc = _report_of(image.stem, reports)
        yield SmearRecord(name, image, masks.get(key), mask_dark=True, label=agreed, parent=parent, cbc=cbc)


def _no_images_folder(folder: Path) -> UserError:
    """Word the error for a class folder without Original_images."""
    return UserError(
        f"{folder}: no images of this class",
        expected="a folder Original_images",
        found=some(sorted(entry.name for entry in folder.iterdir())),
        remedy="put the images there, or take the class folder away",
    )


def _agreed_label(image: Path, label: int, problems: Problems) -> int | None:
    """Give the folder's class, or None with a problem where the file's name says another one."""
    said = label_of_suffix(image.stem)
    if said is None or said == label:
        return label
    problems.add(
        UserError(
            f"{image}: name and folder do not agree on the class",
            expected=f"a name that ends in _{'ha'[label]}, as the folder says {CLASS_NAMES[label]}",
            found=f"_{'ha'[said]}, which says {CLASS_NAMES[said]}",
            remedy="move the file to the other class, or rename it",
        )
    )
    return None


def _reports_by_stem(folder: Path, root: Path, problems: Problems) -> dict[str, Path]:
    """List a folder's CBC reports by stem."""
    paths = files_below(folder, root, problems)
    return {normal(path.stem): path for path in paths if path.suffix.lower() == ".txt"}


def _report_of(stem: str, reports: Mapping[str, Path]) -> Path | None:
    """Find the report of an image: its own, or else its parent's in either spelling."""
    names = [normal(stem)]
    parent = parent_of(stem)
    if parent:
        number, letter = parent.split("_")
        names += [parent, f"{int(number):04d}_{letter}"]
    return next((reports[name] for name in names if name in reports), None)
