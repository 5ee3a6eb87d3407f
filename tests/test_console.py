"""The lines that a run prints."""

from __future__ import annotations

import pytest

from util.console import starts_line
from util.errors import UserError, run_door, visible


def test_names_cannot_speak_to_the_terminal(capsys):
    assert visible("a\x1b[31m\r\x9b\x7f\tb\n  ü") == "a\\x1b[31m\\x0d\\x9b\\x7f\\x09b\n  ü"

    def main():
        raise UserError("smear\x1b]0;x\x07.png", remedy="mend it")

    with pytest.raises(SystemExit) as ended:
        run_door(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: smear\\x1b]0;x\\x07.png\n  remedy:   mend it\n"


def test_what_the_tiers_start_from_is_one_line():
    same = dict.fromkeys(("tier1", "tier2", "tier3"), "random weights")
    assert starts_line(same) == "all tiers start from random weights"
    assert starts_line(same | {"tier2": "ImageNet"}) == (
        "tiers start from: I random weights; II ImageNet; III random weights"
    )
