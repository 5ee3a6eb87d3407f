"""95% intervals by groups: every interval of the reports comes from here.

Images of one patient (or tiles of one smear) are not independent, so whole groups are left out one at a time and never
single images: the jackknife over groups (Bell and McCaffrey, Survey Methodology 28, 2002; MacKinnon, Nielsen and Webb,
J. Appl. Econometrics 38, 2023). Its standard error is carried to the logit scale, where shares, AUROC and Dice have
no walls, and multiplied by a quantile of Student's t whose degrees of freedom are the effective number of groups less
one, since few groups, or a few large ones, do not know their own spread. docs/outputs.md has what that covers in
simulations, beside the percentile bootstrap, BCa and bootstrap-t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

METHOD = "jackknife over groups, Student's t on the logit scale, effective groups - 1 degrees of freedom"
CONFIDENCE_LEVEL = 95.0
CELLS_PER_CHUNK = 2_000_000  # elements of one block of parts x images: 16 MB of float64
DRAWS = 20_000  # of the joint distribution of two figures; the ends of an interval then stand to 1% of its width
NOTHING = 1e-12  # a standard error or a distance below it is rounding


class Sizes(NamedTuple):
    """How much the groups say about a figure.

    Attributes:
        effective: groups of equal size that would know the spread as well (Satterthwaite, Biometrics Bulletin 2, 1946,
            with the same variance for every image of a class).
        fewest: groups of equal size that say as much about the class which fewest speak for; it stands in for the
            spread where none was seen.
    """

    effective: float
    fewest: float


def sizes_of(member: NDArray[np.int64], n_groups: int, *classes: NDArray[np.bool_]) -> Sizes:
    """Sizes for a figure that averages within each of these classes of images.

    Args:
        member: (N,) the group of each image.
        n_groups: how many there are.
        classes: (N,) each, the images of a class; an empty class says nothing.
    """
    counts = [np.bincount(member[rows], minlength=n_groups).astype(np.float64) for rows in classes if rows.any()]
    if not counts:
        return Sizes(0.0, 0.0)
    variance = np.sum([count / count.sum() ** 2 for count in counts], axis=0)
    return Sizes(_equal_ones(variance), min(_equal_ones(count) for count in counts))


def _equal_ones(shares: Floats) -> float:
    """How many equal shares these are as good as."""
    return float(shares.sum() ** 2 / (shares**2).sum())


def left_out_weights(n_groups: int, most: int, seed: int, columns: int = 1) -> Iterator[Floats]:
    """The weight of each group with one left out at a time, as blocks of (rows, n_groups) bounded in memory.

    Args:
        n_groups: fewer than two give nothing.
        most: rows at most; more groups than that are dealt by chance into so many parts, which are left out whole.
            Fewer than two give nothing.
        seed: of the deal.
        columns: images, where a row is spread over them.
    """
    parts = min(n_groups, most)
    if parts < 2:
        return
    order = np.arange(n_groups)
    part = (order if n_groups == parts else np.random.default_rng(seed).permutation(order)) % parts
    rows = max(1, CELLS_PER_CHUNK // max(n_groups, columns))
    for start in range(0, parts, rows):
        left_out = np.arange(start, min(parts, start + rows))
        yield (part != left_out[:, None]).astype(np.float64)


def interval(value: float | None, left_out: Floats, sizes: Sizes) -> list[float] | None:
    """The 95% interval of a figure between 0 and 1; it holds the figure and has a width.

    Args:
        value: of all images; None or NaN where undefined.
        left_out: (K,) the figure without each group, from ``left_out_weights``.
        sizes: of the groups.

    Returns:
        [low, high] within [0, 1]. At 0 and 1, and where every group could be left out without a change, no spread was
        seen: there it is Wilson's (J. Am. Stat. Assoc. 22, 1927) for as many images as the fewest groups are worth.
        None where the value is undefined, or becomes so when a group is left out: one group alone speaks for it.
    """
    if value is None or not _defined(value, left_out):
        return None
    low, high = _limits(value, _deviations(left_out), sizes)
    return [min(low, value), max(high, value)]


def difference_interval(
    first: float, second: float, first_left_out: Floats, second_left_out: Floats, sizes: Sizes
) -> list[float] | None:
    """The 95% interval of first - second, two figures of the same images; it holds the difference and has a width.

    Both figures' logits are drawn from the joint Student's t that the jackknife gives them (same groups left out for
    both, so what was hard for both cancels) and the differences of the figures ranked: a generalised pivot
    (Weerahandi, J. Am. Stat. Assoc. 88, 1993). The draws are always the same. With a figure at 0 or 1 the limits of
    both are joined instead (Zou and Donner, Stat. Med. 27, 2008). Where no group tells the two apart, the interval
    reaches as far as Wilson's for no case seen.

    Args:
        first: of all images.
        second: likewise.
        first_left_out: (K,) the first without each group.
        second_left_out: (K,) the second without the same groups.
        sizes: of the groups.

    Returns:
        [low, high] within [-1, 1], or None as ``interval``.
    """
    if not _defined(first, first_left_out) or not _defined(second, second_left_out):
        return None
    deviations = np.stack([_deviations(first_left_out), _deviations(second_left_out)])
    if _norm(deviations[0] - deviations[1]) < NOTHING and abs(first - second) < NOTHING:
        reach = _wilson(0.0, _quantile(sizes), sizes.fewest)[1]
        return [-reach, reach]
    inside = all(NOTHING < value < 1 - NOTHING for value in (first, second))
    seen = all(_norm(row) > NOTHING for row in deviations)
    both = _by_draws if inside and seen else _by_limits
    low, high = both(first, second, deviations, sizes)
    return [min(low, first - second), max(high, first - second)]


def _defined(value: float, left_out: Floats) -> bool:
    return len(left_out) > 1 and not math.isnan(value) and not bool(np.isnan(left_out).any())


def _deviations(left_out: Floats) -> Floats:
    """(K,) deviations whose sum of squares is the jackknife's variance."""
    spread: Floats = (left_out - left_out.mean()) * math.sqrt((len(left_out) - 1) / len(left_out))
    return spread


