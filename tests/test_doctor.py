"""The doctor: every fault is found in a data root that has it and in none that has not; cleaned data is clean."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.doctor import as_json, examine_dataroot, printable, summary
from data.doctor_case import Case, Score, joined_sets
from data.doctor_facts import _otsu, examine_files
from data.images import otsu_mask
from data.manifest import read_manifest
from data.readers import survey_dataroot
from util.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
# scikit-learn's threads warn where pytest has emptied the list of warning filters
pytestmark = pytest.mark.filterwarnings("ignore:.sklearn.utils.parallel.delayed:UserWarning")
COUNT, HEIGHT, WIDTH = 24, 80, 104


def smear_and_mask(rng, height=HEIGHT, width=WIDTH):
    """Dark discs on a light plane, stain and place drawn at random, and the mask that shows them."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.zeros((height, width), bool)
    for _ in range(22):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(4, 8)
        inside |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    plane, stain = rng.uniform(200, 235, 3), rng.uniform(90, 170, 3)
    rgb = np.where(inside[..., None], stain, plane) + rng.normal(0, 3, (height, width, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), inside


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_pair(root, name, rgb, inside, white=255, black=0):
    save(root / "rgb" / name, rgb)
    save(root / "binary" / name, np.where(inside, white, black).astype(np.uint8))


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory):
    """A paired tree of which nothing bad can be said: twelve smears of either class."""
    root, rng = tmp_path_factory.mktemp("clean") / "smears", np.random.default_rng(7)
    for index in range(COUNT):
        write_pair(root, f"{'healthy' if index % 2 else 'anemic'}/{index:02d}.png", *smear_and_mask(rng))
    return root


@pytest.fixture
def root(clean_root, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(clean_root, tmp_path / "smears"))


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Small forests, so that the many small examinations here are quick."""
    monkeypatch.setattr("data.doctor_colour.TREES", 12)


def examine(root, **options):
    return examine_dataroot(root, workers=1, progress=False, **options)


def found(root, key, **options):
    """The one finding of a kind, or None."""
    matching = [finding for finding in examine(root, **options).findings if finding.key == key]
    assert len(matching) < 2
    return matching[0] if matching else None


def call(line, monkeypatch, folder):
    """Run the door as the shell would and give its exit status."""
    spec = importlib.util.spec_from_file_location("door_data", REPOSITORY / "3TDCFNet_data.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["3TDCFNet_data.py", *shlex.split(line)])
    return door.main()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(path, width, height):
    """A PNG whose header promises any size, with hardly any data behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0\0")) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def png_of_16_bits(path, pixels):
    """An RGB PNG of 16 bits a channel, which Pillow cannot write."""
    deep = (pixels.astype(">u2") * 257).tobytes()
    line = pixels.shape[1] * 6
    rows = b"".join(b"\0" + deep[start : start + line] for start in range(0, len(deep), line))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


# --- a clean data root ------------------------------------------------------------------------------------------------


def test_of_clean_data_nothing_bad_is_said(clean_root, monkeypatch, tmp_path, capsys):
    diagnosis = examine(clean_root)
    assert {(finding.level, finding.key) for finding in diagnosis.findings} == {("note", "groups"), ("note", "colour")}
    assert not diagnosis.has_errors and not diagnosis.case.left_out
    assert diagnosis.figures["files"] == diagnosis.figures["kept"] == diagnosis.figures["distinct"] == COUNT
    assert call(f"doctor {clean_root} --workers 1", monkeypatch, tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"{COUNT} images ({COUNT} readable), {COUNT} masks" in shown and "0 errors, 0 warnings, 2 notes" in shown


def test_processes_see_what_one_process_sees(clean_root):
    records, problems = survey_dataroot(clean_root)
    alone = examine_files(records, workers=1, progress=False)
    together = examine_files(records, workers=2, progress=False)
    assert not problems and alone.facts == together.facts
    assert np.array_equal(alone.fingerprints, together.fingerprints)
    assert np.array_equal(alone.colours, together.colours) and alone.colours.any(axis=1).all()


# --- faults of files: what is done to the clean data, the finding, its level, the files it names ---------------------


def damaged_truncated(root):
    path = root / "rgb/anemic/00.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_header(root):
    png_header(root / "rgb/anemic/00.png", 20_000, 20_000)


def damaged_text(root):
    (root / "rgb/anemic/00.png").write_text("<html>404</html>")


def damaged_empty_file(root):
    (root / "rgb/anemic/00.png").write_bytes(b"")


def damaged_mask(root):
    path = root / "binary/anemic/00.png"
    path.write_bytes(path.read_bytes()[:100])


def mask_size(root):
    save(root / "binary/anemic/00.png", np.zeros((HEIGHT, WIDTH - 1), np.uint8))


def mask_empty(root):
    save(root / "binary/anemic/00.png", np.zeros((HEIGHT, WIDTH), np.uint8))


def mask_full(root):
    save(root / "binary/anemic/00.png", np.full((HEIGHT, WIDTH), 255, np.uint8))


def mask_one_pixel(root):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4, 5] = 255
    save(root / "binary/anemic/00.png", mask)


