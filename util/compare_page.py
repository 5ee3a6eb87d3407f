"""The page of a comparison of runs: figures side by side, paired differences, ROC, and where the runs disagree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.compare_runs import Comparison, TestedRun, most_disagreeing
from util.figures import CLASSES, EM_DASH, Axes, Drawing, interval_text, three_decimals
from util.files import atomic_write, unwritable
from util.metrics import THRESHOLD
from util.report import document_head
from util.report_content import METRICS, Tags, few_groups, groups_in_words, link_to, no_claim, printable
from util.report_parts import lead_of, outside, plot_panel, table_panel, tree
from util.report_plots import Curve, precision_recall_points, roc_points, square_plot
from util.report_scores import BETTER, WORSE
from util.results import write_json

_WORDS = {BETTER: "ranks images better than", WORSE: "ranks images worse than"}
MOST_CURVES = 8  # more lines than styles cannot be told apart
_CURVES = ("global", "tier1", "tier2", "tier3", "colour", "s3 dash", "s4 dot", "s5")


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write ``compare.json`` and, last, ``index.html``.

    Args:
        folder: of the comparison; it is made where missing.
        comparison: what to show.

    Returns:
        the page's path.

    Raises:
        UserError: a file cannot be written.
    """
    import dominate
    from dominate import tags

    try:
        (folder / "index.html").unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder / "index.html", error) from None
    write_json(folder / "compare.json", comparison.as_dict())
    title = "Comparison of " + ", ".join(run.name for run in comparison.runs)
    page = dominate.document(title=printable(title), lang="en")
    page.head.add(*document_head(""))
    page.body.add(_header(comparison))
    main = page.body.add(tags.main(cls="wide"))
    for key, heading, build in _SECTIONS:
        content = build(comparison, folder)
        if content:
            main.add(tags.section(tags.h2(heading), *content, id=key))
    page.body.add(
        tags.footer(
            tags.div(
                tags.p("Files: ", tags.a("compare.json", href="./compare.json")),
                tags.p("Research use only, not for diagnosis."),
                cls="wide",
            )
        )
    )
    atomic_write(folder / "index.html", page.render(pretty=False), make_parents=True)
    return folder / "index.html"


def _header(comparison: Comparison) -> Any:
    from dominate import tags

    facts: list[tuple[str, Any]] = [("Runs", len(comparison.runs)), ("Common test images", len(comparison.images))]
    facts.append(("From", groups_in_words(comparison.scores[0])))
    items = [tags.li(f"{name} ", tags.b(str(value))) for name, value in facts]
    notes = tags.ul(cls="notices")
    research = "Not for diagnosis, treatment or any other clinical decision."
    notes.add(tags.li(tags.b("Research use only."), outside(research), cls="notice"))
    for note in (*cautions(comparison), *comparison.notes):
        notes.add(tags.li(tags.b("\N{WARNING SIGN}\N{VARIATION SELECTOR-15} "), outside(note), cls="notice strong"))
    names = tags.h1(*_joined([outside(_titled(run)) for run in comparison.runs]))
    above = tags.p("3-TierDCFNet: comparison", cls="eyebrow")
    return tags.header(tags.div(above, names, tags.ul(*items, cls="facts"), notes, cls="wide"), cls="top")


def _titled(run: TestedRun) -> str:
    """A run and which of its weights were tested."""
    return run.name if ":" in run.name else f"{run.name} ({run.which})"


def _joined(parts: Sequence[Any]) -> Tags:
    return [piece for index, part in enumerate(parts) for piece in ([" and ", part] if index else [part])]


def cautions(comparison: Comparison) -> list[str]:
    """What a reader must know of a sample that is too small for a claim or for its intervals."""
    said = no_claim(comparison.scores[0]) or few_groups(comparison.scores[0])
    return [said] if said else []


