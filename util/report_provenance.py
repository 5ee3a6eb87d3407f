"""What made the figures: command, data, weights, versions, options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from util.report_content import Report, Tags, printable, provenance_of
from util.report_parts import outside, table_panel, tree


def provenance(report: Report) -> Tags:
    """What made these figures: command, data, weights, versions, options."""
    from dominate import tags

    known = provenance_of(report)
    found: Tags = []
    if known.get("command"):
        found.append(tags.div(tags.code(printable(command_text(known["command"]))), cls="panel scroll"))
    rest = {key: value for key, value in known.items() if key != "command" and value not in (None, "", {}, [])}
    if rest:
        found.append(tags.div(tree(rest), cls="panel"))
    return found + _options_table(report.options)


def command_text(command: Any) -> str:
    """A command as a shell takes it."""
    import shlex

    return command if isinstance(command, str) else shlex.join(map(str, command))


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
    found: Tags = [table_panel(head, changed, "Options that differ from their default", cls="texts")] if changed else []
    for rows, title, columns in ((plain, "options", 2), (same, "options at their default", 3)):
        if rows:
            folded = tags.details(tags.summary(f"{len(rows)} {title}"), table_panel(head[:columns], rows, cls="texts"))
            found.append(tags.div(folded, cls="panel"))
    return found
