"""Outlines of cells drawn from the stain itself, finer than the finder's own, for the measures of shape alone.

The cell finder's edges are smooth: spines of burr cells and corners of fragments are rounded off. Here rays leave the
middle of a cell's fitted ellipse; on each, close to where the instance ends, the outline is where absorbance falls
below half of the rim's, between two samples by interpolation. Rays that run into another cell, or past one, or out of
the image, show no outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# Directions in which an outline is sought, and the samples along each, out to so many radii of the ellipse.
DIRECTIONS = 72
_SAMPLES, _REACH = 64, 2.0
# The outline is sought within this part of the radius of the instance's own edge, on both sides.
_BAND = 0.15
# It lies at this part of the rim's absorbance; the rim is looked for in the outer part of the instance from here.
_LEVEL, _RIM_FROM = 0.5, 0.7
# Another cell within so many radii, and never less than so many pixels, beyond the outline makes a direction unfree.
_NEAR, _NEAR_PX = 0.1, 3.0
# So many directions beside an unfree one are unfree too: the outline bends inward where cells meet.
_SPREAD = 2
# Standard deviation of the Gaussian over the absorbance, pixels: noise of single pixels is no spine.
_SMOOTHING = 0.7
# Cells that are looked at together: memory is that of their samples.
_AT_ONCE = 256
# A spike rises above this part of the irregularity, and above so many radii.
_SPIKE_OF_RMS, _LEAST_SPIKE = 0.5, 0.02


@dataclass(frozen=True)
class Ellipses:
    """One ellipse per cell: centre and half axes in pixels, (n,) each, and the direction of the major axis."""

    x: Floats
    y: Floats
    major: Floats
    minor: Floats
    angle: Floats

    def where(self, chosen: Booleans, other: Ellipses) -> Ellipses:
        """Take these ellipses where ``chosen``, the others elsewhere."""
        names = ("x", "y", "major", "minor", "angle")
        return Ellipses(*(np.where(chosen, getattr(self, name), getattr(other, name)) for name in names))

    def frame(self, own: Integers, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Place of points along and across the major axis of the ellipse ``own``, in half axes."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        right, down = x - self.x[own], y - self.y[own]
        along = (right * cosine[own] + down * sine[own]) / self.major[own]
        across = (down * cosine[own] - right * sine[own]) / self.minor[own]
        return along, across

    def part(self, which: slice) -> Ellipses:
        """Some of the ellipses."""
        return Ellipses(self.x[which], self.y[which], self.major[which], self.minor[which], self.angle[which])

    def along_rays(self, radius: Floats, theta: Floats) -> tuple[Floats, Floats]:
        """Columns and rows (n, k, ...) of points at ``radius`` half axes in the directions ``theta``, (k, 1...)."""
        shape = (len(self.x),) + (1,) * max(np.ndim(theta), np.ndim(radius) - 1)
        cosine, sine = np.cos(self.angle).reshape(shape), np.sin(self.angle).reshape(shape)
        along = radius * np.cos(theta) * self.major.reshape(shape)
        across = radius * np.sin(theta) * self.minor.reshape(shape)
        right, down = along * cosine - across * sine, along * sine + across * cosine
        return self.x.reshape(shape) + right, self.y.reshape(shape) + down


@dataclass(frozen=True)
class Outlines:
    """Outlines of n cells in ``DIRECTIONS`` directions of their ellipses' frames.

    Attributes:
        radius: (n, DIRECTIONS), in half axes of the ellipse: 1 lies on it.
        free: (n, DIRECTIONS) bool, the outline is in view there.
    """

    radius: Floats
    free: Booleans


def directions() -> Floats:
    """The angles (DIRECTIONS,) in which outlines are sought."""
    return 2 * np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS


def outlines_of(
    labels: npt.NDArray[np.integer], cell: npt.NDArray[np.integer], stain: npt.NDArray[np.uint8], ellipses: Ellipses
) -> Outlines:
    """Draw each cell's outline.

    Args:
        labels: (H, W) instance map.
        cell: (n,) numbers in it.
        stain: (H, W) uint8, the channel that the stain takes light from.
        ellipses: of the n cells.
    """
    light = ndimage.gaussian_filter(np.log10(np.arange(256, dtype=np.float32) + 1)[stain], _SMOOTHING)
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(cell), _AT_ONCE)]
    drawn = [_drawn(labels, cell[part], light, ellipses.part(part)) for part in parts]
    return Outlines(*(np.concatenate(planes) for planes in zip(*drawn, strict=True)))


def _drawn(
    labels: npt.NDArray[np.integer], cell: npt.NDArray[np.integer], light: npt.NDArray[np.float32], ellipses: Ellipses
) -> tuple[Floats, Booleans]:
    """Radius and freedom, (n, DIRECTIONS) each, of the outlines of some cells."""
    along = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * _REACH
    x, y = ellipses.along_rays(along, directions()[:, None])
    seen = _looked_up(labels, x, y)
    mine = seen == cell[:, None, None]
    any_mine = mine.any(axis=2)
    last = np.where(any_mine, _SAMPLES - 1 - np.argmax(mine[:, :, ::-1], axis=2), 0)
    edge = along[last] + 0.5 * _REACH / _SAMPLES
    radius = _fallen(ndimage.map_coordinates(light, [y, x], order=1, mode="nearest"), along, edge)
    margin = np.maximum(_NEAR, _NEAR_PX / np.sqrt(ellipses.major * ellipses.minor))[:, None, None]
    beside = (along < radius[..., None] + margin) & ~mine & (seen != 0)
    hidden = ~any_mine | beside.any(axis=2)
    return radius, ~np.logical_or.reduce([np.roll(hidden, step, axis=1) for step in range(-_SPREAD, _SPREAD + 1)])


def _looked_up(labels: npt.NDArray[np.integer], x: Floats, y: Floats) -> Integers:
    """Numbers of the map at points, -1 outside of it."""
    columns, rows = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    height, width = labels.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    found = labels[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return np.where(inside, found.astype(np.int64), -1)


def _fallen(light: npt.NDArray[np.float32], along: Floats, edge: Floats) -> Floats:
    """Where each ray's absorbance falls below the level, nearest to the instance's edge and within the band around it.

    A ray on which it does not fall there keeps the edge.

    Args:
        light: (n, DIRECTIONS, SAMPLES) decadic logarithm of the light.
        along: (SAMPLES,) radii of the samples.
        edge: (n, DIRECTIONS) radius of the instance's edge.
    """
    rim = (along < edge[..., None]) & (along > _RIM_FROM * edge[..., None])
    darkest = np.median(np.where(rim, light, np.inf).min(axis=2), axis=1)
    film = np.median(np.max(light, axis=2, initial=-np.inf, where=along > edge[..., None]), axis=1)
    usable = np.isfinite(darkest) & np.isfinite(film) & (darkest < film)
    level = np.full((len(edge), 1), -np.inf)
    level[usable, 0] = film[usable] - _LEVEL * (film[usable] - darkest[usable])
    stained = light < level[..., None]
    band = (along[1:] > edge[..., None] - _BAND) & (along[:-1] < edge[..., None] + _BAND)
    falls = stained[:, :, :-1] & ~stained[:, :, 1:] & band
    place = np.argmin(np.where(falls, np.abs(along[:-1] - edge[..., None]), np.inf), axis=2)
    inner, outer = (np.take_along_axis(light, (place + step)[..., None], 2)[..., 0] for step in (0, 1))
    fall = falls.any(axis=2)
    between = (np.maximum(level, 0) - inner) / np.where(fall, outer - inner, 1)
    return np.where(fall, along[place] + between * _REACH / _SAMPLES, edge)


def outline_measures(outlines: Outlines, ellipses: Ellipses) -> tuple[Floats, Floats, Integers, Floats]:
    """Compare outlines with their ellipses and their convex hulls.

    Returns:
        Irregularity, tail, spikes and solidity, (n,) each, as :class:`models.module2.morphometry.CellTable` has them.
        Where another cell hides the outline, the ellipse stands for it.
    """
    away = np.where(outlines.free, outlines.radius - 1, 0.0)
    rms = np.sqrt((away**2).sum(axis=1) / np.maximum(outlines.free.sum(axis=1), 1))
    higher = (away > np.roll(away, 1, axis=1)) & (away >= np.roll(away, -1, axis=1))
    spikes = (higher & (away > np.maximum(_SPIKE_OF_RMS * rms, _LEAST_SPIKE)[:, None])).sum(axis=1)
    return rms, np.maximum(away.max(axis=1), 0.0), spikes, _solidity(1 + away, ellipses)


def _solidity(radius: Floats, ellipses: Ellipses) -> Floats:
    """Area of each outline's polygon over that of its convex hull."""
    from scipy.spatial import ConvexHull

    x, y = ellipses.along_rays(radius, directions())
    area = np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2
    hull = np.array([ConvexHull(np.column_stack(points)).volume for points in zip(x, y, strict=True)])
    return np.asarray(np.minimum(area / hull, 1.0))
