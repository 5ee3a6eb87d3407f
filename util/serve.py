"""A page on this machine into which smears are dropped: one worker judges them one after the other; no file is kept.

Only this machine can reach it (127.0.0.1). Pages of other sites that are open in the same browser cannot: a request
must name this host (against DNS rebinding), and an upload must come from the page itself or from no page at all.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from util.assets import asset
from util.errors import UserError
from util.report import printable

if TYPE_CHECKING:
    from tornado.httpserver import HTTPServer

ADDRESS = "127.0.0.1"
HOSTS = frozenset({ADDRESS, "localhost"})
MOST_BYTES = 32_000_000  # of an upload
MOST_PIXELS = 25_000_000  # of an image
MOST_WAITING = 8  # uploads that are received, wait or are judged; each may hold MOST_BYTES
BODY_SECONDS = 120.0  # that an upload may take
# Where all places are taken, an upload that comes slower than this after its first seconds has to give way.
PATIENT_SECONDS, LEAST_RATE = 5.0, 100_000  # bytes a second; below what any line to this machine carries
UPLOAD_TYPE = "application/octet-stream"  # a form of another site cannot send it, nor a script without leave

Answer = Mapping[str, Any]
JudgeUpload = Callable[[bytes], Answer]


class Incoming(Protocol):
    """An upload that is being received."""

    @property
    def slow(self) -> bool:
        """Whether it comes slower than ``LEAST_RATE``."""

    def drop(self) -> None:
        """End it, and leave ``Queue.incoming``."""


class Queue:
    """Uploads on their way: one thread judges them in the order in which they came.

    Args:
        judge: what is done with an upload; raises UserError where it cannot be judged.
    """

    def __init__(self, judge: JudgeUpload) -> None:
        self._judge = judge
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self.busy = False  # judging one right now
        self.uploads = 0  # being received, waiting or being judged
        self.waiting = 0  # waiting or being judged
        self.incoming: list[Incoming] = []  # being received

    def make_room(self) -> bool:
        """Whether there is a place for another upload, if need be that of one that hardly comes on."""
        if self.uploads >= MOST_WAITING:
            slow = next((upload for upload in self.incoming if upload.slow), None)
            if slow is not None:
                slow.drop()
        return self.uploads < MOST_WAITING

    async def judged(self, content: bytes, gone: Callable[[], bool]) -> Answer:
        """Wait for the answer to an upload; where nobody is waiting for it any more it is not judged."""
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: {} if gone() else self._judge_one(content))
        finally:
            self.waiting -= 1

    def _judge_one(self, content: bytes) -> Answer:
        self.busy = True
        try:
            return self._judge(content)
        finally:
            self.busy = False

    def close(self) -> None:
        """Take no more; what is being judged is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def serve_page(judge: JudgeUpload, facts: Answer, *, port: int) -> None:
    """Serve the page until interrupted.

    Args:
        judge: answers an upload with plain data, see ``serve.js`` for its parts.
        facts: what the page says of the network: ``run``, ``about`` (sentences).
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """
    queue = Queue(judge)

    async def run() -> None:
        server, taken = open_server(queue, facts, port)
        print(f"page: http://{ADDRESS}:{taken}/ (this machine only; Ctrl+C ends it)", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()
            queue.close()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())
    print("closed", flush=True)
    if queue.busy:  # Python would wait for the thread; nothing is written that could be left half done
        sys.stderr.flush()
        os._exit(0)


