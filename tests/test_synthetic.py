"""Synthetic smears: the same from the same seed, true to their truth, optical, and fair between the classes."""

from __future__ import annotations

import csv
import re
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from data.records import ANEMIC, HEALTHY
from data.synthetic import (
    CellTruth,
    SyntheticSmear,
    artefacts_of,
    camera_of,
    film_of,
    label_and_severity,
    paint_cells,
    stain_of,
    stream,
    synthesize,
)
from data.synthetic_artefacts import (
    Artefacts,
    Pointer,
    compress,
    dirt_density,
    draw_artefacts,
    hidden_by_pointer,
    lay_pointer,
    pointer_cover,
)
from data.synthetic_cells import PIXELS_PER_UM, Film, RedCell, cell_kind, draw_red_cell
from data.synthetic_layout import scatter
from data.synthetic_masks import anerbc_mask
from data.synthetic_optics import Camera, Stain, draw_camera, draw_stain, expose, transmit
from data.synthetic_particles import paint_fibre, paint_platelets, paint_precipitate
from data.synthetic_populations import POPULATIONS, SHAPE_KINDS, blood_count_report, draw_subject
from data.synthetic_render import RIM_BEYOND_MASK, central_pallor, central_pallors, render_cell, thickness
from data.synthetic_white_cells import WHITE_CELL_KINDS, WhiteCell, draw_white_cells, paint_white_cell
from data.synthetic_writer import write_dataset
from util.errors import UserError

SIDE = 128


@pytest.fixture(scope="module")
def smears() -> list[SyntheticSmear]:
    return [synthesize(index, seed=7, size=200) for index in range(8)]


def _perfect_camera() -> Camera:
    nothing = np.zeros(2)
    return Camera(np.full(3, 1e-6), nothing, nothing, 0.0, 1e12, 0.0, np.zeros(3), 0.0, 0.0, nothing, np.zeros(3))


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


def test_zoom_enlarges_the_cells_and_not_the_picture() -> None:
    usual, near = (synthesize(5, seed=3, size=SIDE, zoom=zoom) for zoom in (1.0, 2.0))
    assert usual.rgb.shape == near.rgb.shape
    diameters = [np.median([cell.diameter_px for cell in smear.cells]) for smear in (usual, near)]
    assert diameters[1] / diameters[0] == pytest.approx(2, rel=0.1)
    assert near.pixels_per_um == pytest.approx(2 * usual.pixels_per_um)
    assert near.cells[0].diameter_um < 12
    with pytest.raises(UserError, match="zoom"):
        synthesize(5, seed=3, zoom=9.0)


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
            if cell.overlapped or cell.on_border or cell.hidden:
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
    assert drawn.sum() == pytest.approx(0.7 * np.pi * 11**2, rel=1e-4)
    assert drawn[mask].sum() > 0.9 * drawn.sum()
    grown = ndimage.binary_dilation(mask, np.ones((3, 3)))
    assert not drawn[~grown].any()


def test_kinds_are_named_by_shape_then_pallor_then_size():
    def name(cell: RedCell) -> str:
        return cell_kind(cell, central_pallor(cell))

    assert name(RedCell("teardrop", 5.0)) == "teardrop"
    assert name(RedCell("disc", 10.0, centre=0.3, width=1.8)) == "hypochromic"
    assert [name(RedCell("disc", radius)) for radius in (8.0, 10.0, 12.5)] == ["microcyte", "normal", "macrocyte"]
    twice = [name(RedCell("disc", 2 * radius, pixels_per_um=2 * PIXELS_PER_UM)) for radius in (8.0, 10.0, 12.5)]
    assert twice == ["microcyte", "normal", "macrocyte"], "names go by the cell, not by the magnification"


# --- light ---------------------------------------------------------------------------------------------------------


