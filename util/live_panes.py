"""The panes of the live view: what visdom's page shows of a training run, as the messages that its server takes.

The messages are written here, and not by visdom's client, so that a run can keep its log without importing visdom (or
having it). They are what that client sends for the same plot; a test compares the two.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from util.figures import counted

TIERS = ("tier1", "tier2", "tier3", "global")
PANES = (
    "loss",
    "accuracy",
    "learning rate",
    "gate",
    "masks",
    "validation AUROC and Dice",
    "confusion matrix",
    "cell diameters",
)
CLASSES = ("Healthy", "Anemic")
MAX_SMEARS = 4  # rows of the picture
MAX_SIDE = 256  # pixels; larger smears are thinned for the page
PLOT_SIZE = {"width": 560, "height": 400}  # pixels of a pane on the page
_GAP = 4  # white pixels between the pictures of the grid
_TIER_NAMES = {"tier1": "Tier-I", "tier2": "Tier-II", "tier3": "Tier-III", "global": "Global"}
# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = {"tier1": "#e69f00", "tier2": "#56b4e9", "tier3": "#009e73", "global": "#000000", "Dice": "#cc79a7"}
_LOSS_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_LOSS_NAMES = {"cls": "class", "G_GAN": "GAN", "D": "discriminator"}
_BLUES = [[0.0, "#f4f8fc"], [1.0, "#08519c"]]
_CELL_COLOURS = ("#0072b2", "#e69f00")
_GRID = "#e3e3e3"
_TITLE = {"x": 0.02, "xanchor": "left", "font": {"size": 14}}  # to the left, where plotly's buttons do not cover it
_MARKED = ("open", "forced", "stop")  # gate decisions that change something; "stay" does not
_MOST_BINS = 60
_PAD = " style='padding: 0 8px'"


class Message(NamedTuple):
    """One window as visdom's server takes it: where it is posted, and its JSON."""

    endpoint: str
    body: str

    @property
    def log_line(self) -> str:
        """The line of an offline log that ``visdom.Visdom().replay_log`` reads."""
        return f"[{json.dumps(self.endpoint)}, {self.body}]\n"


