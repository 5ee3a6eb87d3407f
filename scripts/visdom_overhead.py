#!/usr/bin/env python3
"""Measure what the live view takes from a training, with a server that is well, silent, slow, dying or absent.

    python scripts/visdom_overhead.py
    python scripts/visdom_overhead.py --epochs 100 --seconds 2

The "training" is a process that computes for so many seconds an epoch and then calls the live view as a training does,
with four smears of 300 x 300. For every server it prints the time that the calls held the training (the mean and the
longest epoch), the wait at the end of the run, all of it as a share of the run, the processor time that the view's
threads took beside it, and what was said on stderr. The servers answer on 127.0.0.1 like visdom's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import io
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else its own threads would count as the view's
import numpy as np  # noqa: E402 - the path must be set first

from util.visualizer import Visualizer  # noqa: E402

SERVERS = ("none asked for", "well", "slow", "silent", "silent later", "dying", "absent")


class FakeVisdom(http.server.ThreadingHTTPServer):
    """Answers like a visdom server: after ``delay`` seconds, and no more after ``lives`` requests."""

    daemon_threads = True

    def __init__(self, delay: float, lives: float, silent: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay, self.lives, self.silent, self.requests = delay, lives, silent, 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that gave up are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVisdom

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        time.sleep(self.server.delay)
        if self.server.requests > self.server.lives:
            if self.server.silent:
                time.sleep(3600)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def port_of(kind: str, epochs: int) -> Iterator[int]:
    """A port with a server of that kind behind it."""
    if kind in ("none asked for", "absent"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield port
        return
    lives = {"silent": 0, "silent later": 4 * epochs, "dying": 4 * epochs}.get(kind, float("inf"))
    server = FakeVisdom(1.0 if kind == "slow" else 0.004, lives, silent=kind.startswith("silent"))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def record(epoch: int) -> dict[str, Any]:
    """A line of metrics.jsonl with all three tiers open."""
    tiers = dict.fromkeys(("tier1", "tier2", "tier3", "global"), 0.8)
    losses = {f"loss_{name}": 1 / epoch for name in ("cls", "L1", "overlap", "G_GAN", "D")}
    val = {"loss": 0.5, "accuracy": tiers, "auroc": tiers, "dice": 0.9, "confusion": {"global": [[40, 4], [5, 39]]}}
    return {"epoch": epoch, "lr": 1e-4, "train": {**losses, "accuracy": tiers, "dice": 0.9}, "val": val}


def compute(seconds: float, matrix: np.ndarray) -> None:
    """Use a core for so long, as a training does; NumPy lets other threads run meanwhile, as PyTorch does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix @ matrix


def measure(kind: str, epochs: int, seconds: float) -> str:
    """Run a training beside a server of that kind; returns a line of the table and what was said."""
    rng = np.random.default_rng(0)
    smears = rng.integers(0, 256, (4, 300, 300, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:300, :300] % 30 - 15
    blobs = np.repeat((rows**2 + columns**2 < 150)[None], 4, axis=0) * rng.uniform(0.6, 1, (4, 300, 300))  # 100 cells
    matrix = rng.random((200, 200))
    examples = (smears, {"true mask": blobs > 0.5, "predicted mask": blobs})
    held, said = [], io.StringIO()
    with port_of(kind, epochs) as port, tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
        begun, own_begun, all_begun = time.perf_counter(), time.thread_time(), time.process_time()
        log = Path(folder) / "visdom_log.jsonl"
        view = Visualizer(int(kind != "none asked for"), server="http://127.0.0.1", port=port, log_path=log)
        start = time.perf_counter() - begun
        for epoch in range(1, epochs + 1):
            compute(seconds, matrix)
            before = time.perf_counter()
            view.plot_epoch(record(epoch))
            view.mark_gate({"epoch": epoch, "tier": 1, "decision": "stay", "reason": "-"})
            view.show_examples(lambda: examples)
            held.append(time.perf_counter() - before)
        before = time.perf_counter()
        view.close()
        end = time.perf_counter() - before
        total = time.perf_counter() - begun
        beside = (time.process_time() - all_begun) - (time.thread_time() - own_begun)
        kept = log.stat().st_size / 1000
    warnings = [line[:60] for line in said.getvalue().splitlines()]
    share = (start + sum(held) + end) / (epochs * seconds)
    return (
        f"{kind:<15}{1000 * start:>9.0f}{1000 * sum(held) / epochs:>10.1f}{1000 * max(held):>10.1f}{1000 * end:>9.0f}"
        f"{share:>9.2%}{1000 * beside / epochs:>11.0f}{total:>9.1f}{kept:>9.0f}  {len(warnings)} {warnings or ''}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="epochs of every run (40)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of computing an epoch (1)")
    given = parser.parse_args()
    print(f"{given.epochs} epochs of {given.seconds:g} s; times in ms where no other unit is named")
    print(
        f"{'server':<15}{'start':>9}{'epoch':>10}{'longest':>10}{'end':>9}{'share':>9}{'threads/ep':>11}"
        f"{'run, s':>9}{'log, kB':>9}  warnings"
    )
    for kind in SERVERS:
        print(measure(kind, given.epochs, given.seconds), flush=True)


if __name__ == "__main__":
    main()
