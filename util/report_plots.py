"""Curves of the verdicts as SVG: ROC, precision against recall, and how far probabilities can be believed.

The points are scikit-learn's; those nearer to each other than the eye can tell are drawn as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.figures import CLASSES, HEADS, Axes, Drawing, counted, three_decimals
from util.metrics import THRESHOLD
from util.report_content import BASELINES, Report, Tags, headline_split, scores_of
from util.report_parts import lead_of, plot_panel

Floats = NDArray[np.float64]
Point = tuple[float, float]

SIDE, LEFT, TOP, WIDTH = 300.0, 52.0, 34.0, 372.0
BINS = 10
FEWEST_IN_BIN = 10
LEAST_STEP = 0.002  # of the plot's side: under one pixel
STYLES = {"tier1": "s0 dash", "tier2": "s1 dot", "tier3": "s2 dash2", "global": "s7 strong"}
STYLES |= {"colour": "s6 thin", "frozen": "s3 thin"}
MARKS = {"tier1": "f0", "tier2": "f1", "tier3": "f2", "global": "f7"}
NAMES = {**HEADS, **BASELINES}


@dataclass
class Curve:
    """One line of a plot.

    Attributes:
        head: whose.
        points: (x, y), each from 0 to 1.
        note: what stands beside its name.
        mark: (x, y) of the operating point, where there is one.
        half: the same at 0.5.
        name: in the legend; empty for the head's own.
        bars: of each point, the ends of its interval along y, or empty; points with bars are not joined by a line.
        small: of each point, whether so few images stand behind it that it is drawn small and hollow.
    """

    head: str
    points: list[Point]
    note: str
    mark: Point | None = None
    half: Point | None = None
    name: str = ""
    bars: list[tuple[float, float]] = field(default_factory=list)
    small: list[bool] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it is called in the legend."""
        return self.name or NAMES.get(self.head, self.head)

    @property
    def style(self) -> str:
        """The classes of its line."""
        return f"line {STYLES.get(self.head, self.head)}"


def square_plot(title: str, axes_names: tuple[str, str], curves: Sequence[Curve], reference: list[Point]) -> str:
    """A plot of curves from 0 to 1 on both axes, with its legend below.

    Args:
        title: of the plot.
        axes_names: what stands along x and y.
        curves: the lines; Global's is drawn last.
        reference: the line of a classifier that knows nothing (or is right), dashed.

    Returns:
        the SVG text.
    """
    legend = TOP + SIDE + 62
    words = "; ".join(f"{curve.title}: {curve.note}" for curve in curves)
    drawing = Drawing(WIDTH, legend + 20 * len(curves) + 4, title, words)
    axes = Axes(LEFT, TOP, SIDE, SIDE, (0.0, 1.0), (0.0, 1.0))
    drawing.text(LEFT, 20.0, title, "head")
    _frame(drawing, axes, axes_names)
    _path(drawing, axes, reference, "need", "reference")
    for curve in curves:
        if curve.bars:
            _barred(drawing, axes, curve)
        else:
            _path(drawing, axes, curve.points, curve.style, f"{curve.title}: {curve.note}")
    for curve in curves:
        _marks(drawing, axes, curve)
    for index, curve in enumerate(curves):
        y = legend + 20 * index
        if curve.bars:  # drawn as points, not as a line
            drawing.add("circle", cx=LEFT + 15, cy=y - 4, r=5.0, cls=MARKS.get(curve.head, "f3"))
        else:
            drawing.line(LEFT, y - 4, LEFT + 30, y - 4, curve.style)
        drawing.text(LEFT + 38, y, curve.title, "small bold")
        drawing.text(LEFT + 144, y, curve.note, "small")
    return drawing.render()


def _frame(drawing: Drawing, axes: Axes, names: tuple[str, str]) -> None:
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        drawing.line(axes.left, axes.y(tick), axes.left + axes.width, axes.y(tick))
        drawing.line(axes.x(tick), axes.top, axes.x(tick), axes.top + axes.height)
        drawing.text(axes.left - 7, axes.y(tick) + 4, f"{tick:g}", "small soft end")
        drawing.text(axes.x(tick), axes.top + axes.height + 16, f"{tick:g}", "small soft mid")
    drawing.text(axes.left + axes.width / 2, axes.top + axes.height + 34, names[0], "small mid")
    middle = axes.top + axes.height / 2
    drawing.text(14.0, middle, names[1], "small mid", transform=f"rotate(-90 14 {middle:g})")


