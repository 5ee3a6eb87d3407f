"""What the doctor notes of each smear in its one pass over the files: facts and features are kept, pixels are not."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.colour import CHANNELS, colour_statistics, feature_names, otsu_level
from data.images import DECODERS, MASK_THRESHOLD, ORIENTATION_TAG, content_digest, read_rgb, read_smear
from data.near_duplicates import FINGERPRINT_BYTES, fingerprint
from data.records import SmearRecord
from util.cores import usable_cores
from util.errors import UserError

Pixels = npt.NDArray[np.uint8]

_FEW = 64  # below this many smears, starting processes takes longer than it saves
_MOST_WORKERS = 16
_CHUNK = 16  # smears a process takes at once
_WAITING = 4  # chunks a process may have waiting: bounds what is in memory
_AGREEMENT_SIDE = 110  # a mask's agreement with Otsu's is judged on a picture about this wide
_DEVIATIONS = [feature_names().index(f"sd level {channel} all") for channel in CHANNELS]
_BITS_TAG = 258  # TIFF's BitsPerSample


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used, in the four parts of an error that a person can mend."""

    what: str
    expected: str = ""
    found: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, error: UserError) -> Problem:
        """Take an error's parts."""
        return cls(error.what, error.expected, error.found, error.remedy)


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What was seen of one mask.

    Attributes:
        width: pixels.
        height: pixels.
        levels: number of different grey levels.
        dark: the commonest grey level below 128, None where there is none.
        light: the commonest grey level from 128 on, None where there is none.
        foreground: pixels taken for cells.
        agreement: Dice with Otsu's mask of the image; None where sizes differ or the image has no contrast.
        inverse_agreement: the same with the mask turned round, of cells or of background, whichever is less: a mask
            that marks too little is no inverted one, though its inverse holds all cells.
    """

    width: int
    height: int
    levels: int
    dark: int | None
    light: int | None
    foreground: int
    agreement: float | None
    inverse_agreement: float | None

    @property
    def share(self) -> float:
        """Share of the mask's pixels that are taken for cells."""
        return self.foreground / (self.width * self.height)


@dataclass(frozen=True, slots=True)
class SmearFacts:
    """What was seen of one smear.

    Attributes:
        size: of the image's file, bytes.
        width: of the upright image, pixels; 0 where it cannot be read, as all that follows.
        height: pixels.
        format: PNG, JPEG, BMP or TIFF.
        mode: Pillow's name of the stored kind of pixel, such as RGB, L, P, CMYK.
        bits: of each channel, as stored.
        orientation: EXIF's, 1 where upright.
        exif: whether the file holds EXIF data.
        contrast: the largest of the three channels' standard deviations, levels.
        digest: hash of the pixels.
        problem: why the image cannot be read, else None.
        mask: what was seen of the mask, None where there is none or it cannot be read.
        mask_problem: why the mask cannot be read, else None.
    """

    size: int = 0
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    bits: int = 0
    orientation: int = 1
    exif: bool = False
    contrast: float = 0.0
    digest: str = ""
    problem: Problem | None = None
    mask: MaskFacts | None = None
    mask_problem: Problem | None = None


class Seen(NamedTuple):
    """One smear examined: its facts, and where it could be read its fingerprint and colour statistics."""

    facts: SmearFacts
    fingerprint: Pixels | None
    colours: npt.NDArray[np.float32] | None


class Examined(NamedTuple):
    """All smears examined, in the order of the records; rows of unreadable images are zeros.

    Attributes:
        facts: one a record.
        fingerprints: uint8 (N, L), for near duplicates.
        colours: float32 (N, F), for the colour classifier.
    """

    facts: list[SmearFacts]
    fingerprints: Pixels
    colours: npt.NDArray[np.float32]


def examine_files(records: Sequence[SmearRecord], *, workers: int | None = None, progress: bool = True) -> Examined:
    """Look at every image and mask once.

    Args:
        records: the smears.
        workers: processes; 1 is this one, None lets the count and the processors decide.
        progress: whether a bar is drawn on stderr.

    Returns:
        Facts, fingerprints and colours; memory grows with their size alone, not with that of the images.

    Raises:
        UserError: a process was ended from outside, as systems do that run out of memory.
    """
    from tqdm import tqdm

    count = len(records)
    facts: list[SmearFacts] = []
    fingerprints = np.zeros((count, FINGERPRINT_BYTES), np.uint8)
    colours = np.zeros((count, len(feature_names())), np.float32)
    seen = tqdm(_run(records, workers), total=count, desc="examining", unit="smear", disable=not progress)
    for index, one in enumerate(seen):
        facts.append(one.facts)
        if one.fingerprint is not None and one.colours is not None:
            fingerprints[index], colours[index] = one.fingerprint, one.colours
    return Examined(facts, fingerprints, colours)


