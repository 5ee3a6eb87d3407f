"""Runs side by side: figures on the common images against scikit-learn, what is refused, and what the page says."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from options import parse_options
from util.compare_page import difference_plot, write_comparison
from util.compare_runs import compare, comparison_folder, most_disagreeing, read_run, results_folder
from util.errors import UserError
from util.results import write_predictions

HOSTILE = ["<script>alert(1)</script>.png", 'it\'s "100%".png', "تجربة.png", "a/same.png", "b/same.png"]


def rows(seed, names, noise=0.3):
    rng = np.random.default_rng(seed)
    for index, name in enumerate(names):
        label = index % 2
        chance = float(np.clip(0.3 + 0.4 * label + rng.normal(0, noise), 0, 1))
        yield {
            "image": name, "prob_anemic": chance, "label_pred": int(chance > 0.5), "label_true": label,
            "group": f"g{index // 2}", "split": "test",
        }  # fmt: skip


def run_of(root, run, seed, names, noise=0.3, which="latest", data="smears", digest="d1"):
    write_predictions(root / run / f"test_{which}" / "predictions.csv", rows(seed, names, noise))
    record = {"data": data, "trained_on": {"split_digest": digest}, "weights": {"sha256": "f00d", "epoch": 3}}
    record["commit"] = "c0ffee"
    (root / run / f"test_{which}" / "metrics.json").write_text(json.dumps({"provenance": record}))
    return read_run(run, results_folder(root, run, which))


NAMES = [*HOSTILE, *(f"{i}.png" for i in range(75))]


def column(run, name):
    with (run.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row[name] for row in csv.DictReader(file)}


def test_figures_are_of_the_common_images_and_as_scikit_learn_has_them(tmp_path):
    first, other = run_of(tmp_path, "A", 1, NAMES[:70]), run_of(tmp_path, "B", 2, NAMES, noise=0.9)
    found = compare([first, other], resamples=100)
    assert list(found.images) == sorted(NAMES[:70])
    truth = np.array([column(first, "label_true")[name] == "Anemic" for name in found.images]).astype(int)
    chances = [np.array([float(column(run, "prob_anemic")[name]) for name in found.images]) for run in (first, other)]
    for scores, chance in zip(found.scores, chances, strict=True):
        assert scores["auroc"] == pytest.approx(roc_auc_score(truth, chance))
        assert scores["accuracy"] == pytest.approx(accuracy_score(truth, chance > 0.5))
    less = found.differences[0]
    assert less["auroc"]["value"] == pytest.approx(roc_auc_score(truth, chances[1]) - roc_auc_score(truth, chances[0]))
    assert less["verdict"] == "worse" and less["auroc"]["ci95"][1] < 0
    right = [(chance > 0.5) == truth for chance in chances]
    assert found.agreement[0] == {
        "both_right": int((right[0] & right[1]).sum()), "only_reference_right": int((right[0] & ~right[1]).sum()),
        "only_this_right": int((~right[0] & right[1]).sum()), "both_wrong": int((~right[0] & ~right[1]).sum()),
    }  # fmt: skip
    assert found.notes == ["10 of the 80 labelled test images of B are not common to all."]
    spread = [abs(chances[0][i] - chances[1][i]) for i in most_disagreeing(found)]
    assert spread == sorted(spread, reverse=True) and all(
        (chances[0][i] > 0.5) != (chances[1][i] > 0.5) for i in most_disagreeing(found)
    )


def test_the_page_and_its_json(tmp_path):
    first, other = run_of(tmp_path, "A", 1, NAMES), run_of(tmp_path, "B", 2, NAMES, noise=0.9)
    (first.folder / "index.html").write_text("x")
    comparison = compare([first, other], resamples=50)
    page = write_comparison(tmp_path / "A/compare_B", comparison).read_text(encoding="utf-8")
    content = json.loads((tmp_path / "A/compare_B/compare.json").read_text())
    assert content == comparison.as_dict()
    assert content["less_reference"]["B"]["verdict"] == "worse"
    assert (
        "ranks images worse than" in page
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    )
    assert 'href="./../test_latest/index.html"' in page
    assert f"{content['less_reference']['B']['auroc']['value']:+.3f}" in page
    assert "&lt;script&gt;" in page or HOSTILE[0] not in [comparison.images[i] for i in most_disagreeing(comparison)]


def test_the_plot_draws_every_difference_where_it_lies_on_the_width_of_a_phone(tmp_path):
    found = compare([run_of(tmp_path, "A", 1, NAMES), run_of(tmp_path, "B", 2, NAMES, noise=0.9)])
    drawn = ElementTree.fromstring(difference_plot(found))
    assert float(drawn.get("viewBox").split()[2]) <= 390
    named = {tag: drawn.iter(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("line", "circle", "text")}
    zero, *intervals = named["line"]
    points = [float(circle.get("cx")) for circle in named["circle"]]
    right = next(text for text in list(named["text"]) if text.text.startswith("+"))
    middle, scale = float(zero.get("x1")), float(right.text)
    per_pixel = scale / (float(right.get("x")) - middle)
    measured = [[(float(line.get(end)) - middle) * per_pixel for end in ("x1", "x2")] for line in intervals]
    for key, interval, point in zip(("auroc", "accuracy"), measured, points, strict=True):
        assert interval == pytest.approx(found.differences[0][key]["ci95"], abs=0.002)
        assert (point - middle) * per_pixel == pytest.approx(found.differences[0][key]["value"], abs=0.002)


def test_hostile_names_are_text(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    runs = [run_of(tmp_path, name, seed, HOSTILE, noise=2.0) for name, seed in ((f"A{bad[:0]}", 1), ("B", 5))]
    runs[1] = runs[1].__class__(bad, runs[1].folder, runs[1].images)
    page = write_comparison(tmp_path / "out", compare(runs, resamples=20)).read_text(encoding="utf-8")
    assert "<img" not in page and "<script" not in page and "&lt;img src=x" in page
    assert "No claim about accuracy can be made at this size" in page
    assert "is not shown to be better or worse" in page


def test_what_was_compared_is_on_record(tmp_path):
    first = run_of(tmp_path, "A", 1, NAMES)
    other = run_of(tmp_path, "B", 2, NAMES, which="best", data="other smears", digest="d2")
    found = compare([first, other], resamples=20, seed=7)
    assert found.notes[0] == "A was tested on smears, B on other smears; images are matched by name alone."
    assert "trained on other splits (d1, d2)" in found.notes[1]
    page = write_comparison(tmp_path / "out", found).read_text(encoding="utf-8")
    content = json.loads((tmp_path / "out/compare.json").read_text())
    assert content["runs"]["B"]["which"] == "best"
    assert content["runs"]["B"]["record"] == {
        "data": "other smears", "split_digest": "d2", "weights_sha256": "f00d", "epoch": 3, "commit": "c0ffee",
    }  # fmt: skip
    assert (content["made"]["seed"], content["made"]["resamples"]) == (7, 20)
    assert content["made"]["command"] and content["made"]["date"]
    assert all(
        word in page for word in ("B (best)", "f00d", "c0ffee", "matched by name alone", content["made"]["date"])
    )
    (other.folder / "metrics.json").write_text("{")
    again = read_run("B", other.folder)
    assert again.record == {} and "B has no metrics.json that can be read" in compare([first, again]).notes[0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text + text.splitlines(keepends=True)[3], "stands there twice"),
        (lambda text: text[: len(text) // 2], "broken off|unexpected end"),
        (lambda text: "".join(text.splitlines(keepends=True)[:40]), "39 labelled images, in metrics.json 80"),
        (lambda text: text.replace('"Healthy","","g', '"Anemic","","g', 1), "other labels or probabilities: a Brier"),
        (lambda text: text.replace(text.splitlines()[5].split(",")[1], '"nan"', 1), "prob_anemic is nan"),
        (lambda text: text.replace('"Healthy","","g', '"Sick","","g', 1), "label_true is 'Sick' of .*, not Healthy or"),
        (lambda text: "", "no column image, prob_anemic, label_true, group"),
        (lambda text: text.replace(text.splitlines()[5].split(",")[1], '"0.5"', 1), "other labels or probabilities"),
    ],
)
def test_a_table_that_is_not_as_its_test_wrote_it_is_refused(tmp_path, spoil, says):
    names = [f"{i}.png" for i in range(80)]
    run = run_of(tmp_path, "A", 1, names)
    content = json.loads((run.folder / "metrics.json").read_text()) | {
        "splits": {"test": {"global": {"n": 80, "brier": brier_of(run)}}}
    }
    (run.folder / "metrics.json").write_text(json.dumps(content))
    assert len(read_run("A", run.folder).images) == 80
    table = run.folder / "predictions.csv"
    table.write_text(spoil(table.read_text()))
    with pytest.raises(UserError, match=f"cannot be compared(?s:.*)({says})"):
        read_run("A", run.folder)


def brier_of(run):
    return float(np.mean([(image.probability - image.label) ** 2 for image in run.images.values()]))


@pytest.mark.parametrize("brier", [None, "0.2", float("nan")])
def test_a_score_that_is_no_number_is_told(tmp_path, brier):
    run = run_of(tmp_path, "A", 1, NAMES)
    content = {"provenance": {}, "splits": {"test": {"global": {"brier": brier}}}}
    (run.folder / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"in metrics.json {brier}"):
        read_run("A", run.folder)


def test_a_mark_before_the_table_is_no_part_of_it(tmp_path):
    run = run_of(tmp_path, "A", 1, NAMES)
    table = run.folder / "predictions.csv"
    table.write_text("\ufeff" + table.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_run("A", run.folder).images == run.images


@pytest.mark.parametrize("text", ["", " ", ","])
def test_a_comparison_with_nothing_is_no_test(tmp_path, text):
    with pytest.raises(UserError, match="--compare.*must name the runs"):
        parse_options("test", ["--dataroot", str(tmp_path), "--name", "A", "--compare", text], prog="x", description="")


def test_folders_of_different_comparisons_differ_and_are_short():
    assert comparison_folder("latest", ["B"]) == "compare_latest_B"
    assert comparison_folder("best", ["B", "A:latest"]) == "compare_best_B+A@latest"
    long = [["\N{GREEK SMALL LETTER OMEGA}" * 60 + str(i) for i in range(3)] + [end] for end in "xy"]
    names = [comparison_folder("latest", one) for one in long]
    assert names[0] != names[1] and all(len(name.encode()) <= 190 for name in names)


def test_a_page_that_cannot_be_replaced_is_said(tmp_path):
    found = compare([run_of(tmp_path, "A", 1, NAMES), run_of(tmp_path, "B", 2, NAMES)], resamples=5)
    (tmp_path / "out/index.html").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_comparison(tmp_path / "out", found)


def test_few_groups_make_the_verdict_weak(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    found = compare([run_of(tmp_path, "A", 1, names), run_of(tmp_path, "B", 2, names, noise=0.9)], resamples=50)
    few = [{**scores, "n_groups_effective": 13.0} for scores in found.scores]
    page = write_comparison(tmp_path / "out", dataclasses.replace(found, scores=few)).read_text(encoding="utf-8")
    assert "which few groups decide" in page and "as good as 13 equal ones" in page


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = run_of(tmp_path, "A", 1, NAMES)
    with pytest.raises(UserError, match="tested on different images"):
        compare([first, run_of(tmp_path, "B", 1, [f"other{name}" for name in NAMES])])
    with pytest.raises(UserError, match="no results of C"):
        read_run("C", results_folder(tmp_path, "C", "latest"))
    with pytest.raises(UserError, match="no results of A:best(?s:.*)tests of: latest"):
        read_run("A:best", results_folder(tmp_path, "A:best", "latest"))
    with pytest.raises(UserError, match="two or more different"):
        compare([first, first])
    turned = run_of(tmp_path, "D", 1, NAMES[1:])  # every label is the other one
    with pytest.raises(UserError, match="other classes of"):
        compare([first, turned])
    broken = tmp_path / "E/test_latest/predictions.csv"
    broken.parent.mkdir(parents=True)
    broken.write_text("image,label_true\nx.png,Anemic\n")
    with pytest.raises(UserError, match="cannot be compared"):
        read_run("E", broken.parent)
    write_predictions(broken, [{"image": "x.png", "prob_anemic": 0.5}])
    with pytest.raises(UserError, match="no labelled image"):
        read_run("E", broken.parent)


def test_a_run_may_be_compared_with_other_weights_of_itself(tmp_path):
    run_of(tmp_path, "A", 1, NAMES)
    best = run_of(tmp_path, "A", 2, NAMES, which="best")
    assert results_folder(tmp_path, "A:best", "latest") == best.folder
    assert results_folder(tmp_path, "A:7", "latest").name == "test_7"


def test_the_command_compares_without_data_or_weights(tmp_path, monkeypatch, repository, capsys):
    for run, seed in (("A", 1), ("B", 2)):
        run_of(tmp_path, run, seed, NAMES)
    spec = importlib.util.spec_from_file_location("test_door", repository / "3TDCFNet_test.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    monkeypatch.setattr(
        sys,
        "argv",
        ["x", "--name", "A", "--compare", "B", "--results_dir", str(tmp_path), "--checkpoints_dir", str(tmp_path)],
    )
    monkeypatch.setattr("util.report_content.FEWEST_EFFECTIVE", 41)  # so that what the page minds is said
    assert door.main() == 0
    page = tmp_path / "A/compare_latest_B/index.html"
    told = capsys.readouterr().out.splitlines()
    assert page.is_file() and told[-1] == f"comparison: {page}"
    found = json.loads((page.parent / "compare.json").read_text())
    value = found["less_reference"]["B"]["auroc"]["value"]
    assert f"  Global of B less A: AUROC {value:+.3f} [" in "\n".join(told)
    minded = [line.removeprefix("  mind: ") for line in told if "mind: " in line]
    assert minded[1:] == found["notes"] and minded[0] in page.read_text(encoding="utf-8")
    assert minded[0].startswith("Few or unequal groups (40 groups) decide")
    monkeypatch.setattr(sys, "argv", ["x", "--name", "A", "--compare", "../B"])
    with pytest.raises(UserError, match="plain folder name"):
        door.main()


def test_metrics_that_are_nested_too_deep_are_none(tmp_path):
    run_of(tmp_path, "A", 1, NAMES)
    folder = results_folder(tmp_path, "A", "latest")
    (folder / "metrics.json").write_text("[" * 100_000)
    assert not read_run("A", folder).record
