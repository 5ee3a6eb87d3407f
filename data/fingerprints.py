"""Fingerprints of smears: what of an image survives re-encoding, another exposure, a crop, a flip or a quarter turn.

A fingerprint has two parts. The thumbnail part holds low frequencies of the whole image and finds whole copies of any
size. The constellation holds interest points (extrema of a difference of Gaussians on the optical density of green, at
scales half an octave apart, as in Lowe, IJCV 2004) with the low frequencies of their surroundings, turned into one of
the eight orientations of a square so that flips and quarter turns change nothing but the orientation; it finds crops.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

FINGERPRINT_VERSION = 2
FINGERPRINT_BYTES = 4096
MAX_POINTS = 240
LEVELS = 5  # half octaves of scale: the full working size down to a quarter of it
DESCRIPTOR = 24  # frequencies kept of a point's surroundings
THUMBNAIL = 15 * 15  # pixels kept of the whole image

# Large images are halved until they have at most so many pixels. Halving keeps their scale a whole number of levels
# away from that of their own crops.
_WORKING_PIXELS = 300_000
_QUOTA = (86, 58, 43, 29, 24)  # points of each level, the finest first; they add up to MAX_POINTS
_SMALLEST_SIDE = 32
_HEADER, _POINTS_AT, _POINT_BYTES = 16, 256, 16
REACH = 13  # pixels of a level around a point that its smoothing and description need
_SAMPLES = np.arange(-9, 10, 2)  # where a point's surroundings are sampled, in pixels of its level
_EDGE = 8.0  # largest squared trace over determinant of the curvature: an edge has no place along itself
_WAVES = 6  # frequencies along each side of a point's surroundings, of which the lowest are kept
_AT_FIRST = 4  # times as many extrema as are wanted are looked at first, the strongest
_STRIP = 200_000  # multiplications
_DENSEST = 2000  # thousandths of optical density
_LEAST_CONTRAST = 8  # of the difference, in 16000ths of optical density; below it there is nothing but rounding
_THUMBNAIL_SIDE = 15
_LEAST_DEVIATION = 2.0  # thousandths of optical density; what is below it in a thumbnail is hardly there
_STEPS = 14  # quantisation steps in a descriptor's unit
_POSITION_STEPS = 4096

_FloatArray = npt.NDArray[np.float32]
_IndexArray = npt.NDArray[np.intp]


class Points(NamedTuple):
    """Interest points of one or many images.

    Attributes:
        xy: positions in pixels of the working image, float32 (P, 2).
        level: half octaves below the working scale, int (P,).
        turn: which of the eight orientations was used, int (P,): 1 mirrored in x, 2 in y, 4 then x and y swapped.
        dark: whether the point is denser than its surroundings, bool (P,).
        descriptor: odd whole numbers in -15..15, int8 (P, DESCRIPTOR); two of them are never negative.
    """

    xy: _FloatArray
    level: _IndexArray
    turn: _IndexArray
    dark: npt.NDArray[np.bool_]
    descriptor: npt.NDArray[np.int8]

    def at(self, chosen: _IndexArray) -> Points:
        """Some of them."""
        return Points(
            self.xy[chosen], self.level[chosen], self.turn[chosen], self.dark[chosen], self.descriptor[chosen]
        )


def fingerprint(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Take the fingerprint of an image; equal images have equal ones.

    Args:
        rgb: uint8 array of shape (H, W, 3).

    Returns:
        uint8 array of shape (FINGERPRINT_BYTES,).

    Raises:
        ValueError: ``rgb`` is not a uint8 array of shape (H, W, 3), or has no pixels.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ValueError(f"expected uint8 (H, W, 3) with pixels, found {rgb.dtype} {rgb.shape}")
    green = working_green(rgb)
    packed = np.zeros(FINGERPRINT_BYTES, dtype=np.uint8)
    packed[0] = FINGERPRINT_VERSION
    packed[2:6] = np.array(green.size, dtype="<u2").view(np.uint8)
    packed[_HEADER : _HEADER + THUMBNAIL] = _thumbnail(green).view(np.uint8)
    points = _points(_scales(green))
    packed[1] = len(points)
    packed[_POINTS_AT : _POINTS_AT + points.size] = points.ravel()
    return packed


def point_counts(fingerprints: npt.NDArray[np.uint8]) -> _IndexArray:
    """Number of interest points of each fingerprint, (N,)."""
    return fingerprints[:, 1].astype(np.intp)


def working_sizes(fingerprints: npt.NDArray[np.uint8]) -> _IndexArray:
    """Width and height of the working images, pixels, (N, 2)."""
    return np.ascontiguousarray(fingerprints[:, 2:6]).view("<u2").astype(np.intp)


def thumbnails(fingerprints: npt.NDArray[np.uint8]) -> _FloatArray:
    """Unit vectors (N, THUMBNAIL) whose products say how alike whole images are; zero without contrast."""
    found = fingerprints[:, _HEADER : _HEADER + THUMBNAIL].view(np.int8).astype(np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1), dtype=np.float32)


def packed_points(fingerprints: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The points as they are packed, (N, MAX_POINTS, bytes); ``unpack`` reads them."""
    return fingerprints[:, _POINTS_AT:].reshape(len(fingerprints), MAX_POINTS, _POINT_BYTES)


