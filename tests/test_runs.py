"""What a run reads: through the cache, with one source of severity, and with the colours that its test compares."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data.cache_recipe
import data.datasets
from data.colour_record import COLOURS, ColourRecord, score_colours
from data.datasets import open_dataset
from data.loader import decode
from data.manifest import write_manifest
from data.mask_record import MASKS
from data.near_duplicates import NearPair
from data.records import ANEMIC, HEALTHY, SmearRecord
from data.runs import load_test_data, load_training_data
from data.synthetic_writer import write_dataset
from util.errors import UserError
from util.runlog import BESIDE_SPLIT, SEVERITY_HEAD, RunFolder

CPU = torch.device("cpu")
SIDE = 64


@pytest.fixture(scope="module")
def smears(tmp_path_factory) -> Path:
    """Twelve synthetic smears with masks and blood counts in AneRBC's tree."""
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=12, seed=3, size=SIDE, workers=1)
    return out


def options(root: Path, cache: Path, **changes) -> Namespace:
    return Namespace(
        **{
            "dataroot": str(root), "synthetic_count": 4, "seed": 0, "num_workers": 1, "loadSize": SIDE,
            "fineSize": SIDE, "batchSize": 4, "image_root": "", "init_from": "", "severity_from": "auto",
            "chronic_below": 8.0, "normal_from": 12.0,
            "cache_dir": str(cache), "cache_gb": 1.0, "no_cache": False, "continue_train": False, "split_file": "",
            "val_fraction": 0.25, "test_fraction": 0.25, "duplicates": "drop", "split_by": "group", "block_size": 50,
            "folds": 0, "fold": 0, "split_from": "auto", "leaks": "stop", "no_augment": False,
            "splits": ("train", "val", "test"), "binary_from": "predicted",
        }
        | changes
    )  # fmt: skip


def train(root: Path, folder: Path, **changes):
    return load_training_data(options(root, folder / "cache", **changes), CPU, folder / "split.csv")


def opened_for_test(root: Path, folder: Path, masks_from="decoder", binary_sees="predicted", **changes):
    given = options(root, folder / "cache", **changes)
    return load_test_data(given, folder / "split.csv", masks_from=masks_from, binary_sees=binary_sees)


def batches(loader):
    return [(batch.rgb.clone(), batch.mask.clone(), batch.label.clone()) for batch in loader]


