"""Reading the text of blood-count reports."""

from __future__ import annotations

from pathlib import Path

from util.errors import UserError


def report_text(path: Path) -> str:
    """The text of a blood-count report; bytes that are no UTF-8 are replaced.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        found, remedy = error.strerror or str(error), "restore the report, or remove it"
        raise UserError(f"{path}: cannot be read", expected="a text", found=found, remedy=remedy) from error
