"""The lines that a run prints."""

from __future__ import annotations

from util.console import starts_line


def test_what_the_tiers_start_from_is_one_line():
    same = dict.fromkeys(("tier1", "tier2", "tier3"), "random weights")
    assert starts_line(same) == "all tiers start from random weights"
    assert starts_line(same | {"tier2": "ImageNet"}) == (
        "tiers start from: I random weights; II ImageNet; III random weights"
    )
