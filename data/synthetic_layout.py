"""Where things lie on a synthetic smear: apart, touching, and some on top of each other."""

from __future__ import annotations

import numpy as np

_CANDIDATES = 40


def density_field(size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a smooth uneven density as a few plane waves: wave vectors (k, 2), phases (k,), amplitudes (k,)."""
    count = 4
    length = size * rng.uniform(0.5, 1.4, count)
    direction = rng.uniform(0, 2 * np.pi, count)
    vectors = (2 * np.pi / length)[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    return vectors, rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 0.22, count)


def field_at(field: tuple[np.ndarray, np.ndarray, np.ndarray], points: np.ndarray) -> np.ndarray:
    """Probability (n,) that a cell stays at each of ``points`` (n, 2)."""
    vectors, phases, amplitudes = field
    waves = (amplitudes * np.cos(points @ vectors.T + phases)).sum(axis=1)
    return np.clip((1 + waves) / (1 + amplitudes.sum()), 0.02, 1)


def scatter(
    radii: np.ndarray,
    low: float,
    high: float,
    *,
    crowding: float,
    obstacles: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Lay discs down one by one.

    Args:
        radii: (n,) pixels.
        low: smallest coordinate of a centre.
        high: largest coordinate of a centre.
        crowding: probability that a cell is put onto the rim of one that lies there already.
        obstacles: (k, 3) x, y, radius of what nothing may cover (white cells).
        rng: source of chance.

    Returns:
        (n, 2) x and y; NaN where no room was left.
    """
    placed = np.full((radii.size, 2), np.nan)
    field = density_field(high - low, rng)
    for index, radius in enumerate(radii):
        there = np.flatnonzero(~np.isnan(placed[:index, 0]))
        others = np.concatenate([obstacles, np.column_stack([placed[there], radii[there]])])
        clumped = bool(there.size) and rng.uniform() < crowding
        points = (
            _rim_points(placed[there], radii[there], radius, rng)
            if clumped
            else rng.uniform(low, high, (_CANDIDATES, 2))
        )
        inside = ((points >= low) & (points <= high)).all(axis=1)
        wanted = inside & (rng.uniform(size=len(points)) < (1.0 if clumped else field_at(field, points)))
        depth = 0.55 if clumped else 0.0
        fits = np.flatnonzero(wanted & _fits(points, radius, others, len(obstacles), depth))
        if not fits.size:  # a crowded field: lean on a neighbour rather than stay away
            fits = np.flatnonzero(inside & _fits(points, radius, others, len(obstacles), 0.3))
        if fits.size:
            placed[index] = points[fits[0]]
    return placed


def _rim_points(centres: np.ndarray, radii: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Candidates (m, 2) on the rims of cells that lie there: overlapping, or just touching."""
    hosts = rng.integers(len(centres), size=_CANDIDATES)
    angle = rng.uniform(0, 2 * np.pi, _CANDIDATES)
    distance = (radii[hosts] + radius) * rng.uniform(0.55, 1.02, _CANDIDATES)
    return centres[hosts] + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _fits(points: np.ndarray, radius: float, others: np.ndarray, obstacles: int, depth: float) -> np.ndarray:
    """Tell for each point (m,) whether a disc there covers no neighbour deeper than ``depth`` of the smaller radius."""
    gap = np.hypot(points[:, None, 0] - others[:, 0], points[:, None, 1] - others[:, 1]) - radius - others[:, 2]
    allowed = -depth * np.minimum(radius, others[:, 2]) + (0.3 if depth == 0 else 0.0)
    allowed[:obstacles] = 0.5
    return (gap >= allowed).all(axis=1)
