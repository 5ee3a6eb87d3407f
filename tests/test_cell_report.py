"""The cells' pages as a parser sees them: what they count, where outlines lie, and that no text becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
import threading
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon as filled_polygon
from skimage.measure import approximate_polygon

from data.synthetic import synthesize
from models.module2.kinds import KINDS, NOT_JUDGED, kinds_of
from models.module2.morphometry import measure_cells
from models.module2.severity import score_cells, summarise
from models.module2.smear_cells import BORDER, PLATELET, LeftOut, SmearCells
from tests.test_report import HOSTILE, Page, image_row, report
from util import cell_figures
from util.cell_page import DIAMETER_RELATIVE, DIAMETER_UM, EN_DASH, PICTURE_SIZE, WORST_CELLS, SmearShown
from util.cell_report import FIRST_ROWS, MOST_ROWS, CellGallery
from util.figures import UNPRINTABLE
from util.report import link_to, write_report
from util.results import output_stems

NUMBER = r"-?\d*\.?\d+"


def smear_cells(rgb, instances, um_per_px, warnings=()):
    table = measure_cells(instances, rgb, um_per_px=um_per_px)
    left = [
        LeftOut(float(table.x[i]), float(table.y[i]), int(table.area_px[i]), BORDER, int(table.cell[i]))
        for i in np.flatnonzero(table.border)
    ]
    left.append(LeftOut(60.0, 70.0, 40, PLATELET))
    kinds, scores, summary = kinds_of(table), score_cells(table), summarise(table)
    return SmearCells(instances, instances > 0, table, kinds, scores, summary, left, 20.7, warnings)


def arguments(name="a/b.png", stem="a/b", *, rgb, instances, um_per_px=0.34, warnings=(), severity_true=None):
    found = smear_cells(rgb, instances, um_per_px, warnings)
    return {
        "name": name, "stem": stem, "rgb": rgb, "instances": instances, "cells": found.cell_rows(name),
        "left_out": found.left_out_rows(name), "summary": dataclasses.asdict(found.summary),
        "cell_diameter_px": found.cell_diameter_px, "warnings": warnings, "severity_true": severity_true,
    }  # fmt: skip


def synthetic(index=3, size=160, **given):
    smear = synthesize(index, seed=1, size=size)
    return arguments(rgb=smear.rgb, instances=smear.instances.astype(np.int32), **given)


@pytest.fixture(scope="module")
def smear():
    return synthetic(size=300, severity_true="Chronic", warnings=("cells are <crowded>",))


def empty(name="empty.png", stem="empty"):
    return arguments(name, stem, rgb=np.full((80, 90, 3), 230, np.uint8), instances=np.zeros((80, 90), np.int32))


def written(folder, given, **changed):
    gallery = CellGallery(folder)
    row = gallery.add(index=0, **{**given, **changed})
    return Page(folder / row.page), gallery


def test_the_page_of_a_drawn_smear_says_so_and_that_of_another_does_not(tmp_path):
    for drawn in (True, False):
        gallery = CellGallery(tmp_path / str(drawn), synthetic=drawn)
        page = Page(tmp_path / str(drawn) / gallery.add(index=0, **synthetic()).page)
        assert ("SYNTHETIC DATA." in page.text) is drawn


def main_page(folder, gallery, count=1):
    names = [row.name for row in gallery.rows()][:count]
    rows = [image_row(name, i, **gallery.image_fields(i)) for i, name in enumerate(names)]
    return Page(write_report(folder, report(images=rows, cells=gallery)))


def cell_paths(page):
    """Each drawn thing's anchor, path and facts."""
    found = {}
    for tag, attributes, inside in page.elements:
        if tag == "path" and "id" in attributes:
            found[attributes["id"]] = (attributes["d"], inside.split("\n"), attributes["class"].split())
    return found