def mask_inverted(root):
    path = root / "binary/anemic/00.png"
    save(path, 255 - np.asarray(Image.open(path)))


def mask_grey(root):
    path = root / "binary/anemic/00.png"
    pixels = np.array(Image.open(path))
    pixels[0, :5] = [1, 2, 3, 254, 253]
    save(path, pixels)


def mask_missing(root):
    (root / "binary/anemic/00.png").unlink()


def both_classes(root):
    for kind in ("rgb", "binary"):
        shutil.copy(root / kind / "anemic/00.png", root / kind / "healthy/copy.png")


def duplicate(root):
    for kind in ("rgb", "binary"):
        shutil.copy(root / kind / "anemic/00.png", root / kind / "anemic/copy.png")


def duplicate_recoded(root):
    duplicate(root)
    Image.open(root / "rgb/anemic/copy.png").save(root / "rgb/anemic/copy.bmp")
    (root / "rgb/anemic/copy.png").unlink()


def palette(root):
    path = root / "rgb/anemic/00.png"
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path)


def grey(root):
    path = root / "rgb/anemic/00.png"
    Image.open(path).convert("L").save(path)


def sixteen_bits(root):
    path = root / "rgb/anemic/00.png"
    png_of_16_bits(path, np.array(Image.open(path)))


def cmyk(root):
    path = root / "rgb/anemic/00.png"
    Image.open(path).convert("CMYK").save(path.with_suffix(".jpg"), quality=95)
    path.unlink()


def turned(root):
    path = root / "rgb/anemic/00.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.open(path)
    image.load()
    image.save(path, exif=exif)


def other_size(root):
    for kind in ("rgb", "binary"):
        path = root / kind / "anemic/00.png"
        Image.open(path).resize((WIDTH * 3, HEIGHT * 3), Image.Resampling.NEAREST).save(path)


def flat(root):
    save(root / "rgb/anemic/00.png", np.full((HEIGHT, WIDTH, 3), 200, np.uint8))


FAULTS = {
    damaged_truncated: ("unreadable_images", "error"),
    damaged_header: ("unreadable_images", "error"),
    damaged_text: ("unreadable_images", "error"),
    damaged_empty_file: ("unreadable_images", "error"),
    damaged_mask: ("unreadable_masks", "error"),
    mask_size: ("pair_sizes", "error"),
    mask_empty: ("mask_empty", "error"),
    mask_full: ("mask_full", "error"),
    mask_inverted: ("mask_inverted", "error"),
    mask_one_pixel: ("mask_tiny", "warning"),
    mask_grey: ("mask_levels", "note"),
    palette: ("modes", "warning"),
    grey: ("modes", "warning"),
    sixteen_bits: ("modes", "warning"),
    turned: ("orientation", "warning"),
    other_size: ("sizes", "warning"),
    flat: ("flat", "warning"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_and_named(root, fault):
    fault(root)
    key, level = FAULTS[fault]
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key == key)
    assert finding.level == level and list(finding.files) == ["rgb/anemic/00.png"]
    assert finding.reasons["rgb/anemic/00.png"] and finding.sentence and finding.remedy
    assert diagnosis.has_errors == (level == "error")
    assert diagnosis.figures["kept"] == COUNT - (level == "error")
    assert finding.sentence in summary(diagnosis)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_poor_mask_is_no_inverted_one(root, rng, share):
    """On a crowded smear the inverse of a mask that marks next to nothing holds most cells; that is not its meaning."""
    rgb, inside = smear_and_mask(rng)
    crowded = np.ones_like(inside)
    crowded[::7] = crowded[:, ::9] = False
    rgb = np.where(crowded[..., None], rgb // 4, 230).astype(np.uint8)
    drawn = crowded & (np.arange(WIDTH) < share * WIDTH)
    write_pair(root, "anemic/00.png", rgb, drawn)
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key.startswith("mask_"))
    assert (finding.key, finding.level) == ("mask_unlike", "note") and list(finding.files) == ["rgb/anemic/00.png"]
    mask = diagnosis.case.facts[0].mask
    assert mask.agreement < 0.5 and not diagnosis.has_errors and diagnosis.figures["kept"] == COUNT
    save(root / "binary/anemic/00.png", np.where(crowded, 0, 255).astype(np.uint8))
    assert found(root, "mask_inverted").level == "error"


@pytest.mark.parametrize("size", [(80, 104), (320, 306), (81, 330)])
def test_the_quick_otsu_is_otsu(rng, size):
    for _ in range(3):
        rgb, _ = smear_and_mask(rng, *size)
        rgb[20:40, 30:50] = 90  # a frame with a hole
        rgb[25:35, 35:45] = 220
        assert np.array_equal(_otsu(rgb), otsu_mask(rgb))
    assert not _otsu(np.full((9, 9, 3), 70, np.uint8)).any()


def test_cmyk_is_found(root):
    cmyk(root)
    finding = found(root, "modes")
    assert list(finding.files) == ["rgb/anemic/00.jpg"] and finding.reasons["rgb/anemic/00.jpg"] == "JPEG CMYK"


def test_an_image_without_its_mask_is_found(root):
    mask_missing(root)
    finding = found(root, "layout")
    assert finding.level == "error" and "00" in str([*finding.files, *finding.reasons.values()])


def test_equal_images_in_both_classes_are_found_and_left_out(root):
    both_classes(root)
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key == "both_classes")
    assert finding.level == "error" and finding.sets == [["rgb/anemic/00.png", "rgb/healthy/copy.png"]]
    assert finding.reasons == {"rgb/anemic/00.png": "Anemic", "rgb/healthy/copy.png": "Healthy"}
    assert diagnosis.figures["both_class_sets"] == 1 and diagnosis.figures["both_class_files"] == 2
    assert diagnosis.figures["kept"] == COUNT - 1


