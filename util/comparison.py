"""Comparing classifiers that were tested on the same folds: means over folds, and intervals of paired differences.

Groups are left out, never images (see ``util.intervals``), the same groups for every classifier, so that the interval
of a difference leaves out what made the images hard for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.intervals import Sizes, difference_interval, interval, left_out_weights, sizes_of
from util.metrics import group_index, weighted_aurocs

Floats = NDArray[np.float64]
MEASURES = ("auroc", "accuracy")


@dataclass(frozen=True)
class Resampled:
    """A figure and what it becomes without each group.

    Attributes:
        value: of the images as they are; NaN where undefined.
        left_out: (K,) without each group, the same groups in the same order for every figure of the same images.
        sizes: what the groups say about it.
        parts: of a paired difference, the two figures.
    """

    value: float
    left_out: Floats
    sizes: Sizes
    parts: tuple[Resampled, Resampled] | None = None

    @property
    def interval(self) -> list[float] | None:
        """The 95% interval, see ``util.intervals``; None where there is none."""
        if self.parts is None:
            return interval(self.value, self.left_out, self.sizes)
        one, other = self.parts
        return difference_interval(one.value, other.value, one.left_out, other.left_out, self.sizes)

    def as_dict(self) -> dict[str, Any]:
        """Plain ``value`` and ``ci95``; None where undefined."""
        return {"value": None if np.isnan(self.value) else float(self.value), "ci95": self.interval}

    def __sub__(self, other: Resampled) -> Resampled:
        """The paired difference.

        Raises:
            ValueError: one of the two is a difference already.
        """
        if self.parts or other.parts:
            raise ValueError("a difference of differences has no interval here: average first, then subtract")
        return Resampled(self.value - other.value, self.left_out - other.left_out, self.sizes, (self, other))

    @staticmethod
    def mean(figures: Sequence[Resampled]) -> Resampled:
        """The mean of figures of the same images, such as those of several seeds; a mean of differences is one, too."""
        parts = [figure.parts for figure in figures if figure.parts]
        if parts:
            return Resampled.mean([one for one, _ in parts]) - Resampled.mean([other for _, other in parts])
        left_out = np.stack([figure.left_out for figure in figures]).mean(axis=0)
        return Resampled(float(np.mean([figure.value for figure in figures])), left_out, figures[0].sizes)


def over_folds(
    label: NDArray[Any],
    score: NDArray[Any],
    group: Sequence[str],
    fold: NDArray[Any],
    *,
    threshold: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """AUROC and accuracy as means over folds, each fold judged by itself because its network is another one.

    Args:
        label: (N,) 0 Healthy, 1 Anemic.
        score: (N,) logits or probabilities as they are: shifted ones lose the order of those near zero.
        group: N names; a group stands in one fold.
        fold: (N,) the fold that each image was tested in.
        threshold: Anemic is said above it.
        resamples: so many groups at most are left out one at a time; more are dealt into so many parts.
        seed: of that deal.

    Returns:
        ``auroc`` and ``accuracy``. A fold without both classes is left out of the mean AUROC, also where it loses one
        with a group: then the whole fold goes with that group. Of one fold alone such an AUROC has no interval.
    """
    names, member = group_index(group)
    label, score, fold = np.asarray(label), np.asarray(score, dtype=np.float64), np.asarray(fold)
    right = ((score > threshold) == (label > 0)).astype(np.float64)
    by_block: dict[str, list[Floats]] = {measure: [] for measure in MEASURES}
    for weights in chain([np.ones((1, len(names)))], left_out_weights(len(names), resamples, seed, columns=len(label))):
        by_fold = [_of_fold(label, score, right, member, fold == each, weights) for each in np.unique(fold)]
        for measure in MEASURES:
            by_block[measure].append(np.stack([values[measure] for values in by_fold]))
    sizes = _sizes(label > 0, member, fold, len(names))
    return {measure: _mean(np.concatenate(values, axis=1), sizes[measure]) for measure, values in by_block.items()}


def _sizes(anemic: NDArray[np.bool_], member: NDArray[Any], fold: NDArray[Any], n_groups: int) -> dict[str, Sizes]:
    """What the groups say about the mean over folds of each measure; every fold has the same weight in it."""
    folds = [fold == each for each in np.unique(fold)]
    classes = [~anemic, anemic]
    parts = {"auroc": [rows & each for rows in folds for each in classes], "accuracy": folds}
    fewest = {"auroc": classes, "accuracy": [fold == fold]}
    return {
        measure: Sizes(
            sizes_of(member, n_groups, *parts[measure]).effective, sizes_of(member, n_groups, *fewest[measure]).fewest
        )
        for measure in MEASURES
    }


def _mean(values: Floats, sizes: Sizes) -> Resampled:
    """From (folds, 1 + K), all images and without each group, to the means over the folds that define each."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    means = np.where(counts > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    return Resampled(float(means[0]), means[1:], sizes)


def _of_fold(
    label: NDArray[Any], score: Floats, right: Floats, member: NDArray[Any], rows: NDArray[np.bool_], weights: Floats
) -> dict[str, Floats]:
    """Both measures of one fold's images under (R, groups) weights, (R,) each."""
    images = weights[:, member[rows]]
    with np.errstate(invalid="ignore"):
        accuracy = (images @ right[rows]) / images.sum(axis=1)
    return {"auroc": weighted_aurocs(label[rows], score[rows], member[rows], weights), "accuracy": accuracy}
