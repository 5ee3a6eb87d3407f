"""Light through a stained smear and into the camera: stain colours, illumination, blur, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.synthetic_cells import PIXELS_PER_UM


@dataclass(frozen=True)
class Stain:
    """Optical density of each stained thing to red, green and blue light, and the grey level of the empty field.

    Attributes:
        red_cell: (3,) density of a normal red cell's mean thickness.
        platelet: (3,) density in the middle of a platelet.
        nucleus: (3,) density of a white cell's nucleus.
        cytoplasm: (3,) density of a white cell's cytoplasm.
        background: (3,) grey level of the empty field, 0 to 255.
        young: (3,) what a young (polychromatic) red cell has more or less of than a grown one, relative to density.
        granule: (3,) density of an eosinophil's granules.
        precipitate: (3,) density of a grain of stain.
    """

    red_cell: np.ndarray
    platelet: np.ndarray
    nucleus: np.ndarray
    cytoplasm: np.ndarray
    background: np.ndarray
    young: np.ndarray
    granule: np.ndarray
    precipitate: np.ndarray


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
        tint: (2,) how much bluer (less red) the light gets from the middle to the edge (row, column).
        tilt: (3,) where the field leaves focus: direction (row, column) and added blur at its far end, pixels.
        pixels_per_um: magnification.
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
    tint: np.ndarray
    tilt: np.ndarray
    pixels_per_um: float = PIXELS_PER_UM


# After published smears. Each line: how often, mean density of a red cell, grey level of the empty field, how far
# either strays (standard deviation of the logarithm). The first four are AneRBC's bluish, purple and two buff slides;
# the last stands for other laboratories (Chula's are grey, green or blue; eosin alone is pink).
_PALETTES = (
    (0.55, (0.133, 0.152, 0.063), (212.0, 211.0, 213.0), 0.05, 0.010),
    (0.12, (0.118, 0.190, 0.062), (206.0, 203.0, 209.0), 0.07, 0.012),
    (0.12, (0.066, 0.086, 0.053), (233.0, 210.0, 187.0), 0.08, 0.012),
    (0.09, (0.130, 0.180, 0.085), (225.0, 198.0, 181.0), 0.08, 0.015),
    (0.12, (0.085, 0.145, 0.075), (190.0, 188.0, 188.0), 0.20, 0.055),
)
_GLARE_WIDTH = 11  # pixels of a box passed twice, about a Gaussian of 4.5 pixels
# Green has two of the mosaic's four sites, so the least noise; the values are those of the published smears.
_GRAIN = (1.12, 0.84, 0.86)
_PLATELET = (0.11, 0.40, 0.05)
_NUCLEUS = (0.27, 0.88, 0.13)
_CYTOPLASM = (0.060, 0.145, 0.028)
_YOUNG = (0.20, 0.02, -0.14)
_GRANULE = (0.03, 0.30, 0.16)
_PRECIPITATE = (0.20, 0.56, 0.10)


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw stain and light of one image. It is told nothing of the subject: colour must not give the class away."""
    weights = np.array([palette[0] for palette in _PALETTES])
    _, red_cell, background, stray, light_stray = _PALETTES[int(rng.choice(len(_PALETTES), p=weights / weights.sum()))]
    intensity = np.exp(rng.normal(0.12, 0.19))
    tint = np.exp(rng.normal(0, stray, 3))
    other = np.exp(rng.normal(0, 0.18))
    light = np.asarray(background) * np.exp(rng.normal(0, 0.025 + light_stray)) * np.exp(rng.normal(0, light_stray, 3))
    hue = tint * np.exp(rng.normal(0, 0.10, 3)) * other
    return Stain(
        red_cell=np.asarray(red_cell) * intensity * tint,
        platelet=np.asarray(_PLATELET) * hue,
        nucleus=np.asarray(_NUCLEUS) * hue,
        cytoplasm=np.asarray(_CYTOPLASM) * hue,
        background=np.clip(light, 60, 247),
        young=np.asarray(_YOUNG),
        granule=np.asarray(_GRANULE) * hue,
        precipitate=np.asarray(_PRECIPITATE) * hue,
    )


