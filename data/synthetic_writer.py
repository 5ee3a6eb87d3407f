"""Synthetic smears as files: AneRBC's own folders, which the ordinary reader reads, and the exact truth beside them."""

from __future__ import annotations

import csv
import multiprocessing
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from data.notice import TRUTH
from data.records import ANEMIC, CLASS_NAMES
from data.synthetic import SYNTHESIS_VERSION, CellTruth, check_arguments, label_and_severity, synthesize
from data.synthetic_masks import anerbc_mask
from data.synthetic_populations import blood_count_report
from util.cores import usable_cores
from util.errors import UserError
from util.files import unwritable

TREE = "AneRBC-I"
NOTICE = "SYNTHETIC.txt"
MASKS = ("red_cells", "anerbc")
_AGAIN = "synthesise the data set again (3TDCFNet_data.py synthesize)"
_SEED = re.compile(r"\bseed \d+")
_FEW = 16  # below this many pictures, starting processes takes longer than it saves
_MOST_WORKERS = 16
_FOLDERS = ("Original_images", "Binary_segmented", "Instances", "CBC_reports")
_CELL_COLUMNS = [field.name for field in fields(CellTruth)]


@dataclass(frozen=True)
class _Job:
    """One picture to write: into which tree, which of the series, under which stem, with which masks."""

    tree: Path
    index: int
    seed: int
    size: int
    stem: str
    masks: str


