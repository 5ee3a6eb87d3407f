"""The commands as a user runs them: the whole way on tiny data, and every bad input as one clear error."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data.datasets import open_dataset
from data.records import CLASS_NAMES
from data.splits import read_split, write_split
from data.synthetic_writer import write_dataset
from models.frozen import LINE
from models.pretrained import packaged_backbone
from util.checkpoint import load_checkpoint, save_checkpoint
from util.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = "--gpu_ids -1 --preset small --loadSize 64 --fineSize 64 --batchSize 8"


def door(name):
    """The ``main`` of a command, whose file name is no module name."""
    spec = importlib.util.spec_from_file_location(f"door_{name}", REPOSITORY / f"3TDCFNet_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def call(name, line, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"3TDCFNet_{name}.py", *shlex.split(line)])
    return door(name)()


def refused(name, line, monkeypatch, folder):
    with pytest.raises(UserError) as error:
        call(name, line, monkeypatch, folder)
    return str(error.value)


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    """Twenty-four synthetic smears of 128 pixels in AneRBC's own tree."""
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=24, seed=5, size=128, workers=1)
    return out


@pytest.fixture(scope="module")
def trained(smears, tmp_path_factory):
    """A folder in which the small network was trained for three epochs, one a tier."""
    folder = tmp_path_factory.mktemp("run")
    patch = pytest.MonkeyPatch()
    line = f"--dataroot {smears} --name SEG {TINY} --niter 2 --niter_decay 1 --gate_thresholds 0,0,1 --gate_tolerance 1"
    try:
        assert call("train", line, patch, folder) == 0
    finally:
        patch.undo()
    return folder


@pytest.fixture(scope="module")
def tested(trained, smears):
    """The results of testing it."""
    patch = pytest.MonkeyPatch()
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100"
    try:
        assert call("test", line, patch, trained) == 0
    finally:
        patch.undo()
    return trained / "results" / "SEG" / "test_latest"


def test_every_page_of_drawn_smears_says_so(tested):
    pages = list(tested.rglob("*.html"))
    assert len(pages) > 1
    assert [page.name for page in pages if "SYNTHETIC DATA." not in page.read_text()] == []


def test_training_leaves_what_the_contract_names(trained):
    run = trained / "checkpoints" / "SEG"
    names = {path.name for path in run.iterdir()}
    assert {
        "latest_net_3TDCFNet.safetensors",
        "best_net_3TDCFNet.safetensors",
        "latest_state.safetensors",
        "options.json",
        "split.csv",
        "gate_log.csv",
        "metrics.jsonl",
    } <= names
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    with (run / "gate_log.csv").open() as file:
        decisions = [(row["tier"], row["decision"]) for row in csv.DictReader(file)]
    assert decisions[:2] == [("1", "open"), ("2", "open")] and decisions[2][0] == "3"