def polygons(path):
    """The closed polygons of a path of one absolute move and relative lines each."""
    rings = []
    for ring in re.findall(r"M[^M]*z", path):
        numbers = [float(text) for text in re.findall(NUMBER, ring)]
        rings.append(np.cumsum(np.array(numbers).reshape(-1, 2), axis=0))
    return rings


def drawn_mask(path, shape):
    """Pixels whose middle lies within the path, by the even-odd rule."""
    mask = np.zeros(shape, bool)
    for ring in polygons(path):
        rows, columns = filled_polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, shape)
        inside = np.zeros(shape, bool)
        inside[rows, columns] = True
        mask ^= inside
    return mask


def values_of(page):
    terms, values = page.all("dt"), page.all("dd")
    return {term[2]: value[2] for term, value in zip(terms, values, strict=True)}


def test_the_counts_on_the_page_are_those_given(tmp_path, smear):
    page, _ = written(tmp_path, smear)
    said, kinds = smear["summary"], [row["abnormal_kind"] for row in smear["cells"]]
    shown = {label[2].rstrip("0123456789,"): label[2] for label in page.all("label")}
    for kind in KINDS:
        if kind in kinds:
            assert shown.pop(kind) == f"{kind}{kinds.count(kind)}"
    assert shown == {"left out": f"left out{len(smear['left_out'])}"}
    paths = cell_paths(page)
    assert {key for key in paths if key[0] == "c"} == {f"c{row['cell']}" for row in smear["cells"]}
    assert len([key for key in paths if key[0] == "o"]) == len(smear["left_out"])
    facts = values_of(page)
    assert facts["Red cells"] == f"{said['cells']}, {said['border']} cut by the border"
    assert facts["Overlapped"] == f"{said['overlapped']} ({100 * said['overlapped_share']:.1f}%)"
    assert facts["Left out"] == f"{said['border']} cut by the border; 1 platelet"
    assert facts["Anisocytosis index"].startswith(f"{said['diameter_cv']:.1f}%")
    assert facts["Severity score"] == f"{said['severity_score']:.3f}"
    assert (facts["Grade"], facts["True grade"]) == (said["severity"], "Chronic")
    assert "cells are <crowded>" in page.text


def test_each_cell_says_its_measures(tmp_path, smear):
    page, _ = written(tmp_path, smear)
    row = max(smear["cells"], key=lambda row: row["severity_score"])
    path, facts, classes = cell_paths(page)[f"c{row['cell']}"]
    assert facts[:4] == [
        f"Cell {row['cell']}: {row['abnormal_kind']}",
        f"Diameter: {row['diameter_px']:.1f}\xa0px, {row['diameter_um']:.2f}\xa0\u03bcm",
        f"Roundness: {row['roundness']:.2f}",
        f"Central pallor: {row['central_pallor']:.2f}",
    ]
    assert facts[4] == (
        f"Scores: S\xa0{row['size_score']:.2f}, R\xa0{row['roundness_score']:.2f}, CP\xa0{row['pallor_score']:.2f}"
    )
    assert classes == ["cell", cell_figures.kind_class(row["abnormal_kind"])]
    number = next(row["cell"] for row in smear["left_out"] if row["cell"])
    title, reason, _ = next(
        facts for _, facts, _ in cell_paths(page).values() if facts[0].startswith(f"Cell {number}:")
    )
    assert (title, reason) == (f"Cell {number}: left out", "Reason: cut by the border")
    platelet = next(path for path, facts, _ in cell_paths(page).values() if facts[1] == "Reason: platelet")
    assert platelet.startswith(f"M{60.5 - (40 / np.pi) ** 0.5:.1f} 70.5a")


def test_outlines_lie_on_their_cells(tmp_path, smear):
    page, _ = written(tmp_path, smear)
    paths, instances = cell_paths(page), smear["instances"]
    ratios = []
    for row in smear["cells"]:
        cell, drawn = instances == row["cell"], drawn_mask(paths[f"c{row['cell']}"][0], instances.shape)
        ratios.append(drawn.sum() / cell.sum())
        if cell.sum() >= 60:  # slivers under other cells are rounded off
            assert (cell & drawn).sum() / (cell | drawn).sum() > 0.85, row["cell"]
    assert 0.97 < np.median(ratios) < 1.03