def _norm(deviations: Floats) -> float:
    return float(np.sqrt((deviations**2).sum()))


def _freedom(sizes: Sizes) -> float:
    return max(1.0, sizes.effective - 1)


def _quantile(sizes: Sizes) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(_freedom(sizes), 0.5 + CONFIDENCE_LEVEL / 200))


def _limits(value: float, deviations: Floats, sizes: Sizes) -> tuple[float, float]:
    """The ends of the interval of one figure."""
    error, factor = _norm(deviations), _quantile(sizes)
    if error < NOTHING or not NOTHING < value < 1 - NOTHING:
        return _wilson(value, factor, sizes.fewest)
    middle, reach = math.log(value / (1 - value)), factor * error / (value * (1 - value))
    low, high = _share(np.array([middle - reach, middle + reach])).tolist()
    return low, high


def _wilson(value: float, factor: float, count: float) -> tuple[float, float]:
    """Wilson's interval of a share of so many images, with a quantile of one's own."""
    ratio = factor**2 / max(count, 1.0)
    centre = (value + ratio / 2) / (1 + ratio)
    reach = math.sqrt(ratio * (max(0.0, value * (1 - value)) + ratio / 4)) / (1 + ratio)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _share(logit: Floats) -> Floats:
    from scipy.special import expit

    shares: Floats = expit(logit)
    return shares


@lru_cache(maxsize=32)
def _student(freedom: float) -> Floats:
    """(2, DRAWS) of the bivariate Student's t without correlation, the same ones always."""
    from scipy.special import gammaincinv

    generator = np.random.default_rng(0)
    normal = generator.standard_normal((2, DRAWS // 2))
    scale = np.sqrt(gammaincinv(freedom / 2, generator.random(DRAWS // 2)) * 2 / freedom)
    return np.concatenate([normal / scale, -normal / scale], axis=1)


def _by_draws(first: float, second: float, deviations: Floats, sizes: Sizes) -> tuple[float, float]:
    student = _student(round(_freedom(sizes), 1))  # what a tenth changes is below the draws' own noise
    values = np.array([first, second])
    on_logits = deviations / (values * (1 - values))[:, None]
    error = np.sqrt((on_logits**2).sum(axis=1))
    alike = float(np.clip((on_logits[0] * on_logits[1]).sum() / error.prod(), -1, 1))
    middle = np.log(values / (1 - values))
    one = _share(middle[0] + error[0] * student[0])
    other = _share(middle[1] + error[1] * (alike * student[0] + math.sqrt(1 - alike**2) * student[1]))
    tail = (100 - CONFIDENCE_LEVEL) / 2
    low, high = np.percentile(one - other, [tail, 100 - tail]).tolist()
    return low, high


def _by_limits(first: float, second: float, deviations: Floats, sizes: Sizes) -> tuple[float, float]:
    (low, high), (other_low, other_high) = (
        _limits(value, row, sizes) for value, row in zip((first, second), deviations, strict=True)
    )
    errors = _norm(deviations[0]) * _norm(deviations[1])
    alike = float((deviations[0] * deviations[1]).sum()) / errors if errors > NOTHING**2 else 0.0
    below = _joined(first - low, other_high - second, alike)
    above = _joined(high - first, second - other_low, alike)
    return max(-1.0, first - second - below), min(1.0, first - second + above)


def _joined(one: float, other: float, alike: float) -> float:
    """How far two reaches go together."""
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * alike * one * other))
