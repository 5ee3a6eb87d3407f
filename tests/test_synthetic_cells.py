"""Single synthetic red cells: their thickness and pallor, and each kind, measured on what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from data.records import ANEMIC, HEALTHY
from data.synthetic import (
    paint_cells,
    stain_of,
)
from data.synthetic_cells import PIXELS_PER_UM, Film, RedCell, cell_kind, draw_red_cell
from data.synthetic_populations import POPULATIONS, SHAPE_KINDS, draw_subject
from data.synthetic_render import central_pallors
from tests.synthetic_cases import (
    central_pallor,
    drawn_cell,
    thickness,
)

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
    drawn, mask, _, _ = drawn_cell(cell, 100.0, 100.0)
    rows, columns = np.indices(mask.shape)
    middle = np.hypot(rows - rows[mask].mean(), columns - columns[mask].mean()) < 0.6 * 60
    pale = (drawn < 0.6 * drawn.max()) & middle
    assert central_pallor(cell) == pytest.approx(np.sqrt(pale.sum() / mask.sum()), abs=0.02)


def test_target_cell_is_dark_in_the_middle_of_its_pallor():
    rho = np.array([0.0, 0.35, 0.75])
    middle, ring, rim = thickness(RedCell("target", 10.0, centre=0.4, width=1.5, bump=0.8), rho)
    assert ring < middle and ring < rim


def test_load_is_the_mean_haemoglobin():
    drawn, mask, _, _ = drawn_cell(RedCell("disc", 11.0, load=0.7, slope=(0.1, -0.05), shift=(0.1, 0.1)), 30.0, 30.0)
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


# --- kinds of cell, measured on what is drawn ----------------------------------------------------------------------


def _drawn_kind(kind: str, number: int) -> tuple[RedCell, np.ndarray]:
    """A cell of a wanted kind, as the generator draws it, and its mask at a magnification that shows its shape."""
    base = POPULATIONS[0]
    shares = tuple(float(name == kind) for name in SHAPE_KINDS)
    population = replace(base, kinds=shares, roughness=0.0, polychromasia=0.0)
    subject = replace(draw_subject(HEALTHY, None, np.random.default_rng(0)), population=population)
    cell = draw_red_cell(subject, Film(), np.random.default_rng([3, number]), pixels_per_um=8.0)
    assert cell.kind == kind
    return cell, drawn_cell(cell, 90.0, 90.0)[1]


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
    solid, curved = (_axes_and_solidity(drawn_cell(cell, 90.0, 90.0)[1])[1] for cell in (straight, bent))
    assert curved < solid - 0.1
    pallor = [central_pallor(_drawn_kind("sickle", number)[0]) for number in range(6)]
    assert max(pallor) == 0.0


def test_burr_cells_bear_many_even_projections():
    for number in range(6):
        cell, mask = _drawn_kind("burr", number)
        assert 9 <= cell.spikes <= 14
        assert abs(_peaks_around(mask) - cell.spikes) <= 2
    assert _peaks_around(drawn_cell(RedCell("disc", 28.0), 90.0, 90.0)[1]) <= 2


def test_fragments_are_small_and_cut_straight():
    for number in range(6):
        cell, mask = _drawn_kind("schistocyte", number)
        assert mask.sum() < 0.92 * np.pi * (7.2 * 8 / 2) ** 2
        assert 1 <= len(cell.cuts) <= 2 and central_pallor(cell) == 0.0
    cut = RedCell("schistocyte", 28.0, cuts=((0.0, 0.2),))
    _, mask, _, left = drawn_cell(cut, 90.0, 90.0)
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
