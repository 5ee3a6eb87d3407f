"""Prediction: which files are taken for smears, and the command from images without labels to its page."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from data.images import otsu_mask, read_rgb
from data.synthetic_writer import write_dataset
from data.unlabelled import SmearStream, find_smears, natural
from models.assessment import BAND, at_own_size
from models.cell_files import CELL_COLUMNS, LEFT_OUT_COLUMNS, CellFiles, save_instances
from models.cell_stage import magnification_notes
from models.inference import predict, see_none
from models.module2.kinds import kinds_of
from models.module2.morphometry import measure_cells
from models.module2.severity import SeverityRule, score_cells, summarise
from models.module2.smear_cells import BORDER, LeftOut, SmearCells
from models.predict_notes import NOVELTY_COLUMNS
from models.predicting import PredictRun, reduced, skipped_error
from models.progress import UNFINISHED, Progress
from models.saved import load_network
from util.errors import UserError
from util.results import PREDICTION_COLUMNS, TRUTH_COLUMNS

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = "--gpu_ids -1 --preset small --loadSize 64 --fineSize 64 --batchSize 8"


def call(name, line, monkeypatch, folder):
    spec = importlib.util.spec_from_file_location(f"door_{name}", REPOSITORY / f"3TDCFNet_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"3TDCFNet_{name}.py", *shlex.split(line)])
    return module.main()


def refused(line, monkeypatch, folder):
    with pytest.raises(UserError) as error:
        call("predict", line, monkeypatch, folder)
    return str(error.value)


def rows_of(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def cells_by_otsu(rgb):
    """A stand-in for the finder: every connected part of Otsu's mask is a cell."""
    labels, _ = ndimage.label(otsu_mask(rgb))
    table = measure_cells(labels, rgb)
    cut = [
        LeftOut(float(table.x[k]), float(table.y[k]), int(table.area_px[k]), BORDER, int(table.cell[k]))
        for k in np.flatnonzero(table.border)
    ]
    return SmearCells(
        instances=labels.astype(np.int32),
        mask=labels > 0,
        table=table,
        kinds=kinds_of(table),
        scores=score_cells(table),
        summary=summarise(table),
        left_out=cut,
        cell_diameter_px=float(np.median(table.diameter_px)) if len(table) else float("nan"),
        warnings=[] if len(table) else ["no red cell was found"],
    )


def analyser_of(find):
    """A stand-in for ``CellAnalyser``: what finds the cells, and the rule that grades them."""

    class Analyser:
        rule, um_per_px = SeverityRule(), None

        def __call__(self, rgb):
            return find(rgb)

    return Analyser()


@pytest.fixture
def fake_finder(monkeypatch):
    asked = []

    def build(options, device):
        asked.append((options.cell_diameter, options.um_per_px))
        return analyser_of(cells_by_otsu)

    monkeypatch.setattr("models.cell_stage.build_analyser", build)
    return asked


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    """Twenty-four synthetic smears of 128 pixels in AneRBC's own tree."""
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=24, seed=5, size=128, workers=1)
    return out


