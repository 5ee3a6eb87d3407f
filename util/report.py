"""The results page: what was tested, how well, by which tier, and every image, in one HTML file that needs no network.

To add a section, write a function from ``Report`` to a list of tags (an empty list leaves the section out) and put it
in ``SECTIONS``. Everything that comes from outside (names, options, warnings) is text to dominate; only this package's
own style, script and figures are marked raw.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from util import figures
from util.console import ROMAN
from util.figures import (
    CLASSES,
    EM_DASH,
    HEADS,
    NOT_EVALUATED,
    NOT_OPENED,
    SPLITS,
    gate_entry,
    interval_text,
    is_number,
    three_decimals,
)
from util.files import atomic_write
from util.metrics import THRESHOLD
from util.results import encoded_image

if TYPE_CHECKING:
    from util.cell_report import CellGallery

PER_PAGE = 50
FEWEST_IMAGES, FEWEST_GROUPS = 30, 10  # below them no claim about accuracy is made
THUMBNAIL_SIZE = 480
PREDICTED_COLOUR, TRUE_COLOUR = (230, 159, 0), (0, 114, 178)  # Okabe and Ito's orange and blue: light beside dark
FILES = (
    "predictions.csv", "predictions_train.csv", "predictions_val.csv", "cells.csv", "left_out.csv", "metrics.json",
)  # fmt: skip
ROW_COLUMNS = (
    "name", "split", "group", "label_true", "label_pred", "prob", "dice",
    "smear", "true_mask", "predicted_mask", "overlay", "cells", "cells_page",
)  # fmt: skip
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced acc.",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "ECE",
}
RESTAINED = {"grey": "grey", "stain_normalised": "normalised"}  # of metrics.json's robustness, and the page's words
CLASS_OF = {"specificity": 0, "sensitivity": 1}
PICTURES = {"smear": "smear", "true_mask": "true mask", "predicted_mask": "predicted mask", "overlay": "overlay"}

Tags = list[Any]


@dataclass
class ImageRow:
    """One image of the page.

    Attributes:
        name: its name in the data, shown as it is.
        split: train, val, test, or empty.
        group: patient or parent image.
        label_true: 0 Healthy, 1 Anemic, None where unknown.
        label_pred: what Global called it.
        prob: probability of Anemic by ``tier1``, ``tier2``, ``tier3``, ``global``; a missing tier never opened.
        dice: Dice of the predicted mask, or None.
        smear: path of the picture relative to the results folder, as are the next three.
        true_mask: or None where there is none.
        predicted_mask: path.
        overlay: path.
        cell_count: its red cells, or None where none were looked for.
        overlapped_count: those that touch another.
        severity: Mild, Chronic, or None.
        severity_score: mean severity of its cells, or None.
        cells_page: path of the page of its cells, or None.
    """

    name: str
    split: str
    group: str
    label_true: int | None
    label_pred: int
    prob: dict[str, float]
    dice: float | None
    smear: str
    true_mask: str | None
    predicted_mask: str
    overlay: str
    cell_count: int | None = None
    overlapped_count: int | None = None
    severity: str | None = None
    severity_score: float | None = None
    cells_page: str | None = None


@dataclass
class Report:
    """All that the page shows.

    Attributes:
        title: name of the run.
        metrics: the whole of ``metrics.json``; absent parts are left out of the page or shown as not evaluated, tiers
            that are None as not opened.
        images: one row per image.
        gate_log: the gate's decisions, see ``util.figures.gate_entry``.
        history: one dict per epoch, see ``util.figures.training_curves``.
        warnings: sentences that the reader must see first.
        options: name to value, or to {"value": ..., "default": ...}; then those that differ come first.
        cells: what Module-II found, or None where it did not run.
    """

    title: str
    metrics: dict[str, Any] = field(default_factory=dict)
    images: list[ImageRow] = field(default_factory=list)
    gate_log: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    cells: CellGallery | None = None


def write_report(folder: Path, report: Report) -> Path:
    """Write ``folder/index.html``, atomically; call it last, when the files that it shows are there.

    Args:
        folder: the results folder; it is made where missing.
        report: what to show.

    Returns:
        the page's path.

    Raises:
        UserError: the file cannot be written.
    """
    import dominate
    from dominate import tags
    from dominate.util import raw

    script = _beside("report.js")
    page = dominate.document(title=printable(report.title), lang="en")
    page.head.add(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.meta(name="color-scheme", content="light dark"),
        tags.meta({"http-equiv": "Content-Security-Policy"}, content=security_policy(script)),
        tags.style(raw(_beside("report.css") + (report.cells.style() if report.cells else ""))),
    )
    built = [(section, section.build(report)) for section in SECTIONS]
    shown = [(section, content) for section, content in built if content]
    page.body.add(_header(report), _navigation([section for section, _ in shown]))
    main = page.body.add(tags.main(cls="wide"))
    for section, content in shown:
        main.add(tags.section(tags.h2(section.title), *content, id=section.key))
    page.body.add(_footer(folder))
    if report.images:
        page.body.add(tags.script(raw(_rows_json(report)), type="application/json", id="image-rows"))
        page.body.add(tags.script(raw(script)))
    path = folder / "index.html"
    atomic_write(path, page.render(pretty=False), make_parents=True)
    return path


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def security_policy(script: str) -> str:
    """A policy that lets this page's one script run and nothing from any network; a second wall behind escaping."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = "img-src 'self' file: data:; style-src 'unsafe-inline'"
    return f"default-src 'none'; {pictures}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def printable(text: Any) -> str:
    """A text with what no page may hold (control characters, halves of a surrogate pair) made visible."""
    return figures.UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def link_to(path: str) -> str:
    """A relative link to a file of the results folder, percent-encoded; never another scheme, host or drive."""
    return "./" + quote(os.fsencode(path.lstrip("/")), safe="/")


