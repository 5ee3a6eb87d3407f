"""Synthetic smears: equal from equal seeds, true to their truth, and drawn by light through cells that lie apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from data.records import ANEMIC, HEALTHY
from data.synthetic import (
    SyntheticSmear,
    label_and_severity,
    paint_cells,
    synthesize,
)
from data.synthetic_cells import RedCell
from data.synthetic_layout import scatter
from data.synthetic_optics import Stain, transmit
from data.synthetic_render import RIM_BEYOND_MASK
from tests.synthetic_cases import (
    SIDE,
    drawn_cell,
    eight_smears,
    perfect_camera,
    picture_of,
    same,
)
from util.errors import UserError


@pytest.fixture(scope="module")
def smears() -> list[SyntheticSmear]:
    return eight_smears()


# --- the same from the same seed -----------------------------------------------------------------------------------


def test_equal_arguments_give_equal_bytes_in_any_order():
    forward = [synthesize(index, seed=3, size=SIDE) for index in range(4)]
    backward = [synthesize(index, seed=3, size=SIDE) for index in reversed(range(4))][::-1]
    assert all(same(one, two) for one, two in zip(forward, backward, strict=True))


def test_index_and_seed_both_matter():
    base = synthesize(0, seed=3, size=SIDE)
    assert not same(base, synthesize(2, seed=3, size=SIDE))
    assert not same(base, synthesize(0, seed=4, size=SIDE))


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
    _, mask, _, _ = drawn_cell(RedCell("elliptocyte", 14.0, axis_ratio=2.0, angle=0.6), 60.0, 60.0)
    rows, columns = np.nonzero(mask)
    variances = np.linalg.eigvalsh(np.cov(columns, rows))
    assert np.sqrt(variances[1] / variances[0]) == pytest.approx(2.0, rel=0.03)


def test_a_cell_cut_by_the_canvas_keeps_its_whole_truth():
    painted = paint_cells([RedCell("disc", 10.0)] * 2, np.array([[0.0, 30.0], [-50.0, 30.0]]), (60, 60))
    cut, gone = painted.cells
    assert cut.on_border and cut.area_px == pytest.approx(np.pi * 100, rel=0.03)
    assert (painted.instances == 1).sum() == pytest.approx(np.pi * 50, rel=0.08)
    assert gone.on_border and not (painted.instances == 2).any()


# --- light ---------------------------------------------------------------------------------------------------------


def test_densities_add_where_cells_overlap():
    stain = Stain(np.array([0.12, 0.15, 0.06]), *np.zeros((3, 3)), np.full(3, 220.0), *np.zeros((3, 3)))
    camera = perfect_camera()
    cells = [RedCell("spherocyte", 16.0), RedCell("spherocyte", 14.0)]
    places = np.array([[40.0, 48.0], [58.0, 48.0]])
    light = []
    for chosen in ([0], [1], [0, 1]):
        painted = paint_cells([cells[index] for index in chosen], places[chosen], (96, 96))
        light.append(transmit(painted.load[..., None] * stain.red_cell, stain, camera))
    pictures = [picture_of(each, camera, np.random.default_rng(0)).astype(float) for each in light]
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
    camera = replace(perfect_camera(), electrons=6000.0, read_noise=2.0)
    flat = np.full((200, 200, 3), 180.0)
    spread = picture_of(flat, camera, np.random.default_rng(1)).std(axis=(0, 1))
    expected = np.sqrt(180 * 255 / 6000 + 4) * np.array([1.12, 0.84, 0.86])
    np.testing.assert_allclose(spread, np.sqrt(expected**2 + 1 / 12), rtol=0.03)


def test_defocus_blurs():
    light = np.zeros((61, 61, 3))
    light[30, 30] = 255.0
    sharp, soft = (
        picture_of(light, replace(perfect_camera(), defocus=np.full(3, sd)), np.random.default_rng(0))
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
