"""Names for measured cells, by rule; every cut-off stands in :class:`KindLimits` and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.module2.morphometry import Booleans, CellTable, Floats

NORMAL = "normal"
NOT_JUDGED = "not judged"
# In the order in which they are asked for: the first that fits names the cell.
KINDS = (
    "sickle",
    "teardrop",
    "schistocyte",
    "target",
    "burr",
    "elliptocyte",
    "ovalocyte",
    "spherocyte",
    "hypochromic",
    "microcyte",
    "macrocyte",
    NORMAL,
)
# Fewer plain cells than this, and all whole cells set the reference size.
_PLAIN_CELLS = 5


@dataclass(frozen=True)
class KindLimits:
    """Cut-offs of the kinds. Their sources, and how those of ours were set, stand in docs/module2.md.

    Attributes:
        microcyte_below: diameter relative to the reference.
        macrocyte_above: diameter relative to the reference.
        microcyte_below_um: diameter where micrometres are known.
        macrocyte_above_um: diameter where micrometres are known.
        ovalocyte_below: roundness; from here down to ``elliptocyte_below``.
        elliptocyte_below: roundness (ICSH: long axis more than twice the short one).
        spherocyte_below: central pallor.
        spherocyte_from_px: diameter in pixels from which blur leaves a pallor to be seen.
        hypochromic_above: central pallor.
        target_bump: the very centre above the palest ring, in parts of the rim's absorbance.
        target_pallor: central pallor that a target has at least.
        sickle_below: roundness, together with ``uneven``.
        teardrop_tail: reach of one direction beyond the ellipse, in parts of the radius.
        teardrop_peak: that reach over the outline's irregularity: one tail, not many corners.
        uneven: irregularity of an outline that is no ellipse.
        schistocyte_below: diameter relative to the reference, together with ``uneven``.
        burr_spikes: projections seen along the outline.
        burr_tail: reach of the largest of them.
        burr_from_px: diameter in pixels from which projections can be told from the steps of an outline.
        burr_solidity: area over convex area below which an outline with projections is notched.
        free: part of the outline that must be free for the rules that look at the outline.
    """

    microcyte_below: float = 0.89
    macrocyte_above: float = 1.125
    microcyte_below_um: float = 6.4
    macrocyte_above_um: float = 8.1
    ovalocyte_below: float = 0.79
    elliptocyte_below: float = 0.5
    spherocyte_below: float = 0.12
    spherocyte_from_px: float = 24.0
    hypochromic_above: float = 0.39
    target_bump: float = 0.12
    target_pallor: float = 0.15
    sickle_below: float = 0.5
    teardrop_tail: float = 0.2
    teardrop_peak: float = 2.0
    uneven: float = 0.06
    schistocyte_below: float = 0.95
    burr_spikes: int = 2
    burr_tail: float = 0.035
    burr_from_px: float = 24.0
    burr_solidity: float = 0.985
    free: float = 0.6


def judged(table: CellTable) -> Booleans:
    """Tell which cells are whole in the image and have a measurable pallor: only these are named and scored."""
    return ~table.border & np.isfinite(table.central_pallor)


def reference_diameter(table: CellTable, limits: KindLimits | None = None) -> float:
    """Diameter of the image's own normal cell, pixels: the median of its judged cells of no abnormal shape or pallor.

    Args:
        table: measures of one image.
        limits: cut-offs.

    Returns:
        The median over all judged cells where fewer than 5 are plain; NaN where none is judged.
    """
    able, rules = judged(table), _shape_and_pallor(table, limits or KindLimits())
    plain = able & ~np.any(list(rules.values()), axis=0)
    chosen = plain if plain.sum() >= _PLAIN_CELLS else able
    return float(np.median(table.diameter_px[chosen])) if chosen.any() else float("nan")


def kinds_of(table: CellTable, limits: KindLimits | None = None) -> npt.NDArray[np.str_]:
    """Name each cell.

    Args:
        table: measures of one image.
        limits: cut-offs; the defaults where None.

    Returns:
        (n,) one of KINDS, or NOT_JUDGED for cells cut by the border and cells without measurable pallor.
    """
    limits = limits or KindLimits()
    relative = table.diameter_px / reference_diameter(table, limits)
    rules = _shape_and_pallor(table, limits)
    rules["schistocyte"] &= relative < limits.schistocyte_below
    if table.um_per_px is None:
        rules["microcyte"] = relative < limits.microcyte_below
        rules["macrocyte"] = relative > limits.macrocyte_above
    else:
        rules["microcyte"] = table.diameter_um < limits.microcyte_below_um
        rules["macrocyte"] = table.diameter_um > limits.macrocyte_above_um
    names = np.full(len(table), NORMAL, dtype=f"<U{max(map(len, (*KINDS, NOT_JUDGED)))}")
    for kind in reversed(KINDS[:-1]):
        names[rules[kind]] = kind
    names[~judged(table)] = NOT_JUDGED
    return names


def _shape_and_pallor(table: CellTable, limits: KindLimits) -> dict[str, Booleans]:
    """Ask every rule that needs no size of the image's other cells."""
    seen = table.free >= limits.free
    uneven = seen & (table.irregularity > limits.uneven)
    peak: Floats = table.tail / np.maximum(table.irregularity, 1e-9)
    return {
        "sickle": uneven & (table.roundness < limits.sickle_below),
        "teardrop": uneven & (table.tail > limits.teardrop_tail) & (peak > limits.teardrop_peak),
        "schistocyte": uneven & (table.central_pallor < limits.hypochromic_above),
        "burr": seen
        & (table.diameter_px >= limits.burr_from_px)
        & (table.spikes >= limits.burr_spikes)
        & (table.tail > limits.burr_tail)
        & (table.solidity < limits.burr_solidity),
        "target": (table.bump > limits.target_bump) & (table.central_pallor > limits.target_pallor),
        "elliptocyte": table.roundness < limits.elliptocyte_below,
        "ovalocyte": table.roundness < limits.ovalocyte_below,
        "spherocyte": (table.central_pallor < limits.spherocyte_below)
        & (table.diameter_px >= limits.spherocyte_from_px),
        "hypochromic": table.central_pallor > limits.hypochromic_above,
    }