def test_densities_add_where_cells_overlap():
    stain = Stain(np.array([0.12, 0.15, 0.06]), *np.zeros((3, 3)), np.full(3, 220.0), *np.zeros((3, 3)))
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
    expected = np.sqrt(180 * 255 / 6000 + 4) * np.array([1.12, 0.84, 0.86])
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
        if label == ANEMIC and "iron" not in subject.population.name:
            continue
        cells = [draw_red_cell(subject, Film(edge=0.25), rng) for _ in range(40)]
        diameters += [2 * cell.radius for cell in cells]
        pallors += central_pallors(cells).tolist()
    return float(np.mean(diameters)), float(np.mean(pallors))


def test_iron_deficient_cells_are_smaller_and_paler_the_more_so_the_worse():
    healthy, mild, severe = (_population_means(*group) for group in ((0, None), (1, "Mild"), (1, "Chronic")))
    assert healthy[0] - 0.5 > mild[0] > severe[0] + 0.5
    assert healthy[1] + 0.04 < mild[1] < severe[1] - 0.04


def test_measured_truth_of_pictures_differs_between_classes():
    pictures = [synthesize(index, seed=21, size=64) for index in range(60)]

    def means(label: int, field: str) -> list[float]:
        chosen = [s for s in pictures if s.label == label and (not label or "iron" in s.subject.population.name)]
        return [float(np.mean([getattr(cell, field) for cell in smear.cells])) for smear in chosen]

    assert (
        stats.ttest_ind(means(HEALTHY, "diameter_um"), means(ANEMIC, "diameter_um"), alternative="greater").pvalue
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


# --- kinds of cell, measured on what is drawn ----------------------------------------------------------------------


def _drawn_kind(kind: str, number: int) -> tuple[RedCell, np.ndarray]:
    """A cell of a wanted kind, as the generator draws it, and its mask at a magnification that shows its shape."""
    base = POPULATIONS[0]
    shares = tuple(float(name == kind) for name in SHAPE_KINDS)
    population = replace(base, kinds=shares, roughness=0.0, polychromasia=0.0)
    subject = replace(draw_subject(HEALTHY, None, np.random.default_rng(0)), population=population)
    cell = draw_red_cell(subject, Film(), np.random.default_rng([3, number]), pixels_per_um=8.0)
    assert cell.kind == kind
    return cell, render_cell(cell, 90.0, 90.0)[1]


def _axes_and_solidity(mask: np.ndarray) -> tuple[float, float]:
    spatial = pytest.importorskip("scipy.spatial")
    rows, columns = np.nonzero(mask)
    small, large = np.linalg.eigvalsh(np.cov(columns, rows))
    hull = spatial.ConvexHull(np.column_stack([columns, rows]) + 0.0)
    return float(np.sqrt(large / small)), float(mask.sum() / hull.volume)


def _peaks_around(mask: np.ndarray) -> int:
    """Projections: maxima of the outline's distance from the middle against its own running mean."""
    rows, columns = np.nonzero(mask & ~ndimage.binary_erosion(mask))
    down, right = rows - np.nonzero(mask)[0].mean(), columns - np.nonzero(mask)[1].mean()
    bins = ((np.arctan2(down, right) + np.pi) / (2 * np.pi) * 72).astype(int) % 72
    distance = np.array([np.hypot(down, right)[bins == number].max() for number in range(72)])
    smooth = distance - ndimage.uniform_filter1d(distance, 13, mode="wrap")
    return int(((smooth > np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1)) & (smooth > 0.8)).sum())


def test_sickle_cells_are_long_and_bent():
    for number in range(6):
        elongation, solidity = _axes_and_solidity(_drawn_kind("sickle", number)[1])
        assert elongation > 1.9 and solidity < 0.97
    straight = replace(_drawn_kind("sickle", 0)[0], bend=0.0)
    bent = replace(straight, bend=0.4)
    solid, curved = (_axes_and_solidity(render_cell(cell, 90.0, 90.0)[1])[1] for cell in (straight, bent))
    assert curved < solid - 0.1
    pallor = [central_pallor(_drawn_kind("sickle", number)[0]) for number in range(6)]
    assert max(pallor) == 0.0


def test_burr_cells_bear_many_even_projections():
    for number in range(6):
        cell, mask = _drawn_kind("burr", number)
        assert 9 <= cell.spikes <= 14
        assert abs(_peaks_around(mask) - cell.spikes) <= 2
    assert _peaks_around(render_cell(RedCell("disc", 28.0), 90.0, 90.0)[1]) <= 2


