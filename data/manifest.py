"""A manifest: one CSV row for each smear, with its files and what is known of it; read, and written.

| column | holds |
|---|---|
| image | path of the image, relative to the image folder (by default the manifest's own); the only column needed |
| mask | path of its mask, relative likewise; empty where there is none |
| label | Healthy, Anemic, 0, 1 (words as in ``data.vocabulary``) or empty |
| severity | Mild, Chronic, severe (taken for Chronic) or empty; only of smears labelled Anemic |
| group | patient, or any other name of what must not be parted; empty where unknown |
| split | train, val, test, excluded; or empty in every row |
| mask_dark | 1 where the mask draws cells dark on white, else 0 or empty |
| side_by_side | 1 where the image file holds the smear in its left half and the mask in its right half |
| parent | the image that this one was cut from; empty: as its name says, or itself |
| cbc | path of its blood-count report, relative likewise |
| haemoglobin | g/dL, or empty |

Paths use forward slashes and stay below the image folder. Every cell is plain text: one that begins with ``=``, ``+``,
``-`` or ``@`` is a name like any other here, and is written exactly, in quotes, as in split.csv. A spreadsheet may take
it for a formula: open a manifest from strangers with care.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import NamedTuple, NoReturn

from data.file_listing import check_inside, is_image_name, normal
from data.images import ACCEPTED
from data.labels_file import label_and_severity
from data.layout_anerbc import parent_of
from data.problems import Problems
from data.records import ANEMIC, CLASS_NAMES, SmearRecord
from data.severity import check_haemoglobin
from data.tables import Row, table_rows
from data.vocabulary import SIDE_OF_WORD, word
from util.errors import UserError
from util.files import atomic_write

MANIFEST_FILE = "manifest.csv"
LOOKED_FOR = f"{MANIFEST_FILE}, or a path to any .csv file, with a column image"
COLUMNS = ("image", "mask", "label", "severity", "group", "split")
OPTIONAL_COLUMNS = ("mask_dark", "side_by_side", "parent", "cbc", "haemoglobin")
EXCLUDED = "excluded"
SOURCE = "manifest"

# A comma with three digits behind it would be thousands to some; no underscores, which Python takes.
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+(e[+-]?[0-9]+)?|,[0-9]{1,2})?")
_TRUTH = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}
_SPLITS = {"": None, EXCLUDED: EXCLUDED, **SIDE_OF_WORD}


class _Listed(NamedTuple):
    """A record and the line that it comes from."""

    line: int
    record: SmearRecord


def read_manifest(path: Path, *, image_root: Path | None = None) -> list[SmearRecord]:
    """Read a manifest.

    Args:
        path: the CSV file: UTF-8, cells separated by commas (or semicolons or tabs, as spreadsheets write in Europe).
        image_root: folder to which its paths are relative, by default its own.

    Returns:
        One record a row, in order; names are posix paths relative to ``image_root``.

    Raises:
        UserError: it is no such table; or, with its line, a path that leads outside or to nothing, an image twice, an
            unknown word, a value that is none, a split of some rows only, or a group on two sides.
    """
    return list_manifest(path, Problems(), image_root=image_root)


def list_manifest(path: Path, problems: Problems, *, image_root: Path | None = None) -> list[SmearRecord]:
    """Read a manifest as ``read_manifest`` does; what is wrong in single rows goes to ``problems``.

    Raises:
        UserError: it is no table with these columns or has no rows; and what ``problems`` raises.
    """
    path = Path(path).absolute()
    root = path.parent if image_root is None else Path(image_root).absolute()
    if not path.is_file() or not root.is_dir():
        missing, kind = (root, "folder") if path.is_file() else (path, "file")
        found = "something else" if missing.exists() else "nothing"
        remedy = "check the path"
        raise UserError(f"{missing}: no such {kind}", expected=f"a {kind} for the manifest", found=found, remedy=remedy)
    listed = list(_listed(path, root, problems))
    if not listed and not problems.found:
        raise _empty(path)
    _check_spelling(path, listed, problems)
    _check_split(path, listed, problems)
    _check_groups(path, listed, problems)
    return [record for _, record in listed]


def write_manifest(path: Path, records: Sequence[SmearRecord], *, image_root: Path) -> None:
    """Write a manifest at once or not at all; an existing file is replaced.

    ``read_manifest`` with the same ``image_root`` gives equal records, where their names are relative to it, ``parent``
    is not empty and ``severity_source`` is "manifest". Every cell is quoted and holds the exact string.

    Args:
        path: the CSV file.
        records: what it shall list.
        image_root: folder to which the paths shall be relative.

    Raises:
        UserError: ``read_manifest`` would refuse it (no records, a file outside ``image_root``, a name that no manifest
            can hold, an image twice, a group on two sides ...), or the file cannot be written.
    """
    root = Path(image_root).absolute()
    rows = [_cells(record, root) for record in records]
    _check_written(path, records, rows)
    used = [name for name in OPTIONAL_COLUMNS if any(row[name] for row in rows)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *used], extrasaction="ignore", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(Path(path), text.getvalue())


# --- reading ----------------------------------------------------------------------------------------------------------


def _listed(path: Path, root: Path, problems: Problems) -> Iterator[_Listed]:
    """Yield the good rows."""
    lines: dict[str, int] = {}
    optional = (*COLUMNS[1:], *OPTIONAL_COLUMNS)
    for line, cells in table_rows(path, required=COLUMNS[:1], optional=optional, problems=problems):
        with problems.kept():
            record = _record(f"{path}, line {line}", root, path, line, cells)
            _check_once(path, line, record.name, lines)
            yield _Listed(line, record)


def _check_once(path: Path, line: int, name: str, lines: dict[str, int]) -> None:
    """Refuse an image listed twice, or two whose outputs would have one name; notes its line in ``lines``."""
    key = normal(PurePosixPath(name).with_suffix("").as_posix())
    if lines.setdefault(key, line) != line:
        _refuse(
            f"{path}, line {line}: the image has a row already",
            expected="each image once, and no two of one name with different extensions",
            found=f"{name!r}, as in line {lines[key]}",
            remedy="delete one of the rows, or rename one of the files",
        )


def _record(where: str, root: Path, path: Path, line: int, cells: Row) -> SmearRecord:
    """Turn a row into a record."""
    image = _file(where, "image", root, cells["image"])
    joined = _flag(where, "side_by_side", cells)
    mask = _mask(where, root, cells.get("mask", ""), image, joined)
    label, severity = label_and_severity(path, line, cells)
    _check_severity(where, label, severity)
    name = image.relative_to(root).as_posix()
    return SmearRecord(
        name,
        image,
        mask,
        mask_dark=_flag(where, "mask_dark", cells),
        label=label,
        severity=severity,
        parent=cells.get("parent", "") or parent_of(image.stem) or name,
        cbc=_file(where, "cbc", root, cells["cbc"]) if cells.get("cbc") else None,
        side_by_side=joined,
        patient=cells.get("group", ""),
        split=_choice(where, "split", cells, _SPLITS),
        haemoglobin=_haemoglobin(where, cells.get("haemoglobin", "")),
        severity_source=SOURCE if severity else "",
    )


def _check_severity(where: str, label: int | None, severity: str | None) -> None:
    """Refuse a severity of what is not said to be anemic."""
    if severity and label != ANEMIC:
        found = f"severity {severity} with label " + ("none" if label is None else CLASS_NAMES[label])
        remedy = "correct the label, or leave the severity empty"
        _refuse(f"{where}: a severity without anemia", expected="label Anemic", found=found, remedy=remedy)


def _mask(where: str, root: Path, cell: str, image: Path, joined: bool) -> Path | None:
    """Find the mask of a row: of a side-by-side file it is the image, of any other it is not."""
    mask = _file(where, "mask", root, cell) if cell else image if joined else None
    if mask is not None and (mask == image) != joined:
        _refuse(
            f"{where}: mask and side_by_side contradict each other",
            expected="the mask in a file of its own, or in the image file with side_by_side 1",
            found=f"mask {cell!r} with side_by_side {int(joined)}",
            remedy="set side_by_side to 1 where one file holds both; leave mask empty there",
        )
    return mask


def _file(where: str, column: str, root: Path, cell: str) -> Path:
    """Find the file that a cell names, inside the image folder."""
    _check_path(where, column, cell)
    # Archives made on macOS spell accents in two characters, tables in one.
    named = [root / PurePosixPath(cell), root / PurePosixPath(normal(cell))]
    path = next((path for path in named if _is_file(path)), None)
    if path is None:
        slashes = "; paths are written with forward slashes" if "\\" in cell else ""
        _refuse(
            f"{where}: no such file in column {column}",
            expected=f"a file below {root}",
            found=repr(cell[:200]),
            remedy=f"correct the path, or give the folder of the images (image root){slashes}",
        )
    check_inside(path, root)
    if column != "cbc" and not is_image_name(path):
        remedy = "convert it to PNG, or correct the path"
        _refuse(f"{where}: not an image in column {column}", expected=ACCEPTED, found=repr(cell[:200]), remedy=remedy)
    return path


def _is_file(path: Path) -> bool:
    """Say whether there is a file; a name too long for the system is none, and neither is a link in a circle."""
    try:
        return path.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _check_path(where: str, column: str, cell: str) -> None:
    """Refuse what is no relative path that stays below its folder, on any system."""
    kinds: tuple[PurePath, ...] = (PurePosixPath(cell), PureWindowsPath(cell))
    if not cell.strip() or not PurePosixPath(cell).name:
        found, remedy = repr(cell), "name the file, or delete the row"
        _refuse(f"{where}: no file in column {column}", expected="a relative path", found=found, remedy=remedy)
    if "\0" in cell or any(kind.anchor or ".." in kind.parts for kind in kinds):
        _refuse(
            f"{where}: a path that may lead outside in column {column}",
            expected="a path relative to the image folder, without '..', drive letter or NUL byte",
            found=repr(cell[:200]),
            remedy="write the path relative to the folder of all images, and give that folder as the image root",
        )


def _flag(where: str, column: str, cells: Row) -> bool:
    """Read a yes or no; an empty or missing cell is no."""
    return bool(_choice(where, column, cells, _TRUTH))


def _choice(where: str, column: str, cells: Row, meanings: Mapping[str, bool | str | None]) -> str | None:
    """Read one of some words."""
    cell = cells.get(column, "")
    if word(cell) not in meanings:
        expected = ", ".join(name for name in meanings if name) + " or nothing"
        _refuse(f"{where}: unknown {column}", expected=expected, found=repr(cell[:80]), remedy="correct the row")
    meaning = meanings[word(cell)]
    return meaning if isinstance(meaning, str) or meaning is None else "1" * meaning


def _haemoglobin(where: str, cell: str) -> float | None:
    """Read g/dL, with a decimal point or comma."""
    if not cell.strip():
        return None
    if not _NUMBER.fullmatch(cell.strip()):
        remedy = "write the number alone, or leave the cell empty"
        _refuse(f"{where}: no haemoglobin", expected="a number, in g/dL", found=repr(cell[:80]), remedy=remedy)
    value = float(cell.strip().replace(",", "."))
    check_haemoglobin(value, where)
    return value


def _refuse(what: str, *, expected: str, found: str, remedy: str) -> NoReturn:
    """Raise the user's error."""
    raise UserError(what, expected=expected, found=found, remedy=remedy)