def test_a_second_start_decodes_nothing_and_gives_the_same_batches(smears, tmp_path, monkeypatch):
    first = train(smears, tmp_path)
    first.record(tmp_path / "split.csv")
    before = batches(first.train)
    monkeypatch.setattr(data.cache_recipe, "decode_smear", lambda *_: pytest.fail("an image was decoded again"))
    again = batches(train(smears, tmp_path).train)
    assert len(before) == len(again) > 0
    assert all(
        torch.equal(a, b) for one, other in zip(before, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    tested = opened_for_test(smears, tmp_path)
    assert sum(len(batch.label) for batch in tested.batches("test", CPU)) == len(tested.sides["test"].records)


def test_without_a_cache_nothing_is_written_and_the_batches_are_the_same(smears, tmp_path):
    kept, loose = train(smears, tmp_path), train(smears, tmp_path, no_cache=True, cache_dir=str(tmp_path / "none"))
    assert (tmp_path / "cache").is_dir() and not (tmp_path / "none").exists()
    for one, other in zip(batches(kept.val), batches(loose.val), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_folds_share_one_pack(smears, tmp_path):
    for fold in (1, 2):
        train(smears, tmp_path, folds=2, fold=fold)
    assert len(list((tmp_path / "cache").glob("*.smears"))) == 1


def test_where_otsu_s_masks_are_to_be_seen_no_true_one_is_decoded(smears, tmp_path):
    train(smears, tmp_path).record(tmp_path / "split.csv")
    shown = list(opened_for_test(smears, tmp_path, masks_from="otsu", binary_sees="otsu").batches("test", CPU))
    true = list(opened_for_test(smears, tmp_path).batches("test", CPU))
    assert not any(batch.has_mask.any() for batch in shown) and all(batch.has_mask.all() for batch in true)
    assert any(not torch.equal(a.mask, b.mask) for a, b in zip(shown, true, strict=True))


def test_a_real_smear_of_the_same_name_is_no_part_of_a_synthetic_one(smears, tmp_path):
    train(smears, tmp_path).record(tmp_path / "split.csv")
    real = tmp_path / "real"
    for name in ("Anemic_individuals/Original_images/001_a.png", "Healthy_individuals/Original_images/001_h.png"):
        (real / name).parent.mkdir(parents=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(real / name)
    assert len(opened_for_test(real, tmp_path).sides["test"].records) == 2


@pytest.mark.parametrize("seed", [3, 4])
def test_synthetic_smears_of_one_seed_join_by_name_and_those_of_another_do_not(smears, tmp_path, seed):
    begun = train(smears, tmp_path)
    begun.record(tmp_path / "split.csv")
    other = tmp_path / "other"
    write_dataset(other, count=4, seed=seed, size=2 * SIDE, workers=1)  # other pictures, in one the same subjects
    for report in other.rglob("CBC_reports/*"):
        report.unlink()  # so that nothing but the name can join them
    side_of = {row.image: row.split for row in begun.rows}
    found = {
        record.name: name for name, side in opened_for_test(other, tmp_path).sides.items() for record in side.records
    }
    assert len(found) == 4 and {side_of[name] for name in found} > {"test"}
    assert found == {name: side_of[name] if seed == 3 else "test" for name in found}


def test_a_synthetic_data_set_whose_notice_names_no_seed_is_refused(smears, tmp_path):
    shutil.copytree(smears, tmp_path / "set")
    (tmp_path / "set" / "AneRBC-I" / "SYNTHETIC.txt").write_text("Everything here is synthetic.\n")
    with pytest.raises(UserError, match="names no seed"):
        open_dataset(str(tmp_path / "set"))


def redrawn(root: Path, name: str) -> None:
    """Turn the mask of an image upside down."""
    path = root / name.replace("Original_images", "Binary_segmented")
    Image.fromarray(np.ascontiguousarray(np.asarray(Image.open(path))[::-1])).save(path)


def test_a_run_goes_on_with_the_masks_that_it_began_with_and_no_others(smears, tmp_path, capsys):
    root = tmp_path / "smears"
    shutil.copytree(smears, root)
    begun = train(root, tmp_path)
    begun.record(tmp_path / "split.csv")
    train(root, tmp_path, continue_train=True).record(tmp_path / "split.csv")
    sides_ = {row.image: row.split for row in begun.rows}
    redrawn(root, next(name for name in sorted(sides_) if sides_[name] == "test"))  # not learned from
    train(root, tmp_path, continue_train=True)
    assert "masks" not in capsys.readouterr().err
    name = next(name for name in sorted(sides_) if sides_[name] == "val")
    redrawn(root, name)
    with pytest.raises(UserError, match=f"true mask changed: 1 images, first '{name}'"):
        train(root, tmp_path, continue_train=True)
    redrawn(root, name)
    train(root, tmp_path, continue_train=True)


@pytest.mark.parametrize("change", ["size", "no record"])
def test_where_changed_masks_cannot_be_told_a_warning_says_so(smears, tmp_path, capsys, change):
    train(smears, tmp_path).record(tmp_path / "split.csv")
    if change == "no record":
        (tmp_path / MASKS.name).unlink()
    train(smears, tmp_path, continue_train=True, loadSize=2 * SIDE if change == "size" else SIDE)
    assert "whether they have changed cannot be told" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", {"digests": np.zeros(3, np.uint8), "made_by": np.zeros(1, np.uint8)}])
def test_a_damaged_record_of_the_masks_is_named(tmp_path, content):
    if isinstance(content, dict):
        np.savez(tmp_path / MASKS.name, **content)
    else:
        (tmp_path / MASKS.name).write_bytes(content)
    with pytest.raises(UserError, match=MASKS.name):
        MASKS.read(tmp_path)


def test_a_new_run_removes_every_record_beside_the_split(smears, tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    train(smears, tmp_path).record(folder.split)
    assert MASKS.name in {path.name for path in folder.folder.iterdir()}
    folder.begin()
    assert not list(folder.folder.iterdir())


def test_a_pair_that_only_the_fingerprints_see_joins_nothing(smears, monkeypatch):
    chance = NearPair(0, 1, 0.3)  # two smears that share no cell
    monkeypatch.setattr(data.datasets, "find_near_duplicates", lambda *_, **__: [chance])
    assert open_dataset(str(smears)).near == []


def test_the_synthesiser_s_grades_are_labels_and_none_means_none(smears):
    truth = open_dataset(str(smears))
    assert {record.severity for record in truth.records if record.label == ANEMIC} == {"Mild", "Chronic"}
    assert {record.severity_source for record in truth.records if record.severity} == {"truth.csv"}
    assert truth.severities.source == "labels" and "truth.csv" in truth.severities.text


def test_haemoglobin_grades_instead_of_the_labels_and_the_facts_say_so(smears, tmp_path):
    data_ = train(smears, tmp_path, severity_from="haemoglobin", chronic_below=30.0, normal_from=30.0)
    assert "haemoglobin" in data_.facts["severity"] and " 0 Mild, 6 Chronic" in data_.facts["severity"]
    assert train(smears, tmp_path, severity_from="none").facts["severity"] is None


def test_a_manifest_s_paths_are_relative_to_the_image_root(smears, tmp_path):
    records = open_dataset(str(smears)).records
    manifest = tmp_path / "clean.csv"
    write_manifest(manifest, records[:6] + records[-4:], image_root=smears)
    data_ = train(manifest, tmp_path, image_root=str(smears))
    assert data_.facts["files"] == 10
    with pytest.raises(UserError, match=r"clean\.csv, line 2"):
        train(manifest, tmp_path)


def coloured(folder: Path, count: int = 24) -> list[SmearRecord]:
    """Pictures of noise, reddish where Anemic and bluish where Healthy."""
    records = []
    for index in range(count):
        label = (HEALTHY, ANEMIC)[index % 2]
        pixels = np.random.default_rng(index).integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., 0 if label == ANEMIC else 2] += 60
        path = folder / f"{index:02d}.png"
        Image.fromarray(pixels).save(path)
        records.append(SmearRecord(path.name, path, label=label))
    return records


def test_colours_that_tell_the_classes_apart_are_scored_so_and_others_not(tmp_path):
    records = coloured(tmp_path)
    learned, tested = (decode(part, SIDE, progress=False) for part in (records[:16], records[16:]))
    groups = [record.name for record in records[16:]]
    scores = score_colours(ColourRecord.of(learned), tested, records[16:], groups, seed=0)
    assert (scores.metrics["n"], scores.metrics["accuracy"], scores.metrics["auroc"]) == (8, 1.0, 1.0)
    assert set(scores.metrics["ci95"]) >= {"accuracy", "auroc"}
    shuffled = ColourRecord.of(learned)._replace(labels=np.array([0, 0, 1, 1] * 4))
    assert score_colours(shuffled, tested, records[16:], groups, seed=0).metrics["auroc"] < 0.95
    assert score_colours(shuffled._replace(labels=np.zeros(16, int)), tested, records[16:], groups, seed=0) is None


def test_colours_are_those_of_the_training_side_and_labelled_images_only(smears, tmp_path):
    data_ = train(smears, tmp_path)
    on_train = [row for row in data_.rows if row.split == "train"]
    assert sorted(data_.colours.labels.tolist()) == sorted(row.label for row in on_train)
    records = [SmearRecord(r.name, r.image, label=None) for r in coloured(tmp_path, 2)]
    assert len(ColourRecord.of(decode(records, SIDE, progress=False)).labels) == 0


def test_a_test_scores_the_colours_unless_they_were_not_kept(smears, tmp_path):
    train(smears, tmp_path).record(tmp_path / "split.csv")
    tested = opened_for_test(smears, tmp_path)
    assert len(tested.colour_chances("test", seed=0)) == len(tested.sides["test"].records)
    assert opened_for_test(smears, tmp_path, loadSize=2 * SIDE).colour_chances("test", seed=0) is None
    (tmp_path / COLOURS.name).unlink()
    assert opened_for_test(smears, tmp_path).colour_chances("test", seed=0) is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", None])
def test_damaged_colours_are_named(tmp_path, content):
    path = tmp_path / COLOURS.name
    if content is None:
        COLOURS.write(tmp_path, ColourRecord(np.zeros((2, 3), np.float32), np.array([0, 1]), SIDE))
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=COLOURS.name):
        COLOURS.read(tmp_path)


def test_a_pickle_among_the_colours_is_refused(tmp_path):
    path = tmp_path / COLOURS.name
    np.savez(path, features=np.array([{"a": 1}], dtype=object), labels=np.array([0]), load_size=np.int64(SIDE))
    with pytest.raises(UserError, match=COLOURS.name):
        COLOURS.read(tmp_path)


def test_colours_are_read_as_written(tmp_path, smears):
    record = train(smears, tmp_path).colours
    COLOURS.write(tmp_path, record)
    found = COLOURS.read(tmp_path)
    assert np.array_equal(found.features, record.features) and np.array_equal(found.labels, record.labels)
    assert found.load_size == record.load_size == SIDE
    assert COLOURS.read(tmp_path / "nothing") is None


def test_the_severity_is_learned_from_graded_images_of_the_train_side_alone(smears, tmp_path, monkeypatch):
    data = train(smears, tmp_path)
    sides = {row.image: row.split for row in data.rows}
    graded = {record.name for record in open_dataset(str(smears)).records if record.severity}
    expected = {name for name in graded if sides[name] == "train"}
    assert expected and {sides[name] for name in graded} - {"train"}  # there are others that could be taken
    opened = []
    monkeypatch.setattr("data.runs.read_smear", lambda record: opened.append(record.name) or record.name)
    found = list(data.graded())
    assert set(opened) == expected and len(opened) == len(expected)
    truth = {record.name: record.severity for record in open_dataset(str(smears)).records}
    assert all(grade == truth[name] for name, grade in found)
    assert sum(data.grade_counts.values()) == len(expected)


@pytest.mark.parametrize("name", [SEVERITY_HEAD, *BESIDE_SPLIT])
def test_a_new_run_removes_what_an_earlier_one_learned(tmp_path, name):
    folder = RunFolder(str(tmp_path), "run")
    folder.folder.mkdir()
    (folder.folder / name).write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        folder.check(resume=False, overwrite=False)
    folder.begin()
    assert not (folder.folder / name).exists()


@pytest.mark.parametrize("junk", [b"\x00\xff,,,\n", b"1,nan,open\n", b'"' + b"x" * 200_000])
def test_broken_logs_are_read_as_far_as_they_are_whole(tmp_path, junk):
    folder = RunFolder(str(tmp_path), "run")
    folder.gate_log.parent.mkdir(parents=True, exist_ok=True)
    folder.gate_log.write_bytes(b"epoch,tier,decision,reason\n1,1,open,why\n" + junk)
    folder.metrics.write_bytes(b'{"epoch": 1, "lr": NaN}\n' + junk)
    assert [row["reason"] for row in folder.gate_rows()] == ["why"]
    assert [record["epoch"] for record in folder.history()] == [1]
