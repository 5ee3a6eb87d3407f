"""All images of a page: their rows for the script, the controls, and the first of them as plain HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from util.figures import CLASSES, HEADS, SPLITS, counted, is_number, three_decimals
from util.metrics import THRESHOLD
from util.report_content import PER_PAGE, ImageRow, Report, Tags, finite, link_to, missing_of, printable
from util.report_parts import lead_of, outside
from util.report_pictures import PREDICTED_COLOUR, TRUE_COLOUR

ROW_COLUMNS = (
    "name", "split", "group", "label_true", "label_pred", "prob", "dice",
    "smear", "true_mask", "predicted_mask", "overlay", "cells", "cells_page",
)  # fmt: skip
ORDERS = {
    "data": "As in the data",
    "wrong": "Most confidently wrong first",
    "highest": "Highest probability first",
    "lowest": "Lowest probability first",
    "dice": "Worst mask first",
    "name": "By name",
}
# The overlay's signs: the mark of each, its words, and whether it takes a true mask to be drawn.
_LINE = '<line x1="1" x2="29" y1="7" y2="7" stroke="{}" stroke-width="2.5"/>'
_FILL = '<rect x="1" y="1" width="28" height="12" rx="2" fill="{}" fill-opacity=".6"/>'
SIGNS = (
    (_LINE, PREDICTED_COLOUR, "predicted outline", False),
    (_LINE, TRUE_COLOUR, "true outline where it differs", True),
    (_FILL, PREDICTED_COLOUR, "predicted only (too much)", True),
    (_FILL, TRUE_COLOUR, "true only (missed)", True),
)
PICTURES = {"smear": "smear", "true_mask": "true mask", "predicted_mask": "predicted mask", "overlay": "overlay"}


def rows_json(report: Report) -> str:
    """The rows as JSON that can stand inside ``<script>``: nothing in it can end the element or start a comment."""
    rows = [
        [printable(row.name), printable(row.split), printable(row.group), row.label_true, row.label_pred,
         [_every_digit(row.prob.get(head)) for head in HEADS], finite(row.dice),
         *(None if getattr(row, key) is None else link_to(getattr(row, key)) for key in PICTURES),
         cell_words(row), None if row.cells_page is None else link_to(row.cells_page)]
        for row in report.images
    ]  # fmt: skip
    content: dict[str, Any] = {"columns": ROW_COLUMNS, "heads": list(HEADS.values()), "classes": CLASSES}
    content |= {"splits": SPLITS, "threshold": THRESHOLD, "per_page": PER_PAGE, "rows": rows}
    content["pictures"] = pictures_of(report)
    content["missing"] = [missing_of(report, head) for head in HEADS]
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII, so U+2028 is escaped too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _every_digit(probability: float | None) -> float | None:
    """As predictions.csv has it: rounded, 0.5000004 would be no more than the threshold, and sure ones would tie."""
    return float(probability) if is_number(probability) and probability is not None else None


def pictures_of(report: Report) -> dict[str, str]:
    """Which pictures the images have, and their captions: one that none of them has takes no room."""
    return {
        key: caption for key, caption in PICTURES.items() if any(getattr(row, key) is not None for row in report.images)
    }


def cell_words(row: ImageRow) -> str | None:
    """An image's cells and grade in a few words; None where no cells were looked for."""
    if row.cell_count is None:
        return None if row.cells_page is None else "red cells too small to be counted"
    words = f"{row.cell_count:,} red {'cell' if row.cell_count == 1 else 'cells'}"
    words += "" if row.overlapped_count is None else f", {row.overlapped_count:,} overlapped"
    score = "" if finite(row.severity_score) is None else f" ({row.severity_score:.3f})"
    return f"{words}, {printable(row.severity)}{score}" if row.severity else f"{words}, not graded"


def images(report: Report) -> Tags:
    """Every image with its pictures and each tier's verdict: by script in pages, without one the first fifty."""
    from dominate import tags

    if not report.images:
        return []
    wrong = sum(row.label_true is not None and row.label_true != row.label_pred for row in report.images)
    labelled = sum(row.label_true is not None for row in report.images)
    count = len(report.images)
    judged = f"; Global is wrong on {wrong:,} of {labelled:,} that have a label" if labelled else " without labels"
    rest = f"Without scripts this page shows the first {PER_PAGE} images; predictions.csv has all {count:,}."
    missing = {head: missing_of(report, head) for head in HEADS}
    captions = pictures_of(report)
    first = [_image_card(row, missing, captions) for row in report.images[:PER_PAGE]]
    return [
        lead_of(
            f"{counted(count, 'images')}{judged}. Select a picture to open it on its own. A group is named after one"
            " of its members and may hold images of both classes."
        ),
        _legend("true_mask" in captions),
        _image_filters(report.images),
        tags.div(id="image-list", aria_live="off"),
        _image_pages(),
        tags.noscript(*([lead_of(rest)] if count > PER_PAGE else []), *first),
    ]


