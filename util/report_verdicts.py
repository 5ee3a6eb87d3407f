"""What follows from the figures: cheap classifiers to beat, the operating point, whole groups, the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from util.figures import CLASSES, EM_DASH, HEADS, SPLITS, counted, interval_text, is_number, three_decimals
from util.metrics import THRESHOLD, THRESHOLD_METRICS
from util.report_content import (
    BASELINE_WORDS,
    BASELINES,
    FEWEST_GROUPS,
    METRICS,
    ImageRow,
    Report,
    Tags,
    few_groups,
    head_name,
    headline_split,
    link_to,
    margin_over,
    no_claim,
    printable,
    scores_of,
)
from util.report_parts import flat_interval_note, lead_of, outside, table_panel
from util.report_scores import BETTER, SPECIFICITY, WORSE, YOUDEN

MOST_ERRORS = 12
UNITS = {"group": "Groups", "patient": "Patients"}
LARGEST_MIXED = 0.2  # of the units: where more are left out, those that remain are no longer the sample
_SAID = {BETTER: ("right", "Ranks images better than"), WORSE: ("wrong", "Ranks images worse than")}
_NOT_SHOWN = ("unknown", "Not shown to rank images better than")


def against_baselines(report: Report) -> Tags:
    """In words, on the first screen: whether Global is shown to be better than each of the cheap classifiers."""
    differences = report.metrics.get("differences") or {}
    found = {name: differences.get(margin_over(name)) for name in BASELINES}
    return [_against(report, name, margin) for name, margin in found.items() if margin]


def _against(report: Report, name: str, found: Mapping[str, Any]) -> Any:
    from dominate import tags

    kind, words = _SAID.get(found.get("verdict", ""), _NOT_SHOWN)
    scores = scores_of(report, found.get("split", "test"), "global")
    why = ""
    if scores and no_claim(scores):
        (kind, words), why = _NOT_SHOWN, ": too few images or groups"
    elif (few_groups(scores) or few_groups(found)) and kind != _NOT_SHOWN[0]:
        kind, why = _NOT_SHOWN[0], ", which few groups decide"
    parts = [_signed(METRICS[key], found.get(key)) for key in ("auroc", "accuracy")]
    said = f"Global less {BASELINE_WORDS[name]}, on the same images: {', '.join(parts)}"
    return tags.p(tags.b(f"{words} {BASELINES[name]} (AUROC){why}.", cls=kind), f" {said}.", cls="panel margin")


def _signed(name: str, scores: Mapping[str, Any] | None) -> str:
    """A difference with its sign and its interval."""
    value, interval = (scores or {}).get("value"), (scores or {}).get("ci95")
    if not is_number(value) or value is None:
        return f"{name} not defined"
    edges = f" (95% CI {interval[0]:+.3f} to {interval[1]:+.3f})" if interval else " (no interval)"
    return f"{name} {value:+.3f}{edges}"


def rule_in_words(point: Mapping[str, Any]) -> str:
    """How the operating point was chosen."""
    rule = str(point.get("rule", ""))
    if rule == YOUDEN:
        how = "the highest sensitivity + specificity (Youden's index)"
    elif rule.startswith(SPECIFICITY):
        how = f"the highest sensitivity at a specificity of at least {rule.partition('=')[2]}"
    else:
        return f"{THRESHOLD:g}, as everywhere else on this page"
    count, groups = point.get("n"), point.get("n_groups")
    return f"{how} on {counted(count or 0, 'validation images')} of {counted(groups or 0, 'groups')}"


def operating(report: Report) -> Tags:
    """Every head at the operating point, beside the same calls at 0.5."""
    from dominate import tags

    point, split = report.metrics.get("operating_point") or {}, headline_split(report)
    if not point or split is None:
        return []
    if point.get("why_not"):
        return [lead_of(f"No operating point was chosen: {printable(point['why_not'])}. Anemic begins at 0.5.")]
    if not point.get("chosen_on"):
        return []  # it is 0.5 again
    chosen = (point.get("splits") or {}).get(split) or {}
    plain = (report.metrics.get("splits") or {}).get(split) or {}
    rows, shown = [], []
    for head in HEADS:
        if not chosen.get(head):
            continue
        rows.append(_point_row(head, f"{THRESHOLD:g}", plain.get(head) or {}, ""))
        rows.append(_point_row(head, threshold_text(chosen[head].get("threshold")), chosen[head], "global"))
        shown += [_intervals_of(scores, THRESHOLD_METRICS) for scores in (plain.get(head), chosen[head])]
    if not rows:
        return []
    other = "" if split == point["chosen_on"] else " It was not chosen on the images that it is judged by here."
    lead = (
        f"Anemic above 0.5, and above the operating point: {rule_in_words(point)}.{other} predictions.csv and all other"
        " figures call by 0.5."
    )
    head_row = ["Tier", "Anemic above", *(METRICS[key] for key in THRESHOLD_METRICS)]
    caption = f"{SPLITS.get(split, split)} images. Point value over its 95% interval."
    return [lead_of(lead), table_panel(head_row, rows, caption), *_flat(shown), *_val_note(split, tags)]


def threshold_text(value: Any) -> str:
    """A threshold with three significant digits, by its distance from 1 where these would make it 1."""
    if not is_number(value):
        return EM_DASH
    text = f"{value:.3g}"
    return f"1 \N{MINUS SIGN} {1 - value:.3g}" if value < 1 and float(text) >= 1 else text


def _intervals_of(scores: Mapping[str, Any] | None, keys: Sequence[str]) -> dict[str, Any]:
    """The intervals that a table shows."""
    known = (scores or {}).get("ci95") or {}
    return {"ci95": {key: known.get(key) for key in keys}}


def _flat(shown: Sequence[Mapping[str, Any]]) -> Tags:
    note = flat_interval_note(shown)
    return [] if note is None else [note]


def _val_note(split: str, tags: Any) -> Tags:
    if split != "val":
        return []
    return [tags.p("These are the validation images themselves: the point fits them too well.", cls="footnote")]


def _point_row(head: str, threshold: str, scores: Mapping[str, Any], cls: str) -> Any:
    from dominate import tags

    cells = [tags.td(threshold)]
    for key in THRESHOLD_METRICS:
        interval = interval_text((scores.get("ci95") or {}).get(key))
        cells.append(tags.td(three_decimals(scores.get(key)), tags.small(interval)))
    return tags.tr(tags.th(head_name(head), scope="row"), *cells, **({"cls": cls} if cls else {}))


def units(report: Report) -> Tags:
    """Verdicts of whole groups and patients: their images' mean probability."""
    from dominate import tags

    known, split = report.metrics.get("verdicts") or {}, headline_split(report)
    keys = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "average_precision", "brier")
    rows, shown, said, cautions = [], [], [], []
    for unit, title in UNITS.items():
        by_head = (known.get(unit) or {}).get(split) or {}
        for head in HEADS:
            scores = by_head.get(head)
            if not scores:
                continue
            cells = [tags.td(head_name(head)), *[tags.td(printable(count)) for count in _counts(scores)]]
            for key in keys:
                interval = interval_text((scores.get("ci95") or {}).get(key))
                cells.append(tags.td(three_decimals(scores.get(key)), tags.small(interval)))
            row = tags.tr(tags.th(title, scope="row"), *cells)
            shown.append(_intervals_of(scores, keys))
            if head == "global":
                row["class"] = "global"
                said.append(_left_out(title, scores))
                cautions += _too_few(title, scores)
            rows.append(row)
    if not rows:
        return []
    lead = "A group's or patient's probability is the mean over its images; above 0.5 it is called Anemic. "
    head_row = ["Verdicts of", "Tier", *CLASSES, *(METRICS[key] for key in keys)]
    notices = [tags.p(words, cls="notice strong caution") for words in cautions]
    table = table_panel(head_row, rows, "Over 95% intervals.")
    return [lead_of(lead + " ".join(said)), *notices, table, *_flat(shown)]


