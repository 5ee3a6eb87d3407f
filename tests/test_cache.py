from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data.cache_locks as locks
import data.cache_recipe as recipe
from data.augment import Augmentation
from data.cache import DecodedDataset, Fingerprint, open_decoded
from data.images import content_digest, otsu_mask, read_smear
from data.loader import BatchLoader, decode
from data.records import ANEMIC, HEALTHY, SmearRecord
from util.errors import UserError

SIZE = 24
ENTRY = 4 * SIZE * SIZE
MEANS = Fingerprint(lambda rgb: rgb.reshape(-1, 3).mean(axis=0).astype(np.uint8), length=3, version=1)


def write_smear(folder: Path, stem: str, seed: int, *, masked: bool = True) -> SmearRecord:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(20, 60, 2))
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(y - height * 0.4, x - width * 0.6) < min(width, height) * 0.3
    rgb = np.where(disc[..., None], (200, 80, 90), (250, 245, 240)) - rng.integers(0, 40, (height, width, 3))
    Image.fromarray(rgb.astype(np.uint8)).save(folder / f"{stem}.png")
    Image.fromarray((disc * 255).astype(np.uint8)).save(folder / f"{stem}_mask.png")
    mask = folder / f"{stem}_mask.png" if masked else None
    return SmearRecord(f"{stem}.png", folder / f"{stem}.png", mask=mask, label=(HEALTHY, ANEMIC)[seed % 2])


