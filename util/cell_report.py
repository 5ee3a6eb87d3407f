"""Module-II in the results: a page of cells for the first images, and what all images say together.

Images are added one by one, from any thread; nothing of them is kept but counts and one small row each. What is written
depends on the images and their index alone, not on the order in which threads hand them over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util import cell_figures
from util.cell_figures import NOT_JUDGED, Bins
from util.cell_page import (
    DIAMETER_RELATIVE,
    DIAMETER_UM,
    EN_DASH,
    PALLOR,
    ROUNDNESS,
    RULE_NOTE,
    SmearShown,
    card,
    cell_parts,
    cell_style,
    counted_kinds,
    diameters,
    figure_of,
    known,
    listed,
    page_path,
    percent,
    percentile,
    table,
    write_cell_page,
)
from util.figures import counted, is_number
from util.report import Tags, link_to, outside, printable

MOST_ROWS = 200
FIRST_ROWS = 12
GRADES = ("Mild", "Chronic")
NOT_GRADED = "not graded"


@dataclass(frozen=True)
class GalleryRow:
    """What is kept of one image.

    Attributes:
        index: its place among the images.
        name: its name in the data.
        page: path of its page relative to the results folder, or None.
        cells: red cells of its instance map, or None where they are too small to be looked for.
        judged: those that are measured and graded; 0 or None as of ``cells``.
        overlapped: those that touch another; likewise.
        overlapped_share: the same as a part of all, or None.
        diameter_px: median diameter, or None.
        um_per_px: size of its pixels, or None.
        diameter_cv: anisocytosis index, percent, or None.
        score: severity score, or None.
        grade: Mild, Chronic, or None.
        true_grade: the same where it is known.
        left_out: things that are not measured.
        warnings: what the reader must know of it.
    """

    index: int
    name: str
    page: str | None
    cells: int | None
    judged: int | None
    overlapped: int | None
    overlapped_share: float | None
    diameter_px: float | None
    um_per_px: float | None
    diameter_cv: float | None
    score: float | None
    grade: str | None
    true_grade: str | None
    left_out: int
    warnings: tuple[str, ...]


@dataclass
class _Totals:
    """Sums over all images: whole numbers only, so that their order does not matter."""

    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    border: int = 0
    bins: dict[Bins, NDArray[np.int64]] = field(default_factory=dict)

    def count(self, bins: Bins, values: Sequence[float]) -> None:
        """Add values to a measure's histogram."""
        self.bins[bins] = self.bins.get(bins, np.zeros(bins.count, np.int64)) + bins.counted(values)