def _empty(path: Path) -> UserError:
    """Word the error for a manifest without rows."""
    found, remedy = "none below the header", "add a row for each smear"
    return UserError(f"{path}: the manifest is empty", expected="one row a smear", found=found, remedy=remedy)


def _check_split(path: Path, listed: Sequence[_Listed], problems: Problems) -> None:
    """Find rows without a side where others have one: all are dealt by the manifest, or none."""
    without = [item for item in listed if item.record.split is None]
    if without and len(without) < len(listed):
        problems.add(
            UserError(
                f"{path}, line {without[0].line}: a row without a split",
                expected=f"train, val, test or {EXCLUDED} in every row, or in none",
                found=f"{len(without)} of {len(listed)} rows without, first {without[0].record.name!r}",
                remedy="fill the column, or leave it empty to have a split drawn",
            )
        )


def _check_spelling(path: Path, listed: Sequence[_Listed], problems: Problems) -> None:
    """Find groups that differ only in what no eye sees: spaces around them, or the Unicode form of an accent."""
    first: dict[str, _Listed] = {}
    for item in listed:
        group = item.record.patient
        other = first.setdefault(normal(group).strip(), item)
        if other.record.patient != group:
            problems.add(
                UserError(
                    f"{path}, line {item.line}: one group in two spellings, which would part it",
                    expected=f"{other.record.patient!r}, as in line {other.line}",
                    found=ascii(group),
                    remedy="write the group alike everywhere, without spaces around it",
                )
            )


