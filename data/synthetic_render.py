"""From red cells to pixels: outline, thickness, and the haemoglobin that light meets on its way through each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.synthetic_cells import EVANS_FUNG, PALLOR_LEVEL, RedCell

# Where AneRBC's masks end differs by smear: a lone cell's density is there .39 to .75 of its rim's (medians of the 14
# published pairs of full size; .64 over all tiles), and among touching cells the masks also fill the gaps. The mask is
# the outline; the haemoglobin reaches this much farther, in pixels. It is set so that a network trained on these smears
# finds as much area as AneRBC's masks have; the density at the mask's edge is then about half of the rim's.
RIM_BEYOND_MASK = 0.18
# A dried target cell's bump is a fold of this thickness, um, for a bump of 1.
_BUMP_UM = 2.5
_ANGLES = 192
_CHUNK = 48


@dataclass(frozen=True)
class CellPatches:
    """Some cells, each drawn on a square patch of its own.

    Attributes:
        numbers: (n,) place of each cell in the input.
        load: (n, p, p) float32 haemoglobin on each pixel relative to a normal cell's mean.
        masks: (n, p, p) bool.
        top: (n,) row of the patch's first pixel on the canvas.
        left: (n,) column of the same.
    """

    numbers: np.ndarray
    load: np.ndarray
    masks: np.ndarray
    top: np.ndarray
    left: np.ndarray


def column(cells: Sequence[RedCell], name: str) -> np.ndarray:
    """One field of all cells as float32, (n, 1, 1): ready to meet pixels."""
    return np.array([getattr(cell, name) for cell in cells], np.float32)[:, None, None]


def outline_table(cells: Sequence[RedCell]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of the outlines from the cells' origins, pixels, before the bend.

    Args:
        cells: n cells.

    Returns:
        (n, 192) distances at equal steps from direction -pi, turned with the cell, and the (n,) largest distances
        from the origin once the cells are bent.
    """
    turned = np.linspace(-np.pi, np.pi, _ANGLES, endpoint=False)[None]
    ratio, tail, spikes, spike_height, lens = (
        column(cells, name)[..., 0] for name in ("axis_ratio", "tail", "spikes", "spike_height", "lens")
    )
    ratio = np.sqrt(ratio)
    along, across = np.abs(np.cos(turned)) / ratio, np.abs(np.sin(turned)) * ratio
    ellipse = 1 / np.hypot(along, across)
    # A lens: |v| = 1 - u^2, scaled until it passes through the direction; pointed at both ends.
    pointed = 2 / (across + np.sqrt(across**2 + 4 * along**2))
    radius = ellipse + lens * (pointed - ellipse)
    fourier = np.array([cell.fourier for cell in cells])
    for place, order in enumerate(range(2, 6)):
        radius = radius * (
            1 + fourier[:, :1, place] * np.cos(order * turned) + fourier[:, 1:, place] * np.sin(order * turned)
        )
    radius = radius + tail * np.exp(6 * (np.cos(turned) - 1))
    radius = radius * (1 + spike_height * (0.5 + 0.5 * np.cos(spikes * turned + 3 * fourier[:, :1, 0])) ** 2)
    radius = _cut(radius, turned, cells)
    radius = radius * (column(cells, "radius")[..., 0] / np.sqrt(np.mean(radius**2, axis=1, keepdims=True)))
    return radius, _reach(radius, turned, column(cells, "bend")[..., 0] / column(cells, "radius")[..., 0])


def _cut(radius: np.ndarray, turned: np.ndarray, cells: Sequence[RedCell]) -> np.ndarray:
    """Take off what lies beyond each cell's straight cuts (a schistocyte's)."""
    if not any(cell.cuts for cell in cells):
        return radius
    radius = radius.copy()
    for row, cell in zip(radius, cells, strict=True):
        for direction, distance in cell.cuts:
            towards = np.cos(turned[0] - direction)
            np.minimum(row, np.where(towards > 0.05, distance / np.maximum(towards, 0.05), np.inf), out=row)
    return radius


def _reach(radius: np.ndarray, turned: np.ndarray, bend: np.ndarray) -> np.ndarray:
    """Largest distance (n,) of the bent outlines from the origin."""
    along, across = radius * np.cos(turned), radius * np.sin(turned)
    return np.asarray(np.hypot(along, across + bend * along**2).max(axis=1))


def profile(
    cells: Sequence[RedCell], rho: np.ndarray, dimple: np.ndarray | None = None, theta: np.ndarray | None = None
) -> np.ndarray:
    """Thickness of cells at relative distances from their middles, um for the resting cell.

    t = (1 - rho^2)^edge (C0 + C2 d^2 + C4 d^4), after Evans & Fung, with d the distance from the pallor's middle.

    Args:
        cells: n cells.
        rho: (n, a, b) distance relative to the edge of the haemoglobin, 0 in the middle, 1 at the edge.
        dimple: (n, a, b) the same seen from the pallor's own middle (as ``rho`` where the pallor is central).
        theta: (n, a, b) direction, radians; only burr cells look at it, for the folds behind their spikes.

    Returns:
        (n, a, b) float32, zero outside of the cells.
    """
    inside = np.clip(1 - rho * rho, 0, None, dtype=np.float32)
    dome = inside ** column(cells, "edge")
    squared = (rho if dimple is None else dimple) ** (2 * column(cells, "width"))
    _, second, fourth = EVANS_FUNG
    height: np.ndarray = dome * np.clip(column(cells, "centre") + (second + fourth * squared) * squared, 0, None)
    full = np.array([cell.kind == "spherocyte" for cell in cells])
    if full.any():
        height[full] = np.sqrt(inside[full])
    bumped = np.array([cell.bump > 0 for cell in cells])
    if bumped.any():
        height[bumped] += (
            column(cells, "bump")[bumped] * _BUMP_UM * np.exp(-(rho[bumped] ** 2) / 0.06) * (rho[bumped] < 1)
        )
    spiked = np.array([cell.spike_height > 0 for cell in cells])
    if theta is not None and spiked.any():
        fold = np.cos(column(cells, "spikes")[spiked] * theta[spiked] / 2 + 9 * rho[spiked])
        height[spiked] *= 1 + 0.22 * fold * np.clip(rho[spiked], 0, 1)
    return height


