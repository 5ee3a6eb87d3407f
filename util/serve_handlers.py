"""How the page of ``util.serve`` is answered for: tornado's handlers, one for each address."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from typing import Any

from tornado import web

from util.errors import UserError
from util.report import printable
from util.serve import LEAST_RATE, PATIENT_SECONDS, Answer, Queue, is_own_host, page_of, refusal


def application(queue: Queue, facts: Answer) -> web.Application:
    """The page, its uploads, and how many are waiting."""
    page, policy = page_of(facts)
    routes: list[Any] = [("/", Page), ("/judge", Upload), ("/waiting", Waiting)]
    return web.Application(routes, default_handler_class=Missing, queue=queue, page=page, policy=policy)


class Handler(web.RequestHandler):
    """What every answer has in common: only this host is answered, nothing is stored, no detail leaks.

    The application's settings hold the ``queue``, the ``page`` and its ``policy``.
    """

    @property
    def queue(self) -> Queue:
        """The uploads on their way."""
        found: Queue = self.settings["queue"]
        return found

    def set_default_headers(self) -> None:
        """Headers of every answer."""
        self.set_header("Server", "3TDCFNet")
        self.set_header("Content-Security-Policy", self.settings["policy"])
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        """Refuse requests that name another host."""
        if not is_own_host(self.request.headers.get("Host", "")):
            self.refuse(421, "this page answers to 127.0.0.1 and localhost only")

    def refuse(self, status: int, what: str, **more: str) -> None:
        """Answer with an error in words."""
        self.set_status(status)
        self.finish({"error": printable(what), **{key: printable(text) for key, text in more.items() if text}})

    def write_error(self, status_code: int, **_: Any) -> None:
        """Answer with a status that tornado chose."""
        self.finish({"error": f"the page cannot do this ({status_code})"})

    def log_exception(self, *error: Any) -> None:
        """Print what is an error of the programme, on the terminal only."""
        if not isinstance(error[1], web.HTTPError):
            traceback.print_exception(error[1], file=sys.stderr)


class Page(Handler):
    """The page itself."""

    def get(self) -> None:
        """Answer with it."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(self.settings["page"])


class Waiting(Handler):
    """How many images are waiting or being judged."""

    def get(self) -> None:
        """Answer with the number."""
        self.finish({"waiting": self.queue.waiting})


class Missing(Handler):
    """Every other address."""

    def prepare(self) -> None:
        """Refuse it."""
        super().prepare()
        if not self._finished:
            self.refuse(404, "there is nothing at this address")


@web.stream_request_body
class Upload(Handler):
    """An image in, what is said of it out."""

    def initialize(self) -> None:
        """Begin with nothing received."""
        self.content, self.counted, self.gone = bytearray(), False, False
        self.began = time.monotonic()

    def prepare(self) -> None:
        """Take an upload or refuse it, before its content is read."""
        super().prepare()
        if self._finished:
            return
        refused = refusal(self.request.method or "", self.request.headers)
        if refused:
            self.refuse(*refused)
        elif not self.queue.make_room():
            self.set_header("Retry-After", "2")
            self.refuse(503, "too many images are waiting", remedy="try again in a moment")
        else:
            self.queue.uploads += 1
            self.queue.incoming.append(self)
            self.counted = True

    @property
    def slow(self) -> bool:
        """Whether it comes slower than ``LEAST_RATE``."""
        seconds = time.monotonic() - self.began
        return seconds > PATIENT_SECONDS and len(self.content) < LEAST_RATE * seconds

    def drop(self) -> None:
        """End the upload without an answer."""
        self.on_connection_close()
        connection: Any = self.request.connection
        connection.stream.close()

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the upload."""
        if not self._finished:
            self.content += chunk

    async def post(self) -> None:
        """Judge what was received."""
        self._received()
        try:
            answer = await self.queue.judged(bytes(self.content), lambda: self.gone)
        except asyncio.CancelledError:  # the page is being closed: there is nobody to tell
            self.gone = True
        except UserError as error:
            self.refuse(422, error.what, expected=error.expected, found=error.found, remedy=error.remedy)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on and says no more than this
            traceback.print_exception(error, file=sys.stderr)
            self.refuse(500, "the image could not be judged: an error in the programme, see its terminal")
        else:
            self.finish(json.dumps(answer, allow_nan=False))

    def finish(self, chunk: Any = None) -> Any:
        """Send an answer, unless nobody is there any more."""
        if isinstance(chunk, str):
            self.set_header("Content-Type", "application/json; charset=UTF-8")
        return None if self.gone else super().finish(chunk)

    def on_connection_close(self) -> None:
        """Note that nobody waits for the answer."""
        self.gone = True
        self._release()

    def on_finish(self) -> None:
        """Let the upload go."""
        self._release()

    def _received(self) -> None:
        if self in self.queue.incoming:
            self.queue.incoming.remove(self)

    def _release(self) -> None:
        self._received()
        self.content = bytearray()
        self.queue.uploads -= self.counted
        self.counted = False
