"""Procedural blood smears with exact truth: the embedded default data set (``--dataroot synthetic``).

Each red cell is a thickness profile under a disturbed outline; stain and haemoglobin turn it into optical density,
densities add where cells overlap, and lens and camera do the rest. Everything follows from (seed, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.records import ANEMIC, HEALTHY
from data.synthetic_cells import RedCell, cell_kind, central_pallor, draw_red_cell, render_cell
from data.synthetic_layout import scatter
from data.synthetic_optics import Stain, draw_camera, draw_stain, expose, transmit
from data.synthetic_particles import WHITE_CELLS_SHOWN, draw_white_cells, paint_platelets, paint_white_cell
from data.synthetic_populations import Subject, draw_subject
from util.errors import UserError

SYNTHESIS_VERSION = "1.0"
MINIMUM_SIZE = 64
MAXIMUM_SIZE = 4096
# Drawn beyond each edge of the picture, so that cells, blur and light do not know where the picture ends.
MARGIN = 44
_CELL_REACH = 22
# One stream of chance per purpose: a change to one leaves the others as they were.
_LABEL, _SUBJECT, _STAIN, _CAMERA, _CELLS, _LAYOUT, _PARTICLES, _NOISE, _SEVERITY = range(9)


@dataclass(frozen=True)
class CellTruth:
    """What is known of one red cell that the picture shows.

    Attributes:
        x: column of the centroid of its whole outline, pixels (beyond the picture for some cells on the border).
        y: row of the same.
        area_px: pixels of its whole outline, also where another cell or the border hides it.
        diameter_px: diameter of the disc of that area.
        kind: normal, microcyte, macrocyte, hypochromic, spherocyte, target, elliptocyte, teardrop or stomatocyte.
        central_pallor: diameter of the pale centre relative to the cell's (see ``synthetic_cells.central_pallor``).
        overlapped: whether it shares a pixel of the picture with another red cell.
        on_border: whether its outline reaches the first or last row or column of the picture, or beyond.
    """

    x: float
    y: float
    area_px: int
    diameter_px: float
    kind: str
    central_pallor: float
    overlapped: bool
    on_border: bool


@dataclass(frozen=True)
class SyntheticSmear:
    """One synthetic smear and its truth.

    Attributes:
        rgb: (S, S, 3) uint8.
        mask: (S, S) bool, all red cells together; no platelets, no white cells.
        instances: (S, S) uint16, 0 or 1 + the cell's place in ``cells``; later cells lie on top.
        cells: the red cells that the picture shows.
        label: HEALTHY (0) or ANEMIC (1).
        severity: "Mild" or "Chronic" (severe) where anemic, else None.
        subject: the blood count that the cells were drawn from.
    """

    rgb: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    cells: list[CellTruth]
    label: int
    severity: str | None
    subject: Subject


@dataclass(frozen=True)
class PaintedCells:
    """Red cells laid on a canvas.

    Attributes:
        load: (h, w) float64 haemoglobin relative to a normal cell's mean; adds where cells overlap.
        instances: (h, w) int32, 0 or 1 + the cell's place in the input.
        cells: truth of every cell, in canvas coordinates.
    """

    load: np.ndarray
    instances: np.ndarray
    cells: list[CellTruth]


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Source of chance for one purpose of one image; the same in any order and any process."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, purpose)))


def label_and_severity(index: int, seed: int) -> tuple[int, str | None]:
    """Return class and grade of image ``index``: balanced in each pair, grades in each pair of pairs."""
    pair, second = divmod(index, 2)
    anemic = bool(second) ^ bool(stream(seed, pair, _LABEL).integers(2))
    if not anemic:
        return HEALTHY, None
    four, later = divmod(pair, 2)
    severe = bool(later) ^ bool(stream(seed, four, _SEVERITY).integers(2))
    return ANEMIC, "Chronic" if severe else "Mild"


def stain_of(index: int, seed: int) -> Stain:
    """Return the stain of image ``index``, which depends on nothing else (so not on the class)."""
    return draw_stain(stream(seed, index, _STAIN))


def synthesize(index: int, *, seed: int, size: int = 300) -> SyntheticSmear:
    """Make one smear; equal arguments give equal bytes, whatever was made before or beside it.

    Args:
        index: which image of the endless series, from 0.
        seed: which series, from 0.
        size: side of the square picture, pixels (a larger picture shows more cells, not larger ones).

    Returns:
        Picture and truth.

    Raises:
        UserError: an argument is out of range.
    """
    check_arguments(seed=seed, size=size, index=index)
    label, severity = label_and_severity(index, seed)
    subject = draw_subject(label, severity, stream(seed, index, _SUBJECT))
    side = size + 2 * MARGIN
    layout, particles = stream(seed, index, _LAYOUT), stream(seed, index, _PARTICLES)
    count = _cell_count(subject, size)
    white_cells = draw_white_cells(
        WHITE_CELLS_SHOWN * count * subject.white_cells / subject.red_cells / 1000, side, particles
    )
    obstacles = np.array([(cell.x, cell.y, cell.radius) for cell in white_cells]).reshape(-1, 3)
    painted = paint_cells(
        *_lay_cells(subject, count, size, obstacles, (seed, index), layout), (side, side), _picture(size)
    )

    platelets, nucleus, cytoplasm = np.zeros((3, side, side))
    paint_platelets(count * subject.platelets / subject.red_cells / 1000, platelets, particles)
    for white_cell in white_cells:
        paint_white_cell(white_cell, nucleus, cytoplasm, particles)
    stain, camera = stain_of(index, seed), draw_camera(stream(seed, index, _CAMERA))
    things = (
        (painted.load, stain.red_cell),
        (platelets, stain.platelet),
        (nucleus, stain.nucleus),
        (cytoplasm, stain.cytoplasm),
    )
    density = sum((layer[..., None] * colour for layer, colour in things), np.zeros((side, side, 3)))
    rgb = expose(transmit(density, stain, camera), camera, stream(seed, index, _NOISE))
    return _cut_out(rgb, painted, label, severity, subject, size)


def check_arguments(*, seed: int, size: int, index: int = 0) -> None:
    """Raise UserError unless index and seed are not negative and the size can hold a smear."""
    if index < 0 or seed < 0:
        name, value = ("index", index) if index < 0 else ("seed", seed)
        raise UserError(
            f"{name} of a synthetic smear", expected="0 or more", found=str(value), remedy=f"give another {name}"
        )
    if not MINIMUM_SIZE <= size <= MAXIMUM_SIZE:
        raise UserError(
            "size of a synthetic smear",
            expected=f"{MINIMUM_SIZE} to {MAXIMUM_SIZE} pixels",
            found=str(size),
            remedy="give another size",
        )


def _picture(size: int) -> tuple[slice, slice]:
    """Rows and columns of the canvas that become the picture."""
    return slice(MARGIN, MARGIN + size), slice(MARGIN, MARGIN + size)


def _cell_count(subject: Subject, size: int) -> int:
    """Red cells to lay on the picture and a cell's reach around it."""
    return max(1, round(subject.cells_per_field * ((size + 2 * _CELL_REACH) / 300) ** 2))


