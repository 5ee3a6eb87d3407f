"""Reading CSV tables that people write by hand or in a spreadsheet, and saying where they are wrong."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from data.problems import Problems
from util.errors import UserError

Row = dict[str, str]


def table_rows(
    path: Path, *, required: Collection[str], optional: Collection[str], problems: Problems
) -> Iterator[tuple[int, Row]]:
    """Yield (line, cells by column) of a table.

    UTF-8 with or without byte-order mark. The header is taken in any order and any case of letters, and separated by
    commas, or by semicolons or tabs as spreadsheets write where the comma is the decimal sign. Cells are taken as they
    are: plain text, whatever a spreadsheet would make of it. Rows of empty cells are passed over.

    Args:
        path: the CSV file.
        required: columns that must be there.
        optional: columns that may be there; no others may.
        problems: takes rows with more or fewer cells than the header; ``line`` is the first line of a row, from 1.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is no CSV, or has other columns or one twice.
    """
    expected = f"a UTF-8 CSV file with the columns {','.join(required)} and, where wanted, {','.join(optional)}"
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=_separator(stream.readline()), strict=True)
            stream.seek(0)
            columns = [cell.strip().lower() for cell in next(reader, [])]
            _check_columns(path, columns, required, optional, expected)
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) != len(columns) and any(cells):
                    problems.add(_damaged_row(path, line, columns, cells))
                elif any(cells):
                    yield line, dict(zip(columns, cells, strict=True))
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, line, error, expected) from error


def _separator(header: str) -> str:
    """Tell what separates the cells from the header, whose names hold no separator."""
    return max(",;\t", key=header.count)


def _check_columns(
    path: Path, columns: Sequence[str], required: Collection[str], optional: Collection[str], expected: str
) -> None:
    """Refuse a header with columns missing, unknown or twice."""
    wrong = {
        "missing": [name for name in required if name not in columns],
        "unknown": [name for name in columns if name not in {*required, *optional}],
        "twice": [name for name, count in Counter(columns).items() if count > 1],
    }
    details = "; ".join(f"{kind}: {', '.join(map(repr, names))}" for kind, names in wrong.items() if names)
    if details:
        found = f"the columns {','.join(columns)[:200] or '(none)'} ({details[:200]})"
        raise UserError(f"{path}: wrong columns", expected=expected, found=found, remedy="correct the first line")


def _damaged_row(path: Path, line: int, columns: Sequence[str], cells: Sequence[str]) -> UserError:
    """Word the error for a row that does not fit the header."""
    return UserError(
        f"{path}: damaged row, line {line}",
        expected=f"{len(columns)} cells, as in the header: {','.join(columns)}",
        found=f"{len(cells)} cells: {','.join(cells)[:200]!r}",
        remedy='correct the line; a cell that holds the separator is written in double quotes ("a, b.png")',
    )


def _unreadable(path: Path, line: int, error: Exception, expected: str) -> UserError:
    """Word the error for a file that is no readable CSV."""
    if isinstance(error, UnicodeDecodeError):
        found = f"byte {error.object[error.start]:#04x}, which is no UTF-8"
        remedy = 'save the table as "CSV UTF-8" (in a spreadsheet: Save as, file type CSV UTF-8)'
        return UserError(f"{path}: not a UTF-8 text", expected=expected, found=found, remedy=remedy)
    if isinstance(error, OSError):
        found = error.strerror or str(error)
        return UserError(f"{path}: cannot be read", expected=expected, found=found, remedy="check its permissions")
    return UserError(
        f"{path}: cannot be read, line {line}",
        expected=expected,
        found=str(error),
        remedy="correct the row that begins there; a double quote inside a quoted cell is written twice",
    )
