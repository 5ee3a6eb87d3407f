"""How far colour alone tells the classes apart: statistics of the stain, no shape, and a classifier of these.

A network that does no better than this may have learned the stain of two laboratories rather than cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from data.records import CLASS_NAMES
from util.cores import usable_cores
from util.errors import UserError
from util.metrics import classification_metrics

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.integer[Any]]

PERCENTILES = (5, 25, 50, 75, 95)
REGIONS = ("all", "background", "foreground")
CHANNELS = ("red", "green", "blue")
_BITS = 2
BINS = 2**_BITS  # of each channel in the colour histogram
_MOST_PIXELS = 12_000  # more add nothing to statistics that know no place
_FEW = 200  # images for which threads take longer to start than the trees to grow
_MOST_SAMPLES = 2_000  # drawn for each tree: keeps 12,000 images within seconds


@cache
def feature_names() -> tuple[str, ...]:
    """Name every number that ``colour_statistics`` gives, in its order."""
    kinds = [f"{what} {space}" for space in ("level", "density") for what in ("mean", "sd", "skew")]
    kinds += [f"percentile {percent} level" for percent in PERCENTILES]
    statistics = [f"{kind} {channel} {region}" for region in REGIONS for kind in kinds for channel in CHANNELS]
    cells = [f"share of colour {r}{g}{b}" for r in range(BINS) for g in range(BINS) for b in range(BINS)]
    return (*statistics, *cells)


def colour_statistics(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Describe the colours of a smear and nothing else: no place, shape or size of anything enters.

    Pixels are taken on a regular grid of at most about 12,000, and parted into background and foreground by Otsu's
    threshold (1979) of the green level, where haemoglobin absorbs most. Of the whole and of either part: mean, standard
    deviation and skewness of each channel, as level / 255 and as optical density -log10((level + 1) / 256), and
    percentiles of the level (those of the density are the same numbers on another scale). Then the shares of 4 x 4 x 4
    colours. A part without pixels is described by zeros.

    Args:
        rgb: uint8 (H, W, 3), at least one pixel.

    Returns:
        float32 (F,), in the order of ``feature_names``; always finite.

    Raises:
        ValueError: ``rgb`` is no uint8 array of that shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ValueError(f"expected uint8 (H, W, 3) with pixels, found {rgb.dtype} {rgb.shape}")
    step = max(1, int(np.ceil(np.sqrt(rgb.shape[0] * rgb.shape[1] / _MOST_PIXELS))))
    pixels = rgb[::step, ::step].reshape(-1, 3)
    dark = pixels[:, 1] <= otsu_level(np.bincount(pixels[:, 1], minlength=256))
    background, foreground = _level_counts(pixels, dark)
    statistics = _statistics(np.stack([foreground + background, background, foreground]))
    scaled = (pixels >> (8 - _BITS)).astype(np.intp)
    codes = (scaled[:, 0] * BINS + scaled[:, 1]) * BINS + scaled[:, 2]
    shares = np.bincount(codes, minlength=BINS**3) / len(pixels)
    return np.concatenate([statistics, shares]).astype(np.float32)


def _level_counts(pixels: npt.NDArray[np.uint8], dark: npt.NDArray[np.bool_]) -> Floats:
    """Count each level of each channel in the light and in the dark part: (N, 3) pixels to (2, 3, 256)."""
    codes = pixels + np.array([0, 256, 512], dtype=np.intp)
    codes += dark[:, None] * np.intp(768)
    return np.bincount(codes.ravel(), minlength=2 * 768).reshape(2, 3, 256).astype(np.float64)


def otsu_level(counts: npt.NDArray[np.integer[Any]]) -> int:
    """Otsu's threshold from counts of the 256 levels; the darker part is at or below it."""
    levels = np.arange(256)
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = sums / below - (sums[-1] - sums) / above
    return int(np.argmax(np.nan_to_num(below * above * apart**2, nan=0.0, posinf=0.0, neginf=0.0)))


def _statistics(counts: Floats) -> Floats:
    """Statistics of parts from their (parts, 3, 256) counts of levels: part by part, kind by kind, then by channel."""
    total = counts.sum(axis=-1, keepdims=True)
    weights = counts / np.maximum(total, 1)
    moments = [moment for scale in _scales() for moment in _moments(weights, scale)]
    cumulative = np.cumsum(counts, axis=-1)
    ranks = [np.argmax(cumulative >= total * (percent / 100), axis=-1) / 255 for percent in PERCENTILES]
    found = np.stack([*moments, *ranks], axis=1)
    found[total[:, 0, 0] == 0] = 0
    return np.asarray(found.ravel(), dtype=np.float64)


@cache
def _scales() -> Floats:
    """What the 256 levels stand for: themselves as shares, and optical densities, (2, 256)."""
    levels = np.arange(256)
    return np.stack([levels / 255, -np.log10((levels + 1) / 256)])


