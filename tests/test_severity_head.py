"""The learned grade beside the rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.synthetic import synthesize
from models.module2.morphometry import measure_cells
from models.module2.severity import summarise
from models.module2.severity_head import FEATURES, LEAST_OF_EACH, SeverityHead, summary_features
from util.errors import UserError


def drawn(count: int, seed: int) -> tuple[list[np.ndarray], list[bool]]:
    """Features of which the fourth alone tells the grade."""
    rng = np.random.default_rng(seed)
    chronic = [bool(index % 2) for index in range(count)]
    rows = rng.normal(3, 2, (count, len(FEATURES)))
    rows[:, 3] += 6 * np.array(chronic)
    return list(rows), chronic


def test_it_learns_what_tells_the_grades_apart() -> None:
    head = SeverityHead.fit(*drawn(200, 0))
    assert np.argmax(np.abs(head.weight)) == 3 and head.weight[3] > 0
    rows, chronic = drawn(200, 1)
    right = np.mean([(head.grade(row) == "Chronic") == severe for row, severe in zip(rows, chronic, strict=True)])
    assert right > 0.85
    assert (head.mild, head.chronic) == (100, 100)


def test_it_says_what_scikit_learn_says() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, chronic = drawn(60, 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))
    expected = model.fit(np.stack(rows), chronic).predict_proba(np.stack(rows))[:, 1]
    head = SeverityHead.fit(rows, chronic)
    assert [head.probability(row) for row in rows] == pytest.approx(expected, abs=1e-9)


def test_a_feature_without_spread_is_no_division_by_zero() -> None:
    rows, chronic = drawn(40, 3)
    for row in rows:
        row[5] = 1.0
    assert np.isfinite(SeverityHead.fit(rows, chronic).probability(rows[0]))


def test_too_few_images_of_a_grade() -> None:
    rows, _ = drawn(40, 4)
    with pytest.raises(UserError, match="too few"):
        SeverityHead.fit(rows, [index < LEAST_OF_EACH - 1 for index in range(40)])


def test_it_comes_back_from_its_file_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "severity_head.json"
    assert SeverityHead.load(path) is None
    head = SeverityHead.fit(*drawn(40, 5))
    head.save(path)
    assert SeverityHead.load(path) == head
    content = json.loads(path.read_text())
    damaged = [{**content, "schema": 9}, {**content, "weight": content["weight"][1:]}, {**content, "bias": "nan"}, []]
    damaged += [{**content, "mild": float("inf")}, {**content, "bias": 10**400}]
    for wrong in (*map(json.dumps, damaged), "{", "[" * 100_000):
        path.write_text(wrong)
        with pytest.raises(UserError, match="severity_head.json"):
            SeverityHead.load(path)


def test_features_of_a_smear_and_of_none() -> None:
    smear = synthesize(1, seed=3)
    summary = summarise(measure_cells(smear.instances, smear.rgb))
    features = summary_features(summary)
    assert features is not None and features.shape == (len(FEATURES),)
    assert features[FEATURES.index("severity_score")] == summary.severity_score
    assert features[FEATURES.index("share_macrocyte")] == summary.kinds["macrocyte"]
    nothing = summarise(measure_cells(np.zeros((9, 9), np.int32), np.zeros((9, 9, 3), np.uint8)))
    assert summary_features(nothing) is None
    lone = replace(summary, diameter_cv=float("nan"), area_cv=float("nan"))
    single = summary_features(lone)
    assert single is not None and np.isfinite(single).all()
