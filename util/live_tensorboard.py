"""The same view for TensorBoard: what --tensorboard writes beside the run, through PyTorch's own writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.live_panes import TIERS, confusion_of, loss_names, number


def require_tensorboard() -> None:
    """Refuse a run that asks for what is not installed, before it costs anything.

    Raises:
        UserError: TensorBoard cannot be imported.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a broken TensorBoard fails in many ways
        raise UserError(
            "--tensorboard: TensorBoard cannot be used",
            expected="the package tensorboard in this Python's environment",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200],
            remedy="install it (pip install tensorboard), or train without --tensorboard: visdom's log is kept anyway",
        ) from None


class TensorBoardSink:
    """Writes event files that ``tensorboard --logdir`` shows. Its writer has a queue and a thread of its own.

    Args:
        folder: where the event files go; those of an earlier run are removed unless ``after`` is above 0.
        after: last epoch of the part that is resumed: what was written for later ones is no longer shown; 0 begins.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not after:
            for path in folder.glob("events.out.tfevents.*"):
                path.unlink()
        self._writer: Any = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def plot_epoch(self, record: Mapping[str, Any]) -> None:
        """Write the losses, accuracies, learning rate and confusion matrix of an epoch; see ``Visualizer``."""
        epoch = _step(record)
        paths: list[tuple[str, tuple[str, ...]]] = [
            (f"loss/{name.removeprefix('loss_')}", ("train", name)) for name in loss_names([record])
        ]
        paths += [("loss/validation", ("val", "loss")), ("learning rate", ("lr",))]
        for part, word in (("train", "training"), ("val", "validation")):
            paths += [(f"accuracy {word}/{tier}", (part, "accuracy", tier)) for tier in TIERS]
            paths.append((f"Dice/{word}", (part, "dice")))
        paths += [(f"AUROC validation/{tier}", ("val", "auroc", tier)) for tier in TIERS]
        for tag, keys in paths:
            value = number(record, *keys)
            if value is not None:
                self._writer.add_scalar(tag, value, epoch)
        counts = confusion_of(record)
        if counts is not None:
            self._writer.add_text("confusion matrix of validation", _confusion_table(counts), epoch)
        self._writer.flush()

    def mark_gate(self, record: Mapping[str, Any]) -> None:
        """Write a gate decision as text."""
        words = f"**Tier {record.get('tier')}: {record.get('decision')}** - {record.get('reason')}"
        self._writer.add_text("gate", words, _step(record))

    def show_grid(self, grid: np.ndarray, columns: str, epoch: int) -> None:
        """Write the picture of smears and masks, (H, W, 3) uint8."""
        self._writer.add_image(columns, grid, epoch, dataformats="HWC")

    def show_cells(self, diameters: Mapping[str, np.ndarray], epoch: int) -> None:
        """Write the histograms of cell diameters, (N,) pixels each, by the masks' names; of no cells there is none."""
        for name, values in diameters.items():
            if len(values):
                self._writer.add_histogram(f"cell diameters, pixels/{name}", values, epoch)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _step(record: Mapping[str, Any]) -> int:
    return int(number(record, "epoch") or 0)


def _confusion_table(counts: np.ndarray) -> str:
    (tn, fp), (fn, tp) = counts.tolist()
    head = "| | said Healthy | said Anemic |\n|---|---|---|\n"
    return f"{head}| Healthy | {tn} | {fp} |\n| Anemic | {fn} | {tp} |\n"