def _run(records: Sequence[SmearRecord], workers: int | None) -> Iterator[Seen]:
    """Examine in this process or in several, in order, with a bounded number of chunks under way."""
    workers = workers or (min(_MOST_WORKERS, usable_cores()) if len(records) >= _FEW else 1)
    if workers == 1:
        yield from map(examine, records)
        return
    chunks = (records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK))
    # "spawn": a forked copy of a process that holds threads (as NumPy's libraries start) may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            waiting: deque[Future[list[Seen]]] = deque(
                pool.submit(_examine_chunk, chunk) for chunk in islice(chunks, workers * _WAITING)
            )
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(_examine_chunk, chunk) for chunk in islice(chunks, 1))
        except BrokenProcessPool as error:
            raise UserError(
                "a process that examined images was ended from outside",
                expected="enough memory for one image in each process",
                found=str(error),
                remedy="use fewer processes (--workers 1)",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _examine_chunk(records: Sequence[SmearRecord]) -> list[Seen]:
    return [examine(record) for record in records]


def examine(record: SmearRecord) -> Seen:
    """Look at one smear; what is wrong with its files becomes a ``Problem``, never an exception."""
    try:
        rgb = read_smear(record)
        header = _header(record.image)
    except UserError as error:
        return Seen(SmearFacts(size=_bytes(record.image), problem=Problem.of(error)), None, None)
    mask, mask_problem = examine_mask(record, rgb)
    height, width = rgb.shape[:2]
    colours = colour_statistics(rgb)
    facts = SmearFacts(
        size=_bytes(record.image),
        width=width,
        height=height,
        format=header.format,
        mode=header.mode,
        bits=header.bits,
        orientation=header.orientation,
        exif=header.exif,
        contrast=255 * float(colours[_DEVIATIONS].max()),
        digest=content_digest(rgb),
        mask=mask,
        mask_problem=mask_problem,
    )
    return Seen(facts, fingerprint(rgb), colours)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # the file is listed as unreadable, with the reason


class _Header(NamedTuple):
    """How an image is stored, see ``SmearFacts``."""

    format: str
    mode: str
    bits: int
    orientation: int
    exif: bool


def _header(path: Path) -> _Header:
    """Read how an image that could be decoded is stored."""
    with Image.open(path, formats=DECODERS) as image:
        family = "JPEG" if image.format == "MPO" else image.format or ""
        exif = image.getexif() if family == "JPEG" or "exif" in image.info else {}
        orientation = exif.get(ORIENTATION_TAG, 1)
        upright = orientation not in range(2, 9)
        return _Header(family, image.mode, _bits(path, image), 1 if upright else int(orientation), bool(exif))


def _bits(path: Path, image: Image.Image) -> int:
    """Bits of each channel as stored; Pillow opens PNG and TIFF of 3 x 16 bits as if they had 8."""
    if image.format == "PNG":
        with path.open("rb") as stream:
            return stream.read(25)[24]
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_TAG, 8)
        return int(bits[0] if isinstance(bits, tuple) else bits)
    return 8


# --- masks ------------------------------------------------------------------------------------------------------------


def examine_mask(record: SmearRecord, rgb: Pixels) -> tuple[MaskFacts | None, Problem | None]:
    """Look at a record's mask; ``rgb`` is its image."""
    if record.mask is None:
        return None, None
    try:
        grey = read_drawn_mask(record)
    except UserError as error:
        return None, Problem.of(error)
    return _mask_facts(grey, rgb, dark=record.mask_dark), None


def read_drawn_mask(record: SmearRecord) -> Pixels:
    """Read a mask with its grey levels as the file holds them, uint8 (H, W); other parts take ``read_truth``.

    Raises:
        UserError: as ``read_truth``.
        ValueError: the record has no mask.
    """
    if record.mask is None:
        raise ValueError(f"{record.name} has no mask")
    drawn = read_rgb(record.mask)
    if record.side_by_side:
        drawn = drawn[:, drawn.shape[1] // 2 :]
    return np.asarray(Image.fromarray(drawn).convert("L"))


def _mask_facts(grey: Pixels, rgb: Pixels, *, dark: bool) -> MaskFacts:
    """Describe a mask's grey levels and how it lies on its image."""
    counts = np.array(Image.fromarray(grey).histogram())
    below, above = counts[:MASK_THRESHOLD], counts[MASK_THRESHOLD:]
    agreement, inverse = _agreement(grey, rgb, dark=dark)
    return MaskFacts(
        width=grey.shape[1],
        height=grey.shape[0],
        levels=int(np.count_nonzero(counts)),
        dark=int(below.argmax()) if below.any() else None,
        light=int(above.argmax()) + MASK_THRESHOLD if above.any() else None,
        foreground=int((below if dark else above).sum()),
        agreement=agreement,
        inverse_agreement=inverse,
    )


def _agreement(grey: Pixels, rgb: Pixels, *, dark: bool) -> tuple[float | None, float | None]:
    """Dice of the mask, and of its inverse, with Otsu's of the image; None where they cannot be compared."""
    if grey.shape != rgb.shape[:2]:
        return None, None
    step = max(1, max(grey.shape) // _AGREEMENT_SIDE)
    otsu = _otsu(rgb[::step, ::step])
    if not otsu.any() or otsu.all():
        return None, None
    light = grey[::step, ::step] >= MASK_THRESHOLD
    mask = ~light if dark else light
    return _dice(mask, otsu), min(_dice(~mask, otsu), _dice(mask, ~otsu))


def _otsu(rgb: Pixels) -> npt.NDArray[np.bool_]:
    """``data.images.otsu_mask`` within a tenth of its time, which counts where there are 12,000 masks."""
    from scipy.ndimage import label

    sums = rgb[..., 0].astype(np.uint16) + rgb[..., 1] + rgb[..., 2]
    levels = ((2 * sums + 3) // 6).astype(np.uint8)  # the mean, rounded
    if levels.min() == levels.max():
        return np.zeros(levels.shape, dtype=bool)
    dark = levels <= otsu_level(np.bincount(levels.ravel(), minlength=256))
    parts, count = label(~dark)
    outside = np.zeros(count + 1, dtype=bool)  # a light part that meets no border is a hole
    for border in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        outside[border] = True
    outside[0] = False
    return np.asarray(~outside[parts])


def _dice(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))
