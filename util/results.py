"""What a results folder holds besides its page: the table of predictions, JSON, masks, and the names of their files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.errors import UserError
from util.files import atomic_write, write_unhurried

CLASS_WORDS = ("Healthy", "Anemic")
PREDICTION_COLUMNS = (
    "image", "prob_anemic", "prob_anemic_tier1", "prob_anemic_tier2", "prob_anemic_tier3", "label_pred",
    "severity_pred", "severity_score", "cell_count", "overlapped_count", "label_true", "severity_true",
    "group", "split", "severity_learned",
)  # fmt: skip
TRUTH_COLUMNS = ("label_true", "severity_true", "group", "split")  # what a prediction of unlabelled images cannot know
LABEL_COLUMNS = ("label_pred", "label_true")
# Half the time of the usual way, and fewer bytes.
MASK_PNG: dict[str, Any] = {"format": "PNG", "compress_type": zlib.Z_RLE, "compress_level": 1}
LONGEST_PART = 200  # bytes of a name before its mark; file systems allow 255, and endings come after it


def write_json(path: Path, content: Any) -> None:
    """Write plain data as strict JSON, atomically.

    Args:
        path: the file.
        content: dicts with string keys, lists, strings, numbers, None; numpy values and paths are converted.

    Raises:
        ValueError: a number is NaN or infinite (strict JSON has neither); the message names where it stands.
        TypeError: a value has no JSON form.
        UserError: the file cannot be written.
    """
    plain = _plain(content, "")
    atomic_write(path, json.dumps(plain, allow_nan=False, indent=1) + "\n", make_parents=True)


def _plain(value: Any, where: str) -> Any:
    """The value in JSON's own types; ``where`` is its place in the document, for messages."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{where.lstrip('.') or 'the value'} is {value}, which JSON cannot hold; write None if undefined"
        )
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where.lstrip('.') or 'the value'} is a {type(value).__name__}, which JSON cannot hold")


def write_predictions(
    path: Path, rows: Iterable[dict[str, Any]], *, more: Sequence[str] = (), labelled: bool = True
) -> None:
    """Write predictions.csv: one row per image, the columns of ``PREDICTION_COLUMNS`` in that order, then ``more``.

    Names stand as they are and every cell is quoted (without quotes a carriage return would end a row), so that reading
    the file gives them back; no leading ``=`` or ``@`` is touched. Labels may be 0 / 1 or words and are written as
    Healthy / Anemic; probabilities have all their digits, so that those of a sure network keep their order; what is
    missing or None is empty.

    Args:
        path: the file.
        rows: dicts with any of the columns; ``image`` must be there.
        more: further columns, numbers of six decimals.
        labelled: False leaves out ``TRUTH_COLUMNS``.

    Raises:
        ValueError: an unknown column, a missing image name, an unknown label, or a number that is not finite.
        UserError: the file cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n", quoting=csv.QUOTE_ALL)
    own = [column for column in PREDICTION_COLUMNS if labelled or column not in TRUTH_COLUMNS]
    columns = (*own, *more)
    writer.writerow(columns)
    for row in rows:
        if unknown := set(row) - set(columns):
            raise ValueError(f"unknown columns {sorted(unknown)}; there are {columns}")
        if not row.get("image"):
            raise ValueError(f"a row without an image name: {row}")
        known = [_cell(column, row.get(column)) for column in own]
        writer.writerow([*known, *(_number(column, row.get(column)) for column in more)])
    atomic_write(path, table.getvalue(), make_parents=True)


def _cell(column: str, value: Any) -> str:
    """One value as the table writes it."""
    if value is None or value == "":
        return ""
    if column in LABEL_COLUMNS:
        return _class_word(column, value)
    if column.startswith("prob_"):
        return _every_digit(column, float(value))
    if column in ("severity_score", "severity_learned"):
        return _number(column, float(value))
    return str(value)


def _number(column: str, value: Any) -> str:
    """A number of a column that need not agree with a label."""
    if value is None:
        return ""
    if not math.isfinite(value):
        raise ValueError(f"{column} is {value}; a prediction must be a finite number")
    return f"{value:.6f}"


def _class_word(column: str, value: Any) -> str:
    if value in CLASS_WORDS:
        return str(value)
    if not isinstance(value, str) and value in (0, 1):
        return CLASS_WORDS[int(value)]
    raise ValueError(f"{column} is {value!r}; expected 0, 1, {CLASS_WORDS[0]} or {CLASS_WORDS[1]}")


def _every_digit(column: str, value: float) -> str:
    """The shortest text that reads back as the value: rounded, a sure network's 0.9999999 and 0.99999999 would tie."""
    if not math.isfinite(value):
        raise ValueError(f"{column} is {value}; a prediction must be a finite number")
    return repr(value)


