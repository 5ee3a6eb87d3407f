"""The manifest: what its columns say, writing it and reading it back, and every way in which it can be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.manifest import list_manifest, read_manifest, write_manifest
from data.problems import Problems
from data.records import ANEMIC, HEALTHY, SmearRecord
from util.errors import UserError

ODD_NAMES = [
    "with space.png",
    " leading and trailing .png",
    'it\'s "quoted", really; yes.png',
    "line\nbreak.png",
    "carriage\rreturn.png",
    "=cmd|' /C calc'!A0.png",
    "+1.png",
    "-1.png",
    "@SUM(A1).png",
    "血液 ä.png",
    "\u05d3\u05dd\u202e.png",
    "100%25#?&.png",
    "<script>alert(1)</script>.png",
    "\ufeffmark.png",
    "#.png",
]


def put(path: Path, level: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(path, "PNG")
    return path


def table(folder: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, **root) -> UserError:
    with pytest.raises(UserError) as caught:
        read_manifest(path, **root)
    error = caught.value
    assert error.expected and error.found and error.remedy
    return error


def test_every_column(tmp_path):
    for name in ("a/one.png", "a/one mask.png", "two.png", "joined.png", "four.png"):
        put(tmp_path / name)
    table(tmp_path, "HGB,9.8 g/dL", "one.txt")
    path = table(
        tmp_path,
        "image,mask,label,severity,group,split,mask_dark,side_by_side,parent,cbc,haemoglobin\n"
        "a/one.png,a/one mask.png,Anemic,Severe,P1,train,1,,slide 1,one.txt,\n"
        "two.png,,healthy,,P2,VAL,,,,,13.5\n"
        'joined.png,,1,mild,P1,training,,yes,,,"9,8"\n'
        "four.png,,,,,excluded,0,no,,,\n",
    )
    one, two, joined, four = read_manifest(path)
    assert one == SmearRecord(
        "a/one.png",
        tmp_path / "a/one.png",
        tmp_path / "a/one mask.png",
        mask_dark=True,
        label=ANEMIC,
        severity="Chronic",
        parent="slide 1",
        cbc=tmp_path / "one.txt",
        patient="P1",
        split="train",
        severity_source="manifest",
    )
    assert two == SmearRecord(
        "two.png", tmp_path / "two.png", label=HEALTHY, parent="two.png", patient="P2", split="val", haemoglobin=13.5
    )
    assert joined.mask == joined.image and joined.side_by_side and not joined.mask_dark
    assert (joined.severity, joined.haemoglobin, joined.split) == ("Mild", 9.8, "train")
    assert (four.label, four.split, four.patient, four.mask) == (None, "excluded", "", None)


def test_only_the_image_column_is_needed_and_known_names_give_the_parent(tmp_path):
    put(tmp_path / "0003_07_a.png")
    (record,) = read_manifest(table(tmp_path, "image\n0003_07_a.png\n"))
    assert record.parent == "003_a" and record.label is None


def test_paths_are_relative_to_the_image_root(tmp_path, monkeypatch):
    put(tmp_path / "images/a.png")
    (tmp_path / "tables").mkdir()
    path = table(tmp_path / "tables", "image\n./a.png\n")
    assert "no such file" in refusal(path).what
    monkeypatch.chdir(tmp_path)
    (record,) = read_manifest(Path("tables/manifest.csv"), image_root=Path("images"))
    assert record.name == "a.png" and record.image == tmp_path / "images/a.png"
    assert "no such folder" in refusal(path, image_root=tmp_path / "none").what


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,label\r\na.png,1\r\n\r\n,\r\n",
        "Image ; LABEL\na.png;1\n",
        "image\tlabel\na.png\t1\n",
        'label,"image"\n1,"a.png"',
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    put(tmp_path / "a.png")
    (record,) = read_manifest(table(tmp_path, text))
    assert record.name == "a.png" and record.label == ANEMIC


def test_decimal_comma_in_a_semicolon_table(tmp_path):
    put(tmp_path / "a.png")
    assert read_manifest(table(tmp_path, "image;haemoglobin\na.png;9,8\n"))[0].haemoglobin == 9.8


def test_name_in_another_unicode_form_is_found(tmp_path):
    put(tmp_path / "\u00e4.png")
    assert read_manifest(table(tmp_path, "image\na\u0308.png\n"))[0].name == "\u00e4.png"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "wrong columns"),
        ("\n\n", "wrong columns"),
        ("file,label\na.png,1\n", "wrong columns"),
        ("image,label,lable\na.png,1,1\n", "wrong columns"),
        ("image,label,image\na.png,1,a.png\n", "wrong columns"),
        ("=image\na.png\n", "wrong columns"),
        ("image,label\n", "empty"),
        ("image,label\na.png\n", "damaged row, line 2"),
        ("image,label\na.png,1,1\n", "damaged row, line 2"),
        ('image,label\na.png,1\n"b.png,1\n', "cannot be read, line 3"),
        (b"image,label\n\xe4.png,1\n", "not a UTF-8 text"),
        ("image,label\na.png,1\n".encode("utf-16"), "not a UTF-8 text"),
        ("image,label\n" + "x" * 200_000 + ",1\n", "cannot be read, line 2"),
        ("image,label\n" + "x" * 5_000 + ".png,1\n", "line 2: no such file"),
        ("image,label\nnone.png,1\n", "line 2: no such file"),
        ("image,label\nsub\\a.png,1\n", "line 2: no such file"),
        ("image,label\nsub,1\n", "line 2: no such file"),
        ("image,label\n,1\n", "line 2: no file"),
        ("image,label\n.,1\n", "line 2: no file"),
        ("image,label\na.png,sick\n", "line 2: unknown label"),
        ("image,label\na.png,=1+1\n", "line 2: unknown label"),
        ("image,label,severity\na.png,1,moderate\n", "line 2: unknown severity"),
        ("image,label,severity\na.png,0,Mild\n", "line 2: a severity without anemia"),
        ("image,severity\na.png,Mild\n", "line 2: a severity without anemia"),
        ("image,split\na.png,holdout\n", "line 2: unknown split"),
        ("image,mask_dark\na.png,maybe\n", "line 2: unknown mask_dark"),
        ("image,label\na.png,1\na.png,1\n", "line 3: the image has a row already"),
        ("image,label\na.png,1\n./sub/../a.png,1\n", "line 3: a path that may lead outside"),
        ("image,label\na.png,1\n.//a.png,1\n", "line 3: the image has a row already"),
        ("image,label\na.png,1\na.bmp,1\n", "line 3: the image has a row already"),
        ("image,cbc\na.png,none.txt\n", "line 2: no such file in column cbc"),
        ("image\nnotes.txt\n", "line 2: not an image"),
        ("image,mask\na.png,notes.txt\n", "line 2: not an image in column mask"),
        ("image,mask\na.png,a.png\n", "contradict"),
        ("image,mask,side_by_side\na.png,b.png,1\n", "contradict"),
        ("image,group\na.png,P1\nb.png,P1 \n", "line 3: one group in two spellings"),
        ("image,group\na.png,J\u00e4\nb.png,Ja\u0308\n", "line 3: one group in two spellings"),
        ("image,group\na.png,\nb.png, \n", "line 3: one group in two spellings"),
        ("image,haemoglobin\na.png,98\n", "line 2: no haemoglobin"),
        ("image,haemoglobin\na.png,nan\n", "line 2: no haemoglobin"),
        ("image,haemoglobin\na.png,1_0\n", "line 2: no haemoglobin"),
        ('image,haemoglobin\na.png,"1,234"\n', "line 2: no haemoglobin"),
        ("image,haemoglobin\na.png,9.8 g/dL\n", "line 2: no haemoglobin"),
        ("image,split\na.png,train\nb.png,\n", "line 3: a row without a split"),
        ("image,group,split\na.png,P1,train\nb.png,P1,test\n", "line 3: the split leaks"),
        ('image,label\n"line\nbreak.png",1\nb.png,x\n', "line 4: unknown label"),
    ],
)
def test_bad_manifest_is_refused_with_its_line(tmp_path, text, word):
    for name in ("a.png", "b.png", "sub/c.png", "line\nbreak.png"):
        put(tmp_path / name)
    put(tmp_path / "a.png").rename(tmp_path / "a.bmp")
    put(tmp_path / "a.png")
    table(tmp_path, "x", "notes.txt")
    error = refusal(table(tmp_path, text))
    assert word in error.what and str(tmp_path) in error.what and len(str(error)) < 2000


def test_remedies_name_the_mistake(tmp_path):
    put(tmp_path / "a.png")
    assert "g/L (9.8 g/dL)" in refusal(table(tmp_path, "image,haemoglobin\na.png,98\n")).found
    assert "forward slashes" in refusal(table(tmp_path, "image\nsub\\a.png\n")).remedy
    assert "'lable'" in refusal(table(tmp_path, "image,lable\na.png,1\n")).found
    assert "CSV UTF-8" in refusal(table(tmp_path, b"image\n\xff.png\n")).remedy


@pytest.mark.parametrize("column", ["image", "mask", "cbc"])
@pytest.mark.parametrize(
    "cell",
    [
        "../secret.png",
        "sub/../../secret.png",
        "/etc/hostname",
        "C:\\secret.png",
        "c:secret.png",
        "\\\\server\\share\\secret.png",
        "..\\secret.png",
        "a\0.png",
        "../secret.png\0.png",
    ],
)
def test_path_that_leads_outside_is_refused_though_the_file_exists(tmp_path, column, cell):
    put(tmp_path / "secret.png")
    put(tmp_path / "root/sub/x.png")
    put(tmp_path / "root/a.png")
    row = {"image": "a.png", "mask": "", "cbc": "", column: f'"{cell}"'}
    error = refusal(table(tmp_path / "root", f"image,mask,cbc\n{','.join(row.values())}\n"))
    assert "lead outside" in error.what and f"column {column}" in error.what


def test_links_that_lead_outside_or_nowhere_are_refused_and_inner_ones_followed(tmp_path):
    put(tmp_path / "outside/a.png")
    root = tmp_path / "root"
    put(root / "a.png")
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "link.png").symlink_to(tmp_path / "outside/a.png")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "circle.png").symlink_to(root / "circle.png")
    assert len(read_manifest(table(root, "image\na.png\ninner.png\n"))) == 2
    for name in ("link.png", "folder/a.png"):
        assert "outside the data root" in refusal(table(root, f"image\n{name}\n")).what
    assert "no such file" in refusal(table(root, "image\ncircle.png\n")).what


def test_tolerant_reading_gives_every_good_row_and_every_problem(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        put(tmp_path / name)
    rows = ["a.png,1,P,train", "none.png,1,,test", "b.png,sick,,val", "c.png", "a.png,0,,val", "c.png,0,P,test"]
    text = "\n".join(["image,label,group,split", *rows])
    path, problems = table(tmp_path, text), Problems(tolerant=True)
    assert [record.name for record in list_manifest(path, problems)] == ["a.png", "c.png"]
    whats = [error.what.removeprefix(f"{path}") for error in problems.found]
    assert whats == [
        ", line 3: no such file in column image",
        ", line 4: unknown label",
        ": damaged row, line 5",
        ", line 6: the image has a row already",
        ", line 7: the split leaks: group 'P' stands on two sides",
    ]


def test_round_trip_of_odd_names(tmp_path):
    records = []
    for number, name in enumerate(ODD_NAMES):
        image, mask = put(tmp_path / "i" / name), put(tmp_path / "m" / name)
        records.append(
            SmearRecord(
                f"i/{name}",
                image,
                mask,
                mask_dark=number % 2 == 0,
                label=(HEALTHY, ANEMIC, None)[number % 3],
                severity="Mild" if number % 3 == 1 else None,
                parent=f" {name}",
                cbc=mask if number % 4 == 0 else None,
                patient=name.removesuffix(".png"),
                split=("train", "val", "test", "excluded")[number % 4],
                haemoglobin=(None, 9.8, 1 / 3 + 7)[number % 3],
                severity_source="manifest" if number % 3 == 1 else "",
            )
        )
    joined = put(tmp_path / "joined.png")
    records.append(SmearRecord("joined.png", joined, joined, parent="joined.png", side_by_side=True, split="train"))
    path = tmp_path / "manifest.csv"
    write_manifest(path, records, image_root=tmp_path)
    assert read_manifest(path) == records
    assert path.read_bytes().startswith(b'"image","mask","label","severity","group","split","mask_dark"')
    assert b"\"i/=cmd|' /C calc'!A0.png\"" in path.read_bytes()


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(group=TEXT, parent=TEXT, haemoglobin=st.none() | st.floats(1, 30), dark=st.booleans())
def test_round_trip_of_any_text(tmp_path, group, parent, haemoglobin, dark):
    image, path = put(tmp_path / "a.png"), tmp_path / "manifest.csv"
    record = SmearRecord(
        "a.png",
        image,
        mask_dark=dark,
        parent=parent or "a.png",
        patient=group,
        haemoglobin=haemoglobin,
    )
    write_manifest(path, [record], image_root=tmp_path)
    assert read_manifest(path) == [record]


def test_unused_optional_columns_are_not_written(tmp_path):
    path = tmp_path / "out.csv"
    write_manifest(path, [SmearRecord("a.png", put(tmp_path / "a.png"), parent="a.png")], image_root=tmp_path)
    assert path.read_text() == '"image","mask","label","severity","group","split"\n"a.png","","","","",""\n'


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    path = table(tmp_path, "precious", "out.csv")
    image = put(tmp_path / "root/a.png")
    good = SmearRecord("a.png", image, label=ANEMIC, parent="a.png", split="train", patient="P")
    other = replace(good, name="b.png", image=put(tmp_path / "root/b.png"), parent="b.png")
    bad = {
        "cannot be listed": [replace(good, mask=put(tmp_path / "outside.png"))],
        "lead outside": [replace(good, image=tmp_path / "root/c:a.png")],
        "a row already": [good, good],
        "two spellings": [good, replace(other, patient=" P")],
        "without anemia": [replace(good, label=HEALTHY, severity="Mild")],
        "without a split": [good, replace(other, split=None)],
        "split leaks": [good, replace(other, split="test")],
        "no text": [replace(good, image=tmp_path / "root/\udcff.png")],
        "empty": [],
    }
    for word, records in bad.items():
        with pytest.raises(UserError, match=word):
            write_manifest(path, records, image_root=tmp_path / "root")
    assert path.read_text() == "precious"
    write_manifest(path, [good, other], image_root=tmp_path / "root")
    assert read_manifest(path, image_root=tmp_path / "root") == [good, other]
