#!/usr/bin/env python3
"""Show how often the report's 95% intervals hold the true value, on simulated data whose true values are known.

    python scripts/interval_coverage.py --repeats 400
    python scripts/interval_coverage.py --sizes 30,8,8,4,2,2,1,1,1,1    # unequal groups of given sizes

Groups of images share a shift of their score, so images of a group are not independent. The score of an image is its
class's mean plus its group's shift plus its own noise, all normal, so that the true AUROC and the true accuracy at the
threshold follow from the normal distribution. Beside the bootstrap over groups, which the report uses, stands one over
single images, which such data forbid; and the paired difference of two classifiers that see the same shift.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402 - the path must be set first
from numpy.typing import NDArray  # noqa: E402
from scipy.stats import norm  # noqa: E402
from tqdm import tqdm  # noqa: E402

from util.errors import UserError, run_door  # noqa: E402
from util.metrics import classification_metrics, effective_groups  # noqa: E402
from util.report_scores import difference  # noqa: E402

SHARED, OWN = 0.8, 0.6  # standard deviation of a group's shift and of an image's noise: together 1
FIRST, SECOND = 1.0, 0.7  # how far apart the classes' means are, for two classifiers


class Simulated(NamedTuple):
    """One data set: labels, two classifiers' probabilities, group names."""

    label: NDArray[np.int64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    group: list[str]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="40,150", help="how many groups, half of each class; several counts")
    parser.add_argument("--images", type=int, default=4, help="images a group, on average")
    parser.add_argument(
        "--sizes",
        help="images of each group, comma separated, or a file that holds them; takes the place of --groups and"
        " --images, and each data set gives the classes to the groups by chance, half each",
    )
    parser.add_argument("--repeats", type=int, default=400, help="data sets that are simulated")
    parser.add_argument("--resamples", type=int, default=1000, help="of each interval")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    return parser.parse_args()


def sizes_of(text: str) -> NDArray[np.int64]:
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


def simulate(sizes: NDArray[np.int64], generator: np.random.Generator, *, shuffled: bool = False) -> Simulated:
    """Draw groups of these sizes, half of the groups anemic: every second one, or by chance."""
    groups = len(sizes)
    member = np.repeat(np.arange(groups), sizes)
    classes = np.arange(groups) % 2
    label = (generator.permutation(classes) if shuffled else classes)[member].astype(np.int64)
    shift = SHARED * generator.normal(size=groups)[member]
    centred = 2.0 * label - 1
    scores = [apart / 2 * centred + shift + OWN * generator.normal(size=len(label)) for apart in (FIRST, SECOND)]
    first, second = (norm.cdf(score) for score in scores)  # above 0.5 exactly where the score is above 0
    return Simulated(label, first, second, [f"g{m}" for m in member])


def truths(apart: float) -> dict[str, float]:
    """AUROC and accuracy in the whole population.

    Two images of different classes are of different groups, so their scores differ by ``apart`` with variance 2; a
    score lies on the right side of 0 with probability Phi(apart / 2).
    """
    spread = math.hypot(SHARED, OWN)
    return {
        "auroc": float(norm.cdf(apart / (spread * math.sqrt(2)))),
        "accuracy": float(norm.cdf(apart / 2 / spread)),
    }


def holds(interval: list[float] | None, value: float) -> float:
    """1 where an interval holds a value, 0 where not, NaN where there is none."""
    return math.nan if interval is None else float(interval[0] <= value <= interval[1])


def one_repeat(data: Simulated, seed: int, resamples: int) -> dict[str, float]:
    """Which intervals of one data set hold the truth."""
    given = {"resamples": resamples, "seed": seed}
    known, other = truths(FIRST), truths(SECOND)
    by_group = classification_metrics(data.label, data.first, data.group, **given)["ci95"]
    alone = [str(index) for index in range(len(data.label))]
    by_image = classification_metrics(data.label, data.first, alone, **given)["ci95"]
    margin = difference(data.label, data.first, data.second, data.group, **given)
    found = {}
    for key in ("auroc", "accuracy"):
        found[f"{key}, groups drawn"] = holds(by_group[key], known[key])
        found[f"{key}, images drawn"] = holds(by_image[key], known[key])
        found[f"{key}, paired difference"] = holds(margin[key]["ci95"], known[key] - other[key])
    return found


def coverage(groups: int, given: argparse.Namespace, fixed: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """The share of data sets whose interval holds the truth, with its own standard error.

    Groups have 1 to 2 * images - 1 images, or the sizes that are given.
    """
    generator = np.random.default_rng([given.seed, groups])
    held: list[dict[str, float]] = []
    images, effective = 0, 0.0
    for repeat in tqdm(range(given.repeats), desc=f"{groups} groups", unit="set"):
        sizes = generator.integers(1, 2 * given.images, groups) if fixed is None else fixed
        data = simulate(sizes, generator, shuffled=fixed is not None)
        images += len(data.label)
        effective += effective_groups(data.group)
        held.append(one_repeat(data, repeat, given.resamples))
    shares = {key: float(np.nanmean([one[key] for one in held])) for key in held[0]}
    means = {"effective_groups": effective / given.repeats, "images": images / given.repeats}
    return {"groups": groups, **means, "repeats": given.repeats, "coverage": shares}


def show(found: dict[str, Any]) -> None:
    """Print the shares of one count of groups."""
    groups = f"{found['groups']} groups, as good as {found['effective_groups']:.0f} equal ones"
    print(f"\n{groups}, {found['images']:.0f} images on average, {found['repeats']} data sets")
    for key, share in found["coverage"].items():
        error = math.sqrt(share * (1 - share) / found["repeats"])
        print(f"  {key:>28}: {100 * share:5.1f}% of the intervals hold the truth (standard error {100 * error:.1f})")


def main() -> int:
    """Simulate, count, print."""
    given = arguments()
    known = truths(FIRST)
    print(f"true AUROC {known['auroc']:.3f}, accuracy {known['accuracy']:.3f}; nominal coverage 95%")
    found = []
    fixed = sizes_of(given.sizes) if given.sizes else None
    for groups in [len(fixed)] if fixed is not None else map(int, given.groups.split(",")):
        found.append(coverage(groups, given, fixed))
        show(found[-1])
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_door(main)
