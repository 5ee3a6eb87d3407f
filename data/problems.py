"""What is wrong with a data root, met while it is listed: one code path that stops at the first, or goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from util.errors import UserError


class Problems:
    """Takes each problem that a reader meets.

    Args:
        tolerant: False raises the first problem, as a run needs; True keeps them all, as a survey of the data needs,
            and the reader goes on without the file concerned.

    Attributes:
        found: the problems kept, in the order in which they were met.
    """

    def __init__(self, *, tolerant: bool = False) -> None:
        self.tolerant = tolerant
        self.found: list[UserError] = []

    def add(self, error: UserError) -> None:
        """Keep a problem.

        Raises:
            UserError: ``error`` itself, unless tolerant.
        """
        if not self.tolerant:
            raise error
        self.found.append(error)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the problem that ends the block early; what follows the block goes on.

        Raises:
            UserError: that problem, unless tolerant.
        """
        try:
            yield
        except UserError as error:
            if not self.tolerant:
                raise
            self.found.append(error)
