"""Files that hold a smear in the left half and its binary mask in the right half: telling them, and their polarity."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.images import MASK_THRESHOLD, otsu_mask, read_rgb
from data.problems import Problems
from data.records import SmearRecord
from util.cores import usable_cores
from util.errors import UserError

EXPECTED = "an even width: the smear in the left half, its mask in two grey levels in the right half"

# A half may be a mask where most pixels are near black or near white, both occur, and few have colour; it is one where
# it also goes with the smear beside it. AneRBC's 14 published masks, reduced to 300 pixels, have up to 22 % of their
# pixels in between, at most 0.8 times the rarer of black and white, and up to 14 % with colour; they correlate with
# Otsu's mask by 0.77 or more. Halves of single smears (810 of AneRBC, 77 of Chula, 10 of BBBC041) correlate by less
# than 0.24.
_DARK, _LIGHT, _CHROMA = 64, 192, 24
_MOST_BETWEEN, _MOST_OF_RARER, _MOST_COLOUR, _LEAST_OF_EITHER = 0.3, 2, 0.25, 0.002
_LEAST_CORRELATION = 0.4
_SIDE = 1000  # pixels of a half that are looked at, along its longer side at most twice as many
_WORKERS = 8


class Verdict(NamedTuple):
    """What one file looks like.

    Attributes:
        dark: for a smear and its mask, whether the mask draws cells dark on white. None where the file does not tell:
            the right half has one level only, or does not go with the left.
        wrong: why it is no smear and its mask, in words; empty where it may be one.
    """

    dark: bool | None
    wrong: str = ""


def judge(path: Path) -> Verdict:
    """Look at one file.

    The polarity of a mask is the one under which it goes with Otsu's mask of the smear beside it.

    Raises:
        UserError: it cannot be read.
    """
    rgb = read_rgb(path)
    if rgb.shape[1] % 2:
        return Verdict(None, f"{rgb.shape[1]} pixels across")
    step = max(1, max(rgb.shape[0], rgb.shape[1] // 2) // _SIDE)
    left, right = (half[::step, ::step] for half in np.split(rgb, 2, axis=1))
    if _may_be_mask(right):
        return Verdict(_dark_cells(left, right))
    if _may_be_mask(left):
        return Verdict(None, "a mask in the left half")
    return Verdict(None, "" if _is_blank(right) else "colour or many grey levels in the right half")


def looks_side_by_side(paths: Sequence[Path]) -> bool:
    """Say whether a sample of images has some of this kind; files that cannot be read say nothing.

    One is enough: read as a plain smear, its mask would be part of the picture.
    """
    unheard = Problems(tolerant=True)  # what cannot be read is said when the files are read
    for path in paths:
        with unheard.kept():
            if judge(path).dark is not None:
                return True
    return False


def with_masks(records: Sequence[SmearRecord], problems: Problems) -> list[SmearRecord]:
    """Look into the file of every record and say where its mask is and how it is drawn.

    Args:
        records: of side-by-side files, without masks yet.
        problems: takes files that cannot be read or hold no smear and mask (their records are left out), and masks that
            are not all drawn alike.

    Returns:
        The records with mask, ``mask_dark`` and ``side_by_side`` set.

    Raises:
        UserError: what ``problems`` raises.
    """
    with ThreadPoolExecutor(min(_WORKERS, 2 * usable_cores())) as pool:
        verdicts = list(pool.map(_verdict_or_error, records))
    sound = [isinstance(verdict, Verdict) and verdict.dark is not None for verdict in verdicts]
    example = next((record.image for record, is_sound in zip(records, sound, strict=True) if is_sound), None)
    seen: list[tuple[SmearRecord, bool | None]] = []
    for record, verdict in zip(records, verdicts, strict=True):
        with problems.kept():
            if isinstance(verdict, UserError):
                raise verdict
            if verdict.wrong:
                raise _no_pair(record.image, verdict.wrong, example)
            seen.append((record, verdict.dark))
    usual = _usual_polarity(seen, problems)
    return [
        replace(record, mask=record.image, mask_dark=usual if dark is None else dark, side_by_side=True)
        for record, dark in seen
    ]


def _verdict_or_error(record: SmearRecord) -> Verdict | UserError:
    """Judge a record's file; errors are given, not raised, so that they come in the order of the records."""
    try:
        return judge(record.image)
    except UserError as error:
        return error


def _no_pair(path: Path, found: str, example: Path | None) -> UserError:
    """Word the error for a file that holds no smear and mask side by side, as others of the data root do."""
    return UserError(
        f"{path}: not an image and its mask side by side",
        expected=EXPECTED + (f", as in {example}" if example else ""),
        found=found,
        remedy="join the two again (smear left, mask right, of one size), or move plain images to another data root",
    )


def _usual_polarity(seen: Sequence[tuple[SmearRecord, bool | None]], problems: Problems) -> bool:
    """Say how most masks are drawn; masks that are not all drawn alike are a problem."""
    dark = [record.image for record, is_dark in seen if is_dark is True]
    light = [record.image for record, is_dark in seen if is_dark is False]
    if dark and light:
        problems.add(
            UserError(
                f"{dark[0].parent}: the masks are not all drawn alike",
                expected="cells of one kind, dark on white or white on black, in every file",
                found=f"dark in {len(dark)} files, such as {dark[0]}; white in {len(light)}, such as {light[0]}",
                remedy="invert the masks of one kind, or state each in a manifest with the column mask_dark",
            )
        )
    return len(dark) > len(light)


def _may_be_mask(half: npt.NDArray[np.uint8]) -> bool:
    """Say whether half a file has the grey levels of a binary mask, uint8 (H, W, 3)."""
    dark, light, colour = _shares(half)
    rarer, between = min(dark, light), 1 - dark - light
    return (
        colour <= _MOST_COLOUR and rarer >= _LEAST_OF_EITHER and between <= min(_MOST_BETWEEN, _MOST_OF_RARER * rarer)
    )


def _is_blank(half: npt.NDArray[np.uint8]) -> bool:
    """Say whether half a file has one level only, as the mask of a smear without cells; uint8 (H, W, 3)."""
    dark, light, colour = _shares(half)
    return colour <= _MOST_COLOUR and max(dark, light) > 1 - _LEAST_OF_EITHER


def _shares(half: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Give the shares of pixels that are near black, near white, and coloured; uint8 (H, W, 3)."""
    grey, chroma = half.mean(axis=2), np.ptp(half, axis=2)
    return float((grey < _DARK).mean()), float((grey >= _LIGHT).mean()), float((chroma > _CHROMA).mean())


def _dark_cells(left: npt.NDArray[np.uint8], right: npt.NDArray[np.uint8]) -> bool | None:
    """Say whether the mask draws cells dark, from Otsu's mask of the smear; both uint8 (H, W, 3)."""
    cells, dark = otsu_mask(left), right.mean(axis=2) < MASK_THRESHOLD
    spread = float(cells.std() * dark.std())
    if spread == 0:
        return None
    correlation = float((cells & dark).mean() - cells.mean() * dark.mean()) / spread
    return correlation > 0 if abs(correlation) >= _LEAST_CORRELATION else None
