"""Finding the smears under a data root: which layout it has, which files belong together, and what their names say."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data.images import ACCEPTED, FAMILY_OF_SUFFIX, read_size
from data.records import ANEMIC, CLASS_NAMES, HEALTHY, SmearRecord
from util.errors import UserError

LABELS_FILE = "labels.csv"
SEVERITIES = ("Mild", "Chronic")

_ANERBC_PARTS = ("AneRBC-I", "AneRBC-II")
_ANERBC_CLASSES = {"Anemic_individuals": ANEMIC, "Healthy_individuals": HEALTHY}
_LABEL_OF_LETTER = {"a": ANEMIC, "h": HEALTHY}
_LABEL_OF_WORD = {
    "healthy": HEALTHY,
    "healthy_individuals": HEALTHY,
    "anemic": ANEMIC,
    "anaemic": ANEMIC,
    "anemic_individuals": ANEMIC,
}
_SUFFIXED = re.compile(r".*_([ah])", re.DOTALL)
_PLAIN = re.compile(r"(\d+)_([ah])", re.ASCII)
_TILE = re.compile(r"(\d+)_(\d{2})_([ah])", re.ASCII)
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LISTED = 5


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data root.

    Attributes:
        name: what error messages call it.
        looked_for: what ``detect`` looks for, in words.
        detect: says whether a folder is laid out so, without opening images.
        read: lists its records; the folder is absolute.
    """

    name: str
    looked_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], list[SmearRecord]]


@dataclass(frozen=True)
class _LabelRow:
    """One row of a paired tree's labels.csv."""

    label: int | None
    severity: str | None
    parent: str


def read_dataroot(root: str | Path, *, check_sizes: bool = True) -> list[SmearRecord]:
    """List the smears of a data root, whatever its layout.

    AneRBC's own tree (outer or inner folder) and a paired tree (``rgb/`` and ``binary/``) are told apart by what is
    there. In a paired tree masks are white cells on black; in AneRBC's they are dark cells on white.

    Args:
        root: the data root; it may be a symbolic link itself, but nothing in it may lead outside.
        check_sizes: whether each pair's headers are read and compared; a caller that wants every bad pair, not the
            first, says False and asks ``pair_errors``.

    Returns:
        The records sorted by name; names are posix paths relative to ``root``, so they start with ``AneRBC-I/`` where
        the outer folder was given.

    Raises:
        UserError: no such folder, an empty one, an unknown layout, a class that name and folder do not agree on, an
            image without its mask or a mask without its image, a pair of two sizes, a link that leads outside.
    """
    folder = Path(root).absolute()
    try:
        records = sorted(_layout_of(folder).read(folder), key=lambda record: record.name)
    except OSError as error:
        found = error.strerror or str(error)
        what = f"{error.filename or folder}: cannot be listed"
        raise UserError(what, expected="a readable folder", found=found, remedy="check its permissions") from error
    if not records:
        raise UserError(
            f"{folder}: no images", expected=f"{ACCEPTED} images", found="empty folders", remedy="check the path"
        )
    errors = pair_errors(records) if check_sizes else []
    if errors:
        more = f" ({len(errors) - 1} more pairs like it)" if len(errors) > 1 else ""
        first = errors[0]
        raise UserError(first.what + more, expected=first.expected, found=first.found, remedy=first.remedy) from first
    return records


def pair_errors(records: Sequence[SmearRecord], *, workers: int | None = None) -> list[UserError]:
    """Compare image and mask sizes from the headers of every pair.

    Args:
        records: any records; those without a mask are passed over.
        workers: threads that read headers.

    Returns:
        One error for each pair whose sizes differ or whose header cannot be read, in the order of ``records``.
    """
    pairs = [record for record in records if record.mask is not None]
    with ThreadPoolExecutor(workers or min(16, 2 * (os.cpu_count() or 1))) as pool:
        return [error for error in pool.map(_pair_error, pairs, chunksize=64) if error is not None]


def parent_of(stem: str) -> str | None:
    """Name the image that a file was cut from, by AneRBC's naming.

    Args:
        stem: a file name without extension: ``001_a`` (AneRBC-I) or ``0001_05_a`` (tile 05 of it, AneRBC-II).

    Returns:
        The parent in AneRBC-I's spelling (``001_a`` for both), or None where the name follows neither pattern.
    """
    matched = _PLAIN.fullmatch(stem) or _TILE.fullmatch(stem)
    return f"{int(matched[1]):03d}_{matched[matched.lastindex or 0]}" if matched else None


