"""What a results page shows: its images, the figures of metrics.json, and what follows from them for the whole page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from util.figures import CLASSES, HEADS, NOT_EVALUATED, NOT_OPENED, SPLITS, UNPRINTABLE, counted, is_number

if TYPE_CHECKING:
    from util.cell_report import CellGallery
    from util.report_gradcam import GradCams

PER_PAGE = 50
FEWEST_IMAGES, FEWEST_GROUPS = 30, 10  # below them no claim about accuracy is made
FEWEST_EFFECTIVE = 20  # below it, and with either class below half of it, few groups are said to decide the figures
# Below these the intervals were found to hold too seldom, or nothing is known: scripts/interval_coverage.py --sizes.
LEAST_EFFECTIVE, LEAST_EFFECTIVE_OF_CLASS = 3.0, 1.5
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced acc.",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "AP",
    "brier": "Brier",
    "ece": "ECE",
}

# Classifiers that a network has to beat to have learned anything, by their names in metrics.json.
BASELINES = {"colour": "colours alone", "frozen": "frozen features"}
BASELINE_WORDS = {
    "colour": "a random forest that sees colour statistics only",
    "frozen": "a line through what EfficientNet-Lite0 sees with its ImageNet weights, none of which learned here",
}

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
        baseline_chances: probability of Anemic by each of ``BASELINES`` that was scored, of the labelled images of the
            tested split in their order.
        gradcam: where the tiers looked in chosen images, or None where that was not asked for.
    """

    title: str
    metrics: dict[str, Any] = field(default_factory=dict)
    images: list[ImageRow] = field(default_factory=list)
    gate_log: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    cells: CellGallery | None = None
    baseline_chances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    gradcam: GradCams | None = None


def printable(text: Any) -> str:
    """A text with what no page may hold (control characters, halves of a surrogate pair) made visible."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def count_text(value: Any) -> str:
    """A count with its thousands apart; what is none as it stands."""
    return f"{value:,}" if isinstance(value, int) else printable(value)


def link_to(path: str) -> str:
    """A relative link to a file of the results folder, percent-encoded; never another scheme, host or drive."""
    return "./" + quote(os.fsencode(path.lstrip("/")), safe="/")


def finite(value: Any) -> float | None:
    """A number with six decimals, or None for what is none."""
    return round(float(value), 6) if is_number(value) else None


def headline_split(report: Report) -> str | None:
    """The split whose figures stand on top: test where there is one, else validation, else training, else any."""
    splits = report.metrics.get("splits") or {}
    return next((name for name in (*reversed(SPLITS), *splits) if splits.get(name)), None)


def sample_caution(report: Report, split: str) -> str | None:
    """What a reader must know of a sample that is too small for a claim, or that few groups decide, else None."""
    scores = scores_of(report, split, "global")
    return no_claim(scores) or few_groups(scores)


def no_claim(scores: Mapping[str, Any]) -> str | None:
    """The sentence that forbids a claim about accuracy where the sample is too small for one, else None."""
    images, groups = scores.get("n") or 0, scores.get("groups_by_class")
    fewest = min(groups) if groups else scores.get("n_groups") or 0
    if images >= FEWEST_IMAGES and fewest >= FEWEST_GROUPS:
        return _dominated(scores)
    sources = f"{groups[0]} Healthy and {counted(groups[1], 'Anemic groups')}" if groups else counted(fewest, "groups")
    return (
        f"No claim about accuracy can be made at this size: {counted(images, 'images')} from {sources}. At least"
        f" {FEWEST_IMAGES} images and {FEWEST_GROUPS} groups of each class are asked for; these figures show that the"
        " programme ran, no more."
    )


def _dominated(scores: Mapping[str, Any]) -> str | None:
    """The same where a few groups hold nearly all images, or nearly all of a class."""
    by_class = dict(zip(CLASSES, scores.get("effective_by_class") or [], strict=False))
    held = [f"the {name} images" for name, groups in by_class.items() if groups < LEAST_EFFECTIVE_OF_CLASS]
    if (scores.get("n_groups_effective") or math.inf) < LEAST_EFFECTIVE:
        held = ["the images"]
    if not held:
        return None
    return (
        f"No claim about accuracy can be made: a few groups hold most of {' and of '.join(held)}"
        f" ({groups_in_words(scores)}), and of such groups intervals hold the truth too seldom."
    )


def few_groups(scores: Mapping[str, Any]) -> str | None:
    """The sentence that says what the intervals of few or unequal groups are worth, else None."""
    groups = scores.get("n_groups_effective")
    of_classes = [2 * one for one in scores.get("effective_by_class") or []]
    if groups is None or min([groups, *of_classes]) >= FEWEST_EFFECTIVE:
        return None
    return (
        f"Few or unequal groups ({groups_in_words(scores)}) decide these figures. The intervals are wide for that"
        " reason: in simulations with such groups those called 95% held the truth in 89 to 100% of cases."
    )


def groups_in_words(scores: Mapping[str, Any]) -> str | None:
    """``37 groups, as good as 13 equal ones``; None where they were not counted."""
    groups, effective = scores.get("n_groups"), scores.get("n_groups_effective")
    if groups is None:
        return None
    equal = "" if effective is None or round(effective) >= groups else f", as good as {round(effective)} equal ones"
    equal = equal.replace(" 1 equal ones", " a single one")
    return f"{counted(groups, 'groups')}{equal}"


def scores_of(report: Report, split: str | None, head: str) -> dict[str, Any]:
    """The figures of a head on a split; empty where there are none."""
    return ((report.metrics.get("splits") or {}).get(split) or {}).get(head) or {}


def missing_of(report: Report, head: str) -> str:
    """What stands where a head has no verdict on an image."""
    return NOT_OPENED if head in unopened(report) else NOT_EVALUATED


def margin_over(baseline: str) -> str:
    """The name in metrics.json of how much better Global is than a baseline."""
    return f"global_less_{baseline}"


def unopened(report: Report) -> list[str]:
    """Tiers that the tested weights had not opened: they stand in the metrics without figures."""
    splits = [scores for scores in (report.metrics.get("splits") or {}).values() if scores]
    return [head for head in HEADS if any(head in scores and scores[head] is None for scores in splits)]


def provenance_of(report: Report) -> dict[str, Any]:
    """What made the figures; empty where it is not recorded."""
    return report.metrics.get("provenance") or {}


def head_name(key: str) -> str:
    """A head as the page calls it."""
    return HEADS.get(key, key)


def segmentation_of(report: Report) -> dict[str, Any]:
    """The masks' scores, with the split that they are of; empty where none has a truth."""
    found = report.metrics.get("segmentation")
    return {"split": "test", **found} if found else {}


def baselines_of(report: Report, split: str) -> list[tuple[str, dict[str, Any]]]:
    """Baselines that were scored on a split; one that names no split belongs to the headline's."""
    found = []
    for name, scores in (report.metrics.get("baselines") or {}).items():
        if not isinstance(scores, Mapping):
            continue
        own = scores.get(split) if isinstance(scores.get(split), Mapping) else None
        own = own or (scores if split == headline_split(report) and any(key in scores for key in METRICS) else None)
        if own:
            found.append((BASELINES.get(name, name).capitalize(), dict(own)))
    return found
