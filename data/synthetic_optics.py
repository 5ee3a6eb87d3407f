"""Light through a stained smear and into the camera: stain colours, illumination, blur, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Stain:
    """Optical density of each stained thing to red, green and blue light, and the grey level of the empty field.

    Attributes:
        red_cell: (3,) density of a normal red cell's mean thickness.
        platelet: (3,) density in the middle of a platelet.
        nucleus: (3,) density of a white cell's nucleus.
        cytoplasm: (3,) density of a white cell's cytoplasm.
        background: (3,) grey level of the empty field, 0 to 255.
    """

    red_cell: np.ndarray
    platelet: np.ndarray
    nucleus: np.ndarray
    cytoplasm: np.ndarray
    background: np.ndarray


@dataclass(frozen=True)
class Camera:
    """How the microscope and its camera see.

    Attributes:
        defocus: (3,) standard deviation of the blur of each channel, pixels.
        fringe: (2,) displacement of red (and, reversed, of blue) against green (row, column), pixels.
        gradient: (2,) relative change of the light from the middle to the edge (row, column).
        vignetting: relative loss of light in the corners.
        electrons: electrons of a pixel at grey level 255; sets the shot noise.
        read_noise: standard deviation of the read noise, grey levels.
        demosaic: (3,) blur of the noise of each channel by the interpolation of the colour mosaic, pixels.
        sharpening: weight of the camera's own unsharp mask.
        glare: part of the light that the lens scatters over the neighbourhood.
    """

    defocus: np.ndarray
    fringe: np.ndarray
    gradient: np.ndarray
    vignetting: float
    electrons: float
    read_noise: float
    demosaic: np.ndarray
    sharpening: float
    glare: float


# After published smears (AneRBC): most are bluish, some purple, some buff. Each line: how often, mean density of a red
# cell, grey level of the empty field.
_PALETTES = (
    (0.72, (0.132, 0.149, 0.063), (213.0, 213.0, 214.0)),
    (0.15, (0.105, 0.172, 0.055), (213.0, 208.0, 216.0)),
    (0.13, (0.100, 0.128, 0.072), (233.0, 213.0, 193.0)),
)
_GLARE_REACH = 6.0  # pixels
# Green has two of the mosaic's four sites, so the least noise; the values are those of the published smears.
_GRAIN = (1.1, 0.75, 0.9)
_PLATELET = (0.06, 0.36, 0.03)
_NUCLEUS = (0.42, 0.62, 0.17)
_CYTOPLASM = (0.075, 0.115, 0.04)


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw stain and light of one image. It is told nothing of the subject: colour must not give the class away."""
    weights = np.array([weight for weight, _, _ in _PALETTES])
    _, red_cell, background = _PALETTES[int(rng.choice(len(_PALETTES), p=weights / weights.sum()))]
    intensity = np.exp(rng.normal(0, 0.14))
    tint = np.exp(rng.normal(0, 0.06, 3))
    other = np.exp(rng.normal(0, 0.15))
    light = np.asarray(background) * np.exp(rng.normal(0, 0.025)) * np.exp(rng.normal(0, 0.007, 3))
    return Stain(
        red_cell=np.asarray(red_cell) * intensity * tint,
        platelet=np.asarray(_PLATELET) * other * tint,
        nucleus=np.asarray(_NUCLEUS) * other * tint,
        cytoplasm=np.asarray(_CYTOPLASM) * other * tint,
        background=np.clip(light, 0, 245),
    )


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draw focus, light fall-off and noise of one image."""
    focus = float(np.clip(rng.normal(1.12, 0.17), 0.7, 1.7))
    return Camera(
        defocus=focus * np.array([1.0, 0.92, 1.18]),
        fringe=rng.normal(0, 0.22, 2),
        gradient=rng.normal(0, 0.014, 2),
        vignetting=float(rng.uniform(0, 0.04)),
        electrons=float(rng.uniform(5000, 9000)),
        read_noise=float(rng.uniform(1.2, 2.2)),
        demosaic=np.array([0.55, 0.40, 0.60]),
        sharpening=float(rng.uniform(0.1, 0.5)),
        glare=float(rng.uniform(0.10, 0.26)),
    )


def transmit(density: np.ndarray, stain: Stain, camera: Camera) -> np.ndarray:
    """Light behind the smear by Beer and Lambert: level x 10^-density.

    Args:
        density: (h, w, 3) optical density, summed over all that lies on the pixel.
        stain: gives the empty field's level.
        camera: gives the unevenness of the light.

    Returns:
        (h, w, 3) grey levels before lens and camera, 0 to 255 and not rounded.
    """
    height, width = density.shape[:2]
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    falloff = 1 + camera.gradient[0] * rows + camera.gradient[1] * columns
    falloff = falloff - camera.vignetting * (rows**2 + columns**2) / 2
    return stain.background * falloff[..., None] * np.exp(-np.log(10) * density)


def expose(light: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Take the picture: blur and colour fringe of the lens, noise and sharpening of the camera, eight bits.

    Args:
        light: (h, w, 3) grey levels behind the smear.
        camera: what takes it.
        rng: source of the noise.

    Returns:
        (h, w, 3) uint8.
    """
    channels = []
    for channel, side in enumerate((1, 0, -1)):
        image = ndimage.gaussian_filter(light[..., channel], camera.defocus[channel], mode="nearest", truncate=3)
        if side:
            image = ndimage.shift(image, side * camera.fringe, order=1, mode="nearest")
        image = (1 - camera.glare) * image + camera.glare * ndimage.gaussian_filter(
            image, _GLARE_REACH, mode="nearest", truncate=3
        )
        image = image + camera.sharpening * (image - ndimage.gaussian_filter(image, 2.0, mode="nearest", truncate=3))
        channels.append(image + _noise(image, camera, channel, rng))
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)


def _noise(image: np.ndarray, camera: Camera, channel: int, rng: np.random.Generator) -> np.ndarray:
    """Draw shot noise (grows with the light) and read noise, smeared as the interpolation of the colour mosaic does."""
    levels_per_electron = 255 / camera.electrons
    sigma = np.sqrt(np.clip(image, 0, None) * levels_per_electron + camera.read_noise**2)
    grain = rng.standard_normal(image.shape)
    width = camera.demosaic[channel]
    if width > 0:
        grain = ndimage.gaussian_filter(grain, width, mode="wrap")
        grain = grain / max(float(grain.std()), 1e-12)
    return sigma * grain * _GRAIN[channel]
