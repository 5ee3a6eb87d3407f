"""Folders whose names say the class, with train, val and test above them where there are; plain or joined images.

``DATAROOT/[train|val|test/]<class or severity>/.../image.png``, words as in ``data.vocabulary``. Plain images have no
masks. Files that hold the smear in the left half and its mask in the right half may lie so too, or without class
folders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.file_listing import child_folders, files_below, image_files, is_image_name, keyed_by_stem, some
from data.labels_file import LABELS_FILE, read_labels
from data.layout_anerbc import is_anerbc, label_of_suffix, parent_of
from data.problems import Problems
from data.records import ANEMIC, CLASS_NAMES, SmearRecord
from data.side_by_side import looks_side_by_side, with_masks
from data.vocabulary import LABEL_OF_WORD, SEVERITY_OF_WORD, SIDE_OF_WORD, word
from util.errors import UserError

LOOKED_FOR_CLASSES = (
    "healthy/ and anemic/ (or normal/, anemia/, mild/, severe/ and so on) with images, here or in train/, val/, test/"
)
LOOKED_FOR_JOINED = (
    "images of the smear in the left half and its mask in the right half, here, in train/, val/, test/ or in class"
    " folders"
)
FOLDER = "folder"

# Folders below a class folder that hold no smears, by their words.
NO_SMEARS = frozenset(
    {"binary", "binary_segmented", "mask", "masks", "gt", "ground_truth", "label", "labels", "annotations", "instances"}
    | {"segmentation", "cbc_reports", "rgb_segmented"}
)


@dataclass(frozen=True)
class _Level:
    """A folder that may hold class folders: the data root, or its train, val or test.

    Attributes:
        folder: where it is.
        side: the side of the split that its name says, or None.
    """

    folder: Path
    side: str | None


def is_class_folders(root: Path) -> bool:
    """Say whether class folders of plain images are here; a few images of each folder are looked into."""
    return _has_class_folders(root) and not looks_side_by_side(_sample(root))


def is_joined(root: Path) -> bool:
    """Say whether side-by-side files are here, in class folders or without; a few of each folder are looked into."""
    return not is_anerbc(root) and looks_side_by_side(_sample(root))


def read_class_folders(root: Path, problems: Problems) -> list[SmearRecord]:
    """List plain images: class, severity and side of the split by folder, no masks.

    Raises:
        UserError: what ``problems`` raises.
    """
    return _read(root, problems, classes_needed=True)


def read_joined(root: Path, problems: Problems) -> list[SmearRecord]:
    """List side-by-side files: class, severity and side of the split by folder where they are said.

    Raises:
        UserError: what ``problems`` raises.
    """
    return with_masks(_read(root, problems, classes_needed=False), problems)


def _levels(root: Path) -> list[_Level]:
    """List the folders that may hold class folders."""
    sides = [(folder, SIDE_OF_WORD.get(word(folder.name))) for folder in child_folders(root)]
    return [_Level(root, None), *(_Level(folder, side) for folder, side in sides if side)]


def _is_class_folder(folder: Path) -> bool:
    """Say whether a folder's name is a class or a severity."""
    return word(folder.name) in LABEL_OF_WORD or word(folder.name) in SEVERITY_OF_WORD


def _has_class_folders(root: Path) -> bool:
    """Say whether there is a class folder, other than AneRBC's."""
    folders = (folder for level in _levels(root) for folder in child_folders(level.folder))
    return any(_is_class_folder(folder) for folder in folders) and not is_anerbc(root)


def _sample(root: Path) -> list[Path]:
    """Pick the first and the last image of each folder in which images may lie."""
    unheard = Problems(tolerant=True)  # what is wrong is said when the files are read
    sample: list[Path] = []
    for level in _levels(root):
        classes = [folder for folder in child_folders(level.folder) if _is_class_folder(folder)]
        listings = [files_below(level.folder, root, unheard, deep=False)]
        listings += [files_below(folder, root, unheard) for folder in classes]
        for listing in listings:
            images = sorted(path for path in listing if is_image_name(path))
            sample += [images[0], images[-1]] if len(images) > 1 else images
    return sample


def _read(root: Path, problems: Problems, *, classes_needed: bool) -> list[SmearRecord]:
    """List the images of every level as records without masks."""
    records = []
    for level in _levels(root):
        images = keyed_by_stem(_images(level, root, problems, classes_needed), level.folder, problems)
        records += [_record(root, level, image, problems) for image in images.values()]
    _check_all_on_a_side(root, records, problems)
    return _labelled(root, records, problems)


