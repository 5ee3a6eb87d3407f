"""The one kind of error that a person at the shell is meant to read, and the wrapper that prints it."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from typing import TextIO

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports of a programme that SIGPIPE ended
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class UserError(Exception):
    """An error that the user can mend: it says what is wrong, what was expected, what was found and what to do.

    Args:
        what: the file, folder or option that is wrong, and how.
        expected: what should have been there.
        found: what was there instead.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, *, expected: str = "", found: str = "", remedy: str = "") -> None:
        self.what, self.expected, self.found, self.remedy = what, expected, found, remedy
        parts = [what]
        parts += [f"  expected: {expected}"] if expected else []
        parts += [f"  found:    {found}"] if found else []
        parts += [f"  remedy:   {remedy}"] if remedy else []
        super().__init__("\n".join(parts))


def visible(text: str) -> str:
    r"""A text whose control characters cannot reach a terminal: each is written as ``\x1b``; line ends stay."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def run_door(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave with its exit status; user errors become one message on stderr.

    Where the reader of stdout has gone (``| head``), it leaves with 141 and says nothing.
    """
    try:
        status = main() or 0
        sys.stdout.flush()  # here, where a closed pipe can still be told from a fault, and not at exit
        sys.exit(status)
    except BrokenPipeError:
        if not _silence_closed():
            raise
        sys.exit(EXIT_BROKEN_PIPE)
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _silence_closed() -> bool:
    """Say whether the reader of stdout or stderr has gone, and let nothing be written there when Python flushes it."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            gone = _reader_gone(stream)
        except BrokenPipeError:
            gone = True
        if gone:
            closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return closed


def _reader_gone(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads; what it failed to write may be dropped already and flush well."""
    try:
        watch = select.poll()
        watch.register(stream.fileno(), 0)
    except (AttributeError, OSError, ValueError):
        return False  # a system without poll, or a stream without a file
    return any(event & select.POLLERR for _, event in watch.poll(0))
