"""The page of one smear's cells: every outline on the picture, the worst cells, the summary, in one HTML file.

Only the smear's own picture lies beside it. Names, reasons and warnings come from outside and are text to dominate;
only this package's own style, script and figures are marked raw.
"""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from util import cell_figures
from util.assets import asset
from util.cell_figures import LEFT_OUT, NOT_JUDGED, Bins, Shape
from util.figures import counted, is_number
from util.files import atomic_write
from util.report import Tags, document_head, outside, printable, save_thumbnail
from util.report_parts import SYNTHETIC
from util.results import encoded_image, leads_out

EN_DASH = "\N{EN DASH}"
PICTURE_SIZE = 1200
WORST_CELLS = 12
SCORES = {"S": "size_score", "R": "roundness_score", "CP": "pallor_score"}
CROP_SIZE = 160
_SPACE = "\N{NO-BREAK SPACE}"
# Cut-out around a cell: in parts of its larger side, and at least so many pixels.
_CROP_ROOM, _LEAST_CROP = 1.5, 24
# Largest error of a simplified outline, in parts of the image's longer side, and at least so many pixels.
_TOLERANCE, _LEAST_TOLERANCE = 1 / 2400, 0.35
ROUNDNESS = Bins("Roundness", "", 0.0, 1.0, 40)
PALLOR = Bins("Central pallor", "", 0.0, 1.0, 40)
DIAMETER_UM = Bins("Diameter", "\N{GREEK SMALL LETTER MU}m", 3.0, 13.0, 40)
DIAMETER_RELATIVE = Bins("Relative diameter", "1 is the image's own normal cell", 0.25, 2.25, 40)
RULE_NOTE = (
    "The rule behind the grade was calibrated on synthetic smears. \N{LEFT DOUBLE QUOTATION MARK}Chronic"
    "\N{RIGHT DOUBLE QUOTATION MARK} is the published word for severe. The grade is meant for anemic blood and says"
    " nothing of use on healthy blood. Not for diagnosis."
)


@dataclass(frozen=True)
class SmearShown:
    """One smear and all that Module-II says of it.

    Attributes:
        name: the image's name in the data.
        stem: path of its files without ending, see ``util.results.output_stems``.
        rgb: (H, W, 3) uint8.
        instances: (H, W) int32, 0 = background, else a cell's number.
        cells: rows of cells.csv.
        left_out: rows of left_out.csv.
        summary: counts, spread, kinds, scores and grade by name; what is missing or not finite is not known.
        cell_diameter_px: usual diameter of the image's red cells, pixels; NaN where none could be told.
        warnings: what the reader must know of this image.
        severity_true: its true grade, or None.
    """

    name: str
    stem: str
    rgb: NDArray[np.uint8]
    instances: NDArray[np.int32]
    cells: Sequence[Mapping[str, Any]]
    left_out: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    cell_diameter_px: float
    warnings: Sequence[str]
    severity_true: str | None = None

    def __post_init__(self) -> None:
        if self.rgb.shape != (*self.instances.shape, 3):
            raise ValueError(f"smear {self.rgb.shape} and instance map {self.instances.shape} must have one size")
        if leads_out(self.stem):
            raise ValueError(f"the stem {self.stem!r} would lead out of the results folder")


def page_path(stem: str) -> str:
    """Path of an image's page relative to the results folder."""
    return f"cells/{stem}.html"


