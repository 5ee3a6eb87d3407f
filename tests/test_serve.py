"""The page that judges what is dropped into it: who may ask, what is refused, several users, and the page itself."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import decode_rgb, otsu_mask
from data.unlabelled import batches_of
from models.judges import Panel, Said
from models.novelty import Novelty
from models.serving import Desk, shown_size
from tests.test_predict import cells_by_otsu
from util import serve
from util.errors import UserError
from util.serve import UPLOAD_TYPE, Queue, is_own_host, open_server, refusal

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FACTS = {"run": "SEG, epoch 6", "about": ["Trained on <b>little</b>."]}


def png(rgb=None):
    buffer = io.BytesIO()
    rgb = np.full((20, 30, 3), 200, np.uint8) if rgb is None else rgb
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


def smear():
    rgb = np.full((96, 128, 3), (235, 225, 230), np.uint8)
    rows, columns = np.mgrid[:96, :128]
    for y, x in ((30, 30), (30, 60), (60, 90), (70, 40)):
        rgb[(rows - y) ** 2 + (columns - x) ** 2 < 144] = (190, 110, 130)
    return rgb


class Judge:
    """A judge with fixed answers and a novelty that is far off."""

    def __init__(self, logit=2.0):
        network = SimpleNamespace(open_tiers=2)
        self.saved = SimpleNamespace(network=network, masks_from="decoder", facts={"data": {}, "epoch": 6})
        self.name, self.load_size, self.digest, self.logit = "SEG", 64, "", logit
        self.reference = SimpleNamespace(of=lambda image, features: Novelty(1.7, 0.2, 0.4, True))

    def __call__(self, batch):
        logits = np.array([[-1.0, self.logit, self.logit, self.logit]], np.float32)
        return Said(logits, (1 - batch.rgb[:, 1].numpy()).astype(np.float32), None)


def desk(monkeypatch, logit=2.0):
    monkeypatch.setattr("models.serving.build_analyser", lambda options, device: cells_by_otsu)
    return Desk(
        Panel([Judge(logit)]),
        SimpleNamespace(cells="yes", masks_from="network"),
        torch.device("cpu"),
        decode=lambda content: decode_rgb(content, "the file", most_pixels=1_000_000),
        batches=lambda rgb: batches_of(rgb, [64], torch.device("cpu")),
        otsu=otsu_mask,
    )


class Running:
    """A server in a thread of its own."""

    def __init__(self, judge):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run(judge)), daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    async def _run(self, judge):
        self.loop, self.over, self.queue = asyncio.get_running_loop(), asyncio.Event(), Queue(judge)
        server, self.port = open_server(self.queue, FACTS, 0)
        self.ready.set()
        await self.over.wait()
        server.stop()
        self.queue.close()

    def close(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=given)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, dict(reply.getheaders()), content

    def send(self, body, **headers):
        status, _, content = self.ask("POST", "/judge", body, **{"Content-Type": UPLOAD_TYPE, **headers})
        return status, json.loads(content)


@pytest.fixture
def running():
    started = []

    def start(judge):
        started.append(Running(judge))
        return started[-1]

    yield start
    for server in started:
        server.close()


# ---- who may ask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8098", True), ("localhost:9", True), ("LOCALHOST", True), ("127.0.0.1", True), ("", False),
        ("evil.example:8098", False), ("127.0.0.1.evil.example", False), ("localhost:8098,evil", False),
        ("localhost@evil", False), ("[::1]:8098", False), ("127.0.0.1:80:80", False), ("0.0.0.0:8098", False),
    ],
)  # fmt: skip
def test_only_this_machine_s_names_are_answered(host, own):
    assert is_own_host(host) is own


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, None), ({"Origin": "http://localhost:1"}, None), ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403), ({"Origin": "https://localhost:1"}, 403), ({"Origin": "http://localhost:2"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "multipart/form-data"}, 415), ({"Content-Type": "text/plain"}, 415),
        ({"Content-Length": ""}, 411), ({"Content-Length": "-1"}, 411), ({"Content-Length": "32000001"}, 413),
        ({"Content-Length": "9" * 4000}, 413), ({"Content-Length": "0"}, 422),
    ],
)  # fmt: skip
def test_what_is_not_taken(changed, status):
    headers = {"Host": "localhost:1", "Content-Type": UPLOAD_TYPE, "Content-Length": "5"}
    said = refusal("POST", {**headers, **changed})
    assert (said and said[0]) == status
    assert refusal("PUT", headers)[0] == 405


def test_the_server_keeps_these_rules_and_gives_nothing_away(running):
    asked = []
    server = running(lambda content: asked.append(content) or {"fine": True})
    status, headers, page = server.ask("GET", "/")
    assert status == 200 and b"Judge a smear" in page and b"&lt;b&gt;little" in page and b"<b>little" not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert "Tornado" not in str(headers) and headers["Cache-Control"] == "no-store"
    for path in ("/", "/judge", "/waiting", "/other"):
        assert server.ask("GET", path, Host="evil.example")[0] == 421
    assert server.send(b"x", Host="evil.example")[0] == 421
    assert server.send(b"x", Origin="http://evil.example")[0] == 403
    assert server.ask("OPTIONS", "/judge", Origin="http://evil.example")[0] == 405
    assert server.ask("GET", "/judge")[0] == 405
    for path in ("/../../etc/passwd", "/%2e%2e/etc/passwd", "/judge/", "/static/x"):
        status, headers, content = server.ask("GET", path)
        assert (status, json.loads(content)) == (404, {"error": "there is nothing at this address"})
        assert "Access-Control-Allow-Origin" not in headers
    assert not asked
    assert server.send(b"x", Origin=f"http://127.0.0.1:{server.port}") == (200, {"fine": True}) and asked == [b"x"]


def test_too_much_is_refused_before_it_is_sent(running):
    server = running(lambda content: {})
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(
            f"POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: {UPLOAD_TYPE}\r\n"
            "Content-Length: 99000000\r\n\r\n".encode()
        )
        said = line.recv(4000)
    assert b" 413 " in said.splitlines()[0] and server.queue.uploads == 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(
            f"POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: {UPLOAD_TYPE}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        assert b" 411 " in line.recv(4000).splitlines()[0]


def test_errors_are_words_without_details(running, capfd):
    def judge(content):
        if content == b"bad":
            raise UserError("the file: no image", expected="PNG", found="\x1b[31m<b>", remedy="convert it")
        raise RuntimeError("/secret/path")

    server = running(judge)
    status, said = server.send(b"bad")
    assert status == 422 and said["error"] == "the file: no image" and said["remedy"] == "convert it"
    assert "\x1b" not in said["found"]
    status, said = server.send(b"worse")
    assert status == 500 and "secret" not in json.dumps(said) and "/secret/path" in capfd.readouterr().err
    assert server.send(b"bad")[0] == 422, "it goes on"


def test_several_users_wait_in_line_while_the_page_answers(running, monkeypatch, capfd):
    monkeypatch.setattr(serve, "MOST_WAITING", 3)
    free, order = threading.Event(), []

    def judge(content):
        free.wait(10)
        order.append((content, threading.current_thread().name))
        return {"of": content.decode()}

    server, answers = running(judge), {}
    users = []
    for name in ("a", "b", "c"):
        users.append(threading.Thread(target=lambda name=name: answers.__setitem__(name, server.send(name.encode()))))
        users[-1].start()
        until(lambda: server.queue.waiting == len(users))  # noqa: B023
    assert json.loads(server.ask("GET", "/waiting")[2]) == {"waiting": 3}
    assert server.ask("GET", "/")[0] == 200
    assert server.send(b"d")[0] == 503
    assert not capfd.readouterr().err, "no line for what is refused"
    free.set()
    for user in users:
        user.join(10)
    assert answers == {name: (200, {"of": name}) for name in "abc"}
    assert [content for content, _ in order] == [b"a", b"b", b"c"] and len({thread for _, thread in order}) == 1
    until(lambda: server.queue.uploads == 0)
    assert server.send(b"e")[0] == 200


def test_who_has_gone_is_not_judged(running):
    free, judged = threading.Event(), []

    def judge(content):
        judged.append(content)
        free.wait(10)
        return {}

    server = running(judge)
    first = threading.Thread(target=server.send, args=(b"first",))
    first.start()
    until(lambda: judged)
    line = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: {UPLOAD_TYPE}\r\nContent-Length: 4\r\n\r\n"
    line.sendall(f"{head}gone".encode())
    until(lambda: server.queue.waiting == 2)
    line.close()
    until(lambda: server.queue.uploads == 1)
    free.set()
    first.join(10)
    assert server.send(b"last")[0] == 200
    assert judged == [b"first", b"last"]


def test_uploads_that_hardly_come_on_give_way_when_all_places_are_taken(running, monkeypatch):
    monkeypatch.setattr(serve, "MOST_WAITING", 2)
    monkeypatch.setattr("util.serve_handlers.PATIENT_SECONDS", 0.2)
    server = running(lambda content: {"fine": True})
    head = f"POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: {UPLOAD_TYPE}\r\nContent-Length: 9000\r\n\r\n"
    lines = []
    for count in (1, 2):
        lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        lines[-1].sendall(head.encode() + b"x")
        until(lambda: server.queue.uploads == count)  # noqa: B023
    monkeypatch.setattr("util.serve_handlers.LEAST_RATE", 0)
    assert server.send(b"a")[0] == 503, "none of them is slow"
    monkeypatch.setattr("util.serve_handlers.LEAST_RATE", 100_000)
    until(lambda: server.send(b"b") == (200, {"fine": True}))
    assert lines[0].recv(100) == b"", "the first one is closed"
    lines[1].sendall(b"x" * 8999)
    assert b" 200 " in lines[1].recv(4000).splitlines()[0]
    until(lambda: server.queue.uploads == 0)
    assert not server.queue.incoming
    for line in lines:
        line.close()


def until(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupt_ends_it_at_once_while_an_image_is_judged():
    code = "import time; from util.serve import serve_page\nserve_page(lambda content: time.sleep(60), {!r}, port=0)"
    line = [sys.executable, "-c", code.format(FACTS)]
    root = Path(serve.__file__).resolve().parent.parent
    with subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as page:
        try:
            port = int(page.stdout.readline().split("/")[2].split(":")[1])
            with socket.create_connection(("127.0.0.1", port), timeout=10) as user:
                head = f"POST /judge HTTP/1.1\r\nHost: localhost\r\nContent-Type: {UPLOAD_TYPE}\r\n"
                user.sendall(f"{head}Content-Length: 1\r\n\r\nx".encode())
                until(lambda: waiting_at(port))
                page.send_signal(signal.SIGINT)
                told = page.communicate(timeout=10)
        finally:
            page.kill()
    assert told == ("closed\n", "") and page.returncode == 0


def waiting_at(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/waiting", timeout=10) as reply:
        return json.load(reply)["waiting"]


def test_a_port_that_is_taken_is_one_error(running):
    server = running(lambda content: {})

    async def second():
        open_server(Queue(lambda content: {}), FACTS, server.port)

    with pytest.raises(UserError, match="cannot be opened there"):
        asyncio.run(second())


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_an_answer_holds_verdict_mask_cells_and_doubts(monkeypatch):
    said = desk(monkeypatch).judge(png(smear()))
    assert said["verdict"] == "Anemic" and said["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    assert [tier["called"] for tier in said["tiers"]] == ["Healthy", "Anemic", None, "Anemic"]
    assert said["size"] == "128 x 96 pixels" and said["novelty"][0] == ["features", 1.7]
    assert "features 1.7" in said["warnings"][0]
    facts = dict(map(tuple, said["cells"]))
    assert facts["Red cells"].startswith("4,") and facts["Severity"] != "graded in anemic blood only"
    import base64

    assert [one["caption"] for one in said["pictures"]] == ["Smear", "Mask", "Cells"]
    shown = [np.array(Image.open(io.BytesIO(base64.b64decode(p["address"].split(",")[1])))) for p in said["pictures"]]
    assert all(picture.shape == (480, 640, 3) for picture in shown)
    # 5 pixels to one: the edge of the cell at (30, 30) is drawn, orange in the mask and blue among the cells
    edge = np.s_[145:156, 200:216]
    plain, mask, cells = (picture[edge].astype(int).reshape(-1, 3) for picture in shown)
    assert (mask[:, 0] - mask[:, 2]).max() > 100 > (plain[:, 0] - plain[:, 2]).max() + 20
    assert (cells[:, 2] - cells[:, 0]).max() > 80
    healthy = dict(map(tuple, desk(monkeypatch, logit=-2.0).judge(png(smear()))["cells"]))
    assert healthy["Severity"] == "graded in anemic blood only"
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GIF89a....", "not an image"), (b"", "not an image"), (png()[:60], "cannot be decoded"),
        (png(np.zeros((1001, 1000, 3), np.uint8)), "too large"), (b"<svg/>", "not an image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_an_error_that_names_no_path(monkeypatch, content, words):
    with pytest.raises(UserError, match=words) as error:
        desk(monkeypatch).judge(content)
    assert str(error.value).startswith("the file:") and "/" not in str(error.value).replace("and/or", "")


def test_pictures_are_neither_tiny_nor_huge():
    assert shown_size(64, 32) == (640, 320) and shown_size(4000, 3000) == (1100, 825)
    assert shown_size(800, 700) == (800, 700) and shown_size(10_000, 1) == (1100, 1)


def test_no_file_is_written(monkeypatch, tmp_path, running):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = running(desk(monkeypatch).judge)
    status, said = server.send(png(smear()))
    assert status == 200 and said["verdict"] == "Anemic" and list(tmp_path.iterdir()) == []


# ---- the page in a browser ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver is installed")
def test_the_page_in_a_browser(running, monkeypatch, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    server = running(desk(monkeypatch).judge)
    odd = tmp_path / "<img src=x onerror=alert(1)>.png"
    odd.write_bytes(png(smear()))
    (tmp_path / "broken.png").write_bytes(png()[:50])
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(f"http://127.0.0.1:{server.port}/")
        browser.find_element(By.ID, "files").send_keys(f"{odd}\n{tmp_path / 'broken.png'}")
        wait = WebDriverWait(browser, 15)
        wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".answer.anemic, .answer.failed")) == 2)
        failed, judged = browser.find_elements(By.CSS_SELECTOR, ".answer")
        assert "the file: the image cannot be decoded" in failed.text and "remedy" in failed.text
        assert judged.find_element(By.TAG_NAME, "h2").text == odd.name
        for words in ("Anemic", "Tier-III", "not opened", "4, ", "1.70 of limit", "unlike the images"):
            assert words in judged.text, words
        shown = judged.find_element(By.TAG_NAME, "img")
        assert browser.execute_script("return arguments[0].naturalWidth", shown) == 640
        cells = shown.get_attribute("src")
        judged.find_elements(By.CSS_SELECTOR, ".choices button")[0].click()
        assert shown.get_attribute("src") != cells and shown.get_attribute("alt") == "Smear"
        browser.set_window_size(500, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        log = [entry["message"] for entry in browser.get_log("browser")]
        assert not [line for line in log if "status of 422" not in line], log
        assert not browser.execute_script("return document.querySelectorAll('h2 img').length")
    finally:
        browser.quit()
