#!/usr/bin/env python3
"""Show how often 95% intervals hold the true value, on simulated data whose true values are known.

    python scripts/interval_coverage.py
    python scripts/interval_coverage.py --sizes 30,8,8,4,2,2,1,1,1,1    # unequal groups of given sizes

Images of a group share a shift of their scores, so they are not independent. The score of an image is its class's mean
plus its group's shift plus its own noise, all normal, so that the true AUROC (of images of different groups) and the
true accuracy follow from the normal distribution. A second classifier sees the same shift and much of the same noise,
for paired differences: one that is worse, and one that is as good. Beside the intervals of the reports
(``util.intervals``) stand others of the literature: the bootstrap over groups with percentiles, with expanded
percentiles (Hesterberg, The American Statistician 69, 2015), BCa (Efron, 1987) and studentised on the logit scale.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
from numpy.typing import NDArray  # noqa: E402
from scipy.stats import norm, t  # noqa: E402
from tqdm import tqdm  # noqa: E402

from util.errors import UserError, run_door  # noqa: E402
from util.files import atomic_write  # noqa: E402
from util.intervals import Sizes, difference_interval, interval, left_out_weights, sizes_of  # noqa: E402

Floats = NDArray[np.float64]
FIGURES = ("auroc", "accuracy", "sensitivity")
SECOND = {"worse": 0.8, "equal": 1.0}  # how far apart the classes' means are for the second, of the first's
ALIKE = 0.7  # correlation of the two classifiers' own noise
METHODS = ("reports", "percentile", "expanded", "BCa", "bootstrap-t")
PAIRED = METHODS[:3]


class Design(NamedTuple):
    """What is simulated: images of each group, correlation within groups, true AUROC, one class a group or both."""

    sizes: NDArray[np.int64]
    shared: float
    auroc: float
    pure: bool

    @property
    def apart(self) -> float:
        """How far apart the classes' means are: two images differ by it, with variance 2."""
        return float(norm.ppf(self.auroc) * math.sqrt(2))

    def truths(self, share: float = 1.0) -> dict[str, float]:
        """The true figures of a classifier whose classes are that share of it apart."""
        right = float(norm.cdf(share * self.apart / 2))
        auroc = float(norm.cdf(share * self.apart / math.sqrt(2)))
        return {"auroc": auroc, "accuracy": right, "sensitivity": right}


