#!/usr/bin/env python3
"""Train the cell finder of Module-II: on synthetic smears whose every cell is known, and on masks of real smears.

    python scripts/train_cell_finder.py --masks datasets/shipped/manifest.csv --out cell_finder.safetensors

Real masks show where cells are, not which pixels belong to which cell; only images of the train side are used where the
data root says so. The score printed at the end is of synthetic smears that were not learned from.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.augment import blur_each, jitter_stain, without_colour  # noqa: E402
from data.images import read_smear, read_truth  # noqa: E402
from data.readers import read_dataroot  # noqa: E402
from data.synthetic import SYNTHESIS_VERSION, synthesize  # noqa: E402
from models.averaging import WeightAverage  # noqa: E402
from models.module2.finder import CellFinder, load_finder, map_cells, save_finder  # noqa: E402
from models.module2.finder_learning import finder_loss, mask_maps, target_maps, turned  # noqa: E402
from models.module2.instances import split_cells  # noqa: E402
from models.module2.matching import match_instances  # noqa: E402
from models.module2.scale import scaled  # noqa: E402
from util.device import choose_device, set_seed  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402

SIDE, CROP = 300, 256
ZOOMS = (1.15, 1.75)  # synthetic cells are about 20 pixels across before
REAL_SCALES = (1.2, 1.4, 1.65)  # AneRBC's are too
REAL_SHARE = 4  # one image in so many is real
VALIDATION_SEED, VALIDATION_COUNT = 9001, 100
VALIDATION_ZOOM = 1.4
BLUR_RADIUS = 4


@dataclass(frozen=True)
class Sample:
    """A smear and its truth: uint8 (3, H, W) and (4, H, W) of ``finder_learning.target_maps``."""

    rgb: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.uint8]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="weights to write")
    add("--masks", default="", help="data root or manifest of real smears with masks; none: synthetic smears alone")
    add("--synthetic", type=int, default=2400, help="synthetic smears to learn from")
    add("--steps", type=int, default=3600, help="batches to learn from")
    add("--batchSize", type=int, default=8, help="crops in a batch")
    add("--lr", type=float, default=2e-3, help="learning rate after the warm-up; it falls to 0 as a cosine")
    add("--seed", type=int, default=9000, help="of the synthetic smears and of the training")
    add("--gpu_ids", default="-1", help="0 for the first GPU, -1 for the CPU")
    add("--start", type=Path, help="go on from these weights")
    add("--workers", type=int, default=2, help="processes that make synthetic smears")
    return parser.parse_args()


def synthetic_sample(index: int, seed: int) -> Sample:
    """A synthetic smear, every other one photographed smaller and enlarged afterwards, as AneRBC's must be."""
    low, high = np.log(ZOOMS)
    zoom = float(np.exp(np.random.default_rng([seed, index]).uniform(low, high)))
    if index % 2:
        smear = synthesize(index, seed=seed, size=SIDE, zoom=zoom)
        return Sample(smear.rgb.transpose(2, 0, 1).copy(), target_maps(smear.instances, smear.stained))
    smear = synthesize(index, seed=seed, size=round(SIDE / zoom) + 1)
    rgb = scaled(smear.rgb, zoom)
    size = rgb.shape[0], rgb.shape[1]
    instances, stained = (_nearest(plane, size) for plane in (smear.instances.astype(np.int32), smear.stained))
    return Sample(rgb.transpose(2, 0, 1).copy(), target_maps(instances, stained > 0))


