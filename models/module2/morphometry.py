"""Measures of every cell of an instance map: size, roundness, central pallor, outline; all cells at once.

Work and memory grow with the image's area; nothing is looped over cells but the convex hulls. The outline of a cell is
the set of its *cracks*, the edges between one of its pixels and a pixel of something else, each taken as the point
midway between both. A crack is *free* where plain background lies behind it: not the image's edge, not another cell,
and no other cell within two pixels, where an instance map guesses. Ellipses are fitted to free cracks alone, so that
they hold for the visible part of touching and overlapping cells. How an outline differs from its ellipse is measured on
a finer one, drawn from the stain (:mod:`models.module2.outlines`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.module2.outlines import Ellipses, outline_measures, outlines_of
from util.errors import UserError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# Rings of equal width between a cell's centre and its fitted ellipse, over which absorbance is averaged.
RINGS = 12
# The rim is looked for in the outer half, the pale centre within this part of the radius: beyond it lens blur mixes
# the cell with the background.
_RIM_FROM, _PALE_WITHIN = 0.5, 0.82
# A ring is pale below this part of the rim's absorbance.
PALE_BELOW = 0.85
# Least absorbance of a rim that counts as stained: 5 % of the light.
_STAINED = 0.022
# Side of the blocks in which the empty film's light is taken: in sides of a square of the mean cell's area, and pixels.
_BLOCK_CELLS, _LEAST_BLOCK = 4, 32
# Cracks nearer to the centre than this part of the ellipse line a hole and are no outline.
_HOLE_WITHIN = 0.5
# Least part of the directions without another cell for absorbance to be taken in these alone.
_SHOWN_SHARE = 0.3
# Sectors of a cell, in which absorbance is looked at or left out.
DIRECTIONS = 36
# Another cell this near makes a crack unfree, pixels.
_NEAR = 2
# Rounds of the ellipse fit that drop outlying cracks: beyond so many rms residuals, and never below so many pixels.
_TRIM_ROUNDS, _TRIM_AT, _TRIM_LEAST = 5, 1.3, 1.0
# Least free cracks, absolute and as a part of all, for a fit to them; with fewer, shape comes from the moments.
_FREE_CRACKS, _FREE_SHARE = 12, 0.25
# A fitted diameter is believed within these factors of the visible area's.
_DIAMETER_LOW, _DIAMETER_HIGH = 0.8, 1.4
# An outline that is fully free by this share is a lone cell's; its diameter is that of its own area.
_LONE_SHARE = 0.98


@dataclass(frozen=True)
class CellTable:
    """Measures of n cells, one array (n,) each, in the order of their numbers in the instance map.

    Attributes:
        cell: number in the instance map, int.
        x: column of the centroid of the visible pixels, pixels (0 is the middle of the first column).
        y: row of the same.
        area_px: visible pixels, int.
        diameter_px: equivalent diameter 2 sqrt(area / pi); where other cells hide a part, that of the fitted ellipse.
        roundness: minor over major axis of the fitted ellipse, 0 to 1; for an ellipse this is ImageJ's "roundness"
            4 area / (pi major^2) (Ferreira & Rasband, ImageJ User Guide, 2012).
        elongation: major over minor axis, 1 or more.
        angle: direction of the major axis, radians, in (-pi/2, pi/2], rows pointing down.
        central_pallor: diameter of the pale centre over the cell's, 0 to 1, from absorbance (see :func:`pallor_of`);
            NaN where it could not be measured.
        pallor_depth: 1 - absorbance of the centre / of the rim; 0 flat, 1 empty, below 0 where the centre is darkest.
        bump: how much darker the very centre is than the palest ring around it, relative to the rim; a target's.
        absorbance: mean decadic absorbance of the green channel.
        solidity: area within the outline drawn from the stain over that of its convex hull, 0 to 1.
        irregularity: rms of that outline's deviation from the ellipse, relative to the radius.
        tail: largest deviation outward of any direction, relative to the radius.
        spikes: maxima of the deviation that rise above half of the irregularity and above 0.02, int.
        free: part of the outline that is free, 0 to 1.
        overlapped: touches another cell.
        border: reaches the image's first or last row or column, so that a part may be missing.
        um_per_px: size of a pixel, or None where it is not known.
    """

    cell: Integers
    x: Floats
    y: Floats
    area_px: Integers
    diameter_px: Floats
    roundness: Floats
    elongation: Floats
    angle: Floats
    central_pallor: Floats
    pallor_depth: Floats
    bump: Floats
    absorbance: Floats
    solidity: Floats
    irregularity: Floats
    tail: Floats
    spikes: Integers
    free: Floats
    overlapped: Booleans
    border: Booleans
    um_per_px: float | None = None

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def diameter_um(self) -> Floats:
        """Equivalent diameter in micrometres, NaN where the pixel's size is not known."""
        return self.diameter_px * (np.nan if self.um_per_px is None else self.um_per_px)

    @property
    def area_um2(self) -> Floats:
        """Visible area in square micrometres, NaN where the pixel's size is not known."""
        return self.area_px * np.float64(np.nan if self.um_per_px is None else self.um_per_px**2)