def test_a_bad_mask_does_not_hide_that_an_image_stands_in_both_classes(root):
    both_classes(root)
    damaged_mask(root)
    diagnosis = examine(root)
    assert next(finding.count for finding in diagnosis.findings if finding.key == "both_classes") == 2
    assert diagnosis.figures["kept"] == COUNT - 1


@pytest.mark.parametrize("fault", [duplicate, duplicate_recoded])
def test_equal_images_in_one_class_are_found_whatever_their_format(root, fault):
    fault(root)
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key == "duplicates")
    assert finding.level == "warning" and finding.count == 2 and len(finding.sets) == 1
    assert diagnosis.figures["duplicate_sets"] == 1 and diagnosis.figures["kept"] == COUNT
    assert not [finding for finding in diagnosis.findings if finding.key == "both_classes"]


# --- near duplicates --------------------------------------------------------------------------------------------------


def textured(rng):
    """A smear large enough, and with detail enough, to be recognised."""
    return smear_and_mask(rng, 256, 320)


@pytest.mark.parametrize(
    ("folder", "key"), [("anemic", "near_duplicates"), ("healthy", "near_duplicates_both_classes")]
)
def test_near_duplicates_are_found_and_share_a_group(root, rng, folder, key):
    rgb, inside = textured(rng)
    write_pair(root, "anemic/one.png", rgb, inside)
    brighter = np.clip(rgb.astype(int) + 6, 0, 255).astype(np.uint8)
    write_pair(root, f"{folder}/two.png", brighter, inside)
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key == key)
    names = ["rgb/anemic/one.png", f"rgb/{folder}/two.png"]
    assert finding.level == "warning" and finding.sets == [names] and "similarity" in finding.reasons[names[0]]
    group = {record.name: group for record, group in zip(diagnosis.case.records, diagnosis.case.groups, strict=True)}
    assert group[names[0]] == group[names[1]]
    assert diagnosis.figures["groups"]["groups"] == COUNT + 1
    assert diagnosis.figures["groups"]["without_near_duplicates"] == COUNT + 2
    assert diagnosis.figures["groups"]["joined_by"]["near duplicates"] == 1
    both = next(finding.key for finding in diagnosis.findings if finding.key.startswith("near"))
    assert both == key


# --- what gives the class away ----------------------------------------------------------------------------------------


def test_a_mask_level_that_tells_the_class_is_found(root):
    for path in sorted((root / "binary").rglob("*.png")):
        black = 12 if path.parent.name == "anemic" else 38
        pixels = np.asarray(Image.open(path))
        save(path, np.where(pixels > 127, 255, black).astype(np.uint8))
    finding = found(root, "mask_level_class")
    assert finding.level == "warning" and finding.count == COUNT
    assert finding.values["dark level"]["auroc"] == 0 and "larger in Healthy" in finding.sentence
    assert finding.reasons["rgb/anemic/00.png"] == "dark 12, light 255"


def test_a_mask_level_that_varies_alike_in_both_classes_is_none(root, rng):
    for index, path in enumerate(sorted((root / "binary").rglob("*.png"))):
        save(path, np.where(np.asarray(Image.open(path)) > 127, 255, index % 6 * 7).astype(np.uint8))
    assert found(root, "mask_level_class") is None


def test_a_format_that_tells_the_class_is_found(root):
    for path in sorted((root / "rgb/anemic").iterdir()):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    finding = found(root, "file_facts")
    assert finding.level == "warning" and finding.values["format"]["auroc"] == 1 and "format" in finding.sentence


