"""The live view: what reaches visdom, and that nothing which goes wrong on the way reaches the training."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from util.errors import UserError
from util.live_panes import MAX_SIDE, MAX_SMEARS, Panes, gate_table, histogram_edges, image_grid
from util.live_tensorboard import require_tensorboard
from util.live_worker import LatestWorker
from util.visualizer import EXAMPLES_SHARE, GREETING, Visualizer

TIMEOUT = 0.5  # for servers that never answer
PATIENCE = 30.0  # for servers that do, on a busy machine
WINDOWS = [str(7 + i) for i in range(8)]
WINDOW_LOSS, WINDOW_ACCURACY, WINDOW_RATE, WINDOW_GATE, WINDOW_MASKS, WINDOW_QUALITY, WINDOW_VERDICTS, WINDOW_CELLS = (
    WINDOWS
)


def epoch_record(epoch, **changes):
    train = {"loss_cls": 1 / (epoch + 1), "loss_L1": 0.5, "accuracy": {"tier1": 0.5 + epoch / 10, "global": 0.6}}
    val = {"loss": 0.7, "accuracy": {"tier1": 0.55, "tier2": None}, "auroc": {"global": 0.75}, "dice": None}
    val |= {"confusion": {"global": [[8, 2], [3, epoch]]}} | changes.get("val", {})
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


def train_a_little(visualizer, epochs=3, flush=0.0):
    """Everything that a training run calls, epochs as long as ``flush`` lets them; returns how many seconds it took."""
    start = time.perf_counter()
    smear = np.full((2, 12, 16, 3), 200, np.uint8)
    mask = np.zeros((2, 12, 16), np.uint8)
    mask[:, 3:9, 2:8] = 1  # one cell in each
    for epoch in range(1, epochs + 1):
        visualizer.plot_epoch(epoch_record(epoch))
        visualizer.mark_gate(gate_record(epoch, "open" if epoch == 2 else "stay"))
        visualizer.show_images(smear, {"true mask": mask, "predicted mask": mask})
        visualizer.flush(flush)
    visualizer.close()
    return time.perf_counter() - start


def test_cells_that_are_no_numbers_end_the_view_and_not_the_training(tmp_path, capfd):
    visualizer = Visualizer(0, log_path=tmp_path / "log")
    visualizer.show_images(np.zeros((1, 8, 8, 3), np.uint8), {"true mask": [["a"]]})
    visualizer.close()
    assert "the live view failed" in one_warning(capfd)


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
    assert set(windows) == {WINDOW_LOSS, WINDOW_ACCURACY, WINDOW_RATE, WINDOW_QUALITY, WINDOW_VERDICTS}
    assert all(message["eid"] == "smears" for message in windows.values())
    assert windows[WINDOW_LOSS]["layout"]["title"]["text"] == "RUN: loss"
    assert points(windows[WINDOW_LOSS]) == {
        "class": [(1, 1 / 2), (2, 1 / 3)],
        "L1": [(1, 0.5), (2, 0.5)],
        "class, validation": [(1, 0.7), (2, 0.7)],
    }
    assert points(windows[WINDOW_ACCURACY]) == {
        "Tier-I training": [(1, 0.6), (2, 0.7)],
        "Global training": [(1, 0.6), (2, 0.6)],
        "Tier-I validation": [(1, 0.55), (2, 0.55)],
    }
    assert points(windows[WINDOW_RATE]) == {"learning rate": [(1, 2e-4), (2, 2e-4)]}
    assert points(windows[WINDOW_QUALITY]) == {"AUROC Global": [(1, 0.75), (2, 0.75)]}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), None, "n/a", True])
def test_what_is_not_a_finite_number_is_left_out(bad):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch(epoch_record(1))
        visualizer.plot_epoch(epoch_record(2, train={"loss_cls": bad}))
        visualizer.plot_epoch(epoch_record(3))
        assert visualizer.flush(PATIENCE)
    assert visualizer.live
    assert points(server.windows()[WINDOW_LOSS])["class"] == [(1, 1 / 2), (3, 1 / 4)]
    assert len(points(server.windows()[WINDOW_LOSS])["L1"]) == 3


def test_gate_decisions_stand_in_their_pane_and_all_but_stay_mark_the_accuracy():
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch(epoch_record(1))
        assert visualizer.flush(PATIENCE)
        posted = len(server.posted)
        visualizer.mark_gate(gate_record(1, "stay"))
        assert visualizer.flush(PATIENCE)
        assert [message["win"] for _, message in server.posted[posted:]] == [WINDOW_GATE], "only what has changed"
        assert "shapes" not in server.windows()[WINDOW_ACCURACY]["layout"]
        visualizer.mark_gate(gate_record(2, "open", reason="0.9 > 0.85 <script>"))
        visualizer.close()
    table = server.windows()[WINDOW_GATE]["data"][0]["content"]
    assert "0.9 &gt; 0.85 &lt;script&gt;" in table
    assert table.index(">2</td>") < table.index(">stay</td>"), "the newest decision comes first"
    layout = server.windows()[WINDOW_ACCURACY]["layout"]
    assert [(shape["x0"], shape["x1"]) for shape in layout["shapes"]] == [(2, 2)]
    assert layout["annotations"][0]["text"] == "gate 1: open"


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
        visualizer.show_images(smear, {"true mask": true_mask, "predicted mask": predicted})
        visualizer.close()
    source = server.windows()[WINDOW_MASKS]["data"][0]["content"]["src"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert picture.shape == (2 * (6 + 4), 3 * (8 + 4), 3)
    assert picture[0, 0].tolist() == [200, 10, 20]
    assert picture[10, 0].tolist() == [0, 0, 90], "one row for each smear"
    assert picture[0, 12].tolist() == [255, 255, 255]
    assert picture[10, 12].tolist() == [0, 0, 0], "the true mask stands beside its own smear"
    assert picture[0, 24].tolist() == [128, 128, 128]


def test_the_grid_stays_small_and_takes_one_mask():
    smear = np.zeros((9, 600, 300, 3), np.uint8)
    grid = image_grid(smear, [np.ones((9, 600, 300), np.int64)])
    assert grid.shape == (MAX_SMEARS * (200 + 4), 2 * (100 + 4), 3)
    assert max(200, 100) <= MAX_SIDE
    assert grid[0, 104].tolist() == [255, 255, 255]


def test_a_resumed_run_draws_its_earlier_epochs_again():
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        row = {key: str(value) for key, value in gate_record(2, "open").items()}  # as csv.DictReader gives it
        visualizer.restore([epoch_record(1), epoch_record(2)], [row])
        visualizer.plot_epoch(epoch_record(3))
        visualizer.close()
    assert [x for x, _ in points(server.windows()[WINDOW_LOSS])["class"]] == [1, 2, 3]
    assert server.windows()[WINDOW_ACCURACY]["layout"]["shapes"][0]["x0"] == 2


# what goes wrong


def test_display_id_0_keeps_the_log_and_imports_nothing_for_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from util.visualizer import Visualizer\n"
        f"v = Visualizer(0, log_path=Path({str(tmp_path / 'log')!r}))\n"
        "v.plot_epoch({'epoch': 1, 'lr': 0.5}); v.mark_gate({'epoch': 1}); v.close()\n"
        "assert not {'visdom', 'requests', 'torch', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [window for window, _ in read_log(tmp_path / "log")] == ["3", "4"], "learning rate and gate"


def test_nothing_asked_for_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    visualizer = Visualizer(0, log_path=None)
    visualizer.show_examples(lambda: pytest.fail("made pictures that nobody sees"))
    train_a_little(visualizer)
    assert threading.active_count() == threads
    assert not list(tmp_path.iterdir())


def test_a_negative_display_id_is_the_users_error():
    with pytest.raises(UserError, match="--display_id -1"):
        Visualizer(-1, log_path=None)


def test_requests_not_installed(monkeypatch, capfd, tmp_path):
    monkeypatch.setitem(sys.modules, "requests", None)
    train_a_little(view(1, tmp_path / "visdom.log"))
    line = one_warning(capfd)
    assert "pip install -r requirements.txt" in line
    assert len(read_log(tmp_path / "visdom.log")) == 8


def test_no_server(closed_port, capfd, tmp_path):
    visualizer = view(closed_port, tmp_path / "visdom.log")
    assert not visualizer.live
    assert "connection refused" in capfd.readouterr().err, "told before the first epoch"
    visualizer = view(closed_port, tmp_path / "visdom.log")
    assert train_a_little(visualizer) < PATIENCE
    line = one_warning(capfd)
    for part in (
        f"http://127.0.0.1:{closed_port}",
        "connection refused",
        "scripts/visdom_server.sh",
        "scripts/visdom_replay.py",
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
        assert time.perf_counter() - start < GREETING + 0.3 + TIMEOUT / 2
        visualizer.plot_epoch(epoch_record(1))
        assert capfd.readouterr().err == ""
        time.sleep(2 * TIMEOUT)
        train_a_little(visualizer)
        silent.settimeout(TIMEOUT)
        silent.accept()[0].close()
        with pytest.raises(TimeoutError):  # one call, and no second for as long as the run lasted
            silent.accept()
    assert f"no answer within {TIMEOUT:g} s" in one_warning(capfd)
    assert len(read_log(tmp_path / "visdom.log")) == 8


def test_no_call_waits_for_a_server_that_falls_silent(capfd, tmp_path):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1], tmp_path / "visdom.log", timeout=3.0)
        visualizer.plot_epoch(epoch_record(1))
        assert visualizer.flush(PATIENCE)
        healthy = server.requests
        server.delay = PATIENCE
        slowest = 0.0
        for epoch in range(2, 30):
            start = time.perf_counter()
            visualizer.plot_epoch(epoch_record(epoch))
            visualizer.mark_gate(gate_record(epoch, "stay"))
            visualizer.show_images(np.zeros((2, 64, 64, 3), np.uint8), {"predicted mask": np.zeros((2, 64, 64))})
            slowest = max(slowest, time.perf_counter() - start)
        assert slowest < 1.0, "a call of an epoch may not wait for the server"
        start = time.perf_counter()
        visualizer.close()
        assert time.perf_counter() - start < PATIENCE / 2, "the end waits for one timeout"
        assert server.requests == healthy + 1
    assert "no answer within 3 s" in one_warning(capfd)
    assert [x for x, _ in points(dict(read_log(tmp_path / "visdom.log"))[WINDOW_LOSS])["class"]] == list(range(1, 30))


def test_a_slow_server_gets_the_newest_panes_and_the_run_does_not_wait(capfd):
    with FakeVisdom(delay=0.2) as server:
        visualizer = view(server.server_address[1])
        for epoch in range(1, 41):
            visualizer.plot_epoch(epoch_record(epoch))
            time.sleep(0.01)
        visualizer.close()
        assert server.requests < 40, "40 epochs of 5 panes would be 200"
    assert len(points(server.windows()[WINDOW_LOSS])["class"]) == 40
    assert capfd.readouterr().err == "", "nothing that is shown is missing"


def test_a_server_too_slow_for_the_last_panes_costs_one_line(capfd):
    with FakeVisdom(delay=0.4) as server:
        visualizer = view(server.server_address[1], timeout=0.9)
        train_a_little(visualizer)
    assert re.search(r"visdom is slow .* [2-8] panes were not posted", capfd.readouterr().err)


def test_a_server_that_dribbles_cannot_hold_the_training(capfd):
    with FakeVisdom(dribble=int(5 * PATIENCE / TIMEOUT)) as server:
        start = time.perf_counter()
        visualizer = view(server.server_address[1], timeout=TIMEOUT)
        time.sleep(TIMEOUT)
        train_a_little(visualizer)
        assert time.perf_counter() - start < PATIENCE / 2
        assert server.requests == 1
    assert "no answer within" in one_warning(capfd)


@pytest.mark.parametrize("lives", [1, 2, 6, 9])
def test_a_server_that_dies_mid_run(lives, capfd, tmp_path):
    with FakeVisdom(lives=lives) as server:
        visualizer = view(server.server_address[1], tmp_path / "visdom.log")
        assert visualizer.flush(PATIENCE) and visualizer.live
        train_a_little(visualizer, flush=PATIENCE)
        assert server.requests == lives + 1, "one failure and no second try"
    one_warning(capfd)
    kept = dict(read_log(tmp_path / "visdom.log"))
    assert [x for x, _ in points(kept[WINDOW_LOSS])["class"]] == [1, 2, 3], "the log goes on to the last epoch"


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
        assert len(server.windows()) == 8, "the server still gets every pane"
    assert "offline log" in one_warning(capfd)


def test_records_and_pictures_of_the_wrong_kind_do_not_raise(capfd):
    with FakeVisdom() as server:
        visualizer = view(server.server_address[1])
        visualizer.plot_epoch({})
        visualizer.plot_epoch({"epoch": 1, "train": None, "val": 3, "lr": [1]})
        assert visualizer.flush(PATIENCE)
        assert capfd.readouterr().err == ""
        visualizer.show_images(np.zeros((2, 2)), {"predicted mask": np.zeros(3)})
        visualizer.plot_epoch(epoch_record(2))
        visualizer.close()
    assert "the live view failed" in one_warning(capfd)


# the log


def read_log(path):
    return [(message["win"], message) for _, message in map(json.loads, path.read_text().splitlines())]


def test_the_log_holds_each_pane_once_however_long_the_run(closed_port, tmp_path):
    train_a_little(view(closed_port, tmp_path / "deep" / "visdom.log"), epochs=20)
    entries = read_log(tmp_path / "deep" / "visdom.log")
    assert sorted(window for window, _ in entries) == sorted(WINDOWS)
    assert len(points(dict(entries)[WINDOW_LOSS])["class"]) == 20


# what is drawn


def test_a_line_is_what_visdoms_own_client_sends():
    visdom = pytest.importorskip("visdom")
    sent = {}

    class Recorder(visdom.Visdom):
        def _log(self, msg, endpoint):
            sent[msg["win"]] = (endpoint, json.loads(json.dumps(msg)))

    client = Recorder(env="e", offline=True, log_to_filename="", use_incoming_socket=False)
    client.scatter(np.array([[1.0, 0.5], [2.0, 0.25]]), win="1", opts={"title": "R: loss", "legend": ["class"]})
    client.image(np.zeros((3, 6, 8), np.uint8), win="5", opts={"title": "R: masks"})
    client.text("words", win="4", opts={"title": "R: gate"})
    panes = Panes(1, "e", "R")
    records = [epoch_record(1, train={"loss_cls": 0.5}), epoch_record(2, train={"loss_cls": 0.25})]
    ours = panes.epoch_panes(records, []) | panes.gate_pane([])
    ours |= panes.picture_pane(np.zeros((6, 8, 3), np.uint8), "smear")
    for window, (endpoint, message) in sent.items():
        mine = json.loads(ours[window].body)
        assert (ours[window].endpoint, mine["win"], mine["eid"]) == (endpoint, window, "e")
        assert set(message) <= set(mine)
        assert mine["data"][0]["type"] == message["data"][0]["type"]
        assert set(mine["data"][0]) >= {key for key in message["data"][0] if key in ("x", "y", "name", "content")}
    theirs, mine = sent["1"][1]["data"][0], json.loads(ours["1"].body)["data"][0]
    assert [mine[key] for key in ("x", "y", "name")] == [theirs[key] for key in ("x", "y", "name")]
    assert json.loads(ours["5"].body)["data"][0]["content"]["src"].startswith(
        sent["5"][1]["data"][0]["content"]["src"][:22]
    )


def drawn(panes):
    return {window: json.loads(message.body) for window, message in panes.items()}


def test_the_confusion_matrix_has_a_row_for_each_true_class():
    records = [epoch_record(1), epoch_record(2, val={"confusion": {"global": [[30, 10], [5, 15]]}})]
    pane = drawn(Panes(7, "main", "R").epoch_panes(records, []))[WINDOW_VERDICTS]
    assert pane["data"][0]["y"] == ["Healthy", "Anemic"]
    assert pane["data"][0]["z"] == [[0.75, 0.25], [0.25, 0.75]]
    words = {(note["y"], note["x"]): note["text"] for note in pane["layout"]["annotations"]}
    assert words["Healthy", "said Anemic"] == "<b>10</b><br>25.0%"
    assert words["Anemic", "said Healthy"] == "<b>5</b><br>25.0%"
    assert pane["layout"]["yaxis"]["autorange"] == "reversed", "Healthy above Anemic"


@pytest.mark.parametrize("bad", [None, {}, {"global": None}, {"global": [[1, 2]]}, {"global": [[0, 0], [0, 0]]}, "x"])
def test_no_confusion_matrix_no_pane(bad):
    panes = Panes(7, "main", "R").epoch_panes([epoch_record(1, val={"confusion": bad})], [])
    assert WINDOW_VERDICTS not in panes
    assert WINDOW_LOSS in panes


def test_the_histogram_counts_every_cell_once():
    values = np.append(np.random.default_rng(0).normal(80, 6, 3000), 400.0)
    pane = drawn(Panes(7, "main", "R").cell_pane({"true mask": values, "predicted mask": values[:7]}))[WINDOW_CELLS]
    bars, predicted = pane["data"]
    assert (sum(bars["y"]), sum(predicted["y"])) == (3001, 7)
    assert bars["x"] == predicted["x"], "the same bins"
    assert (bars["name"], pane["layout"]["barmode"]) == (
        f"true mask: 3,001 cells, median {np.median(values):.1f} px",
        "overlay",
    )
    assert 10 < len(bars["x"]) <= 60
    for count, centre, width in zip(bars["y"], bars["x"], bars["width"], strict=True):
        inside = (values >= centre - width / 2 - 1e-9) & (values < centre + width / 2 - 1e-9)
        assert abs(int(inside.sum()) - count) <= 1  # the last edge belongs to the last bin
    assert Panes(7, "main", "R").cell_pane({"true mask": np.empty(0)}) == {}
    assert np.histogram(np.ones(5), bins=histogram_edges(np.ones(5)))[0].sum() == 5


def test_a_mask_without_cells_is_named_beside_one_that_has_some():
    pane = drawn(Panes(7, "main", "R").cell_pane({"true mask": np.full(4, 9.0), "predicted mask": np.empty(0)}))
    assert [bars["name"] for bars in pane[WINDOW_CELLS]["data"]] == [
        "true mask: 4 cells, median 9.0 px",
        "predicted mask: no cell",
    ]


def test_names_are_shown_as_text():
    panes = drawn(Panes(7, "main", "<img src=x>").epoch_panes([epoch_record(1)], []))
    assert panes[WINDOW_LOSS]["layout"]["title"]["text"].startswith("&lt;img")


def test_pictures_that_take_long_are_made_less_often(tmp_path):
    made = []

    def produce():
        made.append(time.monotonic())
        time.sleep(0.05)
        return np.zeros((1, 8, 8, 3), np.uint8), {"predicted mask": np.zeros((1, 8, 8))}

    with Visualizer(0, log_path=tmp_path / "log") as visualizer:
        for epoch in range(1, 6):
            visualizer.plot_epoch(epoch_record(epoch))
            visualizer.show_examples(produce)
        assert len(made) == 1
        visualizer._begun -= 0.13 / EXAMPLES_SHARE  # as if the run had lasted so long
        visualizer.show_examples(produce)
        assert len(made) == 2
        visualizer.show_examples(produce)
        assert len(made) == 2
    assert "masks, epoch 5" in dict(read_log(tmp_path / "log"))["5"]["layout"]["title"]["text"]


def test_masks_that_take_long_to_split_are_shown_less_often(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("util.visualizer.mask_diameters", lambda masks: time.sleep(0.1) or np.full(3, 9.0))

    def produce():
        made.append(1)
        return np.zeros((1, 8, 8, 3), np.uint8), {"predicted mask": np.zeros((1, 8, 8))}

    with Visualizer(0, log_path=tmp_path / "log") as visualizer:
        visualizer.show_examples(produce)
        assert visualizer.flush(PATIENCE)
        visualizer._begun -= 0.1 / EXAMPLES_SHARE  # enough for the pictures, not for their cells
        visualizer.show_examples(produce)
        assert len(made) == 1
        visualizer._begun -= 1.0 / EXAMPLES_SHARE
        visualizer.show_examples(produce)
        assert len(made) == 2


def test_pictures_that_cannot_be_made_end_the_view_only(tmp_path, capfd):
    with Visualizer(0, log_path=tmp_path / "log") as visualizer:
        visualizer.show_examples(lambda: 1 / 0)
    assert "ZeroDivisionError" in one_warning(capfd)


def test_what_waits_is_overtaken_by_the_newest_of_its_key_and_counted():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work(items):
        begun.set()
        go_on.wait(PATIENCE)
        done.append(items)

    worker = LatestWorker("test", work, at_once=False)
    worker.offer({"a": 1})
    assert begun.wait(PATIENCE)
    for value in (2, 3, 4):
        worker.offer({"a": value, "b": value})
    assert (worker.waiting, worker.overtaken) == (2, 4)
    assert not worker.close(0.01)
    worker.offer({"c": 1})
    assert worker.waiting == 2, "closed: nothing more is taken"
    go_on.set()
    assert done[:1] in ([], [{"a": 1}])


# TensorBoard


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    loaded.Reload()
    return loaded


def test_tensorboard_gets_scalars_pictures_gates_and_cells(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    (tmp_path / "events.out.tfevents.1.of.an.earlier.run").write_bytes(b"x")
    with Visualizer(0, log_path=None, tensorboard=tmp_path) as visualizer:
        train_a_little(visualizer)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "events.out.tfevents.1.of.an.earlier.run").exists()
    shown = events(tmp_path)
    assert [(e.step, e.value) for e in shown.Scalars("loss/cls")] == [
        (1, pytest.approx(1 / 2)),
        (2, pytest.approx(1 / 3)),
        (3, pytest.approx(1 / 4)),
    ]
    assert [e.value for e in shown.Scalars("accuracy validation/tier1")] == pytest.approx([0.55] * 3)
    assert [e.step for e in shown.Images("smear, true mask, predicted mask")] == [1, 2, 3]
    assert shown.Histograms("cell diameters, pixels/predicted mask")[0].histogram_value.num == 2
    texts = shown.Tensors("gate/text_summary")
    assert b"**Tier 1: open**" in texts[1].tensor_proto.string_val[0]


def test_a_resumed_run_goes_on_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with Visualizer(0, log_path=None, tensorboard=tmp_path) as first:
        for epoch in (1, 2, 3):
            first.plot_epoch(epoch_record(epoch))
    with Visualizer(0, log_path=None, tensorboard=tmp_path) as second:
        second.restore([epoch_record(1), epoch_record(2)])  # the third was lost
        second.plot_epoch(epoch_record(3, train={"loss_cls": 9.0}))
    values = [(e.step, e.value) for e in events(tmp_path).Scalars("loss/cls")]
    assert values == [(1, pytest.approx(1 / 2)), (2, pytest.approx(1 / 3)), (3, 9.0)]


def test_tensorboard_that_is_missing_is_told_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard") as error:
        require_tensorboard()
    assert "pip install tensorboard" in str(error.value)


def test_tensorboard_that_cannot_write_costs_one_line(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with Visualizer(0, log_path=None, tensorboard=tmp_path / "file" / "events") as visualizer:
        train_a_little(visualizer)
    assert "TensorBoard" in one_warning(capfd)
