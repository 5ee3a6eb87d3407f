"""Intervals by groups: against textbook formulas where they coincide, at the edges, and coverage on simulated data."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from util.errors import UserError
from util.intervals import Sizes, difference_interval, interval, left_out_weights, sizes_of
from util.metrics import classification_metrics


@pytest.fixture(scope="module")
def simulation(repository):
    spec = importlib.util.spec_from_file_location("interval_coverage", repository / "scripts/interval_coverage.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["interval_coverage"] = module
    spec.loader.exec_module(module)
    return module


def without_each(values):
    values = np.asarray(values, dtype=float)
    return (values.sum() - values) / (len(values) - 1)


def test_the_interval_of_many_independent_groups_is_the_logit_interval_of_their_share():
    right = np.repeat([1.0, 0.0], [850, 150])
    low, high = interval(0.85, without_each(right), Sizes(1000.0, 1000.0))
    reach = stats.t.ppf(0.975, 999) * np.sqrt(0.85 * 0.15 / 999) / (0.85 * 0.15)
    logit = np.log(0.85 / 0.15)
    assert [low, high] == pytest.approx([1 / (1 + np.exp(reach - logit)), 1 / (1 + np.exp(-reach - logit))])


def test_fewer_effective_groups_widen_it():
    values = np.random.default_rng(0).random(20)
    widths = [
        np.diff(interval(values.mean(), without_each(values), Sizes(effective, effective)))[0]
        for effective in (20, 8, 3, 1.2)
    ]
    assert widths == sorted(widths) and widths[-1] < 1


def test_what_has_no_interval():
    assert interval(None, np.array([0.5, 0.6]), Sizes(2, 2)) is None
    assert interval(float("nan"), np.array([0.5, 0.6]), Sizes(2, 2)) is None
    assert interval(0.5, np.array([0.5, np.nan]), Sizes(2, 2)) is None
    assert interval(0.5, np.array([0.5]), Sizes(1, 1)) is None
    assert difference_interval(0.5, 0.6, np.array([0.5, 0.6]), np.array([np.nan, 0.6]), Sizes(2, 2)) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_it_holds_its_figure_has_a_width_and_keeps_within_bounds(data):
    count = data.draw(st.integers(2, 9))
    shares = st.lists(st.sampled_from([0.0, 1e-9, 0.3, 0.5, 1 - 1e-9, 1.0]), min_size=count, max_size=count)
    one, other = (np.array(data.draw(shares)) for _ in range(2))
    sizes = Sizes(data.draw(st.floats(1, count)), data.draw(st.floats(1, count)))
    low, high = interval(one.mean(), without_each(one), sizes)
    assert 0 <= low <= one.mean() <= high <= 1 and high > low
    low, high = difference_interval(one.mean(), other.mean(), without_each(one), without_each(other), sizes)
    assert -1 <= low <= one.mean() - other.mean() <= high <= 1 and high > low


def test_a_paired_difference_far_from_the_edges_is_as_wide_as_students():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 0.1, 200)
    one, other = (0.5 + shift + hard + rng.normal(0, 0.02, 200) for shift in (0.02, 0.0))
    found = difference_interval(one.mean(), other.mean(), without_each(one), without_each(other), Sizes(200, 200))
    expected = stats.t.interval(0.95, 199, (one - other).mean(), stats.sem(one - other))
    assert found == pytest.approx(expected, abs=3e-4)
    alone = difference_interval(one.mean(), other.mean(), without_each(one), without_each(other[::-1]), Sizes(200, 200))
    assert np.diff(alone)[0] > 3 * np.diff(found)[0]  # not paired, the hard groups count twice
    turned = difference_interval(other.mean(), one.mean(), without_each(other), without_each(one), Sizes(200, 200))
    assert [-turned[1], -turned[0]] == pytest.approx(found, abs=1e-3)


def test_groups_are_left_out_one_at_a_time_or_in_parts_of_nearly_equal_count():
    assert np.concatenate(list(left_out_weights(4, 1000, 0))).tolist() == (1 - np.eye(4)).tolist()
    dealt = np.concatenate(list(left_out_weights(25, 10, 0)))
    assert dealt.shape == (10, 25) and set(dealt.ravel()) == {0.0, 1.0}
    assert (dealt == 0).sum(axis=0).tolist() == [1] * 25  # each group in one part
    assert set((dealt == 0).sum(axis=1).tolist()) == {2, 3}
    assert list(left_out_weights(1, 10, 0)) == list(left_out_weights(5, 0, 0)) == []


def test_sizes_by_hand():
    member, anemic = np.array([0, 0, 0, 1, 2]), np.array([False, False, False, True, True])
    assert sizes_of(member, 3, anemic) == pytest.approx((2.0, 2.0))
    assert sizes_of(member, 3, ~anemic) == pytest.approx((1.0, 1.0))
    variance = np.array([3 / 9, 1 / 4, 1 / 4])
    assert sizes_of(member, 3, anemic, ~anemic) == pytest.approx((variance.sum() ** 2 / (variance**2).sum(), 1.0))
    assert sizes_of(member, 3, np.zeros(5, bool)) == (0.0, 0.0)


def test_the_simulation_reckons_as_the_reports_do(simulation):
    design = simulation.Design(np.array([5, 3, 3, 2, 2, 1, 1, 1]), 0.3, 0.9, False)
    generator = np.random.default_rng(5)
    label, member, scores = simulation.simulate(design, generator)
    data = simulation.Groups(label, scores["first"], member)
    sizes = simulation.sizes_for(label, member, 8)
    chance = 1 / (1 + np.exp(-scores["first"]))
    expected = classification_metrics(label, chance, [f"g{m}" for m in member])
    value, left_out = data.figures(np.ones((1, 8))), data.figures(1 - np.eye(8))
    for key in simulation.FIGURES:
        assert value[key][0] == pytest.approx(expected[key])
        assert interval(float(value[key][0]), left_out[key], sizes[key]) == pytest.approx(expected["ci95"][key])


def test_intervals_hold_the_truth_as_often_as_they_say(simulation):
    """SEG's unequal groups, images of a group alike: the percentile bootstrap holds the AUROC in 80% of cases."""
    sizes = np.array([17, 13, 5, 4, 4] + [2] * 13 + [1] * 19)
    given = type("Given", (), {"seed": 1, "repeats": 150, "resamples": 0})
    found = simulation.coverage(simulation.Design(sizes, 0.7, 0.95, False), given)
    held = {what: by_method["reports"]["held"] for what, by_method in found.items()}
    assert all(0.89 <= share <= 1 for share in held.values()), held
    with pytest.raises(UserError, match="two or more groups"):
        simulation.sizes_in("3")