def _moments(weights: Floats, scale: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, standard deviation and skewness (0 where all is one level) of distributions (..., 256)."""
    mean = weights @ scale
    centred = scale - mean[..., None]
    squared = weights * centred**2
    deviation = np.sqrt(squared.sum(axis=-1))
    third = (squared * centred).sum(axis=-1)
    return mean, deviation, np.divide(third, deviation**3, out=np.zeros_like(mean), where=deviation > 1e-6)


class ColourBaseline:
    """A random forest (Breiman, 2001) on colour statistics; the same data and seed give the same forest.

    Args:
        seed: of the forest.
        trees: how many.
        jobs: threads that grow the trees; the result does not depend on them.
    """

    def __init__(self, *, seed: int = 0, trees: int = 300, jobs: int | None = None) -> None:
        self.seed, self.trees, self.jobs = seed, trees, jobs or usable_cores()
        self._forest: Any = None

    def fit(self, features: npt.NDArray[np.floating[Any]], labels: Rows) -> ColourBaseline:
        """Learn from (N, F) features and (N,) labels 0 or 1, both classes weighing the same.

        Raises:
            UserError: only one class is there.
        """
        from sklearn.ensemble import RandomForestClassifier

        _check_classes(labels, "learn the colours of")
        samples = _MOST_SAMPLES if len(labels) > _MOST_SAMPLES else None
        self._forest = RandomForestClassifier(
            self.trees,
            min_samples_leaf=2,
            class_weight="balanced",
            max_samples=samples,
            random_state=self.seed,
            n_jobs=self.jobs if len(labels) > _FEW else 1,
        )
        self._forest.fit(features, labels)
        self._forest.n_jobs = 1  # threads would add the trees' votes in any order, and round differently each time
        return self

    def predict(self, features: npt.NDArray[np.floating[Any]]) -> Floats:
        """Give the probability of Anemic for each row of (N, F) features, float64 (N,).

        Raises:
            ValueError: ``fit`` was not called.
        """
        if self._forest is None:
            raise ValueError("fit first")
        return np.asarray(self._forest.predict_proba(features)[:, 1], dtype=np.float64)


@dataclass(frozen=True)
class ColourScore:
    """How well colour alone told the classes apart.

    Attributes:
        probability: (N,) probability of Anemic of each image, by a forest that saw none of its group.
        metrics: as ``util.metrics.classification_metrics`` gives them, with intervals over groups.
        folds: how many forests were grown; 0 where one forest was tested on other images.
    """

    probability: Floats
    metrics: dict[str, Any]
    folds: int


def cross_validated(
    features: npt.NDArray[np.floating[Any]],
    labels: Rows,
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    trees: int = 300,
    step: Callable[[], object] | None = None,
) -> ColourScore:
    """Score the colour classifier on folds that part no group and balance the classes (StratifiedGroupKFold).

    Args:
        features: (N, F) colour statistics.
        labels: (N,) 0 or 1.
        groups: N names; images of one group stand in one fold.
        folds: how many, at least 2.
        seed: of the folds, the forests and the intervals.
        trees: of each forest.
        step: called after each fold.

    Returns:
        Out-of-fold probabilities and their metrics.

    Raises:
        UserError: fewer groups than folds in a class, or one class only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.asarray(labels)
    _check_classes(labels, "cross-validate")
    _check_enough(labels, groups, folds)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    probability = np.full(len(labels), np.nan)
    for train, test in splitter.split(features, labels, groups):
        probability[test] = (
            ColourBaseline(seed=seed, trees=trees).fit(features[train], labels[train]).predict(features[test])
        )
        if step:
            step()
    return ColourScore(probability, classification_metrics(labels, probability, groups, seed=seed), folds)


def held_out(
    train_features: npt.NDArray[np.floating[Any]],
    train_labels: Rows,
    test_features: npt.NDArray[np.floating[Any]],
    test_labels: Rows,
    test_groups: Sequence[str],
    *,
    seed: int = 0,
    trees: int = 300,
) -> ColourScore:
    """Fit the colour classifier on the training images and score it on others, as a network is.

    Args:
        train_features: (N, F) colour statistics.
        train_labels: (N,) 0 or 1, both present.
        test_features: (M, F).
        test_labels: (M,) 0 or 1.
        test_groups: M names for the intervals.
        seed: of the forest and the intervals.
        trees: of the forest.

    Returns:
        (M,) probabilities and their metrics; ``metrics`` is what stands in metrics.json as ``baselines.colour``.

    Raises:
        UserError: the training images are of one class.
    """
    forest = ColourBaseline(seed=seed, trees=trees).fit(train_features, np.asarray(train_labels))
    probability = forest.predict(test_features) if len(test_features) else np.empty(0)
    return ColourScore(probability, classification_metrics(test_labels, probability, test_groups, seed=seed), 0)


def _check_classes(labels: Rows, verb: str) -> None:
    """Refuse to learn from one class."""
    found = sorted(set(np.asarray(labels).tolist()))
    if found != [0, 1]:
        names = ", ".join(CLASS_NAMES[label] for label in found) or "no labelled image"
        raise UserError(
            f"cannot {verb} one class",
            expected=f"images of {' and '.join(CLASS_NAMES)}",
            found=names,
            remedy="add labelled smears of the other class",
        )


def _check_enough(labels: Rows, groups: Sequence[str], folds: int) -> None:
    """Refuse folds that cannot each hold a group of each class."""
    if folds < 2:
        raise UserError(f"{folds} fold", expected="2 or more", remedy="raise --folds")
    for label, name in enumerate(CLASS_NAMES):
        count = len({group for group, one in zip(groups, labels, strict=True) if one == label})
        if count < folds:
            raise UserError(
                f"too few groups of {name} to cross-validate",
                expected=f"at least {folds}, one in each fold",
                found=str(count),
                remedy="lower --folds, or add smears of other patients",
            )
