#!/usr/bin/env python3
"""Set the cut-offs of the kinds of cells on smears whose cells are labelled by points, and say how well they do.

    python scripts/calibrate_kinds.py --points Chula/Dataset Chula/Label --scratch scratch

The cut-offs of ``GRIDS`` are moved one after another, each to the value with the best mean F1 over the kinds that have
``LEAST_CELLS`` labelled cells or more, where that gains ``LEAST_GAIN``, until none moves. All others keep their values:
those of size, which without micrometres is relative to the image; of hypochromic cells, whose best value changes from
fold to fold; and of kinds that are not labelled. The figures are of images that the cut-offs were not set on (folds of
whole images); intervals resample images. The cell finder is not trained on anything here.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
import numpy.typing as npt  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data.images import read_rgb  # noqa: E402
from models.module2.analysis import CellAnalyser, changed  # noqa: E402
from models.module2.finder import SHIPPED, load_finder  # noqa: E402
from models.module2.kinds import KindLimits, kinds_of  # noqa: E402
from models.module2.morphometry import CellTable, measure_cells  # noqa: E402
from scripts.bench_cells import CHULA_KINDS, RESAMPLES, pictures, read_points  # noqa: E402
from util.device import choose_device  # noqa: E402
from util.errors import UserError, run_door  # noqa: E402
from util.results import write_json  # noqa: E402

# Values that are tried. Few, and far apart: what lies between differs by less than chance.
GRIDS: dict[str, tuple[float, ...]] = {
    "teardrop_tail": (0.12, 0.16, 0.2),
    "uneven": (0.04, 0.05, 0.06, 0.07, 0.08, 0.09),
    "ovalocyte_below": (0.75, 0.77, 0.79, 0.81, 0.83, 0.85),
    "spherocyte_below": (0.06, 0.09, 0.12, 0.15, 0.18),
    "target_bump": (0.06, 0.09, 0.12, 0.15, 0.18),
    "burr_solidity": (0.96, 0.97, 0.98, 0.985, 0.99),
    "burr_spikes": (2, 3, 4, 5),
    "schistocyte_below": (0.8, 0.85, 0.9, 0.95, 1.0),
}
# Kinds with fewer labelled cells count for nothing: they would follow chance.
LEAST_CELLS = 20
# A cut-off moves only where the mean F1 gains so much: smaller gains are chance.
LEAST_GAIN = 0.002
# Names that differ between the labels and ours, and labels for which we have no name: these cells are not asked about.
SAME = {"hypochromia": "hypochromic"}
UNNAMED = {"stomatocyte", "other"}
ROUNDS = 3
# Where the search begins: at cut-offs that were placed by hand, and not at what an earlier search of the same images
# found, which would decide over images that the folds keep apart.
BEFORE = "teardrop_tail=0.12,uneven=0.05,burr_spikes=4,burr_solidity=0.97"


@dataclass(frozen=True)
class Labelled:
    """One image: its cells' measures and, of those that hold one point alone, row of the table and labelled kind."""

    table: CellTable
    rows: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.str_]

    def pairs(self, limits: KindLimits) -> npt.NDArray[np.str_]:
        """(m, 2): the labelled kind of each cell, and the one it is given."""
        return np.column_stack([self.kinds, kinds_of(self.table, limits)[self.rows]])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--points", type=Path, nargs=2, metavar=("IMAGES", "LABELS"), required=True, help="smears, points of cells")
    add("--scratch", type=Path, required=True, help="folder for the instances found, so that a next run is quick")
    add("--weights", type=Path, default=SHIPPED, help="of the cell finder")
    add("--gpu_ids", default="-1", help="0 for the first GPU, -1 for the CPU")
    add("--folds", type=int, default=11, help="parts that the images are dealt into")
    add("--seed", type=int, default=0, help="of the deal and of the intervals")
    add(
        "--before", default=BEFORE, help="cut-offs to begin and to compare with, NAME=NUMBER,...; the rest are defaults"
    )
    add("--out", type=Path, help="write the figures as JSON, too")
    return parser.parse_args()


# --- what is labelled -----------------------------------------------------------------------------------------------


