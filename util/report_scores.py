"""Figures beside the plain metrics: where Anemic begins, verdicts of whole groups, the margin over baselines.

The operating point is chosen on validation images and only read off on the test images: a threshold chosen on what it
is judged by looks better than it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from util.comparison import over_folds
from util.metrics import THRESHOLD, classification_metrics, effective_groups, metrics_at

Floats = NDArray[np.float64]

HALF, YOUDEN, SPECIFICITY = "half", "youden", "specificity"
BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"


class Judged(NamedTuple):
    """The labelled images of one side.

    Attributes:
        label: (N,) 0 or 1.
        probability: (N,) by head; a tier that was not trained is absent.
        group: N names.
        patient: N names, empty where the data do not say.
    """

    label: NDArray[np.int64]
    probability: Mapping[str, Floats]
    group: Sequence[str]
    patient: Sequence[str]


def specificity_asked(rule: str) -> float | None:
    """The specificity in ``specificity=0.9``; None for the other rules.

    Raises:
        ValueError: no such rule.
    """
    if rule in (HALF, YOUDEN):
        return None
    name, _, number = rule.partition("=")
    if name != SPECIFICITY or not number or not 0 < float(number) < 1:
        raise ValueError("must be half, youden or a specificity between 0 and 1 such as specificity=0.9")
    return float(number)


def chosen_threshold(label: NDArray[Any], probability: NDArray[Any], rule: str) -> float:
    """What a probability must exceed to be called Anemic, by the rule, on these images.

    Youden's rule maximises sensitivity + specificity - 1 (Youden, Cancer 3, 1950); a fixed specificity takes the
    highest sensitivity at which at least that share of the healthy images is called Healthy. The threshold lies half
    way between the lowest probability that is called Anemic and the one below it; among equals that nearest to 0.5.

    Args:
        label: (N,) 0 or 1, both present.
        probability: (N,).
        rule: "half", "youden" or "specificity=X".
    """
    from sklearn.metrics import roc_curve

    asked = specificity_asked(rule)
    if rule == HALF:
        return THRESHOLD
    false_rate, true_rate, lowest = roc_curve(label, probability, drop_intermediate=False)
    allowed = 1.0 if asked is None else 1 - asked + 1e-12
    gain = np.where(false_rate <= allowed, true_rate - (false_rate if asked is None else 0), -1.0)
    levels = np.unique(np.concatenate([[0.0, 1.0], np.asarray(probability, dtype=np.float64)]))
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    if asked is not None:
        best = best[false_rate[best] == false_rate[best].min()]
    between = [_below(levels, lowest[index]) for index in best]
    return float(min(between, key=lambda value: abs(value - THRESHOLD)))


def _below(levels: Floats, lowest: float) -> float:
    """Half way from a probability that is called Anemic to the next one below; 1 where none is called so.

    Of two neighbours in floating point the middle is one of them: what it must not be is the one that is called.
    """
    if not np.isfinite(lowest) or lowest > 1:
        return 1.0
    index = int(np.searchsorted(levels, lowest))
    if not index:
        return -1e-9  # all are called, those of 0 too
    below, above = float(levels[index - 1]), float(levels[index])
    middle = (below + above) / 2
    return middle if middle < above else below


def operating_point(rule: str, sides: Mapping[str, Judged], *, resamples: int, seed: int) -> dict[str, Any]:
    """Choose the threshold of each head on the validation side and score every side there.

    Args:
        rule: "half", "youden" or "specificity=X".
        sides: the labelled images by side; validation is "val".
        resamples: so many groups at most are left out one at a time.
        seed: of the intervals.

    Returns:
        rule, chosen_on ("val", or None for "half" and where nothing could be chosen), why_not (in words, or None), n,
        n_groups, thresholds {head: threshold} and splits {side: {head: ``metrics_at``}}.
    """
    val = sides.get("val")
    why_not = None if rule == HALF else _why_not(val)
    found: dict[str, Any] = {"rule": rule, "chosen_on": None, "why_not": why_not, "n": None, "n_groups": None}
    if why_not is not None:
        return {**found, "thresholds": {}, "splits": {}}
    if rule == HALF or val is None:
        heads = {head for side in sides.values() for head in side.probability}
        thresholds = dict.fromkeys(sorted(heads), THRESHOLD)
    else:
        found |= {"chosen_on": "val", "n": len(val.label), "n_groups": len(set(val.group))}
        thresholds = {head: chosen_threshold(val.label, chance, rule) for head, chance in val.probability.items()}
    splits = {
        name: {
            head: metrics_at(side.label, chance, side.group, thresholds[head], resamples=resamples, seed=seed)
            for head, chance in side.probability.items()
        }
        for name, side in sides.items()
    }
    return {**found, "thresholds": thresholds, "splits": splits}


def _why_not(val: Judged | None) -> str | None:
    """Why no operating point can be chosen on the validation images; None where one can."""
    if val is None:
        return "the validation images were not judged (--splits)"
    if len(set(val.label.tolist())) < 2:
        return "the labelled validation images are not of both classes"
    return None


def unit_verdicts(side: Judged, unit: Sequence[str], *, resamples: int, seed: int) -> dict[str, Any] | None:
    """Metrics of whole groups or patients: a unit's probability is the mean over its images.

    Args:
        side: labelled images.
        unit: the unit of each image; empty where it is not known.
        resamples: so many groups at most are left out one at a time.
        seed: of the intervals.

    Returns:
        head to ``classification_metrics`` over units, each with ``mixed``, the units left out because their images are
        of both classes, and ``single``, how many of those scored have one image; None where no unit is known.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(unit):
        if name:
            rows[name].append(index)
    if not rows:
        return None
    pure = [members for members in rows.values() if len(set(side.label[members].tolist())) == 1]
    label = np.array([side.label[members[0]] for members in pure], dtype=np.int64)
    group = [side.group[members[0]] for members in pure]
    single = sum(len(members) == 1 for members in pure)
    found = {}
    for head, chance in side.probability.items():
        mean = np.array([chance[members].mean() for members in pure], dtype=np.float64)
        scores = classification_metrics(label, mean, group, resamples=resamples, seed=seed)
        found[head] = {**scores, "mixed": len(rows) - len(pure), "single": single}
    return found


def difference(
    label: NDArray[Any], first: NDArray[Any], second: NDArray[Any], group: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any]:
    """How much better one classifier told the same images than another, with 95% intervals of the paired difference.

    Args:
        label: (N,) 0 or 1.
        first: (N,) its probability of Anemic.
        second: (N,) the other's.
        group: N names; the same groups are left out for both.
        resamples: so many groups at most are left out one at a time.
        seed: of the intervals.

    Returns:
        n, n_groups, n_groups_effective, auroc and accuracy (at 0.5), each {value, ci95}, and verdict: "better" where
        the interval of the AUROC's difference lies above 0, "worse" where below, else "not shown".
    """
    fold = np.zeros(len(label), dtype=np.int64)
    one, other = (
        over_folds(label, chance, group, fold, threshold=THRESHOLD, resamples=resamples, seed=seed)
        for chance in (first, second)
    )
    found: dict[str, Any] = {"n": len(label), "n_groups": len(set(group))}
    found["n_groups_effective"] = effective_groups(group)
    for measure in one:
        found[measure] = (one[measure] - other[measure]).as_dict()
    return {**found, "verdict": verdict_of(found["auroc"]["ci95"])}


def verdict_of(interval: Sequence[float] | None) -> str:
    """What an interval of a difference shows."""
    if interval is None:
        return NOT_SHOWN
    return BETTER if interval[0] > 0 else WORSE if interval[1] < 0 else NOT_SHOWN
