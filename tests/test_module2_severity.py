"""The if/else rule, an image's summary, and the grade, on cells whose measures are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.synthetic import label_and_severity, synthesize
from models.module2.kinds import KINDS
from models.module2.morphometry import measure_cells
from models.module2.severity import SeverityRule, score_cells, size_score, summarise
from tests.test_kinds import table_of
from util.errors import UserError


@pytest.mark.parametrize(
    ("size", "rate", "expected"),
    [
        (0.8, 1.0, 1.0),
        (0.7, 1.0, 0.9),
        (0.9, 2.0, 0.8),
        (0.66, 1.0, 0.06),  # the ends themselves belong to the second branch
        (0.96, 1.0, 0.36),
        (1.6, 1.0, 1.0),
        (1.3, 0.5, 0.85),
        (0.3, 0.5, 0.35),
        (0.1, 1.0, 0.0),  # kept from falling below 0
    ],
)
def test_the_published_line(size, rate, expected):
    assert size_score(size, SeverityRule(size_rate=rate)) == pytest.approx(expected)


def test_size_is_the_area_relative_to_the_normal_cell_times_its_best_size():
    table = table_of({"diameter_px": 40 * np.sqrt(1.1)})
    assert score_cells(table).size[0] == pytest.approx(0.88)
    assert score_cells(table).size_score[0] == pytest.approx(0.96)
    in_um = replace(table, um_per_px=0.09)  # a plain cell is 3.6 um across, a quarter of the normal area
    assert score_cells(in_um).size[1] == pytest.approx(0.2)
    assert score_cells(in_um, SeverityRule(normal_um=3.6)).size[1] == pytest.approx(0.8)


def test_roundness_and_pallor_scores_and_their_weights():
    table = table_of({"roundness": 0.7, "central_pallor": 0.53})
    scores = score_cells(table)
    assert scores.roundness_score[0] == pytest.approx(0.6)
    assert scores.pallor_score[0] == pytest.approx(0.6)
    assert scores.severity[0] == pytest.approx((0 + 0.4 + 0.25 * 0.4) / 2.25)
    only_round = SeverityRule(size_weight=0, pallor_weight=0)
    assert score_cells(table, only_round).severity[0] == pytest.approx(0.4)
    assert score_cells(table).roundness_score[1] == 1  # rounder than needed is no gain


def test_cells_that_are_not_judged_have_no_scores_and_do_not_count():
    table = table_of({"border": True, "roundness": 0.1}, {"central_pallor": np.nan}, plain=4)
    scores, summary = score_cells(table), summarise(table)
    assert np.isnan(scores.severity[:2]).all() and np.isfinite(scores.severity[2:]).all()
    assert (summary.cells, summary.judged, summary.border) == (6, 4, 1)
    assert summary.severity_score == pytest.approx(0.25 * 0.06 / 2.25)


def test_summary_of_a_small_table_by_hand():
    small, large = {"diameter_px": 30.0, "overlapped": True}, {"diameter_px": 50.0}
    summary = summarise(table_of(small, large, {}, {}, plain=0))
    assert (summary.cells, summary.overlapped, summary.overlapped_share) == (4, 1, 0.25)
    assert summary.reference_px == 40 and summary.diameter_px[2] == 40
    spread = np.sqrt(200 / 3)
    assert summary.diameter_cv == pytest.approx(100 * spread / 40)
    assert summary.area_cv == pytest.approx(100 * np.std([900, 2500, 1600, 1600], ddof=1) / 1650)
    assert summary.kinds["microcyte"] == 0.25 and summary.kinds["normal"] == 0.5
    assert list(summary.kinds) == list(KINDS) and sum(summary.kinds.values()) == pytest.approx(1)


def test_the_grade_changes_at_the_threshold_of_the_scale_in_use():
    table = table_of(plain=6)
    score = summarise(table).severity_score
    assert summarise(table, SeverityRule(chronic_from_relative=score, chronic_from=1.0)).severity == "Chronic"
    assert summarise(table, SeverityRule(chronic_from_relative=score + 1e-6, chronic_from=0.0)).severity == "Mild"
    in_um = replace(table, um_per_px=0.18)
    assert summarise(in_um, SeverityRule(chronic_from_relative=1.0, chronic_from=0.0)).severity == "Chronic"


def test_an_image_without_a_cell_has_no_grade():
    summary = summarise(measure_cells(np.zeros((8, 8), np.int32), np.zeros((8, 8, 3), np.uint8)))
    assert summary.severity is None and np.isnan(summary.severity_score) and summary.cells == 0
    assert np.isnan(summary.overlapped_share) and np.isnan(summary.diameter_cv)


@pytest.mark.parametrize(
    "constants",
    [
        {"size_weight": 0, "round_weight": 0, "pallor_weight": 0},
        {"round_weight": -1.0},
        {"size_weight": float("nan")},
        {"size_low": 1.0},
        {"normal_um": 0.0},
    ],
)
def test_constants_that_make_no_rule_are_refused(constants):
    with pytest.raises(UserError):
        SeverityRule(**constants)


def test_severe_synthetic_smears_score_higher_than_mild_ones():
    scores = {"Mild": [], "Chronic": []}
    for index in range(40):
        grade = label_and_severity(index, 3)[1]
        if grade is not None and len(scores[grade]) < 6:
            smear = synthesize(index, seed=3, size=200)
            table = measure_cells(smear.instances, smear.rgb, um_per_px=1 / smear.pixels_per_um)
            scores[grade].append(summarise(table).severity_score)
    mild, severe = np.array(scores["Mild"]), np.array(scores["Chronic"])
    assert (severe[:, None] > mild[None]).mean() > 0.75
