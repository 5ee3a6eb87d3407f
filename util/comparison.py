"""Comparing classifiers that were tested on the same folds: means over folds, and intervals of paired differences.

Groups are resampled, never images (see ``util.metrics``), the same groups for every classifier, so that the interval of
a difference leaves out what made the images hard for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.metrics import group_index, group_weights, weighted_aurocs

Floats = NDArray[np.float64]
MEASURES = ("auroc", "accuracy")


@dataclass(frozen=True)
class Resampled:
    """A figure and what it becomes under resampling of the groups.

    Attributes:
        value: of the images as they are.
        resamples: (R,), the same groups in the same order for every figure of the same images.
    """

    value: float
    resamples: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% percentile interval."""
        low, high = np.nanpercentile(self.resamples, [2.5, 97.5])
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Plain ``value`` and ``ci95``; None where the figure, or half of its resamples, is undefined."""
        known = self.resamples[~np.isnan(self.resamples)]
        defined = not np.isnan(self.value)
        sound = defined and self.resamples.size > 0 and 2 * known.size >= self.resamples.size
        return {"value": float(self.value) if defined else None, "ci95": list(self.interval) if sound else None}

    def __sub__(self, other: Resampled) -> Resampled:
        """The paired difference."""
        return Resampled(self.value - other.value, self.resamples - other.resamples)

    @staticmethod
    def mean(parts: Sequence[Resampled]) -> Resampled:
        """The mean of figures of the same images, such as those of several seeds."""
        values, resamples = [part.value for part in parts], np.stack([part.resamples for part in parts])
        return Resampled(float(np.mean(values)), resamples.mean(axis=0))


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
        resamples: how many; equal labels, groups and seeds draw equal groups.
        seed: of the resampling.

    Returns:
        ``auroc`` and ``accuracy``. A resample that leaves a class out of a fold leaves that fold out of its mean.
    """
    names, member = group_index(group)
    label, score, fold = np.asarray(label), np.asarray(score, dtype=np.float64), np.asarray(fold)
    right = ((score > threshold) == (label > 0)).astype(np.float64)
    by_block: dict[str, list[Floats]] = {measure: [] for measure in MEASURES}
    for weights in chain([np.ones((1, len(names)))], group_weights(len(names), resamples, seed, columns=len(label))):
        by_fold = [_of_fold(label, score, right, member, fold == each, weights) for each in np.unique(fold)]
        for measure in MEASURES:
            by_block[measure].append(_mean_of_known(np.stack([values[measure] for values in by_fold])))
    means = {measure: np.concatenate(values) for measure, values in by_block.items()}
    return {measure: Resampled(float(values[0]), values[1:]) for measure, values in means.items()}


def _of_fold(
    label: NDArray[Any], score: Floats, right: Floats, member: NDArray[Any], rows: NDArray[np.bool_], weights: Floats
) -> dict[str, Floats]:
    """Both measures of one fold's images under (R, groups) weights, (R,) each."""
    images = weights[:, member[rows]]
    with np.errstate(invalid="ignore"):
        accuracy = (images @ right[rows]) / images.sum(axis=1)
    return {"auroc": weighted_aurocs(label[rows], score[rows], member[rows], weights), "accuracy": accuracy}


def _mean_of_known(values: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