def labelled_cells(asked: argparse.Namespace) -> list[Labelled]:
    """The labelled cells of all images; instances are looked up in the scratch folder or found and kept there."""
    images, labels = asked.points
    analyser = CellAnalyser(load_finder(asked.weights), choose_device(asked.gpu_ids))
    asked.scratch.mkdir(parents=True, exist_ok=True)
    found = []
    for path in tqdm(pictures(images), desc="smears with points", unit="img"):
        text = labels / f"{path.stem}.txt"
        if text.is_file():
            rgb = read_rgb(path)
            instances = instances_of(analyser, rgb, asked.weights, asked.scratch)
            found.append(labelled(instances, measure_cells(instances, rgb), read_points(text)))
    if not sum(len(image.rows) for image in found):
        raise UserError(f"no picture in {images} has points in {labels}", expected="IMAGE.txt beside every IMAGE.png")
    return found


def instances_of(
    analyser: CellAnalyser, rgb: npt.NDArray[np.uint8], weights: Path, scratch: Path
) -> npt.NDArray[np.int32]:
    """Instances of an image: measures are taken anew each time, but the finder is asked once about the same pixels."""
    code = b"".join((SHIPPED.parent / f"{name}.py").read_bytes() for name in ("analysis", "finder", "instances"))
    key = hashlib.sha256(weights.read_bytes() + code + rgb.tobytes()).hexdigest()[:24]
    kept = scratch / f"{key}.npz"
    if not kept.is_file():
        np.savez_compressed(kept, instances=analyser(rgb).instances)
    with np.load(kept) as content:
        return np.asarray(content["instances"])


def labelled(instances: npt.NDArray[np.int32], table: CellTable, points: npt.NDArray[np.int64]) -> Labelled:
    """The cells of one image that hold exactly one point and lie whole in it.

    Args:
        instances: (H, W).
        table: their measures.
        points: (n, 3) column, row and class.
    """
    height, width = instances.shape
    cell = instances[np.clip(points[:, 1], 0, height - 1), np.clip(points[:, 0], 0, width - 1)]
    alone = (cell > 0) & (np.bincount(cell, minlength=1)[cell] == 1)
    whole = {int(number): row for row, number in enumerate(table.cell) if not table.border[row]}
    chosen = [
        (whole[int(number)], SAME.get(CHULA_KINDS[code], CHULA_KINDS[code]))
        for number, code in zip(cell[alone], points[alone, 2], strict=True)
        if int(number) in whole and CHULA_KINDS[code] not in UNNAMED
    ]
    rows, kinds = zip(*chosen, strict=True) if chosen else ((), ())
    return Labelled(table, np.array(rows, np.int64), np.array(kinds, "<U16"))


# --- scores ---------------------------------------------------------------------------------------------------------


def asked_kinds(images: Sequence[Labelled]) -> list[str]:
    """Kinds with enough labelled cells, most frequent first."""
    counted = Counter(kind for image in images for kind in image.kinds.tolist())
    return [kind for kind, count in counted.most_common() if count >= LEAST_CELLS]


def tally(pairs: npt.NDArray[np.str_], kinds: Sequence[str]) -> npt.NDArray[np.int64]:
    """(k, 3): of each kind the cells labelled so, those named so, and those both."""
    true = pairs[:, :1] == np.array(kinds)
    named = pairs[:, 1:] == np.array(kinds)
    return np.stack([true.sum(axis=0), named.sum(axis=0), (true & named).sum(axis=0)], axis=1)


def f1_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F1 of each kind from (..., k, 3) of :func:`tally`; 0 of what is neither labelled nor named."""
    labelled_or_named = counts[..., 0] + counts[..., 1]
    return np.asarray(2 * counts[..., 2] / np.maximum(labelled_or_named, 1))


def best_limits(images: Sequence[Labelled], kinds: Sequence[str], start: KindLimits) -> KindLimits:
    """Cut-offs with the best mean F1: one after another is moved along its grid, at most ``ROUNDS`` times."""

    def score(limits: KindLimits) -> float:
        return float(f1_of(sum(tally(image.pairs(limits), kinds) for image in images)).mean())  # type: ignore[arg-type]

    best, reached = start, score(start)
    for _ in range(ROUNDS):
        before = reached
        for name, values in GRIDS.items():
            for value in values:
                moved: dict[str, Any] = {name: value}
                tried = replace(best, **moved)
                if (made := score(tried)) > reached + LEAST_GAIN:
                    best, reached = tried, made
        if reached == before:
            break
    return best


def cross_validated(
    images: Sequence[Labelled], kinds: Sequence[str], start: KindLimits, folds: int, rng: np.random.Generator
) -> tuple[list[npt.NDArray[np.str_]], list[KindLimits]]:
    """Pairs (m, 2) of each image, by cut-offs that were set on other images; and those of each fold."""
    fold = rng.permutation(len(images)) % folds
    set_on_others = []
    for number in tqdm(range(folds), desc="folds", unit="fold"):
        others = [image for image, part in zip(images, fold, strict=True) if part != number]
        set_on_others.append(best_limits(others, kinds, start))
    return [image.pairs(set_on_others[part]) for image, part in zip(images, fold, strict=True)], set_on_others


def figures(
    by_image: Sequence[npt.NDArray[np.str_]], kinds: Sequence[str], drawn: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Recall, precision, F1 with its interval, and the most frequent names of each kind; the mean F1 with its own."""
    counts = np.stack([tally(pairs, kinds) for pairs in by_image])
    total, resampled = counts.sum(axis=0), f1_of(counts[drawn].sum(axis=1))
    pairs = np.concatenate(list(by_image))
    said: dict[str, Any] = {
        "mean_f1": float(f1_of(total).mean()),
        "mean_f1_ci95": np.percentile(resampled.mean(axis=1), (2.5, 97.5)).tolist(),
    }
    for place, kind in enumerate(kinds):
        true, named, both = total[place].tolist()
        called = Counter(pairs[pairs[:, 0] == kind, 1].tolist())
        said[kind] = {
            "cells": true,
            "recall": both / true,
            "precision": both / max(named, 1),
            "f1": float(f1_of(total)[place]),
            "f1_ci95": np.percentile(resampled[:, place], (2.5, 97.5)).tolist(),
            "named": {name: count / true for name, count in called.most_common(5)},
        }
    return said


