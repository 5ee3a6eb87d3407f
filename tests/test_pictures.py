"""The pictures of a test are the same by however many threads; an error and a stop leave only whole files."""

from __future__ import annotations

import errno
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import models.assessment as assessment
from models.assessment import PictureWriter, Pixels
from util.cores import busy_threads, usable_cores
from util.errors import UserError
from util.files import wait_for_disk, write_unhurried
from util.report_pictures import PREDICTED_COLOUR, TRUE_COLOUR, overlay_image, save_thumbnail
from util.results import output_stems

COUNT, SIZE, BATCH = 40, 24, 5
NAMES = [f"{'ab'[i % 2]}/{i // 2}.png" for i in range(COUNT)]  # equal stems in two folders


def pixels(index):
    made = np.random.default_rng(index)
    side = SIZE * (30 if index == 3 else 1)  # one is larger than its pictures on the page
    return Pixels(made.integers(0, 256, (side, side, 3), dtype=np.uint8), made.random((side, side)) > 0.5, None)


def predictions(stop_after=None):
    """Batches of masks; after some of them, a stop by the user."""
    for start in range(0, COUNT, BATCH):
        if stop_after is not None and start >= stop_after:
            raise KeyboardInterrupt
        index = torch.arange(start, start + BATCH)
        probability = torch.rand(BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(start))
        yield SimpleNamespace(batch=SimpleNamespace(index=index), mask_probability=probability)


def writer(folder, workers, read=pixels):
    smears = [SimpleNamespace(name=name, label=0, severity=None) for name in NAMES]
    return PictureWriter(folder, smears, NAMES, output_stems(NAMES), read, workers=workers)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only_whole(folder):
    """What lies in a folder, where every file is a picture that can be read to its end."""
    found = files(folder)
    for name in found:
        with Image.open(folder / name) as image:
            image.load()
    return found


def test_any_number_of_threads_writes_the_same(tmp_path):
    one, many = writer(tmp_path / "one", 1), writer(tmp_path / "many", 5)
    for each in (one, many):
        assert len(list(each.write(predictions()))) == COUNT // BATCH
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert len(only_whole(tmp_path / "one")) == 4 * COUNT + 1  # mask, smear, overlay, true, and one reduced mask
    assert (one.dice, one.shown_mask, one.mask_of) == (many.dice, many.shown_mask, many.mask_of)
    assert [each.segmentation(resamples=9, seed=0) for each in (one, many)][0] == many.segmentation(resamples=9, seed=0)
    with (
        Image.open(tmp_path / "one" / "masks" / "a" / "0.png") as mask,
        Image.open(tmp_path / "one" / "images" / "a" / "0_true.png") as true,
    ):
        drawn = torch.rand(BATCH, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))[0, 0].numpy() > 0.5
        assert mask.mode == "L" and np.array_equal(np.array(mask), np.where(drawn, 255, 0))
        assert true.mode == "1" and np.array_equal(np.array(true), pixels(0).true_mask)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_full_disk_is_told_and_ends_the_work(tmp_path, monkeypatch, workers):
    replace, begun = os.replace, []

    def fill_up(path, to):
        if "7_smear" in str(to):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, to)

    def read(index):
        begun.append(index)
        return pixels(index)

    monkeypatch.setattr(os, "replace", fill_up)
    monkeypatch.setattr(assessment, "WAITING_IMAGES", 4)
    with pytest.raises(UserError, match="7_smear") as caught:
        list(writer(tmp_path, workers, read).write(predictions()))
    assert "No space left" in str(caught.value)
    assert only_whole(tmp_path) and len(begun) < COUNT
    assert not [name for name in files(tmp_path) if name.rsplit("/", 1)[-1].startswith(".")]


