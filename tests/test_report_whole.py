"""A whole test: page and metrics.json against figures computed anew from predictions.csv, and against the schema."""

from __future__ import annotations

import csv
import importlib.util
import json
import re

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.test_report import Page

COUNT = 60
BY_SCIKIT_LEARN = {
    "accuracy": lambda y, p, c: sk.accuracy_score(y, c),
    "balanced_accuracy": lambda y, p, c: sk.balanced_accuracy_score(y, c),
    "sensitivity": lambda y, p, c: sk.recall_score(y, c),
    "specificity": lambda y, p, c: sk.recall_score(y, c, pos_label=0),
    "precision": lambda y, p, c: sk.precision_score(y, c),
    "f1": lambda y, p, c: sk.f1_score(y, c),
    "auroc": lambda y, p, c: sk.roc_auc_score(y, p),
    "average_precision": lambda y, p, c: sk.average_precision_score(y, p),
    "brier": lambda y, p, c: sk.brier_score_loss(y, p),
}
COLUMNS = {
    "tier1": "prob_anemic_tier1",
    "tier2": "prob_anemic_tier2",
    "tier3": "prob_anemic_tier3",
    "global": "prob_anemic",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory, repository):
    spec = importlib.util.spec_from_file_location("bench_report", repository / "scripts/bench_report.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    folder = tmp_path_factory.mktemp("written")
    bench.DIFFERENT = 3
    bench.work(COUNT, 64, 0, folder)
    return folder


@pytest.fixture(scope="module")
def figures(written):
    return json.loads((written / "metrics.json").read_text())


def table(written, name="predictions.csv"):
    with (written / name).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = np.array([row["label_true"] == "Anemic" for row in rows]).astype(int)
    chances = {head: np.array([float(row[column]) for row in rows]) for head, column in COLUMNS.items()}
    return rows, truth, chances


def test_metrics_are_scikit_learns_of_the_predictions(written, figures):
    for side, name in (("test", "predictions.csv"), ("val", "predictions_val.csv")):
        _, truth, chances = table(written, name)
        for head, chance in chances.items():
            for key, computed in BY_SCIKIT_LEARN.items():
                expected = computed(truth, chance, chance > 0.5)
                assert figures["splits"][side][head][key] == pytest.approx(expected, abs=1e-9), (side, head, key)


def test_the_page_shows_these_figures(written, figures):
    page, (rows, truth, chances) = Page(written / "index.html"), table(written)
    told = page.section("headline")
    for key in ("accuracy", "auroc", "sensitivity", "specificity"):
        expected = BY_SCIKIT_LEARN[key](truth, chances["global"], chances["global"] > 0.5)
        assert f"{expected:.3f}" in told, key
    every = [e[2] for e in page.all("tr") if e[2].startswith("Global60")]
    shown = [
        f"{BY_SCIKIT_LEARN[key](truth, chances['global'], chances['global'] > 0.5):.3f}" for key in BY_SCIKIT_LEARN
    ]
    assert any(all(value in row for value in shown) for row in every)
    wrong = sum((chances["global"] > 0.5) != truth)
    assert f"wrong on {wrong} of {COUNT} labelled images" in page.section("errors")
    assert [row[0] for row in page.rows()] == [row["image"] for row in rows]
    assert [row[5][3] for row in page.rows()] == pytest.approx(chances["global"].tolist(), abs=1e-6)


def test_the_operating_point_is_that_of_the_validation_predictions(written, figures):
    _, truth, chances = table(written, "predictions_val.csv")
    threshold = figures["operating_point"]["thresholds"]["global"]
    false_rate, true_rate, _ = sk.roc_curve(truth, chances["global"], drop_intermediate=False)
    called = chances["global"] > threshold
    gain = called[truth == 1].mean() - called[truth == 0].mean()
    assert gain == pytest.approx(max(true_rate - false_rate))
    rows, truth, chances = table(written)
    found = figures["operating_point"]["splits"]["test"]["global"]
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, chances["global"] > threshold).tolist()
    assert [row["label_pred"] == "Anemic" for row in rows] == (chances["global"] > 0.5).tolist()  # never by that point