def _check_groups(path: Path, listed: Sequence[_Listed], problems: Problems) -> None:
    """Find groups on two sides."""
    first: dict[str, _Listed] = {}
    told: set[str] = set()
    for item in listed:
        group, side = item.record.patient, item.record.split
        if not group or group in told or side in (None, EXCLUDED):
            continue
        other = first.setdefault(group, item)
        if other.record.split == side:
            continue
        told.add(group)
        one, two = (f"line {each.line} ({each.record.name!r}) in {each.record.split}" for each in (other, item))
        problems.add(
            UserError(
                f"{path}, line {item.line}: the split leaks: group {group!r} stands on two sides",
                expected="all images of a group on one side",
                found=f"{one}, {two}",
                remedy="move the whole group to one side, or leave the column split empty to have one drawn",
            )
        )


# --- writing ----------------------------------------------------------------------------------------------------------


def _check_written(path: Path, records: Sequence[SmearRecord], rows: Sequence[Row]) -> None:
    """Refuse what ``read_manifest`` would refuse, before anything is written."""
    listed, lines, line = [], dict[str, int](), 2
    if not records:
        raise _empty(path)
    for record, row in zip(records, rows, strict=True):
        _check_once(path, line, row["image"], lines)
        _check_severity(record.name, record.label, record.severity)
        listed.append(_Listed(line, record))
        line += 1 + sum(cell.count("\n") for cell in row.values())
    _check_spelling(path, listed, Problems())
    _check_split(path, listed, Problems())
    _check_groups(path, listed, Problems())