def test_a_stop_drops_what_is_not_begun_and_finishes_what_is(tmp_path):
    gate, begun = threading.Event(), []

    def read(index):
        begun.append(index)
        gate.wait(10)  # nothing is finished before the stop
        return pixels(index)

    def stopped():
        try:
            yield from predictions(stop_after=20)
        except KeyboardInterrupt:
            threading.Timer(0.3, gate.set).start()
            raise

    with pytest.raises(KeyboardInterrupt):
        list(writer(tmp_path, 2, read).write(stopped()))
    assert sorted(begun) == [0, 1]  # 18 more had been handed over
    assert len([name for name in only_whole(tmp_path) if name.startswith("masks")]) == 2


def test_no_more_images_wait_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(assessment, "WAITING_IMAGES", 3)
    gate, given = threading.Event(), []

    def slow():
        for prediction in predictions():
            given.append(len(given))
            yield prediction

    thread = threading.Thread(
        target=lambda: list(writer(tmp_path, 2, lambda index: (gate.wait(10), pixels(index))[1]).write(slow()))
    )
    thread.start()
    thread.join(0.5)
    assert len(given) == 1  # the second batch is not asked for while the first one waits
    gate.set()
    thread.join(20)
    assert len(given) == COUNT // BATCH


def test_all_masks_are_waited_for_before_the_end(tmp_path, monkeypatch):
    waited, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (waited.append(os.fstat(handle).st_ino), fsync(handle)))
    list(writer(tmp_path, 2).write(predictions()))
    assert sorted(waited) == sorted(path.stat().st_ino for path in (tmp_path / "masks").rglob("*.png"))
    (tmp_path / "gone").unlink(missing_ok=True)
    with pytest.raises(UserError, match="gone"):
        wait_for_disk([tmp_path / "gone"])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "x"
    write_unhurried(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="deep/x"):
        write_unhurried(path, b"new")
    assert files(tmp_path) == {"deep/x": b"old"}


@pytest.mark.parametrize("shape", [(31, 47), (610, 340)])
def test_the_overlay_is_what_numpy_and_scipy_draw(rng, shape):
    from scipy import ndimage

    rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    predicted = ndimage.gaussian_filter(rng.random(shape), 4) > 0.5
    true, width = np.roll(predicted, 3, axis=1), max(1, round(min(shape) / 300))
    expected = rgb.astype(float)
    for where, colour in ((predicted & ~true, PREDICTED_COLOUR), (true & ~predicted, TRUE_COLOUR)):
        expected[where] = np.round(0.55 * expected[where] + 0.45 * np.array(colour))

    def edge(mask):
        return mask & ~ndimage.binary_erosion(mask, iterations=width, border_value=1)

    near = ndimage.binary_dilation(edge(predicted), iterations=2 * width)
    expected[edge(true) & ~near] = TRUE_COLOUR
    expected[edge(predicted)] = PREDICTED_COLOUR
    assert np.abs(overlay_image(rgb, predicted, true) - expected).max() <= 1  # where a half is rounded
    assert np.array_equal(overlay_image(rgb, predicted, predicted)[edge(predicted)][0], PREDICTED_COLOUR)


def test_the_quality_of_a_picture_can_be_chosen(tmp_path, rng):
    smear = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.webp"):
        save_thumbnail(tmp_path / name, smear, quality=10)
        small = (tmp_path / name).stat().st_size
        save_thumbnail(tmp_path / name, smear)
        assert small < (tmp_path / name).stat().st_size


@pytest.mark.parametrize(
    ("said", "processes", "expected"),
    [
        ("", "", 8),
        ("3", "", 3),
        ("99", "", 8),
        ("2,4", "", 2),
        ("0", "", 8),
        ("x", "", 8),
        ("", "3", 2),
        ("1", "16", 1),
    ],
)
def test_threads_keep_to_this_process_share(monkeypatch, said, processes, expected):
    monkeypatch.setattr("util.cores.usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert busy_threads() == expected


def test_threads_without_a_word_are_the_cores(monkeypatch):
    for variable in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    assert busy_threads() == usable_cores()
