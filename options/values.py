"""Turning the text of an option into its value; each raises ValueError with a message fit for the user."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from util.runlog import MOST_DIGITS

AUTO = "auto"
LARGEST_SEED = 2**32 - 1  # numpy's legacy generator takes no larger one
LONGEST_NAME = 200  # bytes: file systems allow 255, and ``NAME_shipped2``, ``.NAME.lock_owner`` and others are longer


def at_least(minimum: float, kind: type = int) -> Callable[[str], Any]:
    """A parser of numbers that refuses those below ``minimum`` and the non-finite ones."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not minimum <= value < float("inf"):
            raise ValueError(f"must be {minimum} or more")
        return value

    return parse


def one_of(allowed: range) -> Callable[[str], int]:
    """A parser of whole numbers that refuses those outside of a range."""

    def parse(text: str) -> int:
        value = int(text)
        if value not in allowed:
            raise ValueError(f"must be a whole number from {allowed[0]} to {allowed[-1]}")
        return value

    return parse


def batch_size(text: str) -> int | str:
    """Parse a number of images, or ``auto``."""
    if text == AUTO:
        return text
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of 1 or more, or auto")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ValueError("must lie between 0 and 1")
    return value


def zero_or_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of sizes that may be unknown: 0, or a number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        value = float(text)
        if value != 0 and not low <= value <= high:
            raise ValueError(f"must be 0 (not known) or a number from {low:g} to {high:g}")
        return value

    return parse


def named_numbers(text: str) -> str:
    """Check a list such as ``chronic_from=0.2,size_rate=0.5``; kept as text, the names are known to Module-II alone."""
    for part in filter(None, text.split(",")):
        name, equals, number = part.partition("=")
        try:
            sound = bool(equals) and name.strip().isidentifier() and abs(float(number)) < float("inf")
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("must be a list such as chronic_from=0.2,size_rate=0.5")
    return text


def view_count(text: str) -> int:
    """Parse a number of views that turning and mirroring an image can give."""
    value = int(text)
    if value not in (1, 2, 4, 8):
        raise ValueError("must be 1, 2, 4 or 8")
    return value


def operating_rule(text: str) -> str:
    """Check a rule that says from which probability on an image is called Anemic; kept as text."""
    name, _, number = text.partition("=")
    try:
        sound = text in ("half", "youden") or (name == "specificity" and 0 < float(number) < 1)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("must be half, youden or a specificity between 0 and 1 such as specificity=0.9")
    return text


def looked_at(text: str) -> str:
    """Check a number of images, or names of some; kept as text, which images there are is known later."""
    if not text.strip(" ,") or text.strip().startswith("-"):
        raise ValueError("must be a number of images, 0 for none, or names of test images with commas between")
    return text


def tested_runs(text: str) -> str:
    """Check a list of runs to compare with, each with or without its weights: ``OTHER,SEG:best``; kept as text."""
    if not text.strip(" ,"):
        raise ValueError("must name the runs to compare with, with commas between, such as OTHER,SEG:best")
    for part in filter(None, text.split(",")):
        name, colon, which = part.partition(":")
        run_name(name)
        if colon:
            checkpoint_choice(which)
    return text


def seed_number(text: str) -> int:
    """Parse a seed that every generator of random numbers takes."""
    if not text.strip().isdecimal() or len(text) > 20 or int(text) > LARGEST_SEED:
        raise ValueError(f"must be a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def gpu_list(text: str) -> str:
    """Check a list of GPU numbers: ``0``, ``0,1`` or ``-1`` for the CPU; kept as text."""
    wrong = "must be -1 (CPU) or different GPU numbers such as 0 or 0,1"
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(wrong) from None
    if ids != [-1] and (min(ids) < 0 or len(set(ids)) != len(ids)):
        raise ValueError(wrong)
    return ",".join(map(str, ids))


def thresholds(text: str) -> tuple[float, ...]:
    """Parse the three gate thresholds."""
    values = tuple(fraction(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError("must be three numbers between 0 and 1, one a tier, such as 0.85,0.91,0.96")
    return values


def tier_rates(text: str) -> tuple[float, ...]:
    """Parse the three tiers' factors on the learning rate."""
    values = tuple(at_least(0, float)(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError("must be three numbers of 0 or more, one a tier, such as 1,1,0.5")
    return values


def below_one(text: str) -> float:
    """Parse a number from 0 to just below 1."""
    value = fraction(text)
    if value == 1.0:
        raise ValueError("must be below 1")
    return value


def split_list(text: str) -> tuple[str, ...]:
    """Parse the splits to evaluate; one named twice is evaluated once."""
    values = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not values or set(values) - {"train", "val", "test"}:
        raise ValueError("must name splits out of train,val,test")
    return values


def run_name(text: str) -> str:
    """Check the name of a run: it becomes a folder's name and may not lead anywhere else."""
    if not text or text.startswith(".") or any(c in text for c in "/\\\0:"):
        raise ValueError("must be a plain folder name without / \\ : and not starting with a dot")
    if len(os.fsencode(text)) > LONGEST_NAME:
        raise ValueError(f"must be a folder name of at most {LONGEST_NAME} bytes")
    return text


def run_names(text: str) -> tuple[str, ...]:
    """Parse names of runs."""
    return tuple(run_name(part.strip()) for part in text.split(",")) if text else ()


def checkpoint_choice(text: str) -> str:
    """Check ``latest``, ``best`` or an epoch number."""
    number = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    if text not in ("latest", "best") and not number:
        raise ValueError("must be latest, best or the number of a saved epoch")
    return text
