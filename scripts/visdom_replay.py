#!/usr/bin/env python3
"""Show a training run's saved log in a visdom server: the panes as they were last, without the run.

    python scripts/visdom_replay.py checkpoints/SEG/visdom_log.jsonl
    python scripts/visdom_replay.py checkpoints/SEG/visdom_log.jsonl --server http://localhost --port 8097 --env SEG
    python scripts/visdom_replay.py checkpoints/SEG/visdom_log.jsonl --follow

Every run keeps such a log, with --display_id 0 too. --follow shows it anew whenever the run has written it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from util.errors import UserError, run_door  # noqa: E402 - the path must be set first

LOOK_AGAIN = 2.0  # seconds between two looks at a log that is followed


class Pane(NamedTuple):
    """A line of the log: where it is posted, and the message."""

    endpoint: str
    message: dict[str, Any]


def read_log(path: Path) -> list[Pane]:
    """The panes of a log.

    Raises:
        UserError: the file is missing, or is no such log.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {path}",
            found=str(getattr(error, "strerror", None) or error),
            remedy="name the visdom_log.jsonl of a run, in its folder under checkpoints/; its first epoch must be over",
        ) from None
    panes = [_pane(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not panes:
        raise UserError(f"{path} is empty", expected="a line for every pane of the live view")
    return panes


def _pane(path: Path, number: int, line: str) -> Pane:
    try:
        endpoint, message = json.loads(line)
        if isinstance(endpoint, str) and endpoint.isidentifier() and isinstance(message, dict):
            return Pane(endpoint, message)
    except (ValueError, TypeError):
        pass
    raise UserError(
        f"{path}, line {number} is no line of a visdom log",
        expected='["events", {...}], as a training run or visdom\'s own client writes it',
        found=line[:80],
    )


def post(panes: list[Pane], address: str, env: str, timeout: float) -> None:
    """Send the panes to a server.

    Args:
        panes: of a log.
        address: of the server, with its port.
        env: environment to show them in; empty for the log's own.
        timeout: seconds that each may take.

    Raises:
        UserError: the server is not there, does not answer, or refuses.
    """
    import requests

    with requests.Session() as session:
        session.trust_env = not any(f"//{host}:" in address for host in ("localhost", "127.0.0.1", "[::1]"))
        for endpoint, message in panes:
            body = json.dumps(message | {"eid": env} if env else message)
            try:
                reply = session.post(f"{address}/{endpoint}", data=body, timeout=timeout, allow_redirects=False)
            except requests.RequestException as error:
                raise _unreachable(address, f"{type(error).__name__}: {error}"[:200]) from None
            if reply.status_code != 200:
                raise _unreachable(address, f"HTTP status {reply.status_code}")


def _unreachable(address: str, found: str) -> UserError:
    return UserError(
        f"no visdom server takes the panes at {address}",
        found=found,
        remedy=f"start one (bash scripts/visdom_server.sh --port {address.rpartition(':')[2]}), or set --server and"
        " --port to where it is",
    )


def main() -> int:
    """Read the log, send it, and go on with that if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="a run's visdom_log.jsonl")
    parser.add_argument("--server", default="http://localhost", help="address of the server (http://localhost)")
    parser.add_argument("--port", type=int, default=8097, help="its port (8097)")
    parser.add_argument("--env", default="", help="visdom environment to show it in (default: the run's --display_env)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds that the server may take for a pane (10)")
    parser.add_argument("--follow", action="store_true", help="show it again whenever it changes, until Ctrl-C")
    given = parser.parse_args()
    server = given.server if "://" in given.server else f"http://{given.server}"
    address = f"{server.rstrip('/')}:{given.port}"
    shown: dict[str, Any] = {}
    while True:
        panes = read_log(given.log)
        new = [pane for pane in panes if shown.get(pane.message.get("win", "")) != pane.message]
        post(new, address, given.env, given.timeout)
        shown = {pane.message.get("win", ""): pane.message for pane in panes}
        if new:
            env = given.env or panes[0].message.get("eid", "main")
            print(f"{len(new)} panes of {given.log} are at {address}/env/{env}", flush=True)
        if not given.follow:
            return 0
        time.sleep(LOOK_AGAIN)


if __name__ == "__main__":
    run_door(main)
