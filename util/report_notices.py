"""What a reader must know before any figure: warnings in words, the grave ones marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from util.figures import HEADS, SPLITS, counted
from util.report_content import Report, head_name, headline_split, provenance_of
from util.report_parts import SYNTHETIC


def notices(report: Report) -> list[tuple[bool, str, str]]:
    """What a reader must know before any figure, as (grave, heading, sentence)."""
    provenance, split = provenance_of(report), headline_split(report)
    found = [(False, "Research use only.", "Not for diagnosis, treatment or any other clinical decision.")]
    if provenance.get("synthetic"):
        found.append((True, *SYNTHETIC))
    found += _mask_notice(provenance.get("binary_from"))
    if split is not None and split != "test":
        name = SPLITS.get(split, split).lower()
        text = f"The figures on top are of the {name} images, by which the network was fitted or chosen."
        found.append((True, "No test split.", text))
    found += _leak_notice(provenance.get("group_overlap") or []) + _tier_notices(
        report.metrics.get("tiers_opened") or {}
    )
    found += [(True, "Warning.", str(warning)) for warning in report.warnings]
    return found + _left_out_notice((provenance.get("split") or {}).get("left_out") or {})


def _mask_notice(source: Any) -> list[tuple[bool, str, str]]:
    if source == "gt":
        text = "The binary stream saw the true masks (--binary_from gt), which no new smear has: expect less without."
        return [(True, "True masks were used.", text)]
    if source == "otsu":
        return [
            (False, "Otsu masks were used.", "The binary stream saw Otsu's threshold, not the network's own masks.")
        ]
    return []


def _left_out_notice(reasons: Mapping[str, int]) -> list[tuple[bool, str, str]]:
    """Images of the data that stand on no side of the split."""
    if not reasons:
        return []
    heading = f"{counted(sum(reasons.values()), 'images')} left out of the data:"
    parts = [f"{count:,} {reason}" for reason, count in reasons.items()] if len(reasons) > 1 else list(reasons)
    return [(False, heading, "; ".join(parts) + ".")]


def _leak_notice(shared: Sequence[str]) -> list[tuple[bool, str, str]]:
    """A group on two sides of the split makes the test figures too good."""
    if not shared:
        return []
    counted = "1 group has" if len(shared) == 1 else f"{len(shared)} groups have"
    text = f"{counted} images in more than one split (first: {shared[0]}); the test figures are too good."
    return [(True, "The splits are not disjoint.", text)]


def _tier_notices(tiers: Mapping[str, Any]) -> list[tuple[bool, str, str]]:
    said = {head: how.get("how", "") if isinstance(how, Mapping) else str(how) for head, how in tiers.items()}
    forced = [head_name(head) for head, how in said.items() if how == "forced"]
    found = []
    if forced:
        many = len(forced) > 1
        names = f"{', '.join(forced[:-1])} and {forced[-1]} were" if many else f"{forced[0]} was"
        whose, points = ("Their", "their validation points") if many else ("Its", "its validation point")
        found.append((True, f"{names} forced.", f"{whose} epochs ran out before {points} agreed."))
    shut = next((head for head, how in said.items() if how == "not opened"), None)
    if shut is not None:  # that the gates after it are shut too goes without saying
        found.append((True, f"{head_name(shut)}'s gate did not open.", _shut_gate(shut)))
    return found


def _shut_gate(head: str) -> str:
    """What follows for the weights tested; those of an early epoch may lack tiers that later epochs opened."""
    tiers = [key for key in HEADS if key != "global"]
    after = tiers[tiers.index(head) + 1 :] if head in tiers else []
    so = (
        f", so {' and '.join(map(head_name, after))} {'were' if len(after) > 1 else 'was'} not trained" if after else ""
    )
    return f"The weights tested were saved before it opened or was forced{so}."
