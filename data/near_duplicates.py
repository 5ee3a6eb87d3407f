"""Near duplicates: images that show the same cells, though their files and pixels differ.

Copies of a smear that were re-encoded, exposed or coloured otherwise, resized, cropped, mirrored or turned, and fields
of view that overlap. Found from fingerprints alone: whole copies by their thumbnails, parts by interest points with
equal surroundings that agree on one way to lay one image over the other. Points are looked up by the signs of their
frequencies (locality-sensitive hashing with probing of the least certain signs, after Lv et al., VLDB 2007), so that
the time grows with the number of images, not with its square.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.fingerprints import (
    DESCRIPTOR,
    FINGERPRINT_BYTES,
    FINGERPRINT_VERSION,
    LEVELS,
    MAX_POINTS,
    REACH,
    Points,
    descriptors,
    fingerprint,
    frequencies,
    packed_points,
    point_counts,
    product,
    thumbnails,
    unpack,
    working_sizes,
)

__all__ = ["FINGERPRINT_BYTES", "FINGERPRINT_VERSION", "NearPair", "find_near_duplicates", "fingerprint"]

LEAST_THUMBNAIL = 0.85  # cosine of two thumbnails from which on they are of one image
LEAST_AGREEING = 10  # points that must agree on one overlay
LEAST_PLACES = 8  # that they must lie in: one odd structure alone gives many points
LEAST_SHARE = 0.1  # of the points that both images could show

_LEAST_COSINE = 0.8  # of two points' surroundings
_TOLERANCE = 3.0  # pixels of the working image
_PROBES = 4  # signs turned over, one at a time, in looking a point up
_CROWD = 8  # points that one is compared with under one key; the crowded keys are of what all smears share
_LEAST_HITS = 3  # that agree roughly before two images are compared in full
_SQUARE = 48.0  # pixels: how roughly
_PLACE = 16.0  # pixels between which two points count as two places
_THREADS = 2  # each holds a block's hits, up to some hundred MB
_BLOCK = 256  # images looked up at a time
_CHUNK = 500_000  # point pairs compared at a time
_COUNTER_BITS = 22  # counters that hits are told apart by before they are looked at: 32 MB a thread


class NearPair(NamedTuple):
    """Two images that show the same cells.

    Attributes:
        first: position in the fingerprints given first.
        second: position in the others where there are others, else in the same and above ``first``.
        similarity: 0..1; cosine of the thumbnails, or the share of points that agree where both images can show them,
            whichever is larger; 1 for equal fingerprints.
    """

    first: int
    second: int
    similarity: float


def find_near_duplicates(
    fingerprints: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8] | None = None, *, progress: bool = False
) -> list[NearPair]:
    """Find the pairs of images that show the same cells, in one set or between two.

    Of images with equal fingerprints each is paired with the first only, and the first alone with what is like them; in
    comparing two sets every image of ``fingerprints`` that has a like among the others is paired with one at least.

    Args:
        fingerprints: ``fingerprint`` of each image, uint8 (N, FINGERPRINT_BYTES).
        others: those of a second set, uint8 (M, FINGERPRINT_BYTES); then only pairs between the two sets are sought.
        progress: whether a bar is drawn on stderr.

    Returns:
        The pairs, sorted.

    Raises:
        ValueError: fingerprints of another shape, type or version.
    """
    for given in (fingerprints, others):
        if given is not None:
            _check(given)
    if not len(fingerprints) or (others is not None and not len(others)):
        return []
    within = others is None
    together = fingerprints if others is None else np.concatenate([fingerprints, others])
    equal = _equal_sets(together)
    firsts = np.array([members[0] for members in equal], dtype=np.intp)
    split = len(together) if within else len(fingerprints)
    sides = np.array([[any(m < split for m in members), within or members[-1] >= split] for members in equal])
    found = _search(together[firsts], sides.reshape(-1, 2), progress)
    return sorted(_expanded(found, equal, split, within))


def _check(fingerprints: npt.NDArray[np.uint8]) -> None:
    if fingerprints.dtype != np.uint8 or fingerprints.ndim != 2 or fingerprints.shape[1] != FINGERPRINT_BYTES:
        raise ValueError(f"expected uint8 (N, {FINGERPRINT_BYTES}), found {fingerprints.dtype} {fingerprints.shape}")
    if (fingerprints[:, 0] != FINGERPRINT_VERSION).any():
        raise ValueError(f"expected fingerprints of version {FINGERPRINT_VERSION}")


# --- equal fingerprints -----------------------------------------------------------------------------------------------


def _equal_sets(fingerprints: npt.NDArray[np.uint8]) -> list[list[int]]:
    """Positions of equal fingerprints, set by set."""
    sets: dict[bytes, list[int]] = defaultdict(list)
    for position, row in enumerate(fingerprints):
        sets[hashlib.blake2b(row.tobytes(), digest_size=16).digest()].append(position)
    return list(sets.values())


def _expanded(
    found: dict[tuple[int, int], float], equal: list[list[int]], split: int, within: bool
) -> Iterator[NearPair]:
    """From pairs of sets to pairs of images."""
    if within:
        yield from (NearPair(members[0], other, 1.0) for members in equal for other in members[1:])
        for (a, b), value in found.items():
            first, second = sorted((equal[a][0], equal[b][0]))
            yield NearPair(first, second, value)
        return
    left = [[member for member in members if member < split] for members in equal]
    right = [[member - split for member in members if member >= split] for members in equal]
    for pair, value in [*(((k, k), 1.0) for k in range(len(equal))), *found.items()]:
        for a, b in {pair, pair[::-1]}:
            yield from (NearPair(member, right[b][0], value) for member in left[a] if right[b])


# --- search -----------------------------------------------------------------------------------------------------------


def _search(
    fingerprints: npt.NDArray[np.uint8], sides: npt.NDArray[np.bool_], progress: bool
) -> dict[tuple[int, int], float]:
    """Similarity of the pairs (a < b) of different fingerprints that are near duplicates and stand on both sides."""
    found = dict(_like_thumbnails(fingerprints, sides))
    index = _Index(fingerprints, sides)
    for a, b in index.candidates(progress):
        evidence = compare(index.points(a), index.points(b), index.sizes[a], index.sizes[b])
        if evidence.convinces():
            found[a, b] = max(evidence.share, found.get((a, b), 0.0))
    return found


def _opposite(sides: npt.NDArray[np.bool_], a: npt.NDArray[np.intp], b: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether one of two images is in the first set and the other in the second."""
    return np.asarray((sides[a, 0] & sides[b, 1]) | (sides[a, 1] & sides[b, 0]))


