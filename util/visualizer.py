"""The live view of a training run in visdom: losses, accuracies, gate decisions and masks as they come.

The view is a courtesy and never a condition of training. Each pane is drawn by visdom's own offline client, written to
a log that visdom can replay, and only then posted; what goes wrong on the way to the server costs one line on stderr
and at most ``timeout`` seconds, after which only the log is kept.
"""

from __future__ import annotations

import html
import json
import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from util.errors import UserError
from util.files import atomic_write

TIERS = ("tier1", "tier2", "tier3", "global")
PANES = ("loss", "accuracy", "learning rate", "gate", "masks", "validation AUROC and Dice")
MAX_SMEARS = 4  # a grid of four smears with two masks each costs about 0.2 s to encode
MAX_SIDE = 256  # pixels; larger smears are thinned for the page
_GAP = 4  # white pixels between the pictures of the grid
# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = {
    "tier1": (230, 159, 0),
    "tier2": (86, 180, 233),
    "tier3": (0, 158, 115),
    "global": (0, 0, 0),
    "Dice": (204, 121, 167),
}
_LOSS_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 0, 0))
_MARKED = ("open", "forced", "stop")  # gate decisions that change something; "stay" does not
_PLOT_SIZE = {"width": 480, "height": 360}  # pixels


class Trace(NamedTuple):
    """One line of a pane: its name in the legend, how it is drawn, and its finite points."""

    name: str
    points: list[tuple[float, float]]
    colour: tuple[int, int, int]
    dash: str = "solid"


