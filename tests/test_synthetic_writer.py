"""Synthetic smears as files: AneRBC's tree, the truth beside it, and nothing half-written."""

from __future__ import annotations

import csv
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.records import HEALTHY
from data.synthetic import (
    CellTruth,
    label_and_severity,
    synthesize,
)
from data.synthetic_masks import anerbc_mask
from data.synthetic_populations import blood_count_report
from data.synthetic_writer import write_dataset
from util.errors import UserError

# --- files ---------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "smears"
    write_dataset(out, count=4, seed=1, size=96, workers=1)
    return out


def test_tree_is_that_of_anerbc(tree):
    names = {
        path.relative_to(tree / "AneRBC-I").as_posix() for path in (tree / "AneRBC-I").rglob("*") if path.is_file()
    }
    expected = {"cells.csv", "truth.csv", "SYNTHETIC.txt"}
    for label, letter in (("Anemic", "a"), ("Healthy", "h")):
        for folder, suffix in (
            ("Original_images", "png"),
            ("Binary_segmented", "png"),
            ("Instances", "png"),
            ("CBC_reports", "txt"),
        ):
            expected |= {f"{label}_individuals/{folder}/{number}_{letter}.{suffix}" for number in ("001", "002")}
    assert names == expected
    assert sorted(path.name for path in tree.parent.iterdir()) == ["smears"], "nothing is left beside the data set"
    notice = (tree / "AneRBC-I" / "SYNTHETIC.txt").read_text()
    assert "synthetic" in notice and "seed 1" in notice and "count 4" in notice and notice.count("\n") == 1


def test_files_hold_the_smears(tree):
    inner = tree / "AneRBC-I"
    rows = list(csv.DictReader((inner / "truth.csv").open()))
    cells = list(csv.DictReader((inner / "cells.csv").open()))
    assert list(rows[0]) == ["image", "label", "severity", "parent"]
    assert list(cells[0]) == ["image", "cell", *CellTruth.__dataclass_fields__]
    for index, row in enumerate(rows):
        smear = synthesize(index, seed=1, size=96)
        path = inner / row["image"]
        assert (int(row["label"]), row["severity"] or None) == (smear.label, smear.severity)
        assert np.array_equal(np.asarray(Image.open(path)), smear.rgb)
        mask = np.asarray(Image.open(path.parent.parent / "Binary_segmented" / path.name))
        assert set(np.unique(mask)) == {0, 255} and np.array_equal(mask == 0, smear.mask)
        instances = Image.open(path.parent.parent / "Instances" / path.name)
        assert instances.mode == "I;16" and np.array_equal(np.asarray(instances), smear.instances)
        report = path.parent.parent / "CBC_reports" / f"{path.stem}.txt"
        assert report.read_text() == blood_count_report(smear.subject)
        mine = [cell for cell in cells if cell["image"] == row["image"]]
        assert [int(cell["cell"]) for cell in mine] == list(range(1, len(smear.cells) + 1))
        assert [int(cell["area_px"]) for cell in mine] == [cell.area_px for cell in smear.cells]
        assert [cell["overlapped"] == "1" for cell in mine] == [cell.overlapped for cell in smear.cells]
    assert len({row["parent"] for row in rows}) == len(rows)


def test_workers_do_not_change_a_byte(tree, tmp_path):
    write_dataset(tmp_path / "two", count=4, seed=1, size=96, workers=2)
    assert _files(tmp_path / "two") == _files(tree)


