"""Training and test as a shell would see them on bad weights, bad numbers, scarce data and unusual sizes."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data.manifest import write_manifest
from data.readers import read_dataroot
from data.records import ANEMIC, HEALTHY
from data.splits import read_split, write_split
from data.synthetic_writer import write_dataset
from tests.test_commands import REPOSITORY, door
from util.checkpoint import load_checkpoint, save_checkpoint
from util.errors import run_door

SIZES = "--loadSize 64 --fineSize 64"
TINY = f"--preset small --gpu_ids -1 --batchSize 8 --niter 1 --niter_decay 0 --no_cache {SIZES}"
LATEST, BEST, STATE = "latest_net_3TDCFNet.safetensors", "best_net_3TDCFNet.safetensors", "latest_state.safetensors"
SIDES_OF_TWELVE = ("train",) * 3 + ("val", "val", "test")  # of either class


@pytest.fixture
def shell(monkeypatch, capfd):
    """Runs a command in the folder of its ``cwd``; gives exit status, stdout and stderr, as a shell would have them."""

    def run(command, line, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [f"3TDCFNet_{command}.py", *shlex.split(line)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run_door(door(command))
        return int(left.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def refused(shell):
    """Runs a command that must end in one whole error, and gives that error."""

    def run(command, line, cwd):
        status, out, err = shell(command, line, cwd)
        text = err[err.find("error: ") :]
        assert status == 2 and text.startswith("error: ")
        assert (out + err).count("error: ") == 1 and "Traceback" not in out + err
        assert "\n  remedy:   " in text and "NoneType" not in text
        return text

    return run


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    """Six synthetic smears of either class, with masks, and records of them that stand on no side yet."""
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=12, seed=5, size=96, workers=1)
    return out, read_dataroot(out)


def listed(smears, path, healthy, anemic):
    """A manifest that puts the first smears of either class on these sides; the others are not in it."""
    root, records = smears
    chosen = []
    for label, sides in ((HEALTHY, healthy), (ANEMIC, anemic)):
        of_class = [record for record in records if record.label == label]
        chosen += [dataclasses.replace(record, split=side) for record, side in zip(of_class, sides, strict=False)]
    write_manifest(path, chosen, image_root=root)
    return f"--dataroot {path} --image_root {root}"


@pytest.fixture(scope="module")
def data(smears, tmp_path_factory):
    return listed(smears, tmp_path_factory.mktemp("manifest") / "all.csv", SIDES_OF_TWELVE, SIDES_OF_TWELVE)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A folder with a run of one epoch called RUN."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["3TDCFNet_train.py", *shlex.split(f"{data} --name RUN {TINY}")])
        assert door("train")() == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that run, for a test to spoil, and its folder."""
    run = tmp_path / "checkpoints" / "RUN"
    shutil.copytree(trained / "checkpoints" / "RUN", run)
    return tmp_path, run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- weights --------------------------------------------------------------------------------------------------------


