"""A paired tree: ``rgb/`` and ``binary/`` with the same names, masks of white cells on black."""

from __future__ import annotations

from pathlib import Path

from data.file_listing import check_pairs, child_folder, images_by_stem
from data.labels_file import LABELS_FILE, LabelRow, read_labels
from data.layout_anerbc import label_of_suffix, parent_of
from data.problems import Problems
from data.records import CLASS_NAMES, SmearRecord
from data.vocabulary import LABEL_OF_WORD, word
from util.errors import UserError

LOOKED_FOR = "rgb/ and binary/ with the same names"


def is_paired(folder: Path) -> bool:
    """Say whether this is a paired tree."""
    return child_folder(folder, "rgb") is not None and child_folder(folder, "binary") is not None


def read_paired(root: Path, problems: Problems) -> list[SmearRecord]:
    """List the records of a paired tree; rgb/ and binary/ hold the same names, in the same sub-folders.

    Raises:
        UserError: what ``problems`` raises.
    """
    rgb, binary = child_folder(root, "rgb"), child_folder(root, "binary")
    assert rgb is not None and binary is not None  # the detector saw both
    images, masks = images_by_stem(rgb, root, problems), images_by_stem(binary, root, problems)
    check_pairs(images, masks, rgb, binary, problems)
    rows = read_labels(root, (root, rgb), list(images.values()), problems)
    return [_record(root, rgb, image, masks.get(key), rows.get(image), problems) for key, image in images.items()]


def _record(
    root: Path, rgb: Path, image: Path, mask: Path | None, row: LabelRow | None, problems: Problems
) -> SmearRecord:
    """Put together what labels.csv, the sub-folder and the name say of one pair; labels.csv has the last word."""
    name = image.relative_to(root).as_posix()
    label = row.label if row and row.label is not None else _implied_label(image, rgb, problems)
    severity = row.severity if row else None
    return SmearRecord(
        name,
        image,
        mask,
        label=label,
        severity=severity,
        parent=(row.parent if row else "") or parent_of(image.stem) or name,
        severity_source=LABELS_FILE if severity else "",
    )


def _implied_label(image: Path, rgb: Path, problems: Problems) -> int | None:
    """Read the class from the sub-folders below ``rgb`` and from the suffix _a or _h of the name."""
    folders = image.relative_to(rgb).parent.parts
    said = {f"folder {part}": LABEL_OF_WORD[word(part)] for part in folders if word(part) in LABEL_OF_WORD}
    suffix = label_of_suffix(image.stem)
    if suffix is not None:
        said[f"suffix _{'ha'[suffix]}"] = suffix
    if len(set(said.values())) < 2:
        return next(iter(said.values()), None)
    problems.add(
        UserError(
            f"{image}: folder and name do not agree on the class",
            expected="one class",
            found=", ".join(f"{source} says {CLASS_NAMES[label]}" for source, label in said.items()),
            remedy=f"move or rename the file, or state its class in {LABELS_FILE}",
        )
    )
    return None
