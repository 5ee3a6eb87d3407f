"""How well classes and masks were told: point values from scikit-learn, intervals by groups (``util.intervals``).

Whole groups are left out one at a time. Every figure but the AUROC and the average precision is a ratio of sums over
groups, so all of that is one product of a matrix of weights with per-group sums; these two are sums over the ranking,
weighted alike (the AUROC is the Mann-Whitney statistic).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.errors import UserError
from util.intervals import CELLS_PER_CHUNK, Sizes, interval, left_out_weights, sizes_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

THRESHOLD = 0.5  # a probability above it is called Anemic
ECE_BINS = 10
COUNT_METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "ece")
THRESHOLD_METRICS = COUNT_METRICS[:-1]  # those that depend on where Anemic begins
CLASSIFICATION_METRICS = (*THRESHOLD_METRICS, "auroc", "average_precision", "brier", "ece")
SEGMENTATION_METRICS = ("dice", "iou", "dice_mean")


def classification_metrics(
    label: NDArray[Any], probability: NDArray[Any], group: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score one head on one split, with 95% intervals by groups.

    An image is called Anemic where its probability exceeds 0.5. A metric that has nothing to divide by (sensitivity and
    F1 without an Anemic image, specificity without a Healthy one, precision where nothing is called Anemic, balanced
    accuracy, AUROC and average precision with one class only) is None. An interval is None where the metric is, where
    there are fewer than two groups, or where the metric is undefined without one of them.

    Args:
        label: (N,) integers, 1 = Anemic, 0 = Healthy.
        probability: (N,) probability of Anemic in [0, 1].
        group: N names; images with the same name are drawn together.
        resamples: so many groups at most are left out one at a time; more are dealt into so many parts. 0 leaves the
            intervals None.
        seed: of that deal.

    Returns:
        n, n_groups, n_groups_effective (see ``effective_groups``), groups_by_class (groups with a Healthy image, groups
        with an Anemic one), effective_by_class (``effective_groups`` of each class's images), accuracy,
        balanced_accuracy, sensitivity, specificity, precision, f1, auroc, average_precision (the step-wise area under
        the precision-recall curve), brier (mean squared error of the probability), ece, confusion_matrix
        [[tn, fp], [fn, tp]] and ci95 {metric: [low, high] or None}, all in plain Python types.

    Raises:
        ValueError: the three lengths differ, or a label is neither 0 nor 1.
        UserError: a probability is not a number from 0 to 1.
    """
    truth, score = _checked(label, probability, group)
    names, member = group_index(group)
    called = (score > THRESHOLD).astype(np.int64)
    point = _called_values(truth, called) | _score_values(truth, score)
    left_out = _left_out(truth, score, member, len(names), resamples, seed)
    sizes = _sizes(truth, called, member, len(names))
    return {
        "n": int(truth.size),
        "n_groups": len(names),
        "n_groups_effective": effective_groups(group),
        "groups_by_class": [len(set(member[truth == each].tolist())) for each in (0, 1)],
        "effective_by_class": [effective_groups(member[truth == each].tolist()) for each in (0, 1)],
        **point,
        "confusion_matrix": _confusion(truth, called).tolist(),
        "ci95": {key: interval(point[key], left_out[key], sizes[key]) for key in CLASSIFICATION_METRICS},
    }


