"""Cutting AneRBC-I's full smears into AneRBC-II's tree of tiles."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.images import read_rgb, read_size
from data.layout_anerbc import FULL_SMEAR
from data.notice import TRUTH, notice_folders, with_truth
from data.readers import read_dataroot
from data.records import ANEMIC, CLASS_NAMES, SmearRecord
from util.cores import usable_cores
from util.errors import UserError

TILED_NAME = "AneRBC-II"
_MOST_TILES = 99


def tile_dataset(
    source: str | Path,
    out: str | Path,
    *,
    columns: int = 4,
    rows: int = 3,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> int:
    """Cut the smears of AneRBC-I into tiles, in AneRBC-II's tree and names below ``out``/AneRBC-II.

    ``001_a`` becomes ``0001_01_a.png`` to ``0001_12_a.png``, row by row from the upper left. Masks are cut as they are,
    with their grey levels; each tile gets a copy of its smear's blood count. Tiles of synthetic smears have the notice
    that they are, and a truth.csv of their own. All is built in a temporary folder beside ``out`` and moved there at
    the end, so that nothing half-written stays.

    Args:
        source: AneRBC-I, inner or outer folder; 1224x960 gives tiles of 306x320 pixels.
        out: the folder to make.
        columns: tiles across.
        rows: tiles down.
        workers: threads that cut.
        overwrite: whether an ``out`` that holds files is accepted; its AneRBC-II is then replaced, all else stays.
        progress: whether a bar is drawn on stderr.

    Returns:
        How many tiles were written (masks not counted).

    Raises:
        UserError: ``source`` is no AneRBC-I tree, a size that does not divide, ``out`` holds files, a file that
            cannot be read or written, a synthetic data set without its truth.csv.
    """
    source, out = Path(source).absolute(), Path(out).absolute()
    _check_grid(columns, rows)
    _check_out(source, out, overwrite)
    records = with_truth(read_dataroot(source))
    _check_sources(records, columns, rows)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            _write_all(records, building / TILED_NAME, columns, rows, workers, progress)
            _write_notice(records, building / TILED_NAME, columns, rows)
            _move_in(building, out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        what = f"{error.filename or out}: the tiles cannot be written"
        remedy = "check the folder's permissions and the space on the disk"
        raise UserError(
            what, expected="a writable folder", found=error.strerror or str(error), remedy=remedy
        ) from error
    return len(records) * columns * rows


def cut(pixels: npt.NDArray[np.uint8], columns: int, rows: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Cut an image into equal tiles.

    Args:
        pixels: array of shape (H, W) or (H, W, C); ``rows`` divides H and ``columns`` divides W.
        columns: tiles across.
        rows: tiles down.

    Yields:
        Views of shape (H / rows, W / columns[, C]), row by row from the upper left.

    Raises:
        ValueError: the size does not divide.
    """
    height, width = pixels.shape[:2]
    if height % rows or width % columns:
        raise ValueError(f"{width}x{height} does not divide into {columns} columns and {rows} rows")
    for band in np.split(pixels, rows, axis=0):
        yield from np.split(band, columns, axis=1)


def _check_grid(columns: int, rows: int) -> None:
    """Refuse a grid that AneRBC-II's two-digit names cannot number."""
    if columns < 1 or rows < 1 or columns * rows > _MOST_TILES:
        raise UserError(
            "the grid of tiles cannot be used",
            expected=f"1 to {_MOST_TILES} tiles a smear",
            found=f"{columns} columns x {rows} rows",
            remedy="4 columns x 3 rows give AneRBC-II's tiles",
        )