def test_fragments_are_small_and_cut_straight():
    for number in range(6):
        cell, mask = _drawn_kind("schistocyte", number)
        assert mask.sum() < 0.92 * np.pi * (7.2 * 8 / 2) ** 2
        assert 1 <= len(cell.cuts) <= 2 and central_pallor(cell) == 0.0
    cut = RedCell("schistocyte", 28.0, cuts=((0.0, 0.2),))
    _, mask, _, left = render_cell(cut, 90.0, 90.0)
    ends = [int(np.flatnonzero(row)[-1]) + left for row in mask[mask.any(axis=1)][6:-6]]
    assert np.ptp(ends) <= 1, "one side is a straight line"


def test_young_cells_are_large_bluish_and_without_pallor():
    subject = draw_subject(HEALTHY, None, np.random.default_rng(0))
    young = replace(subject, population=replace(subject.population, polychromasia=1.0, kinds=(0.0,) * 8))
    old = replace(subject, population=replace(subject.population, polychromasia=0.0, kinds=(0.0,) * 8))
    rngs = (np.random.default_rng(1), np.random.default_rng(1))
    first, second = (
        [draw_red_cell(one, Film(), rng) for _ in range(50)] for one, rng in zip((young, old), rngs, strict=True)
    )
    assert np.mean([cell.radius for cell in first]) > 1.04 * np.mean([cell.radius for cell in second])
    assert max(central_pallors(first)) < 0.1 and not any(cell.polychromasia for cell in second)
    painted = paint_cells([first[0], second[0]], np.array([[20.0, 20.0], [50.0, 20.0]]), (40, 70))
    assert painted.young[20, 20] > 0.3 * painted.load[20, 20] and not painted.young[:, 36:].any()
    stain = stain_of(0, 0)
    assert stain.young[0] > stain.young[1] > stain.young[2], "red and green are held back more than blue"


def test_kinds_have_a_share_each():
    for population in POPULATIONS:
        assert len(population.kinds) == len(SHAPE_KINDS)
    sickle = next(population for population in POPULATIONS if "sickle" in population.name)
    subject = replace(draw_subject(ANEMIC, "Chronic", np.random.default_rng(1)), population=sickle)
    rng = np.random.default_rng(4)
    kinds = [draw_red_cell(subject, Film(), rng).kind for _ in range(3000)]
    for kind, share in zip(SHAPE_KINDS, sickle.kinds, strict=True):
        assert kinds.count(kind) / 3000 == pytest.approx(share, abs=4 * np.sqrt(share / 3000) + 1e-9)


# --- the edge of the mask ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sd", [0.7, 1.2, 1.8])
def test_mask_ends_where_density_is_about_half_of_the_rim(sd):
    cell = RedCell("disc", 10.4, edge=0.25, centre=0.6)
    painted = paint_cells([cell], np.array([[30.3, 29.8]]), (60, 60))
    seen = ndimage.gaussian_filter(painted.load, sd)
    inside = painted.instances > 0
    distance = np.where(
        inside, 0.5 - ndimage.distance_transform_edt(inside), ndimage.distance_transform_edt(~inside) - 0.5
    )
    rim = max(seen[(distance >= low) & (distance < low + 1)].mean() for low in np.arange(-7, 0, 0.5))
    edge = seen[np.abs(distance) < 0.75].mean()
    assert 0.36 < edge / rim < 0.52
    assert 0 < RIM_BEYOND_MASK < 0.5


# --- the film ------------------------------------------------------------------------------------------------------


def test_additivity_sets_how_dark_an_overlap_is():
    cells, places = [RedCell("spherocyte", 14.0)] * 2, np.array([[40.0, 40.0], [52.0, 40.0]])
    alone = [paint_cells(cells[:1], places[number : number + 1], (80, 90)).load for number in (0, 1)]
    for additivity in (0.0, 0.4, 1.0):
        both = paint_cells(cells, places, (80, 90), additivity=additivity).load
        expected = np.maximum(*alone) + additivity * np.minimum(*alone)
        np.testing.assert_allclose(both, expected, atol=1e-5)


