"""The live view: what reaches visdom, and that nothing which goes wrong on the way reaches the training."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.errors import UserError
from util.visualizer import MAX_SIDE, MAX_SMEARS, Visualizer, gate_table, image_grid

TIMEOUT = 0.5  # for servers that never answer
PATIENCE = 30.0  # for servers that do, on a busy machine
WINDOW_LOSS, WINDOW_ACCURACY, WINDOW_RATE, WINDOW_GATE, WINDOW_MASKS, WINDOW_QUALITY = (str(7 + i) for i in range(6))


def epoch_record(epoch, **changes):
    train = {"loss_cls": 1 / (epoch + 1), "loss_L1": 0.5, "accuracy": {"tier1": 0.5 + epoch / 10, "global": 0.6}}
    val = {"loss": 0.7, "accuracy": {"tier1": 0.55, "tier2": None}, "auroc": {"global": 0.75}, "dice": None}
    return {"epoch": epoch, "tier": 1, "lr": 2e-4, "train": train | changes.get("train", {}), "val": val}


def gate_record(epoch, decision, reason="validation agrees"):
    return {"epoch": epoch, "tier": 1, "decision": decision, "reason": reason}


class FakeVisdom(http.server.ThreadingHTTPServer):
    """Answers like a visdom server and keeps what was posted; after ``lives`` requests it breaks every connection."""

    daemon_threads = True

    def __init__(self, status=200, lives=None, delay=0.0, dribble=0):
        super().__init__(("127.0.0.1", 0), FakeVisdomHandler)
        self.posted, self.requests = [], 0
        self.status, self.lives, self.delay, self.dribble = status, lives, delay, dribble
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that gave up is what the tests are about."""

    def windows(self):
        return {message["win"]: message for path, message in self.posted if path == "/events"}


class FakeVisdomHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests += 1
        if self.server.lives is not None and self.server.requests > self.server.lives:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.server.posted.append((self.path, json.loads(body)))
        time.sleep(self.server.delay)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(2 + self.server.dribble))
        self.send_header("Location", "/login")
        self.end_headers()
        for _ in range(self.server.dribble):  # a byte now and then: no socket timeout ever strikes
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(TIMEOUT / 5)
        self.wfile.write(b"ok")

    def do_GET(self):
        """A page to log in on, where a redirection leads: no pane arrives there."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def view(port, log_path=None, timeout=PATIENCE, **options):
    return Visualizer(7, server="http://127.0.0.1", port=port, log_path=log_path, timeout=timeout, **options)


def train_a_little(visualizer, epochs=3):
    """Everything that a training run calls; returns how many seconds it took."""
    start = time.perf_counter()
    smear = np.full((2, 12, 16, 3), 200, np.uint8)
    mask = np.zeros((2, 12, 16), np.uint8)
    for epoch in range(1, epochs + 1):
        visualizer.plot_epoch(epoch_record(epoch))
        visualizer.mark_gate(gate_record(epoch, "open" if epoch == 2 else "stay"))
        visualizer.show_images(smear, mask, mask)
    visualizer.close()
    return time.perf_counter() - start


def one_warning(capfd):
    """The only line on stderr; nothing on stdout."""
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("warning: ")
    assert "training goes on" in lines[0]
    return lines[0]


def points(message):
    return {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in message["data"]}


# what is shown


def test_the_panes_carry_the_numbers_of_the_records(capfd):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1], env="smears", name="RUN")
        visualizer.plot_epoch(epoch_record(1))
        visualizer.plot_epoch(epoch_record(2))
        visualizer.close()
    windows = server.windows()
    assert set(windows) == {WINDOW_LOSS, WINDOW_ACCURACY, WINDOW_RATE, WINDOW_QUALITY}
    assert all(message["eid"] == "smears" for message in windows.values())
    assert windows[WINDOW_LOSS]["layout"]["title"] == "RUN: loss"
    assert points(windows[WINDOW_LOSS]) == {
        "cls": [(1, 1 / 2), (2, 1 / 3)],
        "L1": [(1, 0.5), (2, 0.5)],
        "validation": [(1, 0.7), (2, 0.7)],
    }
    assert points(windows[WINDOW_ACCURACY]) == {
        "train tier1": [(1, 0.6), (2, 0.7)],
        "train global": [(1, 0.6), (2, 0.6)],
        "val tier1": [(1, 0.55), (2, 0.55)],
    }
    assert points(windows[WINDOW_RATE]) == {"learning rate": [(1, 2e-4), (2, 2e-4)]}
    assert points(windows[WINDOW_QUALITY]) == {"AUROC global": [(1, 0.75), (2, 0.75)]}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), None, "n/a", True])
def test_what_is_not_a_finite_number_is_left_out(bad):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch(epoch_record(1))
        visualizer.plot_epoch(epoch_record(2, train={"loss_cls": bad}))
        visualizer.plot_epoch(epoch_record(3))
    assert visualizer.live
    assert points(server.windows()[WINDOW_LOSS])["cls"] == [(1, 1 / 2), (3, 1 / 4)]
    assert len(points(server.windows()[WINDOW_LOSS])["L1"]) == 3


def test_gate_decisions_stand_in_their_pane_and_all_but_stay_mark_the_accuracy():
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch(epoch_record(1))
        posted = len(server.posted)
        visualizer.mark_gate(gate_record(1, "stay"))
        assert [message["win"] for _, message in server.posted[posted:]] == [WINDOW_GATE], "only what has changed"
        assert "shapes" not in server.windows()[WINDOW_ACCURACY]["layout"]
        visualizer.mark_gate(gate_record(2, "open", reason="0.9 > 0.85 <script>"))
    table = server.windows()[WINDOW_GATE]["data"][0]["content"]
    assert "0.9 &gt; 0.85 &lt;script&gt;" in table
    assert table.index("<td>2</td>") < table.index("<td>stay</td>"), "the newest decision comes first"
    layout = server.windows()[WINDOW_ACCURACY]["layout"]
    assert [(shape["x0"], shape["x1"]) for shape in layout["shapes"]] == [(2, 2)]
    assert layout["annotations"][0]["text"] == "tier 1: open"


def test_a_gate_table_of_nothing_is_a_heading():
    assert gate_table([]).count("<tr>") == 1


def test_the_image_pane_is_a_picture_of_smear_and_masks():
    smear = np.zeros((2, 6, 8, 3), np.uint8)
    smear[0], smear[1] = (200, 10, 20), (0, 0, 90)
    true_mask = np.zeros((2, 6, 8), bool)
    true_mask[0] = True
    predicted = np.full((2, 6, 8), 0.5, np.float32)
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.show_images(smear, true_mask, predicted)
    source = server.windows()[WINDOW_MASKS]["data"][0]["content"]["src"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert picture.shape == (2 * (6 + 4), 3 * (8 + 4), 3)
    assert picture[0, 0].tolist() == [200, 10, 20]
    assert picture[10, 0].tolist() == [0, 0, 90], "one row for each smear"
    assert picture[0, 12].tolist() == [255, 255, 255]
    assert picture[10, 12].tolist() == [0, 0, 0], "the true mask stands beside its own smear"
    assert picture[0, 24].tolist() == [128, 128, 128]


def test_the_grid_stays_small_and_does_without_a_true_mask():
    smear = np.zeros((9, 600, 300, 3), np.uint8)
    grid = image_grid(smear, None, np.ones((9, 600, 300), np.int64))
    assert grid.shape == (MAX_SMEARS * (200 + 4), 2 * (100 + 4), 3)
    assert max(200, 100) <= MAX_SIDE
    assert grid[0, 104].tolist() == [255, 255, 255]


def test_a_resumed_run_draws_its_earlier_epochs_again():
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        row = {key: str(value) for key, value in gate_record(2, "open").items()}  # as csv.DictReader gives it
        visualizer.restore([epoch_record(1), epoch_record(2)], [row])
        visualizer.plot_epoch(epoch_record(3))
    assert [x for x, _ in points(server.windows()[WINDOW_LOSS])["cls"]] == [1, 2, 3]
    assert server.windows()[WINDOW_ACCURACY]["layout"]["shapes"][0]["x0"] == 2


# what goes wrong


def test_display_id_0_does_not_import_visdom(tmp_path):
    code = (
        "import sys; from pathlib import Path; from util.visualizer import Visualizer\n"
        f"v = Visualizer(0, log_path=Path({str(tmp_path / 'log')!r}))\n"
        "v.plot_epoch({'epoch': 1}); v.mark_gate({'epoch': 1}); v.show_images(None, None, None); v.close()\n"
        "assert 'visdom' not in sys.modules and 'requests' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "log").exists()


def test_a_negative_display_id_is_the_users_error():
    with pytest.raises(UserError, match="--display_id -1"):
        Visualizer(-1, log_path=None)


def test_visdom_not_installed(monkeypatch, capfd, tmp_path):
    monkeypatch.setitem(sys.modules, "visdom", None)
    train_a_little(view(1, tmp_path / "visdom.log"))
    line = one_warning(capfd)
    assert "visdom cannot be imported" in line
    assert "pip install -r requirements.txt" in line


def test_no_server(closed_port, capfd, tmp_path):
    visualizer = view(closed_port, tmp_path / "visdom.log")
    assert not visualizer.live
    assert train_a_little(visualizer) < PATIENCE
    line = one_warning(capfd)
    for part in (
        f"http://127.0.0.1:{closed_port}",
        "connection refused",
        "python -m visdom.server",
        str(tmp_path / "visdom.log"),
    ):
        assert part in line


def test_no_server_and_no_log(closed_port, capfd):
    train_a_little(view(closed_port))
    assert "no offline log is kept" in one_warning(capfd)


def test_a_server_that_accepts_and_never_answers(capfd, tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        start = time.perf_counter()
        visualizer = view(silent.getsockname()[1], tmp_path / "visdom.log", timeout=TIMEOUT)
        train_a_little(visualizer)
        assert time.perf_counter() - start >= TIMEOUT
        silent.settimeout(TIMEOUT)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):  # one call, and no second for as long as the run lasted
            silent.accept()
    assert f"no answer within {TIMEOUT:g} s" in one_warning(capfd)


def test_a_server_that_falls_silent_costs_one_timeout(capfd):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1], timeout=2.0)
        visualizer.plot_epoch(epoch_record(1))
        healthy = server.requests
        server.delay = PATIENCE
        assert 2.0 <= train_a_little(visualizer, epochs=5) < PATIENCE / 2
        assert server.requests == healthy + 1
    assert "no answer within 2 s" in one_warning(capfd)


def test_a_server_that_dribbles_cannot_hold_the_training(capfd):
    with FakeVisdom(dribble=int(5 * PATIENCE / TIMEOUT)) as server:
        start = time.perf_counter()
        train_a_little(view(server.server_address[1], timeout=TIMEOUT))
        assert time.perf_counter() - start < PATIENCE / 2
        assert server.requests == 1
    assert "no answer within" in one_warning(capfd)


@pytest.mark.parametrize("lives", [1, 2, 6, 9])
def test_a_server_that_dies_mid_run(lives, capfd, tmp_path):
    with FakeVisdom(lives=lives) as server:
        visualizer = view(server.server_address[1], tmp_path / "visdom.log")
        assert visualizer.live
        train_a_little(visualizer)
        assert server.requests == lives + 1, "one failure and no second try"
    one_warning(capfd)
    kept = dict(read_log(tmp_path / "visdom.log"))
    assert [x for x, _ in points(kept[WINDOW_LOSS])["cls"]] == [1, 2, 3], "the log goes on to the last epoch"


@pytest.mark.parametrize("status", [302, 403, 500])
def test_something_else_that_answers_there(status, capfd):
    with FakeVisdom(status=status) as server:
        train_a_little(view(server.server_address[1]))
        assert server.requests == 1
    assert f"HTTP status {status}" in one_warning(capfd)


@pytest.mark.parametrize(
    "server", ["http://no such host", "http://127.0.0.1:1", "nonsense://x", "http://[bad", "http://127.0.0.1:1:2", ""]
)
def test_an_address_that_is_none(server, capfd):
    train_a_little(Visualizer(7, server=server, port=1, log_path=None, timeout=PATIENCE))
    one_warning(capfd)


def test_a_log_that_cannot_be_written(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    with FakeVisdom() as server:
        train_a_little(view(server.server_address[1], tmp_path / "file" / "visdom.log"))
        assert len(server.windows()) == 6, "the server still gets every pane"
    assert "offline log" in one_warning(capfd)


def test_records_and_pictures_of_the_wrong_kind_do_not_raise(capfd):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch({})
        visualizer.plot_epoch({"epoch": 1, "train": None, "val": 3, "lr": [1]})
        assert capfd.readouterr().err == ""
        visualizer.show_images(np.zeros((2, 2)), None, np.zeros(3))
        visualizer.plot_epoch(epoch_record(2))
    assert "the live view failed" in one_warning(capfd)


# the log


def read_log(path):
    return [(message["win"], message) for _, message in map(json.loads, path.read_text().splitlines())]


def test_the_log_holds_each_pane_once_however_long_the_run(closed_port, tmp_path):
    train_a_little(view(closed_port, tmp_path / "deep" / "visdom.log"), epochs=20)
    entries = read_log(tmp_path / "deep" / "visdom.log")
    assert sorted(window for window, _ in entries) == sorted(
        [WINDOW_LOSS, WINDOW_ACCURACY, WINDOW_RATE, WINDOW_GATE, WINDOW_MASKS, WINDOW_QUALITY], key=str
    )
    assert len(points(dict(entries)[WINDOW_LOSS])["cls"]) == 20


START_VISDOM = """
import logging, pathlib, sys
import visdom.server.app, visdom.server.run_server
folder, port = sys.argv[1], int(sys.argv[2])
settings = visdom.server.app.tornado_settings
settings["static_path"] = settings["template_path"] = folder + "/static"
visdom.server.run_server.start_server(port=port, base_url="", bind_local=True, env_path=folder + "/env/")
"""


@pytest.fixture(scope="module")
def real_visdom(tmp_path_factory):
    """A real visdom server on a copy of its static folder: without the scripts of its page it needs no network."""
    visdom = pytest.importorskip("visdom")
    folder = tmp_path_factory.mktemp("visdom")
    shutil.copytree(Path(visdom.__file__).parent / "static", folder / "static")
    (folder / "static" / "version.built").write_text(visdom.__version__)
    (folder / "env").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"HOME": str(folder)}  # it keeps settings in the user's home
    log = (folder / "server.log").open("w")
    command = [sys.executable, "-c", START_VISDOM, str(folder), str(port)]
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
        try:
            if not answers(port, process):
                pytest.skip(f"visdom's server did not start: {(folder / 'server.log').read_text()[-500:]}")
            yield port
        finally:
            process.kill()
            log.close()


def answers(port, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def client(port):
    import visdom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of having no incoming socket, through a deprecated method
        return visdom.Visdom("http://127.0.0.1", port=port, use_incoming_socket=False, raise_exceptions=True)


def test_a_real_server_shows_every_pane(real_visdom, capfd):
    visualizer = Visualizer(7, server="127.0.0.1", port=real_visdom, log_path=None, timeout=PATIENCE)
    train_a_little(visualizer)
    assert capfd.readouterr().err == ""
    windows = json.loads(client(real_visdom).get_window_data())
    assert [windows[str(7 + i)]["title"].removeprefix("SEG: ").partition(" (")[0] for i in range(6)] == [
        "loss",
        "accuracy",
        "learning rate",
        "gate",
        "masks",
        "validation AUROC and Dice",
    ]
    trace = next(trace for trace in windows[WINDOW_ACCURACY]["content"]["data"] if trace["name"] == "train tier1")
    assert trace["x"] == [1, 2, 3]
    assert trace["y"] == pytest.approx([0.6, 0.7, 0.8])
    assert windows[WINDOW_MASKS]["content"]["src"].startswith("data:image/png;base64,")


def test_the_log_of_a_run_without_a_server_can_be_replayed(real_visdom, closed_port, tmp_path):
    train_a_little(view(closed_port, tmp_path / "visdom.log", env="later"))
    client(real_visdom).replay_log(tmp_path / "visdom.log")
    windows = json.loads(client(real_visdom).get_window_data(env="later"))
    assert len(windows) == 6
    assert points({"data": windows[WINDOW_LOSS]["content"]["data"]})["cls"] == [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]
