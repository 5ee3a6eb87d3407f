"""What the doctor finds in the masks: of another size, empty, the other way round, or telling the class."""

from __future__ import annotations

from data.doctor_case import Case, Finding, Level, about_files
from data.doctor_facts import MaskFacts
from data.doctor_words import GIVES_AWAY, plain_score, telling_text
from data.records import ANEMIC, HEALTHY
from util.figures import counted

INVERTED_BELOW, INVERSE_FROM = 0.4, 0.8  # Dice with Otsu's of a mask and of its inverse: this is no matter of quality
UNLIKE_BELOW = 0.5  # Dice with Otsu's
FEWEST_MASK_PIXELS, SMALLEST_MASK_SHARE = 16, 0.001

_REDRAW = "Draw them again, or remove the pairs."
# What is wrong with masks, by key: level, title, verb of one and of several, how the sentence ends, remedy.
_FAULTS: dict[str, tuple[Level, str, tuple[str, str], str, str]] = {
    "mask_empty": ("error", "Masks without a cell", ("holds", "hold"), "no cell at all", _REDRAW),
    "mask_full": ("error", "Masks without background", ("is", "are"), "cell all over", _REDRAW),
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


def pairs_mismatched(case: Case) -> list[Finding]:
    """Masks of another size than their image."""
    reasons = {
        record.name: f"image {facts.width}x{facts.height}, mask {mask.width}x{mask.height}"
        for record, facts in zip(case.records, case.facts, strict=True)
        if (mask := facts.mask) and (mask.width, mask.height) != (facts.width, facts.height)
    }
    text = f"{counted(len(reasons), 'masks', 'has', 'have')} another size than the image."
    remedy = "Export the masks again at the image's size, or remove the pairs."
    return about_files("pair_sizes", "error", "Masks that do not fit their image", text, remedy, reasons)


def mask_contents(case: Case) -> list[Finding]:
    """Masks without cells, without background, of a few pixels, the other way round, or unlike what is dark."""
    kinds: dict[str, dict[str, str]] = {key: {} for key in _FAULTS}
    for record, facts in zip(case.records, case.facts, strict=True):
        kind = mask_fault(facts.mask) if facts.mask else None
        if kind and facts.mask:
            kinds[kind][record.name] = _mask_words(kind, facts.mask)
    found: list[Finding] = []
    for key, (level, title, verbs, rest, remedy) in _FAULTS.items():
        text = f"{counted(len(kinds[key]), 'masks', *verbs)} {rest}."
        found += about_files(key, level, title, text, remedy, kinds[key])
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
    reasons = {
        record.name: f"{mask.levels} grey levels, mostly {mask.dark} and {mask.light}"
        for record, facts in zip(case.records, case.facts, strict=True)
        if (mask := facts.mask) and mask.levels > 2
    }
    text = f"{counted(len(reasons), 'masks', 'holds', 'hold')} more than two grey levels, cut at level 128 when read."
    remedy = "Nothing, as long as cells and background lie on either side of 128."
    return about_files("mask_levels", "note", "Masks with many grey levels", text, remedy, reasons)


def mask_gives_away(case: Case) -> list[Finding]:
    """Masks whose grey level tells the class."""
    telling = {key: score for key, score in case.mask_scores.items() if score.strength >= GIVES_AWAY and score.certain}
    if not telling:
        return []
    key, score = max(telling.items(), key=lambda item: item[1].strength)
    masked = [index for index in case.labelled if case.facts[index].mask]
    text = f"The {key} of the masks tells the class: {telling_text(score)}."
    remedy = "Never feed masks as they are: this toolkit cuts all of them at level 128, others must do so too."
    reasons = {case.records[index].name: _level_words(case, index) for index in masked}
    by_class = [case.names(i for i in masked if case.records[i].label == label) for label in (HEALTHY, ANEMIC)]
    values = {name: plain_score(one) for name, one in telling.items()}
    title = "Masks whose grey level gives the class away"
    return [Finding("mask_level_class", "warning", title, text, remedy, case.names(masked), reasons, by_class, values)]


def _level_words(case: Case, index: int) -> str:
    mask = case.facts[index].mask
    return f"dark {mask.dark}, light {mask.light}" if mask else ""