class Trace(NamedTuple):
    """One line of a plot: its name in the legend, its finite points, and how it is drawn."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    dash: str = "solid"


class Panes:
    """Draws the panes of one run.

    Args:
        first: number of the first pane's window; the others follow in the order of ``PANES``.
        env: visdom environment of the windows.
        name: the run's name, the first word of every title.
    """

    def __init__(self, first: int, env: str, name: str) -> None:
        self._first, self._env, self._name = first, env, name

    def window(self, pane: str) -> str:
        """The window of a pane."""
        return str(self._first + PANES.index(pane))

    def epoch_panes(
        self, epochs: Sequence[Mapping[str, Any]], decisions: Sequence[Mapping[str, Any]]
    ) -> dict[str, Message]:
        """The panes of all that metrics.jsonl holds, by window; a pane without a point is left out.

        Args:
            epochs: lines of metrics.jsonl; what is missing in one or not finite is left out.
            decisions: rows of gate_log.csv, which are marked where they change something; numbers may be text.
        """
        gates = gate_marks(decisions)
        loss, rate = _loss_traces(epochs), [Trace("learning rate", series(epochs, "lr"), "#0072b2")]
        drawn = [
            self._lines("accuracy", _accuracy_traces(epochs), gates, {"range": _accuracy_range(epochs)}),
            self._lines("loss", loss, gates, {"rangemode": "tozero"}),
            self._lines("validation AUROC and Dice", _quality_traces(epochs), gates),
            self._confusion(epochs),
            self._lines("learning rate", rate, gates, {"rangemode": "tozero", "exponentformat": "e"}),
        ]
        return dict(entry for entry in drawn if entry is not None)

    def gate_pane(self, decisions: Sequence[Mapping[str, Any]]) -> dict[str, Message]:
        """The table of the gate's decisions."""
        content = {"content": gate_table(decisions), "type": "text"}
        return dict([self._message("gate", [content], {}, PLOT_SIZE)])

    def picture_pane(self, grid: np.ndarray, columns: str, epoch: Any = None) -> dict[str, Message]:
        """The smears and masks of ``image_grid``; encoding them is the one costly drawing.

        Args:
            grid: (H, W, 3) uint8.
            columns: what stands in it, from left to right.
            epoch: when it was so; None where that is not known.
        """
        source = f"data:image/png;base64,{base64.b64encode(_png(grid)).decode()}"
        content = {"content": {"src": source}, "type": "image"}
        width = min(max(grid.shape[1], 420), 800)  # the page scales a picture to its window's width
        size = {"width": width, "height": round(width * grid.shape[0] / grid.shape[1])}
        return dict([self._message("masks", [content], {}, size, f"masks{_of_epoch(epoch)} ({columns})")])

    def cell_pane(self, diameters: Mapping[str, np.ndarray], epoch: Any = None) -> dict[str, Message]:
        """The histograms of cell diameters, over each other, in the same bins.

        Args:
            diameters: (N,) finite, pixels, by the name of the mask that the cells lie in; a mask without cells is named
                in the legend only.
            epoch: when it was so; None where that is not known.
        """
        together = np.concatenate([np.empty(0), *diameters.values()])
        if not len(together):
            return {}
        edges = histogram_edges(together)
        bars = [
            {
                "type": "bar",
                "name": f"{name}: {_cells(values)}",
                "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
                "y": np.histogram(values, bins=edges)[0].tolist(),
                "width": np.diff(edges).tolist(),
                "opacity": 0.6,
                "marker": {"color": colour},
                "hovertemplate": "%{x:.1f} px: %{y} cells<extra></extra>",
            }
            for (name, values), colour in zip(diameters.items(), _CELL_COLOURS, strict=False)
        ]
        layout = _layout("diameter, pixels of the input", "cells", {"rangemode": "tozero"})
        layout |= {"barmode": "overlay", "showlegend": True}
        title = f"cell diameters{_of_epoch(epoch)}"
        return dict([self._message("cell diameters", bars, layout, PLOT_SIZE, title)])

    def probe(self) -> Message:
        """A question that every visdom server answers and that changes nothing."""
        return Message("win_exists", json.dumps({"win": self.window("loss"), "eid": self._env}))

    def _message(
        self,
        pane: str,
        data: list[dict[str, Any]],
        layout: dict[str, Any],
        size: Mapping[str, int],
        title: str = "",
    ) -> tuple[str, Message]:
        """A pane whole: a server that lost it gets it back with the next."""
        title = f"{self._name}: {title or pane}"
        window = self.window(pane)
        body = {
            "data": data,
            "win": window,
            "eid": self._env,
            # What the reader zoomed into stays so when new points come.
            "layout": {"title": {"text": html.escape(title, quote=False), **_TITLE}, "uirevision": window, **layout},
            "opts": {"title": title, **size},
        }
        return window, Message("events", json.dumps(body, allow_nan=False))

    def _lines(
        self, pane: str, traces: list[Trace], gates: Mapping[float, str], yaxis: Mapping[str, Any] | None = None
    ) -> tuple[str, Message] | None:
        """Lines over epochs with the gates' marks; None where no trace has a point."""
        traces = [trace for trace in traces if trace.points]
        if not traces:
            return None
        data = [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": trace.name,
                "x": [x for x, _ in trace.points],
                "y": [y for _, y in trace.points],
                "line": {"color": trace.colour, "dash": trace.dash, "width": 2},
                "marker": {"color": trace.colour, "size": 5},
            }
            for trace in traces
        ]
        layout = _layout("epoch", "", yaxis or {}) | {"showlegend": len(traces) > 1}
        last = max(x for trace in traces for x, _ in trace.points)
        first = min(x for trace in traces for x, _ in trace.points)
        if last - first < 12:  # plotly would put marks at half epochs
            layout["xaxis"] |= {"dtick": 1, "range": [first - 0.5, last + 0.5]}
        return self._message(pane, data, layout | _gate_layout(gates), PLOT_SIZE)

    def _confusion(self, epochs: Sequence[Mapping[str, Any]]) -> tuple[str, Message] | None:
        """The last epoch's confusion matrix of validation; None where its record holds none."""
        record = epochs[-1] if epochs else {}
        counts = confusion_of(record)
        if counts is None:
            return None
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        said = [f"said {name}" for name in CLASSES]
        data = {
            "type": "heatmap",
            "x": said,
            "y": list(CLASSES),
            "z": shares.tolist(),
            "zmin": 0,
            "zmax": 1,
            "colorscale": _BLUES,
            "showscale": False,
            "xgap": 3,
            "ygap": 3,
            "hovertemplate": "%{y}, %{x}: %{z:.1%}<extra></extra>",
        }
        words = [
            {
                "x": said[column],
                "y": CLASSES[row],
                "text": f"<b>{counts[row, column]:,}</b><br>{shares[row, column]:.1%}",
                "font": {"size": 18, "color": "white" if shares[row, column] > 0.5 else "black"},
                "showarrow": False,
            }
            for row in range(2)
            for column in range(2)
        ]
        layout = _layout("", "", {"autorange": "reversed"}) | {"annotations": words, "showlegend": False}
        title = f"confusion matrix of validation, Global{_of_epoch(record.get('epoch'))}"
        return self._message("confusion matrix", [data], layout, PLOT_SIZE, title)


