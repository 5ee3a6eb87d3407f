"""Red cells laid on a canvas, and what is then known of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.synthetic_cells import RedCell, cell_kind
from data.synthetic_render import CellPatches, central_pallors, render_cells


@dataclass(frozen=True)
class CellTruth:
    """What is known of one red cell that the picture shows.

    Attributes:
        x: column of the centroid of its whole outline, pixels (beyond the picture for some cells on the border).
        y: row of the same.
        area_px: pixels of its whole outline, also where another cell, dirt or the border hides it.
        diameter_px: diameter of the disc of that area.
        kind: normal, microcyte, macrocyte, hypochromic, spherocyte, target, elliptocyte, teardrop, stomatocyte, burr,
            schistocyte or sickle.
        central_pallor: diameter of the pale centre relative to the cell's (see ``synthetic_render.central_pallors``).
        overlapped: whether it shares a pixel of the picture with another red cell.
        on_border: whether its outline reaches the first or last row or column of the picture, or beyond.
        diameter_um: ``diameter_px`` at the picture's own magnification.
        hidden: whether dirt or a pointer covers a part of it, which the mask and the instances then leave out.
    """

    x: float
    y: float
    area_px: int
    diameter_px: float
    kind: str
    central_pallor: float
    overlapped: bool
    on_border: bool
    diameter_um: float
    hidden: bool = False


@dataclass(frozen=True)
class PaintedCells:
    """Red cells laid on a canvas.

    Attributes:
        load: (h, w) float32 haemoglobin relative to a normal cell's mean; adds where cells overlap.
        young: (h, w) float32 the part of it that lies in young (polychromatic) cells, weighted by how young.
        instances: (h, w) int32, 0 or 1 + the cell's place in the input.
        cells: truth of every cell, in canvas coordinates.
    """

    load: np.ndarray
    young: np.ndarray
    instances: np.ndarray
    cells: list[CellTruth]


@dataclass(frozen=True)
class _Stamp:
    """One cell's mask (h, w), cut to the canvas, where it lies there, and its whole outline's measures."""

    window: tuple[slice, slice]
    mask: np.ndarray
    area: int
    middle: tuple[float, float]
    border: bool


def paint_cells(
    cells: Sequence[RedCell],
    places: np.ndarray,
    shape: tuple[int, int],
    view: tuple[slice, slice] | None = None,
    additivity: float = 1.0,
) -> PaintedCells:
    """Lay red cells on a canvas, one after the other, the later on top.

    Args:
        cells: n cells.
        places: (n, 2) x and y of their origins; what lies beyond the canvas is cut off the maps, not the truth.
        shape: height and width of the canvas.
        view: the part of the canvas that becomes the picture (default: all); overlap counts only there.
        additivity: part of the lower cells' haemoglobin that shows where cells overlap.

    Returns:
        The sum of their haemoglobin, their instances and their truth, all on the canvas.
    """
    view = view or (slice(0, shape[0]), slice(0, shape[1]))
    load, most, young = np.zeros((3, *shape), np.float32)
    stamps: dict[int, _Stamp] = {}
    for patches in render_cells(cells, places):
        stamps.update(_add(patches, cells, (load, most, young), view))
    instances, layers = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for number in range(len(cells)):
        stamp = stamps[number]
        instances[stamp.window][stamp.mask] = number + 1
        layers[stamp.window] += stamp.mask
    shared = np.zeros(shape, bool)
    shared[view] = layers[view] > 1
    load = most + np.float32(additivity) * (load - most)
    pallors = central_pallors(cells)
    truth = [_truth(cell, stamps[number], shared, float(pallors[number])) for number, cell in enumerate(cells)]
    return PaintedCells(load, young, instances, truth)


def _add(
    patches: CellPatches, cells: Sequence[RedCell], maps: tuple[np.ndarray, ...], view: tuple[slice, slice]
) -> dict[int, _Stamp]:
    """Add the haemoglobin of drawn cells to the maps (sum, largest, young) in place, and measure their outlines."""
    load, most, young = maps
    side = patches.masks.shape[1]
    steps = np.arange(side, dtype=np.float32)
    areas = patches.masks.sum(axis=(1, 2))
    in_rows, in_columns = patches.masks.sum(axis=2), patches.masks.sum(axis=1)
    sizes = np.maximum(areas, 1)
    middles_y, middles_x = in_rows @ steps / sizes + patches.top, in_columns @ steps / sizes + patches.left
    border = _beyond(in_rows, patches.top, view[0]) | _beyond(in_columns, patches.left, view[1])
    stamps = {}
    for place, number in enumerate(patches.numbers.tolist()):
        top, left = int(patches.top[place]), int(patches.left[place])
        window = _part(top, side, load.shape[0]), _part(left, side, load.shape[1])
        inner = slice(window[0].start - top, window[0].stop - top), slice(window[1].start - left, window[1].stop - left)
        drawn = patches.load[place][inner]
        load[window] += drawn
        np.maximum(most[window], drawn, out=most[window])
        if cells[number].polychromasia:
            young[window] += cells[number].polychromasia * drawn
        middle = float(middles_x[place]), float(middles_y[place])
        stamps[number] = _Stamp(window, patches.masks[place][inner], int(areas[place]), middle, bool(border[place]))
    return stamps


def _beyond(filled: np.ndarray, start: np.ndarray, side: slice) -> np.ndarray:
    """Tell for each cell (n,) whether its filled rows (n, p), the first of them ``start``, reach an end of ``side``."""
    length = filled.shape[1]
    first = start + np.argmax(filled > 0, axis=1)
    last = start + length - 1 - np.argmax(filled[:, ::-1] > 0, axis=1)
    return np.asarray((first <= side.start) | (last >= side.stop - 1))


def _part(start: int, length: int, limit: int) -> slice:
    """Return the part of ``start`` to ``start + length`` that lies in 0 to ``limit``."""
    first = min(max(start, 0), limit)
    return slice(first, max(min(start + length, limit), first))


def _truth(cell: RedCell, stamp: _Stamp, shared: np.ndarray, pallor: float) -> CellTruth:
    """Put together what is known of one cell, in canvas coordinates."""
    diameter = float(2 * np.sqrt(stamp.area / np.pi))
    return CellTruth(
        x=stamp.middle[0],
        y=stamp.middle[1],
        area_px=stamp.area,
        diameter_px=diameter,
        kind=cell_kind(cell, pallor),
        central_pallor=pallor,
        overlapped=bool(shared[stamp.window][stamp.mask].any()),
        on_border=stamp.border,
        diameter_um=diameter / cell.pixels_per_um,
    )
