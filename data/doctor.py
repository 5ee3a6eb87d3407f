"""The doctor: examines a data root once and says what is wrong with it, before a network learns it.

``examine_dataroot`` gives a ``Diagnosis``; ``summary`` words it for the console, ``as_json`` for programmes,
``data.doctor_manifest`` writes the cleaned data, and ``data.doctor_pictures`` shows the files concerned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.colour import ColourScore
from data.doctor_case import LEVELS, Case, Finding
from data.doctor_classes import group_facts
from data.doctor_colour import colour_confound, colour_score
from data.doctor_facts import Examined, Problem, SmearFacts, examine_files
from data.doctor_findings import CHECKS, in_order
from data.doctor_masks import mask_fault
from data.groups import BOTH_CLASSES, blood_count, exclusions, group_ids
from data.images import read_smear
from data.near_duplicates import NearPair, find_near_duplicates
from data.overlaps import confirmed
from data.readers import survey_dataroot
from data.records import CLASS_NAMES, SmearRecord
from data.severity import haemoglobin_of
from data.splits import block_ids
from util.errors import UserError

JSON_SCHEMA = 1
_MASK_FAULTS = {
    "mask_empty": "its mask holds no cell",
    "mask_full": "its mask is cell all over",
    "mask_inverted": "its mask is drawn the other way round",
}
_FILES_NAMED = 3


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says.

    Attributes:
        case: what was examined.
        findings: errors first, then warnings, then notes.
        figures: the counts and scores of the whole, plain types, see docs/data.md.
    """

    case: Case
    findings: list[Finding]
    figures: dict[str, Any]

    @property
    def has_errors(self) -> bool:
        """Whether the data must not be used as it is."""
        return any(finding.level == "error" for finding in self.findings)


