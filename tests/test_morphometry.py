"""Measures of single cells against shapes whose measures are known, and against synthetic smears' own truth."""

from __future__ import annotations

import numpy as np
import pytest

from data.synthetic import synthesize
from models.module2.morphometry import RINGS, background_light, measure_cells, pallor_of
from util.errors import UserError

FILM = 220


def ellipse(side, x, y, major, minor, angle=0.0):
    """Pixels whose middle lies in an ellipse, (side, side) bool."""
    rows, columns = np.mgrid[:side, :side]
    right, down = columns - x, rows - y
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    return (along / major) ** 2 + (across / minor) ** 2 < 1


def plain(labels, level=120):
    """An image of even cells on an even film."""
    rgb = np.full((*labels.shape, 3), FILM, np.uint8)
    rgb[labels > 0] = level
    return rgb


def measured(mask):
    labels = mask.astype(np.int32)
    return measure_cells(labels, plain(labels))


def dyed(absorbance):
    """Turn decadic absorbance (H, W) into the image that the measures read it back from."""
    grey = np.clip(np.rint((FILM + 1) * 10.0**-absorbance - 1), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("radius", [8.0, 11.5, 25.0])
def test_discs_at_any_place_between_pixels_are_round(radius):
    tables = [measured(ellipse(64, 31 + dx, 31 + dy, radius, radius)) for dx in (0, 0.3, 0.5) for dy in (0.1, 0.45)]
    assert np.mean([table.roundness[0] for table in tables]) > 0.975
    assert min(table.roundness[0] for table in tables) > 0.955  # a circle of few pixels is none
    assert np.mean([table.diameter_px[0] for table in tables]) == pytest.approx(2 * radius, rel=0.01)
    assert max(table.irregularity[0] for table in tables) < 0.03
    assert min(table.solidity[0] for table in tables) > 0.95


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4, 1.9])
@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.45])
def test_roundness_of_an_ellipse_is_minor_over_major_whatever_its_direction(angle, ratio):
    table = measured(ellipse(64, 31.3, 30.6, 20, 20 * ratio, angle))
    assert table.roundness[0] == pytest.approx(ratio, abs=0.012)
    assert table.elongation[0] == pytest.approx(1 / table.roundness[0])
    assert np.cos(2 * (table.angle[0] - angle)) > 0.99
    assert (table.x[0], table.y[0]) == pytest.approx((31.3, 30.6), abs=0.15)


def test_the_hidden_part_of_a_disc_is_completed_from_its_free_outline():
    labels = np.zeros((80, 110), np.int32)
    rows, columns = np.mgrid[:80, :110]
    labels[np.hypot(columns - 40, rows - 40) < 20] = 4
    labels[np.hypot(columns - 70, rows - 40) < 20] = 9  # lies on the other and hides a fifth of it
    table = measure_cells(labels, plain(labels))
    assert table.cell.tolist() == [4, 9]
    assert table.overlapped.all() and not table.border.any()
    assert table.area_px[0] < 0.9 * np.pi * 400
    assert table.diameter_px == pytest.approx([40, 40], rel=0.02)
    assert table.roundness.min() > 0.97


def test_a_lone_cell_is_not_overlapped_and_one_that_touches_by_an_edge_is():
    labels = np.zeros((40, 60), np.int32)
    labels[5:15, 5:15] = 1
    labels[5:15, 15:25] = 2
    labels[5:15, 27:37] = 3
    table = measure_cells(labels, plain(labels))
    assert table.overlapped.tolist() == [True, True, False]
    assert table.area_px.tolist() == [100, 100, 100]
    assert (table.x.tolist(), table.y.tolist()) == ([9.5, 19.5, 31.5], [9.5] * 3)


def test_cells_on_any_edge_of_the_image_are_border_cells_and_measured_from_what_is_seen():
    labels = np.zeros((100, 100), np.int32)
    rows, columns = np.mgrid[:100, :100]
    for number, (x, y) in enumerate([(50, 8), (50, 91), (8, 50), (91, 50), (50, 50)], start=1):
        labels[np.hypot(columns - x, rows - y) < 12] = number
    table = measure_cells(labels, plain(labels))
    assert table.border.tolist() == [True] * 4 + [False]
    assert table.diameter_px == pytest.approx([24] * 5, rel=0.03)
    assert table.roundness.min() > 0.96