def test_rouleaux_lie_on_each_other_in_chains(rng):
    radii, nothing = np.full(60, 10.0), np.zeros((0, 3))
    chained = scatter(radii, 0, 400, crowding=0.0, rouleaux=0.8, obstacles=nothing, rng=rng)
    steps = np.hypot(*np.diff(chained, axis=0).T)
    assert np.mean((steps > 9) & (steps < 16)) > 0.5
    loose = scatter(radii, 0, 400, crowding=0.0, obstacles=nothing, rng=rng)
    assert np.mean(np.hypot(*np.diff(loose, axis=0).T) < 16) < 0.05


def _cells_on(film: Film, count: int = 300) -> list[RedCell]:
    subject, rng = draw_subject(HEALTHY, None, np.random.default_rng(0)), np.random.default_rng(2)
    return [draw_red_cell(subject, film, rng) for _ in range(count)]


def test_crenation_ghosts_stretch_and_flatness_of_a_film():
    plain = _cells_on(Film())
    assert np.mean([cell.kind == "burr" for cell in _cells_on(Film(crenation=0.5))]) == pytest.approx(0.5, abs=0.12)
    assert np.mean([cell.kind == "burr" for cell in plain]) < 0.05
    ghosts = [cell.load for cell in _cells_on(Film(ghosts=1.0))]
    assert np.mean(ghosts) < 0.6 * np.mean([cell.load for cell in plain])
    long = _cells_on(Film(stretch=1.35, stretch_angle=0.5))
    assert np.mean([cell.axis_ratio for cell in long]) > np.mean([cell.axis_ratio for cell in plain]) + 0.2
    turned = np.exp(2j * np.array([cell.angle for cell in long if cell.kind == "disc"]))
    assert abs(turned.mean()) > 0.5 and np.angle(turned.mean()) / 2 == pytest.approx(0.5, abs=0.15)
    pallor = [central_pallors(_cells_on(Film(flatness=flatness))).mean() for flatness in (0.3, 1.0, 3.0)]
    assert pallor[0] > pallor[1] > pallor[2]
    pits = [central_pallors(_cells_on(Film(dimple=dimple))).mean() for dimple in (0.7, 1.3)]
    assert pits[0] < pits[1] - 0.1


def _with(monkeypatch, *, film: Film | None = None, artefacts: Artefacts | None = None, **camera: object) -> None:
    """Let the next pictures have a given film, artefacts and fields of the camera."""
    if film is not None:
        monkeypatch.setattr("data.synthetic.film_of", lambda index, seed: film)
    if artefacts is not None:
        monkeypatch.setattr("data.synthetic.artefacts_of", lambda index, seed: artefacts)
    if camera:
        real = camera_of
        monkeypatch.setattr("data.synthetic.camera_of", lambda index, seed: replace(real(index, seed), **camera))


_CLEAN = Artefacts(None, np.zeros((0, 3)), 0, None)


def test_density_holes_and_refraction_of_a_film(monkeypatch):
    def shown(film: Film) -> SyntheticSmear:
        _with(monkeypatch, film=film, artefacts=_CLEAN, pixels_per_um=PIXELS_PER_UM, sharpening=0.0, glare=0.0)
        return synthesize(0, seed=5, size=200)

    few, many = shown(Film(density=0.5)), shown(Film(density=1.2))
    assert len(many.cells) > 1.8 * len(few.cells)
    assert ndimage.distance_transform_edt(~shown(Film(holes=4.0)).mask).max() > 1.3 * (
        ndimage.distance_transform_edt(~many.mask).max()
    )
    plain, bright = shown(Film(density=0.6)), shown(Film(density=0.6, refraction=0.8))
    assert np.array_equal(plain.mask, bright.mask)
    away = ndimage.distance_transform_edt(~plain.mask)
    rings = [smear.rgb[(away > 2) & (away < 4)].mean() - smear.rgb[away > 9].mean() for smear in (plain, bright)]
    assert rings[1] > rings[0] + 1.5