def _like_thumbnails(
    fingerprints: npt.NDArray[np.uint8], sides: npt.NDArray[np.bool_]
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the pairs whose thumbnails are alike."""
    vectors = thumbnails(fingerprints)
    for start in range(0, len(vectors), _BLOCK):
        products = vectors[start : start + _BLOCK] @ vectors[start:].T
        a, b = np.nonzero(products >= LEAST_THUMBNAIL)
        values = products[a, b]
        chosen = (a < b) & _opposite(sides, a + start, b + start)
        for first, second, value in zip(a[chosen], b[chosen], values[chosen], strict=True):
            yield (int(first) + start, int(second) + start), min(1.0, float(value))


class _Index:
    """Points of all images, to be looked up by the signs of their frequencies.

    Args:
        fingerprints: of all images.
        sides: whether each image is in the first and in the second set, (N, 2).
    """

    def __init__(self, fingerprints: npt.NDArray[np.uint8], sides: npt.NDArray[np.bool_]) -> None:
        self.sizes, self.sides = working_sizes(fingerprints), sides
        self._packed, self._counts = packed_points(fingerprints), point_counts(fingerprints)
        self._flat = np.ascontiguousarray(self._packed).reshape(-1, self._packed.shape[2])
        self._kinds = np.ascontiguousarray(self._flat[:, 3] & 63)
        entries = [next(self._keys(block)) for block in self._blocks()]
        self._entries = np.sort(np.concatenate([np.empty(0, dtype=np.uint64), *entries]))

    def points(self, image: int) -> Points:
        """The points of one image."""
        return unpack(self._packed[image, : self._counts[image]], self.sizes[image])

    def candidates(self, progress: bool) -> Iterator[tuple[int, int]]:
        """Yield the pairs of images (a < b) of which several points agree roughly."""
        from tqdm import tqdm

        blocks = self._blocks()
        with ThreadPoolExecutor(_THREADS) as pool:
            bar = {"total": len(blocks), "desc": "comparing images", "unit": "block", "disable": not progress}
            for found in tqdm(pool.map(self._candidates_of, blocks), **bar):
                yield from found

    def _candidates_of(self, block: range) -> list[tuple[int, int]]:
        """The candidates whose first image is in a block; most of it runs outside Python's lock."""
        found = [self._look_up(queries) for queries in self._keys(block)]
        one, two = (np.concatenate(points) for points in zip(*found, strict=True))
        likely = self._likely(one, two)
        return self._agreeing(self._alike(np.column_stack([one[likely], two[likely]])))

    def _blocks(self) -> list[range]:
        count = len(self._packed)
        return [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]

    def _keys(self, block: range) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield sorted keys of a block's points, above their numbers: as they are, then with one sign turned each."""
        here = np.arange(MAX_POINTS) < self._counts[block.start : block.stop, None]
        image, place = np.nonzero(here)
        packed = self._packed[block.start : block.stop][here]
        number = ((image + block.start) * MAX_POINTS + place).astype(np.uint64)
        values = descriptors(packed)[:, _free_signs()]
        weights = np.left_shift(np.uint64(1), np.arange(values.shape[1], dtype=np.uint64))
        dark = (packed[:, 3] >> 6).astype(np.uint64) << np.uint64(values.shape[1])
        key = ((values > 0) * weights).sum(axis=1, dtype=np.uint64) | dark
        yield np.sort(key << np.uint64(32) | number)
        weakest = np.argsort(np.abs(values), axis=1, kind="stable")[:, :_PROBES]
        for k in range(_PROBES):
            yield np.sort((key ^ weights[weakest[:, k]]) << np.uint64(32) | number)

    def _look_up(self, queries: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The points asked for, and those of later images with equal keys, as often as there are pairs of them."""
        mask = np.uint64(2**32 - 1)
        number = queries & mask
        keys = queries & ~mask
        begin = np.searchsorted(self._entries, keys | (number // MAX_POINTS + np.uint64(1)) * np.uint64(MAX_POINTS))
        end = np.minimum(np.searchsorted(self._entries, keys | mask, side="right"), begin + _CROWD)
        many = np.maximum(end - begin, 0)
        first = np.cumsum(many) - many
        place = np.arange(many.sum()) + np.repeat(begin - first, many)
        return np.repeat(number.astype(np.int64), many), (np.take(self._entries, place) & mask).astype(np.int64)

    def _likely(self, one: npt.NDArray[np.int64], two: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Which pairs of points may be among enough that ask for one overlay.

        Counted by the hash of images, orientation and scale, which needs a byte of each point; of different images that
        leaves one pair of points in some twenty to be compared. What is dropped could not have become a candidate.
        """
        a, b = one // MAX_POINTS, two // MAX_POINTS
        overlay = np.take(_overlay_kinds(), np.take(self._kinds, one).astype(np.intp) << 6 | np.take(self._kinds, two))
        key = (a * len(self.sizes) + b) * 128 + overlay
        slot = (key.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _COUNTER_BITS)
        slot = slot.astype(np.intp)
        often = np.bincount(slot, minlength=2**_COUNTER_BITS) >= _LEAST_HITS
        likely = np.flatnonzero(often[slot])
        return likely[_opposite(self.sides, a[likely], b[likely])]

    def _alike(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those pairs of points whose surroundings are alike."""
        kept = [np.empty((0, 2), dtype=np.int64)]
        for start in range(0, len(pairs), _CHUNK):
            some = pairs[start : start + _CHUNK]
            one, two = (descriptors(self._flat[some[:, k]]).astype(np.float32) for k in (0, 1))
            product = np.einsum("ij,ij->i", one, two)
            squares = np.einsum("ij,ij->i", one, one) * np.einsum("ij,ij->i", two, two)
            kept.append(some[product > _LEAST_COSINE * np.sqrt(squares)])
        return np.concatenate(kept)

    def _agreeing(self, hits: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Pairs of images of which enough points ask for about the same overlay."""
        images = hits // MAX_POINTS
        hits = hits[_frequent(images[:, 0] * len(self.sizes) + images[:, 1])]
        images = hits // MAX_POINTS
        one, two = (unpack(self._flat[hits[:, k]], self.sizes[images[:, k]]) for k in (0, 1))
        turn, level, shift = _overlays(one, two)
        overlay = ((images[:, 0] * len(self.sizes) + images[:, 1]) * 8 + turn) * (2 * LEVELS) + level + LEVELS
        _, overlay = np.unique(overlay, return_inverse=True)
        found = []
        for offset in ((0, 0), (0, 0.5), (0.5, 0), (0.5, 0.5)):
            # Overlays near the border of a square meet in one of the grids that are moved by half a square.
            x, y = np.floor(shift / _SQUARE + np.array(offset)).astype(np.int64).T % 4096
            found.append(images[_frequent((overlay * 4096 + x) * 4096 + y)])
        return [(int(a), int(b)) for a, b in np.unique(np.concatenate(found), axis=0)]


def _frequent(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the keys occur at least ``_LEAST_HITS`` times."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] >= _LEAST_HITS, dtype=np.bool_)


@cache
def _free_signs() -> npt.NDArray[np.intp]:
    """The frequencies whose signs say something: those of the two that choose the orientation are always positive."""
    rows, columns = frequencies(6, 1, DESCRIPTOR)
    return np.flatnonzero(rows + columns > 1)


# --- one overlay ------------------------------------------------------------------------------------------------------


def _overlays(one: Points, two: Points) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """How each point of ``one`` would lie over its like in ``two``: turn, half octaves of scale, shift in pixels."""
    matrices, between = _turns()
    turn = between[one.turn, two.turn]
    level = two.level - one.level
    turned = np.einsum("nij,nj->ni", matrices[turn], one.xy)
    scale = (2.0 ** (level / 2)).astype(np.float32)
    return turn, level, two.xy - scale[:, None] * turned


@cache
def _turns() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """The eight orientations as matrices (8, 2, 2), and the one that leads from one to another (8, 8)."""
    mirrors = [np.diag([-1.0 if turn & 1 else 1.0, -1.0 if turn & 2 else 1.0]) for turn in range(4)]
    matrices = np.array([*mirrors, *(mirror[::-1] for mirror in mirrors)])
    between = np.empty((8, 8), dtype=np.intp)
    for a in range(8):
        for b in range(8):
            way = matrices[b].T @ matrices[a]
            between[a, b] = int(np.flatnonzero((matrices == way).all(axis=(1, 2)))[0])
    return matrices.astype(np.float32), between


@cache
def _overlay_kinds() -> npt.NDArray[np.intp]:
    """Turn and half octaves of scale between points, as one number below 128, by 64 times the one's kind + the other's.

    A point's kind is its turn and level as packed.
    """
    one, two = np.divmod(np.arange(64 * 64), 64)
    turn = _turns()[1][one >> 3, two >> 3]
    return np.asarray(turn << 4 | ((two & 7) - (one & 7) + LEVELS) & 15, dtype=np.intp)


class Evidence(NamedTuple):
    """What speaks for two images showing the same cells.

    Attributes:
        agreeing: points that agree on one overlay.
        places: of those, how many lie apart from each other.
        share: ``agreeing`` as a share of the points that both images can show under that overlay.
    """

    agreeing: int
    places: int
    share: float

    def convinces(self) -> bool:
        """Whether that is more than chance brings about."""
        return self.agreeing >= LEAST_AGREEING and self.places >= LEAST_PLACES and self.share >= LEAST_SHARE


def compare(one: Points, two: Points, size_one: npt.NDArray[np.intp], size_two: npt.NDArray[np.intp]) -> Evidence:
    """Lay one image over the other in the way that most of their points ask for.

    Args:
        one: the points of one image.
        two: those of the other.
        size_one: width and height of the one's working image, pixels.
        size_two: those of the other's.
    """
    found = _lay_over(one, two)
    if found is None:
        return Evidence(0, 0, 0.0)
    back = np.asarray((two.xy - found.offset) @ found.matrix / found.factor, dtype=np.float32)
    seen = min(
        _visible(one, found.factor * (one.xy @ found.matrix.T) + found.offset, found.factor, size_two),
        _visible(two, back, 1 / found.factor, size_one),
    )
    count = len(found.target)
    return Evidence(count, _places(found.target), count / max(count, seen))


def overlay(one: Points, two: Points) -> npt.NDArray[np.float64] | None:
    """The affine map (2, 3) that lays one image over the other, as most of their points ask for; None without one.

    It turns (x, y, 1) in pixels of the one's working image into (x, y) of the other's. Other than ``compare``, which
    knows no turn but quarter turns, it follows a field that was moved and slightly turned.
    """
    found = _lay_over(one, two)
    if found is None or len(found.target) < LEAST_AGREEING:
        return None
    i, j = _mutual(one, two)
    source = np.column_stack([one.xy[i], np.ones(len(i))])
    aim = two.xy[j].astype(np.float64)
    affine = np.column_stack([found.factor * found.matrix, found.offset]).astype(np.float64)
    for _ in range(8):
        agreeing = np.abs(source @ affine.T - aim).max(axis=1) < _TOLERANCE * max(1.0, found.factor)
        if agreeing.sum() < LEAST_PLACES:
            return None
        affine = np.linalg.lstsq(source[agreeing], aim[agreeing], rcond=None)[0].T
    return np.asarray(affine)


class _Overlay(NamedTuple):
    """target = factor * matrix @ source + offset, and the targets (P, 2) that agree on it."""

    matrix: npt.NDArray[np.float32]
    factor: float
    offset: npt.NDArray[np.float32]
    target: npt.NDArray[np.float32]


def _lay_over(one: Points, two: Points) -> _Overlay | None:
    """The overlay that most pairs of points ask for; None where there are too few of them."""
    i, j = _mutual(one, two)
    if len(i) < LEAST_AGREEING:
        return None
    a, b = one.at(i), two.at(j)
    turn, level, shift = _overlays(a, b)
    scale = (2.0 ** (level / 2)).astype(np.float32)
    near = (turn * LEVELS * 2 + level)[:, None] == turn * LEVELS * 2 + level
    for along in shift.T:
        near &= np.abs(along[:, None] - along) < (_TOLERANCE * np.maximum(1, scale))[:, None]
    votes = near.sum(axis=1)
    best = int(votes.argmax())
    if votes[best] < LEAST_AGREEING // 2:  # as of nearly all candidates that are none; a better fit does not double it
        return None
    matrix, agreeing = _turns()[0][turn[best]], near[best]
    turned = a.xy @ matrix.T
    factor, offset = float(scale[best]), shift[best]
    for _ in range(4):
        factor, offset = _fit(turned[agreeing], b.xy[agreeing], float(scale[best]))
        miss = np.abs(factor * turned + offset - b.xy).max(axis=1)
        agreeing = (turn == turn[best]) & (miss < _TOLERANCE * max(1.0, factor))
        if not agreeing.any():
            return None
    return _Overlay(matrix, factor, offset, b.xy[agreeing])


def _mutual(one: Points, two: Points) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Points that are each other's most alike."""
    if not (len(one.xy) and len(two.xy)):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    vectors = [points.descriptor.astype(np.float32) for points in (one, two)]
    left, right = (vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors)
    cosine = product(left, np.ascontiguousarray(right.T))
    cosine[one.dark[:, None] != two.dark] = 0
    i, j = np.arange(len(left)), cosine.argmax(axis=1)
    kept = (cosine.argmax(axis=0)[j] == i) & (cosine[i, j] > _LEAST_COSINE)
    return i[kept], j[kept]


def _fit(
    source: npt.NDArray[np.float32], target: npt.NDArray[np.float32], scale: float
) -> tuple[float, npt.NDArray[np.float32]]:
    """Least squares for target = factor * source + offset, the factor within a third of an octave of ``scale``."""
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    spread = float(np.square(source - middle).sum())
    factor = float(((source - middle) * (target - aim)).sum()) / spread if spread > 0 else scale
    factor = float(np.clip(factor, scale / 1.26, scale * 1.26))
    return factor, aim - factor * middle


def _visible(points: Points, places: npt.NDArray[np.float32], factor: float, size: npt.NDArray[np.intp]) -> int:
    """How many points the other image could show: inside of it, and at a level that it has."""
    level = points.level + round(2 * np.log2(factor))
    margin = (REACH * 2.0 ** (level / 2))[:, None]
    inside = ((places >= margin) & (places <= size - margin)).all(axis=1)
    return int((inside & (level >= 0) & (level < LEVELS)).sum())


def _places(xy: npt.NDArray[np.float32]) -> int:
    """How many of so many squares of the image hold points."""
    return len(np.unique(np.floor(xy / _PLACE).astype(np.int64), axis=0))
