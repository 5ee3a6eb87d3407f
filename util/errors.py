"""The one kind of error that a person at the shell is meant to read, and the wrapper that prints it."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


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


def run_door(main: Callable[[], int | None]) -> None:
    """Run a command's ``main`` and leave with its exit status; user errors become one message on stderr."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