def _nearest(plane: npt.NDArray[np.generic], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    return np.asarray(Image.fromarray(plane.astype(np.int32)).resize((size[1], size[0]), Image.Resampling.NEAREST))


def synthetic_samples(count: int, seed: int, workers: int) -> list[Sample]:
    """Synthetic smears 0 to ``count`` - 1 of a series."""
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(partial(synthetic_sample, seed=seed), range(count), chunksize=8)
        return list(tqdm(made, total=count, desc="synthetic smears", unit="img"))


def real_samples(dataroot: str) -> list[Sample]:
    """Real smears with masks of the train side, at each of ``REAL_SCALES``."""
    records = [r for r in read_dataroot(Path(dataroot)) if r.mask is not None and r.split in (None, "train")]
    records = [r for r in records if "synthetic" not in r.name and "tiles" not in r.name]
    if not records:
        raise UserError(f"{dataroot} holds no smear with a mask", remedy="name another data root, or leave --masks out")
    samples = []
    for record in tqdm(records, desc="real smears", unit="img"):
        rgb, mask = read_smear(record), read_truth(record)
        for factor in REAL_SCALES:
            picture = scaled(rgb, factor)
            size = picture.shape[1], picture.shape[0]
            share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
            samples.append(Sample(picture.transpose(2, 0, 1).copy(), mask_maps(share > 0.5)))
    return samples


def batches(
    exact: Sequence[Sample], real: Sequence[Sample], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Crops without end: images (B, 3, C, C) and maps (B, 4, C, C) in [0, 1], and which of them are exact (B,)."""
    while True:
        is_real = np.arange(size) < (size // REAL_SHARE if real else 0)
        chosen = [(real if r else exact)[int(rng.integers(len(real if r else exact)))] for r in is_real]
        crops = [_cropped(sample, rng) for sample in chosen]
        rgb, maps = (torch.from_numpy(np.stack(planes).astype(np.float32) / 255) for planes in zip(*crops, strict=True))
        yield varied(bleached(rgb, maps[:, 1], rng), rng), maps, torch.from_numpy(~is_real)


def _cropped(sample: Sample, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A random crop of a smear, turned and mirrored by chance."""
    height, width = sample.rgb.shape[1:]
    top, left = int(rng.integers(height - CROP + 1)), int(rng.integers(width - CROP + 1))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    window = slice(None), slice(top, top + CROP), slice(left, left + CROP)
    return turned(sample.rgb[window], turns, mirrored), turned(sample.maps[window], turns, mirrored)


def bleached(rgb: Tensor, depth: Tensor, rng: np.random.Generator) -> Tensor:
    """Take stain out of the middle of cells, here and there down to the film's own light and beyond.

    Real cells lose all of it: hypochromic ones, and those that drying has left with refractile centres. A finder that
    has not seen such cells takes them for rings of small ones. In four of ten images the pale centres grow by as much
    as a smooth random field says; in three of ten, bright spots lie in the cells.

    Args:
        rgb: (B, 3, C, C) in [0, 1].
        depth: (B, C, C), 0 at a cell's edge to 1 in its middle; 0 of real images, which stay as they are.
        rng: source of chance.
    """
    count, side = len(rgb), rgb.shape[-1]
    film = torch.quantile(rgb.flatten(2), 0.9, dim=2)[:, :, None, None]
    begins = torch.from_numpy(rng.uniform(0.15, 0.6, (count, 1, 1)).astype(np.float32))
    reach = torch.from_numpy(rng.uniform(0.1, 0.4, (count, 1, 1)).astype(np.float32))
    pale = ((depth - begins) / reach).clamp(0, 1) * field(count, 8, side, rng, 0.4) * 1.15
    spots = (field(count, 40, side, rng, 0.3) - 0.62).clamp(0) * 5 * ((depth - 0.2) / 0.2).clamp(0, 1)
    taken = torch.maximum(pale, spots.clamp(max=1.15))[:, None]
    return (rgb + taken * (film - rgb)).clamp(0, 1)


def field(count: int, cells: int, side: int, rng: np.random.Generator, share: float) -> Tensor:
    """Smooth random fields (B, C, C) of values in [0, 1] with ``cells`` independent ones along a side; some are 0."""
    coarse = torch.from_numpy(rng.random((count, 1, cells, cells), np.float32))
    shown = torch.from_numpy((rng.random((count, 1, 1)) < share).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[:, 0].clamp(0, 1) * shown


def varied(rgb: Tensor, rng: np.random.Generator) -> Tensor:
    """Vary stain, light, sharpness, noise and colour of images (B, 3, C, C), more than the classifier's training does.

    Shapes, not colours, tell cells apart: the finder must serve laboratories that nobody has seen.
    """
    count = len(rgb)

    def drawn(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32))

    def some(share: float) -> Tensor:
        return torch.from_numpy((rng.random(count) < share).astype(np.float32))

    # Cells may be as dark as nuclei usually are, and pale dirt may lie anywhere: size and shape must tell them.
    strength = torch.exp(some(0.5) * drawn(*np.log((0.6, 4.0))))[:, None]
    stained = some(0.8)[:, None]
    alpha, beta = strength * (1 + stained * drawn(-0.25, 0.25, 3)), stained * drawn(-0.06, 0.06, 3)
    film = torch.quantile(rgb.flatten(2), 0.9, dim=2)[:, :, None, None]
    dirt = (field(count, 12, rgb.shape[-1], rng, 0.3) - 0.6).clamp(min=0) * drawn(0.05, 0.35, 1)[..., None]
    rgb = film * (rgb / film * 10 ** -dirt[:, None]).clamp(max=1.3)
    rgb = (
        film ** (1 - strength[..., None, None])
        * jitter_stain(rgb.clamp(min=1 / 512), alpha, beta)
        * (1 + some(0.5) * drawn(-0.1, 0.1))[:, None, None, None]
    )
    rgb = torch.nn.functional.pad(rgb, (BLUR_RADIUS,) * 4, mode="reflect").contiguous()
    rgb = blur_each(rgb, some(0.4) * drawn(0, BLUR_RADIUS / 3), BLUR_RADIUS)
    noise = torch.from_numpy(rng.standard_normal(rgb.shape, np.float32))
    rgb = rgb + noise * (some(0.4) * drawn(0, 0.025))[:, None, None, None]
    mix = torch.from_numpy(rng.exponential(size=(count, 3)).astype(np.float32))
    return without_colour(rgb, mix / mix.sum(dim=1, keepdim=True) * some(0.3)[:, None]).clamp(0, 1)


def train(finder: CellFinder, own: argparse.Namespace, device: torch.device) -> CellFinder:
    """Learn; the running average of the weights is returned."""
    exact = synthetic_samples(own.synthetic, own.seed, own.workers)
    real = real_samples(own.masks) if own.masks else []
    stream = batches(exact, real, own.batchSize, np.random.default_rng(own.seed))
    optimiser = torch.optim.AdamW(finder.parameters(), lr=own.lr, weight_decay=1e-4)
    average = WeightAverage(finder, 0.998)
    begun, sums = time.monotonic(), np.zeros(4)
    for step in range(own.steps):
        rate = min(1, (step + 1) / 100) * (1 + np.cos(np.pi * step / own.steps)) / 2
        optimiser.param_groups[0]["lr"] = own.lr * rate
        rgb, maps, is_exact = (part.to(device) for part in next(stream))
        loss = finder_loss(finder(rgb.contiguous(memory_format=torch.channels_last)), maps, is_exact)
        optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(finder.parameters(), 5.0)
        optimiser.step()
        average.update()
        sums += [term.item() for term in (loss.mask, loss.distance, loss.gap, loss.real)]
        if (step + 1) % 100 == 0:
            terms = "  ".join(
                f"{name} {value:.4f}"
                for name, value in zip(("mask", "distance", "gap", "real"), sums / 100, strict=True)
            )
            print(f"step {step + 1}/{own.steps}  {time.monotonic() - begun:.0f} s  {terms}", flush=True)
            sums[:] = 0
            save_finder(own.out, cast(CellFinder, average.network), {"steps": step + 1, "of": own.steps})
    return cast(CellFinder, average.network)


def validate(finder: CellFinder, device: torch.device) -> dict[str, float]:
    """Score synthetic smears that were not learned from: F1 at an overlap of one half, panoptic quality."""
    total = None
    for index in tqdm(range(VALIDATION_COUNT), desc="validating", unit="img"):
        smear = synthesize(index, seed=VALIDATION_SEED, size=SIDE, zoom=VALIDATION_ZOOM)
        found = split_cells(map_cells(finder.eval(), smear.rgb, device))
        match = match_instances(found.cells + found.cut, smear.instances)
        total = match if total is None else total + match
    assert total is not None
    return {"f1": total.f1, "panoptic_quality": total.panoptic_quality, "images": VALIDATION_COUNT}


def main() -> int:
    """Train, write the weights, say how good they are."""
    own = arguments()
    device = choose_device(own.gpu_ids)
    set_seed(own.seed % 2**32, deterministic=False)
    finder = load_finder(own.start) if own.start else CellFinder()
    finder = finder.train().to(device).to(memory_format=torch.channels_last)
    trained = train(finder, own, device)
    score = validate(trained, device)
    settings = {"steps": own.steps, "batch": own.batchSize, "synthetic": own.synthetic, "seed": own.seed}
    facts = {**settings, "synthesis": SYNTHESIS_VERSION, "real_masks": bool(own.masks), "validation": score}
    save_finder(own.out, trained, facts)
    print(f"{own.out}: {score}")
    return 0


if __name__ == "__main__":
    run_door(main)
