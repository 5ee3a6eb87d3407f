#!/usr/bin/env python3
"""Measure Module-II: how many cells are found, how well they are measured and graded, and how long it takes.

    python scripts/bench_cells.py --synthetic 60
    python scripts/bench_cells.py --points Chula/Dataset Chula/Label --masks BBBC041/images BBBC041/masks
    python scripts/bench_cells.py --speed

Beside each figure on real smears stands what Otsu's threshold with filled holes and a distance watershed gives in the
same run. Points are text files of "x y class" lines, one a cell, as Chula RBC-12 has them. Truth is used for scoring
alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import numpy.typing as npt  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.images import otsu_mask, read_mask, read_rgb  # noqa: E402
from data.synthetic import SyntheticSmear, synthesize  # noqa: E402
from models.cell_stage import CellsOfImage, severity_metrics  # noqa: E402
from models.module2.analysis import CellAnalyser, typical_diameter  # noqa: E402
from models.module2.finder import SHIPPED, load_finder  # noqa: E402
from models.module2.kinds import kinds_of  # noqa: E402
from models.module2.matching import Match, match_instances  # noqa: E402
from models.module2.morphometry import CellTable, measure_cells  # noqa: E402
from models.module2.scale import estimate_diameter  # noqa: E402
from util.device import choose_device  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.mask_cells import split_mask  # noqa: E402
from util.results import write_json  # noqa: E402

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
NORMAL = 0
# Kind as Chula RBC-12 numbers it, the measure that should tell it from normal cells, and in which direction.
TELLS = {
    "macrocyte by diameter": ((1,), "diameter", 1),
    "microcyte by diameter": ((2,), "diameter", -1),
    "ovalocyte and elliptocyte by roundness": ((6, 12), "roundness", -1),
    "hypochromia by pallor": ((11,), "pallor", 1),
    "spherocyte by pallor": ((3,), "pallor", -1),
}
CHULA_KINDS = (
    "normal", "macrocyte", "microcyte", "spherocyte", "target", "stomatocyte", "ovalocyte", "teardrop", "burr",
    "schistocyte", "other", "hypochromia", "elliptocyte",
)  # fmt: skip
RESAMPLES = 1000
LEVELS = 80  # thresholds tried for the best one

Cells = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.int32], CellTable]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", type=Path, default=SHIPPED, help="of the cell finder")
    add("--gpu_ids", default="-1", help="0 for the first GPU, -1 for the CPU")
    add("--synthetic", type=int, default=0, help="synthetic smears to find, measure and grade")
    add("--seed", type=int, default=9002, help="series of the synthetic smears; 9000 was learned from")
    add("--points", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), help="smears, and points of their cells")
    add("--masks", type=Path, nargs=2, metavar=("IMAGES", "MASKS"), help="smears, and masks of their cells")
    add("--dark", action="store_true", help="the masks draw cells dark on white, as AneRBC does")
    add("--speed", action="store_true", help="time 1600x1200 pixels with about 200 cells, and four times that area")
    add("--out", type=Path, help="write the figures as JSON, too")
    return parser.parse_args()


# --- what is compared -----------------------------------------------------------------------------------------------


def ours(analyser: CellAnalyser) -> Cells:
    """Instances and measures by Module-II."""

    def find(rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], CellTable]:
        cells = analyser(rgb)
        return cells.instances, cells.table

    return find


def reference(rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], CellTable]:
    """Instances by Otsu's threshold of the green channel, filled, opened, and a watershed of the distance."""
    from skimage.filters import gaussian, threshold_otsu

    green = gaussian(rgb[..., 1].astype(float), 1.0, preserve_range=True)
    stained = ndimage.binary_opening(ndimage.binary_fill_holes(green < threshold_otsu(green)), iterations=2)
    parts, _ = ndimage.label(stained)
    diameter = estimate_diameter(rgb)
    least = 0.13 * np.pi / 4 * diameter**2 if np.isfinite(diameter) else 0
    stained &= (np.bincount(parts.ravel()) >= least)[parts]
    labels = split_mask(stained)
    return labels, measure_cells(labels, rgb)