@pytest.fixture(scope="module")
def runs(smears, tmp_path_factory):
    """A folder with the weights of a tiny run, SEG."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    line = f"--dataroot {smears} --name SEG {TINY} --niter 2 --niter_decay 1 --gate_thresholds 0,0,1 --gate_tolerance 1"
    line += " --cells no"
    try:
        assert call("train", line, patch, folder) == 0
    finally:
        patch.undo()
    return folder / "checkpoints"


@pytest.fixture
def some(smears, tmp_path):
    """Four smears in one folder without any labels."""
    folder = tmp_path / "some"
    folder.mkdir()
    for number, path in enumerate(sorted(smears.rglob("Original_images/*.png"))[:4]):
        (folder / f"field {number}.png").write_bytes(path.read_bytes())
    return folder


# ---- which files are smears -----------------------------------------------------------------------------------------


def put(path, side=8, level=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(path)
    return path


def names(found):
    return [record.name for record in found.records]


def test_a_folder_of_images_at_any_depth_in_natural_order(tmp_path):
    for name in ("f10.png", "f2.png", "deep/er/a.TIF", "b.jpeg", "c.bmp", ".hidden.png", ".git/x.png", "F1.png"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "slide.svs").write_text("x")
    found = find_smears(str(tmp_path))
    assert names(found) == ["b.jpeg", "c.bmp", "deep/er/a.TIF", "F1.png", "f2.png", "f10.png"]
    assert found.layout == "any images" and dict(found.passed_over) == {".txt": 1, ".svs": 1}
    assert all(record.label is None and record.mask is None for record in found.records)


def test_numbers_go_by_their_value_and_equal_ones_keep_one_order():
    assert sorted(["x10", "x9", "x09", "X1", "x²"], key=natural) == ["X1", "x09", "x9", "x10", "x²"]


def test_masks_and_reports_of_known_layouts_are_no_smears(smears, tmp_path):
    assert len(names(find_smears(str(smears)))) == 24
    assert {Path(name).parent.name for name in names(find_smears(str(smears)))} == {"Original_images"}
    for name in ("rgb/1.png", "rgb/sub/2.png", "binary/1.png", "binary/sub/2.png", "overview.png"):
        put(tmp_path / "pairs" / name)
    found = find_smears(str(tmp_path / "pairs"))
    assert (names(found), found.layout) == (["rgb/1.png", "rgb/sub/2.png"], "paired tree")
    for name in ("healthy/1.png", "anemic/2.png", "anemic/masks/2.png", "unknown/3.png"):
        put(tmp_path / "classes" / name)
    found = find_smears(str(tmp_path / "classes"))
    assert (names(found), found.layout) == (["anemic/2.png", "healthy/1.png", "unknown/3.png"], "class folders")


def test_what_looks_like_masks_in_an_unknown_folder_is_judged_and_told(tmp_path):
    for name in ("a/1.png", "a/masks/1.png"):
        put(tmp_path / name)
    found = find_smears(str(tmp_path))
    assert names(found) == ["a/1.png", "a/masks/1.png"]
    assert "1 images lie in folders named like masks" in found.notes[0]


def test_synthetic_smears_are_known_by_their_notice_above_beside_and_below(smears, tmp_path):
    inner = next(smears.rglob("Original_images"))
    assert all(find_smears(str(root)).synthetic for root in (smears, smears / "AneRBC-I", inner, f"{inner}/*.png"))
    assert find_smears(str(next(inner.glob("*.png")))).synthetic
    put(tmp_path / "mixed" / "x.png")
    assert not find_smears(str(tmp_path)).synthetic
    (tmp_path / "mixed" / "made").mkdir()
    (tmp_path / "mixed" / "made" / "SYNTHETIC.txt").write_text("drawn")
    assert find_smears(str(tmp_path)).synthetic


def test_a_pattern_names_images_from_its_fixed_part(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/2.jpg", "b/1.png", "b/deep/3.png", "c.png"):
        put(tmp_path / name)
    assert names(find_smears(f"{tmp_path}/*/1.png")) == ["a/1.png", "b/1.png"]
    assert names(find_smears(f"{tmp_path}/b*")) == ["b/1.png", "b/deep/3.png"]
    assert names(find_smears(f"{tmp_path}/**")) == ["a/1.png", "a/2.jpg", "b/1.png", "b/deep/3.png", "c.png"]
    monkeypatch.chdir(tmp_path)
    assert names(find_smears("a/*.png")) == ["1.png"]
    put(tmp_path / "odd [1]" / "x.png")
    assert names(find_smears("odd [1]")) == ["x.png"]  # what is there is no pattern


def test_links_are_followed_out_of_the_folder_but_not_round_in_circles(tmp_path):
    put(tmp_path / "elsewhere" / "far.png")
    put(tmp_path / "root" / "near.png")
    (tmp_path / "root" / "away").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "one.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "root" / "round").symlink_to(tmp_path / "root")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "self.png").symlink_to("self.png")
    found = find_smears(str(tmp_path / "root"), outputs=tmp_path / "out")
    assert names(found) == ["away/far.png", "near.png", "one.png", "self.png"]


def test_a_manifest_s_bad_rows_are_skipped(tmp_path):
    put(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("image,label\n1.png,Anemic\nabsent.png,Healthy\n")
    found = find_smears(str(tmp_path / "list.csv"))
    assert names(found) == ["1.png"] and found.records[0].label is None
    assert len(found.skipped) == 1 and "absent.png" in found.skipped[0].name + found.skipped[0].reason


def test_of_joined_images_the_left_half_is_judged(smears, tmp_path):
    image = next(smears.rglob("Original_images/*.png"))
    mask = image.parent.parent / "Binary_segmented" / image.name
    both = np.concatenate([np.array(Image.open(p).convert("RGB")) for p in (image, mask)], axis=1)
    Image.fromarray(both).save(tmp_path / "joined.png")
    for root in (tmp_path, tmp_path / "joined.png", f"{tmp_path}/*.png"):
        found = find_smears(str(root))
        assert "side-by-side" in found.layout
        pixels, _ = SmearStream(found, 64, 4, otsu=False).pixels(0)
        assert np.array_equal(pixels, read_rgb(image))


def test_the_toolkit_s_own_outputs_are_no_smears(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "results" / "SEG" / "test_latest" / "images" / "a_smear.png")
    found = find_smears(str(tmp_path), leave_out=[tmp_path / "results"])
    assert names(found) == ["a.png"] and "left out" in found.notes[0]
    out = tmp_path / "results" / "SEG" / "test_latest"
    with pytest.raises(UserError, match="lie in the folder that would be written"):
        find_smears(str(out / "images"), outputs=out)


def test_a_mask_at_its_own_size_is_made_without_whole_copies(rng):
    chances, height, width = rng.random((30, 30)), 3 * BAND + 7, 900
    plane = Image.fromarray(chances.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    tracemalloc.start()
    try:
        mask = at_own_size(chances, width, height)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(mask, np.asarray(plane) > 0.5)
    assert peak < 5 * mask.nbytes  # it was nine times as much: the chances of all pixels, twice


@pytest.mark.parametrize("side", [30, 40])
def test_the_memory_of_a_large_image_is_given_back_when_it_was_read(tmp_path, monkeypatch, side):
    put(tmp_path / "a.png")
    Image.fromarray(np.full((side, 30, 3), 90, np.uint8)).save(tmp_path / "b.png")
    found = find_smears(str(tmp_path))
    given = []
    monkeypatch.setattr("data.unlabelled.give_back_memory", lambda: given.append(1))
    monkeypatch.setattr("data.unlabelled.LARGE", 31 * 30)
    stream = SmearStream(found, 16, 4, otsu=False)
    assert [len(batches[16].index) for batches in stream.batches(torch.device("cpu"))] == [2]
    assert len(given) == (1 if side == 40 else 0)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("absent", "no such folder or image"),
        ("empty", "no images"),
        ("texts", "1 .txt"),
        ("texts/a.txt", "not an image that can be read"),
        ("none-*.png", "no images"),
        ("x" * 300, "cannot be listed"),
    ],
)
def test_nothing_to_judge_is_one_error(tmp_path, root, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=re.escape(words)):
        find_smears(str(tmp_path / root))


# ---- the command ----------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_network_itself(runs, some, tmp_path, monkeypatch, fake_finder):
    line = (
        f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 3 --um_per_px 0.1 --test_views 2"
        " --masks_from network"
    )
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    saved = load_network(runs / "SEG" / "latest_net_3TDCFNet.safetensors")
    rows = rows_of(out / "predictions.csv")
    assert [row["image"] for row in rows] == [f"field {number}.png" for number in range(4)]
    for row in rows:
        rgb = np.array(Image.open(some / row["image"]).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
        planes = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
        batch = type("Batch", (), {})()
        batch.rgb, batch.mask, batch.has_mask = planes, torch.zeros(1, 1, 64, 64), torch.zeros(1, dtype=torch.bool)
        (said,) = predict(saved.network, [batch], torch.device("cpu"), see_none, views=2)
        chance = torch.sigmoid(said.logits[0].double())
        columns = ("prob_anemic_tier1", "prob_anemic_tier2", "prob_anemic_tier3", "prob_anemic")
        assert [float(row[column]) for column in columns] == pytest.approx(chance.tolist(), abs=2e-5)
        assert row["label_pred"] == ("Anemic" if chance[3] > 0.5 else "Healthy")
        big = torch.nn.functional.interpolate(said.mask_probability, size=(128, 128), mode="bilinear")[0, 0] > 0.5
        mask = np.array(Image.open(out / "masks" / f"{Path(row['image']).stem}.png"))
        assert mask.shape == (128, 128) and set(np.unique(mask)) <= {0, 255}
        assert ((mask > 0) == big.numpy()).mean() > 0.995
    assert fake_finder == [(0.0, 0.1)]


def test_the_cells_of_every_image_are_written(runs, some, tmp_path, monkeypatch, fake_finder):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cell_pages 2"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    cells, left_out = rows_of(out / "cells.csv"), rows_of(out / "left_out.csv")
    assert tuple(cells[0]) == CELL_COLUMNS and tuple(left_out[0]) == LEFT_OUT_COLUMNS
    for row in rows_of(out / "predictions.csv"):
        expected = cells_by_otsu(read_rgb(some / row["image"]))
        numbers = np.array(Image.open(out / "instances" / f"{Path(row['image']).stem}.png"))
        assert numbers.dtype == np.uint16 and np.array_equal(numbers, expected.instances)
        own = [cell for cell in cells if cell["image"] == row["image"]]
        assert [int(cell["cell"]) for cell in own] == expected.table.cell[~expected.table.border].tolist()
        assert [float(cell["x"]) for cell in own] == pytest.approx(expected.table.x[~expected.table.border], rel=1e-6)
        cut = [item for item in left_out if item["image"] == row["image"]]
        assert len(cut) == expected.table.border.sum() and {item["reason"] for item in cut} <= {BORDER}
        assert int(row["cell_count"]) == len(expected.table)
        assert row["severity_pred"] == (expected.summary.severity or "")
        assert not {"label_true", "severity_true", "group", "split", "prob_anemic_spread"} & row.keys()
        assert {*PREDICTION_COLUMNS, *NOVELTY_COLUMNS} - row.keys() == set(TRUTH_COLUMNS)
    assert sorted(path.stem for path in (out / "cells").glob("*.html")) == ["field 0", "field 1"]
    run = json.loads((out / "run.json").read_text())
    assert run["counts"]["cells"] == sum(int(row["cell_count"]) for row in rows_of(out / "predictions.csv"))
    assert run["counts"]["not_looked_for"] == 0
    assert not list(out.glob(".*")), "nothing half-written is left"


def test_the_pages_of_drawn_smears_say_so(runs, some, tmp_path, monkeypatch, fake_finder):
    write_dataset(tmp_path / "drawn", count=2, seed=3, size=128, workers=1)
    for root, drawn in (("drawn", True), ("some", False)):
        assert (
            call(
                "predict", f"--dataroot {root} --name SEG --gpu_ids -1 --checkpoints_dir {runs}", monkeypatch, tmp_path
            )
            == 0
        )
        pages = list((tmp_path / "results" / "SEG" / "predict_latest").rglob("*.html"))
        assert len(pages) >= 3  # the page of all, and the cells' of each
        assert all(("SYNTHETIC DATA." in page.read_text()) is drawn for page in pages)


def test_a_second_prediction_leaves_nothing_of_the_first(runs, some, tmp_path, monkeypatch, fake_finder):
    line = f"--name SEG --gpu_ids -1 --checkpoints_dir {runs}"
    assert call("predict", f"{line} --dataroot some", monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    (out / "mine.txt").write_text("kept")
    assert call("predict", f"{line} --dataroot 'some/field 1.png' --cells no", monkeypatch, tmp_path) == 0
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    pictures = {"images/field 1_smear.jpg", "images/field 1_overlay.jpg", "masks/field 1.png"}
    assert files == {"index.html", "run.json", "predictions.csv", "mine.txt", *pictures}
    assert rows_of(out / "predictions.csv")[0]["cell_count"] == ""


def test_the_embedded_data_set_is_judged_by_its_word(runs, tmp_path, monkeypatch, capsys):
    line = f"--dataroot synthetic --synthetic_count 20 --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    assert "20 images (AneRBC tree)" in capsys.readouterr().out
    assert json.loads((tmp_path / "results/SEG/predict_latest/run.json").read_text())["provenance"]["synthetic"] is True


@pytest.mark.parametrize(
    ("diameter", "words"), [(20, []), (3, ["1/111 of"]), (200, ["fills the image"]), (float("nan"), [])]
)
def test_an_impossible_magnification_is_told(diameter, words):
    said = magnification_notes(diameter, (333, 333))
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_weights_that_know_synthetic_smears_only_are_told(runs, some, tmp_path, monkeypatch):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    assert "trained on synthetic smears only" in (tmp_path / "results/SEG/predict_latest/index.html").read_text()


def test_sizes_come_from_the_run(runs, some, tmp_path, monkeypatch, capsys):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    assert re.search(r"loadSize: 64 .*\[from the run\]", capsys.readouterr().out)
    assert "--fineSize 64" in refused(f"{line} --loadSize 300 --fineSize 300", monkeypatch, tmp_path)


def write_odd_images(folder, rgb):
    """Images of every accepted kind, each made from one smear, and what their pixels should be read as."""
    folder.mkdir()
    grey = rgb.mean(axis=2).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.tif")
    Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 200, np.uint8)])).save(folder / "alpha.png")
    Image.fromarray(grey).save(folder / "grey.bmp")
    Image.fromarray(rgb[:, :96]).save(folder / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown a quarter to the right
    Image.fromarray(np.rot90(rgb[:, :96]).copy()).save(folder / "turned.png", exif=exif)
    Image.fromarray(rgb[:1, :1]).save(folder / "one pixel.png")
    Image.fromarray(rgb[:3, :40]).save(folder / "thin.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "black.png")


def test_every_accepted_kind_of_image_and_tiny_ones(runs, some, tmp_path, monkeypatch, fake_finder):
    write_odd_images(tmp_path / "odd", read_rgb(some / "field 0.png"))
    line = f"--dataroot odd --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 1"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    rows = {Path(row["image"]).stem: row for row in rows_of(out / "predictions.csv")}
    assert set(rows) == {"deep", "alpha", "grey", "upright", "turned", "one pixel", "thin", "black"}
    sizes = {stem: Image.open(out / "masks" / f"{stem}.png").size for stem in rows}
    assert sizes["one pixel"] == (1, 1) and sizes["thin"] == (40, 3) and sizes["turned"] == (96, 128)
    assert all(Image.open(out / "instances" / f"{stem}.png").size == size for stem, size in sizes.items())
    assert rows["turned"]["prob_anemic"] == rows["upright"]["prob_anemic"]
    assert rows["deep"]["prob_anemic"] == rows["grey"]["prob_anemic"]
    warnings = json.loads((out / "run.json").read_text())["image_warnings"]
    assert "no red cell was found" in warnings["black.png"]
    assert "no red cell was found" in (out / "index.html").read_text()


def test_files_that_cannot_be_read_are_skipped_named_and_told(runs, some, tmp_path, monkeypatch, capsys, fake_finder):
    whole = (some / "field 1.png").read_bytes()
    (some / "field 1.png").write_bytes(whole[: len(whole) // 2])
    (some / "field 2.png").write_bytes(b"")
    (some / "gone.png").symlink_to("nowhere.png")
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 1"
    assert call("predict", line, monkeypatch, tmp_path) == 1
    told = capsys.readouterr().err
    assert "error: 3 files were skipped; 2 judged" in told and "damaged or truncated" in told
    out = tmp_path / "results" / "SEG" / "predict_latest"
    assert [row["image"] for row in rows_of(out / "predictions.csv")] == ["field 0.png", "field 3.png"]
    assert sorted(path.name for path in (out / "instances").iterdir()) == ["field 0.png", "field 3.png"]
    run = json.loads((out / "run.json").read_text())
    assert [item["image"] for item in run["skipped"]] == ["field 1.png", "field 2.png", "gone.png"]
    assert run["counts"]["skipped"] == 3 and "field 2.png" in (out / "index.html").read_text()


def test_an_image_that_goes_between_verdict_and_mask_is_skipped(runs, some, tmp_path, monkeypatch):
    before = SmearStream.pixels

    def gone(self, position):
        if position == 1:
            raise UserError("gone", found="nothing")
        return before(self, position)

    monkeypatch.setattr(SmearStream, "pixels", gone)
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 1
    rows = rows_of(tmp_path / "results" / "SEG" / "predict_latest" / "predictions.csv")
    assert [row["image"] for row in rows] == ["field 0.png", "field 2.png", "field 3.png"]


def test_an_image_that_is_replaced_between_verdict_and_mask_is_skipped(runs, some, tmp_path, monkeypatch, capsys):
    before = SmearStream.pixels

    def replaced(self, position):
        if position == 1:
            put(some / "field 1.png", 40)
        return before(self, position)

    monkeypatch.setattr(SmearStream, "pixels", replaced)
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 1
    told = capsys.readouterr()
    assert "field 1.png: the file was changed while it was judged" in told.err
    rows = rows_of(tmp_path / "results" / "SEG" / "predict_latest" / "predictions.csv")
    assert [row["image"] for row in rows] == ["field 0.png", "field 2.png", "field 3.png"]
    anemic = sum(row["label_pred"] == "Anemic" for row in rows)
    assert f"\njudged: 3 images, {3 - anemic} Healthy, {anemic} Anemic" in told.out
    assert told.out.splitlines()[-1].startswith("report: ")


def test_when_nothing_can_be_read_it_says_so_and_ends_with_one(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    line = f"--dataroot broken.png --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 1
    assert "1 file was skipped; 0 judged" in capsys.readouterr().err
    assert "No image could be judged" in (tmp_path / "results/SEG/predict_latest/index.html").read_text()


def test_names_are_data_and_equal_stems_do_not_collide(runs, some, tmp_path, monkeypatch, fake_finder):
    smear = (some / "field 0.png").read_bytes()
    odd = ["a\"b'c.png", "<script>alert(1)<!-- &amp;.png", "line\nbreak.png", "=1+1.png", "\u202egnp.x.png"]
    odd += ["x/same.png", "y/same.png", "same.png", "same.jpg", "100%25 #?.png"]
    odd.append(os.fsdecode(b"latin-\xe9.png"))
    for name in odd:
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(smear)
    Image.open(some / "field 0.png").save(tmp_path / "odd" / "same.jpg")
    line = f"--dataroot odd --name SEG --gpu_ids -1 --checkpoints_dir {runs}"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    assert sorted(row["image"] for row in rows_of(out / "predictions.csv")) == sorted(odd)
    assert len(list((out / "masks").rglob("*.png"))) == len(list((out / "instances").rglob("*.png"))) == len(odd)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "\u202e" not in page
    from urllib.parse import unquote_to_bytes

    shown = [os.fsdecode(unquote_to_bytes(link)) for link in re.findall(r'(?:src|href)="\./([^"]+)"', page)]
    assert shown and all((out / link).is_file() for link in shown)


def test_many_images_are_shown_in_pages(runs, some, tmp_path, monkeypatch):
    for number in range(101):
        (tmp_path / "many" / f"{number}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "many" / f"{number}.png").symlink_to(some / "field 0.png")
    line = f"--dataroot many --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    pages = [out / "index.html", out / "pages/2.html", out / "pages/3.html"]
    shown = [re.findall(r"<h3><bdi>(\d+)\.png", page.read_text()) for page in pages]
    assert [len(part) for part in shown] == [50, 50, 1]
    assert [int(number) for part in shown for number in part] == list(range(101))
    for page in pages:
        for link in re.findall(r'(?:src|href)="([^"#]+)', page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--dataroot absent", "no such folder or image"),
        ("--dataroot empty", "no images"),
        ("--dataroot some --cell_diameter 3", "must be 0 (not known) or a number from 4 to 2000"),
        ("--dataroot some --cell_diameter 1e9", "from 4 to 2000"),
        ("--dataroot some --cell_diameter nan", "from 4 to 2000"),
        ("--dataroot some --um_per_px 11", "from 0.005 to 10"),
        ("--dataroot some --um_per_px -1", "from 0.005 to 10"),
        ("--dataroot some --cell_pages -1", "must be 0 or more"),
        ("--dataroot a.png b.png", "put a pattern or a name with spaces in quotes"),
        ("--dataroot some --splits test", "unknown option --splits"),
        ("--dataroot some --image_root some", "--image_root goes with a manifest"),
        ("--dataroot some --which_epoch 7", "no weights at"),
        ("--dataroot some --gpu_ids 99", "GPU 99"),
        ("--name SEG", "--dataroot is missing"),
    ],
)
def test_a_bad_call_is_one_error_and_writes_nothing(runs, some, tmp_path, monkeypatch, line, words):
    (tmp_path / "empty").mkdir()
    device = "" if "--gpu_ids" in line else " --gpu_ids -1"
    text = refused(f"{line} --checkpoints_dir {runs} --cells no{device}", monkeypatch, tmp_path)
    assert words in text
    assert not (tmp_path / "results").exists()


def test_a_name_without_a_run(some, tmp_path, monkeypatch):
    text = refused("--dataroot some --name NONE --gpu_ids -1", monkeypatch, tmp_path)
    assert "no trained run of that name" in text


def test_results_that_cannot_be_written(runs, some, tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file where a folder is needed")
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert "cannot write" in refused(line, monkeypatch, tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        return  # root may write anywhere
    assert "cannot write" in refused(f"{line} --results_dir locked", monkeypatch, tmp_path)


def test_an_error_in_the_middle_leaves_no_page_and_no_half_table(runs, some, tmp_path, monkeypatch):
    def build(options, device):
        def broken(rgb):
            raise ZeroDivisionError

        return analyser_of(broken)

    monkeypatch.setattr("models.cell_stage.build_analyser", build)
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs}"
    with pytest.raises(ZeroDivisionError) as error:
        call("predict", line, monkeypatch, tmp_path)
    assert "field 0.png" in error.value.__notes__[0]
    out = tmp_path / "results" / "SEG" / "predict_latest"
    assert not [path for path in out.iterdir() if path.is_file()]


def test_a_shell_s_call_ends_with_status_two_and_help_is_fast(tmp_path):
    command = [sys.executable, str(REPOSITORY / "3TDCFNet_predict.py")]
    done = subprocess.run([*command, "--dataroot", "absent"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    began = time.perf_counter()
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert time.perf_counter() - began < 3, "torch was imported before --help"
    assert "python 3TDCFNet_predict.py --dataroot smears" in shown and "--cell_diameter" in shown


# ---- going on, pages, several runs ----------------------------------------------------------------------------------


def interrupted(monkeypatch, at):
    """Let the prediction be interrupted when it comes to an image; returns what undoes that."""
    before, count = SmearStream.pixels, []

    def pixels(self, position):
        if position == at:
            raise KeyboardInterrupt
        count.append(position)
        return before(self, position)

    monkeypatch.setattr(SmearStream, "pixels", pixels)
    return lambda: monkeypatch.setattr(SmearStream, "pixels", before)


def contents(folder):
    """All files of a folder but run.json and the page's account of how it was made."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files.pop("run.json")
    files["index.html"] = files["index.html"].split(b'id="provenance"')[0]
    return files


