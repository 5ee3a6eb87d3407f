"""Listing the files of a data root: nothing outside of it, no endless links, names in one Unicode form."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from data.images import ACCEPTED, FAMILY_OF_SUFFIX
from data.problems import Problems
from util.errors import UserError

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LISTED = 5


def files_below(folder: Path, root: Path, problems: Problems, *, deep: bool = True) -> Iterator[Path]:
    """Yield the files below a folder, except those that a system left there.

    Args:
        folder: where to look.
        root: the data root; links are followed, but must stay inside of it.
        problems: takes broken, endless and outward links, devices and folders that cannot be listed.
        deep: at any depth; False leaves the sub-folders out.
    """
    pending: list[tuple[Path, tuple[Path, ...]]] = [(folder, ())]  # and the real folders whose links led there
    while pending:
        current, way = pending.pop()
        entries: list[os.DirEntry[str]] = []
        with problems.kept():
            check_inside(current, root)
            entries = _entries(current)
        for entry in entries:
            with problems.kept():
                _check_entry(entry, current, root, way)
                if entry.is_dir():
                    beyond = (*way, current.resolve()) if entry.is_symlink() else way
                    pending += [(current / entry.name, beyond)] if deep else []
                else:
                    yield current / entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """List a folder by name."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not ignored(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise unlistable(folder, error) from error


def unlistable(folder: Path, error: OSError) -> UserError:
    """Word the error for a folder that cannot be listed."""
    return UserError(
        f"{error.filename or folder}: cannot be listed",
        expected="a readable folder",
        found=error.strerror or str(error),
        remedy="check its permissions",
    )


def _check_entry(entry: os.DirEntry[str], current: Path, root: Path, way: Sequence[Path]) -> None:
    """Refuse links that lead astray and what is neither a file nor a folder."""
    path = current / entry.name
    if entry.is_symlink():
        check_inside(path, root)
        _check_no_loop(path, (*way, current.resolve()))
    if not entry.is_dir() and not entry.is_file():
        raise UserError(f"{path}: no regular file", expected="an image", found="a device or pipe", remedy="remove it")


def check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads nowhere or outside the data root.

    Raises:
        UserError: the path's real place does not exist or is not inside ``root``'s.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        remedy = "remove the link or restore its target"
        raise UserError(f"{path}: broken link", expected="a file", found=str(error), remedy=remedy) from error
    if not real.is_relative_to(root.resolve()):
        raise UserError(
            f"{path}: the link leads outside the data root",
            expected=f"files inside {root.resolve()}",
            found=str(real),
            remedy="copy the file into the data root, or give the folder that holds it all",
        )


def _check_no_loop(path: Path, way: Sequence[Path]) -> None:
    """Refuse a link to a folder around it, or around a link that led here: both would never end."""
    real = path.resolve()
    if any(passed.is_relative_to(real) for passed in way):
        raise UserError(
            f"{path}: endless link", expected="an image or a folder", found=str(real), remedy="remove the link"
        )


def images_by_stem(folder: Path, root: Path, problems: Problems) -> dict[str, Path]:
    """List a folder's images by their path in it, without extension.

    Args:
        folder: where to look, at any depth; every file in it must be an image.
        root: the data root.
        problems: takes what is no image and second images of a name, besides what ``files_below`` gives it.
    """
    return keyed_by_stem(image_files(files_below(folder, root, problems), folder, problems), folder, problems)


def image_files(paths: Iterable[Path], folder: Path, problems: Problems) -> Iterator[Path]:
    """Pass images on, by extension; what is none is a problem."""
    for path in paths:
        if is_image_name(path):
            yield path
        else:
            problems.add(
                UserError(
                    f"{path}: not an image",
                    expected=f"only {ACCEPTED} files in {folder.name}/",
                    found=f"extension {path.suffix!r}",
                    remedy="move the file elsewhere, or convert it to PNG",
                )
            )


def keyed_by_stem(paths: Iterable[Path], folder: Path, problems: Problems) -> dict[str, Path]:
    """Key images by path below ``folder`` without extension; outputs are named so, and a second one is a problem."""
    images: dict[str, Path] = {}
    for path in paths:
        key = normal(path.relative_to(folder).with_suffix("").as_posix())
        if key not in images:
            images[key] = path
            continue
        problems.add(
            UserError(
                f"{path}: two images of the same name",
                expected="one image of each name, whatever its extension",
                found=f"{images[key].name} and {path.name}",
                remedy="rename or remove one of them",
            )
        )
    return images


def check_pairs(
    images: Mapping[str, Path], masks: Mapping[str, Path], image_folder: Path, mask_folder: Path, problems: Problems
) -> None:
    """Find images without a mask and masks without an image; a tolerant caller gets a problem for each file."""
    for one, other, folder, missing_in, what in (
        (masks, images, mask_folder, image_folder, "masks without an image"),
        (images, masks, image_folder, mask_folder, "images without a mask"),
    ):
        alone = sorted(one[key].relative_to(folder).as_posix() for key in one.keys() - other.keys())
        for names in [[name] for name in alone] if problems.tolerant else [alone] if alone else []:
            problems.add(
                UserError(
                    f"{folder}: {len(names)} {what}",
                    expected=f"the same names in {folder} and {missing_in}",
                    found=f"only in {folder.name}: {some(names)}",
                    remedy=f"add their counterparts to {missing_in.name}, or remove them",
                )
            )


def child_folder(folder: Path, name: str) -> Path | None:
    """Find a sub-folder by name, in any case of letters; the exact spelling wins."""
    if not folder.is_dir():
        return None
    matching = sorted(entry for entry in folder.iterdir() if entry.name.lower() == name.lower() and entry.is_dir())
    return next((entry for entry in matching if entry.name == name), matching[0] if matching else None)


def child_folders(folder: Path) -> list[Path]:
    """List the sub-folders by name, except those that a system left there."""
    return sorted(entry for entry in folder.iterdir() if not ignored(entry.name) and entry.is_dir())


def is_image_name(path: Path) -> bool:
    """Say whether the extension is one of an image."""
    return path.suffix.lower() in FAMILY_OF_SUFFIX


def ignored(name: str) -> bool:
    """Say whether an operating system put this file or folder there."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def normal(text: str) -> str:
    """Bring a name to one Unicode form: archives made on macOS spell accents in two characters."""
    return unicodedata.normalize("NFC", text)


def some(names: Sequence[str]) -> str:
    """List the first few names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