def test_no_parent_stands_on_two_sides(trained):
    """Read without our own reader, which refuses a leaking file."""
    with (trained / "checkpoints/SEG/split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {}
    for row in rows:
        sides.setdefault(Path(row["image"]).stem, set()).add(row["split"])
        sides.setdefault(row["content"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_the_test_judges_every_image_of_the_split(trained, tested, smears):
    rows = read_split(trained / "checkpoints" / "SEG" / "split.csv")
    for side, name in (("test", "predictions.csv"), ("val", "predictions_val.csv"), ("train", "predictions_train.csv")):
        with (tested / name).open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [row["image"] for row in found] == sorted(row.image for row in rows if row.split == side)
        assert {row["split"] for row in found} == {side}
    with (tested / "predictions.csv").open(newline="") as file:
        graded = [row for row in csv.DictReader(file) if row["label_true"] == "Anemic"]
    assert graded and {row["severity_true"] for row in graded} <= {"Mild", "Chronic"}


def test_masks_have_the_input_s_own_size_and_only_two_values(tested, smears):
    with (tested / "predictions.csv").open(newline="") as file:
        images = [row["image"] for row in csv.DictReader(file)]
    assert sorted(p.stem for p in (tested / "masks").glob("*.png")) == sorted(Path(name).stem for name in images)
    for path in (tested / "masks").glob("*.png"):
        mask = np.array(Image.open(path))
        assert mask.shape == (128, 128) and set(np.unique(mask)) <= {0, 255}


def test_metrics_agree_with_the_predictions(tested, smears):
    metrics = json.loads((tested / "metrics.json").read_text())
    with (tested / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for head, column in (("tier1", "prob_anemic_tier1"), ("global", "prob_anemic")):
        called = np.array([float(row[column]) > 0.5 for row in rows])
        true = np.array([row["label_true"] == "Anemic" for row in rows])
        scored = metrics["splits"]["test"][head]
        expected = [[int((~called & ~true).sum()), int((called & ~true).sum())]]
        expected.append([int((~called & true).sum()), int((called & true).sum())])
        assert scored["confusion_matrix"] == expected
        assert scored["accuracy"] == pytest.approx((called == true).mean())
    inter = total = 0
    for row in rows:
        mask = np.array(Image.open(tested / "masks" / f"{Path(row['image']).stem}.png")) > 127
        truth = smears / row["image"].replace("Original_images", "Binary_segmented")
        true_mask = np.array(Image.open(truth).convert("L")) < 128
        inter, total = inter + int((mask & true_mask).sum()), total + int(mask.sum() + true_mask.sum())
    assert metrics["segmentation"]["dice"] == pytest.approx(2 * inter / total)
    assert metrics["segmentation"]["n"] == len(rows)
    assert metrics["tiers_opened"]["tier1"]["how"] == "opened"
    assert metrics["provenance"]["synthetic"] is True and metrics["provenance"]["binary_from"] == "predicted"


def test_the_colour_baseline_is_scored_on_the_same_test_images_and_shown(tested):
    metrics = json.loads((tested / "metrics.json").read_text())
    baseline = metrics["baselines"]["colour"]
    assert baseline["n"] == metrics["splits"]["test"]["global"]["n"]
    assert set(baseline["ci95"]) == set(metrics["splits"]["test"]["global"]["ci95"])
    assert "Colours alone" in (tested / "index.html").read_text()
    assert metrics["provenance"]["leaks"] == {"count": 0, "first": [], "near_duplicates": "checked"}
    assert metrics["provenance"]["severity"].startswith("severity: from labels (truth.csv)")
    voices = metrics["provenance"]["voices"]
    assert [len(row) for row in voices] == [4] * 4 and voices[0][1:] == [0, 0, 0]


@pytest.fixture(scope="module")
def partly_labelled(smears, tmp_path_factory):
    """A run of which some training and some test images have no label, and its test by two views of larger images."""
    folder = tmp_path_factory.mktemp("partly")
    shutil.copytree(smears, folder / "data")
    records = open_dataset(str(smears)).records
    with (folder / "data/manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "label", "group", "split"])
        for number, record in enumerate(records):
            label = "" if number % 5 == 1 else CLASS_NAMES[record.label]
            side = ("train", "test", "train", "val")[number // 2 % 4]
            mask = record.name.replace("Original_images", "Binary_segmented")
            writer.writerow([record.name, mask, label, number, side])
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = "--dataroot data/manifest.csv --name SOME --cells no"
        assert call("train", f"{run} {TINY} --niter 1 --niter_decay 0", monkeypatch, folder) == 0
        line = (
            f"{run} --gpu_ids -1 --loadSize 80 --fineSize 64 --test_views 2 --batchSize 3 --resamples 100 --gradcam 0"
        )
        assert call("test", line, monkeypatch, folder) == 0
    return folder


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def features_of(files, side, crops):
    """Means of Lite0's features at strides 4 to 16, by means of PyTorch alone; (crops, images, features)."""
    images = [file.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0) for file in files]
    rgb = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    backbone = packaged_backbone(1).eval()
    with torch.no_grad():
        seen = [backbone(((rgb - mean) / std)[(..., *crop)])[:3] for crop in crops]
        seen += [backbone(((rgb - mean) / std)[(..., *crop)].flip(3))[:3] for crop in crops]
        return torch.stack([torch.cat([scale.mean(dim=(2, 3)) for scale in one], dim=1) for one in seen]).numpy()


def test_the_frozen_baseline_is_the_line_that_the_training_drew(partly_labelled):
    """Features, line and verdicts once more; of labelled images alone, looked at as the network looks at them."""
    files, labels = {}, {}
    results = partly_labelled / "results/SOME/test_latest"
    for side, name in {"train": "predictions_train.csv", "test": "predictions.csv"}.items():
        rows = rows_of(results / name)
        known = [row for row in rows if row["label_true"]]
        assert 0 < len(known) < len(rows)
        files[side] = [Image.open(partly_labelled / "data" / row["image"]).convert("RGB") for row in known]
        labels[side] = np.array([row["label_true"] == "Anemic" for row in known]).astype(int)
    line, whole = LINE.read(partly_labelled / "checkpoints/SOME"), (slice(None), slice(None))
    assert line.images == len(labels["train"])
    learned = features_of(files["train"], 64, [whole])[0]
    usual, spread = learned.mean(axis=0), np.maximum(learned.std(axis=0), 1e-6)
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit((learned - usual) / spread, labels["train"])
    crops = [(slice(top, top + 64), slice(left, left + 64)) for top in (0, 16) for left in (0, 16)]
    looks = features_of(files["test"], 80, crops)
    logit = np.mean([fitted.decision_function((seen - usual) / spread) for seen in looks], axis=0)
    metrics = json.loads((results / "metrics.json").read_text())
    found, margin = metrics["baselines"]["frozen"], metrics["differences"]["global_less_frozen"]
    assert found["brier"] == pytest.approx(np.mean((1 / (1 + np.exp(-logit)) - labels["test"]) ** 2), abs=1e-4)
    assert found["n"] == metrics["splits"]["test"]["global"]["n"] == margin["n"] == len(labels["test"])
    assert margin["auroc"]["value"] == pytest.approx(metrics["splits"]["test"]["global"]["auroc"] - found["auroc"])
    page = (results / "index.html").read_text()
    assert "Frozen features" in page and "better than frozen features (AUROC)" in page
    assert "ImageNet weights, none of which learned here)" in page  # below the table


def test_a_run_interrupted_after_its_last_epoch_says_how_to_have_the_rest(smears, tmp_path, monkeypatch, capsys):
    def interrupted(*given, **more):
        raise KeyboardInterrupt

    line = f"--name END {TINY} --cells no --niter 1 --niter_decay 0"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("models.frozen.learn_line", interrupted)
        call("train", f"--dataroot {smears} {line}", patched, tmp_path)
    run, said = tmp_path / "checkpoints/END", capsys.readouterr().out
    weights = (run / "latest_net_3TDCFNet.safetensors").read_bytes()
    told = next(text for text in said.splitlines() if "--continue_train" in text and "3TDCFNet_train.py" in text)
    assert not (run / "frozen_line.npz").exists()
    command = told.strip().removeprefix("python 3TDCFNet_train.py ").partition(" (and")[0]
    assert call("train", f"{command} --gpu_ids -1", monkeypatch, tmp_path) == 0
    assert (run / "frozen_line.npz").exists()
    assert (run / "latest_net_3TDCFNet.safetensors").read_bytes() == weights


def test_a_test_without_the_baselines_says_so(trained, smears, tmp_path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "SEG" / "colour_statistics.npz").unlink()
    (tmp_path / "checkpoints" / "SEG" / "frozen_line.npz").unlink()
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100 --splits test"
    assert call("test", line, monkeypatch, tmp_path) == 0
    results = tmp_path / "results" / "SEG" / "test_latest"
    assert json.loads((results / "metrics.json").read_text())["baselines"] == {"colour": None, "frozen": None}
    page = (results / "index.html").read_text()
    assert "There is no colour baseline" in page and "There is no baseline of frozen features" in page
    assert "cheap" not in page
    assert "(AUROC)" not in page


def leaky_split(smears, folder, monkeypatch):
    """Smears of which one is there again, mirrored and under another name; a split that has the two on two sides."""
    leaky = folder / "leaky"
    shutil.copytree(smears, leaky)
    call("data", f"split {smears} --out drawn.csv", monkeypatch, folder)
    copied = next(row for row in read_split(folder / "drawn.csv") if row.split == "train")
    for kind in ("Original_images", "Binary_segmented"):
        source = (leaky / copied.image).parent.parent / kind / Path(copied.image).name
        Image.open(source).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source.with_stem(f"900{source.stem[-2:]}"))
    call("data", f"split {leaky} --out all.csv", monkeypatch, folder)
    rows = read_split(folder / "all.csv")
    assert len({row.group for row in rows if row.image == copied.image or "900_" in row.image}) == 1  # they were joined
    group = next(row.group for row in rows if row.image == copied.image)
    rows = [dataclasses.replace(row, split="train") if row.group == group else row for row in rows]
    rows = [dataclasses.replace(row, split="test", group="900") if "900_" in row.image else row for row in rows]
    write_split(folder / "mine.csv", rows)
    return leaky, copied.image


def test_a_leak_stops_training_and_test_unless_it_is_accepted_and_then_the_page_says_so(smears, tmp_path, monkeypatch):
    leaky, copied = leaky_split(smears, tmp_path, monkeypatch)
    line = f"--dataroot {leaky} --name L {TINY} --niter 1 --niter_decay 0 --split_file mine.csv"
    said = refused("train", line, monkeypatch, tmp_path)
    assert "900_" in said and copied in said and not list((tmp_path / "checkpoints").glob("L/*.csv"))
    assert call("train", f"{line} --leaks report", monkeypatch, tmp_path) == 0
    test = f"--dataroot {leaky} --name L --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100"
    assert call("test", f"{test} --leaks report", monkeypatch, tmp_path) == 0
    page = (tmp_path / "results" / "L" / "test_latest" / "index.html").read_text()
    assert "this was accepted" in page and "900_" in page


def test_the_page_shows_every_image_of_the_test_split(tested):
    page = (tested / "index.html").read_text(encoding="utf-8")
    with (tested / "predictions.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert all(name in page for name in names)
    assert "synthetic" in page.lower() and "not for diagnosis" in page.lower()
    kinds = Counter(path.stem.rpartition("_")[2] for path in (tested / "images").rglob("*.*"))
    assert kinds == dict.fromkeys(("smear", "overlay", "true"), len(names))  # predicted masks are shown from masks/


def test_testing_again_gives_the_same_predictions(tested, trained, smears, monkeypatch):
    before = (tested / "predictions.csv").read_bytes()
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100 --batchSize 3"
    call("test", line, monkeypatch, trained)
    after = list(csv.reader((tested / "predictions.csv").read_text().splitlines()))
    for old, new in zip(csv.reader(before.decode().splitlines()), after, strict=True):
        if old[0] != "image":
            assert old[0] == new[0]
            assert np.allclose([float(v) for v in old[1:5]], [float(v) for v in new[1:5]], atol=1e-4)


def test_files_of_an_earlier_test_do_not_stay(trained, smears, tmp_path, monkeypatch):
    old = tmp_path / "res/SEG/test_latest"
    (old / "masks").mkdir(parents=True)
    for name in ("masks/stale.png", "predictions_train.csv", "notes.txt"):
        (old / name).write_text("old")
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100 --splits test"
    call("test", f"{line} --results_dir {tmp_path}/res", monkeypatch, trained)
    assert not (old / "masks/stale.png").exists() and not (old / "predictions_train.csv").exists()
    assert (old / "notes.txt").read_text() == "old", "what is not ours stays"


def predictions(path):
    with path.open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_true_masks_at_test_are_asked_for_shown_and_said(trained, smears, tmp_path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    weights = tmp_path / "checkpoints/SEG/latest_net_3TDCFNet.safetensors"
    content = load_checkpoint(weights)
    for name, tensor in content["network"].items():  # after three epochs the binary stream says next to nothing
        if "enter_binary" in name:
            content["network"][name] = 1000 * tensor
    save_checkpoint(weights, content)
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100 --splits test"
    call("test", f"{line} --results_dir {tmp_path}/plain", monkeypatch, tmp_path)
    call("test", f"{line} --results_dir {tmp_path}/gt --binary_from gt", monkeypatch, tmp_path)
    results = tmp_path / "gt/SEG/test_latest"
    metrics = json.loads((results / "metrics.json").read_text())
    assert metrics["provenance"]["binary_from"] == "gt"
    assert set(metrics["splits"]) == {"test"}
    assert "true masks were used" in (results / "index.html").read_text().lower()
    plain = predictions(tmp_path / "plain/SEG/test_latest/predictions.csv")
    given = predictions(results / "predictions.csv")
    assert any(plain[name]["prob_anemic"] != given[name]["prob_anemic"] for name in plain)


def test_true_masks_are_refused_where_there_are_none(trained, smears, tmp_path, monkeypatch):
    root = tmp_path / "unpaired"
    shutil.copytree(smears, root, ignore=shutil.ignore_patterns("Binary_segmented", "Instances"))
    line = f"--dataroot {root} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --binary_from gt"
    assert "mask" in refused("test", line, monkeypatch, trained)


def test_a_mask_file_does_not_change_a_verdict(trained, smears, tmp_path, monkeypatch):
    root = tmp_path / "unpaired"
    shutil.copytree(smears, root, ignore=shutil.ignore_patterns("Binary_segmented", "Instances"))
    line = "--name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100 --splits test"
    call("test", f"--dataroot {smears} {line} --results_dir {tmp_path}/with", monkeypatch, trained)
    call("test", f"--dataroot {root} {line} --results_dir {tmp_path}/without", monkeypatch, trained)
    with_masks = predictions(tmp_path / "with/SEG/test_latest/predictions.csv")
    without = predictions(tmp_path / "without/SEG/test_latest/predictions.csv")
    assert [row["prob_anemic"] for row in with_masks.values()] == [row["prob_anemic"] for row in without.values()]


def test_a_tier_that_was_not_trained_has_no_figures(smears, tmp_path, monkeypatch):
    call("train", f"--dataroot {smears} --name O {TINY} --niter 1 --niter_decay 0", monkeypatch, tmp_path)
    call("test", f"--dataroot {smears} --name O --gpu_ids -1 --resamples 100", monkeypatch, tmp_path)
    metrics = json.loads((tmp_path / "results/O/test_latest/metrics.json").read_text())
    scored = metrics["splits"]["test"]
    assert scored["tier1"]["n"] == scored["global"]["n"] > 0
    assert scored["tier2"] is None and scored["tier3"] is None
    row = next(iter(predictions(tmp_path / "results/O/test_latest/predictions.csv").values()))
    assert row["prob_anemic_tier1"] and not row["prob_anemic_tier2"]


def test_a_network_trained_on_synthetic_smears_alone_says_so_on_others(trained, smears, tmp_path, monkeypatch):
    root = tmp_path / "real"
    shutil.copytree(smears, root)
    (root / "AneRBC-I/SYNTHETIC.txt").unlink()
    line = f"--dataroot {root} --name SEG --gpu_ids -1 --resamples 100 --splits test --results_dir {tmp_path}/res"
    call("test", line, monkeypatch, trained)
    page = (tmp_path / "res/SEG/test_latest/index.html").read_text()
    assert "trained on synthetic smears only" in page


def test_the_same_seed_gives_the_same_run_and_another_a_different_one(smears, tmp_path, monkeypatch):
    def losses(name, extra):
        line = f"--dataroot {smears} --name {name} {TINY} --niter 1 --niter_decay 0 {extra}"
        call("train", line, monkeypatch, tmp_path)
        return json.loads((tmp_path / f"checkpoints/{name}/metrics.jsonl").read_text())["train"]

    first = losses("a", "--seed 4")
    assert losses("b", "--seed 4") == first
    split = f"--split_file {tmp_path}/checkpoints/a/split.csv"
    assert losses("c", f"--seed 5 {split}") != first
    assert losses("d", f"--seed 4 --no_augment {split}") != first


def test_the_seed_draws_the_first_weights(smears, tmp_path, monkeypatch):
    def weight(name, seed):
        line = f"--dataroot {smears} --name {name} {TINY} --niter 1 --niter_decay 0 --lr 0 --seed {seed}"
        call("train", line, monkeypatch, tmp_path)
        saved = load_checkpoint(tmp_path / f"checkpoints/{name}/latest_net_3TDCFNet.safetensors")
        return saved["network"]["decoder.logit.weight"]

    assert torch.equal(weight("x", 4), weight("y", 4))
    assert not torch.equal(weight("x2", 4), weight("z", 5))


def test_a_gate_that_stops_the_run_leaves_with_status_three(smears, tmp_path, monkeypatch):
    line = f"--dataroot {smears} --name G {TINY} --niter 5 --tier_epochs 1 --gate_thresholds 1,1,1 --on_budget stop"
    assert call("train", line, monkeypatch, tmp_path) == 3
    assert not (tmp_path / "checkpoints/G/finished.json").exists()


def test_testing_takes_the_sizes_of_the_run(trained, smears, tmp_path, monkeypatch):
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --resamples 100 --splits test --results_dir {tmp_path}/res"
    call("test", line, monkeypatch, trained)
    explicit = f"{line}/explicit --loadSize 64 --fineSize 64"
    call("test", explicit, monkeypatch, trained)
    taken = predictions(tmp_path / "res/SEG/test_latest/predictions.csv")
    assert taken == predictions(tmp_path / "res/explicit/SEG/test_latest/predictions.csv")


def test_smears_that_the_split_does_not_know_are_all_tested(trained, tmp_path, monkeypatch):
    write_dataset(tmp_path / "other", count=6, seed=99, size=96, workers=1)
    line = f"--dataroot {tmp_path}/other --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100"
    call("test", f"{line} --results_dir {tmp_path}/res", monkeypatch, trained)
    with (tmp_path / "res/SEG/test_latest/predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert set(json.loads((tmp_path / "res/SEG/test_latest/metrics.json").read_text())["splits"]) == {"test"}


def test_images_without_masks_train_and_test_the_classifier_alone(smears, tmp_path, monkeypatch):
    root = tmp_path / "unpaired"
    shutil.copytree(smears, root, ignore=shutil.ignore_patterns("Binary_segmented", "Instances"))
    line = f"--dataroot {root} --name C {TINY} --niter 1 --niter_decay 0"
    call("train", line, monkeypatch, tmp_path)
    record = json.loads((tmp_path / "checkpoints/C/metrics.jsonl").read_text())
    assert record["train"]["loss_L1"] == 0 and record["train"]["dice"] is None and record["val"]["dice"] is None
    call(
        "test",
        f"--dataroot {root} --name C --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100",
        monkeypatch,
        tmp_path,
    )
    metrics = json.loads((tmp_path / "results/C/test_latest/metrics.json").read_text())
    assert metrics["segmentation"] is None
    assert metrics["provenance"]["mask_source"] == "otsu"


def test_a_paired_tree_is_trained_and_tested(tmp_path, monkeypatch, rng):
    rows, columns = np.mgrid[:96, :96]
    for kind in ("rgb", "binary"):
        for label in ("healthy", "anemic"):
            (tmp_path / "pairs" / kind / label).mkdir(parents=True)
    for i in range(24):
        label = ("healthy", "anemic")[i % 2]
        mask = (rows - 48) ** 2 + (columns - rng.integers(30, 66)) ** 2 < (300 if i % 2 else 600)
        rgb = np.where(mask[..., None], (120, 110, 160), (210, 212, 208)) + rng.integers(0, 8, (96, 96, 3))
        Image.fromarray(rgb.astype(np.uint8)).save(tmp_path / "pairs/rgb" / label / f"same name {i}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "pairs/binary" / label / f"same name {i}.png")
    call("train", f"--dataroot pairs --name P {TINY} --niter 1 --niter_decay 0", monkeypatch, tmp_path)
    call(
        "test",
        "--dataroot pairs --name P --gpu_ids -1 --loadSize 64 --fineSize 64 --resamples 100",
        monkeypatch,
        tmp_path,
    )
    metrics = json.loads((tmp_path / "results/P/test_latest/metrics.json").read_text())
    assert metrics["splits"]["test"]["global"]["n"] == metrics["segmentation"]["n"] > 0


def test_a_larger_load_size_is_cropped_in_training_and_covered_in_test(smears, tmp_path, monkeypatch):
    sizes = "--gpu_ids -1 --loadSize 80 --fineSize 64"
    call(
        "train", f"--dataroot {smears} --name L --preset small {sizes} --niter 1 --niter_decay 0", monkeypatch, tmp_path
    )
    call("test", f"--dataroot {smears} --name L {sizes} --resamples 100 --splits test", monkeypatch, tmp_path)
    mask = next((tmp_path / "results/L/test_latest/masks").glob("*.png"))
    assert Image.open(mask).size == (128, 128)


def test_a_continued_run_goes_on_where_it_was(trained, smears, tmp_path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    call("train", "--name SEG --continue_train --gpu_ids -1 --niter 3", monkeypatch, tmp_path)
    lines = (tmp_path / "checkpoints/SEG/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_live_view_without_a_server_costs_one_line(smears, tmp_path, monkeypatch, capfd):
    line = f"--dataroot {smears} --name V {TINY} --niter 2 --niter_decay 0 --display_id 1 --display_port 9"
    assert call("train", line, monkeypatch, tmp_path) == 0
    warnings = [text for text in capfd.readouterr().err.splitlines() if "visdom" in text and "|" not in text]
    assert len(warnings) == 1 and "Traceback" not in warnings[0]
    assert len((tmp_path / "checkpoints/V/metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "checkpoints/V/visdom_log.jsonl").stat().st_size > 0


def test_the_embedded_data_set_is_made_once(tmp_path, monkeypatch, capsys):
    line = f"--dataroot synthetic --synthetic_count 20 --name E {TINY} --niter 1 --niter_decay 0"
    call("train", line, monkeypatch, tmp_path)
    made = next((tmp_path / "datasets").iterdir())
    stamp = made.stat().st_mtime_ns
    assert "SYNTHETIC" in capsys.readouterr().out
    call("train", f"{line} --overwrite", monkeypatch, tmp_path)
    assert made.stat().st_mtime_ns == stamp


# ---- bad input: one clear error each, nothing lost ------------------------------------------------------------------


def test_a_missing_data_root(tmp_path, monkeypatch):
    text = refused("train", f"--dataroot absent {TINY}", monkeypatch, tmp_path)
    assert "absent" in text and "remedy" in text


def test_an_empty_data_root(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("train", f"--dataroot empty {TINY}", monkeypatch, tmp_path)


def break_data(smears, tmp_path, how):
    """A copy of the data with one thing wrong, and the name that the error must say."""
    root = tmp_path / "broken"
    shutil.copytree(smears, root)
    folder = root / "AneRBC-I" / "Anemic_individuals"
    image, mask = folder / "Original_images" / "003_a.png", folder / "Binary_segmented" / "003_a.png"
    if how == "mask without image":
        image.unlink()
    elif how == "image without mask":
        mask.unlink()
    elif how == "mask of another size":
        Image.open(mask).resize((64, 128)).save(mask)
    elif how == "truncated PNG":
        image.write_bytes(image.read_bytes()[:5000])
    elif how == "GIF renamed PNG":
        Image.open(image).convert("P").save(image, format="GIF")
    return root, "003_a"


@pytest.mark.parametrize(
    "how", ["mask without image", "image without mask", "mask of another size", "truncated PNG", "GIF renamed PNG"]
)
def test_broken_data_names_the_file_and_begins_no_run(smears, tmp_path, monkeypatch, how):
    root, name = break_data(smears, tmp_path, how)
    text = refused("train", f"--dataroot {root} {TINY}", monkeypatch, tmp_path)
    assert name in text and ("expected" in text or "remedy" in text)
    left = [path.name for path in (tmp_path / "checkpoints").rglob("*.*")]
    assert left == [".SEG.lock"], "no half-begun run is left"


def test_a_crop_larger_than_the_image(tmp_path, monkeypatch):
    assert "--fineSize 300" in refused("train", "--dataroot d --loadSize 100 --fineSize 300", monkeypatch, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU 0 here")
def test_the_published_command_on_a_machine_without_a_gpu(smears, tmp_path, monkeypatch):
    line = f"--dataroot {smears} --name SEG --gpu_ids 0 --display_id 0 --lambda_L1 60 --niter 100 --niter_decay 150"
    line += " --pool_size 32 --loadSize 300 --fineSize 300"
    text = refused("train", line, monkeypatch, tmp_path)
    assert "no GPU 0" in text and "--gpu_ids -1" in text


def test_several_gpus_are_refused_for_now(smears, tmp_path, monkeypatch):
    assert "names 2 GPUs for 1 process" in refused("train", f"--dataroot {smears} --gpu_ids 0,1", monkeypatch, tmp_path)


def test_output_that_cannot_be_written(smears, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("a file where a folder is needed")
    text = refused("train", f"--dataroot {smears} {TINY}", monkeypatch, tmp_path)
    assert "cannot write" in text and "checkpoints" in text
    assert (tmp_path / "checkpoints").read_text() == "a file where a folder is needed"


def test_results_that_cannot_be_written(trained, smears, monkeypatch, tmp_path):
    (tmp_path / "res").write_text("x")
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 64 --fineSize 64 --results_dir {tmp_path}/res"
    assert "cannot write" in refused("test", line, monkeypatch, trained)


def test_test_before_train(smears, tmp_path, monkeypatch):
    text = refused("test", f"--dataroot {smears} --name SEG --gpu_ids -1", monkeypatch, tmp_path)
    assert "no weights" in text and "train first" in text


def test_an_epoch_that_was_not_saved_names_those_that_were(trained, smears, monkeypatch):
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --which_epoch 77"
    assert "weights of: best, latest" in refused("test", line, monkeypatch, trained)


def test_a_checkpoint_of_another_input_size(trained, smears, monkeypatch):
    line = f"--dataroot {smears} --name SEG --gpu_ids -1 --loadSize 300 --fineSize 300"
    text = refused("test", line, monkeypatch, trained)
    assert "--fineSize 300 is not the input size" in text and "--fineSize 64" in text


def test_continuing_with_another_network(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    before = (tmp_path / "checkpoints/SEG/latest_state.safetensors").read_bytes()
    line = "--name SEG --continue_train --gpu_ids -1 --dropout 0.5"
    assert "--continue_train cannot change --dropout" in refused("train", line, monkeypatch, tmp_path)
    assert (tmp_path / "checkpoints/SEG/latest_state.safetensors").read_bytes() == before


def test_continuing_what_was_never_begun(smears, tmp_path, monkeypatch):
    text = refused("train", f"--dataroot {smears} --name N {TINY} --continue_train", monkeypatch, tmp_path)
    assert "no saved state" in text


def test_a_name_in_use_is_not_overwritten_unasked(trained, smears, tmp_path, monkeypatch):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    stranger = tmp_path / "checkpoints/SEG/notes.txt"
    stranger.write_text("mine")
    line = f"--dataroot {smears} --name SEG {TINY} --niter 1 --niter_decay 0"
    text = refused("train", line, monkeypatch, tmp_path)
    assert "already holds a run" in text and "--overwrite" in text
    assert len((tmp_path / "checkpoints/SEG/metrics.jsonl").read_text().splitlines()) == 3
    call("train", f"{line} --overwrite", monkeypatch, tmp_path)
    assert len((tmp_path / "checkpoints/SEG/metrics.jsonl").read_text().splitlines()) == 1
    assert stranger.read_text() == "mine"


def test_a_split_of_other_data_is_refused(trained, tmp_path, monkeypatch):
    write_dataset(tmp_path / "other", count=24, seed=6, size=64, workers=1)
    split = trained / "checkpoints/SEG/split.csv"
    text = refused("train", f"--dataroot {tmp_path}/other {TINY} --split_file {split}", monkeypatch, tmp_path)
    assert "is not the split of" in text


def test_errors_leave_the_shell_with_status_two_and_no_traceback(tmp_path):
    command = [sys.executable, str(REPOSITORY / "3TDCFNet_train.py"), "--dataroot", "absent", "--gpu_ids", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_the_data_command_splits_tiles_and_synthesises(tmp_path, monkeypatch, capsys):
    call("data", "synthesize smears --count 20 --seed 3 --size 128", monkeypatch, tmp_path)
    call("data", "split smears --out split.csv --seed 1", monkeypatch, tmp_path)
    assert {row.split for row in read_split(tmp_path / "split.csv")} == {"train", "val", "test"}
    assert "exists" in refused("data", "split smears --out split.csv", monkeypatch, tmp_path)
    call("data", "tile smears tiles --columns 2 --rows 2", monkeypatch, tmp_path)
    assert len(list((tmp_path / "tiles/AneRBC-II").rglob("Original_images/*.png"))) == 80


# ---- what README and docs say ---------------------------------------------------------------------------------------


def documented_commands():
    """Every ``python 3TDCFNet_*.py ...`` in README, docs, the model card and the commands' own help; lines joined."""
    found = []
    texts = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts += [*sorted((REPOSITORY / "checkpoints").glob("*/README.md")), *sorted(REPOSITORY.glob("3TDCFNet_*.py"))]
    for path in texts:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        pattern = r"(?:^|`)[ $]*(?:python|torchrun [^`\n]*?) (3TDCFNet_(\w+)\.py)([^`\n]*)"
        for match in re.finditer(pattern, text, re.M):
            line = re.split(r"\s#|\s\(and ", match[3])[0].strip()
            found.append(pytest.param(match[2], line, id=f"{path.name}: {match[1]} {line[:60]}"))
    return found


def test_the_readme_shows_the_published_commands():
    shown = [(p.values[0], p.values[1]) for p in documented_commands()]
    assert any(name == "train" and "--lambda_L1 60 --niter 100" in line for name, line in shown)
    assert any(name == "test" for name, line in shown)


@pytest.mark.parametrize(("name", "line"), documented_commands())
def test_every_documented_command_parses(name, line):
    from options import parse_data_command, parse_options
    from options.export_command import parse_export_command

    if name in ("data", "export"):
        parse = parse_data_command if name == "data" else parse_export_command
        parse(shlex.split(line), prog="p", description="")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COLUMNS", raising=False)
            if "--continue_train" in line:
                line += " --dataroot what-the-saved-options-say"
            if line.strip() == "--help":
                with pytest.raises(SystemExit):
                    parse_options(name, ["--help"], prog="p", description="")
            else:
                parse_options(name, shlex.split(line), prog="p", description="")


def test_the_documented_options_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("write_options", REPOSITORY / "scripts" / "write_options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == module.page(), "docs/options.md is old: run python scripts/write_options.py"


def test_a_start_that_knows_the_test_images_stops_or_is_reported(monkeypatch, tmp_path, capsys):
    """Two seeds, two splits: what the first run trained on stands on the second's test side."""
    write_dataset(tmp_path / "tree", count=24, seed=3, size=64, workers=1)
    common = "--gpu_ids -1 --loadSize 64 --fineSize 64 --no_cache --checkpoints_dir runs"
    data = f"--dataroot tree --preset small --niter 1 --niter_decay 0 --batchSize 8 {common}"
    assert call("train", f"{data} --name A --seed 0", monkeypatch, tmp_path) == 0
    text = refused("train", f"{data} --name B --seed 1 --init_from A", monkeypatch, tmp_path)
    assert "has learned from images of this run's test side" in text and "--leaks report" in text
    assert call("train", f"{data} --name B --seed 1 --init_from A --leaks report", monkeypatch, tmp_path) == 0
    text = refused("test", f"--dataroot tree --name B {common} --leaks stop", monkeypatch, tmp_path)
    assert "near duplicates of images that the run has learned from" in text
    assert call("test", f"--dataroot tree --name B {common} --leaks report", monkeypatch, tmp_path) == 0
    metrics = json.loads((tmp_path / "results/B/test_latest/metrics.json").read_text())
    assert metrics["provenance"]["leaks"]["count"] > 0
    assert call("train", f"{data} --name C --seed 0 --init_from A", monkeypatch, tmp_path) == 0  # the same split
    (tmp_path / "runs/A/split.csv").unlink()
    capsys.readouterr()
    assert call("train", f"{data} --name D --seed 1 --init_from A", monkeypatch, tmp_path) == 0
    assert "kept no record of what it has learned from" in capsys.readouterr().err
    assert call("test", f"--dataroot tree --name D {common}", monkeypatch, tmp_path) == 0
    assert "they may know these images" in (tmp_path / "results/D/test_latest/index.html").read_text()


def test_a_wrong_constant_of_the_severity_ends_a_training_before_it_begins(smears, tmp_path, monkeypatch):
    line = f"--dataroot {smears} --name SEG {TINY} --niter 1 --niter_decay 0 --severity_rule sizes=2"
    assert "--severity_rule sizes=2" in refused("train", line, monkeypatch, tmp_path)
    assert not list((tmp_path / "checkpoints").rglob("*.safetensors"))