def test_outlines_are_in_the_images_own_pixels():
    instances = np.zeros((40, 60), np.int32)
    instances[10:30, 20:45] = 7
    instances[16:24, 28:36] = 0  # a hole
    instances[35, 50] = 9  # smaller than anything that survives the smoothing
    found = cell_figures.cell_outlines(instances, [7, 8, 9], 0.3)
    assert set(found) == {7, 9}
    outer, hole = sorted(found[7], key=len, reverse=True)
    assert abs(cell_figures.polygon_area(outer) + cell_figures.polygon_area(hole)) == pytest.approx(436, rel=0.03)
    assert cell_figures.polygon_area(outer) * cell_figures.polygon_area(hole) < 0
    assert outer.min(axis=0) == pytest.approx([20, 10], abs=0.3)
    assert outer.max(axis=0) == pytest.approx([45, 30], abs=0.3)
    assert found[9][0].mean(axis=0) == pytest.approx([50.5, 35.5], abs=0.3)


@pytest.mark.parametrize("tolerance", [0.2, 0.5, 2.0])
def test_outlines_lose_points_but_no_more_than_the_tolerance(tolerance):
    """On closed outlines with lobes; scikit-image's own Douglas-Peucker says how few points are enough."""
    turn = np.linspace(0, 2 * np.pi, 200)
    for lobes in (0, 3, 7):
        radius = 20 + 6 * np.cos(lobes * turn)
        ring = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
        ring[-1] = ring[0]
        found = cell_figures.simplified(ring, tolerance)
        start, step = found[:-1], np.diff(found, axis=0)
        along = np.clip(((ring[:, None] - start) * step).sum(-1) / (step**2).sum(-1), 0, 1)
        away = np.linalg.norm(ring[:, None] - (start + along[..., None] * step), axis=-1).min(axis=1)
        assert away.max() <= tolerance
        assert 3 < len(found) <= 1.2 * len(approximate_polygon(ring, tolerance)) + 1
        assert (found[0] == found[-1]).all()


def test_paths_give_their_points_back():
    ring = np.array([[10.26, 3.0], [10.24, 3.5], [9.0, -0.6], [0.04, 12.0], [10.26, 3.0]])
    (points,) = polygons(cell_figures.path_data([ring]))
    assert points == pytest.approx(np.round(ring[:-1], 1))
    (whole,) = polygons(cell_figures.path_data([ring * 10], decimals=0))
    assert whole == pytest.approx(np.round(ring[:-1] * 10))


def test_the_worst_cells_come_first_and_are_cut_out(tmp_path, smear):
    page, _ = written(tmp_path, smear)
    table = page.all("table", **{"class": "worst"})[0]
    inside = page.elements[page.elements.index(table) :]
    numbers = [int(e[2]) for e in inside if e[0] == "a" and e[1]["href"].startswith("#c")]
    ranked = sorted(smear["cells"], key=lambda row: -row["severity_score"])
    assert numbers == [row["cell"] for row in ranked[:WORST_CELLS]]
    crop = next(e for e in inside if e[0] == "image")[1]
    left, top, width, height = (int(crop[key]) for key in ("x", "y", "width", "height"))
    worst = smear["instances"][top : top + height, left : left + width] == numbers[0]
    assert worst.sum() == (smear["instances"] == numbers[0]).sum()
    pixels = Image.open(io.BytesIO(base64.b64decode(crop["href"].removeprefix("data:image/jpeg;base64,"))))
    true = smear["rgb"][top : top + height, left : left + width].astype(float)
    assert pixels.size == (width, height)
    assert np.abs(np.asarray(pixels, float) - true).mean() < 8