def _lay_cells(
    subject: Subject, count: int, size: int, obstacles: np.ndarray, image: tuple[int, int], layout: np.random.Generator
) -> tuple[list[RedCell], np.ndarray]:
    """Draw the red cells of one image and their places on the canvas; those without room are left out."""
    rng = stream(*image, _CELLS)
    # How flat the film dried and how crowded it is are the preparation's doing, so the same for either class.
    flatness, crowding = 1.1 * np.exp(rng.normal(0, 0.35)), float(layout.uniform(0.04, 0.28))
    cells = [draw_red_cell(subject, float(flatness), rng) for _ in range(count)]
    radii = np.array([cell.radius * np.sqrt(cell.axis_ratio) for cell in cells])
    low, high = MARGIN - _CELL_REACH, MARGIN + size + _CELL_REACH
    places = scatter(radii, low, high, crowding=crowding, obstacles=obstacles, rng=layout)
    kept = np.flatnonzero(~np.isnan(places[:, 0]))
    return [cells[index] for index in kept], places[kept]


def paint_cells(
    cells: list[RedCell], places: np.ndarray, shape: tuple[int, int], view: tuple[slice, slice] | None = None
) -> PaintedCells:
    """Lay red cells on a canvas, one after the other, the later on top.

    Args:
        cells: n cells.
        places: (n, 2) x and y of their origins; what lies beyond the canvas is cut off the maps, not the truth.
        shape: height and width of the canvas.
        view: the part of the canvas that becomes the picture (default: all); overlap counts only there.

    Returns:
        The sum of their haemoglobin, their instances and their truth, all on the canvas.
    """
    view = view or (slice(0, shape[0]), slice(0, shape[1]))
    load, instances, layers = np.zeros(shape), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    outlines: list[tuple[np.ndarray, np.ndarray]] = []
    for number, (cell, (x, y)) in enumerate(zip(cells, places, strict=True), start=1):
        patch, mask, top, left = render_cell(cell, float(x), float(y))
        window = _part(top, mask.shape[0], shape[0]), _part(left, mask.shape[1], shape[1])
        inner = slice(window[0].start - top, window[0].stop - top), slice(window[1].start - left, window[1].stop - left)
        load[window] += patch[inner]
        layers[window] += mask[inner]
        instances[window][mask[inner]] = number
        rows, columns = np.nonzero(mask)
        outlines.append((rows + top, columns + left))
    truth = [_truth(cell, *outline, layers, view) for cell, outline in zip(cells, outlines, strict=True)]
    return PaintedCells(load, instances, truth)


