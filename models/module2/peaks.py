"""Peaks of a map that rise far enough to count, found from the passes between them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Map = npt.NDArray[np.float32]
_EIGHT = np.ones((3, 3), int)
_HALF_OF_EIGHT = ((0, 1), (1, 0), (1, 1), (1, -1))  # each pair of neighbours once


def h_maxima(height: Map, least: float) -> npt.NDArray[np.bool_]:
    """The h-maxima of a map: peaks from which every way to a higher one first leads down by ``least`` (Soille, 2003).

    scikit-image's reconstructs the map by dilation and sorts all of its pixels twice for that. Here the map is flooded
    from all peaks at once by a watershed: two floods meet first at the pass between them, so how far each peak rises
    above its pass (its dynamics; Grimaud, 1992) follows from the passes, of which there are few. Both give all of
    several peaks of one height with no such way between them; peaks that differ by rounding alone are told apart only
    here.

    Args:
        height: (H, W), eight neighbours a pixel.
        least: above 0.

    Returns:
        (H, W), True on the peaks' highest pixels.
    """
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    floor = height.min(initial=np.inf)
    peaks, count = ndimage.label(local_maxima(height, connectivity=2), structure=_EIGHT)
    if not count:
        return np.zeros(height.shape, bool)
    tops = np.full(count + 1, floor, height.dtype)
    tops[peaks[peaks > 0]] = height[peaks > 0]
    basins = watershed(-height, peaks, connectivity=2, mask=height > floor)
    keep = _outstanding(tops, *_passes(basins, height), least) & (tops - floor >= least)
    return np.asarray(keep[peaks])


def _passes(basins: npt.NDArray[np.int32], height: Map) -> tuple[npt.NDArray[np.int64], Map]:
    """The passes between basins, highest first: (P, 2) which two, and (P,) how high; each two once."""
    pairs, heights = [], []
    rows, columns = basins.shape
    for down, right in _HALF_OF_EIGHT:
        here = slice(0, rows - down), slice(max(0, -right), columns - max(0, right))
        there = slice(down, rows), slice(max(0, right), columns - max(0, -right))
        one, other = basins[here], basins[there]
        meet = np.nonzero((one != other) & (one > 0) & (other > 0))
        pairs.append(np.sort(np.stack([one[meet], other[meet]], axis=1).astype(np.int64), axis=1))
        heights.append(np.minimum(height[here][meet], height[there][meet]))
    both, passes = np.concatenate(pairs), np.concatenate(heights)
    order = np.argsort(-passes, kind="stable")
    both, passes = both[order], passes[order]
    first = np.sort(np.unique(both @ np.array([int(basins.max(initial=0)) + 1, 1]), return_index=True)[1])
    return both[first], passes[first]


def _outstanding(tops: Map, pairs: npt.NDArray[np.int64], passes: Map, least: float) -> npt.NDArray[np.bool_]:
    """Which peaks, by number, are not joined to a higher one before the way down is ``least``; 0 is none."""
    keep = np.arange(len(tops)) > 0
    joined_to, heights = list(range(len(tops))), tops.tolist()
    alike = [[peak] for peak in range(len(tops))]  # the highest peaks of what has been joined

    def highest(peak: int) -> int:
        while joined_to[peak] != peak:
            joined_to[peak] = joined_to[joined_to[peak]]
            peak = joined_to[peak]
        return peak

    for (one, other), level in zip(pairs.tolist(), passes.tolist(), strict=True):
        lower, higher = sorted((highest(one), highest(other)), key=heights.__getitem__)
        if lower == higher:
            continue
        if heights[lower] == heights[higher]:
            alike[higher] += alike[lower]
        elif heights[lower] - level < least:
            keep[alike[lower]] = False
        joined_to[lower] = higher
    return keep
