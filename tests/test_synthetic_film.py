"""What a film, its particles and its artefacts do to a synthetic smear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from data.records import HEALTHY
from data.synthetic import (
    SyntheticSmear,
    camera_of,
    paint_cells,
    stain_of,
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
from data.synthetic_cells import PIXELS_PER_UM, Film, RedCell, draw_red_cell
from data.synthetic_layout import scatter
from data.synthetic_optics import transmit
from data.synthetic_particles import paint_fibre, paint_platelets, paint_precipitate
from data.synthetic_populations import draw_subject
from data.synthetic_render import central_pallors
from data.synthetic_white_cells import WHITE_CELL_KINDS, WhiteCell, draw_white_cells, paint_white_cell
from tests.synthetic_cases import (
    eight_smears,
    perfect_camera,
    picture_of,
)


@pytest.fixture(scope="module")
def smears() -> list[SyntheticSmear]:
    return eight_smears()


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
    camera = replace(perfect_camera(), defocus=np.full(3, 0.5), tilt=np.array([0.0, 1.0, 1.5]))
    picture = picture_of(light, camera, np.random.default_rng(0)).astype(float)
    contrast = [np.ptp(picture[40:120, column, 1]) for column in (5, 80, 155)]
    assert contrast[0] > contrast[1] + 5 > contrast[2] + 10


def test_light_may_turn_bluer_across_the_field():
    stain = stain_of(0, 0)
    camera = replace(perfect_camera(), tint=np.array([0.0, 0.03]))
    light = transmit(np.zeros((40, 40, 3)), stain, camera)
    ratio = light[20, :, 2] / light[20, :, 0]
    assert ratio[-1] / ratio[0] == pytest.approx((1.03 / 0.97) ** 2, rel=1e-3)
