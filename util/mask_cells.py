"""Single cells in a binary mask, by its shape alone: where no image is looked at, and nothing was learned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

_SMOOTHING = 1.0  # standard deviation of the Gaussian over the distance, pixels
_PEAK = 0.75  # pixels that a cell's middle rises above the ridges around it


def split_mask(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Split a mask into cells by a watershed of the distance to its edge, from the distance's h-maxima.

    Cells that overlap far are one here; the finder of Module-II tells more of them apart. scikit-image's watershed.

    Args:
        mask: (H, W) bool, where cells are.

    Returns:
        (H, W), 0 = background, else a cell's number.
    """
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # a cell ends at the image's border
    depth = ndimage.gaussian_filter(distance, _SMOOTHING, mode="nearest")
    middles, _ = ndimage.label(h_maxima(depth, _PEAK))
    return np.asarray(watershed(-depth, middles * mask, mask=mask), dtype=np.int32)


def mask_diameters(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Diameters of the cells in masks: of the discs of their areas.

    Args:
        masks: (B, H, W) bool.

    Returns:
        (N,) pixels, of the cells that no border cuts.
    """
    found = [_diameters(split_mask(mask)) for mask in masks]
    return np.concatenate([np.empty(0), *found])


def _diameters(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    areas[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = 0
    return np.sqrt(4 / np.pi * areas[areas > 0])
