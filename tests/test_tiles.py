"""Cutting smears into tiles: they join to what they were cut from, and nothing is overwritten or left half-done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import read_rgb
from data.readers import read_dataroot
from data.records import ANEMIC, HEALTHY
from data.splits import group_ids
from data.tiles import cut, tile_dataset
from util.errors import UserError

FOLDERS = {"a": "Anemic_individuals", "h": "Healthy_individuals"}


def save(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


@pytest.fixture
def source(tmp_path, rng):
    """Two smears of 24x18; masks with every grey level, and one blood count."""
    root = tmp_path / "source" / "AneRBC-I"
    for letter, folder in FOLDERS.items():
        save(root / folder / "Original_images" / f"001_{letter}.png", rng.integers(0, 256, (18, 24, 3), dtype=np.uint8))
        save(root / folder / "Binary_segmented" / f"001_{letter}.png", rng.integers(0, 256, (18, 24), dtype=np.uint8))
    (root / "Anemic_individuals" / "CBC_reports").mkdir()
    (root / "Anemic_individuals" / "CBC_reports" / "001_a.txt").write_bytes(b"HGB,9\r\n\xb5")
    return root


def joined(folder: Path, number: int, letter: str, columns: int, rows: int) -> np.ndarray:
    """Put the tiles together by their numbers, without the code under test."""
    bands = []
    for row in range(rows):
        stems = [f"{number:04d}_{row * columns + column + 1:02d}_{letter}" for column in range(columns)]
        bands.append(np.hstack([np.asarray(Image.open(folder / f"{stem}.png").convert("RGB")) for stem in stems]))
    return np.vstack(bands)


def refusal(source: Path, out: Path, **options) -> str:
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        tile_dataset(source, out, progress=False, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == before, "something half-written stays"
    return str(caught.value)


@pytest.mark.parametrize(("columns", "rows"), [(4, 3), (2, 3), (1, 1), (8, 9)])
def test_tiles_join_to_the_source(source, tmp_path, columns, rows):
    out = tmp_path / "out"
    assert tile_dataset(source, out, columns=columns, rows=rows, progress=False) == 2 * columns * rows
    for letter, folder in FOLDERS.items():
        for kind in ("Original_images", "Binary_segmented"):
            whole = joined(out / "AneRBC-II" / folder / kind, 1, letter, columns, rows)
            assert np.array_equal(whole, read_rgb(source / folder / kind / f"001_{letter}.png"))
            assert len(list((out / "AneRBC-II" / folder / kind).iterdir())) == columns * rows
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_names_run_row_by_row_with_class_and_blood_count(source, tmp_path):
    tile_dataset(source.parent, tmp_path / "new" / "out", progress=False)
    records = read_dataroot(tmp_path / "new" / "out")
    names = [f"0001_{tile:02d}_{letter}" for letter in "ah" for tile in range(1, 13)]
    assert [record.image.stem for record in records] == names
    assert [record.label for record in records] == [ANEMIC] * 12 + [HEALTHY] * 12
    assert [record.parent for record in records] == ["001_a"] * 12 + ["001_h"] * 12
    assert all(record.mask and record.mask_dark for record in records)
    whole = read_rgb(source / "Anemic_individuals/Original_images/001_a.png")
    assert np.array_equal(read_rgb(records[1].image), whole[:6, 6:12])  # tile 02: first row, second column
    assert np.array_equal(read_rgb(records[4].image), whole[6:12, :6])  # tile 05: second row, first column
    assert all(record.cbc.stem == record.image.stem for record in records[:12])
    assert all(record.cbc.read_bytes() == b"HGB,9\r\n\xb5" for record in records[:12])
    assert all(record.cbc is None for record in records[12:])
    assert group_ids(records, [str(index) for index in range(24)]) == ["001_a"] * 12 + ["001_h"] * 12


def test_smears_without_masks_are_tiled_too(source, tmp_path):
    for folder in FOLDERS.values():
        for path in (source / folder / "Binary_segmented").iterdir():
            path.unlink()
        (source / folder / "Binary_segmented").rmdir()
    assert tile_dataset(source, tmp_path / "out", progress=False) == 24
    assert all(record.mask is None for record in read_dataroot(tmp_path / "out"))


def test_progress_goes_to_stderr(source, tmp_path, capsys):
    tile_dataset(source, tmp_path / "out")
    captured = capsys.readouterr()
    assert "2/2" in captured.err and captured.out == ""


def test_size_that_does_not_divide_is_refused(source, tmp_path):
    text = refusal(source, tmp_path / "out", columns=5)
    assert "001_a.png" in text and "24x18" in text and "divisible by 5" in text
    with pytest.raises(ValueError, match="24x18"):
        list(cut(np.zeros((18, 24, 3), np.uint8), 4, 5))


@pytest.mark.parametrize(("columns", "rows"), [(0, 3), (4, -1), (10, 10)])
def test_grid_that_cannot_be_numbered_is_refused(source, tmp_path, columns, rows):
    assert "grid of tiles" in refusal(source, tmp_path / "out", columns=columns, rows=rows)


def test_out_that_holds_files_is_refused_unless_asked(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert tile_dataset(source, out, progress=False) == 24
    (out / "mine.txt").write_text("kept")
    stale = out / "AneRBC-II" / "Anemic_individuals" / "Original_images" / "0099_01_a.png"
    stale.write_bytes(b"old")
    text = refusal(source, out)
    assert str(out) in text and "AneRBC-II" in text
    assert stale.exists()
    assert tile_dataset(source, out, overwrite=True, progress=False) == 24
    assert not stale.exists() and (out / "mine.txt").read_text() == "kept"
    assert len(read_dataroot(out)) == 24


def test_out_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "out").write_text("x")
    assert "not a folder" in refusal(source, tmp_path / "out")


def test_tiles_never_replace_their_source(tmp_path, source):
    source.rename(tmp_path / "AneRBC-II")
    assert "overwritten" in refusal(tmp_path / "AneRBC-II", tmp_path, overwrite=True)
    assert len(read_dataroot(tmp_path / "AneRBC-II")) == 2


def test_failure_half_way_leaves_nothing(source, tmp_path):
    broken = source / "Healthy_individuals/Original_images/001_h.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert "001_h.png" in refusal(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failure_of_an_overwrite_keeps_the_old_tiles(source, tmp_path):
    out = tmp_path / "out"
    tile_dataset(source, out, progress=False)
    broken = source / "Healthy_individuals/Original_images/001_h.png"
    broken.write_bytes(broken.read_bytes()[:200])
    refusal(source, out, overwrite=True)
    assert len(read_dataroot(out)) == 24


def test_failure_of_the_last_step_restores_the_old_tiles(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tile_dataset(source, out, progress=False)
    rename = Path.rename

    def fail_for_new(self, target):
        if self.parent.suffix == ".partial" and self.name == "AneRBC-II":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    assert "No space left" in refusal(source, out, overwrite=True)
    assert len(read_dataroot(out)) == 24


def test_tiles_and_other_trees_are_no_source(source, tmp_path):
    tile_dataset(source, tmp_path / "out", progress=False)
    assert "not a full smear" in refusal(tmp_path / "out", tmp_path / "again")
    for folder in ("rgb", "binary"):
        save(tmp_path / "paired" / folder / "001_a.png", np.zeros((18, 24, 3), np.uint8))
    assert "not a full smear" in refusal(tmp_path / "paired", tmp_path / "again")


def test_the_same_number_twice_is_refused(source, tmp_path):
    for kind in ("Original_images", "Binary_segmented"):
        save(source / "Anemic_individuals" / kind / "0001_a.png", np.zeros((18, 24, 3), np.uint8))
    assert "the same number twice" in refusal(source, tmp_path / "out")


def test_a_real_smear_joins_again(shared_data, tmp_path):
    original = shared_data / "anerbc_1224x960" / "AneRBC-I" / "Healthy_individuals"
    for kind in ("Original_images", "Binary_segmented"):
        copy = tmp_path / "AneRBC-I" / "Healthy_individuals" / kind / "003_h.png"
        copy.parent.mkdir(parents=True)
        copy.write_bytes((original / kind / "003_h.png").read_bytes())
    assert tile_dataset(tmp_path, tmp_path / "out", progress=False) == 12
    for kind in ("Original_images", "Binary_segmented"):
        tiles = tmp_path / "out" / "AneRBC-II" / "Healthy_individuals" / kind
        assert Image.open(tiles / "0003_12_h.png").size == (306, 320)
        expected = np.asarray(Image.open(original / kind / "003_h.png").convert("RGB"))
        assert np.array_equal(joined(tiles, 3, "h", 4, 3), expected)


@pytest.mark.slow
def test_all_real_smears_give_168_tiles(shared_data, tmp_path):
    assert tile_dataset(shared_data / "anerbc_1224x960", tmp_path / "out", progress=False) == 168
    records = read_dataroot(tmp_path / "out")
    assert len(records) == 168 and all(record.mask for record in records)
    assert len({record.parent for record in records}) == 14