def _images(level: _Level, root: Path, problems: Problems, classes_needed: bool) -> Iterator[Path]:
    """Yield the images of a level: in its class folders, and beside them where no class is needed."""
    for path in filter(is_image_name, files_below(level.folder, root, problems, deep=False)):
        if classes_needed:
            problems.add(_outside_classes(f"{path}: an image outside the class folders", path.name))
        yield path
    for folder in child_folders(level.folder):
        if _is_class_folder(folder):
            yield from _class_images(folder, root, problems)
        elif level.side or word(folder.name) not in SIDE_OF_WORD:
            with problems.kept():
                _check_no_images(folder, root)


def _outside_classes(what: str, found: str) -> UserError:
    """Word the error for images whose folder says no class."""
    return UserError(
        what,
        expected=f"{', '.join(sorted({*LABEL_OF_WORD, *SEVERITY_OF_WORD}))}; train, val or test above them",
        found=found,
        remedy="rename the folder to one of these words, move it out of the data root, or use a manifest",
    )


def _check_no_images(folder: Path, root: Path) -> None:
    """Refuse a folder of images whose name says nothing; other folders (notes, scripts) are passed over."""
    paths = files_below(folder, root, Problems(tolerant=True))
    image = next(filter(is_image_name, paths), None)
    if image:
        found = f"{folder.name!r}, with {image.relative_to(folder).as_posix()!r}"
        raise _outside_classes(f"{folder}: images in a folder whose name says no class", found)


def _class_images(folder: Path, root: Path, problems: Problems) -> Iterator[Path]:
    """Yield the images below one class folder, without those in folders of masks, which would pass for smears."""
    told: set[Path] = set()
    for path in image_files(files_below(folder, root, problems), folder, problems):
        holder = next((above for above in path.parents if word(above.name) in NO_SMEARS), None)
        if holder is None or not holder.is_relative_to(folder):
            yield path
        elif holder not in told:
            told.add(holder)
            problems.add(
                UserError(
                    f"{holder}: a folder of masks or reports inside a class folder",
                    expected="smears only; class folders have no masks",
                    found=f"{holder.name!r} with {path.name!r}",
                    remedy="use a paired tree (rgb/ and binary/), AneRBC's own folder names, or a manifest",
                )
            )


def _record(root: Path, level: _Level, image: Path, problems: Problems) -> SmearRecord:
    """Make the record of one image from the folders above it and, where it has AneRBC's form, its name."""
    name = image.relative_to(root).as_posix()
    folders = [part for part in image.relative_to(level.folder).parent.parts if part]
    severities = {SEVERITY_OF_WORD[word(part)] for part in folders if word(part) in SEVERITY_OF_WORD}
    said = {f"folder {part}": LABEL_OF_WORD[word(part)] for part in folders if word(part) in LABEL_OF_WORD}
    said |= {f"folder {part}": ANEMIC for part in folders if word(part) in SEVERITY_OF_WORD}
    parent = parent_of(image.stem)
    suffix = label_of_suffix(image.stem) if parent else None
    if suffix is not None:
        said[f"suffix _{'ha'[suffix]}"] = suffix
    if len(severities) > 1 or len(set(said.values())) > 1:
        problems.add(_contradiction(image, said, severities))
        said, severities = {}, set()
    label, severity = next(iter(said.values()), None), next(iter(severities), None)
    source = FOLDER if severity else ""
    return SmearRecord(
        name, image, label=label, severity=severity, parent=parent or name, split=level.side, severity_source=source
    )


def _contradiction(image: Path, said: dict[str, int], severities: set[str]) -> UserError:
    """Word the error for folders, or folder and name, that contradict each other."""
    words = [f"{source} says {CLASS_NAMES[label]}" for source, label in said.items()]
    return UserError(
        f"{image}: folder and name do not agree on the class",
        expected="one class and one severity",
        found=", ".join([*words, *sorted(severities)]),
        remedy="move or rename the file",
    )


def _check_all_on_a_side(root: Path, records: Sequence[SmearRecord], problems: Problems) -> None:
    """Find images beside train, val and test, which would be on no side."""
    without = [record.name for record in records if record.split is None]
    if without and len(without) < len(records):
        sides = sorted({record.split for record in records if record.split})
        problems.add(
            UserError(
                f"{root}: some images are on a side of the split and some are not",
                expected=f"all of them in {'/, '.join(sides)}/, or none",
                found=some(without),
                remedy="move the images into the folders of the split, or do without those folders",
            )
        )


def _labelled(root: Path, records: Sequence[SmearRecord], problems: Problems) -> list[SmearRecord]:
    """Apply labels.csv, where there is one; it has the last word."""
    rows = read_labels(root, (root,), [record.image for record in records], problems)
    labelled = []
    for record in records:
        row = rows.get(record.image)
        if row is not None:
            record = replace(record, label=record.label if row.label is None else row.label)
            record = replace(record, parent=row.parent or record.parent)
            if row.severity:
                record = replace(record, severity=row.severity, severity_source=LABELS_FILE)
        labelled.append(record)
    return labelled
