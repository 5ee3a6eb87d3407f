"""The folder of a run under checkpoints/: what lies in it, how it is begun, continued and logged."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import atomic_write, make_folder, not_through_a_link, remove_unfinished, unwritable

LATEST, BEST = "latest", "best"
FROZEN_LINE = "frozen_line.npz"  # see models.frozen
# Of what the run learns from.
BESIDE_SPLIT = ("fingerprints.npz", "colour_statistics.npz", "stain_reference.npz", "mask_digests.npz", FROZEN_LINE)
NOVELTY = "_novelty.npz"  # how a file ends that says what the training images are like to some weights
MOST_DIGITS = 9  # of an epoch's number
SEVERITY_HEAD = "severity_head.json"  # learned from the train side alone, see models.grading


def plain(value: Any) -> Any:
    """Make a value fit for JSON: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class RunFolder:
    """Paths, logs and life of one run.

    Args:
        checkpoints_dir: the folder of all runs.
        name: the run's name, a plain folder name.
    """

    def __init__(self, checkpoints_dir: str | Path, name: str) -> None:
        self.name = name
        self.folder = Path(checkpoints_dir) / name
        self.state = self.folder / "latest_state.safetensors"
        self.state_before = self.folder / "before_state.safetensors"  # the one before, should that be damaged
        self.best_before = self.folder / "before_best.safetensors"  # the best weights when that one was saved
        self.best_next = self.folder / "next_best.safetensors"  # those of a state that is just being saved
        self.starts = self.folder / "starts.jsonl"
        self.options = self.folder / "options.json"
        self.split = self.folder / "split.csv"
        self.gate_log = self.folder / "gate_log.csv"
        self.metrics = self.folder / "metrics.jsonl"
        self.visdom_log = self.folder / "visdom_log.jsonl"
        self.finished = self.folder / "finished.json"
        self.shipped = self.folder / "shipped.json"  # marks weights that came with the toolkit

    def weights(self, which: str) -> Path:
        """The weights called ``latest``, ``best`` or an epoch number."""
        return self.folder / f"{which}_net_3TDCFNet.safetensors"

    def _own_files(self) -> list[Path]:
        named = [self.state, self.state_before, self.best_before, self.best_next]
        named += [self.starts, self.options, self.split]
        named += [self.gate_log, self.metrics, self.visdom_log, self.finished]
        named += [self.folder / name for name in (*BESIDE_SPLIT, SEVERITY_HEAD)]
        found = [*self.folder.glob("*_net_3TDCFNet.safetensors"), *self.folder.glob(f"*{NOVELTY}")]
        return [path for path in [*named, *found] if path.is_file()]

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse early what could not end well; nothing is written or removed yet.

        Raises:
            UserError: nothing to resume; the name already holds a run; the folder cannot be written.
        """
        if resume and not (self.state.is_file() or self.state_before.is_file()):
            raise UserError(
                f"--continue_train: there is no saved state at {self.state}",
                remedy="train without --continue_train first, or check --name and --checkpoints_dir",
            )
        held = self._own_files() if self.folder.exists() else []
        if self.starts in held and not any(path.name.endswith(".safetensors") for path in held):
            held = []  # a run that was killed before it saved anything: there is nothing to lose
        if held and not (overwrite or resume or self.shipped.is_file()):
            go_on = "go on with it (--continue_train), " if self.state.is_file() else ""
            raise UserError(
                f"{self.folder} already holds a run",
                expected="an unused --name",
                found=", ".join(sorted(path.name for path in held)[:4]),
                remedy=f"{go_on}choose another --name, or replace it (--overwrite)",
            )
        make_folder(self.folder)

    def begin(self, *, resume: bool = False) -> None:
        """Make room for a new run: what an earlier one left is removed, what came with the toolkit is set aside.

        Args:
            resume: the run goes on, so all stays but what a killed save had begun.

        Raises:
            UserError: the folder cannot be renamed or made.
        """
        remove_unfinished(self.folder)
        if resume:
            return
        if self.shipped.is_file():
            print(f"the weights that came with the toolkit are now at {self._set_aside()}", flush=True)
            make_folder(self.folder)
        for path in self._own_files():
            path.unlink()

    def _set_aside(self) -> Path:
        """Rename the folder to the first free name, and return that."""
        names = (f"{self.name}_shipped{number or ''}" for number in itertools.count())
        aside = next(path for path in map(self.folder.with_name, names) if not path.exists())
        try:
            self.folder.rename(aside)
        except OSError as error:
            raise unwritable(self.folder, error) from None
        return aside

    def weights_or_error(self, which: str) -> Path:
        """The path of saved weights.

        Raises:
            UserError: they are not there; names those that are.
        """
        path = self.weights(which)
        if path.is_file():
            return path
        there = sorted(p.name.split("_net_")[0] for p in self.folder.glob("*_net_3TDCFNet.safetensors"))
        raise UserError(
            f"no weights at {path}",
            found=f"weights of: {', '.join(there)}" if there else "no trained run of that name",
            remedy="use --which_epoch with one of these"
            if there
            else "train first (3TDCFNet_train.py), or check --name",
        )

    def log_start(self, facts: Mapping[str, Any]) -> None:
        """Append a start of the run, its first or one that goes on, to starts.jsonl."""
        self._append(self.starts, json.dumps(plain(facts), allow_nan=False) + "\n")

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's record to metrics.jsonl."""
        self._append(self.metrics, json.dumps(plain(record), allow_nan=False) + "\n")

    def log_gate(self, row: Mapping[str, Any]) -> None:
        """Append one decision to gate_log.csv."""
        begun = self.gate_log.is_file() and self.gate_log.stat().st_size > 0
        self._append(self.gate_log, _csv_text([plain(row)], header=not begun))

    def _append(self, path: Path, text: str) -> None:
        try:
            with open(path, "a", encoding="utf-8", newline="", opener=not_through_a_link) as file:  # noqa: PTH123
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # a state that is saved after it must not outlive it
        except OSError as error:
            raise unwritable(path, error) from None

    def history(self) -> list[dict[str, Any]]:
        """The epochs logged so far, up to the first line that is none, such as one that a crash has cut off."""
        return list(_whole_records(_text(self.metrics).splitlines()))

    def gate_rows(self) -> list[dict[str, str]]:
        """The gate decisions logged so far; lines that are none are left out."""
        rows = csv.DictReader(io.StringIO(_text(self.gate_log), newline=""))
        found: list[dict[str, str]] = []
        with contextlib.suppress(csv.Error):  # of a field that is too long: what comes after it is no log
            found.extend(row for row in rows if None not in row and None not in row.values())
        return [row for row in found if _is_epoch(row.get("epoch", "")) and row.get("tier") in ("1", "2", "3")]

    def cut_logs(self, epoch: int) -> None:
        """Drop what was logged after ``epoch`` (1-based): a killed run may have logged epochs that it did not save."""
        if self.metrics.exists():
            kept = [record for record in self.history() if record["epoch"] <= epoch]
            atomic_write(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        if self.gate_log.exists():
            rows = [row for row in self.gate_rows() if int(row["epoch"]) <= epoch]
            atomic_write(self.gate_log, _csv_text(rows, header=bool(rows)).encode())


def _csv_text(rows: Sequence[Mapping[str, Any]], *, header: bool) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _text(path: Path) -> str:
    """A log's text, damaged or not; empty where there is none."""
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def _is_epoch(number: str) -> bool:
    return number.isascii() and number.isdecimal() and len(number) <= MOST_DIGITS


def _whole_records(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict) or not _is_epoch(str(record.get("epoch"))):
            return
        yield record


def weights_file(init_from: str, checkpoints_dir: str) -> Path:
    """The file that --init_from names, by its path or by a run's name.

    Raises:
        UserError: there is none.
    """
    path = Path(init_from)
    run = RunFolder(checkpoints_dir, init_from)
    try:
        if not path.is_file() and path.name == init_from:
            path = next((p for p in map(run.weights, (BEST, LATEST)) if p.is_file()), run.weights(BEST))
        if path.is_file():
            return path
        found = "a folder" if path.is_dir() else ", ".join(sorted(other.name for other in path.parent.glob("*_net_*")))
    except OSError as error:
        found = error.strerror or str(error)
    raise UserError(
        f"--init_from {init_from}: no weights at {path}",
        expected="a weights file of this toolkit, or the name of a run under --checkpoints_dir",
        found=found or "nothing there",
        remedy="check the path, the name and --checkpoints_dir, or name the file itself",
    )