def _rows_json(report: Report) -> str:
    """The rows as JSON that can stand inside ``<script>``: nothing in it can end the element or start a comment."""
    rows = [
        [printable(row.name), printable(row.split), printable(row.group), row.label_true, row.label_pred,
         [_finite(row.prob.get(head)) for head in HEADS], _finite(row.dice),
         *(None if getattr(row, key) is None else link_to(getattr(row, key)) for key in PICTURES),
         cell_words(row), None if row.cells_page is None else link_to(row.cells_page)]
        for row in report.images
    ]  # fmt: skip
    content: dict[str, Any] = {"columns": ROW_COLUMNS, "heads": list(HEADS.values()), "classes": CLASSES}
    content |= {"splits": SPLITS, "threshold": THRESHOLD, "per_page": PER_PAGE, "rows": rows}
    content["missing"] = [_missing(report, head) for head in HEADS]
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII, so U+2028 is escaped too
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def cell_words(row: ImageRow) -> str | None:
    """An image's cells and grade in a few words; None where no cells were looked for."""
    if row.cell_count is None:
        return None
    words = f"{row.cell_count:,} red {'cell' if row.cell_count == 1 else 'cells'}"
    words += "" if row.overlapped_count is None else f", {row.overlapped_count:,} overlapped"
    score = "" if _finite(row.severity_score) is None else f" ({row.severity_score:.3f})"
    return f"{words}, {printable(row.severity)}{score}" if row.severity else f"{words}, not graded"


def _finite(value: Any) -> float | None:
    return round(float(value), 6) if is_number(value) else None


# --- what the page says about the run as a whole --------------------------------------------------------------------


def headline_split(report: Report) -> str | None:
    """The split whose figures stand on top: test where there is one, else validation, else training, else any."""
    splits = report.metrics.get("splits") or {}
    return next((name for name in (*reversed(SPLITS), *splits) if splits.get(name)), None)


def sample_caution(report: Report, split: str) -> str | None:
    """The sentence that forbids a claim about accuracy where the sample is too small for one, else None."""
    scores = _scores(report, split, "global")
    images, groups = scores.get("n") or 0, _groups_by_class(report, split)
    fewest = min(groups) if groups else scores.get("n_groups") or 0
    if images >= FEWEST_IMAGES and fewest >= FEWEST_GROUPS:
        return None
    counted = f"{groups[0]} Healthy and {groups[1]} Anemic groups" if groups else f"{fewest} groups"
    return (
        f"No claim about accuracy can be made at this size: {images} images from {counted}. At least {FEWEST_IMAGES}"
        f" images and {FEWEST_GROUPS} groups of each class are asked for; these figures show that the programme ran, no"
        " more."
    )


def _groups_by_class(report: Report, split: str) -> tuple[int, int] | None:
    """Distinct groups of each true class among the page's images of a split; None where it shows none."""
    rows = [row for row in report.images if row.split == split and row.label_true is not None]
    if not rows:
        return None
    return len({r.group for r in rows if r.label_true == 0}), len({r.group for r in rows if r.label_true == 1})


def _scores(report: Report, split: str | None, head: str) -> dict[str, Any]:
    return ((report.metrics.get("splits") or {}).get(split) or {}).get(head) or {}


def _missing(report: Report, head: str) -> str:
    """What stands where a head has no verdict on an image."""
    return NOT_OPENED if head in _unopened(report) else NOT_EVALUATED


def _unopened(report: Report) -> list[str]:
    """Tiers that the tested weights had not opened: they stand in the metrics without figures."""
    splits = [scores for scores in (report.metrics.get("splits") or {}).values() if scores]
    return [head for head in HEADS if any(head in scores and scores[head] is None for scores in splits)]


def _provenance(report: Report) -> dict[str, Any]:
    return report.metrics.get("provenance") or {}