# --- synthetic smears -----------------------------------------------------------------------------------------------


def score_synthetic(analyser: CellAnalyser, count: int, seed: int) -> dict[str, Any]:
    """Cells found, and errors of their measures, against exact truth; grades of the anemic smears among them."""
    total, truths, columns = Match(0, 0.0, 0, 0), [], []
    diameters, roundness = [], []
    for index in tqdm(range(count), desc="synthetic smears", unit="img"):
        smear = synthesize(index, seed=seed)
        found = analyser(smear.rgb)
        total += match_instances(found.instances, in_view(smear))
        whole = [cell.diameter_px for cell in smear.cells if not cell.on_border]
        able, true = ~found.table.border, measure_cells(smear.instances, smear.rgb)
        if whole and able.any():
            diameters.append(found.table.diameter_px[able].mean() / np.mean(whole) - 1)
            roundness.append(found.table.roundness[able].mean() - true.roundness[~true.border].mean())
        truths.append(smear.severity)
        columns.append(CellsOfImage(found, ()).columns)
    images = [str(index) for index in range(count)]
    limit = analyser.rule.limit(analyser.um_per_px)
    graded = severity_metrics(truths, columns, images, limit=limit, resamples=RESAMPLES, seed=0)
    rule = graded["rule"] if graded else {"n": 0, "accuracy": None, "auroc": None, "ci95": {}}
    return {
        "images": count,
        "cells": total.true,
        "f1": total.f1,
        "panoptic_quality": total.panoptic_quality,
        "mean_diameter_error": float(np.mean(np.abs(diameters))),
        "mean_diameter_bias": float(np.mean(diameters)),
        "mean_roundness_error": float(np.mean(np.abs(roundness))),
        "mean_roundness_bias": float(np.mean(roundness)),
        "graded": rule["n"],
        "severity_accuracy": rule["accuracy"],
        "severity_ci95": rule["ci95"].get("accuracy"),
        "severity_auroc": rule["auroc"],
        "severity_auroc_ci95": rule["ci95"].get("auroc"),
    }


def in_view(smear: SyntheticSmear) -> npt.NDArray[np.integer]:
    """The true cells of which at least half is in view: those that belong to the image."""
    seen = np.bincount(smear.instances.ravel(), minlength=len(smear.cells) + 1)
    half = [not cell.on_border or 2 * seen[number] >= cell.area_px for number, cell in enumerate(smear.cells, 1)]
    return np.where(np.array([False, *half])[smear.instances], smear.instances, 0)


# --- points ---------------------------------------------------------------------------------------------------------