def test_colour_that_tells_the_class_is_found(root):
    for path in sorted((root / "rgb/anemic").iterdir()):
        pixels = np.asarray(Image.open(path)).astype(int)
        save(path, np.clip(pixels + (25, 0, -40), 0, 255).astype(np.uint8))
    diagnosis = examine(root)
    finding = next(finding for finding in diagnosis.findings if finding.key == "colour")
    assert finding.level == "warning" and finding.values["auroc"] > 0.9
    assert diagnosis.figures["colour"]["n"] == COUNT and diagnosis.figures["colour"]["folds"] == 5
    assert "colours only" in finding.sentence


def test_the_colour_score_depends_on_the_seed_alone(clean_root):
    one, two, other = (examine(clean_root, seed=seed).figures["colour"] for seed in (1, 1, 2))
    assert one == two and one["auroc"] != other["auroc"]


def test_too_few_groups_for_the_folds_are_said(clean_root):
    finding = found(clean_root, "colour_unknown", folds=13)
    assert finding.level == "note" and "too few groups" in finding.sentence


def test_classes_out_of_balance_are_found(root):
    for path in [*root.glob("*/anemic/*")]:
        if path.stem > "06":
            path.unlink()
    finding = found(root, "class_balance")
    assert finding is None  # 4 of 16
    for path in [*root.glob("*/anemic/*")]:
        if path.stem > "02":
            path.unlink()
    finding = found(root, "class_balance")
    assert finding.level == "warning" and finding.values == {"Healthy": 12, "Anemic": 2, "unknown": 0}
    assert found(root, "groups").level == "warning"  # two groups of Anemic


