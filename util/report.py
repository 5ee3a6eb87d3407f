"""The results page: what was tested, how well, by which tier, and every image, in one HTML file that needs no network.

To add a section, write a function from ``Report`` to a list of tags (an empty list leaves the section out) in a file of
its own and put it in ``SECTIONS``. Everything that comes from outside (names, options, warnings) is text to dominate;
only this package's own style, script and figures are marked raw.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.console import ROMAN
from util.figures import SPLITS
from util.files import atomic_write
from util.report_content import (
    PER_PAGE,
    ImageRow,
    Report,
    Tags,
    count_text,
    groups_in_words,
    headline_split,
    link_to,
    printable,
    provenance_of,
    sample_caution,
    scores_of,
)
from util.report_gradcam import gradcam
from util.report_headline import headline
from util.report_images import cell_words, images, rows_json
from util.report_notices import notices
from util.report_parts import outside
from util.report_pictures import PREDICTED_COLOUR, THUMBNAIL_SIZE, TRUE_COLOUR, overlay_image, save_thumbnail
from util.report_plots import plots
from util.report_provenance import provenance
from util.report_tables import confusion, curves, gate_history, segmentation, severity, stain, tier_table
from util.report_verdicts import errors, operating, units

__all__ = [
    "PER_PAGE",
    "PREDICTED_COLOUR",
    "SECTIONS",
    "THUMBNAIL_SIZE",
    "TRUE_COLOUR",
    "ImageRow",
    "Report",
    "Section",
    "Tags",
    "cell_words",
    "document_head",
    "headline_split",
    "link_to",
    "notices",
    "outside",
    "overlay_image",
    "printable",
    "provenance",
    "sample_caution",
    "save_thumbnail",
    "security_policy",
    "write_report",
]

LONGEST_FACT = 90  # characters: what is longer stands with the provenance alone
FILES = (
    "predictions.csv", "predictions_train.csv", "predictions_val.csv", "cells.csv", "left_out.csv", "gradcam.csv",
    "metrics.json",
)  # fmt: skip


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
    page.head.add(*document_head(script, report.cells.style() if report.cells else ""))
    built = [(section, section.build(report)) for section in SECTIONS]
    shown = [(section, content) for section, content in built if content]
    page.body.add(_header(report), _navigation([section for section, _ in shown]))
    main = page.body.add(tags.main(cls="wide"))
    for section, content in shown:
        main.add(tags.section(tags.h2(section.title), *content, id=section.key))
    page.body.add(_footer(folder))
    if report.images:
        page.body.add(tags.script(raw(rows_json(report)), type="application/json", id="image-rows"))
        page.body.add(tags.script(raw(script)))
    path = folder / "index.html"
    atomic_write(path, page.render(pretty=False), make_parents=True)
    return path


def document_head(script: str, more_style: str = "") -> Tags:
    """What stands in a page's head: its look, and a policy that lets its one script run and no network be reached.

    Args:
        script: the page's script; empty for none.
        more_style: CSS after the report's own.
    """
    from dominate import tags
    from dominate.util import raw

    return [
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.meta(name="color-scheme", content="light dark"),
        tags.meta({"http-equiv": "Content-Security-Policy"}, content=security_policy(script)),
        tags.style(raw(_beside("report.css") + more_style)),
    ]


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def security_policy(script: str) -> str:
    """A policy that lets this page's one script run and nothing from any network; a second wall behind escaping."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = "img-src 'self' file: data:; style-src 'unsafe-inline'"
    return f"default-src 'none'; {pictures}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


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
    scores = scores_of(report, split, "global")
    facts = [("Data", provenance_of(report).get("data")), ("Split", SPLITS.get(split, split) if split else None)]
    facts += [("Images", count_text(scores.get("n", len(report.images) or ""))), ("From", groups_in_words(scores))]
    weights = provenance_of(report).get("weights") or {}
    facts += [("Weights", Path(str(weights.get("file") or "")).name), ("Epoch", weights.get("epoch"))]
    starts = _starts(report)
    facts += [("Tiers start from", starts if len(starts) <= LONGEST_FACT else "weights named under Provenance")]
    items = [tags.li(f"{name} ", tags.b(outside(value))) for name, value in facts if value not in (None, "")]
    return tags.ul(*items, cls="facts")


def _starts(report: Report) -> str:
    """What the tiers started from; said once where it is the same for all."""
    starts = (provenance_of(report).get("weights") or {}).get("started_from") or {}
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
    Section("plots", "ROC, precision and recall, reliability", plots, "Plots"),
    Section("operating", "Where Anemic begins", operating, "Operating point"),
    Section("units", "Whole groups and patients", units, "Groups"),
    Section("stain", "What if the colour is taken away?", stain, "Stain"),
    Section("gate", "Validation points between the tiers", gate_history, "Gate"),
    Section("curves", "Training", curves),
    Section("segmentation", "Cell masks", segmentation, "Masks"),
    Section("severity", "Severity (Module-II)", severity, "Severity"),
    Section("errors", "Most confidently wrong", errors, "Errors"),
    Section("gradcam", "Where the tiers looked (Grad-CAM)", gradcam, "Grad-CAM"),
    Section("images", "Images", images),
    Section("provenance", "How these figures were made", provenance, "Provenance"),
)
