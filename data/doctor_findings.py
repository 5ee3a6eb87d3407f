"""What the doctor finds in an examined data root: one small function for each kind of finding, by subject.

To add one, write a function from ``Case`` to a list of findings (an empty list where all is well) where its subject is
(``data.doctor_files``, ``_masks``, ``_copies``, ``_classes``) and put it in ``CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from data.doctor_case import LEVELS, Case, Finding
from data.doctor_classes import class_balance, equal_reports, groups, haemoglobin, reports_unreadable, stated_split
from data.doctor_copies import both_classes, duplicates, near_duplicates
from data.doctor_files import (
    file_gives_away,
    files_unreadable,
    flat_images,
    folder_problems,
    orientations,
    pixel_kinds,
    sizes,
    synthetic,
)
from data.doctor_masks import mask_contents, mask_gives_away, mask_levels, pairs_mismatched

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
    synthetic,
)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes."""
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