def notices(report: Report) -> list[tuple[bool, str, str]]:
    """What a reader must know before any figure, as (grave, heading, sentence)."""
    provenance, split = _provenance(report), headline_split(report)
    found = [(False, "Research use only.", "Not for diagnosis, treatment or any other clinical decision.")]
    if provenance.get("synthetic"):
        text = "These smears were drawn by a programme; nothing here speaks about patients."
        found.append((True, "SYNTHETIC DATA.", text))
    found += _mask_notice(provenance.get("binary_from"))
    if split is not None and split != "test":
        name = SPLITS.get(split, split).lower()
        text = f"The figures on top are of the {name} images, by which the network was fitted or chosen."
        found.append((True, "No test split.", text))
    found += _leak_notice(provenance.get("group_overlap") or []) + _tier_notices(
        report.metrics.get("tiers_opened") or {}
    )
    return found + [(True, "Warning.", str(warning)) for warning in report.warnings]


def _mask_notice(source: Any) -> list[tuple[bool, str, str]]:
    if source == "gt":
        text = "The binary stream saw the true masks (--binary_from gt), which no new smear has: expect less without."
        return [(True, "True masks were used.", text)]
    if source == "otsu":
        return [
            (False, "Otsu masks were used.", "The binary stream saw Otsu's threshold, not the network's own masks.")
        ]
    return []


def _leak_notice(shared: Sequence[str]) -> list[tuple[bool, str, str]]:
    """A group on two sides of the split makes the test figures too good."""
    if not shared:
        return []
    counted = "1 group has" if len(shared) == 1 else f"{len(shared)} groups have"
    text = f"{counted} images in more than one split (first: {shared[0]}); the test figures are too good."
    return [(True, "The splits are not disjoint.", text)]


def _tier_notices(tiers: Mapping[str, Any]) -> list[tuple[bool, str, str]]:
    found = []
    for head, how in tiers.items():
        said = how.get("how", "") if isinstance(how, Mapping) else str(how)
        if said == "forced":
            found.append((True, f"{_head(head)} was forced.", "Its epochs ran out before its validation point agreed."))
        elif said == "not opened":
            found.append((True, f"{_head(head)}'s gate did not open.", _shut_gate(head)))
            break  # that the gates after it are shut too goes without saying
    return found


def _shut_gate(head: str) -> str:
    """What follows for the weights tested; those of an early epoch may lack tiers that later epochs opened."""
    tiers = [key for key in HEADS if key != "global"]
    after = tiers[tiers.index(head) + 1 :] if head in tiers else []
    so = f", so {' and '.join(map(_head, after))} {'were' if len(after) > 1 else 'was'} not trained" if after else ""
    return f"The weights tested were saved before it opened or was forced{so}."


def _head(key: str) -> str:
    return HEADS.get(key, key)


# --- the frame of the page ------------------------------------------------------------------------------------------


def _header(report: Report) -> Any:
    from dominate import tags

    items = tags.ul(cls="notices")
    for grave, heading, sentence in notices(report):
        sign = "\N{WARNING SIGN}\N{VARIATION SELECTOR-15} " if grave else ""
        text = [tags.b(sign + printable(heading)), outside(sentence)]
        items.add(tags.li(*text, cls="notice strong" if grave else "notice"))
    return tags.header(
        tags.div(
            tags.p("3-TierDCFNet", cls="eyebrow"), tags.h1(outside(report.title)), _facts(report), items, cls="wide"
        ),
        cls="top",
    )


def _facts(report: Report) -> Any:
    """What was tested, in one line."""
    from dominate import tags

    split = headline_split(report)
    scores = _scores(report, split, "global")
    facts = [("Data", _provenance(report).get("data")), ("Split", SPLITS.get(split, split) if split else None)]
    facts += [("Images", scores.get("n", len(report.images) or None)), ("Groups", scores.get("n_groups"))]
    facts += [("Epoch", (_provenance(report).get("weights") or {}).get("epoch"))]
    facts += [("Tiers start from", _starts(report))]
    items = [tags.li(f"{name} ", tags.b(outside(value))) for name, value in facts if value not in (None, "")]
    return tags.ul(*items, cls="facts")


def _starts(report: Report) -> str:
    """What the tiers started from; said once where it is the same for all."""
    starts = (_provenance(report).get("weights") or {}).get("started_from") or {}
    if len(set(starts.values())) == 1:
        return str(next(iter(starts.values())))
    return "; ".join(f"{ROMAN[tier]}: {start}" for tier, start in starts.items())


def _navigation(sections: Sequence[Section]) -> Any:
    from dominate import tags

    links = [tags.li(tags.a(section.short or section.title, href=f"#{section.key}")) for section in sections]
    return tags.nav(tags.ul(*links), aria_label="Sections")


