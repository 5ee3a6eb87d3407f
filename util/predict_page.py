"""The page of a prediction: what was judged, with which weights, every image with its verdict; no script, no network.

Many images are shown in pages of fifty. Everything that comes from outside is text to dominate; only this package's own
style and figures of numbers are marked raw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from util.cell_report import CellGallery
from util.figures import CLASSES, EM_DASH, HEADS, NOT_OPENED, is_number
from util.files import atomic_write
from util.metrics import THRESHOLD
from util.report import PER_PAGE, Report, document_head, link_to, notices, outside, printable, provenance

MOST_SKIPPED = 200  # of the files that could not be judged are named on the page; run.json names all
FILES = ("predictions.csv", "cells.csv", "left_out.csv", "run.json")
_ANEMIC = 1
_STYLE = """
.pictures.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pictures.two img { aspect-ratio: 4 / 3; }
.image.anemic { border-left-color: var(--wrong); } .image.healthy { border-left-color: var(--right); }
.verdict.anemic { color: var(--wrong); } .verdict.healthy { color: var(--right); }
.tiers svg { display: block; color: var(--accent); }
.image .about .own { flex-basis: 100%; color: var(--wrong); }
.leaf { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: baseline; margin: 1rem 0; }
.leaf b { font-weight: 600; }
#skipped th { min-width: 12rem; }
"""

Tags = list[Any]


@dataclass(frozen=True)
class JudgedImage:
    """One image of the page; paths are relative to the results folder.

    Attributes:
        name: its name in the data.
        label: what Global called it, 0 Healthy or 1 Anemic.
        prob: probability of Anemic by ``tier1``, ``tier2``, ``tier3``, ``global``; a missing tier never opened.
        smear: its small picture.
        overlay: the same with the mask's outline.
        mask: the mask at the image's own size.
        cells_page: the page of its cells, or None.
        cell_count: how many red cells were found, or None where none were looked for.
        overlapped_count: how many of them touch another.
        severity: Mild, Chronic, or None.
        severity_score: 0 normal to 1 worst, or None.
        warnings: what the reader must know of it.
        spread: the highest less the lowest chance by the runs of an ensemble, or None.
        novelty: how unlike the training images it is: ``score``, the largest of ``features``, ``focus`` and ``stain``,
            1 being the limit; None where that is not known.
    """

    name: str
    label: int
    prob: Mapping[str, float]
    smear: str
    overlay: str
    mask: str
    cells_page: str | None = None
    cell_count: int | None = None
    overlapped_count: int | None = None
    severity: str | None = None
    severity_score: float | None = None
    warnings: Sequence[str] = ()
    spread: float | None = None
    novelty: Mapping[str, float | None] | None = None


@dataclass
class PredictPage:
    """All that the page shows.

    Attributes:
        title: name of the run.
        run: the whole of run.json.
        images: one entry an image.
        warnings: sentences that the reader must see first.
        cells: what Module-II found, or None where it did not run.
        options: name to {"value": ..., "default": ...}.
    """

    title: str
    run: dict[str, Any]
    images: list[JudgedImage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cells: CellGallery | None = None
    options: dict[str, Any] = field(default_factory=dict)


def write_predict_page(folder: Path, page: PredictPage) -> Path:
    """Write ``folder/index.html`` and, for more than ``PER_PAGE`` images, ``folder/pages/N.html``; the first one last.

    Returns:
        the path of index.html.

    Raises:
        UserError: a file cannot be written.
    """
    leaves = max(1, math.ceil(len(page.images) / PER_PAGE))
    for leaf in range(leaves, 1, -1):
        html = _document(page, [_images_section(page, leaf, leaves)], home="../")
        atomic_write(folder / leaf_path(leaf), html, make_parents=True)
    sections = [*_summary(page), *_skipped(page), *_cells(page), _images_section(page, 1, leaves), _how(page)]
    atomic_write(folder / leaf_path(1), _document(page, sections, home="", folder=folder), make_parents=True)
    return folder / leaf_path(1)


def leaf_path(leaf: int) -> str:
    """Where a page of images lies, relative to the results folder; the first is the whole report's."""
    return "index.html" if leaf == 1 else f"pages/{leaf}.html"


