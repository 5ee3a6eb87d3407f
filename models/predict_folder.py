"""The results folder of a prediction: what may be replaced in it, and what must go."""

from __future__ import annotations

import shutil
from pathlib import Path

from models.assessment import PicturePaths
from models.cell_files import instances_path, remove_begun
from models.progress import UNFINISHED, unfinished_images
from util.cell_page import page_path
from util.errors import UserError
from util.files import remove_unfinished, unwritable

PAGE = "index.html"
FILES = (PAGE, "run.json", "predictions.csv", "cells.csv", "left_out.csv")
FOLDERS = ("masks", "instances", "images", "cells", "pages")


def clear(results: Path, *, resume: bool) -> None:
    """Remove an earlier prediction's files, the page first: what is left of an interrupted one is no report.

    Args:
        results: the results folder.
        resume: keep what was done of each image; only tables, pages and what was half-written go.

    Raises:
        UserError: something cannot be removed.
    """
    try:
        for name in FILES if resume else (*FILES, UNFINISHED):
            (results / name).unlink(missing_ok=True)
        for folder in (results / name for name in FOLDERS):
            if folder.is_symlink() or not folder.is_dir():
                continue
            if resume:
                remove_unfinished(folder, below=True)
            else:
                shutil.rmtree(folder)
        remove_begun(results)
    except OSError as error:
        raise unwritable(results, error) from None


def check_free(results: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to throw away hours of work, or to go on with what is whole.

    Args:
        results: the results folder.
        resume: whether an unfinished prediction is to be gone on with.
        overwrite: whether it may be thrown away.

    Raises:
        UserError: it holds an unfinished prediction and neither was asked for, both were, or there is nothing to do.
    """
    if resume and overwrite:
        raise UserError(
            "--continue_predict and --overwrite contradict each other",
            expected="one of them",
            found="both",
            remedy="leave --overwrite out to go on, --continue_predict to begin anew",
        )
    if resume and (results / PAGE).is_file() and not (results / UNFINISHED).is_file():
        raise UserError(
            f"--continue_predict: the prediction in {results} is whole",
            expected="an unfinished prediction, or an empty folder",
            found=PAGE,
            remedy="leave --continue_predict out to judge the images again",
        )
    done = 0 if resume or overwrite else unfinished_images(results)
    if done:
        raise UserError(
            f"{results} holds an unfinished prediction",
            expected="a finished one, which the new one would replace, or none",
            found=f"{done} {'image' if done == 1 else 'images'} judged",
            remedy="go on with it (--continue_predict), or begin anew (--overwrite)",
        )


def remove_files(results: Path, stem: str) -> None:
    """Remove the files of an image that is gone or has changed."""
    paths = PicturePaths(stem)
    cells = page_path(stem)
    names = [paths.mask(), paths.thumbnail("smear"), paths.thumbnail("overlay"), cells, f"{cells[: -len('.html')]}.jpg"]
    try:
        for path in (*(results / name for name in names), instances_path(results, stem)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(results, error) from None
