"""Smears to be judged without labels: finding them, whatever holds them, and reading them a batch at a time.

Where a layout of ``data.readers`` is recognised it tells smears from masks and reports; labels and masks are left
unread. Else every image is a smear.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from data import manifest
from data.datasets import embedded_root
from data.file_listing import ignored, is_image_name, some, unlistable
from data.images import ACCEPTED, FAMILY_OF_SUFFIX, LARGE, MAX_PAGES, otsu_mask, page_count, read_smear
from data.layout_folders import NO_SMEARS
from data.loader import UNKNOWN, WHITE, Batch, in_order, planes_of, resize_image, resize_mask
from data.notice import SYNTHETIC, is_synthetic
from data.problems import Problems
from data.readers import LAYOUTS, Layout
from data.records import SmearRecord
from data.side_by_side import looks_side_by_side, with_masks
from data.synthetic_writer import NOTICE
from data.vocabulary import word
from util.cores import usable_cores
from util.errors import UserError
from util.memory import give_back_memory

ANY_IMAGES, ONE_IMAGE, PATTERN = "any images", "one image", "a pattern"
MANIFEST, JOINED = "manifest", "side-by-side images"
# Where the smears of a layout lie, by the words of the folders between the data root and the image.
_SMEARS_LIE: dict[str, Callable[[Sequence[str]], bool]] = {
    "AneRBC tree": lambda folders: "original_images" in folders,
    "paired tree": lambda folders: folders[:1] == ["rgb"],
    "class folders": lambda folders: not NO_SMEARS & set(folders),
}


@dataclass(frozen=True)
class Skipped:
    """One file or folder that was to be judged and was not, and why."""

    name: str
    reason: str


@dataclass
class Unlabelled:
    """The smears to be judged.

    Attributes:
        root: what names are relative to.
        layout: how they were found: the name of a layout of ``data.readers``, or ANY_IMAGES, ONE_IMAGE, PATTERN.
        records: without labels and masks, in natural order of their names (2 before 10).
        skipped: what could not be listed.
        passed_over: files that are no images by their extension, how many of each.
        notes: what else the user should know, in sentences.
        synthetic: the synthesiser's notice lies beside, below or above them.
        page_files: TIFF files with several pages, each of which is an image.
    """

    root: Path
    layout: str
    records: list[SmearRecord] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    synthetic: bool = False
    page_files: int = 0

    def summary(self) -> str:
        """What was found, in one line."""
        also = [f"{count} {suffix or 'without extension'}" for suffix, count in self.passed_over.most_common(5)]
        how = "" if self.layout in (ANY_IMAGES, ONE_IMAGE, PATTERN) else f" ({self.layout})"
        text = f"data: {len(self.records)} image{'' if len(self.records) == 1 else 's'}{how} from {str(self.root)!r}"
        text += f"; {self.page_files} TIFF of several pages" if self.page_files else ""
        text += f"; no images and passed over: {', '.join(also)}" if also else ""
        return text + ("; SYNTHETIC" if self.synthetic else "")

    def facts(self) -> dict[str, Any]:
        """What was found, as plain data for the outputs."""
        return {
            "data": str(self.root),
            "layout": self.layout,
            "images": len(self.records),
            "passed_over": dict(self.passed_over),
            "synthetic": self.synthetic,
            "notes": self.notes,
        }


def find_smears(
    dataroot: str, *, image_root: Path | None = None, leave_out: Sequence[Path] = (), outputs: Path | None = None
) -> Unlabelled:
    """Find the smears that a user names.

    Links are followed wherever they lead; hidden files are not looked at. No duplicates are dropped.

    Args:
        dataroot: a folder (a data root of any layout, or any folder with images at any depth), a manifest, an image, or
            a pattern that the shell did not expand, ``**`` for folders at any depth; names are then relative to its
            longest part without a wildcard.
        image_root: folder to which the paths in a manifest are relative, by default its own.
        leave_out: folders that are not looked into where they lie below ``dataroot``.
        outputs: the folder that will be written; no image may lie in it.

    Raises:
        UserError: nothing is there, it cannot be listed or holds no image, or an image lies among the outputs.
    """
    path = Path(dataroot)
    hidden = {folder.resolve() for folder in (*leave_out, *([outputs] if outputs else []))}
    try:
        found = _found(path, dataroot, image_root, hidden)
    except OSError as error:
        raise unlistable(path, error) from error
    if not found.records and not found.skipped:
        raise _no_images(found, dataroot)
    if outputs is not None:
        _check_apart(found, outputs)
    plain = {record.name: replace(record, label=None, severity=None, mask=None) for record in found.records}
    found.records = sorted(_paged(found, plain.values()), key=lambda record: natural(record.name))
    found.synthetic |= is_synthetic(found.records)
    give_back_memory()  # of the images that were looked into
    return found


def _paged(found: Unlabelled, records: Iterable[SmearRecord]) -> Iterator[SmearRecord]:
    """Yield a record for every page of the TIFF files that hold several: page 2 of a.tif is named ``a.tif#2``."""
    for record in records:
        pages = _pages_in(record)
        if pages > MAX_PAGES:
            found.skipped.append(Skipped(record.name, f"the TIFF holds {pages} pages, more than {MAX_PAGES}"))
        elif pages > 1:
            found.page_files += 1
            yield from (replace(record, name=f"{record.name}#{n}", page=n) for n in range(1, pages + 1))
        else:
            yield record