class Visualizer:
    """Shows one training run in visdom, as windows ``display_id``, ``display_id + 1``, and so on (see ``PANES``).

    Args:
        display_id: number of the first window; 0 shows nothing and does not even import visdom.
        server: address of the visdom server, without its port.
        port: port of the visdom server.
        env: visdom environment that the windows belong to.
        name: the run's name, the first word of every pane's title.
        log_path: file that keeps what every pane shows last, one line a pane, for ``visdom.Visdom().replay_log``; None
            keeps no log. It is replaced by the first pane of this run.
        timeout: seconds that one call may wait for the server before the view is switched off for the run.

    Raises:
        UserError: ``display_id`` is negative. Nothing else is ever raised, here or by any method: what goes wrong with
            visdom, its server or the log becomes a warning of one line on stderr, and is not tried again.
    """

    def __init__(
        self,
        display_id: int,
        *,
        server: str = "http://localhost",
        port: int = 8097,
        env: str = "main",
        name: str = "SEG",
        log_path: Path | None,
        timeout: float = 2.0,
    ) -> None:
        if display_id < 0:
            raise UserError(f"--display_id {display_id}", expected="0 (no visdom) or a window number above 0")
        self._display_id, self._env, self._name = display_id, env, name
        self._log_path, self._timeout, self._port = log_path, timeout, port
        self._address = f"{server if '://' in server else 'http://' + server}".rstrip("/") + f":{port}"
        self._epochs: list[Mapping[str, Any]] = []
        self._decisions: list[Mapping[str, Any]] = []
        self._messages: dict[str, tuple[str, str]] = {}  # window -> endpoint and JSON that it shows last
        self._client: Any = None
        self._session: Any = None
        if display_id:
            self._start()

    @property
    def live(self) -> bool:
        """Whether panes still reach the server."""
        return self._session is not None

    def restore(self, epochs: Iterable[Mapping[str, Any]], decisions: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up an earlier part of the run, so that a resumed run's panes start at its first epoch.

        Args:
            epochs: the lines of metrics.jsonl.
            decisions: the rows of gate_log.csv; their numbers may be text.
        """
        self._epochs[:0] = list(epochs)
        self._decisions[:0] = list(decisions)

    def plot_epoch(self, record: Mapping[str, Any]) -> None:
        """Draw the losses, accuracies and learning rate up to this epoch.

        Args:
            record: a line of metrics.jsonl: "epoch", "lr", "train", "val"; what is missing or not finite is left out.
        """
        if not self._client:
            return
        self._epochs.append(record)
        self._show(self._draw_loss, self._draw_accuracy, self._draw_learning_rate, self._draw_quality)

    def mark_gate(self, record: Mapping[str, Any]) -> None:
        """List a gate decision, and mark it in the accuracy pane unless the tier merely stays.

        Args:
            record: "epoch", "tier", "decision" ("open", "stay", "forced" or "stop") and "reason".
        """
        if not self._client:
            return
        self._decisions.append(record)
        marked = record.get("decision") in _MARKED
        self._show(self._draw_gate, *([self._draw_accuracy] if marked else []))

    def show_images(self, smear: np.ndarray, true_mask: np.ndarray | None, predicted: np.ndarray) -> None:
        """Show smears beside their true mask, where there is one, and their predicted mask.

        Args:
            smear: (B, H, W, 3) uint8 RGB; the first ``MAX_SMEARS`` are shown.
            true_mask: (B, H, W) of the cells, or None where there is no ground truth.
            predicted: (B, H, W) of the cells: probabilities in 0..1, or booleans, or integers (not 0 is cell).
        """
        if not self._client:
            return
        columns = "smear, predicted" if true_mask is None else "smear, true, predicted"
        opts = {"title": f"{self._title('masks')} ({columns})"}

        def draw() -> None:
            grid = image_grid(smear, true_mask, predicted)
            self._client.image(grid.transpose(2, 0, 1), win=self._window("masks"), opts=opts)

        self._show(draw)

    def close(self) -> None:
        """Let go of the server; the panes stay there and in the log. Safe to call twice."""
        if self._session is not None:
            self._session.close()
        self._session = self._client = None

    # starting and sending

    def _start(self) -> None:
        """Import visdom and ask the server for a sign of life, so that the user hears of trouble before epoch 1."""
        logging.getLogger("visdom").setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._client = _recorder(self._env, self._messages)
                import requests  # visdom's own dependency
        except Exception as error:  # noqa: BLE001 - a broken visdom must not end a training run
            _warn(
                f"visdom cannot be imported ({_one_line(error)}); training goes on without the live view and"
                " its offline log, which visdom writes; to watch, install it first (pip install -r requirements.txt)"
            )
            return
        self._session = requests.Session()
        # A proxy that the environment names is for the world outside, not for a server on this machine.
        self._session.trust_env = not any(f"//{host}:" in self._address for host in ("localhost", "127.0.0.1", "[::1]"))
        probe = json.dumps({"win": self._window("loss"), "eid": self._env})
        self._send([("win_exists", probe)])

    def _show(self, *drawings: Callable[[], object]) -> None:
        """Draw panes with visdom's offline client, keep them in the log, then post them."""
        before = dict(self._messages)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for draw in drawings:
                    draw()
        except Exception as error:  # noqa: BLE001 - the live view must not end a training run
            _warn(f"the live view failed ({_one_line(error)}) and is off; training goes on without it")
            self.close()
            return
        self._keep_log()
        self._send([message for window, message in self._messages.items() if before.get(window) is not message])

    def _keep_log(self) -> None:
        """Write what every pane shows last: replaying the file gives the page, however long the run was."""
        if self._log_path is None:
            return
        lines = [f"[{json.dumps(endpoint)}, {message}]\n" for endpoint, message in self._messages.values()]
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._log_path, "".join(lines))
        except (OSError, UserError) as error:
            _warn(
                f"visdom's offline log {self._log_path} cannot be written ({_one_line(error)});"
                " training goes on without it"
            )
            self._log_path = None

    def _send(self, messages: list[tuple[str, str]]) -> None:
        """Post messages to the server; on any failure say so once and never try again in this run."""
        session = self._session
        if session is None or not messages:
            return

        def post() -> None:
            for endpoint, message in messages:
                reply = session.post(
                    f"{self._address}/{endpoint}", data=message, timeout=self._timeout, allow_redirects=False
                )
                if reply.status_code != 200:
                    raise ConnectionError(f"HTTP status {reply.status_code}")

        error = _error_within(self._timeout, post)
        if error is not None:
            self._session = None
            _warn(self._farewell(error))

    def _farewell(self, error: Exception) -> str:
        """The one line that says what is wrong, where, what it means, and what can be done."""
        if self._log_path is None:
            log = "no offline log is kept"
        else:
            log = f"the panes are kept in {self._log_path.absolute()} for visdom.Visdom(port={self._port}).replay_log"
        return (
            f"visdom is out of reach at {self._address} ({_reason(error, self._timeout)}); training goes on without the"
            f" live view; to watch, first start a server (python -m visdom.server -port {self._port} -bind_local);"
            f" {log}"
        )

    # the panes

    def _window(self, pane: str) -> str:
        return f"{self._display_id + PANES.index(pane)}"

    def _title(self, pane: str) -> str:
        return f"{self._name}: {pane}"

    def _series(self, *keys: str) -> list[tuple[float, float]]:
        """The finite points (epoch, value) of one number of the records, found by its path of keys."""
        points = ((_number(record, "epoch"), _number(record, *keys)) for record in self._epochs)
        return [(epoch, value) for epoch, value in points if epoch is not None and value is not None]

    def _draw_loss(self) -> None:
        names = dict.fromkeys(
            key for record in self._epochs for key in _mapping(record, "train") if key.startswith("loss_")
        )
        traces = [
            Trace(name.removeprefix("loss_"), self._series("train", name), _LOSS_COLOURS[index % len(_LOSS_COLOURS)])
            for index, name in enumerate(names)
        ]
        traces.append(Trace("validation", self._series("val", "loss"), (0, 0, 0), "dash"))
        self._draw_lines("loss", traces, "loss")

    def _draw_accuracy(self) -> None:
        traces = [
            Trace(f"{part} {tier}", self._series(part, "accuracy", tier), _COLOURS[tier], dash)
            for part, dash in (("train", "dot"), ("val", "solid"))
            for tier in TIERS
        ]
        marks = [record for record in self._decisions if record.get("decision") in _MARKED]
        self._draw_lines("accuracy", traces, "accuracy", _gate_layout(marks))

    def _draw_learning_rate(self) -> None:
        self._draw_lines("learning rate", [Trace("learning rate", self._series("lr"), (0, 0, 0))], "learning rate")

    def _draw_quality(self) -> None:
        traces = [Trace(f"AUROC {tier}", self._series("val", "auroc", tier), _COLOURS[tier]) for tier in TIERS]
        traces.append(Trace("Dice", self._series("val", "dice"), _COLOURS["Dice"], "dash"))
        self._draw_lines("validation AUROC and Dice", traces, "value")

    def _draw_lines(self, pane: str, traces: list[Trace], ylabel: str, layout: dict[str, Any] | None = None) -> None:
        """Draw the traces that have points as one pane, whole: a server that lost it gets it back at the next epoch."""
        traces = [trace for trace in traces if trace.points]
        if not traces:
            return
        points = np.array([point for trace in traces for point in trace.points], dtype=np.float64)
        labels = np.repeat(np.arange(1, len(traces) + 1), [len(trace.points) for trace in traces])
        opts = {
            "title": self._title(pane),
            "xlabel": "epoch",
            "ylabel": ylabel,
            "legend": [trace.name for trace in traces],
            "mode": "lines+markers",
            "markersize": 4,
            "markerborderwidth": 0,
            "linecolor": np.array([trace.colour for trace in traces]),
            "markercolor": np.array([trace.colour for trace in traces]),
            "dash": np.array([trace.dash for trace in traces]),
            "layoutopts": {"plotly": layout or {}},
            **_PLOT_SIZE,
        }
        self._client.scatter(points, labels, win=self._window(pane), opts=opts)

    def _draw_gate(self) -> None:
        table = gate_table(self._decisions)
        self._client.text(table, win=self._window("gate"), opts={"title": self._title("gate"), **_PLOT_SIZE})


