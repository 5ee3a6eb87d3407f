"""Metrics against scikit-learn, torchmetrics, cases computed by hand, and a jackknife written the slow, obvious way."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sk

from util.errors import UserError
from util.metrics import (
    CLASSIFICATION_METRICS,
    THRESHOLD_METRICS,
    SegmentationScore,
    classification_metrics,
    effective_groups,
    expected_calibration_error,
    metrics_at,
)


def by_the_book(label, probability):
    """Every metric from scikit-learn and torchmetrics, NaN where a class or a call is absent."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    called = (probability > 0.5).astype(int)
    both = len(set(label.tolist())) == 2
    anemic, healthy = (label == 1).any(), (label == 0).any()
    two_columns = torch.from_numpy(np.stack([1 - probability, probability], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": sk.accuracy_score(label, called),
            "balanced_accuracy": sk.balanced_accuracy_score(label, called) if both else np.nan,
            "sensitivity": sk.recall_score(label, called, pos_label=1) if anemic else np.nan,
            "specificity": sk.recall_score(label, called, pos_label=0) if healthy else np.nan,
            "precision": sk.precision_score(label, called, zero_division=np.nan),
            "f1": sk.f1_score(label, called) if anemic else np.nan,
            "auroc": sk.roc_auc_score(label, probability) if both else np.nan,
            "average_precision": sk.average_precision_score(label, probability) if both else np.nan,
            "brier": sk.brier_score_loss(label, probability, pos_label=1),
            "ece": float(multiclass_calibration_error(two_columns, torch.from_numpy(label), num_classes=2, n_bins=10)),
        }


def made_up(rng, n=90, groups=17, decimals=4):
    label = rng.integers(0, 2, n)
    probability = np.round(np.clip(0.3 * label + 0.7 * rng.random(n), 0, 1), decimals)
    return label, probability, [f"g{i}" for i in rng.integers(0, groups, n)]


def test_point_values_match_the_libraries(rng):
    for decimals in (1, 4):  # one decimal makes many ties, also at 0.5, which is not above the threshold
        label, probability, group = made_up(rng, decimals=decimals)
        found = classification_metrics(label, probability, group, resamples=0)
        expected = by_the_book(label, probability)
        for key in set(CLASSIFICATION_METRICS) - {"ece"}:
            assert found[key] == pytest.approx(expected[key], abs=1e-12), key
        if decimals == 4:  # torchmetrics closes a bin on its other side: equal where no confidence is on an edge
            assert found["ece"] == pytest.approx(expected["ece"], abs=1e-6)
        assert found["confusion_matrix"] == sk.confusion_matrix(label, probability > 0.5).tolist()
        assert found["n_groups"] == len(set(group))


def test_calls_at_another_threshold(rng):
    label, probability, group = made_up(rng, n=60, groups=9, decimals=1)
    found = metrics_at(label, probability, group, 0.3, resamples=40, seed=7)
    moved = np.where(probability > 0.3, 0.9, 0.1)  # the same calls at 0.5
    same = classification_metrics(label, moved, group, resamples=40, seed=7)
    assert found["threshold"] == 0.3
    for key in THRESHOLD_METRICS:
        assert found[key] == same[key] and found["ci95"][key] == same["ci95"][key]
    assert found["confusion_matrix"] == sk.confusion_matrix(label, probability > 0.3).tolist()
    assert set(found) == {"threshold", "confusion_matrix", "ci95", *THRESHOLD_METRICS}


def logit_interval(value, left_out, effective):
    """The interval written out: jackknife, logit, Student's t."""
    error = np.sqrt((len(left_out) - 1) / len(left_out) * np.sum((left_out - np.mean(left_out)) ** 2))
    reach = stats.t.ppf(0.975, effective - 1) * error / (value * (1 - value))
    return special.expit(special.logit(value) + np.array([-reach, reach]))


def test_intervals_match_a_jackknife_written_out(rng):
    label, probability, group = made_up(rng, n=60, groups=9)
    probability = np.round(probability, 2) + 1e-4  # ties, but no confidence on a bin's edge
    found, names = classification_metrics(label, probability, group), np.array(group)
    left_out = [by_the_book(label[names != name], probability[names != name]) for name in sorted(set(group))]
    for key in set(CLASSIFICATION_METRICS) - {"sensitivity", "f1", "specificity", "precision"}:
        anemic, healthy = (np.array([(label[names == n] == c).sum() for n in sorted(set(group))]) for c in (1, 0))
        both = anemic / anemic.sum() ** 2 + healthy / healthy.sum() ** 2
        shares = both if key in ("auroc", "average_precision", "balanced_accuracy") else anemic + healthy
        effective = shares.sum() ** 2 / (shares**2).sum()
        expected = logit_interval(found[key], np.array([one[key] for one in left_out]), effective)
        assert found["ci95"][key] == pytest.approx(expected.tolist(), abs=2e-6), key
    called, sizes = probability > 0.5, {"sensitivity": label == 1, "specificity": label == 0, "f1": label == 1}
    for key, rows in {**sizes, "precision": called}.items():
        effective = effective_groups(names[rows].tolist())
        expected = logit_interval(found[key], np.array([one[key] for one in left_out]), effective)
        assert found["ci95"][key] == pytest.approx(expected.tolist(), abs=2e-6), key


def test_blocks_of_rows_do_not_change_the_figures(rng, monkeypatch):
    label, probability, group = made_up(rng)
    whole = classification_metrics(label, probability, group, resamples=50)
    monkeypatch.setattr("util.intervals.CELLS_PER_CHUNK", 7 * len(label))
    again = classification_metrics(label, probability, group, resamples=50)
    for key in CLASSIFICATION_METRICS:
        assert again["ci95"][key] == pytest.approx(whole["ci95"][key])


def test_intervals_are_over_groups_not_images(rng):
    """The same 20 patients with 50 equal tiles each are no better known than with one each."""
    label, probability = np.arange(20) % 2, np.clip(rng.random(20), 0.01, 0.99)
    group = [str(i) for i in range(20)]
    one = classification_metrics(label, probability, group)
    fifty = classification_metrics(
        np.repeat(label, 50), np.repeat(probability, 50), [g for g in group for _ in range(50)]
    )
    for key in CLASSIFICATION_METRICS:
        assert fifty["ci95"][key] == pytest.approx(one["ci95"][key], abs=1e-9), key


def test_one_group_that_alone_speaks_for_a_figure_leaves_it_without_an_interval():
    label, probability = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.6, 0.3, 0.9, 0.8])
    found = classification_metrics(label, probability, ["a", "b", "c", "d", "d"])
    assert found["sensitivity"] == 1.0 and found["ci95"]["sensitivity"] is None and found["ci95"]["auroc"] is None
    assert found["ci95"]["specificity"] is not None and found["ci95"]["accuracy"] is not None


