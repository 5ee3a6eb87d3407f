"""Split files: what they say of each image, and that none is used whose sides share what belongs together."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from data.records import CLASS_NAMES
from util.errors import UserError
from util.files import atomic_write

SIDES = ("train", "val", "test")
EXCLUDED = "excluded"
ACCEPTED = "leak accepted: "  # how the reason of a row begins whose leak the user chose to report only
_FIRST_COLUMNS = 6  # image to reason: all that a split file once had


@dataclass(frozen=True)
class SplitRow:
    """What the split file says of one image.

    Attributes:
        image: name of the image (posix path relative to the data root).
        label: HEALTHY, ANEMIC or None where unknown.
        group: name of the group that it may not be parted from.
        content: digest of its pixels.
        split: "train", "val", "test" or "excluded".
        reason: why it is excluded, or why it stands where it does, else empty.
        parent: what the image was cut from; empty stands for the image itself.
        cbc: digest of its blood count, empty where there is none.
        mask: whether it had a true mask.
        patient: who it is of, empty where unknown.
    """

    image: str
    label: int | None
    group: str
    content: str
    split: str
    reason: str = ""
    parent: str = ""
    cbc: str = ""
    mask: bool = False
    patient: str = ""


def write_split(path: str | Path, rows: Sequence[SplitRow]) -> None:
    """Write a split file at once or not at all.

    It is made for machines: every cell is quoted and holds the exact string, also where a spreadsheet would take a name
    that begins with ``=``, ``+``, ``-`` or ``@`` for a formula. Labels are 0, 1 or nothing, masks 0 or 1. An existing
    file is replaced.

    Args:
        path: the CSV file; its folder is made where it is missing.
        rows: what ``make_split`` gave.

    Raises:
        UserError: the rows leak (see ``read_split``), or the file cannot be written.
    """
    path = Path(path)
    check_rows(rows, str(path))
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(_columns())
    writer.writerows(_cells(row) for row in rows)
    atomic_write(path, _encoded(text.getvalue()), make_parents=True)


def read_split(path: str | Path, *, leaks: bool = False) -> list[SplitRow]:
    """Read a split file and refuse one that leaks.

    Args:
        path: a file that ``write_split`` wrote, possibly edited by hand.
        leaks: whether one that leaks is read all the same.

    Returns:
        Its rows, in order.

    Raises:
        UserError: no such file, other columns, an unknown split or label, an image twice, or a group, a content, a
            parent or a blood count on two sides (two of the files are named).
    """
    path = Path(path)
    rows = [_parse_row(path, line, cells) for line, cells in _csv_lines(path)]
    if not rows:
        raise UserError(
            f"{path}: the split is empty", expected="a row for each image", found="none", remedy="make it again"
        )
    check_rows(rows, str(path), leaks=leaks)
    return rows


def rows_digest(rows: Sequence[SplitRow]) -> str:
    """Hash all that a split says, in order; a file that is written and read again keeps its digest."""
    return hashlib.sha256(json.dumps([astuple(row) for row in rows]).encode()).hexdigest()


def _columns() -> list[str]:
    """Name the columns of the split file."""
    return [field.name for field in fields(SplitRow)]


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) below a checked header."""
    expected = f"a CSV file with the columns {','.join(_columns())}"
    try:
        reader = csv.reader(io.StringIO(_decoded(path.read_bytes()), newline=""), strict=True)
        header = next(reader, [])
        if header != _columns():
            raise _header_error(path, header, expected)
        for cells in reader:
            yield reader.line_num, cells
    except (OSError, csv.Error) as error:
        raise UserError(
            f"{path}: cannot be read", expected=expected, found=str(error), remedy="make the split again"
        ) from error


def _encoded(text: str) -> bytes:
    """UTF-8 in which bytes of file names that are none stand as they are, and which ``_decoded`` gives back as it was.

    Where names hold halves of surrogate pairs of another kind, which no file name gives but a table can, the file is in
    the extended UTF-8 that has a place for them.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
        if _decoded(data) == text:
            return data
    except UnicodeEncodeError:
        pass
    return text.encode("utf-8", "surrogatepass")


def _decoded(data: bytes) -> str:
    """What ``_encoded`` was given."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def _header_error(path: Path, header: Sequence[str], expected: str) -> UserError:
    """Tell a split file of before all columns were recorded from what is none."""
    older = len(header) >= _FIRST_COLUMNS and list(header) == _columns()[: len(header)]
    missing = ", ".join(_columns()[len(header) :])
    what = f"{path}: an older split file, without {missing}" if older else f"{path}: no split file"
    remedy = "draw it again (3TDCFNet_data.py split)"
    return UserError(what, expected=expected, found=",".join(header) or "nothing", remedy=remedy)


def _cells(row: SplitRow) -> list[str]:
    """Write a row's fields as the file holds them."""
    return ["" if cell is None else str(int(cell)) if isinstance(cell, bool) else str(cell) for cell in astuple(row)]


def _parse_row(path: Path, line: int, cells: Sequence[str]) -> SplitRow:
    """Check the cells of one line."""
    labels: dict[str, int | None] = {"": None, **{str(label): label for label in range(len(CLASS_NAMES))}}
    complete = len(cells) == len(_columns()) and all(cells[:1]) and all(cells[2:5])
    if not complete or cells[1] not in labels or cells[4] not in (*SIDES, EXCLUDED) or cells[8] not in ("0", "1"):
        raise UserError(
            f"{path}, line {line}: not a row of a split",
            expected=f"{','.join(_columns())}; label 0, 1 or none; split {', '.join(SIDES)} or {EXCLUDED}; mask 0 or 1",
            found=",".join(cells),
            remedy="correct the line, or make the split again",
        )
    image, label, group, content, split, reason, parent, cbc, mask, patient = cells
    return SplitRow(image, labels[label], group, content, split, reason, parent, cbc, mask == "1", patient)


def check_rows(rows: Sequence[SplitRow], what: str, *, leaks: bool = False) -> None:
    """Refuse an image listed twice, and what may not be parted on two sides unless the rows accept that."""
    seen: set[str] = set()
    side_of: dict[tuple[str, str], SplitRow] = {}
    for row in rows:
        if row.image in seen:
            found, remedy = repr(row.image), "list each image once"
            raise UserError(f"{what}: an image is listed twice", expected="one row", found=found, remedy=remedy)
        seen.add(row.image)
        bonds = {"patient": row.patient, "content": row.content, "parent": row.parent, "blood count": row.cbc}
        judged = row.split != EXCLUDED and not leaks and not row.reason.startswith(ACCEPTED)
        for kind, value in (bonds | {"group": row.group}).items() if judged else ():
            if value and side_of.setdefault((kind, value), row).split != row.split:
                raise leak_error(what, f"one {kind} {value!r}", side_of[kind, value], row)


def leak_error(what: str, bond: str, one: SplitRow, other: SplitRow) -> UserError:
    """Word the error for two files that belong together and stand on two sides."""
    return UserError(
        f"{what}: the split leaks: {bond} on two sides",
        expected="all that belongs together on one side",
        found=f"{one.image!r} in {one.split}, {other.image!r} in {other.split}",
        remedy="draw the split again, or move one of them; --leaks report goes on and says so in the report",
    )