def difference(
    first: Sequence[npt.NDArray[np.str_]],
    second: Sequence[npt.NDArray[np.str_]],
    kinds: Sequence[str],
    drawn: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """By how much the mean F1 of the first exceeds that of the second, with its interval: images drawn for both."""
    counts = [np.stack([tally(pairs, kinds) for pairs in by_image]) for by_image in (first, second)]
    means = [f1_of(part[drawn].sum(axis=1)).mean(axis=1) for part in counts]
    whole = [float(f1_of(part.sum(axis=0)).mean()) for part in counts]
    return {"mean_f1": whole[0] - whole[1], "ci95": np.percentile(means[0] - means[1], (2.5, 97.5)).tolist()}


def main() -> None:
    """Measure, set, compare, and print what was found."""
    asked = arguments()
    if asked.folds < 2:
        raise UserError("--folds", expected="2 or more", found=str(asked.folds), remedy="give more folds")
    images = labelled_cells(asked)
    if len(images) < asked.folds:
        raise UserError("--folds", expected=f"at most {len(images)}, one an image", found=str(asked.folds))
    kinds, rng = asked_kinds(images), np.random.default_rng(asked.seed)
    drawn = rng.integers(0, len(images), (RESAMPLES, len(images)))
    before = changed(KindLimits(), asked.before, "--before")
    by_fold, limits = cross_validated(images, kinds, before, asked.folds, rng)
    first = [image.pairs(before) for image in images]
    settled = best_limits(images, kinds, before)
    said = {
        "images": len(images),
        "kinds": kinds,
        "cross_validated": figures(by_fold, kinds, drawn),
        "before": figures(first, kinds, drawn),
        "difference": difference(by_fold, first, kinds, drawn),
        "limits": {name: getattr(settled, name) for name in GRIDS},
        "limits_of_folds": {name: [getattr(part, name) for part in limits] for name in GRIDS},
    }
    print(report(said))
    if asked.out:
        write_json(asked.out, said)


def report(said: dict[str, Any]) -> str:
    """The figures as text."""
    low, high = said["difference"]["ci95"]
    lines = [
        f"{said['images']} images; mean F1 of {len(said['kinds'])} kinds: cross-validated "
        f"{said['cross_validated']['mean_f1']:.3f}, before {said['before']['mean_f1']:.3f}, difference "
        f"{said['difference']['mean_f1']:+.3f} [{low:+.3f}, {high:+.3f}]"
    ]
    for name in ("cross_validated", "before"):
        lines.append(name)
        for kind, row in said[name].items():
            if isinstance(row, dict):
                called = ", ".join(f"{other} {share:.2f}" for other, share in row["named"].items())
                low, high = row["f1_ci95"]
                lines.append(
                    f"  {kind:12} {row['cells']:5} recall {row['recall']:.2f} precision {row['precision']:.2f} "
                    f"F1 {row['f1']:.2f} [{low:.2f}, {high:.2f}]: {called}"
                )
    lines += [f"{name} = {value:g} (folds: {said['limits_of_folds'][name]})" for name, value in said["limits"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_door(main)