@dataclass(frozen=True)
class _Cracks:
    """Outline points of all cells: (m,) index of the cell, place, and what lies behind."""

    own: Integers
    x: Floats
    y: Floats
    free: Booleans
    touching: Booleans


def measure_cells(
    labels: npt.NDArray[np.integer], rgb: npt.NDArray[np.uint8], *, um_per_px: float | None = None
) -> CellTable:
    """Measure every cell of an instance map.

    Args:
        labels: (H, W) integers, 0 = background, else a cell's number; numbers may have gaps.
        rgb: (H, W, 3) uint8, the smear itself.
        um_per_px: size of a pixel in micrometres, if known.

    Returns:
        One row per number that occurs; no rows for an empty map.

    Raises:
        UserError: map and image do not fit, or the pixel's size is not a positive number.
    """
    _check(labels, rgb, um_per_px)
    rows, columns = np.nonzero(labels)
    cell, own = np.unique(labels[rows, columns], return_inverse=True)
    own = own.astype(np.int64).ravel()
    count = len(cell)
    if not count:
        return _empty(um_per_px)
    area = np.bincount(own, minlength=count)
    moments = _moment_ellipses(own, columns.astype(float), rows.astype(float), area)
    cracks = _outer(_cracks(labels, cell), moments)
    free = np.bincount(cracks.own[cracks.free], minlength=count) / np.bincount(cracks.own, minlength=count)
    ellipses, whole = _ellipses(cracks, moments, area, free)
    rings, absorbance = absorbance_rings(
        labels, rgb[..., 1], (own, rows, columns), ellipses, _shown(cracks, ellipses, count)
    )
    pallor = pallor_of(rings)
    irregularity, tail, spikes, solidity = outline_measures(outlines_of(labels, cell, rgb[..., 1], ellipses), ellipses)
    return CellTable(
        cell=cell.astype(np.int64),
        x=moments.x,
        y=moments.y,
        area_px=area,
        diameter_px=2 * np.sqrt(np.where(whole, area / np.pi, ellipses.major * ellipses.minor)),
        roundness=ellipses.minor / ellipses.major,
        elongation=ellipses.major / ellipses.minor,
        angle=ellipses.angle,
        central_pallor=pallor["central_pallor"],
        pallor_depth=pallor["pallor_depth"],
        bump=pallor["bump"],
        absorbance=absorbance,
        solidity=solidity,
        irregularity=irregularity,
        tail=tail,
        spikes=spikes,
        free=free,
        overlapped=np.bincount(cracks.own[cracks.touching], minlength=count) > 0,
        border=_on_border(labels, cell),
        um_per_px=um_per_px,
    )