@dataclass
class PointScore:
    """Cells found at labelled points, summed over images, and measures of those that hold one point alone."""

    points: int = 0
    found: int = 0
    in_clumps: int = 0
    found_in_clumps: int = 0
    spurious: int = 0
    measures: dict[int, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    named: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, labels: npt.NDArray[np.int32], table: CellTable, points: npt.NDArray[np.int64]) -> None:
        """Score one image.

        Args:
            labels: (H, W) instances.
            table: their measures.
            points: (n, 3) column, row and class.
        """
        height, width = labels.shape
        rows, columns = np.clip(points[:, 1], 0, height - 1), np.clip(points[:, 0], 0, width - 1)
        clumps, _ = ndimage.label(labels > 0)
        cell, clump = labels[rows, columns], clumps[rows, columns]
        in_cell = np.bincount(cell, minlength=int(labels.max()) + 1)
        in_clump = np.bincount(clump, minlength=int(clumps.max()) + 1)
        alone, together = (cell > 0) & (in_cell[cell] == 1), (clump > 0) & (in_clump[clump] > 1)
        self.points, self.found = self.points + len(points), self.found + int(alone.sum())
        self.in_clumps, self.found_in_clumps = (
            self.in_clumps + int(together.sum()),
            self.found_in_clumps + int((alone & together).sum()),
        )
        first = ndimage.maximum(clumps, labels, table.cell) if len(table) else np.empty(0, int)
        self.spurious += int(((in_cell[table.cell] == 0) & (in_clump[np.asarray(first, int)] > 0)).sum())
        self._measure(table, cell, alone, points[:, 2])

    def _measure(
        self, table: CellTable, cell: npt.NDArray[np.int32], alone: npt.NDArray[np.bool_], kind: npt.NDArray[np.int64]
    ) -> None:
        whole = ~table.border
        row_of = {int(number): row for row, number in enumerate(table.cell) if whole[row]}
        kinds = kinds_of(table)
        usual = float(np.median(table.diameter_px[whole])) if whole.any() else float("nan")
        for number, code in zip(cell[alone].tolist(), kind[alone].tolist(), strict=True):
            if number in row_of:
                row = row_of[number]
                pixels = float(table.diameter_px[row])
                self.named[code][str(kinds[row])] += 1
                self.measures[code].append(
                    {
                        "diameter": pixels / usual,
                        "pixels": pixels,
                        "roundness": float(table.roundness[row]),
                        "pallor": float(np.nan_to_num(table.central_pallor[row])),
                    }
                )

    def result(self) -> dict[str, Any]:
        """Shares, F1, and AUROC of each kind against normal cells."""
        from sklearn.metrics import roc_auc_score

        said: dict[str, Any] = {
            "points": self.points,
            "recall": self.found / self.points,
            "clump_points": self.in_clumps,
            "clump_recall": self.found_in_clumps / max(1, self.in_clumps),
            "spurious_per_point": self.spurious / self.points,
            "f1": 2 * self.found / (self.found + self.points + self.spurious),
        }
        for name, (codes, measure, sign) in TELLS.items():
            kinds = [row for code in codes for row in self.measures[code]]
            both = [*kinds, *self.measures[NORMAL]]
            if kinds and self.measures[NORMAL]:
                truth = [1] * len(kinds) + [0] * len(self.measures[NORMAL])
                said[name] = float(roc_auc_score(truth, [sign * row[measure] for row in both]))
                if measure == "diameter":
                    said[f"{name} in pixels"] = float(roc_auc_score(truth, [sign * row["pixels"] for row in both]))
        said["named"] = {
            CHULA_KINDS[code]: {"cells": names.total(), **{k: n / names.total() for k, n in names.most_common(5)}}
            for code, names in sorted(self.named.items())
            if code < len(CHULA_KINDS)
        }
        return said


