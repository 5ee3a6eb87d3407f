"""A few smears as a network sees them, to try it with."""

from __future__ import annotations

import torch
from torch import Tensor

from data.images import read_smear
from data.notice import SYNTHETIC
from data.synthetic import synthesize
from data.unlabelled import batches_of, find_smears
from util.errors import UserError


def example_batch(dataroot: str, side: int, count: int) -> tuple[Tensor, Tensor]:
    """The first smears of a data root, resized to a square; masks are Otsu's.

    Args:
        dataroot: a folder, image, pattern or manifest (see ``data.unlabelled.find_smears``), or "synthetic".
        side: of the result, pixels.
        count: how many at most.

    Returns:
        float32 images (N, 3, S, S) in [0, 1] and masks (N, 1, S, S) of 0 and 1.

    Raises:
        UserError: nothing is there that can be listed, or one of the images cannot be read.
    """
    if dataroot == SYNTHETIC:
        smears = [synthesize(index, seed=0, size=side).rgb for index in range(count)]
    else:
        found = find_smears(dataroot)
        if not found.records:
            first = found.skipped[0]
            raise UserError(
                f"{dataroot}: no smear to try the network with",
                expected="at least one image that can be listed",
                found=f"{len(found.skipped)} that cannot, first {first.name}: {first.reason}",
                remedy="correct it, or leave --dataroot out to draw smears",
            )
        smears = [read_smear(record) for record in found.records[:count]]
    batches = [batches_of(rgb, [side], torch.device("cpu"))[side] for rgb in smears]
    images, masks = torch.cat([batch.rgb for batch in batches]), torch.cat([batch.mask for batch in batches])
    return images.contiguous(), masks
