"""The plots' points against scikit-learn, where the marks stand, and the sections that follow from the figures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

from tests.test_report import image_row, page_of, report, scores
from util.report_plots import (
    LEFT,
    SIDE,
    TOP,
    Curve,
    precision_recall_points,
    reliability_points,
    roc_points,
    square_plot,
    thinned,
    wilson,
)
from util.report_scores import Judged, difference, operating_point, unit_verdicts
from util.report_verdicts import rule_in_words, threshold_text, worst_errors

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ["<script>alert(1)</script>.png", '"><img src=x onerror=alert(2)>', "100% #1?&amp;.png", "تجربة-שלום.png"]


def made(seed, n=300, decimals=3):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    return label, np.round(np.clip(0.3 * label + 0.7 * rng.random(n), 0, 1), decimals)


def area(points):
    x, y = zip(*points, strict=True)
    return auc(x, y)


@pytest.mark.parametrize("decimals", [1, 3])
def test_the_areas_under_the_lines_are_the_figures_beside_them(decimals):
    label, chance = made(0, decimals=decimals)
    assert area(roc_points(label, chance)) == pytest.approx(roc_auc_score(label, chance), abs=0.003)
    steps = precision_recall_points(label, chance)
    assert area(steps) == pytest.approx(average_precision_score(label, chance), abs=0.003)
    assert steps[-1] == (1.0, pytest.approx(label.mean()))


def test_reliability_by_hand():
    label, chance = np.array([0, 0, 1, 1, 1]), np.array([0.05, 0.05, 0.05, 0.92, 0.98])
    points, counts = reliability_points(label, chance)
    assert points == [pytest.approx((0.05, 1 / 3)), pytest.approx((0.95, 1.0))]
    assert counts == [3, 2]


def test_the_bar_of_a_bin_is_wilsons_interval():
    share, n, z = 0.3, 20, 1.959964
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    expected = [(middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert wilson(share, n) == pytest.approx(expected, abs=1e-6)


def test_reliability_shows_points_of_global_alone_and_small_bins_hollow(tmp_path):
    given, label, chance = full()
    page = page_of(tmp_path, given)
    drawn = ElementTree.fromstring(re.search(r'<svg[^>]*aria-label="Reliability".*?</svg>', page.source, re.DOTALL)[0])
    assert not [node for node in drawn.iter(f"{SVG}path") if "line" in node.get("class")]
    _, counts = reliability_points(label, chance)
    *marks, sign = drawn.iter(f"{SVG}circle")
    assert float(sign.get("cy")) > TOP + SIDE and sign.get("class") == "f7", "points in the legend too, no line"
    assert not [node for node in drawn.iter(f"{SVG}line") if "line" in node.get("class").split()]
    assert [node.get("class") == "ring" for node in marks] == [count < 10 for count in counts]
    assert len([node for node in drawn.iter(f"{SVG}line") if node.get("class") == "axis"]) == len(counts)
    words = {node.text for node in drawn.iter(f"{SVG}text")}
    assert "Global" in words and "Tier-I" not in words and any("ECE (of the called class)" in (w or "") for w in words)


def test_many_points_are_drawn_as_few_that_lie_on_the_curve():
    label, chance = made(1, n=20_000, decimals=9)
    points = roc_points(label, chance)
    assert len(points) < 2_500
    false_rate, true_rate, _ = roc_curve(label, chance)
    for x, y in points[::50]:
        assert min(abs(false_rate - x) + abs(true_rate - y)) < 1e-12
    assert thinned([(0.0, 0.0), (0.0001, 0.0), (0.5, 0.5), (0.5, 0.5001)]) == [(0.0, 0.0), (0.5, 0.5), (0.5, 0.5001)]


def test_a_line_and_its_marks_stand_at_their_values():
    drawn = square_plot(
        "T<", ("x", "y"), [Curve("global", [(0, 0), (0.25, 0.5)], "AUROC <1", (0.25, 0.5), (0.5, 1.0))], []
    )
    root = ElementTree.fromstring(drawn)
    lines = [node.get("d") for node in root.iter(f"{SVG}path") if "line" in node.get("class")]
    assert lines == [f"M{LEFT:.1f} {TOP + SIDE:.1f}L{LEFT + SIDE / 4:.1f} {TOP + SIDE / 2:.1f}"]
    diamond = next(node.get("d") for node in root.iter(f"{SVG}path") if "diamond" in node.get("class"))
    assert diamond.startswith(f"M{LEFT + SIDE / 4:.1f} {TOP + SIDE / 2 - 6:.1f}")
    ring = next(node for node in root.iter(f"{SVG}circle") if node.get("class") == "ring")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == (LEFT + SIDE / 2, TOP)
    words = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Global", "AUROC <1", "T<"} <= set(words)


def full(seed=3, n=60, rule="youden"):
    """A report whose figures are those of its rows."""
    label, chance = made(seed, n=n)
    heads = {"tier1": np.round(chance**2, 6), "tier2": chance, "tier3": chance, "global": chance}
    group = [f"g{i // 2}-{label[i]}" for i in range(n)]
    test = Judged(label, heads, group, [f"p{name}" for name in group])
    val = Judged(*[made(seed + 1, n=n)[0], {h: made(seed + 1, n=n)[1] for h in heads}], group, [""] * n)
    interval = {"resamples": 50, "seed": 0}
    colours = np.random.default_rng(seed).random(n)
    metrics = {
        "splits": {"test": {head: scores(n=n, value=0.875) for head in heads}},
        "operating_point": operating_point(rule, {"val": val, "test": test}, **interval),
        "verdicts": {
            "group": {"test": unit_verdicts(test, test.group, **interval)},
            "patient": {"test": unit_verdicts(test, test.patient, **interval)},
        },
        "differences": {
            "global_less_colour": {"split": "test", **difference(label, chance, colours, group, **interval)},
            "global_less_frozen": {"split": "test", **difference(label, chance, colours[::-1], group, **interval)},
        },
    }
    rows = [
        image_row(f"{i}.png", i, label_true=int(label[i]), label_pred=int(chance[i] > 0.5), group=group[i],
                  prob={head: float(values[i]) for head, values in heads.items()})
        for i in range(n)
    ]  # fmt: skip
    cheap = {"colour": colours.tolist(), "frozen": colours[::-1].tolist()}
    return report(metrics=metrics, images=rows, baseline_chances=cheap), label, chance


def test_the_page_marks_the_chosen_point_where_its_rates_are(tmp_path):
    given, label, chance = full()
    page = page_of(tmp_path, given)
    threshold = given.metrics["operating_point"]["thresholds"]["global"]
    called = chance > threshold
    x, y = called[label == 0].mean(), called[label == 1].mean()
    roc = re.search(r'<svg[^>]*aria-label="ROC".*?</svg>', page.source, re.DOTALL)[0]
    place = f"M{LEFT + SIDE * x:.1f} {TOP + SIDE * (1 - y) - 6:.1f}"
    assert place in re.search(r"Global at the operating point</title>(.*?)</g>", roc, re.DOTALL)[1]
    assert roc.count("colours alone") >= 1 and roc.count("frozen features") >= 1
    assert len(re.findall("at the operating point</title>", roc)) == 4  # not the baselines, which have none
    section = page.section("operating")
    assert (
        f"{threshold:.3g}" in section
        and "It was not chosen on the images" in section
        and "Youden's index" in section
        and "60 validation images" in section
    )
    assert f"Above {threshold:.3g}, the operating point" in page.section("headline")


def test_thresholds_near_one_are_not_shown_as_one():
    assert [threshold_text(v) for v in (0.98765, 0.9999997, 1.0, 0.00012345, None)] == [
        "0.988", "1 \N{MINUS SIGN} 3e-07", "1", "0.000123", "\N{EM DASH}",
    ]  # fmt: skip


def test_half_has_no_section_and_validation_is_not_said_to_be_other_images(tmp_path):
    given, *_ = full(rule="half")
    assert not page_of(tmp_path, given).all("section", id="operating")
    given, *_ = full()
    given.metrics["splits"] = {"val": given.metrics["splits"]["test"]}
    section = page_of(tmp_path / "val", given).section("operating")
    assert "It was not chosen" not in section and "the point fits them too well" in section


def test_the_rules_in_words():
    assert "at least 0.9" in rule_in_words({"rule": "specificity=0.9", "n": 7, "n_groups": 3})
    assert "7 validation images of 3 groups" in rule_in_words({"rule": "youden", "n": 7, "n_groups": 3})
    assert rule_in_words({"rule": "half"}).startswith("0.5")


def test_a_point_that_could_not_be_chosen_is_said(tmp_path):
    given, *_ = full()
    given.metrics["operating_point"] = {"rule": "youden", "why_not": "the validation images were not judged"}
    page = page_of(tmp_path, given)
    assert "No operating point was chosen: the validation images were not judged." in page.section("operating")
    assert "operating point (" not in page.section("headline")
    assert "diamond f7" not in page.source


@pytest.mark.parametrize(("name", "title"), [("colour", "colours alone"), ("frozen", "frozen features")])
@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("better", "Ranks images better than TITLE (AUROC)."),
        ("worse", "Ranks images worse than TITLE (AUROC)."),
        ("not shown", "Not shown to rank images better than TITLE (AUROC)."),
    ],
)
def test_the_first_screen_says_whether_global_beats_each_baseline(tmp_path, verdict, said, name, title):
    given, *_ = full()
    said = said.replace("TITLE", title)
    margin = {"value": 0.0625, "ci95": [-0.0125, 0.125]}
    found = given.metrics["differences"][f"global_less_{name}"]
    found |= {"verdict": verdict, "auroc": margin, "accuracy": margin}
    head = page_of(tmp_path, given).section("headline")
    short = f"{said[:-1]}, which few groups decide."
    found["n_groups_effective"] = 13.0
    assert (short in page_of(tmp_path / "few", given).section("headline")) == (verdict != "not shown")
    del found["n_groups_effective"]  # all groups together are enough, those of the Anemic images are not
    given.metrics["splits"]["test"]["global"] |= {"n_groups_effective": 46.0, "effective_by_class": [300.0, 4.0]}
    assert (short in page_of(tmp_path / "class", given).section("headline")) == (verdict != "not shown")
    assert said in head and "AUROC +0.062 (95% CI -0.013 to +0.125)" in head.replace("-0.012 ", "-0.013 ")


def test_too_few_images_show_nothing_about_colours(tmp_path):
    few, *_ = full(n=20)
    few.metrics["differences"]["global_less_colour"]["verdict"] = "better"
    few.metrics["splits"]["test"]["global"] |= {"n": 20, "n_groups": 10}
    assert "Not shown to rank images better than colours alone (AUROC): too few images or groups." in page_of(
        tmp_path, few
    ).section("headline")


def test_groups_and_patients_stand_with_their_counts(tmp_path):
    given, *_ = full()
    page = page_of(tmp_path, given)
    known = given.metrics["verdicts"]
    rows = [e[2] for e in page.all("tr") if e[2].startswith(("Groups", "Patients"))]
    assert len(rows) == 8
    groups = known["group"]["test"]["global"]
    healthy, anemic = map(sum, groups["confusion_matrix"])
    assert rows[3].startswith(f"GroupsGlobal{healthy}{anemic}{groups['accuracy']:.3f}")
    section = page.section("units")
    assert f"Groups: {groups['n']}, {groups['single']} of one image." in section and "No claim" not in section
    known["group"]["test"]["global"] |= {"mixed": groups["n"]}
    told = page_of(tmp_path / "mixed", given).section("units")
    assert f"No claim about whole groups can be made: {healthy} Healthy, {anemic} Anemic, and {groups['n']} of" in told
    known["patient"]["test"]["global"] |= {"confusion_matrix": [[9, 0], [0, 30]]}
    assert "No claim about whole patients can be made: 9 Healthy, 30" in page_of(tmp_path / "s", given).section("units")
    assert not page_of(tmp_path / "none", report()).all("section", id="units")


def test_the_worst_errors_come_first(tmp_path):
    rows = [image_row(f"{p}.png", label_true=0, label_pred=1, prob={"global": p}) for p in (0.6, 0.99, 0.8)]
    rows += [image_row("low.png", label_true=1, label_pred=0, prob={"global": 0.05})]
    rows += [image_row("right.png", label_true=1, label_pred=1, prob={"global": 0.9})]
    rows += [image_row("unknown.png", label_true=None, label_pred=1, prob={"global": 1.0})]
    assert [row.name for row in worst_errors(rows)] == ["0.99.png", "low.png", "0.8.png", "0.6.png"]
    assert len(worst_errors(rows * 9)) == 12
    page = page_of(tmp_path, report(images=rows))
    section = page.section("errors")
    assert section.index("0.99.png") < section.index("low.png") < section.index("0.8.png")
    assert "wrong on 4 of 5 labelled images" in section and "right.png" not in section
    assert "probability of Anemic 0.050" in section
    right = page_of(tmp_path / "r", report(images=[image_row("x.png", label_true=1)]))
    assert "right on the one labelled image" in right.section("errors")


def test_new_sections_keep_hostile_names_as_text(tmp_path):
    given, *_ = full()
    for row, name in zip(given.images, HOSTILE * 30, strict=False):
        row.name = row.group = name
        row.smear = row.overlay = f"images/{name}"
        row.label_pred = 1 - row.label_true
    given.metrics["operating_point"]["rule"] = f"specificity={HOSTILE[0]}"
    page = page_of(tmp_path, given)
    assert len(page.all("script")) == 2
    assert not [e for e in page.elements if any(key.startswith("on") for key in e[1])]
    assert all(e[1]["src"].startswith("./images/") or e[1]["src"].startswith("./") for e in page.all("img"))
    assert all(name in page.section("errors") for name in HOSTILE)
    given.metrics["operating_point"]["why_not"] = HOSTILE[0]
    assert len(page_of(tmp_path / "why", given).all("script")) == 2


def test_a_side_of_one_class_has_no_plots(tmp_path):
    given, *_ = full()
    for row in given.images:
        row.label_true = 1
    assert not page_of(tmp_path, given).all("section", id="plots")