def _document(page: PredictPage, sections: Tags, *, home: str, folder: Path | None = None) -> str:
    import dominate
    from dominate import tags

    document = dominate.document(title=f"{printable(page.title)}: prediction", lang="en")
    document.head.add(*document_head("", _STYLE + (page.cells.style() if page.cells else "")))
    document.body.add(_header(page, home), tags.main(*sections, cls="wide"))
    links: Tags = []
    for name in FILES if folder else ():
        if folder and (folder / name).is_file():
            links += [" \N{MIDDLE DOT} " if links else "Files: ", tags.a(name, href=link_to(name))]
    notice = tags.p("Research use only, not for diagnosis.")
    document.body.add(tags.footer(tags.div(*([tags.p(*links)] if links else []), notice, cls="wide")))
    return str(document.render(pretty=False))


def _linked(path: str, home: str) -> str:
    """A link from a page that lies ``home`` below the results folder."""
    return home + link_to(path).removeprefix("./") if home else link_to(path)


# --- the head of the page -------------------------------------------------------------------------------------------


def _header(page: PredictPage, home: str) -> Any:
    from dominate import tags

    known = page.run.get("provenance") or {}
    report = Report(
        title=page.title,
        metrics={"provenance": known, "tiers_opened": page.run.get("tiers_opened") or {}},
        warnings=page.warnings,
    )
    items = tags.ul(cls="notices")
    for grave, heading, sentence in notices(report):
        sign = "\N{WARNING SIGN}\N{VARIATION SELECTOR-15} " if grave else ""
        text = [tags.b(sign + printable(heading)), outside(sentence)]
        items.add(tags.li(*text, cls="notice strong" if grave else "notice"))
    top = [tags.p("3-TierDCFNet \N{MIDDLE DOT} prediction", cls="eyebrow"), tags.h1(outside(page.title))]
    if home:
        top.append(tags.p(tags.a("Back to the summary", href=_linked("index.html", home))))
    return tags.header(tags.div(*top, _facts(page), items, cls="wide"), cls="top")


def _facts(page: PredictPage) -> Any:
    """What was judged, with what, in one line."""
    from dominate import tags

    known = page.run.get("provenance") or {}
    weights = known.get("weights") or {}
    facts = [("Data", known.get("data")), ("Found as", known.get("layout")), ("Images", len(page.images))]
    facts += [("Weights", weights.get("file")), ("Epoch", weights.get("epoch"))]
    items = [tags.li(f"{name} ", tags.b(outside(value))) for name, value in facts if value not in (None, "")]
    return tags.ul(*items, cls="facts")


def _section(key: str, title: str, *content: Any) -> Any:
    from dominate import tags

    return tags.section(tags.h2(title), *content, id=key)


def _summary(page: PredictPage) -> Tags:
    """Cards of the counts."""
    from dominate import tags

    counts = page.run.get("counts") or {}
    judged = counts.get("judged") or 0
    tiers = counts.get("anemic_by_tier") or {}
    opened = {title: tiers.get(head) for head, title in HEADS.items() if head != "global"}
    by_tier = ", ".join(f"{title} {EM_DASH if count is None else count}" for title, count in opened.items())
    cards = [
        _card("Called Healthy", counts.get("healthy"), _share(counts.get("healthy"), judged)),
        _card("Called Anemic", counts.get("anemic"), _share(counts.get("anemic"), judged), f"by tier: {by_tier}"),
    ]
    if "cells" in counts:
        graded = counts.get("severity_of_anemic") or {}
        words = ", ".join(f"{count} {grade}" for grade, count in graded.items())
        small = counts.get("not_looked_for") or 0
        touching = [f"{counts.get('overlapped')} touch another"] if small < judged else []
        unseen = [f"too small to be looked for in {small:,} of {judged:,}"] if small else []
        cards.append(_card("Red cells found", counts["cells"] if touching else None, *touching, *unseen))
        cards.append(_card("Graded, of the Anemic", sum(graded.values()), words, "Chronic means severe"))
    if "unlike_training" in counts:
        share = _share(counts["unlike_training"], judged)
        cards.append(_card("Unlike the training images", counts["unlike_training"], share, "see the images' novelty"))
    if counts.get("skipped"):
        cards.append(_card("Skipped", counts["skipped"], "could not be judged, see below"))
    lead = tags.p(
        "Labels were not read, so nothing here says how often the verdicts are right: for that, test the"
        " same weights on labelled smears of the same laboratory. Global, the fused output of the tiers, decides.",
        cls="lead",
    )
    notes = [tags.p(note, cls="footnote") for note in _novelty_notes(page)]
    return [_section("short", "In short", lead, tags.div(*cards, cls="cards"), *notes)]


