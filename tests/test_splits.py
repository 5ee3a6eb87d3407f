"""Splits: nothing that belongs together is parted, the classes stay in balance, and a file that leaks is refused."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from data.contents import describe_contents
from data.images import content_digest
from data.leaks import Learned, accept, read_fingerprints, write_fingerprints
from data.near_duplicates import FINGERPRINT_BYTES, NearPair
from data.readers import read_dataroot
from data.records import ANEMIC, HEALTHY, SmearRecord
from data.splits import (
    ACCEPTED,
    EXCLUDED,
    SIDES,
    Placement,
    SplitRow,
    block_ids,
    check_groups,
    exclusions,
    find_leaks,
    given_split,
    group_ids,
    make_split,
    place,
    read_split,
    rows_digest,
    write_split,
)
from util.errors import UserError


def record(name: str, label: int | None = None, parent: str = "", cbc: Path | None = None) -> SmearRecord:
    return SmearRecord(name, Path("/nowhere") / name, label=label, parent=parent, cbc=cbc)


def singles(count: int, labels=(HEALTHY, ANEMIC)) -> tuple[list[SmearRecord], list[str]]:
    records = [record(f"{index:04d}.png", labels[index % len(labels)]) for index in range(count)]
    return records, [f"digest {index}" for index in range(count)]


def sides_by(rows, key) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = {}
    for row in rows:
        if row.split != EXCLUDED:
            sides.setdefault(key(row), set()).add(row.split)
    return sides


def assign(records, digests, rows):
    """The side of each image."""
    return [placement.side for placement in place(records, digests, rows)]


# digests, groups, exclusions


def test_digests_are_of_the_decoded_pixels_in_order(tmp_path, rng, capsys):
    arrays = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(5)]
    records = []
    for index, array in enumerate(arrays):
        path = tmp_path / f"{index}.{'png' if index % 2 else 'bmp'}"
        Image.fromarray(array).save(path)
        records.append(SmearRecord(path.name, path))
    assert describe_contents(records, workers=2, progress=False)[0] == [content_digest(array) for array in arrays]
    assert capsys.readouterr().err == ""
    describe_contents(records)
    captured = capsys.readouterr()
    assert "5/5" in captured.err and captured.out == ""


def test_digests_of_an_unreadable_image_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.png"):
        describe_contents([SmearRecord("x.png", tmp_path / "x.png")], progress=False)


def test_groups_join_parent_content_and_report_and_chain(tmp_path):
    def report(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    records = [
        record("e", parent="P5", cbc=report("e", "HGB, 9.1\r\n  RBC,4")),
        record("d", parent="P4", cbc=report("d", "hgb, 9.1 RBC,4\n")),
        record("c", parent="P3"),
        record("b", parent="P2"),
        record("a2", parent="P1"),
        record("a1", parent="P1"),
        record("f", parent="P6", cbc=report("f", "HGB, 9.2 RBC,4")),
        record("g", cbc=report("g", "")),
        record("h", cbc=report("h", " \n")),
    ]
    digests = ["1", "2", "2", "3", "3", "4", "5", "6", "7"]
    # e-d by report, d-c by content; b-a2 by content, a2-a1 by parent
    assert group_ids(records, digests) == ["P3", "P3", "P3", "P1", "P1", "P1", "P6", "g", "h"]


def test_reports_without_figures_join_nothing(tmp_path):
    form = "Test,Result/Units\nWBC, 10^3/uL\nRBC, 10^6/uL\n"
    for name in "ab":
        (tmp_path / name).write_text(form)
    records = [record(name, cbc=tmp_path / name) for name in "ab"]
    assert group_ids(records, ["1", "2"]) == ["a", "b"]
    for name in "ab":
        (tmp_path / name).write_text(form + "HGB,9 g/dL")
    assert group_ids(records, ["1", "2"]) == ["a", "a"]


def test_unreadable_report_is_refused(tmp_path):
    with pytest.raises(UserError, match="gone.txt"):
        group_ids([record("a", cbc=tmp_path / "gone.txt")], ["1"])


def test_lengths_must_agree():
    for function in (group_ids, exclusions, lambda records, digests: assign(records, digests, [])):
        with pytest.raises(ValueError, match="zip"):
            function([record("a")], [])


def test_exclusions_name_the_first_and_both_classes():
    records = [
        record("c", HEALTHY),
        record("a", HEALTHY),
        record("b", HEALTHY),
        record("x", HEALTHY),
        record("y", ANEMIC),
        record("u", None),
        record("v", ANEMIC),
        record("w", ANEMIC),
    ]
    digests = ["1", "1", "1", "2", "2", "3", "3", "4"]
    assert exclusions(records, digests) == {
        "b": "duplicate of a",
        "c": "duplicate of a",
        "x": "stands in both classes",
        "y": "stands in both classes",
        "v": "duplicate of u",
    }


# dealing


def test_single_images_are_dealt_by_the_fractions_in_each_class():
    rows = make_split(*singles(200))
    assert Counter((row.split, row.label) for row in rows) == {
        ("train", 0): 70, ("train", 1): 70, ("val", 0): 15, ("val", 1): 15, ("test", 0): 15, ("test", 1): 15,
    }  # fmt: skip


def test_seed_decides_and_repeats():
    records, digests = singles(60)
    first, again, other = (make_split(records, digests, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other
    backwards = make_split(records[::-1], digests[::-1], seed=1)
    assert backwards[::-1] == first


def test_groups_stay_whole_and_duplicates_out():
    records = [
        record(f"{parent}_{tile}", parent % 2, parent=f"p{parent}") for parent in range(20) for tile in range(12)
    ]
    records.append(record("copy", 0, parent="elsewhere"))
    digests = [str(index) for index in range(240)] + ["0"]
    rows = make_split(records, digests, seed=3)
    assert all(len(sides) == 1 for sides in sides_by(rows, lambda row: row.group).values())
    assert (rows[-1].split, rows[-1].reason) == (EXCLUDED, "duplicate of 0_0")
    assert Counter(row.split for row in rows)[EXCLUDED] == 1
    kept = make_split(records, digests, seed=3, drop_duplicates=False)
    assert EXCLUDED not in {row.split for row in kept} and kept[-1].split == kept[0].split
    assert kept[-1].group == kept[0].group


def test_one_huge_group_does_not_starve_a_side():
    records = [record(f"big{tile}", HEALTHY, parent="big") for tile in range(100)]
    records += [record(f"small{index}", index % 2) for index in range(8)]
    rows = make_split(records, [str(index) for index in range(108)])
    assert sides_by(rows, lambda row: f"{row.label}") == {"0": set(SIDES), "1": set(SIDES)}
    assert rows[0].split == "train"


def test_three_groups_of_a_class_are_enough_and_two_are_not():
    records = [record(f"h{index}", HEALTHY) for index in range(30)] + [
        record(f"a{index}", ANEMIC) for index in range(3)
    ]
    digests = [str(index) for index in range(33)]
    rows = make_split(records, digests)
    assert sorted(row.split for row in rows[30:]) == sorted(SIDES)
    with pytest.raises(UserError, match="too few groups of Anemic") as caught:
        make_split(records[:-1], digests[:-1])
    assert caught.value.found.startswith("2 ")
    assert {row.split for row in make_split(records[:-1], digests[:-1], fractions=(0.8, 0, 0.2))} == {"train", "test"}


def test_unknown_labels_and_one_class_are_split_too():
    assert len({row.split for row in make_split(*singles(20, labels=(None,)))}) == 3
    assert {row.split for row in make_split(*singles(1, labels=(None,)))} <= set(SIDES)
    assert len({row.split for row in make_split(*singles(20, labels=(HEALTHY,)))}) == 3


@settings(max_examples=150, deadline=None)
@drawn(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(any), min_size=3, max_size=12),
    st.integers(0, 5),
)
def test_any_three_groups_a_class_give_every_side_every_class(shapes, seed):
    """With three groups of each class that is there, mixed ones included, a fitting deal exists and must be found."""
    for label in (0, 1):
        if 0 < sum(shape[label] > 0 for shape in shapes) < 3:
            return
    records = [
        record(f"{group}.{label}.{index}", label, parent=f"group {group}")
        for group, shape in enumerate(shapes)
        for label in (0, 1)
        for index in range(shape[label])
    ]
    rows = make_split(records, [str(index) for index in range(len(records))], seed=seed)
    assert all(sides == set(SIDES) for sides in sides_by(rows, lambda row: str(row.label)).values())
    assert all(len(sides) == 1 for sides in sides_by(rows, lambda row: row.group).values())


@pytest.mark.parametrize(
    "fractions",
    [
        (0.7, 0.3),
        (0.7, 0.2, 0.2),
        (1.2, -0.1, -0.1),
        (0, 0.5, 0.5),
        (1 - 0.7 - 0.3, 0.7, 0.3),
        (float("nan"), 0.5, 0.5),
    ],
)
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(UserError, match="fractions"):
        make_split(*singles(30), fractions=fractions)


def test_equal_names_are_refused():
    with pytest.raises(UserError, match="listed twice"):
        make_split([record("a"), record("a"), record("b")], ["1", "2", "3"])


# folds, blocks, and the data's own split


def test_every_image_is_tested_in_exactly_one_fold():
    records = [record(f"{group}_{tile}", group % 2, parent=f"p{group}") for group in range(40) for tile in range(3)]
    digests = [str(index) for index in range(120)]
    digests[7] = digests[0]  # a duplicate that is left out
    folds = [make_split(records, digests, folds=4, fold=fold, seed=5) for fold in (1, 2, 3, 4)]
    tested = Counter(row.image for rows in folds for row in rows if row.split == "test")
    assert tested == {record.name: 1 for record in records if record.name != records[7].name}
    for rows in folds:
        assert all(len(sides) == 1 for sides in sides_by(rows, lambda row: row.group).values())
        counts = Counter((row.split, row.label) for row in rows)
        for label in (HEALTHY, ANEMIC):
            assert abs(counts["test", label] - 15) <= 3 and abs(counts["val", label] - 9) <= 3
    assert folds[0] == make_split(records, digests, folds=4, fold=1, seed=5)
    assert folds[0] != make_split(records, digests, folds=4, fold=1, seed=6)


@pytest.mark.parametrize(("folds", "fold"), [(1, 1), (5, 0), (5, 6), (0, 1), (-2, 1)])
def test_folds_that_are_none_are_refused(folds, fold):
    with pytest.raises(UserError, match="--folds 5 --fold 1"):
        make_split(*singles(30), folds=folds, fold=fold)


def test_a_val_share_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="--val_fraction below 0.50 with --folds 2"):
        make_split(*singles(30), folds=2, fold=1, fractions=(0.3, 0.5, 0.2))


def numbered(count: int) -> tuple[list[SmearRecord], list[str]]:
    records = [record(f"x7/{number:03d}_{'ha'[label]}.png", label, f"{number:03d}_{'ha'[label]}")
               for number in range(1, count + 1) for label in (HEALTHY, ANEMIC)]  # fmt: skip
    return records, [f"digest {index}" for index in range(2 * count)]


def test_blocks_are_dealt_whole_with_both_classes():
    records, digests = numbered(100)
    rows = make_split(records, digests, split_by="blocks", block_size=10)
    blocks = sides_by(rows, lambda row: str((int(row.parent[:3]) - 1) // 10))
    assert len(blocks) == 10 and all(len(sides) == 1 for sides in blocks.values())
    assert Counter(row.split for row in rows).keys() == set(SIDES)
    folds = [make_split(records, digests, split_by="blocks", block_size=10, folds=5, fold=f) for f in range(1, 6)]
    assert Counter(row.image for rows in folds for row in rows if row.split == "test") == {r.name: 1 for r in records}


def test_a_group_that_crosses_blocks_stays_on_the_side_that_judges():
    records, digests = numbered(100)
    plain = make_split(records, digests, split_by="blocks", block_size=10)
    first = {side: next(index for index, row in enumerate(plain) if row.split == side) for side in SIDES}
    near = [NearPair(first["train"], first["test"], 0.5)]
    rows = make_split(records, digests, split_by="blocks", block_size=10, near=near)
    changed = {new.image: new for old, new in zip(plain, rows, strict=True) if old.split != new.split}
    assert changed.keys() == {records[first["train"]].name}
    assert changed[records[first["train"]].name].reason == "group stands in another block"
    near = [NearPair(first["train"], first["val"], 0.5), NearPair(first["val"], first["test"], 0.5)]
    rows = make_split(records, digests, split_by="blocks", block_size=10, near=near)
    assert [rows[first[side]].split for side in SIDES] == [EXCLUDED, EXCLUDED, "test"]
    assert len({rows[first[side]].group for side in SIDES}) == 1
    check_groups(records, digests, rows, "split", near)


def test_an_image_without_a_number_has_no_block():
    records, digests = numbered(10)
    with pytest.raises(UserError, match="'plain12/smear.png' stands in no block") as caught:
        make_split([*records, record("plain12/smear.png")], [*digests, "other"], split_by="blocks")
    assert "--split_by group" in caught.value.remedy


def test_block_ids_keep_groups_whole():
    records = [record(name) for name in ("1", "2", "50", "51", "52")]
    assert block_ids(records, list("abcde"), 50) == ["1 to 50"] * 3 + ["51 to 100"] * 2
    assert block_ids(records, list("abddd"), 50) == ["1 to 50"] * 2 + ["51 to 100"] * 3


def given(name: str, side: str | None, label: int = HEALTHY, **more) -> SmearRecord:
    return dataclasses.replace(record(name, label), split=side, **more)


def test_the_data_s_own_split_is_taken_as_it_is():
    records = [given("a", "train"), given("b", "val"), given("c", "test"), given("d", "train"), given("e", "test")]
    rows = given_split(records, list("12314"))
    assert [row.split for row in rows] == ["train", "val", "test", EXCLUDED, "test"]
    assert [row.reason for row in rows] == [*["given by the data"] * 3, "duplicate of a", "given by the data"]
    kept = given_split(records, list("12314"), drop_duplicates=False)
    assert [row.split for row in kept] == [record.split for record in records]


def test_an_equal_image_on_two_sides_of_the_data_s_own_split_is_kept_as_a_leak():
    records = [given("a", "train"), given("b", "test"), given("c", "train"), given("d", "test", ANEMIC)]
    rows = given_split(records, list("1122"))
    assert [row.split for row in rows] == ["train", "test", EXCLUDED, EXCLUDED]
    assert [leak.words() for leak in find_leaks(records, list("1122"), rows)] == [
        "'a' in train, 'b' in test: equal images"
    ]


@pytest.mark.parametrize("side", [None, "training"])
def test_sides_for_some_images_only_are_refused(side):
    with pytest.raises(UserError, match="1 of 2 images without, first 'b'"):
        given_split([given("a", "train"), given("b", side)], ["1", "2"])


# near duplicates, patients, leaks


def test_patients_and_near_duplicates_join_and_chain():
    records = [given("a", None, patient="P"), given("b", None, patient="P"), given("c", None), given("d", None)]
    assert group_ids(records, list("1234")) == ["a", "a", "c", "d"]
    assert group_ids(records, list("1234"), [NearPair(1, 3, 0.4)]) == ["a", "a", "c", "a"]
    rows = [SplitRow("x", 0, "g", "9", "val", patient="P")]
    assert [placement.side for placement in place(records, list("1234"), rows)] == ["val", "val", "test", "test"]


def test_leaks_are_named_by_their_bond(tmp_path):
    cbc = report(tmp_path, "one", "HGB 9.1")
    records = [
        given("a", None), given("b", None), given("c", None, cbc=cbc), given("d", None, cbc=cbc),
        given("e", None, patient="P"), given("f", None, patient="P"), given("g", None), given("h", None),
        given("i", None),
    ]  # fmt: skip
    digests = list("123456789")
    rows = [
        SplitRow(r.name, 0, r.name, d, EXCLUDED if r.name == "h" else "train" if r.name in "aceg" else "test")
        for r, d in zip(records, digests, strict=True)
    ]
    near = [NearPair(0, 1, 0.456), NearPair(6, 7, 0.9), NearPair(7, 8, 0.9)]
    words = [leak.words() for leak in find_leaks(records, digests, rows, near)]
    assert words == [
        "'a' in train, 'b' in test: near-duplicate images (similarity 0.46)",
        "'c' in train, 'd' in test: images with one blood count",
        "'e' in train, 'f' in test: images of one patient",
        "'g' in train, 'i' in test: one group, linked by other images",
    ]
    with pytest.raises(UserError, match="similarity 0.46") as caught:
        check_groups(records, digests, rows, "split.csv", near)
    assert caught.value.found == "'a' in train, 'b' in test"
    owned = accept(rows, find_leaks(records, digests, rows, near))
    check_groups(records, digests, owned, "split.csv", near)
    write_split(tmp_path / "split.csv", owned)
    assert read_split(tmp_path / "split.csv") == owned
    assert [row.reason.startswith(ACCEPTED) for row in owned] == [True] * 7 + [False, True]
    assert "near-duplicate images (similarity 0.46), 'b' in test" in owned[0].reason


def test_fingerprints_of_a_run_come_back_and_belong_to_its_split(tmp_path, rng):
    path = tmp_path / "run" / "fingerprints.npz"
    prints = rng.integers(0, 256, (2, FINGERPRINT_BYTES), dtype=np.uint8)
    write_fingerprints(path, Learned(["a\udcff", "b\ud800,"], prints), "digest")
    names, found = read_fingerprints(path, "digest")
    assert names == ["a\udcff", "b\ud800,"] and (found == prints).all()
    assert read_fingerprints(path, "another split") is None
    assert read_fingerprints(tmp_path / "none.npz", "digest") is None
    write_fingerprints(path, Learned([], prints[:0]), "digest")
    assert read_fingerprints(path, "digest").names == []
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="fingerprints.npz: not the fingerprints of a run"):
        read_fingerprints(path, "digest")
    np.savez(path, **{"version": np.array([object()], dtype=object)})
    with pytest.raises(UserError, match="not the fingerprints of a run"):
        read_fingerprints(path, "digest")


def test_many_groups_are_found_within_seconds(tmp_path):
    count = 12_000
    paths = [report(tmp_path, str(index), f"HGB {index}.5") for index in range(300)]
    records = [record(f"{index:05d}.png", index % 2, cbc=paths[index % 300]) for index in range(count)]
    begun = time.perf_counter()
    rows = make_split(records, [str(index) for index in range(count)])
    assert time.perf_counter() - begun < 20
    assert len({row.group for row in rows}) == 300


# split file

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\udcff\udced\udca0\udc80\ud800"),
    min_size=1,
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@drawn(st.sets(NAMES, min_size=1, max_size=6))
def test_any_name_comes_back_as_it_was(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("split") / "split.csv"
    rows = [SplitRow(name, None, name, f"digest {name}", "train") for name in sorted(names)]
    write_split(path, rows)
    assert read_split(path) == rows


@pytest.mark.parametrize("name", ["\ud800", "a\udcff", "\ud800\udcff", "\udced\udca0\udc80", "\udbff\udc00"])
def test_halves_of_surrogate_pairs_come_back_as_they_were(tmp_path, name):
    rows = [SplitRow(name, HEALTHY, name, "1", "test"), SplitRow("ä", HEALTHY, "ä", "2", "test")]
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows


def test_hostile_names_come_back_as_they_were(tmp_path):
    names = ["=1+1", "+x", "-x", "@x", 'a,"b"', "a\r", "\r\nb", "\udcff.png", " ä血 ", "'"]
    rows = [SplitRow(name, HEALTHY, name, name, "test", name) for name in names]
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows


def test_write_is_atomic_and_makes_its_folder(tmp_path, monkeypatch):
    path = tmp_path / "new" / "split.csv"
    rows = make_split(*singles(30))
    write_split(path, rows)
    with path.open(newline="") as stream:
        assert next(csv.reader(stream)) == HEADER.strip().split(",")
    assert read_split(path) == rows
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("util.files.os.fsync", fail)
    with pytest.raises(UserError, match=r"cannot write[\s\S]*No space left"):
        write_split(path, rows[:5])
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["split.csv"]


def test_write_refuses_rows_that_leak(tmp_path):
    rows = [SplitRow("a", 0, "g", "1", "train"), SplitRow("b", 0, "g", "2", "test")]
    with pytest.raises(UserError, match="leaks"):
        write_split(tmp_path / "split.csv", rows)
    assert not (tmp_path / "split.csv").exists()


OLD_HEADER = "image,label,group,content,split,reason"
HEADER = f"{OLD_HEADER},parent,cbc,mask,patient\n"


def test_parent_report_and_mask_are_recorded(tmp_path):
    (tmp_path / "r").write_text("HGB 9.1")
    found = [
        dataclasses.replace(record("a", HEALTHY, "P", tmp_path / "r"), mask=tmp_path / "m"),
        *(record(name, HEALTHY) for name in "bcd"),
    ]
    rows = make_split(found, list("1234"))
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows
    assert [(row.parent, len(row.cbc), row.mask) for row in rows[:2]] == [("P", 64, True), ("b", 0, False)]
    with (tmp_path / "split.csv").open(newline="") as stream:
        assert [line[-2] for line in csv.reader(stream)] == ["mask", "1", "0", "0", "0"]


def test_a_digest_holds_every_field_and_the_order(tmp_path):
    rows = [
        SplitRow("a\udcff", 0, "g", "1", "train", "", "p", "c", True, "q"),
        SplitRow("b", None, "h", "2", EXCLUDED, "duplicate of a"),
    ]
    write_split(tmp_path / "split.csv", rows)
    digest = rows_digest(rows)
    assert rows_digest(read_split(tmp_path / "split.csv")) == digest
    others = {"image": "z", "label": 1, "group": "z", "content": "z", "split": "val", "reason": "z", "parent": "z"}
    for name, value in (others | {"cbc": "z", "mask": False, "patient": "z"}).items():
        assert rows_digest([dataclasses.replace(rows[0], **{name: value}), rows[1]]) != digest
    assert rows_digest(rows[::-1]) != digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["no split file"]),
        ("image,split\na,train\n", ["no split file", "image,split"]),
        (HEADER, ["empty"]),
        (f"{OLD_HEADER}\na,0,g,1,train,\n", ["older split file, without parent, cbc, mask, patient", "draw it again"]),
        (HEADER + "a,0,g,1,training,,,,0,\n", ["line 2", "training"]),
        (HEADER + "a,Healthy,g,1,train,,,,0,\n", ["line 2", "Healthy"]),
        (HEADER + "a,0,g,1,train,,,,yes,\n", ["line 2", "yes"]),
        (HEADER + "a,0,g,1,train,,,,0\n", ["line 2"]),
        (HEADER + ",0,g,1,train,,,,0,\n", ["line 2"]),
        (HEADER + 'a,0,g,1,"train,,,,0,\n', ["cannot be read"]),
        (HEADER + "a,0,g,1,train,,,,0,\na,0,h,2,train,,,,0,\n", ["listed twice", "'a'"]),
        (
            HEADER + "a,0,g,1,train,,,,0,\nb,0,g,2,train,,,,0,\nc,0,g,3,val,,,,0,\n",
            ["one group", "'a' in train", "'c' in val"],
        ),
        (HEADER + "a,0,g,1,train,,,,0,\nb,0,h,1,test,,,,0,\n", ["one content", "'a' in train", "'b' in test"]),
        (HEADER + "a,0,g,1,train,,p,,0,\nb,0,h,2,test,,p,,0,\n", ["one parent", "'a' in train", "'b' in test"]),
        (HEADER + "a,0,g,1,train,,,,0,P\nb,0,h,2,test,,,,0,P\n", ["one patient", "'a' in train", "'b' in test"]),
        (HEADER + "a,0,g,1,train,,,c,0,\nb,0,h,2,test,,,c,0,\n", ["one blood count", "'a' in train", "'b' in test"]),
    ],
)
def test_bad_split_file_is_refused(tmp_path, text, words):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_split(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_missing_split_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.csv"):
        read_split(tmp_path / "none.csv")


def test_excluded_rows_stand_on_no_side(tmp_path):
    rows = [SplitRow("a", 0, "g", "1", "train"), SplitRow("b", 0, "g", "1", EXCLUDED, "duplicate of a")]
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == rows


# recorded splits


def report(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_assign_follows_name_and_content_then_content_then_test():
    rows = [
        SplitRow("a", 0, "g1", "1", "train"),
        SplitRow("a copy", 0, "g1", "1", EXCLUDED, "duplicate of a"),
        SplitRow("b", 0, "g2", "2", "val"),
        SplitRow("x", 0, "g3", "3", EXCLUDED, "stands in both classes"),
    ]
    found = {
        ("a", "1"): "train",
        ("a copy", "1"): EXCLUDED,
        ("a renamed", "1"): EXCLUDED,  # a itself is judged
        ("b renamed", "2"): "val",
        ("b renamed too", "2"): EXCLUDED,
        ("new", "8"): "test",
        ("x", "3"): EXCLUDED,
        ("x renamed", "3"): EXCLUDED,
    }
    records = [record(name) for name, _ in found]
    assert assign(records, [digest for _, digest in found], rows) == list(found.values())
    assert assign(records[::-1], [digest for _, digest in found][::-1], rows) == list(found.values())[::-1]
    # A split that kept equal files lets as many of them be judged.
    kept = [SplitRow(name, 0, "g", "1", "val") for name in "ab"]
    assert assign([record(name) for name in ("a", "y", "z")], ["1"] * 3, kept) == ["val", "val", EXCLUDED]


def test_new_images_of_a_recorded_group_stand_with_it(tmp_path):
    trained = report(tmp_path, "trained", "HGB 9.1")
    held_out = report(tmp_path, "held out", "HGB 12.5")
    old = [record("001_a", ANEMIC, "001_a", trained), record("002_a", ANEMIC, "002_a", held_out), record("plain")]
    rows = [
        dataclasses.replace(row, split=split)
        for row, split in zip(make_split(old, list("123"), fractions=(1, 0, 0)), ("train", "val", "test"), strict=True)
    ]
    cases = {
        ("0001_05_a", "tile", "001_a", None): ("train", "001_a"),
        ("0002_05_a", "tile 2", "002_a", held_out): ("val", "002_a"),
        ("001_a", "a pixel changed", "001_a", trained): ("train", "001_a"),
        ("rotated", "r", "", trained): ("train", "001_a"),
        ("plain", "a pixel changed", "", None): ("test", "plain"),
        ("bridge", "2", "", trained): ("train", "001_a"),  # pixels of val, blood count of train
    }
    for (name, digest, parent, cbc), expected in cases.items():
        assert place([record(name, None, parent, cbc)], [digest], rows) == [Placement(*expected)]
    chain = [record("tile", None, "sheet"), record("sheet", None, "sheet", trained), record("alone")]
    assert assign(chain, ["7", "8", "9"], rows) == ["train", "train", "test"]


def test_equal_names_with_other_blood_counts_are_other_smears(tmp_path):
    cbc, other = report(tmp_path, "one", "HGB 9.1"), report(tmp_path, "other", "HGB 12.5")
    rows = make_split([record("001_a", ANEMIC, "001_a", cbc)], ["1"], fractions=(1, 0, 0))
    assert place([record("001_a", ANEMIC, "001_a", other)], ["2"], rows) == [Placement("test", "001_a (new)")]


def test_a_set_of_which_all_was_left_out_was_not_learned_from():
    rows = [
        SplitRow("a", 0, "g", "1", EXCLUDED, "stands in both classes", "p"),
        SplitRow("b", 0, "h", "2", "train", "", "q"),
    ]
    assert place([record("tile", 0, "p")], ["9"], rows) == [Placement("test", "g")]
    same_group = [rows[0], dataclasses.replace(rows[1], group="g")]
    assert place([record("tile", 0, "p")], ["9"], same_group) == [Placement("train", "g")]


def test_new_images_that_equal_each_other_are_judged_once_and_not_where_they_stand_in_both_classes():
    records, digests = singles(12)
    rows = make_split(records, digests, seed=0)
    new = [record("n1.png", HEALTHY), record("n2.png", HEALTHY), record("n3.png", HEALTHY), record("n4.png", ANEMIC)]
    assert assign([*records, *new], [*digests, "twin", "twin", "both", "both"], rows)[-4:] == [
        "test", EXCLUDED, EXCLUDED, EXCLUDED,
    ]  # fmt: skip


@pytest.mark.parametrize("given", [True, False])
def test_what_the_data_excludes_is_on_no_side(given):
    records, digests = singles(12)
    sides = {"train": range(4), "val": range(4, 8), "test": range(8, 12)}
    side_of = {index: side for side, indices in sides.items() for index in indices}
    records = [
        dataclasses.replace(r, split="excluded" if i == 5 else side_of[i] if given else None)
        for i, r in enumerate(records)
    ]
    digests[6] = digests[5]  # an equal image that is excluded is no reason to leave this one out
    rows = given_split(records, digests) if given else make_split(records, digests)
    assert [row.image for row in rows if row.split == EXCLUDED] == [records[5].name]
    assert rows[5].reason == "excluded by the data"
    if given:
        assert [row.split for index, row in enumerate(rows) if index != 5] == [side_of[i] for i in range(12) if i != 5]


def test_groups_are_computed_anew(tmp_path):
    cbc = report(tmp_path, "one", "HGB 9.1")
    records = [record("a", 0, "p"), record("b", 0, "p"), record("c", 0, "", cbc), record("d", 0, "", cbc)]
    digests = list("1234")
    honest = [SplitRow(r.name, 0, r.name, d, "train") for r, d in zip(records, digests, strict=True)]
    check_groups(records, digests, honest, "split.csv")
    for index, names in ((1, "'a' in train, 'b' in test"), (3, "'c' in train, 'd' in test")):
        parted = [dataclasses.replace(row, split="test") if i == index else row for i, row in enumerate(honest)]
        with pytest.raises(UserError, match="split.csv: the split leaks") as caught:
            check_groups(records, digests, parted, "split.csv")
        assert caught.value.found == names
        left_out = [dataclasses.replace(row, split=EXCLUDED) if i == index else row for i, row in enumerate(honest)]
        check_groups(records, digests, left_out, "split.csv")
        other = [digest + "x" if i == index else digest for i, digest in enumerate(digests)]
        check_groups(records, other, parted, "split.csv")  # not a recorded image any more


# real data


def test_real_smears_have_the_known_duplicates_and_split_evenly(shared_data):
    records = read_dataroot(shared_data / "anerbc_326x256")
    digests, _ = describe_contents(records, progress=False)
    sizes = Counter(digests)
    both = {
        digest for digest in sizes if len({r.label for r, d in zip(records, digests, strict=True) if d == digest}) == 2
    }
    reasons = exclusions(records, digests)
    kept = Counter(record.label for record in records if record.name not in reasons)
    assert (len(records), len(sizes)) == (810, 611)
    assert (sum(size > 1 for size in sizes.values()), sum(size for size in sizes.values() if size > 1)) == (139, 338)
    assert (len(both), sum(sizes[digest] for digest in both)) == (22, 71)
    assert list(reasons.values()).count("stands in both classes") == 71
    assert kept == {HEALTHY: 348, ANEMIC: 241}
    rows = make_split(records, digests)
    counts = Counter((row.split, row.label) for row in rows)
    for side, share in zip(SIDES, (0.7, 0.15, 0.15), strict=True):
        assert abs(counts[side, HEALTHY] - share * 348) <= 3 and abs(counts[side, ANEMIC] - share * 241) <= 3
    reports = {r.name: " ".join(r.cbc.read_text().split()) for r in records}
    for key in (lambda row: row.group, lambda row: row.content, lambda row: reports[row.image]):
        assert all(len(sides) == 1 for sides in sides_by(rows, key).values())
    assert assign(records, digests, rows) == [row.split for row in rows]
    check_groups(records, digests, rows, "the split")
    renamed = [dataclasses.replace(record, name=f"other/{record.name}") for record in records]
    assert assign(renamed, digests, rows) == [row.split for row in rows]
    changed = [f"{digest} with a pixel changed" for digest in digests]
    side_of = {row.group: row.split for row in rows if row.split != EXCLUDED}
    left_out = exclusions(records, changed)
    assert assign(records, changed, rows) == [
        EXCLUDED if row.image in left_out else side_of.get(row.group, "test") for row in rows
    ]
    tiled = read_dataroot(shared_data / "anerbc_1224x960")
    side_of_parent = {row.parent: side_of.get(row.group, "test") for row in rows}
    placed = assign(tiled, [f"of {record.name}" for record in tiled], rows)
    known = [
        (side, record.parent) for side, record in zip(placed, tiled, strict=True) if record.parent in side_of_parent
    ]
    assert known and all(side == side_of_parent[parent] for side, parent in known)
