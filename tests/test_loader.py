from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import data.loader as loader_module
from data.augment import Augmentation, centre_offset
from data.images import otsu_mask
from data.loader import (
    DECODING_VERSION,
    Batch,
    BatchLoader,
    DecodedSmears,
    decode,
    decode_smear,
    in_order,
    planes_of,
)
from data.records import ANEMIC, HEALTHY, SmearRecord
from util.errors import UserError

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def smears(n: int = 13, size: int = 24) -> DecodedSmears:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 3 * size**2), dtype=np.uint8)
    masks = rng.integers(0, 2, (n, size**2), dtype=np.uint8)
    order = rng.permutation(n)  # the entries lie in another order than the smears
    return DecodedSmears(
        np.concatenate([images, masks], axis=1)[order],
        np.argsort(order),
        size,
        has_mask=torch.arange(n) % 3 > 0,
        labels=torch.arange(n) % 3 - 1,
        names=[f"{i}.png" for i in range(n)],
        sizes=[(size, size)] * n,
    )


def batches_of(source: DecodedSmears, n: int | None = None, batch: int = 4, crop: int = 20, **options) -> BatchLoader:
    chosen = {"device": CPU, "augment": None, "shuffle": True, "seed": 7} | options
    return BatchLoader(source, range(n or len(source)), batch, crop, **chosen)


def run(loader: BatchLoader, epoch: int) -> list[Batch]:
    loader.set_epoch(epoch)
    return list(loader)


