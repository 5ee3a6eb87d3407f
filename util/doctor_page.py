"""The doctor's page: what was found in a data root, with the pictures concerned side by side, in one HTML file.

The thumbnails are inside the file, so it opens from anywhere without a network and can be sent as it is. Everything
that comes from outside (names, reasons) is text to dominate; only this package's own style and bars are marked raw.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.assets import asset
from util.figures import counted, interval_text, three_decimals
from util.files import atomic_write
from util.report import outside, printable

LEVEL_WORDS = {"error": "Error", "warning": "Warning", "note": "Note"}
_SIGNS = {"error": "\N{MULTIPLICATION X}", "warning": "\N{WARNING SIGN}\N{VARIATION SELECTOR-15}", "note": "i"}


@dataclass(frozen=True)
class Picture:
    """One file shown.

    Attributes:
        name: as the data root names it.
        label: its class in a word.
        reason: what is said of it.
        smear: JPEG, or None where it cannot be read.
        mask: JPEG of its mask, cells white, or None.
        shows_mask: whether the mask stands beside the image, or a box that says it cannot be read.
        has_picture: False for a file that belongs to no smear: only its name and the reason stand there.
    """

    name: str
    label: str
    reason: str
    smear: bytes | None
    mask: bytes | None
    shows_mask: bool = False
    has_picture: bool = True


@dataclass(frozen=True)
class Part:
    """One finding on the page.

    Attributes:
        key: its name; the anchor of its section.
        level: error, warning or note.
        title: a few words.
        sentence: what was found.
        remedy: what to do.
        rows: pictures that stand side by side.
        count: files concerned.
        left_out: how many of them are not shown.
        masks: how the masks beside the images are shown, in words; empty where there are none.
    """

    key: str
    level: str
    title: str
    sentence: str
    remedy: str
    rows: Sequence[Sequence[Picture]]
    count: int
    left_out: int
    masks: str = ""


@dataclass(frozen=True)
class DoctorPage:
    """All that the page shows: the data root, the figures of the whole, the findings, and how the doctor was called."""

    dataroot: str
    figures: Mapping[str, Any]
    parts: Sequence[Part]
    options: Mapping[str, Any]


def write_doctor_page(path: Path, page: DoctorPage) -> None:
    """Write the page as one file, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    import dominate
    from dominate import tags
    from dominate.util import raw

    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    document = dominate.document(title=f"Doctor: {printable(page.dataroot)}", lang="en")
    document.head.add(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.meta(name="color-scheme", content="light dark"),
        tags.meta({"http-equiv": "Content-Security-Policy"}, content=policy),
        tags.style(raw(asset("report.css") + asset("doctor.css"))),
    )
    document.body.add(_header(page), _navigation(page.parts))
    main = document.body.add(tags.main(_cards(page.figures), cls="wide"))
    for part in page.parts:
        main.add(_section(part))
    main.add(_called(page.options))
    document.body.add(tags.footer(tags.div(tags.p("Research use only, not for diagnosis."), cls="wide")))
    atomic_write(path, document.render(pretty=False), make_parents=True)


def _header(page: DoctorPage) -> Any:
    from dominate import tags

    counts = {level: sum(part.level == level for part in page.parts) for level in LEVEL_WORDS}
    facts = [
        tags.li(tags.b(count), f" {level}{'' if count == 1 else 's'}", cls=level if count else "none")
        for level, count in counts.items()
    ]
    verdict = (
        "Do not train on this data as it is: mend the errors, or use the manifest that --fix writes."
        if counts["error"]
        else "Nothing forbids training on this data; read the warnings before you believe a score."
    )
    notice = tags.li(printable(verdict), cls="notice strong" if counts["error"] else "notice")
    inner = [tags.p("3-TierDCFNet \N{MIDDLE DOT} data doctor", cls="eyebrow"), tags.h1(outside(page.dataroot))]
    inner += [tags.ul(*facts, cls="facts"), tags.ul(notice, cls="notices")]
    return tags.header(tags.div(*inner, cls="wide"), cls="top")


def _navigation(parts: Sequence[Part]) -> Any:
    from dominate import tags

    links = [tags.li(tags.a("Figures", href="#figures"))]
    links += [tags.li(tags.a(part.title, href=f"#{part.key}")) for part in parts]
    return tags.nav(tags.ul(*links), aria_label="Findings")


