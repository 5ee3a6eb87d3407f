"""Procedural blood smears with exact truth: the embedded default data set (``--dataroot synthetic``).

Each red cell is a thickness profile under a disturbed outline; stain and haemoglobin turn it into optical density,
densities add where cells overlap, and lens and camera do the rest. Everything follows from (seed, index).

The mask holds the red cells alone: no platelets, no white cells, no pointer (AneRBC's own masks hold platelets and some
white cells too). Its edge lies where AneRBC's does (see ``synthetic_render.RIM_BEYOND_MASK``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from data.records import ANEMIC, HEALTHY
from data.synthetic_artefacts import (
    Artefacts,
    compress,
    dirt_density,
    draw_artefacts,
    hidden_by_pointer,
    lay_pointer,
    pointer_cover,
)
from data.synthetic_cells import PIXELS_PER_UM, Film, RedCell, draw_film, draw_red_cell
from data.synthetic_layout import scatter
from data.synthetic_optics import Camera, Stain, develop, draw_camera, draw_stain, to_eight_bits, transmit
from data.synthetic_painting import CellTruth, PaintedCells, paint_cells
from data.synthetic_particles import paint_fibre, paint_platelets, paint_precipitate
from data.synthetic_populations import Subject, draw_subject
from data.synthetic_white_cells import WHITE_CELLS_SHOWN, WhiteCell, draw_white_cells, paint_white_cell
from util.errors import UserError

__all__ = [
    "SYNTHESIS_VERSION", "CellTruth", "PaintedCells", "SyntheticSmear", "artefacts_of", "camera_of", "check_arguments",
    "film_of", "label_and_severity", "paint_cells", "stain_of", "stream", "synthesize",
]  # fmt: skip
SYNTHESIS_VERSION = "2.0"
MINIMUM_SIZE = 64
MAXIMUM_SIZE = 4096
MINIMUM_ZOOM, MAXIMUM_ZOOM = 0.5, 4.0
# Drawn beyond each edge of the picture, so that blur and light do not know where the picture ends.
MARGIN = 24
_CELL_REACH_UM = 7.9
# Stain above which a pixel belongs to a platelet or a white cell.
_PLATELET_SEEN, _WHITE_CELL_SEEN = 0.3, 0.2
# One stream of chance per purpose: a change to one leaves the others as they were.
_LABEL, _SUBJECT, _STAIN, _CAMERA, _CELLS, _LAYOUT, _PARTICLES, _NOISE, _SEVERITY, _FILM, _ARTEFACTS = range(11)


@dataclass(frozen=True)
class SyntheticSmear:
    """One synthetic smear and its truth.

    Attributes:
        rgb: (S, S, 3) uint8.
        mask: (S, S) bool, all red cells together; no platelets, no white cells.
        stained: (S, S) bool, the same with platelets and white cells.
        instances: (S, S) uint16, 0 or 1 + the cell's place in ``cells``; later cells lie on top.
        cells: the red cells that the picture shows.
        label: HEALTHY (0) or ANEMIC (1).
        severity: "Mild" or "Chronic" (severe) where anemic, else None.
        subject: the blood count that the cells were drawn from.
        pixels_per_um: magnification of the picture.
    """

    rgb: np.ndarray
    mask: np.ndarray
    stained: np.ndarray
    instances: np.ndarray
    cells: list[CellTruth]
    label: int
    severity: str | None
    subject: Subject
    pixels_per_um: float = PIXELS_PER_UM


@dataclass(frozen=True)
class _Plan:
    """All that was drawn by lot for one picture before a pixel of it."""

    image: tuple[int, int]
    size: int
    subject: Subject
    stain: Stain
    camera: Camera
    film: Film
    artefacts: Artefacts

    @property
    def side(self) -> int:
        """Side of the canvas, pixels."""
        return self.size + 2 * MARGIN

    @property
    def view(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that become the picture."""
        return slice(MARGIN, MARGIN + self.size), slice(MARGIN, MARGIN + self.size)

    @property
    def fields(self) -> float:
        """Canvas area in pictures of 300 x 300 pixels at the reference magnification."""
        return (self.side / 300 * PIXELS_PER_UM / self.camera.pixels_per_um) ** 2


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


def camera_of(index: int, seed: int) -> Camera:
    """Return microscope and camera of image ``index``, which depend on nothing else (so not on the class)."""
    return draw_camera(stream(seed, index, _CAMERA))


