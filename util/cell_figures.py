"""Module-II's figures as SVG text: every cell's outline on its smear, single cells, histograms, bars of the kinds.

A kind is drawn in the colour of its group (near Okabe and Ito's), and within the group told by its dashes, so that no
colour is the only sign of anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from util.figures import UNPRINTABLE, Axes, Drawing, counted

NORMAL, NOT_JUDGED, OTHER, LEFT_OUT = "normal", "not judged", "other", "left out"
SOLID, DASHED, DOTTED, MIXED = "", "7 3", "2 2", "8 2.5 2 2.5"
# Group to its colour on a smear (always light) and in a dark page's bars.
GROUP_COLOURS = {
    "plain": ("#222b33", "#b8c4ce"),
    "size": ("#0072b2", "#56b4e9"),
    "length": ("#00795a", "#2fc49a"),
    "pallor": ("#a0307c", "#d896bf"),
    "outline": ("#c84600", "#f0852d"),
    "unnamed": ("#6b6b6b", "#8d979f"),
}
KIND_STYLES = {
    NORMAL: ("plain", SOLID),
    "microcyte": ("size", SOLID),
    "macrocyte": ("size", DASHED),
    "ovalocyte": ("length", SOLID),
    "elliptocyte": ("length", DASHED),
    "hypochromic": ("pallor", SOLID),
    "spherocyte": ("pallor", DASHED),
    "target": ("pallor", DOTTED),
    "schistocyte": ("outline", SOLID),
    "teardrop": ("outline", DASHED),
    "burr": ("outline", DOTTED),
    "sickle": ("outline", MIXED),
    NOT_JUDGED: ("unnamed", SOLID),
    OTHER: ("unnamed", DOTTED),  # a kind that this page does not know
    LEFT_OUT: ("unnamed", DASHED),
}
MOST_OUTLINES = 5000
# Rounds the steps of pixels off an outline; moves the edge of a disc of 10 pixels' radius by a fortieth of one.
_SMOOTHING = 0.7
# Part of a cell's area from which a separate piece, or a hole, of it is drawn.
_PIECE = 0.05

Outline = list[NDArray[np.float64]]


def kind_key(kind: str) -> str:
    """The style that a kind is drawn in, one of ``KIND_STYLES``."""
    return kind if kind in KIND_STYLES else OTHER


def kind_class(kind: str) -> str:
    """The kind's class in the page's style."""
    return "k-" + kind_key(kind).replace(" ", "-")


def kind_css() -> str:
    """Rules that colour the kinds and hide those whose box in the legend is not ticked; they need no script."""
    rules, dark = [], []
    for kind, (group, dashes) in KIND_STYLES.items():
        name, (colour, light) = kind_class(kind), GROUP_COLOURS[group]
        rules.append(f".{name}{{--kind:{colour};--bar:{colour};--dashes:{dashes or 'none'}}}")
        rules.append(f".cell-view:has(#show-{name}:not(:checked)) .{name}.cell{{display:none}}")
        dark.append(f".{name}{{--bar:{light}}}")
    return "\n".join([*rules, f"@media (prefers-color-scheme:dark){{{''.join(dark)}}}"])


def swatch(kind: str) -> str:
    """A kind's line as it stands on the smear, for the legend."""
    line = '<line x1="3" x2="37" y1="9" y2="9" class="line"/>'
    return f'<svg viewBox="0 0 40 18" class="swatch {kind_class(kind)}" aria-hidden="true">{line}</svg>'


# --- outlines -------------------------------------------------------------------------------------------------------


def cell_outlines(instances: NDArray[np.int32], numbers: Sequence[int], tolerance: float) -> dict[int, Outline]:
    """Simplified outlines of some cells of an instance map.

    Args:
        instances: (H, W) int32, 0 = background, else a cell's number.
        numbers: the cells wanted.
        tolerance: largest distance of the simplified outline from the full one, pixels.

    Returns:
        number to closed polygons (points, 2) of x, y, pixels from the image's upper left corner (the middle of the
        first pixel lies at 0.5); several for a cell in pieces or with holes. Numbers that do not occur are left out.
    """
    from scipy.ndimage import find_objects

    boxes = find_objects(instances)
    found = {}
    for number in numbers:
        box = boxes[number - 1] if 0 < number <= len(boxes) else None
        if box is not None:
            corner = np.array([box[1].start, box[0].start])
            found[number] = _outline(instances[box] == number, corner, tolerance)
    return found