class Groups:
    """One data set, as sums by group and pair of groups: every figure under any weights is a product with them.

    Args:
        label: (N,) 0 or 1.
        score: (N,) Anemic is said above 0.
        member: (N,) the group of each image.
    """

    def __init__(self, label: NDArray[np.int64], score: Floats, member: NDArray[np.int64]) -> None:
        count = int(member.max()) + 1
        inside = np.zeros((count, len(member)))
        inside[member, np.arange(len(member))] = 1
        beats = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        self.wins = inside @ (beats * ((label[:, None] == 1) & (label == 0))) @ inside.T
        right = (score > 0) == (label == 1)
        self.anemic, self.healthy, self.right, self.found = (
            inside @ part.astype(np.float64) for part in (label == 1, label == 0, right, right & (label == 1))
        )

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """AUROC, accuracy and sensitivity under (R, groups) weights, (R,) each, NaN where undefined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            anemic, healthy = weights @ self.anemic, weights @ self.healthy
            auroc = ((weights @ self.wins) * weights).sum(axis=1) / (anemic * healthy)
            accuracy = weights @ self.right / (anemic + healthy)
            return {"auroc": auroc, "accuracy": accuracy, "sensitivity": weights @ self.found / anemic}

    def errors(self, weights: Floats) -> dict[str, Floats]:
        """The cluster-robust standard error of each by its influence (AUROC: Obuchowski, Biometrics 53, 1997)."""
        said = self.figures(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            anemic, healthy = (weights @ self.anemic)[:, None], (weights @ self.healthy)[:, None]
            auroc, accuracy, sensitivity = (said[key][:, None] for key in FIGURES)
            of_anemic = (weights @ self.wins.T / healthy - auroc * self.anemic) / anemic
            influence = {
                "auroc": of_anemic + (weights @ self.wins / anemic - auroc * self.healthy) / healthy,
                "accuracy": (self.right - accuracy * (self.anemic + self.healthy)) / (anemic + healthy),
                "sensitivity": (self.found - sensitivity * self.anemic) / anemic,
            }
        return {key: np.sqrt((weights * value**2).sum(axis=1)) for key, value in influence.items()}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="40,150", help="how many groups of equal size; several counts")
    parser.add_argument("--images", type=int, default=4, help="images a group")
    parser.add_argument(
        "--sizes",
        help="images of each group, comma separated, or a file that holds them; takes the place of --groups and"
        " --images",
    )
    parser.add_argument("--shared", default="0,0.3,0.7", help="correlation of the scores within a group")
    parser.add_argument("--auroc", default="0.75,0.95,0.985", help="true AUROC")
    parser.add_argument("--repeats", type=int, default=1000, help="data sets of each design")
    parser.add_argument("--resamples", type=int, default=499, help="of each bootstrap; 0 leaves the bootstraps out")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    return parser.parse_args()


def sizes_in(text: str) -> NDArray[np.int64]:
    """Images of each group, from a list or from a file that holds one.

    Raises:
        UserError: there are fewer than two groups, or one is not of one image or more.
    """
    path = Path(text)
    try:
        words = (path.read_text() if path.is_file() else text).replace(",", " ").split()
        sizes = np.array([int(word) for word in words], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise UserError(f"--sizes {text}", expected="whole numbers, comma separated", found=str(error)) from None
    if len(sizes) < 2 or sizes.min() < 1:
        raise UserError(f"--sizes {text}", expected="two or more groups, each of one image or more")
    return sizes


def simulate(
    design: Design, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, Floats]]:
    """Labels, groups and the scores of the first classifier and the second ones; both classes are always there."""
    groups = len(design.sizes)
    member = np.repeat(np.arange(groups), design.sizes)
    label = np.zeros(len(member), dtype=np.int64)
    while not 0 < label.sum() < len(label):
        classes = generator.permutation(np.arange(groups) % 2)
        label = classes[member] if design.pure else generator.integers(0, 2, len(member))
    shift = math.sqrt(design.shared) * generator.normal(size=groups)[member]
    own = generator.normal(size=(2, len(member)))
    noise = math.sqrt(1 - design.shared) * np.array([own[0], ALIKE * own[0] + math.sqrt(1 - ALIKE**2) * own[1]])
    half = (2 * label - 1) * design.apart / 2
    scores = {"first": half + shift + noise[0]}
    return label, member, scores | {name: share * half + shift + noise[1] for name, share in SECOND.items()}


def sizes_for(label: NDArray[np.int64], member: NDArray[np.int64], groups: int) -> dict[str, Sizes]:
    """What the groups say about each figure, as the reports reckon it."""
    return {
        "auroc": sizes_of(member, groups, label == 0, label == 1),
        "accuracy": sizes_of(member, groups, label >= 0),
        "sensitivity": sizes_of(member, groups, label == 1),
    }


def one_repeat(design: Design, generator: np.random.Generator, resamples: int) -> Iterator[tuple[str, float, Any]]:
    """What is estimated, its true value and its intervals by method, of one data set."""
    label, member, scores = simulate(design, generator)
    groups = len(design.sizes)
    data = {name: Groups(label, score, member) for name, score in scores.items()}
    every, left_out = np.ones((1, groups)), np.concatenate(list(left_out_weights(groups, groups, 0)))
    drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.float64)
    value, without, resampled = ({name: d.figures(w) for name, d in data.items()} for w in (every, left_out, drawn))
    first, errors = data["first"], data["first"].errors(drawn)
    sizes, error = sizes_for(label, member, groups), first.errors(every)
    for key in FIGURES:
        one, less, many = float(value["first"][key][0]), without["first"][key], resampled["first"][key]
        found = {"reports": interval(one, less, sizes[key])}
        if resamples:
            found |= bootstraps(one, many, sizes[key].effective)
            found |= {"BCa": bca(one, many, less), "bootstrap-t": studentised(one, many, error[key], errors[key])}
        yield key, design.truths()[key], found
        for name, share in SECOND.items() if key != "sensitivity" else ():
            other = float(value[name][key][0])
            found = {"reports": difference_interval(one, other, less, without[name][key], sizes[key])}
            if resamples:
                found |= bootstraps(one - other, many - resampled[name][key], sizes[key].effective)
            yield f"{key} less one that is {name}", design.truths()[key] - design.truths(share)[key], found


def bootstraps(value: float, drawn: Floats, effective: float) -> dict[str, list[float] | None]:
    """Percentile intervals, plain and expanded by Student's t and the root of n / (n - 1)."""
    known = drawn[~np.isnan(drawn)]
    if 2 * known.size < drawn.size:
        return {"percentile": None, "expanded": None}
    freedom = max(1.0, effective - 1)
    tail = 100 * float(norm.cdf(math.sqrt((freedom + 1) / freedom) * t.ppf(0.025, freedom)))
    return {
        name: np.percentile(known, [each, 100 - each]).tolist()
        for name, each in (("percentile", 2.5), ("expanded", tail))
    }


