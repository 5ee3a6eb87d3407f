"""Near duplicates confirmed on the pixels: laid over each other, two images of the same cells look the same.

Fingerprints can agree on what is no cell: a scale bar, a pointer, dirt on the camera. Where they agree on a part only,
the images are read again and correlated after the differences of lamp and stain between them are taken out. Of the 34
pairs in AneRBC-I all are confirmed, with .74 to .99; smears laid over each other at random reach .1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.fingerprints import packed_points, point_counts, unpack, working_green, working_sizes
from data.near_duplicates import LEAST_THUMBNAIL, NearPair, overlay

SURE = LEAST_THUMBNAIL  # similarity from which on the fingerprints alone suffice
LEAST_CORRELATION = 0.5  # of the overlap
LEAST_OVERLAP = 1024  # pixels
_BLUR = 3  # pixels: what is finer is noise, or moved by the lens
_NEIGHBOURHOOD = 25  # pixels, of one or a few cells; what changes more slowly is lamp, stain and thickness
_LEAST_DEVIATION = 0.01  # optical density
_THREADS = 2

Pixels = npt.NDArray[np.uint8]
_Plane = npt.NDArray[np.float32]


def confirmed(
    pairs: Sequence[NearPair], fingerprints: Pixels, read: Callable[[int], Pixels], *, progress: bool = False
) -> list[NearPair]:
    """Keep the pairs that are sure by their fingerprints, or that look the same where they overlap.

    Args:
        pairs: as ``find_near_duplicates`` gives them for one set.
        fingerprints: of that set, uint8 (N, FINGERPRINT_BYTES).
        read: gives the image at a position, uint8 (H, W, 3); called from several threads.
        progress: whether a bar is drawn on stderr.

    Raises:
        UserError: as ``read`` does.
    """
    from tqdm import tqdm

    weak = [pair for pair in pairs if pair.similarity < SURE]
    if not weak:
        return list(pairs)
    bar = {"total": len(weak), "desc": "confirming", "unit": "pair", "disable": not progress}
    with ThreadPoolExecutor(_THREADS) as pool:
        looked_at = tqdm(pool.map(lambda pair: correlation(pair, fingerprints, read), weak), **bar)
        refused = {pair for pair, value in zip(weak, looked_at, strict=True) if value < LEAST_CORRELATION}
    return [pair for pair in pairs if pair not in refused]


def correlation(pair: NearPair, fingerprints: Pixels, read: Callable[[int], Pixels]) -> float:
    """How alike two images are where they overlap, -1 to 1; 0 where they cannot be laid over each other.

    Args:
        pair: positions of the two.
        fingerprints: of all images.
        read: see ``confirmed``.
    """
    chosen = fingerprints[[pair.first, pair.second]]
    counts, sizes = point_counts(chosen), working_sizes(chosen)
    points = [unpack(packed_points(chosen)[k, : counts[k]], sizes[k]) for k in (0, 1)]
    affine = overlay(points[0], points[1])
    if affine is None or abs(np.linalg.det(affine[:, :2])) < 1e-3:
        return 0.0
    images = [working_green(read(index)) for index in (pair.first, pair.second)]
    if abs(np.linalg.det(affine[:, :2])) < 1:  # the smaller one is enlarged: nothing is lost in that
        return overlap_correlation(images[1], images[0], _inverse(affine))
    return overlap_correlation(images[0], images[1], affine)


def overlap_correlation(one: Image.Image, two: Image.Image, affine: npt.NDArray[np.float64]) -> float:
    """Correlation of two grey images in the overlap, each in deviations of its neighbourhood; 0 without an overlap.

    Args:
        one: the image that is laid over the other.
        two: the other.
        affine: (2, 3), from (x, y, 1) of the one to (x, y) of the other, pixels.
    """
    back = tuple(_inverse(affine).ravel())
    laid = one.transform(two.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    inside = Image.new("L", one.size, 255).transform(two.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    here = np.asarray(inside) == 255
    if here.sum() < LEAST_OVERLAP:
        return 0.0
    a, b = (_deviations(_density(image), here)[here] for image in (laid, two))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(1e-9, np.sqrt(np.square(a).sum() * np.square(b).sum())))


def _inverse(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def _density(image: Image.Image) -> _Plane:
    return np.asarray(-np.log((np.asarray(image).astype(np.float32) + 1) / 256), dtype=np.float32)


def _deviations(plane: _Plane, here: npt.NDArray[np.bool_]) -> _Plane:
    """Each pixel in deviations of its neighbourhood, as far as that is ``here``."""
    from scipy.ndimage import uniform_filter

    def mean(values: _Plane, size: int) -> _Plane:
        return np.asarray(uniform_filter(values * weight, size) / np.maximum(uniform_filter(weight, size), 1e-3))

    weight = here.astype(np.float32)
    smooth = mean(plane, _BLUR)
    apart = smooth - mean(smooth, _NEIGHBOURHOOD)
    return np.asarray(apart / (np.sqrt(mean(apart**2, _NEIGHBOURHOOD)) + _LEAST_DEVIATION), dtype=np.float32)
