"""The live view of a training run: losses, accuracies, gate decisions, verdicts and masks as they come.

The view is a courtesy and never a condition of training. What it shows goes to visdom's offline log, to a visdom server
and to TensorBoard, each where it is asked for. Drawing, writing and posting happen in threads of their own, and of each
pane only the newest state waits: a server that is absent, slow, silent or dying takes no time from the training, and
costs the user one line on stderr. The log goes on without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from util.errors import UserError
from util.files import atomic_write
from util.live_panes import MAX_SMEARS, Message, Panes, image_grid, number
from util.live_worker import LatestWorker
from util.mask_cells import mask_diameters

if TYPE_CHECKING:
    from util.live_tensorboard import TensorBoardSink

Drawing = Callable[[], Mapping[str, Message]]
Examples = tuple[np.ndarray, Mapping[str, np.ndarray]]
FIRST_WINDOW = 1  # of a log that is kept without a live view
TIMEOUT = 2.0  # seconds
GREETING = 0.25  # seconds that the start waits for the server's first answer, to speak of trouble before epoch 1
EXAMPLES_SHARE = 0.005  # of the run's time that may go into making pictures to show
DISK_PATIENCE = 30.0  # seconds that the end waits for the log and the event files at most


class Visualizer:
    """Shows one training run; in visdom as windows ``display_id``, ``display_id + 1``, ... (``live_panes.PANES``).

    Args:
        display_id: number of the first window; 0 posts nothing, and does not import what posting needs.
        server: address of the visdom server, without its port.
        port: port of the visdom server.
        env: visdom environment that the windows belong to.
        name: the run's name, the first word of every pane's title.
        log_path: file that keeps what every pane shows last, one line a pane, for scripts/visdom_replay.py; None keeps
            no log. It is replaced by the first pane of this run.
        timeout: seconds after which a call to the server has failed; only the end of the run waits as long.
        tensorboard: folder for TensorBoard's event files; None writes none.

    Raises:
        UserError: ``display_id`` is negative. Nothing else is ever raised, here or by any method: what goes wrong with
            a server, the log or TensorBoard becomes a warning of one line on stderr, and is not tried again.
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
        timeout: float = TIMEOUT,
        tensorboard: Path | None = None,
    ) -> None:
        if display_id < 0:
            raise UserError(f"--display_id {display_id}", expected="0 (no visdom) or a window number above 0")
        self._panes = Panes(display_id or FIRST_WINDOW, env, name)
        self._log_path, self._log_error, self._timeout = log_path, "", timeout
        self._address = f"{server if '://' in server else 'http://' + server}".rstrip("/") + f":{port}"
        self._epochs: list[Mapping[str, Any]] = []
        self._decisions: list[Mapping[str, Any]] = []
        self._resumed_after = 0
        self._kept: dict[str, Message] = {}  # window -> what it shows last; the scribe's alone
        self._begun, self._spent_on_examples, self._last_cost = time.monotonic(), 0.0, 0.0
        self._cells_spent, self._cells_cost = 0.0, 0.0  # the same of splitting masks, which the threads do
        self._scribe: LatestWorker[Drawing] | None = None
        self._sender: LatestWorker[Message] | None = None
        self._events: _Events | None = None if tensorboard is None else _Events(tensorboard)
        self._session: Any = None
        if display_id or log_path is not None:
            self._scribe = LatestWorker("live view", self._write, at_once=True)
        if display_id:
            self._greet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def live(self) -> bool:
        """Whether panes still go to the server."""
        return self._sender is not None and self._sender.error is None

    def restore(self, epochs: Iterable[Mapping[str, Any]], decisions: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up an earlier part of the run, so that a resumed run's panes start at its first epoch.

        Args:
            epochs: the lines of metrics.jsonl.
            decisions: the rows of gate_log.csv; their numbers may be text.
        """
        self._epochs[:0] = list(epochs)
        self._decisions[:0] = list(decisions)
        if self._events is not None:
            self._events.after = self._epoch() or 0

    def plot_epoch(self, record: Mapping[str, Any]) -> None:
        """Draw losses, accuracies, learning rate, AUROC and Dice up to this epoch, and its confusion matrix.

        Args:
            record: a line of metrics.jsonl: "epoch", "lr", "train", "val"; what is missing or not finite is left out.
        """
        self._epochs.append(record)
        self._show(epochs=self._epoch_drawing())
        if self._events is not None:
            self._events.offer(lambda sink: sink.plot_epoch(record))

    def mark_gate(self, record: Mapping[str, Any]) -> None:
        """List a gate decision, and mark it in the plots unless the tier merely stays.

        Args:
            record: "epoch", "tier", "decision" ("open", "stay", "forced" or "stop") and "reason".
        """
        self._decisions.append(record)
        decisions = list(self._decisions)
        self._show(epochs=self._epoch_drawing(), gate=lambda: self._panes.gate_pane(decisions))
        if self._events is not None:
            self._events.offer(lambda sink: sink.mark_gate(record))

    def show_examples(self, produce: Callable[[], Examples]) -> None:
        """Show smears, their masks and the masks' cells, as often as that takes ``EXAMPLES_SHARE`` of the run at most.

        Args:
            produce: makes the arguments of ``show_images``; called at the first time, and then when time allows.
        """
        allowed = EXAMPLES_SHARE * (time.monotonic() - self._begun)
        spent, next_cost = self._spent_on_examples + self._cells_spent, self._last_cost + self._cells_cost
        if not self._shows() or (self._last_cost and spent + next_cost > allowed):
            return
        before = time.monotonic()
        try:
            examples = produce()
        except Exception as error:  # noqa: BLE001 - the live view must not end a training run
            self._give_up(error)
            return
        self.show_images(*examples)
        self._last_cost = time.monotonic() - before
        self._spent_on_examples += self._last_cost

    def show_images(self, smear: np.ndarray, masks: Mapping[str, np.ndarray]) -> None:
        """Show smears beside their masks, and how wide the cells in each mask are.

        Args:
            smear: (B, H, W, 3) uint8 RGB; the first ``live_panes.MAX_SMEARS`` are shown.
            masks: (B, H, W) of the cells by name: probabilities in 0..1, or booleans, or integers (not 0 is cell).
        """
        if not self._shows():
            return
        columns = ", ".join(["smear", *masks])
        try:
            grid = image_grid(smear, list(masks.values()))  # here, because both copy what the caller may change
            cells = {name: _is_cell(mask[:MAX_SMEARS]) for name, mask in masks.items()}
        except Exception as error:  # noqa: BLE001 - the live view must not end a training run
            self._give_up(error)
            return
        epoch = self._epoch()
        self._show(
            masks=lambda: self._panes.picture_pane(grid, columns, epoch),
            cells=lambda: self._panes.cell_pane(self._diameters(cells), epoch),
        )
        if self._events is not None:
            self._events.offer(lambda sink: sink.show_grid(grid, columns, epoch or 0))
            self._events.offer(lambda sink: sink.show_cells(self._diameters(cells), epoch or 0))

    def flush(self, seconds: float) -> bool:
        """Wait until all is drawn, written and posted; False where something is left after so many seconds."""
        done = self._scribe is None or self._scribe.wait_idle(seconds)
        return done and (self._sender is None or self._sender.wait_idle(seconds))

    def close(self) -> None:
        """Finish the log and the event files; post what waits, for ``timeout`` seconds at most. Safe to call twice."""
        if self._scribe is not None:
            self._scribe.close(DISK_PATIENCE)
        if self._events is not None:
            self._events.close(DISK_PATIENCE)
        delivered = self._sender is None or self._sender.close(self._timeout)
        self._report_trouble()
        if not delivered and self._sender is not None:
            left, overtaken = self._sender.waiting + 1, self._sender.overtaken
            _warn(
                f"visdom is slow at {self._address}: {left} panes were not posted in time at the end of training, and"
                f" {overtaken} before gave way to newer ones; {self._where_the_log_is()}"
            )
        self._scribe = self._sender = self._events = None

    # the threads' work

    def _write(self, drawings: dict[str, Drawing]) -> None:
        """Draw what was asked for, keep it in the log, and pass on what has changed. Runs in the scribe's thread."""
        drawn = {window: message for draw in drawings.values() for window, message in draw().items()}
        changed = {window: message for window, message in drawn.items() if self._kept.get(window) != message}
        if not changed:
            return
        self._kept.update(changed)
        self._keep_log()
        if self._sender is not None:
            self._sender.offer(changed)

    def _keep_log(self) -> None:
        """Write what every pane shows last: replaying the file gives the page, however long the run was."""
        if self._log_path is None or self._log_error:
            return
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._log_path, "".join(message.log_line for message in self._kept.values()))
        except (OSError, UserError) as error:
            self._log_error = _one_line(error)

    def _post(self, messages: dict[str, Message]) -> None:
        """Post a pane to the server. Runs in the sender's thread.

        Raises:
            Exception: it did not arrive; the sender then ends.
        """
        for message in messages.values():
            reply = self._session.post(
                f"{self._address}/{message.endpoint}",
                data=message.body,
                timeout=self._timeout,
                allow_redirects=False,
            )
            if reply.status_code != 200:
                raise ConnectionError(f"HTTP status {reply.status_code}")

    def _diameters(self, cells: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Diameters of each mask's cells, pixels. Runs in the threads: it takes tenths of a second of a core."""
        before = time.monotonic()
        found = {name: mask_diameters(mask) for name, mask in cells.items()}
        self._cells_cost = time.monotonic() - before
        self._cells_spent += self._cells_cost
        return found

    # the training's side

    def _greet(self) -> None:
        """Ask the server for a sign of life, and wait a moment for it, so that trouble is told before epoch 1."""
        try:
            import requests
        except ImportError as error:
            _warn(
                f"visdom cannot be reached without its package requests ({_one_line(error)}); training goes on without"
                f" the live view; to watch, install it first (pip install -r requirements.txt);"
                f" {self._where_the_log_is()}"
            )
            return
        self._session = requests.Session()
        # A proxy that the environment names is for the world outside, not for a server on this machine.
        self._session.trust_env = not any(f"//{host}:" in self._address for host in ("localhost", "127.0.0.1", "[::1]"))
        self._sender = LatestWorker("visdom", self._post, at_once=False)
        self._sender.offer({"": self._panes.probe()})
        self._sender.wait_idle(GREETING)
        self._report_trouble()

    def _shows(self) -> bool:
        return self._scribe is not None or self._events is not None

    def _show(self, **drawings: Drawing) -> None:
        self._report_trouble()
        if self._scribe is not None:
            self._scribe.offer(drawings)

    def _epoch_drawing(self) -> Drawing:
        epochs, decisions = list(self._epochs), list(self._decisions)
        return lambda: self._panes.epoch_panes(epochs, decisions)

    def _epoch(self) -> int | None:
        """The last epoch drawn."""
        epoch = number(self._epochs[-1], "epoch") if self._epochs else None
        return None if epoch is None else int(epoch)

    def _report_trouble(self) -> None:
        """Say what has gone wrong in a thread, once. Only the training's thread speaks: lines must not mix."""
        if self._log_error and self._log_path is not None:
            _warn(
                f"visdom's offline log {self._log_path} cannot be written ({self._log_error});"
                " training goes on without it"
            )
            self._log_path = None
        if self._events is not None and self._events.error is not None:
            _warn(f"TensorBoard's files cannot be written ({_one_line(self._events.error)}); training goes on without")
            self._events = None
        if self._sender is not None and (error := self._sender_trouble()) is not None:
            self._sender.close(0)
            self._sender = None
            _warn(
                f"visdom is out of reach at {self._address} ({_reason(error, self._timeout)}); training goes on without"
                " the live view; to watch, first start a server (bash scripts/visdom_server.sh --port"
                f" {self._address.rpartition(':')[2]}); {self._where_the_log_is()}"
            )
        if self._scribe is not None and self._scribe.error is not None:
            self._give_up(self._scribe.error)

    def _sender_trouble(self) -> Exception | None:
        """What ended the sender, or its being late.

        The timeout of a socket counts from the last byte: a server that dribbles, or a slow name look-up, would pass
        every one of those.
        """
        assert self._sender is not None
        if self._sender.error is not None:
            return self._sender.error
        return TimeoutError() if self._sender.busy_for() > self._timeout else None

    def _give_up(self, error: Exception) -> None:
        """Switch the view off after a fault in drawing."""
        _warn(f"the live view failed ({_one_line(error)}) and is off; training goes on without it")
        for worker in (self._scribe, self._sender):
            if worker is not None:
                worker.close(0)
        self._scribe = self._sender = None

    def _where_the_log_is(self) -> str:
        if self._log_path is None:
            return "no offline log is kept"
        return f"the panes are kept in {self._log_path.absolute()} for scripts/visdom_replay.py"


class _Events:
    """TensorBoard's sink behind a thread: encoding pictures and writing files are not the training's."""

    def __init__(self, folder: Path) -> None:
        self.after = 0  # last epoch of the part that is resumed
        self._folder, self._count = folder, 0
        self._sink: TensorBoardSink | None = None
        self._worker: LatestWorker[Callable[[TensorBoardSink], None]] = LatestWorker(
            "tensorboard", self._work, at_once=True
        )

    @property
    def error(self) -> Exception | None:
        return self._worker.error

    def offer(self, write: Callable[[TensorBoardSink], None]) -> None:
        """Hand over something to write; nothing overtakes it."""
        self._count += 1
        self._worker.offer({str(self._count): write})

    def close(self, seconds: float) -> None:
        if self._count:
            self.offer(lambda sink: sink.close())
        self._worker.close(seconds)

    def _work(self, writes: dict[str, Callable[[TensorBoardSink], None]]) -> None:
        from util.live_tensorboard import TensorBoardSink

        if self._sink is None:
            self._sink = TensorBoardSink(self._folder, self.after)
        for write in writes.values():
            write(self._sink)


def _is_cell(mask: np.ndarray) -> np.ndarray:
    """(B, H, W) bool of masks of any kind."""
    mask = np.asarray(mask)
    return np.array(mask > 0.5 if mask.dtype.kind == "f" else mask != 0)


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