def _pages_in(record: SmearRecord) -> int:
    """How many images a record's file holds; 1 where it cannot be read, which is said when it is."""
    if FAMILY_OF_SUFFIX.get(record.image.suffix.lower()) != "TIFF" or record.side_by_side:
        return 1
    try:
        with warnings.catch_warnings(action="ignore"):  # of a damaged file Pillow warns before the reader refuses it
            return page_count(record.image)
    except UserError:
        return 1


def smears_of(options: Any, outputs: Path) -> Unlabelled:
    """``find_smears`` from the predict command's options; the embedded data set where they ask for it.

    Args:
        options: of the command.
        outputs: the folder that it writes.
    """
    if options.dataroot == SYNTHETIC:
        return find_smears(str(embedded_root(options.synthetic_count, options.seed)), outputs=outputs)
    own = [Path(options.checkpoints_dir), Path(options.results_dir)]
    image_root = Path(options.image_root) if options.image_root else None
    return find_smears(options.dataroot, image_root=image_root, leave_out=own, outputs=outputs)


def natural(name: str) -> tuple[list[str | int], str]:
    """Sorting key under which numbers in names go by their value: ``2.png`` before ``10.png``."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _found(path: Path, dataroot: str, image_root: Path | None, hidden: set[Path]) -> Unlabelled:
    """Tell what is named and list its smears."""
    is_table = path.suffix.lower() == ".csv" and path.is_file()
    if image_root is not None and not (is_table or (path / manifest.MANIFEST_FILE).is_file()):
        raise UserError(
            "--image_root goes with a manifest",
            expected="a manifest (.csv) as --dataroot, or a folder with one",
            found=dataroot,
            remedy="leave --image_root out, or give the manifest",
        )
    if is_table:
        return _of_manifest(path, image_root)
    if path.is_dir():
        return _of_folder(path.absolute(), image_root, hidden)
    if path.exists() or path.is_symlink():
        return _of_file(path.absolute())
    if glob.has_magic(dataroot):
        return _of_pattern(dataroot, hidden)
    raise UserError(
        f"{path}: no such folder or image",
        expected=f"a folder, a manifest (.csv), a pattern in quotes, or one {ACCEPTED} file",
        found="nothing",
        remedy="check --dataroot",
    )


def _of_folder(folder: Path, image_root: Path | None, hidden: set[Path]) -> Unlabelled:
    """List the smears of a folder by its layout; where several fit, the first of ``LAYOUTS``."""
    fitting = [layout for layout in LAYOUTS if layout.detect(folder)]
    layout = next((layout for layout in fitting if layout.name == MANIFEST or image_root is None), None)
    if layout is not None and layout.name == MANIFEST:
        return _of_manifest(folder / manifest.MANIFEST_FILE, image_root)
    if layout is not None and layout.name == JOINED:
        return _of_joined(folder, layout)
    found = Unlabelled(folder, layout.name if layout else ANY_IMAGES)
    lies = _SMEARS_LIE[layout.name] if layout else lambda folders: True
    for path in _images_below(folder, found, hidden):
        name = path.relative_to(folder)
        if lies([word(part) for part in name.parent.parts]):
            found.records.append(SmearRecord(name.as_posix(), path))
    if layout is None:
        _note_masks(found)
    return found


def _note_masks(found: Unlabelled) -> None:
    """Say so where images of a folder without a known layout look like masks by their folder's name."""
    doubtful = [r.name for r in found.records if NO_SMEARS & {word(part) for part in Path(r.name).parent.parts}]
    if doubtful:
        found.notes.append(
            f"{len(doubtful)} images lie in folders named like masks (first {doubtful[0]!r}) and are judged as smears:"
            " the folder has no known layout that would tell them apart."
        )