def _footer(folder: Path) -> Any:
    from dominate import tags

    links: Tags = []
    for name in FILES:
        if (folder / name).is_file():
            links += [" \N{MIDDLE DOT} " if links else "Files: ", tags.a(name, href=link_to(name))]
    return tags.footer(tags.div(tags.p(*links), tags.p("Research use only, not for diagnosis."), cls="wide"))


def outside(text: Any) -> Any:
    """A text from outside, in an element of its own so that a right-to-left name cannot turn its neighbours round."""
    from dominate import tags

    return tags.bdi(printable(text))


def _lead(*text: Any) -> Any:
    from dominate import tags

    return tags.p(*text, cls="lead")


def _figure(svg: str, label: str, cls: str = "panel scroll") -> Any:
    """An SVG in a panel that scrolls sideways on a narrow screen (and by keyboard)."""
    from dominate import tags
    from dominate.util import raw

    return tags.div(raw(svg), cls=cls, role="region", tabindex="0", aria_label=label)


def _table(head: Sequence[str], rows: Iterable[Any], caption: str = "", cls: str = "") -> Any:
    from dominate import tags

    content = [tags.caption(caption)] if caption else []
    content.append(tags.thead(tags.tr(*[tags.th(text, scope="col") for text in head])))
    table = tags.table(*content, tags.tbody(*rows), **({"cls": cls} if cls else {}))
    return tags.div(table, cls="panel scroll", role="region", tabindex="0", aria_label=caption or head[0])


# --- sections -------------------------------------------------------------------------------------------------------


def headline(report: Report) -> Tags:
    """Cards of the headline split: Global's accuracy, AUROC, sensitivity, specificity, and the masks' Dice."""
    from dominate import tags

    split = headline_split(report)
    masks = _segmentation(report)
    if split not in (None, masks.get("split")):
        masks = {}  # scored on another split than the cards beside it
    if split is None and not masks:
        return []
    scores = _scores(report, split, "global")
    titles = ("accuracy", "auroc", "sensitivity", "specificity") if scores else ()
    cards = [_card("Global accuracy" if key == "accuracy" else METRICS[key], scores, key) for key in titles]
    cards += [_card("Mask Dice (pooled)", masks, "dice")] if masks else []
    caution = sample_caution(report, split) if split else None
    name = SPLITS.get(split or "test", split)
    shut = " and ".join(map(_head, _unopened(report)))
    fused = f"the tiers that had opened ({shut} had not)" if shut else "the three tiers"
    views = _provenance(report).get("test_views") or 1
    seen = f" Each image was judged in {views} turned and mirrored views, which are averaged." if views > 1 else ""
    lead = f"Global is the fused output of {fused}. "
    found: Tags = [_lead(lead, tags.b(f"{name} split"), f", 95% intervals.{seen}")]
    found += [tags.p(caution, cls="notice strong caution")] if caution else []
    found.append(tags.div(*cards, cls="cards"))
    note = _flat_interval_note([scores, masks])
    return found + ([note] if note else [])


def _card(title: str, scores: Mapping[str, Any], key: str) -> Any:
    from dominate import tags
    from dominate.util import raw

    value, interval = scores.get(key), (scores.get("ci95") or {}).get(key)
    content = [tags.h3(title), tags.p(three_decimals(value), cls="figure")]
    if value is not None and is_number(value):
        content.append(raw(_interval_bar(value, interval)))
    text = interval_text(interval)
    content.append(tags.p(f"95% CI {text}" if text else "no interval", cls="interval"))
    groups = f", {scores['n_groups']} groups" if scores.get("n_groups") is not None else ""
    content.append(tags.p(f"{_counted(scores, key)}{groups if key not in CLASS_OF else ''}", cls="count"))
    return tags.article(*content, cls="card panel")


def _counted(scores: Mapping[str, Any], key: str) -> str:
    """How many images a figure rests on: sensitivity and specificity see one class only."""
    matrix = scores.get("confusion_matrix")
    if key in CLASS_OF and matrix:
        return f"{sum(matrix[CLASS_OF[key]])} {CLASSES[CLASS_OF[key]]} images"
    return f"{scores.get('n', EM_DASH)} images"


def _interval_bar(value: float, interval: Any) -> str:
    """The figure and its interval on a line from 0 to 1; numbers only, so it may be raw."""
    band = ""
    if interval_text(interval):
        low, high = (100 * min(1.0, max(0.0, edge)) for edge in interval)
        band = f'<rect class="band" x="{low:.2f}" y="2.5" width="{high - low:.2f}" height="7"/>'
    point = f'<rect class="point" x="{100 * value - 0.6:.2f}" y="0" width="1.2" height="12"/>'
    track = '<rect class="track" x="0" y="5" width="100" height="2"/>'
    return f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{track}{band}{point}</svg>'


def _is_flat(interval: Any) -> bool:
    return bool(interval_text(interval)) and interval[0] == interval[1]


