"""How well found cells agree with true ones: one to one, by the overlap of their pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Match:
    """Cells of one or several images, compared.

    Attributes:
        matched: pairs of a found and a true cell whose intersection over union exceeds the threshold.
        overlap: sum of these pairs' intersections over unions.
        found: all found cells.
        true: all true ones.
    """

    matched: int
    overlap: float
    found: int
    true: int

    def __add__(self, other: Match) -> Match:
        return Match(
            self.matched + other.matched,
            self.overlap + other.overlap,
            self.found + other.found,
            self.true + other.true,
        )

    @property
    def precision(self) -> float:
        """Share of the found cells that are matched; NaN of none."""
        return self.matched / self.found if self.found else float("nan")

    @property
    def recall(self) -> float:
        """Share of the true cells that are matched; NaN of none."""
        return self.matched / self.true if self.true else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, which is recognition quality; NaN without any cell."""
        return 2 * self.matched / (self.found + self.true) if self.found + self.true else float("nan")

    @property
    def panoptic_quality(self) -> float:
        """F1 times the matched pairs' mean overlap (Kirillov et al., CVPR 2019); NaN without any cell."""
        return 2 * self.overlap / (self.found + self.true) if self.found + self.true else float("nan")


def match_instances(found: npt.NDArray[np.integer], true: npt.NDArray[np.integer], *, threshold: float = 0.5) -> Match:
    """Compare two instance maps.

    Above one half a cell overlaps at most one other so far, so that no assignment needs to be solved.

    Args:
        found: (H, W), 0 = background, else a cell's number.
        true: the same of the true cells.
        threshold: intersection over union that a pair must exceed, at least 0.5.

    Raises:
        ValueError: maps of different shapes; a threshold below 0.5.
    """
    if found.shape != true.shape or threshold < 0.5:
        raise ValueError(f"maps {found.shape} and {true.shape}, threshold {threshold}: one shape and 0.5 or more")
    columns = int(true.max(initial=0)) + 1
    pairs, shared = np.unique(found.astype(np.int64) * columns + true, return_counts=True)
    first, second = np.divmod(pairs, columns)
    of_found, of_true = np.bincount(found.ravel()), np.bincount(true.ravel())
    both = (first > 0) & (second > 0)
    first, second, shared = first[both], second[both], shared[both]
    ratio = shared / (of_found[first] + of_true[second] - shared)
    good = ratio > threshold
    return Match(
        int(good.sum()),
        float(ratio[good].sum()),
        int(np.count_nonzero(of_found[1:])),
        int(np.count_nonzero(of_true[1:])),
    )