def _layout_of(folder: Path) -> Layout:
    """Find the one layout that fits, or say what was looked for and what is there."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        remedy = "check --dataroot; give the folder that holds the images"
        raise UserError(f"{folder}: no such data root", expected="a folder of smears", found=found, remedy=remedy)
    fitting = [layout for layout in LAYOUTS if layout.detect(folder)]
    if len(fitting) == 1:
        return fitting[0]
    looked_for = "; or ".join(f"{layout.name}: {layout.looked_for}" for layout in LAYOUTS)
    if fitting:
        names = " and ".join(layout.name for layout in fitting)
        remedy = "give the folder of one of them as the data root"
        raise UserError(f"{folder}: two layouts at once", expected="one layout", found=names, remedy=remedy)
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not _ignored(entry.name))
    found = f"{_some(entries)}" if entries else "an empty folder"
    remedy = "give the folder that directly holds one of these layouts"
    raise UserError(f"{folder}: unknown layout", expected=looked_for, found=found, remedy=remedy)


# --- AneRBC's own tree ------------------------------------------------------------------------------------------------


def _is_anerbc(folder: Path) -> bool:
    """Say whether this is AneRBC-I, AneRBC-II or the folder around them."""
    return any(_has_classes(part) for part in _anerbc_folders(folder))


def _anerbc_folders(folder: Path) -> list[Path]:
    """List the folders in which AneRBC's class folders may be: the folder itself and the two parts of AneRBC."""
    parts = (_child(folder, name) for name in _ANERBC_PARTS)
    return [folder, *(part for part in parts if part is not None)]


def _has_classes(folder: Path) -> bool:
    """Say whether a folder holds at least one of AneRBC's class folders with images in it."""
    classes = [_child(folder, name) for name in _ANERBC_CLASSES]
    return any(
        _child(class_folder, "Original_images") is not None for class_folder in classes if class_folder is not None
    )


def _read_anerbc(root: Path) -> list[SmearRecord]:
    """List AneRBC's records: class by folder, masks dark on white, reports where there are any."""
    parts = [part for part in _anerbc_folders(root) if _has_classes(part)]
    if len(parts) > 1:
        raise UserError(
            f"{root}: holds several AneRBC trees; AneRBC-I and AneRBC-II show the same smears",
            expected="one of them",
            found=" and ".join(str(part) for part in parts),
            remedy=f"pick one: give {parts[-2]} or {parts[-1]} as the data root",
        )
    classes = [(_child(parts[0], name), label) for name, label in _ANERBC_CLASSES.items()]
    return [record for folder, label in classes if folder for record in _read_anerbc_class(root, folder, label)]


def _read_anerbc_class(root: Path, folder: Path, label: int) -> Iterator[SmearRecord]:
    """List the records of one class folder of AneRBC."""
    image_folder = _child(folder, "Original_images")
    if image_folder is None:
        raise UserError(
            f"{folder}: no images of this class",
            expected="a folder Original_images",
            found=_some(sorted(entry.name for entry in folder.iterdir())),
            remedy="put the images there, or take the class folder away",
        )
    images = _images_by_stem(image_folder, root)
    mask_folder = _child(folder, "Binary_segmented")
    masks = _images_by_stem(mask_folder, root) if mask_folder else {}
    if mask_folder:
        _check_pairs(images, masks, image_folder, mask_folder)
    report_folder = _child(folder, "CBC_reports")
    reports = _reports_by_stem(report_folder, root) if report_folder else {}
    for key, image in images.items():
        _check_suffix(image, label)
        name = image.relative_to(root).as_posix()
        parent = parent_of(image.stem) or name
        cbc = _report_of(image.stem, reports)
        yield SmearRecord(name, image, masks.get(key), mask_dark=True, label=label, parent=parent, cbc=cbc)


def _check_suffix(image: Path, label: int) -> None:
    """Refuse a file whose name says another class than its folder; a name that says none is taken by its folder."""
    matched = _SUFFIXED.fullmatch(image.stem)
    if matched and _LABEL_OF_LETTER[matched[1]] != label:
        raise UserError(
            f"{image}: name and folder do not agree on the class",
            expected=f"a name that ends in _{'ha'[label]}, as the folder says {CLASS_NAMES[label]}",
            found=f"_{matched[1]}, which says {CLASS_NAMES[1 - label]}",
            remedy="move the file to the other class, or rename it",
        )


def _reports_by_stem(folder: Path, root: Path) -> dict[str, Path]:
    """List a folder's CBC reports by stem."""
    return {_normal(path.stem): path for path in _files(folder, root) if path.suffix.lower() == ".txt"}


def _report_of(stem: str, reports: Mapping[str, Path]) -> Path | None:
    """Find the report of an image: its own, or else its parent's in either spelling."""
    names = [_normal(stem)]
    parent = parent_of(stem)
    if parent:
        number, letter = parent.split("_")
        names += [parent, f"{int(number):04d}_{letter}"]
    return next((reports[name] for name in names if name in reports), None)


