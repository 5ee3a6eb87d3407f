"""What an option is: its name, default, meaning and the commands that take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRAIN, TEST, PREDICT = "train", "test", "predict"
LABELLED = (TRAIN, TEST)  # those that read labels and masks
JUDGING = (TEST, PREDICT)  # those that ask a trained network


@dataclass(frozen=True)
class Option:
    """One command-line option.

    Attributes:
        name: the spelling that the published commands use; also the name of the attribute.
        default: the value without the flag; its type is the option's type unless ``parse`` says otherwise.
        help: one or two sentences for ``--help`` and the documentation.
        group: the heading of ``--help`` it stands under.
        commands: which of "train", "test" and "predict" take it.
        spellings: further flags that mean the same.
        choices: the allowed values, or empty for any.
        parse: text to value; raises ValueError with a message fit for the user.
        required: True where there is no sensible default.
    """

    name: str
    default: Any
    help: str
    group: str
    commands: tuple[str, ...] = (TRAIN, TEST, PREDICT)
    spellings: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    required: bool = False

    @property
    def is_switch(self) -> bool:
        """True for a flag that takes no value."""
        return isinstance(self.default, bool)
