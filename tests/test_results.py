"""The files of a results folder: what is written must read back, and no name may lead out of the folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from util.errors import UserError
from util.files import atomic_write
from util.results import PREDICTION_COLUMNS, output_stems, save_mask, write_json, write_predictions

HOSTILE = [
    "<script>alert(1)</script>.png", '=SUM(A1)";.png', "a,b\nc\r.png", "100%.png", "تجربة/שלום.png", "日本.png",
    "\u202egnp.x", "@cmd", " space ", "\udcff\udcfe.png", "-1+1", "'quoted'", "a\rb.png", "a\r\nb.png",
    "a\nb.png",
]  # fmt: skip


def read(path):
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as handle:
        return list(csv.DictReader(handle))


def test_predictions_read_back_exactly(tmp_path):
    rows = [{"image": name, "prob_anemic": 0.25, "group": name, "label_pred": 0} for name in HOSTILE]
    write_predictions(tmp_path / "predictions.csv", rows)
    found = read(tmp_path / "predictions.csv")
    assert [row["image"] for row in found] == HOSTILE
    assert [row["group"] for row in found] == HOSTILE
    assert tuple(found[0]) == PREDICTION_COLUMNS


def test_without_labels_there_are_no_columns_for_them(tmp_path):
    write_predictions(tmp_path / "p.csv", [{"image": "x.png", "prob_anemic": 0.5, "n": 2}], more=["n"], labelled=False)
    kept = [name for name in PREDICTION_COLUMNS if name not in ("label_true", "severity_true", "group", "split")]
    assert list(read(tmp_path / "p.csv")[0]) == [*kept, "n"]
    with pytest.raises(ValueError, match="unknown columns .'group'."):
        write_predictions(tmp_path / "p.csv", [{"image": "x.png", "group": "g"}], labelled=False)


def test_prediction_cells(tmp_path):
    row = {
        "image": "x.png", "prob_anemic": 0.123456789, "prob_anemic_tier1": np.float32(1), "label_pred": np.int64(1),
        "label_true": "Healthy", "severity_score": 0.5, "cell_count": 12, "severity_true": None, "split": "test",
    }  # fmt: skip
    write_predictions(tmp_path / "p.csv", [row])
    found = read(tmp_path / "p.csv")[0]
    assert (found["prob_anemic"], found["prob_anemic_tier1"]) == ("0.123456789", "1.0")
    assert (found["label_pred"], found["label_true"]) == ("Anemic", "Healthy")
    assert (found["severity_true"], found["prob_anemic_tier2"], found["cell_count"]) == ("", "", "12")


def test_the_probabilities_of_a_sure_network_keep_their_order(tmp_path):
    given = [1 - 2**-53, 1 - 2**-40, np.exp(-38.0), np.exp(-42.0), 0.1 + 0.2]
    write_predictions(tmp_path / "p.csv", [{"image": str(i), "prob_anemic": p} for i, p in enumerate(given)])
    assert [float(row["prob_anemic"]) for row in read(tmp_path / "p.csv")] == given


@pytest.mark.parametrize("probability", [0.5, 0.50000001, 0.4999999, np.nextafter(0.5, 1)])
def test_rounding_never_crosses_the_threshold(tmp_path, probability):
    write_predictions(tmp_path / "p.csv", [{"image": "x", "prob_anemic": probability}])
    assert (float(read(tmp_path / "p.csv")[0]["prob_anemic"]) > 0.5) == (probability > 0.5)


@pytest.mark.parametrize(
    "row",
    [
        {"image": "x", "prob": 1},
        {"prob_anemic": 0.5},
        {"image": "x", "prob_anemic": float("nan")},
        {"image": "x", "label_true": 2},
    ],
)
def test_wrong_rows_are_refused_and_leave_no_file(tmp_path, row):
    with pytest.raises(ValueError):
        write_predictions(tmp_path / "p.csv", [row])
    assert list(tmp_path.iterdir()) == []


def test_json_reads_back_and_refuses_what_it_cannot_hold(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"a": np.float32(0.5), "b": np.array([[1, 2]]), "c": (None, True), "d": Path("x/y"), "é\udcff": 3})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"a": 0.5, "b": [[1, 2]], "c": [None, True], "d": "x/y", "é\udcff": 3}
    before = path.read_bytes()
    for wrong in (float("nan"), float("inf"), np.float64("nan"), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match=r"splits\.test"):
            write_json(path, {"splits": {"test": wrong}})
    with pytest.raises(TypeError, match=r"a\[1\] is a set"):
        write_json(path, {"a": [1, {2}]})
    assert path.read_bytes() == before


def test_stems_keep_the_folder_only_where_needed():
    names = ["a/1.png", "b/1.png", "b/2.png", "c/d/3.jpg", "4.png"]
    assert output_stems(names) == {"a/1.png": "a/1", "b/1.png": "b/1", "b/2.png": "2", "c/d/3.jpg": "3", "4.png": "4"}


def test_stems_that_share_folder_extension_or_case():
    names = ["x/1.png", "x/1.jpg", "A.png", "a.png", "é.png", "e\u0301.png", "m.png", "k/m.png"]
    stems = output_stems(names)
    assert (stems["x/1.png"], stems["x/1.jpg"]) == ("x/1.png", "x/1.jpg")
    assert (stems["m.png"], stems["k/m.png"]) == ("m", "k/m")
    assert len({stem.casefold() for stem in stems.values()}) == len(names)
    assert stems == output_stems(names[::-1])  # the order of images does not matter


@pytest.mark.parametrize("letter", ["a", "é", "日", "🔬", "\udcff"])
def test_long_names_leave_room_for_every_ending(tmp_path, letter):
    """Names as long as a file system allows (255 bytes), and two that differ only after the cut."""
    size = len(letter.encode("utf-8", "surrogateescape"))
    long = letter * (250 // size)
    names = [f"{long}.png", f"{long[:-1]}x.png", f"{long}/1.png", f"{long}/{long}.png", f"{long}/{long}.jpg", "1.png"]
    names += [f"{long}/2.png", "2.png", f"A{long[1:]}.png", f"b{long[1:]}.png"]
    stems = output_stems(names)
    assert len(set(stems.values())) == len(names)
    for stem in stems.values():
        assert all(len(os.fsencode(part)) <= 200 + 1 + 8 for part in PurePosixPath(stem).parts)
        atomic_write(tmp_path / f"images/{stem}_predicted.jpg", b"", make_parents=True)
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == len(names)
    assert stems == output_stems(names[::-1])
    assert PurePosixPath(stems[names[2]]).parent == PurePosixPath(stems[f"{long}/2.png"]).parent != PurePosixPath()
    mark = hashlib.sha256(names[0].encode("utf-8", "surrogateescape")).hexdigest()[:8]
    assert stems[names[0]] == f"{letter * (200 // size)}-{mark}"
    fits = letter * (200 // size)
    assert output_stems([f"{fits}.png"]) == {f"{fits}.png": fits}


def test_no_file_stands_where_another_needs_a_folder():
    stems = output_stems(["1.png/x.png", "2/x.png", "1.jpg"])
    files = {f"{stem}.png".casefold() for stem in stems.values()}
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    assert not files & folders


@given(st.lists(st.text(alphabet="aAbß./é\u0301 -\\", min_size=1, max_size=9), unique=True, max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_names_stay_inside_and_apart(names):
    try:
        stems = output_stems(names)
    except UserError:
        assert any(
            ".." in n or n.startswith(("/", "\\")) or not PurePosixPath(n).name or n.strip("./") != n for n in names
        )
        return
    files = [os.path.normpath(f"masks/{stem}.png") for stem in stems.values()]
    assert all(file.startswith("masks/") for file in files)
    assert len({file.casefold() for file in files}) == len(names)


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "a\0.png", "", "..", "C:\\x.png", "a\\..\\x.png"]
)
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(UserError, match="cannot become a file"):
        output_stems(["fine.png", name])


def test_masks_are_0_and_255(tmp_path, rng):
    mask = rng.random((7, 5)) > 0.5
    save_mask(tmp_path / "deep" / "m.png", mask)
    with Image.open(tmp_path / "deep" / "m.png") as image:
        assert (image.mode, image.size) == ("L", (5, 7))
        assert np.array_equal(np.array(image), np.where(mask, 255, 0))
    with pytest.raises(ValueError, match="bool"):
        save_mask(tmp_path / "m.png", mask.astype(np.uint8))


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    atomic_write(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="page.html") as caught:
        atomic_write(path, "new")
    assert "space" in caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_permissions_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "x", "secret")
        write_json(tmp_path / "deep" / "x.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode
    assert (tmp_path / "deep" / "x.json").stat().st_mode & 0o777 == mode


def test_a_missing_folder_is_made_only_where_asked(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        atomic_write(tmp_path / "a" / "b.txt", "x")
    atomic_write(tmp_path / "a" / "b.txt", "\udcff", make_parents=True)
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\xff"


def test_a_file_where_a_folder_must_be_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write") as caught:
        write_json(tmp_path / "file" / "a.json", {})
    assert "a file stands where a folder is needed" in caught.value.remedy
