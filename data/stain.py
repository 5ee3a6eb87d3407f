"""Smears without their stain: grey, or brought to the stain of the images that a run has learned from.

A verdict that rests on the cells' shape survives both; one that rests on the stain of two laboratories does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.loader import Batch, DecodedSmears, planes_of
from util.arrays import Arrays
from util.run_record import RecordFile

_MOST_PIXELS = 12_000  # of a training image: more add nothing to means and deviations
_MEASURED_AT_ONCE = 64  # images
_LEAST_DEVIATION = 0.05  # in CIELAB's units: a flat image has no contrast to be stretched

# sRGB (IEC 61966-2-1) to CIE XYZ, and its white D65 for the 2 degree observer: the same numbers as in skimage.color.
_XYZ_OF_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
_LUMINANCE = (0.2125, 0.7154, 0.0721)  # of the levels, as skimage.color.rgb2gray
_CUT, _SLOPE, _START = 0.008856, 7.787, 16.0 / 116.0  # CIELAB is a line below the cut, a cube root above


def grey_scaled(rgb: Tensor) -> Tensor:
    """Take the colour away: all channels become the luminance, .2125 red + .7154 green + .0721 blue.

    Args:
        rgb: float (B, 3, H, W) in [0, 1].

    Returns:
        A new tensor of rgb's shape with three equal channels.
    """
    plane = _mixed(rgb, [_LUMINANCE])[0]
    return plane[:, None].expand_as(rgb).contiguous(memory_format=torch.channels_last)


def lab_of(rgb: Tensor) -> Tensor:
    """Turn sRGB into CIELAB.

    Written here, and not with skimage.color, so that batches stay on their device; the result is the same.

    Args:
        rgb: float32 (B, 3, ...) in [0, 1].

    Returns:
        float32 of the same shape: L in [0, 100], a and b.
    """
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).pow(2.4), rgb / 12.92)
    x, y, z = (part / white for part, white in zip(_mixed(linear, _XYZ_OF_RGB), _WHITE, strict=True))
    fx, fy, fz = (
        torch.where(part > _CUT, part.clamp(min=_CUT).pow(1 / 3), _SLOPE * part + _START) for part in (x, y, z)
    )
    return torch.stack([116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)], dim=1)


def rgb_of(lab: Tensor) -> Tensor:
    """Turn CIELAB into sRGB; what no screen can show is clipped to [0, 1]. The inverse of ``lab_of``."""
    fy = (lab[:, 0] + 16.0) / 116.0
    edges = (fy + lab[:, 1] / 500.0, fy, (fy - lab[:, 2] / 200.0).clamp(min=0.0))
    cut = _CUT ** (1 / 3)
    xyz = [
        white * torch.where(f > cut, f.pow(3), (f - _START) / _SLOPE) for f, white in zip(edges, _WHITE, strict=True)
    ]
    inverse = np.linalg.inv(np.array(_XYZ_OF_RGB)).tolist()
    linear = torch.stack(_mixed(torch.stack(xyz, dim=1), inverse), dim=1)
    curved = 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp_(0.0, 1.0)


def _mixed(planes: Tensor, matrix: Sequence[Sequence[float]]) -> list[Tensor]:
    """The channels weighted by each row of a matrix and summed; written out, since TF32 would round a product."""
    return [planes[:, 0] * row[0] + planes[:, 1] * row[1] + planes[:, 2] * row[2] for row in matrix]


def lab_statistics(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image's L, a and b: two (B, 3) for (B, 3, H, W)."""
    return _moments(lab_of(rgb))


def _moments(planes: Tensor) -> tuple[Tensor, Tensor]:
    pixels = planes.flatten(2)
    return pixels.mean(dim=2), pixels.std(dim=2, correction=0)


class StainReference(NamedTuple):
    """The stain of a set of images: what a single one of them is like on average.

    Attributes:
        mean: float32 (3,), the images' mean L, a, b, averaged over the images.
        deviation: float32 (3,), their standard deviations, likewise.
        images: how many were measured.
    """

    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]
    images: int

    @classmethod
    def of(cls, smears: DecodedSmears, count: int | None = None) -> StainReference:
        """Measure the first ``count`` smears (default: all), labelled or not, each on a grid of about 12,000 pixels."""
        step = max(1, math.ceil(smears.load_size / math.sqrt(_MOST_PIXELS)))
        found = []
        for part in torch.split(torch.arange(len(smears))[:count], _MEASURED_AT_ONCE):
            images = planes_of(smears.gather(part), smears.load_size)[0][:, ::step, ::step]
            found.append(torch.stack(lab_statistics(images.permute(0, 3, 1, 2).to(torch.float32) / 255.0), dim=1))
        mean, deviation = torch.cat(found).double().mean(dim=0).float().numpy()
        return cls(mean, deviation, sum(len(part) for part in found))

    def normalised(self, rgb: Tensor) -> Tensor:
        """Give each image this stain: the mean and the standard deviation of each channel of CIELAB.

        After Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 21(5), 2001; in
        CIELAB instead of their l-alpha-beta, as usual for stained tissue. A channel without contrast is moved only.

        Args:
            rgb: float32 (B, 3, H, W) in [0, 1].

        Returns:
            A new tensor of rgb's shape.
        """
        lab = lab_of(rgb)
        mean, deviation = _moments(lab)
        to_mean, to_deviation = (torch.from_numpy(part).to(rgb.device) for part in (self.mean, self.deviation))
        factor = torch.where(deviation < _LEAST_DEVIATION, 1.0, to_deviation / deviation)
        moved = (lab - mean[:, :, None, None]) * factor[:, :, None, None] + to_mean[:, None, None]
        return rgb_of(moved).contiguous(memory_format=torch.channels_last)


class Restained:
    """Batches whose images are changed on their way; everything else of them stays, also masks that stand in.

    Args:
        batches: what to change.
        change: from (B, 3, H, W) to the same shape.
    """

    def __init__(self, batches: Iterable[Batch], change: Callable[[Tensor], Tensor]) -> None:
        self.batches, self.change = batches, change

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield replace(batch, rgb=self.change(batch.rgb))


def _checked(stored: Arrays) -> StainReference:
    mean, deviation, images = (stored[name] for name in StainReference._fields)
    numbers = all(array.dtype.kind in "fi" for array in (mean, deviation, images))
    if not numbers or mean.shape != (3,) or deviation.shape != (3,) or images.size != 1:
        raise ValueError(f"mean {mean.shape}, deviation {deviation.shape}")
    found = StainReference(mean.astype(np.float32), deviation.astype(np.float32), int(images.item()))
    if not (np.isfinite(found.mean).all() and np.isfinite(found.deviation).all() and (found.deviation >= 0).all()):
        raise ValueError("numbers that are no means and standard deviations")
    return found


STAIN = RecordFile(
    "stain_reference.npz", StainReference._fields, _checked, what="the stain", without="stain-normalised images"
)
