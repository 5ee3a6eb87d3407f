"""Reading a data root: the layouts, what their names say, and every way in which a tree can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.examples import example_batch
from data.images import read_smear, read_truth
from data.readers import pair_errors, parent_of, read_dataroot, survey_dataroot
from data.records import ANEMIC, HEALTHY, SmearRecord
from data.unlabelled import find_smears
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


# class folders


@pytest.mark.parametrize(
    ("folder", "label", "severity"),
    [
        ("healthy", HEALTHY, None),
        ("Normal", HEALTHY, None),
        ("Non-Anemic", HEALTHY, None),
        ("non anaemic", HEALTHY, None),
        ("Healthy_individuals", HEALTHY, None),
        ("ANEMIC", ANEMIC, None),
        ("anaemia", ANEMIC, None),
        ("mild", ANEMIC, "Mild"),
        ("Severe anemia", ANEMIC, "Chronic"),
        ("chronic", ANEMIC, "Chronic"),
        ("anemic/severe", ANEMIC, "Chronic"),
        ("anemic/patient 7", ANEMIC, None),
    ],
)
def test_class_folder_says_class_and_severity(tmp_path, folder, label, severity):
    path = put(tmp_path / folder / "1.png")
    (record,) = read_dataroot(tmp_path)
    assert record == SmearRecord(
        f"{folder}/1.png",
        path,
        label=label,
        severity=severity,
        parent=f"{folder}/1.png",
        severity_source="folder" if severity else "",
    )


def test_class_folders_below_the_sides_of_a_split(tmp_path):
    for name in ("train/healthy/1.png", "train/mild/2.png", "Validation/normal/3.png", "test/anemic/0001_05_a.png"):
        put(tmp_path / name)
    put_text(tmp_path / "train/notes.txt", "not below a class folder: passed over")
    put_text(tmp_path / "docs/notes.txt", "no images: passed over")
    records = {record.name: record for record in read_dataroot(tmp_path)}
    assert {name: (record.split, record.label) for name, record in records.items()} == {
        "train/healthy/1.png": ("train", HEALTHY),
        "train/mild/2.png": ("train", ANEMIC),
        "Validation/normal/3.png": ("val", HEALTHY),
        "test/anemic/0001_05_a.png": ("test", ANEMIC),
    }
    assert records["test/anemic/0001_05_a.png"].parent == "001_a"


def test_names_are_data(tmp_path):
    names = [
        "a b.png",
        'it\'s "x".png',
        "血 ä.png",
        "100%25#?.png",
        "\u05d3\u05dd\u202e.png",
        "<script>.png",
        "=1+1.png",
    ]
    for name in names:
        put(tmp_path / "healthy" / name)
    assert [record.name for record in read_dataroot(tmp_path)] == sorted(f"healthy/{name}" for name in names)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("anemic/001_h.png", "do not agree"),
        ("healthy/mild/1.png", "do not agree"),
        ("mild/severe/1.png", "do not agree"),
        ("healthy/normal/anemic/1.png", "do not agree"),
        ("loose.png", "outside the class folders"),
        ("moderate/1.png", "says no class"),
        ("masks/1.png", "says no class"),
        ("healthy/Binary_segmented/1.png", "a folder of masks"),
        ("healthy/1.gif", "not an image"),
        ("healthy/fine.bmp", "two images of the same name"),
        ("train/healthy/1.png", "on a side of the split and some are not"),
    ],
)
def test_class_folders_that_contradict_themselves_are_refused(tmp_path, name, word):
    put(tmp_path / "healthy/fine.png")
    put(tmp_path / "x.png").rename(put_text(tmp_path / name, ""))
    error = refusal(tmp_path)
    assert word in error.what
    records, problems = survey_dataroot(tmp_path)
    assert {"healthy/fine.png", "healthy/fine.bmp"} & {record.name for record in records}
    assert [problem.what for problem in problems] == [error.what]


def test_letter_at_the_end_of_any_other_name_is_no_class(tmp_path):
    put(tmp_path / "healthy/image_a.png")
    assert read_dataroot(tmp_path)[0].label == HEALTHY


def test_labels_csv_beside_class_folders(tmp_path):
    put(tmp_path / "healthy/1.png")
    put(tmp_path / "anemic/2.png")
    put_text(tmp_path / "labels.csv", "image,label,severity,parent\nanemic/2.png,,severe,P\nhealthy/1.png,Anemic,,\n")
    two, one = read_dataroot(tmp_path)
    assert (two.label, two.severity, two.severity_source, two.parent) == (ANEMIC, "Chronic", "labels.csv", "P")
    assert (one.label, one.severity, one.parent) == (ANEMIC, None, "healthy/1.png")


# side-by-side images


def smear_and_cells(seed: int, side: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A pink smear with dark discs, uint8 (side, side, 3), and where they are, bool (side, side)."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side]
    cells = np.zeros((side, side), bool)
    for y, x in rng.uniform(8, side - 8, (6, 2)):
        cells |= (row - y) ** 2 + (column - x) ** 2 < 36
    rgb = np.where(cells[..., None], (180, 90, 110), (235, 215, 225)) + rng.normal(0, 6, (side, side, 1))
    return rgb.astype(np.uint8), cells


def put_joined(path: Path, seed: int = 1, *, dark: bool = False, swapped: bool = False) -> np.ndarray:
    rgb, cells = smear_and_cells(seed)
    mask = np.repeat(np.where(cells ^ dark, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack([mask, rgb] if swapped else [rgb, mask])).save(path, quality=90)
    return cells


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_joined_images_are_told_by_content_with_their_polarity(tmp_path, dark, suffix):
    names = [f"{name}{suffix}" for name in ("1", "2", "0003_a")]
    cells = [put_joined(tmp_path / name, seed, dark=dark) for seed, name in enumerate(names)]
    records = read_dataroot(tmp_path)
    assert [record.name for record in records] == sorted(names)
    for record in records:
        truth = cells[names.index(record.name)]
        assert record.side_by_side and record.mask == record.image and record.mask_dark is dark
        assert (read_truth(record) == truth).mean() > (0.999 if suffix == ".png" else 0.97)
        assert read_smear(record).shape == (60, 60, 3)
    assert [record.label for record in records] == [ANEMIC, None, None]
    assert pair_errors(records) == []


def test_joined_images_in_class_folders_of_a_split(tmp_path):
    put_joined(tmp_path / "train/healthy/1.png")
    put_joined(tmp_path / "test/severe/2.png")
    test, train = read_dataroot(tmp_path)
    assert (test.split, test.label, test.severity) == ("test", ANEMIC, "Chronic")
    assert (train.split, train.label, train.severity) == ("train", HEALTHY, None)
    assert test.side_by_side and train.side_by_side


def test_plain_class_folders_are_not_taken_for_joined_images(tmp_path):
    for seed in range(3):
        rgb, _ = smear_and_cells(seed)
        path = put(tmp_path / f"healthy/{seed}.png")
        Image.fromarray(rgb).save(path)
    assert not any(record.side_by_side or record.mask for record in read_dataroot(tmp_path))


def test_mask_without_cells_takes_the_usual_polarity(tmp_path):
    put_joined(tmp_path / "1.png", dark=True)
    rgb, _ = smear_and_cells(5)
    Image.fromarray(np.hstack([rgb, np.full_like(rgb, 255)])).save(tmp_path / "2.png")
    empty = read_dataroot(tmp_path)[1]
    assert empty.mask_dark and not read_truth(empty).any()


def test_mask_with_grey_edges_and_a_coloured_pointer_is_a_mask(tmp_path):
    put_joined(tmp_path / "1.png")
    pixels = np.array(Image.open(tmp_path / "1.png"))
    pixels[:6, 60:] = (230, 40, 40)
    pixels[::7, 60:] //= 2
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (record,) = read_dataroot(tmp_path)
    assert record.side_by_side and not record.mask_dark


def test_masks_that_are_not_all_drawn_alike_are_refused_with_two_named(tmp_path):
    for seed in range(3):
        put_joined(tmp_path / f"white{seed}.png", seed)
    put_joined(tmp_path / "dark.png", 7, dark=True)
    error = refusal(tmp_path)
    assert "not all drawn alike" in error.what
    assert str(tmp_path / "dark.png") in error.found and str(tmp_path / "white0.png") in error.found
    records, problems = survey_dataroot(tmp_path)
    assert len(problems) == 1 and [record.mask_dark for record in records] == [True, False, False, False]


def test_halves_that_do_not_go_together_are_no_sign_of_joined_images(tmp_path):
    rgb, cells = smear_and_cells(1)
    noise = np.random.default_rng(0).random(cells.shape) < 0.5
    mask = np.repeat(np.where(noise, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(np.hstack([rgb, mask])).save(tmp_path / "1.png")
    assert "unknown layout" in refusal(tmp_path).what
    put_joined(tmp_path / "2.png")
    assert [record.mask_dark for record in read_dataroot(tmp_path)] == [False, False]


def test_file_that_is_no_pair_among_joined_ones_is_refused(tmp_path):
    put_joined(tmp_path / "1.png")
    put_joined(tmp_path / "3.png")
    for name, content in {
        "plain": np.hstack([smear_and_cells(2)[0]] * 2),
        "odd": smear_and_cells(2)[0][:, :-1],
    }.items():
        path = tmp_path / "2.png"
        Image.fromarray(content).save(path)
        error = refusal(tmp_path)
        assert str(path) in error.what and str(tmp_path / "1.png") in error.expected, name
        assert ("59 pixels" if name == "odd" else "colour") in error.found
        records, problems = survey_dataroot(tmp_path)
        assert [record.name for record in records] == ["1.png", "3.png"] and len(problems) == 1
    put_joined(path, swapped=True)
    assert "the left half" in refusal(tmp_path).found
    path.write_bytes(b"no image")
    assert str(path) in refusal(tmp_path).what


# manifest


def test_manifest_as_the_data_root_and_in_it(tmp_path):
    put(tmp_path / "images/b.png")
    put(tmp_path / "images/a.png")
    text = "image,label\nb.png,1\na.png,0\n"
    inside = put_text(tmp_path / "images/manifest.csv", text)
    outside = put_text(tmp_path / "tables/list.CSV", text)
    for records in (
        read_dataroot(inside),
        read_dataroot(tmp_path / "images"),
        read_dataroot(outside, image_root=tmp_path / "images"),
        survey_dataroot(str(outside), image_root=str(tmp_path / "images"))[0],
    ):
        assert [(record.name, record.label) for record in records] == [("a.png", HEALTHY), ("b.png", ANEMIC)]
        assert records[0].image == tmp_path / "images/a.png"


def test_manifest_beside_another_layout_must_be_chosen(tmp_path):
    put(tmp_path / "healthy/1.png")
    path = put_text(tmp_path / "manifest.csv", "image,label\nhealthy/1.png,1\n")
    error = refusal(tmp_path)
    assert "manifest and class folders" in error.found and str(path) in error.remedy
    assert read_dataroot(path)[0].label == ANEMIC


def test_image_root_without_a_manifest_is_refused(tmp_path):
    put(tmp_path / "healthy/1.png")
    with pytest.raises(UserError, match="no manifest"):
        read_dataroot(tmp_path, image_root=tmp_path)


def test_sizes_of_a_manifests_pairs_are_compared(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "m.png", (4, 4))
    path = put_text(tmp_path / "list.csv", "image,mask\na.png,m.png\n")
    assert "another size" in refusal(path).what
    put_text(path, "image,side_by_side\na.png,1\n")
    put(tmp_path / "a.png", (7, 6))
    assert "side by side" in refusal(path).what


# survey


def test_survey_lists_all_records_and_all_problems_of_anerbc(tmp_path):
    make_anerbc(tmp_path)
    put(tmp_path / ANEMIC_IMAGES / "003_h.png")
    put(tmp_path / "Anemic_individuals/Binary_segmented/004_a.png")
    put(tmp_path / "Anemic_individuals/Binary_segmented/005_a.png")
    put_text(tmp_path / HEALTHY_IMAGES / "notes.txt", "x")
    (tmp_path / HEALTHY_IMAGES / "gone.png").symlink_to(tmp_path / "nowhere")
    records, problems = survey_dataroot(tmp_path)
    assert {Path(record.name).stem: record.label for record in records} == {
        "001_a": ANEMIC,
        "002_a": ANEMIC,
        "003_h": None,
        "001_h": HEALTHY,
        "002_h": HEALTHY,
    }
    texts = "\n".join(map(str, problems))
    for part in ("only in Binary_segmented: '004_a.png'", "'005_a.png'", "only in Original_images: '003_h.png'"):
        assert part in texts
    assert "003_h.png: name and folder" in texts and "notes.txt: not an image" in texts and "gone.png: broken" in texts
    assert len(problems) == 6


def test_survey_of_a_paired_tree_goes_on_past_bad_rows(tmp_path):
    make_paired(tmp_path, ["healthy/1_a.png", "2.png", "3.png"])
    (tmp_path / "binary/3.png").unlink()
    put_text(tmp_path / "labels.csv", "image,label\n2.png,sick\nnone.png,1\n3.png,1\n")
    records, problems = survey_dataroot(tmp_path)
    assert [(record.name, record.label) for record in records] == [
        ("rgb/2.png", None),
        ("rgb/3.png", ANEMIC),
        ("rgb/healthy/1_a.png", None),
    ]
    assert records[1].mask is None and len(problems) == 4


def test_survey_without_anything_to_list(tmp_path):
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError):
            survey_dataroot(root)
    path = put_text(tmp_path / "list.csv", "image\nnone.png\n")
    assert [len(part) for part in survey_dataroot(path)] == [0, 1]


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
    assert "'0.png'" in error.found and "4 more" in error.found
    for looked_for in ("Original_images", "rgb/", "manifest.csv", "healthy/", "left half"):
        assert looked_for in error.expected


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


def test_links_between_two_folders_are_endless_too(tmp_path):
    make_paired(tmp_path)
    for one, other in (("a", "b"), ("b", "a")):
        put(tmp_path / "rgb" / one / f"{one}1.png")
        put(tmp_path / "binary" / one / f"{one}1.png")
        (tmp_path / "rgb" / one / f"to_{other}").symlink_to(tmp_path / "rgb" / other)
    assert "endless link" in refusal(tmp_path).what
    records, problems = survey_dataroot(tmp_path)
    endless = sorted(error.what for error in problems if "endless" in error.what)
    assert [what.partition(str(tmp_path / "rgb"))[2] for what in endless] == [
        "/a/to_b/to_a: endless link",
        "/b/to_a/to_b: endless link",
    ]
    assert {"rgb/a/a1.png", "rgb/a/to_b/b1.png"} <= {record.name for record in records}


def test_an_export_is_not_tried_with_smears_of_which_none_is_there(tmp_path):
    put_text(tmp_path / "manifest.csv", "image\ngone.png\n")
    with pytest.raises(UserError, match=r"no smear to try(?s:.*)gone\.png"):
        example_batch(str(tmp_path), 64, 2)


@pytest.mark.parametrize("pattern", ["**", "**/*.png", "*/*/*.png", "*"])
def test_a_pattern_leaves_the_toolkit_s_own_folders_out_and_counts_every_file_once(tmp_path, pattern):
    smear, own = put(tmp_path / "smears/deep/1.png"), tmp_path / "results"
    put_text(smear.parent / "notes.txt", "no image")
    put(own / "SEG/masks/1.png")
    put(own / "SEG/mask.png")
    found = find_smears(f"{tmp_path}/{pattern}", leave_out=[own])
    assert [record.name for record in found.records] == ["smears/deep/1.png"]
    assert found.notes == ["'results' holds this toolkit's own files: left out."]
    assert found.passed_over == ({} if pattern.endswith(".png") else {".txt": 1})
    inside = find_smears(f"{own}/*", leave_out=[own])  # asked for by name
    assert [record.name for record in inside.records] == ["SEG/mask.png", "SEG/masks/1.png"]


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
    for folder in ("chula_rbc12/Dataset", "bbbc041seg/masks"):
        assert "unknown layout" in refusal(shared_data / folder).what


def test_real_masks_reduced_and_joined(shared_data, tmp_path):
    for record in read_dataroot(shared_data / "anerbc_1224x960")[::4]:
        halves = [Image.open(path).convert("RGB").resize((300, 240)) for path in (record.image, record.mask)]
        put(tmp_path / "x.png").unlink()
        Image.fromarray(np.hstack([np.asarray(half) for half in halves])).save(tmp_path / Path(record.name).name)
    joined = read_dataroot(tmp_path)
    assert len(joined) == 4 and all(record.mask_dark and record.side_by_side for record in joined)
