"""The page's pictures: a smear with the masks' outlines, and small copies."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from util.files import write_unhurried
from util.results import MASK_PNG, encoded_image

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIZE = 480
KINDS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 3},  # a third of the time for a tenth more bytes
    ".jpg": {"format": "JPEG", "quality": 88},
    ".webp": {"format": "WEBP", "quality": 45, "method": 0},  # outlines stay sharper than in a JPEG of as many bytes
}
PREDICTED_COLOUR, TRUE_COLOUR = (230, 159, 0), (0, 114, 178)  # Okabe and Ito's orange and blue: light beside dark


def overlay_image(
    rgb: NDArray[np.uint8], predicted: NDArray[np.bool_], true: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """The smear with the masks' outlines: predicted orange, true blue where it differs; what differs is tinted.

    Args:
        rgb: (H, W, 3) uint8.
        predicted: (H, W) bool.
        true: (H, W) bool, or None where there is no truth; then only the predicted outline is drawn.

    Returns:
        (H, W, 3) uint8; the input is left as it was.

    Raises:
        ValueError: shapes differ.
    """
    if rgb.shape != (*predicted.shape, 3) or (true is not None and true.shape != predicted.shape):
        raise ValueError(f"smear {rgb.shape} and masks {predicted.shape} must have one size")
    from PIL import Image

    width = max(1, round(min(predicted.shape) / 300))
    picture = Image.fromarray(rgb)
    if true is not None:
        _tint(picture, predicted & ~true, PREDICTED_COLOUR, 0.45)
        _tint(picture, true & ~predicted, TRUE_COLOUR, 0.45)
    outline = _outline(predicted, width)
    if true is not None:  # an outline beside one that agrees with it would only blur both
        beside = ~_eroded(~outline, 2 * width)
        _tint(picture, _outline(true, width) & ~beside, TRUE_COLOUR, 1.0)
    _tint(picture, outline, PREDICTED_COLOUR, 1.0)
    return np.array(picture)


def _tint(picture: Image.Image, where: NDArray[np.bool_], colour: tuple[int, int, int], strength: float) -> None:
    """Mix a colour into part of a picture, in place; by Pillow, which takes a fifth of numpy's time for this."""
    from PIL import Image

    coloured = picture.point(_mixed(colour, strength)) if strength < 1 else colour
    picture.paste(coloured, (0, 0, *picture.size), Image.fromarray(where))


@cache
def _mixed(colour: tuple[int, int, int], strength: float) -> list[int]:
    """What becomes of each level of red, then green, then blue where a colour is mixed in."""
    levels = np.arange(256)
    mixed = [(1 - strength) * levels + strength * np.float32(part) for part in colour]
    return [int(level) for level in np.concatenate(mixed).round()]


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The inner edge of a mask, ``width`` pixels broad; the image's own border is no edge."""
    return mask & ~_eroded(mask, width)


def _eroded(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """A mask without its pixels within ``times`` steps, not diagonal ones, of its outside; the image's border is none.

    By shifts, which for a few steps takes a tenth of the time of ``scipy.ndimage.binary_erosion``.
    """
    for _ in range(times):
        kept = mask.copy()
        kept[1:] &= mask[:-1]
        kept[:-1] &= mask[1:]
        kept[:, 1:] &= mask[:, :-1]
        kept[:, :-1] &= mask[:, 1:]
        mask = kept
    return mask


def save_thumbnail(
    path: Path, rgb: NDArray[np.uint8] | NDArray[np.bool_], size: int = THUMBNAIL_SIZE, *, quality: int | None = None
) -> None:
    """Write a picture reduced to at most ``size`` pixels a side (never enlarged).

    The file is whole or not there, but the disk is not waited for: there are tens of thousands of them, and what makes
    a report whole is its page, written last.

    Args:
        path: .jpg, .jpeg, .webp or .png; a mask is written with one bit a pixel and can be .png only.
        rgb: (H, W, 3) or (H, W) uint8, or (H, W) bool.
        size: longest side in pixels.
        quality: of a .jpg or .webp, up to 100; by default its kind's own.

    Raises:
        ValueError: another suffix.
        UserError: the file cannot be written.
    """
    from PIL import Image

    suffix = {".jpeg": ".jpg"}.get(path.suffix.lower(), path.suffix.lower())
    if suffix not in KINDS or (rgb.dtype == bool and suffix != ".png"):
        raise ValueError(f"{path.name} must end in .jpg, .jpeg, .webp or .png, and a mask in .png")
    picture = Image.fromarray(rgb)
    if max(picture.size) > size:
        picture = picture.convert("L") if rgb.dtype == bool else picture
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        picture = picture.point([0] * 128 + [255] * 128, mode="1") if rgb.dtype == bool else picture
    how = MASK_PNG if rgb.dtype == bool else KINDS[suffix] | ({} if quality is None else {"quality": quality})
    write_unhurried(path, encoded_image(lambda buffer: picture.save(buffer, **how)))
