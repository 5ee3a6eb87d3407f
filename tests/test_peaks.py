"""Peaks found from passes are scikit-image's h-maxima."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import h_maxima as by_reconstruction

from models.module2.peaks import h_maxima

STEP = 1 / 64  # of heights: exact in float32, so that equal heights are equal and no rise is nearly ``LEAST``
LEAST = 3.5 * STEP


def landscape(seed: int) -> np.ndarray:
    """Smooth or rough, with plateaus, ties, ground at zero or above it, down to a pixel wide."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, rng.integers(1, 50, 2)), seed % 4)
    height = noise * rng.uniform(0.2, 2) / max(float(noise.std()), 1e-9) * 0.3 + rng.uniform(-0.3, 0.4)
    lowest, highest = (0, rng.uniform(0.3, 1)) if seed % 5 else (-1, 2)
    return (np.round(np.clip(height, lowest, highest) / STEP) * STEP).astype(np.float32)


@pytest.mark.parametrize("seed", range(60))
def test_they_are_those_of_scikit_image(seed):
    height = landscape(seed)
    assert np.array_equal(h_maxima(height, LEAST), by_reconstruction(height, LEAST).astype(bool))


def test_the_landscapes_have_peaks_that_count_and_peaks_that_do_not():
    counts = [ndimage.label(h_maxima(landscape(seed), LEAST), np.ones((3, 3)))[1] for seed in range(60)]
    finer = [ndimage.label(h_maxima(landscape(seed), STEP / 2), np.ones((3, 3)))[1] for seed in range(60)]
    assert sum(counts) > 1000 and sum(finer) > sum(counts) + 100


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_flat_map_has_none(value):
    assert not h_maxima(np.full((5, 7), value, np.float32), LEAST).any()


def test_of_two_peaks_the_lower_counts_where_the_pass_is_low_enough():
    for deep, both in ((0.5, False), (0.2, True)):
        height = np.array([[0, 1, deep, 0.6, 0]], np.float32)
        assert h_maxima(height, 0.3).tolist() == [[False, True, False, both, False]]


def test_equal_peaks_that_a_higher_one_is_near_are_all_left_out():
    height = np.array([[0, 0.8, 0.7, 0.8, 0.75, 1, 0]], np.float32)
    assert h_maxima(height, 0.3).tolist() == [[False] * 5 + [True, False]]


def test_equal_peaks_on_one_ridge_are_all_given():
    assert h_maxima(np.array([[0, 1, 0.9, 1, 0]], np.float32), 0.3).tolist() == [[False, True, False, True, False]]
