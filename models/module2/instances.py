"""From the cell finder's maps to single cells at the image's own size, and to what is no red cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from models.module2.finder import CELL_DIAMETER, CellMaps
from models.module2.peaks import h_maxima

Labels = npt.NDArray[np.int32]
# What lies so far between the colour of an image's cells (0) and grey (1) is a pointer, lettering or dirt; nothing is
# said of images whose own cells take nearly as much red light as green (grey ones).
_COLOURLESS, _COLOURED = 0.7, 0.8
Number = TypeVar("Number", np.int32, np.float32)


@dataclass(frozen=True)
class SplitSettings:
    """How maps become cells: where each of these comes from stands in docs/module2.md.

    Attributes:
        cell_above: probability from which a pixel belongs to a cell of any kind.
        red_share: mean probability of a red cell from which a whole cell is one: dark stain, or a platelet that lies on
            it, makes parts of red cells look like others.
        gap_weight: part of the gap's probability that is taken off the distance.
        smoothing: standard deviation of the Gaussian over the distance, pixels at the finder's scale.
        peak: a cell's middle rises so much above the ridges around it, in parts of the distance.
        largest_hole: holes in a cell have at most this part of the area of a disc of ``CELL_DIAMETER``; larger ones are
            film between cells.
        least_area: red cells have at least this part of the image's median cell's area.
        least_cut: those that the border cuts at least this; of less than half a cell the middle lies beyond the border,
            and it is counted with the field where its middle is.
        other_above: probability from which a pixel belongs to a platelet or a white cell.
    """

    cell_above: float = 0.5
    red_share: float = 0.35
    gap_weight: float = 0.5
    smoothing: float = 1.0
    peak: float = 0.08
    largest_hole: float = 0.2
    least_area: float = 0.15
    least_cut: float = 0.5
    other_above: float = 0.5


@dataclass(frozen=True)
class Found:
    """What lies in an image, (H, W) int32 each, 0 = nothing, else a number from 1 without gaps.

    Attributes:
        cells: red cells; numbers from 1.
        cut: red cells of which less than half is in view; numbers go on from those of ``cells``.
        others: platelets and white cells.
        fragments: what looks like a red cell and is too small for one.
    """

    cells: Labels
    cut: Labels
    others: Labels
    fragments: Labels


def split_cells(maps: CellMaps, settings: SplitSettings | None = None) -> Found:
    """Split the maps' red cells into single ones by a watershed of the distance, at the maps' own scale.

    The watershed is scikit-image's (after Soille & Ansoult, 1990), from the h-maxima of the distance less the gaps.
    """
    from skimage.segmentation import watershed

    settings = settings or SplitSettings()
    mask = _without_holes(maps.stained > settings.cell_above, settings.largest_hole)
    depth = ndimage.gaussian_filter(maps.distance - settings.gap_weight * maps.gap, settings.smoothing)
    depth = np.clip(depth, 0, 1).astype(np.float32)
    middles, _ = ndimage.label(h_maxima(depth, settings.peak))
    labels = watershed(-depth, np.where(mask, middles, 0), mask=mask).astype(np.int32)
    labels = _red_ones(labels, maps.red_cell, settings.red_share)
    areas = np.bincount(labels.ravel(), minlength=2)
    areas[0] = 0
    usual = np.median(areas[areas > 0]) if areas.any() else 0.0
    at_border = np.zeros(len(areas), bool)
    at_border[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    cut = at_border & (areas < settings.least_cut * usual)
    small = ~cut & (areas < settings.least_area * usual)
    others, _ = ndimage.label((maps.other > settings.other_above) & (labels == 0))
    cells = numbered(np.where((cut | small)[labels], 0, labels))
    pieces = numbered(np.where(cut[labels], labels, 0))
    return Found(
        cells,
        np.where(pieces > 0, pieces + cells.max(initial=0), 0).astype(np.int32),
        others.astype(np.int32),
        numbered(np.where(small[labels], labels, 0)),
    )


def _red_ones(labels: Labels, red: npt.NDArray[np.float32], share: float) -> Labels:
    """The cells that are red ones as a whole."""
    areas = np.bincount(labels.ravel())
    mean = np.bincount(labels.ravel(), weights=red.ravel()) / np.maximum(areas, 1)
    keep = mean >= share
    keep[0] = False
    return np.where(keep[labels], labels, 0).astype(np.int32)


def _without_holes(mask: npt.NDArray[np.bool_], largest: float) -> npt.NDArray[np.bool_]:
    holes, _ = ndimage.label(ndimage.binary_fill_holes(mask) & ~mask)
    small = np.bincount(holes.ravel()) <= largest * np.pi / 4 * CELL_DIAMETER**2
    small[0] = False
    return mask | small[holes]


def numbered(labels: npt.NDArray[np.integer]) -> Labels:
    """Number what occurs in a map from 1 without gaps; 0 stays."""
    found = np.bincount(labels.ravel()) > 0
    found[0] = False
    return np.where(found, np.cumsum(found), 0).astype(np.int32)[labels]


def at_own_size(labels: Labels, maps: CellMaps, shape: tuple[int, int], cell_above: float) -> Labels:
    """Bring red cells back to the image's own size: the outer edge from the probability, so that it is no staircase.

    Args:
        labels: (h, w) cells at the finder's scale.
        maps: what they were made from.
        shape: (H, W) of the image.
        cell_above: as in ``SplitSettings``.

    Returns:
        (H, W), the same numbers; one whose every pixel was lost is missing.
    """
    from skimage.segmentation import expand_labels

    if labels.shape == shape:
        return labels
    inside = _resized(maps.stained, shape, Image.Resampling.BILINEAR) > cell_above
    # Beyond its edge a cell goes on for two pixels, so that the edge drawn at full size finds it everywhere.
    wide = _resized(expand_labels(labels, 2).astype(np.int32), shape, Image.Resampling.NEAREST)
    return np.where(inside, wide, 0).astype(np.int32)


def colourless(labels: Labels, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell what absorbs red light nearly as it does green: pointers, scale bars, lettering and dirt, but no red cell.

    Measured is a thing's absorbance in red over that in green, which is a third or less of stained cells and one of
    what is black or grey, compared with that of the image's median cell. Grey images have no such things.

    Args:
        labels: (H, W) red cells of an image, and pieces of them.
        rgb: (H, W, 3) uint8, the image.

    Returns:
        (n + 1,) bool, by number; 0, the film, is False.
    """
    count = int(labels.max(initial=0))
    film = ~ndimage.binary_dilation(labels > 0, iterations=2)
    if not count or not film.any():
        return np.zeros(count + 1, bool)
    red, green = (_absorbed(labels, rgb[..., channel], film) for channel in (0, 1))
    ratio = np.divide(red, green, out=np.zeros(count), where=green > 0)
    usual = np.median(ratio[green > 0]) if (green > 0).any() else 1.0
    far = (ratio - usual) > _COLOURLESS * (1 - usual)
    return np.concatenate([[False], far & (usual < _COLOURED)])


def _absorbed(labels: Labels, channel: npt.NDArray[np.uint8], film: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Sum of each thing's decadic absorbance, against the film's median light; 0 of numbers that are missing."""
    absorbance = np.log10(np.median(channel[film]) + 1) - np.log10(np.arange(256) + 1.0)
    return np.bincount(labels.ravel(), absorbance[channel].ravel(), minlength=int(labels.max()) + 1)[1:].astype(float)


def resized_labels(labels: Labels, shape: tuple[int, int]) -> Labels:
    """A map of numbers at another size, each pixel the nearest one's."""
    return labels if labels.shape == shape else _resized(labels, shape, Image.Resampling.NEAREST)


def _resized(plane: npt.NDArray[Number], shape: tuple[int, int], how: Image.Resampling) -> npt.NDArray[Number]:
    return np.asarray(Image.fromarray(plane).resize((shape[1], shape[0]), how))
