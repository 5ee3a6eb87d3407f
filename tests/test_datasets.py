"""Data opened for a run: a split that does not fit the data is refused, and so is data that cannot train or test."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.commands import DoctorOutputs, doctor, write_splits
from data.datasets import (
    NOT_JUDGED,
    Dataset,
    describe_split,
    open_dataset,
    print_data,
    sides,
)
from data.images import otsu_mask
from data.records import ANEMIC, HEALTHY
from data.run_split import SplitPlan, split_for_training
from data.runs import load_test_data, load_training_data
from data.splits import EXCLUDED, SplitRow, read_split, rows_digest, write_split
from data.synthetic import synthesize
from models.testing import TestRun
from util.errors import UserError

CPU = torch.device("cpu")
FOLDERS = ("Healthy_individuals", "Anemic_individuals")


def write_tree(root: Path, numbers=range(1, 9), classes=(HEALTHY, ANEMIC), seed: int = 0, masks: bool = True) -> Path:
    """AneRBC-I with one smear, one blood count and, if asked, one mask a number and class."""
    for label in classes:
        for number in numbers:
            rng = np.random.default_rng([seed, label, number])
            stem = f"{number:03d}_{'ha'[label]}"
            rgb = rng.integers(150, 256, (16, 16, 3), dtype=np.uint8)
            rgb[4:12, 4:12] //= 2
            mask = np.full((16, 16), 255, dtype=np.uint8)
            mask[0, 0] = 0  # nothing that Otsu would find
            save(root / FOLDERS[label] / "Original_images" / f"{stem}.png", rgb)
            if masks:
                save(root / FOLDERS[label] / "Binary_segmented" / f"{stem}.png", mask)
            reports = root / FOLDERS[label] / "CBC_reports"
            reports.mkdir(exist_ok=True)
            (reports / f"{stem}.txt").write_text(f"HGB {number}.{label} seed {seed}")
    return root


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def train_options(root: Path, **changes) -> Namespace:
    options = {
        "dataroot": str(root), "synthetic_count": 4, "seed": 0, "num_workers": 1, "continue_train": False,
        "split_file": None, "val_fraction": 0.25, "test_fraction": 0.25, "duplicates": "drop", "loadSize": 16,
        "fineSize": 16, "batchSize": 4, "no_augment": True, "split_from": "auto", "split_by": "group", "block_size": 50,
        "folds": 0, "fold": 0, "leaks": "stop",
    }  # fmt: skip
    return Namespace(**READING | options | changes)


READING = {
    "image_root": "", "severity_from": "auto", "chronic_below": 8.0, "normal_from": 12.0, "cache_dir": "",
    "cache_gb": 1.0, "no_cache": True, "init_from": "",
}  # fmt: skip


def load_train(root: Path, split_path: Path | None = None, **changes):
    split_path = split_path or root.parent / "unwritten" / "split.csv"
    return load_training_data(train_options(root, **changes), CPU, split_path)


def load_test(root: Path, split_path: Path, masks_from="decoder", binary_sees="predicted", digest=None, **changes):
    options = Namespace(
        dataroot=str(root), synthetic_count=4, seed=0, num_workers=1, loadSize=16, batchSize=4, splits=("test",),
        binary_from="predicted", leaks="stop",
    )  # fmt: skip
    vars(options).update(READING | changes)
    return load_test_data(options, split_path, masks_from=masks_from, binary_sees=binary_sees, split_digest=digest)


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "AneRBC-I")


@pytest.fixture
def run(tree, tmp_path) -> Path:
    """The split.csv of a run on the tree."""
    load_train(tree).record(tmp_path / "split.csv")
    return tmp_path / "split.csv"


def divided(dataset, *, leaks="stop", **plan):
    """The split of a run that has no split file."""
    return split_for_training(dataset, SplitPlan(**plan), leaks=leaks)


def refused(action, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "doctor" not in str(caught.value)


def rewrite(path: Path, change) -> None:
    write_split(path, [change(row) for row in read_split(path)])


# the split of a run and its data


def test_what_is_said_of_masks_reaches_the_report(tree, run, monkeypatch, capsys):
    assert load_test(tree, run).facts["warnings"] == []
    monkeypatch.setattr("data.runs.polarity_warning", lambda records: f"masks of {len(records)} mark the background")
    data = load_test(tree, run)
    said = data.facts["warnings"]
    assert len(said) == 1 and f"warning: {said[0]}" in capsys.readouterr().err
    facts = {"data": {"synthetic": False}}
    tested = Namespace(saved=Namespace(facts=facts), masks_written={}, metrics={}, baseline=None)
    assert TestRun._warnings(tested, data)[0] == said[0]


def test_facts_hold_the_digest_of_the_split(tree, run):
    data = load_train(tree, run, continue_train=True)
    assert data.facts["split_digest"] == rows_digest(read_split(run))
    assert sum(len(side) for side in (data.train, data.val)) > 0


@pytest.mark.parametrize("continued", [True, False])
def test_missing_added_and_changed_images_are_refused(tree, run, continued, tmp_path):
    given = {"continue_train": True} if continued else {"split_file": str(run)}
    load_train(tree, run, **given)
    image, mask = (tree / FOLDERS[0] / kind / "001_h.png" for kind in ("Original_images", "Binary_segmented"))
    pixels = np.array(Image.open(image))
    save(image, 255 - pixels)
    refused(lambda: load_train(tree, run, **given), "not listed or changed", "001_h.png")
    image.unlink()
    mask.unlink()
    refused(lambda: load_train(tree, run, **given), "1 listed images are missing", "001_h.png")
    write_tree(tree, (1, 9))
    refused(lambda: load_train(tree, run, **given), "2 images are not listed", "009")


def test_a_continued_run_refuses_other_labels_and_masks(tree, run):
    shutil.rmtree(tree / FOLDERS[0] / "Binary_segmented")
    refused(lambda: load_train(tree, run, continue_train=True), "true mask came or went: 8 images", "001_h")
    rows = load_train(tree, run, split_file=str(run)).rows
    assert [row.mask for row in rows] == ["Anemic" in row.image for row in rows]
    write_tree(tree)
    load_train(tree, run, continue_train=True)
    rewrite(run, lambda row: dataclasses.replace(row, label=1 - row.label if "001_h" in row.image else row.label))
    refused(lambda: load_train(tree, run, continue_train=True), "label changed: 1 images", "001_h")
    assert all(row.label == ("Anemic" in row.image) for row in load_train(tree, run, split_file=str(run)).rows)


def part_a_pair(tree: Path, tmp_path: Path) -> tuple[Path, list[SplitRow]]:
    """Give 002_h the blood count of 001_h, then move it to another side in a split that does not say so."""
    reports = tree / FOLDERS[0] / "CBC_reports"
    shutil.copy(reports / "001_h.txt", reports / "002_h.txt")
    rows = []
    for row in load_train(tree).rows:
        stem = Path(row.image).stem
        split = {"001_h": "train", "002_h": "test"}.get(stem, row.split)
        rows.append(dataclasses.replace(row, split=split, group=stem, cbc=""))
    write_split(tmp_path / "tampered.csv", rows)
    return tmp_path / "tampered.csv", rows


def test_a_split_that_parts_a_group_is_refused_whatever_it_says(tree, tmp_path):
    path, _ = part_a_pair(tree, tmp_path)
    for action in (
        lambda: load_train(tree, split_file=str(path)),
        lambda: load_train(tree, path, continue_train=True),
        lambda: load_test(tree, path),
    ):
        refused(action, str(path), "leaks", "001_h.png' in train", "002_h.png' in test")


def test_a_split_changed_after_training_is_refused_at_test(tree, run):
    digest = rows_digest(read_split(run))
    load_test(tree, run, digest=digest)
    other = {"test": "val", "val": "test"}
    rewrite(run, lambda row: dataclasses.replace(row, split=other.get(row.split, row.split)))
    load_test(tree, run)
    refused(lambda: load_test(tree, run, digest=digest), str(run), "split.csv was changed since the run was trained")


def test_a_root_spelled_as_the_outer_folder_has_the_same_sides(tree, run):
    image = tree / FOLDERS[0] / "Original_images" / "001_h.png"
    copy = image.with_name("009_h.png")
    shutil.copy(image, copy)
    shutil.copy(tree / FOLDERS[0] / "Binary_segmented/001_h.png", tree / FOLDERS[0] / "Binary_segmented/009_h.png")
    rows = load_train(tree).rows
    assert [Path(row.image).name for row in rows if row.split == EXCLUDED] == ["009_h.png"]
    inner, outer = (open_dataset(str(root)) for root in (tree, tree.parent))
    assert inner.records[0].name != outer.records[0].name
    for side, part in sides(inner, rows).items():
        other = sides(outer, rows)[side]
        assert [record.image for record in part.records] == [record.image for record in other.records]
        assert part.groups == other.groups == [row.group for row in rows if row.split == side]


def test_tiles_stand_with_their_smears_and_under_their_groups(tree, run):
    dataset = open_dataset(str(tree))
    tiles = [dataclasses.replace(record, name=f"{record.name}/{i}") for record in dataset.records for i in range(2)]
    cut = Dataset(tree, tiles, [f"tile {index}" for index in range(len(tiles))], synthetic=False)
    whole, parts = (sides(data, read_split(run)) for data in (dataset, cut))
    for side in whole:
        assert parts[side].groups == [group for group in whole[side].groups for _ in range(2)]


# what can be trained on


def test_train_needs_both_classes_and_says_what_it_found(tmp_path):
    root = write_tree(tmp_path / "AneRBC-I", classes=(HEALTHY,))
    refused(lambda: load_train(root), "lacks a class", "4 Healthy, 0 Anemic, 0 unknown")


def test_val_of_one_class_is_said(tree, run, capsys):
    assert "warning" not in capsys.readouterr().err
    rewrite(
        run, lambda row: dataclasses.replace(row, split="train") if row.split == "val" and row.label == ANEMIC else row
    )
    load_train(tree, run, split_file=str(run))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "validation holds one class only: AUROC cannot be computed" in warnings[0]


def test_empty_sides(tree, run):
    refused(lambda: load_train(tree, val_fraction=0.0), "val side of the split is empty", "--val_fraction")
    assert not any(row.split == "test" for row in load_train(tree, test_fraction=0.0).rows)
    rewrite(run, lambda row: dataclasses.replace(row, split="val") if row.split == "train" else row)
    refused(lambda: load_train(tree, run, split_file=str(run)), "train side of the split is empty", "--val_fraction")


def test_a_split_file_of_an_earlier_version_is_refused(tree, run):
    with run.open(newline="") as stream:
        lines = [line[:6] for line in csv.reader(stream)]
    run.write_text("\n".join(",".join(line) for line in lines) + "\n")
    refused(lambda: load_train(tree, split_file=str(run)), "older split file", "draw it again")


def test_a_drawn_split_is_as_the_seed_says(tree):
    dataset = open_dataset(str(tree))
    first, again, other = (divided(dataset, **DRAW | {"seed": seed}) for seed in (0, 0, 1))
    assert first == again != other


# what a test is given


@pytest.mark.parametrize("binary_sees", ["predicted", "gt", "otsu"])
@pytest.mark.parametrize("masks_from", ["decoder", "otsu"])
def test_true_masks_are_kept_unless_otsu_s_are_seen(tree, run, masks_from, binary_sees):
    data = load_test(tree, run, masks_from, binary_sees)
    assert data.binary_sees == binary_sees
    batch = next(iter(data.batches("test", CPU)))
    assert bool(batch.has_mask.all()) is (binary_sees != "otsu") is bool(batch.has_mask.any())
    assert (batch.mask.sum((1, 2, 3)) == 1).all() == (binary_sees != "otsu")  # the true masks have one pixel
    rgb, true, stand_in = data.pixels("test", 0)
    assert true is not None and true.sum() == 1
    if masks_from == "otsu":
        assert stand_in is not None and (stand_in == otsu_mask(rgb)).all()
    else:
        assert stand_in is None


def test_true_masks_can_only_be_asked_for_where_they_are_and_are_looked_at(tree, run):
    load_test(tree, run, binary_sees="gt", binary_from="gt")
    refused(lambda: load_test(tree, run, "otsu", "gt", binary_from="gt"), "trained without masks and never looks")
    shutil.rmtree(tree / FOLDERS[1] / "Binary_segmented")
    count = sum(row.split == "test" and row.label == ANEMIC for row in read_split(run))
    first = min(row.image for row in read_split(run) if row.split == "test" and row.label == ANEMIC)
    refused(lambda: load_test(tree, run, binary_sees="gt", binary_from="gt"), f"{count} without", first)
    load_test(tree, run, binary_sees="predicted")


def test_nothing_to_test_is_refused(tree, run):
    rewrite(run, lambda row: dataclasses.replace(row, split="train"))
    refused(lambda: load_test(tree, run), "no image of the splits test", "test: 0")


# the data's own split, leaks, what a run has learned from


def smear(index: int, seed: int = 4) -> np.ndarray:
    return synthesize(index, seed=seed, size=160).rgb


@pytest.fixture
def smears(tmp_path) -> Path:
    """Eight smears of each class in AneRBC-I; 001_h and 002_h are overlapping crops of one."""
    root = tmp_path / "smears" / "AneRBC-I"
    for label, number in [(label, number) for label in (0, 1) for number in range(1, 9)]:
        save(root / FOLDERS[label] / "Original_images" / f"{number:03d}_{'ha'[label]}.png", smear(2 * number + label))
    whole = synthesize(40, seed=4, size=220).rgb
    for name, rgb in (("001_h", whole[:180, :180]), ("002_h", whole[20:, 10:])):
        save(root / FOLDERS[0] / "Original_images" / f"{name}.png", rgb)
    return root


def test_near_duplicates_stand_on_one_side(smears):
    for seed in range(4):
        rows = {Path(row.image).stem: row for row in load_train(smears, seed=seed, loadSize=64, fineSize=64).rows}
        assert rows["001_h"].group == rows["002_h"].group and rows["001_h"].split == rows["002_h"].split


def own_split(smears: Path, sides_of: dict[str, str]) -> Dataset:
    dataset = open_dataset(str(smears))
    records = [
        dataclasses.replace(record, split=sides_of.get(record.image.stem, "train")) for record in dataset.records
    ]
    return dataclasses.replace(dataset, records=records)


DRAW = {"fractions": (0.5, 0.25, 0.25), "seed": 0}


def test_the_data_s_own_split_is_taken_unless_another_is_asked_for(smears):
    whole = own_split(smears, {"003_h": "val", "004_a": "val", "001_h": "test", "002_h": "test", "005_a": "test"})
    rows = divided(whole, **DRAW)
    assert {row.image: row.split for row in rows} == {record.name: record.split for record in whole.records}
    assert {row.reason for row in rows} == {"given by the data"}
    assert divided(whole, split_from="data", **DRAW) == rows
    drawn = divided(whole, split_from="draw", **DRAW)
    assert drawn == divided(open_dataset(str(smears)), **DRAW) != rows
    refused(lambda: divided(whole, folds=4, fold=1, **DRAW), "gives a split of its own", "--split_from draw")
    assert divided(whole, split_from="draw", folds=4, fold=1, **DRAW)
    none = open_dataset(str(smears))
    refused(lambda: divided(none, split_from="data", **DRAW), "gives no split")
    some = dataclasses.replace(whole, records=[dataclasses.replace(whole.records[0], split=None), *whole.records[1:]])
    refused(lambda: divided(some, **DRAW), "1 of 16 images without", whole.records[0].name)


def test_a_leak_in_the_data_s_own_split_stops_or_is_reported(smears, capsys):
    leaking = own_split(smears, {"003_h": "val", "004_a": "val", "002_h": "test", "005_a": "test"})
    refused(
        lambda: divided(leaking, **DRAW),
        "leaks",
        "near-duplicate images (similarity 0.",
        "001_h.png'",
        "002_h.png'",
    )
    rows = divided(leaking, leaks="report", **DRAW)
    facts = describe_split(leaking, rows)
    assert facts["leaks"]["count"] == 2 and "001_h.png' in train: near-duplicate" in facts["leaks"]["first"][0]
    print_data(facts)
    assert "LEAK: " in capsys.readouterr().out
    clean = describe_split(leaking, divided(leaking, split_from="draw", **DRAW))["leaks"]
    assert clean == {"count": 0, "first": [], "near_duplicates": "checked"}


def test_a_leak_in_a_user_s_file_stops_or_is_reported_from_training_to_test(smears, tmp_path):
    sizes = {"loadSize": 64, "fineSize": 64}
    rows = load_train(smears, **sizes).rows
    moved = {"001_h": "train", "002_h": "test"}
    rows = [
        dataclasses.replace(r, split=moved.get(Path(r.image).stem, r.split), group=Path(r.image).stem) for r in rows
    ]
    write_split(tmp_path / "mine.csv", rows)
    mine = {"split_file": str(tmp_path / "mine.csv"), **sizes}
    refused(
        lambda: load_train(smears, **mine),
        "mine.csv",
        "near-duplicate images",
        "001_h.png' in train",
        "002_h.png' in test",
    )
    data = load_train(smears, tmp_path / "run" / "split.csv", leaks="report", **mine)
    assert data.facts["leaks"]["count"] == 2
    data.record(tmp_path / "run" / "split.csv")
    load_train(smears, tmp_path / "run" / "split.csv", continue_train=True, **sizes)
    assert load_test(smears, tmp_path / "run" / "split.csv").facts["leaks"]["count"] == 2


def test_new_images_that_are_not_judged_are_counted(smears, tmp_path):
    split = tmp_path / "run" / "split.csv"
    load_train(smears, split, loadSize=64, fineSize=64).record(split)
    for name in ("900_h.png", "901_h.png"):
        new = smears / FOLDERS[0] / "Original_images" / name
        pixels = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save(new, pixels)
    assert load_test(smears, split).facts["excluded"][NOT_JUDGED] == 1


def test_what_another_run_accepted_is_refused_again(smears, tmp_path):
    sizes = {"loadSize": 64, "fineSize": 64}
    rows = load_train(smears, **sizes).rows
    one, other = (next(row for row in rows if row.split == side) for side in ("train", "test"))
    rows = [
        dataclasses.replace(row, patient="P", group="P", reason="leak accepted: known") if row in (one, other) else row
        for row in rows
    ]
    write_split(tmp_path / "mine.csv", rows)
    refused(lambda: load_train(smears, split_file=str(tmp_path / "mine.csv"), **sizes), "mine.csv", "leaks")
    data = load_train(smears, split_file=str(tmp_path / "mine.csv"), leaks="report", **sizes)
    assert all("known" not in row.reason for row in data.rows)


def test_copies_of_what_was_learned_stop_a_test_on_another_folder(smears, tmp_path):
    split = tmp_path / "run" / "split.csv"
    data = load_train(smears, split, loadSize=64, fineSize=64)
    data.record(split)
    rows = data.rows
    assert load_test(smears, split).facts["leaks"] == {"count": 0, "first": [], "near_duplicates": "checked"}
    learned = next(row for row in rows if row.split == "train" and "Anemic" in row.image)
    other = tmp_path / "other" / "AneRBC-I" / FOLDERS[1] / "Original_images"
    copy = np.array(Image.open(smears / learned.image))[5:150, 8:].astype(float) * 0.9
    save(other / "901_a.png", copy.astype(np.uint8))
    save(other / "902_a.png", smear(99))
    root = tmp_path / "other" / "AneRBC-I"
    refused(
        lambda: load_test(root, split),
        "901_a.png' in test",
        f"{learned.image!r} in train",
        "similarity",
        "--leaks report",
    )
    facts = load_test(root, split, leaks="report").facts["leaks"]
    assert facts["count"] == 1 and learned.image in facts["first"][0]
    (split.with_name("fingerprints.npz")).unlink()
    assert load_test(root, split).facts["leaks"] == {"count": 0, "first": [], "near_duplicates": "not checked"}
    (other / "901_a.png").unlink()
    assert load_test(root, split).facts["leaks"]["count"] == 0


def test_folds_and_blocks_are_options(smears):
    sizes = {"loadSize": 64, "fineSize": 64}
    tested = Counter(
        row.image
        for fold in (1, 2)
        for row in load_train(smears, folds=2, fold=fold, val_fraction=0.2, **sizes).rows
        if row.split == "test"
    )
    assert set(tested.values()) == {1} and len(tested) == 16
    rows = load_train(smears, split_by="blocks", block_size=2, **sizes).rows
    sides_of: dict[int, set[str]] = {}
    for row in rows:
        sides_of.setdefault((int(Path(row.image).stem[:3]) - 1) // 2, set()).add(row.split)
    assert len(sides_of) == 4 and all(len(found) == 1 for found in sides_of.values())


@pytest.mark.parametrize("folds", [0, 2])
def test_no_split_is_written_of_which_every_image_is_left_out(tmp_path, folds):
    root = write_tree(tmp_path / "smears", numbers=range(1, 3))
    same = next(root.rglob("*_h.png")).read_bytes()
    for path in root.rglob("Original_images/*.png"):
        path.write_bytes(same)  # one picture in both classes
    with pytest.raises(UserError, match="4 images, all left out .stands in both classes"):
        write_splits(root, tmp_path / "split.csv", SplitPlan((0.5, 0.25, 0.25), seed=0, folds=folds))
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize("out", ["manifest.csv", "labels.csv", "image"])
def test_a_split_never_replaces_the_data(tmp_path, out):
    root = write_tree(tmp_path / "smears", numbers=range(1, 4))
    image = next(root.rglob("Original_images/*.png"))
    path = image if out == "image" else root / out
    before = image.read_bytes()
    with pytest.raises(UserError, match="would replace or change the data"):
        write_splits(root, path, SplitPlan((0.5, 0.25, 0.25), seed=0), overwrite=True)
    assert image.read_bytes() == before and not (root / "labels.csv").exists()


def test_one_plan_is_made_of_the_options_of_either_command():
    asked = Namespace(
        val_fraction=0.2, test_fraction=0.1, seed=5, duplicates="keep", split_by="blocks", block_size=7, folds=3,
        fold=2, split_from="draw",
    )  # fmt: skip
    expected = SplitPlan((1 - 0.2 - 0.1, 0.2, 0.1), 5, False, "blocks", 7, 3, 2, "draw")
    assert SplitPlan.of(asked) == expected


@pytest.mark.parametrize("line", ["doctor", "split"])
def test_where_the_output_may_not_be_written_the_work_is_not_begun(tmp_path, monkeypatch, line):
    asked = []

    def refuse(path, mode):
        asked.append(Path(path))
        return False

    monkeypatch.setattr("os.access", refuse)
    for module in ("data.datasets.open_dataset", "data.doctor.examine_dataroot"):
        monkeypatch.setattr(module, lambda *_, **__: pytest.fail("the files were read first"))
    out = tmp_path / "new" / "out.csv"
    with pytest.raises(UserError, match=r"cannot write .*out\.csv\s+found: +Permission denied"):
        if line == "split":
            write_splits(tmp_path, out, SplitPlan((0.5, 0.25, 0.25), seed=0))
        else:
            doctor(tmp_path / "smears", DoctorOutputs(fix=out), image_root=None, workers=1)
    assert asked == [tmp_path] and not out.parent.exists()
