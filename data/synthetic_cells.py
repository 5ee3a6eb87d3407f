"""One synthetic red cell: its outline, its thickness, the haemoglobin that light meets on its way through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.synthetic_populations import SHAPE_KINDS, Subject

# A normal cell of 90 fL is 7.2 um across on a dried film (Price-Jones: mean 7.2, range 6.7 to 7.7 um) and about
# 20 pixels across on AneRBC's images.
PIXELS_PER_UM = 2.8
REFERENCE_DIAMETER_UM = 7.2
REFERENCE_VOLUME_FL = 90.0
REFERENCE_MCHC = 33.5
# Thickness of the resting cell: t(r) = sqrt(1 - r^2) (C0 + C2 r^2 + C4 r^4), in um, r relative to the radius.
# Evans & Fung, "Improved measurements of the erythrocyte geometry", Microvascular Research 4 (1972) 335-347.
EVANS_FUNG = (0.81, 7.83, -4.39)
# The pale centre ends where the cell is this fraction of its thickest ring. For the resting cell above that is one
# third of the diameter, the textbook's normal central pallor (Bain, "Blood Cells").
PALLOR_LEVEL = 0.6
HYPOCHROMIC_PALLOR = 0.5
# Plain cells outside of what healthy films show (7.2 um +- 2 standard deviations of cells).
MICROCYTE_BELOW_UM = 6.4
MACROCYTE_ABOVE_UM = 8.1
_OUTLINE_ORDERS = np.arange(2, 6)


@dataclass(frozen=True)
class RedCell:
    """Everything that defines how one red cell looks.

    Attributes:
        kind: one of SHAPE_KINDS, or "disc".
        radius: radius of the disc of equal area, pixels.
        axis_ratio: long over short axis, at least 1.
        angle: direction of the long axis (and of a teardrop's tail), radians.
        fourier: (2, 4) cosine and sine amplitudes of orders 2 to 5 of the outline, relative to the radius.
        tail: length of a teardrop's tail, relative to the radius.
        centre: C0 of the Evans & Fung formula, um: small is a deep pallor, large a flat top.
        width: exponent on the radius in the same formula; above 1 widens the pallor.
        bump: height of a target cell's central bump, relative to the rim.
        slit: how much narrower than long a stomatocyte's pallor is (1 is round).
        shift: (2,) displacement of the pallor from the middle (x, y), relative to the radius.
        slope: (2,) relative change of thickness across the cell (x, y).
        load: mean haemoglobin per area, relative to a normal cell's.
    """

    kind: str
    radius: float
    axis_ratio: float = 1.0
    angle: float = 0.0
    fourier: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 4, (0.0,) * 4)
    tail: float = 0.0
    centre: float = EVANS_FUNG[0]
    width: float = 1.0
    bump: float = 0.0
    slit: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    slope: tuple[float, float] = (0.0, 0.0)
    load: float = 1.0


def outline_radius(cell: RedCell, theta: np.ndarray) -> np.ndarray:
    """Distance of the outline from the cell's origin in direction ``theta`` (radians, any shape), in pixels."""
    return _unscaled_radius(cell, theta) * _scale_and_reach(cell)[0]


def _unscaled_radius(cell: RedCell, theta: np.ndarray) -> np.ndarray:
    """Return an ellipse of unit area factor, disturbed by low Fourier orders and drawn out into the tail."""
    turned = theta - cell.angle
    ratio = np.sqrt(cell.axis_ratio)
    radius = 1 / np.hypot(np.cos(turned) / ratio, np.sin(turned) * ratio)
    for order, cosine, sine in zip(_OUTLINE_ORDERS, *cell.fourier, strict=True):
        radius = radius * (1 + cosine * np.cos(order * theta) + sine * np.sin(order * theta))
    if cell.tail:
        radius = radius + cell.tail * np.exp(6 * (np.cos(turned) - 1))
    return radius


def _scale_and_reach(cell: RedCell) -> tuple[float, float]:
    """Return the factor that gives the outline the area of a disc of ``cell.radius``, and its largest radius then."""
    around = _unscaled_radius(cell, np.linspace(0, 2 * np.pi, 96, endpoint=False))
    scale = float(cell.radius / np.sqrt(np.mean(around**2)))
    return scale, scale * float(around.max())


def thickness(cell: RedCell, rho: np.ndarray, dimple: np.ndarray | None = None) -> np.ndarray:
    """Thickness at relative distance from the middle, in arbitrary units.

    Args:
        cell: the cell; its ``centre``, ``width`` and ``bump`` shape the profile.
        rho: distance relative to the outline, 0 in the middle, 1 at the edge; any shape.
        dimple: the same seen from the pallor's own middle (as ``rho`` where the pallor is central).

    Returns:
        An array like ``rho``, zero outside of the cell.
    """
    dome = np.sqrt(np.clip(1 - rho**2, 0, None))
    if cell.kind == "spherocyte":
        return dome
    squared = (rho if dimple is None else dimple) ** (2 * cell.width)
    _, second, fourth = EVANS_FUNG
    profile = dome * np.clip(cell.centre + second * squared + fourth * squared**2, 0, None)
    if cell.bump:
        profile = profile + cell.bump * 2.5 * np.exp(-(rho**2) / 0.06) * (rho < 1)
    return profile


def central_pallor(cell: RedCell) -> float:
    """Diameter of the pale centre relative to the cell's, 0 (none) to 1: below PALLOR_LEVEL of the thickest ring.

    A target cell's pallor is the outer diameter of its pale ring; a stomatocyte's, that of the disc of its slit's area.
    """
    rho = np.linspace(0, 1, 201)
    profile = thickness(cell, rho)
    rim = int(np.argmax(np.where(rho > 0.3, profile, 0)))
    pale = np.flatnonzero(profile[:rim] < PALLOR_LEVEL * profile[rim])
    return float(rho[pale[-1]] * np.sqrt(cell.slit)) if pale.size and cell.kind != "spherocyte" else 0.0


def render_cell(cell: RedCell, x: float, y: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Draw one cell on a patch of its own.

    Args:
        cell: the cell.
        x: column of its origin on the canvas, pixels.
        y: row of its origin on the canvas, pixels.

    Returns:
        The haemoglobin on each pixel relative to a normal cell's mean (h, w) float64, the mask (h, w) bool,
        and the row and column of the patch's first pixel on the canvas.
    """
    scale, farthest = _scale_and_reach(cell)
    reach = int(np.ceil(farthest)) + 2
    top, left = int(np.floor(y)) - reach, int(np.floor(x)) - reach
    rows, columns = np.ogrid[top : top + 2 * reach + 2, left : left + 2 * reach + 2]
    down, right = np.broadcast_arrays(rows - y, columns - x)
    edge = _unscaled_radius(cell, np.arctan2(down, right)) * scale
    rho = np.hypot(right, down) / edge
    mask = rho < 1
    profile = thickness(cell, rho, _dimple_distance(cell, right / edge, down / edge, rho))
    profile = profile * np.clip(1 + cell.slope[0] * right / edge + cell.slope[1] * down / edge, 0.2, None) * mask
    return profile * (cell.load * mask.sum() / profile.sum()), mask, top, left


def _dimple_distance(cell: RedCell, right: np.ndarray, down: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Relative distance from the pallor's middle; at the edge of the cell it equals ``rho`` again."""
    inward = np.clip(1 - rho, 0, 1)
    right, down = right - cell.shift[0] * inward, down - cell.shift[1] * inward
    if cell.slit == 1.0:
        return np.hypot(right, down)
    along = right * np.cos(cell.angle) + down * np.sin(cell.angle)
    across = -right * np.sin(cell.angle) + down * np.cos(cell.angle)
    return np.hypot(along, across / (cell.slit + (1 - cell.slit) * np.clip(rho, 0, 1)))


def draw_red_cell(subject: Subject, flatness: float, rng: np.random.Generator) -> RedCell:
    """Draw one red cell of a subject.

    Args:
        subject: gives mean and spread of volume, haemoglobin and shape.
        flatness: how flat the film has dried: scales the thickness in the middle of every cell of the image.
        rng: source of chance.
    """
    population = subject.population
    kind = str(rng.choice((*SHAPE_KINDS, "disc"), p=(*population.kinds, 1 - sum(population.kinds))))
    sigma = np.sqrt(np.log1p((subject.rdw / 100) ** 2))
    volume = subject.mcv * np.exp(rng.normal(-(sigma**2) / 2, sigma))
    spread = np.exp(rng.normal(0, 0.03)) * (0.84 if kind == "spherocyte" else 1.0)
    diameter = REFERENCE_DIAMETER_UM * np.cbrt(volume / REFERENCE_VOLUME_FL) * spread
    # Haemoglobin over area. A scarce filling leaves the middle first, hence deeper and wider pallor at low load.
    concentration = subject.mchc * np.exp(rng.normal(0, 0.004 * subject.rdw)) / REFERENCE_MCHC
    load = float(volume / REFERENCE_VOLUME_FL * concentration * (REFERENCE_DIAMETER_UM / diameter) ** 2)
    filling = load * (diameter / REFERENCE_DIAMETER_UM) ** -0.5
    return RedCell(
        kind=kind,
        radius=float(diameter * PIXELS_PER_UM / 2),
        angle=float(rng.uniform(0, 2 * np.pi)),
        fourier=_draw_fourier(population.roughness, rng),
        centre=float(np.clip(flatness * np.exp(rng.normal(0, 0.5)) * filling**3.5, 0.15, 6)),
        width=float(np.clip(1 + 1.8 * (1 - filling) + rng.normal(0, 0.08), 0.75, 2.2)),
        shift=_draw_pair(0.10, rng),
        slope=_draw_pair(0.07, rng),
        load=load,
        **_draw_shape(kind, population.axis_ratio_sd, rng),
    )


def _draw_pair(sd: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draw two numbers, kept within two and a half standard deviations."""
    first, second = np.clip(rng.normal(0, sd, 2), -2.5 * sd, 2.5 * sd)
    return float(first), float(second)


def _draw_fourier(roughness: float, rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Draw amplitudes that fall with the order, so that outlines stay smooth."""
    amplitudes = np.clip(rng.normal(0, 1, (2, _OUTLINE_ORDERS.size)), -2.5, 2.5) * roughness * 2 / _OUTLINE_ORDERS
    cosines, sines = amplitudes.tolist()
    return tuple(cosines), tuple(sines)


def _draw_shape(kind: str, axis_ratio_sd: float, rng: np.random.Generator) -> dict[str, float]:
    """Draw what sets the kinds of cell apart from the plain disc."""
    round_enough = 1 + min(abs(float(rng.normal(0, axis_ratio_sd))), 3 * axis_ratio_sd)
    first, second = (float(value) for value in rng.uniform(size=2))
    shapes: dict[str, dict[str, float]] = {
        "spherocyte": {"axis_ratio": 1.0 + 0.05 * first},
        "target": {"axis_ratio": round_enough, "bump": 0.55 + 0.5 * first},
        "elliptocyte": {"axis_ratio": 1.5 + 0.9 * first},
        "teardrop": {"axis_ratio": 1.05 + 0.25 * first, "tail": 0.45 + 0.6 * second},
        "stomatocyte": {"axis_ratio": round_enough, "slit": 0.3 + 0.2 * first},
    }
    return shapes.get(kind, {"axis_ratio": round_enough})


def cell_kind(cell: RedCell) -> str:
    """Name a cell: by its shape where that is special, else by its pallor, then its size, else "normal"."""
    if cell.kind != "disc":
        return cell.kind
    if central_pallor(cell) > HYPOCHROMIC_PALLOR:
        return "hypochromic"
    diameter = 2 * cell.radius / PIXELS_PER_UM
    if diameter < MICROCYTE_BELOW_UM:
        return "microcyte"
    return "macrocyte" if diameter > MACROCYTE_ABOVE_UM else "normal"
