"""What the doctor finds in the files themselves: unreadable, of other kinds and sizes, or telling the class."""

from __future__ import annotations

from collections import Counter
from statistics import median

from data.doctor_case import Case, Finding, Level, about_files
from data.doctor_words import GIVES_AWAY, plain_score, telling_text
from data.notice import notice_folders
from util.figures import counted

FLAT_CONTRAST = 2.0  # standard deviation of the levels
SIZE_GIVES_AWAY = 0.7  # the same for a file's size, which also tells how much there is to see


def files_unreadable(case: Case) -> list[Finding]:
    """Images and masks that cannot be read, and what is wrong with the folder as a whole."""
    found: list[Finding] = []
    for key, kind, problems in (
        ("unreadable_images", "images", [facts.problem for facts in case.facts]),
        ("unreadable_masks", "masks", [facts.mask_problem for facts in case.facts]),
    ):
        reasons = {
            record.name: problem.found or problem.what
            for record, problem in zip(case.records, problems, strict=True)
            if problem is not None
        }
        text = f"{counted(len(reasons), kind)} cannot be read."
        remedy = "Copy or download the files again, convert them to PNG, or take them out."
        found += about_files(key, "error", f"{kind.capitalize()} that cannot be read", text, remedy, reasons)
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
    text = f"{counted(len(files), 'problems')} met while the data root was listed."
    remedy = "Do what is said beside each: add the missing counterpart, rename, or remove."
    return [Finding("layout", "error", "Files that do not fit the layout", text, remedy, files, reasons)]


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
    text = f"{counted(len(reasons), 'images', 'is', 'are')} not stored as 8-bit RGB but converted when read ({listed})."
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
    text = f"{counted(len(reasons), 'images', 'is', 'are')} turned upright by their EXIF orientation when read."
    remedy = "Save them upright: programmes that ignore EXIF would lay the mask wrongly on the image."
    return about_files("orientation", "warning", "Images stored turned", text, remedy, reasons)


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
    text = f"{counted(len(reasons), 'images', 'differs', 'differ')} from the commonest size, {most}{far}."
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
    text = f"{counted(len(reasons), 'images', 'is', 'are')} of one colour: nothing can be seen on them."
    return about_files("flat", "warning", "Images that show nothing", text, "Take them out.", reasons)


def file_gives_away(case: Case) -> list[Finding]:
    """Facts of the files that tell the class."""
    telling = {
        key: score
        for key, score in case.file_scores.items()
        if score.certain and score.strength >= (SIZE_GIVES_AWAY if key == "file size" else GIVES_AWAY)
    }
    if not telling:
        return []
    listed = ", ".join(f"{key} ({telling_text(score)})" for key, score in telling.items())
    text = f"Facts of the files alone tell the class: {listed}."
    remedy = "Export both classes in one way from one kind of source; a network may learn the export, not the blood."
    values = {key: plain_score(score) for key, score in telling.items()}
    title = "Files that give the class away"
    return [Finding("file_facts", "warning", title, text, remedy, values=values)]


def synthetic(case: Case) -> list[Finding]:
    """Smears that were drawn."""
    folders = notice_folders(case.records)
    files = [record.name for record in case.records if record.image.parent in folders]
    if not files:
        return []
    text = f"{counted(len(files), 'images', 'is', 'are')} synthetic: no patient, no real smear."
    remedy = "Claim nothing about blood from them, and keep the notice (SYNTHETIC.txt) beside them."
    return [Finding("synthetic", "note", "Synthetic smears", text, remedy, files)]