def draw_camera(rng: np.random.Generator) -> Camera:
    """Draw magnification, focus, light fall-off and noise of one image."""
    focus = float(np.clip(np.exp(rng.normal(0.10, 0.36)), 0.5, 2.2))
    usual, magnification, spread = rng.uniform() < 0.75, rng.uniform(), rng.normal(0, 0.03)
    corner, tilted = rng.uniform(size=2)
    direction = rng.uniform(0, 2 * np.pi)
    return Camera(
        defocus=focus * np.array([1.0, 0.92, 1.15]),
        fringe=rng.normal(0, 0.25, 2),
        gradient=rng.normal(0, 0.018, 2),
        vignetting=float(rng.uniform(0, 0.05) + (rng.uniform(0.1, 0.4) if corner < 0.05 else 0)),
        electrons=float(rng.uniform(4000, 10000)),
        read_noise=float(rng.uniform(1.0, 2.8)),
        demosaic=rng.uniform(0.22, 0.55) * np.array([1.0, 0.95, 1.1]),
        sharpening=float(0.6 * rng.uniform() ** 2),
        glare=float(rng.uniform(0.12, 0.38)),
        tint=rng.normal(0, 0.008, 2),
        tilt=np.array([np.sin(direction), np.cos(direction), rng.uniform(0.5, 1.6) if tilted < 0.3 else 0.0]),
        # Most pictures of a set share one magnification; the others stand for other microscopes.
        pixels_per_um=float(PIXELS_PER_UM * np.exp(spread)) if usual else float(2.1 * (4.6 / 2.1) ** magnification),
    )


def transmit(density: np.ndarray, stain: Stain, camera: Camera) -> np.ndarray:
    """Light behind the smear by Beer and Lambert: level x 10^-density.

    Args:
        density: (h, w, 3) optical density, summed over all that lies on the pixel.
        stain: gives the empty field's level.
        camera: gives the unevenness of the light.

    Returns:
        (h, w, 3) float32 grey levels before lens and camera, 0 to 255 and not rounded.
    """
    height, width = density.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    falloff = 1 + float(camera.gradient[0]) * rows + float(camera.gradient[1]) * columns
    falloff = falloff - camera.vignetting * (rows**2 + columns**2) / 2
    bluer = float(camera.tint[0]) * rows + float(camera.tint[1]) * columns
    light: np.ndarray = np.exp(np.float32(-np.log(10)) * density.astype(np.float32, copy=False))
    light *= stain.background.astype(np.float32)
    light[..., 0] *= falloff * (1 - bluer)
    light[..., 1] *= falloff
    light[..., 2] *= falloff * (1 + bluer)
    return light


def to_eight_bits(light: np.ndarray) -> np.ndarray:
    """Round grey levels to uint8; what is brighter than white or darker than black is cut off."""
    return np.asarray(np.clip(np.rint(light), 0, 255), dtype=np.uint8)


def develop(light: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Take the picture: blur and colour fringe of the lens, noise and sharpening of the camera.

    Args:
        light: (h, w, 3) grey levels behind the smear.
        camera: what takes it.
        rng: source of the noise.

    Returns:
        (h, w, 3) float32, not rounded.
    """
    picture = np.empty(light.shape, np.float32)
    farther = _out_of_focus(light.shape[:2], camera) if camera.tilt[2] else None
    for channel, side in enumerate((1, 0, -1)):
        image = _blur(np.ascontiguousarray(light[..., channel], np.float32), camera.defocus[channel])
        if farther is not None:
            image = image + farther * (_blur(image, camera.tilt[2]) - image)
        if side and camera.fringe.any():
            image = ndimage.shift(image, side * camera.fringe, order=1, mode="nearest")
        if camera.glare:
            around = ndimage.uniform_filter(image, _GLARE_WIDTH, mode="nearest")
            image = image + camera.glare * (ndimage.uniform_filter(around, _GLARE_WIDTH, mode="nearest") - image)
        if camera.sharpening:
            image = image + camera.sharpening * (image - ndimage.uniform_filter(image, 5, mode="nearest"))
        picture[..., channel] = image + _noise(image, camera, channel, rng)
    return picture


def _blur(image: np.ndarray, sd: float) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(image, sd, mode="nearest", truncate=3))


def _out_of_focus(shape: tuple[int, int], camera: Camera) -> np.ndarray:
    """Weight (h, w) of the added blur: 0 at the near end of the field, 1 at the far end."""
    rows, columns = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    weight = 0.5 + (camera.tilt[0] * rows + camera.tilt[1] * columns) / 2
    return np.asarray(np.clip(weight, 0, 1), dtype=np.float32)


def _noise(image: np.ndarray, camera: Camera, channel: int, rng: np.random.Generator) -> np.ndarray:
    """Draw shot noise (grows with the light) and read noise, smeared as the interpolation of the colour mosaic does."""
    levels_per_electron = 255 / camera.electrons
    sigma = np.sqrt(np.clip(image, 0, None) * levels_per_electron + camera.read_noise**2)
    grain = rng.standard_normal(image.shape, np.float32)
    width = camera.demosaic[channel]
    if width > 0:
        grain = ndimage.gaussian_filter(grain, width, mode="wrap", truncate=2.5)
        grain = grain / max(float(grain.std()), 1e-12)
    return np.asarray(sigma * grain * np.float32(_GRAIN[channel]))
