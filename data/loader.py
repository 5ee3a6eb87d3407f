"""Smears decoded once into memory, and batches of them gathered, cut and augmented on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.augment import Augmentation, centre_offset
from data.images import otsu_mask, read_smear, read_truth
from data.records import SmearRecord
from util.errors import UserError

BYTES_PER_PIXEL = 4  # red, green, blue, mask
HOST_SHARE = 0.8  # of free host memory that decoded smears may take: the decoders and the network need the rest
DEVICE_SHARE = 0.4  # of free device memory
UNKNOWN = -1


@dataclass(eq=False)
class DecodedSmears:
    """Smears at one square size, with masks and labels, in the order of their records.

    What holds the pixels is this class's own affair: everything else asks :meth:`gather` or :meth:`planes_on`.

    Attributes:
        images: uint8 (N, S, S, 3).
        masks: uint8 (N, S, S) of 0 and 1.
        has_mask: bool (N,); False where the mask is Otsu's of that image, a stand-in and no ground truth.
        labels: int64 (N,); HEALTHY, ANEMIC, or -1 where unknown.
        names: the records' names.
        sizes: (width, height) of each input file, pixels.
    """

    images: Tensor
    masks: Tensor
    has_mask: Tensor
    labels: Tensor
    names: list[str]
    sizes: list[tuple[int, int]]
    _resident: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def load_size(self) -> int:
        """Side S of the decoded images, pixels."""
        return self.images.shape[1]

    def gather(self, index: Tensor, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Copy images (B, S, S, 3) and masks (B, S, S) at ``index`` on the host, to page-locked memory if asked."""
        images = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        masks = torch.empty((len(index), *self.masks.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self.images, 0, index, out=images)
        torch.index_select(self.masks, 0, index, out=masks)
        return images, masks

    def planes_on(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Images and masks whole on ``device``, or None where they would fill too much of its free memory.

        They are copied once, whoever asks: a training and a validation loader share them.
        """
        if device.type == "cpu":
            return self.images, self.masks
        if device not in self._resident:
            free = torch.cuda.mem_get_info(device)[0]
            if self.images.nbytes + self.masks.nbytes >= DEVICE_SHARE * free:
                return None
            self._resident[device] = (self.images.to(device), self.masks.to(device))
        return self._resident[device]


def decode(
    records: Sequence[SmearRecord], load_size: int, *, workers: int | None = None, progress: bool = True
) -> DecodedSmears:
    """Read every smear and its mask and resize them to one square; what is not square is stretched, the mask with it.

    Args:
        records: the smears, in the order that the result keeps.
        load_size: side S of the result, pixels.
        workers: decoding threads, by default one per usable core (Pillow and NumPy work outside Python's lock).
        progress: show a bar on stderr.

    Raises:
        UserError: no records; too little memory; a file that cannot be read; a mask of another size than its image.
    """
    if not records:
        raise UserError(
            "no smears to load", expected="at least one image", remedy="check --dataroot and the split file"
        )
    _check_memory(len(records), load_size)
    images = torch.empty((len(records), load_size, load_size, 3), dtype=torch.uint8)
    masks = torch.empty((len(records), load_size, load_size), dtype=torch.uint8)

    def fill(i: int) -> tuple[int, int]:
        rgb, mask = _read_pair(records[i])
        images[i] = torch.from_numpy(_resize_image(rgb, load_size))
        masks[i] = torch.from_numpy(_resize_mask(mask, load_size))
        return rgb.shape[1], rgb.shape[0]

    return DecodedSmears(
        images=images,
        masks=masks,
        has_mask=torch.tensor([record.mask is not None for record in records]),
        labels=torch.tensor([UNKNOWN if record.label is None else record.label for record in records]),
        names=[record.name for record in records],
        sizes=_run_all(fill, len(records), workers, progress),
    )


def _run_all(
    fill: Callable[[int], tuple[int, int]], count: int, workers: int | None, progress: bool
) -> list[tuple[int, int]]:
    """Call ``fill`` on 0 .. count - 1 from threads; the first error stops those not yet begun."""
    pool = ThreadPoolExecutor(max_workers=workers or _usable_cores())
    try:
        bar = tqdm(pool.map(fill, range(count)), total=count, desc="decoding", unit="img", disable=not progress)
        return list(bar)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_pair(record: SmearRecord) -> tuple[np.ndarray, np.ndarray]:
    """The image, uint8 (H, W, 3), and its mask, bool (H, W): the true one, or Otsu's where there is none."""
    rgb = read_smear(record)
    if record.mask is None:
        return rgb, otsu_mask(rgb)
    mask = read_truth(record)
    if mask.shape != rgb.shape[:2]:
        raise UserError(
            f"{record.mask}: not the size of its image {record.image}",
            expected=f"{rgb.shape[1]} x {rgb.shape[0]} pixels",
            found=f"{mask.shape[1]} x {mask.shape[0]} pixels",
            remedy="export the mask again at the image's size, or remove the pair",
        )
    return rgb, mask


def _resize_image(rgb: np.ndarray, size: int) -> np.ndarray:
    # Pillow's bilinear filter widens as it shrinks an image, so nothing aliases; the gap first halves large ones.
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def _resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Share of foreground under each new pixel, more than half of it is foreground: uint8 (size, size) of 0 and 1."""
    plane = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return (np.asarray(plane) > 0.5).astype(np.uint8)


def free_memory() -> int | None:
    """Host memory that can be taken without swapping, bytes; None where the system does not say (Windows)."""
    meminfo = Path("/proc/meminfo")
    if (
        meminfo.is_file()
    ):  # sysconf counts the file cache as used, and after one pass over the data set that is most of it
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    names = getattr(os, "sysconf_names", {})
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS knows the second only: an upper bound
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return None


def _check_memory(count: int, load_size: int) -> None:
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
        label: int64 (B,); -1 where unknown.
        index: int64 (B,); positions in the DecodedSmears.
    """

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    label: Tensor
    index: Tensor


class BatchLoader:
    """Batches of an epoch, made on the device that trains.

    The order of epoch e depends on (seed, e) only, and a sample's augmentation on (seed, e, its index) only: a resumed
    run sees the batches that the uninterrupted one would have seen. When shuffling, a last batch of a single sample
    joins the batch before it (which then has batch_size + 1), since batch normalisation cannot train on one; no sample
    is dropped unless ``drop_last`` asks for it.

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
    ) -> None:
        self.smears, self.batch_size, self.crop_size = smears, batch_size, crop_size
        self.indices = np.asarray(indices, dtype=np.int64)
        self.device, self.augment, self.shuffle, self.seed = torch.device(device), augment, shuffle, seed
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.epoch = 0
        self._copies: torch.cuda.Stream | None = None
        self._check()
        self._sizes = _batch_sizes(len(self.indices), batch_size, drop_last, merge_single=shuffle)
        if not self._sizes:
            raise UserError(
                f"--batchSize {batch_size}: no full batch in {len(self.indices)} smears, and others are left out",
                remedy=f"give --batchSize {len(self.indices)} or less",
            )
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

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, >= 0, whose order and augmentation the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.from_numpy(self._order())
        parts = order[: sum(self._sizes)].split(self._sizes)
        planes = self.smears.planes_on(self.device)
        table = self._parameter_table()
        for index, images, masks in self._streamed(parts) if planes is None else self._gathered(parts, planes):
            yield self._finish(index, images, masks, table)

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

    def _gathered(
        self, parts: Sequence[Tensor], planes: tuple[Tensor, Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pick the batches out of planes that lie on the device; the order crosses over once an epoch."""
        images, masks = planes
        on_device = torch.cat(list(parts)).to(self.device).split(self._sizes)
        for index in on_device:
            yield index, images.index_select(0, index), masks.index_select(0, index)

    def _streamed(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Copy batches from the host, each begun while the one before is still being used."""
        ahead = self._stage(parts[0])
        for following in parts[1:]:
            current, ahead = ahead, self._stage(following)
            yield self._arrive(current)
        yield self._arrive(ahead)

    def _stage(self, part: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], torch.cuda.Event | None]:
        """Begin one batch's copy on a stream of its own; the event marks its end."""
        if self.device.type == "cpu":
            return (part, *self.smears.gather(part)), None
        images, masks = self.smears.gather(part, pinned=True)
        self._copies = self._copies or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._copies):
            index, images, masks = (
                plane.to(self.device, non_blocking=True) for plane in (part.pin_memory(), images, masks)
            )
            return (index, images, masks), self._copies.record_event()

    def _arrive(
        self, staged: tuple[tuple[Tensor, Tensor, Tensor], torch.cuda.Event | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let the computing stream, not the host, wait for the copy, and keep the memory until it has been used."""
        planes, event = staged
        if event is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(event)
            for plane in planes:
                plane.record_stream(computing)
        return planes

    @torch.no_grad()
    def _finish(self, index: Tensor, images: Tensor, masks: Tensor, table: dict[str, Tensor]) -> Batch:
        """Bytes to floats, cut or augment, and put the labels beside them."""
        if self.augment is None:
            start = centre_offset(self.smears.load_size, self.crop_size)
            cut = slice(start, start + self.crop_size)
            rgb, mask = _as_floats(images[:, cut, cut], masks[:, cut, cut])
        else:
            params = {name: column.index_select(0, index) for name, column in table.items()}
            rgb, mask = self.augment.apply(*_as_floats(images, masks), params, self.crop_size)
        return Batch(
            rgb=rgb.contiguous(memory_format=self.layout),
            mask=mask.contiguous(),
            has_mask=self._has_mask.index_select(0, index),
            label=self._labels.index_select(0, index),
            index=index,
        )


def _as_floats(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 (B, S, S, 3) and (B, S, S) to float32 (B, 3, S, S) in [0, 1], channels last, and (B, 1, S, S)."""
    return images.to(torch.float32).div_(255.0).permute(0, 3, 1, 2), masks[:, None].to(torch.float32)


def _batch_sizes(count: int, batch_size: int, drop_last: bool, merge_single: bool) -> list[int]:
    """Sizes of the batches that ``count`` samples make; a single one left over joins the batch before if asked."""
    sizes = [batch_size] * (count // batch_size)
    left = count % batch_size
    if left == 0 or drop_last:
        return sizes
    if left == 1 and merge_single and sizes:
        sizes[-1] += 1
        return sizes
    return [*sizes, left]
