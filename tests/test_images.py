"""Reading images and masks: every accepted form gives the same pixels, every bad file gives an error that names it."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.images import (
    content_digest,
    otsu_mask,
    read_mask,
    read_rgb,
    read_size,
    read_smear,
    read_truth,
    smear_size,
)
from data.records import SmearRecord
from util.errors import UserError


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG whose header promises any size, with hardly any data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("extension", ["png", "PNG", "bmp", "tif", "tiff"])
def test_lossless_formats_give_the_same_pixels(tmp_path, pixels, extension):
    path = save(tmp_path / f"s.{extension}", pixels)
    assert np.array_equal(read_rgb(path), pixels)
    assert read_rgb(path).dtype == np.uint8
    assert read_size(path) == (7, 5)


def test_jpeg_is_read(tmp_path):
    path = save(tmp_path / "s.jpg", np.full((8, 8, 3), 90, np.uint8))
    assert np.abs(read_rgb(path).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("name", ["a b.png", 'it\'s "quoted".png', "Zellenausstrich_ä_血.png", "=1+1.png"])
def test_odd_names_are_only_names(tmp_path, pixels, name):
    assert np.array_equal(read_rgb(save(tmp_path / name, pixels)), pixels)


def test_grey_becomes_rgb(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(read_rgb(save(tmp_path / "g.png", grey)), np.stack([grey] * 3, axis=2))


def test_palette_becomes_rgb(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "p.png")
    assert read_rgb(tmp_path / "p.png").tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 0, 51]]], np.uint8)
    got = read_rgb(save(tmp_path / "a.png", rgba))
    assert got.tolist() == [[[200, 100, 0], [255, 255, 255], [204, 204, 204]]]


def test_transparent_palette_is_laid_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    assert read_rgb(tmp_path / "p.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path, extension):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert read_rgb(save(tmp_path / f"d.{extension}", deep))[..., 0].tolist() == [[0, 1, 128, 255]]


def test_thirty_two_bit_grey_is_refused(tmp_path):
    with pytest.raises(UserError, match="32-bit"):
        read_rgb(save(tmp_path / "f.tif", np.ones((2, 2), np.float32)))


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_mask_and_size_alike(tmp_path, pixels, extension, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"o.{extension}", pixels, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert np.array_equal(read_rgb(path), np.asarray(expected))
    assert np.array_equal(read_mask(path, dark=True), np.asarray(expected.convert("L")) < 128)
    assert read_size(path) == expected.size


def kinds_of_pixels(rng) -> dict[str, Image.Image]:
    """An image of every kind that a file may hold, each of its own content."""

    def noise(mode: str, channels: int) -> Image.Image:
        return Image.fromarray(
            rng.integers(0, 256, (9, 7, channels), np.uint8).squeeze(), mode if channels > 1 else None
        )

    palette = noise("RGB", 3).quantize(16)
    palette.info["transparency"] = 3
    return {
        "rgb.png": noise("RGB", 3),
        "rgba.png": noise("RGBA", 4),
        "la.png": noise("RGBA", 4).convert("LA"),
        "palette.png": palette,
        "grey.tif": noise("L", 1),
        "one.png": noise("L", 1).convert("1"),
        "cmyk.tif": noise("CMYK", 4),
        "deep.png": Image.fromarray(rng.integers(0, 65536, (9, 7), np.uint16)),
        "deep.tif": Image.fromarray(rng.integers(0, 65536, (9, 7), np.uint16)),
    }


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_images_read_by_bands_are_those_read_at_once(tmp_path, rng, monkeypatch, rows):
    for name, image in kinds_of_pixels(rng).items():
        image.save(tmp_path / name)
        with Image.open(tmp_path / name) as stored:
            if name.startswith("deep"):
                grey = Image.fromarray(np.rint(np.asarray(stored) / 257).astype(np.uint8))
                whole = grey.convert("RGB")
            elif stored.mode in ("RGBA", "LA") or "transparency" in stored.info:
                rgba = stored.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                whole = Image.alpha_composite(white, rgba).convert("RGB")
            else:
                whole = stored.convert("RGB")
        monkeypatch.setattr("data.images._BLOCK_PIXELS", 7 * rows)
        assert np.array_equal(read_rgb(tmp_path / name), np.asarray(whole)), name
        assert np.array_equal(read_mask(tmp_path / name, dark=True), np.asarray(whole.convert("L")) < 128), name


@pytest.mark.parametrize("name", ["rgb.png", "rgba.png", "deep.png"])
def test_a_large_image_is_read_without_whole_copies(tmp_path, rng, monkeypatch, name):
    shapes = {"rgb.png": (1000, 900, 3), "rgba.png": (1000, 900, 4), "deep.png": (1000, 900)}
    deep = name == "deep.png"
    levels = rng.integers(0, 2 if deep else 256, shapes[name], np.uint16 if deep else np.uint8)
    Image.fromarray(levels).save(tmp_path / name, compress_level=1)
    monkeypatch.setattr("data.images._BLOCK_PIXELS", 20_000)
    tracemalloc.start()
    try:
        rgb = read_rgb(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rgb.nbytes < peak < 1.4 * rgb.nbytes  # it was three times as much for RGB, seven for 16 bits


def test_no_warning_comes_before_an_image_that_is_large_but_not_too_large(tmp_path):
    path = png_header(tmp_path / "large.png", 10_000, 10_000)
    code = f"import sys\nfrom data.images import read_size\nprint(read_size({str(path)!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (told.stdout, told.stderr) == ("(10000, 10000)\n", "")


def test_mask_is_thresholded_at_128_and_inverted_when_dark(tmp_path):
    levels = np.array([[0, 1, 77, 127, 128, 200, 255]], np.uint8)
    path = save(tmp_path / "m.png", levels)
    assert read_mask(path, dark=False).tolist() == [[False] * 4 + [True] * 3]
    assert read_mask(path, dark=True).tolist() == [[True] * 4 + [False] * 3]
    assert read_mask(path, dark=True).dtype == bool


def test_one_bit_and_coloured_masks_are_read(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png", dark=False).tolist() == [[False, True]]
    path = save(tmp_path / "c.png", np.array([[[255, 0, 0], [255, 255, 0]]], np.uint8))
    assert read_mask(path, dark=False).tolist() == [[False, True]]  # grey 76 and 226


def refusal(path: Path, read=read_rgb) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert caught.value.expected and caught.value.found and caught.value.remedy
    return caught.value.found


@pytest.mark.parametrize("read", [read_rgb, read_size])
def test_missing_empty_folder_and_unknown_extension_are_refused(tmp_path, read):
    assert refusal(tmp_path / "none.png", read) == "nothing"
    (tmp_path / "empty.png").write_bytes(b"")
    assert refusal(tmp_path / "empty.png", read) == "0 bytes"
    (tmp_path / "folder.png").mkdir()
    refusal(tmp_path / "folder.png", read)
    (tmp_path / "report.txt").write_text("x")
    assert ".txt" in refusal(tmp_path / "report.txt", read)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp"])
def test_truncated_file_is_refused(tmp_path, rng, extension, keep):
    path = save(tmp_path / f"t.{extension}", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refusal(path)


def test_truncated_header_is_refused(tmp_path, pixels):
    path = save(tmp_path / "t.png", pixels)
    path.write_bytes(path.read_bytes()[:14])
    refusal(path, read_size)


def test_content_decides_not_the_extension(tmp_path, pixels):
    for kind, word in (("GIF", "GIF"), ("WEBP", "WebP"), ("JPEG", "JPEG"), ("TIFF", "TIFF"), ("BMP", "BMP")):
        path = tmp_path / f"{kind}.png"
        with io.BytesIO() as stream:
            Image.fromarray(pixels).save(stream, format=kind)
            path.write_bytes(stream.getvalue())
        assert word in refusal(path)
        assert word in refusal(path, read_size)
    save(tmp_path / "p.png", pixels)
    (tmp_path / "p.png").rename(tmp_path / "p.jpg")
    assert "PNG" in refusal(tmp_path / "p.jpg")


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"<!DOCTYPE html>", "HTML"), (b"version https://git-lfs.github.com", "Git LFS"), (b"\x01\x02\x03", "01 02 03")],
)
def test_what_is_no_image_is_named(tmp_path, data, word):
    (tmp_path / "x.png").write_bytes(data)
    assert word in refusal(tmp_path / "x.png")


def test_a_link_to_nowhere_or_in_a_circle_is_told_from_a_missing_file(tmp_path):
    (tmp_path / "away.png").symlink_to("nothing.png")
    (tmp_path / "round.png").symlink_to("round.png")
    assert all("leads nowhere or round" in refusal(tmp_path / name) for name in ("away.png", "round.png"))
    assert "a link" not in refusal(tmp_path / "nothing.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (60_000, 60_000)])
def test_bomb_is_refused_from_its_header(tmp_path, width, height):
    path = png_header(tmp_path / "bomb.png", width, height)
    for read in (read_rgb, read_size):
        with pytest.raises(UserError, match="at most 100 megapixels"):
            read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_exactly_100_megapixels_are_not_refused_for_size(tmp_path):
    assert read_size(png_header(tmp_path / "large.png", 10_000, 10_000)) == (10_000, 10_000)


def test_zero_size_is_refused(tmp_path):
    refusal(png_header(tmp_path / "zero.png", 0, 5))


def test_several_pages_are_refused(tmp_path, pixels):
    image = Image.fromarray(pixels)
    image.save(tmp_path / "pages.tif", save_all=True, append_images=[image])
    assert refusal(tmp_path / "pages.tif") == "2"


def test_digest_depends_on_pixels_shape_and_type_alone(tmp_path, pixels):
    png, bmp = save(tmp_path / "a.png", pixels), save(tmp_path / "b.bmp", pixels)
    assert content_digest(read_rgb(png)) == content_digest(read_rgb(bmp))
    assert content_digest(pixels) == content_digest(np.asfortranarray(pixels))
    other = pixels.copy()
    other[4, 6, 2] ^= 1
    variants = [pixels, other, pixels.reshape(7, 5, 3), pixels.view(np.int8), pixels[..., 0]]
    assert len({content_digest(variant) for variant in variants}) == len(variants)
    assert len(content_digest(pixels)) == 64


@pytest.mark.parametrize("channel", ["mean", "green"])
def test_otsu_finds_a_dark_disc_and_fills_its_pallor(channel):
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 32, columns - 32)
    rgb = np.full((64, 64, 3), (230, 225, 235), np.uint8)
    rgb[(distance <= 20) & (distance > 6)] = (180, 90, 120)
    assert np.array_equal(otsu_mask(rgb, channel=channel), distance <= 20)


def test_otsu_looks_at_the_channel_asked_for():
    rgb = np.full((8, 8, 3), (100, 200, 150), np.uint8)
    rgb[2:5, 2:5] = (200, 100, 150)  # the mean is 150 everywhere
    assert not otsu_mask(rgb).any() and not otsu_mask(rgb, channel="mean").any()
    assert np.array_equal(otsu_mask(rgb, channel="green"), rgb[..., 1] == 100)


def test_otsu_without_contrast_finds_nothing():
    for level in (0, 128, 255):
        mask = otsu_mask(np.full((6, 9, 3), level, np.uint8))
        assert mask.shape == (6, 9) and mask.dtype == bool and not mask.any()


def test_otsu_refuses_other_arrays():
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            otsu_mask(wrong)
    with pytest.raises(ValueError, match="channel"):
        otsu_mask(np.zeros((4, 4, 3), np.uint8), channel="red")


def test_otsu_is_the_reference_on_real_smears(shared_data):
    overlap = total = 0
    for image in sorted((shared_data / "anerbc_1224x960").rglob("Original_images/*.png")):
        truth = read_mask(image.parent.parent / "Binary_segmented" / image.name, dark=True)
        found = otsu_mask(read_rgb(image))
        overlap, total = overlap + 2 * int((truth & found).sum()), total + int(truth.sum() + found.sum())
    assert overlap / total == pytest.approx(0.945, abs=0.003)


def side_by_side(path: Path, pixels: np.ndarray, mask: np.ndarray) -> SmearRecord:
    right = np.where(mask, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)
    image = save(path, np.concatenate([pixels, right], axis=1))
    return SmearRecord(image.name, image, mask=image, side_by_side=True)


def test_a_side_by_side_file_gives_its_left_half_as_image_and_its_right_half_as_mask(tmp_path, pixels, rng):
    mask = rng.integers(0, 2, pixels.shape[:2]).astype(bool)
    record = side_by_side(tmp_path / "ab.png", pixels, mask)
    assert np.array_equal(read_smear(record), pixels)
    assert np.array_equal(read_truth(record), mask)
    assert smear_size(record) == (7, 5)


def test_a_pair_of_files_is_read_whole(tmp_path, pixels):
    image = save(tmp_path / "image.png", pixels)
    mask = save(tmp_path / "mask.png", np.where(pixels[..., 0] > 99, 0, 255).astype(np.uint8))
    record = SmearRecord("image.png", image, mask=mask, mask_dark=True)
    assert np.array_equal(read_smear(record), pixels)
    assert np.array_equal(read_truth(record), pixels[..., 0] > 99)
    assert smear_size(record) == (7, 5)


@pytest.mark.parametrize("read", [read_smear, read_truth, smear_size])
def test_a_side_by_side_file_of_odd_width_is_refused(tmp_path, pixels, read):
    image = save(tmp_path / "odd.png", pixels)
    with pytest.raises(UserError, match=r"odd\.png: not an image and its mask side by side") as error:
        read(SmearRecord("odd.png", image, mask=image, side_by_side=True))
    assert error.value.found == "7 pixels across"


def test_no_mask_is_no_truth(tmp_path, pixels):
    with pytest.raises(ValueError, match="no mask"):
        read_truth(SmearRecord("a.png", save(tmp_path / "a.png", pixels)))


def test_a_damaged_header_is_not_to_be_converted(tmp_path):
    path = tmp_path / "smear.png"
    Image.new("RGB", (8, 8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + b"XXXX" + whole[16:])
    with pytest.raises(UserError, match="header is damaged(?s:.*)copy or download it again") as error:
        read_rgb(path)
    assert "convert" not in str(error.value)
