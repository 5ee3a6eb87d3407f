"""The colours of what a run has learned from, kept beside its split: the colour classifier of a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from data.colour import ColourScore, colour_statistics, feature_names, held_out
from data.loader import DecodedSmears
from data.records import CLASS_NAMES, SmearRecord
from util.arrays import Arrays
from util.run_record import RecordFile


class ColourRecord(NamedTuple):
    """Colour statistics of labelled images.

    Attributes:
        features: float32 (N, F), as ``data.colour.colour_statistics`` gives them.
        labels: int64 (N,), HEALTHY or ANEMIC.
        load_size: side of the decoded images that they were measured on, pixels.
    """

    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    load_size: int

    @classmethod
    def of(cls, smears: DecodedSmears, count: int | None = None) -> ColourRecord:
        """Measure the first ``count`` smears (default: all) that have a label."""
        labels = smears.labels[:count].numpy()
        known = np.flatnonzero(labels >= 0)
        rows = [colour_statistics(_pixels(smears, int(index))) for index in known]
        features = np.stack(rows) if rows else np.empty((0, len(feature_names())), np.float32)
        return cls(features, labels[known], smears.load_size)


def _pixels(smears: DecodedSmears, index: int) -> npt.NDArray[np.uint8]:
    """One decoded image, uint8 (S, S, 3)."""
    side = smears.load_size
    entry = smears.gather(torch.tensor([index]))[0].numpy()
    return entry[: 3 * side * side].reshape(side, side, 3)


def _checked(stored: Arrays) -> ColourRecord:
    features, labels, size = (stored[name] for name in ColourRecord._fields)
    sound = features.shape == (len(labels.ravel()), len(feature_names())) and size.size == 1
    if not sound or not set(labels.ravel().tolist()) <= set(range(len(CLASS_NAMES))):
        raise ValueError(f"features {features.shape}, labels {labels.shape}")
    return ColourRecord(features.astype(np.float32), labels.astype(np.int64), int(size.item()))


COLOURS = RecordFile(
    "colour_statistics.npz", ColourRecord._fields, _checked, what="the colours", without="the colour baseline"
)


def score_colours(
    record: ColourRecord, smears: DecodedSmears, records: Sequence[SmearRecord], groups: Sequence[str], seed: int
) -> ColourScore | None:
    """Judge others by the colour classifier, fitted on the training images.

    Args:
        record: of the training images.
        smears: the images to be tested, at the same size.
        records: their records.
        groups: the group of each.
        seed: of the forest and the intervals.

    Returns:
        Chances of Anemic and metrics of the labelled images; None where there is none, or the run learned one class
        only.
    """
    known = [index for index, smear in enumerate(records) if smear.label is not None]
    if not known or len(set(record.labels.tolist())) < len(CLASS_NAMES):
        return None
    tested = ColourRecord.of(smears)
    chosen = [groups[index] for index in known]
    return held_out(record.features, record.labels, tested.features, tested.labels, chosen, seed=seed)
