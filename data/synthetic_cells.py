"""One synthetic red cell: what defines its shape and filling, how it is drawn by lot, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.synthetic_populations import SHAPE_KINDS, Subject

# A normal cell of 90 fL is 7.2 um across on a dried film (Price-Jones: mean 7.2, range 6.7 to 7.7 um) and about
# 20 pixels across on AneRBC's images.
PIXELS_PER_UM = 2.88
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
    """Everything that defines how one red cell looks. Directions are turned with the cell.

    Attributes:
        kind: one of SHAPE_KINDS, or "disc".
        radius: radius of the disc of equal area, pixels.
        axis_ratio: long over short axis, at least 1.
        angle: direction of the long axis (and of a teardrop's tail) on the picture, radians.
        fourier: (2, 4) cosine and sine amplitudes of orders 2 to 5 of the outline, relative to the radius.
        tail: length of a teardrop's tail, relative to the radius.
        lens: 0 is an ellipse, 1 a lens with two pointed ends.
        bend: how far the long axis is bent into a crescent, relative to the radius.
        spikes: projections around the outline of a burr cell.
        spike_height: their height, relative to the radius.
        cuts: direction (radians) and distance (relative to the radius) of straight lines that cut a fragment off.
        edge: exponent of the fall to the edge: 0.5 is the resting cell in plasma, less a cell dried flat.
        centre: C0 of the Evans & Fung formula, um: small is a deep pallor, large a flat top.
        width: exponent on the radius in the same formula; above 1 widens the pallor.
        bump: height of a target cell's central bump, relative to the rim.
        slit: how much narrower than long a stomatocyte's pallor is (1 is round).
        shift: (2,) displacement of the pallor from the middle (along, across), relative to the radius.
        slope: (2,) relative change of thickness across the cell (along, across).
        load: mean haemoglobin per area, relative to a normal cell's.
        polychromasia: how much of a young cell's blue there is, up to 1; below 0 the cell is pinker than others.
        pixels_per_um: magnification.
    """

    kind: str
    radius: float
    axis_ratio: float = 1.0
    angle: float = 0.0
    fourier: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 4, (0.0,) * 4)
    tail: float = 0.0
    lens: float = 0.0
    bend: float = 0.0
    spikes: float = 0.0
    spike_height: float = 0.0
    cuts: tuple[tuple[float, float], ...] = ()
    edge: float = 0.5
    centre: float = EVANS_FUNG[0]
    width: float = 1.0
    bump: float = 0.0
    slit: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    slope: tuple[float, float] = (0.0, 0.0)
    load: float = 1.0
    polychromasia: float = 0.0
    pixels_per_um: float = PIXELS_PER_UM


@dataclass(frozen=True)
class Film:
    """How one film was spread and dried: the preparation's doing, so drawn without knowledge of the class.

    Attributes:
        flatness: scales the thickness in the middle of every cell; small is a deep pallor.
        dimple: factor on the width of every cell's pallor: below 1 it is a narrow pit in a broad ring.
        edge: exponent of the fall of every cell to its edge (see ``RedCell``).
        density: cells per area relative to what the subject's blood promises.
        crowding: probability that a cell is put onto the rim of another.
        rouleaux: probability that a cell goes on a chain of cells lying on each other like fallen coins.
        crenation: fraction of cells made burr cells by slow drying or an old sample.
        ghosts: fraction of cells that lost much of their haemoglobin, some of them all but a crescent.
        dense: fraction of cells that dried contracted and dark, as spherocytes (at the thin end of a film).
        additivity: part of the paler cells' absorbance that adds to the darkest's where cells overlap: 1 where they lie
            on each other whole, less where they were pressed flat and dried thin there.
        stretch: axis ratio that spreading gave all cells, in the direction ``stretch_angle`` (radians).
        stretch_angle: see ``stretch``.
        refraction: strength of the bright ring around cells that dried in humid air or stand out of focus.
        precipitate: expected grains of stain on 300 x 300 pixels.
        holes: expected round empty places (fat, bubbles) on 300 x 300 pixels.
    """

    flatness: float = 1.0
    dimple: float = 1.0
    edge: float = 0.5
    density: float = 1.0
    crowding: float = 0.15
    rouleaux: float = 0.0
    crenation: float = 0.0
    ghosts: float = 0.0
    dense: float = 0.0
    additivity: float = 1.0
    stretch: float = 1.0
    stretch_angle: float = 0.0
    refraction: float = 0.0
    precipitate: float = 0.0
    holes: float = 0.0


def draw_film(rng: np.random.Generator) -> Film:
    """Draw the preparation of one film."""

    def sometimes(share: float, low: float, high: float) -> float:
        """Zero, or in ``share`` of the films something from ``low`` to ``high``."""
        there, value = rng.uniform(size=2)
        return float(low + (high - low) * value**2) if there < share else 0.0

    return Film(
        flatness=float(0.40 * np.exp(rng.normal(0, 0.65))),
        dimple=float(np.exp(rng.normal(-0.30, 0.13))),
        edge=float(rng.uniform(0.14, 0.36)),
        density=float(np.clip(np.exp(rng.normal(0.04, 0.24)), 0.45, 1.6)),
        crowding=float(0.03 + 0.5 * rng.uniform() ** 2),
        rouleaux=sometimes(0.12, 0.05, 0.6),
        crenation=sometimes(0.08, 0.02, 0.6),
        ghosts=sometimes(0.35, 0.005, 0.06),
        dense=sometimes(0.3, 0.005, 0.15),
        additivity=float(rng.uniform(0.15, 1.0)),
        stretch=1.0 + sometimes(0.25, 0.03, 0.35),
        stretch_angle=float(rng.uniform(0, np.pi)),
        refraction=sometimes(0.3, 0.1, 0.8),
        precipitate=8 * rng.uniform() + sometimes(0.3, 10, 600),
        holes=sometimes(0.06, 0.3, 1.5),
    )


def draw_red_cell(
    subject: Subject, film: Film, rng: np.random.Generator, pixels_per_um: float = PIXELS_PER_UM
) -> RedCell:
    """Draw one red cell of a subject.

    Args:
        subject: gives mean and spread of volume, haemoglobin and shape.
        film: the preparation, the same for every cell of an image.
        rng: source of chance.
        pixels_per_um: magnification.
    """
    population = subject.population
    kind = _draw_kind(population.kinds, film, rng)
    sigma = np.sqrt(np.log1p((subject.rdw / 100) ** 2))
    volume = subject.mcv * np.exp(rng.normal(-(sigma**2) / 2, sigma)) * _volume_left(kind, rng)
    spread = np.exp(rng.normal(0, 0.035)) * {"spherocyte": 0.84, "burr": 0.93}.get(kind, 1.0)
    diameter = REFERENCE_DIAMETER_UM * np.cbrt(volume / REFERENCE_VOLUME_FL) * spread
    # Haemoglobin over area. A scarce filling leaves the middle first, hence deeper and wider pallor at low load.
    concentration = subject.mchc * np.exp(rng.normal(0, 0.004 * subject.rdw)) / REFERENCE_MCHC
    load = float(volume / REFERENCE_VOLUME_FL * concentration * (REFERENCE_DIAMETER_UM / diameter) ** 2)
    dense = kind == "spherocyte"
    load *= float(np.exp(rng.normal(0, 0.03)) * (rng.uniform(0.9, 1.45) if dense else 1.0))
    filling = concentration * (volume / REFERENCE_VOLUME_FL) ** 0.2
    young = rng.uniform() < population.polychromasia
    ghost = rng.uniform() < film.ghosts
    shape = _draw_shape(kind, population.axis_ratio_sd, film, rng)
    centre = film.flatness * np.exp(rng.normal(0, 0.33)) * filling**3.5
    crescent = ghost and rng.uniform() < 0.3
    if (ghost and not crescent) or young or kind in ("schistocyte", "sickle"):
        centre = max(centre, 2.5)  # no pallor: swollen, or too small to hold one
    return RedCell(
        kind=kind,
        radius=float(diameter * (1.06 if young or ghost else 1.0) * pixels_per_um / 2),
        edge=film.edge,
        fourier=_draw_fourier(population.roughness * (2.0 if ghost or kind == "schistocyte" else 1.0), rng),
        centre=float(np.clip(centre, 0.12, 6)),
        width=float(np.clip(film.dimple * (1 + 3.0 * (1 - filling) + rng.normal(0, 0.08)), 0.5, 2.2)),
        shift=_draw_pair(0.45 if crescent else 0.10, rng),
        slope=_draw_pair(0.08, rng),
        load=load * (float(rng.uniform(0.35, 0.65)) if ghost else 1.0),
        polychromasia=float(rng.uniform(0.4, 1.0)) if young else -float(rng.uniform(0, 1.2)) * ghost,
        pixels_per_um=pixels_per_um,
        **shape,
    )


def _draw_kind(kinds: tuple[float, ...], film: Film, rng: np.random.Generator) -> str:
    """Draw the shape a cell was born with, and what the film made of it."""
    place = int(np.searchsorted(np.cumsum(kinds), rng.uniform(), side="right"))
    kind = SHAPE_KINDS[place] if place < len(SHAPE_KINDS) else "disc"
    crenated, contracted = rng.uniform(size=2) < (film.crenation, film.dense)
    if kind != "disc":
        return kind
    return "burr" if crenated else "spherocyte" if contracted else kind


def _volume_left(kind: str, rng: np.random.Generator) -> float:
    """Part of a cell's volume that is left: fragments have lost some."""
    return float(rng.uniform(0.3, 0.7)) if kind == "schistocyte" else 1.0


def _draw_pair(sd: float, rng: np.random.Generator) -> tuple[float, float]:
    """Draw two numbers, kept within two and a half standard deviations."""
    first, second = rng.normal(0, sd, 2).tolist()
    return max(min(first, 2.5 * sd), -2.5 * sd), max(min(second, 2.5 * sd), -2.5 * sd)


def _draw_fourier(roughness: float, rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Draw amplitudes that fall with the order, so that outlines stay smooth."""
    amplitudes = np.clip(rng.normal(0, 1, (2, _OUTLINE_ORDERS.size)), -2.5, 2.5) * roughness * 2 / _OUTLINE_ORDERS
    cosines, sines = amplitudes.tolist()
    return tuple(cosines), tuple(sines)


def _draw_shape(kind: str, axis_ratio_sd: float, film: Film, rng: np.random.Generator) -> dict[str, Any]:
    """Draw what sets the kinds of cell apart from the plain disc.

    Teardrops have one tail, sickle cells are bent lenses two to four times as long as wide, burr cells bear 9 to 14
    even short projections in profile (10 to 30 on the whole surface), schistocytes are cut straight once (helmet) or
    twice (triangle): Bain, "Blood Cells"; ICSH recommendations on schistocytes (2012), red cell morphology (2015).
    """
    round_enough = film.stretch + min(abs(float(rng.normal(0, axis_ratio_sd))), 3 * axis_ratio_sd)
    first, second, third = (float(value) for value in rng.uniform(size=3))
    # Cells that spreading stretched lie along it, more or less; others lie anyhow.
    spread = film.stretch - 1
    turned = film.stretch_angle + float(rng.normal(0, 0.35)) if spread > 0.03 else 2 * np.pi * third
    cuts = ((np.pi * (0.4 + 0.2 * second), 0.15 + 0.45 * first), (-np.pi * (0.35 + 0.3 * first), 0.25 + 0.4 * third))
    shapes: dict[str, dict[str, Any]] = {
        "spherocyte": {"axis_ratio": 1.0 + 0.05 * first},
        "target": {"axis_ratio": round_enough, "bump": 0.55 + 0.5 * first},
        "elliptocyte": {"axis_ratio": 1.5 + 0.9 * first},
        "teardrop": {"axis_ratio": 1.05 + 0.35 * first, "tail": 0.45 + 0.7 * second, "bend": 0.2 * (third - 0.5)},
        "stomatocyte": {"axis_ratio": round_enough, "slit": 0.3 + 0.2 * first},
        "burr": {"axis_ratio": round_enough, "spikes": float(9 + int(6 * first)), "spike_height": 0.09 + 0.12 * second},
        "schistocyte": {"axis_ratio": 1.0 + 0.7 * third, "cuts": cuts[: 1 + (second > 0.5)], "bend": 0.2 * first},
        "sickle": {"axis_ratio": 2.8 + 1.6 * first, "lens": 0.4 + 0.6 * second, "bend": 0.15 + 0.3 * third},
    }
    angle = 2 * np.pi * float(rng.uniform()) if kind in ("schistocyte", "teardrop") else turned
    return {"angle": float(angle), **shapes.get(kind, {"axis_ratio": round_enough})}


def cell_kind(cell: RedCell, pallor: float) -> str:
    """Name a cell: by its shape where that is special, else by its pallor, then its size, else "normal".

    Args:
        cell: the cell.
        pallor: its central pallor (``synthetic_render.central_pallors``).
    """
    if cell.kind != "disc":
        return cell.kind
    if pallor > HYPOCHROMIC_PALLOR:
        return "hypochromic"
    diameter = 2 * cell.radius / cell.pixels_per_um
    if diameter < MICROCYTE_BELOW_UM:
        return "microcyte"
    return "macrocyte" if diameter > MACROCYTE_ABOVE_UM else "normal"