def _of_joined(folder: Path, layout: Layout) -> Unlabelled:
    """List files that hold the smear in their left half."""
    problems = Problems(tolerant=True)
    found = Unlabelled(folder, layout.name, layout.read(folder, problems))
    found.skipped += _of_problems(problems)
    return found


def _of_manifest(path: Path, image_root: Path | None) -> Unlabelled:
    """List the images that a manifest names; rows that cannot be used are skipped."""
    problems = Problems(tolerant=True)
    records = manifest.list_manifest(path, problems, image_root=image_root)
    root = (image_root or path.parent).absolute()
    return Unlabelled(root, MANIFEST, records, _of_problems(problems))


def _of_problems(problems: Problems) -> list[Skipped]:
    """Problems of a reader as what was skipped for them."""
    return [Skipped(error.what.split(": ")[0], reason_of(error)) for error in problems.found]


def _of_file(path: Path) -> Unlabelled:
    """Take one image."""
    if not is_image_name(path):
        raise UserError(
            f"{path}: not an image that can be read",
            expected=f"a {ACCEPTED} file, by extension ({' '.join(FAMILY_OF_SUFFIX)})",
            found=f"extension {path.suffix!r}",
            remedy="convert the image to PNG",
        )
    return _perhaps_joined(Unlabelled(path.parent, ONE_IMAGE, [SmearRecord(path.name, path)]))


def _of_pattern(pattern: str, hidden: set[Path]) -> Unlabelled:
    """List the images that a pattern fits, and those below the folders that it fits."""
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(index for index, part in enumerate(parts) if glob.has_magic(part))])
    found = Unlabelled(fixed.absolute(), PATTERN)
    start, paths = fixed.resolve(), list[Path]()
    listed, own = set[Path](), set[Path]()  # folders looked into, and those of this toolkit

    @cache
    def around(folder: Path) -> Path | None:
        real = folder.resolve()
        return next((each for each in hidden if start in each.parents and real.is_relative_to(each)), None)

    for path in map(Path, sorted(glob.glob(pattern, recursive=True))):  # noqa: PTH207 - Path.glob takes no absolute one
        if not listed.isdisjoint(path.parents):
            continue  # "**" fits a folder and once more what lies in it
        folder = path if path.is_dir() else path.parent
        if held := around(folder):
            own.add(held)
        elif folder == path:
            listed.add(path)
            paths += _images_below(path, found, hidden)
        elif is_image_name(path):
            paths.append(path)
        elif not ignored(path.name):
            found.passed_over[path.suffix.lower()] += 1
    for place in sorted(own):
        found.notes.append(f"{str(place.relative_to(start))!r} holds this toolkit's own files: left out.")
    names = {path.relative_to(fixed).as_posix(): path.absolute() for path in paths}
    found.records = [SmearRecord(name, path) for name, path in names.items()]
    return _perhaps_joined(found)