def _novelty_notes(page: PredictPage) -> list[str]:
    """What novelty is, or that it is not known of some run."""
    known = (page.run.get("provenance") or {}).get("novelty") or {}
    notes = []
    if any(known.values()):
        notes.append(
            "Novelty says how unlike the images that the network learned from an image is: by what the network sees in"
            " it (features), by its sharpness (focus) and by its colours (stain). 1 is the limit of each measure, which"
            " one in a hundred of the training images passes."
        )
    without = [printable(name) for name, kept in known.items() if not kept]
    if without:
        runs = ", ".join(without)
        notes.append(f"Nothing is kept of the training images of {runs}: whether images are unlike them is not known.")
    return notes


def _share(count: Any, total: int) -> str:
    return f"{100 * count / total:.1f}% of {total}" if total and is_number(count) else "none judged"


def _card(title: str, figure: Any, *lines: str) -> Any:
    from dominate import tags

    shown = f"{figure:,}" if isinstance(figure, int) else EM_DASH
    content = [tags.h3(title), tags.p(shown, cls="figure"), *[tags.p(line, cls="count") for line in lines]]
    return tags.article(*content, cls="card panel")


def _skipped(page: PredictPage) -> Tags:
    """The files that could not be judged, and why."""
    from dominate import tags

    skipped = page.run.get("skipped") or []
    if not skipped:
        return []
    rows = [tags.tr(tags.th(outside(s["image"]), scope="row"), tags.td(outside(s["reason"]))) for s in skipped]
    head = tags.thead(tags.tr(tags.th("File", scope="col"), tags.th("Why", scope="col")))
    table = tags.table(head, tags.tbody(*rows[:MOST_SKIPPED]), cls="texts")
    more = len(rows) - MOST_SKIPPED
    rest = [tags.p(f"and {more} more, see run.json", cls="footnote")] if more > 0 else []
    panel = tags.div(table, cls="panel scroll", role="region", tabindex="0", aria_label="Files that were skipped")
    return [_section("skipped", "Skipped", panel, *rest)]


def _cells(page: PredictPage) -> Tags:
    """Module-II's part."""
    return [_section("severity", "Cells and severity (Module-II)", *page.cells.section())] if page.cells else []


def _how(page: PredictPage) -> Any:
    """Command, weights, versions, options."""
    known = {key: value for key, value in (page.run.get("provenance") or {}).items() if key != "options"}
    report = Report(title=page.title, metrics={"provenance": known}, options=page.options)
    return _section("provenance", "How this was made", *provenance(report))


# --- images ---------------------------------------------------------------------------------------------------------


def _images_section(page: PredictPage, leaf: int, leaves: int) -> Any:
    from dominate import tags

    if not page.images:
        return _section("images", "Images", tags.p("No image could be judged.", cls="lead"))
    home, first = "" if leaf == 1 else "../", (leaf - 1) * PER_PAGE
    shown = page.images[first : first + PER_PAGE]
    where = f"{first + 1} to {first + len(shown)} of {len(page.images)}"
    lead = tags.p(
        f"Images {where}, in the order of their names. The outline is the predicted mask's; select it for the mask"
        " itself. Bars: probability of Anemic; the line stands at 0.5.",
        cls="lead",
    )
    cards = [_image_card(image, home) for image in shown]
    steps = [_steps(leaf, leaves, home)] if leaves > 1 else []
    again = [_steps(leaf, leaves, home)] if leaves > 1 else []
    return _section("images", "Images", lead, *steps, *cards, *again)