def film_of(index: int, seed: int) -> Film:
    """Return the preparation of image ``index``, which depends on nothing else (so not on the class)."""
    return draw_film(stream(seed, index, _FILM))


def artefacts_of(index: int, seed: int) -> Artefacts:
    """Return the artefacts of image ``index``, which depend on nothing else (so not on the class)."""
    return draw_artefacts(stream(seed, index, _ARTEFACTS))


def synthesize(index: int, *, seed: int, size: int = 300, zoom: float = 1.0) -> SyntheticSmear:
    """Make one smear; equal arguments give equal bytes, whatever was made before or beside it.

    Args:
        index: which image of the endless series, from 0.
        seed: which series, from 0.
        size: side of the square picture, pixels (a larger picture shows more cells, not larger ones).
        zoom: how much larger than usual the microscope shows everything; the camera stays as sharp as it was.

    Returns:
        Picture and truth.

    Raises:
        UserError: an argument is out of range.
    """
    check_arguments(seed=seed, size=size, index=index, zoom=zoom)
    camera = camera_of(index, seed)
    label, severity = label_and_severity(index, seed)
    plan = _Plan(
        image=(seed, index),
        size=size,
        subject=draw_subject(label, severity, stream(seed, index, _SUBJECT)),
        stain=stain_of(index, seed),
        camera=replace(camera, pixels_per_um=camera.pixels_per_um * zoom),
        film=film_of(index, seed),
        artefacts=artefacts_of(index, seed),
    )
    particles = stream(*plan.image, _PARTICLES)
    white_cells = draw_white_cells(
        WHITE_CELLS_SHOWN * _per_field(plan, plan.subject.white_cells), plan.side, particles, plan.camera.pixels_per_um
    )
    cells, places = _lay_cells(plan, white_cells)
    painted = paint_cells(cells, places, (plan.side, plan.side), plan.view, plan.film.additivity)
    density, others = _densities(plan, painted, white_cells, particles)
    dirt = dirt_density(plan.artefacts, (plan.side, plan.side), particles)
    if dirt is not None:
        density += dirt[..., None]
    rgb, behind = _photograph(plan, density, particles)
    hidden = behind | (dirt[plan.view] > 0.8) if dirt is not None else behind
    return _smear(plan, rgb, painted, (others[plan.view], hidden), label, severity)


def check_arguments(*, seed: int, size: int, index: int = 0, zoom: float = 1.0) -> None:
    """Raise UserError unless index and seed are not negative, the size can hold a smear and the zoom a whole cell."""
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
    if not MINIMUM_ZOOM <= zoom <= MAXIMUM_ZOOM:
        raise UserError(
            "zoom of a synthetic smear",
            expected=f"{MINIMUM_ZOOM:g} to {MAXIMUM_ZOOM:g}",
            found=str(zoom),
            remedy="give another zoom",
        )


def _per_field(plan: _Plan, per_microlitre: float) -> float:
    """How many of what the blood count gives in 10^3/uL lie on the canvas, from the red cells there."""
    cells = plan.subject.cells_per_field * plan.film.density * plan.fields
    return cells * per_microlitre / plan.subject.red_cells / 1000


def _lay_cells(plan: _Plan, white_cells: list[WhiteCell]) -> tuple[list[RedCell], np.ndarray]:
    """Draw the red cells of one image and their places on the canvas; those without room are left out."""
    rng, layout, magnification = stream(*plan.image, _CELLS), stream(*plan.image, _LAYOUT), plan.camera.pixels_per_um
    reach = _CELL_REACH_UM * magnification
    span = (plan.size + 2 * reach) / 300 * PIXELS_PER_UM / magnification
    count = max(1, round(plan.subject.cells_per_field * plan.film.density * span**2))
    cells = [draw_red_cell(plan.subject, plan.film, rng, magnification) for _ in range(count)]
    radii = np.array([cell.radius * cell.axis_ratio**0.4 for cell in cells])
    obstacles = [(cell.x, cell.y, cell.radius) for cell in white_cells]
    for _ in range(int(layout.poisson(plan.film.holes * plan.fields))):
        obstacles.append((*layout.uniform(0, plan.side, 2), layout.uniform(6, 22) * magnification))
    places = scatter(
        radii,
        MARGIN - reach,
        MARGIN + plan.size + reach,
        crowding=plan.film.crowding,
        rouleaux=plan.film.rouleaux,
        obstacles=np.array(obstacles).reshape(-1, 3),
        rng=layout,
    )
    kept = np.flatnonzero(~np.isnan(places[:, 0]))
    return [cells[index] for index in kept], places[kept]


