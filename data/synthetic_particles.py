"""What else a smear shows: platelets and white cells, as maps of stain that no red-cell mask includes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.synthetic_cells import PIXELS_PER_UM

PLATELET_DIAMETER_UM = 2.4
# Operators choose fields with few white cells; this fraction of those that the blood count promises is shown.
WHITE_CELLS_SHOWN = 0.6


@dataclass(frozen=True)
class WhiteCell:
    """A white cell: its middle and radius (pixels), and the lobes of its nucleus as rows of x, y, radius (pixels)."""

    x: float
    y: float
    radius: float
    lobes: np.ndarray


def draw_white_cells(expected: float, size: float, rng: np.random.Generator) -> list[WhiteCell]:
    """Draw the white cells of a field ``size`` pixels a side: granulocytes of two to four lobes, and lymphocytes."""
    return [_draw_white_cell(size, rng) for _ in range(min(int(rng.poisson(expected)), 3))]


def _draw_white_cell(size: float, rng: np.random.Generator) -> WhiteCell:
    """Draw one: two thirds are granulocytes, their lobes on an arc around the middle."""
    x, y = rng.uniform(0, size, 2)
    granulocyte = rng.uniform() < 0.67
    radius = PIXELS_PER_UM * float(rng.normal(13.0, 0.8) if granulocyte else rng.normal(9.5, 0.8)) / 2
    count = int(rng.integers(2, 5)) if granulocyte else 1
    angles = rng.uniform(0, 2 * np.pi) + np.arange(count) * rng.uniform(1.0, 1.35)
    arm = 0.42 * radius if granulocyte else 0.08 * radius
    lobe_radius = radius * (0.40 if granulocyte else 0.80) * rng.uniform(0.85, 1.1, count)
    lobes = np.column_stack([x + arm * np.cos(angles), y + arm * np.sin(angles), lobe_radius])
    return WhiteCell(float(x), float(y), radius, lobes)


def paint_white_cell(cell: WhiteCell, nucleus: np.ndarray, cytoplasm: np.ndarray, rng: np.random.Generator) -> None:
    """Add one white cell to the maps (h, w) of nuclear and cytoplasmic stain, both in place."""
    window = _window(cell.x, cell.y, cell.radius + 3, nucleus.shape)
    rows, columns = np.ogrid[window]
    texture = ndimage.gaussian_filter(rng.standard_normal(np.broadcast_shapes(rows.shape, columns.shape)), 1.2)
    body = _soft_disc(rows, columns, (cell.x, cell.y, cell.radius))
    lobes = np.max([_soft_disc(rows, columns, lobe) for lobe in cell.lobes], axis=0)
    nucleus[window] += lobes * body * np.clip(1 + 0.6 * texture, 0.3, None)
    cytoplasm[window] += body * (1 - 0.6 * lobes) * np.clip(1 + 1.2 * texture, 0.3, None)


def paint_platelets(expected: float, canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Add granular platelets, a few of them in clumps, to the map (h, w) of platelet stain, in place."""
    for _ in range(int(rng.poisson(expected / 1.15))):
        spot = rng.uniform(0, canvas.shape)
        for _ in range(int(rng.choice([1, 2, 3], p=[0.9, 0.07, 0.03]))):
            _paint_platelet(spot, canvas, rng)
            spot = spot + rng.normal(0, 5, 2)


def _paint_platelet(spot: np.ndarray, canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Add one platelet: an irregular pale body with a granular, darker middle."""
    y, x = (float(value) for value in spot)
    radius = PIXELS_PER_UM * PLATELET_DIAMETER_UM / 2 * float(np.exp(rng.normal(0, 0.22)))
    window = _window(x, y, radius + 4, canvas.shape)
    rows, columns = np.ogrid[window]
    strength = float(rng.uniform(0.55, 1.15))
    canvas[window] += 0.45 * strength * _soft_disc(rows, columns, (x, y, radius))
    for _ in range(5):
        right, down = rng.normal(0, 0.38 * radius, 2)
        grain = (x + right, y + down, radius * float(rng.uniform(0.25, 0.45)))
        canvas[window] += 0.35 * strength * _soft_disc(rows, columns, grain)


def _window(x: float, y: float, reach: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns within ``reach`` of a point, kept on the canvas."""
    rows = slice(max(int(y - reach), 0), min(max(int(y + reach) + 1, 0), shape[0]))
    return rows, slice(max(int(x - reach), 0), min(max(int(x + reach) + 1, 0), shape[1]))


def _soft_disc(rows: np.ndarray, columns: np.ndarray, disc: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    """One inside of a disc (x, y, radius), zero outside, with an edge one pixel wide."""
    x, y, radius = disc
    return np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
