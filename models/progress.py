"""What a prediction has done so far, image by image, so that one that was killed goes on where it stopped.

``unfinished.jsonl`` in the results folder: a first line that says which prediction it is, then a line for each image,
written when all its files are on the disk. While the file is there the folder is no whole prediction; it is removed
last. A line that was cut off by a crash, or is not what its checksum says, counts for nothing, and so does everything
after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from util.errors import UserError
from util.files import atomic_write, unwritable
from util.results import leads_out
from util.runlog import plain

UNFINISHED = "unfinished.jsonl"
SCHEMA = 2
_SYNC_SECONDS = 5.0  # after a power cut so much work is done again at most
_DIGITS = 16  # of the SHA-256 that each line begins with


class Progress:
    """The images that a prediction has done.

    Args:
        folder: the results folder.
        identity: what must be the same for two calls to be one prediction, in plain types.

    Attributes:
        images: how many are done.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity = folder / UNFINISHED, json.loads(_line(identity)[_DIGITS:])
        self._places: dict[str, int] = {}
        self._file: BinaryIO | None = None
        self._synced, self._begun_here = 0.0, False

    @property
    def images(self) -> int:
        """How many images are done."""
        return len(self._places)

    def __contains__(self, image: str) -> bool:
        return image in self._places

    def begin(self) -> None:
        """Start anew.

        Raises:
            UserError: the file cannot be written.
        """
        self._places = {}
        atomic_write(self.path, _line({"schema": SCHEMA, "prediction": self.identity}))
        self._begun_here = True
        self._open()

    def resume(self, wanted: Mapping[str, tuple[str, list[int]]]) -> list[str]:
        """Take up what is there.

        Args:
            wanted: by image, the stem of its files and its file's stamp; an image that has changed is done again.

        Returns:
            the stems of those that were done and are not wanted as they were: their files are stale.

        Raises:
            UserError: the file is of another prediction, or cannot be read or written.
        """
        stale = []
        try:
            with self.path.open("rb") as file:
                self._check(_parsed(file.readline()))
                end = file.tell()
                for place, record in _records(file):
                    image, stem = record["image"], record["stem"]
                    if wanted.get(image) == (stem, record["stamp"]):
                        self._places[image] = place
                    else:
                        stale.append(stem)
                        self._places.pop(image, None)
                    end = file.tell()
            self._open()
            if self._file is not None:
                self._file.truncate(end)
        except OSError as error:
            raise unwritable(self.path, error) from None
        kept = {wanted[image][0] for image in self._places}
        return [stem for stem in dict.fromkeys(stale) if stem not in kept]

    def _check(self, head: dict[str, Any] | None) -> None:
        """Refuse to go on with another prediction; name the first thing that differs."""
        begun = head.get("prediction") if head and head.get("schema") == SCHEMA else None
        if begun == self.identity:
            return
        differs = "its first line is damaged, or of another version of the toolkit"
        if isinstance(begun, dict):
            differs = next(
                f"{key}: {_short(begun.get(key))}, now {_short(self.identity.get(key))}"
                for key in (*self.identity, *begun)
                if begun.get(key) != self.identity.get(key)
            )
        raise UserError(
            f"--continue_predict: {self.path.parent} holds an unfinished prediction of another kind",
            expected="the same weights, data and options as those that it was begun with",
            found=differs,
            remedy="repeat the call that it was begun with, or begin anew (--overwrite), or write elsewhere",
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Note that an image is done; its files must be on the disk.

        Args:
            record: plain data, at least ``image``, ``stem`` and ``stamp``.

        Raises:
            UserError: it cannot be written.
        """
        if self._file is None:
            raise ValueError("begin or resume first")
        try:
            self._file.seek(0, os.SEEK_END)
            place = self._file.tell()
            self._file.write(_line(record).encode("ascii"))
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise unwritable(self.path, error) from None
        self._places[str(record["image"])] = place

    def record(self, image: str) -> dict[str, Any]:
        """What was noted of an image that is done."""
        if self._file is None:
            raise ValueError("begin or resume first")
        self._file.seek(self._places[image])
        found = _parsed(self._file.readline())
        if found is None:
            raise unwritable(self.path, OSError("it was changed while the prediction ran"))
        return found

    def close(self) -> None:
        """Let go of the file; one that was begun here and in which nothing is done is removed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._begun_here and not self.images:
            self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        try:
            self._file = self.path.open("r+b")
        except OSError as error:
            raise unwritable(self.path, error) from None


def unfinished_images(folder: Path) -> int:
    """How many images an unfinished prediction in a results folder has done; 0 where there is none."""
    try:
        with (folder / UNFINISHED).open("rb") as file:
            file.readline()
            return sum(1 for _ in _records(file))
    except OSError:
        return 0


def _records(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place and content of every whole line, up to the first that is none."""
    while True:
        place = file.tell()
        record = _parsed(file.readline())
        if record is None or not _is_note(record):
            file.seek(place)
            return
        yield place, record


def _is_note(record: Mapping[str, Any]) -> bool:
    """Whether a line is of an image and names files of this folder: a stem may become the name of what is removed."""
    stem = record.get("stem")
    named = isinstance(record.get("image"), str) and isinstance(record.get("stamp"), list)
    return named and isinstance(stem, str) and not leads_out(stem)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's content; None where it was cut off or is not what its checksum says."""
    told, _, text = line.partition(b" ")
    if told != _checksum(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # none that was written here
        return None
    return content if isinstance(content, dict) else None


def _line(content: Mapping[str, Any]) -> str:
    text = json.dumps(plain(content), allow_nan=False, default=_plain_number) + "\n"
    return f"{_checksum(text.encode()).decode()} {text}"


def _checksum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGITS].encode()


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return plain(value.item())
    raise TypeError(f"{type(value).__name__} is no plain data")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
