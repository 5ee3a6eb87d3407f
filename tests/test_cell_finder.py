"""The cell finder: its maps, the split into single cells, the scale, and what becomes of hopeless images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from data.synthetic import synthesize
from models.module2 import finder as finder_module
from models.module2.analysis import CellAnalyser, changed, left_out
from models.module2.finder import (
    CELL_DIAMETER,
    OVERLAP,
    PLANES,
    TILE,
    CellFinder,
    CellMaps,
    load_finder,
    map_cells,
    quickened,
    save_finder,
)
from models.module2.finder_learning import finder_loss, mask_maps, target_maps
from models.module2.instances import at_own_size, colourless, numbered, split_cells
from models.module2.kinds import KindLimits
from models.module2.mask_edge import EDGE_LEVEL
from models.module2.matching import match_instances
from models.module2.morphometry import measure_cells
from models.module2.scale import estimate_diameter, scaled, stain_threshold
from models.module2.severity import SeverityRule
from models.module2.smear_cells import BORDER, COLOURLESS, FRAGMENT, PLATELET, SmearCells
from util.checkpoint import save_checkpoint
from util.errors import UserError

CPU = torch.device("cpu")
FILM, CELL = (225, 222, 224), (150, 120, 170)


def discs(shape: tuple[int, int], places: list[tuple[float, float, float]]) -> np.ndarray:
    """Instance map of discs (x, y, radius), the later on top."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for number, (x, y, radius) in enumerate(places, 1):
        labels[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = number
    return labels


def picture(labels: np.ndarray, film: tuple[int, int, int] = FILM, cell: tuple[int, int, int] = CELL) -> np.ndarray:
    """A blurred smear of flat cells."""
    rgb = np.where((labels > 0)[..., None], np.array(cell), np.array(film)).astype(np.float32)
    return np.rint(ndimage.gaussian_filter(rgb, (0.8, 0.8, 0))).astype(np.uint8)


def lattice(shape: tuple[int, int], diameter: float) -> list[tuple[float, float, float]]:
    """Discs that do not touch, whole in the image."""
    step, radius = 1.6 * diameter, diameter / 2
    xs, ys = np.arange(step, shape[1] - radius - 2, step), np.arange(step, shape[0] - radius - 2, step)
    return [(float(x), float(y), radius) for y in ys for x in xs]


def as_maps(planes: np.ndarray) -> CellMaps:
    return CellMaps(*(planes.astype(np.float32) / 255))


@pytest.fixture(scope="module")
def shipped() -> CellFinder:
    return load_finder()


@pytest.fixture(scope="module")
def analyser(shipped: CellFinder) -> CellAnalyser:
    return CellAnalyser(shipped, CPU)


# --- the truth that it learns ---------------------------------------------------------------------------------------


def test_true_maps_of_two_touching_squares() -> None:
    instances = np.zeros((20, 24), np.int32)
    instances[5:14, 3:12], instances[5:14, 12:21] = 1, 2  # nine pixels wide, side by side
    stained = instances > 0
    stained[0:2, 0:2] = True
    red, distance, gap, other = target_maps(instances, stained)
    assert (red == 255 * (instances > 0)).all()
    assert distance[9, 7] == distance[9, 16] == 255  # the middle of either
    # Pixels beside another number are the edge, at half a pixel; the middle is four further in.
    assert distance[9, 3] == distance[9, 11] == round(255 * 0.5 / 4.5)
    assert (distance[instances == 0] == 0).all()
    assert gap[9, 10:14].all() and not gap[9, 3:9].any() and not gap[:, 3:9].any()
    assert other[:2, :2].all() and other.sum() == 4 * 255


def test_a_cell_cut_by_the_border_is_deep_there() -> None:
    instances = np.zeros((20, 20), np.int32)
    instances[0:8, 5:15] = 1
    distance = target_maps(instances, instances > 0)[1]
    assert distance[0, 9] == 255 and distance[7, 9] < 60


def test_loss_of_real_clumps_asks_only_what_is_stained() -> None:
    logits = torch.zeros(2, 4, 8, 8, requires_grad=True)
    true = torch.zeros(2, 4, 8, 8)
    true[:, 0, 2:6, 2:6] = 1
    true[:, 3] = 128 / 255  # a clump: how many cells is not known
    loss = finder_loss(logits, true, torch.tensor([False, False]))
    assert loss.mask.item() == loss.distance.item() == loss.gap.item() == 0
    loss.total.backward()
    assert logits.grad is not None
    assert logits.grad[:, (0, 3)].abs().sum() > 0  # red cells and platelets may both answer for a stained pixel
    assert float(logits.grad[:, (1, 2)].abs().sum()) == 0


def test_loss_is_small_at_the_truth_and_large_at_its_opposite() -> None:
    instances = discs((64, 64), [(20, 20, 12), (45, 40, 14)])
    true = torch.from_numpy(target_maps(instances, instances > 0)[None] / np.float32(255))
    right = torch.logit(true.clamp(1e-4, 1 - 1e-4))
    exact = torch.tensor([True])
    assert float(finder_loss(right, true, exact).total) < 0.02
    assert float(finder_loss(-right, true, exact).total) > 10


# --- maps to cells --------------------------------------------------------------------------------------------------


def test_split_finds_cells_that_overlap_and_leaves_out_fragments() -> None:
    truth = discs((128, 128), [(30, 40, 14), (50, 40, 14), (90, 40, 14), (90, 64, 14), (40, 100, 13), (110, 110, 2)])
    found = split_cells(as_maps(target_maps(truth, truth > 0)))
    match = match_instances(found.cells, np.where(truth == 6, 0, truth))
    assert (match.matched, match.found, match.true) == (5, 5, 5)
    assert match.panoptic_quality > 0.9
    assert found.fragments[110, 110] == 1 and found.fragments.max() == 1


def test_split_fills_a_pale_centre_and_keeps_the_film_between_cells() -> None:
    truth = discs((160, 160), [(40, 40, 14)])
    planes = target_maps(truth, truth > 0)
    planes[0][(np.mgrid[:160, :160] - 40).__pow__(2).sum(axis=0) <= 4**2] = 0
    assert split_cells(as_maps(planes)).cells[40, 40] == 1
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    ring = discs((160, 160), [(80 + 37 * np.cos(a), 80 + 37 * np.sin(a), 14.5) for a in angles])
    found = split_cells(as_maps(target_maps(ring, ring > 0))).cells
    assert found[80, 80] == 0 and found.max() == 8


def test_platelets_are_no_cells() -> None:
    truth = discs((96, 96), [(40, 40, 14)])
    stained = (truth > 0) | (discs((96, 96), [(70, 70, 5)]) > 0)
    found = split_cells(as_maps(target_maps(truth, stained)))
    assert found.cells.max() == 1 and found.others[70, 70] == 1 and found.others.max() == 1


def test_numbers_without_gaps() -> None:
    assert numbered(np.array([[0, 7], [7, 3]])).tolist() == [[0, 2], [2, 1]]
    assert numbered(np.zeros((2, 2), int)).tolist() == [[0, 0], [0, 0]]


def test_edges_at_own_size_are_no_staircase() -> None:
    small = discs((60, 60), [(30, 30, 14)])
    red = ndimage.gaussian_filter((small > 0).astype(np.float32), 1)
    flat = np.zeros_like(red)
    large = at_own_size(small, CellMaps(red, flat, flat, flat), (240, 240), 0.5)
    rows, columns = np.mgrid[:240, :240]
    middle = (30 + 0.5) * 4 - 0.5
    true = (columns - middle) ** 2 + (rows - middle) ** 2 <= 16 * (small > 0).sum() / np.pi
    stairs = np.kron(small, np.ones((4, 4), np.int32)) > 0
    wrong, wrong_stairs = ((labels != true).sum() for labels in (large > 0, stairs))
    assert wrong < 0.6 * wrong_stairs, (wrong, wrong_stairs, true.sum())


def test_match_of_shifted_squares() -> None:
    true, found = np.zeros((2, 40, 40), int)
    true[10:20, 10:20], found[10:20, 12:22] = 5, 9  # 80 of 120 pixels
    match = match_instances(found, true)
    assert match.matched == 1 and match.overlap == pytest.approx(80 / 120)
    assert match.f1 == 1 and match.panoptic_quality == pytest.approx(2 / 3)
    assert match_instances(np.roll(found, 2, axis=1), true).matched == 0  # 60 of 140
    double = match + match_instances(np.zeros_like(true), true)
    assert (double.recall, double.precision) == (0.5, 1.0)
    with pytest.raises(ValueError, match="shape"):
        match_instances(found[1:], true)


# --- any size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (17, 533), (64, 64), (333, 20)])
def test_maps_have_the_image_s_size(shipped: CellFinder, shape: tuple[int, int]) -> None:
    maps = map_cells(shipped, np.full((*shape, 3), 220, np.uint8), CPU)
    for plane in PLANES:
        values = getattr(maps, plane)
        assert values.shape == shape and values.min() >= 0 and values.max() <= 1


def test_a_quicker_copy_says_the_same(shipped: CellFinder) -> None:
    before = {name: value.clone() for name, value in shipped.state_dict().items()}
    quick = quickened(quickened(shipped, CPU), CPU)
    rgb = synthesize(1, seed=4, size=200).rgb
    said, told = map_cells(quick, rgb, CPU), map_cells(shipped, rgb, CPU)
    for plane in PLANES:
        np.testing.assert_allclose(getattr(said, plane), getattr(told, plane), atol=1e-4)
    for judging in (quick, CellAnalyser(shipped, CPU).finder):
        assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in judging.modules())
        assert judging.logit.weight.is_contiguous(memory_format=torch.channels_last)
    after = shipped.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_tiles_cover_every_length_and_share_their_edges() -> None:
    for length in (*range(64, 1400, 16), 4992):
        offsets = finder_module._offsets(length)
        assert offsets[0] == 0 and offsets[-1] + TILE >= length
        assert all(0 < b - a <= TILE - OVERLAP // 2 for a, b in zip(offsets, offsets[1:], strict=False))


def test_no_cell_is_cut_at_a_seam(shipped: CellFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    smear = synthesize(1, seed=4, size=500, zoom=1.4)
    whole = map_cells(shipped, smear.rgb, CPU)
    monkeypatch.setattr(finder_module, "TILE", 192)
    tiled = map_cells(shipped, smear.rgb, CPU)
    assert np.abs(whole.red_cell - tiled.red_cell).mean() < 0.01
    match = match_instances(split_cells(tiled).cells, split_cells(whole).cells, threshold=0.8)
    assert match.f1 > 0.97


def test_cells_of_any_magnification_are_found_and_sized(analyser: CellAnalyser) -> None:
    for diameter in (20, 45, 110):
        shape = (round(6.2 * diameter), round(8.1 * diameter))
        places = lattice(shape, diameter)
        cells = analyser(picture(discs(shape, places)))
        assert len(cells.table) == len(places), diameter
        assert cells.table.diameter_px == pytest.approx(diameter, rel=0.06)
        assert cells.instances.shape == shape


def test_the_given_diameter_is_believed(analyser: CellAnalyser, shipped: CellFinder) -> None:
    places = lattice((220, 300), 40)
    told = CellAnalyser(shipped, CPU, cell_diameter=40.0, um_per_px=0.18)(picture(discs((220, 300), places)))
    assert told.cell_diameter_px == pytest.approx(40, rel=0.06)
    assert told.table.diameter_um == pytest.approx(7.2, rel=0.06)


@pytest.mark.parametrize("diameter", [15, 37, 90])
def test_diameter_of_single_cells_clumps_and_platelets(diameter: int) -> None:
    side, radius = 8 * diameter, diameter / 2
    rng = np.random.default_rng(0)
    cells = [(x, y, radius) for x, y, _ in lattice((side, side), diameter)]
    cells += [(cells[0][0] + 0.8 * diameter, cells[0][1], radius)]
    dust = [(float(x), float(y), radius / 4) for x, y in rng.uniform(0, side, (40, 2))]
    estimate = estimate_diameter(picture(discs((side, side), dust + cells)))
    assert estimate == pytest.approx(diameter, rel=0.12)


def test_diameter_of_nothing_is_unknown() -> None:
    assert np.isnan(estimate_diameter(np.full((50, 60, 3), 200, np.uint8)))
    assert np.isnan(estimate_diameter(np.full((1, 1, 3), 200, np.uint8)))


def test_scaled_keeps_a_pixel() -> None:
    assert scaled(np.zeros((3, 500, 3), np.uint8), 0.1).shape == (1, 50, 3)


# --- whole smears ---------------------------------------------------------------------------------------------------


def test_synthetic_smears_cell_by_cell(analyser: CellAnalyser) -> None:
    total = None
    for index in range(6):
        smear = synthesize(index, seed=31)
        match = match_instances(analyser(smear.rgb).instances, smear.instances)
        total = match if total is None else total + match
    assert total is not None and total.true > 500
    assert total.f1 > 0.9


def test_rows_are_of_whole_cells_and_the_rest_is_listed(analyser: CellAnalyser) -> None:
    places = [(5.0, 60.0, 15.0), (60.0, 60.0, 15.0), (110.0, 60.0, 15.0), (85.0, 100.0, 15.0), (30.0, 110.0, 15.0)]
    cells: SmearCells = analyser(picture(discs((140, 140), places)))
    rows = cells.cell_rows("a/b.png")
    assert len(rows) == 4 and {row["image"] for row in rows} == {"a/b.png"}
    assert cells.summary.cells == 5 and cells.summary.border == 1
    cut = [row for row in cells.left_out_rows("a/b.png") if row["reason"] == BORDER]
    assert len(cut) == 1 and cut[0]["x"] < 18 and cells.instances[60, 2] == cut[0]["cell"]
    assert {row["cell"] for row in rows}.isdisjoint({cut[0]["cell"]})


def test_less_than_half_a_cell_is_no_cell_of_the_image(analyser: CellAnalyser) -> None:
    places = [(-6.0, 60.0, 15.0), (60.0, 60.0, 15.0), (110.0, 60.0, 15.0), (85.0, 100.0, 15.0)]
    cells = analyser(picture(discs((140, 140), places)))
    assert len(cells.table) == 3 and not cells.table.border.any()
    assert cells.mask[60, 2] and cells.instances[60, 2] == 0
    (piece,) = [row for row in cells.left_out_rows("x") if row["reason"] == BORDER]
    assert piece["cell"] is None and piece["x"] < 6 and piece["y"] == pytest.approx(60, abs=2)
    assert piece["area_px"] == (cells.mask & (cells.instances == 0)).sum()


def test_the_edge_of_large_cells_is_drawn_from_the_image_itself(analyser: CellAnalyser) -> None:
    soft = ndimage.gaussian_filter((discs((420, 420), lattice((420, 420), 80.0)) > 0).astype(float), 4.0)
    rgb = np.rint(np.array(FILM) - soft[..., None] * (np.array(FILM) - np.array(CELL))).astype(np.uint8)
    cells = analyser(rgb)
    edge = cells.mask & ~ndimage.binary_erosion(cells.mask)
    assert len(cells.table) == len(lattice((420, 420), 80.0))
    assert soft[edge].min() > EDGE_LEVEL - 0.03 and soft[edge].max() < EDGE_LEVEL + 0.12  # a pixel is .1 of the way


def test_left_out_platelets_are_told_by_size(analyser: CellAnalyser) -> None:
    smears = [synthesize(index, seed=12) for index in range(4)]
    listed = [item for smear in smears for item in analyser(smear.rgb).left_out if item.reason == PLATELET]
    truly = 0
    for smear in smears:
        _, count = ndimage.label(smear.stained & (smear.instances == 0))
        truly += count
    assert listed and 0.2 * truly < len(listed) < 3 * truly


def test_pointers_and_lettering_are_told_by_their_colour() -> None:
    labels = discs((90, 150), [(30, 30, 12), (70, 30, 12), (110, 30, 12), (40, 68, 10)])
    labels[60:80, 90:96] = 9
    rgb = picture(labels, cell=(205, 120, 170))
    rgb[labels == 9] = (70, 72, 71)
    assert np.flatnonzero(colourless(labels, rgb)).tolist() == [9]
    grey = np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert not colourless(labels, grey).any()
    assert not colourless(np.zeros_like(labels), rgb).any() and not colourless(np.ones_like(labels), rgb).any()


def test_what_has_not_the_stain_s_colour_is_listed_and_no_cell(analyser: CellAnalyser) -> None:
    places = lattice((220, 300), 30)
    rgb = picture(discs((220, 300), places), cell=(205, 120, 170))
    x, y = (round(value) for value in places[4][:2])
    disc = discs((220, 300), [places[4]]) > 0
    rgb[disc] = (100, 101, 102)
    cells = analyser(rgb)
    assert len(cells.table) == len(places) - 1 and cells.instances[y, x] == 0 and not cells.mask[y, x]
    (listed,) = [item for item in cells.left_out if item.reason == COLOURLESS]
    assert (listed.x, listed.y) == pytest.approx((x, y), abs=1) and listed.cell == 0


# --- hopeless images ------------------------------------------------------------------------------------------------


def test_an_empty_film(analyser: CellAnalyser) -> None:
    cells = analyser(np.full((120, 90, 3), 221, np.uint8))
    assert not len(cells.table) and cells.cell_rows("x") == [] and np.isnan(cells.cell_diameter_px)
    assert cells.summary.severity is None and any("no red cell" in text for text in cells.warnings)


def test_noise_alone(analyser: CellAnalyser) -> None:
    noise = np.random.default_rng(0).normal(215, 4, (200, 200, 3)).clip(0, 255).astype(np.uint8)
    cells = analyser(noise)
    assert cells.instances.shape == (200, 200)
    assert len(cells.cell_rows("x")) < 20


def test_a_single_cell_that_fills_the_image(analyser: CellAnalyser) -> None:
    cells = analyser(picture(discs((200, 200), [(100, 100, 80)])))
    assert len(cells.table) == 1
    assert cells.table.diameter_px[0] == pytest.approx(161, rel=0.05)


def test_all_cells_in_one_clump(analyser: CellAnalyser) -> None:
    places = [(40.0 + 24 * i + 12 * (j % 2), 40.0 + 21 * j, 14.0) for j in range(5) for i in range(6)]
    layers = sum((discs((180, 220), [place]) > 0).astype(np.float32) for place in places)
    density = ndimage.gaussian_filter(np.asarray(layers), 0.8)[..., None] * np.array([0.13, 0.17, 0.07])
    cells = analyser(np.rint(np.array(FILM) * 10**-density).astype(np.uint8))
    assert 0.6 * len(places) < len(cells.table) < 1.4 * len(places)
    assert cells.summary.overlapped_share > 0.8


def test_an_inverted_image_is_warned_of(analyser: CellAnalyser) -> None:
    rgb = 255 - picture(discs((200, 260), lattice((200, 260), 30)))
    assert any("inverted" in text for text in analyser(rgb).warnings)


def test_a_grey_image_counts_the_same_cells(analyser: CellAnalyser) -> None:
    rgb = picture(discs((200, 260), lattice((200, 260), 30)))
    grey = np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    assert len(analyser(grey).table) == len(analyser(rgb).table)


def test_an_absurd_diameter_gives_an_answer(shipped: CellFinder) -> None:
    rgb = picture(discs((200, 260), lattice((200, 260), 30)))
    for absurd in (4.0, 2000.0):
        cells = CellAnalyser(shipped, CPU, cell_diameter=absurd)(rgb)
        assert cells.instances.shape == (200, 260)


def test_tiny_cells_are_warned_of(analyser: CellAnalyser) -> None:
    cells = analyser(picture(discs((90, 120), lattice((90, 120), 8))))
    assert any("pixels across" in text for text in cells.warnings)
    assert cells.summary.cells > 20 and cells.summary.severity is None and np.isnan(cells.summary.severity_score)


def test_cells_too_small_to_be_told_apart_are_not_looked_for(
    analyser: CellAnalyser, shipped: CellFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = picture(discs((200, 260), lattice((200, 260), 5)))
    whole = []
    before = finder_module.map_cells
    monkeypatch.setattr("models.module2.analysis.map_cells", lambda *given: whole.append(1) or before(*given))
    cells = analyser(rgb)
    assert (
        not cells.looked_for
        and not cells.instances.any()
        and not cells.mask.any()
        and cells.cell_diameter_px == pytest.approx(5, abs=1.5)
    )
    assert len(cells.warnings) == 1 and "too small to be told apart" in cells.warnings[0]
    said = cells.summary_fields()
    assert [said[key] for key in ("cells", "judged", "border", "overlapped", "severity")] == [None] * 5
    looks = len(whole)
    assert CellAnalyser(shipped, CPU, cell_diameter=5.0)(rgb).summary.cells > 100, "who asks for them gets them"
    assert looks <= 3


def test_no_grade_where_most_of_what_is_stained_lies_in_no_cell(
    analyser: CellAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = picture(discs((200, 260), lattice((200, 260), 24)))
    sure = analyser(rgb)
    assert sure.summary.severity is not None and sure.summary_fields()["cells"] == sure.summary.cells
    monkeypatch.setattr("models.module2.analysis.explained", lambda cells, rgb: 0.49)
    unsure = analyser(rgb)
    assert unsure.summary.severity is None and np.isnan(unsure.summary.severity_score)
    assert unsure.summary.cells and any("only 49% of what is stained" in text for text in unsure.warnings)


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    finder = CellFinder((4, 6, 8, 10)).eval()
    save_finder(tmp_path / "f.safetensors", finder, {"seed": 1})
    again = load_finder(tmp_path / "f.safetensors")
    image = torch.rand(1, 3, 40, 56)
    assert torch.equal(finder(image), again(image)) and finder(image).shape == (1, len(PLANES), 40, 56)


def test_loading_weights_leaves_a_run_s_chance_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_finder()
    assert torch.equal(torch.rand(4), expected)


def test_weights_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        load_finder(tmp_path / "absent.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", {"network": {}, "epoch": 3})
    with pytest.raises(UserError, match="no cell finder"):
        load_finder(tmp_path / "other.safetensors")
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match="pickle"):
        load_finder(tmp_path / "pickle.safetensors")
    finder = CellFinder((4, 6, 8, 10))
    content = {"kind": "CellFinder", "widths": [4, 6, 8, 12], "facts": {}, "network": finder.state_dict()}
    save_checkpoint(tmp_path / "wrong.safetensors", content)
    with pytest.raises(UserError, match="another architecture"):
        load_finder(tmp_path / "wrong.safetensors")


def test_the_scale_that_it_learns_at_is_the_scale_that_it_is_asked_at() -> None:
    diameters = [cell.diameter_px for index in range(6) for cell in synthesize(index, seed=2, zoom=1.4).cells]
    assert np.median(diameters) == pytest.approx(CELL_DIAMETER, rel=0.15)


def test_what_a_plain_mask_tells() -> None:
    single, clump, speck = [(40.0, 40.0, 14.0)], [(100.0, 40.0, 14.0), (122.0, 40.0, 14.0)], [(60.0, 100.0, 4.0)]
    usual = [(30.0 + 40 * i, 150.0, 14.0) for i in range(4)]
    mask = discs((180, 180), single + clump + speck + usual) > 0
    red, distance, gap, unknown = mask_maps(mask)
    assert ((red > 0) == mask).all() and not gap.any()
    assert distance[40, 40] == 255 and unknown[40, 40] == 0
    assert distance[40, 100] == 0 and 0 < unknown[40, 100] < 255
    assert unknown[100, 60] == 255 and unknown[0, 0] == 0


def test_a_platelet_of_a_plain_mask_may_be_either_and_a_cell_may_not() -> None:
    mask = discs((64, 64), [(20.0, 20.0, 12.0), (45.0, 45.0, 12.0), (55.0, 10.0, 4.0)]) > 0
    true = torch.from_numpy(mask_maps(mask)[None] / np.float32(255))
    logits = torch.zeros(1, 4, 64, 64)
    logits[:, 0] = torch.where(true[:, 0] > 0, 6.0, -6.0)
    logits[:, 1] = torch.logit(true[:, 1].clamp(1e-3, 1 - 1e-3))
    logits[:, 2:] = -6
    exact = torch.tensor([False])

    def loss_with_other_at(x: int, y: int) -> float:
        changed = logits.clone()
        changed[:, 0, y - 3 : y + 4, x - 3 : x + 4], changed[:, 3, y - 3 : y + 4, x - 3 : x + 4] = -6, 6
        return finder_loss(changed, true, exact).real.item()

    base = finder_loss(logits, true, exact).real.item()
    assert loss_with_other_at(55, 10) < base + 0.02 < loss_with_other_at(20, 20) - 0.03


def test_constants_are_changed_by_name() -> None:
    rule = changed(SeverityRule(), "chronic_from=0.3, size_rate = 0.25", "--severity_rule")
    assert (rule.chronic_from, rule.size_rate) == (0.3, 0.25)
    assert rule.normal_um == SeverityRule().normal_um
    assert changed(KindLimits(), "burr_spikes=6", "--kind_limits").burr_spikes == 6
    assert changed(KindLimits(), "", "--kind_limits") == KindLimits()
    for text, word in (("nothing=1", "ovalocyte_below"), ("burr_spikes=many", "NAME=NUMBER")):
        with pytest.raises(UserError, match="--kind_limits") as caught:
            changed(KindLimits(), text, "--kind_limits")
        assert word in str(caught.value)
    with pytest.raises(UserError, match="weights"):
        changed(SeverityRule(), "size_weight=-1", "--severity_rule")


def test_a_large_field_has_the_diameter_of_its_parts() -> None:
    small = synthesize(2, seed=31, size=500).rgb
    one = estimate_diameter(small)
    for times in (3, 6):
        assert estimate_diameter(np.tile(small, (times, times, 1))) == pytest.approx(one, rel=0.25)


def test_a_wrong_diameter_is_told(shipped: CellFinder) -> None:
    rgb = picture(discs((300, 400), lattice((300, 400), 40)))
    for given in (14.0, 150.0):
        said = CellAnalyser(shipped, CPU, cell_diameter=given)(rgb).warnings
        assert any("--cell_diameter" in text for text in said), given
    assert CellAnalyser(shipped, CPU, cell_diameter=40.0)(rgb).warnings == []


def test_inverted_smears_are_told_from_smears(analyser: CellAnalyser) -> None:
    for index in range(4):
        rgb = synthesize(index, seed=51, zoom=1.5).rgb
        assert not any("inverted" in text for text in analyser(rgb).warnings)
        assert any("inverted" in text for text in analyser(255 - rgb).warnings)


def test_enlarging_has_an_end(analyser: CellAnalyser) -> None:
    assert analyser._factor(np.zeros((100, 100, 3), np.uint8), 28.0) == 1.0
    assert analyser._factor(np.zeros((100, 100, 3), np.uint8), 14.0) == 2.0
    assert analyser._factor(np.zeros((100, 100, 3), np.uint8), 2.0) == 3.0
    assert analyser._factor(np.zeros((4000, 5000, 3), np.uint8), 10.0) == pytest.approx(2**0.5)
    assert analyser._factor(np.zeros((4000, 5000, 3), np.uint8), 56.0) == 0.5


def test_cells_are_looked_for_again_at_the_size_that_they_have(shipped: CellFinder, monkeypatch: Any) -> None:
    rgb = picture(discs((400, 500), lattice((400, 500), 40)))
    monkeypatch.setattr("models.module2.analysis.estimate_diameter", lambda rgb: 29.0)
    analyser = CellAnalyser(shipped, CPU)
    asked: list[float] = []
    look = CellAnalyser._look
    monkeypatch.setattr(CellAnalyser, "_look", lambda self, rgb, d: asked.append(d) or look(self, rgb, d))
    analyser(rgb)
    assert asked[-1] == pytest.approx(40, rel=0.06)


def test_the_gap_parts_cells_that_the_distance_does_not() -> None:
    truth = discs((96, 96), [(38, 48, 14), (58, 48, 14)])
    planes = target_maps(truth, truth > 0)
    planes[1] = np.where(truth > 0, 200, 0)  # flat: no valley
    rows, columns = np.mgrid[:96, :96]
    middles = np.minimum((columns - 36) ** 2, (columns - 60) ** 2) + (rows - 48) ** 2
    planes[1][middles < 9] = 225
    assert split_cells(as_maps(planes)).cells.max() == 2
    planes[2] = 0
    planes[1][middles < 9] = 200
    assert split_cells(as_maps(planes)).cells.max() == 1


def test_fragments_are_listed() -> None:
    maps = as_maps(
        target_maps(discs((128, 128), [(40, 40, 14), (80, 80, 14), (100, 30, 2)]), np.zeros((128, 128), bool))
    )
    found = split_cells(maps)
    table = measure_cells(found.cells, np.full((128, 128, 3), 200, np.uint8))
    listed = left_out(table, found, found.cells + found.cut, 28.0)
    assert [(item.reason, round(item.x), round(item.y)) for item in listed] == [(FRAGMENT, 100, 30)]


def test_the_middle_of_a_tile_outweighs_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    class Edges(torch.nn.Module):
        """Says 1 within 8 pixels of a tile's own edge, where a network knows least, and 0 elsewhere."""

        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            logits = torch.full((1, 4, *rgb.shape[-2:]), -20.0)
            logits[..., :8, :] = logits[..., -8:, :] = logits[..., :8] = logits[..., -8:] = 20.0
            return logits

    monkeypatch.setattr(finder_module, "TILE", 256)
    maps = map_cells(Edges(), np.zeros((448, 448, 3), np.uint8), CPU)  # type: ignore[arg-type]
    assert maps.red_cell[32:-32, 32:-32].max() < 0.3


def test_black_specks_do_not_hide_the_cells(analyser: CellAnalyser) -> None:
    labels = discs((300, 300), lattice((300, 300), 30))
    rgb = picture(labels)
    speck = discs((300, 300), [(262.0, 262.0, 36.0)]) > 0
    rgb[speck] = 3
    assert estimate_diameter(rgb) == pytest.approx(30, rel=0.1)
    assert estimate_diameter(picture(labels)) == pytest.approx(30, rel=0.1)
    cells = analyser(rgb)
    assert abs(len(cells.table) - len(set(np.unique(labels[~speck])) - {0})) <= 3


def test_threshold_without_specks_is_otsus(rng: np.random.Generator) -> None:
    from skimage.filters import threshold_otsu

    few = picture(discs((200, 200), [(60.0, 60.0, 14.0), (140.0, 120.0, 14.0)]))[..., 1] + rng.normal(0, 3, (200, 200))
    slope = np.linspace(180, 230, 200)[None, :] + few * 0
    slope[50:70, 50:70] = 90
    for plane in (few, slope):
        assert stain_threshold(plane) == threshold_otsu(plane)
