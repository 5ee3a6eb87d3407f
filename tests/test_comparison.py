"""Means over folds against scikit-learn; paired intervals on data whose difference is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from util.comparison import Resampled, over_folds
from util.intervals import Sizes


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


def test_what_is_left_out_is_the_figure_of_the_other_images():
    label, noise, group, fold = made(1)
    logit = noise + label - 0.5
    found = over_folds(label, logit, group, fold)
    names = np.array(group)
    assert len(found["auroc"].left_out) == 60
    for name, value in zip(sorted(set(group)), found["auroc"].left_out, strict=True):
        kept = [(names != name) & (fold == f) for f in range(3)]
        expected = [roc_auc_score(label[rows], logit[rows]) for rows in kept]
        assert value == pytest.approx(np.mean(expected))


def test_a_paired_difference_is_surer_than_two_figures():
    """Both find the same images hard, so the difference varies far less than either."""
    label, noise, group, fold = made(2)
    better, worse = (over_folds(label, noise + k * (label - 0.5), group, fold)["auroc"] for k in (1.5, 1.0))
    difference = better - worse
    low, high = difference.interval
    assert low > 0
    assert high - low < 0.5 * (better.interval[1] - better.interval[0])
    assert difference.value == pytest.approx(better.value - worse.value)


SIZES = Sizes(20.0, 10.0)


def test_the_mean_of_seeds_averages_group_by_group():
    one, two = Resampled(0.8, np.array([0.7, 0.9]), SIZES), Resampled(0.6, np.array([0.5, 0.7]), SIZES)
    mean = Resampled.mean([one, two])
    assert mean.value == pytest.approx(0.7) and mean.left_out == pytest.approx([0.6, 0.8])
    pairs = Resampled.mean([one - two, one - two])
    assert pairs.value == pytest.approx(0.2) and pairs.interval == (one - two).interval
    with pytest.raises(ValueError, match="difference of differences"):
        (one - two) - two


def test_a_fold_that_loses_a_class_with_a_group_goes_with_it():
    label, logit = np.array([0, 1, 0, 1, 0, 1]), np.array([-1.0, 1.0, 1.0, -1.0, 0.0, 0.0])
    fold = np.array([1, 1, 2, 2, 3, 3])
    found = over_folds(label, logit, list("abcdef"), fold)["auroc"]
    assert found.value == 0.5  # a fold right, one wrong, one tied
    np.testing.assert_allclose(found.left_out, [0.25, 0.25, 0.75, 0.75, 0.5, 0.5])
    assert found.interval[0] < 0.5 < found.interval[1]


def test_one_fold_that_a_group_alone_speaks_for_leaves_no_interval_of_its_ranking():
    found = over_folds(np.array([0, 1, 1]), np.array([-1.0, 1.0, 2.0]), ["a", "b", "c"], np.array([1, 1, 1]))
    assert found["auroc"].as_dict() == {"value": 1.0, "ci95": None}
    assert found["accuracy"].interval is not None


def test_folds_weigh_alike_in_what_the_groups_say():
    """Ten groups in one fold and two in another: each fold is half of the mean, so two groups say most of it."""
    label, fold = np.tile([0, 1], 12), np.repeat([1, 2], [20, 4])
    group = [f"g{i // 2}" for i in range(24)]
    found = over_folds(label, np.where(label == 1, 1.0, -1.0), group, fold)
    shares = np.repeat([2 / 20**2, 2 / 4**2], [10, 2])
    assert found["accuracy"].sizes.effective == pytest.approx(shares.sum() ** 2 / (shares**2).sum())
    assert found["accuracy"].sizes.fewest == pytest.approx(12)
