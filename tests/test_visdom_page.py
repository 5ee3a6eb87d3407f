"""The visdom page in a browser: what a run's log shows once it is replayed into the server that the script starts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from util.live_panes import PANES
from util.visualizer import Visualizer

ROOT = Path(__file__).resolve().parent.parent


def assets():
    spec = importlib.util.spec_from_file_location("visdom_assets", ROOT / "scripts/visdom_assets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --enable-logging=stderr"
)


def record(epoch):
    train = {"loss_cls": 1 / epoch, "loss_L1": 0.5 / epoch, "accuracy": {"tier1": 0.5 + epoch / 20, "global": 0.6}}
    val = {"loss": 0.7, "accuracy": {"tier1": 0.55, "global": 0.7}, "auroc": {"global": 0.75}, "dice": 0.8}
    return {"epoch": epoch, "lr": 2e-4, "train": train, "val": val | {"confusion": {"global": [[41, 2], [3, 37]]}}}


def discs():
    """Masks (2, 30, 40) of two cells each."""
    rows, columns = np.mgrid[:30, :40]
    near = np.minimum((columns - 10) ** 2, (columns - 28) ** 2)
    return np.repeat(((rows - 15) ** 2 + near < 40)[None], 2, axis=0)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """The log of a small run without a server."""
    path = tmp_path_factory.mktemp("run") / "visdom_log.jsonl"
    with Visualizer(0, name="SMALL <i>", log_path=path) as view:
        for epoch in (1, 2, 3):
            view.plot_epoch(record(epoch))
            view.mark_gate({"epoch": epoch, "tier": 1, "decision": "open" if epoch == 2 else "stay", "reason": "<b>"})
        smear = np.full((2, 30, 40, 3), (200, 10, 20), np.uint8)
        view.show_images(smear, {"true mask": discs(), "predicted mask": np.where(discs(), 0.9, 0.1)})
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page that this machine has in its cache, or one without its scripts: the server needs none of them."""
    visdom = pytest.importorskip("visdom")
    cached = assets().default_folder(importlib.metadata.version("visdom"))
    if assets().whole(cached):
        return cached
    bare = tmp_path_factory.mktemp("bare") / "page"
    shutil.copytree(Path(visdom.__file__).parent / "static", bare)
    style = hashlib.sha256((bare / "css/style.css").read_bytes()).hexdigest()
    (bare / "assets.json").write_text(json.dumps({"css/style.css": style}))
    return bare


