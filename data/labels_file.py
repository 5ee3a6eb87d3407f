"""labels.csv beside the images: their class, severity and parent where folders and names do not say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.file_listing import check_inside, normal
from data.problems import Problems
from data.records import ANEMIC, HEALTHY
from data.tables import Row, table_rows
from data.vocabulary import LABEL_OF_WORD, SEVERITY_OF_WORD, word
from util.errors import UserError

LABELS_FILE = "labels.csv"


@dataclass(frozen=True)
class LabelRow:
    """What labels.csv says of one image.

    Attributes:
        label: HEALTHY, ANEMIC or None where the cell is empty.
        severity: "Mild", "Chronic" or None where there is none.
        parent: what the image was cut from; empty where it is not said.
    """

    label: int | None
    severity: str | None
    parent: str


def read_labels(root: Path, bases: Sequence[Path], images: Sequence[Path], problems: Problems) -> dict[Path, LabelRow]:
    """Read ``labels.csv`` (image,label[,severity,parent]) of a data root, where there is one.

    Args:
        root: the data root.
        bases: folders to which the paths in the column ``image`` may be relative.
        images: the images of the data root.
        problems: takes unknown images, images listed twice and unknown words.

    Returns:
        What it says, by image.

    Raises:
        UserError: it cannot be read as a table of these columns.
    """
    path = root / LABELS_FILE
    rows: dict[Path, LabelRow] = {}
    if not path.exists() and not path.is_symlink():
        return rows
    with problems.kept():
        check_inside(path, root)
        by_name = {normal(image.relative_to(base).as_posix()): image for base in bases for image in images}
        optional = ("severity", "parent")
        for line, cells in table_rows(path, required=("image", "label"), optional=optional, problems=problems):
            with problems.kept():
                image = by_name.get(normal(cells["image"]))
                if image is None or image in rows:
                    raise _wrong_image(path, line, cells["image"], known=image is not None)
                rows[image] = LabelRow(*label_and_severity(path, line, cells), cells.get("parent", "").strip())
    return rows


def label_and_severity(path: Path, line: int, cells: Row) -> tuple[int | None, str | None]:
    """Turn the words of a row's ``label`` and ``severity`` into what they mean; either may be empty or missing.

    Raises:
        UserError: an unknown word.
    """
    labels: Mapping[str, int | None] = {"": None, "0": HEALTHY, "1": ANEMIC, **LABEL_OF_WORD}
    severities: Mapping[str, str | None] = {"": None, **SEVERITY_OF_WORD}
    for column, known in (("label", labels), ("severity", severities)):
        if word(cells.get(column, "")) not in known:
            raise UserError(
                f"{path}, line {line}: unknown {column}",
                expected="label Healthy, Anemic, 0, 1 or nothing; severity Mild, Chronic (or severe) or nothing",
                found=repr(cells[column][:80]),
                remedy="correct the row",
            )
    return labels[word(cells.get("label", ""))], severities[word(cells.get("severity", ""))]


def _wrong_image(path: Path, line: int, cell: str, *, known: bool) -> UserError:
    """Word the error for a row whose image is not there, or was named before."""
    return UserError(
        f"{path}, line {line}: " + ("the image has a row already" if known else "no such image"),
        expected="each image at most once, by its path below the data root (or its rgb/) with its extension",
        found=repr(cell[:200]),
        remedy="correct or delete the row",
    )