def _densities(
    plan: _Plan, painted: PaintedCells, white_cells: list[WhiteCell], particles: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the optical densities of all that is stained (side, side, 3) float32; tell where no red cell made them."""
    stain, shape = plan.stain, painted.load.shape
    platelets, nucleus, cytoplasm, granules, grains = np.zeros((5, *shape), np.float32)
    expected = _per_field(plan, plan.subject.platelets)
    paint_platelets(expected, platelets, particles, plan.camera.pixels_per_um, painted.load > 0.2)
    for white_cell in white_cells:
        paint_white_cell(white_cell, nucleus, cytoplasm, granules, particles)
    paint_precipitate(plan.film.precipitate * (plan.side / 300) ** 2, grains, particles)
    for _ in range(plan.artefacts.fibres):
        paint_fibre(grains, particles)
    layers = [(painted.load, stain.red_cell), (platelets, stain.platelet), (grains, stain.precipitate)]
    if painted.young.any():
        layers.append((painted.young, stain.red_cell * stain.young))
    if white_cells:
        layers += [(nucleus, stain.nucleus), (cytoplasm, stain.cytoplasm), (granules, stain.granule)]
    if plan.film.refraction:
        layers.append((_bright_ring(painted.load), -plan.film.refraction * stain.red_cell.mean() * np.ones(3)))
    density = np.empty((*shape, 3), np.float32)
    for channel in range(3):
        density[..., channel] = sum(layer * np.float32(colour[channel]) for layer, colour in layers)
    return density, (platelets > _PLATELET_SEEN) | (cytoplasm > _WHITE_CELL_SEEN) | (nucleus > _WHITE_CELL_SEEN)


def _bright_ring(load: np.ndarray) -> np.ndarray:
    """Where (h, w) cells' edges throw light: just outside of them and in their pale centres."""
    return np.asarray(np.clip(ndimage.gaussian_filter(load, 1.6, truncate=2.5) - load, 0, None))


def _photograph(plan: _Plan, density: np.ndarray, particles: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Take the picture (S, S, 3) uint8, with the pointer; tell where (S, S) the pointer hides the blood."""
    light = develop(transmit(density, plan.stain, plan.camera), plan.camera, stream(*plan.image, _NOISE))[plan.view]
    hidden = np.zeros(light.shape[:2], bool)
    pointer = plan.artefacts.pointer
    if pointer is not None:
        cover = pointer_cover(pointer, plan.size, particles)
        light, hidden = lay_pointer(light, pointer, cover), hidden_by_pointer(pointer, cover)
    return np.ascontiguousarray(compress(to_eight_bits(light), plan.artefacts.jpeg_quality)), hidden


def _smear(
    plan: _Plan,
    rgb: np.ndarray,
    painted: PaintedCells,
    seen: tuple[np.ndarray, np.ndarray],
    label: int,
    severity: str | None,
) -> SyntheticSmear:
    """Number the cells that the picture shows from 1 and move their truth into its coordinates.

    ``seen`` is where (S, S) platelets and white cells lie, and where dirt or the pointer hides everything.
    """
    others, hidden = seen
    whole = painted.instances[plan.view]
    covered = set(np.unique(whole[hidden]).tolist())
    shown, instances = np.unique(np.where(hidden, 0, whole), return_inverse=True)
    instances = instances.reshape(whole.shape) + (0 if shown[0] == 0 else 1)
    cells = [
        replace(cell, x=cell.x - MARGIN, y=cell.y - MARGIN, hidden=number in covered)
        for number, cell in ((int(number), painted.cells[number - 1]) for number in shown if number > 0)
    ]
    return SyntheticSmear(
        rgb=rgb,
        mask=instances > 0,
        stained=(instances > 0) | (others & ~hidden),
        instances=instances.astype(np.uint16),
        cells=cells,
        label=label,
        severity=severity,
        subject=plan.subject,
        pixels_per_um=plan.camera.pixels_per_um,
    )
