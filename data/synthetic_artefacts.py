"""What is in the picture but not in the blood: the microscope's pointer, dirt on the slide, the file's compression."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from data.synthetic_particles import window_around

POINTER_SHARE = 0.06
DIRT_SHARE = 0.07
FIBRE_SHARE = 0.03
# What the pointer of AneRBC's pictures does to red, green and blue: one kind is yellow and covers the cells, the other
# green and lets them through.
_POINTERS = {"yellow": (75.0, 95.0, -48.0), "green": (-18.0, 70.0, -45.0)}


@dataclass(frozen=True)
class Pointer:
    """A pointer that reaches into the picture from an edge.

    Attributes:
        colour: "yellow" (covers) or "green" (lets through).
        side: quarter turns of the bottom edge: 0 bottom, 1 left, 2 top, 3 right.
        place: where on that edge, 0 to 1.
        length: pixels from the edge to the tip.
        width: pixels at the edge.
        lean: displacement of the tip along the edge, pixels.
        ragged: irregularity of its outline, pixels.
    """

    colour: str
    side: int
    place: float
    length: float
    width: float
    lean: float
    ragged: float


@dataclass(frozen=True)
class Artefacts:
    """All artefacts of one picture; drawn without knowledge of blood or stain.

    Attributes:
        pointer: None in most pictures.
        dirt: (n, 3) x, y (0 to 1 of the picture) and radius (pixels) of black particles.
        fibres: number of stained fibres.
        jpeg_quality: None where the picture was never compressed with loss.
    """

    pointer: Pointer | None
    dirt: np.ndarray
    fibres: int
    jpeg_quality: int | None


def draw_artefacts(rng: np.random.Generator) -> Artefacts:
    """Draw the artefacts of one picture."""
    has_pointer, has_dirt, has_fibre, compressed = rng.uniform(size=4)
    pointer = _draw_pointer(rng)
    count = int(rng.integers(1, 4))
    radius = 3 + 27 * rng.uniform(size=count) ** 2.5
    dirt = np.column_stack([rng.uniform(0, 1, (count, 2)), radius])
    quality = int(rng.integers(72, 98))
    return Artefacts(
        pointer=pointer if has_pointer < POINTER_SHARE else None,
        dirt=dirt if has_dirt < DIRT_SHARE else dirt[:0],
        fibres=int(has_fibre < FIBRE_SHARE),
        jpeg_quality=quality if compressed < 0.2 else None,
    )


def _draw_pointer(rng: np.random.Generator) -> Pointer:
    """Draw a pointer; most come from below, as AneRBC's do."""
    return Pointer(
        colour="yellow" if rng.uniform() < 0.45 else "green",
        side=int(rng.integers(1, 4)) if rng.uniform() < 0.2 else 0,
        place=float(rng.uniform(0.05, 0.95)),
        length=float(rng.uniform(40, 110)),
        width=float(rng.uniform(18, 42)),
        lean=float(rng.normal(0, 8)),
        ragged=float(rng.uniform(0, 4)),
    )


def pointer_cover(pointer: Pointer, size: int, rng: np.random.Generator) -> np.ndarray:
    """How much of each pixel the pointer covers: (size, size) float32, 0 to 1."""
    rows, columns = np.indices((size, size), dtype=np.float32)
    height = size - 1 - rows
    ragged = ndimage.gaussian_filter1d(rng.standard_normal(size), 2.0) * 3.5 * pointer.ragged
    along = np.clip(height / pointer.length, 0, 1)
    middle = pointer.place * size + pointer.lean * along
    # Half its width shrinks to the tip; the green one keeps a blunt waist.
    half = pointer.width / 2 * (1 - along) + np.where(height < 0.9 * pointer.length, np.abs(ragged[:, None]), 0)
    cover = np.clip(half + 0.5 - np.abs(columns - middle), 0, 1) * (height < pointer.length)
    return np.ascontiguousarray(np.rot90(ndimage.gaussian_filter(cover, 1.4), -pointer.side))


def lay_pointer(light: np.ndarray, pointer: Pointer, cover: np.ndarray) -> np.ndarray:
    """Add the pointer's light to a picture (h, w, 3) before it is rounded; what overflows is cut off by the camera."""
    change = np.asarray(_POINTERS[pointer.colour], np.float32)
    if pointer.colour == "yellow":
        full = np.array([255.0, 255.0, 135.0], np.float32)
        glow = ndimage.gaussian_filter(cover, 3.0)[..., None] * np.array([42.0, 8.0, 12.0], np.float32)
        return np.asarray(light + cover[..., None] * (full - light) + glow * (1 - cover[..., None]))
    level = light + cover[..., None] * change
    # Green light saturates near white whatever lies behind it.
    level[..., 1] = light[..., 1] + cover * (246.0 - light[..., 1])
    return level


def hidden_by_pointer(pointer: Pointer, cover: np.ndarray) -> np.ndarray:
    """Where (h, w) nothing of the blood can be seen behind the pointer."""
    return cover > 0.5 if pointer.colour == "yellow" else np.zeros(cover.shape, bool)


def dirt_density(artefacts: Artefacts, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray | None:
    """Optical density (h, w) of the dirt, the same for all colours; None where there is none."""
    if not len(artefacts.dirt):
        return None
    density = np.zeros(shape, np.float32)
    for x, y, radius in artefacts.dirt:
        middle = x * shape[1], y * shape[0]
        window = window_around(*middle, 2.2 * radius + 3, shape)
        rows, columns = np.ogrid[window]
        down, right = rows - middle[1], columns - middle[0]
        theta = np.arctan2(down, right)
        outline = np.ones_like(theta)
        for order in range(1, 8):
            outline = outline + rng.normal(0, 0.45 / order**0.8) * np.cos(order * theta + rng.uniform(0, 6))
        reach = radius * np.clip(outline, 0.25, 2.1)
        piece = 1.7 * np.clip((reach - np.hypot(down, right)) / rng.uniform(1.5, 6.0) + 0.5, 0, 1)
        density[window] = np.maximum(density[window], piece)
    return density


def compress(rgb: np.ndarray, quality: int | None) -> np.ndarray:
    """Pass a picture (h, w, 3) uint8 through JPEG with halved colour resolution; unchanged where quality is None."""
    if quality is None:
        return rgb
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(stream))