def test_one_pixel_an_empty_map_and_a_cell_as_large_as_the_image():
    one = np.zeros((9, 9), np.uint16)
    one[4, 3] = 7
    table = measure_cells(one, plain(one))
    assert (table.cell[0], table.x[0], table.y[0], table.area_px[0]) == (7, 3, 4, 1)
    assert table.roundness[0] == pytest.approx(1) and 0.8 < table.solidity[0] <= 1
    assert table.diameter_px[0] == pytest.approx(2 / np.sqrt(np.pi))
    assert len(measure_cells(np.zeros((9, 9), np.uint16), plain(one))) == 0
    full = np.ones((30, 40), np.int32)
    table = measure_cells(full, plain(full))
    assert table.border[0] and table.free[0] == 0 and table.area_px[0] == 1200
    assert table.roundness[0] == pytest.approx(0.75, abs=0.001)
    assert np.isnan(table.central_pallor[0]) and np.isnan(table.absorbance[0])


def test_numbers_with_gaps_and_unsigned_maps_give_the_same_measures():
    labels = np.zeros((60, 60), np.int64)
    labels[ellipse(60, 20, 20, 12, 9)], labels[ellipse(60, 45, 42, 8, 8)] = 1, 2
    spread = np.where(labels == 2, 60000, labels).astype(np.uint16)
    first, second = measure_cells(labels, plain(labels)), measure_cells(spread, plain(labels))
    assert second.cell.tolist() == [1, 60000]
    assert np.array_equal(first.roundness, second.roundness) and np.array_equal(first.diameter_px, second.diameter_px)


def test_a_hole_in_a_map_does_not_change_the_shape():
    disc = ellipse(64, 31, 31, 20, 15)
    filled, pierced = measured(disc), measured(disc & ~ellipse(64, 33, 31, 6, 6))
    assert pierced.roundness[0] == pytest.approx(filled.roundness[0], abs=0.003)
    assert pierced.irregularity[0] == pytest.approx(filled.irregularity[0], abs=0.003)
    assert pierced.area_px[0] < filled.area_px[0]


def test_micrometres_follow_the_size_of_a_pixel():
    labels = ellipse(64, 31, 31, 18, 18).astype(np.int32)
    table = measure_cells(labels, plain(labels), um_per_px=0.2)
    assert table.diameter_um[0] == pytest.approx(7.2, rel=0.01)
    assert table.area_um2[0] == pytest.approx(np.pi * 3.6**2, rel=0.02)
    assert np.isnan(measure_cells(labels, plain(labels)).diameter_um[0])


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("middle", [0.0, 0.2])
def test_pallor_of_a_disc_with_a_pale_centre_of_known_absorbance(share, middle):
    rows, columns = np.mgrid[:90, :90]
    away = np.hypot(columns - 44.4, rows - 45.2) / 30
    absorbance = np.where(away < share, middle, 0.4) * (away < 1)
    table = measure_cells((away < 1).astype(np.int32), dyed(absorbance))
    lack = 1 - middle / 0.4 / 0.85
    assert table.central_pallor[0] == pytest.approx(share * np.sqrt(lack), abs=0.02)
    assert table.pallor_depth[0] == pytest.approx(1 - middle / 0.4, abs=0.03)
    assert table.bump[0] == pytest.approx(0, abs=0.02)
    mean = share**2 * middle + (1 - share**2) * 0.4
    assert table.absorbance[0] == pytest.approx(mean, abs=0.01)


def test_pallor_does_not_follow_the_strength_of_the_stain_nor_uneven_light():
    rows, columns = np.mgrid[:200, :200]
    labels, absorbance = np.zeros((2, 200, 200))
    for number, (x, y) in enumerate([(40, 40), (150, 60), (60, 150), (150, 150)], start=1):
        away = np.hypot(columns - x, rows - y) / 20
        labels[away < 1] = number
        absorbance[away < 1] = np.where(away < 0.4, 0.1, 0.3)[away < 1]
    labels = labels.astype(np.int32)
    even = measure_cells(labels, dyed(absorbance)).central_pallor
    strong = measure_cells(labels, dyed(2 * absorbance)).central_pallor
    falling = measure_cells(labels, dyed(absorbance + 0.15 * columns / 200)).central_pallor
    assert strong == pytest.approx(even, abs=0.02)
    assert falling == pytest.approx(even, abs=0.03)
    assert even == pytest.approx([0.4 * np.sqrt(1 - 1 / 3 / 0.85)] * 4, abs=0.02)


def test_a_dome_has_no_pallor_and_a_target_a_bump():
    rows, columns = np.mgrid[:90, :90]
    away = np.hypot(columns - 44, rows - 45) / 30
    labels = (away < 1).astype(np.int32)
    dome = measure_cells(labels, dyed(0.5 * np.sqrt(np.clip(1 - away**2, 0, 1))))
    assert dome.central_pallor[0] < 0.1 and dome.pallor_depth[0] < 0
    target = measure_cells(labels, dyed(np.where((away > 0.25) & (away < 0.6), 0.1, 0.4) * (away < 1)))
    assert target.bump[0] == pytest.approx(0.75, abs=0.05)
    assert target.central_pallor[0] == pytest.approx(np.sqrt((0.36 - 0.0625) * (1 - 0.25 / 0.85)), abs=0.03)


