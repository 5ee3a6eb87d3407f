"""Cells of a binary mask, split by its shape."""

import numpy as np
import pytest

from util.mask_cells import mask_diameters, split_mask


def discs(*middles, radius=10.0, shape=(60, 90)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.any([(rows - y) ** 2 + (columns - x) ** 2 <= radius**2 for y, x in middles], axis=0)


def test_touching_cells_are_split_and_keep_their_width():
    mask = discs((30, 20), (30, 38), (30, 70))  # the first two overlap by two pixels
    labels = split_mask(mask)
    assert labels.max() == 3
    assert ((labels > 0) == mask).all()
    assert mask_diameters(mask[None]) == pytest.approx([20, 20, 20], rel=0.03)


def test_cells_that_the_border_cuts_are_not_measured():
    assert len(mask_diameters(discs((30, 2), (30, 45), (58, 70))[None])) == 1


@pytest.mark.parametrize("mask", [np.zeros((2, 9, 9), bool), np.ones((1, 9, 9), bool), np.zeros((0, 9, 9), bool)])
def test_masks_without_a_whole_cell(mask):
    assert mask_diameters(mask).shape == (0,)
