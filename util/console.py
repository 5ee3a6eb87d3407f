"""What a person who watches a run reads, line by line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from util.errors import visible
from util.figures import counted

ROMAN = {"tier1": "I", "tier2": "II", "tier3": "III", "global": "Global"}
_LOSSES = {"loss_cls": "class", "loss_L1": "L1", "loss_overlap": "overlap", "loss_G_GAN": "GAN", "loss_D": "D"}
_METRICS = {key: key for key in ("accuracy", "sensitivity", "specificity")} | {"auroc": "AUROC", "dice": "Dice"}
_DECISIONS = {"open": "opens", "stay": "stays shut", "forced": "FORCED open", "stop": "STOPS the run"}


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _heads(accuracy: Mapping[str, float]) -> str:
    return " ".join(f"{ROMAN[head]} {_number(value)}" for head, value in accuracy.items())


def starts_line(starts: Mapping[str, str]) -> str:
    """What each tier starts from, in one line."""
    said = {tier: visible(str(start)) for tier, start in starts.items()}  # a checkpoint's own words among them
    if len(set(said.values())) == 1:
        return f"all tiers start from {next(iter(said.values()))}"
    return "tiers start from: " + "; ".join(f"{ROMAN[tier]} {start}" for tier, start in said.items())


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """One epoch: where it is, its losses, and its accuracies in training and validation."""
    train, val = record["train"], record["val"]
    # Without a true mask only the verdict is learned: the other terms are 0 from the first epoch to the last.
    losses = "  ".join(
        f"{word} {_number(train[key])}" for key, word in _LOSSES.items() if word == "class" or train[key]
    )
    dice = "" if val["dice"] is None else f" Dice {_number(val['dice'])}"
    tier = ROMAN[f"tier{record['tier']}"]
    return (
        f"epoch {record['epoch']:>3}/{epochs}  Tier-{tier:<3} lr {record['lr']:.2g}  {losses}\n"
        f"    accuracy: train {_heads(train['accuracy'])} | validation {_heads(val['accuracy'])}"
        f" AUROC {_number(val['auroc']['global'])}{dice} | {record['seconds']:.1f} s"
    )


def gate_line(row: Mapping[str, Any]) -> str:
    """One gate decision and why."""
    decision, reason, tier = str(row["decision"]), str(row["reason"]), ROMAN[f"tier{row['tier']}"]
    none_is_asked = decision == "stay" and reason.startswith(("its gate ", "no gate "))
    return f"    gate {tier}: {reason}" if none_is_asked else f"    gate {tier} {_DECISIONS[decision]}: {reason}"


def _with_interval(scores: Mapping[str, Any], key: str, value: str = ".3f") -> str:
    """``AUROC 0.963 [0.890, 0.988]``."""
    figure, interval = scores.get(key), (scores.get("ci95") or {}).get(key)
    if figure is None:
        return f"{_METRICS[key]} undefined"
    edges = " [" + ", ".join(f"{edge:{value}}" for edge in interval) + "]" if interval else " (no interval)"
    return f"{_METRICS[key]} {figure:{value}}{edges}"


def headline_lines(content: Mapping[str, Any]) -> list[str]:
    """What a test found, in a few lines: of the test images or, where none were tested, of the first side that was.

    Args:
        content: of metrics.json.

    Returns:
        the lines; none where no image of a side had a label.
    """
    from util.report_content import BASELINES, few_groups, margin_over, no_claim

    splits = content["splits"]
    side = next((name for name in ("test", "val", "train") if (splits.get(name) or {}).get("global")), None)
    if side is None:
        return []
    scores = splits[side]["global"]
    keys = ("accuracy", "auroc", "sensitivity", "specificity")
    lines = [
        f"{side}: {counted(scores['n'], 'labelled images')} in {counted(scores['n_groups'], 'groups')};"
        " 95% intervals by groups",
        f"  Global: {', '.join(_with_interval(scores, key) for key in keys)}",
    ]
    for name, title in BASELINES.items():
        difference = (content.get("differences") or {}).get(margin_over(name))
        if difference and difference["split"] == side:
            baseline = content["baselines"][name]
            lines.append(f"  {title}: {', '.join(_with_interval(baseline, key) for key in keys[:2])}")
            lines.append(f"  Global less {title}: {differences_line(difference)}")
    masks = content.get("segmentation")
    if masks and masks["split"] == side:
        lines.append(f"  masks: {_with_interval(masks, 'dice')} over all pixels")
    caution = no_claim(scores) or few_groups(scores)
    return [*lines, *([f"  {caution}"] if caution else [])]


def differences_line(found: Mapping[str, Any]) -> str:
    """Paired differences of the AUROC and the accuracy, each ``{value, ci95}``."""
    flat = {key: found[key]["value"] for key in ("auroc", "accuracy")}
    flat["ci95"] = {key: found[key]["ci95"] for key in ("auroc", "accuracy")}
    return ", ".join(_with_interval(flat, key, "+.3f") for key in ("auroc", "accuracy"))


@contextlib.contextmanager
def progress_bar(title: str, steps: int, done: int = 0) -> Iterator[Callable[[Any], None]]:
    """A bar on stderr over the steps of an epoch, of which some may be done; gives the function to call after each.

    Every tenth step it shows the mean verdict loss so far: reading it makes the host wait for the device.
    """
    with tqdm(total=steps, initial=done, desc=title, unit="batch", leave=False, dynamic_ncols=True) as bar:

        def after_step(totals: Any) -> None:
            bar.update()
            if bar.n % 10 == 0 and not bar.disable:
                bar.set_postfix(loss=f"{float(totals.losses[0]) / max(1, totals.images):.3f}", refresh=False)

        yield after_step