def test_images_without_a_class_are_told(root, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("image,label\nrgb/anemic/00.png,\nrgb/anemic/02.png,Anemic\n", encoding="utf-8")
    finding = found(path, "unlabelled", image_root=root)
    assert finding.level == "note" and list(finding.files) == ["rgb/anemic/00.png"]


# --- blood counts -----------------------------------------------------------------------------------------------------

REPORT = "Test,Result/Units\nWBC,{wbc} 10^3/uL\nHGB,{hgb} g/dL\n"


@pytest.fixture
def anerbc(tmp_path, rng):
    """AneRBC's own tree of four smears of either class, with blood counts that agree with the folder."""
    root = tmp_path / "tree"
    for index in range(8):
        name, letter = (("Healthy", "h"), ("Anemic", "a"))[index % 2]
        folder, stem = root / f"{name}_individuals", f"{index // 2 + 1:03d}_{letter}"
        save(folder / "Original_images" / f"{stem}.png", smear_and_mask(rng)[0])
        (folder / "CBC_reports").mkdir(parents=True, exist_ok=True)
        text = REPORT.format(wbc=5 + index / 10, hgb=14 - 5 * (letter == "a"))
        (folder / "CBC_reports" / f"{stem}.txt").write_text(text, encoding="utf-8")
    return root


def report(root, stem, text):
    folder = "Healthy" if stem.endswith("h") else "Anemic"
    (root / f"{folder}_individuals/CBC_reports/{stem}.txt").write_text(text, encoding="utf-8")
    return f"{folder}_individuals/Original_images/{stem}.png"


def test_blood_counts_that_agree_are_none(anerbc):
    keys = {finding.key for finding in examine(anerbc).findings}
    assert not keys & {"haemoglobin", "equal_blood_counts", "unreadable_blood_counts"}


def test_haemoglobin_that_contradicts_the_folder_is_found(anerbc):
    low = report(anerbc, "001_h", REPORT.format(wbc=1, hgb=11.9))
    high = report(anerbc, "001_a", REPORT.format(wbc=2, hgb=13.0))
    either = report(anerbc, "002_a", REPORT.format(wbc=3, hgb=12.0))
    report(anerbc, "002_h", REPORT.format(wbc=4, hgb=12.0))
    report(anerbc, "003_a", REPORT.format(wbc=6, hgb=11.9))
    finding = found(anerbc, "haemoglobin")
    assert finding.level == "warning" and list(finding.files) == [low, high, either]
    assert finding.values == {"healthy": 1, "anemic": 1, "open": 1, "known_healthy": 4, "known_anemic": 4}


def test_equal_blood_counts_under_different_ids_are_found(anerbc):
    names = [report(anerbc, stem, REPORT.format(wbc=9, hgb=12.5)) for stem in ("001_a", "001_h", "003_h")]
    diagnosis = examine(anerbc)
    finding = next(finding for finding in diagnosis.findings if finding.key == "equal_blood_counts")
    assert finding.level == "warning" and finding.sets == [names] and finding.values["sets_in_both_classes"] == 1
    assert diagnosis.figures["groups"]["groups"] == 6
    assert diagnosis.figures["groups"]["joined_by"]["equal blood counts"] == 1


def test_a_blood_count_that_no_blood_has_is_found(anerbc):
    name = report(anerbc, "001_h", REPORT.format(wbc=1, hgb=480))
    finding = found(anerbc, "unreadable_blood_counts")
    assert finding.level == "error" and list(finding.files) == [name]


# --- manifests as data roots ------------------------------------------------------------------------------------------


def manifest(folder, text):
    path = folder / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_manifest_is_examined(clean_root, tmp_path):
    path = manifest(tmp_path, "image,mask,label\nrgb/anemic/00.png,binary/anemic/00.png,Anemic\n")
    diagnosis = examine(path, image_root=clean_root)
    assert diagnosis.figures["files"] == diagnosis.figures["masks"] == 1 and not diagnosis.has_errors


def test_a_stated_split_that_leaks_is_found_and_not_passed_on(clean_root, tmp_path, monkeypatch):
    lines = ["image,label,parent,split"]
    lines += [
        f"rgb/anemic/{index:02d}.png,Anemic,p{index // 4},{'test' if index < 2 else 'train'}" for index in (0, 2, 4)
    ]
    path = manifest(tmp_path, "\n".join(lines) + "\n")
    finding = found(path, "split_leaks", image_root=clean_root)
    assert finding.level == "error" and finding.sets == [["rgb/anemic/00.png", "rgb/anemic/02.png"]]
    out = tmp_path / "fixed.csv"
    assert call(f"doctor {path} --image_root {clean_root} --fix {out}", monkeypatch, tmp_path) == 1
    assert [record.split for record in read_manifest(out, image_root=clean_root)] == [None] * 3


@pytest.mark.parametrize(
    "row", ["../secret.png,Anemic", "/etc/passwd,Anemic", "rgb/none.png,Anemic", "rgb/anemic/00.png,=HYPERLINK(1)"]
)
def test_hostile_rows_are_found_and_the_rest_is_examined(clean_root, tmp_path, row):
    save(tmp_path / "secret.png", np.zeros((8, 8, 3), np.uint8))
    path = manifest(tmp_path, f"image,label\n{row}\nrgb/anemic/02.png,Anemic\n")
    diagnosis = examine(path, image_root=clean_root)
    finding = next(finding for finding in diagnosis.findings if finding.key == "layout")
    assert finding.level == "error" and finding.count == 1
    assert {record.name for record in diagnosis.case.records} <= {"rgb/anemic/00.png", "rgb/anemic/02.png"}


@pytest.mark.parametrize("text", ["", "\0\0\0", "name;value\n1;2\n", '"image\n'])
def test_what_is_no_manifest_is_a_bad_call(tmp_path, text, monkeypatch):
    path = manifest(tmp_path, text)
    with pytest.raises(UserError, match="list.csv"):
        call(f"doctor {path}", monkeypatch, tmp_path)


# --- outputs ----------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(\"1\")</script> & 'quoted' \u202etxt é血.png".replace("/", "")


@pytest.fixture
def bad_root(root, rng):
    """Several faults at once, some under names that mean harm."""
    both_classes(root)
    duplicate(root)
    damaged_mask(root)
    mask_inverted_path = root / "binary/healthy/01.png"
    save(mask_inverted_path, 255 - np.asarray(Image.open(mask_inverted_path)))
    shutil.copy(root / "rgb/healthy/03.png", root / "rgb/healthy" / HOSTILE)
    shutil.copy(root / "binary/healthy/03.png", root / "binary/healthy" / HOSTILE)
    return root


def snapshot(root):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_the_command_writes_all_and_touches_no_data(bad_root, tmp_path, monkeypatch, capsys):
    before = snapshot(bad_root)
    line = f"doctor {bad_root} --json out/d.json --html out/d.html --fix out/m.csv --seed 3"
    (tmp_path / "out").mkdir()
    assert call(line, monkeypatch, tmp_path) == 1
    assert snapshot(bad_root) == before
    shown = capsys.readouterr().out
    assert "\u202e" not in shown and "\N{REPLACEMENT CHARACTER}txt" in shown
    assert f"--dataroot out/m.csv --image_root {bad_root}" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["d.html", "d.json", "m.csv", "m.left_out.csv"]


def test_every_score_of_a_fact_is_computed_once(bad_root, monkeypatch):
    asked, compute = [], Case.score
    monkeypatch.setattr(Case, "score", lambda case, values: asked.append(len(values)) or compute(case, values))
    diagnosis = examine_dataroot(bad_root, workers=1, progress=False)
    assert len(asked) == 9  # three numbers and three words of files, three numbers of masks
    assert {"file size", "format"} <= diagnosis.figures["file_facts"].keys()


def test_names_without_a_number_are_refused_before_the_files_are_read(clean_root, monkeypatch):
    records = [replace(record, name=f"rgb/{'abc'[index % 3] * (index + 1)}.png", parent="") for index, record in
               enumerate(survey_dataroot(clean_root)[0])]  # fmt: skip
    monkeypatch.setattr("data.doctor.survey_dataroot", lambda *_, **__: (records, []))
    monkeypatch.setattr("data.doctor.examine_files", lambda *_, **__: pytest.fail("the files were read first"))
    with pytest.raises(UserError, match="stands in no block"):
        examine_dataroot(clean_root, split_by="blocks", progress=False)


def test_a_reader_that_leaves_gets_all_files_and_no_traceback(bad_root, tmp_path):
    """As with "| head": the end of the pipe that is read is closed before a word is written."""
    reading, writing = os.pipe()
    os.close(reading)
    door = [sys.executable, str(REPOSITORY / "3TDCFNet_data.py"), "doctor", str(bad_root)]
    options = ["--json", "d.json", "--html", "d.html", "--fix", "m.csv", "--workers", "1"]
    done = subprocess.run([*door, *options], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr and b"Broken pipe" not in done.stderr and b"Exception" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} >= {"d.html", "d.json", "m.csv", "m.left_out.csv"}


def test_another_broken_pipe_is_not_hidden(monkeypatch):
    from util.errors import run_door

    def main():
        raise BrokenPipeError("of a socket")

    with pytest.raises(BrokenPipeError, match="of a socket"):
        run_door(main)


def test_the_summary_is_printed_even_where_a_file_cannot_be_written(clean_root, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise UserError("the disk is full")

    monkeypatch.setattr("data.commands.atomic_write", full)
    with pytest.raises(UserError, match="disk is full"):
        call(f"doctor {clean_root} --json d.json --workers 1", monkeypatch, tmp_path)
    shown = capsys.readouterr().out
    assert f"{COUNT} images" in shown and "all of it" not in shown


def test_the_json_holds_everything_under_its_documented_keys(bad_root):
    diagnosis = examine(bad_root)
    content = json.loads(as_json(diagnosis, {"seed": 0}))
    assert list(content) == [
        "schema_version", "dataroot", "options", "errors", "figures", "findings", "near_duplicates", "images",
    ]  # fmt: skip
    assert content["schema_version"] == 1 and content["errors"] == 3
    assert list(content["findings"][0]) == [
        "key", "level", "title", "sentence", "remedy", "files", "reasons", "sets", "values", "count",
    ]  # fmt: skip
    assert [finding["level"] for finding in content["findings"]] == sorted(
        (finding["level"] for finding in content["findings"]), key=["error", "warning", "note"].index
    )
    images = {image["image"]: image for image in content["images"]}
    assert len(images) == COUNT + 3 and f"rgb/healthy/{HOSTILE}" in images
    facts = images["rgb/healthy/05.png"]
    assert (facts["width"], facts["height"], facts["mode"], facts["label"]) == (WIDTH, HEIGHT, "RGB", 0)
    assert facts["mask"]["agreement"] > 0.9 and facts["left_out"] == ""
    documented = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    for finding in content["findings"]:
        assert f"`{finding['key']}`" in documented
    for key in (*content["figures"], *content):
        assert f"`{key}`" in documented


def test_every_kind_of_finding_is_documented():
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "data").glob("doctor_*.py"))
    keys = set(re.findall(r'Finding\(\s*"(\w+)"', source)) | {"unreadable_images", "mask_inverted", "near_duplicates"}
    documented = (REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
    assert len(keys) > 15 and not {key for key in keys if f"`{key}`" not in documented}


def test_the_page_shows_the_pictures_and_runs_nothing(bad_root, tmp_path):
    from data.doctor_pictures import write_page

    write_page(tmp_path / "d.html", examine(bad_root), {"seed": 0})
    page = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert "<script" not in page and "onerror" not in page and "\u202e" not in page
    assert "&lt;script&gt;alert(" in page and "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg;base64,|#)', page)  # nothing from outside the file
    section = re.search(r'<section[^>]*id="both_classes".*?</section>', page, re.DOTALL)[0]
    assert section.count("<img") == 3 and "Anemic</b>" in section and "Healthy</b>" in section
    inverted = re.search(r'<section[^>]*id="mask_inverted".*?</section>', page, re.DOTALL)[0]
    assert inverted.count("<img") == 2 and "01.png" in inverted and "Dice" in inverted
    unreadable = re.search(r'<section[^>]*id="unreadable_masks".*?</section>', page, re.DOTALL)[0]
    assert unreadable.count("<img") == 1 and "mask cannot be read" in unreadable


def test_thumbnails_are_small_and_their_number_bounded(root, rng, tmp_path):
    import base64

    from data.doctor_pictures import MOST_IN_SET, THUMBNAIL, write_page

    for index in range(MOST_IN_SET + 5):
        for kind in ("rgb", "binary"):
            shutil.copy(root / kind / "anemic/00.png", root / kind / f"anemic/copy{index:02d}.png")
    rgb, inside = textured(rng)
    write_pair(root, "anemic/large.png", np.tile(rgb, (4, 4, 1)), np.tile(inside, (4, 4)))
    write_page(tmp_path / "d.html", examine(root), {})
    page = (tmp_path / "d.html").read_text(encoding="utf-8")
    section = re.search(r'<section[^>]*id="duplicates".*?</section>', page, re.DOTALL)[0]
    assert section.count("<img") == MOST_IN_SET and "6 of 12 files are not shown" in section
    for encoded in re.findall(r"base64,([^\"]+)", page):
        assert max(Image.open(io.BytesIO(base64.b64decode(encoded))).size) <= THUMBNAIL


def test_the_cleaned_manifest_is_clean_and_keeps_groups(bad_root, tmp_path, monkeypatch):
    assert call(f"doctor {bad_root} --fix {tmp_path / 'm.csv'}", monkeypatch, tmp_path) == 1
    records = read_manifest(tmp_path / "m.csv", image_root=bad_root)
    again = examine(tmp_path / "m.csv", image_root=bad_root)
    assert not again.has_errors and not again.case.left_out
    names = {record.name for record in records}
    with (tmp_path / "m.left_out.csv").open(encoding="utf-8", newline="") as stream:
        left_out = {row["image"]: row["reason"] for row in csv.DictReader(stream)}
    assert len(names) + len(left_out) == COUNT + 3 and not names & left_out.keys()
    assert left_out["rgb/healthy/copy.png"] == "stands in both classes"
    assert left_out["rgb/healthy/01.png"] == "its mask is drawn the other way round"
    assert left_out["rgb/anemic/00.png"] == "stands in both classes"  # its mask cannot be read either
    assert sum(name.endswith(("03.png", "血.png")) for name in names) == 1
    case = examine(bad_root).case
    members = {}
    for record, group in zip(case.records, case.groups, strict=True):
        members.setdefault(group, []).append(record.name)
    group_of = {name: group for group, all_names in members.items() for name in all_names}
    for record in records:
        together = len(members[group_of[record.name]]) > 1
        assert bool(record.patient) == together
        assert record.patient not in group_of.values()  # a name that another data set could have
        same = {other.name for other in records if other.patient == record.patient}
        assert not together or same == set(members[group_of[record.name]]) & names


def test_near_duplicates_are_kept_in_one_group_or_dropped(root, rng, tmp_path, monkeypatch):
    rgb, inside = textured(rng)
    write_pair(root, "anemic/one.png", rgb, inside)
    write_pair(root, "anemic/two.png", np.clip(rgb.astype(int) + 6, 0, 255).astype(np.uint8), inside)
    assert call(f"doctor {root} --fix keep.csv", monkeypatch, tmp_path) == 0
    kept = {record.name: record for record in read_manifest(tmp_path / "keep.csv", image_root=root)}
    assert kept["rgb/anemic/one.png"].patient == kept["rgb/anemic/two.png"].patient
    assert call(f"doctor {root} --fix drop.csv --near_duplicates drop", monkeypatch, tmp_path) == 0
    dropped = {record.name for record in read_manifest(tmp_path / "drop.csv", image_root=root)}
    assert kept.keys() - dropped == {"rgb/anemic/two.png"}


def test_nothing_is_replaced_unasked_and_data_never(clean_root, root, tmp_path, monkeypatch):
    out = tmp_path / "m.csv"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="exists"):
        call(f"doctor {root} --fix {out}", monkeypatch, tmp_path)
    assert out.read_text(encoding="utf-8") == "mine"
    assert call(f"doctor {root} --fix {out} --overwrite", monkeypatch, tmp_path) == 0
    assert len(read_manifest(out, image_root=root)) == COUNT
    labels = root / "labels.csv"
    labels.write_text("image,label\nanemic/00.png,Anemic\n", encoding="utf-8")
    for path in (labels, root / "manifest.csv"):
        with pytest.raises(UserError, match="would replace or change the data"):
            call(f"doctor {root} --fix {path} --overwrite", monkeypatch, tmp_path)
    listed = tmp_path / "list.csv"
    listed.write_text("image,label\nrgb/anemic/00.png,Anemic\n", encoding="utf-8")
    with pytest.raises(UserError, match="would replace or change the data"):
        call(f"doctor {listed} --image_root {root} --fix {listed} --overwrite", monkeypatch, tmp_path)
    assert listed.read_text(encoding="utf-8").startswith("image,label")