def _verdicts(comparison: Comparison, folder: Path) -> Tags:
    """Each run against the first, in words and as a figure."""
    from dominate import tags

    reference = comparison.runs[0].name
    items, few = [], bool(no_claim(comparison.scores[0]))
    short = ", which few groups decide" if few_groups(comparison.scores[0]) else ""
    for run, found in zip(comparison.runs[1:], comparison.differences, strict=True):
        word = _NEITHER if few else _WORDS.get(found["verdict"], _NEITHER)
        after = "" if word == _NEITHER else f" (AUROC){short}"
        differences = ", ".join(f"{METRICS[key]} {_signed(found[key])}" for key in ("auroc", "accuracy"))
        words = (tags.b(outside(run.name)), f" {word} ", tags.b(outside(reference)), f"{after}: {differences}.")
        items.append(tags.p(*words))
    lead = (
        "Differences of figures on the same images, each run less the first, with 95% intervals by"
        " groups, the same for both. A run is said to rank images better or worse where the"
        " interval of the AUROC's difference leaves out 0. Several comparisons at once are not corrected for."
    )
    return [lead_of(lead), tags.div(*items, cls="panel"), plot_panel(difference_plot(comparison), "Differences")]


_HEAD, _ROW = 22.0, 26.0  # pixels to a run's name and to a difference
_NEITHER = "is not shown to be better or worse than"


def _signed(scores: dict[str, Any]) -> str:
    if scores["value"] is None:
        return "not defined"
    interval = scores["ci95"]
    edges = f" (95% CI {interval[0]:+.3f} to {interval[1]:+.3f})" if interval else " (no interval)"
    return f"{scores['value']:+.3f}{edges}"


def difference_plot(comparison: Comparison) -> str:
    """Every difference as a point on its interval, around the line of no difference; narrow enough for a phone."""
    found = zip(comparison.runs[1:], comparison.differences, strict=True)
    groups = [
        (run.name, {key: one[key] for key in ("auroc", "accuracy") if one[key]["value"] is not None})
        for run, one in found
    ]
    shown = [one for _, ones in groups for one in ones.values()]
    reach = max([0.02, *(abs(edge) for one in shown for edge in (*(one["ci95"] or ()), one["value"]))]) * 1.1
    height = 56.0 + _HEAD * len(groups) + _ROW * len(shown)
    drawing = Drawing(360.0, height, "Differences", f"{len(shown)} differences with their intervals")
    axes = Axes(92.0, 20.0, 250.0, height - 54, (-reach, reach), (0.0, 1.0))
    _no_difference(drawing, axes, reach, height)
    y = 18.0
    for name, ones in groups:
        y += _HEAD
        short = name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}"
        drawing.text(4.0, y, short, "bold")
        for key, one in ones.items():
            y += _ROW
            drawing.text(4.0, y, METRICS[key], "small")
            _interval(drawing, axes, y - 4, one, f"{name}, {METRICS[key]}: {_signed(one)}")
    return drawing.render()


def _no_difference(drawing: Drawing, axes: Axes, reach: float, height: float) -> None:
    """The line of no difference, what lies on its two sides, and the scale."""
    drawing.line(axes.x(0.0), 20.0, axes.x(0.0), height - 30, "axis")
    for tick in (-reach / 1.1, 0.0, reach / 1.1):
        drawing.text(axes.x(tick), height - 12, f"{tick:+.3f}" if tick else "0", "small soft mid")
    drawing.text(axes.x(0.0) + 8, 14.0, "better \N{RIGHTWARDS ARROW}", "small soft")
    drawing.text(axes.x(0.0) - 8, 14.0, "\N{LEFTWARDS ARROW} worse", "small soft end")


def _interval(drawing: Drawing, axes: Axes, y: float, one: Mapping[str, Any], tooltip: str) -> None:
    """One difference and its interval."""
    if one["ci95"]:
        drawing.line(axes.x(one["ci95"][0]), y, axes.x(one["ci95"][1]), y, "line s0")
    drawing.marked("circle", tooltip, cx=axes.x(one["value"]), cy=y, r=5.0, cls="f0")


def _metrics(comparison: Comparison, folder: Path) -> Tags:
    """Every metric of every run on the common images."""
    from dominate import tags

    rows = []
    for run, scores in zip(comparison.runs, comparison.scores, strict=True):
        cells = []
        for key in METRICS:
            interval = interval_text((scores.get("ci95") or {}).get(key))
            cells.append(tags.td(three_decimals(scores.get(key)), tags.small(interval)))
        report = run.folder / "index.html"
        name = tags.a(outside(run.name), href=link_from(folder, report)) if report.is_file() else outside(run.name)
        rows.append(tags.tr(tags.th(name, scope="row"), *cells))
    caption = "Global of every run on the common images. Point value over its 95% interval."
    return [table_panel(["Run", *METRICS.values()], rows, caption, "dense")]