def visited(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in ("rgb", "mask", "has_mask", "paired", "label", "index"):
            assert torch.equal(getattr(a, name).cpu(), getattr(b, name).cpu()), name


@pytest.mark.parametrize("options", [{}, {"share": (1, 2)}, {"shuffle": False}])
def test_a_batch_says_where_its_images_with_a_true_mask_are(options):
    loader = batches_of(smears(), **options)
    loader.set_epoch(1, seen=4)
    batches = list(loader)
    assert any(0 < len(batch.paired) < len(batch.index) for batch in batches)
    for batch in batches:
        assert torch.equal(batch.paired, batch.has_mask.nonzero().squeeze(1))


def wait_until(condition, seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def write_smears(folder, specs: list[tuple[str, int, int, bool]]) -> list[SmearRecord]:
    """Dark discs on white, with white-on-black masks where asked: (stem, width, height, with mask)."""
    records = []
    for stem, width, height, with_mask in specs:
        y, x = np.mgrid[:height, :width]
        disc = np.hypot(y - height * 0.4, x - width * 0.6) < min(width, height) * 0.25
        rgb = np.where(disc[..., None], (200, 80, 90), (250, 245, 240)).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{stem}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(folder / f"{stem}_mask.png")
        mask = folder / f"{stem}_mask.png" if with_mask else None
        records.append(SmearRecord(f"{stem}.png", folder / f"{stem}.png", mask=mask, label=HEALTHY))
    return records


# decode


def test_decode_keeps_order_sizes_labels_and_masks(tmp_path):
    records = write_smears(tmp_path, [("wide", 90, 40, True), ("tall", 30, 70, False), ("square", 48, 48, True)] * 5)
    records[0] = SmearRecord("x/wide.png", records[0].image, mask=records[0].mask, label=ANEMIC)
    records[1] = SmearRecord("tall.png", records[1].image, label=None)
    decoded = decode(records, 48, workers=4, progress=False)
    assert decoded.names == [record.name for record in records]
    assert decoded.sizes == [(90, 40), (30, 70), (48, 48)] * 5
    assert decoded.labels.tolist() == [ANEMIC, -1] + [HEALTHY] * 13
    assert decoded.labels.dtype == torch.int64
    assert decoded.has_mask.tolist() == [True, False, True] * 5
    assert decoded.images.shape == (15, 48, 48, 3)
    assert decoded.masks.shape == (15, 48, 48)
    assert decoded.images.dtype == decoded.masks.dtype == torch.uint8
    assert set(decoded.masks.unique().tolist()) == {0, 1}
    assert len(decoded) == 15
    assert decoded.load_size == 48


def test_decode_stretches_image_and_mask_alike(tmp_path):
    decoded = decode(write_smears(tmp_path, [("wide", 180, 80, True), ("tall", 60, 140, True)]), 96, progress=False)
    for image, mask in zip(decoded.images.numpy(), decoded.masks.numpy().astype(bool), strict=True):
        dark = image[..., 1] < (80 + 245) / 2
        assert (dark & mask).sum() / (dark | mask).sum() > 0.97
        rows, columns = np.nonzero(mask)
        assert rows.mean() == pytest.approx(0.4 * 96, abs=1)
        assert columns.mean() == pytest.approx(0.6 * 96, abs=1)


def test_decode_at_the_files_own_size_changes_no_pixel(tmp_path):
    records = write_smears(tmp_path, [("square", 48, 48, True)])
    decoded = decode(records, 48, progress=False)
    assert np.array_equal(decoded.images[0].numpy(), np.asarray(Image.open(records[0].image)))
    assert np.array_equal(decoded.masks[0].numpy() * 255, np.asarray(Image.open(records[0].mask)))


def test_decode_averages_what_it_shrinks(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    decoded = decode([SmearRecord("stripes.png", tmp_path / "stripes.png")], 16, progress=False)
    inner = decoded.images[0, :, 1:-1].float()
    assert (inner - 127.5).abs().max() < 16  # picking single pixels would give 0 or 255


def test_stand_in_mask_is_otsus_and_is_flagged(tmp_path):
    records = write_smears(tmp_path, [("square", 48, 48, False)])
    decoded = decode(records, 48, progress=False)
    assert decoded.has_mask.tolist() == [False]
    expected = otsu_mask(np.asarray(Image.open(records[0].image)))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(decoded.masks[0].numpy().astype(bool), expected)


def test_dark_masks_are_inverted(tmp_path):
    records = write_smears(tmp_path, [("square", 48, 48, True)])
    dark = SmearRecord("square.png", records[0].image, mask=records[0].mask, mask_dark=True)
    light, inverted = (decode([record], 48, progress=False).masks for record in (records[0], dark))
    assert torch.equal(light, 1 - inverted)


def test_mask_of_another_size_is_refused_by_name(tmp_path):
    records = write_smears(tmp_path, [("a", 48, 48, True), ("b", 40, 48, True)])
    wrong = SmearRecord("a.png", records[0].image, mask=records[1].mask)
    with pytest.raises(UserError, match=r"(?s)a\.png: its mask.*48x48.*40x48 in .*b_mask\.png"):
        decode([wrong], 48, progress=False)


def test_an_unreadable_file_stops_decoding_and_is_named(tmp_path):
    records = write_smears(tmp_path, [("a", 48, 48, True), ("b", 48, 48, True), ("c", 48, 48, True)])
    records[1].image.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"b\.png"):
        decode(records, 48, workers=2, progress=False)


def test_decode_refuses_what_does_not_fit_in_memory_before_reading(tmp_path, monkeypatch):
    records = [SmearRecord(f"{i}.png", tmp_path / "absent.png") for i in range(1000)]
    monkeypatch.setattr(loader_module, "free_memory", lambda: 400_000_000)
    # 1,000 x 300 x 300 x 4 bytes = .36 GB; .8 of .4 GB is .32 GB
    with pytest.raises(UserError, match=r"(?s)0\.36 GB.*0\.32 GB.*0\.40 GB free.*--loadSize.*split the data"):
        decode(records, 300, progress=False)
    with pytest.raises(UserError, match=r"absent\.png"):
        decode(records, 280, progress=False)


def test_free_memory_is_plausible():
    free = loader_module.free_memory()
    assert free is None or 10_000_000 < free < 10**14


def test_decode_of_nothing_is_an_error():
    with pytest.raises(UserError, match="no smears"):
        decode([], 48)


def test_bar_goes_to_stderr(tmp_path, capsys):
    records = write_smears(tmp_path, [("a", 48, 48, True)])
    decode(records, 48)
    assert "decoding" in capsys.readouterr().err
    decode(records, 48, progress=False)
    assert capsys.readouterr() == ("", "")


def golden_pixels(folder) -> str:
    """Hash of what every way of decoding makes of images that were drawn by a formula."""
    y, x = np.mgrid[:70, :90]
    rgb = np.stack([(x * 3 + y) % 256, (x * y) % 256, 255 - (x + 2 * y) % 200], axis=2).astype(np.uint8)
    disc = np.hypot(y - 30, x - 50) < 22
    rgb[disc] //= 3
    alpha = np.dstack([rgb, (x * 2).astype(np.uint8)])
    deep = ((x * 700 + y * 13) % 65536).astype(np.uint16)
    grey = np.where(disc, 90 + x % 60, 230).astype(np.uint8)
    images = {"rgb.png": rgb, "rgb.bmp": rgb, "alpha.png": alpha, "deep.png": deep, "mask.png": grey}
    images["pair.png"] = np.hstack([rgb, np.repeat(grey[..., None], 3, axis=2)])
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / name)
    mask, pair = folder / "mask.png", folder / "pair.png"
    records = [SmearRecord(name, folder / name) for name in ("rgb.png", "rgb.bmp", "alpha.png", "deep.png")]
    records += [SmearRecord("rgb.png", folder / "rgb.png", mask=mask, mask_dark=dark) for dark in (True, False)]
    records.append(SmearRecord("pair.png", pair, mask=pair, mask_dark=True, side_by_side=True))
    digest = hashlib.sha256()
    for size in (32, 70, 128):
        for record in records:
            digest.update(decode_smear(record, size).entry)
    return digest.hexdigest()[:16]


def test_pixels_are_those_of_the_decoding_version(tmp_path):
    # Where this fails on purpose, raise DECODING_VERSION and record the new hash: caches hold the old pixels.
    assert (DECODING_VERSION, golden_pixels(tmp_path)) == (1, "71d14deb0d9f5a25")


# batches


def test_centre_crop_without_augmentation_is_exact():
    source = smears()
    loader = batches_of(source, shuffle=False)
    start = centre_offset(24, 20)
    assert start == 2
    batches = list(loader)
    assert visited(batches) == list(range(13))
    for batch in batches:
        cut = source.images[batch.index, 2:22, 2:22].numpy() / np.float32(255)
        assert np.array_equal(batch.rgb.permute(0, 2, 3, 1).numpy(), cut)
        assert torch.equal(batch.mask[:, 0], source.masks[batch.index, 2:22, 2:22].float())
        assert torch.equal(batch.label, source.labels[batch.index])
        assert torch.equal(batch.has_mask, source.has_mask[batch.index])
    assert (batches[0].rgb.dtype, batches[0].mask.dtype) == (torch.float32, torch.float32)
    assert (batches[0].has_mask.dtype, batches[0].label.dtype, batches[0].index.dtype) == (
        torch.bool,
        torch.int64,
        torch.int64,
    )


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_shapes_and_memory_layout(augment):
    for channels_last, layout in [(True, torch.channels_last), (False, torch.contiguous_format)]:
        batch = next(iter(batches_of(smears(), augment=augment, channels_last=channels_last)))
        assert batch.rgb.shape == (4, 3, 20, 20)
        assert batch.mask.shape == (4, 1, 20, 20)
        assert batch.rgb.is_contiguous(memory_format=layout)
        assert not batch.rgb.requires_grad
        assert not batch.rgb.is_inference()  # such a tensor could not be saved for the backward pass


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 9, 11])
def test_every_sample_is_visited_once_an_epoch(n):
    loader = batches_of(smears(), n=n)
    for epoch in range(3):
        assert sorted(visited(run(loader, epoch))) == list(range(n))