def write_cell_page(folder: Path, smear: SmearShown, *, synthetic: bool = False) -> None:
    """Write ``folder/cells/<stem>.html`` and its picture, atomically, the page last.

    Args:
        folder: the results folder.
        smear: what to show.
        synthetic: whether it was drawn by a programme, which the page then says.

    Raises:
        UserError: a file cannot be written.
    """
    import dominate
    from dominate import tags
    from dominate.util import raw

    path = folder / page_path(smear.stem)
    picture = path.with_name(f"{path.name.removesuffix('.html')}.jpg")
    save_thumbnail(picture, smear.rgb, size=PICTURE_SIZE)
    script = asset("cells.js")
    page = dominate.document(title=f"Cells of {printable(smear.name)}", lang="en")
    page.head.add(*document_head(script, cell_style()))
    home = "../" * page_path(smear.stem).count("/")
    page.body.add(
        _header(smear, home, synthetic), tags.main(*_sections(smear, "./" + quoted(picture.name)), cls="wide")
    )
    page.body.add(_footer(home), tags.script(raw(script)))
    atomic_write(path, page.render(pretty=False), make_parents=True)


def cell_style() -> str:
    """The style of all that shows cells, to stand after the report's own."""
    return asset("cells.css") + cell_figures.kind_css()


def quoted(name: str) -> str:
    """A file's name as part of a link."""
    return quote(os.fsencode(name))


def figure_of(value: Any, decimals: int = 2, unit: str = "") -> str:
    """A number as the page writes it, with thousands apart; a dash where it is not known."""
    return f"{value:,.{decimals}f}{unit}" if is_number(value) else EN_DASH


def percent(share: Any) -> str:
    """A share as a percentage with one decimal, or a dash."""
    return f"{100 * share:.1f}%" if is_number(share) else EN_DASH


def counted_kinds(cells: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Cells by kind; those without one are NOT_JUDGED."""
    return Counter(str(row.get("abnormal_kind") or NOT_JUDGED) for row in cells)


def listed(counts: Mapping[str, int]) -> str:
    """Counts of names in words, the most first; equal counts by name, so that no order of adding shows."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count:,} {printable(name)}" for name, count in ranked)


def known(rows: Iterable[Mapping[str, Any]], column: str) -> list[float]:
    """The finite values of a column."""
    return [float(row[column]) for row in rows if is_number(row.get(column))]