def _check_out(source: Path, out: Path, overwrite: bool) -> None:
    """Refuse an output folder whose content would be lost or mixed up."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a folder", expected="a folder to make", found="a file", remedy="give another name")
    held = sorted(entry.name for entry in out.iterdir()) if out.exists() else []
    if held and not overwrite:
        raise UserError(
            f"{out}: already holds files",
            expected="a new or empty folder",
            found=f"{len(held)} entries, {held[0]!r} first",
            remedy=f"give another folder, or ask for overwriting (only {TILED_NAME} in it is replaced)",
        )
    if source.resolve().is_relative_to((out / TILED_NAME).resolve()):
        raise UserError(
            f"{source}: would be overwritten by its tiles", found=str(out), remedy="give another output folder"
        )


def _check_sources(records: Sequence[SmearRecord], columns: int, rows: int) -> None:
    """Refuse smears that cannot become AneRBC-II tiles."""
    named: dict[tuple[int, str], SmearRecord] = {}
    for record in records:
        matched = FULL_SMEAR.fullmatch(record.image.stem)
        if matched is None or not record.mask_dark:
            raise UserError(
                f"{record.image}: not a full smear of AneRBC-I",
                expected="AneRBC-I's tree, with names as 001_a.png",
                found=record.name,
                remedy="give AneRBC-I as the source",
            )
        twin = named.setdefault((int(matched[1]), matched[2]), record)
        if twin is not record:
            remedy = "rename or remove one of them"
            raise UserError(f"{record.image}: the same number twice", found=f"also {twin.image}", remedy=remedy)
        width, height = read_size(record.image)
        if width % columns or height % rows:
            raise UserError(
                f"{record.image}: the size does not divide into tiles",
                expected=f"a width divisible by {columns} and a height divisible by {rows}",
                found=f"{width}x{height}",
                remedy="choose other numbers of columns and rows (AneRBC-I is 1224x960)",
            )


def _write_all(
    records: Sequence[SmearRecord], folder: Path, columns: int, rows: int, workers: int | None, progress: bool
) -> None:
    """Write the tiles of every smear below ``folder``."""
    from tqdm import tqdm

    def write(record: SmearRecord) -> None:
        _write_smear(record, folder, columns, rows)

    with ThreadPoolExecutor(workers or min(8, usable_cores())) as pool:
        written = pool.map(write, records)
        deque(tqdm(written, total=len(records), desc="tiling", unit="smear", disable=not progress), maxlen=0)


def _write_smear(record: SmearRecord, folder: Path, columns: int, rows: int) -> None:
    """Write the tiles, the mask's tiles and the blood counts of one smear."""
    class_folder, stems = folder / _class_folder(record), _tile_stems(record, columns * rows)
    for kind, path in (("Original_images", record.image), ("Binary_segmented", record.mask)):
        if path is not None:
            (class_folder / kind).mkdir(parents=True, exist_ok=True)
            for stem, tile in zip(stems, cut(read_rgb(path), columns, rows), strict=True):
                Image.fromarray(np.ascontiguousarray(tile)).save(class_folder / kind / f"{stem}.png")
    if record.cbc is not None:
        reports = class_folder / "CBC_reports"
        reports.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            shutil.copyfile(record.cbc, reports / f"{stem}.txt")


def _class_folder(record: SmearRecord) -> str:
    """The folder of a smear's class."""
    return f"{CLASS_NAMES[record.label == ANEMIC]}_individuals"


def _tile_stems(record: SmearRecord, count: int) -> list[str]:
    """The names of a smear's tiles, without extension."""
    number, letter = record.image.stem.split("_")
    return [f"{int(number):04d}_{tile:02d}_{letter}" for tile in range(1, count + 1)]


def _write_notice(records: Sequence[SmearRecord], folder: Path, columns: int, rows: int) -> None:
    """Say of tiles of synthetic smears that they are synthetic, in the synthesiser's own words, with their truth."""
    places = notice_folders(records)
    if not places:
        return
    from data.synthetic_writer import NOTICE

    said = (next(iter(places.values())) / NOTICE).read_text(encoding="utf-8", errors="replace").rstrip()
    words = f"These are tiles of such smears, {columns} columns x {rows} rows; their cells are not listed."
    (folder / NOTICE).write_text(f"{said}\n{words}\n", encoding="utf-8")
    with (folder / TRUTH).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "label", "severity", "parent"])
        for record in records:
            for stem in _tile_stems(record, columns * rows):
                image = f"{_class_folder(record)}/Original_images/{stem}.png"
                writer.writerow([image, record.label, record.severity or "", record.image.stem])


def _move_in(building: Path, out: Path) -> None:
    """Put the finished tree in place; an older one is set aside first and goes with the temporary folder."""
    out.mkdir(exist_ok=True)
    target, older = out / TILED_NAME, building / "replaced"
    if target.exists():
        target.rename(older)
    try:
        (building / TILED_NAME).rename(target)
    except OSError:
        if older.exists():
            older.rename(target)
        raise
