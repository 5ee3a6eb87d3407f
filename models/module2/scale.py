"""How large the red cells of an image are, in pixels, before anything else is known of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from models.module2.finder import CELL_DIAMETER
from models.module2.peaks import h_maxima

# An image is looked at reduced to the first of these sides at which its cells are so many pixels across: the time does
# not grow with the image, and enough cells remain.
_SEEN_SIDES, _SEEN_DIAMETER = (400, 800, 1600), 12.0
_WINDOW = 1000  # pixels
# Peaks of the distance to the field that rise less than this above their surroundings are one peak, pixels.
_PEAK = 0.75
_LEAST_RADIUS = 2.0
# Specks cover at most this part of an image; cells and film are as separable as this.
_SPECKS, _CLEAR = 0.15, 0.8
# Areas of cells of the size looked for, in those of a disc of ``CELL_DIAMETER``: .6 to 1.6 of the diameter.
_LEAST_USUAL, _MOST_USUAL = 0.36, 2.5


def estimate_diameter(rgb: npt.NDArray[np.uint8]) -> float:
    """Estimate the diameter of the red cells: half of the stained area lies in cells at most so wide.

    Cells are taken to be darker than the film by Otsu's threshold of the green channel (1979), their pale centres
    filled. The local maxima of the distance to the film are the radii, of touching cells too; the median is weighted by
    area, so that platelets and dirt, however many, count for little. A large image is judged by windows in its middle
    and its quarters, of which the median counts: reduced as a whole, a field of many cells would run together.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        Pixels of the image; NaN where nothing stands out.
    """
    found = [_estimate_window(window) for window in _windows(rgb)]
    found = [diameter for diameter in found if np.isfinite(diameter)]
    return float(np.median(found)) if found else float("nan")


def _windows(rgb: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """The image or, of one that is larger than ``_WINDOW``, five windows of that size."""
    height, width = rgb.shape[:2]
    if max(height, width) <= 1.5 * _WINDOW:
        return [rgb]
    middles = [(0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)]
    corners = [(_start(y * height, height), _start(x * width, width)) for y, x in middles]
    return [rgb[top : top + _WINDOW, left : left + _WINDOW] for top, left in corners]


def _start(at: float, length: int) -> int:
    return int(min(max(at - _WINDOW / 2, 0), max(length - _WINDOW, 0)))


def _estimate_window(rgb: npt.NDArray[np.uint8]) -> float:
    for side in _SEEN_SIDES:
        factor = min(1.0, side / max(rgb.shape[:2]))
        diameter = _estimate(_reduced(rgb[..., 1], factor))
        if diameter >= _SEEN_DIAMETER or factor == 1.0:
            break
    return diameter / factor


def _estimate(plane: npt.NDArray[np.uint8]) -> float:
    """The same of one plane (H, W), as it is."""
    green = ndimage.gaussian_filter(plane.astype(np.float32), 1)
    if green.max() - green.min() < 1:
        return float("nan")
    stained = ndimage.binary_fill_holes(green < stain_threshold(green))
    depth = ndimage.distance_transform_edt(np.pad(stained, 1))[1:-1, 1:-1]
    smooth = ndimage.gaussian_filter(depth.astype(np.float32), 1)
    peaks, count = ndimage.label(h_maxima(smooth, _PEAK))
    radii = np.sort(np.atleast_1d(ndimage.maximum(depth, peaks, np.arange(1, count + 1)))) if count else np.empty(0)
    radii = radii[radii > _LEAST_RADIUS]
    if not len(radii):
        return float("nan")
    covered = np.cumsum(radii**2)
    return float(2 * radii[np.searchsorted(covered, covered[-1] / 2)])


def stain_threshold(plane: npt.NDArray[Any]) -> float:
    """Level below which a plane (H, W) is stained: Otsu's (1979), without what is far darker than the cells.

    A few black specks can be all that Otsu's threshold finds. Where the dark part is small and the rest falls in two of
    its own, as clearly as cells and film do and one bell curve or slope does not, the threshold is that of the rest.
    """
    from skimage.filters import threshold_otsu

    level = float(threshold_otsu(plane))
    rest = plane[plane >= level]
    if rest.size < (1 - _SPECKS) * plane.size or rest.min() == rest.max():
        return level
    inner = float(threshold_otsu(rest))
    return inner if _separability(rest, inner) > _CLEAR else level


def _separability(values: npt.NDArray[Any], level: float) -> float:
    """Share of the variance that lies between the two parts: .64 of one bell curve, .75 of a slope."""
    below = values < level
    share, all_of_it = float(below.mean()), float(values.var())
    if share in (0.0, 1.0) or all_of_it == 0:
        return 0.0
    return share * (1 - share) * float(values[below].mean() - values[~below].mean()) ** 2 / all_of_it


def _reduced(plane: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    if factor == 1.0:
        return plane
    size = (max(1, round(plane.shape[1] * factor)), max(1, round(plane.shape[0] * factor)))
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX))


def scaled(rgb: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    """Bring an image to another scale; at least one pixel is left of each side.

    Args:
        rgb: (H, W, 3) uint8.
        factor: new over old size.
    """
    size = (max(1, round(rgb.shape[1] * factor)), max(1, round(rgb.shape[0] * factor)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def middle(rgb: npt.NDArray[np.uint8], side: float) -> npt.NDArray[np.uint8]:
    """The middle of an image, at most ``side`` pixels square."""
    height, width = rgb.shape[:2]
    rows, columns = (min(length, max(1, round(side))) for length in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(rgb[top : top + rows, left : left + columns])


def explained(cells: npt.NDArray[np.int32], rgb: npt.NDArray[np.uint8]) -> float:
    """How much of what is stained, or taken for cells, lies in cells of about the size that was looked for.

    Args:
        cells: (h, w) cells at the finder's scale.
        rgb: (H, W, 3) the same picture at its own.

    Returns:
        0 to 1; 0 where nothing stands out.
    """
    size = cells.shape[1], cells.shape[0]
    green = np.asarray(Image.fromarray(rgb[..., 1]).resize(size, Image.Resampling.BILINEAR))
    if green.max() == green.min():
        return 0.0
    stained = green < stain_threshold(green)
    areas = np.bincount(cells.ravel()) / (np.pi / 4 * CELL_DIAMETER**2)
    usual = (areas > _LEAST_USUAL) & (areas < _MOST_USUAL)
    usual[0] = False
    return float((usual[cells] & stained).sum() / max(1, int((stained | (cells > 0)).sum())))