def test_magnification_scales_cells_but_not_their_truth_in_micrometres(monkeypatch):
    smears = []
    for pixels_per_um in (2.2, 4.4):
        _with(monkeypatch, pixels_per_um=pixels_per_um)
        smears.append(synthesize(0, seed=8, size=300))
    small, large = smears
    assert (small.pixels_per_um, large.pixels_per_um) == (2.2, 4.4)
    mean = [np.mean([cell.diameter_px for cell in smear.cells]) for smear in smears]
    assert mean[1] / mean[0] == pytest.approx(2.0, rel=0.06)
    micrometres = [np.mean([cell.diameter_um for cell in smear.cells]) for smear in smears]
    assert micrometres[0] == pytest.approx(micrometres[1], rel=0.06)
    assert len(small.cells) > 2.5 * len(large.cells)
    assert all(cell.diameter_um == pytest.approx(cell.diameter_px / 4.4) for cell in large.cells)


def test_magnification_varies_but_is_usually_that_of_the_published_pictures():
    drawn = np.array([camera_of(index, 1).pixels_per_um for index in range(400)])
    assert 0.65 < np.mean(np.abs(drawn / PIXELS_PER_UM - 1) < 0.1) < 0.9
    assert drawn.min() < 2.4 and drawn.max() > 4.2


# --- particles -----------------------------------------------------------------------------------------------------


def test_platelets_lie_beside_the_cells(rng):
    occupied = np.zeros((300, 300), bool)
    occupied[:, :150] = True
    canvas = np.zeros((300, 300))
    paint_platelets(300.0, canvas, rng, PIXELS_PER_UM, occupied)
    beside, on = (canvas[:, 155:] > 0.2).sum(), (canvas[:, :145] > 0.2).sum()
    assert 0 < on < 0.35 * beside
    # 2.2 um across: about 5 pixels of a pixel's area each, a few in clumps and giants.
    assert 0.5 < (canvas > 0.2).sum() / (300 * np.pi * (1.1 * PIXELS_PER_UM) ** 2) < 1.7


def test_precipitate_and_fibres_are_as_many_as_asked(rng):
    grains = np.zeros((300, 300))
    paint_precipitate(0.0, grains, rng)
    assert not grains.any()
    paint_precipitate(200.0, grains, rng)
    assert 120 < ndimage.label(grains > 0, np.ones((3, 3)))[1] < 230
    fibre = np.zeros((300, 300))
    paint_fibre(fibre, np.random.default_rng(0))
    _, pieces = ndimage.label(fibre > 0, np.ones((3, 3)))
    assert pieces == 1 and (fibre > 0).sum() > 20


def test_white_cells_come_in_all_kinds_and_look_their_kind(rng):
    drawn = [cell for _ in range(700) for cell in draw_white_cells(2.0, 300, rng, PIXELS_PER_UM)]
    kinds = [cell.kind for cell in drawn]
    assert set(kinds) == set(WHITE_CELL_KINDS)
    assert kinds.count("neutrophil") > kinds.count("lymphocyte") > kinds.count("monocyte") > kinds.count("basophil")
    radius = {kind: np.mean([cell.radius for cell in drawn if cell.kind == kind]) for kind in WHITE_CELL_KINDS}
    assert radius["lymphocyte"] < radius["neutrophil"] < radius["monocyte"]
    assert all(len(cell.lobes) == 1 for cell in drawn if cell.kind == "lymphocyte")
    assert all(len(cell.lobes) >= 2 for cell in drawn if cell.kind == "neutrophil")

    def painted(kind: str) -> np.ndarray:
        maps = np.zeros((3, 90, 90))
        lobes = np.array([[38.0, 45.0, 8.0], [52.0, 45.0, 8.0]])
        paint_white_cell(WhiteCell(45.0, 45.0, 20.0, lobes, kind), *maps, np.random.default_rng(0))
        return maps.sum(axis=(1, 2))

    neutrophil, eosinophil, smudge = (painted(kind) for kind in ("neutrophil", "eosinophil", "smudge"))
    assert neutrophil[0] > 100 and neutrophil[1] > 100 and neutrophil[2] == 0
    assert eosinophil[2] > 100 and smudge[0] > 100 and smudge[1] == smudge[2] == 0


