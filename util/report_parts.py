"""Pieces of HTML that every section of a page is made of; all text from outside is text to dominate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from util.figures import EM_DASH, interval_text
from util.report_content import printable

SYNTHETIC = ("SYNTHETIC DATA.", "Drawn by a programme; nothing here speaks about patients.")  # on every page of such


def outside(text: Any) -> Any:
    """A text from outside, in an element of its own so that a right-to-left name cannot turn its neighbours round."""
    from dominate import tags

    return tags.bdi(printable(text))


def lead_of(*text: Any) -> Any:
    """The words that open a section."""
    from dominate import tags

    return tags.p(*text, cls="lead")


def figure_panel(svg: str, label: str, cls: str = "panel scroll") -> Any:
    """An SVG in a panel that scrolls sideways on a narrow screen (and by keyboard)."""
    from dominate import tags
    from dominate.util import raw

    return tags.div(raw(svg), cls=cls, role="region", tabindex="0", aria_label=label)


def narrow_legend(signs: Iterable[tuple[str, str]]) -> Any:
    """A drawing's legend once more above it, shown where the screen is narrower than the drawing, which is scrolled.

    Args:
        signs: SVG of each sign, and its name.
    """
    from dominate import tags
    from dominate.util import raw

    items = [tags.li(raw(sign), printable(name)) for sign, name in signs]
    return tags.ul(*items, cls="legend narrow", aria_hidden="true")


def plot_panel(svg: str, label: str) -> Any:
    """A small SVG in a panel that shrinks with the screen."""
    from dominate import tags
    from dominate.util import raw

    return tags.div(raw(svg), cls="panel plot", role="img", aria_label=label)


def table_panel(head: Sequence[str], rows: Iterable[Any], caption: str = "", cls: str = "") -> Any:
    """A table in a panel that scrolls sideways on a narrow screen."""
    from dominate import tags

    content = [tags.caption(tags.span(caption))] if caption else []
    content.append(tags.thead(tags.tr(*[tags.th(text, scope="col") for text in head])))
    table = tags.table(*content, tags.tbody(*rows), **({"cls": cls} if cls else {}))
    return tags.div(table, cls="panel scroll", role="region", tabindex="0", aria_label=caption or head[0])


def interval_bar(value: float, interval: Any) -> str:
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


def flat_interval_note(scored: Iterable[Mapping[str, Any]]) -> Any | None:
    """What an interval without width means; None where there is none."""
    from dominate import tags

    flat = [s for s in scored if any(_is_flat(interval) for interval in (s.get("ci95") or {}).values())]
    if not flat:
        return None
    return tags.p(
        "\N{DAGGER} Leaving any group out gave the same value, as happens where no error was seen; the true interval is"
        " wider. With no error in k groups, an error rate of up to about 3/k is not excluded (rule of three): 0.30 for"
        " ten groups. Only groups of the class in question count for sensitivity and specificity.",
        cls="footnote",
    )


def tree(value: Any) -> Any:
    """Nested plain data as nested description lists."""
    from dominate import tags

    if isinstance(value, Mapping):
        pairs = [(tags.dt(printable(_spaced(key))), tags.dd(tree(item))) for key, item in value.items()]
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