def _outline(cell: NDArray[np.bool_], corner: NDArray[np.int64], tolerance: float) -> Outline:
    """Polygons around one cell that fills its box."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import find_contours

    pad = 3
    padded = np.pad(cell, pad)
    smooth = gaussian_filter(padded.astype(np.float32), _SMOOTHING)
    rings = [ring[:, ::-1] for ring in find_contours(smooth, 0.5)]
    rings = [ring for ring in rings if abs(polygon_area(ring)) > _PIECE * cell.sum()]
    if not rings:  # too thin to survive the smoothing
        rings = [ring[:, ::-1] for ring in find_contours(padded.astype(np.float32), 0.5)]
    return [simplified(ring, tolerance) + corner + (0.5 - pad) for ring in rings]


def simplified(points: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Fewer of a line's points, none of those left out farther than ``tolerance`` from the new line.

    Douglas & Peucker, "Algorithms for the reduction of the number of points required to represent a digitized line",
    Cartographica 1973. In plain numbers: arrays of fifty points are slower, and there are thousands of outlines.

    Args:
        points: (n, 2), open, or closed by the first point standing at the end again.
        tolerance: in the points' unit.
    """
    x, y = points[:, 0].tolist(), points[:, 1].tolist()
    kept, open_parts = {0, len(x) - 1}, [(0, len(x) - 1)]
    while open_parts:
        start, end = open_parts.pop()
        right, down = x[end] - x[start], y[end] - y[start]
        length = math.hypot(right, down)
        farthest, place = tolerance, -1
        for i in range(start + 1, end):
            dx, dy = x[i] - x[start], y[i] - y[start]
            away = abs(right * dy - down * dx) / length if length else math.hypot(dx, dy)
            if away > farthest:
                farthest, place = away, i
        if place > 0:
            kept.add(place)
            open_parts += [(start, place), (place, end)]
    return points[sorted(kept)]


def polygon_area(points: NDArray[np.float64]) -> float:
    """Signed area of a closed polygon (n, 2), by the shoelace formula; holes have the other sign."""
    x, y = points[:, 0], points[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def path_data(outline: Outline, decimals: int = 1) -> str:
    """The ``d`` of an SVG path through the polygons, in relative steps, which are short."""
    parts = []
    for points in outline:
        whole = np.round(points[:-1], decimals)
        x, y = (f"{value:.{decimals}f}" for value in whole[0])
        steps = "l".join(" ".join(_short(value, decimals) for value in step) for step in np.diff(whole, axis=0))
        parts.append(f"M{x} {y}l{steps}z" if steps else f"M{x} {y}z")
    return "".join(parts)


def _short(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-0.", "-.").removeprefix("0") or "0"


@dataclass(frozen=True)
class Shape:
    """One thing drawn on the smear.

    Attributes:
        key: its anchor on the page.
        kind: one of KIND_STYLES, or a kind unknown to it.
        path: the ``d`` of an SVG path.
        facts: lines of "name: value", the first a title; shown when it is pointed at.
    """

    key: str
    kind: str
    path: str
    facts: Sequence[str]


def smear_svg(picture: str, width: int, height: int, shapes: Sequence[Shape], label: str) -> str:
    """The smear with every outline.

    Args:
        picture: link to the smear's picture.
        width: of the image itself, pixels; the outlines are in its pixels.
        height: the same.
        shapes: what is drawn, the last on top.
        label: what a screen reader says of it.
    """
    drawn = "".join(
        f'<path id="{_safe(shape.key)}" class="cell {kind_class(shape.kind)}" d="{shape.path}">'
        f"<title>{_safe(chr(10).join(shape.facts))}</title></path>"
        for shape in shapes
    )
    thin = min(1.0, max(0.6, (300 / max(1, len(shapes))) ** 0.5))  # many cells are small ones
    return (
        f'<svg id="smear" viewBox="0 0 {width} {height}" role="group" tabindex="0" aria-label="{_safe(label)}"'
        f' aria-describedby="how-to" style="--thin:{thin:.2f}"><image href="{_safe(picture)}" width="{width}"'
        f' height="{height}" preserveAspectRatio="none"/>{drawn}</svg>'
    )


def crop_svg(picture: str, box: tuple[int, int, int, int], shape: Shape) -> str:
    """One cell cut out of the smear, with its outline.

    Args:
        picture: the cut-out as a data address.
        box: its left, top, width and height in the image's pixels.
        shape: the cell.
    """
    left, top, width, height = box
    return (
        f'<svg class="crop" viewBox="{left} {top} {width} {height}" role="img" aria-label="{_safe(shape.facts[0])}">'
        f'<image href="{_safe(picture)}" x="{left}" y="{top}" width="{width}" height="{height}"/>'
        f'<path class="cell {kind_class(shape.kind)}" d="{shape.path}"/></svg>'
    )


def circle_data(x: float, y: float, area: float) -> str:
    """The ``d`` of a circle with a thing's centre (pixel 0 in the middle of the first) and area."""
    radius = max(2.0, (area / np.pi) ** 0.5)
    return f"M{x + 0.5 - radius:.1f} {y + 0.5:.1f}" + "".join(
        f"a{radius:.1f} {radius:.1f} 0 1 0 {turn * 2 * radius:.1f} 0" for turn in (1, -1)
    )


def _safe(text: str) -> str:
    return escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text), {'"': "&quot;", "'": "&#39;"})


