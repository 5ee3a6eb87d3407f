"""The report's figures as SVG text: crisp at any size, selectable, readable by screen readers, in light and dark.

Each function returns one whole ``<svg>`` that stands alone as a file and can be put inline in a page. Colours are near
Okabe and Ito's (https://jfly.uni-koeln.de/color/), and no colour is the only sign of anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

HEADS = {"tier1": "Tier-I", "tier2": "Tier-II", "tier3": "Tier-III", "global": "Global"}
SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
CLASSES = ("Healthy", "Anemic")
EM_DASH = "\N{EM DASH}"
NOT_OPENED, NOT_EVALUATED = "not opened", "not evaluated"
# control characters, halves of surrogate pairs, and the marks that turn the reading direction round unseen
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

STYLE = """
.dcf{--ink:#16212b;--soft:#56636f;--rule:#d4dbe1;--right:#0072b2;--wrong:#d55e00;--paper:#fff;
--c0:#0072b2;--c1:#d55e00;--c2:#00795a;--c3:#a8508a;--c4:#9a6b00;--c5:#2b7fb8;--c6:#555;--c7:#222;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media (prefers-color-scheme:dark){.dcf{--ink:#e8eef3;--soft:#a3b1bd;--rule:#36434e;--right:#56b4e9;--wrong:#f0852d;
--paper:#161d24;--c0:#56b4e9;--c1:#f0852d;--c2:#2fc49a;--c3:#d896bf;--c4:#e6b94a;--c5:#9ad0f2;--c6:#aaa;--c7:#eee}}
.dcf text{fill:var(--ink);font-size:12px}.dcf .head{font-size:15px;font-weight:650}.dcf .soft{fill:var(--soft)}
.dcf .small{font-size:11px}.dcf .count{font-size:19px;font-weight:650;font-variant-numeric:tabular-nums}
.dcf .bold{font-weight:650}.dcf .mid{text-anchor:middle}.dcf .end{text-anchor:end}
.dcf .rule{stroke:var(--rule);stroke-width:1;fill:none}.dcf .axis{stroke:var(--soft);stroke-width:1}
.dcf .right{fill:var(--right)}.dcf .wrong{fill:var(--wrong)}
.dcf .none{fill:none;stroke:var(--rule);stroke-dasharray:5 4}
.dcf .edge{stroke-width:1.2}.dcf .edge.right{stroke:var(--right)}.dcf .edge.wrong{stroke:var(--wrong)}
.dcf .edge.right,.dcf .edge.wrong{fill:none}
.dcf .gate{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 3}
.dcf .need{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:6 3}
.dcf .line{fill:none;stroke-width:1.9;stroke-linejoin:round}
.dcf .dash{stroke-dasharray:5 3.5}.dcf .dot{stroke-dasharray:1.5 3}.dcf .dash2{stroke-dasharray:9 3 2 3}
.dcf .strong{stroke-width:2.6}.dcf .thin{stroke-width:1.2}
.dcf .ring{fill:var(--paper);stroke:var(--ink);stroke-width:2}.dcf .diamond{stroke:var(--paper);stroke-width:1.2}
.dcf .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.dcf .kept{fill:var(--paper);stroke:var(--c0);stroke-width:1.4}
""" + "".join(f".dcf .s{i}{{stroke:var(--c{i})}}.dcf .f{i}{{fill:var(--c{i})}}" for i in range(8))


class Drawing:
    """A growing SVG; every text that enters is escaped here and nowhere else."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="dcf" viewBox="0 0 {_number(width)} {_number(height)}"'
            f' role="img" aria-label={_attribute(title)}><title>{_text(title)}</title><desc>{_text(description)}</desc>'
            f"<style>{STYLE}</style>"
        )
        self._parts: list[str] = []

    def add(self, tag: str, text: str | None = None, **attributes: Any) -> None:
        """Add one element; ``cls`` becomes ``class`` and underscores in names become hyphens."""
        names = {("class" if key == "cls" else key.replace("_", "-")): value for key, value in attributes.items()}
        rendered = "".join(f" {key}={_attribute(value)}" for key, value in names.items())
        self._parts.append(f"<{tag}{rendered}/>" if text is None else f"<{tag}{rendered}>{_text(text)}</{tag}>")

    def text(self, x: float, y: float, text: str, cls: str = "", **attributes: Any) -> None:
        """Add a text whose baseline starts (or, by its class, has its middle or end) at x, y."""
        self.add("text", text, x=x, y=y, **({"cls": cls} if cls else {}), **attributes)

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str = "rule") -> None:
        """Add a straight line."""
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, cls=cls)

    def marked(self, tag: str, tooltip: str, **attributes: Any) -> None:
        """Add an element that shows a tooltip when pointed at."""
        self._parts.append("<g>")
        self.add("title", tooltip)
        self.add(tag, **attributes)
        self._parts.append("</g>")

    def render(self) -> str:
        """The whole ``<svg>``."""
        return self._head + "".join(self._parts) + "</svg>"

    def sign(self) -> str:
        """The drawing as a sign of 30 x 14 in a line of text, for a page that holds another one with the style."""
        return f'<svg class="dcf" viewBox="0 0 30 14" aria-hidden="true">{"".join(self._parts)}</svg>'


