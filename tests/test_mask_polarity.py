"""Masks that mark the background as cells are told of before anything is learned from them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.mask_polarity import LOOKED_AT, polarity_warning
from data.records import SmearRecord
from data.synthetic import synthesize


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[SmearRecord]:
    folder = tmp_path_factory.mktemp("smears")
    made = []
    for index in range(3):
        smear = synthesize(index, seed=5, size=160)
        image, mask = folder / f"{index}.png", folder / f"{index}_mask.png"
        Image.fromarray(smear.rgb).save(image)
        Image.fromarray((smear.instances == 0).astype(np.uint8) * 255).save(mask)  # cells dark on white, as AneRBC's
        made.append(SmearRecord(image.name, image, mask=mask))
    return made


def dark(records: list[SmearRecord]) -> list[SmearRecord]:
    return [replace(record, mask_dark=True) for record in records]


def test_masks_of_the_background_are_told_of(records: list[SmearRecord]) -> None:
    assert (polarity_warning(records) or "").startswith("3 of 3 masks looked at mark the background as cells")
    assert polarity_warning(dark(records)) is None


def test_one_odd_mask_among_good_ones_is_the_doctors_matter(records: list[SmearRecord]) -> None:
    assert polarity_warning([*dark(records), records[0]]) is None


def test_no_mask_no_warning_and_no_image_is_read(records: list[SmearRecord]) -> None:
    gone = replace(records[0], image=records[0].image.with_name("gone.png"), mask=None)
    assert polarity_warning([gone] * 5) is None and polarity_warning([]) is None
    assert polarity_warning([replace(gone, mask=records[0].mask)]) is None, "left to who needs the file"


def test_few_of_many_are_looked_at(records: list[SmearRecord]) -> None:
    assert (polarity_warning(records * 40) or "").startswith(f"{LOOKED_AT} of {LOOKED_AT} ")