def test_a_mask_as_anerbc_s_has_the_edges_of_a_threshold_and_no_holes():
    # A pale field, a dark disc with a pale centre, a disc too pale for any threshold, a black rod, and a single dot.
    rows, columns = np.mgrid[:80, :80]
    rgb = np.full((80, 80, 3), 210, np.uint8)
    disc, pale = np.hypot(rows - 25, columns - 25) < 12, np.hypot(rows - 55, columns - 55) < 10
    rgb[disc] = 120
    rgb[np.hypot(rows - 25, columns - 25) < 4] = 205
    rgb[pale] = 205
    rgb[70:76, 5:40] = 20
    rgb[10, 70] = 20
    mask = anerbc_mask(rgb, ndimage.binary_dilation(disc, iterations=2) | pale)
    assert mask[25, 25] and mask[55, 55] and mask[73, 20] and not mask[10, 70]
    assert (mask & ~ndimage.binary_dilation(disc, iterations=3))[:45, :45].sum() == 0
    assert abs(int(mask[:45, :45].sum()) - int(disc.sum())) < 40  # the picture's edge, not the wider one given
    assert not (ndimage.binary_fill_holes(mask) & ~mask).any()
    assert not anerbc_mask(np.full((8, 8, 3), 9, np.uint8), np.zeros((8, 8), bool)).any()


def test_masks_of_a_data_set_may_be_as_anerbc_s_are(tree, tmp_path):
    write_dataset(tmp_path / "all", count=4, seed=1, size=96, workers=1, masks="anerbc")
    ours, theirs = _files(tree), _files(tmp_path / "all")
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert any("Binary_segmented" in name for name in changed)
    assert all("Binary_segmented" in name or name.endswith("SYNTHETIC.txt") for name in changed)
    masks = [name for name in sorted(theirs) if "Binary_segmented" in name and "Healthy" in name]
    index = next(index for index in range(2) if label_and_severity(index, 1)[0] == HEALTHY)
    drawn = np.asarray(Image.open(tmp_path / "all" / masks[0])) == 0
    smear = synthesize(index, seed=1, size=96)
    assert np.array_equal(drawn, anerbc_mask(smear.rgb, smear.stained))
    assert "masks anerbc" in (tmp_path / "all" / "AneRBC-I" / "SYNTHETIC.txt").read_text()


def test_overwrite_replaces_a_synthetic_set_and_nothing_else(tmp_path):
    out = tmp_path / "smears"
    out.mkdir()
    write_dataset(out, count=2, seed=1, size=64, workers=1)  # an empty folder is free
    before = _files(out)
    with pytest.raises(UserError, match="not empty"):
        write_dataset(out, count=2, seed=2, size=64, workers=1)
    assert _files(out) == before
    write_dataset(out, count=2, seed=2, size=64, workers=1, overwrite=True)
    assert _files(out) != before
    thesis = tmp_path / "work"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="thesis.txt"):
        write_dataset(thesis, count=2, seed=2, size=64, workers=1, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smears", "work"]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("data.synthetic_writer.synthesize", fail)
    with pytest.raises(UserError, match=r"cannot write .*out\s+found: +disk full"):
        write_dataset(tmp_path / "out", count=2, seed=0, size=64, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_ended_from_outside_is_told(tmp_path, monkeypatch):
    def killed(*_args, **_kwargs):
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr("data.synthetic_writer.ProcessPoolExecutor.map", killed)
    with pytest.raises(UserError, match=r"ended from outside(?s:.*)--workers 1"):
        write_dataset(tmp_path / "out", count=2, seed=0, size=64, workers=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"count": 1}, "count"),
        ({"size": 63}, "size"),
        ({"size": 5000}, "size"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"masks": "blue"}, "masks"),
    ],
)
def test_bad_arguments_are_the_users_errors(tmp_path, wrong, says):
    with pytest.raises(UserError, match=says):
        write_dataset(tmp_path / "out", **{"count": 2, "seed": 0, "size": 64, "workers": 1, **wrong})
    assert not (tmp_path / "out").exists()


def test_bad_index_and_a_file_in_the_way(tmp_path):
    with pytest.raises(UserError, match="index"):
        synthesize(-1, seed=0)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="not a folder"):
        write_dataset(tmp_path / "out", count=2, seed=0, workers=1)