def _ellipses(cracks: _Cracks, moments: Ellipses, area: Integers, free: Floats) -> tuple[Ellipses, Booleans]:
    """Choose each cell's ellipse, and tell whose own area is to be trusted more than its ellipse's."""
    fitted = _fitted_ellipses(cracks, moments, len(area))
    points = np.bincount(cracks.own[cracks.free], minlength=len(area))
    ratio = np.sqrt(fitted.major * fitted.minor * np.pi / area)
    usable = (points >= _FREE_CRACKS) & (free >= _FREE_SHARE) & (ratio > _DIAMETER_LOW) & (ratio < _DIAMETER_HIGH)
    return fitted.where(usable, moments), ~usable | (free >= _LONE_SHARE)


def _check(labels: npt.NDArray[np.integer], rgb: npt.NDArray[np.uint8], um_per_px: float | None) -> None:
    """Raise UserError unless the instance map, the image and the size of a pixel can be used."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
        raise UserError(
            "instance map of the cells",
            expected="(H, W) integers of 0 or more",
            found=f"{labels.shape} {labels.dtype}",
            remedy="give one number per pixel, 0 for the background",
        )
    if rgb.shape != (*labels.shape, 3) or rgb.dtype != np.uint8:
        raise UserError(
            "image beside the instance map",
            expected=f"{(*labels.shape, 3)} uint8",
            found=f"{rgb.shape} {rgb.dtype}",
            remedy="give the smear at the map's own size, in RGB",
        )
    if um_per_px is not None and not (np.isfinite(um_per_px) and um_per_px > 0):
        raise UserError(
            "micrometres per pixel", expected="a number above 0", found=str(um_per_px), remedy="give the pixel's size"
        )


def _empty(um_per_px: float | None) -> CellTable:
    """Return a table without a row."""
    whole, yes_or_no = {"cell", "area_px", "spikes"}, {"overlapped", "border"}
    columns = {
        name: np.zeros(0, np.int64 if name in whole else bool if name in yes_or_no else np.float64)
        for name in CellTable.__dataclass_fields__
        if name != "um_per_px"
    }
    return CellTable(**columns, um_per_px=um_per_px)


def _on_border(labels: npt.NDArray[np.integer], cell: npt.NDArray[np.integer]) -> Booleans:
    """Tell which cells own a pixel of the image's first or last row or column."""
    return np.isin(cell, np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))


def _moment_ellipses(own: Integers, x: Floats, y: Floats, area: Integers) -> Ellipses:
    """Fit to each cell the ellipse of its own centroid, second moments' axis ratio and direction, and its own area."""
    count = len(area)
    middle_x, middle_y = np.bincount(own, x, count) / area, np.bincount(own, y, count) / area
    right, down = x - middle_x[own], y - middle_y[own]
    # A pixel is a square: its own second moment is 1/12.
    xx = np.bincount(own, right * right, count) / area + 1 / 12
    yy = np.bincount(own, down * down, count) / area + 1 / 12
    xy = np.bincount(own, right * down, count) / area
    spread = np.hypot((xx - yy) / 2, xy)
    major, minor = (xx + yy) / 2 + spread, np.maximum((xx + yy) / 2 - spread, 1 / 12)
    scale = np.sqrt(area / np.pi) / (major * minor) ** 0.25
    return Ellipses(middle_x, middle_y, scale * np.sqrt(major), scale * np.sqrt(minor), np.arctan2(2 * xy, xx - yy) / 2)


def _cracks(labels: npt.NDArray[np.integer], cell: npt.NDArray[np.integer]) -> _Cracks:
    """Find the outlines of all cells."""
    height, width = labels.shape
    edge = _NEAR + 1
    padded = np.pad(labels, edge)
    found = []
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        beside = padded[edge + down : edge + down + height, edge + right : edge + right + width]
        y, x = np.nonzero((labels > 0) & (labels != beside))
        own, other = labels[y, x], beside[y, x]
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        near = np.zeros(len(y), bool)
        for below in range(-_NEAR, _NEAR + 1):
            for beyond in range(-_NEAR, _NEAR + 1):
                seen = padded[edge + y + below, edge + x + beyond]
                near |= (seen > 0) & (seen != own)
        found.append((own, x + right / 2, y + down / 2, inside & ~near, other > 0))
    owns, xs, ys, free, touching = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Cracks(np.searchsorted(cell, owns).astype(np.int64), xs, ys, free, touching)