def _cards(figures: Mapping[str, Any]) -> Any:
    """The figures of the whole."""
    from dominate import tags

    groups, by_class = figures["groups"], figures["kept_by_class"]
    classes = ", ".join(f"{count:,} {name}" for name, count in by_class.items() if count)
    cards = [
        ("Images", f"{figures['files']:,}", f"{figures['readable']:,} readable, {figures['masks']:,} masks"),
        ("Distinct", f"{figures['distinct']:,}", f"{figures['duplicate_sets']:,} sets of equal images"),
        ("In both classes", f"{figures['both_class_files']:,}", f"files in {figures['both_class_sets']:,} sets"),
        ("Cleaned", f"{figures['kept']:,}", classes or "no class known"),
        ("Groups", f"{groups['groups']:,}", f"the largest of {counted(groups['largest']['images'], 'images')}"),
    ]
    articles = [_card(*card) for card in cards]
    if figures["colour"]:
        articles.append(_colour_card(figures["colour"]))
    lead = "Groups, classes and the colour score are of the cleaned data, without equal images and what cannot be used."
    return tags.section(tags.h2("Figures"), tags.p(lead, cls="lead"), tags.div(*articles, cls="cards"), id="figures")


def _card(title: str, figure: str, below: str) -> Any:
    from dominate import tags

    return tags.article(tags.h3(title), tags.p(figure, cls="figure"), tags.p(below, cls="count"), cls="card panel")


def _colour_card(colour: Mapping[str, Any]) -> Any:
    from dominate import tags

    interval = interval_text(colour["ci95"]["auroc"])
    units = "groups" if colour["split_by"] == "group" else "blocks"
    return tags.article(
        tags.h3("Colour alone, AUROC"),
        tags.p(three_decimals(colour["auroc"]), cls="figure"),
        tags.p(f"95% CI {interval}" if interval else "no interval", cls="interval"),
        tags.p(f"{colour['folds']} folds, {colour['n_groups']:,} {units}", cls="count"),
        cls="card panel",
    )


def _section(part: Part) -> Any:
    """One finding: its words, then its pictures."""
    from dominate import tags

    mark = tags.span(f"{_SIGNS[part.level]} {LEVEL_WORDS[part.level]}", cls=f"mark {part.level}")
    section = tags.section(tags.h2(mark, " ", part.title), id=part.key, cls=f"finding {part.level}")
    section.add(
        tags.p(printable(part.sentence), cls="said"),
        tags.p(tags.b("What to do: "), printable(part.remedy), cls="lead"),
    )
    if part.masks:
        section.add(tags.p(f"Left the image, right its mask {part.masks}.", cls="footnote"))
    for row in part.rows:
        section.add(_row(row))
    if part.left_out and part.rows:
        text = f"{part.left_out:,} of {part.count:,} files are not shown here; --json lists all."
        section.add(tags.p(text, cls="footnote"))
    return section


def _row(pictures: Sequence[Picture]) -> Any:
    from dominate import tags

    if not any(picture.has_picture for picture in pictures):
        items = [tags.li(outside(picture.name), tags.small(outside(picture.reason))) for picture in pictures]
        return tags.ul(*items, cls="panel names")
    return tags.div(*map(_figure, pictures), cls="panel beside")


def _figure(picture: Picture) -> Any:
    """An image, its mask where that is in question, its name, class and what is said of it."""
    from dominate import tags

    shown = [_image(picture.smear, f"smear {picture.name}", "cannot be read")]
    if picture.shows_mask:
        shown.append(_image(picture.mask, f"mask of {picture.name}", "mask cannot be read"))
    folder, _, own = picture.name.rpartition("/")
    caption = [tags.span(outside(own), cls="name")]
    caption += [tags.span(outside(f"{folder}/"), cls="name folder")] if folder else []
    caption += [tags.b(picture.label, cls=f"class {picture.label.lower().replace(' ', '-')}")] if picture.label else []
    caption += [tags.span(outside(picture.reason), cls="why")] if picture.reason else []
    return tags.figure(tags.div(*shown, cls="pair" if picture.shows_mask else "single"), tags.figcaption(*caption))


def _image(jpeg: bytes | None, described: str, absent: str) -> Any:
    from dominate import tags

    if jpeg is None:
        return tags.div(absent, cls="absent")
    source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return tags.img(src=source, alt=printable(described), loading="lazy", decoding="async")


def _called(options: Mapping[str, Any]) -> Any:
    from dominate import tags

    pairs = [tag for name, value in options.items() for tag in (tags.dt(f"--{name}"), tags.dd(outside(value)))]
    return tags.section(tags.h2("How the doctor was called"), tags.dl(*pairs, cls="plain panel"), id="called")
