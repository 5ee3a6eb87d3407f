"""Sections of figures and tables: confusion, tiers, stain, gate, training, masks, severity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from util import figures
from util.figures import (
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
from util.report_content import (
    BASELINE_WORDS,
    BASELINES,
    METRICS,
    Report,
    Tags,
    baselines_of,
    count_text,
    head_name,
    printable,
    provenance_of,
    segmentation_of,
)
from util.report_parts import figure_panel, flat_interval_note, lead_of, narrow_legend, outside, table_panel, tree

RESTAINED = {"grey": "grey", "stain_normalised": "normalised"}  # of metrics.json's robustness, and the page's words


VALIDATION_NOTE = (
    " Validation figures are a little too good: how much each tier's voice weighs in the verdicts was fitted on these"
    " images, and by them the best weights are chosen."
)


def confusion(report: Report) -> Tags:
    """The grid of confusion matrices."""
    splits = report.metrics.get("splits") or {}
    if not splits:
        return []
    lead = "Rows are the true class, columns what the tier called it (Anemic above 0.5); percentages are of rows."
    return [lead_of(lead), figure_panel(figures.confusion_grid(splits), "Confusion matrices", "panel scroll grid")]


def tier_table(report: Report) -> Tags:
    """Every metric of every tier and split with its interval, and the baselines."""
    from dominate import tags

    splits = report.metrics.get("splits") or {}
    rows, scored = [], []
    for split in (*SPLITS, *(name for name in splits if name not in SPLITS)):
        heads = [(head_name(key), key, scores or {}) for key, scores in (splits.get(split) or {}).items()]
        if not any(scores for _, _, scores in heads):
            continue
        heads += [(name, "baseline", scores) for name, scores in baselines_of(report, split)]
        title = SPLITS.get(split, split)
        rows.append(tags.tr(tags.th(printable(title), colspan=len(METRICS) + 3, scope="rowgroup"), cls="split"))
        rows += [_score_row(name, key, scores) for name, key, scores in heads]
        scored += [scores for _, _, scores in heads]
    if not rows:
        return []
    caption = "Point value over its 95% interval. Intervals: jackknife over groups, Student's t on the logit scale."
    table = table_panel(["Tier", "Images", "Groups", *METRICS.values()], rows, caption, "dense")
    note = flat_interval_note(scored)
    explained = tags.p(
        "AP is the average precision, the area under the steps of precision against recall; Brier is the mean squared"
        " error of the probability. ECE is the expected calibration error over ten bins of confidence (Guo et al. 2017;"
        " Naeini et al. 2015); few images raise it, which its interval does not mend. A dash is a figure that these"
        " images do not define, such as the AUROC where one class is absent."
        + _baseline_note([name for split in splits for name, _ in baselines_of(report, split)])
        + (VALIDATION_NOTE if splits.get("val") else ""),
        cls="footnote",
    )
    return [table, *([note] if note else []), explained]


def _baseline_note(names: Sequence[str]) -> str:
    """What the baselines among the rows are; nothing where there are none."""
    titles = {key: title.capitalize() for key, title in BASELINES.items()}
    what = [f"{title} ({BASELINE_WORDS[key]})" for key, title in titles.items() if title in names]
    if not what:
        return ""
    return (
        f" Not tiers, but cheap classifiers fitted on the same training images: {' and '.join(what)}. A network that"
        " does no better has learned little."
    )


def _score_row(name: str, key: str, scores: Mapping[str, Any]) -> Any:
    from dominate import tags

    cells = [tags.td(count_text(scores.get(key, EM_DASH))) for key in ("n", "n_groups")]
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
        " images (normalised). How far a figure lies below that of the images as they are is how much the verdict leans"
        " on stain, which changes with the laboratory. Under each, with its sign, stands the difference to the"
        " same images as they are, with its paired interval; where that leaves out 0, the two differ. Several at once"
        " are not corrected for."
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
    flat = flat_interval_note(_shown_intervals(scores, shown) for scores in columns for shown in HEADS)
    table = table_panel(head_row, rows, "Point value over its 95% interval.")
    return [lead_of(lead), table, note, *([flat] if flat else [])]


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
    own = tags.small(interval_text((found.get("ci95") or {}).get(key)))
    less = _less_text((found.get("less_as_it_is") or {}).get(key) or {})
    return tags.td(three_decimals(found.get(key)), own, *([tags.small(less)] if less else []))


def _less_text(less: Mapping[str, Any]) -> str:
    """The difference to the images as they are with its interval; empty where there is none."""
    value, interval = less.get("value"), less.get("ci95")
    if not is_number(value):
        return ""
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else f"{value:+.3f} (no interval)"


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
    table = table_panel(
        ["Tier", "Epoch", "Training accuracy", "Needed", "Validation accuracy", "Decision", "Reason"], rows
    )
    every = tags.details(
        tags.summary("The one decision" if len(rows) == 1 else f"All {len(rows)} decisions"), table, cls="under"
    )
    drawn = figure_panel(figures.gate_timeline(report.gate_log), "Decisions of the gate")
    return [lead_of(lead), narrow_legend(figures.gate_signs()), drawn, every]


def curves(report: Report) -> Tags:
    """Losses and accuracies over epochs."""
    if not report.history:
        return []
    drawn = figure_panel(figures.training_curves(report.history, report.gate_log), "Training curves")
    return [narrow_legend(figures.curve_signs(report.history)), drawn]


def segmentation(report: Report) -> Tags:
    """Dice and IoU of the predicted masks."""
    from dominate import tags

    scores = segmentation_of(report)
    if not scores:
        return []
    names = {"dice": "Dice (pooled)", "iou": "IoU (pooled)", "dice_mean": "Dice (mean of images)"}
    intervals, split = scores.get("ci95") or {}, scores["split"]
    cells = [tags.td(three_decimals(scores.get(k)), tags.small(interval_text(intervals.get(k)))) for k in names]
    counts = [tags.td(count_text(scores.get(key, EM_DASH))) for key in ("n", "n_groups")]
    row = tags.tr(tags.th(printable(SPLITS.get(split, split)), scope="row"), *counts, *cells)
    lead = "Predicted cell masks against the true ones, pixel by pixel; pooled figures sum pixels over all images."
    written = provenance_of(report).get("masks_written") or {}
    if written.get("cells"):
        others = sum(written.values()) - written["cells"]
        lead += f" {written['cells']} of the masks are those of the cells that Module-II found at the images' own size"
        lead += f", {others} the network's." if others else "."
    head = ["Split", "Images", "Groups", *names.values()]
    return [lead_of(lead), table_panel(head, [row], "Point value over its 95% interval.")]


def severity(report: Report) -> Tags:
    """Module-II's cells and grades, and how far these agree with the true ones."""
    from dominate import tags

    found = report.metrics.get("severity") or {}
    if report.cells is not None:
        return report.cells.section() + _grading(found)
    if not found and report.images:
        return [lead_of("Module-II did not run: no cell was found, measured or graded.")]
    plain = {key: value for key, value in found.items() if not isinstance(value, Mapping) and key != "agreement"}
    return [*([tags.div(tree(plain), cls="panel")] if plain else []), *_grading(found)]


def _grading(found: Mapping[str, Any]) -> Tags:
    """The rule's and the learned head's grades against the true ones; nothing where no image has one."""
    from dominate import tags

    graders = {"rule": "Rule", "learned": "Learned head"}
    scored = {title: found[key] for key, title in graders.items() if isinstance(found.get(key), Mapping)}
    if not scored:
        return []
    names = {key: METRICS[key] for key in ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")}
    rows = []
    for title, scores in scored.items():
        counts = [tags.td(count_text(scores.get(key, EM_DASH))) for key in ("n", "n_groups")]
        intervals = scores.get("ci95") or {}
        cells = [tags.td(three_decimals(scores.get(k)), tags.small(interval_text(intervals.get(k)))) for k in names]
        rows.append(tags.tr(tags.th(title, scope="row"), *counts, *cells))
    lead = "Images with a true grade and judged cells. Chronic is the positive class: sensitivity is of Chronic images."
    if is_number(found.get("agreement")):
        lead += f" Rule and learned head grade {found['agreement']:.1%} of the images alike."
    table = table_panel(["Graded by", "Images", "Groups", *names.values()], rows, "Point value over its 95% interval.")
    return [tags.h3("Grades against the true ones"), lead_of(lead), table]
