"""The first screen: the headline figures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from util.figures import CLASSES, EM_DASH, SPLITS, counted, interval_text, is_number, three_decimals
from util.report_content import (
    METRICS,
    Report,
    Tags,
    head_name,
    headline_split,
    provenance_of,
    sample_caution,
    scores_of,
    segmentation_of,
    unopened,
)
from util.report_parts import flat_interval_note, interval_bar, lead_of
from util.report_verdicts import against_baselines, rule_in_words, threshold_text

CLASS_OF = {"specificity": 0, "sensitivity": 1}


def headline(report: Report) -> Tags:
    """Cards of the headline split: Global's accuracy, AUROC, sensitivity, specificity, and the masks' Dice."""
    from dominate import tags

    split = headline_split(report)
    masks = segmentation_of(report)
    if split not in (None, masks.get("split")):
        masks = {}  # scored on another split than the cards beside it
    if split is None and not masks:
        return []
    scores = scores_of(report, split, "global")
    titles = ("accuracy", "auroc", "sensitivity", "specificity") if scores else ()
    cards = [_card("Global accuracy" if key == "accuracy" else METRICS[key], scores, key) for key in titles]
    cards += [_card("Mask Dice (pooled)", masks, "dice")] if masks else []
    caution = sample_caution(report, split) if split else None
    name = SPLITS.get(split or "test", split)
    shut = " and ".join(map(head_name, unopened(report)))
    fused = f"the tiers that had opened ({shut} had not)" if shut else "the three tiers"
    views = provenance_of(report).get("test_views") or 1
    seen = f" Each image was judged in {views} turned and mirrored views, which are averaged." if views > 1 else ""
    lead = f"Global is the fused output of {fused}. "
    found: Tags = [lead_of(lead, tags.b(f"{name} split"), f", 95% intervals.{seen}")]
    found += [tags.p(caution, cls="notice strong caution")] if caution else []
    found += against_baselines(report)
    found.append(tags.div(*cards, cls="cards"))
    found += _at_operating_point(report, split)
    note = flat_interval_note([scores, masks])
    return found + ([note] if note else [])


def _card(title: str, scores: Mapping[str, Any], key: str) -> Any:
    from dominate import tags
    from dominate.util import raw

    value, interval = scores.get(key), (scores.get("ci95") or {}).get(key)
    content = [tags.h3(title), tags.p(three_decimals(value), cls="figure")]
    if value is not None and is_number(value):
        content.append(raw(interval_bar(value, interval)))
    text = interval_text(interval)
    content.append(tags.p(f"95% CI {text}" if text else "no interval", cls="interval"))
    groups = f", {counted(scores['n_groups'], 'groups')}" if scores.get("n_groups") is not None else ""
    content.append(tags.p(f"{_counted(scores, key)}{groups if key not in CLASS_OF else ''}", cls="count"))
    return tags.article(*content, cls="card panel")


def _at_operating_point(report: Report, split: str | None) -> Tags:
    """Global's sensitivity and specificity where Anemic begins at the chosen point, in one line."""
    from dominate import tags

    point = report.metrics.get("operating_point") or {}
    scores = ((point.get("splits") or {}).get(split) or {}).get("global")
    if not scores or not point.get("chosen_on"):
        return []
    said = []
    for key in ("sensitivity", "specificity", "accuracy"):
        interval = interval_text((scores.get("ci95") or {}).get(key)) or "no interval"
        said.append(f"{key} {three_decimals(scores.get(key))} ({interval})")
    where = f"These call Anemic above 0.5. Above {threshold_text(scores.get('threshold'))}, the operating point"
    return [tags.p(f"{where} ({rule_in_words(point)}): {', '.join(said)}.", cls="footnote")]


def _counted(scores: Mapping[str, Any], key: str) -> str:
    """How many images a figure rests on: sensitivity and specificity see one class only."""
    matrix = scores.get("confusion_matrix")
    if key in CLASS_OF and matrix:
        return counted(sum(matrix[CLASS_OF[key]]), f"{CLASSES[CLASS_OF[key]]} images")
    return counted(scores["n"], "images") if "n" in scores else f"{EM_DASH} images"