def _counts(scores: Mapping[str, Any]) -> list[Any]:
    """Healthy and Anemic units."""
    matrix = scores.get("confusion_matrix")
    return [sum(row) for row in matrix] if matrix else [EM_DASH, EM_DASH]


def _left_out(title: str, scores: Mapping[str, Any]) -> str:
    mixed, single = scores.get("mixed") or 0, scores.get("single")
    words = f"{title}: {scores.get('n', EM_DASH)}"
    words += f", {single} of one image" if single is not None else ""
    verb = "is" if mixed == 1 else "are"
    return f"{words}; {mixed} with images of both classes {verb} left out." if mixed else f"{words}."


def _too_few(title: str, scores: Mapping[str, Any]) -> list[str]:
    """The sentence that forbids a claim about whole units."""
    matrix, mixed = scores.get("confusion_matrix") or [], scores.get("mixed") or 0
    healthy, anemic = (sum(row) for row in matrix) if matrix else (0, 0)
    every = (scores.get("n") or 0) + mixed
    if min(healthy, anemic) >= FEWEST_GROUPS and mixed <= LARGEST_MIXED * every:
        return []
    return [
        f"No claim about whole {title.lower()} can be made: {healthy} Healthy, {anemic} Anemic, and {mixed} of {every}"
        f" left out as mixed. At least {FEWEST_GROUPS} of each class and at most a fifth mixed are asked for."
    ]


