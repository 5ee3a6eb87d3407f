"""Learning the grade of anemia from the cells of graded training images, after the network has been trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.module2.severity import CHRONIC
from models.module2.severity_head import LEAST_OF_EACH, SeverityHead, summary_features
from models.module2.smear_cells import SmearCells
from util.errors import UserError
from util.files import unwritable
from util.runlog import SEVERITY_HEAD


def learn_severity(
    graded: Iterable[tuple[NDArray[np.uint8], str]],
    counts: dict[str, int],
    analyse: Callable[[NDArray[np.uint8]], SmearCells],
    path: Path,
    *,
    measured_by: str,
) -> SeverityHead | None:
    """Find the cells of graded training images, learn their grade from them, write the head and say what was done.

    Args:
        graded: pixels and grade of each image.
        counts: images of each grade.
        analyse: finds, measures and grades the cells of an image.
        path: the head's file; one of an earlier training is removed where there is too little to learn from.
        measured_by: how ``analyse`` measures, see ``models.module2.analysis.measured_by``.

    Raises:
        UserError: an image cannot be read, or the file cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    said = ", ".join(f"{count} {grade}" for grade, count in sorted(counts.items())) or "no"
    if len(counts) < 2 or min(counts.values()) < LEAST_OF_EACH:
        print(f"severity: by the rule alone ({said} graded training images; {LEAST_OF_EACH} of each teach a head)")
        return None
    features, chronic = [], []
    for rgb, grade in tqdm(graded, total=sum(counts.values()), desc="learning the severity", unit="img"):
        found = summary_features(analyse(rgb).summary)
        if found is not None:
            features.append(found)
            chronic.append(grade == CHRONIC)
    try:
        head = SeverityHead.fit(features, chronic, measured_by=measured_by)
    except UserError as error:
        print(f"severity: by the rule alone ({error.what}: {error.found})")
        return None
    head.save(path)
    print(f"severity: learned from {head.mild} Mild and {head.chronic} Chronic training images beside the rule: {path}")
    return head


def check_cells(options: Any, device: Any) -> None:
    """Raise UserError, before hours of training, where ``learn_severity_of_run`` could not begin."""
    if options.cells != "no":
        from models.module2.analysis import build_analyser

        build_analyser(options, device)


def learn_severity_of_run(options: Any, data: Any, folder: Any, device: Any) -> None:
    """What the training command does at its end: learn the severity from the train side, unless told ``--cells no``.

    Args:
        options: of the training.
        data: ``data.runs.TrainingData``.
        folder: of the run, ``util.runlog.RunFolder``.
        device: where the cell finder runs.
    """
    if options.cells == "no":
        return
    from models.module2.analysis import build_analyser, measured_by

    analyse = build_analyser(options, device)
    path = folder.folder / SEVERITY_HEAD
    learn_severity(data.graded(), data.grade_counts, analyse, path, measured_by=measured_by(options))