def metrics_at(
    label: NDArray[Any],
    probability: NDArray[Any],
    group: Sequence[str],
    threshold: float,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score the calls of a head at another threshold than 0.5: what is Anemic is what exceeds it.

    Args:
        label: (N,) integers, 1 = Anemic, 0 = Healthy.
        probability: (N,) probability of Anemic in [0, 1].
        group: N names.
        threshold: what a probability must exceed.
        resamples: so many groups at most are left out one at a time, see ``classification_metrics``.
        seed: of the intervals.

    Returns:
        threshold, the ``THRESHOLD_METRICS``, confusion_matrix and ci95, as in ``classification_metrics``.

    Raises:
        ValueError, UserError: as ``classification_metrics``.
    """
    truth, score = _checked(label, probability, group)
    names, member = group_index(group)
    called = (score > threshold).astype(np.int64)
    point = _called_values(truth, called)
    counts = _sum_by_group(_cells(truth, called), member, len(names))
    kept = [counts[:0]] + [weight @ counts for weight in left_out_weights(len(names), resamples, seed)]
    left_out, sizes = _count_ratios(np.concatenate(kept)), _sizes(truth, called, member, len(names))
    ci95 = {key: interval(point[key], left_out[key], sizes[key]) for key in THRESHOLD_METRICS}
    matrix = _confusion(truth, called).tolist()
    return {"threshold": float(threshold), **point, "confusion_matrix": matrix, "ci95": ci95}


def expected_calibration_error(truth: NDArray[Any], score: NDArray[Any], bins: int = ECE_BINS) -> float | None:
    """Expected calibration error: sum over bins of (n_bin / N) * |accuracy(bin) - mean confidence(bin)|.

    Confidence is the probability of the class that is called, max(p, 1 - p), in equal-width bins
    ((m - 1) / bins, m / bins]. Source: Naeini, Cooper and Hauskrecht, AAAI 2015; in this form Guo et al., ICML 2017,
    equations 3 and 5. Few images raise it (nearly empty bins lend noise), which its interval does not mend. Computed
    here rather than by a library, so that point and interval come from the same sums.

    Args:
        truth: (N,) integers, 1 = Anemic.
        score: (N,) probability of Anemic.
        bins: number of bins over [0, 1].

    Returns:
        the error in [0, 1], or None for N = 0.
    """
    if not len(truth):
        return None
    sums = _calibration_sums(
        np.asarray(truth), np.asarray(score, dtype=np.float64), np.zeros(len(truth), np.int64), 1, bins
    )
    return float(_ece_of(sums)[0])


def common_pixels(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> tuple[int, int]:
    """How many pixels two masks share, and how many both have together.

    Raises:
        ValueError: the masks are not bool or differ in shape.
    """
    if predicted.shape != true.shape or predicted.dtype != bool or true.dtype != bool:
        found = f"{predicted.dtype}{predicted.shape} and {true.dtype}{true.shape}"
        raise ValueError(f"masks must be bool arrays of one shape, not {found}")
    return int(np.count_nonzero(predicted & true)), int(predicted.sum()) + int(true.sum())


def dice_of(common: int, total: int) -> float:
    """Dice of one pair of masks; two empty ones agree (1.0)."""
    return 2 * common / total if total else 1.0


class SegmentationScore:
    """Dice and IoU of masks that come one pair at a time; only four numbers per image are kept.

    Pooled figures sum pixels over all images; ``dice_mean`` averages the images' own Dice, where two empty masks agree
    (1.0).

    Example:
        >>> score = SegmentationScore()
        >>> score.update(np.array([[True, True]]), np.array([[True, False]]))
        >>> round(score.result()["dice"], 3)
        0.667
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, int]] = []
        self._groups: list[str] = []

    def update(self, predicted: NDArray[np.bool_], true: NDArray[np.bool_], group: str | None = None) -> float:
        """Add one image.

        Args:
            predicted: (H, W) bool.
            true: (H, W) bool.
            group: name of the image's group; an image without one is a group of its own.

        Returns:
            the image's own Dice.

        Raises:
            ValueError: the masks are not bool or differ in shape.
        """
        return self.add(*common_pixels(predicted, true), group)

    def add(self, common: int, total: int, group: str | None = None) -> float:
        """Add one image by its pixels, as ``common_pixels`` counts them; see ``update``."""
        self._groups.append(f"\0{len(self._sums)}" if group is None else group)  # NUL: no file can bear that name
        self._sums.append((common, total))
        return dice_of(common, total)

    def result(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
        """Pooled and mean figures with 95% intervals over groups.

        Args:
            resamples: so many groups at most are left out one at a time, see ``classification_metrics``.
            seed: of the intervals.

        Returns:
            n, n_groups, n_groups_effective, dice, iou (both pooled), dice_mean, and ci95 of the three; None where
            undefined.
        """
        names, member = group_index(self._groups)
        sums = np.array(self._sums, dtype=np.float64).reshape(-1, 2)
        own = np.divide(2 * sums[:, 0], sums[:, 1], out=np.ones(len(sums)), where=sums[:, 1] > 0)
        per_group = _sum_by_group(np.column_stack([sums, own, np.ones(len(sums))]), member, len(names))
        point = {key: _plain(value[0]) for key, value in _segmentation_ratios(per_group.sum(axis=0)[None]).items()}
        kept = [per_group[:0]] + [weight @ per_group for weight in left_out_weights(len(names), resamples, seed)]
        left_out, sizes = _segmentation_ratios(np.concatenate(kept)), sizes_of(member, len(names), sums[:, 0] >= 0)
        ci95 = {key: interval(point[key], left_out[key], sizes) for key in SEGMENTATION_METRICS}
        counts = {"n": len(sums), "n_groups": len(names), "n_groups_effective": effective_groups(self._groups)}
        return {**counts, **point, "ci95": ci95}


def _segmentation_ratios(sums: Floats) -> dict[str, Floats]:
    """From (R, 4) sums of common pixels, both masks' pixels, own Dice and images to the three figures, (R,) each."""
    common, total, own, images = sums.T
    return {
        "dice": _ratio(2 * common, total),
        "iou": _ratio(common, total - common),
        "dice_mean": _ratio(own, images),
    }


def _checked(label: NDArray[Any], probability: NDArray[Any], group: Sequence[str]) -> tuple[Integers, Floats]:
    """The two arrays in one type each, or an error that says what is wrong with them."""
    truth, score = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != score.shape or len(group) != len(truth):
        raise ValueError(
            f"label {truth.shape}, probability {score.shape} and group ({len(group)},) must have one length"
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"a label must be 0 (Healthy) or 1 (Anemic), not {sorted(set(truth.tolist()) - {0, 1})[:3]}")
    wrong = ~((score >= 0) & (score <= 1))
    if wrong.any():
        raise UserError(
            f"{int(wrong.sum())} of {score.size} probabilities are not from 0 to 1",
            expected="a number from 0 to 1 for each image",
            found=f"{score[wrong][0]} at image {int(np.flatnonzero(wrong)[0])}",
            remedy="the network's weights have diverged: test an earlier epoch (--which_epoch) or lower --lr",
        )
    return truth.astype(np.int64), score


def group_index(group: Sequence[str]) -> tuple[list[str], Integers]:
    """Distinct names in sorted order, so that no interval depends on the order of images, and each image's index."""
    names = sorted(set(group))
    position = {name: index for index, name in enumerate(names)}
    return names, np.array([position[name] for name in group], dtype=np.int64)


def effective_groups(group: Sequence[Hashable]) -> float:
    """How many groups of equal size say as much as these: n^2 / sum of n_g^2; 0 for none."""
    sizes = list(Counter(group).values())
    return sum(sizes) ** 2 / sum(size**2 for size in sizes) if sizes else 0.0


def _confusion(truth: Integers, called: Integers) -> Integers:
    from sklearn.metrics import confusion_matrix

    if not truth.size:
        return np.zeros((2, 2), np.int64)
    counts: Integers = confusion_matrix(truth, called, labels=[0, 1])
    return counts


def _called_values(truth: Integers, called: Integers) -> dict[str, float | None]:
    """Point values of calls from scikit-learn, None where the metric's denominator is empty."""
    from sklearn import metrics

    anemic, healthy = bool((truth == 1).any()), bool((truth == 0).any())
    return {
        "accuracy": _when(truth.size > 0, metrics.accuracy_score, truth, called),
        "balanced_accuracy": _when(anemic and healthy, metrics.balanced_accuracy_score, truth, called),
        "sensitivity": _when(anemic, metrics.recall_score, truth, called),
        "specificity": _when(healthy, metrics.recall_score, 1 - truth, 1 - called),
        "precision": _when(bool(called.any()), metrics.precision_score, truth, called, zero_division=0),
        "f1": _when(anemic, metrics.f1_score, truth, called),
    }


def _score_values(truth: Integers, score: Floats) -> dict[str, float | None]:
    """Point values of probabilities, likewise."""
    from sklearn import metrics

    both = bool((truth == 1).any() and (truth == 0).any())
    return {
        "auroc": _when(both, metrics.roc_auc_score, truth, score),
        "average_precision": _when(both, metrics.average_precision_score, truth, score),
        "brier": _when(truth.size > 0, metrics.brier_score_loss, truth, score, pos_label=1),
        "ece": expected_calibration_error(truth, score),
    }


def _when(defined: bool, metric: Any, *arrays: Any, **options: Any) -> float | None:
    return float(metric(*arrays, **options)) if defined else None


def _left_out(
    truth: Integers, score: Floats, member: Integers, n_groups: int, resamples: int, seed: int
) -> dict[str, Floats]:
    """Every metric without each group, (K,) each, NaN where what is left does not define it."""
    counts = _sum_by_group(_cells(truth, score > THRESHOLD), member, n_groups)
    calibration = _calibration_sums(truth, score, member, n_groups, ECE_BINS)
    squared = _sum_by_group(np.column_stack([(score - truth) ** 2, np.ones(len(truth))]), member, n_groups)
    ranks = _WeightedRanks(truth, score, member)
    chunks: dict[str, list[Floats]] = {key: [np.empty(0)] for key in CLASSIFICATION_METRICS}
    for weight in left_out_weights(n_groups, resamples, seed, columns=len(truth)):
        values = _count_ratios(weight @ counts)
        values["ece"] = _ece_of(np.tensordot(weight, calibration, axes=1))
        values["auroc"], values["average_precision"] = ranks.areas(weight)
        values["brier"] = _ratio(*(weight @ squared).T)
        for key, value in values.items():
            chunks[key].append(value)
    return {key: np.concatenate(parts) for key, parts in chunks.items()}


def _sizes(truth: Integers, called: Integers, member: Integers, n_groups: int) -> dict[str, Sizes]:
    """What the groups say about each metric: of both classes, of one, of the images called Anemic, or of all."""
    healthy, anemic = truth == 0, truth == 1
    one = {"sensitivity": anemic, "specificity": healthy, "precision": called == 1, "f1": anemic}
    found = dict.fromkeys(CLASSIFICATION_METRICS, sizes_of(member, n_groups, truth >= 0))
    found |= {key: sizes_of(member, n_groups, rows) for key, rows in one.items()}
    both = sizes_of(member, n_groups, healthy, anemic)
    return found | dict.fromkeys(("balanced_accuracy", "auroc", "average_precision"), both)


def _cells(truth: Integers, called: NDArray[Any]) -> Floats:
    """(N, 4) float64, which of tn, fp, fn, tp each image is."""
    return np.column_stack([(truth == t) & (called == c) for t in (0, 1) for c in (0, 1)]).astype(np.float64)


def _sum_by_group(values: Floats, member: Integers, n_groups: int) -> Floats:
    """(N, K) values summed within groups to (n_groups, K)."""
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, member, values)
    return sums


