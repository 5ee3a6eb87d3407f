"""Masks of a synthetic smear as AneRBC's own are made: by a threshold, with the cells filled."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

_SMOOTHING = 0.7  # pixels; keeps the sensor's noise off the edges
_EDGE = 2  # pixels inside the true edge from which on the truth decides, however pale the cell
_SPECK = 6  # pixels; smaller finds are noise


def anerbc_mask(rgb: np.ndarray, stained: np.ndarray) -> np.ndarray:
    """Draw the mask of everything stained as AneRBC's masks show it.

    Those look threshold-made: platelets, white cells, dirt and a black pointer are in them, no hole is, and their edges
    lie where the grey picture crosses a level near Otsu's (1979), so that the same cell is drawn wider in a pale film
    than in a dark one. On the 14 full smears with masks, Otsu's threshold of the grey picture with holes filled agrees
    best of eight channels (mean Dice .951). Here it decides everywhere but well inside cells, which are never missed.

    Args:
        rgb: (S, S, 3) uint8, the picture.
        stained: (S, S) bool, where red cells, platelets and white cells are.

    Returns:
        (S, S) bool, without holes.
    """
    from skimage.filters import threshold_otsu

    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    if grey.min() == grey.max():
        return stained
    dark = ndimage.gaussian_filter(grey.astype(np.float32), _SMOOTHING) < threshold_otsu(grey)
    sure = ndimage.binary_erosion(stained, iterations=_EDGE)
    parts, _ = ndimage.label(dark | sure)
    large = np.bincount(parts.ravel()) >= _SPECK
    large[0] = False  # the field
    return np.asarray(ndimage.binary_fill_holes(large[parts]), dtype=bool)