def _flat_interval_note(scored: Iterable[Mapping[str, Any]]) -> Any | None:
    """What an interval without width means; None where there is none."""
    from dominate import tags

    flat = [s for s in scored if any(_is_flat(interval) for interval in (s.get("ci95") or {}).values())]
    if not flat:
        return None
    return tags.p(
        "\N{DAGGER} Every resample gave the same value, as happens where no error was seen; the true interval is wider."
        " With no error in k groups, an error rate of up to about 3/k is not excluded (rule of three): 0.30 for ten"
        " groups. Only groups of the class in question count for sensitivity and specificity.",
        cls="footnote",
    )


def confusion(report: Report) -> Tags:
    """The grid of confusion matrices."""
    splits = report.metrics.get("splits") or {}
    if not splits:
        return []
    lead = "Rows are the true class, columns what the tier called it (Anemic above 0.5); percentages are of rows."
    return [_lead(lead), _figure(figures.confusion_grid(splits), "Confusion matrices", "panel scroll grid")]


def tier_table(report: Report) -> Tags:
    """Every metric of every tier and split with its interval, and the baselines."""
    from dominate import tags

    splits = report.metrics.get("splits") or {}
    rows, scored = [], []
    for split in (*SPLITS, *(name for name in splits if name not in SPLITS)):
        heads = [(_head(key), key, scores or {}) for key, scores in (splits.get(split) or {}).items()]
        if not any(scores for _, _, scores in heads):
            continue
        heads += [(name, "baseline", scores) for name, scores in _baselines(report, split)]
        title = SPLITS.get(split, split)
        rows.append(tags.tr(tags.th(printable(title), colspan=len(METRICS) + 3, scope="rowgroup"), cls="split"))
        rows += [_score_row(name, key, scores) for name, key, scores in heads]
        scored += [scores for _, _, scores in heads]
    if not rows:
        return []
    caption = "Point value over its 95% interval. Intervals: bootstrap over groups, percentiles."
    table = _table(["Tier", "Images", "Groups", *METRICS.values()], rows, caption)
    note = _flat_interval_note(scored)
    explained = tags.p(
        "ECE is the expected calibration error over ten bins of confidence (Guo et al. 2017; Naeini et al. 2015);"
        " resampling raises it, so its interval may lie above it. A dash is a figure that these images do not define,"
        " such as the AUROC where one class is absent. Validation figures are a little too good: how much each tier's"
        " voice weighs in the verdicts was fitted on these images.",
        cls="footnote",
    )
    return [table, *([note] if note else []), explained]


def _baselines(report: Report, split: str) -> list[tuple[str, dict[str, Any]]]:
    """Baselines that were scored on a split; one that names no split belongs to the headline's."""
    found = []
    for name, scores in (report.metrics.get("baselines") or {}).items():
        if not isinstance(scores, Mapping):
            continue
        own = scores.get(split) if isinstance(scores.get(split), Mapping) else None
        own = own or (scores if split == headline_split(report) and any(key in scores for key in METRICS) else None)
        if own:
            found.append((f"Baseline: {name}", dict(own)))
    return found


def _score_row(name: str, key: str, scores: Mapping[str, Any]) -> Any:
    from dominate import tags

    cells = [tags.td(printable(scores.get("n", EM_DASH))), tags.td(printable(scores.get("n_groups", EM_DASH)))]
    for metric in METRICS:
        interval = interval_text((scores.get("ci95") or {}).get(metric))
        cells.append(tags.td(three_decimals(scores.get(metric)), tags.small(interval)))
    if not scores:
        cells = [tags.td(NOT_OPENED, colspan=3), tags.td(colspan=len(METRICS) - 1)]  # it stands under the accuracy
    row = tags.tr(tags.th(outside(name), scope="row"), *cells)
    if key == "global":
        row["class"] = "global"
    return row


def stain(report: Report) -> Tags:
    """Every head's AUROC and accuracy on the test images as they are, without colour, and with equal stain."""
    from dominate import tags

    changed = report.metrics.get("robustness") or {}
    if not any(changed.get(name) for name in RESTAINED):
        return []
    as_is = (report.metrics.get("splits") or {}).get("test") or {}
    columns = [as_is, *(changed.get(name) for name in RESTAINED)]
    rows = []
    for head, title in HEADS.items():
        shut = as_is.get(head) is None
        cells = [_stain_cell(scores, head, key, shut) for key in ("auroc", "accuracy") for scores in columns]
        rows.append(tags.tr(tags.th(title, scope="row"), *cells, **({"cls": "global"} if head == "global" else {})))
    words = ("as it is", *RESTAINED.values())
    head_row = ["Tier", *(f"{METRICS[key]}, {word}" for key in ("auroc", "accuracy") for word in words)]
    lead = (
        "The test images judged again without colour (grey), and with each one's stain brought to that of the training"
        " images (normalised). Where a figure lies below the interval of the images as they are, the verdict leans on"
        " stain, which changes with the laboratory, and not on the cells alone."
    )
    caution = (
        "Normalising also evens out how pale the cells are and how much of the image they cover, which anemia itself"
        " changes: part of a fall there can be lost knowledge of the cells."
    )
    lacking = (
        "Stain-normalised images were not judged: the run kept no stain of its training images,"
        " as runs of earlier versions did not."
    )
    note = tags.p(caution if changed.get("stain_normalised") else lacking, cls="footnote")
    flat = _flat_interval_note(_shown_intervals(scores, shown) for scores in columns for shown in HEADS)
    table = _table(head_row, rows, "Point value over its 95% interval.")
    return [_lead(lead), table, note, *([flat] if flat else [])]