# what the records hold


def number(record: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number under a path of keys, or None: infinity breaks the page's JSON."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def series(epochs: Iterable[Mapping[str, Any]], *keys: str) -> list[tuple[float, float]]:
    """The finite points (epoch, value) of one number of the records, found by its path of keys."""
    points = ((number(record, "epoch"), number(record, *keys)) for record in epochs)
    return [(epoch, value) for epoch, value in points if epoch is not None and value is not None]


def confusion_of(record: Mapping[str, Any]) -> np.ndarray | None:
    """(2, 2) int64 [[tn, fp], [fn, tp]] of Global on validation; None where the record holds none."""
    matrices = _mapping(_mapping(record, "val"), "confusion")
    try:
        counts = np.asarray(matrices.get("global"), dtype=np.int64)
    except (TypeError, ValueError):
        return None
    return counts if counts.shape == (2, 2) and counts.min() >= 0 and counts.any() else None


def loss_names(epochs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The loss terms of the records, such as "loss_cls", in the order in which they come."""
    return list(dict.fromkeys(key for record in epochs for key in _mapping(record, "train") if key.startswith("loss_")))


def gate_marks(decisions: Iterable[Mapping[str, Any]]) -> dict[float, str]:
    """The word for every epoch in which a gate changed something."""
    marks = {}
    for record in decisions:
        epoch = number({"epoch": _unquoted(record.get("epoch"))}, "epoch")
        if epoch is not None and record.get("decision") in _MARKED:
            marks[epoch] = f"gate {record.get('tier', '?')}: {record['decision']}"
    return marks


def histogram_edges(values: np.ndarray) -> np.ndarray:
    """Edges (n + 1,) of bins by the rule of Freedman and Diaconis, ``_MOST_BINS`` at most.

    Args:
        values: (N,) finite, N > 0.
    """
    edges = np.histogram_bin_edges(np.clip(values, *np.percentile(values, (0.5, 99.5))), bins="fd")
    bins = min(max(len(edges) - 1, 1), _MOST_BINS)
    return np.histogram_bin_edges(values, bins=bins)


def _cells(diameters: np.ndarray) -> str:
    if not len(diameters):
        return "no cell"
    return f"{counted(len(diameters), 'cells')}, median {np.median(diameters):.1f} px"


def _loss_traces(epochs: Sequence[Mapping[str, Any]]) -> list[Trace]:
    traces = []
    for index, name in enumerate(loss_names(epochs)):
        plain = name.removeprefix("loss_")
        colour = _LOSS_COLOURS[index % len(_LOSS_COLOURS)]
        traces.append(Trace(_LOSS_NAMES.get(plain, plain), series(epochs, "train", name), colour))
    return [*traces, Trace("class, validation", series(epochs, "val", "loss"), "#000000", "dash")]


def _accuracy_traces(epochs: Sequence[Mapping[str, Any]]) -> list[Trace]:
    return [
        Trace(f"{_TIER_NAMES[tier]} {word}", series(epochs, part, "accuracy", tier), _COLOURS[tier], dash)
        for part, word, dash in (("train", "training", "dot"), ("val", "validation", "solid"))
        for tier in TIERS
    ]


def _accuracy_range(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    """From the tenth below the lowest accuracy to a little above 1, so that a line at 1 is seen."""
    lowest = min((y for trace in _accuracy_traces(epochs) for _, y in trace.points), default=0.0)
    return [min(0.9, max(0.0, math.floor(lowest * 10 - 0.2) / 10)), 1.02]


def _quality_traces(epochs: Sequence[Mapping[str, Any]]) -> list[Trace]:
    traces = [
        Trace(f"AUROC {_TIER_NAMES[tier]}", series(epochs, "val", "auroc", tier), _COLOURS[tier]) for tier in TIERS
    ]
    return [*traces, Trace("Dice of masks", series(epochs, "val", "dice"), _COLOURS["Dice"], "dash")]


# layout


def _layout(xtitle: str, ytitle: str, yaxis: Mapping[str, Any]) -> dict[str, Any]:
    """Plotly's layout that all plots share: a white ground, a legend below that takes no width."""
    axis = {"gridcolor": _GRID, "zeroline": False, "automargin": True}
    return {
        "xaxis": {"title": {"text": xtitle, "standoff": 8}, **axis},
        "yaxis": {"title": {"text": ytitle}, **axis, **yaxis},
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 11}},
        "margin": {"l": 55, "r": 20, "t": 50, "b": 40},
        "hovermode": "closest",
        "plot_bgcolor": "white",
    }


