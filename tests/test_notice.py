"""Whatever is made of synthetic smears, or leads to them, says that they are synthetic."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.datasets import open_dataset
from data.doctor import examine_dataroot
from data.doctor_files import synthetic
from data.groups import group_ids
from data.manifest import write_manifest
from data.readers import read_dataroot
from data.synthetic_writer import write_dataset
from data.tiles import tile_dataset
from data.unlabelled import find_smears
from util.errors import UserError

SEED = 3


@pytest.fixture(scope="module")
def smears(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made") / "smears"
    write_dataset(root, count=4, seed=SEED, size=64, workers=1)
    return root


@pytest.fixture(scope="module")
def tiles(smears, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cut") / "tiles"
    tile_dataset(smears, out, columns=2, rows=2, progress=False)
    return out


def truth(root: Path) -> dict[str, str]:
    """Severity by stem of the image, read without the code under test."""
    with next(root.rglob("truth.csv")).open(newline="") as stream:
        return {Path(row["image"]).stem: row["severity"] for row in csv.DictReader(stream)}


def real(root: Path) -> Path:
    """The same files without the synthesiser's, as AneRBC's own would lie there."""
    for name in ("SYNTHETIC.txt", "truth.csv", "cells.csv"):
        for path in root.rglob(name):
            path.unlink()
    return root


def test_tiles_say_that_they_are_synthetic_wherever_their_smears_do(smears, tiles):
    notice = (tiles / "AneRBC-II/SYNTHETIC.txt").read_text()
    assert notice.startswith((smears / "AneRBC-I/SYNTHETIC.txt").read_text().strip())
    assert "2 columns x 2 rows" in notice
    for root in (tiles, tiles / "AneRBC-II"):
        assert open_dataset(str(root)).synthetic and find_smears(str(root)).synthetic
    assert find_smears(str(next(tiles.rglob("0001_01_h.png")))).synthetic
    assert find_smears(f"{tiles}/*/*/Original_images/*.png").synthetic


def test_tiles_have_the_grades_of_their_smears(smears, tiles):
    whole, cut = truth(smears), truth(tiles)
    expected = {f"{int(stem[:3]):04d}_{n:02d}{stem[3:]}": grade for stem, grade in whole.items() for n in range(1, 5)}
    assert cut == expected and Counter(cut.values())[""] == 8
    for root in (tiles, tiles / "AneRBC-II"):
        records = open_dataset(str(root)).records
        assert {record.image.stem: record.severity or "" for record in records} == expected
        assert {record.severity_source for record in records if record.severity} == {"truth.csv"}


def test_tiles_join_the_smear_that_they_are_of_and_no_real_one(smears, tiles, tmp_path):
    whole, cut = open_dataset(str(smears)).records, open_dataset(str(tiles)).records
    parents = {record.image.stem: record.parent for record in whole}
    assert all(record.parent == parents[f"{record.image.stem[1:4]}{record.image.stem[-2:]}"] for record in cut)
    assert len(set(parents.values())) == 4
    alone = real(Path(shutil.copytree(tiles, tmp_path / "real")))
    assert not {record.parent for record in open_dataset(str(alone)).records} & set(parents.values())
    assert len(set(group_ids([*whole, *cut], [str(i) for i in range(20)]))) == 4


def test_tiles_of_real_smears_have_no_notice(smears, tmp_path):
    root = real(Path(shutil.copytree(smears, tmp_path / "real")))
    tile_dataset(root, tmp_path / "tiles", columns=2, rows=2, progress=False)
    assert [path.name for path in (tmp_path / "tiles/AneRBC-II").iterdir() if path.is_file()] == []
    assert not open_dataset(str(tmp_path / "tiles")).synthetic and not find_smears(str(tmp_path / "tiles")).synthetic


def test_synthetic_smears_without_their_truth_are_not_cut(smears, tmp_path):
    root = Path(shutil.copytree(smears, tmp_path / "smears"))
    (root / "AneRBC-I/truth.csv").unlink()
    with pytest.raises(UserError, match="without its truth"):
        tile_dataset(root, tmp_path / "tiles", columns=2, rows=2, progress=False)
    assert not (tmp_path / "tiles").exists()


def test_a_manifest_of_synthetic_smears_says_so_wherever_it_lies(smears, tmp_path):
    records = read_dataroot(smears)
    path = tmp_path / "elsewhere.csv"
    write_manifest(path, records, image_root=smears)
    opened, whole = open_dataset(str(path), image_root=smears), open_dataset(str(smears))
    assert opened.synthetic and find_smears(str(path), image_root=smears).synthetic
    assert [(r.name, r.severity, r.parent) for r in opened.records] == [
        (r.name, r.severity, r.parent) for r in whole.records
    ]


def test_of_a_manifest_of_both_the_real_smears_stay_as_they_are(smears, tmp_path):
    shutil.copytree(smears, tmp_path / "made")
    for letter in "ha":
        (tmp_path / "own").mkdir(exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), ord(letter), np.uint8)).save(tmp_path / "own" / f"001_{letter}.png")
    lines = ["image,label", "own/001_h.png,Healthy", "own/001_a.png,Anemic"]
    lines += [
        f"made/AneRBC-I/{c}_individuals/Original_images/001_{c[0].lower()}.png,{c}" for c in ("Healthy", "Anemic")
    ]
    (tmp_path / "both.csv").write_text("\n".join(lines))
    dataset = open_dataset(str(tmp_path / "both.csv"))
    parents = {record.name: record.parent for record in dataset.records}
    assert dataset.synthetic
    assert {f"seed {SEED}" in parent for name, parent in parents.items() if name.startswith("made")} == {True}
    assert {f"seed {SEED}" in parent for name, parent in parents.items() if name.startswith("own")} == {False}


def test_a_folder_that_a_link_leads_to_says_so_too(smears, tmp_path):
    (tmp_path / "link").symlink_to(smears / "AneRBC-I/Anemic_individuals/Original_images")
    assert find_smears(str(tmp_path / "link")).synthetic


def test_the_doctor_says_so(smears, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr("data.doctor_colour.TREES", 2)
    findings = {finding.key: finding for finding in examine_dataroot(tiles, workers=1, progress=False).findings}
    assert findings["synthetic"].level == "note" and len(findings["synthetic"].files) == 16
    alone = real(Path(shutil.copytree(smears, tmp_path / "real")))
    assert len(synthetic(SimpleNamespace(records=read_dataroot(smears)))[0].files) == 4
    assert synthetic(SimpleNamespace(records=read_dataroot(alone))) == []
