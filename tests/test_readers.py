"""Reading a data root: the layouts, what their names say, and every way in which a tree can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.readers import pair_errors, parent_of, read_dataroot
from data.records import ANEMIC, HEALTHY
from util.errors import UserError

ANEMIC_IMAGES = "Anemic_individuals/Original_images"
HEALTHY_IMAGES = "Healthy_individuals/Original_images"


def put(path: Path, size: tuple[int, int] = (8, 6), level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(path)
    return path


def put_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def make_anerbc(inner: Path, *, masks: bool = True) -> None:
    for folder, letter in (("Anemic_individuals", "a"), ("Healthy_individuals", "h")):
        for number in (1, 2):
            put(inner / folder / "Original_images" / f"{number:03d}_{letter}.png")
            if masks:
                put(inner / folder / "Binary_segmented" / f"{number:03d}_{letter}.png")
            put_text(inner / folder / "CBC_reports" / f"{number:03d}_{letter}.txt", f"HGB,{number}")
        put(inner / folder / "Morphology" / "other.png")


def make_paired(root: Path, names=("one.png", "two.png")) -> None:
    for name in names:
        put(root / "rgb" / name)
        put(root / "binary" / name)


def refusal(root: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_dataroot(root)
    assert caught.value.expected and caught.value.found and caught.value.remedy
    return caught.value


# AneRBC's own tree


@pytest.mark.parametrize("part", ["AneRBC-I", "AneRBC-II"])
def test_anerbc_outer_and_inner_folder(tmp_path, part):
    make_anerbc(tmp_path / part)
    outer, inner = read_dataroot(tmp_path), read_dataroot(tmp_path / part)
    assert [record.name for record in inner] == [
        f"{ANEMIC_IMAGES}/001_a.png",
        f"{ANEMIC_IMAGES}/002_a.png",
        f"{HEALTHY_IMAGES}/001_h.png",
        f"{HEALTHY_IMAGES}/002_h.png",
    ]
    assert [record.name for record in outer] == [f"{part}/{record.name}" for record in inner]
    first = inner[0]
    assert first.image == tmp_path / part / ANEMIC_IMAGES / "001_a.png"
    assert first.mask == tmp_path / part / "Anemic_individuals/Binary_segmented/001_a.png"
    assert first.cbc == tmp_path / part / "Anemic_individuals/CBC_reports/001_a.txt"
    assert first.mask_dark and first.severity is None and first.parent == "001_a"
    assert [record.label for record in inner] == [ANEMIC, ANEMIC, HEALTHY, HEALTHY]


def test_anerbc_accepts_a_string_and_a_relative_path(tmp_path, monkeypatch):
    make_anerbc(tmp_path / "AneRBC-I")
    monkeypatch.chdir(tmp_path)
    assert read_dataroot("AneRBC-I")[0].image == tmp_path / "AneRBC-I" / ANEMIC_IMAGES / "001_a.png"


def test_both_parts_at_once_are_refused_unless_only_one_holds_smears(tmp_path):
    make_anerbc(tmp_path / "AneRBC-I")
    (tmp_path / "AneRBC-II").mkdir()
    assert len(read_dataroot(tmp_path)) == 4
    make_anerbc(tmp_path / "AneRBC-II")
    error = refusal(tmp_path)
    assert "pick one" in error.remedy and str(tmp_path / "AneRBC-II") in error.remedy


def test_one_class_alone_is_read(tmp_path):
    put(tmp_path / HEALTHY_IMAGES / "001_h.png")
    assert [record.label for record in read_dataroot(tmp_path)] == [HEALTHY]


def test_class_folder_without_images_folder_is_refused(tmp_path):
    put(tmp_path / HEALTHY_IMAGES / "001_h.png")
    put(tmp_path / "Anemic_individuals" / "001_a.png")
    assert "Anemic_individuals" in refusal(tmp_path).what


@pytest.mark.parametrize("name", ["001_h.png", "0001_03_h.png", "my smear_h.png"])
def test_name_and_folder_must_agree_on_the_class(tmp_path, name):
    put(tmp_path / ANEMIC_IMAGES / "009_a.png")
    path = put(tmp_path / ANEMIC_IMAGES / name)
    error = refusal(tmp_path)
    assert str(path) in error.what and "_a" in error.expected and "_h" in error.found


def test_name_without_suffix_takes_its_folders_class(tmp_path):
    put(tmp_path / ANEMIC_IMAGES / 'it\'s a "smear" ä血.png')
    (record,) = read_dataroot(tmp_path)
    assert record.label == ANEMIC and record.parent == record.name


def test_masks_pair_by_stem_whatever_the_extension(tmp_path):
    put(tmp_path / ANEMIC_IMAGES / "001_a.png")
    mask = put(tmp_path / "Anemic_individuals/Binary_segmented/001_a.bmp")
    assert read_dataroot(tmp_path)[0].mask == mask


def test_one_class_may_have_no_mask_folder(tmp_path):
    make_anerbc(tmp_path, masks=False)
    put(tmp_path / "Anemic_individuals/Binary_segmented/001_a.png")
    put(tmp_path / "Anemic_individuals/Binary_segmented/002_a.png")
    assert [record.mask is not None for record in read_dataroot(tmp_path)] == [True, True, False, False]


def test_image_without_mask_and_mask_without_image_are_refused(tmp_path):
    make_anerbc(tmp_path)
    put(tmp_path / "Anemic_individuals/Binary_segmented/003_a.png")
    error = refusal(tmp_path)
    assert "1 masks without an image" in error.what and "003_a.png" in error.found
    put(tmp_path / ANEMIC_IMAGES / "003_a.png")
    assert len(read_dataroot(tmp_path)) == 5
    for number in range(10, 17):
        put(tmp_path / HEALTHY_IMAGES / f"{number:03d}_h.png")
    error = refusal(tmp_path)
    assert "7 images without a mask" in error.what
    assert "014_h.png" in error.found and "015_h.png" not in error.found and "2 more" in error.found


@pytest.mark.parametrize("stem", ["0001_05_a", "001_a", "0001_a"])
def test_report_of_a_tile_is_its_own_or_its_parents(tmp_path, stem):
    put(tmp_path / ANEMIC_IMAGES / "0001_05_a.png")
    put(tmp_path / ANEMIC_IMAGES / "0002_05_a.png")
    report = put_text(tmp_path / "Anemic_individuals/CBC_reports" / f"{stem}.txt", "HGB,9")
    first, second = read_dataroot(tmp_path)
    assert first.cbc == report and second.cbc is None


def test_own_report_comes_before_the_parents(tmp_path):
    put(tmp_path / ANEMIC_IMAGES / "0001_05_a.png")
    own = put_text(tmp_path / "Anemic_individuals/CBC_reports/0001_05_a.txt", "HGB,9")
    put_text(tmp_path / "Anemic_individuals/CBC_reports/001_a.txt", "HGB,8")
    assert read_dataroot(tmp_path)[0].cbc == own


@pytest.mark.parametrize(
    ("stem", "parent"),
    [
        ("001_a", "001_a"),
        ("0001_a", "001_a"),
        ("0001_05_a", "001_a"),
        ("0001_12_h", "001_h"),
        ("0473_01_h", "473_h"),
        ("1000_01_a", "1000_a"),
        ("001_A", None),
        ("smear_a", None),
        ("001", None),
        ("0001_5_a", None),
    ],
)
def test_parent_of_a_name(stem, parent):
    assert parent_of(stem) == parent


# paired tree


def test_paired_tree(tmp_path):
    make_paired(tmp_path, ["b.png", "sub folder/a.png", 'it\'s "ä血".png'])
    records = read_dataroot(tmp_path)
    assert [record.name for record in records] == ["rgb/b.png", 'rgb/it\'s "ä血".png', "rgb/sub folder/a.png"]
    assert records[2].mask == tmp_path / "binary/sub folder/a.png"
    assert not records[0].mask_dark and records[0].label is None and records[0].cbc is None
    assert [record.parent for record in records] == [record.name for record in records]


def test_equal_stems_in_different_folders_stay_apart(tmp_path):
    make_paired(tmp_path, ["x/1.png", "y/1.png"])
    records = read_dataroot(tmp_path)
    assert [record.mask.parent.name for record in records] == ["x", "y"]
    assert len({record.parent for record in records}) == 2


def test_paired_label_by_folder_and_suffix(tmp_path):
    names = ["HEALTHY/1.png", "anemic/2.png", "Anemic_individuals/3.png", "0007_02_h.png", "9_a.png", "plain.png"]
    make_paired(tmp_path, names)
    records = {record.name.removeprefix("rgb/"): record for record in read_dataroot(tmp_path)}
    assert [records[name].label for name in names] == [HEALTHY, ANEMIC, ANEMIC, HEALTHY, ANEMIC, None]
    assert records["0007_02_h.png"].parent == "007_h"


def test_paired_folder_and_suffix_that_disagree_are_refused(tmp_path):
    make_paired(tmp_path, ["healthy/1_a.png"])
    assert "1_a.png" in refusal(tmp_path).what


def test_labels_csv_has_the_last_word(tmp_path):
    make_paired(tmp_path, ["healthy/1_a.png", "2.png", "3_h.png", "=x, y.png"])
    text = 'image,label,severity,parent\nhealthy/1_a.png,Anemic,chronic,P1\nrgb/2.png,0,,P2\n"=x, y.png",1,Mild,\n'
    put_text(tmp_path / "labels.csv", "\ufeff" + text)
    records = {record.name: record for record in read_dataroot(tmp_path)}
    one, two, three, odd = (records[f"rgb/{name}"] for name in ("healthy/1_a.png", "2.png", "3_h.png", "=x, y.png"))
    assert (one.label, one.severity, one.parent) == (ANEMIC, "Chronic", "P1")
    assert (two.label, two.severity, two.parent) == (HEALTHY, None, "P2")
    assert (three.label, three.parent) == (HEALTHY, "003_h")
    assert (odd.label, odd.severity, odd.parent) == (ANEMIC, "Mild", "rgb/=x, y.png")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("image,class\none.png,1\n", "wrong columns"),
        ("image,label\nnone.png,1\n", "no such image"),
        ("image,label\none.png,1\nrgb/one.png,1\n", "a row already"),
        ("image,label\none.png,sick\n", "unknown label"),
        ("image,label,severity\none.png,1,bad\n", "unknown severity"),
        ("image,label\none.png\n", "damaged row"),
        ("image,label\none.png,1,2\n", "damaged row"),
        ('image,label\n"one.png,1\n', "cannot be read"),
        ("", "wrong columns"),
    ],
)
def test_bad_labels_csv_is_refused(tmp_path, text, word):
    make_paired(tmp_path)
    path = put_text(tmp_path / "labels.csv", text)
    error = refusal(tmp_path)
    assert word in error.what and str(path) in error.what


def test_paired_tree_refuses_what_has_no_counterpart(tmp_path):
    make_paired(tmp_path)
    put(tmp_path / "rgb/three.png")
    assert "1 images without a mask" in refusal(tmp_path).what
    (tmp_path / "rgb/three.png").unlink()
    put(tmp_path / "binary/deep/three.png")
    error = refusal(tmp_path)
    assert "1 masks without an image" in error.what and "deep/three.png" in error.found


def test_names_in_two_unicode_forms_pair(tmp_path):
    put(tmp_path / "rgb" / "a\u0308.png")
    put(tmp_path / "binary" / "\u00e4.png")
    assert len(read_dataroot(tmp_path)) == 1


# every tree


def test_pair_of_two_sizes_is_refused_with_both_named(tmp_path):
    make_paired(tmp_path, ["one.png", "two.png", "three.png"])
    mask = put(tmp_path / "binary/two.png", (6, 8))
    error = refusal(tmp_path)
    assert str(tmp_path / "rgb/two.png") in error.what and str(mask) in error.found
    assert "8x6" in error.expected and "6x8" in error.found
    assert len(read_dataroot(tmp_path, check_sizes=False)) == 3
    put(tmp_path / "binary/one.png", (1, 1))
    assert "1 more pairs" in refusal(tmp_path).what
    assert len(pair_errors(read_dataroot(tmp_path, check_sizes=False))) == 2


def test_unreadable_header_of_a_pair_is_refused(tmp_path):
    make_paired(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "binary/one.gif")
    (tmp_path / "binary/one.gif").rename(tmp_path / "binary/one.png")
    error = refusal(tmp_path)
    assert "binary/one.png" in error.what and "GIF" in error.found


def test_missing_root_file_as_root_empty_folder_and_unknown_layout(tmp_path):
    assert refusal(tmp_path / "none").found == "nothing"
    assert refusal(put(tmp_path / "image.png")).found == "a file"
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty")
    assert "empty" in error.found and "Original_images" in error.expected and "rgb/" in error.expected
    for number in range(8):
        put(tmp_path / "flat" / f"{number}.png")
    (tmp_path / "flat" / "sub").mkdir()
    error = refusal(tmp_path / "flat")
    assert "'0.png'" in error.found and "4 more" in error.found and "rgb/" in error.expected


def test_tree_without_images_is_refused(tmp_path):
    (tmp_path / "rgb").mkdir()
    (tmp_path / "binary").mkdir()
    assert "no images" in refusal(tmp_path).what


def test_folder_names_are_found_in_any_case(tmp_path):
    put(tmp_path / "paired/RGB/1.png")
    put(tmp_path / "paired/Binary/1.png")
    put(tmp_path / "anerbc/anemic_individuals/original_images/001_a.png")
    assert read_dataroot(tmp_path / "paired")[0].name == "RGB/1.png"
    assert read_dataroot(tmp_path / "anerbc")[0].label == ANEMIC


def test_two_layouts_at_once_are_refused(tmp_path):
    make_paired(tmp_path)
    put(tmp_path / HEALTHY_IMAGES / "001_h.png")
    error = refusal(tmp_path)
    assert "AneRBC" in error.found and "paired" in error.found


def test_what_systems_leave_behind_is_ignored(tmp_path):
    make_paired(tmp_path)
    for junk in ("rgb/.DS_Store", "rgb/Thumbs.db", "rgb/._one.png", "rgb/__MACOSX/one.png", "binary/desktop.ini"):
        put_text(tmp_path / junk, "junk")
    assert len(read_dataroot(tmp_path)) == 2


def test_file_that_is_no_image_and_doubled_stem_are_refused(tmp_path):
    make_paired(tmp_path)
    path = put_text(tmp_path / "rgb/notes.txt", "x")
    assert str(path) in refusal(tmp_path).what
    path.unlink()
    put(tmp_path / "rgb/one.bmp")
    assert "one.bmp" in refusal(tmp_path).found


def test_root_may_be_a_link_and_links_inside_are_followed(tmp_path):
    make_paired(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_dataroot(tmp_path / "link")[0].image == tmp_path / "link/rgb/one.png"
    for folder in ("rgb", "binary"):
        (tmp_path / "real" / folder / "again.png").symlink_to(tmp_path / "real" / folder / "one.png")
    assert len(read_dataroot(tmp_path / "real")) == 3


@pytest.mark.parametrize("link", ["rgb/one.png", "rgb", "binary/sub", "labels.csv"])
def test_link_that_leads_outside_is_refused(tmp_path, link):
    root = tmp_path / "root"
    make_paired(root)
    outside = put(tmp_path / "outside" / "one.png") if link == "rgb/one.png" else tmp_path / "outside"
    if link == "labels.csv":
        outside = put_text(tmp_path / "outside.csv", "image,label\n")
    elif link == "rgb":
        (root / "rgb").rename(outside)
    elif link == "binary/sub":
        outside.mkdir()
    else:
        (root / link).unlink()
    (root / link).symlink_to(outside)
    error = refusal(root)
    assert "outside the data root" in error.what and str(root / link) in error.what


def test_broken_and_endless_links_are_refused(tmp_path):
    make_paired(tmp_path)
    link = tmp_path / "rgb/gone.png"
    link.symlink_to(tmp_path / "nowhere.png")
    assert "broken link" in refusal(tmp_path).what
    link.unlink()
    (tmp_path / "labels.csv").symlink_to(tmp_path / "nowhere.csv")
    assert "broken link" in refusal(tmp_path).what
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "rgb/again").symlink_to(tmp_path / "rgb")
    assert "endless link" in refusal(tmp_path).what


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_refused_without_waiting_for_it(tmp_path):
    make_paired(tmp_path)
    os.mkfifo(tmp_path / "rgb/pipe.png")
    assert "pipe.png" in refusal(tmp_path).what


def test_real_trees(shared_data):
    small = read_dataroot(shared_data / "anerbc_326x256")
    assert len(small) == 810 and all(record.cbc and record.mask is None for record in small)
    large = read_dataroot(shared_data / "anerbc_1224x960")
    assert len(large) == 14 and all(record.mask for record in large)
    assert sum(record.label == ANEMIC for record in large) == 7
