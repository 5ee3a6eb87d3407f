"""The operating point against a search over all thresholds, verdicts of groups by hand, differences written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from options.values import operating_rule
from util.intervals import difference_interval, sizes_of
from util.metrics import classification_metrics, group_index
from util.report_scores import Judged, chosen_threshold, difference, operating_point, specificity_asked, unit_verdicts


def made(seed, n=80, groups=20, decimals=2):
    rng = np.random.default_rng(seed)
    member = rng.integers(0, groups, n)
    label = member % 2
    chance = np.round(np.clip(0.35 * label + 0.65 * rng.random(n), 0, 1), decimals)
    return label, chance, [f"g{m}" for m in member]


def judged(seed, **more):
    label, chance, group = made(seed, **more)
    return Judged(label, {"tier1": chance, "global": np.sqrt(chance)}, group, [""] * len(label))


def rates(label, chance, threshold):
    called = chance > threshold
    return called[label == 1].mean(), 1 - called[label == 0].mean()


@pytest.mark.parametrize("seed", range(5))
def test_youden_is_the_best_of_all_thresholds(seed):
    label, chance, _ = made(seed)
    found = chosen_threshold(label, chance, "youden")
    everywhere = [sum(rates(label, chance, t)) for t in np.r_[-0.01, np.unique(chance)]]
    assert sum(rates(label, chance, found)) == pytest.approx(max(everywhere))
    assert found not in chance  # between two probabilities: no call hangs on the last bit


@pytest.mark.parametrize("asked", [0.5, 0.8, 0.95])
def test_a_specificity_is_kept_with_the_highest_sensitivity_there(asked):
    for seed in range(5):
        label, chance, _ = made(seed)
        sensitivity, specificity = rates(label, chance, chosen_threshold(label, chance, f"specificity={asked}"))
        every = [rates(label, chance, t) for t in np.r_[-0.01, np.unique(chance)]]
        assert specificity >= asked
        assert sensitivity == max(one for one, other in every if other >= asked)
        assert specificity == max(other for one, other in every if one == sensitivity)


def test_a_threshold_by_hand():
    label, chance = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.4, 0.9])
    assert chosen_threshold(label, chance, "youden") == pytest.approx(0.35)
    assert chosen_threshold(label, chance, "half") == 0.5
    nothing = np.array([0.0, 0.0, 0.0, 0.0])
    assert chosen_threshold(label, nothing, "specificity=0.9") == 1.0  # nobody can be called without losing all


@pytest.mark.parametrize(
    "text", ["", "best", "specificity", "specificity=", "specificity=1", "specificity=x", "youden=1"]
)
def test_other_rules_are_refused_by_the_option_as_by_the_formula(text):
    for check in (operating_rule, specificity_asked):
        with pytest.raises(ValueError, match="half, youden or a specificity|could not convert"):
            check(text)


def test_the_point_is_chosen_on_validation_and_only_read_off_elsewhere():
    sides = {"val": judged(1), "test": judged(2)}
    found = operating_point("youden", sides, resamples=20, seed=0)
    assert (found["chosen_on"], found["n"], found["why_not"]) == ("val", 80, None)
    for head in ("tier1", "global"):
        threshold = chosen_threshold(sides["val"].label, sides["val"].probability[head], "youden")
        assert found["thresholds"][head] == threshold
        scores = found["splits"]["test"][head]
        expected = rates(sides["test"].label, sides["test"].probability[head], threshold)
        assert (scores["sensitivity"], scores["specificity"]) == pytest.approx(expected)
    other = operating_point("youden", {**sides, "test": judged(3)}, resamples=0, seed=0)
    assert other["thresholds"] == found["thresholds"]


def test_without_a_validation_side_of_both_classes_none_is_chosen_and_that_is_said():
    assert "not judged" in operating_point("youden", {"test": judged(1)}, resamples=0, seed=0)["why_not"]
    one_class = judged(1)._replace(label=np.zeros(80, int))
    found = operating_point("youden", {"val": one_class, "test": judged(1)}, resamples=0, seed=0)
    assert "both classes" in found["why_not"] and found["splits"] == {} == found["thresholds"]
    half = operating_point("half", {"test": judged(1)}, resamples=0, seed=0)
    assert half["thresholds"] == {"global": 0.5, "tier1": 0.5} and half["chosen_on"] is None


def test_a_group_is_called_by_its_mean():
    label = np.array([1, 1, 0, 0, 1, 0])
    chance = np.array([0.9, 0.2, 0.3, 0.1, 0.4, 0.8])
    side = Judged(label, {"global": chance}, ["a", "a", "b", "b", "c", "mixed"], [""] * 6)
    side.group[5] = "c"  # c holds an anemic and a healthy image
    found = unit_verdicts(side, side.group, resamples=0, seed=0)["global"]
    assert (found["n"], found["mixed"], found["single"]) == (2, 1, 0)  # a: 0.55 and Anemic, b: 0.2 and Healthy
    assert found["confusion_matrix"] == [[1, 0], [0, 1]]
    assert found["brier"] == pytest.approx((0.45**2 + 0.2**2) / 2)
    assert unit_verdicts(side, side.patient, resamples=0, seed=0) is None


def test_patients_within_groups_are_resampled_by_group():
    label, chance, group = made(4, n=60, groups=6)
    patient = [f"{name}-{i % 3}" for i, name in enumerate(group)]
    side = Judged(label, {"global": chance}, group, patient)
    found = unit_verdicts(side, patient, resamples=50, seed=0)["global"]
    assert found["n"] == len(set(patient)) and found["n_groups"] == len(set(group))
    names = sorted(set(patient))
    mean = np.array([chance[[p == name for p in patient]].mean() for name in names])
    truth = np.array([label[patient.index(name)] for name in names])
    expected = classification_metrics(truth, mean, [name.split("-")[0] for name in names], resamples=50, seed=0)
    assert found["auroc"] == pytest.approx(expected["auroc"])
    assert found["ci95"]["auroc"] == pytest.approx(expected["ci95"]["auroc"])


def test_a_difference_is_that_of_the_figures_of_the_same_images():
    label, first, group = made(5)
    second = np.round(np.random.default_rng(6).random(80), 2)
    found, names = difference(label, first, second, group, resamples=30, seed=4), np.array(group)
    parts = [
        (
            roc_auc_score(label, chance),
            [roc_auc_score(label[names != n], chance[names != n]) for n in sorted(set(group))],
        )
        for chance in (first, second)
    ]
    assert found["auroc"]["value"] == pytest.approx(parts[0][0] - parts[1][0])
    sizes = sizes_of(group_index(group)[1], len(set(group)), label == 0, label == 1)
    (one, one_left), (other, other_left) = parts
    expected = difference_interval(one, other, np.array(one_left), np.array(other_left), sizes)
    assert found["auroc"]["ci95"] == pytest.approx(expected)
    accuracy = accuracy_score(label, first > 0.5) - accuracy_score(label, second > 0.5)
    assert found["accuracy"]["value"] == pytest.approx(accuracy)
    assert found["verdict"] == "better"
    assert difference(label, second, first, group, resamples=30, seed=4)["verdict"] == "worse"
    same = difference(label, first, first, group, resamples=30, seed=4)
    assert same["verdict"] == "not shown" and same["auroc"]["ci95"][0] < 0 < same["auroc"]["ci95"][1]


def test_tiny_probabilities_keep_their_order():
    label, group = np.array([0, 1] * 4), [f"g{i}" for i in range(8)]
    sure = np.where(label == 1, np.exp(-39.0), np.exp(-42.0))  # less 0.5 both are -0.5
    found = difference(label, sure, np.full(8, 0.5), group, resamples=20, seed=0)
    assert found["auroc"]["value"] == pytest.approx(0.5)  # 1.0 against 0.5


def test_a_threshold_between_neighbours_still_calls_the_upper_one():
    low = np.nextafter(0.7, 0)
    for below, above in ((low, 0.7), (0.7, np.nextafter(0.7, 1)), (0.3, np.nextafter(0.3, 1))):
        threshold = chosen_threshold(np.array([0, 1]), np.array([below, above]), "youden")
        assert below <= threshold < above


def test_one_class_shows_nothing():
    found = difference(np.ones(4, int), np.full(4, 0.9), np.full(4, 0.1), list("abcd"), resamples=20, seed=0)
    assert found["auroc"] == {"value": None, "ci95": None} and found["verdict"] == "not shown"
    assert found["accuracy"]["value"] == 1.0