def unpack(packed: npt.NDArray[np.uint8], sizes: npt.NDArray[np.intp]) -> Points:
    """Read packed points.

    Args:
        packed: some of ``packed_points``, (P, bytes).
        sizes: ``working_sizes`` of their images, (P, 2) or (2,).
    """
    low, middle, high, kind = packed[:, :4].astype(np.int32).T
    steps = np.column_stack([low | (middle & 15) << 8, middle >> 4 | high << 4])
    xy = ((steps + 0.5) * (sizes / _POSITION_STEPS)).astype(np.float32)
    return Points(xy, (kind & 7).astype(np.intp), (kind >> 3 & 7).astype(np.intp), kind >> 6 > 0, descriptors(packed))


def descriptors(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Descriptors of packed points, int8 (P, DESCRIPTOR)."""
    halves = packed[:, 4:]
    steps = np.empty((len(packed), DESCRIPTOR), dtype=np.int8)
    steps[:, 0::2] = halves & 15
    steps[:, 1::2] = halves >> 4
    return np.asarray(2 * steps - 15, dtype=np.int8)


# --- the image at its scales ------------------------------------------------------------------------------------------


def working_green(rgb: npt.NDArray[np.uint8]) -> Image.Image:
    """The green channel, where haemoglobin absorbs most, at the size in which points are counted."""
    green = Image.fromarray(np.ascontiguousarray(rgb[..., 1]))
    factor = 1
    while (green.width // factor) * (green.height // factor) > _WORKING_PIXELS:
        factor *= 2
    return green.reduce(factor) if factor > 1 else green


def _scales(green: Image.Image) -> list[Image.Image]:
    """The image at each level's size, as far as points fit in."""
    scales = [green]
    if min(green.size) * 2**-0.5 >= _SMALLEST_SIDE:
        width, height = (round(side * 2**-0.5) for side in green.size)
        scales.append(green.resize((width, height), Image.Resampling.BILINEAR))
    while 1 < len(scales) < LEVELS:
        scales.append(scales[-2].reduce(2))
    return [image for image in scales if min(image.size) >= _SMALLEST_SIDE]


def _density(green: Image.Image) -> npt.NDArray[np.int16]:
    """Optical density in thousandths, up to 2: sixteen times as much still fits the 16 bits that make this fast."""
    # Every level has an entry: "wrap" spares the check of each index, and changes none.
    return np.take(_density_table(), np.asarray(green), mode="wrap")


@cache
def _density_table() -> npt.NDArray[np.int16]:
    density = np.minimum(-1000 * np.log(np.arange(1, 257) / 256), _DENSEST)
    return np.asarray(np.rint(density), dtype=np.int16)


def _smooth(plane: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Binomial filter 1 4 6 4 1 (a Gaussian of deviation 1) both ways, times 16; two pixels fall off on each side."""
    for _ in range(4):
        plane = plane[:-1] + plane[1:]
    plane >>= 4
    for _ in range(4):
        plane = plane[:, :-1] + plane[:, 1:]
    return plane


# --- interest points --------------------------------------------------------------------------------------------------


class _Level(NamedTuple):
    """The strongest points of one level, before they are described: (P,) each, and what is around them."""

    places: npt.NDArray[np.float64]
    kind: _IndexArray
    surroundings: npt.NDArray[np.int16]


def _points(scales: list[Image.Image]) -> npt.NDArray[np.uint8]:
    """Find, describe and pack the strongest points of all levels, (P, bytes), those of the finest level first."""
    levels = [_strongest(level, image) for level, image in enumerate(scales)]
    if not levels:
        return np.empty((0, _POINT_BYTES), dtype=np.uint8)
    places, kind, surroundings = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    descriptor, turn = _describe(surroundings)
    return _pack(places, kind | turn << 3, descriptor)


def _strongest(level: int, green: Image.Image) -> _Level:
    """Find the strongest points of one level."""
    once = _smooth(_density(green))
    twice = _smooth(once >> 4)
    difference = once[2:-2, 2:-2] - twice
    y, x = _extrema(difference, _QUOTA[level])
    places = np.column_stack([(x + 4.5) / green.width, (y + 4.5) / green.height])
    around = np.add.outer(_SAMPLES * twice.shape[1], _SAMPLES).ravel()
    surroundings = np.take(twice, (y * twice.shape[1] + x)[:, None] + around)
    return _Level(places, level | (difference[y, x] > 0) << 6, surroundings)


def _extrema(difference: npt.NDArray[np.int16], quota: int) -> tuple[_IndexArray, _IndexArray]:
    """Rows and columns of the strongest local extrema that lie on no edge and far enough from the border."""
    inset = REACH - 5
    inner = difference[inset:-inset, inset:-inset]
    centre = inner[1:-1, 1:-1]
    high = (centre == _around(inner, np.maximum)) & (centre > _LEAST_CONTRAST)
    low = (centre == _around(inner, np.minimum)) & (centre < -_LEAST_CONTRAST)
    place = np.flatnonzero(high | low)
    strength = np.abs(centre.ravel()[place])
    # Most of the weak ones are noise, and there are thousands: they are looked at only where the strong do not suffice.
    for most in (_AT_FIRST * quota, len(place)):
        few = place[np.argpartition(-strength, most)[:most]] if most < len(place) else place
        y, x = (axis + inset + 1 for axis in np.divmod(few, centre.shape[1]))
        kept = np.flatnonzero(~_on_edge(difference, y, x))
        if len(kept) >= quota:
            break
    if len(kept) > quota:
        kept = kept[np.argpartition(-np.abs(difference[y[kept], x[kept]]), quota)[:quota]]
    return y[kept], x[kept]


def _on_edge(plane: npt.NDArray[np.int16], y: _IndexArray, x: _IndexArray) -> npt.NDArray[np.bool_]:
    """Whether the curvature at points is that of an edge or a saddle, which have no place of their own."""
    width = plane.shape[1]
    steps = np.array([0, -1, 1, -width, width, -width - 1, width + 1, 1 - width, width - 1])
    centre, *around = np.take(plane, steps[:, None] + (y * width + x)).astype(np.float32)
    across = around[0] + around[1] - 2 * centre
    down = around[2] + around[3] - 2 * centre
    mixed = (around[4] + around[5] - around[6] - around[7]) / 4
    determinant = across * down - mixed**2
    return np.asarray((determinant <= 0) | ((across + down) ** 2 >= _EDGE * determinant))


def _around(plane: npt.NDArray[np.int16], pick: np.ufunc) -> npt.NDArray[np.int16]:
    """Largest or smallest of each square of nine pixels."""
    rows = pick(pick(plane[:-2], plane[1:-1]), plane[2:])
    found: npt.NDArray[np.int16] = pick(pick(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return found


def _describe(surroundings: npt.NDArray[np.int16]) -> tuple[_FloatArray, _IndexArray]:
    """Low frequencies around points as unit vectors, brought into one orientation, and which one that took."""
    waves = product(surroundings.astype(np.float32), _wave_table()).reshape(-1, _WAVES, _WAVES)
    mirror_x, mirror_y = waves[:, 0, 1] < 0, waves[:, 1, 0] < 0
    waves[mirror_x, :, 1::2] *= -1
    waves[mirror_y, 1::2, :] *= -1
    swap = waves[:, 1, 0] > waves[:, 0, 1]
    waves[swap] = waves[swap].transpose(0, 2, 1)
    rows, columns = frequencies(_WAVES, 1, DESCRIPTOR)
    chosen = waves[:, rows, columns]
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True) + 1e-9
    return chosen, (mirror_x + 2 * mirror_y + 4 * swap).astype(np.intp)


def product(left: _FloatArray, right: _FloatArray) -> _FloatArray:
    """The matrix product of (N, K) and (K, M), in strips that OpenBLAS computes in the calling thread.

    Its own threads, which it starts from some 260,000 multiplications on, wait for each other at every small product:
    where several threads or processes work already, that takes ten times as long.
    """
    found = np.empty((len(left), right.shape[1]), dtype=np.float32)
    rows = max(1, _STRIP // max(1, right.size))
    for start in range(0, len(left), rows):
        np.matmul(left[start : start + rows], right, out=found[start : start + rows])
    return found


@cache
def _wave_table() -> _FloatArray:
    """The cosine transform of a square of samples as one matrix, (samples, frequencies)."""
    basis = _cosines(len(_SAMPLES), _WAVES)
    return np.ascontiguousarray(np.kron(basis, basis).T)


def _pack(places: npt.NDArray[np.float64], kind: _IndexArray, descriptor: _FloatArray) -> npt.NDArray[np.uint8]:
    """Pack points into 16 bytes each: two positions of 12 bits, level, turn and sign, and 24 frequencies of 4 bits."""
    packed = np.empty((len(places), _POINT_BYTES), dtype=np.uint8)
    x, y = np.minimum(places * _POSITION_STEPS, _POSITION_STEPS - 1).astype(np.int32).T
    packed[:, 0], packed[:, 1], packed[:, 2], packed[:, 3] = x & 255, x >> 8 | (y & 15) << 4, y >> 4, kind
    steps = np.clip(np.floor(descriptor * _STEPS), -8, 7).astype(np.int8) + 8
    packed[:, 4:] = steps[:, 0::2] | steps[:, 1::2] << 4
    return packed


# --- the whole image --------------------------------------------------------------------------------------------------


def _thumbnail(green: Image.Image) -> npt.NDArray[np.int8]:
    """The image in a small square, each pixel in deviations of its neighbourhood.

    That takes out lamp and vignette, which the smears of one microscope share, and leaves the cells.
    """
    from scipy.ndimage import uniform_filter

    small = _density(green.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.BOX)).astype(np.float32)
    apart = small - uniform_filter(small, 5)
    deviation = np.sqrt(uniform_filter(apart**2, 5))
    steps = np.clip(apart / (deviation + _LEAST_DEVIATION) * 40, -127, 127)
    return np.asarray(np.rint(steps), dtype=np.int8).ravel()


@cache
def _cosines(samples: int, count: int) -> _FloatArray:
    """The first ``count`` waves of the cosine transform of so many samples, as unit vectors (count, samples)."""
    waves = np.cos(np.pi / samples * np.outer(np.arange(count), np.arange(samples) + 0.5))
    return np.asarray(waves / np.linalg.norm(waves, axis=1, keepdims=True), dtype=np.float32)


@cache
def frequencies(side: int, lowest: int, count: int) -> tuple[_IndexArray, _IndexArray]:
    """Rows and columns of a square's lowest frequencies, from row + column = ``lowest`` on, diagonal by diagonal."""
    rows, columns = np.indices((side, side)).reshape(2, -1)
    order = np.lexsort((rows, np.abs(rows - columns), rows + columns))
    chosen = order[(rows + columns)[order] >= lowest][:count]
    return rows[chosen], columns[chosen]
