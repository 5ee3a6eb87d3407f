"""The page's pictures: a smear with the masks' outlines, and small copies."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.files import unwritable
from util.results import encoded_image

THUMBNAIL_SIZE = 480
KINDS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 3},  # a third of the time for a tenth more bytes
    ".jpg": {"format": "JPEG", "quality": 88},
    ".webp": {"format": "WEBP", "quality": 50, "method": 0},  # fewer bytes than a JPEG that looks as good
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
    width = max(1, round(min(predicted.shape) / 300))
    picture = rgb.copy()
    if true is not None:
        _tint(picture, predicted & ~true, PREDICTED_COLOUR, 0.45)
        _tint(picture, true & ~predicted, TRUE_COLOUR, 0.45)
    outline = _outline(predicted, width)
    if true is not None:  # an outline beside one that agrees with it would only blur both
        beside = ~_eroded(~outline, 2 * width)
        _tint(picture, _outline(true, width) & ~beside, TRUE_COLOUR, 1.0)
    _tint(picture, outline, PREDICTED_COLOUR, 1.0)
    return picture


def _tint(picture: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, int, int], strength: float) -> None:
    """Mix a colour into part of a picture, in place."""
    mixed = (1 - strength) * picture[where] + strength * np.array(colour, np.float32)
    picture[where] = mixed.round().astype(np.uint8)


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


def save_thumbnail(path: Path, rgb: NDArray[np.uint8] | NDArray[np.bool_], size: int = THUMBNAIL_SIZE) -> None:
    """Write a picture reduced to at most ``size`` pixels a side (never enlarged).

    The file is whole or not there, but the disk is not waited for: there are tens of thousands of them, and what makes
    a report whole is its page, written last.

    Args:
        path: .jpg, .jpeg, .webp or .png; a mask is written with one bit a pixel and can be .png only.
        rgb: (H, W, 3) or (H, W) uint8, or (H, W) bool.
        size: longest side in pixels.

    Raises:
        ValueError: another suffix.
        UserError: the file cannot be written.
    """
    from PIL import Image

    suffix = {".jpeg": ".jpg"}.get(path.suffix.lower(), path.suffix.lower())
    if suffix not in KINDS or (rgb.dtype == bool and suffix != ".png"):
        raise ValueError(f"{path.name} must end in .jpg, .jpeg, .webp or .png, and a mask in .png")
    picture = Image.fromarray(rgb.astype(np.uint8) * np.uint8(255) if rgb.dtype == bool else rgb)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    if rgb.dtype == bool:
        picture = picture.point(lambda level: 255 * (level > 127), mode="1")
    _write_unhurried(path, encoded_image(lambda buffer: picture.save(buffer, **KINDS[suffix])))


def _write_unhurried(path: Path, content: bytes) -> None:
    """Write a whole file beside its place and move it there, without waiting for the disk."""
    temporary = path.with_name(f".{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from None