def _count_ratios(cells: Floats) -> dict[str, Floats]:
    """From (R, 4) counts tn, fp, fn, tp to the metrics that are ratios of them."""
    tn, fp, fn, tp = cells.T
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": _ratio(tn + tp, tn + fp + fn + tp),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": _ratio(tp, tp + fp),
        "f1": np.where(tp + fn > 0, _ratio(2 * tp, 2 * tp + fp + fn), np.nan),
    }


def _calibration_sums(truth: NDArray[Any], score: Floats, member: Integers, n_groups: int, bins: int) -> Floats:
    """(n_groups, bins, 3): images, images called right and summed confidence of each bin."""
    confidence = np.maximum(score, 1 - score)
    right = (score > THRESHOLD) == (truth == 1)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    sums = np.zeros((n_groups, bins, 3))
    np.add.at(sums, (member, index), np.column_stack([np.ones(len(score)), right, confidence]))
    return sums


def _ece_of(sums: Floats) -> Floats:
    """(R, bins, 3) sums to (R,) errors: the bin's size cancels, so |right - confidence| is summed and divided by N."""
    return _ratio(np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1), sums[..., 0].sum(axis=-1))


def weighted_aurocs(truth: Integers, score: NDArray[Any], member: Integers, weights: Floats) -> Floats:
    """AUROC of one ranking under many weightings of its groups.

    Args:
        truth: (N,) 0 or 1.
        score: (N,), higher for 1.
        member: (N,) the column of ``weights`` that each image's group has.
        weights: (R, groups).

    Returns:
        (R,), NaN where a class has no weight.
    """
    ranks = _WeightedRanks(np.asarray(truth), np.asarray(score, dtype=np.float64), member)
    rows = max(1, CELLS_PER_CHUNK // max(1, len(member)))
    return np.concatenate([ranks.areas(weights[start : start + rows])[0] for start in range(0, len(weights), rows)])


class _WeightedRanks:
    """The areas under the curves of one ranking, under many weightings of its images: sorted once for all of them."""

    def __init__(self, truth: Integers, score: Floats, member: Integers) -> None:
        order = np.argsort(score, kind="stable")
        ranked = score[order]
        self._member, self._anemic = member[order], truth[order].astype(np.float64)
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if ranked.size else np.empty(0, np.int64)

    def areas(self, weight: Floats) -> tuple[Floats, Floats]:
        """AUROC and average precision under (R, groups) weights, (R,) each, NaN without both classes.

        The AUROC is P(anemic above healthy) + P(tied) / 2; the average precision is the sum over distinct scores of the
        share of anemic images there, times the precision of calling all from there on up.
        """
        images = weight[:, self._member]
        anemic = np.add.reduceat(images * self._anemic, self._starts, axis=1)
        healthy = np.add.reduceat(images * (1 - self._anemic), self._starts, axis=1)
        below = np.cumsum(healthy, axis=1) - healthy
        wins = (anemic * (below + healthy / 2)).sum(axis=1)
        total, rest = anemic.sum(axis=1), healthy.sum(axis=1)
        true = total[:, None] - np.cumsum(anemic, axis=1) + anemic  # called Anemic from here on up, rightly
        precision = np.nan_to_num(_ratio(true, true + rest[:, None] - below))
        area = np.where(rest > 0, _ratio((anemic * precision).sum(axis=1), total), np.nan)
        return _ratio(wins, total * rest), area


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Element-wise quotient, NaN where the denominator is zero."""
    empty = np.full(np.shape(denominator), np.nan)
    quotient: Floats = np.divide(numerator, denominator, out=empty, where=np.asarray(denominator) > 0)
    return quotient


def _plain(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