def gate_table(decisions: Iterable[Mapping[str, Any]]) -> str:
    """The gate's decisions as an HTML table, newest first; what the records say is escaped."""
    columns = ("epoch", "tier", "decision", "reason")
    head = "".join(f"<th>{column}</th>" for column in columns)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(str(record.get(column, '')))}</td>" for column in columns) + "</tr>"
        for record in decisions
    ]
    style = "border-collapse: separate; border-spacing: 8px 0"
    return f"<table style='{style}'><tr>{head}</tr>{''.join(reversed(rows))}</table>"


def image_grid(smear: np.ndarray, true_mask: np.ndarray | None, predicted: np.ndarray) -> np.ndarray:
    """Put smears and their masks side by side, a row for each smear.

    Args:
        smear: (B, H, W, 3) uint8.
        true_mask: (B, H, W), or None.
        predicted: (B, H, W); floats are probabilities in 0..1, of other types everything but 0 is cell.

    Returns:
        (rows, columns, 3) uint8 with white gaps; at most ``MAX_SMEARS`` rows of pictures of ``MAX_SIDE`` pixels.
    """
    masks = [_grey(mask[:MAX_SMEARS]) for mask in (true_mask, predicted) if mask is not None]
    columns = [np.asarray(smear)[:MAX_SMEARS], *(np.repeat(mask[..., None], 3, axis=-1) for mask in masks)]
    step = max(1, math.ceil(max(columns[0].shape[1:3]) / MAX_SIDE))
    around = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = [np.pad(column[:, ::step, ::step], around, constant_values=255) for column in columns]
    rows = np.concatenate(padded, axis=2)
    return np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]))


