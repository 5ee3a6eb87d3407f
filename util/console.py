"""What a person who watches a run reads, line by line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

ROMAN = {"tier1": "I", "tier2": "II", "tier3": "III", "global": "Global"}
_LOSSES = {"loss_cls": "class", "loss_L1": "L1", "loss_overlap": "overlap", "loss_G_GAN": "GAN", "loss_D": "D"}
_DECISIONS = {"open": "opens", "stay": "stays shut", "forced": "FORCED open", "stop": "STOPS the run"}


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _heads(accuracy: Mapping[str, float]) -> str:
    return " ".join(f"{ROMAN[head]} {_number(value)}" for head, value in accuracy.items())


def starts_line(starts: Mapping[str, str]) -> str:
    """What each tier starts from, in one line."""
    if len(set(starts.values())) == 1:
        return f"all tiers start from {next(iter(starts.values()))}"
    return "tiers start from: " + "; ".join(f"{ROMAN[tier]} {start}" for tier, start in starts.items())


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """One epoch: where it is, its losses, and its accuracies in training and validation."""
    train, val = record["train"], record["val"]
    losses = "  ".join(f"{word} {_number(train[key])}" for key, word in _LOSSES.items())
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