def _text(value: Any) -> str:
    return escape(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def _attribute(value: Any) -> str:
    text = _number(value) if isinstance(value, float) else str(value)
    return quoteattr(UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def three_decimals(value: Any) -> str:
    """A figure as the report writes it; a dash where it is undefined."""
    return f"{value:.3f}" if is_number(value) else EM_DASH


def counted(count: int, plural: str, *verbs: str) -> str:
    """Count something in words, in the singular where there is one, with its verb: 1 set is, 2 sets are."""
    words = [f"{count:,}", plural.removesuffix("s") if count == 1 else plural, *verbs[count != 1 :][:1]]
    return " ".join(words)


def is_number(value: Any) -> bool:
    """True for a finite number (and not for True and False, nor for one beyond what a float holds)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def interval_text(interval: Any) -> str:
    """A 95% interval as ``0.802\N{EN DASH}0.903``, or an empty text where there is none.

    A dagger marks an interval without width, which the page explains.
    """
    if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(is_number, interval)):
        return ""
    dagger = " \N{DAGGER}" if interval[0] == interval[1] else ""
    return f"{interval[0]:.3f}\N{EN DASH}{interval[1]:.3f}{dagger}"


# --- confusion matrices ---------------------------------------------------------------------------------------------

PANEL_WIDTH, PANEL_HEIGHT = 246.0, 190.0
CELL_WIDTH, CELL_HEIGHT = 88.0, 56.0
MARGIN_LEFT, MARGIN_TOP = 86.0, 34.0
STRONGEST_FILL = 0.5  # text keeps its contrast on the fill in light and in dark


def confusion_grid(splits: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The published figure's grid: training, validation, test by Tier-I, Tier-II, Tier-III, Global.

    Each panel is a 2 x 2 matrix (rows: true class, columns: called class) with counts and the percentage of the row,
    under the accuracy with its interval. What was not evaluated, and a tier that never opened, is drawn as such.

    Args:
        splits: ``metrics.json``'s ``splits``: split to head to ``classification_metrics``'s dict; any may be missing,
            and a tier that the tested weights had not opened is None.

    Returns:
        the SVG text.
    """
    rows = {**SPLITS, **{name: name for name in splits if name not in SPLITS}}
    width, height = MARGIN_LEFT + 4 * PANEL_WIDTH, MARGIN_TOP + len(rows) * PANEL_HEIGHT
    drawing = Drawing(width, height, "Confusion matrices by split and tier", _grid_description(splits, rows))
    for column, title in enumerate(HEADS.values()):
        middle = MARGIN_LEFT + column * PANEL_WIDTH + 56 + CELL_WIDTH
        drawing.text(middle, 18.0, title, "head mid")
    for row, (split, title) in enumerate(rows.items()):
        top = MARGIN_TOP + row * PANEL_HEIGHT
        drawing.line(0.0, top, width, top)
        drawing.text(4.0, top + 26, title, "head")
        for column, head in enumerate(HEADS):
            _confusion_panel(drawing, MARGIN_LEFT + column * PANEL_WIDTH, top + 8, splits.get(split), head)
    return drawing.render()


def missing_word(scores_by_head: Mapping[str, Any] | None, head: str) -> str:
    """Why a head of a split has no figures: a head that is there without any belongs to a tier that never opened."""
    by_head = scores_by_head or {}
    return NOT_OPENED if head in by_head and by_head[head] is None else NOT_EVALUATED


def _grid_description(splits: Mapping[str, Any], rows: Mapping[str, str]) -> str:
    """The grid in words, for those who do not see it."""
    sentences = []
    for split, title in rows.items():
        for head, name in HEADS.items():
            scores = (splits.get(split) or {}).get(head) or {}
            accuracy = three_decimals(scores.get("accuracy"))
            known = f"accuracy {accuracy}, confusion matrix {scores.get('confusion_matrix')}"
            said = known if _matrix(scores) else missing_word(splits.get(split), head)
            sentences.append(f"{title}, {name}: {said}.")
    return " ".join(sentences)


def _matrix(scores: Mapping[str, Any]) -> list[list[int]] | None:
    """[[tn, fp], [fn, tp]] where at least one image was evaluated."""
    matrix = scores.get("confusion_matrix")
    return matrix if matrix and sum(map(sum, matrix)) else None


def _confusion_panel(
    drawing: Drawing, left: float, top: float, by_head: Mapping[str, Mapping[str, Any]] | None, head: str
) -> None:
    scores = (by_head or {}).get(head) or {}
    matrix, x, y = _matrix(scores), left + 56, top + 54
    if matrix is None:
        drawing.add("rect", x=x, y=y, width=2 * CELL_WIDTH, height=2 * CELL_HEIGHT, rx=8.0, cls="none")
        drawing.text(x + CELL_WIDTH, y + CELL_HEIGHT + 4, missing_word(by_head, head), "mid soft")
        return
    interval = interval_text((scores.get("ci95") or {}).get("accuracy"))
    drawing.text(x + CELL_WIDTH, top + 13, f"accuracy {three_decimals(scores.get('accuracy'))}", "mid bold")
    drawing.text(x + CELL_WIDTH, top + 28, f"({interval})" if interval else "(no interval)", "mid soft small")
    for index, name in enumerate(CLASSES):
        drawing.text(x + (index + 0.5) * CELL_WIDTH, y - 5, f"called {name}", "mid soft small")
        drawing.text(x - 6, y + (index + 0.5) * CELL_HEIGHT + 4, name, "end soft small")
        _confusion_row(drawing, x, y + index * CELL_HEIGHT, index, matrix[index])


def _confusion_row(drawing: Drawing, x: float, y: float, truth: int, counts: Sequence[int]) -> None:
    total = sum(counts)
    for called, count in enumerate(counts):
        share = count / total if total else 0.0
        place: dict[str, Any] = {"x": x + called * CELL_WIDTH + 1.5, "y": y + 1.5, "rx": 6.0}
        place |= {"width": CELL_WIDTH - 3, "height": CELL_HEIGHT - 3}
        kind = "right" if called == truth else "wrong"
        tooltip = f"{count} of {total} truly {CLASSES[truth]} called {CLASSES[called]}"
        drawing.marked("rect", tooltip, cls=kind, fill_opacity=STRONGEST_FILL * share, **place)
        drawing.add("rect", cls=f"edge {kind}", stroke_opacity=0.25 + 0.75 * share, pointer_events="none", **place)
        middle = x + (called + 0.5) * CELL_WIDTH
        drawing.text(middle, y + 27, str(count), "count mid", pointer_events="none")
        percent = f"{100 * share:.1f}%" if total else "no images"
        drawing.text(middle, y + 44, percent, "mid small", pointer_events="none")


# --- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line of a plot: its name, (x, y) points and the classes that give its colour and dashes."""

    name: str
    points: list[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Axes:
    """A plot's frame and the mapping from data to drawing."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    logarithmic: bool = False

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return self.left + self.width * (value - low) / ((high - low) or 1)

    def y(self, value: float) -> float:
        """Vertical place of a value; values out of range stay on the frame."""
        low, high = map(self._scaled, self.y_range)
        share = (self._scaled(value) - low) / ((high - low) or 1)
        return self.top + self.height * (1 - min(1.0, max(0.0, share)))

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Round values along the vertical axis."""
        low, high = self.y_range
        if self.logarithmic:
            return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        return _round_ticks(low, high, 5)


def _round_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def training_curves(history: Sequence[Mapping[str, Any]], gate_log: Iterable[Mapping[str, Any]] = ()) -> str:
    """Loss terms, and accuracy by tier in training (dashed) and validation (solid), over epochs.

    Args:
        history: one dict per epoch with ``epoch`` and numbers; nested dicts are read as joined names. A number whose
            name holds ``loss`` is a loss term; one whose name holds a tier (``tier1``, ``global``) and ``train`` or
            ``val`` is an accuracy. Anything else is not drawn, nor is a value that is not finite.
        gate_log: the gate's decisions (see ``gate_timeline``); openings stand as vertical lines.

    Returns:
        the SVG text; a drawing that says so where the history is empty.
    """
    rows = [_flat(row) for row in history]
    losses, accuracies = _loss_series(rows), _accuracy_series(rows)
    panels = [("Loss terms", losses), ("Accuracy", accuracies)]
    openings = [entry for entry in map(gate_entry, gate_log) if entry.outcome != "kept"]
    heights = [_legend_rows(series) * 18 + 262.0 for _, series in panels]
    description = f"{counted(len(rows), 'epochs')}; " + "; ".join(map(_last_values, (losses, accuracies)))
    drawing = Drawing(860.0, sum(heights) - 16, "Training curves", description)
    top = 0.0
    for (title, series), height in zip(panels, heights, strict=True):
        _curve_panel(drawing, title, series, openings, top)
        top += height
    return drawing.render()


def curve_signs(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The legend of ``training_curves`` on its own, for where the drawing is wider than the screen: sign and name."""
    rows = [_flat(row) for row in history]
    return [(_line_sign(f"line {one.style}"), one.name) for one in (*_loss_series(rows), *_accuracy_series(rows))]


def _line_sign(style: str) -> str:
    drawing = Drawing(30.0, 14.0, "", "")
    drawing.line(1.0, 7.0, 29.0, 7.0, style)
    return drawing.sign()


def _last_values(series: Sequence[Series]) -> str:
    return ", ".join(f"{one.name} ends at {one.points[-1][1]:.3g}" for one in series) or "nothing recorded"


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested dict under joined names; what is no finite number is left out."""
    found: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name} ")
        elif is_number(value):
            found[name] = float(value)
    return found


def _points(rows: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(row.get("epoch", index + 1.0), row[key]) for index, row in enumerate(rows) if key in row]


def _keys(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _loss_series(rows: Sequence[Mapping[str, float]]) -> list[Series]:
    names = [key for key in _keys(rows) if "loss" in key.lower()]
    colours = ("s0", "s1", "s2", "s3", "s7")  # the other three are hard to tell from one of these
    dashes = ("", " dash", " dot", " dash2")
    return [
        Series(_loss_name(key), _points(rows, key), colours[i % 5] + dashes[i // 5 % 4]) for i, key in enumerate(names)
    ]


def _loss_name(key: str) -> str:
    """The term without the word that the panel's title says, unless only a split's name would be left."""
    name = re.sub(r"(?i)[ _/.]*loss[ _/.]*", " ", key).strip()
    return key if name in {"", "train", "val"} else name


def _accuracy_series(rows: Sequence[Mapping[str, float]]) -> list[Series]:
    found = []
    for number, (head, title) in enumerate(HEADS.items()):
        for split, word, dash in (("train", "training", " dash"), ("val", "validation", "")):
            for key in _keys(rows):
                name = key.lower()
                if head in name and split in name and "loss" not in name and "auroc" not in name:
                    found.append(Series(f"{title} {word}", _points(rows, key), f"s{number}{dash}"))
                    break
    return found


LEGEND_COLUMNS, LEGEND_WIDTH = 4, 205.0


def _legend_rows(series: Sequence[Series]) -> int:
    return -(-len(series) // LEGEND_COLUMNS)


def _curve_panel(
    drawing: Drawing, title: str, series: Sequence[Series], openings: Sequence[GateEntry], top: float
) -> None:
    drawing.text(4.0, top + 18, title, "head")
    if not any(one.points for one in series):
        drawing.text(4.0, top + 44, "Nothing was recorded.", "soft")
        return
    for index, one in enumerate(series):
        x, y = 4 + LEGEND_WIDTH * (index % LEGEND_COLUMNS), top + 40 + 18 * (index // LEGEND_COLUMNS)
        drawing.line(x, y - 4, x + 26, y - 4, f"line {one.style}")
        drawing.text(x + 32, y, one.name, "small")
    axes = _axes(series, top + 58 + 18 * _legend_rows(series), 150.0, fraction=title == "Accuracy")
    if axes.logarithmic:
        drawing.text(856.0, top + 18, "logarithmic scale", "small soft end")
    _frame(drawing, axes)
    for one in series:
        _draw_line(drawing, axes, one)
    _draw_openings(drawing, axes, openings)


def _draw_openings(drawing: Drawing, axes: Axes, openings: Sequence[GateEntry]) -> None:
    """Vertical lines with their names above the frame; a name that would touch the one before moves a line up."""
    taken = [-math.inf, -math.inf]  # right end of the last name on each of two lines
    for entry in sorted(openings, key=lambda one: one.epoch):
        if not axes.x_range[0] <= entry.epoch <= axes.x_range[1]:
            continue
        x, name = axes.x(entry.epoch), f"{entry.title} {entry.outcome}"
        width = 6.2 * len(name)
        start = min(x - 3, axes.left + axes.width - width)
        line = 0 if start > taken[0] + 8 else 1
        taken[line] = start + width
        drawing.line(x, axes.top - 3, x, axes.top + axes.height, "gate")
        drawing.text(start, axes.top - 7 - 13 * line, name, "small soft halo")


def _axes(series: Sequence[Series], top: float, height: float, fraction: bool) -> Axes:
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    if fraction:
        low = 0.5 if min(ys) >= 0.5 else 0.0
        return Axes(48.0, top, 800.0, height, x_range, (low, 1.0))
    if min(ys) > 0 and max(ys) / min(ys) > 30:
        return Axes(48.0, top, 800.0, height, x_range, (min(ys) * 0.9, max(ys) * 1.1), logarithmic=True)
    return Axes(48.0, top, 800.0, height, x_range, (min(0.0, min(ys)), max(ys) * 1.05 if max(ys) > 0 else 1.0))


def _frame(drawing: Drawing, axes: Axes) -> None:
    for tick in axes.ticks():
        y = axes.y(tick)
        drawing.line(axes.left, y, axes.left + axes.width, y)
        drawing.text(axes.left - 6, y + 4, f"{tick:g}", "small soft end")
    _epoch_axis(drawing, axes)


def _epoch_axis(drawing: Drawing, axes: Axes) -> None:
    bottom = axes.top + axes.height
    drawing.line(axes.left, bottom, axes.left + axes.width, bottom, "axis")
    for tick in _round_ticks(*axes.x_range, 8):
        if tick == round(tick):  # epochs are whole
            drawing.line(axes.x(tick), bottom, axes.x(tick), bottom + 4, "axis")
            drawing.text(axes.x(tick), bottom + 17, f"{tick:g}", "small soft mid")
    drawing.text(axes.left + axes.width, bottom + 32, "epoch", "small soft end")


def _draw_line(drawing: Drawing, axes: Axes, series: Series) -> None:
    places = [f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in series.points]
    if len(places) == 1:  # a line of one point would not be seen
        x, y = series.points[0]
        drawing.marked("circle", series.name, cx=axes.x(x), cy=axes.y(y), r=3.0, cls=f"line {series.style}")
    elif places:
        drawing.marked("path", series.name, d="M" + "L".join(places), cls=f"line {series.style}")


# --- gate -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateEntry:
    """One decision of the gate, read from a log row.

    Attributes:
        tier: 1, 2 or 3.
        epoch: epoch of the decision.
        outcome: "opened", "forced", "stopped" (the run ended there) or "kept".
        train: training accuracy, or None.
        val: validation accuracy, or None.
        threshold: training accuracy asked for, or None.
        reason: why, in words; may be empty.
    """

    tier: int
    epoch: float
    outcome: str
    train: float | None
    val: float | None
    threshold: float | None
    reason: str = ""

    @property
    def title(self) -> str:
        """The tier's name in the report."""
        return HEADS.get(f"tier{self.tier}", f"Tier {self.tier}")


def gate_entry(row: Mapping[str, Any]) -> GateEntry:
    """Read one row of ``gate_log.csv`` (texts) or of the log in memory.

    ``tier`` may be 1 or ``tier1``; the decision stands under ``decision``, ``outcome``, ``how`` or ``opened``: yes,
    open, opened, True; forced; stop ends the run; anything else keeps the tier training. Accuracies are found by
    ``train`` and ``val`` in their names.
    """
    digits = re.sub(r"\D", "", str(row.get("tier", "")))
    said = next((str(row[key]).lower() for key in ("decision", "outcome", "how", "opened") if key in row), "")
    forced = "forced" in said or str(row.get("forced", "")).lower() in {"true", "1", "yes"}
    opened = said in {"yes", "true", "1", "open", "opened"}
    return GateEntry(
        tier=int(digits) if digits else 0,
        epoch=_as_number(row.get("epoch")) or 0.0,
        outcome="forced" if forced else "opened" if opened else "stopped" if said == "stop" else "kept",
        train=_named(row, lambda name: "train" in name and "threshold" not in name),
        val=_named(row, lambda name: "val" in name and "best" not in name and "train" not in name),
        threshold=_named(row, lambda name: "threshold" in name),
        reason=str(row.get("reason") or ""),
    )


def _named(row: Mapping[str, Any], fits: Callable[[str], bool]) -> float | None:
    """The first number whose name fits."""
    values = (_as_number(value) for key, value in row.items() if fits(str(key).lower()))
    return next((value for value in values if value is not None), None)


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


LANE_HEIGHT = 104.0


def gate_timeline(gate_log: Iterable[Mapping[str, Any]]) -> str:
    """One lane per tier: its training accuracy (dashed) and validation accuracy at each decision, and what was decided.

    A ring keeps the tier training ("No"), a diamond opens the next one ("Yes"), a square is an advance that was
    forced, or the run's stop.

    Args:
        gate_log: the gate's decisions, see ``gate_entry``.

    Returns:
        the SVG text.
    """
    entries = [entry for entry in map(gate_entry, gate_log) if entry.tier in (1, 2, 3)]
    openings = [
        f"{entry.title} {entry.outcome} at epoch {entry.epoch:g}" for entry in entries if entry.outcome != "kept"
    ]
    description = f"{counted(len(entries), 'decisions')}; " + ("; ".join(openings) or "no gate opened")
    drawing = Drawing(860.0, 34 + 3 * LANE_HEIGHT + 26, "Decisions of the gate", description)
    _gate_legend(drawing)
    last = max([entry.epoch for entry in entries], default=1.0)
    first = min([entry.epoch for entry in entries], default=0.0)
    x_range = (first, max(last, first + 1))
    for tier in (1, 2, 3):
        own = [entry for entry in entries if entry.tier == tier]
        _gate_lane(drawing, HEADS[f"tier{tier}"], own, 34 + (tier - 1) * LANE_HEIGHT, x_range)
    _epoch_axis(drawing, Axes(92.0, 34 + 2 * LANE_HEIGHT + 12, 752.0, LANE_HEIGHT - 24, x_range, (0.0, 1.0)))
    return drawing.render()


GATE_MARKS = {"kept": "No: keep training", "opened": "Yes: gate opens", "forced": "forced or stopped"}
GATE_LINES = {"line s0 dash": "training", "line s2": "validation", "need": "needed"}


def gate_signs() -> list[tuple[str, str]]:
    """The legend of ``gate_timeline`` on its own, for where the drawing is wider than the screen: sign and name."""
    found = []
    for outcome, text in GATE_MARKS.items():
        drawing = Drawing(30.0, 14.0, "", "")
        _gate_mark(drawing, outcome, 15.0, 7.0, text)
        found.append((drawing.sign(), text))
    return [*found, *((_line_sign(style), text) for style, text in GATE_LINES.items())]


def _gate_legend(drawing: Drawing) -> None:
    for (outcome, text), x in zip(GATE_MARKS.items(), (10.0, 150.0, 275.0), strict=True):
        _gate_mark(drawing, outcome, x, 14.0, text)
        drawing.text(x + 12, 18.0, text, "small")
    for (style, text), x in zip(GATE_LINES.items(), (420.0, 530.0, 650.0), strict=True):
        drawing.line(x, 14.0, x + 26, 14.0, style)
        drawing.text(x + 32, 18.0, text, "small")


def _gate_lane(
    drawing: Drawing, title: str, entries: list[GateEntry], top: float, x_range: tuple[float, float]
) -> None:
    values = [value for entry in entries for value in (entry.train, entry.val, entry.threshold) if value is not None]
    axes = Axes(92.0, top + 12, 752.0, LANE_HEIGHT - 24, x_range, (min([0.5, *values]), 1.0))
    drawing.text(4.0, top + LANE_HEIGHT / 2, title, "head")
    drawing.line(axes.left, axes.top + axes.height, axes.left + axes.width, axes.top + axes.height)
    if not entries:
        drawing.text(axes.left + 8, top + LANE_HEIGHT / 2, "no decision was taken", "soft")
        return
    for edge in axes.y_range:
        drawing.text(axes.left - 6, axes.y(edge) + 4, f"{edge:.2g}", "small soft end")
    needed = entries[-1].threshold
    if needed is not None:
        drawing.line(axes.left, axes.y(needed), axes.left + axes.width, axes.y(needed), "need")
    for name, style in (("train", "s0 dash"), ("val", "s2")):
        points = [(e.epoch, getattr(e, name)) for e in entries if getattr(e, name) is not None]
        _draw_line(drawing, axes, Series(f"{title} {name}", points, style))
    _gate_marks(drawing, axes, entries)


def _gate_marks(drawing: Drawing, axes: Axes, entries: Sequence[GateEntry]) -> None:
    for entry in entries:
        x, y = axes.x(entry.epoch), axes.y(entry.train if entry.train is not None else 0.75)
        accuracy = f", training accuracy {entry.train:.3f}" if entry.train is not None else ""
        _gate_mark(drawing, entry.outcome, x, y, f"epoch {entry.epoch:g}: {entry.outcome}{accuracy}")
        if entry.outcome != "kept":
            late = x > axes.left + axes.width - 140  # no room beside it: under the curves that lead to it
            at = (x, axes.top + axes.height - 6) if late else (x + 10, y + 18)
            said = f"{entry.outcome}, epoch {entry.epoch:g}"
            drawing.text(*at, said, "small bold halo end" if late else "small bold halo")


def _gate_mark(drawing: Drawing, outcome: str, x: float, y: float, tooltip: str) -> None:
    if outcome == "kept":
        drawing.marked("circle", tooltip, cx=x, cy=y, r=3.0, cls="kept")
    elif outcome == "opened":
        drawing.marked("path", tooltip, d=f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z", cls="f0")
    else:
        drawing.marked("rect", tooltip, x=x - 5.5, y=y - 5.5, width=11.0, height=11.0, cls="f1")
