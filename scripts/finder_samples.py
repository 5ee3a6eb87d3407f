"""What the cell finder learns from: synthetic smears, masks of real ones, and real ones that a finder has looked at."""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from data.images import read_smear, read_truth
from data.readers import read_dataroot
from data.records import SmearRecord
from data.synthetic import film_of, synthesize
from data.synthetic_cells import Film
from models.module2.analysis import CellAnalyser
from models.module2.finder import CELL_DIAMETER, PLANES, CellFinder, map_cells
from models.module2.finder_learning import mask_maps, target_maps, turned
from models.module2.scale import scaled
from util.errors import UserError

SIDE, CROP = 300, 256
ZOOMS = (1.15, 1.75)  # synthetic cells are about 20 pixels across before
REAL_SCALES = (1.2, 1.4, 1.65)  # AneRBC's are too
NEAR = (0.85, 1.2)  # scales of what a finder looked at, about its own
HARD_SHARE = 0.4

Planes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """A smear and its truth: uint8 (3, H, W) and (4, H, W) of ``finder_learning.target_maps``."""

    rgb: Planes
    maps: Planes


def synthetic_samples(count: int, seed: int, workers: int) -> list[Sample]:
    """Synthetic smears 0 to ``count`` - 1 of a series."""
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(partial(synthetic_sample, seed=seed), range(count), chunksize=8)
        return list(tqdm(made, total=count, desc="synthetic smears", unit="img"))


def synthetic_sample(index: int, seed: int) -> Sample:
    """A synthetic smear, every other one photographed smaller and enlarged afterwards, as AneRBC's must be."""
    rng = np.random.default_rng([seed, index])
    zoom = float(np.exp(rng.uniform(*np.log(ZOOMS))))
    film = film_of(index, seed)
    film = hard(film, rng) if rng.random() < HARD_SHARE else film
    if index % 2:
        smear = synthesize(index, seed=seed, size=SIDE, zoom=zoom, film=film)
        return Sample(smear.rgb.transpose(2, 0, 1).copy(), target_maps(smear.instances, smear.stained))
    smear = synthesize(index, seed=seed, size=round(SIDE / zoom) + 1, film=film)
    rgb = scaled(smear.rgb, zoom)
    size = rgb.shape[0], rgb.shape[1]
    instances, stained = (_nearest(plane, size) for plane in (smear.instances.astype(np.int32), smear.stained))
    return Sample(rgb.transpose(2, 0, 1).copy(), target_maps(instances, stained > 0))


def hard(film: Film, rng: np.random.Generator) -> Film:
    """The same film spread thick and dried badly: clumps, chains, platelets on cells; crenated, contracted dark cells.

    Such fields are rare among synthetic smears, as they are among those that are photographed, and finders fail there.
    """
    chained, crenated, contracted = rng.random(3) < (0.3, 0.35, 0.35)
    return replace(
        film,
        density=min(1.6, film.density * float(rng.uniform(1.0, 1.5))),
        crowding=float(rng.uniform(0.3, 0.9)),
        rouleaux=float(rng.uniform(0.1, 0.6)) if chained else film.rouleaux,
        crenation=float(rng.uniform(0.2, 1.0)) if crenated else film.crenation,
        dense=float(rng.uniform(0.1, 0.8)) if contracted else film.dense,
        platelets_on_cells=float(rng.uniform(0.2, 1.0)),
    )


def _nearest(plane: npt.NDArray[np.generic], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    return np.asarray(Image.fromarray(plane.astype(np.int32)).resize((size[1], size[0]), Image.Resampling.NEAREST))


def masked_samples(dataroot: str) -> list[Sample]:
    """Real smears with masks of the train side, at each of ``REAL_SCALES``."""
    samples = []
    for record in tqdm(_real(dataroot, masked=True), desc="smears with masks", unit="img"):
        rgb, mask = read_smear(record), read_truth(record)
        for factor in REAL_SCALES:
            picture = scaled(rgb, factor)
            size = picture.shape[1], picture.shape[0]
            share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
            samples.append(Sample(picture.transpose(2, 0, 1).copy(), mask_maps(share > 0.5)))
    return samples


def self_labelled_samples(dataroot: str, finder: CellFinder, count: int, seed: int) -> list[Sample]:
    """Real smears without masks of the train side, with what a finder says of them as they are.

    The learner sees them in other stain, light and sharpness and must say the same (Xie et al., "Self-training with
    Noisy Student", CVPR 2020). Smears that the finder itself doubts are passed over.

    Args:
        dataroot: where the smears are.
        finder: the teacher, on the CPU.
        count: most smears to take.
        seed: of which are taken, and of the scales at which they are learned from.
    """
    rng = np.random.default_rng([seed, 1])
    records = _real(dataroot, masked=False)
    chosen = [records[place] for place in rng.permutation(len(records))[:count]]
    analyser = CellAnalyser(finder, torch.device("cpu"))
    samples = []
    for record in tqdm(chosen, desc="smears without masks", unit="img"):
        rgb = read_smear(record)
        seen = analyser(rgb)
        if seen.warnings or not np.isfinite(seen.cell_diameter_px):
            continue
        picture = scaled(rgb, CELL_DIAMETER / seen.cell_diameter_px)
        factor = float(np.exp(rng.uniform(*np.log(NEAR))))
        maps = np.rint(_agreed(finder, picture) * 255).astype(np.uint8)
        planes = np.stack([scaled(plane, factor) for plane in maps])
        samples.append(Sample(scaled(picture, factor).transpose(2, 0, 1).copy(), planes))
    return [sample for sample in samples if min(sample.rgb.shape[1:]) >= CROP]


def _agreed(finder: CellFinder, rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Mean (4, H, W) of what the finder says of a smear in its eight turned and mirrored views."""
    total = np.zeros((len(PLANES), *rgb.shape[:2]), np.float32)
    for turns, mirrored in itertools.product(range(4), (False, True)):
        view = turned(rgb.transpose(2, 0, 1), turns, mirrored).transpose(1, 2, 0)
        maps = map_cells(finder, np.ascontiguousarray(view), torch.device("cpu"))
        seen = np.stack([getattr(maps, plane) for plane in PLANES])
        seen = seen[:, :, ::-1] if mirrored else seen
        total += np.rot90(seen, -turns, (1, 2))
    return total / 8


def _real(dataroot: str, *, masked: bool) -> list[SmearRecord]:
    """Whole real smears of the train side, with a mask or without."""
    records = [
        r for r in read_dataroot(Path(dataroot)) if (r.mask is not None) == masked and r.split in (None, "train")
    ]
    records = [r for r in records if "synthetic" not in r.name and "tiles" not in r.name]
    if not records:
        raise UserError(
            f"{dataroot} holds no smear {'with' if masked else 'without'} a mask",
            remedy="name another data root, or leave the option out",
        )
    return records
