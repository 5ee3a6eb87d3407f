"""Random variation of smears and their masks: drawn on the host as a table, applied to whole batches on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from util.errors import UserError

NOISE_SHIFTS = 256  # how far, in pixels, a sample's window into the noise bank can be rolled along each axis
_GATES = ("rotate", "flip_x", "flip_y", "scale", "crop", "stain", "light", "blur", "noise")
_PROBABILITIES = (*_GATES, "grey")
_VALUES = 17  # uniform draws of one sample: angle 1, scale 1, crop 2, alpha 3, beta 3, light 3, sigma 1, noise 1 + 2


@dataclass(frozen=True)
class Augmentation:
    """What may vary between two views of one smear, how far, and how often.

    A probability is the chance that a sample gets that change; a pair is the range that the change is drawn from.
    A smear has no up or down, so any rotation is as likely as any other. The stain changes by channel in optical
    density (OD), because stain strength differs between laboratories and, in AneRBC, follows the class. For the same
    reason a share of the samples is shown without any colour: what remains is shape and contrast.

    Attributes:
        rotate, flip_x, flip_y, scale, crop, stain, light, blur, noise, grey: probabilities in [0, 1].
        angle: rotation in degrees.
        scale_range: magnification, drawn evenly in its logarithm; both ends > 0.
        alpha: factor on each channel's OD; > 0.
        beta: what is added to each channel's OD.
        brightness: factor on the whole image.
        gradient: change of brightness from the centre to an edge, by axis, as a fraction.
        sigma: standard deviation of the Gaussian blur, pixels.
        noise_std: standard deviation of the Gaussian noise, on the scale where white is 1.
    """

    rotate: float = 0.8
    flip_x: float = 0.5
    flip_y: float = 0.5
    scale: float = 0.5
    crop: float = 1.0
    stain: float = 0.8
    light: float = 0.5
    blur: float = 0.3
    noise: float = 0.3
    grey: float = 0.3
    angle: tuple[float, float] = (-180.0, 180.0)
    scale_range: tuple[float, float] = (0.85, 1.18)
    alpha: tuple[float, float] = (0.85, 1.15)
    beta: tuple[float, float] = (-0.04, 0.04)
    brightness: tuple[float, float] = (0.92, 1.08)
    gradient: tuple[float, float] = (-0.08, 0.08)
    sigma: tuple[float, float] = (0.0, 1.0)
    noise_std: tuple[float, float] = (0.0, 0.02)

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            UserError: a probability outside [0, 1]; a range whose ends are swapped or whose low end is too low.
        """
        least = {"scale_range": 1e-3, "alpha": 1e-3, "brightness": 0.0, "sigma": 0.0, "noise_std": 0.0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _PROBABILITIES:
                if not 0.0 <= value <= 1.0:
                    raise UserError(f"augmentation: {field.name}", expected="a probability, 0 to 1", found=str(value))
            elif not least.get(field.name, -math.inf) <= value[0] <= value[1] < math.inf:
                lowest = f", at least {least[field.name]}" if field.name in least else ""
                raise UserError(
                    f"augmentation: {field.name}", expected=f"(low, high) with low <= high{lowest}", found=str(value)
                )

    def sample_parameters(self, n: int, seed: int, epoch: int) -> dict[str, np.ndarray]:
        """Draw the changes of ``n`` samples for one epoch.

        Row i depends on (seed, epoch, i) only: neither on ``n`` nor on which other samples share its batch.

        Args:
            n: number of samples.
            seed: the run's seed, >= 0.
            epoch: the epoch, >= 0.

        Returns:
            float32 arrays of n rows: ``angle`` (radians), ``flip`` (n, 2; 1 or -1 for x, y), ``scale``, ``crop``
            (n, 2; x, y in [0, 1), the crop's place in its free range), ``alpha`` and ``beta`` (n, 3), ``brightness``,
            ``gradient`` (n, 2), ``sigma``, ``noise_std``, ``grey`` (n, 3; see ``without_colour``); and ``noise_shift``,
            int64 (n, 2).
        """
        # The generator fills row by row, so the first rows are the same whatever their number.
        draws = np.random.default_rng(np.random.SeedSequence([seed, epoch])).random((n, len(_GATES) + _VALUES))
        on = {name: draws[:, i] < getattr(self, name) for i, name in enumerate(_GATES)}
        u = draws[:, len(_GATES) :]
        low, high = np.log(self.scale_range)
        stain, light = on["stain"][:, None], on["light"]
        table = {
            "angle": np.where(on["rotate"], np.radians(_between(u[:, 0], self.angle)), 0.0),
            "flip": np.where(np.stack([on["flip_x"], on["flip_y"]], axis=1), -1.0, 1.0),
            "scale": np.where(on["scale"], np.exp(_between(u[:, 1], (low, high))), 1.0),
            "crop": np.where(on["crop"][:, None], u[:, 2:4], 0.5),
            "alpha": np.where(stain, _between(u[:, 4:7], self.alpha), 1.0),
            "beta": np.where(stain, _between(u[:, 7:10], self.beta), 0.0),
            "brightness": np.where(light, _between(u[:, 10], self.brightness), 1.0),
            "gradient": np.where(light[:, None], _between(u[:, 11:13], self.gradient), 0.0),
            "sigma": np.where(on["blur"], _between(u[:, 13], self.sigma), 0.0),
            "noise_std": np.where(on["noise"], _between(u[:, 14], self.noise_std), 0.0),
            "grey": self._grey_mixes(n, seed, epoch),
        }
        shifts = (u[:, 15:17] * NOISE_SHIFTS).astype(np.int64)
        return {name: column.astype(np.float32) for name, column in table.items()} | {"noise_shift": shifts}

    def _grey_mixes(self, n: int, seed: int, epoch: int) -> np.ndarray:
        """Weights (n, 3) of red, green and blue in a grey sample, evenly over all that sum to 1; else 0.

        No fixed mix, because a network would learn the contrast of that one filter, and stain decides it. Every mix
        shows the cells: over 135 smears of AneRBC-I none has less than .3 of green's contrast, one in 50 less than .5.
        """
        # A stream of its own (the loader's order has the spawn key 1) leaves all other draws as they are without it.
        draws = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(2,))).random((n, 4))
        lengths = -np.log1p(-draws[:, 1:])  # exponential, so that their shares are even over the simplex
        mixes: np.ndarray = lengths / lengths.sum(axis=1, keepdims=True)
        return np.where(draws[:, :1] < self.grey, mixes, 0.0)

    @torch.no_grad()
    def apply(self, rgb: Tensor, mask: Tensor, params: Mapping[str, Tensor], crop_size: int) -> tuple[Tensor, Tensor]:
        """Change a batch of smears and their masks: geometry, stain, illumination, blur, noise, as light meets them.

        The colour goes last, as from a finished picture, so that the channels of a grey sample are equal to the bit.

        Nothing here waits for the device, and no parameter depends on the rest of the batch.

        Args:
            rgb: float32 (B, 3, S, S) in [0, 1].
            mask: float32 (B, 1, S, S) of 0 and 1.
            params: B rows of :meth:`sample_parameters`, as tensors on the images' device.
            crop_size: side C of the result, pixels, at most S.

        Returns:
            rgb float32 (B, 3, C, C) in [0, 1] and mask float32 (B, 1, C, C) of 0 and 1.
        """
        # The warp also brings what lies just outside the crop, so that the blur needs no invented border.
        margin = self._blur_radius()
        image, plane = warp(rgb, mask, params, crop_size, margin)
        image = jitter_stain(image, params["alpha"], params["beta"]).mul_(_illumination(params, crop_size, margin))
        if margin:
            image = blur_each(image, params["sigma"], margin)
        if self.noise > 0 and self.noise_std[1] > 0:
            image = image.addcmul_(_noise(params["noise_shift"], crop_size), _per_sample(params["noise_std"]))
        if self.grey > 0:
            image = without_colour(image, params["grey"])
        return image.clamp_(0.0, 1.0), (plane > 0.5).to(torch.float32)

    def _blur_radius(self) -> int:
        """Half-width of the blur's kernel in pixels (three standard deviations); 0 where nothing is ever blurred."""
        return math.ceil(3.0 * self.sigma[1]) if self.blur > 0 else 0


