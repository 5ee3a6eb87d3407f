"""Weights that come with the toolkit: a run of their name begins all the same, and they are kept."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.datasets import open_dataset
from data.leaks import find_leaks
from data.manifest import read_manifest
from data.splits import given_split
from data.synthetic_writer import write_dataset
from models.frozen import LINE, frozen_chances
from models.saved import load_network
from tests.test_lone import batch
from util.errors import UserError
from util.runlog import RunFolder

REPOSITORY = Path(__file__).resolve().parent.parent


def shipped(tmp_path):
    folder = RunFolder(tmp_path, "SEG")
    folder.folder.mkdir()
    folder.weights("best").write_bytes(b"weights")
    folder.shipped.write_text("{}")
    return folder


def test_they_are_set_aside_and_kept(tmp_path, capsys):
    folder = shipped(tmp_path)
    folder.check(resume=False, overwrite=False)
    folder.begin()
    assert (tmp_path / "SEG_shipped/best_net_3TDCFNet.safetensors").read_bytes() == b"weights"
    assert list(folder.folder.iterdir()) == []
    assert "SEG_shipped" in capsys.readouterr().out


def test_a_second_time_they_get_another_name(tmp_path):
    (tmp_path / "SEG_shipped").mkdir()
    shipped(tmp_path).begin()
    assert (tmp_path / "SEG_shipped1/shipped.json").is_file()


def test_a_run_of_ones_own_is_never_moved(tmp_path):
    folder = shipped(tmp_path)
    folder.shipped.unlink()
    with pytest.raises(UserError, match="already holds a run"):
        folder.check(resume=False, overwrite=False)
    folder.begin()  # as with --overwrite
    assert [path.name for path in tmp_path.iterdir()] == ["SEG"]


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path, monkeypatch):
    folder = shipped(tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder.folder), "rename", refuse)
    with pytest.raises(UserError, match="SEG"):
        folder.begin()
    assert folder.weights("best").is_file()


def test_the_data_of_the_shipped_weights_leaks_nowhere(tmp_path):
    """Gathered from synthetic smears in the place of real ones, whose names equal those of the ones that are added."""
    write_dataset(tmp_path / "smears", count=24, seed=9, size=120)
    for known in ("SYNTHETIC.txt", "truth.csv"):  # without these it is a tree like AneRBC's
        (tmp_path / "smears/AneRBC-I" / known).unlink()
    command = [sys.executable, "scripts/shipped_data.py", "--smears", tmp_path / "smears", "--with_masks"]
    command += [tmp_path / "smears", "--out", tmp_path / "out", "--synthetic", "8", "--large", "2"]
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True)
    records = read_manifest(tmp_path / "out/manifest.csv")
    made = [record for record in records if record.name.startswith("synthetic")]
    assert len(made) == 10 and all(record.label is None and record.mask for record in made)
    tiles = [record for record in records if record.name.startswith("tiles")]
    sides = {record.image.stem: record.split for record in records if record.name.startswith("whole")}
    assert len(tiles) == 12 * len(sides) and set(sides.values()) == {"train", "val", "test"}
    assert all(record.split == sides[record.parent] for record in tiles)
    smears = [record for record in records if record.name.startswith("smears")]
    assert all(record.split == sides[record.image.stem] for record in smears)
    dataset = open_dataset(str(tmp_path / "out/manifest.csv"))
    rows = given_split(dataset.records, dataset.digests, near=dataset.near)
    assert find_leaks(dataset.records, dataset.digests, rows, dataset.near) == []


@pytest.fixture
def folder():
    """Of the weights that came with the toolkit."""
    found = REPOSITORY / "checkpoints" / "SEG"
    if not (found / "shipped.json").is_file():
        pytest.skip("a run of one's own has taken the name SEG; the shipped weights were set aside")
    return found


def test_the_shipped_weights_load_and_are_small(folder):
    saved = load_network(folder / "latest_net_3TDCFNet.safetensors")
    assert saved.network.open_tiers == 3 and saved.network.draws_masks
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40 * 2**20
    for path in folder.iterdir():
        text = path.read_bytes()
        assert not any(place in text for place in (b"/home/", b"/root/", b"/tmp/", b"/work/")), path.name
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("# Model card")


def test_the_shipped_line_is_drawn_through_the_weights_that_are_installed(folder):
    line = LINE.read(folder)
    chances = frozen_chances(line, [batch(4)], 64, torch.device("cpu"))
    assert chances is not None and chances.shape == (4,) and len(set(chances)) == 4
    with (folder / "split.csv").open(newline="") as file:
        known = [row for row in csv.DictReader(file) if row["split"] == "train" and row["label"]]
    assert line.images == len(known)