def test_indices_choose_the_samples():
    loader = BatchLoader(smears(), [9, 2, 5], 2, 20, device=CPU, augment=None, shuffle=False, seed=0)
    assert visited(list(loader)) == [9, 2, 5]


@pytest.mark.parametrize(
    ("n", "shuffle", "drop_last", "expected"),
    [
        (9, True, False, [4, 5]),  # a single one left over joins the batch before it
        (9, False, False, [4, 4, 1]),  # at test there is no batch normalisation to break
        (9, True, True, [4, 4]),
        (10, True, False, [4, 4, 2]),
        (8, True, False, [4, 4]),
        (1, True, False, [1]),
    ],
)
def test_batch_sizes(n, shuffle, drop_last, expected):
    loader = batches_of(smears(), n=n, shuffle=shuffle, drop_last=drop_last)
    assert [len(batch.index) for batch in loader] == expected
    assert len(loader) == len(expected)


def test_batches_of_one_stay_batches_of_one():
    assert [len(batch.index) for batch in batches_of(smears(), n=3, batch=1)] == [1, 1, 1]


def test_a_resumed_run_sees_the_same_batches():
    whole = batches_of(smears(), augment=Augmentation())
    history = [run(whole, epoch) for epoch in range(4)]
    resumed = batches_of(smears(), augment=Augmentation())
    assert_same(run(resumed, 3), history[3])
    assert_same(run(resumed, 2), history[2])


