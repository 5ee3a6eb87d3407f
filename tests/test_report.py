"""The page as a parser sees it: what it says, and that no text from outside becomes markup."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from util import figures
from util.errors import UserError
from util.report import (
    PREDICTED_COLOUR,
    SECTIONS,
    TRUE_COLOUR,
    ImageRow,
    Report,
    link_to,
    overlay_image,
    save_thumbnail,
    write_report,
)
from util.report_content import groups_in_words
from util.report_gradcam import GradCams

HOSTILE = [
    "<script>alert(1)</script>.png", '"><img src=x onerror=alert(2)>.png', "100% #1?&amp;.png", "تجربة-שלום.png",
    "\u202egnp.evil", "=SUM(A1).png", "</script><!--.png", "a\u2028b\udcff.png", "it's.png", "javascript:alert(3)",
]  # fmt: skip
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Elements as (tag, attributes, text inside), text of the whole, and whether the tags nest."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if not self._open or self._open[-1][0] not in {"script", "style"}:
            self.text += data
        for element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and all(e[1].get(k) == v for k, v in attributes.items())]

    def section(self, key):
        return self.all("section", id=key)[0][2]

    def rows(self):
        return json.loads(self.all("script", id="image-rows")[0][2])["rows"]


def scores(n=40, groups=30, value=0.875, interval=(0.8, 0.925)):
    names = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1", "auroc", "ece")
    matrix = [[n // 2 - 3, 3], [2, n - n // 2 - 2]]
    ci95 = dict.fromkeys(names, list(interval) if interval else None)
    return {"n": n, "n_groups": groups, **dict.fromkeys(names, value), "confusion_matrix": matrix, "ci95": ci95}


def image_row(name, number=0, **changed):
    row = {
        "name": name, "split": "test", "group": f"g{number}", "label_true": number % 2, "label_pred": 1, "dice": 0.9,
        "prob": {"tier1": 0.25, "tier2": 0.5, "tier3": 0.75, "global": 0.812}, "smear": f"images/{name}",
        "true_mask": None, "predicted_mask": f"masks/{name}.png", "overlay": "o.png",
    }  # fmt: skip
    return ImageRow(**{**row, **changed})


def report(**changed):
    heads = {head: scores() for head in figures.HEADS}
    metrics = {
        "splits": {"test": heads},
        "provenance": {"data": "smears", "seed": 3, "command": ["python", "x.py", "a b"]},
    }
    images = [image_row(f"{i}.png", i) for i in range(40)]
    return Report(**{"title": "run", "metrics": metrics, "images": images, **changed})


def page_of(tmp_path, given):
    return Page(write_report(tmp_path, given))


def test_hostile_names_never_become_markup(tmp_path):
    metrics = {
        "splits": {"test": {"global": scores()}, HOSTILE[0]: {"global": scores()}},
        "provenance": {"data": HOSTILE[1], "versions": {HOSTILE[0]: HOSTILE[1]}, "command": HOSTILE},
        "tiers_opened": {HOSTILE[0]: {"how": "forced"}},
        "baselines": {HOSTILE[1]: {"accuracy": 0.5}},
        "severity": {HOSTILE[0]: 1},
    }
    rows = [image_row(name, i, group=name, split=name) for i, name in enumerate(HOSTILE)]
    history = [{"epoch": 1, f"loss{name}": 1.0} for name in HOSTILE]
    given = report(
        title=HOSTILE[0], metrics=metrics, images=rows, warnings=HOSTILE, history=history,
        options={name: {"value": name, "default": 1} for name in HOSTILE},
        gate_log=[{"tier": HOSTILE[0], "epoch": HOSTILE[1]}],
    )  # fmt: skip
    page = page_of(tmp_path, given)
    plain = page_of(tmp_path / "plain", report(history=[{"epoch": 1, "loss": 1.0}]))
    assert len(page.all("script")) == len(plain.all("script")) == 2
    assert not [e for e in page.elements if any(key.startswith("on") for key in e[1])]
    assert all(e[1]["src"].startswith("./") for e in page.all("img"))
    assert {e[0] for e in page.elements} - {e[0] for e in plain.elements} <= {"details", "summary", "path"}
    for name in HOSTILE:
        shown = figures.UNPRINTABLE.sub("\ufffd", name)
        assert page.text.count(shown) >= 3, name
        assert shown in [row[0] for row in page.rows()]


def test_the_rows_cannot_end_their_script(tmp_path):
    page = page_of(tmp_path, report(images=[image_row(name) for name in HOSTILE]))
    inside = re.findall(r'id="image-rows"[^>]*>(.*?)</script>', page.source, re.DOTALL)[0]
    assert not set("<>&\u2028\u2029") & set(inside)
    assert inside.isascii()


@pytest.mark.parametrize("name", HOSTILE)
def test_links_lead_to_the_file(name):
    link = link_to(f"masks/{name}")
    assert re.fullmatch(r"\./[A-Za-z0-9._~/%-]+", link)
    assert unquote(link, errors="surrogateescape") == f"./masks/{name}"
    assert link_to("//host/x") == "./host/x"


def test_names_stand_apart_from_their_neighbours(tmp_path):
    """A right-to-left name stands in an element that isolates it; invisible turns are made visible."""
    page = page_of(tmp_path, report(images=[image_row(HOSTILE[3]), image_row(HOSTILE[4])]))
    names = [element[2] for element in page.all("bdi")]
    assert HOSTILE[3] in names
    assert "\ufffdgnp.evil" in names
    assert "\u202e" not in page.source


def test_the_page_needs_no_network_and_allows_one_script(tmp_path):
    page = page_of(tmp_path, report())
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page.source)
    assert not page.all("link")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][1]["content"]
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(page.all("script")[1][2].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_headline_figures_with_their_intervals(tmp_path):
    test = {"global": scores(value=0.875, interval=(0.8, 0.925)), "tier1": scores(value=0.75)}
    dice = {
        "split": "test",
        "n": 14,
        "n_groups": 14,
        "dice": 0.9451,
        "iou": 0.9,
        "dice_mean": 0.94,
        "ci95": {"dice": [0.93, 0.96]},
    }
    given = report(metrics={"splits": {"test": test, "val": {"global": scores(value=0.5)}}, "segmentation": dice})
    text = page_of(tmp_path, given).section("headline")
    assert text.count("0.875") == 4
    assert text.count("0.800\N{EN DASH}0.925") == 4
    assert "0.945" in text
    assert "14 images, 14 groups" in text
    assert "20 Anemic images" in text
    assert "0.500" not in text


def test_masks_stand_with_their_own_split(tmp_path):
    dice = {"split": "test", "n": 14, "n_groups": 13, "dice": 0.9451, "iou": 0.9, "dice_mean": 0.94}
    dice["ci95"] = {"dice": [0.93, 0.96], "iou": None, "dice_mean": [0.92, 0.95]}
    page = page_of(tmp_path, report(metrics={"splits": {"val": {"global": scores()}}, "segmentation": dice}))
    assert "Mask Dice" not in page.section("headline")
    row = next(element[2] for element in page.all("tr") if "0.945" in element[2])
    assert row == "Test14130.9450.930\N{EN DASH}0.9600.9000.9400.920\N{EN DASH}0.950"
    assert not page_of(tmp_path, report(metrics={"segmentation": None})).all("section", id="segmentation")


def stain_table(page):
    section = page.section("stain")
    return [e[2] for e in page.all("tr") if e[2] in section and e[2].startswith(("Tier-I", "Global"))]


def test_figures_without_the_stain_stand_beside_those_with_it(tmp_path):
    heads = ("tier1", "tier2", "global")
    test = {**{head: scores(value=0.9, interval=(0.85, 0.95)) for head in heads}, "tier3": None}
    grey = {**{head: scores(value=0.7, interval=(0.6, 0.8)) for head in heads}, "tier3": None}
    even = {**{head: {**scores(value=0.8, interval=None), "accuracy": 0.75} for head in heads}, "tier3": None}
    metrics = {"splits": {"test": test}, "robustness": {"grey": grey, "stain_normalised": even}}
    page = page_of(tmp_path, report(metrics=metrics))
    first, second = "0.9000.850\N{EN DASH}0.950", "0.7000.600\N{EN DASH}0.800"
    verdict = f"{first}{second}0.800{first}{second}0.750"
    rows = [row for row in stain_table(page) if "0.700" in row or row.endswith("not opened" * 6)]
    assert rows == [f"Tier-I{verdict}", f"Tier-II{verdict}", "Tier-III" + "not opened" * 6, f"Global{verdict}"]
    assert "leans on stain, which" in page.section("stain")
    assert "no stain of its training images" not in page.text
    assert "rule of three" not in page.section("stain")


def test_an_interval_without_width_is_explained_where_the_stain_is_gone(tmp_path):
    for name, explained in (("auroc", True), ("sensitivity", False)):  # the latter stands in no column of it
        flat = {**scores(), "ci95": {**scores()["ci95"], name: [0.5, 0.5]}}
        metrics = {"splits": {"test": {"global": scores()}}, "robustness": {"grey": {"global": flat}}}
        assert ("rule of three" in page_of(tmp_path, report(metrics=metrics)).section("stain")) == explained


@pytest.mark.parametrize("robustness", [None, {}, {"grey": None, "stain_normalised": None}])
def test_where_no_stain_was_taken_away_nothing_is_said_of_it(tmp_path, robustness):
    page = page_of(tmp_path, report(metrics={"splits": {"test": {"global": scores()}}, "robustness": robustness}))
    assert not page.all("section", id="stain")


def test_a_run_that_kept_no_stain_says_so_instead_of_the_figure(tmp_path):
    metrics = {"splits": {"test": {"global": scores()}}, "robustness": {"grey": {"global": scores()}}}
    page = page_of(tmp_path, report(metrics=metrics))
    assert "kept no stain of its training images" in page.section("stain")
    assert page.section("stain").count("not evaluated") == 2


@pytest.mark.parametrize("views", [1, 8])
def test_the_headline_names_the_views_that_were_averaged(tmp_path, views):
    metrics = {"splits": {"test": {"global": scores()}}, "provenance": {"test_views": views}}
    page = page_of(tmp_path, report(metrics=metrics))
    assert ("8 turned and mirrored views" in page.section("headline")) == (views == 8)


def test_a_tier_that_never_opened_is_told_from_one_that_was_not_evaluated(tmp_path):
    judged = {"tier1": scores(), "tier2": None, "tier3": None, "global": scores()}
    tiers = {"tier1": {"how": "not opened", "epoch": None}, "tier2": {"how": "not opened", "epoch": None}}
    rows = [image_row("x.png", label_true=1, prob={"tier1": 0.75, "global": 0.75})]
    given = report(images=rows, metrics={"splits": {"test": judged, "train": judged}, "tiers_opened": tiers})
    page = page_of(tmp_path, given)
    drawn = [element[2] for element in page.all("text")]
    assert (drawn.count("not opened"), drawn.count("not evaluated")) == (4, 4)
    told = [element[2] for element in page.all("tr") if element[2].endswith("not opened")]
    assert told == ["Tier-IInot opened", "Tier-IIInot opened"] * 2
    assert [e[2] for e in page.all("li") if e[2].endswith("not opened")] == ["Tier-IInot opened", "Tier-IIInot opened"]
    content = json.loads(page.all("script", id="image-rows")[0][2])
    assert content["missing"] == ["not evaluated", "not opened", "not opened", "not evaluated"]
    assert page.rows()[0][5] == [0.75, None, None, 0.75]
    assert "the tiers that had opened (Tier-II and Tier-III had not)" in page.section("headline")
    notice = "saved before it opened or was forced, so Tier-II and Tier-III were not trained."
    assert notice in page.text
    assert page.text.count("gate did not open") == 1
    assert "None" not in page.text


def test_the_facts_name_the_epoch_of_the_weights(tmp_path):
    metrics = {
        "provenance": {
            "weights": {"file": "w.safetensors", "epoch": 47, "started_from": {"tier1": "chance", "tier2": "ImageNet"}}
        }
    }
    page = page_of(tmp_path, report(metrics=metrics))
    facts = page.all("ul", **{"class": "facts"})[0][2]
    assert "Weights w.safetensors" in facts and "Epoch 47" in facts and "I: chance; II: ImageNet" in facts
    assert "w.safetensors" in page.section("provenance")


def test_the_footer_links_the_files_that_are_there(tmp_path):
    for name in ("predictions.csv", "predictions_val.csv", "metrics.json", "split.csv"):
        (tmp_path / name).write_text("x")
    page = page_of(tmp_path, report())
    linked = [e[1]["href"] for e in page.all("a") if not e[1]["href"].startswith("#") and "." in e[2]]
    assert linked == ["./predictions.csv", "./predictions_val.csv", "./metrics.json"]


@pytest.mark.parametrize(
    ("images", "groups", "said"), [(40, 40, False), (29, 29, True), (40, 19, True), (40, 20, False)]
)
def test_small_samples_make_no_claim(tmp_path, images, groups, said):
    counted = {**scores(n=images, groups=groups), "groups_by_class": [(groups + 1) // 2, groups // 2]}
    for split in ("test", "val"):  # of the validation side the page shows no image
        given = report(images=[], metrics={"splits": {split: {"global": counted}}})
        assert ("No claim about accuracy" in page_of(tmp_path, given).text) == said


@pytest.mark.parametrize(("effective", "said"), [(12.6, True), (20.0, False), (None, False)])
def test_few_or_unequal_groups_are_said_to_decide_the_figures(tmp_path, effective, said):
    counted = {**scores(n=40, groups=37), "groups_by_class": [20, 17], "n_groups_effective": effective}
    page = page_of(tmp_path, report(metrics={"splits": {"test": {"global": counted}}}))
    assert ("decide these figures" in page.section("headline")) == said
    facts = page.all("ul", **{"class": "facts"})[0][2]
    assert groups_in_words({"n_groups": 9, "n_groups_effective": 1.2}) == "9 groups, as good as a single one"
    assert ("37 groups, as good as 13 equal ones" in facts) == (effective == 12.6) and "37 groups" in facts


@pytest.mark.parametrize(
    ("effective", "by_class", "said"),
    [
        (46.1, [300.0, 1.4], "most of the Anemic images"),  # a slide of fifty among sixty anemic images
        (1.2, [1.1, 10.0], "most of the images"),
        (46.1, [300.0, 4.0], "decide these figures"),
        (46.1, [30.0, 12.0], None),
    ],
)
def test_a_class_that_one_group_decides_is_told_of(tmp_path, effective, by_class, said):
    counted = {**scores(n=360, groups=311), "groups_by_class": [300, 11], "n_groups_effective": effective}
    counted["effective_by_class"] = by_class
    told = page_of(tmp_path, report(metrics={"splits": {"test": {"global": counted}}})).section("headline")
    assert said is None or said in told
    assert ("No claim about accuracy" in told) == bool(said and "most of" in said)
    assert ("decide these figures" in told) == (said == "decide these figures")


def test_one_is_counted_in_the_singular(tmp_path):
    counted = {**scores(n=1, groups=1), "confusion_matrix": [[0, 0], [0, 1]], "groups_by_class": [0, 1]}
    metrics = {"splits": {"test": {"global": counted}}, "provenance": {"split": {"left_out": {"equal to another": 1}}}}
    metrics["verdicts"] = {"group": {"test": {"global": {**counted, "mixed": 1, "single": 0}}}}
    given = {"gate_log": [{"tier": 1, "epoch": 1, "decision": "open"}], "history": [{"epoch": 1, "train_loss": 0.5}]}
    text = page_of(tmp_path, report(images=[image_row("x.png", label_true=1)], metrics=metrics, **given)).text
    assert "The one decision" in text and "1 with images of both classes is left out" in text
    assert (
        "1 image, 1 group" in text
        and "1 Anemic image" in text
        and "1 image left out of the data:equal to another." in text
    )
    assert "1 image from 0 Healthy and 1 Anemic group." in text
    assert not re.findall(r"\b1 (?:labelled |Anemic |Healthy )*(?:images|groups|cells|epochs|decisions)\b", text)


def test_what_was_left_out_of_the_data_is_on_the_first_screen(tmp_path):
    left_out = {"equal to another image": 1200, "in both classes": 34}
    metrics = {"splits": {"test": {"global": scores()}}, "provenance": {"split": {"left_out": left_out}}}
    header = page_of(tmp_path, report(metrics=metrics)).all("header")[0][2]
    assert "1,234 images left out of the data:1,200 equal to another image; 34 in both classes." in header


def test_notices(tmp_path):
    quiet = page_of(tmp_path, report())
    assert "Research use only." in quiet.text
    for words in ("SYNTHETIC", "True masks", "not disjoint", "No test split", "forced"):
        assert words not in quiet.text
    metrics = {
        "splits": {"val": {"global": scores()}},
        "provenance": {"synthetic": True, "binary_from": "gt", "group_overlap": ["p1", "p2"]},
        "tiers_opened": {"tier2": {"how": "forced"}, "tier3": {"how": "not opened"}},
    }  # fmt: skip
    loud = page_of(tmp_path, report(metrics=metrics, warnings=["three files were unreadable"]))
    for words in (
        "SYNTHETIC DATA.", "True masks were used.", "The splits are not disjoint.", "2 groups have", "first: p1",
        "No test split.", "Tier-II was forced.", "Tier-III's gate did not open.", "three files were unreadable",
    ):  # fmt: skip
        assert words in loud.text


def test_an_interval_without_width_is_explained(tmp_path):
    perfect = {"splits": {"test": {"global": scores(value=1.0, interval=(1.0, 1.0))}}}
    assert "rule of three" in page_of(tmp_path, report(metrics=perfect)).text
    assert "rule of three" not in page_of(tmp_path, report()).text


def test_undefined_figures_are_dashes(tmp_path):
    undefined = {**scores(interval=None), "auroc": None}
    page = page_of(tmp_path, report(metrics={"splits": {"test": {"global": undefined}}}))
    assert figures.EM_DASH in page.section("headline")
    assert "no interval" in page.section("headline")
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_tiers_are_marked_by_more_than_colour(tmp_path):
    page = page_of(tmp_path, report(images=[image_row("x.png", label_true=0), image_row("y.png", label_true=None)]))
    text = page.section("images")
    for verdict in ("0.250 Healthy \N{CHECK MARK}", "0.500 Healthy \N{CHECK MARK}", "0.750 Anemic \N{BALLOT X}"):
        assert verdict in text
    assert "\N{BALLOT X} wrong" in text
    assert "? no label" in text
    assert "truth unknown" in text


def test_many_images_stay_light(tmp_path):
    rows = [image_row(f"{i:05d}.png", i) for i in range(12_000)]
    page = page_of(tmp_path, report(images=rows))
    assert len(page.rows()) == 12_000
    assert page.rows()[7] == [
        "00007.png", "test", "g7", 1, 1, [0.25, 0.5, 0.75, 0.812], 0.9,
        "./images/00007.png", None, "./masks/00007.png.png", "./o.png", None, None,
    ]  # fmt: skip
    assert len(page.all("article", **{"class": "image panel right"})) == 25  # half of the first fifty, for no script
    assert len(page.source) < 4_000_000
    assert all(image[1]["loading"] == "lazy" for image in page.all("img"))


def test_without_anything_there_is_still_a_page(tmp_path):
    page = page_of(tmp_path, Report(title="empty"))
    assert page.all("section") == []
    assert "Research use only." in page.text
    unlabelled = page_of(tmp_path, Report(title="p", images=[image_row("x", label_true=None, dice=None, prob={})]))
    assert [e[1]["id"] for e in unlabelled.all("section")] == ["severity", "images"]
    assert "Module-II did not run" in unlabelled.section("severity")
    assert unlabelled.section("images").count("not evaluated") == 4


def test_sections_stand_in_order_and_in_the_navigation(tmp_path):
    full = report(
        gate_log=[{"tier": 1, "epoch": 3, "decision": "yes", "train_accuracy": 0.9, "threshold": 0.85}],
        history=[{"epoch": 1, "loss_L1": 2.0}],
        options={"niter": {"value": 3, "default": 100}, "seed": {"value": 0, "default": 0}},
    )
    full.metrics |= {"segmentation": {"dice": 0.9, "iou": 0.8}, "severity": {"n": 3}}
    full.metrics["robustness"] = {"grey": {"global": scores()}, "stain_normalised": None}
    full.metrics["operating_point"] = {"rule": "youden", "chosen_on": "val", "splits": {"test": {"global": scores()}}}
    full.metrics["verdicts"] = {"group": {"test": {"global": scores()}}, "patient": None}
    full.gradcam = GradCams(why_not="captum is not installed")
    page = page_of(tmp_path, full)
    keys = [section.key for section in SECTIONS]
    assert [e[1]["id"] for e in page.all("section")] == keys
    assert [e[1]["href"] for e in page.all("a") if e[1]["href"].startswith("#")] == [f"#{key}" for key in keys]
    assert "python x.py 'a b'" in page.section("provenance")
    assert "1 options at their default" in page.section("provenance")
    assert "Options that differ" in page.section("provenance")
    assert len(page.all("h1")) == 1


def test_grades_stand_in_a_table_and_warnings_of_images_do_not(tmp_path):
    given = report()
    warnings = {f"{i}.png": ["cells are too small"] for i in range(40)}
    given.metrics["severity"] = {
        "cells": 7,
        "image_warnings": warnings,
        "rule": scores(12, 9, 0.75),
        "agreement": 0.625,
    }
    page = page_of(tmp_path, given)
    row = next(e[2] for e in page.all("tr") if e[2].startswith("Rule"))
    assert row == "Rule129" + "0.7500.800\N{EN DASH}0.925" * 5
    said = page.section("severity")
    assert "alike" in said and "62.5%" in said and "cells7" in said and "too small" not in said


def test_confusion_grid_counts_and_percentages():
    drawn = figures.confusion_grid(
        {"test": {"tier2": {**scores(), "confusion_matrix": [[3, 1], [0, 0]]}}, "val": {"global": None}}
    )
    words = [node.text for node in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert (words.count("not evaluated"), words.count("not opened")) == (10, 1)
    assert words.count("75.0%") == words.count("25.0%") == 1
    assert words.count("no images") == 2
    assert "accuracy 0.875" in words
    assert "(0.800\N{EN DASH}0.925)" in words
    assert [w for w in words if w in {*figures.HEADS.values(), *figures.SPLITS.values()}] == [
        "Tier-I", "Tier-II", "Tier-III", "Global", "Training", "Validation", "Test",
    ]  # fmt: skip


def test_pictures_that_no_image_has_take_no_room(tmp_path):
    def shown(true_mask):
        page = page_of(tmp_path, report(images=[image_row("a.png"), image_row("b.png", 1, true_mask=true_mask)]))
        content = json.loads(page.all("script", id="image-rows")[0][2])
        return list(content["pictures"]), "true only (missed)" in page.text, "true mask" in page.text

    assert shown(None) == (["smear", "predicted_mask", "overlay"], False, False)
    assert shown("masks/true/b.png") == (["smear", "true_mask", "predicted_mask", "overlay"], True, True)


def test_large_counts_have_their_thousands_apart(tmp_path):
    given = report()
    given.metrics["splits"]["test"] = {head: scores(12000, 2400) for head in figures.HEADS}
    page = page_of(tmp_path, given)
    assert "12,000 images, 2,400 groups" in page.text and "Images 12,000" in page.text
    assert "12000" not in page.text


def test_no_two_loss_terms_look_alike():
    names = [f"loss_{i}" for i in range(20)]
    drawn = figures.training_curves([{"epoch": e, **dict.fromkeys(names, e)} for e in (1, 2)])
    styles = re.findall(r'<path class="line ([^"]*)"', drawn) or re.findall(r'class="(line [^"]*)"', drawn)
    assert len(set(styles)) == len(names)


def test_curves_and_timeline_are_xml_and_show_openings():
    history = [
        {"epoch": e, "loss": {"L1<": 2 / e, "D": float("nan")}, "train": {"tier1": {"accuracy": 0.5 + e / 20}}}
        for e in range(1, 9)
    ]
    gate = [
        {"tier": "1", "epoch": "2", "decision": "no", "train_accuracy": "0.6", "threshold": "0.85"},
        {"tier": "tier1", "epoch": 4, "decision": "yes", "train_accuracy": 0.9},
        {"tier": 2, "epoch": 6, "opened": True, "forced": "True"},
        {"tier": 3, "epoch": 8, "decision": "stop", "train_accuracy": 0.7, "val_accuracy": float("nan")},
    ]
    curves, lanes = figures.training_curves(history, gate), figures.gate_timeline(gate)
    for drawn in (curves, lanes, figures.training_curves([]), figures.gate_timeline([])):
        root = ElementTree.fromstring(drawn)
        assert root.get("role") == "img"
        assert root[0].text
        assert "nan" not in drawn.lower()
    words = [node.text for node in ElementTree.fromstring(curves).iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("Tier-I opened") == words.count("Tier-II forced") == 2  # in both panels
    assert {"L1<", "Tier-I training"} <= set(words)
    nested = [
        {
            "epoch": 1,
            "train": {"loss_cls": 0.5},
            "val": {"loss": 0.7, "accuracy": {"global": 0.8}, "auroc": {"global": 0.3}},
        }
    ]
    drawn = figures.training_curves(nested)
    assert all(f">{name}<" in drawn for name in ("train cls", "val loss", "Global validation"))
    assert "Global validation ends at 0.8" in drawn
    assert "opened, epoch 4" in lanes
    assert "forced, epoch 6" in lanes
    assert "stopped, epoch 8" in lanes


def test_a_line_passes_through_its_points():
    axes = figures.Axes(0.0, 0.0, 100.0, 50.0, (1.0, 11.0), (0.0, 1.0))
    assert (axes.x(6.0), axes.y(0.25), axes.y(2.0)) == (50.0, 37.5, 0.0)
    logarithmic = figures.Axes(0.0, 0.0, 1.0, 90.0, (0.0, 1.0), (0.1, 100.0), logarithmic=True)
    assert logarithmic.y(10.0) == pytest.approx(30.0)
    assert logarithmic.ticks() == pytest.approx([0.1, 1.0, 10.0, 100.0])


def test_overlay_colours_tell_who_is_right():
    smear = np.full((60, 60, 3), 200, np.uint8)
    predicted, true = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    predicted[10:30, 10:30] = true[10:30, 10:30] = True  # agreed
    predicted[40:50, 5:20] = True  # too much
    true[40:50, 35:50] = True  # missed
    drawn = overlay_image(smear, predicted, true)
    assert tuple(drawn[10, 20]) == tuple(drawn[40, 10]) == PREDICTED_COLOUR
    assert tuple(drawn[40, 40]) == TRUE_COLOUR
    assert tuple(drawn[20, 20]) == tuple(drawn[0, 0]) == (200, 200, 200)
    assert tuple(drawn[45, 12]) == tuple(np.round(0.55 * 200 + 0.45 * np.array(PREDICTED_COLOUR)).astype(int))
    assert tuple(drawn[45, 42]) == tuple(np.round(0.55 * 200 + 0.45 * np.array(TRUE_COLOUR)).astype(int))
    assert tuple(overlay_image(smear, predicted)[45, 12]) == (200, 200, 200)
    assert (smear == 200).all()
    with pytest.raises(ValueError, match="one size"):
        overlay_image(smear, predicted[:-1])


def test_thumbnails_keep_their_shape_and_never_grow(tmp_path, rng):
    smear = rng.integers(0, 255, (96, 122, 3), dtype=np.uint8)
    save_thumbnail(tmp_path / "small.jpg", smear, size=61)
    save_thumbnail(tmp_path / "same.png", smear)
    with Image.open(tmp_path / "small.jpg") as small, Image.open(tmp_path / "same.png") as same:
        assert (small.format, small.size) == ("JPEG", (61, 48))
        assert np.array_equal(np.array(same), smear)
    with pytest.raises(ValueError, match="must end in"):
        save_thumbnail(tmp_path / "x.gif", smear)


def test_a_page_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "file" / "results", Report(title="x"))


def test_every_decision_of_the_gate_is_told_with_its_reason(tmp_path):
    """Rows as the training loop writes them to gate_log.csv, all texts."""
    common = {"threshold": "0.85", "val_accuracy": "0.8", "best_val_accuracy": "0.99", "tolerance": "0.02"}
    rows = [
        {"epoch": "1", "tier": "1", "decision": "stay", "reason": "too <low>", "train_accuracy": "0.6", **common},
        {"epoch": "2", "tier": "1", "decision": "open", "reason": "agreed", "train_accuracy": "0.9", **common},
        {"epoch": "3", "tier": "2", "decision": "forced", "reason": "out of epochs", "train_accuracy": "0.7", **common},
        {"epoch": "4", "tier": "3", "decision": "stop", "reason": "out of epochs", "train_accuracy": "0.7", **common},
    ]
    page = page_of(tmp_path, report(gate_log=rows))
    table = [e for e in page.all("tr") if e[2].startswith("Tier-")][-4:]
    expected = ["No, stays", "Yes, opens", "forced", "run stopped"]
    assert all(word in row[2] for word, row in zip(expected, table, strict=True))
    assert table[0][2].startswith(
        "Tier-I10.6000.8500.800"
    )  # tier, epoch, training accuracy, needed, validation accuracy
    assert "too <low>" in table[0][2]
