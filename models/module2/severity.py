"""How far the cells of an image are from normal: scores S, R and CP of each cell, and Mild or Chronic of the image.

Published is one line: "if 0.66 < cell size < 0.96: S = 1 - |0.8 - size| * SR, else S = 1 - |1.6 - size| * SR". Neither
the unit of size, nor SR, nor the rules for roundness and pallor, nor how they join into a grade are. What is
ours says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.module2.kinds import KINDS, KindLimits, judged, kinds_of, reference_diameter
from models.module2.morphometry import CellTable, Floats
from util.errors import UserError

MILD, CHRONIC = "Mild", "Chronic"


@dataclass(frozen=True)
class SeverityRule:
    """Constants of the rule. The published line holds the first four and names SR; every other value is ours.

    Attributes:
        size_low: published 0.66, lower end of the normal sizes.
        size_high: published 0.96, upper end of the normal sizes.
        size_normal: published 0.8, the best size within them.
        size_other: published 1.6, the best size beyond them: twice the normal, as two cells taken for one have.
        size_rate: SR, loss of score per unit of size (ours).
        normal_um: diameter of a normal cell, whose area has size 0.8 (ours, where micrometres are known; Price-Jones'
            mean); where they are not known, it is the image's own normal cell.
        round_normal: roundness from which a cell is round (ours).
        round_rate: RR, loss of score per unit of roundness below it (ours).
        pallor_normal: central pallor of a normal cell (ours, the textbooks' third).
        pallor_rate: PR, loss of score per unit of pallor above or below it (ours).
        size_weight: weight of S in a cell's severity (ours).
        round_weight: weight of R (ours).
        pallor_weight: weight of CP (ours; low, for how pale cells dry differs more between films than between grades).
        chronic_from: mean severity of the cells from which an image is Chronic, where micrometres are known (ours,
            calibrated on synthetic smears).
        chronic_from_relative: the same where they are not, and the image's own cells set the size.
    """

    size_low: float = 0.66
    size_high: float = 0.96
    size_normal: float = 0.8
    size_other: float = 1.6
    size_rate: float = 0.5
    normal_um: float = 7.2
    round_normal: float = 0.9
    round_rate: float = 2.0
    pallor_normal: float = 0.33
    pallor_rate: float = 2.0
    size_weight: float = 1.0
    round_weight: float = 1.0
    pallor_weight: float = 0.25
    chronic_from: float = 0.21
    chronic_from_relative: float = 0.15

    def __post_init__(self) -> None:
        weights = (self.size_weight, self.round_weight, self.pallor_weight)
        if not all(np.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
            raise UserError(
                "weights of size, roundness and pallor",
                expected="numbers of 0 or more, not all of them 0",
                found=str(weights),
                remedy="give other weights",
            )
        if not (0 < self.size_low < self.size_high and self.normal_um > 0):
            raise UserError(
                "normal sizes of a cell",
                expected="0 < lower end < upper end, and a normal diameter above 0",
                found=f"{self.size_low} to {self.size_high}, {self.normal_um} um",
                remedy="give other limits",
            )

    def limit(self, um_per_px: float | None) -> float:
        """Severity score from which an image is Chronic, by whether the size of its pixels is known."""
        return self.chronic_from_relative if um_per_px is None else self.chronic_from


@dataclass(frozen=True)
class CellScores:
    """Scores (n,) of n cells; NaN for cells that are not judged (``kinds.judged``).

    Attributes:
        size: area relative to a normal cell's, times 0.8: the published rule's "cell size" as we read it.
        size_score: S, 1 is best, 0 worst.
        roundness_score: R.
        pallor_score: CP.
        severity: 1 - weighted mean of S, R and CP; 0 is normal, 1 worst.
    """

    size: Floats
    size_score: Floats
    roundness_score: Floats
    pallor_score: Floats
    severity: Floats


@dataclass(frozen=True)
class SmearSummary:
    """What the cells of one image say together.

    Attributes:
        cells: all cells of the instance map.
        judged: those that are whole and have a measurable pallor; all that follows but ``overlapped`` is of these.
        border: cells cut by the image's edge.
        overlapped: cells that touch another.
        overlapped_share: the same as a part of all cells; NaN without cells.
        reference_px: diameter of the image's own normal cell.
        diameter_px: 5th, 25th, 50th, 75th and 95th percentile of the diameters.
        um_per_px: size of a pixel, or None.
        diameter_cv: anisocytosis index, percent: standard deviation over mean of the diameters.
        area_cv: the same of the areas of discs of these diameters. RDW is the same of volumes, from a counter.
        kinds: share of each of KINDS, in that order.
        size_score: mean S.
        roundness_score: mean R.
        pallor_score: mean CP.
        severity_score: mean severity of the cells, 0 to 1; NaN where none is judged.
        severity: "Mild" or "Chronic" (severe), None where no cell is judged. Meant for images of anemic blood.
    """

    cells: int
    judged: int
    border: int
    overlapped: int
    overlapped_share: float
    reference_px: float
    diameter_px: tuple[float, ...]
    um_per_px: float | None
    diameter_cv: float
    area_cv: float
    kinds: dict[str, float]
    size_score: float
    roundness_score: float
    pallor_score: float
    severity_score: float
    severity: str | None


def size_score(size: npt.ArrayLike, rule: SeverityRule | None = None) -> Floats:
    """Score sizes by the published rule, kept within 0 and 1.

    Args:
        size: any shape; 0.8 is normal.
        rule: constants; the defaults where None.
    """
    rule = rule or SeverityRule()
    size = np.asarray(size, np.float64)
    best = np.where((size > rule.size_low) & (size < rule.size_high), rule.size_normal, rule.size_other)
    return np.clip(1 - np.abs(best - size) * rule.size_rate, 0, 1)


def score_cells(table: CellTable, rule: SeverityRule | None = None, limits: KindLimits | None = None) -> CellScores:
    """Score each cell's size, roundness and central pallor.

    Args:
        table: measures of one image.
        rule: constants of the scores; the defaults where None.
        limits: cut-offs by which the image's own normal cells are found where micrometres are not known.
    """
    rule = rule or SeverityRule()
    normal = reference_diameter(table, limits) if table.um_per_px is None else rule.normal_um / table.um_per_px
    able = judged(table)
    size = np.where(able, rule.size_normal * (table.diameter_px / normal) ** 2, np.nan)
    sized = size_score(size, rule)
    rounded = np.clip(1 - np.maximum(rule.round_normal - table.roundness, 0) * rule.round_rate, 0, 1)
    filled = np.clip(1 - np.abs(table.central_pallor - rule.pallor_normal) * rule.pallor_rate, 0, 1)
    rounded, filled = np.where(able, rounded, np.nan), np.where(able, filled, np.nan)
    lost = rule.size_weight * (1 - sized) + rule.round_weight * (1 - rounded) + rule.pallor_weight * (1 - filled)
    total = rule.size_weight + rule.round_weight + rule.pallor_weight
    return CellScores(size, sized, rounded, filled, lost / total)


def summarise(table: CellTable, rule: SeverityRule | None = None, limits: KindLimits | None = None) -> SmearSummary:
    """Count, describe and grade the cells of one image.

    Args:
        table: measures of one image.
        rule: constants of the grade; the defaults where None.
        limits: cut-offs of the kinds; the defaults where None.
    """
    rule = rule or SeverityRule()
    able, kinds, scores = judged(table), kinds_of(table, limits), score_cells(table, rule, limits)
    diameters = table.diameter_px[able]
    count, number = len(table), int(able.sum())
    score = _mean(scores.severity[able])
    return SmearSummary(
        cells=count,
        judged=number,
        border=int(table.border.sum()),
        overlapped=int(table.overlapped.sum()),
        overlapped_share=_mean(table.overlapped.astype(float)),
        reference_px=reference_diameter(table, limits),
        diameter_px=tuple(np.percentile(diameters, (5, 25, 50, 75, 95)).tolist()) if number else (float("nan"),) * 5,
        um_per_px=table.um_per_px,
        diameter_cv=_variation(diameters),
        area_cv=_variation(diameters**2),
        kinds={kind: _mean((kinds[able] == kind).astype(float)) for kind in KINDS},
        size_score=_mean(scores.size_score[able]),
        roundness_score=_mean(scores.roundness_score[able]),
        pallor_score=_mean(scores.pallor_score[able]),
        severity_score=score,
        severity=None if not number else CHRONIC if score >= rule.limit(table.um_per_px) else MILD,
    )


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _variation(values: Floats) -> float:
    """Coefficient of variation in percent; NaN for fewer than two values."""
    return float(100 * values.std(ddof=1) / values.mean()) if values.size > 1 else float("nan")