def image_stem(index: int, seed: int, count: int) -> str:
    """File stem of image ``index`` in a set of ``count``, as AneRBC names them: 001_h, 001_a, 002_h, ..."""
    digits = max(3, len(str((count + 1) // 2)))
    label, _ = label_and_severity(index, seed)
    return f"{index // 2 + 1:0{digits}d}_{'a' if label == ANEMIC else 'h'}"


def image_path(stem: str, folder: str = "Original_images", suffix: str = ".png") -> str:
    """Posix path of one file of the picture ``stem``, relative to the AneRBC-I folder."""
    return f"{CLASS_NAMES[stem.endswith('a')]}_individuals/{folder}/{stem}{suffix}"


def write_dataset(
    out: Path,
    *,
    count: int,
    seed: int,
    size: int = 300,
    workers: int | None = None,
    overwrite: bool = False,
    masks: str = "red_cells",
) -> None:
    """Write a synthetic data set; the same count, seed and size give the same bytes with any number of workers.

    Under ``out/AneRBC-I``: ``{Anemic,Healthy}_individuals/{Original_images,Binary_segmented,Instances,CBC_reports}``,
    ``truth.csv`` (image, label, severity, parent), ``cells.csv`` (image, cell, and the fields of ``CellTruth``), where
    image is the picture's path relative to ``AneRBC-I``, and ``SYNTHETIC.txt``. Masks are dark cells on white, as in
    AneRBC.
    All is built in a folder beside ``out`` and renamed when complete.

    Args:
        out: folder to make.
        count: number of pictures, at least 2; half are of either class.
        seed: which series.
        size: side of the pictures, pixels.
        workers: processes; 1 is this one, None lets the count and the processors decide.
        masks: what ``Binary_segmented`` shows: "red_cells" alone, exactly, or what AneRBC's own masks would
            ("anerbc"): platelets and white cells too, with the edges of a threshold (see
            ``data.synthetic_masks.anerbc_mask``). Instances and cells.csv are exact and red cells either way.
        overwrite: replace a synthetic data set that lies at ``out``. Anything else there is never replaced.

    Raises:
        UserError: an argument is out of range, ``out`` cannot be written or is not free, or a process was ended from
            outside.
    """
    out = Path(out).resolve()
    check_arguments(seed=seed, size=size)
    _check_count(count, workers)
    _check_masks(masks)
    _check_free(out, overwrite)
    with _built_beside(out) as partial:
        tree = partial / TREE
        for folder in (f"{name}_individuals/{kind}" for name in CLASS_NAMES for kind in _FOLDERS):
            (tree / folder).mkdir(parents=True)
        jobs = [_Job(tree, index, seed, size, image_stem(index, seed, count), masks) for index in range(count)]
        _write_cells(tree / "cells.csv", jobs, _run(jobs, _worker_count(workers, count)))
        _write_truth(tree / TRUTH, jobs)
        notice = f"Everything here is synthetic: no patient, no real smear. seed {seed}, count {count}, size {size}"
        if masks != MASKS[0]:
            notice += f", masks {masks}"
        (tree / NOTICE).write_text(f"{notice}, synthesis version {SYNTHESIS_VERSION}\n", encoding="utf-8")


def _check_count(count: int, workers: int | None) -> None:
    if count < 2:
        raise UserError(
            "count of synthetic smears",
            expected="2 or more (one of each class)",
            found=str(count),
            remedy="ask for more",
        )
    if workers is not None and workers < 1:
        raise UserError("workers", expected="1 or more", found=str(workers), remedy="give 1 to work in this process")


def _check_masks(masks: str) -> None:
    if masks not in MASKS:
        raise UserError(
            "masks of synthetic smears", expected=" or ".join(MASKS), found=masks, remedy="name one of these"
        )


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise UserError unless ``out`` is absent, empty, or a synthetic data set that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(
            f"{out} is not a folder", expected="a new or empty folder", found="a file", remedy="name another"
        )
    if not any(out.iterdir()) or (overwrite and (out / TREE / NOTICE).is_file()):
        return
    remedy = "name another folder"
    if not overwrite:
        remedy += ", or ask to overwrite if a synthetic data set lies there"
    raise UserError(
        f"{out} is not empty",
        expected=f"a new or empty folder{' or a synthetic data set' if overwrite else ''}",
        found=", ".join(sorted(path.name for path in out.iterdir())[:5]),
        remedy=remedy,
    )


@contextmanager
def _built_beside(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` to build in; renamed to ``out`` at the end, removed if anything fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"cannot write beside {out}", found=str(error), remedy="name a folder in a writable place"
        ) from error
    try:
        partial = work / "new"
        partial.mkdir()
        yield partial
        _swap(partial, out, work / "old")
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(work)


def _swap(new: Path, out: Path, aside: Path) -> None:
    """Put ``new`` in the place of ``out``; what lay there goes aside, and comes back if that fails."""
    replaced = out.exists()
    if replaced:
        out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        if replaced:
            aside.rename(out)
        raise


def _worker_count(workers: int | None, count: int) -> int:
    """Return the processes to use."""
    if workers is not None:
        return min(workers, count)
    return 1 if count < _FEW else min(usable_cores(), _MOST_WORKERS)


def _run(jobs: list[_Job], workers: int) -> Iterator[list[CellTruth]]:
    """Write every picture and yield its cells, in the order of the jobs."""
    from tqdm import tqdm

    progress = {"total": len(jobs), "desc": "synthetic smears", "unit": "image", "disable": None}
    if workers == 1:
        yield from tqdm(map(_write_picture, jobs), **progress)
        return
    # Spawned, not forked: the caller may have started threads (torch, a progress bar), which a fork would break.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from tqdm(pool.map(_write_picture, jobs, chunksize=4), **progress)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that drew smears was ended from outside",
                expected="enough memory for one smear in each process",
                found=str(error),
                remedy="use fewer processes (--workers 1)",
            ) from error


def _write_picture(job: _Job) -> list[CellTruth]:
    """Make and write one smear with its mask, instances and report; return its cells."""
    smear = synthesize(job.index, seed=job.seed, size=job.size)
    mask = smear.mask if job.masks == "red_cells" else anerbc_mask(smear.rgb, smear.stained)
    pictures = {
        "Original_images": smear.rgb,
        "Binary_segmented": np.where(mask, 0, 255).astype(np.uint8),
        "Instances": smear.instances,
    }
    for folder, pixels in pictures.items():
        Image.fromarray(pixels).save(job.tree / image_path(job.stem, folder), compress_level=3)
    report = job.tree / image_path(job.stem, "CBC_reports", ".txt")
    report.write_text(blood_count_report(smear.subject), encoding="utf-8")
    return smear.cells


def _write_cells(path: Path, jobs: list[_Job], results: Iterable[list[CellTruth]]) -> None:
    """Write one line for each cell that a picture shows; ``cell`` is its number in the instances."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["image", "cell", *_CELL_COLUMNS], lineterminator="\n")
        writer.writeheader()
        for job, cells in zip(jobs, results, strict=True):
            for number, cell in enumerate(cells, start=1):
                writer.writerow({"image": image_path(job.stem), "cell": number, **_plain(cell)})


def _plain(cell: CellTruth) -> dict[str, str | int]:
    """Return the cell's fields as text: three decimals, and 0 or 1 for no and yes."""
    values = asdict(cell)
    rounded = {name: f"{value:.3f}" for name, value in values.items() if isinstance(value, float)}
    return {**values, **rounded, **{name: int(value) for name, value in values.items() if isinstance(value, bool)}}


def _write_truth(path: Path, jobs: list[_Job]) -> None:
    """Write one line for each picture; each is its own parent, as no two show the same subject."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "label", "severity", "parent"])
        for job in jobs:
            label, severity = label_and_severity(job.index, job.seed)
            writer.writerow([image_path(job.stem), label, severity or "", job.stem])


def series_of(root: Path) -> str:
    """Which series a synthetic data set is of, "seed 1", as its notice says.

    The pictures of one name in two series show two subjects; in one series the same one, whatever count and size.

    Raises:
        UserError: the notice is missing, cannot be read or names no seed.
    """
    path = next((p for p in (root / TREE / NOTICE, root / NOTICE) if p.is_file()), root / NOTICE)
    try:
        stated = _SEED.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read", found=error.strerror or str(error), remedy=_AGAIN) from error
    if stated is None:
        raise UserError(f"{path}: the notice names no seed", expected="seed and a number", remedy=_AGAIN)
    return stated[0]


def read_severities(root: Path) -> dict[str, str]:
    """The grades of a synthetic data set by image path relative to its AneRBC-I folder; healthy images have none.

    Raises:
        UserError: truth.csv is missing or has lost its columns.
    """
    path = next((p for p in (root / TREE / TRUTH, root / TRUTH) if p.is_file()), None)
    if path is None:
        raise UserError(f"{root}: a synthetic data set without its truth.csv", remedy=_AGAIN)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read", found=str(error), remedy=_AGAIN) from error
    if any(row.get("image") is None or row.get("severity") is None for row in rows):
        raise UserError(
            f"{path}: columns image and severity are missing", found=", ".join(map(str, rows[0])), remedy=_AGAIN
        )
    return {row["image"]: row["severity"] for row in rows if row["severity"]}
