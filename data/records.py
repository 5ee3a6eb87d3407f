"""What one smear is to every other part of the toolkit: its files, its label and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HEALTHY, ANEMIC = 0, 1
CLASS_NAMES = ("Healthy", "Anemic")


@dataclass(frozen=True)
class SmearRecord:
    """One smear image and what is known about it.

    Attributes:
        name: posix path of the image relative to the data root; its identity in every output.
        image: absolute path of the RGB image.
        mask: absolute path of the binary ground truth, or None where there is none.
        mask_dark: True where the mask file draws cells dark on white (AneRBC), False for white on black.
        label: HEALTHY (0), ANEMIC (1), or None where unknown.
        severity: "Mild", "Chronic", or None where unknown.
        parent: the image this one was cut from (its own id where it was not cut).
        cbc: absolute path of the complete-blood-count report, or None.
        side_by_side: True where one file holds the image in its left half and the mask in its right half; ``image`` and
            ``mask`` are then the same path.
        patient: who the smear is of, or any other name of what must not be parted; empty where unknown.
        split: the side that the data set itself gives it ("train", "val", "test"), or None.
        haemoglobin: g/dL where the data set states it beside the image, else None.
        severity_source: where ``severity`` comes from, in words; empty where there is none.
        page: which page of a TIFF file with several, from 1; None where the file is one image.
    """

    name: str
    image: Path
    mask: Path | None = None
    mask_dark: bool = False
    label: int | None = None
    severity: str | None = None
    parent: str = ""
    cbc: Path | None = None
    side_by_side: bool = False
    patient: str = ""
    split: str | None = None
    haemoglobin: float | None = None
    severity_source: str = ""
    page: int | None = None