class CellGallery:
    """Writes the cells' pages and sums up all images.

    Args:
        folder: the results folder.
        pages: how many images get a page of their own: those whose index is below it.
        synthetic: whether the images were drawn by a programme, which their pages then say.
    """

    def __init__(self, folder: Path, *, pages: int = 100, synthetic: bool = False) -> None:
        self.folder, self.pages, self.synthetic = folder, pages, synthetic
        self._rows: dict[int, GalleryRow] = {}
        self._totals = _Totals()
        self._lock = Lock()

    def add(
        self,
        *,
        index: int,
        name: str,
        stem: str,
        rgb: NDArray[np.uint8],
        instances: NDArray[np.int32],
        cells: Sequence[Mapping[str, Any]],
        left_out: Sequence[Mapping[str, Any]],
        summary: Mapping[str, Any],
        cell_diameter_px: float,
        warnings: Sequence[str],
        severity_true: str | None = None,
    ) -> GalleryRow:
        """Count one image and write its page if it is among the first; may be called from several threads at once.

        Args:
            index: the image's place, from 0, once each; decides who gets a page.
            name: its name in the data.
            stem: path of its files without ending, see ``util.results.output_stems``.
            rgb: (H, W, 3) uint8.
            instances: (H, W) int32, 0 = background, else a cell's number.
            cells: rows of cells.csv.
            left_out: rows of left_out.csv.
            summary: ``SmearCells.summary_fields``.
            cell_diameter_px: usual diameter of the image's red cells, pixels; NaN where none could be told.
            warnings: what the reader must know of this image.
            severity_true: its true grade, or None.

        Returns:
            what is kept of it.

        Raises:
            ValueError: the index was there before, sizes differ, or the stem leads out of the folder.
            UserError: a file cannot be written.
        """
        shown = SmearShown(
            name, stem, rgb, instances, cells, left_out, summary, cell_diameter_px, warnings, severity_true
        )
        row = _row(index, shown, page_path(stem) if index < self.pages else None)
        self._keep(row, shown)
        if row.page is not None:
            write_cell_page(self.folder, shown, synthetic=self.synthetic)
        return row

    def recall(
        self,
        *,
        index: int,
        name: str,
        stem: str,
        cells: Sequence[Mapping[str, Any]],
        left_out: Sequence[Mapping[str, Any]],
        summary: Mapping[str, Any],
        cell_diameter_px: float,
        warnings: Sequence[str],
    ) -> GalleryRow:
        """Count an image that was added before this process began: as ``add``, with its page as it was left.

        Raises:
            ValueError: the index was there before, or the stem leads out of the folder.
        """
        nothing = np.zeros((0, 0), np.int32)
        picture = np.zeros((0, 0, 3), np.uint8)
        shown = SmearShown(name, stem, picture, nothing, cells, left_out, summary, cell_diameter_px, warnings)
        page = page_path(stem)
        paged = index < self.pages and (self.folder / page).is_file()
        return self._keep(_row(index, shown, page if paged else None), shown)

    def __contains__(self, index: int) -> bool:
        return index in self._rows

    def _keep(self, row: GalleryRow, shown: SmearShown) -> GalleryRow:
        with self._lock:
            if row.index in self._rows:
                raise ValueError(f"image {row.index} ({row.name!r}) was added before")
            self._rows[row.index] = row
            self._count(shown)
        return row

    def _count(self, shown: SmearShown) -> None:
        totals = self._totals
        totals.kinds += counted_kinds(shown.cells)
        totals.reasons += Counter(str(row.get("reason") or EN_DASH) for row in shown.left_out)
        totals.border += _counted(shown.summary.get("border")) or 0
        totals.count(*diameters(shown.cells, shown.summary))
        totals.count(ROUNDNESS, known(shown.cells, "roundness"))
        totals.count(PALLOR, known(shown.cells, "central_pallor"))

    def rows(self) -> list[GalleryRow]:
        """All images by their index."""
        with self._lock:
            return [self._rows[index] for index in sorted(self._rows)]

    def image_fields(self, index: int) -> dict[str, Any]:
        """The fields of ``util.report.ImageRow`` that come from here; empty where the image was not added."""
        row = self._rows.get(index)
        if row is None:
            return {}
        return {
            "cell_count": row.cells,
            "overlapped_count": row.overlapped,
            "severity": row.grade,
            "severity_score": row.score,
            "cells_page": row.page,
        }

    def style(self) -> str:
        """The style that the section needs beside the report's own."""
        return cell_style()

    def section(self) -> Tags:
        """The main page's part on cells and severity."""
        from dominate import tags

        rows = self.rows()
        if not rows:
            return [tags.p("Module-II ran, but no image was given to it.", cls="lead")]
        return [
            tags.p(RULE_NOTE, cls="notice"),
            *_not_looked_for(rows),
            _cards(rows, self._totals),
            *_distributions(self._totals),
            tags.div(_kinds(self._totals), *_agreement(rows), cls="two"),
            *_table(rows),
        ]


def _row(index: int, shown: SmearShown, page: str | None) -> GalleryRow:
    said = shown.summary
    return GalleryRow(
        index=index,
        name=shown.name,
        page=page,
        cells=_counted(said.get("cells")),
        judged=_counted(said.get("judged")),
        overlapped=_counted(said.get("overlapped")),
        overlapped_share=_finite(said.get("overlapped_share")),
        diameter_px=_finite(percentile(said, 2)),
        um_per_px=_finite(said.get("um_per_px")),
        diameter_cv=_finite(said.get("diameter_cv")),
        score=_finite(said.get("severity_score")),
        grade=said.get("severity"),
        true_grade=shown.severity_true,
        left_out=len(shown.left_out),
        warnings=tuple(map(str, shown.warnings)),
    )


def _counted(value: Any) -> int | None:
    return int(value) if is_number(value) else None


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None


# --- the section ----------------------------------------------------------------------------------------------------


def _not_looked_for(rows: Sequence[GalleryRow]) -> Tags:
    """What a reader must know of the counts where some images have none."""
    from dominate import tags

    count = sum(row.cells is None for row in rows)
    if not count:
        return []
    words = (
        f"{count:,} of {len(rows):,} images: the red cells are too small to be told apart. They are not counted, not"
        " measured and not graded; what is said of cells here is of the other images."
    )
    return [tags.p(words, cls="notice strong")]


def _cards(rows: Sequence[GalleryRow], totals: _Totals) -> Any:
    from dominate import tags

    cells, judged, overlapped = (
        sum(getattr(row, name) or 0 for row in rows) for name in ("cells", "judged", "overlapped")
    )
    parts = cell_parts(cells, judged, totals.border)
    grades = Counter(row.grade or NOT_GRADED for row in rows)
    under = [f"{grades[NOT_GRADED]:,} {NOT_GRADED}"] if grades[NOT_GRADED] else []
    paged = sum(row.page is not None for row in rows)
    left = listed(totals.reasons)
    return tags.div(
        card("Images", f"{len(rows):,}", f"{paged:,} with a page of their cells"),
        card("Graded Chronic", f"{grades['Chronic']:,}", f"{grades['Mild']:,} Mild", *under),
        card("Red cells", f"{cells:,}", *parts),
        card("Overlapped", percent(overlapped / cells if cells else None), counted(overlapped, "cells")),
        card("Left out", f"{sum(totals.reasons.values()):,}", left or "nothing"),
        cls="cards",
    )