def test_hostile_names_are_text_and_their_links_lead_to_files(tmp_path):
    names = [f"Anemic/{HOSTILE[0]}", *HOSTILE[1:], "<b>/100% #/it's.png"]  # the last one's stem is another's
    stems, gallery = output_stems(names), CellGallery(tmp_path)
    plain = synthetic()
    for index, name in enumerate(names):
        left = [{**plain["left_out"][0], "reason": name}]
        given = {**plain, "name": name, "stem": stems[name], "warnings": HOSTILE, "left_out": left}
        gallery.add(index=index, **{**given, "severity_true": name})
    page = main_page(tmp_path, gallery, len(names))
    for name in ("cells.csv", "left_out.csv", "predictions.csv"):
        (tmp_path / name).touch()
    table = page.section("severity")
    links = [e[1]["href"] for e in page.all("a") if e[1]["href"].startswith("./cells/")]
    assert len(links) == 2 * len(names)  # in the table and in the cards
    assert sum("cells/%3Cb%3E/100%25%20%23/it%27s.html" in link for link in links) == 2
    assert not [e for e in page.elements if any(key.startswith("on") for key in e[1])]
    for index, name in enumerate(names):
        shown = UNPRINTABLE.sub("\ufffd", name)
        assert shown in table
        path = tmp_path / unquote(link_to(gallery.rows()[index].page), errors="surrogateescape")
        own = Page(path)
        assert own.all("h1")[0][2] == shown
        assert shown in values_of(own)["Left out"]
        assert len(own.all("script")) == 1
        assert not [e for e in own.elements if any(key.startswith("on") for key in e[1])]
        targets = [e[1]["href"] for e in own.elements if "href" in e[1] and not e[1]["href"].startswith(("#", "data:"))]
        assert len(targets) == 5  # the picture, back, three tables
        for target in targets:
            assert (path.parent / unquote(target.split("#")[0], errors="surrogateescape")).is_file(), target
    assert "<script>alert" not in page.source