def _upright(x: float, word: str, colour: str) -> dict[str, Any]:
    """Plotly's layout for one dotted upright line with a word beside it."""
    place = {"xref": "x", "yref": "paper"}
    line = {"color": colour, "width": 1.5, "dash": "dot"}
    shape = {"type": "line", **place, "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}
    # Upright and beside the line: gates may open within a few epochs of each other.
    turned = {
        "textangle": -90,
        "xanchor": "right",
        "yanchor": "top",
        "showarrow": False,
        "bgcolor": "rgba(255,255,255,0.6)",
    }
    note = {**place, **turned, "x": x, "y": 1, "text": html.escape(word), "font": {"size": 11, "color": colour}}
    return {"shapes": [shape], "annotations": [note]}


def _gate_layout(gates: Mapping[float, str]) -> dict[str, Any]:
    """A line for every gate that changed something; nothing where none did."""
    marks = [_upright(epoch, word, "#555555") for epoch, word in gates.items()]
    keys = ("shapes", "annotations")
    return {key: [item for mark in marks for item in mark[key]] for key in keys} if marks else {}


def _of_epoch(epoch: Any) -> str:
    return "" if epoch is None else f", epoch {epoch}"


def gate_table(decisions: Iterable[Mapping[str, Any]]) -> str:
    """The gate's decisions as an HTML table, newest first; what the records say is escaped."""
    columns = ("epoch", "tier", "decision", "reason")
    head = "".join(f"<th{_PAD}>{column}</th>" for column in columns)
    rows = []
    for record in decisions:
        shade = " style='background: #dce6f5'" if record.get("decision") in _MARKED else ""
        cells = "".join(f"<td{_PAD}>{html.escape(str(record.get(column, '')))}</td>" for column in columns)
        rows.append(f"<tr{shade}>{cells}</tr>")
    style = "border-collapse: separate; border-spacing: 0 2px; text-align: left; vertical-align: top"
    return f"<table style='{style}'><tr>{head}</tr>{''.join(reversed(rows))}</table>"


# pictures


def image_grid(smear: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Put smears and their masks side by side, a row for each smear.

    Args:
        smear: (B, H, W, 3) uint8.
        masks: (B, H, W) each; floats are probabilities in 0..1, of other types everything but 0 is cell.

    Returns:
        (rows, columns, 3) uint8 with white gaps; at most ``MAX_SMEARS`` rows of pictures of ``MAX_SIDE`` pixels.
    """
    step = max(1, math.ceil(max(np.shape(smear)[1:3]) / MAX_SIDE))
    thinned = (slice(MAX_SMEARS), slice(None, None, step), slice(None, None, step))
    greys = [_grey(np.asarray(mask)[thinned]) for mask in masks]
    columns = [np.asarray(smear)[thinned], *(np.repeat(grey[..., None], 3, axis=-1) for grey in greys)]
    around = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = [np.pad(column, around, constant_values=255) for column in columns]
    rows = np.concatenate(padded, axis=2)
    return np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]))


def _grey(mask: np.ndarray) -> np.ndarray:
    """A mask as uint8 0..255."""
    if mask.dtype.kind == "f":
        return (np.clip(np.nan_to_num(mask), 0, 1) * 255).round().astype(np.uint8)
    return (mask != 0).astype(np.uint8) * np.uint8(255)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)  # three times as fast as the default, a little larger
    return file.getvalue()


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = record.get(key)
    return part if isinstance(part, Mapping) else {}


def _unquoted(value: Any) -> Any:
    """A whole number for its digits: records that come back from gate_log.csv are all text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value