def test_the_rim_is_not_taken_from_where_another_cell_lies_on_it():
    rows, columns = np.mgrid[:90, :130]
    left, right = np.hypot(columns - 45, rows - 45) / 25, np.hypot(columns - 85, rows - 45) / 25
    absorbance = sum(np.where(away < 0.4, 0.1, 0.3) * (away < 1) for away in (left, right))
    labels = np.where(right < 1, 2, (left < 1) * 1).astype(np.int32)
    table = measure_cells(labels, dyed(absorbance))
    assert table.overlapped.all()
    assert table.central_pallor[1] == pytest.approx(0.4 * np.sqrt(1 - 1 / 3 / 0.85), abs=0.03)


def test_pallor_of_rings_that_hold_no_pixel_or_no_stain():
    rings = np.full((3, RINGS), 0.4)
    rings[0, :2] = np.nan
    rings[1] = 0.001
    rings[2] = np.nan
    pallor = pallor_of(rings)
    assert pallor["central_pallor"][0] == 0 and pallor["pallor_depth"][0] == pytest.approx(0)
    assert np.isnan(pallor["central_pallor"][1:]).all()


def test_light_of_the_film_is_its_median_and_reaches_blocks_full_of_cells():
    labels = np.zeros((96, 96), np.int32)
    labels[:, 32:] = 1
    channel = np.full((96, 96), 200, np.uint8)
    channel[labels > 0] = 50
    channel[3:6, 3:6] = 10  # a platelet
    assert background_light(labels, channel, 32) == pytest.approx(np.full((3, 3), 200.0))
    assert background_light(np.ones_like(labels), channel, 32) is None


def test_outline_of_a_teardrop_has_one_tail_and_of_a_burr_cell_many_spikes():
    rows, columns = np.mgrid[:120, :120]
    right, down = columns - 60.2, rows - 59.7
    away, theta = np.hypot(right, down), np.arctan2(down, right)
    drop = measured(away < 25 * (1 + 0.8 * np.exp(20 * (np.cos(theta) - 1))))
    burr = measured(away < 30 * (1 + 0.12 * np.cos(9 * theta)))
    assert drop.tail[0] > 0.15 and drop.tail[0] / drop.irregularity[0] > 2 and drop.spikes[0] <= 2
    assert burr.spikes[0] == 9 and burr.irregularity[0] == pytest.approx(0.12 / np.sqrt(2), abs=0.02)
    assert burr.tail[0] / burr.irregularity[0] < 2


@pytest.mark.parametrize(
    ("labels", "rgb", "um"),
    [
        (np.zeros((4, 4), float), np.zeros((4, 4, 3), np.uint8), None),
        (-np.ones((4, 4), int), np.zeros((4, 4, 3), np.uint8), None),
        (np.zeros((4, 4), int), np.zeros((4, 5, 3), np.uint8), None),
        (np.zeros((4, 4), int), np.zeros((4, 4, 3), float), None),
        (np.zeros((4, 4), int), np.zeros((4, 4, 3), np.uint8), 0.0),
        (np.zeros((4, 4), int), np.zeros((4, 4, 3), np.uint8), float("nan")),
    ],
)
def test_what_cannot_be_measured_is_refused(labels, rgb, um):
    with pytest.raises(UserError):
        measure_cells(labels, rgb, um_per_px=um)


def test_synthetic_smears_diameters_and_pallor_follow_the_truth():
    errors, pallors = [], []
    for index in range(6):
        smear = synthesize(index, seed=5, size=256)
        table = measure_cells(smear.instances, smear.rgb, um_per_px=1 / smear.pixels_per_um)
        truth = [smear.cells[number - 1] for number in table.cell]
        whole = np.array([not cell.on_border and not cell.hidden for cell in truth])
        true = np.array([cell.diameter_px for cell in truth])
        errors.append(table.diameter_px[whole].mean() / true[whole].mean() - 1)
        round_kind = np.array([cell.kind in ("normal", "hypochromic", "microcyte", "macrocyte") for cell in truth])
        lone = whole & round_kind & ~table.overlapped
        pallors += [(truth[place].central_pallor, table.central_pallor[place]) for place in np.flatnonzero(lone)]
    assert np.abs(errors).max() < 0.03 and abs(np.mean(errors)) < 0.01
    assert np.corrcoef(np.array(pallors).T)[0, 1] > 0.7
