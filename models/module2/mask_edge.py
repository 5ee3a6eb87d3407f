"""The edge of the cells' mask, drawn from the stain where the finder saw the cells smaller than they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.module2.morphometry import background_light

# Half of the way from the film's light to the rim's: there a blurred edge lies, whatever the blur.
EDGE_LEVEL = 0.5
# In parts of a cell's diameter: how far the edge may move, how deep the rim reaches, and the side of a block of film.
_REACH, _RIM, _BLOCK = 0.06, 0.16, 4.0
_LEAST_FALL = 4.0  # grey levels: below it the rim is no darker than the film


def mask_by_stain(
    labels: npt.NDArray[np.integer], rgb: npt.NDArray[np.uint8], diameter: float, level: float = EDGE_LEVEL
) -> npt.NDArray[np.bool_]:
    """Draw the mask of an image's cells, its edge where the green light has fallen by ``level`` of the rim's fall.

    Cells larger than the finder's scale are found in a reduced picture, which rounds edges and spines off. Which
    pixels are cell and which are film is asked here once more of the image itself, near the edges alone: all that lies
    deeper stays cell, and nothing is added farther away.

    Args:
        labels: (H, W) cells and pieces of them, 0 is film.
        rgb: (H, W, 3) uint8, the image.
        diameter: of its cells, pixels.
        level: from 0, the film's light, to 1, the median rim's.

    Returns:
        (H, W); the labels' own mask where no film is in view or the cells are not darker than it.
    """
    cells, green = labels > 0, rgb[..., 1]
    reach, block = max(1, round(_REACH * diameter)), max(1, round(_BLOCK * diameter))
    light = background_light(labels, green, block)
    if light is None or cells.all():
        return cells
    depth = ndimage.distance_transform_cdt(cells, metric="taxicab")  # in steps, from the film in view
    inner = depth > reach
    rim = inner & (depth <= reach + max(1, round(_RIM * diameter)))
    if not rim.any():
        return cells
    fall = float(np.median(_fallen(rim, green, light, block)))
    if fall < _LEAST_FALL:
        return cells
    near = (ndimage.distance_transform_cdt(~cells, metric="taxicab") <= reach) & ~inner
    drawn = inner
    drawn[near] = _fallen(near, green, light, block) > level * fall
    return drawn | (ndimage.binary_fill_holes(drawn) & cells)  # a pale centre close to the edge is no film


def _fallen(
    where: npt.NDArray[np.bool_], green: npt.NDArray[np.uint8], light: npt.NDArray[np.float64], block: int
) -> npt.NDArray[np.float64]:
    """How far the green light has fallen below the film's around them, at some pixels, in grey levels."""
    place = np.stack(np.nonzero(where)).astype(np.float32)
    film = ndimage.map_coordinates(light, (place + 0.5) / block - 0.5, order=1, mode="nearest")
    return np.asarray(film - green[where])