def test_the_film_makes_dense_cells_and_ghosts_of_any_subject():
    dense = _cells_on(Film(dense=0.3))
    contracted = [cell for cell in dense if cell.kind == "spherocyte"]
    assert len(contracted) / len(dense) == pytest.approx(0.3, abs=0.1)
    plain = np.mean([cell.load for cell in dense if cell.kind == "disc"])
    assert np.mean([cell.load for cell in contracted]) > 1.3 * plain
    assert np.mean([2 * cell.radius for cell in contracted]) < 0.9 * np.mean(
        [2 * cell.radius for cell in _cells_on(Film())]
    )
    assert min(cell.polychromasia for cell in _cells_on(Film(ghosts=1.0))) < -0.5


def test_stained_mask_adds_platelets_and_white_cells(smears):
    found = 0
    for smear in smears:
        more = smear.stained & ~smear.mask
        assert not (smear.mask & ~smear.stained).any()
        if more.sum() > 30:
            found += 1
            field = np.median(smear.rgb[ndimage.distance_transform_edt(~smear.stained) > 5], axis=0)
            assert np.median(smear.rgb[ndimage.binary_erosion(more)], axis=0)[1] < field[1] - 15
    assert found >= 4


# --- artefacts -----------------------------------------------------------------------------------------------------


def _pointer(**changes: object) -> Pointer:
    return replace(Pointer("yellow", 0, 0.5, 60.0, 30.0, 0.0, 0.0), **changes)


def test_a_pointer_is_a_wedge_on_its_edge(rng):
    cover = pointer_cover(_pointer(), 120, rng)
    assert cover[118, 60] > 0.9 and cover[30, 60] == pytest.approx(0, abs=1e-3) and cover[118, 20] < 0.01
    widths = [(cover[row] > 0.5).sum() for row in (115, 95, 75)]
    assert widths[0] > widths[1] + 5 > widths[2] + 10
    middles = [
        tuple(np.round(ndimage.center_of_mass(pointer_cover(_pointer(side=side), 120, rng))).astype(int) > 59)
        for side in (0, 2)
    ]
    assert middles[0][0] and not middles[1][0]
    columns = [ndimage.center_of_mass(pointer_cover(_pointer(side=side), 120, rng))[1] for side in (1, 3)]
    assert columns[0] < 40 and columns[1] > 80


def test_yellow_covers_and_green_lets_through():
    cover = np.zeros((20, 20), np.float32)
    cover[:, 10:] = 1
    light = np.full((20, 20, 3), 200.0, np.float32)
    light[10:] = 120.0
    yellow, green = (lay_pointer(light, _pointer(colour=name), cover) for name in ("yellow", "green"))
    assert yellow[2, 15] == pytest.approx([255, 255, 135]) and yellow[15, 15] == pytest.approx([255, 255, 135])
    assert green[2, 15, 1] > 240 and green[2, 15, 0] > green[15, 15, 0] + 50, "what lies behind still shows"
    assert np.array_equal(green[:, :10], light[:, :10])
    assert (
        hidden_by_pointer(_pointer(), cover).sum() == 200
        and not hidden_by_pointer(_pointer(colour="green"), cover).any()
    )


def test_what_the_pointer_or_dirt_hides_is_in_no_mask(monkeypatch):
    _with(monkeypatch, artefacts=_CLEAN)
    free = synthesize(2, seed=4, size=200)
    pointer = replace(_CLEAN, pointer=_pointer(length=150.0, width=90.0))
    dirt = replace(_CLEAN, dirt=np.array([[0.5, 0.5, 40.0]]))
    for artefacts in (pointer, dirt):
        _with(monkeypatch, artefacts=artefacts)
        smear = synthesize(2, seed=4, size=200)
        lost = free.mask & ~smear.mask
        assert lost.sum() > 300 and not (smear.mask & ~free.mask).any()
        hidden = [number for number, cell in enumerate(smear.cells, start=1) if cell.hidden]
        assert hidden and all(
            0 < (smear.instances == number).sum() < smear.cells[number - 1].area_px for number in hidden
        )
        near = ndimage.binary_dilation(lost, np.ones((3, 3)))
        touched = set(np.unique(smear.instances[near])) - {0}
        assert set(hidden) & touched and not any(cell.hidden for cell in free.cells)
        colour = smear.rgb[lost].mean(axis=0)
        assert colour.max() < 60 if artefacts is dirt else (colour[:2] > 235).all() and colour[2] < 190


