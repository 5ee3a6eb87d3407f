"""Where things lie on a synthetic smear: apart, touching, some on top of each other, some in chains."""

from __future__ import annotations

import numpy as np

_CANDIDATES = 24


def density_field(size: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a smooth uneven density as a few plane waves: wave vectors (k, 2), phases (k,), amplitudes (k,)."""
    count = 4
    length = size * rng.uniform(0.5, 1.4, count)
    direction = rng.uniform(0, 2 * np.pi, count)
    vectors = (2 * np.pi / length)[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    return vectors, rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 0.25, count)


def field_at(field: tuple[np.ndarray, np.ndarray, np.ndarray], points: np.ndarray) -> np.ndarray:
    """Probability (n,) that a cell stays at each of ``points`` (n, 2)."""
    vectors, phases, amplitudes = field
    waves = (amplitudes * np.cos(points @ vectors.T + phases)).sum(axis=1)
    return np.asarray(np.clip((1 + waves) / (1 + amplitudes.sum()), 0.02, 1))


def scatter(
    radii: np.ndarray,
    low: float,
    high: float,
    *,
    crowding: float,
    obstacles: np.ndarray,
    rng: np.random.Generator,
    rouleaux: float = 0.0,
) -> np.ndarray:
    """Lay discs down one by one.

    Args:
        radii: (n,) pixels.
        low: smallest coordinate of a centre.
        high: largest coordinate of a centre.
        crowding: probability that a cell is put onto the rim of one that lies there already.
        obstacles: (k, 3) x, y, radius of what nothing may cover (white cells).
        rng: source of chance.
        rouleaux: probability that a cell goes on the chain begun by the cell before it.

    Returns:
        (n, 2) x and y; NaN where no room was left.
    """
    first = len(obstacles)
    # All that lies there: the obstacles, then the placed cells in their order.
    there = np.concatenate([obstacles.reshape(-1, 3), np.empty((radii.size, 3))])
    number, count = np.full(radii.size, -1), first
    field = density_field(high - low, rng)
    heading = 0.0
    for index, radius in enumerate(radii):
        others = there[:count]
        choice = rng.uniform()
        chained = choice < rouleaux and index > 0 and number[index - 1] >= 0
        clumped = not chained and count > 0 and (choice - rouleaux) < crowding
        if chained:
            points, turn = _chain_points(there[number[index - 1]], radius, heading, rng)
        elif clumped:
            points, turn = _rim_points(others, first, radius, rng), None
        else:
            points, turn = rng.uniform(low, high, (_CANDIDATES, 2)), None
        inside = ((points >= low) & (points <= high)).all(axis=1)
        wanted = inside if chained or clumped else inside & (rng.uniform(size=len(points)) < field_at(field, points))
        depth = 1.1 if chained else 0.55 if clumped else 0.0
        gaps = _gaps(points, radius, others)
        fits = np.flatnonzero(wanted & _fits(gaps, radius, others, first, depth))
        if not fits.size:  # a crowded field: lean on a neighbour rather than stay away
            fits = np.flatnonzero(inside & _fits(gaps, radius, others, first, 0.3))
        heading = float(turn[fits[0]]) if turn is not None and fits.size else float(rng.uniform(0, 2 * np.pi))
        if fits.size:
            there[count] = (*points[fits[0]], radius)
            number[index], count = count, count + 1
    places = np.full((radii.size, 2), np.nan)
    places[number >= 0] = there[number[number >= 0], :2]
    return places


def _rim_points(others: np.ndarray, obstacles: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Candidates (m, 2) on the rims of what lies there (n, 3): overlapping or touching, only touching obstacles."""
    chosen = rng.integers(len(others), size=_CANDIDATES)
    hosts = others[chosen]
    angle = rng.uniform(0, 2 * np.pi, _CANDIDATES)
    distance = (hosts[:, 2] + radius) * (0.62 + 0.42 * rng.uniform(size=_CANDIDATES) ** 0.6)
    distance = np.where(chosen < obstacles, hosts[:, 2] + radius + 0.6, distance)
    return np.asarray(hosts[:, :2] + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def _chain_points(
    last: np.ndarray, radius: float, heading: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (m, 2) one step along the chain from the last cell (x, y, radius), and their directions (m,)."""
    angle = heading + rng.normal(0, 0.22, _CANDIDATES)
    distance = (last[2] + radius) * rng.uniform(0.46, 0.78, _CANDIDATES)
    return last[:2] + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), angle


def _gaps(points: np.ndarray, radius: float, others: np.ndarray) -> np.ndarray:
    """Room (m, n) between discs at ``points`` (m, 2) and the others (n, 3); negative where they overlap."""
    apart = np.hypot(points[:, None, 0] - others[:, 0], points[:, None, 1] - others[:, 1])
    return np.asarray(apart - radius - others[:, 2])


def _fits(gaps: np.ndarray, radius: float, others: np.ndarray, obstacles: int, depth: float) -> np.ndarray:
    """Tell for each point (m,) whether a disc there covers no neighbour deeper than ``depth`` of the smaller radius."""
    allowed = -depth * np.minimum(radius, others[:, 2]) + (0.3 if depth == 0 else 0.0)
    allowed[:obstacles] = 0.5
    return np.asarray((gaps >= allowed).all(axis=1))