def _steps(leaf: int, leaves: int, home: str) -> Any:
    """Links to the pages around this one."""
    from dominate import tags

    around = {"First": 1, "Previous": leaf - 1, "Next": leaf + 1, "Last": leaves}
    there = [(word, target) for word, target in around.items() if 1 <= target <= leaves and target != leaf]
    links = [tags.a(word, href=f"{_linked(leaf_path(target), home)}#images") for word, target in there]
    return tags.nav(tags.div(tags.b(f"Page {leaf} of {leaves}"), *links, cls="leaf"), aria_label="Pages of images")


def _image_card(image: JudgedImage, home: str) -> Any:
    from dominate import tags

    called = CLASSES[image.label]
    about = [
        tags.h3(outside(image.name)),
        tags.span(called, cls=f"verdict {called.lower()}"),
        *[tags.p(text) for text in _cell_words(image)],
    ]
    about += [tags.p(text) for text in _doubt_words(image)]
    if image.cells_page:
        about.append(tags.p(tags.a("its cells", href=_linked(image.cells_page, home))))
    about += [tags.p(outside(warning), cls="own") for warning in image.warnings]
    pictures = [
        _picture(image, image.smear, image.smear, "smear", home),
        _picture(image, image.overlay, image.mask, "predicted mask, outlined", home),
    ]
    tiers = [_tier_item(image, head, title) for head, title in HEADS.items()]
    parts = [tags.div(*about, cls="about"), tags.div(*pictures, cls="pictures two"), tags.ul(*tiers, cls="tiers")]
    return tags.article(*parts, cls=f"image panel {called.lower()}")


def _cell_words(image: JudgedImage) -> list[str]:
    """What Module-II says of an image; the grade only where it is called Anemic, which it is meant for."""
    if image.cell_count is None:
        return []
    words = [f"{image.cell_count} red cells, {image.overlapped_count} touch another"]
    if image.label == _ANEMIC and image.severity:
        score = f" (score {image.severity_score:.3f})" if is_number(image.severity_score) else ""
        words.append(f"graded {image.severity}{score}")
    return words


def _doubt_words(image: JudgedImage) -> list[str]:
    """How far the runs of an ensemble disagree, and how unlike the training images the image is."""
    words = [f"runs differ by {image.spread:.3f}"] if image.spread is not None else []
    known = image.novelty or {}
    parts = [f"{name} {value:.2f}" for name, value in known.items() if name != "score" and is_number(value)]
    if parts:
        words.append(f"novelty {known['score']:.2f} ({', '.join(parts)})")
    return words


def _picture(image: JudgedImage, path: str, target: str, caption: str, home: str) -> Any:
    from dominate import tags

    alt = f"{caption} of {printable(image.name)}"
    shown = tags.img(src=_linked(path, home), alt=alt, loading="lazy", decoding="async")
    return tags.figure(tags.a(shown, href=_linked(target, home)), tags.figcaption(caption))


def _tier_item(image: JudgedImage, head: str, title: str) -> Any:
    from dominate import tags
    from dominate.util import raw

    probability = image.prob.get(head)
    cls = {"cls": "global"} if head == "global" else {}
    if not is_number(probability) or probability is None:
        return tags.li(tags.span(title), NOT_OPENED, **cls)
    called = image.label if head == "global" else int(probability > THRESHOLD)
    return tags.li(
        tags.span(title), tags.span(raw(_bar(probability))), tags.span(f"{probability:.3f} {CLASSES[called]}"), **cls
    )


def _bar(probability: float) -> str:
    """A probability on a line from 0 to 1; a number only, so it may be raw."""
    width = 100 * min(1.0, max(0.0, probability))
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" y="2" width="100" height="6" rx="2"/>'
        f'<rect class="bar" y="2" width="{width:.2f}" height="6" rx="2"/>'
        '<line class="half" x1="50" x2="50" y1="0" y2="10"/></svg>'
    )
