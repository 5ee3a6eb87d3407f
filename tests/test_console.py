"""The lines that a run prints."""

from __future__ import annotations

import pytest

from data.datasets import print_data
from options import describe, parse_options
from util.console import differences_line, epoch_line, headline_lines, starts_line
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


LOSSES = ("loss_cls", "loss_L1", "loss_overlap", "loss_G_GAN", "loss_D")


def test_an_epoch_without_masks_tells_of_no_loss_of_theirs():
    accuracy = {"accuracy": {"global": 0.75}}
    record = {
        "epoch": 3, "tier": 1, "lr": 0.001, "seconds": 2.0, "train": {**dict.fromkeys(LOSSES, 0.0), **accuracy},
        "val": {**accuracy, "dice": None, "auroc": {"global": 0.875}},
    }  # fmt: skip
    assert "lr 0.001  class 0.000\n" in epoch_line(record, 9)
    record["train"] |= {"loss_cls": 0.5, "loss_L1": 0.25}
    assert "class 0.500  L1 0.250\n" in epoch_line(record, 9)


def test_what_comes_from_outside_cannot_reach_the_terminal_as_a_command(capsys):
    assert starts_line(dict.fromkeys(("tier1", "tier2"), "\x1b[2Jweights")) == r"all tiers start from \x1b[2Jweights"
    assert r"II \x07" in starts_line({"tier1": "a", "tier2": "\x07"})
    options = parse_options("predict", ["--dataroot", "a\x1b]0;b"], prog="p", description="")
    assert r"a\x1b]0;b" in describe(options) and "\x1b" not in describe(options)
    leaks = {"count": 1, "first": ["\x1b[2J.png and b.png"], "near_duplicates": "checked"}
    facts = {"files": 2, "dataroot": "d", "synthetic": False, "excluded": {}, "severity": "", "sides": {}}
    print_data(facts | {"leaks": leaks})
    assert r"LEAK: \x1b[2J.png" in capsys.readouterr().out


def figures(n=200, **changed):
    values = {"accuracy": 0.875, "auroc": 0.9631, "sensitivity": None, "specificity": 1.0}
    ci95 = {"accuracy": [0.804, 0.9229], "auroc": [0.89, 0.988], "sensitivity": None, "specificity": None}
    return {"n": n, "n_groups": 150, "groups_by_class": [90, 60], **values, "ci95": ci95} | changed


def test_what_a_test_found_is_told_in_a_few_lines():
    paired = {
        "split": "test",
        "auroc": {"value": 0.063, "ci95": [-0.025, 0.119]},
        "accuracy": {"value": 0, "ci95": None},
    }
    content = {
        "splits": {"train": {"global": figures()}, "test": {"global": figures(1200), "tier1": None}},
        "baselines": {"colour": figures(auroc=0.9), "frozen": figures(auroc=0.95)},
        "differences": {"global_less_colour": paired, "global_less_frozen": paired},
        "segmentation": {"split": "test", "dice": 0.5, "ci95": {"dice": [0.25, 0.75]}},
    }
    lines = headline_lines(content)
    assert lines == [
        "test: 1,200 labelled images in 150 groups; 95% intervals by groups",
        "  Global: accuracy 0.875 [0.804, 0.923], AUROC 0.963 [0.890, 0.988], sensitivity undefined, "
        "specificity 1.000 (no interval)",
        "  colours alone: accuracy 0.875 [0.804, 0.923], AUROC 0.900 [0.890, 0.988]",
        "  Global less colours alone: AUROC +0.063 [-0.025, +0.119], accuracy +0.000 (no interval)",
        "  frozen features: accuracy 0.875 [0.804, 0.923], AUROC 0.950 [0.890, 0.988]",
        "  Global less frozen features: AUROC +0.063 [-0.025, +0.119], accuracy +0.000 (no interval)",
        "  masks: Dice 0.500 [0.250, 0.750] over all pixels",
    ]
    assert differences_line(paired) in lines[3]
    small = {"splits": {"train": {}, "val": {"global": figures(8)}}, "differences": {"global_less_colour": paired}}
    few = headline_lines(small)
    assert few[0].startswith("val: 8 ") and len(few) == 3 and "No claim about accuracy" in few[2]
    unequal = headline_lines({"splits": {"test": {"global": figures(n_groups_effective=13.2)}}})
    assert "150 groups, as good as 13 equal ones" in unequal[-1]
    assert headline_lines({"splits": {"train": {}, "test": {"tier1": figures()}}}) == []