def _distributions(totals: _Totals) -> Tags:
    """Histograms of the measures of all whole cells."""
    from dominate import tags
    from dominate.util import raw

    sizes = [bins for bins in (DIAMETER_UM, DIAMETER_RELATIVE) if bins in totals.bins and totals.bins[bins].any()]
    drawn = [cell_figures.histogram(totals.bins[bins], bins) for bins in (*(sizes or [DIAMETER_UM]), ROUNDNESS, PALLOR)
             if bins in totals.bins]  # fmt: skip
    ends = "Each histogram's first and last bar hold what lies beyond. Whole cells only, none that a border cuts."
    return [
        tags.div(*[tags.div(raw(svg), cls="panel") for svg in drawn], cls="histograms"),
        tags.p(ends, cls="footnote"),
    ]


def _kinds(totals: _Totals) -> Any:
    from dominate import tags
    from dominate.util import raw

    kinds = {kind: count for kind, count in totals.kinds.items() if kind != NOT_JUDGED}
    return tags.div(raw(cell_figures.kind_bars(kinds, "Kinds of all judged cells")), cls="panel bars")


def _agreement(rows: Sequence[GalleryRow]) -> Tags:
    """Counts of true by given grade, where images have a true one."""
    from dominate import tags

    counts = Counter((row.true_grade, row.grade or NOT_GRADED) for row in rows if row.true_grade)
    if not counts:
        return []
    true = [*GRADES, *sorted({str(grade) for grade, _ in counts} - set(GRADES))]
    given = [*GRADES, *sorted({grade for _, grade in counts} - set(GRADES))]
    lines = [
        tags.tr(
            tags.th("truly ", outside(row), scope="row"),
            *[tags.td(f"{counts[row, column]:,}", cls="agreed" if row == column else "") for column in given],
            tags.td(f"{sum(counts[row, column] for column in given):,}"),
        )
        for row in true
    ]
    head = ["Grade", *(f"graded {printable(grade)}" for grade in given), "Images"]
    right, labelled = sum(counts[grade, grade] for grade in GRADES), sum(counts.values())
    lead = (
        f"{right:,} of the {labelled:,} images with a true grade were graded the same; images without one do not count."
    )
    title = "Agreement with the true grades"
    return [tags.div(tags.h3(title), tags.p(lead, cls="lead"), table(head, lines, title, cls="agreement"), cls="panel")]


def _table(rows: Sequence[GalleryRow]) -> Tags:
    """The images from the most severe down: the first at once, the others when asked for."""
    from dominate import tags

    ranked = sorted(rows, key=lambda row: (-1.0 if row.score is None else row.score, row.cells is not None, -row.index))
    ranked.reverse()
    shown = ranked[:MOST_ROWS]
    head = ["Image", "Severity score", "Grade", "True grade", "Cells", "Judged", "Overlapped", "Median diameter",
            "Anisocytosis", "Left out"]  # fmt: skip
    columns = head if any(row.true_grade for row in shown) else [title for title in head if title != "True grade"]
    rest = len(rows) - len(shown)
    lead = "Most severe first; a name that is a link leads to the page of that image's cells."
    if rest:
        lead += " The other one is" if rest == 1 else f" The other {rest:,} images are"
        lead += " in predictions.csv."
    title = "Images by severity"
    parts = [table(columns, [_line(row, columns) for row in shown[:FIRST_ROWS]], title, "smears")]
    if more := shown[FIRST_ROWS:]:
        further = table(columns, [_line(row, columns) for row in more], f"{title}, further down", "smears")
        parts.append(tags.details(tags.summary(f"The next {len(more):,}"), further))
    return [tags.h3(title), tags.p(lead, cls="lead"), *parts]


def _line(row: GalleryRow, columns: Sequence[str]) -> Any:
    from dominate import tags

    name = tags.a(outside(row.name), href=link_to(row.page)) if row.page is not None else outside(row.name)
    size = [figure_of(row.diameter_px, 1, " px")]
    if row.diameter_px is not None and row.um_per_px is not None:
        size.append(tags.small(f"{row.diameter_px * row.um_per_px:.2f} \N{GREEK SMALL LETTER MU}m"))
    cells = {
        "Severity score": tags.td(figure_of(row.score, 3)),
        "Grade": tags.td(printable(row.grade or EN_DASH), cls="grade"),
        "True grade": tags.td(printable(row.true_grade or EN_DASH)),
        "Cells": tags.td(figure_of(row.cells, 0)),
        "Judged": tags.td(figure_of(row.judged, 0)),
        "Overlapped": tags.td(percent(row.overlapped_share)),
        "Median diameter": tags.td(*size),
        "Anisocytosis": tags.td(figure_of(row.diameter_cv, 1, "%")),
        "Left out": tags.td(f"{row.left_out:,}"),
    }
    warnings = [tags.small(outside(warning)) for warning in row.warnings]
    return tags.tr(tags.th(name, *warnings, scope="row"), *[cells[title] for title in columns[1:]])