def test_no_error_seen_leaves_room_for_one():
    """Of twelve groups, six of each class, none wrong: Wilson's interval of six of six, with Student's t of five."""
    label = np.arange(12) % 2
    found = classification_metrics(label, 0.1 + 0.8 * label, [str(i) for i in range(12)])
    ratio = stats.t.ppf(0.975, 5) ** 2 / 6
    assert found["ci95"]["sensitivity"] == pytest.approx([1 / (1 + ratio), 1.0])
    assert found["ci95"]["sensitivity"][0] < found["ci95"]["auroc"][0] < found["ci95"]["accuracy"][0] < 0.75
    assert found["ci95"]["accuracy"][1] == 1.0


def test_many_groups_are_dealt_into_parts(rng):
    label, probability, group = made_up(rng, n=900, groups=450)
    whole, dealt = (classification_metrics(label, probability, group, resamples=most) for most in (1000, 150))
    for key in ("auroc", "accuracy", "average_precision"):
        width, other = (np.diff(found["ci95"][key])[0] for found in (whole, dealt))
        assert other == pytest.approx(width, rel=0.25) and other != width
    assert dealt == classification_metrics(label, probability, group, resamples=150)


def test_a_case_by_hand():
    # called: H H A | A A H, one wrong on each side; anemic above healthy in 8 of 9 pairs
    label, probability = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.55, 0.9, 0.8, 0.45])
    found = classification_metrics(label, probability, list("abcdef"))
    assert found["confusion_matrix"] == [[2, 1], [1, 2]]
    assert found["accuracy"] == found["sensitivity"] == found["specificity"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx(8 / 9)
    # from the top: A A h A h h, so the three anemic images are found at precisions 1, 1 and 3 of 4
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["brier"] == pytest.approx(np.mean((probability - label) ** 2))
    # bins of confidence: (.5, .6] holds .55 and .55, both wrong; (.7, .8] two of .8; (.8, .9] two of .9
    assert found["ece"] == pytest.approx((2 * 0.55 + 2 * 0.2 + 2 * 0.1) / 6)
    assert expected_calibration_error(np.array([]), np.array([])) is None


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        ([1, 1, 1], {"balanced_accuracy", "specificity", "auroc", "average_precision"}),
        ([0, 0, 0], {"balanced_accuracy", "sensitivity", "auroc", "average_precision", "f1"}),
        ([], set(CLASSIFICATION_METRICS)),
    ],
)
def test_what_is_undefined_is_none(label, undefined):
    probability = np.linspace(0.4, 0.9, len(label))
    found = classification_metrics(np.array(label, dtype=int), probability, [str(i) for i in range(len(label))])
    assert {key for key in CLASSIFICATION_METRICS if found[key] is None} == undefined
    assert all(found["ci95"][key] is None for key in undefined)
    json.dumps(found, allow_nan=False)