def centre_offset(load_size: int, crop_size: int) -> int:
    """First row (and column) of the centre crop; where the margin is odd, the larger part lies before it."""
    return (load_size - crop_size + 1) // 2


def warp(
    rgb: Tensor, mask: Tensor, params: Mapping[str, Tensor], crop_size: int, margin: int = 0
) -> tuple[Tensor, Tensor]:
    """Rotate, flip, magnify and crop images and masks by one grid, so that they cannot drift apart.

    Outside the input, its mirror image continues (no black corners). Image and mask are both interpolated bilinearly;
    the caller thresholds the mask.

    Args:
        rgb: float32 (B, 3, S, S).
        mask: float32 (B, 1, S, S).
        params: ``angle``, ``flip``, ``scale``, ``crop`` of B rows, on the same device.
        crop_size: side C of the crop, pixels.
        margin: further pixels to bring on each side of the image (not of the mask).

    Returns:
        rgb (B, 3, C + 2 margin, C + 2 margin) and the mask's plane (B, 1, C, C), in [0, 1].
    """
    grid = _sampling_grid(params, rgb.shape[-1], crop_size, margin)
    # Four interleaved channels are read by one look-up each; on a CPU that is the faster layout.
    stack = torch.cat([rgb.permute(0, 2, 3, 1), mask.permute(0, 2, 3, 1)], dim=3).permute(0, 3, 1, 2)
    warped = F.grid_sample(stack, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    inner = slice(margin, margin + crop_size)
    return warped[:, :3], warped[:, 3:, inner, inner]


def _sampling_grid(params: Mapping[str, Tensor], load_size: int, crop_size: int, margin: int) -> Tensor:
    """Where each output pixel is read, (B, C + 2 margin, C + 2 margin, 2) as x, y in the units of ``grid_sample``.

    Written out by element rather than as a matrix product: TF32 or autocast would round a product to tenths of a pixel.
    """
    reach = crop_size / 2 + margin - 0.5
    pixel = torch.arange(crop_size + 2 * margin, device=params["angle"].device, dtype=torch.float32) - reach
    x, y = pixel[None, None, :], pixel[None, :, None]
    cosine, sine = ((turn(params["angle"]) / params["scale"])[:, None, None] for turn in (torch.cos, torch.sin))
    flip_x, flip_y = (params["flip"][:, axis, None, None] for axis in (0, 1))
    free = load_size - crop_size
    offset = (params["crop"] * (free + 1)).floor().clamp(max=free) + crop_size / 2 - load_size / 2
    source_x = flip_x * (cosine * x - sine * y) + offset[:, 0, None, None]
    source_y = flip_y * (sine * x + cosine * y) + offset[:, 1, None, None]
    return torch.stack([source_x, source_y], dim=-1).mul_(2.0 / load_size)


def jitter_stain(rgb: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Change each channel's optical density: OD' = alpha OD + beta, with OD = -log10(rgb).

    After Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks", IEEE Transactions on Medical Imaging 37(9), 2018: there on the
    densities of haematoxylin, eosin and DAB, here on those of red, green and blue, because the stains of a blood smear
    have no such agreed vectors. On the image it is rgb ** alpha / 10 ** beta, which needs no guard at black.
    The result is not clamped.

    Args:
        rgb: float32 (B, 3, H, W) in [0, 1].
        alpha: (B, 3).
        beta: (B, 3).

    Returns:
        A new tensor of rgb's shape, >= 0.
    """
    # Through binary logarithms in place: half the time of a general power on a CPU. At black, 2 ** -inf is 0.
    density = rgb.log2().mul_(alpha[:, :, None, None])
    return density.sub_((beta * math.log2(10.0))[:, :, None, None]).exp2_()


def _illumination(params: Mapping[str, Tensor], crop_size: int, margin: int) -> Tensor:
    """Brightness of each pixel, (B, 1, C + 2 margin, C + 2 margin): a plane with a slope, never below 0."""
    reach = 1.0 + (2 * margin - 1) / crop_size
    place = torch.linspace(-reach, reach, crop_size + 2 * margin, device=params["gradient"].device)
    slope_x, slope_y = (_per_sample(params["gradient"][:, axis]) for axis in (0, 1))
    return (slope_x * place + slope_y * place[:, None] + 1.0).mul_(_per_sample(params["brightness"])).clamp_(min=0.0)


def without_colour(image: Tensor, mix: Tensor) -> Tensor:
    """Replace all three channels of some samples by one weighted sum of them.

    Args:
        image: float (B, 3, H, W); on a CPU it is changed in place.
        mix: (B, 3), the weights of red, green and blue; a row of zeros leaves its sample as it is.

    Returns:
        (B, 3, H, W).
    """
    if image.device.type != "cpu":  # to ask which samples these are would make the host wait
        keep = _per_sample((mix.sum(dim=1) == 0).to(image.dtype))
        return torch.addcmul(_mixed(image, mix), image, keep)
    rows = mix.sum(dim=1).nonzero()[:, 0]
    return image.index_copy_(0, rows, _mixed(image[rows], mix[rows]).expand(-1, 3, -1, -1)) if len(rows) else image


def _mixed(image: Tensor, mix: Tensor) -> Tensor:
    """Weighted sum of the channels, (B, 1, H, W); written out, since TF32 would round a product."""
    plane = image[:, :1] * _per_sample(mix[:, 0])
    for channel in (1, 2):
        plane = plane.addcmul_(image[:, channel : channel + 1], _per_sample(mix[:, channel]))
    return plane


def blur_each(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with a sigma per sample and cut ``radius`` pixels off each side.

    A sigma of 0 changes nothing, so a CPU skips those samples (and works in place); a GPU blurs all, because to ask
    which ones would make the host wait.
    """
    if image.device.type != "cpu":
        return _blur(image, sigma, radius)
    sharp = image[:, :, radius:-radius, radius:-radius]
    rows = sigma.nonzero()[:, 0]
    return sharp.index_copy_(0, rows, _blur(image[rows], sigma[rows], radius)) if len(rows) else sharp


def _blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur without a border, (B, C, H, W) to (B, C, H - 2 radius, W - 2 radius).

    A kernel for each sample would make a convolution of as many groups as there are planes, for which GPUs have no fast
    form; sums of shifted copies, along one axis and then the other, cost what reading the image so often costs.
    """
    step = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    line = torch.exp(-(step**2) / (2.0 * sigma[:, None] ** 2 + 1e-8))
    line = line / line.sum(dim=1, keepdim=True)
    return _summed_shifts(_summed_shifts(image, line, axis=2), line, axis=3)


def _summed_shifts(image: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Correlate each sample with its own row of ``weights`` (B, K) along an axis, which loses K - 1 pixels."""
    kept = image.shape[axis] - weights.shape[1] + 1
    total = image.narrow(axis, 0, kept) * _per_sample(weights[:, 0])
    for shift in range(1, weights.shape[1]):
        total = total.addcmul_(image.narrow(axis, shift, kept), _per_sample(weights[:, shift]))
    return total


@lru_cache(maxsize=4)
def _noise_bank(crop_size: int, device: torch.device) -> Tensor:
    """Every window of one fixed field of standard normal noise, as a view (shifts, shifts, 3, C, C)."""
    side = crop_size + NOISE_SHIFTS - 1
    field = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
    bank = torch.from_numpy(field).to(device)
    return bank.unfold(1, crop_size, 1).unfold(2, crop_size, 1).permute(1, 2, 0, 3, 4)


def _noise(shift: Tensor, crop_size: int) -> Tensor:
    """Noise (B, 3, C, C) of unit variance that each sample's ``shift`` alone decides, the same on every device."""
    return _noise_bank(crop_size, shift.device)[shift[:, 0], shift[:, 1]]


def _between(uniform: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return ends[0] + uniform * (ends[1] - ends[0])


def _per_sample(values: Tensor) -> Tensor:
    return values[:, None, None, None]