def _shown_intervals(scores: Mapping[str, Any] | None, head: str) -> dict[str, Any]:
    """The intervals of a head's figures that the table of the stain shows."""
    known = ((scores or {}).get(head) or {}).get("ci95") or {}
    return {"ci95": {key: known.get(key) for key in ("auroc", "accuracy")}}


def _stain_cell(scores: Mapping[str, Any] | None, head: str, key: str, shut: bool) -> Any:
    """One figure with its interval; what has none says whether the tier or the images were not there."""
    from dominate import tags

    found = (scores or {}).get(head)
    if not found:
        return tags.td(NOT_OPENED if shut else NOT_EVALUATED)
    return tags.td(three_decimals(found.get(key)), tags.small(interval_text((found.get("ci95") or {}).get(key))))


def gate_history(report: Report) -> Tags:
    """The gate's decisions as a figure and a table."""
    from dominate import tags

    entries = [gate_entry(row) for row in report.gate_log]
    if not entries:
        return []
    lead = (
        "A tier trains until its training accuracy reaches its threshold and its validation accuracy agrees; then its"
        " gate opens the next tier. A tier whose epochs ran out is advanced as forced."
    )
    square = "\N{BLACK SQUARE}"
    marks = {"opened": "\N{BLACK DIAMOND}", "forced": square, "stopped": square, "kept": "\N{WHITE CIRCLE}"}
    words = {"opened": "Yes, opens", "forced": "forced", "stopped": "run stopped", "kept": "No, stays"}
    rows = [
        tags.tr(
            tags.th(printable(entry.title), scope="row"),
            tags.td(f"{entry.epoch:g}"),
            *[tags.td(three_decimals(value)) for value in (entry.train, entry.threshold, entry.val)],
            tags.td(f"{marks[entry.outcome]} {words[entry.outcome]}", cls="outcome"),
            tags.td(outside(entry.reason)),
        )
        for entry in entries
    ]
    table = _table(["Tier", "Epoch", "Training accuracy", "Needed", "Validation accuracy", "Decision", "Reason"], rows)
    every = tags.details(tags.summary(f"All {len(rows)} decisions"), table, cls="under")
    return [_lead(lead), _figure(figures.gate_timeline(report.gate_log), "Decisions of the gate"), every]


def curves(report: Report) -> Tags:
    """Losses and accuracies over epochs."""
    if not report.history:
        return []
    return [_figure(figures.training_curves(report.history, report.gate_log), "Training curves")]


def segmentation(report: Report) -> Tags:
    """Dice and IoU of the predicted masks."""
    from dominate import tags

    scores = _segmentation(report)
    if not scores:
        return []
    names = {"dice": "Dice (pooled)", "iou": "IoU (pooled)", "dice_mean": "Dice (mean of images)"}
    intervals, split = scores.get("ci95") or {}, scores["split"]
    cells = [tags.td(three_decimals(scores.get(k)), tags.small(interval_text(intervals.get(k)))) for k in names]
    counts = [tags.td(printable(scores.get(key, EM_DASH))) for key in ("n", "n_groups")]
    row = tags.tr(tags.th(printable(SPLITS.get(split, split)), scope="row"), *counts, *cells)
    lead = "Predicted cell masks against the true ones, pixel by pixel; pooled figures sum pixels over all images."
    written = _provenance(report).get("masks_written") or {}
    if written.get("cells"):
        others = sum(written.values()) - written["cells"]
        lead += f" {written['cells']} of the masks are those of the cells that Module-II found at the images' own size"
        lead += f", {others} the network's." if others else "."
    head = ["Split", "Images", "Groups", *names.values()]
    return [_lead(lead), _table(head, [row], "Point value over its 95% interval.")]


def _segmentation(report: Report) -> dict[str, Any]:
    """The masks' scores, with the split that they are of; empty where none has a truth."""
    found = report.metrics.get("segmentation")
    return {"split": "test", **found} if found else {}