@pytest.mark.parametrize(("n", "seen", "expected"), [(10, 4, [6]), (11, 5, [6]), (9, 4, [5]), (10, 8, [2])])
def test_an_epoch_goes_on_with_another_batch_size(n, seen, expected):
    """As --continue_train with another --batchSize does: what is left is not a whole number of batches."""
    loader = batches_of(smears(), n=n, batch=5)
    order = visited(run(loader, 3))
    loader.set_epoch(3, seen)
    batches = list(loader)
    assert [len(batch.index) for batch in batches] == expected
    assert visited(batches) == order[seen:]


def test_an_abandoned_epoch_leaves_no_trace():
    loader = batches_of(smears(), augment=Augmentation())
    expected = run(loader, 1)
    next(iter(loader))
    torch.rand(5)
    assert_same(run(loader, 1), expected)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation():
    loader = batches_of(smears(), augment=Augmentation())
    first, second = run(loader, 0), run(loader, 1)
    assert visited(first) != visited(second)
    assert visited(first) != visited(run(batches_of(smears(), seed=8), 0))
    fixed = batches_of(smears(), augment=Augmentation(), shuffle=False)
    assert not torch.equal(run(fixed, 0)[0].rgb, run(fixed, 1)[0].rgb)


def test_augmentation_of_a_sample_does_not_depend_on_its_batch():
    by_four = {
        i: b.rgb[k] for b in batches_of(smears(), augment=Augmentation()) for k, i in enumerate(b.index.tolist())
    }
    others = BatchLoader(smears(), [8, 3], 2, 20, device=CPU, augment=Augmentation(), shuffle=False, seed=7)
    batch = next(iter(others))
    for k, i in enumerate([8, 3]):
        torch.testing.assert_close(batch.rgb[k], by_four[i], atol=1e-6, rtol=0)


def test_entries_and_planes_are_the_same_bytes():
    source = smears(5)
    entries = source.gather(torch.tensor([3, 1, 3]))
    images, masks = planes_of(entries, 24)
    assert torch.equal(images, source.images[[3, 1, 3]])
    assert torch.equal(masks, source.masks[[3, 1, 3]])
    assert images.data_ptr() == entries.data_ptr()
    for k, i in enumerate([3, 1, 3]):
        image, mask = np.split(source.entries[source.rows[i]], [24 * 24 * 3])
        assert np.array_equal(images[k].numpy(), image.reshape(24, 24, 3))
        assert np.array_equal(masks[k].numpy(), mask.reshape(24, 24))


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_batches_do_not_depend_on_the_threads(augment):
    one, many = (batches_of(smears(29), augment=augment, batch=2, workers=workers) for workers in (1, 5))
    assert_same(run(one, 2), run(many, 2))


def test_batches_are_made_ahead_and_no_further(monkeypatch):
    loader = batches_of(smears(40), batch=2, workers=2)
    begun = []
    convert = loader._convert
    monkeypatch.setattr(loader, "_convert", lambda part: begun.append(part.tolist()) or convert(part))
    batches = iter(loader)
    next(batches)
    wait_until(lambda: len(begun) == 3)
    time.sleep(0.05)
    assert len(begun) == 3  # the one in use and two more
    next(batches)
    wait_until(lambda: len(begun) == 4)
    batches.close()
    assert len(begun) == 4


def test_an_error_in_a_thread_reaches_the_caller_in_its_turn(monkeypatch):
    loader = batches_of(smears(12), shuffle=False, batch=2)
    convert = loader._convert

    def fail(part):
        if 6 in part:
            raise OSError("the disk is gone")
        return convert(part)

    monkeypatch.setattr(loader, "_convert", fail)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in loader:
            seen += batch.index.tolist()
    assert seen == [0, 1, 2, 3, 4, 5]


def test_an_abandoned_epoch_leaves_no_thread():
    before = threading.active_count()
    for _ in batches_of(smears(40), batch=2):
        assert threading.active_count() > before
        break
    wait_until(lambda: threading.active_count() == before)


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it():
    loader = batches_of(smears(40), batch=2, workers=1)
    kept = [(batch.rgb[:1], batch.rgb[:1].clone()) for batch in loader]  # a view keeps the whole batch
    places = {view.data_ptr() for view, _ in kept}
    assert len(places) == 20
    for view, copy in kept:
        assert torch.equal(view, copy)
    del kept, view, copy
    loader.set_epoch(1)
    again = [batch.rgb.data_ptr() for batch in loader]
    assert len(set(again)) <= 4
    assert set(again) & places


