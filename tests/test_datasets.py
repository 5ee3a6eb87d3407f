"""Data opened for a run: a split that does not fit the data is refused, and so is data that cannot train or test."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import Dataset, load_test_data, load_training_data, open_dataset, sides, split_for_training
from data.images import otsu_mask
from data.records import ANEMIC, HEALTHY
from data.splits import EXCLUDED, SplitRow, read_split, rows_digest, write_split
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
        "fineSize": 16, "batchSize": 4, "no_augment": True,
    }  # fmt: skip
    return Namespace(**options | changes)


def load_train(root: Path, split_path: Path = Path("none.csv"), **changes):
    return load_training_data(train_options(root, **changes), CPU, split_path)


def load_test(root: Path, split_path: Path, masks_from="decoder", binary_sees="predicted", digest=None, **changes):
    options = Namespace(
        dataroot=str(root), synthetic_count=4, seed=0, num_workers=1, loadSize=16, batchSize=4, splits=("test",),
        binary_from="predicted",
    )  # fmt: skip
    vars(options).update(changes)
    return load_test_data(options, split_path, masks_from=masks_from, binary_sees=binary_sees, split_digest=digest)


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "AneRBC-I")


@pytest.fixture
def run(tree, tmp_path) -> Path:
    """The split.csv of a run on the tree."""
    data = load_train(tree)
    write_split(tmp_path / "split.csv", data.rows)
    return tmp_path / "split.csv"


def refused(action, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "doctor" not in str(caught.value)


def rewrite(path: Path, change) -> None:
    write_split(path, [change(row) for row in read_split(path)])


# the split of a run and its data


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
    drawn = {
        "split_file": None, "fractions": (0.5, 0.25, 0.25), "drop_duplicates": True,
    }  # fmt: skip
    dataset = open_dataset(str(tree))
    first, again, other = (split_for_training(dataset, seed=seed, **drawn) for seed in (0, 0, 1))
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