def _outer(cracks: _Cracks, moments: Ellipses) -> _Cracks:
    """Leave out the cracks of holes in cells."""
    kept = np.hypot(*moments.frame(cracks.own, cracks.x, cracks.y)) >= _HOLE_WITHIN
    names = ("own", "x", "y", "free", "touching")
    return _Cracks(*(getattr(cracks, name)[kept] for name in names))


def _fitted_ellipses(cracks: _Cracks, start: Ellipses, count: int) -> Ellipses:
    """Fit ellipses to the free cracks, and again without those that lie far from the fit.

    The second look keeps the fit to the body of a cell where a platelet, a tail or a wrong cut adds to its outline.
    """
    own, x, y = cracks.own[cracks.free], cracks.x[cracks.free], cracks.y[cracks.free]
    kept = np.ones(len(own), bool)
    ellipses = _direct_fit(own, x, y, start, count)
    for _ in range(_TRIM_ROUNDS):
        radius = np.sqrt(ellipses.major * ellipses.minor)
        away = np.abs(np.hypot(*ellipses.frame(own, x, y)) - 1) * radius[own]
        away = np.where(np.isfinite(away), away, 0.0)
        points = np.maximum(np.bincount(own[kept], minlength=count), 1)
        rms = np.sqrt(np.bincount(own[kept], away[kept] ** 2, count) / points)
        kept = away <= np.maximum(_TRIM_AT * rms[own], _TRIM_LEAST)
        ellipses = _direct_fit(own[kept], x[kept], y[kept], start, count)
    return ellipses


def _direct_fit(own: Integers, x: Floats, y: Floats, start: Ellipses, count: int) -> Ellipses:
    """Fit an ellipse to each cell's points by direct least squares; NaN where the points hold none.

    Halir & Flusser, "Numerically stable direct least squares fitting of ellipses", WSCG 1998, for all cells at once:
    the 6 x 6 scatter matrices are sums over points. ``start`` centres and scales the coordinates.
    """
    scale = np.sqrt(start.major * start.minor)
    u, v = (x - start.x[own]) / scale[own], (y - start.y[own]) / scale[own]
    terms = (u * u, u * v, v * v, u, v, np.ones_like(u))
    scatter = np.empty((count, 6, 6))
    for i in range(6):
        for j in range(i, 6):
            scatter[:, i, j] = scatter[:, j, i] = np.bincount(own, terms[i] * terms[j], count)
    linear = scatter[:, 3:, 3:] + 1e-9 * np.eye(3)
    back = -np.linalg.solve(linear, scatter[:, 3:, :3])
    reduced = scatter[:, :3, :3] + scatter[:, :3, 3:] @ back
    _, vectors = np.linalg.eig(np.stack([reduced[:, 2] / 2, -reduced[:, 1], reduced[:, 0] / 2], axis=1))
    vectors = vectors.real
    best = np.argmax(4 * vectors[:, 0] * vectors[:, 2] - vectors[:, 1] ** 2, axis=1)
    quadratic = np.take_along_axis(vectors, best[:, None, None], axis=2)
    conic = np.concatenate([quadratic, back @ quadratic], axis=1)[:, :, 0]
    return _from_conics(conic, start, scale)