# --- paired tree ------------------------------------------------------------------------------------------------------


def _is_paired(folder: Path) -> bool:
    """Say whether this is a paired tree."""
    return _child(folder, "rgb") is not None and _child(folder, "binary") is not None


def _read_paired(root: Path) -> list[SmearRecord]:
    """List the records of a paired tree; rgb/ and binary/ hold the same names, in the same sub-folders."""
    rgb, binary = _child(root, "rgb"), _child(root, "binary")
    assert rgb is not None and binary is not None  # the detector saw both
    images, masks = _images_by_stem(rgb, root), _images_by_stem(binary, root)
    _check_pairs(images, masks, rgb, binary)
    rows = _read_labels(root, rgb, list(images.values()))
    return [_paired_record(root, rgb, image, masks[key], rows.get(image)) for key, image in images.items()]


def _paired_record(root: Path, rgb: Path, image: Path, mask: Path, row: _LabelRow | None) -> SmearRecord:
    """Put together what labels.csv, the sub-folder and the name say of one pair; labels.csv has the last word."""
    name = image.relative_to(root).as_posix()
    label = row.label if row and row.label is not None else _implied_label(image, rgb)
    parent = (row.parent if row else "") or parent_of(image.stem) or name
    return SmearRecord(name, image, mask, label=label, severity=row.severity if row else None, parent=parent)


def _implied_label(image: Path, rgb: Path) -> int | None:
    """Read the class from the sub-folders below ``rgb`` and from the suffix _a or _h of the name."""
    words = [part.lower() for part in image.relative_to(rgb).parent.parts]
    said = {f"folder {word}": _LABEL_OF_WORD[word] for word in words if word in _LABEL_OF_WORD}
    matched = _SUFFIXED.fullmatch(image.stem)
    if matched:
        said[f"suffix _{matched[1]}"] = _LABEL_OF_LETTER[matched[1]]
    if len(set(said.values())) > 1:
        raise UserError(
            f"{image}: folder and name do not agree on the class",
            expected="one class",
            found=", ".join(f"{source} says {CLASS_NAMES[label]}" for source, label in said.items()),
            remedy=f"move or rename the file, or state its class in {LABELS_FILE}",
        )
    return next(iter(said.values()), None)


def _read_labels(root: Path, rgb: Path, images: Sequence[Path]) -> dict[Path, _LabelRow]:
    """Read labels.csv (image,label[,severity,parent]) where there is one."""
    path = root / LABELS_FILE
    if not path.exists() and not path.is_symlink():
        return {}
    _check_inside(path, root)
    by_name = {_normal(image.relative_to(folder).as_posix()): image for folder in (root, rgb) for image in images}
    rows: dict[Path, _LabelRow] = {}
    for line, fields in _csv_rows(path):
        image = by_name.get(_normal(fields["image"]))
        if image is None or image in rows:
            raise UserError(
                f"{path}, line {line}: " + ("no such image" if image is None else "the image has a row already"),
                expected="each image of rgb/ at most once, by its path in rgb/ with its extension",
                found=repr(fields["image"]),
                remedy="correct or delete the row",
            )
        rows[image] = _label_row(path, line, fields)
    return rows


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, fields) of labels.csv, with its header checked."""
    expected = "a UTF-8 CSV file with the columns image,label and, where wanted, severity,parent"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            if not {"image", "label"} <= set(columns) <= {"image", "label", "severity", "parent"}:
                found = f"the columns {','.join(columns)}"
                raise UserError(
                    f"{path}: wrong columns", expected=expected, found=found, remedy="correct the first line"
                )
            for fields in reader:
                if None in fields or None in fields.values():
                    found = f"line {reader.line_num} with more or fewer cells than the header"
                    raise UserError(f"{path}: damaged row", expected=expected, found=found, remedy="correct the line")
                yield reader.line_num, fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read", expected=expected, found=str(error), remedy="save it again"
        ) from error


def _label_row(path: Path, line: int, fields: Mapping[str, str]) -> _LabelRow:
    """Turn the words of one row into a label, a severity and a parent."""
    words: dict[str, int | None] = {"": None, "0": HEALTHY, "1": ANEMIC, **_LABEL_OF_WORD}
    severities: dict[str, str | None] = {"": None, **{word.lower(): word for word in SEVERITIES}}
    label, severity = fields["label"].strip().lower(), fields.get("severity", "").strip().lower()
    if label not in words or severity not in severities:
        raise UserError(
            f"{path}, line {line}: unknown " + ("label" if label not in words else "severity"),
            expected="label Healthy, Anemic, 0, 1 or nothing; severity Mild, Chronic or nothing",
            found=repr(fields["label"] if label not in words else fields["severity"]),
            remedy="correct the row",
        )
    return _LabelRow(words[label], severities[severity], fields.get("parent", "").strip())


LAYOUTS = (
    Layout(
        "AneRBC tree",
        "Anemic_individuals/ or Healthy_individuals/ with Original_images/, here or in AneRBC-I/ or AneRBC-II/",
        _is_anerbc,
        _read_anerbc,
    ),
    Layout("paired tree", "rgb/ and binary/ with the same names", _is_paired, _read_paired),
)


# --- files ------------------------------------------------------------------------------------------------------------


def _images_by_stem(folder: Path, root: Path) -> dict[str, Path]:
    """List a folder's images by their path in it, without extension."""
    images: dict[str, Path] = {}
    for path in _files(folder, root):
        if path.suffix.lower() not in FAMILY_OF_SUFFIX:
            raise UserError(
                f"{path}: not an image",
                expected=f"only {ACCEPTED} files in {folder.name}/",
                found=f"extension {path.suffix!r}",
                remedy="move the file elsewhere, or convert it to PNG",
            )
        key = _normal(path.relative_to(folder).with_suffix("").as_posix())
        if key in images:
            raise UserError(
                f"{path}: two images of the same name",
                expected="one image of each name, whatever its extension",
                found=f"{images[key].name} and {path.name}",
                remedy="rename or remove one of them",
            )
        images[key] = path
    return images


