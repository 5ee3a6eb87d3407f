"""What the doctor finds of images that are there twice: equal ones, and those that look the same."""

from __future__ import annotations

from collections import defaultdict

from data.doctor_case import Case, Finding, joined_sets
from data.doctor_words import label_word
from util.figures import counted


def both_classes(case: Case) -> list[Finding]:
    """Equal files that stand in both classes."""
    sets = [indices for indices in case.equal_sets if case.in_both_classes(indices)]
    if not sets:
        return []
    files = case.names(index for indices in sets for index in indices)
    text = f"{counted(len(sets), 'sets')} of equal images in both classes ({counted(len(files), 'files')})."
    remedy = "Nobody can say which class is right: --fix leaves all of them out."
    reasons = {case.records[index].name: label_word(case, index) for indices in sets for index in indices}
    named = [case.names(indices) for indices in sets]
    return [Finding("both_classes", "error", "Equal images in both classes", text, remedy, files, reasons, named)]


def duplicates(case: Case) -> list[Finding]:
    """Equal files within one class."""
    sets = [indices for indices in case.equal_sets if not case.in_both_classes(indices)]
    if not sets:
        return []
    files = case.names(index for indices in sets for index in indices)
    surplus = len(files) - len(sets)
    text = (
        f"{counted(len(sets), 'sets')} of equal images within one class ({counted(len(files), 'files')}):"
        f" {surplus} more than there are pictures."
    )
    remedy = "Training leaves out all but the first of each set (--duplicates drop), and so does --fix."
    named = [case.names(indices) for indices in sets]
    return [Finding("duplicates", "warning", "Equal images", text, remedy, files, {}, named)]


def near_duplicates(case: Case) -> list[Finding]:
    """Images that look the same without being equal, those across the classes first."""
    sets = joined_sets((pair.first, pair.second) for pair in case.near)
    best: dict[int, float] = defaultdict(float)
    for pair in case.near:
        for index in (pair.first, pair.second):
            best[index] = max(best[index], pair.similarity)
    across = [indices for indices in sets if case.in_both_classes(indices)]
    within = [indices for indices in sets if not case.in_both_classes(indices)]
    found = []
    if across:
        text = f"{counted(len(across), 'sets')} of images that look the same, in both classes"
        remedy = "If they show the same smear, one label is wrong. They share a group, so no split parts them."
        title = "Near duplicates in both classes"
        found.append(_near_finding(case, "near_duplicates_both_classes", title, text, remedy, across, best))
    if within:
        text = f"{counted(len(within), 'sets')} of images that look the same without being equal, within one class"
        remedy = "They share a group, so no split parts them; --fix --near_duplicates drop keeps the first of each."
        found.append(_near_finding(case, "near_duplicates", "Near duplicates", text, remedy, within, best))
    return found


def _near_finding(
    case: Case, key: str, title: str, text: str, remedy: str, sets: list[list[int]], best: dict[int, float]
) -> Finding:
    indices = [index for members in sets for index in members]
    reasons = {case.records[index].name: f"similarity {best[index]:.2f}" for index in indices}
    sentence = f"{text} ({counted(len(indices), 'files')})."
    named = [case.names(members) for members in sets]
    return Finding(key, "warning", title, sentence, remedy, case.names(indices), reasons, named)
