"""What lies between and on the cells: platelets, grains of stain and fibres, as maps of stain outside of every mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

PLATELET_DIAMETER_UM = 2.2
_TRIES = 6
_ON_CELLS = 0.2  # part of the platelets that do not mind lying on a red cell


def window_around(x: float, y: float, reach: float, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns within ``reach`` of a point, kept on the canvas."""

    def part(middle: float, limit: int) -> slice:
        first = min(max(int(middle - reach), 0), limit)
        return slice(first, min(max(int(middle + reach) + 1, first), limit))

    return part(y, shape[0]), part(x, shape[1])


def soft_disc(rows: np.ndarray, columns: np.ndarray, disc: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    """One inside of a disc (x, y, radius), zero outside, with an edge one pixel wide."""
    x, y, radius = disc
    return np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)


def fine_texture(shape: tuple[int, ...], grain: float, rng: np.random.Generator) -> np.ndarray:
    """Draw smooth noise of mean 0 and standard deviation 1; ``grain`` is its smoothness in pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), grain, mode="nearest", truncate=3)
    return np.asarray(noise * (2 * np.sqrt(np.pi) * grain))


def paint_platelets(
    expected: float, canvas: np.ndarray, rng: np.random.Generator, pixels_per_um: float, occupied: np.ndarray
) -> None:
    """Add granular platelets, a few of them in clumps or giant, to the map (h, w) of platelet stain, in place.

    Most lie beside the red cells, on pixels that are not ``occupied`` (h, w).
    """
    for _ in range(int(rng.poisson(expected / 1.15))):
        spots = rng.uniform(0, 1, (_TRIES, 2)) * canvas.shape
        free = ~occupied[tuple(spots.astype(int).T)]
        free[0] |= rng.uniform() < _ON_CELLS
        spot = spots[int(np.argmax(free))]
        for _ in range(int(rng.choice([1, 2, 3, 6], p=[0.9, 0.06, 0.03, 0.01]))):
            _paint_platelet(spot, canvas, rng, pixels_per_um)
            spot = spot + rng.normal(0, 1.9 * pixels_per_um, 2)


def _paint_platelet(spot: np.ndarray, canvas: np.ndarray, rng: np.random.Generator, pixels_per_um: float) -> None:
    """Add one platelet: a pale body with short arms and granular, darker places in the middle."""
    y, x = (float(value) for value in spot)
    giant = 1.9 if rng.uniform() < 0.02 else 1.0
    radius = pixels_per_um * PLATELET_DIAMETER_UM / 2 * giant * float(np.exp(rng.normal(0, 0.25)))
    window = window_around(x, y, 1.6 * radius + 2, canvas.shape)
    rows, columns = np.ogrid[window]
    strength = float(rng.uniform(0.5, 1.25))
    arms, phase = int(rng.integers(2, 6)), float(rng.uniform(0, 6))
    around = np.arctan2(rows - y, columns - x)
    outline = radius * (1 + float(rng.uniform(0.02, 0.22)) * np.cos(arms * around + phase))
    canvas[window] += 0.62 * strength * np.clip(outline + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    for right, down, part in rng.normal(0, 0.3, (4, 3)) * radius:
        grain = (x + right, y + down, 0.3 * radius + 0.3 * abs(part))
        canvas[window] += 0.28 * strength * soft_disc(rows, columns, grain)


def paint_precipitate(expected: float, canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Add grains of precipitated stain to the map (h, w), in place: scattered, and where there are many, in drifts."""
    height, width = canvas.shape
    count = int(rng.poisson(expected))
    if not count:
        return
    middles = rng.uniform(0, 1, (3, 2)) * canvas.shape
    drifts = rng.normal(0, 1, (count, 2)) * (0.12 * height, 0.12 * width) + middles[rng.integers(3, size=count)]
    spots = np.where(
        (np.arange(count) % 4 < (3 if count > 25 else 0))[:, None], drifts, rng.uniform(0, 1, (count, 2)) * canvas.shape
    )
    rows, columns = np.floor(spots).astype(int).T
    strength = rng.uniform(0.25, 1.0) * np.exp(rng.normal(0, 0.6, count))
    longer = rng.uniform(size=count) < 0.4
    kept = (rows >= 0) & (columns >= 0) & (rows < height - 1) & (columns < width - 1)
    np.add.at(canvas, (rows[kept], columns[kept]), strength[kept])
    kept &= longer
    step = rng.integers(0, 2, count)
    np.add.at(canvas, (rows[kept] + step[kept], columns[kept] + 1 - step[kept]), strength[kept])


def paint_fibre(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Add a fibre to the map (h, w), in place: a dark strand that wanders across a part of the field."""
    y, x = rng.uniform(0, 1, 2) * canvas.shape
    steps = int(rng.integers(40, 160))
    direction = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.09, steps))
    rows = np.clip(y + np.cumsum(np.sin(direction)), 0, canvas.shape[0] - 1).astype(int)
    columns = np.clip(x + np.cumsum(np.cos(direction)), 0, canvas.shape[1] - 1).astype(int)
    canvas[rows, columns] += rng.uniform(0.6, 1.4)
