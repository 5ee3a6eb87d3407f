"""A test's outputs take the place of an earlier test's only when all of them are written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
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
        for left_by_a_kill in (unfinished, replaced):
            if left_by_a_kill.is_dir():
                shutil.rmtree(left_by_a_kill)
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
    """Move names, not bytes: an instant, whatever the number of pictures."""
    home.mkdir(parents=True, exist_ok=True)
    replaced.mkdir()
    for name in (PAGE, *TABLES, *FOLDERS):
        if (home / name).exists() or (home / name).is_symlink():
            shutil.move(home / name, replaced / name)
    for new in sorted(unfinished.iterdir(), key=lambda path: path.name == PAGE):
        shutil.move(new, home / new.name)
    unfinished.rmdir()
    shutil.rmtree(replaced)