def test_groups_are_judged_by_their_mean(written, figures):
    rows, truth, chances = table(written)
    names = sorted({row["group"] for row in rows})
    members = [[i for i, row in enumerate(rows) if row["group"] == name] for name in names]
    mean = np.array([chances["global"][one].mean() for one in members])
    label = np.array([truth[one[0]] for one in members])
    for unit in ("group", "patient"):
        found = figures["verdicts"][unit]["test"]["global"]
        assert (found["n"], found["mixed"]) == (len(names), 0)
        assert found["auroc"] == pytest.approx(sk.roc_auc_score(label, mean))
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(label, mean > 0.5))


def test_the_margin_over_colours_is_that_of_both_figures(figures):
    found = figures["differences"]["global_less_colour"]
    both = figures["splits"]["test"]["global"], figures["baselines"]["colour"]
    for key in ("auroc", "accuracy"):
        assert found[key]["value"] == pytest.approx(both[0][key] - both[1][key])
        assert found[key]["ci95"][0] < found[key]["value"] < found[key]["ci95"][1]


def test_metrics_json_keeps_to_its_schema(figures, repository):
    schema = json.loads((repository / "docs/metrics.schema.json").read_text())
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(figures)] == []
    for spoil in (
        lambda content: content.pop("verdicts"),
        lambda content: content["splits"]["test"]["global"].update(auroc=1.5),
        lambda content: content["splits"]["test"].pop("tier1"),
        lambda content: content["differences"]["global_less_colour"].update(verdict="splendid"),
        lambda content: content.update(more=1),
    ):
        spoiled = json.loads(json.dumps(figures))
        spoil(spoiled)
        assert not validator.is_valid(spoiled)


def test_the_schema_names_every_figure_that_is_written(figures, repository):
    schema = json.loads((repository / "docs/metrics.schema.json").read_text())
    assert set(schema["required"]) == set(schema["properties"]) == set(figures)
    assert set(figures["splits"]["test"]["global"]) == set(schema["$defs"]["scores"]["properties"])
    assert set(figures["operating_point"]["splits"]["test"]["global"]) == set(schema["$defs"]["calls"]["properties"])
    assert set(figures["operating_point"]) == set(schema["properties"]["operating_point"]["properties"])
    assert figures["schema_version"] == schema["properties"]["schema_version"]["const"]


def test_every_link_of_the_page_leads_to_a_file(written):
    from urllib.parse import unquote

    page = Page(written / "index.html")
    linked = {e[1][key] for tag, key in (("a", "href"), ("img", "src")) for e in page.all(tag)}
    linked |= {cell for row in page.rows() for cell in row if isinstance(cell, str) and cell.startswith("./")}
    files = [written / unquote(link) for link in linked if not link.startswith("#")]
    assert len(files) > 3 * COUNT and [path for path in files if not path.is_file()] == []


def test_a_report_that_was_broken_off_leaves_no_page(written, tmp_path, monkeypatch, repository):
    import shutil

    spec = importlib.util.spec_from_file_location("bench_report", repository / "scripts/bench_report.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    bench.DIFFERENT = 3
    for name in ("index.html", "metrics.json", "predictions.csv"):  # of an earlier, whole report
        shutil.copy(written / name, tmp_path / name)

    def break_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("models.testing.write_json", break_off)
    with pytest.raises(KeyboardInterrupt):
        bench.work(20, 64, 0, tmp_path)
    assert not (tmp_path / "index.html").exists() and not (tmp_path / "metrics.json").exists()
    assert re.search("prob_anemic", (tmp_path / "predictions.csv").read_text())  # the new one; the old one was removed
    assert (tmp_path / "predictions.csv").read_text() != (written / "predictions.csv").read_text()
