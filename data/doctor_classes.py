"""What the doctor finds of classes and groups: their numbers, their blood counts, and a split that the data states."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from data.doctor_case import Case, Finding, Level, about_files
from data.doctor_words import label_word
from data.groups import parent_name
from data.records import ANEMIC, CLASS_NAMES, HEALTHY
from data.severity import NORMAL_FROM
from data.splits import SIDES
from util.figures import counted

FEWEST_GROUPS = 10
SMALLEST_CLASS = 0.25
LARGEST_GROUP = 0.2


def group_facts(case: Case) -> dict[str, Any]:
    """Count the groups of the cleaned data: all, by class, the largest, and how many each bond joins."""
    members: dict[str, list[int]] = defaultdict(list)
    for index in case.kept:
        members[case.groups[index]].append(index)
    near = {index for pair in case.near for index in (pair.first, pair.second)}
    bonds = {"one parent image": 0, "one patient": 0, "equal blood counts": 0, "near duplicates": 0}
    for indices in members.values():
        parents = [case.records[index].parent for index in indices]
        bonds["one parent image"] += _repeats(parents)
        bonds["one patient"] += _repeats([case.records[index].patient for index in indices])
        bonds["equal blood counts"] += len(set(parents)) > 1 and _repeats([case.reports[index] for index in indices])
        bonds["near duplicates"] += any(index in near for index in indices)
    by_class = {
        name: len({case.groups[index] for index in case.kept if case.records[index].label == label})
        for label, name in enumerate(CLASS_NAMES)
    }
    largest = max(members.items(), key=lambda item: (len(item[1]), item[0]), default=("", []))
    both = [name for name, indices in members.items() if case.in_both_classes(indices)]
    return {
        "groups": len(members),
        "without_near_duplicates": len({case.groups_before[index] for index in case.kept}),
        "by_class": by_class,
        "largest": {"name": largest[0], "images": len(largest[1])},
        "joined_by": bonds,
        "in_both_classes": len(both),
    }


def _repeats(keys: Sequence[str]) -> bool:
    """Whether a key other than the empty one stands there twice."""
    known = [key for key in keys if key]
    return len(set(known)) < len(known)


def groups(case: Case) -> list[Finding]:
    """How many groups there are, the largest, and why images are joined."""
    facts = group_facts(case)
    if not facts["groups"]:
        return []
    largest = facts["largest"]
    few = [name for name, count in facts["by_class"].items() if 0 < count < FEWEST_GROUPS]
    large = largest["images"] > LARGEST_GROUP * len(case.kept) and largest["images"] > 1
    joined = ", ".join(f"{count} by {bond}" for bond, count in facts["joined_by"].items() if count) or "none is joined"
    text = (
        f"{counted(len(case.kept), 'images')} in {counted(facts['groups'], 'groups')} ({joined}), the largest of"
        f" {counted(largest['images'], 'images')}; groups with both classes: {facts['in_both_classes']}."
    )
    if few:
        text += f" Fewer than {FEWEST_GROUPS} groups of {' and '.join(few)} carry no claim about accuracy."
    if large:
        text += " The largest is too large a part for a balanced split."
    remedy = "Groups are never parted; intervals count groups and not images. Add smears of other patients where few."
    files = case.names(index for index in case.kept if case.groups[index] == largest["name"])
    level: Level = "warning" if few or large else "note"
    return [Finding("groups", level, "Groups", text, remedy, files if len(files) > 1 else [], values=facts)]


def class_balance(case: Case) -> list[Finding]:
    """One class much smaller than the other, absent, or unknown."""
    counts = Counter(case.records[index].label for index in case.kept)
    known = counts[HEALTHY] + counts[ANEMIC]
    words = ", ".join(f"{counts[label]} {name}" for label, name in enumerate(CLASS_NAMES))
    values = {name: counts[label] for label, name in enumerate(CLASS_NAMES)} | {"unknown": counts[None]}
    found = []
    if known and min(counts[HEALTHY], counts[ANEMIC]) < SMALLEST_CLASS * known:
        fewer = CLASS_NAMES[HEALTHY if counts[HEALTHY] < counts[ANEMIC] else ANEMIC]
        text = f"{fewer} is less than {SMALLEST_CLASS:.0%} of the cleaned data ({words})."
        remedy = "Read balanced accuracy and AUROC, not accuracy; training needs images of both classes."
        found.append(Finding("class_balance", "warning", "Classes out of balance", text, remedy, values=values))
    unknown = [index for index in case.kept if case.records[index].label is None]
    if unknown:
        text = f"{counted(len(unknown), 'images', 'has', 'have')} no class."
        remedy = "They can be predicted, and train masks only; state their class in labels.csv or a manifest."
        found.append(Finding("unlabelled", "note", "Images without a class", text, remedy, case.names(unknown)))
    return found


def stated_split(case: Case) -> list[Finding]:
    """A split that the data set itself states and that parts a group."""
    sides: dict[str, set[str]] = defaultdict(set)
    for index in case.kept:
        side = case.records[index].split
        if side in SIDES:
            sides[case.groups[index]].add(side)
    parted = {group for group, found in sides.items() if len(found) > 1}
    indices = [index for index in case.kept if case.groups[index] in parted and case.records[index].split in SIDES]
    if not indices:
        return []
    by_group: dict[str, list[str]] = defaultdict(list)
    for index in indices:
        by_group[case.groups[index]].append(case.records[index].name)
    reasons = {case.records[index].name: f"in {case.records[index].split}" for index in indices}
    text = f"The split that the data states leaks: {counted(len(parted), 'groups')} on two sides."
    remedy = "Draw a split that parts no group (3TDCFNet_data.py split); --fix leaves the stated one out."
    files = [name for names in by_group.values() for name in names]
    return [
        Finding("split_leaks", "error", "The stated split leaks", text, remedy, files, reasons, list(by_group.values()))
    ]


# --- blood counts -----------------------------------------------------------------------------------------------------


def reports_unreadable(case: Case) -> list[Finding]:
    """Blood counts that cannot be read or say what no blood has."""
    reasons = {name: f"{problem.what}: {problem.found}" for name, problem in case.report_problems.items()}
    text = f"{counted(len(reasons), 'blood counts')} cannot be read, or not as values that blood has."
    remedy = "Correct or remove them: they say which smears are one patient's."
    title = "Blood counts that cannot be read"
    return about_files("unreadable_blood_counts", "error", title, text, remedy, reasons)


def haemoglobin(case: Case) -> list[Finding]:
    """Haemoglobin that contradicts the folder, by WHO's cut-offs."""
    below_all, below_any = NORMAL_FROM["female"], NORMAL_FROM["male"]
    kinds: dict[str, dict[str, str]] = {"healthy": {}, "anemic": {}, "open": {}}
    known: Counter[int | None] = Counter()
    for record, value in zip(case.records, case.haemoglobin, strict=True):
        known[record.label] += value is not None
        kind = _contradiction(record.label, value, below_all, below_any)
        if kind:
            kinds[kind][record.name] = f"haemoglobin {value:g} g/dL, labelled {CLASS_NAMES[record.label or 0]}"
    reasons = kinds["healthy"] | kinds["anemic"] | kinds["open"]
    if not reasons:
        return []
    healthy, anemic, open_ = (len(names) for names in kinds.values())
    text = (
        f"Haemoglobin contradicts the folder: {healthy} of {known[HEALTHY]} Healthy have less than {below_all:g}"
        f" g/dL, {anemic + open_} of {known[ANEMIC]} Anemic {below_all:g} or more"
        f" ({anemic} of them {below_any:g} or more, anaemia in nobody)."
    )
    remedy = "Ask where the labels come from; a network cannot be better than they are. Cut-offs: WHO, by sex."
    values = {"healthy": healthy, "anemic": anemic, "open": open_}
    values |= {"known_healthy": known[HEALTHY], "known_anemic": known[ANEMIC]}
    title = "Blood counts that contradict the folder"
    parts = [list(names) for names in kinds.values() if names]
    return [Finding("haemoglobin", "warning", title, text, remedy, list(reasons), reasons, parts, values)]


