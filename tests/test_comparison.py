"""Means over folds against scikit-learn; paired intervals on data whose difference is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from util.comparison import Resampled, over_folds


def made(seed, groups=60, each=3, folds=3):
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(groups), each)
    label = (np.arange(groups) % 2)[member]
    hard = rng.normal(0, 1, groups)[member]
    return label, hard + rng.normal(0, 0.3, len(label)), [f"g{m}" for m in member], member % folds


def test_a_figure_is_the_mean_over_folds_of_scikit_learns():
    label, noise, group, fold = made(0)
    logit = noise + label - 0.5
    found = over_folds(label, logit, group, fold, resamples=10)
    pairs = [(label[fold == f], logit[fold == f]) for f in range(3)]
    assert found["auroc"].value == pytest.approx(np.mean([roc_auc_score(y, z) for y, z in pairs]))
    assert found["accuracy"].value == pytest.approx(np.mean([accuracy_score(y, z > 0) for y, z in pairs]))


def test_a_resample_is_the_figure_of_the_images_drawn():
    """Against the metric of the images written out as often as their group was drawn."""
    label, noise, group, fold = made(1)
    logit = noise + label - 0.5
    found = over_folds(label, logit, group, fold, resamples=5, seed=3)
    from util.metrics import group_index, group_weights

    names, member = group_index(group)
    weights = np.concatenate(list(group_weights(len(names), 5, 3)))
    for index, weight in enumerate(weights):
        rows = np.repeat(np.arange(len(label)), weight[member].astype(int))
        expected = [roc_auc_score(label[rows][fold[rows] == f], logit[rows][fold[rows] == f]) for f in range(3)]
        assert found["auroc"].resamples[index] == pytest.approx(np.mean(expected))


def test_a_paired_difference_is_surer_than_two_figures():
    """Both find the same images hard, so the difference varies far less than either."""
    label, noise, group, fold = made(2)
    better, worse = (over_folds(label, noise + k * (label - 0.5), group, fold)["auroc"] for k in (1.5, 1.0))
    difference = better - worse
    low, high = difference.interval
    assert low > 0
    assert high - low < 0.5 * (better.interval[1] - better.interval[0])
    assert difference.value == pytest.approx(better.value - worse.value)


def test_the_mean_of_seeds_averages_resample_by_resample():
    one, two = Resampled(0.8, np.array([0.7, 0.9])), Resampled(0.6, np.array([0.5, 0.7]))
    mean = Resampled.mean([one, two])
    assert mean.value == pytest.approx(0.7) and mean.resamples == pytest.approx([0.6, 0.8])


def test_a_resample_without_a_class_in_a_fold_leaves_the_fold_out():
    label, logit = np.array([0, 1, 0, 1]), np.array([-1.0, 1.0, 1.0, -1.0])
    found = over_folds(label, logit, ["a", "b", "c", "d"], np.array([1, 1, 2, 2]), resamples=200)
    assert found["auroc"].value == pytest.approx(0.5)  # one fold right, one wrong
    seen = found["auroc"].resamples
    assert {0.0, 0.5, 1.0} >= set(seen[~np.isnan(seen)].tolist()) and {0.0, 1.0} <= set(seen.tolist())