def bca(value: float, drawn: Floats, left_out: Floats) -> list[float] | None:
    """The bias-corrected and accelerated interval, with the jackknife over groups."""
    known, apart = drawn[~np.isnan(drawn)], left_out.mean() - left_out
    if 2 * known.size < drawn.size or np.isnan(apart).any() or not apart.any():
        return None
    below = np.clip((known < value).mean() + (known == value).mean() / 2, 1 / known.size, 1 - 1 / known.size)
    bias, skew = norm.ppf(below), (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    moved = bias + norm.ppf([0.025, 0.975])
    ends: list[float] = np.percentile(known, 100 * norm.cdf(bias + moved / (1 - skew * moved))).tolist()
    return ends


def studentised(value: float, drawn: Floats, error: Floats, errors: Floats) -> list[float] | None:
    """Bootstrap-t on the logit scale, with cluster-robust standard errors."""
    inside = (drawn > 0) & (drawn < 1) & (errors > 0)
    if not 0 < value < 1 or not error[0] or 2 * inside.sum() < drawn.size:
        return None
    middle, each = math.log(value / (1 - value)), drawn[inside]
    ranked = (np.log(each / (1 - each)) - middle) * each * (1 - each) / errors[inside]
    ends = middle - np.percentile(ranked, [97.5, 2.5]) * error[0] / (value * (1 - value))
    limits: list[float] = (1 / (1 + np.exp(-ends))).tolist()
    return limits


def coverage(design: Design, given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """By figure and method: the share of intervals that hold the truth, the mean width, and how many there were."""
    key = [given.seed, len(design.sizes), int(100 * design.shared), int(1000 * design.auroc), int(design.pure)]
    generator = np.random.default_rng(key)
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(given.repeats):
        for what, truth, found in one_repeat(design, generator, given.resamples):
            for method, ends in found.items():
                rows = seen.setdefault((what, method), [])
                if ends is not None:
                    rows.append((ends[0] - 1e-12 <= truth <= ends[1] + 1e-12, ends[1] - ends[0]))
    said: dict[str, dict[str, dict[str, float]]] = {}
    for (what, method), rows in seen.items():
        held, width = np.mean(rows, axis=0).tolist() if rows else (math.nan, math.nan)
        said.setdefault(what, {})[method] = {"held": held, "width": width, "given": len(rows) / given.repeats}
    return said


def show(groups: NDArray[np.int64], rows: list[dict[str, Any]], repeats: int) -> None:
    """Print, for each figure and method, the range over the designs and the single shares."""
    effective = groups.sum() ** 2 / (groups**2).sum()
    print(f"\n{len(groups)} groups, as good as {effective:.0f} equal ones, {groups.sum()} images, {repeats} data sets")
    titles = [f"{r['shared']:g}/{r['auroc']:g}/{'one' if r['pure'] else 'both'}" for r in rows]
    head = ["percent that hold the truth", "interval", "least", "mean", "most", "mean width", *titles]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for what, by_method in rows[0]["found"].items():
        for method in by_method:
            cells = [row["found"][what][method] for row in rows]
            held = [100 * cell["held"] for cell in cells]
            width = np.mean([cell["width"] for cell in cells])
            ends = f"{min(held):.1f} | {np.mean(held):.1f} | {max(held):.1f} | {width:.3f}"
            print(f"| {what} | {method} | {ends} |", " | ".join(f"{each:.1f}" for each in held), "|")


def main() -> int:
    """Simulate, count, print."""
    given = arguments()
    if given.sizes:
        every = [sizes_in(given.sizes)]
    else:
        every = [np.full(int(count), given.images, dtype=np.int64) for count in given.groups.split(",")]
    print("designs: correlation within a group / true AUROC / classes a group; nominal coverage 95%")
    said = []
    for sizes in every:
        kinds = list(product(map(float, given.shared.split(",")), map(float, given.auroc.split(",")), (False, True)))
        rows = []
        for shared, auroc, pure in tqdm(kinds, desc=f"{len(sizes)} groups", unit="design"):
            found = coverage(Design(sizes, shared, auroc, pure), given)
            rows.append({"shared": shared, "auroc": auroc, "pure": pure, "found": found})
        show(sizes, rows, given.repeats)
        said.append({"sizes": sizes.tolist(), "repeats": given.repeats, "designs": rows})
    if given.out:
        atomic_write(given.out, json.dumps(said, indent=1) + "\n", make_parents=True)
    return 0


if __name__ == "__main__":
    run_door(main)
