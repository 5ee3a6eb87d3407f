"""Smears decoded once, and batches of them gathered ahead of the step, cut and augmented on the device."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.augment import Augmentation, centre_offset
from data.images import other_size, otsu_mask, read_smear, read_truth
from data.records import SmearRecord
from util.cores import usable_cores
from util.errors import UserError

# Of everything from a file to its entry: reading, masks, resizing. A change of any pixel must raise it, or caches keep
# what the old code made; a test compares pixels with those recorded for this version.
DECODING_VERSION = 1
BYTES_PER_PIXEL = 4  # red, green, blue, mask
HOST_SHARE = 0.8  # of free host memory that decoded smears may take: the decoders and the network need the rest
DEVICE_SHARE = 0.4  # of free device memory
UPLOAD_BYTES = 64_000_000  # of decoded smears gathered at a time on their way to a device
WHITE = np.float32(255)
_ROWS = 512  # of a mask that are turned into numbers at a time
UNKNOWN = -1

Item = TypeVar("Item")
Result = TypeVar("Result")
_Planes: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False)
class DecodedSmears:
    """Smears at one square size, with masks and labels, in the order of their records.

    What holds the pixels is this class's own affair (memory, or a mapped file): everything else asks :meth:`gather` or
    :meth:`entries_on`, and takes an entry apart with :func:`planes_of`.

    Attributes:
        entries: uint8 (M, 4 S S), read-only where mapped; a row is an image (S, S, 3) and its mask (S, S) of 0 and 1.
        rows: int64 (N,); the row of each smear, equal files may share one.
        load_size: side S of the decoded images, pixels.
        has_mask: bool (N,); False where the mask is Otsu's of that image, a stand-in and no ground truth.
        labels: int64 (N,); HEALTHY, ANEMIC, or -1 where unknown.
        names: the records' names.
        sizes: (width, height) of each input file, pixels.
    """

    entries: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.int64]
    load_size: int
    has_mask: Tensor
    labels: Tensor
    names: list[str]
    sizes: list[tuple[int, int]]
    _resident: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of_records(
        cls,
        records: Sequence[SmearRecord],
        entries: npt.NDArray[np.uint8],
        rows: npt.NDArray[np.int64],
        load_size: int,
        sizes: list[tuple[int, int]],
    ) -> DecodedSmears:
        """Put the records' names and labels beside their pixels."""
        return cls(
            entries,
            rows,
            load_size,
            has_mask=torch.tensor([record.mask is not None for record in records], dtype=torch.bool),
            labels=torch.tensor([UNKNOWN if record.label is None else record.label for record in records]),
            names=[record.name for record in records],
            sizes=sizes,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> Tensor:
        """All images, uint8 (N, S, S, 3); a copy."""
        return planes_of(self.gather(torch.arange(len(self))), self.load_size)[0]

    @property
    def masks(self) -> Tensor:
        """All masks, uint8 (N, S, S) of 0 and 1; a copy."""
        return planes_of(self.gather(torch.arange(len(self))), self.load_size)[1]

    def gather(self, index: Tensor, *, pinned: bool = False) -> Tensor:
        """Copy the entries at ``index``, uint8 (B, 4 S S), on the host; to page-locked memory if asked."""
        found = torch.empty((len(index), self.entries.shape[1]), dtype=torch.uint8, pin_memory=pinned)
        # Any other mode than "raise" lets NumPy write into the result without a copy between; the rows do exist.
        np.take(self.entries, self.rows[index.numpy()], axis=0, out=found.numpy(), mode="clip")
        return found

    def entries_on(self, device: torch.device) -> Tensor | None:
        """The smears' entries whole on a GPU, (N, 4 S S), or None where they would fill too much of its free memory.

        They are copied once, whoever asks: a training and a validation loader share them.
        """
        if device not in self._resident:
            free = torch.cuda.mem_get_info(device)[0]
            if len(self) * self.entries.shape[1] >= DEVICE_SHARE * free:
                return None
            whole = torch.empty((len(self), self.entries.shape[1]), dtype=torch.uint8, device=device)
            for part in torch.split(torch.arange(len(self)), max(1, UPLOAD_BYTES // self.entries.shape[1])):
                whole[part[0] : part[-1] + 1] = self.gather(part).to(device)
            self._resident[device] = whole
        return self._resident[device]


def planes_of(entries: Tensor, load_size: int) -> tuple[Tensor, Tensor]:
    """Images (B, S, S, 3) and masks (B, S, S) as views of entries (B, 4 S S)."""
    area = load_size**2
    images = entries[:, : 3 * area].view(-1, load_size, load_size, 3)
    return images, entries[:, 3 * area :].view(-1, load_size, load_size)


class DecodedSmear(NamedTuple):
    """One smear out of its files: its entry, uint8 (4 S S,), and the whole image, uint8 (H, W, 3)."""

    entry: npt.NDArray[np.uint8]
    rgb: npt.NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the input file, pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def decode_smear(record: SmearRecord, load_size: int) -> DecodedSmear:
    """Read a smear and its mask and resize them to one square; what is not square is stretched, the mask with it.

    Raises:
        UserError: a file that cannot be read; a mask of another size than its image.
    """
    rgb, mask = _read_pair(record)
    planes = resize_image(rgb, load_size).reshape(-1), resize_mask(mask, load_size).reshape(-1)
    return DecodedSmear(np.concatenate(planes), rgb)


def decode(
    records: Sequence[SmearRecord], load_size: int, *, workers: int | None = None, progress: bool = True
) -> DecodedSmears:
    """Decode every smear into memory.

    Args:
        records: the smears, in the order that the result keeps.
        load_size: side S of the result, pixels.
        workers: decoding threads, by default one per usable core (Pillow and NumPy work outside Python's lock).
        progress: show a bar on stderr.

    Raises:
        UserError: no records; too little memory; what ``decode_smear`` refuses.
    """
    check_some(records)
    check_memory(len(records), load_size)
    entries = np.empty((len(records), BYTES_PER_PIXEL * load_size**2), dtype=np.uint8)
    sizes: list[tuple[int, int]] = []
    smears = in_order(lambda record: decode_smear(record, load_size), records, workers)
    for i, smear in enumerate(tqdm(smears, total=len(records), desc="decoding", unit="img", disable=not progress)):
        entries[i] = smear.entry
        sizes.append(smear.size)
    return DecodedSmears.of_records(records, entries, np.arange(len(records)), load_size, sizes)


def check_some(records: Sequence[SmearRecord]) -> None:
    """Refuse to decode nothing.

    Raises:
        UserError: there are no records.
    """
    if not records:
        raise UserError(
            "no smears to load", expected="at least one image", remedy="check --dataroot and the split file"
        )


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int | None = None
) -> Generator[Result, None, None]:
    """Do ``work`` on each item in threads and give the results in the order of the items.

    An error is raised where its result would have come. Whoever leaves early (or closes the generator) stops what has
    not begun, and waits for what has.

    Args:
        work: what to do with an item.
        items: on what.
        workers: threads, by default one per usable core.
        ahead: how many items may be begun beyond the one that is given; by default four a thread.
    """
    waiting, threads = iter(items), workers or usable_cores()
    pool = ThreadPoolExecutor(threads)
    try:
        begun = deque(pool.submit(work, item) for item in islice(waiting, ahead or 4 * threads))
        while begun:
            begun.extend(pool.submit(work, item) for item in islice(waiting, 1))
            yield begun.popleft().result()  # kept in no name, so that it goes when the caller drops it
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_pair(record: SmearRecord) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (H, W, 3), and its mask, bool (H, W): the true one, or Otsu's where there is none."""
    rgb = read_smear(record)
    if record.mask is None:
        return rgb, otsu_mask(rgb)
    mask = read_truth(record)
    if mask.shape != rgb.shape[:2]:
        raise other_size(record, rgb.shape[1::-1], mask.shape[::-1])
    return rgb, mask


def resize_image(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resize an image (H, W, 3) to a square, stretched where it was none: uint8 (size, size, 3)."""
    # Pillow's bilinear filter widens as it shrinks an image, so nothing aliases; the gap first halves large ones.
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Share of foreground under each new pixel, more than half of it is foreground: uint8 (size, size) of 0 and 1."""
    plane = Image.new("F", mask.shape[::-1])
    for top in range(0, len(mask), _ROWS):  # of a large mask the numbers of all pixels at once would be a copy too many
        plane.paste(Image.fromarray(mask[top : top + _ROWS].astype(np.float32)), (0, top))
    plane = plane.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return (np.asarray(plane) > 0.5).astype(np.uint8)


def free_memory() -> int | None:
    """Host memory that can be taken without swapping, bytes; None where the system does not say (Windows)."""
    meminfo = Path("/proc/meminfo")
    # sysconf counts the file cache as used, and after one pass over the data set that is most of it.
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    names = getattr(os, "sysconf_names", {})
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS knows the second only: an upper bound
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return None


def check_memory(count: int, load_size: int) -> None:
    """Refuse what would not fit into memory.

    Raises:
        UserError: ``count`` smears at ``load_size`` need more than ``HOST_SHARE`` of what is free.
    """
    need, free = count * load_size**2 * BYTES_PER_PIXEL, free_memory()
    if free is not None and need > HOST_SHARE * free:
        raise UserError(
            f"{count} smears at {load_size} x {load_size} need {_gigabytes(need)} of memory",
            expected=f"at most {_gigabytes(HOST_SHARE * free)} ({HOST_SHARE:.0%} of what is free)",
            found=f"{_gigabytes(free)} free",
            remedy="lower --loadSize (and --fineSize with it), split the data, or free memory",
        )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


@dataclass
class Batch:
    """One batch on the device.

    Attributes:
        rgb: float32 (B, 3, C, C) in [0, 1].
        mask: float32 (B, 1, C, C) of 0 and 1.
        has_mask: bool (B,); False where the mask is a stand-in.
        paired: int64 (P,); where in the batch the images with a true mask are, so that nobody need ask the device.
        label: int64 (B,); -1 where unknown.
        index: int64 (B,); positions in the DecodedSmears.
    """

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    paired: Tensor
    label: Tensor
    index: Tensor


class BatchLoader:
    """Batches of an epoch, made on the device that trains.

    The order of epoch e depends on (seed, e) only, and a sample's augmentation on (seed, e, its index) only: a resumed
    run sees the batches that the uninterrupted one would have seen. When shuffling, a last batch of a single sample (a
    process) joins the batch before it (which then has batch_size + 1), since batch normalisation cannot train on one;
    no sample is dropped unless ``drop_last`` asks for it.

    Threads make the batches that come next while the caller uses the last one. On a CPU they cut and convert; what they
    augment is left to the caller's thread, whose arithmetic already uses every core. For a GPU that cannot hold all
    smears they copy bytes to it. Where it can hold them nothing is left to make ahead.

    Args:
        smears: the decoded smears.
        indices: which of them, as positions; their order is kept unless ``shuffle``.
        batch_size: samples per batch.
        crop_size: side C of what comes out, pixels; at most the smears' load_size.
        device: where the batches are made.
        augment: how to vary them; None cuts the centre and changes nothing.
        shuffle: a new order each epoch.
        seed: the run's seed, >= 0.
        drop_last: leave out a last batch that is not full.
        channels_last: memory layout of ``rgb``, the faster one for convolutions.
        workers: threads that make batches ahead, one each.
        share: (which, of how many): of several processes that train together each takes its part of every batch.

    Attributes:
        waited: seconds that the caller waited for batches in the last iteration.

    Raises:
        UserError: crop_size above load_size; no indices; an index out of range; drop_last would leave nothing.
    """

    def __init__(
        self,
        smears: DecodedSmears,
        indices: Sequence[int],
        batch_size: int,
        crop_size: int,
        *,
        device: torch.device,
        augment: Augmentation | None,
        shuffle: bool,
        seed: int,
        drop_last: bool = False,
        channels_last: bool = True,
        workers: int = 2,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.smears, self.batch_size, self.crop_size = smears, batch_size, crop_size
        self.indices = np.asarray(indices, dtype=np.int64)
        self.device, self.augment, self.shuffle, self.seed = torch.device(device), augment, shuffle, seed
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.epoch, self.seen, self.workers, self.waited = 0, 0, workers, 0.0
        self.share = share
        self._copies: torch.cuda.Stream | None = None
        self._check()
        # Of one image batch normalisation cannot learn, so each process's share of a batch holds two at least.
        self._fewest = 2 * share[1] if shuffle else 1
        self._drop_last = drop_last
        self._sizes = self._sizes_after(0)
        if not self._sizes:
            raise UserError(
                f"--batchSize {batch_size}: no full batch in {len(self.indices)} smears, and others are left out",
                remedy=f"give --batchSize {len(self.indices)} or less",
            )
        side = smears.load_size if augment else crop_size
        # What is left of an epoch begun with another --batchSize may end in a fuller batch than a whole epoch has.
        largest = min(len(self.indices), batch_size + self._fewest - 1)
        self._memory = _FloatMemory(-(-largest // share[1]), side, spare=workers + 2)
        self._has_mask, self._labels = smears.has_mask.to(self.device), smears.labels.to(self.device)

    def _check(self) -> None:
        if self.crop_size > self.smears.load_size:
            raise UserError(
                f"--fineSize {self.crop_size}: the crop is larger than the image it is cut from",
                expected=f"at most --loadSize {self.smears.load_size}",
                remedy="lower --fineSize or raise --loadSize",
            )
        if len(self.indices) == 0:
            raise UserError("no smears in this part of the split", remedy="check the split file, or split again")
        if self.indices.min() < 0 or self.indices.max() >= len(self.smears):
            raise UserError(
                "the split names smears that were not loaded",
                expected=f"positions 0 to {len(self.smears) - 1}",
                found=f"{self.indices.min()} to {self.indices.max()}",
            )

    def set_epoch(self, epoch: int, seen: int = 0) -> None:
        """Choose the epoch, >= 0, whose order and augmentation the next iteration gives.

        Args:
            epoch: this.
            seen: images of that epoch, the first ones in its order, that are left out because they were seen already.
        """
        self.epoch, self.seen = epoch, seen

    def __len__(self) -> int:
        """Batches in the epoch, those that were seen already not among them."""
        return len(self._sizes_after(self.seen))

    def _sizes_after(self, seen: int) -> list[int]:
        """Sizes of the batches, all processes' shares together, of what is left of an epoch.

        Too few to give each process two are left out; that is only where a run goes on with more processes than before.
        """
        if seen and len(self.indices) - seen < self._fewest:
            return []
        return _batch_sizes(len(self.indices) - seen, self.batch_size, self._drop_last, self._fewest)

    def __iter__(self) -> Iterator[Batch]:
        order, sizes = torch.from_numpy(self._order())[self.seen :], self._sizes_after(self.seen)
        which, processes = self.share
        parts = [part[which::processes] for part in torch.split(order[: sum(sizes)], sizes)] if sizes else []
        table = self._parameter_table()
        for planes, paired in zip(self._planes(parts), self._paired(parts), strict=True):
            yield self._finish(*planes, paired, table)

    def _order(self) -> np.ndarray:
        """The epoch's order, int64; a spawn key keeps it apart from the stream that draws the augmentation."""
        if not self.shuffle:
            return self.indices
        stream = np.random.SeedSequence([self.seed, self.epoch], spawn_key=(1,))
        return np.random.default_rng(stream).permutation(self.indices)

    def _parameter_table(self) -> dict[str, Tensor]:
        """The augmentation of every smear in this epoch, on the device: one small copy an epoch, none a batch."""
        if self.augment is None:
            return {}
        table = self.augment.sample_parameters(len(self.smears), self.seed, self.epoch)
        return {name: torch.from_numpy(column).to(self.device) for name, column in table.items()}

    def _paired(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Where in each batch the images with a true mask are; all of it crosses over at once, not batch by batch."""
        places = [self.smears.has_mask[part].nonzero().squeeze(1) for part in parts]
        whole = torch.cat([torch.empty(0, dtype=torch.int64), *places]).to(self.device)
        return torch.split(whole, [len(each) for each in places])

    def _planes(self, parts: Sequence[Tensor]) -> Iterator[_Planes]:
        """Index, images and masks of each batch, as floats on the device, not yet augmented."""
        if self.device.type == "cpu":
            return self._timed(in_order(self._convert, parts, self.workers, self.workers))
        entries = self.smears.entries_on(self.device)
        return self._streamed(parts) if entries is None else self._picked(parts, entries)

    def _timed(self, results: Generator[Result, None, None]) -> Iterator[Result]:
        """Pass results on and add up how long each was waited for."""
        self.waited = 0.0
        with contextlib.closing(results):
            while True:
                asked = time.perf_counter()
                try:
                    result = next(results)
                except StopIteration:
                    return
                self.waited += time.perf_counter() - asked
                yield result
                del result

    def _convert(self, part: Tensor) -> _Planes:
        """Bytes to floats on the host, cut to the centre unless augmentation shall choose: one pass."""
        size, rows = self.smears.load_size, self.smears.rows[part.numpy()]
        rgb, mask = self._memory.take(len(part))
        rgb_out, mask_out = rgb.numpy(), mask.numpy()
        cut = slice(None) if self.augment else self._centre
        for k, row in enumerate(rows):
            image, plane = np.split(self.smears.entries[row], [3 * size**2])
            np.divide(image.reshape(size, size, 3)[cut, cut], WHITE, out=rgb_out[k], dtype=np.float32)
            mask_out[k, 0] = plane.reshape(size, size)[cut, cut]
        return part, rgb.permute(0, 3, 1, 2), mask

    @property
    def _centre(self) -> slice:
        start = centre_offset(self.smears.load_size, self.crop_size)
        return slice(start, start + self.crop_size)

    def _picked(self, parts: Sequence[Tensor], entries: Tensor) -> Iterator[_Planes]:
        """Pick the batches out of entries that lie on the device; the order crosses over once an epoch."""
        self.waited = 0.0
        order = torch.cat([torch.empty(0, dtype=torch.int64), *parts]).to(self.device)
        for index in torch.split(order, [len(part) for part in parts]):
            yield index, *self._as_floats(entries.index_select(0, index))

    def _streamed(self, parts: Sequence[Tensor]) -> Iterator[_Planes]:
        """Copy batches from the host, each begun while those before are still being used."""
        self._copies = self._copies or torch.cuda.Stream(self.device)
        for (index, entries), arrival in self._timed(in_order(self._stage, parts, self.workers, self.workers)):
            # The computing stream, not the host, waits for the copy; the memory is kept until it has been used.
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(arrival)
            for tensor in (index, entries):
                tensor.record_stream(computing)
            yield index, *self._as_floats(entries)

    def _stage(self, part: Tensor) -> tuple[tuple[Tensor, Tensor], torch.cuda.Event]:
        """Begin one batch's copy on a stream of its own; the event marks its end."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._copies):
            entries = self.smears.gather(part, pinned=True).to(self.device, non_blocking=True)
            index = part.pin_memory().to(self.device, non_blocking=True)
            return (index, entries), torch.cuda.current_stream().record_event()

    def _as_floats(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Entries on a GPU to float32 (B, 3, S, S) in [0, 1], channels last, and (B, 1, S, S); cut as on the host."""
        images, masks = planes_of(entries, self.smears.load_size)
        cut = slice(None) if self.augment else self._centre
        rgb = images[:, cut, cut].to(torch.float32).div_(255.0).permute(0, 3, 1, 2)
        return rgb, masks[:, None, cut, cut].to(torch.float32)

    @torch.no_grad()
    def _finish(self, index: Tensor, rgb: Tensor, mask: Tensor, paired: Tensor, table: dict[str, Tensor]) -> Batch:
        """Augment, and put the labels beside the pixels."""
        if self.augment is not None:
            params = {name: column.index_select(0, index) for name, column in table.items()}
            rgb, mask = self.augment.apply(rgb, mask, params, self.crop_size)
        return Batch(
            rgb=rgb.contiguous(memory_format=self.layout),
            mask=mask.contiguous(),
            has_mask=self._has_mask.index_select(0, index),
            paired=paired,
            label=self._labels.index_select(0, index),
            index=index,
        )


class _FloatMemory:
    """Memory of float batches, used again once nobody holds them.

    The system clears fresh pages before it gives them away, which takes about as long as filling them does.
    """

    def __init__(self, batch_size: int, side: int, spare: int) -> None:
        self._shapes = (batch_size, side, side, 3), (batch_size, 1, side, side)
        self._free: tuple[deque[np.ndarray], ...] = (deque(maxlen=spare), deque(maxlen=spare))

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Uninitialised float32 (count, S, S, 3) and (count, 1, S, S)."""
        rgb, mask = (self._lend(free, shape, count) for free, shape in zip(self._free, self._shapes, strict=True))
        return rgb, mask

    @staticmethod
    def _lend(free: deque[np.ndarray], shape: tuple[int, ...], count: int) -> Tensor:
        """A tensor that gives its memory back when its last view is gone."""
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(shape, dtype=np.float32)
        lent = memory[:count]  # every view of the tensor keeps this very array alive, and nothing else does
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.from_numpy(lent)


def _batch_sizes(count: int, batch_size: int, drop_last: bool, fewest: int) -> list[int]:
    """Sizes of the batches that ``count`` samples make; fewer than ``fewest`` left over join the batch before."""
    sizes = [batch_size] * (count // batch_size)
    left = count % batch_size
    if left == 0 or drop_last:
        return sizes
    if left < fewest and sizes:
        sizes[-1] += left
        return sizes
    return [*sizes, left]
