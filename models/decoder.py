"""The mask decoder: from an image and Tier-I's features to the binary mask of its red blood cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones import PyramidMerge


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    return functional.interpolate(x, size=other.shape[-2:], mode="bilinear", align_corners=False)


FOLD = 2  # the image is read as (H/2, W/2) with four times the channels, and the mask written back the same way


def fold(x: Tensor) -> Tensor:
    """Fold (B, C, H, W) into (B, 4C, H/2, W/2), padding odd sides: every pixel kept, a quarter of the positions.

    The rearrangement is that of sub-pixel convolution (Shi et al., CVPR 2016), the other way round.
    """
    height, width = x.shape[-2:]
    padded = functional.pad(x, (0, -width % FOLD, 0, -height % FOLD))
    return functional.pixel_unshuffle(padded, FOLD)


class MaskDecoder(nn.Module):
    """A small U-Net whose deep half is Tier-I's pyramid (after Ronneberger et al., MICCAI 2015).

    The backbone begins with a stride of 4, which loses outlines; the decoder's own path sees every pixel of the image,
    so that its masks do not depend on how far Tier-I has learned before it is frozen. It computes at half the size, on
    folded pixels: at full size the same convolutions would take four times as long.
    """

    def __init__(self, pyramid_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.context = PyramidMerge(pyramid_channels, 2 * width, coarse=False)
        self.at_half = _convolution(3 * FOLD**2, 2 * width)
        self.at_quarter = _convolution(2 * width, 2 * width, stride=2)
        self.join_quarter = _convolution(4 * width, 2 * width)
        self.join_half = _convolution(4 * width, 2 * width)
        self.logit = nn.Conv2d(2 * width, FOLD**2, 3, padding=1)

    def forward(self, image: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Give the mask's logit (B, 1, H, W) for a normalised image (B, 3, H, W) and Tier-I's features."""
        half = self.at_half(fold(image))
        quarter = self.at_quarter(half)
        context = _resize_like(self.context(pyramid, (0, 0)), quarter)
        x = self.join_quarter(torch.cat([quarter, context], dim=1))
        x = self.join_half(torch.cat([_resize_like(x, half), half], dim=1))
        logit = functional.pixel_shuffle(self.logit(x), FOLD)
        return logit[..., : image.shape[-2], : image.shape[-1]]