@pytest.fixture
def records(tmp_path) -> list[SmearRecord]:
    return [write_smear(tmp_path / "data", f"s{i}", i, masked=i % 3 > 0) for i in range(7)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the records that are decoded from now on."""
    names: list[str] = []
    original = recipe.decode_smear
    monkeypatch.setattr(
        recipe, "decode_smear", lambda record, size: names.append(record.name) or original(record, size)
    )
    return names


def opened(records, folder: Path | None, **options) -> DecodedDataset:
    return open_decoded(records, SIZE, cache_dir=folder, **{"fingerprint": MEANS, "progress": False} | options)


def packs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.smears"))


def the_pack(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def assert_like_decode(dataset: DecodedDataset, records, indices=None) -> None:
    """Compare with the same files decoded without any cache."""
    indices = range(len(records)) if indices is None else indices
    smears, plain = dataset.smears(indices), decode([records[i] for i in indices], SIZE, progress=False)
    assert torch.equal(smears.images, plain.images)
    assert torch.equal(smears.masks, plain.masks)
    assert torch.equal(smears.has_mask, plain.has_mask)
    assert torch.equal(smears.labels, plain.labels)
    assert (smears.names, smears.sizes, smears.load_size) == (plain.names, plain.sizes, SIZE)
    assert dataset.digests == [content_digest(read_smear(record)) for record in records]
    assert np.array_equal(dataset.fingerprints, np.stack([MEANS.compute(read_smear(record)) for record in records]))


def damage(path: Path, place: int) -> None:
    """Flip the bits of one byte; a place below 0 counts from the end."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


# what is kept and what is decoded again


def test_second_start_decodes_nothing_and_gives_the_same(records, folder, decoded):
    first = opened(records, folder)
    assert sorted(decoded) == sorted(record.name for record in records)
    assert_like_decode(first, records)
    decoded.clear()
    written = the_pack(folder).stat().st_ino
    second = opened(records, folder)
    assert_like_decode(second, records)
    assert decoded == []
    assert the_pack(folder).stat().st_ino == written


def test_without_a_folder_everything_is_decoded_once_into_memory(records, tmp_path, decoded):
    assert_like_decode(opened(records, None), records)
    assert sorted(decoded) == sorted(record.name for record in records)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_memory_is_checked_only_without_a_cache(records, folder, monkeypatch):
    monkeypatch.setattr("data.loader.free_memory", lambda: 1000)
    with pytest.raises(UserError, match="7 smears at 24 x 24 need"):
        opened(records, None)
    opened(records, folder)


def test_sides_and_orders_share_one_pack(records, folder, decoded):
    assert_like_decode(opened(records, folder), records, [5, 0, 3])
    decoded.clear()
    assert_like_decode(opened(records[::-1], folder), records[::-1], [1, 6])
    assert decoded == []
    assert len(packs(folder)) == 1


def test_equal_files_are_decoded_and_kept_once(records, folder, tmp_path, decoded):
    copies = [replace(record, name=f"x/{record.name}", image=tmp_path / f"x_{record.name}") for record in records]
    for record, copy in zip(records, copies, strict=True):
        copy.image.write_bytes(record.image.read_bytes())
    both = records + copies
    dataset = opened(both, folder)
    assert len(decoded) == 7
    assert the_pack(folder).stat().st_size < 4096 + 8 * ENTRY
    assert_like_decode(dataset, both)


def test_only_a_changed_image_is_decoded_again(records, folder, decoded):
    opened(records, folder)
    decoded.clear()
    replacement = write_smear(records[2].image.parent, "other", 99)
    records[2].image.write_bytes(replacement.image.read_bytes())
    records[2].mask.write_bytes(replacement.mask.read_bytes())
    assert_like_decode(opened(records, folder), records)
    assert decoded == ["s2.png"]


def test_content_counts_and_not_the_date(records, folder, decoded):
    opened(records, folder)
    decoded.clear()
    for record in records:
        os.utime(record.image, ns=(1, 1))
    opened(records, folder)
    assert decoded == []
    before = records[0].image.stat()
    pixels = read_smear(records[0])
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(records[0].image)
    os.utime(records[0].image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_like_decode(opened(records, folder), records)
    assert decoded == ["s0.png"]


def flipped(record: SmearRecord) -> SmearRecord:
    return replace(record, mask_dark=not record.mask_dark)


def without_mask(record: SmearRecord) -> SmearRecord:
    return replace(record, mask=None)


@pytest.mark.parametrize("change", [flipped, without_mask])
def test_how_the_mask_is_read_is_part_of_the_key(records, folder, decoded, change):
    opened(records, folder)
    decoded.clear()
    changed = [*records[:4], change(records[4]), *records[5:]]
    assert records[4].mask is not None
    assert_like_decode(opened(changed, folder), changed)
    assert decoded == ["s4.png"]


def test_mask_bytes_are_part_of_the_key(records, folder, decoded):
    opened(records, folder)
    decoded.clear()
    mask = np.array(Image.open(records[1].mask))
    Image.fromarray(255 - mask).save(records[1].mask)
    assert_like_decode(opened(records, folder), records)
    assert decoded == ["s1.png"]


def test_side_by_side_is_part_of_the_key(folder, tmp_path):
    wide = write_smear(tmp_path, "wide", 2).image
    rgb = np.array(Image.open(wide).resize((64, 32)))
    Image.fromarray(rgb).save(wide)
    whole, halves = (
        SmearRecord("wide.png", wide, mask=wide),
        SmearRecord("wide.png", wide, mask=wide, side_by_side=True),
    )
    assert_like_decode(opened([whole], folder), [whole])
    assert_like_decode(opened([halves], folder), [halves])


def test_size_fingerprint_and_code_versions_are_part_of_the_key(records, folder, decoded, monkeypatch):
    opened(records, folder)
    decoded.clear()
    assert open_decoded(records, 12, cache_dir=folder, progress=False).smears([0]).images.shape == (1, 12, 12, 3)
    assert len(decoded) == 7
    assert opened(records, folder, fingerprint=None).fingerprints.shape == (7, 0)
    assert len(decoded) == 14
    opened(records, folder, fingerprint=replace(MEANS, version=2))
    assert len(decoded) == 21
    monkeypatch.setattr(recipe, "DECODING_VERSION", recipe.DECODING_VERSION + 1)
    opened(records, folder)
    assert len(decoded) == 28
    monkeypatch.setattr(recipe.PIL, "__version__", "0.1")
    opened(records, folder)
    assert len(decoded) == 35


def test_a_renamed_extension_is_refused_though_its_bytes_are_known(records, folder, tmp_path):
    opened(records, folder)
    liar = tmp_path / "liar.jpg"
    liar.write_bytes(records[0].image.read_bytes())
    with pytest.raises(UserError, match=r"(?s)liar\.jpg.*does not match the extension"):
        opened([*records, replace(records[0], image=liar)], folder)


def test_masks_of_one_pixel_and_of_none_survive(folder, tmp_path):
    masks = [np.zeros((SIZE, SIZE), np.uint8) for _ in range(3)]
    masks[0][7, 3] = 255
    masks[2][:] = 255
    records = []
    for i, mask in enumerate(masks):
        record = write_smear(tmp_path / "data", f"m{i}", i)
        Image.fromarray(np.full((SIZE, SIZE, 3), 200, np.uint8)).save(record.image)
        Image.fromarray(mask).save(record.mask)
        records.append(record)
    for _ in range(2):
        kept = opened(records, folder).smears(range(3))
        assert np.array_equal(kept.masks.numpy() * 255, np.stack(masks))
        assert kept.has_mask.all()


def test_stand_in_masks_are_kept_and_still_no_truth(records, folder):
    for _ in range(2):
        smears = opened(records, folder).smears(range(7))
        assert smears.has_mask.tolist() == [False, True, True, False, True, True, False]
    record = replace(records[0], image=records[0].image.with_name("same.png"))
    Image.fromarray(read_smear(records[0])).resize((SIZE, SIZE)).save(record.image)
    mask = opened([record], folder).smears([0]).masks[0].numpy()
    expected = otsu_mask(read_smear(record))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(mask.astype(bool), expected)


@pytest.mark.parametrize("stem", ["a b", "ä<b>&'\"", "日本語", "new\nline", "-rf", "%s{}", "x" * 200])
def test_odd_names(folder, tmp_path, stem):
    records = [write_smear(tmp_path / "od d" / stem, stem, 1)]
    for _ in range(2):
        assert_like_decode(opened(records, folder / stem), records)


def test_odd_bytes_in_names(folder, tmp_path):
    record = write_smear(tmp_path / "data", "plain", 1)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        odd.write_bytes(record.image.read_bytes())
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    odd_record = replace(record, name=odd.name, image=odd)
    assert_like_decode(opened([odd_record], folder), [odd_record])


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_batches_are_those_from_memory_bit_for_bit(records, folder, augment):
    cpu = torch.device("cpu")
    kept, plain = opened(records, folder).smears(range(7)), decode(records, SIZE, progress=False)
    for epoch in (0, 3):
        batches = []
        for smears in (kept, plain):
            loader = BatchLoader(smears, range(7), 3, 20, device=cpu, augment=augment, shuffle=True, seed=5)
            loader.set_epoch(epoch)
            batches.append(list(loader))
        for one, other in zip(*batches, strict=True):
            for name in ("rgb", "mask", "has_mask", "paired", "label", "index"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


# errors of the files


def test_bad_files_raise_what_decoding_raises(records, folder, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    small = tmp_path / "small.png"
    Image.new("L", (3, 3)).save(small)
    cases = [{"image": tmp_path / "absent.png"}, {"image": bad}, {"image": tmp_path}, {"image": pipe}]
    cases += [{"mask": tmp_path / "absent.png"}, {"mask": bad}, {"mask": small}]
    for case in cases:
        wrong = [*records[:2], replace(records[2], **case)]
        with pytest.raises(UserError) as plain:
            decode(wrong, SIZE, progress=False)
        for place in (folder, None):
            with pytest.raises(UserError) as found:
                opened(wrong, place)
            assert str(found.value) == str(plain.value)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_no_records_and_no_indices_are_refused(records, folder):
    with pytest.raises(UserError, match="no smears"):
        opened([], folder)
    with pytest.raises(UserError, match="no smears"):
        opened(records, folder).smears([])


def test_a_file_that_changes_while_it_is_read_is_no_entry(records, folder, monkeypatch):
    original = recipe.decode_smear

    def decode_late(record, size):
        if record.name == "s3.png":
            record.image.write_bytes(records[4].image.read_bytes())
        return original(record, size)

    monkeypatch.setattr(recipe, "decode_smear", decode_late)
    with pytest.raises(UserError, match=r"s3\.png: the file, or its mask, changed while it was read"):
        opened(records, folder)
    assert list(folder.iterdir()) == []


# damage


def test_a_corrupt_entry_is_decoded_again_with_a_warning(records, folder, decoded, capsys):
    opened(records, folder)
    decoded.clear()
    path = the_pack(folder)
    damage(path, -1)
    damage(path, -ENTRY - 1)
    dataset = opened(records, folder)
    assert decoded == []
    assert_like_decode(dataset, records)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == len(decoded) == 2
    for name, line in zip(sorted(decoded), sorted(warnings), strict=True):
        assert line == f"warning: {name} is damaged in {path}: it is decoded again"
    assert the_pack(folder) == path
    decoded.clear()
    assert_like_decode(opened(records, folder), records)
    assert (decoded, capsys.readouterr().err) == ([], "")


def test_entries_are_checked_when_they_are_first_asked_for(records, folder, decoded, capsys):
    opened(records, folder)
    path = the_pack(folder)
    damage(path, -1)
    dataset = opened(records, folder)
    last = dataset._rows.tolist().index(6)
    others = [i for i in range(7) if i != last]
    kept = dataset.smears(others)
    assert capsys.readouterr().err == ""
    dataset.smears([last])
    assert records[last].name in capsys.readouterr().err
    assert torch.equal(kept.images, decode([records[i] for i in others], SIZE, progress=False).images)


def test_a_damaged_entry_whose_file_is_gone_is_never_trusted(records, folder):
    opened(records, folder)
    damage(the_pack(folder), -1)
    dataset = opened(records, folder)
    for record in records:
        record.image.unlink()
    with pytest.raises(UserError, match="no such image"):
        dataset.smears(range(7))


def forged(numbers: tuple[int, int, int], table: bytes, rest: bytes) -> bytes:
    """A pack with a right checksum over whatever its header claims."""
    checksum = zlib.crc32(table, zlib.crc32(struct.pack("<3I", *numbers)))
    return struct.pack("<8s4I", b"DCFPACK1", *numbers, checksum) + table + rest


HOSTILE = {
    "empty": lambda whole: b"",
    "short header": lambda whole: whole[:10],
    "cut table": lambda whole: whole[:100],
    "cut entries": lambda whole: whole[:-1],
    "half": lambda whole: whole[: len(whole) // 2],
    "longer": lambda whole: whole + b"\0",
    "magic": lambda whole: b"X" + whole[1:],
    "table": lambda whole: whole[:40] + b"\xff" + whole[41:],
    "absurd count": lambda whole: forged((SIZE, 2**32 - 1, 3), whole[24:1000], whole[1000:]),
    "absurd size": lambda whole: forged((2**32 - 1, 7, 3), whole[24:1000], whole[1000:]),
    "absurd fingerprint": lambda whole: forged((SIZE, 7, 2**32 - 1), whole[24:1000], whole[1000:]),
    "no entries": lambda whole: forged((SIZE, 0, 3), b"", bytes(4096 - 24)),
    "other keys": lambda whole: forged((SIZE, 7, 3), bytes(7 * 79), whole[24 + 7 * 79 :]),
    "pickle": lambda whole: b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_unsound_file_is_made_again(records, folder, decoded, capsys, kind):
    opened(records, folder)
    path = the_pack(folder)
    whole = path.read_bytes()
    path.write_bytes(HOSTILE[kind](whole))
    decoded.clear()
    assert_like_decode(opened(records, folder), records)
    assert len(decoded) == 7
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {path} is damaged (")
    assert message.count("\n") == 1
    assert the_pack(folder).read_bytes() == whole


def test_an_unsound_donor_is_passed_over(records, folder, decoded):
    opened(records, folder)
    damage(the_pack(folder), 50)
    decoded.clear()
    assert_like_decode(opened(records[:5], folder), records[:5])
    assert len(decoded) == 5


def test_a_damaged_entry_is_not_copied_to_another_pack(records, folder, decoded):
    opened(records, folder)
    damage(the_pack(folder), -1)
    decoded.clear()
    few = opened(records[:6], folder)
    assert_like_decode(few, records[:6])
    assert len(decoded) == (0 if opened(records, folder)._rows[6] == 6 else 1)


def test_a_folder_in_the_packs_place_is_an_error(records, folder):
    opened(records, folder)
    path = the_pack(folder)
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    with pytest.raises(UserError, match=r"(?s)cannot write .*--cache_dir.*--no_cache"):
        opened(records, folder)
    assert list(folder.iterdir()) == [path]


# builds that do not end well


def test_an_error_in_the_middle_leaves_nothing(records, folder, monkeypatch, decoded):
    original = recipe.decode_smear

    def fail(record, size):
        if record.name == "s3.png":
            raise KeyboardInterrupt
        return original(record, size)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "decode_smear", fail)
        with pytest.raises(KeyboardInterrupt):
            opened(records, folder)
    assert list(folder.iterdir()) == []
    assert_like_decode(opened(records, folder), records)


def killed_build(records, folder) -> None:
    """Kill this process in the middle of a build."""
    original = recipe.content_digest
    made = []

    def count(rgb):
        made.append(1)
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(rgb)

    recipe.content_digest = count
    opened(records, folder, workers=1)


def in_process(work, *arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def test_a_killed_build_is_not_used_and_removed_by_the_next(records, folder):
    process = in_process(killed_build, records, folder)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert any(path.suffix == ".partial" for path in folder.iterdir())
    assert packs(folder) == []
    assert_like_decode(opened(records, folder), records)
    assert len(list(folder.iterdir())) == 1


def test_another_packs_leavings_are_removed_too_but_not_a_live_builders(records, folder):
    in_process(killed_build, records, folder).join(60)
    assert any(path.suffix == ".partial" for path in folder.iterdir())
    opened(records[:3], folder)
    assert list(folder.iterdir()) == packs(folder)
    live = folder / f"24-{'0' * 8}-{'1' * 32}.smears.{'2' * 16}.partial"
    live.touch()
    mine = folder / "notes.partial"
    mine.touch()
    with locks.only_builder(live.with_suffix("").with_suffix(""), wait=False) as alone:
        assert alone
        opened(records[3:6], folder)
        assert live.exists()
    opened(records[2:6], folder)
    assert not live.exists()
    assert mine.exists()
    assert [path for path in folder.iterdir() if path.suffix == ".partial"] == [mine]


def slow_build(records, folder, results) -> None:
    names = []
    original = recipe.decode_smear

    def slowly(record, size):
        names.append(record.name)
        time.sleep(0.03)
        return original(record, size)

    recipe.decode_smear = slowly
    dataset = opened(records, folder)
    results.put((len(names), dataset.digests, dataset.smears(range(len(records))).images.numpy().tobytes()))


def test_two_builders_at_once_make_one_pack(records, folder):
    results = multiprocessing.get_context("fork").Queue()
    builders = [in_process(slow_build, records, folder, results) for _ in range(3)]
    answers = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(60)
    assert sorted(count for count, _, _ in answers) == [0, 0, 7]
    plain = decode(records, SIZE, progress=False)
    for _, digests, images in answers:
        assert digests == [content_digest(read_smear(record)) for record in records]
        assert images == plain.images.numpy().tobytes()
    assert the_pack(folder).suffix == ".smears"


def test_without_locks_the_last_builder_wins(records, folder, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    for _ in range(2):
        assert_like_decode(opened(records, folder), records)
    assert len(list(folder.iterdir())) == 1


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["posix_fallocate", "fsync"])
def test_a_full_disk_is_one_error_and_nothing_is_left(records, folder, monkeypatch, decoded, place):
    monkeypatch.setattr(os, place, full_disk)
    with pytest.raises(UserError, match=r"(?s)cannot write .*No space left.*--cache_dir.*--no_cache"):
        opened(records, folder)
    assert list(folder.iterdir()) == []
    assert len(decoded) == (0 if place == "posix_fallocate" else 7)


def test_a_file_system_that_cannot_reserve_serves_as_well(records, folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert_like_decode(opened(records, folder), records)


def test_an_unwritable_folder_is_one_error(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"(?s)cannot write .*--cache_dir.*--no_cache"):
        opened(records, tmp_path / "file" / "cache")


def test_a_folder_that_is_only_to_be_read_serves_what_it_holds(records, folder, monkeypatch):
    opened(records, folder)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_like_decode(opened(records, folder), records)


# the limit


def used_at(path: Path, when: int) -> None:
    os.utime(path, ns=(when * 10**9, when * 10**9))


def test_the_least_recently_used_packs_go(records, folder):
    made = []
    for k in range(3):
        opened(records[k : k + 2], folder)
        made += [path for path in packs(folder) if path not in made]
        used_at(made[-1], 100 + k)
    opened(records[0:2], folder)  # uses the oldest
    size = made[0].stat().st_size
    opened(records[3:5], folder, cache_gb=2.5 * size / 1e9)
    left = packs(folder)
    assert made[0] in left
    assert made[1] not in left
    assert made[2] not in left
    assert len(left) == 2


def test_a_pack_in_use_is_never_removed(records, folder, capsys):
    held = opened(records[0:2], folder).smears([0, 1])  # the smears alone keep it
    path = the_pack(folder)
    used_at(path, 1)
    limit = 1.5 * path.stat().st_size / 1e9
    dataset = opened(records[2:4], folder, cache_gb=limit)
    assert path.exists()
    assert "in use" in capsys.readouterr().err
    assert torch.equal(held.images, decode(records[0:2], SIZE, progress=False).images)
    del held, dataset
    opened(records[4:6], folder, cache_gb=limit)
    assert not path.exists()
    assert len(packs(folder)) == 1
    assert capsys.readouterr().err == ""


def test_other_peoples_files_are_never_removed(records, folder):
    folder.mkdir()
    others = [folder / name for name in ("pack-1.pack", "a.smears", "photo.png", "x.partial")]
    for other in others:
        other.write_bytes(bytes(10**6))
        used_at(other, 1)
    size = 4096 + 2 * ENTRY
    opened(records[0:2], folder, cache_gb=size / 1e9)
    opened(records[2:4], folder, cache_gb=size / 1e9)
    assert all(other.exists() for other in others)
    assert len(list(folder.iterdir())) == 5


def test_a_pack_above_the_limit_is_refused_before_the_work(records, folder, decoded):
    with pytest.raises(UserError, match=r"(?s)more than the cache may hold.*--cache_gb.*--no_cache"):
        opened(records, folder, cache_gb=1e-6)
    assert decoded == []
    assert not folder.exists()


def test_mapped_pixels_cannot_be_written_to(records, folder):
    smears = opened(records, folder).smears(range(7))
    with pytest.raises(ValueError, match="read-only"):
        smears.entries[0, 0] = 1


def test_real_smears(shared_data, tmp_path):
    images = sorted((shared_data / "chula_rbc12" / "Dataset").glob("*.jpg"))[:5]
    records = [SmearRecord(path.name, path) for path in images]
    for _ in range(2):
        assert_like_decode(opened(records, tmp_path / "cache"), records, [4, 1])
