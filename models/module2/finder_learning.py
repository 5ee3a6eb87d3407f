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
# In the last plane of a real mask's maps.
_CLUMP, _UNSURE = 128, 255
# A part of a mask is a single cell between these shares of the median part's area, and if it is so convex.
_SMALL, _LARGE, _CONVEX = 0.4, 1.7, 0.94
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


def mask_maps(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """What a plain mask of all that is stained tells of a smear.

    Parts of the mask that are as large as the usual one and convex are single cells, so their distance is known. Other
    large ones are cells, but not how many. Small ones may be platelets, and are held for neither. The masks' few white
    cells pass for red ones.

    Args:
        mask: (H, W), red cells, platelets and white cells.

    Returns:
        (4, H, W) uint8: the mask; the distance in single cells; 0, for single cells have no gap; and what is not known:
        ``_CLUMP`` where the distance is not, ``_UNSURE`` where the kind is not either.
    """
    from skimage.measure import regionprops

    parts, _ = ndimage.label(mask)
    regions = regionprops(parts)
    usual = np.median([region.area for region in regions]) if regions else 0.0
    unknown, lone = np.zeros((2, len(regions) + 1), np.uint8)
    for region in regions:
        if region.area < _SMALL * usual:
            unknown[region.label] = _UNSURE
        elif region.area > _LARGE * usual or region.solidity < _CONVEX:
            unknown[region.label] = _CLUMP
        else:
            lone[region.label] = 1
    single = np.where(lone[parts] > 0, parts, 0)
    distance = target_maps(single, single > 0)[1]
    return np.stack([mask.astype(np.uint8) * 255, distance, np.zeros_like(distance), unknown[parts]])


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
        real: the same of real masks, as far as these tell: see ``mask_maps``.
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
        true: (B, 4, H, W) in [0, 1], of ``target_maps`` or, where ``exact`` is False, of ``mask_maps``.
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
    known, lone = (other_true < _UNSURE / 255 - 0.1).float(), (other_true < 0.1).float()
    real = real + _each(known * compare(red, red_true, reduction="none"))
    real = real + _DISTANCE_WEIGHT * _each(lone * (distance.sigmoid() - distance_true).abs())
    real = real + _each(lone * compare(gap, gap_true, reduction="none"))
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