def _contradiction(label: int | None, value: float | None, below_all: float, below_any: float) -> str | None:
    """Healthy but anaemic in everybody; Anemic but in nobody; or Anemic where that depends on the sex ("open")."""
    if value is None or label is None:
        return None
    if label == HEALTHY:
        return "healthy" if value < below_all else None
    return "anemic" if value >= below_any else "open" if value >= below_all else None


def equal_reports(case: Case) -> list[Finding]:
    """Equal blood counts under different ids."""
    same: dict[str, list[int]] = defaultdict(list)
    for index, report in enumerate(case.reports):
        if report:
            same[report].append(index)
    sets = [indices for indices in same.values() if len({parent_name(case.records[index]) for index in indices}) > 1]
    if not sets:
        return []
    across = sum(case.in_both_classes(indices) for indices in sets)
    sets.sort(key=lambda indices: not case.in_both_classes(indices))
    files = case.names(index for indices in sets for index in indices)
    text = (
        f"{counted(len(sets), 'blood counts', 'recurs', 'recur')} under different ids"
        f" ({counted(len(files), 'files')}); {across} of them in both classes."
    )
    remedy = "They are taken for one patient and never parted; ask the source of the data whether they are."
    reasons = {case.records[index].name: label_word(case, index) for indices in sets for index in indices}
    values = {"sets": len(sets), "sets_in_both_classes": across}
    named = [case.names(indices) for indices in sets]
    title = "Equal blood counts under different ids"
    return [Finding("equal_blood_counts", "warning", title, text, remedy, files, reasons, named, values)]