def _cells(record: SmearRecord, root: Path) -> Row:
    """Write a record as the cells of every column."""
    image = _written_path(record.name, "image", record.image, root)
    own_mask = None if record.side_by_side else record.mask
    default_parent = parent_of(record.image.stem) or image
    cells = {
        "image": image,
        "mask": _written_path(record.name, "mask", own_mask, root) if own_mask else "",
        "label": "" if record.label is None else CLASS_NAMES[record.label],
        "severity": record.severity or "",
        "group": record.patient,
        "split": record.split or "",
        "mask_dark": "1" if record.mask_dark else "",
        "side_by_side": "1" if record.side_by_side else "",
        "parent": "" if record.parent == default_parent else record.parent,
        "cbc": _written_path(record.name, "cbc", record.cbc, root) if record.cbc else "",
        "haemoglobin": "" if record.haemoglobin is None else repr(float(record.haemoglobin)),
    }
    _check_text(record.name, cells)
    return cells


def _written_path(name: str, column: str, path: Path, root: Path) -> str:
    """Write a path relative to the image folder."""
    if not path.is_relative_to(root):
        _refuse(
            f"{name}: its {column} cannot be listed in a manifest",
            expected=f"a file below {root}",
            found=str(path),
            remedy="give a folder that holds all files as the image root",
        )
    cell = path.relative_to(root).as_posix()
    _check_path(name, column, cell)
    return cell


def _check_text(name: str, cells: Row) -> None:
    """Refuse names that are no text: bytes that are not UTF-8 would make the whole file unreadable."""
    for column, cell in cells.items():
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            expected, remedy = "a name in UTF-8", "rename the file"
            _refuse(f"{name!r}: no text in column {column}", expected=expected, found=ascii(cell), remedy=remedy)