def read_points(path: Path) -> npt.NDArray[np.int64]:
    """The points of a smear: column, row and class of each, (n, 3).

    Raises:
        UserError: a line that is none.
    """
    rows = [line.split()[:3] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        return np.array(rows, np.int64).reshape(-1, 3)
    except ValueError as error:
        raise UserError(f"{path} holds no points", expected="lines of x y class", found=str(error)) from None


def score_points(methods: dict[str, Cells], images: Path, labels: Path) -> dict[str, Any]:
    """Score smears whose cells are marked by points."""
    scores = {name: PointScore() for name in methods}
    for path in tqdm(pictures(images), desc="smears with points", unit="img"):
        text = labels / f"{path.stem}.txt"
        if not text.is_file():
            continue
        points, rgb = read_points(text), read_rgb(path)
        for name, find in methods.items():
            scores[name].add(*find(rgb), points)
    if not all(score.points for score in scores.values()):
        raise UserError(f"no picture in {images} has points in {labels}", expected="IMAGE.txt beside every IMAGE.png")
    return {name: score.result() for name, score in scores.items()}


# --- masks ----------------------------------------------------------------------------------------------------------


def score_masks(analyser: CellAnalyser, images: Path, masks: Path, dark: bool) -> dict[str, Any]:
    """Dice of the cells with true masks, pooled over all pixels, beside Otsu's with filled holes.

    And beside what the best threshold of each image would give: no method that must guess where the truth's edge lies
    can be expected to do much better.
    """
    sums: dict[str, npt.NDArray[np.float64]] = defaultdict(lambda: np.zeros(2))
    each: dict[str, dict[str, float]] = defaultdict(dict)
    true_of = {path.stem: path for path in pictures(masks)}
    for path in tqdm([p for p in pictures(images) if p.stem in true_of], desc="smears with masks", unit="img"):
        rgb, true = read_rgb(path), read_mask(true_of[path.stem], dark=dark)
        masks_of = {
            "ours": analyser(rgb).mask,
            "reference": otsu_mask(rgb),
            "best_threshold": best_threshold(rgb, true),
        }
        for name, found in masks_of.items():
            both = np.array([2 * (found & true).sum(), found.sum() + true.sum()], float)
            sums[name] += both
            each[name][path.stem] = float(both[0] / max(both[1], 1))
    if not sums:
        raise UserError(f"no picture in {images} has a mask of the same name in {masks}")
    return {name: {"dice": float(s[0] / s[1]), "by_image": each[name]} for name, s in sums.items()}


def best_threshold(rgb: npt.NDArray[np.uint8], true: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The threshold of the grey picture, holes filled, that agrees best with the truth, which it knows."""
    grey = rgb.mean(axis=2)
    levels = np.linspace(*np.percentile(grey, (1, 99)), LEVELS)
    drawn = (ndimage.binary_fill_holes(grey < level) for level in levels)
    return max(drawn, key=lambda mask: 2 * (mask & true).sum() / (mask.sum() + true.sum()))


def pictures(folder: Path) -> list[Path]:
    """The images of a folder, below it too, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)


# --- speed ----------------------------------------------------------------------------------------------------------


def score_speed(analyser: CellAnalyser) -> dict[str, Any]:
    """Seconds of the whole way, from pixels to grades: the median of three, after one that does not count."""
    small = enlarged(synthesize(1, seed=3, size=430).rgb, (1600, 1200))
    found = {}
    for name, rgb in (("1600x1200", small), ("3200x2400", np.tile(small, (2, 2, 1)))):
        times = [timed(analyser, rgb) for _ in range(4)][1:]
        cells = analyser(rgb)
        usual = typical_diameter(cells.instances)
        found[name] = {"seconds": float(np.median(times)), "cells": len(cells.table), "diameter_px": usual}
    return {**found, "threads": torch.get_num_threads(), "device": str(analyser.device)}


def enlarged(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The image at another size, cut to its shape first."""
    from PIL import Image

    height = round(rgb.shape[1] * size[1] / size[0])
    return np.asarray(Image.fromarray(rgb[:height]).resize(size, Image.Resampling.BICUBIC))


def timed(analyser: CellAnalyser, rgb: npt.NDArray[np.uint8]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    analyser(rgb)
    return time.perf_counter() - begun


def parts(own: argparse.Namespace, analyser: CellAnalyser) -> Iterator[tuple[str, Any]]:
    """What was asked for, by name."""
    if own.synthetic:
        yield "synthetic", score_synthetic(analyser, own.synthetic, own.seed)
    if own.points:
        yield "points", score_points({"ours": ours(analyser), "reference": reference}, *own.points)
    if own.masks:
        yield "masks", score_masks(analyser, own.masks[0], own.masks[1], own.dark)
    if own.speed:
        yield "speed", score_speed(analyser)


def main() -> int:
    """Measure and print."""
    own = arguments()
    analyser = CellAnalyser(load_finder(own.weights), choose_device(own.gpu_ids))
    found = dict(parts(own, analyser))
    if not found:
        raise UserError("nothing to measure", remedy="give --synthetic N, --points, --masks or --speed")
    print(json.dumps(found, indent=1))
    if own.out:
        write_json(own.out, found)
    return 0


if __name__ == "__main__":
    run_door(main)