def test_a_link_to_data_is_not_written_through(root, tmp_path, monkeypatch):
    labels = root / "labels.csv"
    labels.write_text("image,label\nanemic/00.png,Anemic\n", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(labels)
    with pytest.raises(UserError, match="would replace"):
        call(f"doctor {root} --fix link.csv --overwrite", monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "options", ["--fix m.png", "--html d.json", "--json d.html", "--folds 1", "--split_by id", "--block_size 0"]
)
def test_bad_options_are_refused(clean_root, tmp_path, monkeypatch, options):
    with pytest.raises(UserError, match=options.split()[0]):
        call(f"doctor {clean_root} {options}", monkeypatch, tmp_path)


def test_a_missing_data_root_is_a_bad_call(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such data root"):
        call("doctor nowhere", monkeypatch, tmp_path)


def test_names_cannot_steer_the_terminal():
    assert printable("a\x1b[31m\u202eb\nc") == "a\ufffd[31m\ufffdb\ufffdc" and printable("é 血") == "é 血"


# --- small parts ------------------------------------------------------------------------------------------------------


def test_pairs_chain_into_sets():
    assert joined_sets([(5, 1), (2, 3), (1, 9), (3, 4)]) == [[1, 5, 9], [2, 3, 4]]
    assert joined_sets([]) == []


def test_a_score_is_certain_where_chance_is_left_behind():
    assert Score(0.2, (0.1, 0.3)).certain and Score(0.2, (0.1, 0.3)).strength == 0.8
    assert not Score(0.8, (0.5, 1.0)).certain and not Score(0.8, None).certain


# --- split by the same door -------------------------------------------------------------------------------------------


def test_folds_are_written_beside_out(clean_root, tmp_path, monkeypatch):
    from data.splits import read_split

    call(f"split {clean_root} --out s.csv --folds 4", monkeypatch, tmp_path)
    files = [tmp_path / f"s.fold{fold}.csv" for fold in (1, 2, 3, 4)]
    assert not (tmp_path / "s.csv").exists() and all(path.is_file() for path in files)
    tested = [{row.image for row in read_split(path) if row.split == "test"} for path in files]
    assert sum(map(len, tested)) == len(set.union(*tested)) == COUNT
    call(f"split {clean_root} --out s.csv --folds 4 --fold 2", monkeypatch, tmp_path)
    assert (tmp_path / "s.csv").read_bytes() == files[1].read_bytes()
    with pytest.raises(UserError, match="exists"):
        call(f"split {clean_root} --out s.csv --folds 4", monkeypatch, tmp_path)


def test_folds_that_cannot_be_are_refused(clean_root, tmp_path, monkeypatch):
    for options, named in (("--folds 1", "--folds 1"), ("--folds 3 --fold 4", "--fold"), ("--fold 1", "--fold")):
        with pytest.raises(UserError, match=named):
            call(f"split {clean_root} --out s.csv {options}", monkeypatch, tmp_path)
    assert not (tmp_path / "s.csv").exists()


def test_the_cleaned_manifest_can_be_split(bad_root, tmp_path, monkeypatch):
    from data.splits import read_split

    call(f"doctor {bad_root} --fix m.csv", monkeypatch, tmp_path)
    call(f"split m.csv --image_root {bad_root} --out s.csv", monkeypatch, tmp_path)
    rows = read_split(tmp_path / "s.csv")
    assert {row.split for row in rows} == {"train", "val", "test"}


# --- real smears ------------------------------------------------------------------------------------------------------


def test_the_figures_of_anerbc(shared_data, tmp_path):
    """Known of these files: 810, 611 distinct, 139 sets of 338 files, 22 of 71 files in both classes, 589 kept."""
    diagnosis = examine_dataroot(shared_data / "anerbc_326x256", progress=False)
    figures = diagnosis.figures
    keys = ("files", "distinct", "duplicate_sets", "duplicate_files", "both_class_sets", "both_class_files", "kept")
    assert [figures[key] for key in keys] == [810, 611, 139, 338, 22, 71, 589]
    assert figures["kept_by_class"] == {"Healthy": 348, "Anemic": 241, "unknown": 0}
    assert figures["groups"]["without_near_duplicates"] == 277
    assert 0.88 < figures["colour"]["auroc"] < 0.97
    values = next(finding.values for finding in diagnosis.findings if finding.key == "haemoglobin")
    assert values == {"healthy": 223, "anemic": 67, "open": 43, "known_healthy": 404, "known_anemic": 405}


def test_the_masks_of_anerbc_give_the_class_away(shared_data):
    diagnosis = examine(shared_data / "anerbc_1224x960")
    finding = next(finding for finding in diagnosis.findings if finding.key == "mask_level_class")
    assert finding.values["dark level"]["auroc"] == 0 and not diagnosis.has_errors
