"""How well colours alone, without any shape, tell the classes of a data root apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.colour import ColourScore, cross_validated
from data.doctor_case import Case, Finding, Score
from data.doctor_words import GIVES_AWAY, score_text
from util.errors import UserError

TREES = 300  # of each forest of the colour score, up to MANY images
MANY, FEWER_TREES = 3_000, 100  # what more trees add is far below the interval there


def colour_score(case: Case, step: Callable[[], object] | None = None) -> ColourScore | UserError | None:
    """The colour classifier's score on the cleaned data; the error where the folds cannot be made, None unlabelled.

    Args:
        case: what was examined.
        step: called after each fold.
    """
    labels = np.array([case.records[index].label for index in case.labelled], dtype=np.int64)
    if not len(labels):
        return None
    units = [case.units[index] for index in case.labelled]
    trees = TREES if len(labels) <= MANY else min(TREES, FEWER_TREES)
    try:
        return cross_validated(
            case.colours[case.labelled], labels, units, folds=case.folds, seed=case.seed, trees=trees, step=step
        )
    except UserError as error:
        return error


def colour_confound(case: Case, score: ColourScore | UserError | None) -> list[Finding]:
    """How well colour alone tells the classes apart."""
    if score is None:
        return []
    if isinstance(score, UserError):
        text = f"The colour score could not be computed: {score.what} ({score.found})."
        return [Finding("colour_unknown", "note", "No colour score", text, f"Next: {score.remedy}.")]
    metrics = score.metrics
    result = Score(metrics["auroc"], tuple(metrics["ci95"]["auroc"]) if metrics["ci95"]["auroc"] else None)
    kept_whole = "groups" if case.split_by == "group" else "blocks of ids"
    text = (
        f"A classifier that sees colours only, no shape, reaches AUROC {score_text(result)} and accuracy"
        f" {metrics['accuracy']:.3f} in {score.folds} folds that part no {kept_whole}."
    )
    telling = result.auroc >= GIVES_AWAY and result.certain
    remedy = "A network must beat this figure on the same split before it can be said to see cells."
    values = {"auroc": metrics["auroc"], "accuracy": metrics["accuracy"], "ci95": metrics["ci95"]}
    title = "Colour gives the class away" if telling else "Colour alone"
    return [Finding("colour", "warning" if telling else "note", title, text, remedy, values=values)]