def _legend(true_masks: bool) -> Any:
    """What the overlay's colours mean."""
    from dominate import tags
    from dominate.util import raw

    signs = [sign for sign in SIGNS if true_masks or not sign[-1]]
    marks = [mark.format("#{:02x}{:02x}{:02x}".format(*colour)) for mark, colour, _, _ in signs]
    items = [
        tags.li(raw(f'<svg viewBox="0 0 30 14" aria-hidden="true">{mark}</svg>'), text)
        for mark, (_, _, text, _) in zip(marks, signs, strict=True)
    ]
    return tags.ul(*items, cls="legend", aria_label="Colours of the overlay")


def _image_filters(rows: Sequence[ImageRow]) -> Any:
    """Controls that the script shows and serves; hidden without it."""
    from dominate import tags

    names = {"all": "All", "wrong": "Wrong only", "healthy": "Healthy", "anemic": "Anemic"}
    buttons = [
        tags.button(text, {"data-show": key}, type="button", aria_pressed="false") for key, text in names.items()
    ]
    buttons[0]["aria-pressed"] = "true"
    words = "Search name or group"
    splits = dict.fromkeys(printable(row.split) for row in rows if row.split)
    options = [tags.option("All splits", value=""), *[tags.option(SPLITS.get(s, s), value=s) for s in splits]]
    orders = [tags.option(text, value=key) for key, text in ORDERS.items()]
    return tags.div(
        tags.div(*buttons, cls="choices", role="group", aria_label="Which images"),
        tags.select(*options, id="image-split", aria_label="Split"),
        tags.select(*orders, id="image-sort", aria_label="Order"),
        tags.input_(id="image-search", type="search", placeholder=words, aria_label=words, dir="auto"),
        id="image-tools",
        cls="filters panel",
        hidden=True,
    )


def _image_pages() -> Any:
    from dominate import tags

    steps = [
        tags.button(text, {"data-step": step}, type="button") for text, step in (("Previous", "-1"), ("Next", "1"))
    ]
    where = tags.p(cls="where", role="status", aria_live="polite")
    go = tags.input_(id="image-page", type="number", min="1", value="1", aria_label="Page")
    return tags.div(steps[0], where, tags.label("page ", go), steps[1], id="image-pages", cls="pages", hidden=True)


def _image_card(row: ImageRow, missing: Mapping[str, str], captions: Mapping[str, str]) -> Any:
    """One image as plain HTML, ``missing`` where a head has no verdict; the script builds the same."""
    from dominate import tags

    kind, mark = outcome(row.label_true, row.label_pred)
    word = {"right": "right", "wrong": "wrong", "unknown": "no label"}[kind]
    truth = "truth unknown" if row.label_true is None else f"truly {CLASSES[row.label_true]}"
    about = [
        tags.h3(outside(row.name)),
        tags.span(f"{mark} {word}", cls=f"verdict {kind}"),
        tags.p(f"called {CLASSES[row.label_pred]}, {truth}"),
        tags.p(printable(SPLITS.get(row.split, row.split))),
        tags.p("group ", outside(row.group)),
        *([tags.p(f"Dice {three_decimals(row.dice)}")] if row.dice is not None else []),
        *_cell_note(row),
    ]
    pictures = [_picture(row, key, caption) for key, caption in captions.items()]
    tiers = [_tier_item(row, head, title, missing[head]) for head, title in HEADS.items()]
    parts = [tags.div(*about, cls="about"), tags.div(*pictures, cls="pictures"), tags.ul(*tiers, cls="tiers")]
    return tags.article(*parts, cls=f"image panel {kind}")


def _cell_note(row: ImageRow) -> Tags:
    from dominate import tags

    words = cell_words(row)
    if words is None:
        return []
    return [tags.p(tags.a(words, href=link_to(row.cells_page)) if row.cells_page else words)]


def outcome(truth: int | None, called: int) -> tuple[str, str]:
    """Whether a call is right, wrong or of unknown truth, and the mark that says so."""
    if truth is None:
        return "unknown", "?"
    return ("right", "\N{CHECK MARK}") if truth == called else ("wrong", "\N{BALLOT X}")


def _picture(row: ImageRow, key: str, caption: str) -> Any:
    from dominate import tags

    path = getattr(row, key)
    if path is None:
        return tags.figure(tags.div("none", cls="absent"), tags.figcaption(caption))
    image = tags.img(src=link_to(path), alt=f"{caption} of {printable(row.name)}", loading="lazy", decoding="async")
    return tags.figure(tags.a(image, href=link_to(path)), tags.figcaption(caption))


def _tier_item(row: ImageRow, head: str, title: str, missing: str) -> Any:
    from dominate import tags

    probability = row.prob.get(head)
    if not is_number(probability) or probability is None:
        return tags.li(tags.span(title), tags.span(missing, cls="missing"))
    called = row.label_pred if head == "global" else int(probability > THRESHOLD)
    kind, mark = outcome(row.label_true, called)
    return tags.li(tags.span(title), tags.span(), tags.span(f"{probability:.3f} {CLASSES[called]} {mark}", cls=kind))