def _check_pairs(images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path) -> None:
    """Refuse images without a mask and masks without an image."""
    for one, other, folder, missing_in, what in (
        (masks, images, mask_folder, image_folder, "masks without an image"),
        (images, masks, image_folder, mask_folder, "images without a mask"),
    ):
        alone = sorted(one[key].relative_to(folder).as_posix() for key in one.keys() - other.keys())
        if alone:
            raise UserError(
                f"{folder}: {len(alone)} {what}",
                expected=f"the same names in {folder} and {missing_in}",
                found=f"only in {folder.name}: {_some(alone)}",
                remedy=f"add their counterparts to {missing_in.name}, or remove them",
            )


def _pair_error(record: SmearRecord) -> UserError | None:
    """Compare the header sizes of one pair."""
    assert record.mask is not None
    try:
        image_size, mask_size = read_size(record.image), read_size(record.mask)
    except UserError as error:
        return error
    if image_size == mask_size:
        return None
    image_text, mask_text = (f"{width}x{height}" for width, height in (image_size, mask_size))
    return UserError(
        f"{record.image}: its mask has another size",
        expected=f"{image_text}, as the image",
        found=f"{mask_text} in {record.mask}",
        remedy="export the mask again at the image's size, or remove the pair",
    )


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the files below a folder, except those that a system left there; links must stay inside the root."""
    pending = [folder]
    while pending:
        current = pending.pop()
        _check_inside(current, root)
        for entry in sorted(os.scandir(current), key=lambda entry: entry.name):
            path = current / entry.name
            if _ignored(entry.name):
                continue
            if entry.is_symlink():
                _check_inside(path, root)
                _check_no_loop(path, current)
            if entry.is_dir():
                pending.append(path)
            elif entry.is_file():
                yield path
            else:
                raise UserError(
                    f"{path}: no regular file", expected="an image", found="a device or pipe", remedy="remove it"
                )


def _check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads nowhere or outside the data root."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        remedy = "remove the link or restore its target"
        raise UserError(f"{path}: broken link", expected="a file", found=str(error), remedy=remedy) from error
    if not real.is_relative_to(root.resolve()):
        raise UserError(
            f"{path}: the link leads outside the data root",
            expected=f"files inside {root.resolve()}",
            found=str(real),
            remedy="copy the file into the data root, or give the folder that holds it all",
        )


def _check_no_loop(path: Path, current: Path) -> None:
    """Refuse a link to one of the folders around it, which would never end."""
    if current.resolve().is_relative_to(path.resolve()):
        remedy = "remove the link"
        raise UserError(
            f"{path}: endless link", expected="an image or a folder", found=str(path.resolve()), remedy=remedy
        )


def _child(folder: Path, name: str) -> Path | None:
    """Find a sub-folder by name, in any case of letters; the exact spelling wins."""
    if not folder.is_dir():
        return None
    matching = sorted(entry for entry in folder.iterdir() if entry.name.lower() == name.lower() and entry.is_dir())
    return next((entry for entry in matching if entry.name == name), matching[0] if matching else None)


def _ignored(name: str) -> bool:
    """Say whether an operating system put this file or folder there."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _normal(text: str) -> str:
    """Bring a name to one Unicode form: archives made on macOS spell accents in two characters."""
    return unicodedata.normalize("NFC", text)


def _some(names: Sequence[str]) -> str:
    """List the first few names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