def diameters(cells: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> tuple[Bins, list[float]]:
    """Diameters in micrometres where the image's pixels are known in them, else over its own normal cell's."""
    if is_number(summary.get("um_per_px")):
        return DIAMETER_UM, known(cells, "diameter_um")
    reference: Any = summary.get("reference_px")
    if not is_number(reference) or reference <= 0:
        return DIAMETER_RELATIVE, []
    return DIAMETER_RELATIVE, [value / reference for value in known(cells, "diameter_px")]


# --- the frame of the page ------------------------------------------------------------------------------------------


def _header(smear: SmearShown, home: str, synthetic: bool) -> Any:
    from dominate import tags

    items = tags.ul(cls="notices")
    items.add(tags.li(tags.b("Research use only."), RULE_NOTE, cls="notice"))
    grave = [SYNTHETIC] if synthetic else []
    grave += [("Warning.", warning) for warning in smear.warnings]
    for heading, text in grave:
        sign = f"\N{WARNING SIGN}\N{VARIATION SELECTOR-15} {heading}"
        items.add(tags.li(tags.b(sign), outside(text), cls="notice strong"))
    back = tags.a("\N{LEFTWARDS ARROW} All images", href=f"{home}index.html#severity")
    eyebrow = tags.p("3-TierDCFNet \N{MIDDLE DOT} Module-II", cls="eyebrow")
    return tags.header(
        tags.div(tags.p(back, cls="back"), eyebrow, tags.h1(outside(smear.name)), items, cls="wide"), cls="top"
    )


def _footer(home: str) -> Any:
    from dominate import tags

    files = ("cells.csv", "left_out.csv", "predictions.csv")
    links: Tags = []
    for name in files:
        links += [" \N{MIDDLE DOT} " if links else "All measures: ", tags.a(name, href=f"{home}{name}")]
    return tags.footer(tags.div(tags.p(*links), tags.p("Research use only, not for diagnosis."), cls="wide"))


def _sections(smear: SmearShown, picture: str) -> Tags:
    from dominate import tags

    shapes, undrawn = _shapes(smear)
    parts = {
        "Result": _cards(smear),
        "Cells": _cells(smear, picture, shapes, undrawn),
        "The cells that drove the severity": _worst(smear, {shape.key: shape for shape in shapes}),
        "Summary": _summary(smear),
    }
    return [tags.section(tags.h2(title), *content) for title, content in parts.items() if content]


def card(title: str, value: str, *under: str, cls: str = "") -> Any:
    """One large figure with what it means beneath."""
    from dominate import tags

    lines = [tags.p(line, cls="count") for line in under]
    return tags.article(tags.h3(title), tags.p(value, cls=f"figure {cls}".strip()), *lines, cls="card panel")


def _cards(smear: SmearShown) -> Tags:
    from dominate import tags

    said, score = smear.summary, figure_of(smear.summary.get("severity_score"), 3)
    truth = f"truly {printable(smear.severity_true)}" if smear.severity_true else "true grade not known"
    median = percentile(said, 2)
    cards = [
        card("Severity", printable(said.get("severity") or EN_DASH), f"score {score}, 0 is normal", truth, cls="word"),
        card("Red cells", figure_of(said.get("cells"), 0), *_parts_of(said)),
        card("Overlapped", percent(said.get("overlapped_share")), _cells_in_words(said.get("overlapped"))),
        card("Median diameter", *_both_units(median, said.get("um_per_px")).split(", ")),
        card("Anisocytosis", figure_of(said.get("diameter_cv"), 1, "%"), "CV of the diameters"),
    ]
    return [tags.div(*cards, cls="cards")]


def cell_parts(cells: int, judged: int, border: int) -> list[str]:
    """What becomes of red cells, in words; the parts add up to all of them."""
    parts = [f"{judged:,} judged", f"{border:,} at a border"]
    return [*parts, f"{rest:,} without a stained rim"] if (rest := cells - judged - border) else parts


def _parts_of(said: Mapping[str, Any]) -> list[str]:
    counts = [said.get(key) for key in ("cells", "judged", "border")]
    if not all(map(is_number, counts)):
        return [f"{EN_DASH} judged"]
    return cell_parts(*(int(count) for count in counts if count is not None))


def _cells_in_words(count: Any) -> str:
    return counted(int(count), "cells") if is_number(count) else f"{EN_DASH} cells"


def percentile(summary: Mapping[str, Any], place: int) -> Any:
    """One of the summary's 5th, 25th, 50th, 75th, 95th percentiles of the diameter, or None."""
    values: Sequence[Any] = summary.get("diameter_px") or ()
    return values[place] if place < len(values) else None


def _both_units(pixels: Any, um_per_px: Any) -> str:
    """A length in pixels and, where known, in micrometres."""
    text = figure_of(pixels, 1, f"{_SPACE}px")
    if is_number(pixels) and is_number(um_per_px):
        text += f", {figure_of(pixels * um_per_px, 2, _SPACE)}\N{GREEK SMALL LETTER MU}m"
    return text


# --- the smear and its outlines -------------------------------------------------------------------------------------


def _shapes(smear: SmearShown) -> tuple[list[Shape], int]:
    """What is drawn, the most severe last and so on top; and how many of the red cells are not."""
    rows = sorted(smear.cells, key=_severity_of)
    drawn = rows[-cell_figures.MOST_OUTLINES :]
    left = [row for row in smear.left_out if row.get("cell")][: cell_figures.MOST_OUTLINES]
    numbers = [int(row["cell"]) for row in (*left, *drawn)]
    tolerance = max(_LEAST_TOLERANCE, _TOLERANCE * max(smear.instances.shape))
    outlines = cell_figures.cell_outlines(smear.instances, numbers, tolerance)
    decimals = 1 if max(smear.instances.shape) < 2 * PICTURE_SIZE else 0
    paths = {number: cell_figures.path_data(outline, decimals) for number, outline in outlines.items()}
    shapes = [_left_out_shape(place, row, paths) for place, row in enumerate(smear.left_out, 1)]
    cells = [_cell_shape(row, paths[int(row["cell"])]) for row in drawn if int(row["cell"]) in paths]
    return shapes[: cell_figures.MOST_OUTLINES] + cells, len(rows) - len(cells)


def _severity_of(row: Mapping[str, Any]) -> tuple[float, int]:
    """Key that sorts rows from the least severe to the most, those without a score first, the same in every run."""
    score = row.get("severity_score")
    return (float(score) if is_number(score) and score is not None else -1.0, -int(row["cell"]))


def _cell_shape(row: Mapping[str, Any], path: str) -> Shape:
    kind = str(row.get("abnormal_kind") or NOT_JUDGED)
    size = figure_of(row.get("diameter_px"), 1, f"{_SPACE}px")
    if is_number(row.get("diameter_um")):
        size += f", {figure_of(row['diameter_um'], 2)}{_SPACE}\N{GREEK SMALL LETTER MU}m"
    scores = ", ".join(f"{letter}{_SPACE}{figure_of(row.get(column))}" for letter, column in SCORES.items())
    facts = [
        f"Cell {int(row['cell'])}: {kind}",
        f"Diameter: {size}",
        f"Roundness: {figure_of(row.get('roundness'))}",
        f"Central pallor: {figure_of(row.get('central_pallor'))}",
        f"Scores: {scores}",
        f"Severity: {figure_of(row.get('severity_score'))}",
        *(["Overlapped: yes"] if row.get("overlapped") else []),
    ]
    return Shape(_anchor(row), kind, path, facts)


def _anchor(row: Mapping[str, Any]) -> str:
    return f"c{int(row['cell'])}"


def _left_out_shape(place: int, row: Mapping[str, Any], paths: Mapping[int, str]) -> Shape:
    """A thing that is not measured: its outline where it is in the instance map, else a circle of its area."""
    number = int(row.get("cell") or 0)
    path = paths.get(number) or cell_figures.circle_data(float(row["x"]), float(row["y"]), float(row["area_px"]))
    title = f"Cell {number}: left out" if number else "Left out"
    facts = [title, f"Reason: {row.get('reason') or EN_DASH}", f"Area: {figure_of(row.get('area_px'), 0, ' px')}"]
    return Shape(f"o{place}", LEFT_OUT, path, facts)


def _cells(smear: SmearShown, picture: str, shapes: Sequence[Shape], undrawn: int) -> Tags:
    from dominate import tags
    from dominate.util import raw

    counts = counted_kinds(smear.cells)
    height, width = smear.instances.shape
    label = f"The smear with the outlines of {len(smear.cells)} red cells"
    drawing = cell_figures.smear_svg(picture, width, height, shapes, label)
    empty = (
        "Point at a cell or tap it to see its measures, or focus the picture and use the arrow keys; Escape lets go."
    )
    facts = tags.aside(
        tags.p(empty, id="how-to"), id="cell-facts", cls="panel", aria_live="polite", aria_label="The chosen cell"
    )
    lead = "Every red cell's outline by kind. Grey and dashed is what was found but left out of the figures."
    found: Tags = [tags.p(lead, cls="lead")]
    if not smear.cells:
        found.append(tags.p("No whole red cell was found in this image, so nothing is graded.", cls="notice"))
    if undrawn:
        found.append(tags.p(f"{undrawn:,} of the red cells are not drawn; cells.csv has all.", cls="notice"))
    view = tags.div(_legend(counts, len(smear.left_out)), tags.div(raw(drawing), cls="stage"), facts, cls="cell-view")
    return [*found, view]


def _legend(counts: Mapping[str, int], left_out: int) -> Any:
    """Boxes that show and hide the kinds, by the page's style alone; the script adds the two buttons."""
    from dominate import tags
    from dominate.util import raw

    order = [*cell_figures.KIND_STYLES]
    kinds: dict[str, int] = dict.fromkeys(order, 0)
    for kind, count in counts.items():
        kinds[cell_figures.kind_key(kind)] += count
    kinds[LEFT_OUT] = left_out
    boxes = []
    for kind in (kind for kind in order if kinds[kind]):
        box = tags.input_(type="checkbox", checked=True, id=f"show-{cell_figures.kind_class(kind)}", autocomplete="off")
        boxes.append(tags.label(box, raw(cell_figures.swatch(kind)), kind, tags.b(f"{kinds[kind]:,}")))
    buttons = [
        tags.button(text, {"data-kinds": key}, type="button", hidden=True)
        for key, text in (("all", "All"), ("abnormal", "Abnormal only"))
    ]
    return tags.fieldset(tags.legend("Kinds shown"), *boxes, *buttons, cls="kinds panel")


# --- the worst cells ------------------------------------------------------------------------------------------------


def _worst(smear: SmearShown, shapes: Mapping[str, Shape]) -> Tags:
    """The cells of the highest severity with their scores, each cut out of the smear."""
    from dominate import tags

    scored = [row for row in smear.cells if is_number(row.get("severity_score"))]
    worst = sorted(scored, key=_severity_of, reverse=True)[:WORST_CELLS]
    rows = [_worst_row(smear, row, shapes[_anchor(row)]) for row in worst if _anchor(row) in shapes]
    if not rows:
        return []
    lead = (
        f"Highest severity first, at most {WORST_CELLS}. S is the score of the size, R of the roundness, CP of the"
        " central pallor: 1 is best, 0 worst. Severity is 1 less their weighted mean: 0 is normal, 1 worst."
    )
    head = ("Cell", "", "Kind", "Diameter", "Roundness", "Pallor", *SCORES, "Severity")
    return [tags.p(lead, cls="lead"), table(head, rows, "The cells of the highest severity", cls="worst")]


def table(head: Sequence[str], rows: Iterable[Any], label: str, cls: str = "") -> Any:
    """A table in a panel that scrolls sideways on a narrow screen (and by keyboard)."""
    from dominate import tags

    top = tags.thead(tags.tr(*[tags.th(text, scope="col") for text in head]))
    inside = tags.table(top, tags.tbody(*rows), cls=cls)
    return tags.div(inside, cls="panel scroll", role="region", tabindex="0", aria_label=label)


def _worst_row(smear: SmearShown, row: Mapping[str, Any], shape: Shape) -> Any:
    from dominate import tags
    from dominate.util import raw

    size = [figure_of(row.get("diameter_px"), 1, " px")]
    if is_number(row.get("diameter_um")):
        size.append(tags.small(f"{figure_of(row['diameter_um'])} \N{GREEK SMALL LETTER MU}m"))
    return tags.tr(
        tags.th(tags.a(str(int(row["cell"])), href=f"#{shape.key}"), scope="row"),
        tags.td(raw(_crop(smear, int(row["cell"]), shape))),
        tags.td(tags.span(outside(shape.kind), cls=f"kind-name {cell_figures.kind_class(shape.kind)}")),
        tags.td(*size),
        tags.td(figure_of(row.get("roundness"))),
        tags.td(figure_of(row.get("central_pallor"))),
        *[tags.td(figure_of(row.get(column))) for column in SCORES.values()],
        tags.td(tags.b(figure_of(row.get("severity_score")))),
    )


def _crop(smear: SmearShown, number: int, shape: Shape) -> str:
    """The cell and some of its surroundings at the image's own resolution."""
    from PIL import Image

    rows, columns = np.nonzero(smear.instances == number)
    box = _crop_box(rows, columns, smear.instances.shape)
    left, top, width, height = box
    picture = Image.fromarray(np.ascontiguousarray(smear.rgb[top : top + height, left : left + width]))
    picture.thumbnail((CROP_SIZE, CROP_SIZE), Image.Resampling.LANCZOS)
    encoded = base64.b64encode(encoded_image(lambda buffer: picture.save(buffer, format="JPEG", quality=90)))
    return cell_figures.crop_svg(f"data:image/jpeg;base64,{encoded.decode()}", box, shape)


def _crop_box(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A square around a cell, moved (and where the image is smaller, cut) to lie within the image."""
    side = max(_LEAST_CROP, round(_CROP_ROOM * (1 + max(np.ptp(rows), np.ptp(columns)))))
    height, width = min(side, shape[0]), min(side, shape[1])
    top = min(max(0, int(rows.min() + rows.max() - height) // 2), shape[0] - height)
    left = min(max(0, int(columns.min() + columns.max() - width) // 2), shape[1] - width)
    return left, top, width, height


# --- the summary ----------------------------------------------------------------------------------------------------


def _summary(smear: SmearShown) -> Tags:
    from dominate import tags
    from dominate.util import raw

    bins, sizes = diameters(smear.cells, smear.summary)
    drawn = [cell_figures.histogram(bins.counted(sizes), bins)]
    for column, measure in (("roundness", ROUNDNESS), ("central_pallor", PALLOR)):
        drawn.append(cell_figures.histogram(measure.counted(known(smear.cells, column)), measure))
    counts = counted_kinds(smear.cells)
    counts.pop(NOT_JUDGED, None)
    bars = cell_figures.kind_bars(counts, "Kinds of the judged cells")
    pairs = [tag for key, value in _facts(smear) for tag in (tags.dt(key), tags.dd(value))]
    return [
        tags.div(*[tags.div(raw(svg), cls="panel") for svg in drawn], cls="histograms"),
        tags.div(tags.div(raw(bars), cls="panel bars"), tags.div(tags.dl(*pairs, cls="plain"), cls="panel"), cls="two"),
    ]


def _facts(smear: SmearShown) -> list[tuple[str, str]]:
    """The summary in words."""
    said, scale = smear.summary, smear.summary.get("um_per_px")
    left = listed(Counter(str(row.get("reason") or EN_DASH) for row in smear.left_out))
    spread = [_both_units(percentile(said, place), scale) for place in range(5)]
    unknown = "not known; sizes are relative to the image's own normal cell"
    pixel = f"{scale:.4g} \N{GREEK SMALL LETTER MU}m" if is_number(scale) else unknown
    return [
        ("Red cells", f"{figure_of(said.get('cells'), 0)}, {figure_of(said.get('border'), 0)} cut by the border"),
        ("Judged", f"{figure_of(said.get('judged'), 0)} whole cells with a measurable pallor"),
        ("Overlapped", f"{figure_of(said.get('overlapped'), 0)} ({percent(said.get('overlapped_share'))})"),
        ("Left out", left or "nothing"),
        ("Median diameter", spread[2]),
        ("Middle half of the cells", f"{spread[1]} to {spread[3]}"),
        ("5th to 95th percentile", f"{spread[0]} to {spread[4]}"),
        ("Anisocytosis index", f"{figure_of(said.get('diameter_cv'), 1, '%')} (CV of the diameters)"),
        ("CV of the areas", figure_of(said.get("area_cv"), 1, "%")),
        ("Own normal cell", _both_units(said.get("reference_px"), scale)),
        ("Usual diameter, by area", figure_of(smear.cell_diameter_px, 1, " px")),
        ("Size of a pixel", pixel),
        ("Mean size score S", figure_of(said.get("size_score"), 3)),
        ("Mean roundness score R", figure_of(said.get("roundness_score"), 3)),
        ("Mean pallor score CP", figure_of(said.get("pallor_score"), 3)),
        ("Severity score", figure_of(said.get("severity_score"), 3)),
        ("Grade", printable(said.get("severity") or EN_DASH)),
        ("True grade", printable(smear.severity_true or EN_DASH)),
    ]
