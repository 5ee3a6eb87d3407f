"""Outlines drawn from the stain: shapes whose radius is known in every direction, and instances that are smoother."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score

from models.module2.kinds import KindLimits
from models.module2.morphometry import measure_cells
from models.module2.outlines import DIRECTIONS, Ellipses, directions, outline_measures, outlines_of
from scripts.calibrate_kinds import Labelled, best_limits, cross_validated, difference, f1_of, figures, labelled, tally
from tests.test_kinds import table_of

FILM, SIDE = 220, 120


def shape_of(radius_at, x=60.2, y=59.7, side=SIDE):
    """Share of each pixel (side, side) within a shape of that radius in every direction: 8 x 8 points a pixel."""
    fine = (np.arange(8 * side) + 0.5) / 8 - 0.5
    right, down = fine[None, :] - x, fine[:, None] - y
    inside = np.hypot(right, down) < radius_at(np.arctan2(down, right))
    return inside.reshape(side, 8, side, 8).mean(axis=(1, 3))


def stained(cover, absorbance=0.3):
    return np.rint(FILM * 10.0 ** (-absorbance * cover)).astype(np.uint8)


def circle(radius=30.0, x=60.2, y=59.7):
    return Ellipses(*(np.array([value]) for value in (x, y, radius, radius, 0.0)))


def test_the_outline_lies_where_the_stain_ends_and_not_where_the_instance_does():
    theta = directions()
    for other in (27.0, 33.0):  # the instance is drawn too small and too large
        labels = (shape_of(lambda theta, r=other: r + 0 * theta) > 0.5).astype(np.int32)
        outlines = outlines_of(labels, np.array([1]), stained(shape_of(lambda theta: 30 + 0 * theta)), circle())
        assert outlines.free.all() and outlines.radius.shape == (1, len(theta))
        assert outlines.radius == pytest.approx(np.ones((1, DIRECTIONS)), abs=0.02)


def test_spines_are_seen_that_the_instance_has_lost():
    def radius(theta):
        return 28 * (1 + 0.1 * np.cos(10 * theta))

    smooth = (shape_of(lambda theta: 28.5 + 0 * theta) > 0.5).astype(np.int32)
    burr = np.repeat(stained(shape_of(radius))[..., None], 3, axis=2)
    plain = np.repeat(stained(smooth.astype(float))[..., None], 3, axis=2)
    seen, unseen = measure_cells(smooth, burr), measure_cells(smooth, plain)
    assert seen.spikes[0] == 10 and unseen.spikes[0] == 0
    assert seen.irregularity[0] == pytest.approx(0.1 / np.sqrt(2), abs=0.015)
    assert seen.solidity[0] < 0.97 < 0.99 < unseen.solidity[0]
    assert seen.roundness[0] == pytest.approx(unseen.roundness[0]) and seen.diameter_px == unseen.diameter_px


def test_where_no_stain_ends_the_instance_s_edge_stays():
    labels = (shape_of(lambda theta: 30 + 0 * theta) > 0.5).astype(np.int32)
    flat = outlines_of(labels, np.array([1]), np.full((SIDE, SIDE), 150, np.uint8), circle())
    assert flat.radius == pytest.approx(np.ones((1, DIRECTIONS)), abs=0.04)


def test_directions_into_another_cell_show_no_outline():
    rows, columns = np.mgrid[:SIDE, :SIDE]
    labels = (np.hypot(columns - 60, rows - 60) < 20).astype(np.int32)
    labels[(np.hypot(columns - 96, rows - 60) < 20) & (labels == 0)] = 7
    outlines = outlines_of(labels, np.array([1, 7]), stained(labels > 0), Ellipses(
        np.array([60.0, 96.0]), np.array([60.0, 60.0]), np.array([20.0, 20.0]), np.array([20.0, 20.0]), np.zeros(2)
    ))  # fmt: skip
    theta = (directions() + np.pi) % (2 * np.pi) - np.pi
    assert not outlines.free[0][np.abs(theta) < 0.4].any() and outlines.free[0][np.abs(theta) > 1].all()
    assert outlines.free[1][np.abs(theta) < 2].all() and not outlines.free[1][np.abs(theta) > np.pi - 0.4].any()
    irregularity, tail, spikes, solidity = outline_measures(outlines, circle(20.0).where(np.array([True]), circle()))
    assert irregularity.max() < 0.03 and tail.max() < 0.06 and (spikes == 0).all() and solidity.min() > 0.97


def test_many_cells_are_drawn_as_one_alone_is(monkeypatch):
    labels, count = ndimage.label(np.kron(np.eye(6), np.pad(np.ones((10, 10)), 5)))
    rgb = np.repeat(stained(labels > 0)[..., None], 3, axis=2)
    together = measure_cells(labels, rgb)
    monkeypatch.setattr("models.module2.outlines._AT_ONCE", 4)
    assert count == 6 and np.array_equal(measure_cells(labels, rgb).irregularity, together.irregularity)


# --- cut-offs set on labelled cells -----------------------------------------------------------------------------------


def planted(roundness, kinds):
    """One image of cells with these roundnesses, labelled so."""
    table = table_of(*({"roundness": value} for value in roundness), plain=6)
    return Labelled(table, np.arange(len(kinds)), np.array(kinds, "<U16"))


def many(images=12):
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(np.r_[rng.uniform(0.52, 0.745, 10), rng.uniform(0.755, 0.99, 10)]) for _ in range(images)]
    return [planted(values, np.where(values < 0.75, "ovalocyte", "normal").tolist()) for values in drawn]


def test_a_planted_cut_off_is_found_and_holds_on_images_it_was_not_set_on():
    images, kinds = many(), ["normal", "ovalocyte"]
    assert best_limits(images, kinds, KindLimits()).ovalocyte_below == 0.75
    by_image, limits = cross_validated(images, kinds, KindLimits(), 4, np.random.default_rng(1))
    assert [part.ovalocyte_below for part in limits] == [0.75] * 4
    drawn = np.tile(np.arange(len(images)), (3, 1))
    assert figures(by_image, kinds, drawn)["mean_f1"] == 1.0
    today = [image.pairs(KindLimits()) for image in images]
    gain = difference(by_image, today, kinds, drawn)
    assert gain["mean_f1"] > 0.03 and gain["ci95"] == pytest.approx([gain["mean_f1"]] * 2)


def test_an_image_is_judged_by_cut_offs_of_the_others():
    # One image's labels contradict all others': if it were learned from, nothing else would change its score.
    images = many(4)
    odd = planted([0.77] * 400, ["ovalocyte"] * 400)
    by_image, _ = cross_validated([*images, odd], ["normal", "ovalocyte"], KindLimits(), 5, np.random.default_rng(0))
    assert set(by_image[-1][:, 1]) == {"normal"}
    assert best_limits([*images, odd], ["normal", "ovalocyte"], KindLimits()).ovalocyte_below > 0.77


def test_f1_is_scikit_learn_s():
    rng = np.random.default_rng(3)
    pairs = rng.choice(["normal", "burr", "target"], (300, 2))
    kinds = ["burr", "target"]
    assert f1_of(tally(pairs, kinds)) == pytest.approx(f1_score(pairs[:, 0], pairs[:, 1], labels=kinds, average=None))


def test_cells_with_two_points_at_the_border_or_of_unnamed_kinds_are_not_asked_about():
    instances = np.zeros((60, 90), np.int32)
    for number, (y, x) in enumerate([(15, 15), (15, 45), (15, 75), (45, 15), (54, 75)], 1):
        instances[y - 10 : y + 10, x - 10 : x + 10] = number
    table = measure_cells(instances, np.repeat(stained(instances > 0)[..., None], 3, axis=2))
    points = np.array([[15, 15, 11], [45, 15, 0], [47, 15, 0], [75, 15, 5], [15, 45, 8], [75, 54, 0], [3, 3, 0]])
    found = labelled(instances, table, points)
    assert table.cell[found.rows].tolist() == [1, 4] and found.kinds.tolist() == ["hypochromic", "burr"]