def _perhaps_joined(found: Unlabelled) -> Unlabelled:
    """Take the left halves only, where the first or the last image holds a smear and its mask side by side."""
    ends = list(dict.fromkeys(record.image for record in (*found.records[:1], *found.records[-1:])))
    if not looks_side_by_side(ends):
        return found
    problems = Problems(tolerant=True)
    found.records, found.layout = with_masks(found.records, problems), f"{found.layout}, {JOINED}"
    found.skipped += _of_problems(problems)
    return found


def _images_below(folder: Path, found: Unlabelled, hidden: set[Path]) -> Iterator[Path]:
    """Yield the images of a folder at any depth; a link back to a folder above it is not followed."""
    pending: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while pending:
        current, above = pending.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted((entry for entry in listing if not ignored(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise
            name = current.relative_to(folder).as_posix()
            found.skipped.append(Skipped(f"{name}/", f"cannot be listed: {error.strerror or error}"))
            continue
        for entry in entries:
            path = current / entry.name
            if _is_folder(entry):
                real = path.resolve()
                if real in hidden:
                    found.notes.append(f"{str(path.relative_to(folder))!r} holds this toolkit's own files: left out.")
                elif real not in above:
                    pending.append((path, (*above, real)))
            elif is_image_name(path):
                yield path
            else:
                found.synthetic |= entry.name == NOTICE
                found.passed_over[path.suffix.lower()] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder or a link to one; what cannot be asked is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _no_images(found: Unlabelled, dataroot: str) -> UserError:
    """Word the error for a place without any image."""
    others = [f"{count} {suffix or 'without extension'}" for suffix, count in found.passed_over.most_common(5)]
    return UserError(
        f"{dataroot}: no images",
        expected=f"{ACCEPTED} files ({' '.join(FAMILY_OF_SUFFIX)})",
        found=f"other files: {', '.join(others)}" if others else "nothing that could be one",
        remedy="check --dataroot; convert other formats to PNG",
    )


def _check_apart(found: Unlabelled, outputs: Path) -> None:
    """Refuse to judge what the outputs of this very run would replace."""
    folder = outputs.resolve()
    # os.path.realpath does not mind a link to itself; what cannot be read is said when it is read.
    places = ((record.name, Path(os.path.realpath(record.image))) for record in found.records)
    inside = [name for name, place in places if place.is_relative_to(folder)]
    if inside:
        raise UserError(
            f"{len(inside)} of the images lie in the folder that would be written, {outputs}",
            expected="images in another place than the results",
            found=some(inside),
            remedy="move the images, or write the results elsewhere (--results_dir, --name)",
        )


def reason_of(error: UserError) -> str:
    """An error in one line."""
    text = error.what + (f" (expected {error.expected})" if error.expected else "")
    return text + (f"; found {error.found}" if error.found else "")


class SmearStream:
    """Smears read as they are needed: no more than a few batches of them are in memory, however many there are.

    Args:
        found: the smears.
        load_sizes: sides that images are resized to, pixels; the networks of an ensemble may see different ones.
        batch_size: images in a batch.
        otsu: whether Otsu's masks stand in for those that the network does not draw.
        masks: whether the network looks at them; else the batches' masks are empty.
        workers: threads that read, by default one a core.

    Attributes:
        names: the smears' names.
        skipped: what could not be listed or read; grows as images are read.
    """

    def __init__(
        self,
        found: Unlabelled,
        load_sizes: int | Sequence[int],
        batch_size: int,
        *,
        otsu: bool,
        masks: bool = True,
        workers: int | None = None,
    ) -> None:
        self.records, self.batch_size, self.otsu, self.masks = found.records, batch_size, otsu, masks
        self.load_sizes = (load_sizes,) if isinstance(load_sizes, int) else tuple(dict.fromkeys(load_sizes))
        self.names = [record.name for record in self.records]
        self.workers = workers or usable_cores()
        self.skipped = list(found.skipped)
        self._seen: dict[int, list[int]] = {}  # stamps of the images that the network was given last

    def batches(self, device: torch.device, positions: Sequence[int] | None = None) -> Iterator[dict[int, Batch]]:
        """Whole images in order, a batch of the same ones by load size; masks are Otsu's.

        Those that cannot be read are skipped.

        Args:
            device: where the batches are made.
            positions: which of the images, by their place in ``names``; None takes all.
        """
        asked = range(len(self.records)) if positions is None else positions
        index: list[int] = []
        images: list[Entries] = []
        decoded = in_order(self._entries, asked, self.workers, ahead=2 * self.workers)
        for position, entries in zip(asked, decoded, strict=True):
            if isinstance(entries, UserError):
                self.skip(position, entries)
                continue
            index.append(position)
            images.append(entries)
            if len(images) == self.batch_size:
                yield _batches(index, images, device)
                index, images = [], []
        if images:
            yield _batches(index, images, device)

    def pixels(self, position: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
        """An image as its file holds it, (H, W, 3), and Otsu's mask (H, W) where it stands in, else None.

        Raises:
            UserError: it cannot be read, or is not the file any more that was read for the network.
        """
        rgb = read_smear(self.records[position])
        now = self.stamp(position)
        if self._seen.pop(position, now) != now:
            name = self.records[position].name
            raise UserError(f"{name}: the file was changed while it was judged", remedy="predict again")
        return rgb, otsu_mask(rgb) if self.otsu else None

    def stamp(self, position: int) -> list[int]:
        """What changes when an image's file is replaced: its size in bytes and its time of change; empty if gone."""
        try:
            known = self.records[position].image.stat()
        except OSError:
            return []
        return [known.st_size, known.st_mtime_ns]

    def skip(self, position: int, error: UserError) -> None:
        """Note that an image could not be judged."""
        self._seen.pop(position, None)
        self.skipped.append(Skipped(self.records[position].name, reason_of(error)))

    def _entries(self, position: int) -> Entries | UserError:
        """One smear decoded for every load size, or why it cannot be."""
        self._seen[position] = self.stamp(position)
        try:
            rgb = read_smear(self.records[position])
        except UserError as error:
            return error
        entries, pixels = _entries_of(rgb, self.load_sizes, self.masks), rgb.shape[0] * rgb.shape[1]
        del rgb
        if pixels >= LARGE:
            give_back_memory()
        return entries


Entries: TypeAlias = Mapping[int, npt.NDArray[np.uint8]]  # by load size S: an image and its mask, (4 S S,)


def batches_of(
    rgb: npt.NDArray[np.uint8], load_sizes: Sequence[int], device: torch.device, *, masks: bool = True
) -> dict[int, Batch]:
    """Batches by load size of one image (H, W, 3) that is in memory; its index is 0, its mask Otsu's or empty."""
    return _batches([0], [_entries_of(rgb, load_sizes, masks)], device)


def _entries_of(rgb: npt.NDArray[np.uint8], load_sizes: Sequence[int], masks: bool) -> Entries:
    """An image resized to every load size, with Otsu's mask or, where nobody looks at it, an empty one."""
    mask = otsu_mask(rgb) if masks else np.zeros((1, 1), bool)
    return {
        size: np.concatenate([resize_image(rgb, size).reshape(-1), resize_mask(mask, size).reshape(-1)])
        for size in load_sizes
    }


def _batches(index: list[int], images: Sequence[Entries], device: torch.device) -> dict[int, Batch]:
    return {size: _batch(index, np.stack([entries[size] for entries in images]), size, device) for size in images[0]}


def _batch(index: list[int], entries: npt.NDArray[np.uint8], load_size: int, device: torch.device) -> Batch:
    images, masks = planes_of(torch.from_numpy(entries).to(device), load_size)
    rgb = (images.to(torch.float32) / float(WHITE)).permute(0, 3, 1, 2)
    return Batch(
        rgb=rgb.contiguous(memory_format=torch.channels_last),
        mask=masks[:, None].to(torch.float32).contiguous(),
        has_mask=torch.zeros(len(index), dtype=torch.bool, device=device),
        paired=torch.zeros(0, dtype=torch.int64, device=device),
        label=torch.full((len(index),), UNKNOWN, device=device),
        index=torch.tensor(index, device=device),
    )
