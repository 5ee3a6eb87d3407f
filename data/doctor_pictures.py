"""The doctor's page: thumbnails of the files concerned, side by side, and the words around them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.doctor import Diagnosis
from data.doctor_case import Case, Finding
from data.doctor_facts import read_drawn_mask
from data.doctor_words import label_word
from data.images import read_smear, read_truth
from data.records import SmearRecord
from util.doctor_page import DoctorPage, Part, Picture, write_doctor_page
from util.errors import UserError

Pixels = npt.NDArray[np.uint8]
Reader = Callable[[SmearRecord], Pixels]

MOST_SETS, MOST_IN_SET, MOST_PICTURES = 8, 6, 12  # shown of one finding; the page says how many it leaves out
THUMBNAIL = 220  # longer side, pixels
_QUALITY = 80
_WITH_MASK = ("mask_", "pair_", "unreadable_masks")  # findings about masks show the mask beside the image


def write_page(path: Path, diagnosis: Diagnosis, options: dict[str, Any]) -> None:
    """Write the page of a diagnosis, whole in one file.

    Only the pictures shown are read again: a bounded number, whatever the size of the data.

    Args:
        path: the HTML file to write or replace.
        diagnosis: what was found.
        options: how the doctor was called.

    Raises:
        UserError: the file cannot be written.
    """
    case = diagnosis.case
    position = {record.name: index for index, record in enumerate(case.records)}
    parts = [_part(case, finding, position) for finding in diagnosis.findings]
    write_doctor_page(path, DoctorPage(str(case.root), diagnosis.figures, parts, options))


def _part(case: Case, finding: Finding, position: dict[str, int]) -> Part:
    """What the page shows of one finding."""
    masks = _mask_reader(finding.key)

    def pictures(names: Sequence[str]) -> list[Picture]:
        return [_picture(case, finding, position.get(name), name, masks) for name in names]

    rows: list[list[Picture]]
    if finding.sets:
        shown = [names[:MOST_IN_SET] for names in finding.sets[:MOST_SETS]]
        rows = [pictures(names) for names in shown]
    else:
        shown = [finding.files[:MOST_PICTURES]]
        rows = [pictures(shown[0])] if shown[0] else []
    left_out = finding.count - sum(map(len, shown))
    beside = "as its file holds it" if masks is read_drawn_mask else "as it is read, cells white" if masks else ""
    words = (finding.title, finding.sentence, finding.remedy)
    return Part(finding.key, finding.level, *words, rows, finding.count, left_out, beside)


def _picture(case: Case, finding: Finding, index: int | None, name: str, masks: Reader | None) -> Picture:
    reason = finding.reasons.get(name, "")
    if index is None:  # a file that belongs to no smear
        return Picture(name, "", reason, None, None, has_picture=False)
    record, label = case.records[index], label_word(case, index)
    smear = thumbnail(record, read_smear) if case.facts[index].problem is None else None
    mask = thumbnail(record, masks) if masks and record.mask else None
    return Picture(name, label, "" if reason == label else reason, smear, mask, shows_mask=masks is not None)


def _mask_reader(key: str) -> Reader | None:
    """How a finding shows masks: grey levels as they are stored, else cells white; None where masks are no matter."""
    if key.startswith("mask_level"):
        return read_drawn_mask
    return _cells_white if key.startswith(_WITH_MASK) else None


def _cells_white(record: SmearRecord) -> Pixels:
    return np.where(read_truth(record), 255, 0).astype(np.uint8)


def thumbnail(record: SmearRecord, read: Reader) -> bytes | None:
    """A small JPEG of a record's image or mask, or None where it cannot be read."""
    try:
        picture = Image.fromarray(read(record))
    except UserError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