def worst_errors(rows: Sequence[ImageRow], most: int = MOST_ERRORS) -> list[ImageRow]:
    """The images that Global is wrong on, the most confidently wrong first; equal ones in the order of the data."""
    wrong = [row for row in rows if row.label_true is not None and row.label_true != row.label_pred]
    sure = [row for row in wrong if is_number(row.prob.get("global"))]
    return sorted(sure, key=lambda row: -abs(row.prob["global"] - THRESHOLD))[:most]


def errors(report: Report) -> Tags:
    """The most confidently wrong images."""
    from dominate import tags

    wrong = sum(row.label_true is not None and row.label_true != row.label_pred for row in report.images)
    labelled = sum(row.label_true is not None for row in report.images)
    if not labelled:
        return []
    if not wrong:
        right = "the one labelled image" if labelled == 1 else f"all {labelled:,} labelled images"
        return [lead_of(f"Global is right on {right} that this page shows.")]
    worst = worst_errors(report.images)
    which = "the most confidently wrong first" if wrong <= len(worst) else f"the {len(worst)} most confidently wrong"
    lead = f"Global is wrong on {wrong:,} of {counted(labelled, 'labelled images')}"
    lead += f"; {which}. All are in the list of images below." if wrong > 1 else "."
    return [lead_of(lead), tags.div(*[_error_card(row) for row in worst], cls="errors")]


def _error_card(row: ImageRow) -> Any:
    from dominate import tags

    truth = CLASSES[row.label_true] if row.label_true is not None else EM_DASH
    pictures = [("smear", row.smear), ("overlay", row.overlay)]
    shown = [_linked(path, f"{what} of {printable(row.name)}", what) for what, path in pictures]
    chance = f"probability of Anemic {row.prob['global']:.3f}"
    said = f"called {CLASSES[row.label_pred]} ({chance}), truly {truth}"
    return tags.article(
        tags.div(*shown, cls="pictures two"),
        tags.h3(outside(row.name)),
        tags.p(tags.b(f"\N{BALLOT X} {said}", cls="wrong")),
        tags.p("group ", outside(row.group)),
        cls="panel error",
    )


def _linked(path: str, alt: str, caption: str) -> Any:
    from dominate import tags

    image = tags.img(src=link_to(path), alt=alt, loading="lazy", decoding="async")
    return tags.figure(tags.a(image, href=link_to(path)), tags.figcaption(caption))
