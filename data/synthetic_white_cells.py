"""White cells of a synthetic smear, as maps of stain that no red-cell mask includes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.synthetic_particles import fine_texture, soft_disc, window_around

# Operators choose fields with few white cells; this fraction of those that the blood count promises is shown.
WHITE_CELLS_SHOWN = 0.6
WHITE_CELL_KINDS = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil", "smudge")
# Adult differential (Bain, "Blood Cells"), with a few cells crushed by spreading taken from all.
_SHARES = (0.56, 0.27, 0.07, 0.03, 0.01, 0.06)
# Diameter on a dried film, um, and its standard deviation (Bain).
_DIAMETERS = ((13.0, 0.8), (9.5, 1.2), (16.0, 1.2), (14.0, 0.9), (12.0, 0.9), (15.0, 2.5))
_LOBES = ((2, 5), (1, 1), (2, 2), (2, 2), (2, 3), (3, 6))


@dataclass(frozen=True)
class WhiteCell:
    """A white cell.

    Attributes:
        x: column of its middle, pixels.
        y: row of the same.
        radius: pixels.
        lobes: (n, 3) x, y, radius (pixels) of the lobes of its nucleus.
        kind: one of WHITE_CELL_KINDS.
    """

    x: float
    y: float
    radius: float
    lobes: np.ndarray
    kind: str = "neutrophil"


def draw_white_cells(expected: float, size: float, rng: np.random.Generator, pixels_per_um: float) -> list[WhiteCell]:
    """Draw the white cells of a field ``size`` pixels a side, at most three."""
    return [_draw_white_cell(size, rng, pixels_per_um) for _ in range(min(int(rng.poisson(expected)), 3))]


def _draw_white_cell(size: float, rng: np.random.Generator, pixels_per_um: float) -> WhiteCell:
    """Draw one: lobes on an arc around the middle (granulocytes), a round nucleus, or a folded one (monocytes)."""
    x, y = (float(value) for value in rng.uniform(0, size, 2))
    place = int(rng.choice(len(_SHARES), p=_SHARES))
    kind, (low, high) = WHITE_CELL_KINDS[place], _LOBES[place]
    radius = pixels_per_um * float(rng.normal(*_DIAMETERS[place])) / 2
    count = int(rng.integers(low, high + 1))
    steps = {"monocyte": 0.9, "smudge": 1.5}.get(kind, float(rng.uniform(1.0, 1.35)))
    angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * steps
    arm = radius * {"lymphocyte": 0.08, "monocyte": 0.28, "smudge": 0.35}.get(kind, 0.42)
    size_of_lobe = {"lymphocyte": 0.82, "monocyte": 0.55, "smudge": 0.6}.get(kind, 0.40)
    lobe_radius = radius * size_of_lobe * rng.uniform(0.85, 1.1, count)
    lobes = np.column_stack([x + arm * np.cos(angles), y + arm * np.sin(angles), lobe_radius])
    return WhiteCell(x, y, radius, lobes, kind)


def paint_white_cell(
    cell: WhiteCell, nucleus: np.ndarray, cytoplasm: np.ndarray, granules: np.ndarray, rng: np.random.Generator
) -> None:
    """Add one white cell to the maps (h, w) of nuclear, cytoplasmic and eosinophilic stain, all in place."""
    window = window_around(cell.x, cell.y, cell.radius + 4, nucleus.shape)
    rows, columns = np.ogrid[window]
    shape = np.broadcast_shapes(rows.shape, columns.shape)
    if 0 in shape:
        return
    texture = fine_texture(shape, 1.2, rng)
    wobble = 1 + 0.06 * float(rng.normal()) * np.cos(2 * np.arctan2(rows - cell.y, columns - cell.x))
    body = np.clip(cell.radius * wobble + 0.5 - np.hypot(columns - cell.x, rows - cell.y), 0, 1)
    lobes = np.max([soft_disc(rows, columns, lobe) for lobe in cell.lobes], axis=0)
    if cell.kind == "smudge":  # crushed: a bare nucleus run out into threads
        bare = ndimage.gaussian_filter(lobes, 1.5) * np.clip(0.65 + 0.75 * fine_texture(shape, 1.6, rng), 0, 1.5)
        nucleus[window] += 0.5 * bare
        return
    nucleus[window] += lobes * body * np.clip(1 + 0.22 * texture, 0.3, None)
    strength = {"lymphocyte": 1.3, "monocyte": 1.5, "basophil": 1.2}.get(cell.kind, 0.8)
    cytoplasm[window] += strength * body * (1 - 0.6 * lobes) * np.clip(1 + 0.35 * texture, 0.3, None)
    if cell.kind == "eosinophil":
        granules[window] += body * (1 - lobes) * np.clip(0.9 + 0.8 * fine_texture(shape, 0.8, rng), 0, None)
    if cell.kind == "basophil":
        nucleus[window] += 0.8 * body * np.clip(fine_texture(shape, 0.8, rng) - 0.3, 0, 1.5)