def _part(start: int, length: int, limit: int) -> slice:
    """Return the part of ``start`` to ``start + length`` that lies in 0 to ``limit``."""
    first = min(max(start, 0), limit)
    return slice(first, max(min(start + length, limit), first))


def _truth(
    cell: RedCell, rows: np.ndarray, columns: np.ndarray, layers: np.ndarray, view: tuple[slice, slice]
) -> CellTruth:
    """Measure one cell on the pixels of its whole outline, in canvas coordinates."""
    (top, bottom), (left, right) = ((side.start, side.stop - 1) for side in view)
    inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
    border = rows.min() <= top or rows.max() >= bottom or columns.min() <= left or columns.max() >= right
    return CellTruth(
        x=float(columns.mean()),
        y=float(rows.mean()),
        area_px=int(rows.size),
        diameter_px=float(2 * np.sqrt(rows.size / np.pi)),
        kind=cell_kind(cell),
        central_pallor=central_pallor(cell),
        overlapped=bool((layers[rows[inside], columns[inside]] > 1).any()),
        on_border=bool(border),
    )


def _cut_out(
    rgb: np.ndarray, painted: PaintedCells, label: int, severity: str | None, subject: Subject, size: int
) -> SyntheticSmear:
    """Cut the picture out of the canvas and number the cells that it shows from 1."""
    view = _picture(size)
    shown, instances = np.unique(painted.instances[view], return_inverse=True)
    instances = instances.reshape(size, size) + (0 if shown[0] == 0 else 1)
    cells = [painted.cells[number - 1] for number in shown if number > 0]
    moved = [CellTruth(**{**vars(cell), "x": cell.x - MARGIN, "y": cell.y - MARGIN}) for cell in cells]
    return SyntheticSmear(
        rgb=np.ascontiguousarray(rgb[view]),
        mask=instances > 0,
        instances=instances.astype(np.uint16),
        cells=moved,
        label=label,
        severity=severity,
        subject=subject,
    )