def _from_conics(conic: Floats, start: Ellipses, scale: Floats) -> Ellipses:
    """Turn conics (n, 6), a u^2 + b uv + c v^2 + d u + e v + f = 0, into ellipses in pixels; NaN if not one."""
    a, b, c, d, e, f = conic.T
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = b * b - 4 * a * c
        u, v = (2 * c * d - b * e) / bent, (2 * a * e - b * d) / bent
        level = -(f + (d * u + e * v) / 2)
        mean, spread = (a + c) / 2 / level, np.hypot(a - c, b) / 2 / np.abs(level)
        major, minor = 1 / np.sqrt(mean - spread), 1 / np.sqrt(mean + spread)
    angle = np.arctan2(-b * np.sign(level), -(a - c) * np.sign(level)) / 2
    return Ellipses(start.x + u * scale, start.y + v * scale, major * scale, minor * scale, angle)


def _direction(along: Floats, across: Floats) -> Integers:
    """Which of DIRECTIONS sectors points lie in."""
    return ((np.arctan2(across, along) + np.pi) * DIRECTIONS / (2 * np.pi)).astype(np.int64) % DIRECTIONS


def _shown(cracks: _Cracks, ellipses: Ellipses, count: int) -> Booleans:
    """Sectors (n, DIRECTIONS) of each cell in which no other cell lies on it or near; all where few are left.

    Where cells overlap the absorbance is that of both.
    """
    own = cracks.own[~cracks.free]
    hidden = _direction(*ellipses.frame(own, cracks.x[~cracks.free], cracks.y[~cracks.free]))
    shown = np.ones((count, DIRECTIONS), bool)
    shown[own, hidden] = False
    return shown | (shown.mean(axis=1) < _SHOWN_SHARE)[:, None]


