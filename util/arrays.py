"""Small files of plain arrays beside a checkpoint: written whole, read without pickle, and named when damaged."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from util.errors import UserError
from util.files import atomic_write

Arrays = dict[str, npt.NDArray[np.generic]]
MOST_BYTES = 512_000_000  # unpacked; fingerprints of 100,000 images are below it
_WHILE_UNPACKING = (RuntimeError, MemoryError, NotImplementedError, zlib.error)


def write_arrays(path: Path, **arrays: npt.ArrayLike) -> None:
    """Write arrays by name as an .npz file, at once or not at all.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(content, **plain)
    atomic_write(path, content.getvalue(), make_parents=True)


def read_arrays(path: Path, names: tuple[str, ...], *, what: str, without: str) -> Arrays | None:
    """Read what ``write_arrays`` wrote.

    Args:
        path: the file.
        names: of the arrays that it must hold.
        what: what an error calls its content.
        without: what is not done where the file is missing.

    Returns:
        The arrays by name, or None where there is no file.

    Raises:
        UserError: the file is damaged, holds objects, or is too large to be such a file.
    """
    if not path.is_file():
        return None
    try:
        _check_small(path)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, *_WHILE_UNPACKING) as error:
        raise damaged(path, str(error), what=what, without=without) from error


def _check_small(path: Path) -> None:
    """Raise ValueError where an archive would unpack to more than any such file holds."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MOST_BYTES:
        raise ValueError(f"{size} bytes unpacked, more than {MOST_BYTES}")


def damaged(path: Path, found: str, *, what: str, without: str) -> UserError:
    """Word the error for such a file whose content is not what it should be."""
    return UserError(
        f"{path}: not {what} of a run",
        expected="the file that the training wrote",
        found=found,
        remedy=f"restore it, or remove it: the test then does without {without}, and says so",
    )
