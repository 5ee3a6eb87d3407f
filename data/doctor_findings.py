"""What the doctor finds in an examined data root: one small function for each kind of finding.

To add one, write a function from ``Case`` to a list of findings (an empty list where all is well) and put it in
``CHECKS``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from data.colour import ColourScore, cross_validated
from data.doctor_case import LEVELS, Case, Finding, Level, Score, joined_sets
from data.doctor_facts import MaskFacts
from data.groups import parent_name
from data.records import ANEMIC, CLASS_NAMES, HEALTHY
from data.severity import NORMAL_FROM
from data.splits import SIDES
from util.errors import UserError

INVERTED_BELOW, INVERSE_FROM = 0.4, 0.8  # Dice with Otsu's of a mask and of its inverse: this is no matter of quality
UNLIKE_BELOW = 0.5  # Dice with Otsu's
FEWEST_MASK_PIXELS, SMALLEST_MASK_SHARE = 16, 0.001
FLAT_CONTRAST = 2.0  # standard deviation of the levels
GIVES_AWAY = 0.6  # AUROC from which a fact that has nothing to do with blood is reported
SIZE_GIVES_AWAY = 0.7  # the same for a file's size, which also tells how much there is to see
FEWEST_GROUPS = 10
SMALLEST_CLASS = 0.25
LARGEST_GROUP = 0.2
TREES = 300  # of each forest of the colour score, up to MANY images
MANY, FEWER_TREES = 3_000, 100  # what more trees add is far below the interval there


def files_unreadable(case: Case) -> list[Finding]:
    """Images and masks that cannot be read, and what is wrong with the folder as a whole."""
    found = []
    for key, kind, problems in (
        ("unreadable_images", "images", [facts.problem for facts in case.facts]),
        ("unreadable_masks", "masks", [facts.mask_problem for facts in case.facts]),
    ):
        reasons = {
            record.name: f"{problem.found or problem.what}"
            for record, problem in zip(case.records, problems, strict=True)
            if problem is not None
        }
        if reasons:
            text = f"{_counted(len(reasons), kind)} cannot be read."
            remedy = "Copy or download the files again, convert them to PNG, or take them out."
            title = f"{kind.capitalize()} that cannot be read"
            found.append(Finding(key, "error", title, text, remedy, list(reasons), reasons))
    return found


def folder_problems(case: Case) -> list[Finding]:
    """What the reader could not make sense of: files without a counterpart, names that contradict their folder."""
    if not case.problems:
        return []
    reasons: dict[str, str] = {}
    for problem in case.problems:
        parts = (f"expected {problem.expected}" if problem.expected else "", problem.found, problem.remedy)
        reasons[problem.what] = "; ".join(part for part in parts if part)
    files = [problem.what for problem in case.problems]
    text = f"{_counted(len(files), 'problems')} met while the data root was listed."
    remedy = "Do what is said beside each: add the missing counterpart, rename, or remove."
    return [Finding("layout", "error", "Files that do not fit the layout", text, remedy, files, reasons)]


def pairs_mismatched(case: Case) -> list[Finding]:
    """Masks of another size than their image."""
    reasons = {}
    for record, facts in zip(case.records, case.facts, strict=True):
        mask = facts.mask
        if mask and (mask.width, mask.height) != (facts.width, facts.height):
            reasons[record.name] = f"image {facts.width}x{facts.height}, mask {mask.width}x{mask.height}"
    if not reasons:
        return []
    text = f"{_counted(len(reasons), 'masks', 'has', 'have')} another size than the image."
    remedy = "Export the masks again at the image's size, or remove the pairs."
    return [Finding("pair_sizes", "error", "Masks that do not fit their image", text, remedy, list(reasons), reasons)]


def both_classes(case: Case) -> list[Finding]:
    """Equal files that stand in both classes."""
    sets = [indices for indices in case.equal_sets if case.in_both_classes(indices)]
    if not sets:
        return []
    files = case.names(index for indices in sets for index in indices)
    text = f"{_counted(len(sets), 'sets')} of equal images in both classes ({_counted(len(files), 'files')})."
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
        f"{_counted(len(sets), 'sets')} of equal images within one class ({_counted(len(files), 'files')}):"
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
        text = f"{_counted(len(across), 'sets')} of images that look the same, in both classes"
        remedy = "If they show the same smear, one label is wrong. They share a group, so no split parts them."
        title = "Near duplicates in both classes"
        found.append(_near_finding(case, "near_duplicates_both_classes", title, text, remedy, across, best))
    if within:
        text = f"{_counted(len(within), 'sets')} of images that look the same without being equal, within one class"
        remedy = "They share a group, so no split parts them; --fix --near_duplicates drop keeps the first of each."
        found.append(_near_finding(case, "near_duplicates", "Near duplicates", text, remedy, within, best))
    return found


def _near_finding(
    case: Case, key: str, title: str, text: str, remedy: str, sets: list[list[int]], best: dict[int, float]
) -> Finding:
    indices = [index for members in sets for index in members]
    reasons = {case.records[index].name: f"similarity {best[index]:.2f}" for index in indices}
    sentence = f"{text} ({_counted(len(indices), 'files')})."
    named = [case.names(members) for members in sets]
    return Finding(key, "warning", title, sentence, remedy, case.names(indices), reasons, named)


def pixel_kinds(case: Case) -> list[Finding]:
    """Images not stored as 8-bit RGB."""
    reasons = {}
    for index in case.readable:
        facts = case.facts[index]
        if facts.mode != "RGB" or facts.bits != 8:
            bits = f", {facts.bits} bits" if facts.bits != 8 else ""
            reasons[case.records[index].name] = f"{facts.format} {facts.mode}{bits}"
    if not reasons:
        return []
    kinds = Counter(reasons.values())
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
    text = (
        f"{_counted(len(reasons), 'images', 'is', 'are')} not stored as 8-bit RGB but converted when read ({listed})."
    )
    remedy = "Export all images in one way: how a file is stored must not tell the class; grey holds no stain."
    title = "Images not in 8-bit RGB"
    return [Finding("modes", "warning", title, text, remedy, list(reasons), reasons, values=dict(kinds))]


def orientations(case: Case) -> list[Finding]:
    """Images that say they lie on their side."""
    reasons = {
        case.records[index].name: f"EXIF orientation {case.facts[index].orientation}"
        for index in case.readable
        if case.facts[index].orientation != 1
    }
    if not reasons:
        return []
    text = f"{_counted(len(reasons), 'images', 'is', 'are')} turned upright by their EXIF orientation when read."
    remedy = "Save them upright: programmes that ignore EXIF would lay the mask wrongly on the image."
    return [Finding("orientation", "warning", "Images stored turned", text, remedy, list(reasons), reasons)]


def sizes(case: Case) -> list[Finding]:
    """Images of another size than most."""
    shapes = Counter((case.facts[index].width, case.facts[index].height) for index in case.readable)
    if len(shapes) < 2:
        return []
    common, held = shapes.most_common(1)[0]
    middle = [median(case.facts[index].width for index in case.readable)]
    middle.append(median(case.facts[index].height for index in case.readable))
    reasons, outliers = {}, {}
    for index in case.readable:
        shape = case.facts[index].width, case.facts[index].height
        if shape != common:
            reasons[case.records[index].name] = f"{shape[0]}x{shape[1]}"
            if any(not 2 / 3 <= side / usual <= 3 / 2 for side, usual in zip(shape, middle, strict=True)):
                outliers[case.records[index].name] = f"{shape[0]}x{shape[1]}, far from {middle[0]:g}x{middle[1]:g}"
    level: Level = "warning" if outliers else "note"
    far = f"; {len(outliers)} by more than half" if outliers else ""
    most = f"{common[0]}x{common[1]} ({held})"
    text = f"{_counted(len(reasons), 'images', 'differs', 'differ')} from the commonest size, {most}{far}."
    remedy = "All are resized to one size: make sure that a cell has the same size in pixels everywhere, by class too."
    files = [*outliers, *(name for name in reasons if name not in outliers)]
    values = {f"{width}x{height}": count for (width, height), count in shapes.most_common(20)}
    return [Finding("sizes", level, "Images of other sizes", text, remedy, files, reasons | outliers, values=values)]


def flat_images(case: Case) -> list[Finding]:
    """Images that show nothing."""
    reasons = {
        case.records[index].name: f"standard deviation {case.facts[index].contrast:.1f} levels"
        for index in case.readable
        if case.facts[index].contrast < FLAT_CONTRAST
    }
    if not reasons:
        return []
    text = f"{_counted(len(reasons), 'images', 'is', 'are')} of one colour: nothing can be seen on them."
    return [Finding("flat", "warning", "Images that show nothing", text, "Take them out.", list(reasons), reasons)]


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_contents(case: Case) -> list[Finding]:
    """Masks without cells, without background, of a few pixels, the other way round, or unlike what is dark."""
    kinds: dict[str, dict[str, str]] = {
        key: {} for key in ("mask_empty", "mask_full", "mask_inverted", "mask_tiny", "mask_unlike")
    }
    for record, facts in zip(case.records, case.facts, strict=True):
        kind = mask_fault(facts.mask) if facts.mask else None
        if kind and facts.mask:
            kinds[kind][record.name] = _mask_words(kind, facts.mask)
    redraw = "Draw them again, or remove the pairs."
    texts: dict[str, tuple[Level, str, tuple[str, str], str, str]] = {
        "mask_empty": ("error", "Masks without a cell", ("holds", "hold"), "no cell at all", redraw),
        "mask_full": (
            "error",
            "Masks without background",
            ("is", "are"),
            "cell all over",
            redraw,
        ),
        "mask_inverted": (
            "error",
            "Masks drawn the other way round",
            ("marks", "mark"),
            "the background as cells, as comparison with Otsu's threshold shows",
            "Invert them, or state mask_dark in a manifest.",
        ),
        "mask_tiny": (
            "warning",
            "Masks of a few pixels",
            ("marks", "mark"),
            "next to nothing",
            "Look at them: are they masks?",
        ),
        "mask_unlike": (
            "note",
            "Masks unlike what is dark",
            ("has", "have"),
            f"a Dice below {UNLIKE_BELOW} with Otsu's threshold of the image",
            "Look at them: a poor mask, one of other structures, or an image that Otsu's threshold cannot part.",
        ),
    }
    found = []
    for key, reasons in kinds.items():
        if reasons:
            level, title, verbs, rest, remedy = texts[key]
            text = f"{_counted(len(reasons), 'masks', *verbs)} {rest}."
            found.append(Finding(key, level, title, text, remedy, list(reasons), reasons))
    return found


def mask_fault(mask: MaskFacts) -> str | None:
    """Name what is wrong with what a mask shows: mask_empty, _full, _inverted, _tiny, _unlike, or None."""
    if mask.foreground == 0:
        return "mask_empty"
    if mask.foreground == mask.width * mask.height:
        return "mask_full"
    own, inverse = mask.agreement, mask.inverse_agreement
    if own is not None and inverse is not None and own < INVERTED_BELOW and inverse >= INVERSE_FROM:
        return "mask_inverted"
    if mask.foreground < FEWEST_MASK_PIXELS or mask.share < SMALLEST_MASK_SHARE:
        return "mask_tiny"
    return "mask_unlike" if own is not None and own < UNLIKE_BELOW else None


def _mask_words(kind: str, mask: MaskFacts) -> str:
    if kind in ("mask_inverted", "mask_unlike"):
        return f"Dice with Otsu's {mask.agreement:.2f}, inverted {mask.inverse_agreement:.2f}"
    return f"{mask.foreground} of {mask.width * mask.height} pixels are cells"


def mask_levels(case: Case) -> list[Finding]:
    """Masks of more than two grey levels."""
    reasons = {}
    for record, facts in zip(case.records, case.facts, strict=True):
        if facts.mask and facts.mask.levels > 2:
            dark, light = facts.mask.dark, facts.mask.light
            reasons[record.name] = f"{facts.mask.levels} grey levels, mostly {dark} and {light}"
    if not reasons:
        return []
    text = f"{_counted(len(reasons), 'masks', 'holds', 'hold')} more than two grey levels, cut at level 128 when read."
    remedy = "Nothing, as long as cells and background lie on either side of 128."
    return [Finding("mask_levels", "note", "Masks with many grey levels", text, remedy, list(reasons), reasons)]


def mask_scores(case: Case) -> dict[str, Score]:
    """How far the grey levels of the masks tell the classes apart: the dark and the light one, and their number."""
    values: dict[str, dict[int, float]] = {"dark level": {}, "light level": {}, "number of levels": {}}
    for index in case.labelled:
        mask = case.facts[index].mask
        if mask:
            levels = zip(values, (mask.dark, mask.light, mask.levels), strict=True)
            for key, level in levels:
                values[key] |= {} if level is None else {index: float(level)}
    scores = {key: case.score(known) for key, known in values.items()}
    return {key: score for key, score in scores.items() if score}


def mask_gives_away(case: Case) -> list[Finding]:
    """Masks whose grey level tells the class."""
    telling = {key: score for key, score in mask_scores(case).items() if score.strength >= GIVES_AWAY and score.certain}
    if not telling:
        return []
    key, score = max(telling.items(), key=lambda item: item[1].strength)
    masked = [index for index in case.labelled if case.facts[index].mask]
    text = f"The {key} of the masks tells the class: {_telling_text(score)}."
    remedy = "Never feed masks as they are: this toolkit cuts all of them at level 128, others must do so too."
    reasons = {case.records[index].name: _level_words(case, index) for index in masked}
    by_class = [case.names(i for i in masked if case.records[i].label == label) for label in (HEALTHY, ANEMIC)]
    values = {name: _plain_score(one) for name, one in telling.items()}
    title = "Masks whose grey level gives the class away"
    return [Finding("mask_level_class", "warning", title, text, remedy, case.names(masked), reasons, by_class, values)]


def _level_words(case: Case, index: int) -> str:
    mask = case.facts[index].mask
    return f"dark {mask.dark}, light {mask.light}" if mask else ""


# --- groups and classes -----------------------------------------------------------------------------------------------


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
        f"{_counted(len(case.kept), 'images')} in {_counted(facts['groups'], 'groups')} ({joined}), the largest of"
        f" {_counted(largest['images'], 'images')}; groups with both classes: {facts['in_both_classes']}."
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
        text = f"{_counted(len(unknown), 'images', 'has', 'have')} no class."
        remedy = "They can be predicted, and train masks only; state their class in labels.csv or a manifest."
        found.append(Finding("unlabelled", "note", "Images without a class", text, remedy, case.names(unknown)))
    return found


# --- blood counts -----------------------------------------------------------------------------------------------------


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


def reports_unreadable(case: Case) -> list[Finding]:
    """Blood counts that cannot be read or say what no blood has."""
    if not case.report_problems:
        return []
    reasons = {name: f"{problem.what}: {problem.found}" for name, problem in case.report_problems.items()}
    text = f"{_counted(len(reasons), 'blood counts')} cannot be read, or not as values that blood has."
    remedy = "Correct or remove them: they say which smears are one patient's."
    title = "Blood counts that cannot be read"
    return [Finding("unreadable_blood_counts", "error", title, text, remedy, list(reasons), reasons)]


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
    text = f"The split that the data states leaks: {_counted(len(parted), 'groups')} on two sides."
    remedy = "Draw a split that parts no group (3TDCFNet_data.py split); --fix leaves the stated one out."
    files = [name for names in by_group.values() for name in names]
    return [
        Finding("split_leaks", "error", "The stated split leaks", text, remedy, files, reasons, list(by_group.values()))
    ]


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
        f"{_counted(len(sets), 'blood counts', 'recurs', 'recur')} under different ids"
        f" ({_counted(len(files), 'files')}); {across} of them in both classes."
    )
    remedy = "They are taken for one patient and never parted; ask the source of the data whether they are."
    reasons = {case.records[index].name: label_word(case, index) for indices in sets for index in indices}
    values = {"sets": len(sets), "sets_in_both_classes": across}
    named = [case.names(indices) for indices in sets]
    title = "Equal blood counts under different ids"
    return [Finding("equal_blood_counts", "warning", title, text, remedy, files, reasons, named, values)]


# --- what gives the class away ----------------------------------------------------------------------------------------


def file_scores(case: Case) -> dict[str, Score]:
    """How far facts of the files alone tell the classes apart."""
    facts = case.facts
    numbers: dict[str, dict[int, float]] = {
        "file size": {index: float(facts[index].size) for index in case.labelled},
        "width": {index: float(facts[index].width) for index in case.labelled},
        "height": {index: float(facts[index].height) for index in case.labelled},
    }
    words: dict[str, dict[int, str]] = {
        "format": {index: facts[index].format for index in case.labelled},
        "pixel mode": {index: f"{facts[index].mode}{facts[index].bits}" for index in case.labelled},
        "EXIF data": {index: str(facts[index].exif) for index in case.labelled},
    }
    numbers |= {key: _share_of_anemic(case, known) for key, known in words.items()}
    scores = {key: case.score(known) for key, known in numbers.items()}
    return {key: score for key, score in scores.items() if score}


def _share_of_anemic(case: Case, words: dict[int, str]) -> dict[int, float]:
    """Replace each word by the share of Anemic among the smears that have it."""
    total = Counter(words.values())
    anemic = Counter(word for index, word in words.items() if case.records[index].label == ANEMIC)
    return {index: anemic[word] / total[word] for index, word in words.items()}


def file_gives_away(case: Case) -> list[Finding]:
    """Facts of the files that tell the class."""
    telling = {
        key: score
        for key, score in file_scores(case).items()
        if score.certain and score.strength >= (SIZE_GIVES_AWAY if key == "file size" else GIVES_AWAY)
    }
    if not telling:
        return []
    listed = ", ".join(f"{key} ({_telling_text(score)})" for key, score in telling.items())
    text = f"Facts of the files alone tell the class: {listed}."
    remedy = "Export both classes in one way from one kind of source; a network may learn the export, not the blood."
    values = {key: _plain_score(score) for key, score in telling.items()}
    title = "Files that give the class away"
    return [Finding("file_facts", "warning", title, text, remedy, values=values)]


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
        f"A classifier that sees colours only, no shape, reaches AUROC {_score_text(result)} and accuracy"
        f" {metrics['accuracy']:.3f} in {score.folds} folds that part no {kept_whole}."
    )
    telling = result.auroc >= GIVES_AWAY and result.certain
    remedy = "A network must beat this figure on the same split before it can be said to see cells."
    values = {"auroc": metrics["auroc"], "accuracy": metrics["accuracy"], "ci95": metrics["ci95"]}
    title = "Colour gives the class away" if telling else "Colour alone"
    return [Finding("colour", "warning" if telling else "note", title, text, remedy, values=values)]


CHECKS: tuple[Callable[[Case], list[Finding]], ...] = (
    folder_problems,
    files_unreadable,
    pairs_mismatched,
    both_classes,
    mask_contents,
    near_duplicates,
    duplicates,
    reports_unreadable,
    stated_split,
    haemoglobin,
    equal_reports,
    mask_gives_away,
    file_gives_away,
    pixel_kinds,
    orientations,
    sizes,
    flat_images,
    class_balance,
    groups,
    mask_levels,
)


def label_word(case: Case, index: int) -> str:
    """The class of a smear in a word."""
    label = case.records[index].label
    return "no class" if label is None else CLASS_NAMES[label]


def _counted(count: int, plural: str, *verbs: str) -> str:
    """Count something in words, in the singular where there is one, with its verb: 1 set is, 2 sets are."""
    singular = {"images": "image", "masks": "mask", "blood counts": "blood count"}.get(plural, plural.removesuffix("s"))
    words = [f"{count:,}", singular if count == 1 else plural, *verbs[count != 1 :][:1]]
    return " ".join(words)


def _score_text(score: Score) -> str:
    if score.interval is None:
        return f"{score.auroc:.3f}"
    return f"{score.auroc:.3f} [{score.interval[0]:.3f}, {score.interval[1]:.3f}]"


def _telling_text(score: Score) -> str:
    """An AUROC turned so that it is 0.5 or more, and which class has the larger value."""
    turned = score.auroc < 0.5
    interval = score.interval and ((1 - score.interval[1], 1 - score.interval[0]) if turned else score.interval)
    larger = CLASS_NAMES[HEALTHY if turned else ANEMIC]
    return f"AUROC {_score_text(Score(score.strength, interval))}, larger in {larger}"


def _plain_score(score: Score) -> dict[str, Any]:
    return {"auroc": score.auroc, "ci95": list(score.interval) if score.interval else None}


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