def output_stems(names: Sequence[str]) -> dict[str, str]:
    """The path below ``masks/`` (without ``.png``) under which each image's mask is written.

    It is the image's stem. Images whose stems are equal, also where a file system ignores case or Unicode form, keep
    their folder; those still equal keep their extension; those still equal (``A.png`` beside ``a.png``) get a mark
    made from the whole name, so that one image's file is the same in every run that has the same companions. A file's
    or folder's name of more than ``LONGEST_PART`` bytes is cut there and gets such a mark too.

    Args:
        names: posix paths of the images relative to the data root, all different.

    Returns:
        image name to posix path, one to one, also when case is ignored; no path is another's folder.

    Raises:
        UserError: a name is empty, absolute, holds a NUL or a ``..``, or stands there twice.
    """
    choices = {name: _stem_choices(name) for name in names}
    if len(choices) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"the image {twice!r} is named twice", remedy="name each image once in the manifest")
    level = dict.fromkeys(choices, 0)
    while clash := _clashing({name: choices[name][level[name]] for name in choices}):
        for name in clash:
            level[name] += 1
            if level[name] == len(choices[name]):
                raise UserError(f"no file name of its own is left for {name!r}", remedy="rename the image")
    return {name: choices[name][level[name]] for name in choices}


def leads_out(stem: str) -> bool:
    """Whether the path of a file below a results folder is none, or leads out of it."""
    return not stem or "\0" in stem or stem.startswith("/") or ".." in stem.split("/")


def _stem_choices(name: str) -> list[str]:
    """Where an image's mask may stand, the plainest first; refuses a name that could lead out of the folder."""
    parts = name.replace("\\", "/").split("/")
    absolute = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    path = PurePosixPath(name)
    if not path.name or "\0" in name or ".." in parts or absolute:
        raise UserError(
            f"the image name {name!r} cannot become a file in the results folder",
            expected="a path relative to the data root, without '..' and NUL",
            remedy="rename the image or mend the manifest",
        )
    folder = "".join(f"{_shortened(part, str(path.parents[-i - 2]))}/" for i, part in enumerate(path.parent.parts))
    stem = path.stem if path.stem.strip(".") else path.name  # "..png" has the stem ".", which is no name for a file
    short, marked = _shortened(stem, name), f"{path.name}-{_mark(name)}"
    return [short, *(f"{folder}{last}" for last in (short, _shortened(path.name, name), _shortened(marked, name)))]


def _shortened(part: str, whole: str) -> str:
    """A file's or folder's name, where it is too long cut and marked by the path ``whole`` that it stands for."""
    if len(_name_bytes(part)) <= LONGEST_PART:
        return part
    while len(_name_bytes(part)) > LONGEST_PART:
        part = part[:-1]  # by characters: half a character is no name
    return f"{part}-{_mark(whole)}"


def _mark(name: str) -> str:
    return hashlib.sha256(_name_bytes(name)).hexdigest()[:8]


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _clashing(stems: dict[str, str]) -> list[str]:
    """Names whose file another image shares, or whose file stands where another image needs a folder."""
    folded = {name: unicodedata.normalize("NFC", f"{stem}.png".casefold()) for name, stem in stems.items()}
    owners: dict[str, list[str]] = defaultdict(list)
    for name, file in folded.items():
        owners[file].append(name)
    shared = {name for sharing in owners.values() if len(sharing) > 1 for name in sharing}
    for file in folded.values():
        for folder in PurePosixPath(file).parents:
            shared.update(owners.get(str(folder), []))
    return sorted(shared)


def save_mask(path: Path, mask: NDArray[np.bool_], *, wait: bool = True) -> None:
    """Write a mask as an 8-bit grey PNG, cells 255 on 0, atomically.

    Args:
        path: the file.
        mask: (H, W) bool.
        wait: until the disk has it; who writes many may rather wait once, with ``util.files.wait_for_disk``.

    Raises:
        ValueError: not a two-dimensional bool array.
        UserError: the file cannot be written.
    """
    from PIL import Image

    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"a mask must be (H, W) bool, not {mask.dtype}{mask.shape}")
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    content = encoded_image(lambda buffer: image.save(buffer, **MASK_PNG))
    if wait:
        atomic_write(path, content, make_parents=True)
    else:
        write_unhurried(path, content)


def encoded_image(save: Callable[[io.BytesIO], None]) -> bytes:
    """The bytes that an image's own ``save`` writes, so that they can be written atomically."""
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
