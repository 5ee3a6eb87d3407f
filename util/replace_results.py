"""A test's outputs take the place of an earlier test's only when all of them are written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from util.files import make_folder, unwritable

PAGE = "index.html"  # goes first and comes last: a folder without it is no whole report
TABLES = (
    "metrics.json", "predictions.csv", "predictions_train.csv", "predictions_val.csv", "cells.csv", "left_out.csv",
    "gradcam.csv",
)  # fmt: skip
FOLDERS = ("masks", "images", "instances", "cells", "gradcam")


@contextlib.contextmanager
def written_beside(results: Path) -> Iterator[Path]:
    """A folder beside a results folder, whose content takes the place of an earlier test's at the block's end.

    Where the block fails or is interrupted, the earlier test's outputs stay as they were. What else lies in the results
    folder stays in any case. Only for who holds the folder alone, see ``util.lock.sole_writer``.

    Args:
        results: the folder in the end; it need not be there.

    Raises:
        UserError: a folder cannot be made or written.
    """
    home = results.resolve()  # a link may lead to another disk, where the new files must be written then
    unfinished, replaced = (home.with_name(f"{home.name}.{word}") for word in ("unfinished", "replaced"))
    try:
        _put_back(home, replaced)
        if unfinished.is_dir():  # left by a kill
            shutil.rmtree(unfinished)
    except OSError as error:
        raise unwritable(results, error) from None
    make_folder(unfinished)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    try:
        _take_place(unfinished, home, replaced)
    except OSError as error:
        raise unwritable(results, error) from None


def _take_place(unfinished: Path, home: Path, replaced: Path) -> None:
    """Move names, not bytes: an instant, whatever the number of pictures. No page stands there while others move."""
    home.mkdir(parents=True, exist_ok=True)
    replaced.mkdir()
    try:
        _move(home, replaced, (PAGE, *TABLES, *FOLDERS))
        _move(unfinished, home, sorted((path.name for path in unfinished.iterdir()), key=PAGE.__eq__))
    except BaseException:
        _put_back(home, replaced)
        raise
    unfinished.rmdir()
    shutil.rmtree(replaced)


def _put_back(home: Path, replaced: Path) -> None:
    """Undo a change of places that was broken off; where the new page stands already, clear up after it."""
    if not replaced.is_dir():
        return
    if not (home / PAGE).exists():
        _move(replaced, home, (*TABLES, *FOLDERS, PAGE))
    shutil.rmtree(replaced)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    """Move files and folders in this order, as far as they are there, in place of what has their names."""
    for name in names:
        if not os.path.lexists(source / name):
            continue
        if (target / name).is_dir() and not (target / name).is_symlink():
            shutil.rmtree(target / name)
        shutil.move(source / name, target / name)