def test_waiting_is_counted(monkeypatch):
    loader = batches_of(smears(8), batch=2, workers=1)
    convert = loader._convert
    monkeypatch.setattr(loader, "_convert", lambda part: time.sleep(0.05) or convert(part))
    list(loader)
    assert 0.15 < loader.waited < 2
    patient = iter(loader)
    for _ in patient:
        time.sleep(0.1)  # by then the next batch is there
    assert loader.waited < 0.12


def test_in_order_gives_results_in_order_and_no_more_than_asked():
    begun = []

    def slow_first(i):
        begun.append(i)
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert list(in_order(slow_first, range(10), workers=4, ahead=3)) == [i * i for i in range(10)]
    assert list(in_order(slow_first, [], workers=4)) == []
    begun.clear()
    results = in_order(slow_first, iter(range(1000)), workers=2, ahead=3)
    assert next(results) == 0
    results.close()
    assert len(begun) <= 4


def test_crop_larger_than_the_image_names_both_options():
    with pytest.raises(UserError, match=r"(?s)--fineSize 25.*--loadSize 24"):
        batches_of(smears(), crop=25)


def test_empty_and_foreign_indices_are_refused():
    options = {"device": CPU, "augment": None, "shuffle": False, "seed": 0}
    with pytest.raises(UserError, match="no smears"):
        BatchLoader(smears(), [], 2, 20, **options)
    with pytest.raises(UserError, match="0 to 12"):
        BatchLoader(smears(), [0, 13], 2, 20, **options)
    with pytest.raises(UserError, match="--batchSize 14"):
        batches_of(smears(), batch=14, drop_last=True)


def test_real_smears_decode_in_order(shared_data):
    folder = shared_data / "chula_rbc12" / "Dataset"
    paths = sorted(folder.glob("*.jpg"))[:6]
    decoded = decode([SmearRecord(path.name, path) for path in paths], 120, progress=False)
    assert decoded.sizes == [(640, 480)] * len(paths)
    assert not decoded.has_mask.any()
    assert 0.02 < decoded.masks.float().mean() < 0.8
    batch = next(iter(batches_of(decoded, batch=6, crop=100, augment=Augmentation(), shuffle=False)))
    assert torch.isfinite(batch.rgb).all()


# CUDA


def streamed(source: DecodedSmears, monkeypatch, streaming: bool) -> DecodedSmears:
    if streaming:
        monkeypatch.setattr(DecodedSmears, "entries_on", lambda self, device: None)
    return source


@needs_gpu
@pytest.mark.parametrize("streaming", [False, True])
def test_cuda_batches_match_the_cpus(monkeypatch, streaming):
    source = streamed(smears(), monkeypatch, streaming)
    on_gpu = run(batches_of(source, device=torch.device("cuda"), augment=Augmentation()), 1)
    on_cpu = run(batches_of(source, augment=Augmentation()), 1)
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        assert torch.equal(gpu.index.cpu(), cpu.index)
        torch.testing.assert_close(gpu.rgb.cpu(), cpu.rgb, atol=1e-3, rtol=0)
        assert (gpu.mask.cpu() != cpu.mask).float().mean() < 1e-3


@needs_gpu
@pytest.mark.parametrize("streaming", [False, True])
def test_cuda_batches_never_make_the_host_wait(monkeypatch, streaming):
    loader = batches_of(streamed(smears(), monkeypatch, streaming), device=torch.device("cuda"), augment=Augmentation())
    batches = iter(loader)
    next(batches)  # the planes, the noise bank and the epoch's table are copied here
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == len(loader) - 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_cuda_entries_are_shared_and_refused_when_too_large(monkeypatch):
    source, device = smears(), torch.device("cuda", torch.cuda.current_device())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (source.entries.nbytes, 0))
    assert source.entries_on(device) is None
    monkeypatch.undo()
    monkeypatch.setattr(loader_module, "UPLOAD_BYTES", 5000)
    whole = source.entries_on(device)
    assert torch.equal(whole.cpu(), source.gather(torch.arange(13)))
    assert source.entries_on(device) is whole
