"""Files beside a run's split that hold what it has learned from as plain arrays: one way to write and read them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from util.arrays import Arrays, damaged, read_arrays, write_arrays
from util.files import unwritable

Record = TypeVar("Record", bound="tuple[Any, ...]")  # a NamedTuple of arrays and numbers


class RecordFile(Generic[Record]):
    """One such file.

    Args:
        name: the file's name.
        fields: names of the record's fields.
        checked: makes a record of the arrays by their fields' names; raises ValueError, which says what was found,
            where they are no such record.
        what: what an error calls the content.
        without: what is not done where the file is missing.
    """

    def __init__(
        self, name: str, fields: tuple[str, ...], checked: Callable[[Arrays], Record], *, what: str, without: str
    ) -> None:
        self.name, self._fields, self._checked = name, fields, checked
        self._content = {"what": what, "without": without}

    def write(self, folder: Path, record: Record) -> None:
        """Write a record into the folder of a run, at once or not at all.

        Raises:
            UserError: it cannot be written.
        """
        write_arrays(folder / self.name, **dict(zip(self._fields, record, strict=True)))

    def read(self, folder: Path) -> Record | None:
        """Read what ``write`` wrote; None where there is none, as for a run of an earlier version.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / self.name
        stored = read_arrays(path, self._fields, **self._content)
        if stored is None:
            return None
        try:
            return self._checked(stored)
        except ValueError as error:
            raise damaged(path, str(error), **self._content) from error

    def remove(self, folder: Path) -> None:
        """Remove it, should it be there.

        Raises:
            UserError: it cannot be removed.
        """
        try:
            (folder / self.name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(folder / self.name, error) from None
