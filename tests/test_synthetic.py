"""Synthetic smears: the same from the same seed, true to their truth, optical, and fair between the classes."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from data.records import ANEMIC, HEALTHY
from data.synthetic import (
    CellTruth,
    SyntheticSmear,
    label_and_severity,
    paint_cells,
    stain_of,
    stream,
    synthesize,
)
from data.synthetic_cells import RedCell, cell_kind, central_pallor, draw_red_cell, render_cell, thickness
from data.synthetic_layout import scatter
from data.synthetic_optics import Camera, Stain, draw_camera, draw_stain, expose, transmit
from data.synthetic_populations import POPULATIONS, blood_count_report, draw_subject
from data.synthetic_writer import write_dataset
from util.errors import UserError

SIDE = 128


@pytest.fixture(scope="module")
def smears() -> list[SyntheticSmear]:
    return [synthesize(index, seed=7, size=200) for index in range(8)]


def _perfect_camera() -> Camera:
    nothing = np.zeros(2)
    return Camera(np.full(3, 1e-6), nothing, nothing, 0.0, 1e12, 0.0, np.zeros(3), 0.0, 0.0)


def _same(first: SyntheticSmear, second: SyntheticSmear) -> bool:
    pictures = ((first.rgb, second.rgb), (first.instances, second.instances), (first.mask, second.mask))
    return all(one.tobytes() == two.tobytes() for one, two in pictures) and first.cells == second.cells


# --- the same from the same seed -----------------------------------------------------------------------------------


def test_equal_arguments_give_equal_bytes_in_any_order():
    forward = [synthesize(index, seed=3, size=SIDE) for index in range(4)]
    backward = [synthesize(index, seed=3, size=SIDE) for index in reversed(range(4))][::-1]
    assert all(_same(one, two) for one, two in zip(forward, backward, strict=True))


def test_index_and_seed_both_matter():
    base = synthesize(0, seed=3, size=SIDE)
    assert not _same(base, synthesize(2, seed=3, size=SIDE))
    assert not _same(base, synthesize(0, seed=4, size=SIDE))


def test_classes_and_grades_are_balanced_and_not_in_a_fixed_order():
    drawn = [label_and_severity(index, 11) for index in range(400)]
    assert sum(label == ANEMIC for label, _ in drawn) == 200
    assert sum(grade == "Mild" for _, grade in drawn) == sum(grade == "Chronic" for _, grade in drawn) == 100
    assert all((grade is None) == (label == HEALTHY) for label, grade in drawn)
    assert 60 < sum(label == ANEMIC for label, _ in drawn[::2]) < 140


# --- the picture and its truth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128, 201, 512])
def test_sizes_and_types(size):
    smear = synthesize(1, seed=0, size=size)
    assert smear.rgb.shape == (size, size, 3) and smear.rgb.dtype == np.uint8
    assert smear.mask.shape == (size, size) and smear.mask.dtype == bool
    assert smear.instances.shape == (size, size) and smear.instances.dtype == np.uint16


def test_mask_instances_and_cells_agree(smears):
    for smear in smears:
        assert np.array_equal(smear.mask, smear.instances > 0)
        assert set(np.unique(smear.instances)) - {0} == set(range(1, len(smear.cells) + 1))


def test_truth_of_free_cells_equals_what_the_instances_measure(smears):
    checked = 0
    for smear in smears:
        for number, cell in enumerate(smear.cells, start=1):
            rows, columns = np.nonzero(smear.instances == number)
            if cell.overlapped or cell.on_border:
                assert rows.size <= cell.area_px
                continue
            checked += 1
            assert rows.size == cell.area_px
            assert (columns.mean(), rows.mean()) == pytest.approx((cell.x, cell.y))
            assert cell.diameter_px == pytest.approx(2 * np.sqrt(rows.size / np.pi))
    assert checked > 100


def test_border_and_overlap_flags_follow_from_the_pixels(smears):
    smear = smears[0]
    frame = np.ones_like(smear.mask)
    frame[1:-1, 1:-1] = False
    for number, cell in enumerate(smear.cells, start=1):
        seen = smear.instances == number
        if (seen & frame).any():
            assert cell.on_border
        grown = ndimage.binary_dilation(seen, np.ones((3, 3)))
        if cell.overlapped:
            assert set(np.unique(smear.instances[grown])) - {0, number}, "an overlapped cell has a neighbour"
    assert any(cell.overlapped for cell in smear.cells) and not all(cell.overlapped for cell in smear.cells)


def test_red_cells_are_darker_than_the_field_and_lie_where_the_mask_says(smears):
    for smear in smears:
        grey = smear.rgb.mean(axis=2)
        field = np.median(grey[~ndimage.binary_dilation(smear.mask, iterations=4)])
        centre_ring = ndimage.binary_erosion(smear.mask, iterations=3)
        assert np.median(grey[centre_ring]) < field - 15


@pytest.mark.parametrize("radius", [6.0, 10.0, 14.5])
@pytest.mark.parametrize("offset", [(0.1, 0.23), (0.31, 0.77)])
def test_area_and_diameter_of_a_lone_disc(radius, offset):
    place = np.array([[40 + offset[0], 40 + offset[1]]])
    (truth,) = paint_cells([RedCell("disc", radius)], place, (80, 80)).cells
    # Counting whole pixels errs by a small part of the pixels on the rim.
    assert truth.area_px == pytest.approx(np.pi * radius**2, abs=0.12 * 2 * np.pi * radius)
    assert truth.diameter_px == pytest.approx(2 * radius, abs=0.25)
    assert (truth.x, truth.y) == pytest.approx(tuple(place[0]), abs=0.3)
    assert not truth.overlapped and not truth.on_border


@pytest.mark.parametrize(
    "shape", [{"axis_ratio": 2.2}, {"tail": 0.9}, {"fourier": ((0.1, 0.05, 0, 0), (0, 0, 0.04, 0))}]
)
def test_shapes_keep_the_area_of_their_disc(shape):
    (truth,) = paint_cells([RedCell("disc", 12.0, **shape)], np.array([[60.2, 59.6]]), (120, 120)).cells
    assert truth.area_px == pytest.approx(np.pi * 12.0**2, rel=0.03)


def test_an_ellipse_has_its_axis_ratio():
    _, mask, _, _ = render_cell(RedCell("elliptocyte", 14.0, axis_ratio=2.0, angle=0.6), 60.0, 60.0)
    rows, columns = np.nonzero(mask)
    variances = np.linalg.eigvalsh(np.cov(columns, rows))
    assert np.sqrt(variances[1] / variances[0]) == pytest.approx(2.0, rel=0.03)


def test_a_cell_cut_by_the_canvas_keeps_its_whole_truth():
    painted = paint_cells([RedCell("disc", 10.0)] * 2, np.array([[0.0, 30.0], [-50.0, 30.0]]), (60, 60))
    cut, gone = painted.cells
    assert cut.on_border and cut.area_px == pytest.approx(np.pi * 100, rel=0.03)
    assert (painted.instances == 1).sum() == pytest.approx(np.pi * 50, rel=0.08)
    assert gone.on_border and not (painted.instances == 2).any()


# --- thickness -----------------------------------------------------------------------------------------------------


def test_resting_cell_is_the_published_one():
    """Evans & Fung give 0.81 um in the middle and a volume of 94 fL for a cell of 7.82 um."""
    radius = 3.91
    rho = (np.arange(20000) + 0.5) / 20000
    profile = thickness(RedCell("disc", 1.0), rho)
    assert profile[0] == pytest.approx(0.81, abs=0.001)
    assert 2.4 < profile.max() < 2.7
    volume = np.mean(profile * 2 * rho) * np.pi * radius**2
    assert volume == pytest.approx(94, rel=0.02)


def test_central_pallor_of_known_cells():
    resting = RedCell("disc", 10.0)
    assert central_pallor(resting) == pytest.approx(1 / 3, abs=0.02)
    assert central_pallor(replace(resting, kind="spherocyte")) == 0.0
    assert central_pallor(replace(resting, centre=6.0)) == 0.0
    assert central_pallor(replace(resting, centre=0.3, width=1.8)) > 0.5


def test_central_pallor_equals_that_of_the_drawn_cell():
    cell = RedCell("disc", 60.0, centre=0.5, width=1.3)
    drawn, mask, _, _ = render_cell(cell, 100.0, 100.0)
    rows, columns = np.indices(mask.shape)
    middle = np.hypot(rows - rows[mask].mean(), columns - columns[mask].mean()) < 0.6 * 60
    pale = (drawn < 0.6 * drawn.max()) & middle
    assert central_pallor(cell) == pytest.approx(np.sqrt(pale.sum() / mask.sum()), abs=0.02)


def test_target_cell_is_dark_in_the_middle_of_its_pallor():
    rho = np.array([0.0, 0.35, 0.75])
    middle, ring, rim = thickness(RedCell("target", 10.0, centre=0.4, width=1.5, bump=0.8), rho)
    assert ring < middle and ring < rim


def test_load_is_the_mean_haemoglobin():
    drawn, mask, _, _ = render_cell(RedCell("disc", 11.0, load=0.7, slope=(0.1, -0.05), shift=(0.1, 0.1)), 30.0, 30.0)
    assert drawn[mask].mean() == pytest.approx(0.7)
    assert not drawn[~mask].any()


def test_kinds_are_named_by_shape_then_pallor_then_size():
    assert cell_kind(RedCell("teardrop", 5.0)) == "teardrop"
    assert cell_kind(RedCell("disc", 10.0, centre=0.3, width=1.8)) == "hypochromic"
    assert [cell_kind(RedCell("disc", radius)) for radius in (8.0, 10.0, 12.5)] == ["microcyte", "normal", "macrocyte"]


# --- light ---------------------------------------------------------------------------------------------------------


def test_densities_add_where_cells_overlap():
    stain = Stain(np.array([0.12, 0.15, 0.06]), *np.zeros((3, 3)), np.array([220.0, 220.0, 220.0]))
    camera = _perfect_camera()
    cells = [RedCell("spherocyte", 16.0), RedCell("spherocyte", 14.0)]
    places = np.array([[40.0, 48.0], [58.0, 48.0]])
    light = []
    for chosen in ([0], [1], [0, 1]):
        painted = paint_cells([cells[index] for index in chosen], places[chosen], (96, 96))
        light.append(transmit(painted.load[..., None] * stain.red_cell, stain, camera))
    pictures = [expose(each, camera, np.random.default_rng(0)).astype(float) for each in light]
    density = [-np.log10(picture / 220.0) for picture in pictures]
    both = (density[0][..., 1] > 0.05) & (density[1][..., 1] > 0.05)
    assert both.sum() > 50
    np.testing.assert_allclose(density[2][both], (density[0] + density[1])[both], atol=0.01)
    assert density[2][both].mean() > 1.5 * max(density[0][both].mean(), density[1][both].mean())


def test_overlap_is_told_only_where_it_can_be_seen():
    cells, places = [RedCell("disc", 10.0)] * 2, np.array([[20.0, 30.0], [33.0, 30.0]])
    assert [cell.overlapped for cell in paint_cells(cells, places, (60, 60)).cells] == [True, True]
    away = (slice(0, 60), slice(40, 60))
    assert [cell.overlapped for cell in paint_cells(cells, places, (60, 60), away).cells] == [False, False]


def test_later_cells_lie_on_top():
    painted = paint_cells([RedCell("disc", 10.0)] * 2, np.array([[25.0, 30.0], [35.0, 30.0]]), (60, 60))
    assert painted.instances[30, 30] == 2


def test_noise_is_that_of_light_and_sensor():
    camera = replace(_perfect_camera(), electrons=6000.0, read_noise=2.0)
    flat = np.full((200, 200, 3), 180.0)
    spread = expose(flat, camera, np.random.default_rng(1)).std(axis=(0, 1))
    expected = np.sqrt(180 * 255 / 6000 + 4) * np.array([1.1, 0.75, 0.9])
    np.testing.assert_allclose(spread, np.sqrt(expected**2 + 1 / 12), rtol=0.03)


def test_defocus_blurs():
    light = np.zeros((61, 61, 3))
    light[30, 30] = 255.0
    sharp, soft = (
        expose(light, replace(_perfect_camera(), defocus=np.full(3, sd)), np.random.default_rng(0))
        for sd in (1e-6, 1.5)
    )
    assert sharp[30, 30, 1] == 255
    assert soft[30, 30, 1] == pytest.approx(255 / (2 * np.pi * 1.5**2), abs=2)


# --- where cells lie -----------------------------------------------------------------------------------------------


def test_cells_neither_hide_each_other_nor_enter_white_cells(rng):
    radii = np.full(90, 10.0)
    white = np.array([[150.0, 150.0, 20.0], [60.0, 80.0, 18.0], [220.0, 90.0, 16.0], [100.0, 220.0, 20.0]])
    places = scatter(radii, 0, 300, crowding=0.6, obstacles=white, rng=rng)
    there = places[~np.isnan(places[:, 0])]
    assert len(there) > 80
    for x, y, radius in white:
        assert (np.hypot(there[:, 0] - x, there[:, 1] - y) >= radius + 10).all()
    distance = np.hypot(*(there[:, None] - there[None]).transpose(2, 0, 1)) + np.eye(len(there)) * 1e3
    assert distance.min() >= 20 - 0.55 * 10 - 1e-9
    assert (distance.min(axis=1) < 20).any() and (distance.min(axis=1) > 20).any()


def test_crowding_makes_overlap(rng):
    def clumped(crowding: float) -> float:
        places = scatter(np.full(80, 10.0), 0, 300, crowding=crowding, obstacles=np.zeros((0, 3)), rng=rng)
        distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + np.eye(80) * 1e3
        return float((np.nanmin(distance, axis=1) < 19).mean())

    assert clumped(0.3) > clumped(0.0) + 0.1


# --- the classes ---------------------------------------------------------------------------------------------------


def _population_means(label: int, severity: str | None) -> tuple[float, float]:
    diameters, pallors = [], []
    for number in range(40):
        rng = np.random.default_rng([number, label, severity == "Chronic"])
        subject = draw_subject(label, severity, rng)
        if "macrocytic" in subject.population.name:
            continue
        cells = [draw_red_cell(subject, 1.1, rng) for _ in range(40)]
        diameters += [2 * cell.radius for cell in cells]
        pallors += [central_pallor(cell) for cell in cells]
    return float(np.mean(diameters)), float(np.mean(pallors))


def test_iron_deficient_cells_are_smaller_and_paler_the_more_so_the_worse():
    healthy, mild, severe = (_population_means(*group) for group in ((0, None), (1, "Mild"), (1, "Chronic")))
    assert healthy[0] - 0.5 > mild[0] > severe[0] + 0.5
    assert healthy[1] + 0.04 < mild[1] < severe[1] - 0.04


def test_measured_truth_of_pictures_differs_between_classes():
    pictures = [synthesize(index, seed=21, size=64) for index in range(60)]

    def means(label: int, field: str) -> list[float]:
        chosen = [s for s in pictures if s.label == label and "macrocytic" not in s.subject.population.name]
        return [float(np.mean([getattr(cell, field) for cell in smear.cells])) for smear in chosen]

    assert (
        stats.ttest_ind(means(HEALTHY, "diameter_px"), means(ANEMIC, "diameter_px"), alternative="greater").pvalue
        < 1e-3
    )
    assert (
        stats.ttest_ind(means(HEALTHY, "central_pallor"), means(ANEMIC, "central_pallor"), alternative="less").pvalue
        < 1e-3
    )


def test_counts_of_cells_overlap_between_classes():
    ranges = [(population.cells_per_field.mean, population.cells_per_field.sd) for population in POPULATIONS]
    healthy = ranges[0]
    assert all(abs(mean - healthy[0]) < 1.3 * min(sd, healthy[1]) for mean, sd in ranges)


def test_stain_and_camera_do_not_depend_on_the_class():
    labels = np.array([label_and_severity(index, 2)[0] for index in range(600)])
    stains = [stain_of(index, 2) for index in range(600)]
    colours = np.array([np.concatenate([stain.red_cell, stain.background]) for stain in stains])
    for column in colours.T:
        assert stats.ks_2samp(column[labels == HEALTHY], column[labels == ANEMIC]).pvalue > 0.005
    assert colours[:, :3].std(axis=0).min() > 0.005, "stain varies from picture to picture"


def test_the_picture_is_made_with_the_stain_of_its_index():
    """The empty field shows the drawn light, whatever the class."""
    for index in range(16):
        smear = synthesize(index, seed=9, size=96)
        field = smear.rgb[~ndimage.binary_dilation(smear.mask, iterations=5)]
        expected = stain_of(index, 9).background
        seen = np.median(field, axis=0)
        assert seen == pytest.approx(expected, rel=0.09)
        assert seen[0] / seen[2] == pytest.approx(expected[0] / expected[2], rel=0.03)


def test_streams_of_one_picture_are_independent():
    first, second = (stream(1, 5, purpose).standard_normal(4000) for purpose in (2, 3))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert draw_stain(stream(1, 5, 2)).background.tolist() == draw_stain(stream(1, 5, 2)).background.tolist()
    assert draw_camera(stream(1, 5, 3)).electrons == draw_camera(stream(1, 5, 3)).electrons


def test_subjects_meet_the_limits_of_their_grade():
    rng = np.random.default_rng(5)
    for label, severity, low, high in ((HEALTHY, None, 12, 18), (ANEMIC, "Mild", 11, 13), (ANEMIC, "Chronic", 4, 8)):
        for _ in range(50):
            subject = draw_subject(label, severity, rng)
            assert low <= subject.haemoglobin < high
            assert subject.red_cells * subject.mch / 10 == pytest.approx(subject.haemoglobin)


def test_spans_and_shares_are_possible():
    for population in POPULATIONS:
        assert sum(population.kinds) < 0.5
        for span in (
            *population.haemoglobin,
            population.mcv,
            population.mchc,
            population.rdw,
            population.cells_per_field,
        ):
            assert span.low <= span.mean <= span.high and span.sd > 0


# --- blood counts --------------------------------------------------------------------------------------------------


def test_report_reads_like_the_real_ones_and_adds_up():
    subject = draw_subject(ANEMIC, "Chronic", np.random.default_rng(0))
    lines = blood_count_report(subject).splitlines()
    assert lines[0] == "Test,Result/Units"
    matches = [re.fullmatch(r"([A-Z-]+),(\* )?([\d.]+) (\S+)", line) for line in lines[1:]]
    assert all(matches)
    values = {match[1]: float(match[3]) for match in matches if match}
    assert list(values) == ["WBC", "RBC", "HGB", "HCT", "MCV", "MCH", "MCHC", "RDW-CV", "PLT"]
    assert values["HGB"] / values["HCT"] * 100 == pytest.approx(values["MCHC"], rel=0.02)
    assert values["HCT"] / values["RBC"] * 10 == pytest.approx(values["MCV"], rel=0.02)
    assert next(line for line in lines if line.startswith("HGB")).startswith("HGB,* ")


def test_equal_reports_do_not_recur():
    rng = np.random.default_rng(8)
    groups = ((HEALTHY, None), (ANEMIC, "Mild"), (ANEMIC, "Chronic"))
    reports = [blood_count_report(draw_subject(*groups[number % 3], rng)) for number in range(3000)]
    assert len(set(reports)) == len(reports)


# --- files ---------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "smears"
    write_dataset(out, count=4, seed=1, size=96, workers=1)
    return out


def test_tree_is_that_of_anerbc(tree):
    names = {
        path.relative_to(tree / "AneRBC-I").as_posix() for path in (tree / "AneRBC-I").rglob("*") if path.is_file()
    }
    expected = {"cells.csv", "truth.csv", "SYNTHETIC.txt"}
    for label, letter in (("Anemic", "a"), ("Healthy", "h")):
        for folder, suffix in (
            ("Original_images", "png"),
            ("Binary_segmented", "png"),
            ("Instances", "png"),
            ("CBC_reports", "txt"),
        ):
            expected |= {f"{label}_individuals/{folder}/{number}_{letter}.{suffix}" for number in ("001", "002")}
    assert names == expected
    assert sorted(path.name for path in tree.parent.iterdir()) == ["smears"], "nothing is left beside the data set"
    notice = (tree / "AneRBC-I" / "SYNTHETIC.txt").read_text()
    assert "synthetic" in notice and "seed 1" in notice and "count 4" in notice and notice.count("\n") == 1


def test_files_hold_the_smears(tree):
    inner = tree / "AneRBC-I"
    rows = list(csv.DictReader((inner / "truth.csv").open()))
    cells = list(csv.DictReader((inner / "cells.csv").open()))
    assert list(rows[0]) == ["image", "label", "severity", "parent"]
    assert list(cells[0]) == ["image", "cell", *CellTruth.__dataclass_fields__]
    for index, row in enumerate(rows):
        smear = synthesize(index, seed=1, size=96)
        path = inner / row["image"]
        assert (int(row["label"]), row["severity"] or None) == (smear.label, smear.severity)
        assert np.array_equal(np.asarray(Image.open(path)), smear.rgb)
        mask = np.asarray(Image.open(path.parent.parent / "Binary_segmented" / path.name))
        assert set(np.unique(mask)) == {0, 255} and np.array_equal(mask == 0, smear.mask)
        instances = Image.open(path.parent.parent / "Instances" / path.name)
        assert instances.mode == "I;16" and np.array_equal(np.asarray(instances), smear.instances)
        report = path.parent.parent / "CBC_reports" / f"{path.stem}.txt"
        assert report.read_text() == blood_count_report(smear.subject)
        mine = [cell for cell in cells if cell["image"] == row["image"]]
        assert [int(cell["cell"]) for cell in mine] == list(range(1, len(smear.cells) + 1))
        assert [int(cell["area_px"]) for cell in mine] == [cell.area_px for cell in smear.cells]
        assert [cell["overlapped"] == "1" for cell in mine] == [cell.overlapped for cell in smear.cells]
    assert len({row["parent"] for row in rows}) == len(rows)


def test_workers_do_not_change_a_byte(tree, tmp_path):
    write_dataset(tmp_path / "two", count=4, seed=1, size=96, workers=2)
    assert _files(tmp_path / "two") == _files(tree)


def test_overwrite_replaces_a_synthetic_set_and_nothing_else(tmp_path):
    out = tmp_path / "smears"
    out.mkdir()
    write_dataset(out, count=2, seed=1, size=64, workers=1)  # an empty folder is free
    before = _files(out)
    with pytest.raises(UserError, match="not empty"):
        write_dataset(out, count=2, seed=2, size=64, workers=1)
    assert _files(out) == before
    write_dataset(out, count=2, seed=2, size=64, workers=1, overwrite=True)
    assert _files(out) != before
    thesis = tmp_path / "work"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="thesis.txt"):
        write_dataset(thesis, count=2, seed=2, size=64, workers=1, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smears", "work"]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("data.synthetic_writer.synthesize", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "out", count=2, seed=0, size=64, workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 1}, "count"),
        ({"size": 63}, "size"),
        ({"size": 5000}, "size"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_bad_arguments_are_the_users_errors(tmp_path, wrong, says):
    with pytest.raises(UserError, match=says):
        write_dataset(tmp_path / "out", **{"count": 2, "seed": 0, "size": 64, "workers": 1, **wrong})
    assert not (tmp_path / "out").exists()


def test_bad_index_and_a_file_in_the_way(tmp_path):
    with pytest.raises(UserError, match="index"):
        synthesize(-1, seed=0)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="not a folder"):
        write_dataset(tmp_path / "out", count=2, seed=0, workers=1)
