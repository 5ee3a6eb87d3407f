"""What Module-II leaves in a results folder: instance maps, and tables of cells of any length."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.module2.smear_cells import SmearCells
from util.errors import UserError
from util.files import atomic_write, remove_unfinished, unfinished_name, unwritable
from util.results import encoded_image

MOST_CELLS = np.iinfo(np.uint16).max  # that an instance map of 16 bits can number
CELL_COLUMNS = (
    "image", "cell", "x", "y", "area_px", "diameter_px", "roundness", "central_pallor", "overlapped", "size_score",
    "severity_score", "abnormal_kind", "roundness_score", "pallor_score", "elongation", "pallor_depth", "solidity",
    "area_um2", "diameter_um",
)  # fmt: skip
CELLS_TABLE, LEFT_OUT_TABLE = "cells.csv", "left_out.csv"
LEFT_OUT_COLUMNS = ("image", "cell", "x", "y", "area_px", "reason")


def instances_path(folder: Path, stem: str) -> Path:
    """Where the instance map of an image lies in a results folder."""
    return folder / f"instances/{stem}.png"


def save_instances(path: Path, instances: NDArray[np.integer]) -> None:
    """Write an instance map as a 16-bit grey PNG, atomically.

    Args:
        path: the file.
        instances: (H, W) integers, 0 = background, else a cell's number.

    Raises:
        ValueError: not a two-dimensional array of integers of 0 or more.
        UserError: a number does not fit into 16 bits, or the file cannot be written.
    """
    if (
        instances.ndim != 2
        or not np.issubdtype(instances.dtype, np.integer)
        or (instances.size and instances.min() < 0)
    ):
        raise ValueError(
            f"an instance map must be (H, W) integers of 0 or more, not {instances.dtype}{instances.shape}"
        )
    check_count(str(path), instances)
    image = Image.fromarray(instances.astype(np.uint16))
    atomic_write(path, encoded_image(lambda buffer: image.save(buffer, format="PNG")), make_parents=True)


def check_count(name: str, instances: NDArray[np.integer]) -> None:
    """Raise UserError where a map holds more cells than 16 bits can number."""
    if instances.size and instances.max() > MOST_CELLS:
        raise UserError(
            f"{name}: too many cells for one instance map",
            expected=f"at most {MOST_CELLS}",
            found=str(instances.max()),
            remedy="cut the image into tiles, or leave the cells out (--cells no)",
        )


class StreamedTable:
    """A CSV file of any length that appears whole, when it is closed, or not at all.

    Every cell is quoted and holds its exact text; numbers have seven digits, None is empty.

    Args:
        path: the file.
        columns: its columns; a row must have these and no others.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)
        self._temporary = unfinished_name(path)
        try:
            self._file = self._temporary.open("x", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise unwritable(path, error) from None
        self._writer = csv.writer(self._file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        self._write(self.columns)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            ValueError: its columns are not the table's.
            UserError: it cannot be written.
        """
        if row.keys() != set(self.columns):
            raise ValueError(f"columns {sorted(row)}; {self.path.name} has {sorted(self.columns)}")
        self._write([_table_cell(row[column]) for column in self.columns])

    def _write(self, cells: Sequence[str]) -> None:
        try:
            self._writer.writerow(cells)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def finish(self) -> None:
        """Bring all rows to the disk."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise unwritable(self.path, error) from None

    def close(self) -> None:
        """Put the file in its place."""
        self.finish()
        try:
            self._temporary.replace(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def discard(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _table_cell(value: Any) -> str:
    """One value as a table of cells writes it."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def remove_begun(folder: Path) -> None:
    """Remove tables that a run which was killed has begun; UserError where that cannot be done."""
    for name in (CELLS_TABLE, LEFT_OUT_TABLE):
        remove_unfinished(folder, name=name)


class CellFiles:
    """Writes what Module-II finds, image by image: ``instances/``, cells.csv and left_out.csv.

    As a context it puts the two tables in their place at the end, or removes them where an error ends it early.

    Args:
        folder: the results folder.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = StreamedTable(folder / CELLS_TABLE, CELL_COLUMNS)
        try:
            self._left_out = StreamedTable(folder / LEFT_OUT_TABLE, LEFT_OUT_COLUMNS)
        except UserError:
            self._cells.discard()
            raise

    def add(self, image: str, stem: str, cells: SmearCells) -> None:
        """Write the instance map and the rows of one image.

        Args:
            image: its name.
            stem: the path of its files without ending, see ``util.results.output_stems``.
            cells: what was found in it.

        Raises:
            UserError: a file cannot be written, or there are more cells than an instance map can number.
        """
        save_instances(instances_path(self.folder, stem), cells.instances)
        self.add_rows(cells.cell_rows(image), cells.left_out_rows(image))

    def add_rows(self, cells: Iterable[Mapping[str, Any]], left_out: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of one image, whose instance map is written elsewhere.

        Raises:
            UserError: a file cannot be written.
        """
        for row in cells:
            self._cells.add(row)
        for row in left_out:
            self._left_out.add(row)

    def close(self) -> None:
        """Put the tables in their place; both are whole on the disk before either appears."""
        try:
            self._cells.finish()
            self._left_out.finish()
            self._cells.close()
            self._left_out.close()
        except UserError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the tables begun."""
        self._cells.discard()
        self._left_out.discard()

    def __enter__(self) -> CellFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close() if kind is None else self.discard()