def test_dirt_is_black_and_where_it_was_put(rng):
    assert dirt_density(_CLEAN, (100, 100), rng) is None
    density = dirt_density(replace(_CLEAN, dirt=np.array([[0.7, 0.3, 10.0]])), (100, 100), rng)
    assert density is not None and density.max() > 1.5
    assert np.hypot(*(np.array(ndimage.center_of_mass(density)) - (30, 70))) < 8


def test_compression_leaves_its_grid_of_eight_pixels(rng):
    rgb = synthesize(0, seed=0, size=128).rgb
    assert compress(rgb, None) is rgb
    noisy = np.clip(rng.normal(128, 20, (160, 160, 3)), 0, 255).astype(np.uint8)
    steps = np.abs(np.diff(compress(noisy, 20).astype(float).mean(axis=2), axis=1)).mean(axis=0)
    assert steps[7::8].mean() > 1.15 * np.delete(steps, np.s_[7::8]).mean()
    assert compress(noisy, 95).shape == noisy.shape


def test_artefacts_are_as_frequent_as_stated():
    drawn = [draw_artefacts(np.random.default_rng([number, 3])) for number in range(1500)]
    assert np.mean([bool(one.pointer) for one in drawn]) == pytest.approx(0.06, abs=0.02)
    assert np.mean([len(one.dirt) > 0 for one in drawn]) == pytest.approx(0.07, abs=0.02)
    assert np.mean([one.jpeg_quality is not None for one in drawn]) == pytest.approx(0.2, abs=0.04)
    assert {one.pointer.colour for one in drawn if one.pointer} == {"yellow", "green"}


def test_tilted_field_is_blurred_at_its_far_end():
    light = np.full((160, 160, 3), 200.0)
    light[::8] = 100.0
    camera = replace(_perfect_camera(), defocus=np.full(3, 0.5), tilt=np.array([0.0, 1.0, 1.5]))
    picture = expose(light, camera, np.random.default_rng(0)).astype(float)
    contrast = [np.ptp(picture[40:120, column, 1]) for column in (5, 80, 155)]
    assert contrast[0] > contrast[1] + 5 > contrast[2] + 10


def test_light_may_turn_bluer_across_the_field():
    stain = stain_of(0, 0)
    camera = replace(_perfect_camera(), tint=np.array([0.0, 0.03]))
    light = transmit(np.zeros((40, 40, 3)), stain, camera)
    ratio = light[20, :, 2] / light[20, :, 0]
    assert ratio[-1] / ratio[0] == pytest.approx((1.03 / 0.97) ** 2, rel=1e-3)


# --- nothing but the blood tells the class -------------------------------------------------------------------------


def _numbers(index: int, seed: int) -> list[float]:
    """All that was drawn for the picture's preparation, light, camera and artefacts, as numbers."""
    stain, camera, film, artefacts = (source(index, seed) for source in (stain_of, camera_of, film_of, artefacts_of))
    numbers = np.concatenate([np.ravel(value) for value in (*vars(stain).values(), *vars(camera).values())]).tolist()
    numbers += [float(value) for value in astuple(film)]
    return [
        *numbers,
        float(artefacts.pointer is not None),
        float(len(artefacts.dirt)),
        float(artefacts.jpeg_quality or 0),
    ]