def background_light(labels: npt.NDArray[np.integer], channel: npt.NDArray[np.uint8], block: int) -> Floats | None:
    """Light of the empty film, by blocks: the median of what lies off the cells, smoothed over neighbouring blocks.

    Args:
        labels: (H, W) instance map.
        channel: (H, W) uint8.
        block: side of a block, pixels.

    Returns:
        (ceil(H / block), ceil(W / block)) grey levels, or None where no pixel lies off the cells.
    """
    empty = ~ndimage.binary_dilation(labels > 0, iterations=_NEAR)
    empty = empty if empty.any() else labels == 0
    if not empty.any():
        return None
    tall, wide = (-(-side // block) for side in labels.shape)
    light, weight = np.zeros((2, tall, wide))
    for row in range(tall):
        for column in range(wide):
            window = slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block)
            seen = channel[window][empty[window]]
            weight[row, column] = seen.size
            light[row, column] = np.median(seen) if seen.size else 0.0
    # A block full of cells takes the light of the nearest that is not, and counts as one pixel of it.
    _, nearest = ndimage.distance_transform_edt(weight == 0, return_indices=True)
    light, weight = light[tuple(nearest)], np.maximum(weight, 1)
    smooth = ndimage.gaussian_filter(light * weight, 1.0, mode="nearest")
    return np.asarray(smooth / ndimage.gaussian_filter(weight, 1.0, mode="nearest"))


def absorbance_rings(
    labels: npt.NDArray[np.integer],
    channel: npt.NDArray[np.uint8],
    pixels: tuple[Integers, Integers, Integers],
    ellipses: Ellipses,
    shown: Booleans,
) -> tuple[Floats, Floats]:
    """Average the decadic absorbance of each cell over RINGS rings of its ellipse, (n, RINGS), and over all of it.

    Green is the channel that haemoglobin and eosin take most light from. The light that would be there without the
    cell is that of the empty film around it. NaN where the image shows no empty film.

    Args:
        labels: (H, W) instance map.
        channel: (H, W) uint8, green.
        pixels: index of the cell, row and column of each pixel of a cell, (p,) each.
        ellipses: of the n cells.
        shown: (n, DIRECTIONS) sectors without another cell; the others count only within half of the radius.
    """
    own, rows, columns = pixels
    count = len(shown)
    block = max(_LEAST_BLOCK, round(_BLOCK_CELLS * np.sqrt(len(own) / count)))
    light = background_light(labels, channel, block)
    if light is None:
        return np.full((count, RINGS), np.nan), np.full(count, np.nan)
    place = np.stack([ellipses.y, ellipses.x]) / block - 0.5
    around = ndimage.map_coordinates(light, place, order=1, mode="nearest")
    values = np.log10(around + 1)[own] - np.log10(np.arange(256) + 1.0)[channel[rows, columns]]
    along, across = ellipses.frame(own, columns.astype(float), rows.astype(float))
    radius = np.hypot(along, across)
    ring = np.minimum((radius * RINGS).astype(np.int64), RINGS)
    asked = np.flatnonzero(~np.asarray(shown.all(axis=1))[own] & (radius >= _RIM_FROM) & (ring < RINGS))
    ring[asked[~shown[own[asked], _direction(along[asked], across[asked])]]] = RINGS
    flat = own * (RINGS + 1) + ring
    points = np.bincount(flat, minlength=count * (RINGS + 1)).reshape(count, -1)[:, :RINGS]
    sums = np.bincount(flat, values, count * (RINGS + 1)).reshape(count, -1)[:, :RINGS]
    mean = np.bincount(own, values, count) / np.bincount(own, minlength=count)
    return np.where(points > 0, sums / np.maximum(points, 1), np.nan), mean


def pallor_of(rings: Floats, pale_below: float = PALE_BELOW) -> dict[str, Floats]:
    """Reduce absorbance over rings to width and depth of the pale centre.

    The rim is the darkest ring of the outer half. Each ring within 0.82 of the radius lacks the part by which it stays
    below ``pale_below`` of the rim. ``central_pallor`` is the diameter, relative to the cell's, of the disc that would
    lack as much in all were it empty: sqrt of the sum over rings of ring area x lack / ``pale_below``. A wide and
    shallow pallor so counts less than a wide and deep one, and no threshold decides over a ring alone.

    Args:
        rings: (n, RINGS) mean absorbance from the centre outwards; NaN where a ring holds no pixel.
        pale_below: a ring below this part of the rim's absorbance is pale.

    Returns:
        ``central_pallor``, ``pallor_depth`` and ``bump``, each (n,); NaN for cells without a stained rim.
    """
    rings = _filled(rings)
    middle = (np.arange(RINGS) + 0.5) / RINGS
    area = 2 * middle / RINGS
    inner = middle < _PALE_WITHIN
    outside = np.flatnonzero(middle > _RIM_FROM)
    place = outside[0] + np.argmax(np.where(np.isnan(rings), -np.inf, rings)[:, outside], axis=1)
    rim = np.take_along_axis(rings, place[:, None], axis=1)[:, 0]
    rim = np.where(rim > _STAINED, rim, np.nan)
    relative = rings / rim[:, None]
    lack = np.clip(1 - relative / pale_below, 0, 1)
    within = np.arange(RINGS) < place[:, None]
    # Outside of the rim a cell thins towards its edge: that is no pallor where its middle is not pale as well.
    lack = np.where(within, lack, np.minimum(lack, np.max(lack * within, axis=1, keepdims=True)))
    centre = middle < 0.25
    palest = relative[:, inner].min(axis=1)
    return {
        "central_pallor": np.sqrt((lack * area)[:, inner].sum(axis=1)),
        "pallor_depth": 1 - (relative * area)[:, centre].sum(axis=1) / area[centre].sum(),
        "bump": relative[:, middle < 0.2].max(axis=1) - palest,
    }


def _filled(rings: Floats) -> Floats:
    """Give a ring without a pixel the value of the next ring outside of it that has one, else of the next inside."""
    filled = rings.copy()
    for ring in list(range(RINGS - 2, -1, -1)):
        filled[:, ring] = np.where(np.isnan(filled[:, ring]), filled[:, ring + 1], filled[:, ring])
    for ring in range(1, RINGS):
        filled[:, ring] = np.where(np.isnan(filled[:, ring]), filled[:, ring - 1], filled[:, ring])
    return filled