def test_the_page_needs_no_network_and_allows_one_script(tmp_path, smear):
    page, _ = written(tmp_path, smear)
    assert not re.findall(r"(?:src|href)=\"(?:[a-z]+:)?//", page.source)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][1]["content"]
    digest = base64.b64encode(hashlib.sha256(page.all("script")[0][2].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def folder_bytes(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name.endswith((".html", ".jpg"))}


def test_any_order_of_threads_gives_the_same_files(tmp_path):
    images = [synthetic(i, name=f"{i}.png", stem=str(i), um_per_px=(0.34, None)[i % 2]) for i in range(6)]
    for place, (given, reason) in enumerate(zip(images, "ebdcaf", strict=True)):
        given["left_out"] = [{**given["left_out"][0], "reason": reason}]  # equal counts: only names can order them
        given["severity_true"] = (None, "Mild", "Chronic")[place % 3]
    whole = []
    for name, order in (("first", range(6)), ("second", (5, 3, 0, 4, 1, 2))):
        gallery = CellGallery(tmp_path / name, pages=4)
        threads = [threading.Thread(target=gallery.add, kwargs={"index": i, **images[i]}) for i in order]
        for thread in threads:
            thread.start()
            if name == "second":
                thread.join()
        for thread in threads:
            thread.join()
        main_page(tmp_path / name, gallery, 6)
        whole.append(folder_bytes(tmp_path / name))
    assert whole[0] == whole[1]
    assert {name for name in whole[0] if name.startswith("cells")} == {
        f"cells/{i}.{kind}" for i in range(4) for kind in ("html", "jpg")
    }


def test_what_is_not_known_is_a_dash(tmp_path, smear):
    rows = [dict(row) for row in smear["cells"]]
    for column in ("central_pallor", "size_score", "severity_score", "pallor_score", "diameter_um"):
        rows[0][column] = (None, float("nan"))[column == "size_score"]
    rows[0]["abnormal_kind"] = ""
    unknown = dict.fromkeys(smear["summary"], float("nan")) | {"severity": None, "kinds": {}, "um_per_px": None}
    unknown["diameter_px"] = (float("nan"),) * 5
    page, gallery = written(tmp_path, smear, cells=rows, summary=unknown, cell_diameter_px=float("nan"))
    _, facts, classes = cell_paths(page)[f"c{rows[0]['cell']}"]
    assert facts[0] == f"Cell {rows[0]['cell']}: {NOT_JUDGED}"
    assert classes[1] == "k-not-judged"
    assert facts[3:] == [
        f"Central pallor: {EN_DASH}",
        f"Scores: S\xa0{EN_DASH}, R\xa0{rows[0]['roundness_score']:.2f}, CP\xa0{EN_DASH}",
        f"Severity: {EN_DASH}",
        *(["Overlapped: yes"] if rows[0]["overlapped"] else []),
    ]
    assert values_of(page)["Median diameter"] == values_of(page)["Usual diameter, by area"] == EN_DASH
    main = main_page(tmp_path, gallery)
    row = next(e[2] for e in main.all("tr") if e[2].startswith("a/b.png"))
    assert row.startswith(f"a/b.pngcells are <crowded>{EN_DASH}{EN_DASH}Chronic")
    for text in (page.text, main.text, *[e[1]["d"] for e in page.elements if "d" in e[1]]):
        assert not re.search(r"\b(nan|None|inf)\b", text)


def test_an_image_without_a_cell(tmp_path):
    page, gallery = written(tmp_path, empty())
    assert "No whole red cell was found" in page.text
    assert not page.all("table")
    assert "No cell was judged." in page.text
    row = gallery.rows()[0]
    assert (row.cells, row.score, row.grade, row.overlapped_share) == (0, None, None, None)
    main = main_page(tmp_path, gallery)
    assert "0 red cells, 0 overlapped, not graded" in main.text
    assert "1 not graded" in main.section("severity")


def test_a_page_of_1200_cells_is_light(tmp_path):
    yy, xx = np.mgrid[:28, :28]
    cell = np.hypot(yy - 13.5, xx - 13.5) < 11
    instances = np.zeros((40 * 28, 30 * 28), np.int32)
    for number in range(1200):
        row, column = divmod(number, 30)
        instances[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28][cell] = number + 1
    rgb = np.where(instances[..., None] > 0, (200, 120, 140), (240, 235, 235)).astype(np.uint8)
    given = arguments(rgb=np.pad(rgb, ((0, 800), (0, 0), (0, 0))), instances=np.pad(instances, ((0, 800), (0, 0))))
    page, _ = written(tmp_path, given)
    assert len([key for key in cell_paths(page) if key[0] == "c"]) == 1200
    assert (tmp_path / "cells/a/b.html").stat().st_size < 1_000_000
    with Image.open(tmp_path / "cells/a/b.jpg") as picture:
        assert picture.size == (round(840 * PICTURE_SIZE / 1920), PICTURE_SIZE)
    view = page.all("svg", id="smear")[0][1]
    assert view["viewbox"] == "0 0 840 1920"


def test_beyond_the_most_outlines_the_worst_are_drawn(tmp_path, smear, monkeypatch):
    monkeypatch.setattr(cell_figures, "MOST_OUTLINES", 20)
    page, _ = written(tmp_path, smear)
    ranked = sorted(smear["cells"], key=lambda row: -row["severity_score"])
    assert {key for key in cell_paths(page) if key[0] == "c"} == {f"c{row['cell']}" for row in ranked[:20]}
    assert f"{len(ranked) - 20} of the red cells are not drawn" in page.text


def test_the_main_page_sums_up_all_images(tmp_path):
    images = [synthetic(i, name=f"{i}.png", stem=f"{i}", um_per_px=(0.34, None)[i % 2]) for i in range(4)]
    gallery = CellGallery(tmp_path, pages=2)
    for i, given in enumerate(images):
        gallery.add(index=i, **given)
    page = main_page(tmp_path, gallery, 4)
    cards = {e[2] for e in page.all("article") if "card" in e[1]["class"].split()}
    cells, judged = (sum(one["summary"][key] for one in images) for key in ("cells", "judged"))
    overlapped, border = (sum(one["summary"][key] for one in images) for key in ("overlapped", "border"))
    assert f"Red cells{cells:,}{judged:,} judged{border:,} at a border" in cards
    assert f"Overlapped{100 * overlapped / cells:.1f}%{overlapped:,} cells" in cards
    assert f"Left out{border + 4:,}{border:,} cut by the border; 4 platelet" in cards
    assert "Images42 with a page of their cells" in cards
    kinds = [row["abnormal_kind"] for one in images for row in one["cells"]]
    drawn = [e[2] for e in page.all("text")]
    for kind in set(kinds) - {""}:
        share = kinds.count(kind) / (len(kinds) - kinds.count(""))
        assert drawn[drawn.index(kind) + 1] == f"{kinds.count(kind):,} ({100 * share:.1f}%)"
    ranked = sorted(images, key=lambda one: -one["summary"]["severity_score"])
    table = page.all("table", **{"class": "smears"})[0]
    assert [row[2].split(".png")[0] for row in page.all("tr") if row[2] in table[2] and ".png" in row[2]] == [
        one["stem"] for one in ranked
    ]
    assert not page.all("table", **{"class": "agreement"})
    assert "calibrated on synthetic smears" in page.section("severity")
    said = images[0]["summary"]
    words = f"{said['cells']} red cells, {said['overlapped']} overlapped, {said['severity']}"
    assert page.rows()[0][-2:] == [f"{words} ({said['severity_score']:.3f})", "./cells/0.html"]
    assert page.rows()[3][-1] is None
    assert [e[1]["href"] for e in page.all("a") if "/cells/" in e[1]["href"]][-2:] == [
        "./cells/0.html",
        "./cells/1.html",
    ]


def test_the_parts_of_the_red_cells_add_up(tmp_path):
    given = synthetic(size=300)
    given["summary"] = given["summary"] | {"cells": 1234, "judged": 1000, "border": 220}
    page, gallery = written(tmp_path, given)
    for cards in (page, main_page(tmp_path, gallery)):
        found = [e[2] for e in cards.all("article") if e[2].startswith("Red cells")]
        assert found == ["Red cells1,2341,000 judged220 at a border14 without a stained rim"]
    given["summary"] = given["summary"] | {"judged": 1014}
    page, _ = written(tmp_path / "all", given)
    assert "rim" not in next(e[2] for e in page.all("article") if e[2].startswith("Red cells"))


def test_histograms_hold_every_measured_cell(tmp_path):
    known, relative = synthetic(3), synthetic(4, um_per_px=None)
    gallery = CellGallery(tmp_path, pages=0)
    gallery.add(index=0, **known)
    gallery.add(index=1, **relative)
    totals = gallery._totals.bins
    expected, _ = np.histogram(
        np.clip([row["diameter_um"] for row in known["cells"]], 3, 12.999), np.linspace(3, 13, 41)
    )
    assert totals[DIAMETER_UM].tolist() == expected.tolist()
    ratio = [row["diameter_px"] / relative["summary"]["reference_px"] for row in relative["cells"]]
    assert totals[DIAMETER_RELATIVE].sum() == len(ratio)
    assert totals[DIAMETER_RELATIVE].argmax() in range(12, 18)  # around once the normal cell
    assert not (tmp_path / "cells").exists()


def test_bins_count_what_lies_beyond_at_their_ends():
    bins = cell_figures.Bins("x", "", 0.0, 1.0, 4)
    assert bins.counted([-3, 0, 0.25, 0.2499, 1.0, 7]).tolist() == [3, 1, 0, 2]
    assert bins.counted([]).tolist() == [0, 0, 0, 0]


def test_the_agreement_counts_images(tmp_path):
    gallery, one = CellGallery(tmp_path, pages=0), synthetic()
    graded = [("Mild", "Mild"), ("Mild", "Chronic"), ("Chronic", "Chronic"), ("Chronic", "Chronic"),
              ("Chronic", None), (None, "Mild")]  # fmt: skip
    for index, (true, given) in enumerate(graded):
        summary = {**one["summary"], "severity": given}
        gallery.add(index=index, **{**one, "name": f"{index}", "severity_true": true, "summary": summary})
    page = main_page(tmp_path, gallery)
    table = page.all("table", **{"class": "agreement"})[0][2]
    assert table == "Gradegraded Mildgraded Chronicgraded not gradedImagestruly Mild1102truly Chronic0213"
    assert "3 of the 5 images with a true grade were graded the same" in page.text


def test_only_the_first_rows_are_listed(tmp_path):
    gallery, one = CellGallery(tmp_path, pages=0), empty()
    for index in range(MOST_ROWS + 3):
        gallery.add(index=index, **{**one, "summary": {**one["summary"], "severity_score": index / 1000}})
    page = main_page(tmp_path, gallery)
    table = page.elements[page.elements.index(page.all("table", **{"class": "smears"})[0]) :]
    rows = [e[2] for e in table if e[0] == "tr" and e[2].startswith("empty")]
    assert len(rows) == MOST_ROWS
    assert rows[0].startswith(f"empty.png{(MOST_ROWS + 2) / 1000:.3f}")
    assert "The other 3 images are in predictions.csv." in page.text
    asked_for = page.elements[page.elements.index(next(e for e in page.all("details") if "The next" in e[2])) :]
    assert sum(e[0] == "tr" and e[2].startswith("empty") for e in asked_for) == MOST_ROWS - FIRST_ROWS


def test_cells_that_were_not_looked_for_are_no_zero(tmp_path):
    gallery, one = CellGallery(tmp_path), empty()
    nothing = {key: None if isinstance(value, int) else value for key, value in one["summary"].items()}
    gallery.add(index=0, **{**one, "name": "tiny.png", "stem": "tiny", "summary": nothing})
    gallery.add(index=1, **one)
    assert [gallery.image_fields(index)["cell_count"] for index in (0, 1)] == [None, 0]
    page = main_page(tmp_path, gallery, 2)
    assert "1 of 2 images: the red cells are too small to be told apart." in page.text
    assert "red cells too small to be counted" in page.text and "0 red cells, 0 overlapped" in page.text
    rows = [e[2] for e in page.all("tr") if e[2].startswith(("tiny", "empty"))]
    dash = "\N{EN DASH}"
    assert rows == [f"empty.png{dash * 2}00{dash * 3}1", f"tiny.png{dash * 7}1"], "the counted first"
    assert values_of(Page(tmp_path / "cells/tiny.html"))["Red cells"].startswith(dash)


def test_what_cannot_be_right_is_refused(tmp_path):
    gallery, one = CellGallery(tmp_path), empty()
    gallery.add(index=0, **one)
    with pytest.raises(ValueError, match="added before"):
        gallery.add(index=0, **one)
    with pytest.raises(ValueError, match="one size"):
        gallery.add(index=1, **{**one, "rgb": one["rgb"][1:]})
    for stem in ("../x", "a/../../x", "/x", ""):
        with pytest.raises(ValueError, match="out of the results folder"):
            SmearShown(**{**one, "stem": stem})


def test_kinds_are_told_by_more_than_their_colour():
    assert set(KINDS) | {NOT_JUDGED} <= set(cell_figures.KIND_STYLES)
    assert len(set(cell_figures.KIND_STYLES.values())) == len(cell_figures.KIND_STYLES)
    assert cell_figures.kind_class("<b>") == "k-other"
