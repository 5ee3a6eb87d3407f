"""Pages of TIFF files: found as Pillow finds them, read in any order, and not one by walking through all before it."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from PIL import Image, features

from data.images import page_count, read_rgb
from data.tiff_pages import open_at_page, page_offsets
from util.errors import UserError

PAGES = 5


def stack(path, count=PAGES, side=12, **options):
    """A TIFF file of several different pages; their pixels."""
    pixels = [np.random.default_rng(n).integers(0, 256, (side + n % 3, side, 3), dtype=np.uint8) for n in range(count)]
    images = [Image.fromarray(one) for one in pixels]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return pixels


FORMS = [{}, {"compression": "tiff_adobe_deflate"}, {"compression": "tiff_lzw"}, {"big_tiff": True}]


@pytest.mark.parametrize("options", FORMS if features.check("libtiff") else FORMS[:1], ids=str)
def test_every_page_is_read_in_any_order(tmp_path, options):
    pixels = stack(tmp_path / "stack.tif", **options)
    assert page_count(tmp_path / "stack.tif") == PAGES
    for number in (3, 1, 5, 2, 4):
        assert np.array_equal(read_rgb(tmp_path / "stack.tif", page=number), pixels[number - 1])


def test_the_pages_are_those_that_pillow_finds(tmp_path):
    path = tmp_path / "stack.tif"
    stack(path)
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append(image.tag_v2.offset)
    assert page_offsets(path) == tuple(found)


def big_endian(count):
    """A big-endian TIFF of grey pages of one pixel, which grows darker from page to page."""
    content, places = b"MM\x00\x2a" + struct.pack(">L", 8), []
    for number in range(count):
        tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0), (278, 3, 1), (279, 4, 1)]
        places.append(len(content))
        end = len(content) + 2 + 12 * len(tags) + 4
        body = b"".join(
            struct.pack(">HHL", tag, kind, 1)
            + (struct.pack(">L", end if tag == 273 else value) if kind == 4 else struct.pack(">HH", value, 0))
            for tag, kind, value in tags
        )
        following = end + 2 if number < count - 1 else 0
        content += struct.pack(">H", len(tags)) + body + struct.pack(">L", following) + bytes([(200 - number) % 256, 0])
    return content, tuple(places)


def test_big_endian_files_are_walked_too(tmp_path):
    content, places = big_endian(3)
    (tmp_path / "big.tif").write_bytes(content)
    assert page_offsets(tmp_path / "big.tif") == places
    assert [int(read_rgb(tmp_path / "big.tif", page=n)[0, 0, 0]) for n in (1, 2, 3)] == [200, 199, 198]


def test_a_chain_that_leads_back_ends(tmp_path):
    content, places = big_endian(3)
    link = places[2] + 2 + 12 * 8
    (tmp_path / "loop.tif").write_bytes(content[:link] + struct.pack(">L", places[1]) + content[link + 4 :])
    assert page_offsets(tmp_path / "loop.tif") == places


def test_a_file_that_was_replaced_is_walked_again(tmp_path):
    path = tmp_path / "stack.tif"
    stack(path)
    assert page_count(path) == PAGES
    stack(path, count=2)
    assert page_count(path) == 2
    with pytest.raises(UserError, match="no such page"):
        read_rgb(path, page=3)


def test_what_is_no_tiff_has_no_pages(tmp_path):
    for name, content in (("a.tif", b"PK\x03\x04 and more"), ("b.tif", b"II"), ("c.tif", b"")):
        (tmp_path / name).write_bytes(content)
        assert page_offsets(tmp_path / name) == ()
        with pytest.raises(ValueError, match="no TIFF"):
            open_at_page(tmp_path / name, 8)


def test_the_last_page_of_many_is_as_quick_as_the_first(tmp_path):
    path = tmp_path / "many.tif"
    content, places = big_endian(4000)
    path.write_bytes(content)
    assert len(page_offsets(path)) == 4000 == len(places)

    def seconds(page):
        begun = time.perf_counter()
        for _ in range(5):
            read_rgb(path, page=page)
        return time.perf_counter() - begun

    assert min(seconds(4000) for _ in range(3)) < 5 * min(seconds(1) for _ in range(3))
