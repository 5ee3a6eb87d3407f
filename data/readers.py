"""Finding the smears under a data root: which layout it has, which files belong together, and what their names say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data import layout_anerbc, layout_folders, layout_paired, manifest
from data.file_listing import check_inside, ignored, some, unlistable
from data.images import ACCEPTED, other_size, read_size, smear_size
from data.layout_anerbc import parent_of
from data.problems import Problems
from data.records import SmearRecord
from util.cores import usable_cores
from util.errors import UserError

__all__ = ["LAYOUTS", "Layout", "pair_errors", "parent_of", "read_dataroot", "survey_dataroot"]


@dataclass(frozen=True)
class Layout:
    """One way to lay out a data root.

    Attributes:
        name: what error messages call it.
        looked_for: what ``detect`` looks for, in words.
        detect: says whether a folder is laid out so; only the last two look into images, a few of each folder.
        read: lists its records; the folder is absolute.
    """

    name: str
    looked_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path, Problems], list[SmearRecord]]


def read_dataroot(
    root: str | Path, *, check_sizes: bool = True, image_root: str | Path | None = None
) -> list[SmearRecord]:
    """List the smears of a data root, whatever its layout; ``LAYOUTS`` are told apart by what is there.

    Masks are dark cells on white in AneRBC's own tree, white cells on black in a paired tree, as a manifest says, and
    as found by looking in side-by-side files. Class folders have none.

    Args:
        root: the data root, or a manifest (a .csv file); it may be a symbolic link itself, but nothing in it may lead
            outside.
        check_sizes: whether each pair's headers are read and compared; a caller that wants every bad pair, not the
            first, says False and asks ``pair_errors``.
        image_root: folder to which the paths in a manifest are relative, by default its own.

    Returns:
        The records sorted by name; names are posix paths relative to ``root`` (of a manifest, to ``image_root``), so
        they start with ``AneRBC-I/`` where the outer folder was given.

    Raises:
        UserError: no such folder, an empty one, an unknown layout, a class that name and folder do not agree on, an
            image without its mask or a mask without its image, a pair of two sizes, a link that leads outside, or what
            ``data.manifest`` and ``data.side_by_side`` refuse.
    """
    records = _listed(root, Problems(), image_root)
    errors = pair_errors(records) if check_sizes else []
    if errors:
        more = f" ({len(errors) - 1} more pairs like it)" if len(errors) > 1 else ""
        first = errors[0]
        raise UserError(first.what + more, expected=first.expected, found=first.found, remedy=first.remedy) from first
    return records


def survey_dataroot(
    root: str | Path, *, image_root: str | Path | None = None
) -> tuple[list[SmearRecord], list[UserError]]:
    """List every smear that can be listed and every problem met, instead of stopping at the first.

    A smear whose class is contradictory has no label here, and one without its mask has none. Sizes are not compared:
    ask ``pair_errors`` about the records.

    Args:
        root: as for ``read_dataroot``.
        image_root: as for ``read_dataroot``.

    Returns:
        The records sorted by name, and the problems: files that are no images or have no counterpart, classes that
        contradict each other, links that lead astray, bad rows of labels.csv or of a manifest, and so on.

    Raises:
        UserError: nothing can be listed at all: no such folder, an empty one, no layout or several.
    """
    problems = Problems(tolerant=True)
    records = _listed(root, problems, image_root)
    return records, problems.found


def pair_errors(records: Sequence[SmearRecord], *, workers: int | None = None) -> list[UserError]:
    """Compare image and mask sizes from the headers of every pair.

    Args:
        records: any records; those without a mask are passed over.
        workers: threads that read headers.

    Returns:
        One error for each pair whose sizes differ or whose header cannot be read (or, where one file holds both, whose
        width is odd), in the order of ``records``.
    """
    pairs = [record for record in records if record.mask is not None]
    with ThreadPoolExecutor(workers or min(16, 2 * usable_cores())) as pool:
        return [error for error in pool.map(_pair_error, pairs, chunksize=64) if error is not None]


def _pair_error(record: SmearRecord) -> UserError | None:
    """Compare the header sizes of one pair."""
    assert record.mask is not None
    try:
        image_size = smear_size(record)
        mask_size = image_size if record.side_by_side else read_size(record.mask)
    except UserError as error:
        return error
    if image_size == mask_size:
        return None
    return other_size(record, image_size, mask_size)


def _listed(root: str | Path, problems: Problems, image_root: str | Path | None) -> list[SmearRecord]:
    """List the records, sorted by name."""
    folder = Path(root).absolute()
    base = None if image_root is None else Path(image_root)
    try:
        if folder.suffix.lower() == ".csv" and folder.is_file():
            records = manifest.list_manifest(folder, problems, image_root=base)
        else:
            layout = _layout_of(folder)
            if base is not None and layout.read is not _read_manifest_in:
                raise _no_manifest(folder, layout, base)
            records = _read_manifest_in(folder, problems, base) if base else layout.read(folder, problems)
    except OSError as error:
        raise unlistable(folder, error) from error
    if not records and not problems.found:
        raise UserError(
            f"{folder}: no images", expected=f"{ACCEPTED} images", found="empty folders", remedy="check the path"
        )
    return sorted(records, key=lambda record: record.name)


def _layout_of(folder: Path) -> Layout:
    """Find the one layout that fits, or say what was looked for and what is there."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        remedy = "check --dataroot; give the folder that holds the images, or a manifest (.csv)"
        raise UserError(f"{folder}: no such data root", expected="a folder of smears", found=found, remedy=remedy)
    fitting = [layout for layout in LAYOUTS if layout.detect(folder)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(layout.name for layout in fitting)
        by_manifest = f"; to go by the manifest, give {folder / manifest.MANIFEST_FILE} itself"
        remedy = "give the folder of one of them as the data root"
        remedy += by_manifest if any(layout.read is _read_manifest_in for layout in fitting) else ""
        raise UserError(f"{folder}: two layouts at once", expected="one layout", found=names, remedy=remedy)
    looked_for = "".join(f"\n    - {layout.name}: {layout.looked_for}" for layout in LAYOUTS)
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not ignored(entry.name))
    found = f"{some(entries)}" if entries else "an empty folder"
    remedy = "give the folder that directly holds one of these layouts, or list the images in a manifest"
    raise UserError(f"{folder}: unknown layout", expected=f"one of{looked_for}", found=found, remedy=remedy)