def central_pallors(cells: Sequence[RedCell]) -> np.ndarray:
    """Diameter of the pale centre relative to the cell's, 0 (none) to 1: below PALLOR_LEVEL of the thickest ring.

    A target cell's pallor is the outer diameter of its pale ring; a stomatocyte's, that of the disc of its slit's area.

    Args:
        cells: n cells.

    Returns:
        (n,) float64.
    """
    if not cells:
        return np.zeros(0)
    rho = np.linspace(0, 1, 201, dtype=np.float32)
    heights = profile(cells, np.broadcast_to(rho, (len(cells), 1, rho.size)))[:, 0]
    rim = np.argmax(np.where(rho > 0.3, heights, 0), axis=1)
    top = np.take_along_axis(heights, rim[:, None], axis=1)
    pale = (heights < PALLOR_LEVEL * top) & (np.arange(rho.size) < rim[:, None])
    outer = np.where(pale.any(axis=1), rho.size - 1 - np.argmax(pale[:, ::-1], axis=1), 0)
    flat = np.array([cell.kind == "spherocyte" for cell in cells])
    slit, radius = column(cells, "slit")[:, 0, 0], column(cells, "radius")[:, 0, 0]
    beyond = 1 + RIM_BEYOND_MASK / radius
    return np.where(flat, 0.0, np.minimum(rho[outer] * np.sqrt(slit) * beyond, 1.0)).astype(float)


def render_cells(cells: Sequence[RedCell], places: np.ndarray) -> Iterator[CellPatches]:
    """Draw cells, those of about equal size together.

    Args:
        cells: n cells.
        places: (n, 2) x and y of their origins on the canvas, pixels.
    """
    if not cells:
        return
    tables, reaches = outline_table(cells)
    order = np.argsort(reaches, kind="stable")
    for start in range(0, len(cells), _CHUNK):
        numbers = order[start : start + _CHUNK]
        reach = int(np.ceil(reaches[numbers].max() + RIM_BEYOND_MASK)) + 2
        yield _render([cells[n] for n in numbers], places[numbers], tables[numbers].astype(np.float32), reach, numbers)


def _render(
    cells: list[RedCell], places: np.ndarray, tables: np.ndarray, reach: int, numbers: np.ndarray
) -> CellPatches:
    """Draw cells whose outlines reach no farther than ``reach`` pixels from their origins."""
    left, top = (np.floor(places).astype(int) - reach).T
    steps = np.arange(2 * reach + 2, dtype=np.float32)
    right = (steps[None] + (left - places[:, 0])[:, None].astype(np.float32))[:, None, :]
    down = (steps[None] + (top - places[:, 1])[:, None].astype(np.float32))[:, :, None]
    angle, radius = column(cells, "angle"), column(cells, "radius")
    cosine, sine = np.cos(angle), np.sin(angle)
    along, across = right * cosine + down * sine, down * cosine - right * sine
    across = across - column(cells, "bend") / radius * along**2
    theta, distance = np.arctan2(across, along), np.hypot(along, across)
    edge = _look_up(tables, theta)
    whole = edge + RIM_BEYOND_MASK
    rho, along, across = distance / whole, along / whole, across / whole
    height = profile(cells, rho, _dimple_distance(cells, along, across, rho), theta)
    slope = np.array([cell.slope for cell in cells], np.float32)[:, :, None, None]
    height *= np.clip(1 + slope[:, 0] * along + slope[:, 1] * across, 0.2, None)
    height *= np.clip(whole - distance + 0.5, 0, 1)  # a pixel on the edge is covered in part
    masks = distance < edge
    # A cell too small to hold a pixel's middle still has one pixel's haemoglobin at most.
    sums = np.maximum(height.sum(axis=(1, 2)), 1e-6)
    factor = np.array([cell.load for cell in cells]) * np.pi * radius[:, 0, 0] ** 2 / sums
    return CellPatches(numbers, height * factor[:, None, None].astype(np.float32), masks, top, left)


def _look_up(tables: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Outline distance in directions ``theta`` (n, p, p), between the steps of the tables (n, 192)."""
    place = (theta + np.float32(np.pi)) * np.float32(_ANGLES / (2 * np.pi))
    first = place.astype(np.int32)
    part = place - first
    wrapped = np.concatenate([tables, tables[:, :2]], axis=1).ravel()
    first += (np.arange(len(tables), dtype=np.int32) * (_ANGLES + 2))[:, None, None]
    low = wrapped[first]
    return np.asarray(low + part * (wrapped[first + 1] - low))


def _dimple_distance(cells: list[RedCell], along: np.ndarray, across: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Relative distance from the pallor's middle; at the edge of the cell it equals ``rho`` again."""
    inward = np.clip(1 - rho, 0, 1)
    shift = np.array([cell.shift for cell in cells], np.float32)[:, :, None, None]
    slit = column(cells, "slit")
    narrow = slit + (1 - slit) * (1 - inward)
    return np.asarray(np.hypot(along - shift[:, 0] * inward, (across - shift[:, 1] * inward) / narrow))
