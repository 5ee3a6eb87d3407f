"""How the cell finder learns: from exact maps of synthetic smears and from plain masks of real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

# Cells cut by the border go on beyond it: the distance is taken as if for so many pixels.
_BEYOND = 8
_DISTANCE_WEIGHT, _OTHER_WEIGHT, _REAL_WEIGHT, _GAP_PIXELS = 2.0, 0.5, 0.5, 3.0


def target_maps(instances: npt.NDArray[np.integer], stained: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The true maps of a smear whose every cell is known, in the order of ``PLANES``.

    Args:
        instances: (H, W), 0 = background, else a cell's number.
        stained: (H, W), red cells, platelets and white cells.

    Returns:
        (4, H, W) uint8, 255 for 1.
    """
    cells = instances > 0
    edge, meets = _edges(instances.astype(np.int32))
    depth = ndimage.distance_transform_edt(np.pad(cells & ~edge, _BEYOND, mode="edge"))
    depth = depth[_BEYOND:-_BEYOND, _BEYOND:-_BEYOND]
    depth = np.where(cells, depth + 0.5, 0)
    deepest = np.ones(int(instances.max()) + 1)
    numbers = np.unique(instances[cells])
    if len(numbers):
        deepest[numbers] = ndimage.maximum(depth, instances, numbers)
    gap = ndimage.binary_dilation(meets) & cells
    maps = np.stack([cells, depth / deepest[instances], gap, stained & ~cells])
    return np.rint(maps * 255).astype(np.uint8)


def _edges(instances: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Pixels beside one of another number, and those of them where two cells meet."""
    padded = np.pad(instances, 1, mode="edge")
    edge, meets = np.zeros((2, *instances.shape), bool)
    for rows, columns in ((slice(-2), slice(1, -1)), (slice(2, None), slice(1, -1)),
                          (slice(1, -1), slice(-2)), (slice(1, -1), slice(2, None))):  # fmt: skip
        beside = padded[rows, columns]
        differs = beside != instances
        edge |= differs
        meets |= differs & (beside > 0) & (instances > 0)
    return edge, meets


@dataclass(frozen=True)
class FinderLoss:
    """The terms of a batch, each a mean over the images that it holds for; 0 where there is none.

    Attributes:
        mask: cross-entropy and overlap loss of the red cells, and cross-entropy of platelets and white cells.
        distance: mean absolute difference.
        gap: cross-entropy.
        real: cross-entropy and overlap loss of real masks with whatever is stained: these hold platelets too.
    """

    mask: Tensor
    distance: Tensor
    gap: Tensor
    real: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.mask + _DISTANCE_WEIGHT * self.distance + self.gap + _REAL_WEIGHT * self.real


def finder_loss(logits: Tensor, true: Tensor, exact: Tensor) -> FinderLoss:
    """Compare the finder's answers with the truth.

    Args:
        logits: (B, 4, H, W).
        true: (B, 4, H, W) in [0, 1]; where ``exact`` is False, only the first plane holds something, a mask of all
            that is stained.
        exact: (B,) bool.
    """
    red, distance, gap, other = logits.float().unbind(1)
    red_true, distance_true, gap_true, other_true = true.unbind(1)
    compare = functional.binary_cross_entropy_with_logits
    few = torch.tensor(_GAP_PIXELS, device=logits.device)
    mask = _each(compare(red, red_true, reduction="none")) + _overlap(red.sigmoid(), red_true)
    mask = mask + _OTHER_WEIGHT * _each(compare(other, other_true, reduction="none"))
    stained = (1 - (1 - red.sigmoid()) * (1 - other.sigmoid())).clamp(1e-5, 1 - 1e-5)
    real = _each(functional.binary_cross_entropy(stained, red_true, reduction="none")) + _overlap(stained, red_true)
    gaps = _each(compare(gap, gap_true, reduction="none", pos_weight=few))
    return FinderLoss(
        mask=_mean(mask, exact),
        distance=_mean(_each((distance.sigmoid() - distance_true).abs()), exact),
        gap=_mean(gaps, exact),
        real=_mean(real, ~exact),
    )


def _each(values: Tensor) -> Tensor:
    return values.mean(dim=(1, 2))


def _overlap(probability: Tensor, true: Tensor) -> Tensor:
    """1 - soft Dice of each image."""
    shared, total = (probability * true).sum(dim=(1, 2)), (probability + true).sum(dim=(1, 2))
    return 1 - (2 * shared + 1) / (total + 1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def turned(planes: npt.NDArray[np.uint8], turns: int, mirrored: bool) -> npt.NDArray[np.uint8]:
    """Turn planes (C, H, W) by quarters and mirror them."""
    found = np.rot90(planes, turns, (1, 2))
    return found[:, :, ::-1] if mirrored else found