def _path(drawing: Drawing, axes: Axes, points: Sequence[Point], cls: str, tooltip: str) -> None:
    if len(points) > 1:
        places = "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in points)
        drawing.marked("path", tooltip, d="M" + places, cls=cls, fill="none")


def _barred(drawing: Drawing, axes: Axes, curve: Curve) -> None:
    """Points, each on its interval."""
    for (x, y), (low, high), small in zip(curve.points, curve.bars, curve.small, strict=True):
        drawing.line(axes.x(x), axes.y(low), axes.x(x), axes.y(high), "axis")
        look: dict[str, Any] = {"r": 2.5, "cls": "ring"} if small else {"r": 5.0, "cls": MARKS.get(curve.head, "f3")}
        tooltip = f"{curve.title}: {x:.3f}, {y:.3f} (95% {low:.3f} to {high:.3f})"
        drawing.marked("circle", tooltip, cx=axes.x(x), cy=axes.y(y), **look)


def _marks(drawing: Drawing, axes: Axes, curve: Curve) -> None:
    name = curve.title
    if curve.half is not None:
        x, y = curve.half
        drawing.marked("circle", f"{name} at 0.5", cx=axes.x(x), cy=axes.y(y), r=5.5, cls="ring")
    if curve.mark is not None:
        x, y = axes.x(curve.mark[0]), axes.y(curve.mark[1])
        cls = f"diamond {MARKS.get(curve.head, 'f3')}"
        drawing.marked("path", f"{name} at the operating point", d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z", cls=cls)


def thinned(points: Sequence[Point]) -> list[Point]:
    """The points without those that lie within ``LEAST_STEP`` of the last one kept; both ends stay."""
    kept: list[Point] = []
    for index, (x, y) in enumerate(points):
        far = not kept or max(abs(x - kept[-1][0]), abs(y - kept[-1][1])) >= LEAST_STEP
        if far or index == len(points) - 1:
            kept.append((x, y))
    return kept


def roc_points(label: NDArray[Any], chance: Floats) -> list[Point]:
    """Share of healthy called Anemic against share of anemic called so."""
    from sklearn.metrics import roc_curve

    false_rate, true_rate, _ = roc_curve(label, chance)
    return thinned([(float(x), float(y)) for x, y in zip(false_rate, true_rate, strict=True)])


def precision_recall_points(label: NDArray[Any], chance: Floats) -> list[Point]:
    """Recall against precision as the steps whose area is the average precision, from recall 0 on."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(label, chance)
    steps: list[Point] = []
    for x, y in zip(recall[::-1].tolist(), precision[::-1].tolist(), strict=True):
        steps += [(steps[-1][0], y), (x, y)] if steps else [(x, y)]
    return thinned(steps[1:] if len(steps) > 1 else steps)  # recall 0 at precision 1 is a convention, not a call


def reliability_points(label: NDArray[Any], chance: Floats) -> tuple[list[Point], list[int]]:
    """Mean probability against the share that is anemic in ten equal bins, and how many images are in each."""
    from sklearn.calibration import calibration_curve

    share, mean = calibration_curve(label, chance, n_bins=BINS)
    bins = np.searchsorted(np.linspace(0.0, 1.0, BINS + 1)[1:-1], chance)  # as calibration_curve puts them
    counts = np.bincount(bins, minlength=BINS)
    points = [(float(x), float(y)) for x, y in zip(mean, share, strict=True)]
    return points, counts[counts > 0].tolist()


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of single images (Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _reliability(head: str, label: NDArray[Any], chance: Floats, note: str) -> Curve:
    points, counts = reliability_points(label, chance)
    bars = [wilson(y, count) for (_, y), count in zip(points, counts, strict=True)]
    return Curve(head, points, note, bars=bars, small=[count < FEWEST_IN_BIN for count in counts])


def _rates(scores: Mapping[str, Any] | None) -> tuple[Point, Point] | None:
    """Where a confusion matrix lies on the ROC and on the precision-recall plot; None where a class is missing."""
    matrix = (scores or {}).get("confusion_matrix")
    if not matrix or not all(map(sum, matrix)):
        return None
    (tn, fp), (fn, tp) = matrix
    recall = tp / (fn + tp)
    return (fp / (tn + fp), recall), (recall, tp / (tp + fp) if tp + fp else 1.0)


def judged_rows(report: Report, split: str) -> tuple[NDArray[np.int64], dict[str, Floats]]:
    """Labels of a split's labelled images on the page, and every head's probability of them; a shut tier is absent."""
    rows = [row for row in report.images if row.split == split and row.label_true is not None]
    label = np.array([row.label_true for row in rows], dtype=np.int64)
    chances = {
        head: np.array([row.prob[head] for row in rows], dtype=np.float64)
        for head in HEADS
        if rows and all(head in row.prob for row in rows)
    }
    for name, said in report.baseline_chances.items():
        if len(said) == len(rows):
            chances[name] = np.asarray(said, dtype=np.float64)
    return label, chances


def plots(report: Report) -> Tags:
    """ROC, precision-recall and reliability of every head on the headline's split."""
    from dominate import tags

    split = headline_split(report)
    if split is None:
        return []
    label, chances = judged_rows(report, split)
    if len(set(label.tolist())) < len(CLASSES) or not chances:
        return []
    chosen = (report.metrics.get("operating_point") or {}).get("chosen_on")
    diamond = ", a diamond a head at the operating point that was chosen on the validation images" if chosen else ""
    lead = (
        f"{counted(len(label), 'labelled images')}. A ring is Global at {THRESHOLD:g}{diamond}. Dashed: a classifier"
        " that knows nothing; for reliability, one whose probabilities come true. There Global alone is shown, with"
        " Wilson's 95% interval of each bin's images as if they were independent; a small hollow mark is a bin of fewer"
        f" than {FEWEST_IN_BIN} images."
    )
    drawn = _charts(report, split, label, chances)
    return [lead_of(lead), tags.div(*[plot_panel(svg, name) for name, svg in drawn.items()], cls="plots")]


def _charts(report: Report, split: str, label: NDArray[np.int64], chances: Mapping[str, Floats]) -> dict[str, str]:
    """The three plots by title."""
    rocs, recalls, bins = [], [], []
    for head, chance in chances.items():
        auroc, precision, calibration = _notes(report, split, head)
        (roc_mark, recall_mark), (roc_half, recall_half) = _marked(report, split, head)
        rocs.append(Curve(head, roc_points(label, chance), auroc, roc_mark, roc_half))
        recalls.append(Curve(head, precision_recall_points(label, chance), precision, recall_mark, recall_half))
        if head == "global":
            bins.append(_reliability(head, label, chance, calibration))
    share, rising = float(label.mean()), [(0.0, 0.0), (1.0, 1.0)]
    axes = ("mean probability of Anemic", "share that is Anemic")
    return {
        "ROC": square_plot("ROC", ("1 - specificity", "sensitivity"), rocs, rising),
        "Precision and recall": square_plot(
            "Precision and recall", ("recall (sensitivity)", "precision"), recalls, [(0.0, share), (1.0, share)]
        ),
        "Reliability": square_plot("Reliability", axes, bins, rising),
    }


def _notes(report: Report, split: str, head: str) -> list[str]:
    """What stands beside a head's name in the three legends, from metrics.json."""
    scores = scores_of(report, split, head)
    if head in BASELINES:
        scores = (report.metrics.get("baselines") or {}).get(head) or {}
    named = {"AUROC": "auroc", "AP": "average_precision", "ECE (of the called class)": "ece"}
    return [f"{word} {three_decimals(scores.get(key))}" for word, key in named.items()]


def _marked(report: Report, split: str, head: str) -> list[tuple[Point | None, Point | None]]:
    """Where a head stands on the ROC and on the precision-recall plot: at the operating point, and Global at 0.5."""
    point = report.metrics.get("operating_point") or {}
    chosen = ((point.get("splits") or {}).get(split) or {}).get(head) if point.get("chosen_on") else None
    plain = scores_of(report, split, head) if head == "global" else None
    return [_rates(chosen) or (None, None), _rates(plain) or (None, None)]
