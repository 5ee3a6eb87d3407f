"""Cases that the tests of synthetic smears share: single cells drawn, pictures taken, smears made once."""

from __future__ import annotations

from functools import cache

import numpy as np

from data.synthetic import SyntheticSmear, synthesize
from data.synthetic_cells import RedCell
from data.synthetic_optics import Camera, develop, to_eight_bits
from data.synthetic_render import central_pallors, profile, render_cells

SIDE = 128


@cache
def eight_smears() -> list[SyntheticSmear]:
    """Smears that no test changes."""
    return [synthesize(index, seed=7, size=200) for index in range(8)]


def same(first: SyntheticSmear, second: SyntheticSmear) -> bool:
    """Whether two smears are equal to the byte."""
    pictures = ((first.rgb, second.rgb), (first.instances, second.instances), (first.mask, second.mask))
    return all(one.tobytes() == two.tobytes() for one, two in pictures) and first.cells == second.cells


def perfect_camera() -> Camera:
    """One that neither blurs nor adds noise."""
    nothing = np.zeros(2)
    return Camera(np.full(3, 1e-6), nothing, nothing, 0.0, 1e12, 0.0, np.zeros(3), 0.0, 0.0, nothing, np.zeros(3))


def picture_of(light: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """The picture (h, w, 3) uint8 that a camera takes of light."""
    return to_eight_bits(develop(light, camera, rng))


def thickness(cell: RedCell, rho: np.ndarray) -> np.ndarray:
    """``profile`` of one cell at distances (n,) from its middle."""
    return profile([cell], np.asarray(rho, np.float32).reshape(1, 1, -1)).reshape(np.shape(rho))


def central_pallor(cell: RedCell) -> float:
    """``central_pallors`` of one cell."""
    return float(central_pallors([cell])[0])


def drawn_cell(cell: RedCell, x: float, y: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """One cell drawn: its load (p, p), mask (p, p), and the row and column of the patch on the canvas."""
    patches = next(render_cells([cell], np.array([[x, y]])))
    return patches.load[0], patches.masks[0], int(patches.top[0]), int(patches.left[0])
