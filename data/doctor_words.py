"""What the doctor's findings say in words: counts, classes, and how far something tells the classes apart."""

from __future__ import annotations

from typing import Any

from data.doctor_case import Case, Score
from data.records import ANEMIC, CLASS_NAMES, HEALTHY

GIVES_AWAY = 0.6  # AUROC from which a fact that has nothing to do with blood is reported


def label_word(case: Case, index: int) -> str:
    """The class of a smear in a word."""
    label = case.records[index].label
    return "no class" if label is None else CLASS_NAMES[label]


def score_text(score: Score) -> str:
    """An AUROC with its interval, where it has one."""
    if score.interval is None:
        return f"{score.auroc:.3f}"
    return f"{score.auroc:.3f} [{score.interval[0]:.3f}, {score.interval[1]:.3f}]"


def telling_text(score: Score) -> str:
    """An AUROC turned so that it is 0.5 or more, and which class has the larger value."""
    turned = score.auroc < 0.5
    interval = score.interval and ((1 - score.interval[1], 1 - score.interval[0]) if turned else score.interval)
    larger = CLASS_NAMES[HEALTHY if turned else ANEMIC]
    return f"AUROC {score_text(Score(score.strength, interval))}, larger in {larger}"


def plain_score(score: Score) -> dict[str, Any]:
    """The same in plain types."""
    return {"auroc": score.auroc, "ci95": list(score.interval) if score.interval else None}