@pytest.fixture(scope="module")
def server(page, tmp_path_factory):
    """The server of scripts/visdom_server.sh; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = ["bash", "scripts/visdom_server.sh", "--port", str(port), "--page", str(page)]
    command += ["--env_path", str(folder / "env")]
    # It keeps settings in the user's home, and must not ask the web for anything.
    environment = os.environ | {"PYTHON": sys.executable, "HOME": str(folder), "https_proxy": "http://127.0.0.1:9"}
    output = folder / "output"
    with (
        output.open("w") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            end = time.monotonic() + 60
            while "for this machine alone" not in output.read_text():
                assert process.poll() is None and time.monotonic() < end, output.read_text()
                time.sleep(0.1)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert "Traceback" not in output.read_text()


def replay(*arguments):
    command = [sys.executable, "scripts/visdom_replay.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_page_draws_a_replayed_log(server, page, log, tmp_path):
    if not (page / "js/plotly-plotly.min.js").is_file():
        pytest.skip("visdom's page is not in the cache: bash scripts/visdom_server.sh --fetch_only")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    done = replay(log, "--port", server, "--env", "SMALL")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 panes")
    assert len(json.loads(client(server).get_window_data(env="SMALL"))) == 8
    command = [
        *(chromium, *QUIET.split(), f"--user-data-dir={tmp_path}", "--window-size=1800,1400"),
        *("--virtual-time-budget=10000", "--dump-dom", f"http://localhost:{server}/env/SMALL"),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    page = shown.stdout
    titles = re.findall(r'class="gtitle"[^>]*>(.*?)</text>', page)
    assert sorted(title.removeprefix("SMALL &lt;i&gt;: ") for title in titles) == sorted(
        [
            *("loss", "accuracy", "learning rate", "validation AUROC and Dice"),
            *("confusion matrix of validation, Global, epoch 3", "cell diameters, epoch 3"),
        ]
    )
    # 2 terms of the loss and its validation, 4 accuracies, 2 of AUROC and Dice, 1 learning rate; 3 points each.
    lines = [path for path in re.findall(r'class="js-line" d="([^"]*)"', page) if not path.endswith("h30")]
    assert len(lines) == 3 + 4 + 2 + 1, "the legends' own lines end in h30"
    assert all(path.startswith("M") and "L" in path for path in lines)
    assert len(re.findall(r'<path class="point"', page)) == 3 * 10
    for words in ("gate 1: open", ">41<", ">95.3%<", ">said Anemic<", "&lt;b&gt;"):
        assert words in page, words
    assert re.search(r'<img[^>]*src="data:image/png;base64,', page)
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line]
    assert not console, console


def test_a_replay_says_what_is_wrong(tmp_path, log):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = replay(log, "--port", port)
    assert done.returncode == 2
    assert "no visdom server" in done.stderr and "scripts/visdom_server.sh" in done.stderr
    assert "Traceback" not in done.stderr
    for text, words in (("", "is empty"), ('["events"]\n', "line 1"), ('["../x", {}]\n', "line 1"), (None, "read")):
        path = tmp_path / "log"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        done = replay(path, "--port", port)
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_the_log_holds_a_line_a_pane(log):
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {endpoint for endpoint, _ in entries} == {"events"}
    assert sorted(message["win"] for _, message in entries) == [str(i + 1) for i in range(len(PANES))]


def client(port):
    import visdom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of having no incoming socket, through a deprecated method
        return visdom.Visdom("http://127.0.0.1", port=port, use_incoming_socket=False, raise_exceptions=True)


def test_a_live_run_shows_every_pane(server, capfd):
    with Visualizer(7, server="127.0.0.1", port=server, env="live", name="SEG", log_path=None, timeout=30) as view:
        for epoch in (1, 2, 3):
            view.plot_epoch(record(epoch))
            view.mark_gate({"epoch": epoch, "tier": 1, "decision": "stay", "reason": "..."})
        view.show_images(np.zeros((2, 30, 40, 3), np.uint8), {"predicted mask": discs().astype(float)})
    assert capfd.readouterr().err == ""
    windows = json.loads(client(server).get_window_data(env="live"))
    titles = [windows[str(7 + i)]["title"].removeprefix("SEG: ") for i in range(8)]
    assert [re.split(r",| \(", title)[0] for title in titles] == [
        *PANES[:4],
        "masks",
        PANES[5],
        "confusion matrix of validation",
        "cell diameters",
    ]
    traces = {trace["name"]: trace for trace in windows["8"]["content"]["data"]}
    assert traces["Tier-I training"]["x"] == [1, 2, 3]
    assert traces["Tier-I training"]["y"] == pytest.approx([0.55, 0.6, 0.65])
    assert windows["11"]["content"]["src"].startswith("data:image/png;base64,")


def test_visdoms_own_client_can_replay_the_log(server, log):
    client(server).replay_log(log)
    windows = json.loads(client(server).get_window_data(env="main"))
    assert len(windows) == len(PANES)
    assert windows["1"]["content"]["data"][0]["y"] == [1, 1 / 2, 1 / 3]


def test_a_taken_port_is_told(server):
    command = ["bash", "scripts/visdom_server.sh", "--port", str(server)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"PYTHON": sys.executable}
    )
    assert done.returncode == 2
    assert f"port {server}" in done.stderr and "--display_port" in done.stderr
