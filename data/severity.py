"""How severe an anemia is: as the data states it, or from haemoglobin by WHO's cut-offs; one source in a run.

WHO's grades and the two published class names:

| WHO grade | haemoglobin, g/dL | published name |
|---|---|---|
| none | women (not pregnant) 12.0 and more, men 13.0 and more | no severity |
| mild | women 11.0 to 11.9, men 11.0 to 12.9 | Mild |
| moderate | 8.0 to 10.9 | Mild |
| severe | below 8.0 | Chronic |

"Chronic" is the published class name for what WHO calls severe; it says nothing of how long the anemia has lasted.

Sources: WHO, "Guideline on haemoglobin cutoffs to define anaemia in individuals and populations", Geneva 2024; for
these adults it keeps the grades of "Haemoglobin concentrations for the diagnosis of anaemia and assessment of
severity", WHO/NMH/NHD/MNM/11.1, Geneva 2011. They hold at sea level and without correction for smoking; children and
pregnant women have other limits.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.blood_counts import report_text
from data.records import ANEMIC, HEALTHY, SmearRecord
from util.errors import UserError

SOURCES = ("auto", "none", "labels", "haemoglobin")
CHRONIC_BELOW = 8.0
NORMAL_FROM = {"female": 12.0, "male": 13.0}
LEAST_HAEMOGLOBIN, MOST_HAEMOGLOBIN = 1.0, 30.0

_PER_G_DL = {"": 1.0, "g/dl": 1.0, "gm/dl": 1.0, "g%": 1.0, "gm%": 1.0, "g/l": 10.0, "gm/l": 10.0}
_TEST = re.compile(r"[\s\"']*(?:HGB|Hb|Ha?emoglobin)\b[\s\"']*(?:\([^)]*\))?[\s\"',;:=]*", re.IGNORECASE)
_MARK = re.compile(r"(?:\*|[HL](?![A-Za-z])|high\b|low\b)[\s\"',;]*", re.IGNORECASE)
_VALUE = re.compile(r"(?P<number>[+-]?\d+(?:\.\d+)?)(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class SeverityReport:
    """What ``with_severities`` found, for printing.

    Attributes:
        source: "none", "labels" or "haemoglobin"; never "auto".
        stated_in: where the labels stand ("manifest", "labels.csv", "folder" ...), or the cut-off, in words.
        mild: smears graded Mild.
        chronic: smears graded Chronic.
        unknown: smears labelled Anemic that the source says nothing of.
        contradictory: smears whose class and source contradict each other, left without a grade: labelled Anemic with
            normal haemoglobin, or labelled Healthy with a stated severity.
        low_healthy: smears labelled Healthy whose haemoglobin is below normal; they have no grade either.
    """

    source: str
    stated_in: str = ""
    mild: int = 0
    chronic: int = 0
    unknown: int = 0
    contradictory: int = 0
    low_healthy: int = 0

    @property
    def text(self) -> str:
        """One line for the console and the report."""
        if self.source == "none":
            return "severity: none"
        counts = f"{self.mild} Mild, {self.chronic} Chronic, {self.unknown} unknown, {self.contradictory} contradictory"
        healthy = f"; {self.low_healthy} Healthy smears have low haemoglobin" if self.low_healthy else ""
        return f"severity: from {self.source} ({self.stated_in}): {counts}{healthy}"


def haemoglobin_of(record: SmearRecord) -> float | None:
    """Give a smear's haemoglobin in g/dL: as the data states it, or else from its blood-count report.

    A report states it in a line such as ``HGB,* 9.8 g/dL`` (* marks an abnormal value); g/L is converted, and a value
    without a unit is taken for g/dL.

    Returns:
        None where there is neither, or the report has no value for it.

    Raises:
        UserError: the report cannot be read, says two values, has an unknown unit, or a value that no blood has.
    """
    if record.haemoglobin is not None:
        check_haemoglobin(record.haemoglobin, record.name)
        return record.haemoglobin
    return _from_report(record.cbc) if record.cbc else None


def check_haemoglobin(value: float, what: str) -> None:
    """Refuse what cannot be haemoglobin in g/dL.

    Args:
        value: the number.
        what: what an error calls it: file and line, or the smear.

    Raises:
        UserError: it is not between 1 and 30.
    """
    if math.isfinite(value) and LEAST_HAEMOGLOBIN <= value <= MOST_HAEMOGLOBIN:
        return
    probably = MOST_HAEMOGLOBIN < value <= 10 * MOST_HAEMOGLOBIN
    raise UserError(
        f"{what}: no haemoglobin in g/dL",
        expected=f"{LEAST_HAEMOGLOBIN:g} to {MOST_HAEMOGLOBIN:g} g/dL",
        found=f"{value:g}" + (f", which is probably g/L ({value / 10:g} g/dL)" if probably else ""),
        remedy="divide g/L by 10" if probably else "correct the value, or leave it empty",
    )


def with_severities(
    records: Sequence[SmearRecord],
    source: str = "auto",
    *,
    chronic_below: float = CHRONIC_BELOW,
    normal_from: float = NORMAL_FROM["female"],
) -> tuple[list[SmearRecord], SeverityReport]:
    """Give every record its severity from one source, and no other.

    Args:
        records: as the readers gave them, with what the data states in ``severity``.
        source: "labels": as the data states it (a manifest, labels.csv, folders, the synthesiser's truth);
            "haemoglobin": for smears labelled Anemic, Chronic below ``chronic_below``, None and counted as
            contradictory from ``normal_from``, else Mild; "none": none at all; "auto": "labels" where the data states
            any, else "none", never haemoglobin.
        chronic_below: g/dL; by default where WHO's severe begins.
        normal_from: g/dL; by default the lower of WHO's limits, since the sex is unknown.

    Returns:
        The records with ``severity`` and ``severity_source`` (empty without severity), in order; and the counts.

    Raises:
        UserError: an unknown source, one that says nothing of these records, limits that are none, a report that cannot
            be used.
    """
    if source == "auto":
        source = "labels" if any(record.severity for record in records) else "none"
    if source == "none":
        return [_graded(record, None, "") for record in records], SeverityReport("none")
    if source == "labels":
        return _by_labels(records)
    if source == "haemoglobin":
        return _by_haemoglobin(records, chronic_below, normal_from)
    raise UserError(
        "unknown source of severity", expected=", ".join(SOURCES), found=repr(source), remedy="choose one of these"
    )


def _graded(record: SmearRecord, severity: str | None, source: str) -> SmearRecord:
    """Give a record the severity found and where it is from."""
    return replace(record, severity=severity, severity_source=source if severity else "")


def _by_labels(records: Sequence[SmearRecord]) -> tuple[list[SmearRecord], SeverityReport]:
    """Keep what the data states, but not of smears labelled Healthy."""
    if not any(record.severity for record in records):
        raise UserError(
            "severity from labels, but the data states none",
            expected="a column severity (manifest, labels.csv) or folders mild/ and severe/",
            found=f"{len(records)} smears without",
            remedy="state them, or take the severity from haemoglobin or none",
        )
    denied = [record.severity is not None and record.label == HEALTHY for record in records]
    graded = [
        _graded(record, None if contradictory else record.severity, record.severity_source or "labels")
        for record, contradictory in zip(records, denied, strict=True)
    ]
    stated_in = ", ".join(sorted({record.severity_source for record in graded} - {""}))
    return graded, _report("labels", stated_in, graded, contradictory=sum(denied))


def _by_haemoglobin(
    records: Sequence[SmearRecord], chronic_below: float, normal_from: float
) -> tuple[list[SmearRecord], SeverityReport]:
    """Grade the smears labelled Anemic; below both limits, both hold."""
    _check_limits(chronic_below, normal_from)
    values = [haemoglobin_of(record) for record in records]
    if all(value is None for value in values):
        raise UserError(
            "severity from haemoglobin, but the data has none",
            expected="blood-count reports with a line HGB, or a manifest with a column haemoglobin",
            found=f"{len(records)} smears without",
            remedy="add it, or take the severity from labels or none",
        )
    pairs = list(zip(records, values, strict=True))
    graded = []
    for record, value in pairs:
        anemic = record.label == ANEMIC and value is not None and value < normal_from
        severity = ("Chronic" if value < chronic_below else "Mild") if anemic and value is not None else None
        graded.append(_graded(record, severity, "haemoglobin"))
    normal = sum(record.label == ANEMIC and value is not None and value >= normal_from for record, value in pairs)
    low = sum(record.label == HEALTHY and value is not None and value < normal_from for record, value in pairs)
    stated_in = f"Chronic below {chronic_below:g} g/dL, normal from {normal_from:g}"
    return graded, _report("haemoglobin", stated_in, graded, contradictory=normal, low_healthy=low)


def _check_limits(chronic_below: float, normal_from: float) -> None:
    """Refuse cut-offs that are none."""
    if not LEAST_HAEMOGLOBIN <= chronic_below <= normal_from <= MOST_HAEMOGLOBIN:
        raise UserError(
            "the haemoglobin cut-offs cannot be used",
            expected=f"{LEAST_HAEMOGLOBIN:g} <= Chronic below <= normal from <= {MOST_HAEMOGLOBIN:g}, in g/dL",
            found=f"Chronic below {chronic_below:g}, normal from {normal_from:g}",
            remedy="WHO's are 8.0 and 12.0 (women) or 13.0 (men); divide g/L by 10",
        )


def _report(
    source: str, stated_in: str, graded: Sequence[SmearRecord], *, contradictory: int, low_healthy: int = 0
) -> SeverityReport:
    """Count the grades."""
    counts = Counter(record.severity for record in graded)
    anemic = sum(record.label == ANEMIC and record.severity is None for record in graded)
    unknown = anemic - (contradictory if source == "haemoglobin" else 0)
    return SeverityReport(source, stated_in, counts["Mild"], counts["Chronic"], unknown, contradictory, low_healthy)


def _from_report(path: Path) -> float | None:
    """Read the haemoglobin of a blood-count report, in g/dL."""
    values = {value for line in report_text(path).splitlines() if (value := _from_line(path, line)) is not None}
    if len(values) > 1:
        found = " and ".join(f"{value:g} g/dL" for value in sorted(values))
        remedy = "delete the line that is wrong"
        raise UserError(f"{path}: two values of haemoglobin", expected="one", found=found, remedy=remedy)
    return next(iter(values), None)


def _from_line(path: Path, line: str) -> float | None:
    """Read the haemoglobin of one line, in g/dL; None where the line is of another test or has no value."""
    test = _TEST.match(line)
    if test is None:
        return None
    rest = line[test.end() :]
    mark = _MARK.match(rest)
    value = _VALUE.match(rest[mark.end() :] if mark else rest)
    if value is None:
        return None
    unit = re.split(r"[\s\"',;]", value["rest"].lstrip(" \t\"',;") + " ", maxsplit=1)[0].lower()
    if unit not in _PER_G_DL:
        raise UserError(
            f"{path}: haemoglobin in an unknown form",
            expected="a value in g/dL or g/L, such as HGB,9.8 g/dL",
            found=repr(line.strip()[:80]),
            remedy="write it so, or delete the line",
        )
    haemoglobin = float(value["number"]) / _PER_G_DL[unit]
    check_haemoglobin(haemoglobin, str(path))
    return haemoglobin