def link_from(folder: Path, target: Path) -> str:
    """A relative link from a page in ``folder`` to a file elsewhere."""
    return link_to(os.path.relpath(target, folder))


def _curves(comparison: Comparison, folder: Path) -> Tags:
    """ROC and precision-recall of the runs."""
    from dominate import tags

    if len(set(comparison.label.tolist())) < len(CLASSES):
        return []
    rocs, recalls = [], []
    shown = list(zip(comparison.runs, comparison.scores, comparison.probability, strict=True))[:MOST_CURVES]
    for (run, scores, chance), style in zip(shown, _CURVES, strict=False):
        name = run.name if len(run.name) <= 14 else f"{run.name[:13]}\N{HORIZONTAL ELLIPSIS}"
        said = (f"AUROC {three_decimals(scores['auroc'])}", f"AP {three_decimals(scores['average_precision'])}")
        rocs.append(Curve(style, roc_points(comparison.label, chance), said[0], name=name))
        recalls.append(Curve(style, precision_recall_points(comparison.label, chance), said[1], name=name))
    share = float(comparison.label.mean())
    charts = {
        "ROC": square_plot("ROC", ("1 - specificity", "sensitivity"), rocs, [(0.0, 0.0), (1.0, 1.0)]),
        "Precision and recall": square_plot(
            "Precision and recall", ("recall (sensitivity)", "precision"), recalls, [(0.0, share), (1.0, share)]
        ),
    }
    left = len(comparison.runs) - len(shown)
    more = [lead_of(f"The first {MOST_CURVES} runs; {left} more are in the table.")] if left else []
    return [*more, tags.div(*[plot_panel(svg, name) for name, svg in charts.items()], cls="plots")]


def _agreement(comparison: Comparison, folder: Path) -> Tags:
    """Where the runs are right and wrong together, and the images that they disagree on."""
    from dominate import tags

    counts = [
        tags.tr(tags.th(outside(run.name), scope="row"), *[tags.td(str(value)) for value in found.values()])
        for run, found in zip(comparison.runs[1:], comparison.agreement, strict=True)
    ]
    head = ("Run", "Both right", "Only the first right", "Only this right", "Both wrong")
    caption = f"Images, called Anemic above {THRESHOLD:g}. The first run is {comparison.runs[0].name}."
    found: Tags = [table_panel(head, counts, printable(caption))]
    rows = []
    for index in most_disagreeing(comparison):
        truth = CLASSES[comparison.label[index]]
        cells = [_call(float(chance), int(comparison.label[index])) for chance in comparison.probability[:, index]]
        name = tags.th(outside(comparison.images[index]), scope="row")
        rows.append(tags.tr(name, tags.td(outside(comparison.group[index])), tags.td(truth), *cells))
    if rows:
        columns = ("Image", "Group", "Truth", *(printable(run.name) for run in comparison.runs))
        which = "The one image" if len(rows) == 1 else f"The {len(rows)} images"
        said = f"{which} that the runs call differently and most differ on"
        found.append(table_panel(columns, rows, said, "texts"))
    return found


def _call(chance: float, truth: int) -> Any:
    from dominate import tags

    called = int(chance > THRESHOLD)
    mark = "\N{CHECK MARK}" if called == truth else "\N{BALLOT X}"
    return tags.td(f"{chance:.3f} {CLASSES[called]} {mark}", cls="right" if called == truth else "wrong")


RECORD = {
    "data": "Data",
    "split_digest": "Split digest",
    "weights_sha256": "SHA-256 of the weights",
    "epoch": "Epoch",
    "commit": "Commit",
}


def _origin(comparison: Comparison, folder: Path) -> Tags:
    """What every run was, and how they were compared."""
    from dominate import tags

    rows = []
    for run in comparison.runs:
        known = [run.which, *(run.record.get(key) for key in RECORD)]
        cells = [tags.td(outside(EM_DASH if value is None else value)) for value in known]
        rows.append(tags.tr(tags.th(outside(run.name), scope="row"), *cells))
    table = table_panel(["Run", "Weights", *RECORD.values()], rows, "As each run's metrics.json has it.", "texts")
    return [table, tags.div(tree(comparison.made), cls="panel")]


_SECTIONS = (
    ("verdicts", "In short", _verdicts),
    ("metrics", "Side by side", _metrics),
    ("curves", "ROC, precision and recall", _curves),
    ("agreement", "Where they disagree", _agreement),
    ("provenance", "How these figures were made", _origin),
)
