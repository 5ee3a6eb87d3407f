"""The edge of a mask drawn from the stain, on discs whose edge is known."""

import numpy as np
import pytest
from scipy import ndimage

from models.module2.mask_edge import mask_by_stain

SIDE, RADIUS, BLUR = 400, 45.0, 2.0
FILM, RIM = 220.0, 120.0


def discs(radius: float) -> np.ndarray:
    """Four discs (H, W) bool; the last is cut by the image's edge."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.logical_or.reduce(
        [np.hypot(y - v, x - u) <= radius for v, u in ((90, 90), (90, 260), (250, 120), (280, 395))]
    )


def smear(pale: bool = False, slope: float = 15.0, radius: float = RADIUS) -> np.ndarray:
    """(H, W, 3) uint8: stained discs with soft edges on a film that is lighter on the right; the first may be empty."""
    share = ndimage.gaussian_filter(discs(radius).astype(float), BLUR)
    if pale:
        share[:180, :180] *= 1 - ndimage.gaussian_filter(discs(RADIUS - 4).astype(float), 1.0)[:180, :180]
    film = FILM - 20 + slope * np.linspace(-1, 1, SIDE)
    return np.repeat((film - share * (FILM - RIM))[..., None], 3, axis=2).round().clip(0, 255).astype(np.uint8)


def labels_of(mask: np.ndarray) -> np.ndarray:
    return ndimage.label(mask)[0].astype(np.int32)


@pytest.mark.parametrize("given", [RADIUS - 2, RADIUS + 2])
def test_the_edge_comes_to_lie_where_the_stain_has_half_fallen(given: float) -> None:
    drawn = mask_by_stain(labels_of(discs(given)), smear(), 2 * RADIUS, level=0.5)
    assert (drawn ^ discs(RADIUS)).sum() < 0.02 * discs(RADIUS).sum()
    assert (discs(given) ^ discs(RADIUS)).sum() > 0.06 * discs(RADIUS).sum()


def test_a_lower_level_draws_a_wider_mask() -> None:
    areas = [
        mask_by_stain(labels_of(discs(RADIUS)), smear(), 2 * RADIUS, level=level).sum() for level in (0.6, 0.5, 0.3)
    ]
    assert areas == sorted(areas) and areas[0] < 0.99 * areas[1] < 0.99 * areas[2]


def test_pale_centres_stay_cell_and_far_stain_stays_out() -> None:
    rgb = smear(pale=True)
    rgb[330:360, 30:60] = 100  # dirt that the finder left out
    drawn = mask_by_stain(labels_of(discs(RADIUS)), rgb, 2 * RADIUS)
    assert drawn[discs(RADIUS - 2)].all()
    assert not drawn[330:360, 30:60].any()


def test_the_film_is_that_around_a_cell() -> None:
    small = 14.0  # the film is looked at in blocks of four diameters
    drawn = mask_by_stain(labels_of(discs(small)), smear(slope=20.0, radius=small), 2 * small, level=0.5)
    each = labels_of(discs(small + 4))
    areas, true = (np.bincount(each[mask])[1:] for mask in (drawn, discs(small)))
    assert areas == pytest.approx(true, rel=0.04)


def test_a_spine_that_the_finder_rounded_off_is_drawn() -> None:
    rgb = smear()
    rgb[42:46, 88:92] = 120
    assert mask_by_stain(labels_of(discs(RADIUS)), rgb, 2 * RADIUS)[43, 90]


@pytest.mark.parametrize("rgb", [255 - smear(), np.full((SIDE, SIDE, 3), 90, np.uint8)], ids=["inverted", "flat"])
def test_without_stain_the_mask_stays_as_it_was(rgb: np.ndarray) -> None:
    labels = labels_of(discs(RADIUS))
    assert np.array_equal(mask_by_stain(labels, rgb, 2 * RADIUS), labels > 0)


def test_without_film_or_cells_the_mask_stays_as_it_was() -> None:
    everywhere = np.ones((SIDE, SIDE), np.int32)
    assert mask_by_stain(everywhere, smear(), 2 * RADIUS).all()
    assert not mask_by_stain(np.zeros((SIDE, SIDE), np.int32), smear(), 2 * RADIUS).any()