# --- distributions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bins:
    """Fixed bins of one measure: its name, its unit, the range, and how many bins there are.

    Values beyond an end are counted in the bin at that end.
    """

    title: str
    unit: str
    low: float
    high: float
    count: int

    @property
    def width(self) -> float:
        """Width of one bin."""
        return (self.high - self.low) / self.count

    def counted(self, values: Sequence[float]) -> NDArray[np.int64]:
        """Values by bin, (count,); ``values`` must be finite."""
        places = np.floor((np.asarray(values, np.float64) - self.low) / self.width + 1e-9).astype(np.int64)
        return np.bincount(np.clip(places, 0, self.count - 1), minlength=self.count)


def histogram(counts: NDArray[np.int64], bins: Bins) -> str:
    """Bars of a measure over cells, with counts when pointed at.

    Args:
        counts: cells by bin, (bins.count,).
        bins: the measure.
    """
    total = int(counts.sum())
    unit = f" {bins.unit}" if bins.unit else ""
    drawing = Drawing(380.0, 226.0, bins.title, f"{counted(total, 'cells')}; {_middle_of(counts, bins, unit)}")
    drawing.text(4.0, 15.0, bins.title, "head")
    drawing.text(376.0, 15.0, counted(total, "cells"), "small soft end")
    if not total:
        drawing.text(4.0, 44.0, "No cell has this measure.", "soft")
        return drawing.render()
    axes = Axes(44.0, 32.0, 330.0, 152.0, (bins.low, bins.high), (0.0, float(counts.max()) * 1.04))
    for tick in axes.ticks():
        if tick == round(tick):
            drawing.line(axes.left, axes.y(tick), axes.left + axes.width, axes.y(tick))
            drawing.text(axes.left - 6, axes.y(tick) + 4, f"{tick:,.0f}", "small soft end")
    for place, count in enumerate(counts.tolist()):
        if count:
            start = bins.low + place * bins.width
            said = f"{_range_of(place, bins)}{unit}: {count:,} {'cell' if count == 1 else 'cells'}"
            place_x, broad = axes.x(start), axes.width / bins.count
            tall = axes.top + axes.height - axes.y(count)
            drawing.marked(
                "rect", said, x=place_x + 0.5, y=axes.y(count), width=max(broad - 1, 0.5), height=tall, cls="f0"
            )
    _measure_axis(drawing, axes, bins)
    return drawing.render()


def _middle_of(counts: NDArray[np.int64], bins: Bins, unit: str) -> str:
    """The bin that holds the median, in words."""
    if not counts.sum():
        return "none has this measure"
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return f"the median lies in {_range_of(place, bins)}{unit}"


def _range_of(place: int, bins: Bins) -> str:
    low, high = (f"{bins.low + (place + end) * bins.width:.4g}" for end in (0, 1))
    if place == 0 and bins.low > 0:
        return f"below {high}"
    return f"{low} and more" if place == bins.count - 1 else f"{low} to {high}"


def _measure_axis(drawing: Drawing, axes: Axes, bins: Bins) -> None:
    bottom = axes.top + axes.height
    drawing.line(axes.left, bottom, axes.left + axes.width, bottom, "axis")
    for tick in Axes(0.0, 0.0, 1.0, 1.0, (0.0, 1.0), (bins.low, bins.high)).ticks():
        drawing.line(axes.x(tick), bottom, axes.x(tick), bottom + 4, "axis")
        drawing.text(axes.x(tick), bottom + 17, f"{tick:g}", "small soft mid")
    drawing.text(axes.left + axes.width, bottom + 34, bins.unit or "0 to 1", "small soft end")


BAR_HEIGHT = 24.0


def kind_bars(counts: Mapping[str, int], title: str) -> str:
    """Cells by kind as bars from most to fewest, normal ones first; with count and percentage.

    Args:
        counts: kind to cells.
        title: what the figure is of.
    """
    first = {NORMAL: 0, NOT_JUDGED: 2}
    names = sorted(counts, key=lambda kind: (first.get(kind, 1), -counts[kind], kind))
    total, most = sum(counts.values()), max(counts.values(), default=0)
    said = ", ".join(f"{counts[kind]} {kind}" for kind in names) or "no cells"
    drawing = Drawing(430.0, 26 + BAR_HEIGHT * max(1, len(names)), title, said)
    drawing.text(4.0, 15.0, title, "head")
    if not names:
        drawing.text(4.0, 42.0, "No cell was judged.", "soft")
    for row, kind in enumerate(names):
        top, wide = 26 + BAR_HEIGHT * row, 220.0 * counts[kind] / most if most else 0.0
        drawing.text(88.0, top + 16, kind, "end")
        drawing.add(
            "rect", x=96.0, y=top + 4, width=max(wide, 1.0), height=16.0, rx=2, cls=f"kind-bar {kind_class(kind)}"
        )
        share = f"{counts[kind]:,} ({100 * counts[kind] / total:.1f}%)" if total else "0"
        drawing.text(102.0 + wide, top + 16, share, "small soft")
    return drawing.render()