def _no_manifest(folder: Path, layout: Layout, image_root: Path) -> UserError:
    """Word the error for a folder of images given where there is no manifest."""
    return UserError(
        f"{folder}: an image folder is given, but this is no manifest",
        expected="a manifest (.csv) as the data root",
        found=f"{layout.name}, with the image folder {image_root}",
        remedy="leave the image folder out, or give the manifest",
    )


def _has_manifest(folder: Path) -> bool:
    """Say whether a manifest lies in a folder."""
    path = folder / manifest.MANIFEST_FILE
    return path.is_file() or path.is_symlink()


def _read_manifest_in(folder: Path, problems: Problems, image_root: Path | None = None) -> list[SmearRecord]:
    """List the records of the manifest in a folder."""
    path = folder / manifest.MANIFEST_FILE
    check_inside(path, folder)
    return manifest.list_manifest(path, problems, image_root=image_root)


LAYOUTS = (
    Layout("AneRBC tree", layout_anerbc.LOOKED_FOR, layout_anerbc.is_anerbc, layout_anerbc.read_anerbc),
    Layout("paired tree", layout_paired.LOOKED_FOR, layout_paired.is_paired, layout_paired.read_paired),
    Layout("manifest", manifest.LOOKED_FOR, _has_manifest, _read_manifest_in),
    Layout(
        "class folders",
        layout_folders.LOOKED_FOR_CLASSES,
        layout_folders.is_class_folders,
        layout_folders.read_class_folders,
    ),
    Layout(
        "side-by-side images", layout_folders.LOOKED_FOR_JOINED, layout_folders.is_joined, layout_folders.read_joined
    ),
)
