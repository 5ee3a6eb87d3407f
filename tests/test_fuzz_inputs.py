"""Whatever a file or a command line holds, a user gets an error that can be mended, and never another exception.

``DCFNET_FUZZ_EXAMPLES=5000 pytest tests/test_fuzz_inputs.py`` tries more than the few of an ordinary run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.groups import blood_count
from data.images import decode_rgb, page_count, read_mask, read_rgb, read_size
from data.manifest import COLUMNS, OPTIONAL_COLUMNS, read_manifest
from data.readers import read_dataroot, survey_dataroot
from data.records import SmearRecord
from data.severity import haemoglobin_of
from data.split_file import SplitRow, read_split, write_split
from data.synthetic_writer import read_severities, series_of
from options import load_options, parse_data_command, parse_options
from options.definitions import OPTIONS
from options.export_command import parse_export_command
from util.errors import UserError

MANY = int(os.environ.get("DCFNET_FUZZ_EXAMPLES", "0"))


def fuzzed(examples: int):
    """Settings of a test: the same examples at every run."""
    return settings(
        max_examples=MANY or examples,
        deadline=None,
        derandomize=not MANY,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def only_user_errors() -> Iterator[None]:
    """Let nothing out but what ``run_door`` turns into a message, or what argparse says itself."""
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        except UserError as error:
            assert str(error).strip()
        except SystemExit as end:
            assert end.code in (0, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data root with an image or two to name."""
    root = tmp_path_factory.mktemp("fuzz")
    for name in ("a.png", "b.jpg", "healthy/c.png", "anemic/d.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(root / name)
    (root / "cbc.txt").write_text("HGB,9.8 g/dL")
    return root


# --- bytes, mutated ---------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw: Callable, originals: st.SearchStrategy[bytes]) -> bytes:
    """A file with some bytes changed, a piece put in or taken out, and perhaps its end cut off."""
    content = bytearray(draw(originals))
    for _ in range(draw(st.integers(0, 6))):
        last = max(0, len(content) - 1)
        place = draw(st.integers(0, min(last, 64)) | st.integers(0, last))  # most headers are at the start
        kind = draw(st.sampled_from(("byte", "byte", "ones", "put in", "take out")))
        if kind == "put in":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "take out":
            del content[place : place + draw(st.integers(1, 8))]
        elif kind == "ones":
            content[place : place + 4] = draw(
                st.sampled_from((b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\x7f\xff\xff\xff"))
            )
        else:
            content[place : place + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content)


@cache
def pictures() -> dict[str, bytes]:
    """A small image in every form that is read."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms = {
        "png": (rgb, {"format": "PNG", "exif": exif}),
        "palette.png": (rgb.convert("P"), {"format": "PNG", "transparency": 3}),
        "deep.png": (Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11)), {"format": "PNG"}),
        "alpha.png": (rgb.convert("RGBA"), {"format": "PNG", "compress_level": 0}),
        "jpg": (rgb, {"format": "JPEG", "exif": exif}),
        "progressive.jpg": (rgb.convert("CMYK"), {"format": "JPEG", "progressive": True}),
        "bmp": (rgb, {"format": "BMP"}),
        "palette.bmp": (rgb.convert("P"), {"format": "BMP"}),
        "tif": (rgb, {"format": "TIFF", "exif": exif}),
        "pages.tif": (rgb, {"format": "TIFF", "save_all": True, "append_images": [rgb.convert("L"), rgb]}),
        "lzw.tif": (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        "jpeg.tif": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "group4.tif": (rgb.convert("1"), {"format": "TIFF", "compression": "group4"}),
        "big.tif": (rgb, {"format": "TIFF", "big_tiff": True}),
    }
    found = {}
    for name, (image, options) in forms.items():
        content = io.BytesIO()
        image.save(content, **options)
        found[name] = content.getvalue()
    return found


@pytest.mark.parametrize("form", sorted(pictures()))
def test_an_image_of_any_bytes(folder, form):
    path = folder / f"image.{form.rsplit('.', 1)[-1]}"

    @fuzzed(25)
    @given(mutated(st.just(pictures()[form])))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        readings = (
            lambda: read_rgb(path),
            lambda: read_rgb(path, page=2),
            lambda: read_mask(path, dark=True),
            lambda: read_size(path),
            lambda: page_count(path),
            lambda: decode_rgb(content, "dropped"),
        )
        for reading in readings:
            with only_user_errors():
                reading()

    check()
    path.unlink()


@fuzzed(40)
@given(content=st.binary(max_size=300), suffix=st.sampled_from((".png", ".jpg", ".bmp", ".tif")))
def test_bytes_that_were_never_an_image(folder, content, suffix):
    path = folder / f"other{suffix}"
    path.write_bytes(content)
    for page in (None, 1, 3):
        with only_user_errors():
            read_rgb(path, page=page)
    path.unlink()


# --- tables -----------------------------------------------------------------------------------------------------------

CELLS = st.one_of(
    st.sampled_from(
        (
            "a.png",
            "b.jpg",
            "healthy/c.png",
            "cbc.txt",
            "../a.png",
            "/a.png",
            "C:\\a.png",
            "\0",
            "",
            " ",
            ".",
            "a.png/",
            "..",
        )
        + (
            "Healthy",
            "anemic",
            "severe",
            "Mild",
            "1",
            "0",
            "yes",
            "train",
            "excluded",
            "7.9",
            "1e400",
            "1,5",
            "nan",
            "-3",
        )
    ),
    st.text(max_size=12),
    st.text(st.sampled_from("az09./\\,;\"'\t\n\r\0 =+-@é\ud800\u202e"), max_size=8),
)


@st.composite
def tables(draw: Callable, columns: tuple[str, ...]) -> bytes:
    """A table of some of these columns, well-formed or not, in UTF-8 or damaged."""
    mark = draw(st.sampled_from((",", ",", ";", "\t")))
    header = draw(st.permutations(columns))[: draw(st.integers(1, len(columns)))]
    header = header if draw(st.booleans()) or "image" in header else ("image", *header)
    rows = draw(
        st.lists(st.lists(CELLS, min_size=len(header), max_size=len(header) + draw(st.integers(0, 1))), max_size=4)
    )
    quote = draw(st.booleans())
    lines = [mark.join(f'"{cell}"' if quote else cell for cell in row) for row in (header, *rows)]
    return draw(st.sampled_from(("\n", "\r\n", "\r"))).join(lines).encode("utf-8", "surrogatepass")


def any_table(columns: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    return st.one_of(tables(columns), mutated(tables(columns)), st.binary(max_size=60))


@fuzzed(150)
@given(content=any_table((*COLUMNS, *OPTIONAL_COLUMNS)))
def test_a_manifest_of_any_bytes(folder, content):
    path = folder / "list.csv"
    path.write_bytes(content)
    with only_user_errors():
        read_manifest(path)
    with only_user_errors():
        survey_dataroot(path)
    path.unlink()


@fuzzed(80)
@given(content=any_table(("image", "label", "severity", "parent")))
def test_labels_of_any_bytes(folder, content):
    root = folder / "classes"
    for name in ("healthy/c.png", "anemic/d.png"):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes((folder / name).read_bytes())
    (root / "labels.csv").write_bytes(content)
    for read in (read_dataroot, survey_dataroot):
        with only_user_errors():
            read(root)


@fuzzed(80)
@given(content=any_table(("image", "label", "severity", "parent")), notice=st.binary(max_size=30))
def test_the_truth_and_the_notice_of_a_synthetic_set_of_any_bytes(folder, content, notice):
    root = folder / "made"
    root.mkdir(exist_ok=True)
    (root / "truth.csv").write_bytes(content)
    (root / "SYNTHETIC.txt").write_bytes(notice)
    for read in (read_severities, series_of):
        with only_user_errors():
            read(root)


@fuzzed(120)
@given(data=st.data())
def test_a_split_file_of_any_bytes(folder, data):
    path = folder / "split.csv"
    write_split(path, [SplitRow("a.png", 0, "g", "c1", "train"), SplitRow("b.png", 1, "h", "c2", "test", mask=True)])
    columns = tuple(path.read_text().splitlines()[0].replace('"', "").split(","))
    path.write_bytes(data.draw(st.one_of(mutated(st.just(path.read_bytes())), any_table(columns))))
    for leaks in (False, True):
        with only_user_errors():
            read_split(path, leaks=leaks)


LINES = st.one_of(
    st.sampled_from(
        ("HGB,9.8 g/dL", "HGB,* 98 g/L", "Hb: 1e9", "HGB,٣ g/dL", "Haemoglobin (Hb) = H 7,5 g%", "HGB,", "HGB,-1")
    ),
    st.builds("HGB,{}".format, st.text(max_size=12)),
    st.text(max_size=20),
)


REPORTS = st.lists(LINES, max_size=4).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@fuzzed(150)
@given(content=st.one_of(REPORTS, st.binary(max_size=60)))
def test_a_blood_count_of_any_bytes(folder, content):
    path = folder / "report.txt"
    path.write_bytes(content)
    record = SmearRecord("a.png", folder / "a.png", cbc=path)
    for read in (haemoglobin_of, blood_count):
        with only_user_errors():
            read(record)


# --- options ----------------------------------------------------------------------------------------------------------

FLAGS = tuple(f"--{name}" for option in OPTIONS for name in (option.name, *option.spellings))
VALUES = st.one_of(
    st.sampled_from(
        ("0", "1", "-1", "auto", "best", "0,1", "0.5", "nan", "inf", "1e400", "٣", "²", "", "--", "-", "synthetic")
    ),
    st.sampled_from(
        ("9" * 5000, "1_0", "0x10", "a=1,b=2", "train,val", "0.1,0.2,0.3", "..", "a\0b", "\ud800", "yes", "half")
    ),
    st.text(max_size=10),
    st.integers().map(str),
    st.floats().map(str),
)
ARGUMENTS = st.lists(
    st.one_of(st.sampled_from(FLAGS), st.tuples(st.sampled_from(FLAGS), VALUES).map("=".join), VALUES), max_size=8
)


def parse(command: str, argv: list[str]) -> None:
    parse_options(command, argv, prog="prog", description="")


@fuzzed(120)
@given(command=st.sampled_from(("train", "test", "predict")), argv=ARGUMENTS, checkpoints=st.booleans())
def test_any_command_line(folder, command, argv, checkpoints):
    with only_user_errors():
        parse(command, [*argv, "--dataroot", "d"] if checkpoints else argv)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_any_value_of_every_option(option):
    @fuzzed(4)
    @given(VALUES)
    def check(value: str) -> None:
        for command in option.commands:
            with only_user_errors():
                parse(command, ["--dataroot", "d", f"--{option.name}={value}"])

    check()


DATA_FLAGS = (
    "doctor",
    "split",
    "synthesize",
    "tile",
    "--out",
    "--html",
    "--json",
    "--fix",
    "--folds",
    "--fold",
    "--seed",
)
EXPORT_FLAGS = ("--name", "--to", "--out", "--which_epoch", "--images", "--dataroot", "--overwrite")


def words(flags: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.one_of(st.sampled_from(flags), VALUES), max_size=7)


@fuzzed(120)
@given(argv=words(DATA_FLAGS), export=words(EXPORT_FLAGS))
def test_any_command_line_of_the_other_doors(argv, export):
    with only_user_errors():
        parse_data_command(argv, prog="prog", description="")
    with only_user_errors():
        parse_export_command(export, prog="prog", description="")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SAVED = st.dictionaries(
    st.sampled_from([option.name for option in OPTIONS]) | st.text(max_size=6), JSON | VALUES, max_size=6
)


@fuzzed(150)
@given(data=st.data())
def test_an_options_file_of_any_bytes(folder, data):
    path = folder / "options.json"
    whole = SAVED.map(lambda values: json.dumps({"schema_version": 1, "values": values}).encode())
    path.write_bytes(
        data.draw(st.one_of(whole, mutated(whole), JSON.map(json.dumps).map(str.encode), st.binary(max_size=40)))
    )
    with only_user_errors():
        load_options(path)
    with only_user_errors():
        parse("train", ["--dataroot", "d", "--config", str(path)])
