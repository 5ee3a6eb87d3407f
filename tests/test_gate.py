"""The gate: opens, stays, is forced, stops; and says why."""

from __future__ import annotations

import math

import pytest

from models.gate import Gate, GateSettings, tier_budgets


def gate(budget=5, on_budget="force", tolerance=0.05):
    return Gate(GateSettings((0.85, 0.91, 0.96), tolerance, (budget, budget, budget), on_budget))


def test_it_stays_below_the_threshold_and_says_why():
    decision = gate().decide(1, 0.8499, 0.99)
    assert decision.decision == "stay"
    assert "training accuracy 0.850 is below 0.850" in decision.reason or "below 0.850" in decision.reason


def test_it_opens_at_the_threshold_when_validation_agrees():
    g = gate()
    decision = g.decide(1, 0.85, 0.7)
    assert (decision.decision, decision.tier, g.tier) == ("open", 1, 2)
    assert g.summary()["tier1"] == {"how": "opened", "epoch": 1}


def test_the_validation_function_can_say_no():
    g = gate()
    g.decide(1, 0.5, 0.80)
    refused = g.decide(2, 0.99, 0.74)
    assert refused.decision == "stay" and "validation accuracy 0.740 is below its best 0.800" in refused.reason
    assert g.decide(3, 0.99, 0.76).decision == "open"


def test_each_tier_has_its_own_threshold_and_its_own_best():
    g = gate()
    g.decide(1, 0.9, 0.95)
    assert g.decide(2, 0.90, 0.6).decision == "stay", "0.90 is below Tier-II's 0.91"
    assert g.decide(3, 0.92, 0.6).decision == "open", "Tier-I's best of 0.95 does not bind Tier-II"
    assert g.decide(4, 0.95, 0.6).decision == "stay"
    assert g.decide(5, 0.96, 0.6).decision == "open"
    assert g.all_open


def test_a_spent_budget_forces_the_next_tier_and_is_logged_as_forced():
    g = gate(budget=2)
    assert g.decide(1, 0.5, 0.5).decision == "stay"
    forced = g.decide(2, 0.5, 0.5)
    assert (forced.decision, g.tier) == ("forced", 2)
    assert "no epoch is left after 2 in this tier" in forced.reason
    assert g.summary()["tier1"]["how"] == "forced"
    assert not g.all_open


def test_a_spent_budget_stops_the_run_where_that_was_asked():
    g = gate(budget=1, on_budget="stop")
    assert g.decide(1, 0.5, 0.5).decision == "stop"
    assert g.tier == 1 and g.summary()["tier1"]["how"] == "not opened"


def test_the_end_of_the_schedule_closes_the_last_budget():
    g = gate(budget=50)
    g.decide(1, 1.0, 1.0)
    g.decide(2, 1.0, 1.0)
    assert g.decide(3, 0.5, 0.5, last_epoch=True).decision == "forced"
    assert g.summary()["tier3"] == {"how": "forced", "epoch": 3}
    assert not g.all_open


def test_after_the_last_gate_it_trains_on():
    g = gate(budget=1)
    for epoch in (1, 2, 3):
        g.decide(epoch, 1.0, 1.0)
    later = g.decide(4, 0.1, 0.1)
    assert later.decision == "stay" and "trains on" in later.reason
    assert g.summary()["tier3"] == {"how": "opened", "epoch": 3}


def test_without_a_labelled_validation_image_it_does_not_open_by_itself():
    g = gate(budget=2)
    assert g.decide(1, 1.0, math.nan).decision == "stay"
    assert g.decide(2, 1.0, math.nan).decision == "forced"


def test_it_goes_on_from_its_state():
    g = gate()
    g.decide(1, 0.9, 0.9)
    g.decide(2, 0.5, 0.9)
    again = gate()
    again.load_state(g.state())
    assert again == g
    assert again.decide(3, 0.95, 0.8).decision == g.decide(3, 0.95, 0.8).decision == "stay"


@pytest.mark.parametrize(
    ("epochs", "tier_epochs", "expected"), [(250, 0, (83, 83, 250)), (250, 20, (20, 20, 250)), (2, 0, (1, 1, 2))]
)
def test_budgets(epochs, tier_epochs, expected):
    assert tier_budgets(epochs, tier_epochs) == expected