def examine_dataroot(
    root: Path,
    *,
    image_root: Path | None = None,
    split_by: str = "group",
    block_size: int = 50,
    folds: int = 5,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Examine a data root: each file is opened once, and only facts and features stay in memory.

    Args:
        root: folder or manifest of the smears.
        image_root: what a manifest's paths are relative to.
        split_by: "group" or "blocks": what the folds of the colour score may not part.
        block_size: ids in a block.
        folds: of the colour score.
        seed: of the colour score.
        workers: processes that read files; None lets their number and the processors decide.
        progress: whether bars are drawn on stderr.

    Raises:
        UserError: there is no data root that could be listed at all; by blocks, a name without a number; a process was
            ended from outside.
    """
    records, problems = survey_dataroot(root, image_root=image_root)
    if split_by == "blocks":  # refused before the work, not after it
        block_ids(records, [record.name for record in records], block_size)
    examined = examine_files(records, workers=workers, progress=progress)
    pairs, left_out = _near_duplicates(records, examined, progress), _left_out(records, examined)
    blood = _blood_counts(records)
    # An image that cannot be read has no content; its name keeps it apart from the others.
    digests = [facts.digest or f"unread {record.name}" for record, facts in zip(records, examined.facts, strict=True)]
    groups = group_ids(blood.records, digests, pairs)
    near = [pair for pair in pairs if not {pair.first, pair.second} & left_out.keys()]
    case = Case(
        root=root,
        records=records,
        problems=[Problem.of(error) for error in problems],
        facts=examined.facts,
        colours=examined.colours,
        reports=blood.digests,
        report_problems=blood.problems,
        haemoglobin=blood.haemoglobin,
        left_out=left_out,
        near=near,
        groups=groups,
        groups_before=group_ids(blood.records, digests),
        units=block_ids(records, groups, block_size) if split_by == "blocks" else groups,
        split_by=split_by,
        folds=folds,
        seed=seed,
    )
    score = _colour(case, progress)
    findings = [finding for check in CHECKS for finding in check(case)] + colour_confound(case, score)
    return Diagnosis(case, in_order(findings), _figures(case, score))


def _near_duplicates(records: Sequence[SmearRecord], examined: Examined, progress: bool) -> list[NearPair]:
    """Pairs of readable images that show the same cells, equal ones included, as indices of all records."""
    readable = [index for index, facts in enumerate(examined.facts) if facts.problem is None]
    if not readable:
        return []
    fingerprints = examined.fingerprints[readable]
    pairs = find_near_duplicates(fingerprints, progress=progress)
    pairs = confirmed(pairs, fingerprints, lambda index: read_smear(records[readable[index]]), progress=progress)
    return [pair._replace(first=readable[pair.first], second=readable[pair.second]) for pair in pairs]


class _BloodCounts(NamedTuple):
    """What the reports say; ``records`` are without those that cannot be read."""

    records: list[SmearRecord]
    digests: list[str]
    haemoglobin: list[float | None]
    problems: dict[str, Problem]


def _blood_counts(records: Sequence[SmearRecord]) -> _BloodCounts:
    """Read every report; one that cannot be read becomes a problem and joins nothing."""
    blood = _BloodCounts([], [], [], {})
    for record in records:
        digest, value = "", None
        try:
            digest = blood_count(record)
            value = haemoglobin_of(record)
        except UserError as error:
            blood.problems[record.name] = Problem.of(error)
        readable = bool(digest) or record.name not in blood.problems
        blood.records.append(record if readable else replace(record, cbc=None))
        blood.digests.append(digest)
        blood.haemoglobin.append(value)
    return blood


def _left_out(records: Sequence[SmearRecord], examined: Examined) -> dict[int, str]:
    """Say why a smear is not in the cleaned data: both classes, then what cannot be used, then duplicates of the rest.

    Equal images count for both classes even where one of them has a mask that cannot be used.
    """
    facts = examined.facts
    reasons = {index: reason for index, one in enumerate(facts) if (reason := _fault(one))}
    readable = [index for index, one in enumerate(facts) if one.problem is None]
    whole = _excluded(records, facts, readable)
    contested = {index: reason for index, reason in whole.items() if reason == BOTH_CLASSES}
    reasons = contested | {index: reason for index, reason in reasons.items() if index not in contested}
    return reasons | _excluded(records, facts, [index for index in readable if index not in reasons])


def _excluded(records: Sequence[SmearRecord], facts: Sequence[SmearFacts], indices: Sequence[int]) -> dict[int, str]:
    """What a split by default leaves out of these smears, by index."""
    reasons = exclusions([records[i] for i in indices], [facts[i].digest for i in indices])
    return {index: reasons[records[index].name] for index in indices if records[index].name in reasons}


def _fault(facts: SmearFacts) -> str:
    """Why a smear cannot be used, else nothing."""
    if facts.problem:
        return f"its image cannot be read: {facts.problem.found or facts.problem.what}"
    if facts.mask_problem:
        return f"its mask cannot be read: {facts.mask_problem.found or facts.mask_problem.what}"
    if facts.mask is None:
        return ""
    if (facts.mask.width, facts.mask.height) != (facts.width, facts.height):
        return "its mask has another size"
    return _MASK_FAULTS.get(mask_fault(facts.mask) or "", "")


def _colour(case: Case, progress: bool) -> ColourScore | UserError | None:
    from tqdm import tqdm

    with tqdm(total=case.folds, desc="colours alone", unit="fold", disable=not progress) as bar:
        return colour_score(case, step=bar.update)


def _figures(case: Case, score: ColourScore | UserError | None) -> dict[str, Any]:
    """The counts and scores of the whole."""
    both = [indices for indices in case.equal_sets if case.in_both_classes(indices)]
    labels = [case.records[index].label for index in case.kept]
    by_class = {name: labels.count(label) for label, name in enumerate(CLASS_NAMES)}
    colour = None
    if isinstance(score, ColourScore):
        shown = {key: score.metrics[key] for key in ("n", "n_groups", "accuracy", "auroc", "ci95")}
        colour = {"split_by": case.split_by, "folds": score.folds, "seed": case.seed, **shown}
    return {
        "files": len(case.records),
        "readable": len(case.readable),
        "masks": sum(facts.mask is not None for facts in case.facts),
        "blood_counts": sum(bool(report) for report in case.reports),
        "distinct": len({case.facts[index].digest for index in case.readable}),
        "duplicate_sets": len(case.equal_sets),
        "duplicate_files": sum(map(len, case.equal_sets)),
        "both_class_sets": len(both),
        "both_class_files": sum(map(len, both)),
        "near_duplicate_pairs": len(case.near),
        "kept": len(case.kept),
        "kept_by_class": by_class | {"unknown": labels.count(None)},
        "groups": group_facts(case),
        "colour": colour,
        "file_facts": {key: asdict(value) for key, value in case.file_scores.items()},
        "mask_levels": {key: asdict(value) for key, value in case.mask_scores.items()},
    }


# --- what is said -----------------------------------------------------------------------------------------------------


def summary(diagnosis: Diagnosis) -> str:
    """Word a diagnosis for the console: figures first, then the findings, each with the first names."""
    figures, case = diagnosis.figures, diagnosis.case
    by_class = ", ".join(f"{count:,} {name}" for name, count in figures["kept_by_class"].items() if count)
    grouped = figures["groups"]
    lines = [
        f"doctor: {printable(case.root)}",
        f"  files     {figures['files']:,} images ({figures['readable']:,} readable), {figures['masks']:,} masks,"
        f" {figures['blood_counts']:,} blood counts",
        f"  distinct  {figures['distinct']:,}; {figures['duplicate_sets']:,} sets of equal images"
        f" ({figures['duplicate_files']:,} files), {figures['both_class_sets']:,} of them in both classes"
        f" ({figures['both_class_files']:,} files)",
        f"  cleaned   {figures['kept']:,} images ({by_class or 'none'}) in {grouped['groups']:,} groups,"
        f" the largest of {grouped['largest']['images']:,}"
        f" ({grouped['without_near_duplicates']:,} groups before near duplicates are joined)",
    ]
    lines += [_colour_line(figures["colour"])] if figures["colour"] else []
    counts = [(level, sum(finding.level == level for finding in diagnosis.findings)) for level in LEVELS]
    words = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts)
    lines += ["", f"findings: {words}"]
    for finding in diagnosis.findings:
        lines += _finding_lines(finding)
    return "\n".join(lines)


def _colour_line(colour: dict[str, Any]) -> str:
    interval = colour["ci95"]["auroc"]
    text = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    units = "groups" if colour["split_by"] == "group" else "blocks"
    return (
        f"  colour    AUROC {colour['auroc']:.3f}{text}, accuracy {colour['accuracy']:.3f} by colours alone"
        f" ({colour['folds']} folds, {colour['n_groups']:,} {units})"
    )


def _finding_lines(finding: Finding) -> list[str]:
    named = [_named(finding, name) for name in finding.files[:_FILES_NAMED]]
    more = [f"... and {finding.count - len(named):,} more"] if finding.count > len(named) and named else []
    head = f"  {finding.level.upper():8s}{printable(finding.sentence)}"
    return [head, *(f"            {line}" for line in (*named, *more)), f"          > {printable(finding.remedy)}"]


def _named(finding: Finding, name: str) -> str:
    reason = finding.reasons.get(name)
    return f"{printable(name)}: {printable(reason)}" if reason else printable(name)


def printable(text: object) -> str:
    """A text for a terminal: what would steer it, or turn the writing round, is made visible."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def as_json(diagnosis: Diagnosis, options: dict[str, Any]) -> str:
    """The whole diagnosis as JSON (ASCII); its keys are documented in docs/data.md and stay.

    Args:
        diagnosis: what was found.
        options: how the doctor was called, plain types.
    """
    case = diagnosis.case
    content = {
        "schema_version": JSON_SCHEMA,
        "dataroot": str(case.root),
        "options": options,
        "errors": sum(finding.level == "error" for finding in diagnosis.findings),
        "figures": diagnosis.figures,
        "findings": [{**asdict(finding), "count": finding.count} for finding in diagnosis.findings],
        "near_duplicates": [
            [case.records[pair.first].name, case.records[pair.second].name, round(float(pair.similarity), 4)]
            for pair in case.near
        ],
        "images": [_image_json(case, index) for index in range(len(case.records))],
    }
    return json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n"


def _image_json(case: Case, index: int) -> dict[str, Any]:
    record, facts = case.records[index], case.facts[index]
    return {
        "image": record.name,
        "label": record.label,
        "group": case.groups[index],
        "left_out": case.left_out.get(index, ""),
        "haemoglobin": case.haemoglobin[index],
        **asdict(facts),
    }