class Payload:
    """A pickle of this makes a folder when it is opened carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def renamed_tensor(path):
    content = load_checkpoint(path)
    content["network"]["tiers.2.rgb.conv6.0.weight"] = content["network"].pop("tiers.2.rgb.conv5.0.weight")
    save_checkpoint(path, content)


def not_finite(path):
    content = load_checkpoint(path)
    content["network"]["fusion_head.bias"] *= float("nan")
    content["network"]["tiers.0.head.bias"] *= float("nan")
    save_checkpoint(path, content)


SPOILED = {
    "missing": (lambda path: path.unlink(), "no weights at ", "no weights at "),
    "cut short": (lambda path: os.truncate(path, 100_000), "damaged or something else", "damaged or something else"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or something else", "damaged or something else"),
    "pickle with code": (
        lambda path: path.write_bytes(pickle.dumps(Payload(path.parent / "RAN"))),
        "a pickle (.pth), which may hold code and is not opened",
        "a pickle (.pth), which may hold code and is not opened",
    ),
    "torch.save": (lambda path: torch.save({"weight": torch.zeros(3)}, path), "a pickle (.pth)", "a pickle (.pth)"),
    "training state": (
        lambda path: shutil.copy(path.with_name(STATE), path),
        "holds no network",
        "holds no network to test",
    ),
    "another layout": (renamed_tensor, "another layout", "2 differences, first: missing tiers.2.rgb.conv5.0.weight"),
    "not finite": (not_finite, "NaN or infinity in 2 tensors", "weights have diverged"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_weights_start_no_run_and_are_not_tested(how, copied, data, refused):
    folder, run = copied
    spoil, to_start, to_test = SPOILED[how]
    spoil(run / BEST)
    text = refused("train", f"{data} --name NEW --init_from checkpoints/RUN/{BEST} {TINY}", folder)
    assert to_start in text and BEST in text
    assert not list((folder / "checkpoints" / "NEW").iterdir()), "no half-begun run is left"
    text = refused("test", f"{data} --name RUN --which_epoch best --gpu_ids -1 --no_cache --resamples 100", folder)
    assert to_test in text
    left = [path for path in folder.rglob("results/**/*") if path.is_file() and path.suffix != ".lock"]
    assert not (run / "RAN").exists() and not left


@pytest.mark.parametrize("how", ["cut short", "pickle with code", "weights"])
def test_a_spoiled_state_is_not_gone_on_from(how, copied, refused):
    folder, run = copied
    if how == "weights":
        shutil.copy(run / LATEST, run / STATE)
    else:
        SPOILED[how][0](run / STATE)
        (run / "before_state.safetensors").unlink()  # or it would be gone on with
    before = contents(run)
    assert STATE in refused("train", "--name RUN --continue_train --gpu_ids -1 --niter 2", folder)
    assert contents(run) == before


# ---- a run that diverges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "where"),
    [("", "a verdict on the validation split is not finite"), ("--batchSize 2", "loss_cls, loss_L1")],
)
def test_a_run_that_diverges_keeps_its_state_and_goes_on_from_it(options, where, copied, refused, shell):
    folder, run = copied
    kept = {name: content for name, content in contents(run).items() if name.endswith(".safetensors")}
    text = refused("train", f"--name RUN --continue_train --gpu_ids -1 --niter 3 --lr 1e30 {options}", folder)
    assert "diverged in epoch 2" in text and where in text and "--continue_train with a --lr below" in text
    assert {name: content for name, content in contents(run).items() if name.endswith(".safetensors")} == kept
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    status, _, _ = shell("train", "--name RUN --continue_train --gpu_ids -1 --niter 2 --lr 0.0005", folder)
    assert status == 0
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_run_that_diverges_at_once_leaves_no_weights_but_its_start(data, tmp_path, refused, shell):
    text = refused("train", f"{data} --name RUN {TINY} --lr 1e30 --save_seconds 0.001", tmp_path)
    assert "diverged in epoch 1" in text and "use --continue_train with a --lr below 1e+30" in text
    assert not list((tmp_path / "checkpoints/RUN").glob("*_net_*"))
    state = load_checkpoint(tmp_path / "checkpoints/RUN" / STATE)
    assert state["epoch"] == 0 and state["begun"] is None, "what was saved of the epoch that diverged is dropped"
    text = refused("train", f"{data} --name RUN {TINY}", tmp_path)
    assert "already holds a run" in text and "--overwrite" in text and "--continue_train" in text
    assert shell("train", "--name RUN --continue_train --gpu_ids -1 --lr 0.0005", tmp_path)[0] == 0


# ---- going on with other options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("--preset lite", "--preset"),
        ("--fusion no", "--fusion"),
        ("--binary_stream no", "--binary_stream"),
        ("--loadSize 96 --fineSize 96", "--fineSize"),
        ("--ema 0.9", "--ema"),
        ("--gates off", "--gates"),
        ("--seed 9", "--seed"),
        ("--init_from RUN", "--init_from"),
        ("--folds 3 --fold 1", "--folds"),
    ],
)
def test_what_a_run_was_begun_with_cannot_change(changed, named, copied, refused):
    folder, run = copied
    before = contents(run)
    text = refused("train", f"--name RUN --continue_train --gpu_ids -1 --niter 2 {changed}", folder)
    assert f"--continue_train cannot change {named}\n" in text and "expected:" in text and "found:" in text
    assert contents(run) == before


def test_an_average_that_was_begun_goes_on_and_cannot_be_dropped(data, tmp_path, shell, refused):
    assert shell("train", f"{data} --name RUN {TINY} --ema 0.9 --tier_epochs 9", tmp_path)[0] == 0
    assert "cannot change --ema" in refused("train", "--name RUN --continue_train --ema 0", tmp_path)
    assert (
        shell("train", "--name RUN --continue_train --gpu_ids -1 --niter 2 --ema 0.9 --tier_epochs 9", tmp_path)[0] == 0
    )
    assert load_checkpoint(tmp_path / "checkpoints/RUN" / STATE)["trainer"]["average"] is not None


# ---- scarce data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["val", "test"])
def test_a_side_without_a_class_is_judged_without_what_it_cannot_say(lacking, smears, tmp_path, shell):
    without = tuple("train" if side == lacking else side for side in SIDES_OF_TWELVE)
    data = listed(smears, tmp_path / "m.csv", SIDES_OF_TWELVE, without)
    status, _, err = shell("train", f"{data} --name RUN {TINY}", tmp_path)
    assert status == 0 and ("validation holds one class only" in err) == (lacking == "val")
    line = f"{data} --name RUN --gpu_ids -1 --no_cache --resamples 100 --stain_checks no --splits val,test"
    status, _, err = shell("test", line, tmp_path)
    assert status == 0 and "Warning" not in err
    splits = json.loads((tmp_path / "results/RUN/test_latest/metrics.json").read_text())["splits"]
    assert splits[lacking]["global"]["auroc"] is None and splits[lacking]["global"]["accuracy"] is not None
    other = "test" if lacking == "val" else "val"
    assert splits[other]["global"]["auroc"] is not None


def test_a_training_side_without_a_class_is_refused(smears, tmp_path, refused):
    data = listed(smears, tmp_path / "m.csv", SIDES_OF_TWELVE, ("val", "val", "val", "val", "val", "test"))
    text = refused("train", f"{data} --name RUN {TINY}", tmp_path)
    assert "the train side of the split lacks a class" in text and "3 Healthy, 0 Anemic" in text
    assert not list((tmp_path / "checkpoints/RUN").iterdir())


def test_a_split_file_without_a_class_is_refused(copied, data, refused):
    folder, run = copied
    rows = read_split(run / "split.csv")
    moved = [
        dataclasses.replace(row, split="test") if row.label == ANEMIC and row.split == "train" else row for row in rows
    ]
    write_split(folder / "one_class.csv", moved)
    text = refused("train", f"{data} --name NEW {TINY} --split_file one_class.csv", folder)
    assert "the train side of the split lacks a class" in text and "another --split_file" in text


@pytest.mark.parametrize(
    ("images", "options", "found"),
    [(1, "", "found:    1 "), (6, "--folds 7 --fold 1", "found:    6 "), (6, "--folds 3 --fold 4", "--fold 4")],
)
def test_too_few_images_to_split_are_refused(images, options, found, smears, tmp_path, refused):
    data = listed(smears, tmp_path / "m.csv", (None,) * images, (None,) * images)
    text = refused("train", f"{data} --name RUN {TINY} {options}", tmp_path)
    assert found in text and ("too few groups" in text or "the folds of the split cannot be used" in text)
    assert not list((tmp_path / "checkpoints/RUN").iterdir())


def test_one_image_of_a_class_on_each_side_trains_and_is_tested(smears, tmp_path, shell):
    data = listed(smears, tmp_path / "m.csv", ("train", "val", "test"), ("train", "val", "test"))
    assert shell("train", f"{data} --name RUN {TINY} --class_weights balanced", tmp_path)[0] == 0
    assert shell("test", f"{data} --name RUN --gpu_ids -1 --no_cache --resamples 100", tmp_path)[0] == 0
    metrics = json.loads((tmp_path / "results/RUN/test_latest/metrics.json").read_text())
    assert {side: heads["global"]["n"] for side, heads in metrics["splits"].items()} == dict.fromkeys(
        ("train", "val", "test"), 2
    )


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 224, 301, 512])
def test_other_sizes_of_the_input_train_and_are_tested(size, smears, tmp_path, shell):
    data = listed(smears, tmp_path / "m.csv", ("train", "val", "test"), ("train", "val", "test"))
    sizes = f"--loadSize {size} --fineSize {size}"
    line = TINY.replace(SIZES, sizes)
    assert shell("train", f"{data} --name RUN {line} --gates off", tmp_path)[0] == 0
    line = f"{data} --name RUN --gpu_ids -1 --no_cache --resamples 100 --stain_checks no --splits test"
    assert shell("test", line, tmp_path)[0] == 0
    results = tmp_path / "results/RUN/test_latest"
    assert json.loads((results / "metrics.json").read_text())["tiers_opened"]["tier3"]["how"] == "not asked"
    masks = [np.array(Image.open(path)) for path in (results / "masks").rglob("*.png")]
    assert [mask.shape for mask in masks] == [(96, 96)] * 2
    assert load_checkpoint(tmp_path / "checkpoints/RUN" / LATEST)["architecture"]["fine_size"] == size


# ---- options that cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--loadSize 64 --fineSize 128", "--fineSize 128 is larger than --loadSize 64"),
        ("--label_smoothing 1", "--label_smoothing: '1' must be below 1"),
        ("--ema 1", "--ema: '1' must be below 1"),
        ("--ema nan", "--ema: 'nan' must lie between 0 and 1"),
        ("--lr nan", "--lr: 'nan' must be 0 or more"),
        ("--tier_lr 1,1", "--tier_lr: '1,1' must be three numbers"),
        ("--gates off --stop_when_open", "--stop_when_open with --gates off"),
        ("--val_fraction 0 --test_fraction 0", "raise --val_fraction"),
        ("--val_fraction 0.5 --test_fraction 0.5", "leave nothing to train on"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(options, words, tmp_path, refused):
    assert words in refused("train", f"--dataroot synthetic {TINY} {options}", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_shell_itself_sees_the_same(copied, data):
    folder, run = copied
    command = [sys.executable, str(REPOSITORY / "3TDCFNet_train.py"), "--name", "RUN", "--continue_train"]
    done = subprocess.run(
        [*command, "--niter", "2", "--gpu_ids", "-1", "--lr", "1e30"],
        capture_output=True, text=True, cwd=folder, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "error: training diverged in epoch 2" in done.stderr
    assert "Traceback" not in done.stderr
