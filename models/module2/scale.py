"""How large the red cells of an image are, in pixels, before anything else is known of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

# An image is looked at reduced to the first of these sides at which its cells are so many pixels across: the time does
# not grow with the image, and enough cells remain.
_SEEN_SIDES, _SEEN_DIAMETER = (400, 800, 1600), 12.0
# Peaks of the distance to the field that rise less than this above their surroundings are one peak, pixels.
_PEAK = 0.75
_LEAST_RADIUS = 2.0


def estimate_diameter(rgb: npt.NDArray[np.uint8]) -> float:
    """Estimate the diameter of the red cells: half of the stained area lies in cells at most so wide.

    Cells are taken to be darker than the film by Otsu's threshold of the green channel (1979), their pale centres
    filled. The local maxima of the distance to the film are the radii, of touching cells too; the median is weighted by
    area, so that platelets and dirt, however many, count for little.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        Pixels of the image; NaN where nothing stands out.
    """
    for side in _SEEN_SIDES:
        factor = min(1.0, side / max(rgb.shape[:2]))
        diameter = _estimate(_reduced(rgb[..., 1], factor))
        if diameter >= _SEEN_DIAMETER or factor == 1.0:
            break
    return diameter / factor


def _estimate(plane: npt.NDArray[np.uint8]) -> float:
    """The same of one plane (H, W), as it is."""
    from skimage.filters import threshold_otsu
    from skimage.morphology import h_maxima

    green = ndimage.gaussian_filter(plane.astype(np.float32), 1)
    if green.max() - green.min() < 1:
        return float("nan")
    stained = ndimage.binary_fill_holes(green < threshold_otsu(green))
    depth = ndimage.distance_transform_edt(np.pad(stained, 1))[1:-1, 1:-1]
    smooth = ndimage.gaussian_filter(depth.astype(np.float32), 1)
    peaks, count = ndimage.label(h_maxima(smooth, _PEAK))
    radii = np.sort(np.atleast_1d(ndimage.maximum(depth, peaks, np.arange(1, count + 1)))) if count else np.empty(0)
    radii = radii[radii > _LEAST_RADIUS]
    if not len(radii):
        return float("nan")
    covered = np.cumsum(radii**2)
    return float(2 * radii[np.searchsorted(covered, covered[-1] / 2)])


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