def open_server(queue: Queue, facts: Answer, port: int) -> tuple[HTTPServer, int]:
    """Listen at 127.0.0.1, in the running event loop.

    Returns:
        the server and its port.

    Raises:
        UserError: the port is taken.
    """
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_sockets

    from util.serve_handlers import application

    try:
        sockets = bind_sockets(port, ADDRESS)
    except OSError as error:
        raise UserError(
            f"--port {port}: the page cannot be opened there",
            expected="a free port",
            found=error.strerror or str(error),
            remedy="choose another --port, or 0 for any",
        ) from None
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)  # answers of 5xx are logged as errors
    server = HTTPServer(
        application(queue, facts), max_body_size=MOST_BYTES, body_timeout=BODY_SECONDS, max_header_size=16_384
    )
    server.add_sockets(sockets)
    return server, sockets[0].getsockname()[1]


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine, at any port: another port is a tunnel's."""
    name, _, port = host.partition(":")
    return name.lower() in HOSTS and (not port or (port.isascii() and port.isdigit()))


def refusal(method: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Why an upload is not taken, as status and words, or None."""
    if method != "POST":
        return 405, "images are sent by POST"
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "same-origin")
    if (origin is not None and origin != f"http://{headers['Host']}") or site not in ("same-origin", "none"):
        return 403, "images are taken from this page only"
    if headers.get("Content-Type", "") != UPLOAD_TYPE:
        return 415, f"images are sent as {UPLOAD_TYPE}"
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        return 411, "the length of the image is missing"
    if int(length[:12]) > MOST_BYTES:
        return 413, f"the file is larger than {MOST_BYTES // 1_000_000} MB"
    return (422, "the file is empty") if int(length[:12]) == 0 else None


def page_of(facts: Answer) -> tuple[str, str]:
    """The page and the policy that lets its own style and script run and nothing else."""
    import dominate
    from dominate import tags
    from dominate.util import raw

    style, script = asset("report.css") + asset("serve.css"), asset("serve.js")
    document = dominate.document(title=f"{printable(facts['run'])}: judge a smear", lang="en")
    document.head.add(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.meta(name="color-scheme", content="light dark"),
        tags.link(rel="icon", href="data:,"),
        tags.style(raw(style)),
    )
    document.body.add(_top(facts), _body(), tags.script(raw(script)))
    return str(document.render(pretty=False)), _policy(style, script)


def _policy(style: str, script: str) -> str:
    """What the page may do, as the header Content-Security-Policy says it."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_digest(script)}'",
        "style-src": f"'sha256-{_digest(style)}'",
        "img-src": "data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{key} {value}" for key, value in rules.items())


def _top(facts: Answer) -> Any:
    """What the page is, and what must be known of its network."""
    from dominate import tags

    caution = "Verdicts hold for smears like those that the network learned from."
    notices = [tags.li(tags.b("Research use only, not for diagnosis."), caution, cls="notice strong")]
    notices += [tags.li(printable(sentence), cls="notice") for sentence in facts["about"]]
    inner = tags.div(
        tags.p("3-TierDCFNet \N{MIDDLE DOT} prediction", cls="eyebrow"),
        tags.h1("Judge a smear"),
        tags.ul(tags.li("Weights ", tags.b(printable(facts["run"]))), cls="facts"),
        tags.ul(*notices, cls="notices"),
        cls="wide",
    )
    return tags.header(inner, cls="top")


def _body() -> Any:
    """The place to drop images, and where the answers go."""
    from dominate import tags

    words = f"PNG, JPEG, BMP or TIFF, up to {MOST_BYTES // 1_000_000} MB and {MOST_PIXELS // 1_000_000} megapixels"
    drop = tags.label(
        tags.b("Drop smears here, or choose files"),
        tags.span(f"{words}. They are judged on this machine and not kept."),
        tags.input_(type="file", id="files", multiple=True, accept=".png,.jpg,.jpeg,.bmp,.tif,.tiff"),
        id="drop",
        cls="panel",
        data_bytes=str(MOST_BYTES),
    )
    more = tags.p("For many images use 3TDCFNet_predict.py with --dataroot, which also writes tables.")
    footer = tags.footer(tags.div(more, cls="wide"))
    answers = tags.div(id="answers", aria_live="polite")
    script_needed = tags.noscript(tags.p("This page needs its script to send the images.", cls="notice strong"))
    return tags.main(tags.div(drop, script_needed, answers, cls="wide"), footer)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