def test_an_interrupted_prediction_goes_on_and_ends_as_if_it_had_not_been(
    runs, some, tmp_path, monkeypatch, fake_finder, capsys
):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 1 --num_workers 1"
    assert call("predict", f"{line} --results_dir whole", monkeypatch, tmp_path) == 0
    undo = interrupted(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        call("predict", line, monkeypatch, tmp_path)
    undo()
    out = tmp_path / "results" / "SEG" / "predict_latest"
    assert not any((out / name).exists() for name in ("index.html", "predictions.csv", "run.json", "cells.csv"))
    assert "2 of 4 images are done: the same call with --continue_predict" in capsys.readouterr().err
    (out / "masks" / ".field 2.png.0123456789abcdef").write_bytes(b"half")
    with (out / UNFINISHED).open("ab") as file:
        file.write(b'{"image": "field 2.png", "ste')  # cut off by a crash
    assert "2 images judged" in refused(line, monkeypatch, tmp_path), "hours of work are not thrown away unasked"

    before, again = SmearStream.pixels, []
    monkeypatch.setattr(SmearStream, "pixels", lambda self, at: again.append(at) or before(self, at))
    assert call("predict", f"{line} --continue_predict", monkeypatch, tmp_path) == 0
    assert again == [2, 3] and "going on: 2 of 4 images" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "whole" / "SEG" / "predict_latest")
    said, whole = (
        json.loads((tmp_path / at / "SEG/predict_latest/run.json").read_text()) for at in ("results", "whole")
    )
    assert said["counts"] == whole["counts"] and said["provenance"]["judged_before"] == 2
    assert "is whole" in refused(f"{line} --continue_predict", monkeypatch, tmp_path)