def severity(report: Report) -> Tags:
    """Module-II's cells and grades, and its figures as they stand in ``metrics.json``."""
    from dominate import tags

    found = report.metrics.get("severity")
    figures_of_it: Tags = [tags.div(_tree(found), cls="panel")] if found else []
    if report.cells is not None:
        return report.cells.section() + figures_of_it
    if not found and report.images:
        return [_lead("Module-II did not run: no cell was found, measured or graded.")]
    return figures_of_it


def images(report: Report) -> Tags:
    """Every image with its pictures and each tier's verdict: by script in pages, without one the first fifty."""
    from dominate import tags

    if not report.images:
        return []
    wrong = sum(row.label_true is not None and row.label_true != row.label_pred for row in report.images)
    labelled = sum(row.label_true is not None for row in report.images)
    count = len(report.images)
    judged = f"; Global is wrong on {wrong} of {labelled} that have a label" if labelled else " without labels"
    rest = f"Without scripts this page shows the first {PER_PAGE} images; predictions.csv has all {count}."
    missing = {head: _missing(report, head) for head in HEADS}
    first = [_image_card(row, missing) for row in report.images[:PER_PAGE]]
    return [
        _lead(f"{count} images{judged}. Select a picture to open it on its own."),
        _legend(),
        _image_filters(report.images),
        tags.div(id="image-list", aria_live="off"),
        _image_pages(),
        tags.noscript(*([_lead(rest)] if count > PER_PAGE else []), *first),
    ]