def test_precision_without_an_anemic_call_and_one_group_alone():
    found = classification_metrics(np.array([0, 1]), np.array([0.1, 0.2]), ["a", "a"])
    assert found["precision"] is None
    assert found["f1"] == 0.0
    assert found["ci95"]["accuracy"] is None  # one group has no spread to show


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_input_gives_ordered_finite_plain_numbers(data):
    n = data.draw(st.integers(0, 25))
    label = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)), dtype=int)
    probability = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    group = data.draw(st.lists(st.sampled_from("abcde"), min_size=n, max_size=n))
    found = classification_metrics(label, probability, group, resamples=30)
    json.dumps(found, allow_nan=False)
    assert sum(map(sum, found["confusion_matrix"])) == n
    for key in CLASSIFICATION_METRICS:
        assert found[key] is None or 0 <= found[key] <= 1
        low, high = found["ci95"][key] or (0, 1)
        assert 0 <= low < high <= 1
        assert found[key] is None or low <= found[key] <= high


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match="1 of 2 probabilities"):
        classification_metrics(np.array([0, 1]), np.array([0.5, np.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="one length"):
        classification_metrics(np.array([0, 1]), np.array([0.5]), ["a", "b"])
    with pytest.raises(ValueError, match="0 .Healthy. or 1"):
        classification_metrics(np.array([0, 2]), np.array([0.5, 0.5]), ["a", "b"])


def test_shifted_squares_have_known_overlap():
    """Two 10 x 10 squares shifted by k columns share (10 - k) of their columns."""
    score = SegmentationScore()
    for shift in (0, 2, 5):
        first, second = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
        first[5:15, 5:15], second[5:15, 5 + shift : 15 + shift] = True, True
        assert score.update(first, second) == pytest.approx((10 - shift) / 10)
    found = score.result()
    assert found["n"] == found["n_groups"] == 3
    assert found["dice"] == pytest.approx(2 * (100 + 80 + 50) / 600)
    assert found["iou"] == pytest.approx(230 / (600 - 230))
    assert found["dice_mean"] == pytest.approx((1 + 0.8 + 0.5) / 3)
    low, high = found["ci95"]["dice"]
    assert 0 < low < found["dice"] < high < 1.0


def test_segmentation_against_scikit_learn_and_a_jackknife(rng):
    pairs = [(rng.random((9, 11)) > 0.4, rng.random((9, 11)) > 0.5) for _ in range(12)]
    groups = [f"g{i % 5}" for i in range(12)]
    score = SegmentationScore()
    for (predicted, true), group in zip(pairs, groups, strict=True):
        score.update(predicted, true, group)
    found = score.result(resamples=25, seed=3)

    def pooled(images):
        predicted = np.concatenate([pairs[i][0].ravel() for i in images])
        true = np.concatenate([pairs[i][1].ravel() for i in images])
        own = np.mean([sk.f1_score(pairs[i][1].ravel(), pairs[i][0].ravel()) for i in images])
        return [sk.f1_score(true, predicted), sk.jaccard_score(true, predicted), own]

    left_out = np.array([pooled([i for i in range(12) if groups[i] != f"g{out}"]) for out in range(5)])
    for column, (key, point) in enumerate(zip(("dice", "iou", "dice_mean"), pooled(range(12)), strict=True)):
        assert found[key] == pytest.approx(point)
        expected = logit_interval(point, left_out[:, column], effective_groups(groups))
        assert found["ci95"][key] == pytest.approx(expected.tolist())


def test_unequal_groups_count_as_fewer_equal_ones():
    group = ["a"] * 8 + ["b"] * 2 + ["c"] * 2
    assert effective_groups(group) == pytest.approx(12**2 / (64 + 4 + 4)) == pytest.approx(2.0)
    assert effective_groups(list("abcd")) == 4 and effective_groups([]) == 0
    label = np.array([0] * 8 + [1, 0] + [1, 1])
    found = classification_metrics(label, label * 0.8, group, resamples=5)
    assert found["n_groups_effective"] == pytest.approx(2.0)
    assert found["groups_by_class"] == [2, 2]  # b holds both classes


def test_empty_masks_and_no_masks():
    score = SegmentationScore()
    assert score.result() == {
        "n": 0, "n_groups": 0, "n_groups_effective": 0.0, "dice": None, "iou": None, "dice_mean": None,
        "ci95": {"dice": None, "iou": None, "dice_mean": None},
    }  # fmt: skip
    assert score.update(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0
    assert (score.result()["dice"], score.result()["dice_mean"]) == (None, 1.0)
    with pytest.raises(ValueError, match="bool arrays of one shape"):
        score.update(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