def _grey(mask: np.ndarray) -> np.ndarray:
    """A mask as uint8 0..255."""
    mask = np.asarray(mask)
    if mask.dtype.kind == "f":
        return (np.clip(np.nan_to_num(mask), 0, 1) * 255).round().astype(np.uint8)
    return (mask != 0).astype(np.uint8) * np.uint8(255)


def _gate_layout(decisions: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Plotly's layout for a dotted upright line with a word at every marked decision."""
    shapes, annotations = [], []
    for record in decisions:
        epoch = _number({"epoch": _unquoted(record.get("epoch"))}, "epoch")
        if epoch is None:
            continue
        word = html.escape(f"tier {record.get('tier', '?')}: {record['decision']}")
        place = {"xref": "x", "yref": "paper"}
        line = {"color": "grey", "width": 1, "dash": "dot"}
        shapes.append({"type": "line", **place, "x0": epoch, "x1": epoch, "y0": 0, "y1": 1, "line": line})
        # Upright and beside the line: gates may open within a few epochs of each other.
        turned = {"textangle": -90, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
        annotations.append({**place, **turned, "x": epoch, "y": 0, "text": word})
    return {"shapes": shapes, "annotations": annotations} if shapes else {}


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = record.get(key)
    return part if isinstance(part, Mapping) else {}


def _number(record: Mapping[str, Any], *keys: str) -> float | None:
    """The finite number under a path of keys, or None: infinity breaks the page's JSON."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def _unquoted(value: Any) -> Any:
    """A whole number for its digits: records that come back from gate_log.csv are all text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _recorder(env: str, messages: dict[str, tuple[str, str]]) -> Any:
    """Visdom's client in its offline mode: it draws, and what it would log goes to ``messages`` under its window."""
    import visdom

    class Recorder(visdom.Visdom):
        def _log(self, msg: dict[str, Any], endpoint: str) -> None:
            messages[msg["win"]] = (endpoint, json.dumps(msg, allow_nan=False))

    client: Any = Recorder  # visdom's stubs do not know `offline`
    return client(env=env, offline=True, log_to_filename="", use_incoming_socket=False, raise_exceptions=True)


def _error_within(seconds: float, job: Callable[[], None]) -> Exception | None:
    """Run a job and return its error, or a TimeoutError once the seconds are over.

    A thread, because the timeout of a socket counts from the last byte: a server that dribbles, or a slow name look-up,
    would pass every one of those and still hold up the training. A late job is left to die with the process.
    """
    errors: list[Exception] = []

    def work() -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=work, name="visdom", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return TimeoutError()
    return errors[0] if errors else None


def _reason(error: Exception, timeout: float) -> str:
    """Why the server could not be reached, in words: requests' own say it in 200 characters."""
    kind = type(error).__name__
    if "Timeout" in kind:
        return f"no answer within {timeout:g} s"
    if "refused" in str(error):
        return "connection refused"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