def test_changed_and_removed_images_are_not_taken_over(runs, some, tmp_path, monkeypatch, fake_finder):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 1 --num_workers 1"
    undo = interrupted(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        call("predict", line, monkeypatch, tmp_path)
    undo()
    (some / "field 0.png").unlink()
    Image.open(some / "field 1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(some / "field 1.png")
    put(some / "a first.png", 32)
    assert call("predict", f"{line} --continue_predict", monkeypatch, tmp_path) == 0
    assert call("predict", f"{line} --results_dir whole", monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    assert contents(out) == contents(tmp_path / "whole" / "SEG" / "predict_latest")
    assert not (out / "masks" / "field 0.png").exists()


@pytest.mark.parametrize("stem", ["../../../mine", "/mine", "", 5])
def test_what_was_noted_cannot_name_files_elsewhere_to_be_removed(stem, tmp_path):
    """The checksum of a line keeps off damage, not somebody who hands over a folder of results."""
    results = tmp_path / "results" / "SEG" / "predict_latest"
    results.mkdir(parents=True)
    progress = Progress(results, {"data": "x"})
    progress.begin()
    progress.add({"image": "gone.png", "stem": "gone", "stamp": [1, 2]})
    progress.add({"image": "other.png", "stem": stem, "stamp": [1, 2]})
    progress.close()
    assert Progress(results, {"data": "x"}).resume({}) == ["gone"], "the hostile line ends what is taken over"


def test_another_prediction_is_not_gone_on_with(runs, some, tmp_path, monkeypatch, fake_finder):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --batchSize 1 --num_workers 1"
    undo = interrupted(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        call("predict", line, monkeypatch, tmp_path)
    undo()
    text = refused(f"{line} --continue_predict --test_views 2", monkeypatch, tmp_path)
    assert "test_views: 1, now 2" in text
    assert "contradict" in refused(f"{line} --continue_predict --overwrite", monkeypatch, tmp_path)
    (some.parent / "other").mkdir()
    put(some.parent / "other" / "field 0.png")
    assert "data:" in refused(f"{line} --continue_predict".replace("some", "other"), monkeypatch, tmp_path)
    assert call("predict", f"{line} --overwrite --test_views 2", monkeypatch, tmp_path) == 0
    assert len(rows_of(tmp_path / "results/SEG/predict_latest/predictions.csv")) == 4


def test_with_nothing_to_go_on_with_it_begins(runs, some, tmp_path, monkeypatch):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no --continue_predict"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    assert not (tmp_path / "results/SEG/predict_latest" / UNFINISHED).exists()


def test_one_prediction_at_a_time_writes_into_a_folder(runs, some, tmp_path, monkeypatch):
    from util.lock import sole_writer

    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    with sole_writer(tmp_path / "results" / "SEG" / "predict_latest", remedy="wait"):
        assert "is being written by another process" in refused(line, monkeypatch, tmp_path)
    assert not (tmp_path / "results" / "SEG" / "predict_latest").exists()
    assert call("predict", line, monkeypatch, tmp_path) == 0


def test_every_page_of_a_tiff_file_is_an_image(runs, some, tmp_path, monkeypatch, fake_finder):
    pages = [Image.open(path) for path in sorted(some.glob("*.png"))[:3]]
    (tmp_path / "odd").mkdir()
    small = pages[2].resize((50, 40))
    pages[0].save(tmp_path / "odd" / "stack.tif", save_all=True, append_images=[pages[1], small])
    grey = np.asarray(pages[0].convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    deep.save(tmp_path / "odd" / "deep.tiff", save_all=True, append_images=[deep])
    pages[1].save(tmp_path / "odd" / "one.tif")
    pages[1].save(tmp_path / "odd" / "stack.jpg", quality=95)
    whole = (tmp_path / "odd" / "stack.tif").read_bytes()
    (tmp_path / "odd" / "cut.tif").write_bytes(whole[: len(whole) // 2])
    line = f"--dataroot odd --name SEG --gpu_ids -1 --checkpoints_dir {runs}"
    assert call("predict", line, monkeypatch, tmp_path) == 1
    out = tmp_path / "results" / "SEG" / "predict_latest"
    rows = {row["image"]: row for row in rows_of(out / "predictions.csv")}
    stack = ["stack.tif#1", "stack.tif#2", "stack.tif#3"]
    assert [name for name in rows if not name.startswith("cut")] == [
        "deep.tiff#1", "deep.tiff#2", "one.tif", "stack.jpg", *stack
    ]  # fmt: skip
    assert rows["stack.tif#2"]["prob_anemic"] == rows["one.tif"]["prob_anemic"] != rows["stack.tif#1"]["prob_anemic"]
    assert rows["deep.tiff#1"]["prob_anemic"] == rows["deep.tiff#2"]["prob_anemic"]
    sizes = [Image.open(out / "masks" / f"{name}.png").size for name in stack]
    assert sizes == [(128, 128), (128, 128), (50, 40)]
    assert [item["image"].split("#")[0] for item in json.loads((out / "run.json").read_text())["skipped"]]
    page = (out / "index.html").read_text()
    assert "masks/stack.tif%233.png" in page and "stack.tif#3" in page


def test_several_runs_are_heard_together(runs, smears, some, tmp_path, monkeypatch, fake_finder):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(runs, checkpoints)
    line = f"--dataroot {smears} --name OTHER --gpu_ids -1 --preset small --loadSize 96 --fineSize 80 --batchSize 8"
    line += " --niter 1 --niter_decay 0 --seed 3 --cells no"
    assert call("train", line, monkeypatch, tmp_path) == 0
    line = "--dataroot some --gpu_ids -1"
    for name in ("SEG", "OTHER"):
        assert call("predict", f"{line} --name {name} --results_dir {name}", monkeypatch, tmp_path) == 0
    assert call("predict", f"{line} --name SEG --ensemble OTHER", monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest_ensemble"
    alone = [rows_of(tmp_path / name / name / "predict_latest" / "predictions.csv") for name in ("SEG", "OTHER")]
    for both, one, other in zip(rows_of(out / "predictions.csv"), *alone, strict=True):
        chances = [float(row["prob_anemic"]) for row in (one, other)]
        assert float(both["prob_anemic"]) == pytest.approx(np.mean(chances), abs=2e-6)
        assert float(both["prob_anemic_spread"]) == pytest.approx(np.ptp(chances), abs=3e-6)
        assert float(both["prob_anemic_tier3"]) == pytest.approx(float(one["prob_anemic_tier3"]), abs=2e-6)
        assert "prob_anemic_spread" not in one
    run = json.loads((out / "run.json").read_text())
    members = [(member["run"], member["load_size"]) for member in run["provenance"]["ensemble"]]
    assert members == [("SEG", 64), ("OTHER", 96)]
    page = (out / "index.html").read_text()
    assert "runs differ by" in page and "SEG + OTHER" in page and "Nothing is kept of the training images" in page
    assert "named twice" in refused(f"{line} --name SEG --ensemble SEG", monkeypatch, tmp_path)
    assert "no trained run" in refused(f"{line} --name SEG --ensemble GONE", monkeypatch, tmp_path)


# ---- files of the cells ---------------------------------------------------------------------------------------------


def test_an_instance_map_holds_numbers_up_to_65535(tmp_path):
    numbers = np.array([[0, 1, 65535]], dtype=np.int32)
    save_instances(tmp_path / "deep" / "a.png", numbers)
    assert np.array_equal(np.array(Image.open(tmp_path / "deep" / "a.png")), numbers)
    with pytest.raises(UserError, match="too many cells"):
        save_instances(tmp_path / "b.png", numbers + 1)
    with pytest.raises(ValueError, match="integers of 0 or more"):
        save_instances(tmp_path / "b.png", numbers - 1)
    assert not (tmp_path / "b.png").exists()


def test_tables_of_cells_appear_at_the_end_or_not_at_all(smears, tmp_path):
    cells = cells_by_otsu(read_rgb(next(smears.rglob("Original_images/*.png"))))
    with CellFiles(tmp_path) as files:
        files.add("an,odd\n'name'.png", "a", cells)
        assert not (tmp_path / "cells.csv").exists()
    rows = rows_of(tmp_path / "cells.csv")
    assert len(rows) == (~cells.table.border).sum() and {row["image"] for row in rows} == {"an,odd\n'name'.png"}
    assert {row["area_um2"] for row in rows} == {""}
    (tmp_path / "cells.csv").write_text("earlier")
    with pytest.raises(KeyError), CellFiles(tmp_path) as files:
        files.add("b.png", "b", cells)
        raise KeyError
    assert (tmp_path / "cells.csv").read_text() == "earlier" and not list(tmp_path.glob(".*"))


def test_without_images_the_tables_still_have_their_columns(tmp_path):
    CellFiles(tmp_path).close()
    assert (tmp_path / "cells.csv").read_text().count(",") == len(CELL_COLUMNS) - 1
    assert (tmp_path / "left_out.csv").read_text().count(",") == len(LEFT_OUT_COLUMNS) - 1


# ---- the shipped weights --------------------------------------------------------------------------------------------


def test_the_shipped_weights_say_the_same_by_command_and_called_directly(tmp_path, monkeypatch):
    """Batched and read by the command; here one by one, resized and judged without its code."""
    weights = REPOSITORY / "checkpoints" / "SEG" / "latest_net_3TDCFNet.safetensors"
    if not weights.with_name("shipped.json").is_file():
        pytest.skip("a run of one's own has taken the name SEG")
    write_dataset(tmp_path / "tree", count=2, seed=11, size=300, workers=1)
    line = f"--dataroot tree --name SEG --gpu_ids -1 --checkpoints_dir {REPOSITORY / 'checkpoints'} --cells no"
    assert call("predict", line, monkeypatch, tmp_path) == 0
    out = tmp_path / "results" / "SEG" / "predict_latest"
    saved = load_network(weights)
    rows = rows_of(out / "predictions.csv")
    assert len(rows) == 2
    for row in rows:
        rgb = np.array(Image.open(tmp_path / "tree" / row["image"]).convert("RGB"))
        saved.network.eval()
        with torch.no_grad():
            planes = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
            said = saved.network(planes, torch.zeros(1, 1, 300, 300), torch.zeros(1, dtype=torch.bool))
            chance = torch.sigmoid(saved.network.verdicts(said.voices)[0].double())
        assert float(row["prob_anemic"]) == pytest.approx(float(chance[3]), abs=1e-4)
        mask = np.array(Image.open(out / "masks" / f"{Path(row['image']).stem}.png")) > 0
        assert (mask == (said.mask_probability[0, 0] > 0.5).numpy()).mean() > 0.9999
    assert "SYNTHETIC DATA" in (out / "index.html").read_text()


def test_otsu_s_mask_is_not_made_where_nobody_looks_at_it(runs, some, tmp_path, monkeypatch):
    line = f"--dataroot some --name SEG --gpu_ids -1 --checkpoints_dir {runs} --cells no"
    assert call("predict", f"{line} --results_dir with", monkeypatch, tmp_path) == 0
    monkeypatch.setattr("data.unlabelled.otsu_mask", lambda rgb: pytest.fail("a mask that nobody looks at"))
    assert call("predict", line, monkeypatch, tmp_path) == 0
    tables = [tmp_path / folder / "SEG/predict_latest/predictions.csv" for folder in ("with", "results")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    monkeypatch.undo()
    assert bool(
        SmearStream(find_smears(str(some)), 64, 4, otsu=False).batches(torch.device("cpu")).__next__()[64].mask.any()
    )


def test_outlines_of_huge_images_are_drawn_on_a_reduction_that_keeps_cells_in_their_places():
    rgb = np.zeros((5000, 7200, 3), np.uint8)
    rgb[2500:, 3600:] = 200
    small = reduced(rgb)
    assert small.shape == (1000, 1440, 3) and (small[500:, 720:] == 200).all() and not small[:500].any()
    assert reduced(rgb[:96, :128]).shape == (96, 128, 3) and reduced(rgb[..., 0] > 0).dtype == bool


def test_a_line_end_in_a_file_name_is_no_line_of_the_programme():
    item = SimpleNamespace(name="a\nerror: b.png", reason="a\nerror: b.png: it is empty")
    assert str(skipped_error([item], 0)).splitlines()[1] == "  found:    "
    assert not [line for line in str(skipped_error([item], 0)).splitlines() if line.startswith("error")]


def test_grades_of_images_called_healthy_are_not_counted():
    run = PredictRun.__new__(PredictRun)
    run.heads, run.panel = ["global"], SimpleNamespace(judges=[])
    run.stage = SimpleNamespace(gallery=SimpleNamespace(rows=list))
    called = [(0, "Chronic"), (0, "Mild"), (1, "Chronic"), (1, "Chronic"), (1, "Mild"), (1, None)]
    rows = [{"label_pred": label, "severity_pred": grade, "prob_anemic": float(label)} for label, grade in called]
    run.tally = SimpleNamespace(rows=rows)
    counts = run._counts(SimpleNamespace(skipped=[]))
    assert counts["severity_of_anemic"] == {"Mild": 1, "Chronic": 2}
    assert (counts["healthy"], counts["anemic"]) == (2, 4)


def test_a_wrong_path_is_told_before_the_network_is_loaded(tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("the network was loaded")

    monkeypatch.setattr("models.judges.load_panel", load)
    assert "nowhere" in refused("--dataroot nowhere --name SEG --gpu_ids -1", monkeypatch, tmp_path)