@pytest.mark.parametrize("wanted", ["label", "grade"])
def test_a_classifier_of_preparation_and_camera_is_at_chance(wanted):
    ensemble = pytest.importorskip("sklearn.ensemble")
    selection = pytest.importorskip("sklearn.model_selection")
    truth = [label_and_severity(index, 6) for index in range(500)]
    kept = [index for index, (label, _) in enumerate(truth) if wanted == "label" or label == ANEMIC]
    target = np.array([truth[i][0] if wanted == "label" else truth[i][1] == "Mild" for i in kept], int)
    features = np.array([_numbers(index, 6) for index in kept])
    forest = ensemble.RandomForestClassifier(100, random_state=0)
    accuracy = selection.cross_val_score(forest, features, target, cv=5).mean()
    assert abs(accuracy - 0.5) < 3.3 * np.sqrt(0.25 / len(kept))
    leak = np.column_stack([features, target + np.random.default_rng(0).normal(0, 0.5, len(kept))])
    assert selection.cross_val_score(forest, leak, target, cv=5).mean() > 0.7, "a leak would be seen"


def test_a_classifier_of_the_empty_field_is_at_chance():
    """The picture's own background: its colour, its evenness, its noise."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    selection = pytest.importorskip("sklearn.model_selection")
    features, labels = [], []
    for index in range(160):
        smear = synthesize(index, seed=17, size=64)
        field = smear.rgb[ndimage.distance_transform_edt(~smear.mask) > 6].astype(float)
        if len(field) < 40:
            continue
        features.append([*np.median(field, axis=0), *field.std(axis=0)])
        labels.append(smear.label)
    forest = ensemble.RandomForestClassifier(200, random_state=0)
    score = selection.cross_val_score(forest, np.array(features), labels, cv=5).mean()
    assert abs(score - 0.5) < 3.3 * np.sqrt(0.25 / len(labels))


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


def test_a_mask_as_anerbc_s_has_the_edges_of_a_threshold_and_no_holes():
    # A pale field, a dark disc with a pale centre, a disc too pale for any threshold, a black rod, and a single dot.
    rows, columns = np.mgrid[:80, :80]
    rgb = np.full((80, 80, 3), 210, np.uint8)
    disc, pale = np.hypot(rows - 25, columns - 25) < 12, np.hypot(rows - 55, columns - 55) < 10
    rgb[disc] = 120
    rgb[np.hypot(rows - 25, columns - 25) < 4] = 205
    rgb[pale] = 205
    rgb[70:76, 5:40] = 20
    rgb[10, 70] = 20
    mask = anerbc_mask(rgb, ndimage.binary_dilation(disc, iterations=2) | pale)
    assert mask[25, 25] and mask[55, 55] and mask[73, 20] and not mask[10, 70]
    assert (mask & ~ndimage.binary_dilation(disc, iterations=3))[:45, :45].sum() == 0
    assert abs(int(mask[:45, :45].sum()) - int(disc.sum())) < 40  # the picture's edge, not the wider one given
    assert not (ndimage.binary_fill_holes(mask) & ~mask).any()
    assert not anerbc_mask(np.full((8, 8, 3), 9, np.uint8), np.zeros((8, 8), bool)).any()


def test_masks_of_a_data_set_may_be_as_anerbc_s_are(tree, tmp_path):
    write_dataset(tmp_path / "all", count=4, seed=1, size=96, workers=1, masks="anerbc")
    ours, theirs = _files(tree), _files(tmp_path / "all")
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert any("Binary_segmented" in name for name in changed)
    assert all("Binary_segmented" in name or name.endswith("SYNTHETIC.txt") for name in changed)
    masks = [name for name in sorted(theirs) if "Binary_segmented" in name and "Healthy" in name]
    index = next(index for index in range(2) if label_and_severity(index, 1)[0] == HEALTHY)
    drawn = np.asarray(Image.open(tmp_path / "all" / masks[0])) == 0
    smear = synthesize(index, seed=1, size=96)
    assert np.array_equal(drawn, anerbc_mask(smear.rgb, smear.stained))
    assert "masks anerbc" in (tmp_path / "all" / "AneRBC-I" / "SYNTHETIC.txt").read_text()


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
        ({"masks": "blue"}, "masks"),
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
