"""Dealing whole groups to sides: each side near its share of every class, and no side without a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.records import CLASS_NAMES
from util.errors import UserError

_ATTEMPTS = 20
_ROUNDING = 1e-6  # 1 - 0.7 - 0.3 is no share, though above 0
_REMEDY = (
    "add smears of other patients, do without a test side (--test_fraction 0), or take fewer folds or smaller blocks"
)


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse what are no three shares of a whole."""
    valid = len(fractions) == 3 and all(math.isfinite(share) and share >= 0 for share in fractions)
    if not valid or not math.isclose(sum(fractions), 1, abs_tol=_ROUNDING) or fractions[0] < _ROUNDING:
        raise UserError(
            "the fractions of the split cannot be used",
            expected="three shares for train, val and test that add up to 1, with some for train",
            found=str(tuple(round(share, 6) for share in fractions)),
            remedy="for example 0.7 0.15 0.15",
        )


def deal(groups: Sequence[str], labels: Sequence[int | None], shares: Sequence[float], seed: int) -> dict[str, int]:
    """Give every group a side.

    Groups are dealt from the largest to the smallest, each to the side that it brings nearest to its share of every
    class; then single groups are moved for as long as that helps.

    Args:
        groups: the group of each image.
        labels: the label of each image.
        shares: of the images, for each side; they add up to 1, and a share of 0 leaves that side empty.
        seed: decides among groups of equal size.

    Returns:
        The position of its side by group.

    Raises:
        UserError: a class has fewer groups than there are sides, or no deal gives each side every class.
    """
    names = sorted(set(groups))
    classes = sorted(set(labels), key=lambda label: -1 if label is None else label)
    counts = np.zeros((len(names), len(classes)))
    position = {name: index for index, name in enumerate(names)}
    for group, label in zip(groups, labels, strict=True):
        counts[position[group], classes.index(label)] += 1
    known = np.array([label is not None for label in classes], dtype=bool)
    open_sides = [side for side, share in enumerate(shares) if share > 0]
    _check_enough_groups(counts, classes, len(open_sides))
    targets = np.array([shares[side] for side in open_sides])[:, None] * counts.sum(axis=0)
    generator = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        dealt = _deal_once(counts, targets, known, generator)
        if not dealt.missing():
            return {name: open_sides[side] for name, side in zip(names, dealt.sides, strict=True)}
    raise UserError(
        "no split gives each side a group of each class",
        expected=f"for each class, groups on {len(open_sides)} sides",
        found=f"{len(names)} groups, none of the {_ATTEMPTS} ways tried fits",
        remedy=_REMEDY,
    )


def _check_enough_groups(counts: npt.NDArray[np.float64], classes: Sequence[int | None], sides: int) -> None:
    """Refuse a class that cannot stand on every side."""
    for label, groups in zip(classes, (counts > 0).sum(axis=0), strict=True):
        if label is not None and groups < sides:
            raise UserError(
                f"too few groups of {CLASS_NAMES[label]} to split",
                expected=f"at least {sides}, one on each side",
                found=f"{groups} (images of one patient or smear, equal or nearly equal images, smears with an equal "
                "blood count and, where blocks are dealt, all images of a block are one group)",
                remedy=_REMEDY,
            )


def _deal_once(
    counts: npt.NDArray[np.float64],
    targets: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    generator: np.random.Generator,
) -> _Deal:
    """Deal the groups in order of size, then improve by moving one at a time."""
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    deal = _Deal(counts, targets, known)
    for group in order:
        distances = [score.distance for score in deal.scores(group)]
        deal.place(group, distances.index(min(distances)))
    while sum(_improve(deal, group) for group in order):
        pass  # a whole round, until none moved
    return deal


def _improve(deal: _Deal, group: int) -> bool:
    """Move a group to its best side, if that is better: first fewer missing classes, then nearer shares."""
    before = deal.lift(group)
    scores = deal.scores(group)
    best = min(range(len(scores)), key=scores.__getitem__)
    fewer = scores[best].missing < scores[before].missing
    # The margin keeps rounding errors from moving a group to and fro for ever.
    nearer = scores[best].missing == scores[before].missing and scores[best].distance < scores[before].distance - 1e-9
    deal.place(group, best if fewer or nearer else before)
    return fewer or nearer


class _Score(NamedTuple):
    """How good a deal is, the smaller the better; the first field counts before the second."""

    missing: int
    distance: float


class _Deal:
    """Groups on sides, with the sums that tell how good the deal is.

    Args:
        counts: images by group and class, shape (groups, classes).
        targets: images wanted by side and class, shape (sides, classes), all above 0.
        known: which classes must stand on every side, shape (classes,).
    """

    def __init__(
        self, counts: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]
    ) -> None:
        self.counts, self.targets, self.known = counts, targets, known
        self.sides = np.full(len(counts), -1, dtype=np.intp)
        self.images = np.zeros_like(targets)
        self.groups = np.zeros_like(targets)

    def place(self, group: int, side: int) -> None:
        """Put a group that lies nowhere on a side."""
        self.sides[group] = side
        self.images[side] += self.counts[group]
        self.groups[side] += self.counts[group] > 0

    def lift(self, group: int) -> int:
        """Take a group off its side and give that side."""
        side = int(self.sides[group])
        self.images[side] -= self.counts[group]
        self.groups[side] -= self.counts[group] > 0
        self.sides[group] = -1
        return side

    def missing(self) -> int:
        """Count the known classes that a side lacks, over all sides."""
        return int((self.groups[:, self.known] == 0).sum())

    def scores(self, group: int) -> list[_Score]:
        """Score the deal with a lifted group on each side in turn; distance is chi-square from the wanted numbers."""
        scores = []
        for side in range(len(self.targets)):
            self.place(group, side)
            distance = float((np.square(self.images - self.targets) / self.targets).sum())
            scores.append(_Score(self.missing(), distance))
            self.lift(group)
        return scores