def _legend() -> Any:
    """What the overlay's colours mean."""
    from dominate import tags
    from dominate.util import raw

    orange, blue = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (PREDICTED_COLOUR, TRUE_COLOUR))
    line = '<line x1="1" x2="29" y1="7" y2="7" stroke="{}" stroke-width="{}"/>'
    fill = '<rect x="1" y="1" width="28" height="12" rx="2" fill="{}" fill-opacity=".6"/>'
    entries = (
        (line.format(orange, 2.5), "predicted outline"),
        (line.format(blue, 2.5), "true outline where it differs"),
        (fill.format(orange), "predicted only (too much)"),
        (fill.format(blue), "true only (missed)"),
    )
    items = [tags.li(raw(f'<svg viewBox="0 0 30 14" aria-hidden="true">{mark}</svg>'), text) for mark, text in entries]
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
    return tags.div(
        tags.div(*buttons, cls="choices", role="group", aria_label="Which images"),
        tags.select(*options, id="image-split", aria_label="Split"),
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
    return tags.div(steps[0], where, steps[1], id="image-pages", cls="pages", hidden=True)


def _image_card(row: ImageRow, missing: Mapping[str, str]) -> Any:
    """One image as plain HTML, ``missing`` where a head has no verdict; the script builds the same."""
    from dominate import tags

    kind, mark = _outcome(row.label_true, row.label_pred)
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
    pictures = [_picture(row, key, caption) for key, caption in PICTURES.items()]
    tiers = [_tier_item(row, head, title, missing[head]) for head, title in HEADS.items()]
    parts = [tags.div(*about, cls="about"), tags.div(*pictures, cls="pictures"), tags.ul(*tiers, cls="tiers")]
    return tags.article(*parts, cls=f"image panel {kind}")


def _cell_note(row: ImageRow) -> Tags:
    from dominate import tags

    words = cell_words(row)
    if words is None:
        return []
    return [tags.p(tags.a(words, href=link_to(row.cells_page)) if row.cells_page else words)]


def _outcome(truth: int | None, called: int) -> tuple[str, str]:
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
        return tags.li(tags.span(title), missing)
    called = row.label_pred if head == "global" else int(probability > THRESHOLD)
    kind, mark = _outcome(row.label_true, called)
    return tags.li(tags.span(title), tags.span(), tags.span(f"{probability:.3f} {CLASSES[called]} {mark}", cls=kind))


def provenance(report: Report) -> Tags:
    """What made these figures: command, data, weights, versions, options."""
    from dominate import tags

    known = _provenance(report)
    found: Tags = []
    if known.get("command"):
        found.append(tags.div(tags.code(printable(_command(known["command"]))), cls="panel scroll"))
    rest = {key: value for key, value in known.items() if key != "command" and value not in (None, "", {}, [])}
    if rest:
        found.append(tags.div(_tree(rest), cls="panel"))
    return found + _options_table(report.options)


def _command(command: Any) -> str:
    import shlex

    return command if isinstance(command, str) else shlex.join(map(str, command))


def _tree(value: Any) -> Any:
    """Nested plain data as nested description lists."""
    from dominate import tags

    if isinstance(value, Mapping):
        pairs = [(tags.dt(printable(_spaced(key))), tags.dd(_tree(item))) for key, item in value.items()]
        return tags.dl(*[tag for pair in pairs for tag in pair], cls="plain")
    if isinstance(value, list | tuple):
        return outside(", ".join(map(_plain_text, value)))
    return outside(_plain_text(value))


def _spaced(key: Any) -> str:
    return re.sub(r"_+", " ", str(key))


def _plain_text(value: Any) -> str:
    if value is None:
        return EM_DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _options_table(options: Mapping[str, Any]) -> Tags:
    """Options: those known to differ from their default first, then those of unknown default, the rest folded away."""
    from dominate import tags

    changed: Tags = []
    plain: Tags = []
    same: Tags = []
    for name, given in options.items():
        full = isinstance(given, Mapping) and "value" in given
        value, default = (given["value"], given.get("default")) if full else (given, None)
        cells = [tags.td(outside(value)), *([tags.td(outside(default))] if full else [])]
        (plain if not full else changed if value != default else same).append(tags.tr(tags.th(outside(name)), *cells))
    head = ("Option", "Value", "Default")
    found: Tags = [_table(head, changed, "Options that differ from their default", cls="texts")] if changed else []
    for rows, title, columns in ((plain, "options", 2), (same, "options at their default", 3)):
        if rows:
            folded = tags.details(tags.summary(f"{len(rows)} {title}"), _table(head[:columns], rows, cls="texts"))
            found.append(tags.div(folded, cls="panel"))
    return found


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its title, what builds it, and a shorter title for the navigation."""

    key: str
    title: str
    build: Callable[[Report], Tags]
    short: str = ""


SECTIONS = (
    Section("headline", "In short", headline),
    Section("confusion", "Confusion by split and tier", confusion, "Confusion"),
    Section("tiers", "Every tier on every split", tier_table, "Tiers"),
    Section("stain", "What if the colour is taken away?", stain, "Stain"),
    Section("gate", "Validation points between the tiers", gate_history, "Gate"),
    Section("curves", "Training", curves),
    Section("segmentation", "Cell masks", segmentation, "Masks"),
    Section("severity", "Severity (Module-II)", severity, "Severity"),
    Section("images", "Images", images),
    Section("provenance", "How these figures were made", provenance, "Provenance"),
)


# --- pictures -------------------------------------------------------------------------------------------------------


def overlay_image(
    rgb: NDArray[np.uint8], predicted: NDArray[np.bool_], true: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """The smear with the masks' outlines: predicted orange, true blue where it differs; what differs is tinted.

    Args:
        rgb: (H, W, 3) uint8.
        predicted: (H, W) bool.
        true: (H, W) bool, or None where there is no truth; then only the predicted outline is drawn.

    Returns:
        (H, W, 3) uint8; the input is left as it was.

    Raises:
        ValueError: shapes differ.
    """
    if rgb.shape != (*predicted.shape, 3) or (true is not None and true.shape != predicted.shape):
        raise ValueError(f"smear {rgb.shape} and masks {predicted.shape} must have one size")
    from scipy.ndimage import binary_dilation

    width = max(1, round(min(predicted.shape) / 300))
    picture = rgb.astype(np.float32)
    if true is not None:
        _tint(picture, predicted & ~true, PREDICTED_COLOUR, 0.45)
        _tint(picture, true & ~predicted, TRUE_COLOUR, 0.45)
    outline = _outline(predicted, width)
    if true is not None:  # an outline beside one that agrees with it would only blur both
        _tint(picture, _outline(true, width) & ~binary_dilation(outline, iterations=2 * width), TRUE_COLOUR, 1.0)
    _tint(picture, outline, PREDICTED_COLOUR, 1.0)
    return picture.round().astype(np.uint8)


def _tint(
    picture: NDArray[np.float32], where: NDArray[np.bool_], colour: tuple[int, int, int], strength: float
) -> None:
    """Mix a colour into part of a picture, in place."""
    picture[where] = (1 - strength) * picture[where] + strength * np.array(colour, np.float32)


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The inner edge of a mask, ``width`` pixels broad; the image's own border is no edge."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask, iterations=width, border_value=1)


def save_thumbnail(path: Path, rgb: NDArray[np.uint8], size: int = THUMBNAIL_SIZE) -> None:
    """Write a picture reduced to at most ``size`` pixels a side (never enlarged), atomically.

    Args:
        path: .jpg, .jpeg or .png.
        rgb: (H, W, 3) or (H, W) uint8.
        size: longest side in pixels.

    Raises:
        ValueError: another suffix.
        UserError: the file cannot be written.
    """
    from PIL import Image

    kinds: dict[str, dict[str, Any]] = {".png": {"format": "PNG"}, ".jpg": {"format": "JPEG", "quality": 88}}
    kind = kinds.get({".jpeg": ".jpg"}.get(path.suffix.lower(), path.suffix.lower()))
    if kind is None:
        raise ValueError(f"{path.name} must end in .jpg, .jpeg or .png")
    picture = Image.fromarray(rgb)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    atomic_write(path, encoded_image(lambda buffer: picture.save(buffer, **kind)), make_parents=True)
