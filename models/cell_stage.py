"""Module-II over the images of a test or a prediction: cells are found, written down, shown and summed up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.cell_files import CellFiles, check_count
from models.module2.analysis import build_analyser, measured_by
from models.module2.severity import CHRONIC, SeverityRule
from models.module2.severity_head import SeverityHead, summary_features
from models.module2.smear_cells import SmearCells
from util.cell_report import CellGallery
from util.errors import UserError, visible
from util.metrics import classification_metrics
from util.runlog import SEVERITY_HEAD

Analyse = Callable[[NDArray[np.uint8]], SmearCells]
# Across a red cell in what the tiers see, pixels of an image of ``--loadSize`` 300: beyond these the magnification is
# another than any smear field's that they can have learned from.
LEAST_SEEN, MOST_SEEN = 3.0, 100.0
# Of the metrics of two classes, those that mean something of a score that is no probability.
SEVERITY_METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")
# Pixels above which images are analysed one at a time: each takes about 100 bytes a pixel.
LARGE_IMAGE = 6_000_000
# Whose mask of an image is written.
NETWORK, OTSU, CELLS = "network", "otsu", "cells"
LARGER = 1.5


def magnification_notes(diameter: float, shape: tuple[int, ...]) -> list[str]:
    """A warning where red cells of so many pixels in an image (H, W) are too small or too large for the tiers."""
    seen = 300 * diameter / float(np.sqrt(shape[0] * shape[1]))
    if not np.isfinite(seen) or LEAST_SEEN <= seen <= MOST_SEEN:
        return []
    share = (
        f"a red cell is 1/{300 / seen:.0f} of the image across" if seen < LEAST_SEEN else "a red cell fills the image"
    )
    return [f"another magnification than the network can have learned from: {share}; its verdict means little"]


@dataclass(frozen=True)
class CellsOfImage:
    """What was found in one image, or why nothing was.

    Attributes:
        cells: None where the image could not be measured.
        warnings: what the reader must know of the image.
        learned: chance of Chronic by the learned head; None without a head or judged cells.
    """

    cells: SmearCells | None
    warnings: Sequence[str]
    learned: float | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """What predictions.csv says of the image's cells; unknown values are None, of cells not looked for nothing."""
        if self.cells is None or not self.cells.looked_for:
            return {}
        summary = self.cells.summary
        score = summary.severity_score
        return {
            "severity_pred": summary.severity,
            "severity_score": score if np.isfinite(score) else None,
            "severity_learned": self.learned,
            "cell_count": summary.cells,
            "overlapped_count": summary.overlapped,
        }


def cells_in(rgb: NDArray[np.uint8], analyse: Analyse) -> CellsOfImage:
    """The cells of an image (H, W, 3), or why there are none; without a learned grade."""
    try:
        cells = analyse(rgb)
    except UserError as error:
        return CellsOfImage(None, (f"its cells could not be measured: {error.what}",))
    return CellsOfImage(cells, (*cells.warnings, *magnification_notes(cells.cell_diameter_px, rgb.shape[:2])))


class CellStage:
    """Finds the cells of images, in threads, and writes what it finds.

    Args:
        analyse: finds, measures and grades the cells of an image.
        results: the results folder.
        pages: images that get a page of their own.
        head: the learned severity, or None.
        limit: severity score from which the rule that ``analyse`` follows says Chronic.
        synthetic: whether the images were drawn by a programme, which their pages then say.
    """

    def __init__(
        self,
        analyse: Analyse,
        results: Path,
        pages: int,
        head: SeverityHead | None = None,
        limit: float | None = None,
        *,
        synthetic: bool = False,
    ) -> None:
        self.analyse, self.results, self.head = analyse, results, head
        self.limit = SeverityRule().limit(None) if limit is None else limit
        self.gallery = CellGallery(results, pages=pages, synthetic=synthetic)
        self._one_large = Lock()

    def files(self) -> CellFiles:
        """The tables, to be closed by the caller; images are added to them in order."""
        return CellFiles(self.results)

    def find(
        self, index: int, name: str, stem: str, rgb: NDArray[np.uint8], severity_true: str | None = None
    ) -> CellsOfImage:
        """Find the cells of one image and write its page; may be called from several threads.

        Args:
            index: its place among the images, each once.
            name: its name in the data.
            stem: the path of its files without ending.
            rgb: (H, W, 3) uint8.
            severity_true: its grade where that is known.
        """
        try:
            found = cells_in(rgb, partial(self._countable, stem))
        except Exception as error:
            error.add_note(f"while finding the cells of {name!r}")
            raise
        cells = found.cells
        if cells is None:
            return found
        self.gallery.add(
            index=index,
            name=name,
            stem=stem,
            rgb=rgb,
            instances=cells.instances,
            cells=cells.cell_rows(name),
            left_out=cells.left_out_rows(name),
            summary=cells.summary_fields(),
            cell_diameter_px=cells.cell_diameter_px,
            warnings=found.warnings,
            severity_true=severity_true,
        )
        features = summary_features(cells.summary) if self.head else None
        learned = self.head.probability(features) if self.head and features is not None else None
        return replace(found, learned=learned)

    def _countable(self, stem: str, rgb: NDArray[np.uint8]) -> SmearCells:
        """The cells of an image, if an instance map can number them; of large images one at a time."""
        large = rgb.shape[0] * rgb.shape[1] > LARGE_IMAGE
        with self._one_large if large else nullcontext():
            cells = self.analyse(rgb)
        check_count(stem, cells.instances)
        return cells


def cell_stage(options: Any, device: Any, results: Path, run: Path, *, synthetic: bool = False) -> CellStage | None:
    """Module-II as a command's options ask for it; None with ``--cells no``.

    Args:
        options: ``cells``, ``cell_diameter``, ``um_per_px`` and ``cell_pages``.
        device: where the cell finder runs.
        results: the results folder.
        run: the run's folder, which may hold a learned severity.
        synthetic: whether the images were drawn by a programme.

    Raises:
        UserError: the weights of the cell finder, or the learned severity, are damaged.
    """
    if options.cells == "no":
        return None
    head = SeverityHead.load(run / SEVERITY_HEAD)
    if head and head.measured_by != measured_by(options):
        print(
            f"warning: the learned severity is left out: it was learned from cells measured otherwise "
            f"({visible(head.measured_by)}; here {measured_by(options)})",
            file=sys.stderr,
        )
        head = None
    analyser = build_analyser(options, device)
    limit = analyser.rule.limit(analyser.um_per_px)
    return CellStage(analyser, results, options.cell_pages, head, limit, synthetic=synthetic)


def written_mask(
    drawn: NDArray[np.bool_], by_otsu: bool, found: CellsOfImage | None, rule: str, load_size: int
) -> tuple[NDArray[np.bool_], str]:
    """The mask of an image that is worth writing, and whose it is: "network", "otsu" or "cells".

    The network draws at ``load_size``. Of a larger image it sees a reduction, in which edges are lost; the cell finder
    sees it at its own scale, piece by piece.

    Args:
        drawn: (H, W), the network's mask, or Otsu's that stands in for it.
        by_otsu: whether it is Otsu's.
        found: the image's cells, if they were looked for.
        rule: "network" and "cells" name one; "auto" takes the cells' where the network draws none or where the image
            is more than ``LARGER`` times as large as the network sees it.
        load_size: side of the square that the network sees, pixels.
    """
    own = OTSU if by_otsu else NETWORK
    if found is None or found.cells is None or not len(found.cells.table) or rule == NETWORK:
        return drawn, own
    if rule == CELLS or by_otsu or min(drawn.shape) > LARGER * load_size:
        return found.cells.mask, CELLS
    return drawn, own


def severity_metrics(
    truths: Sequence[str | None],
    columns: Sequence[dict[str, Any]],
    groups: Sequence[str],
    *,
    limit: float,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """How the grades of the rule, and of the learned head, agree with the true ones and with each other.

    Args:
        truths: true grade of each image, None where unknown or not anemic.
        columns: of predictions.csv, see ``CellsOfImage.columns``.
        groups: of each image; intervals draw them whole.
        limit: severity score from which the rule says Chronic.
        resamples: so many groups at most are left out one at a time.
        seed: of the intervals.

    Returns:
        by "rule" and "learned": n, metrics with Chronic as the positive class, their ci95 and confusion_matrix; and
        "agreement", the share of graded images that both grade alike. None where no graded image was measured.
    """
    graded = [i for i, truth in enumerate(truths) if truth and columns[i].get("severity_score") is not None]
    if not graded:
        return None
    # Shifted, so that a score at the rule's threshold is a half; the order of the images stays.
    by_rule = [0.5 + (columns[i]["severity_score"] - limit) / 2 for i in graded]
    called = [columns[i]["severity_pred"] == CHRONIC for i in graded]
    found = {"rule": [max(p, 0.5 + 1e-9) if c else min(p, 0.5) for p, c in zip(by_rule, called, strict=True)]}
    learned = [columns[i].get("severity_learned") for i in graded]
    if all(value is not None for value in learned):
        found["learned"] = [float(value) for value in learned if value is not None]
    truth, names = np.array([truths[i] == CHRONIC for i in graded], np.int64), [groups[i] for i in graded]
    said: dict[str, Any] = {}
    for how, chances in found.items():
        scores = classification_metrics(truth, np.clip(chances, 0, 1), names, resamples=resamples, seed=seed)
        said[how] = {"n": scores["n"], "n_groups": scores["n_groups"], **{k: scores[k] for k in SEVERITY_METRICS}}
        said[how]["confusion_matrix"] = scores["confusion_matrix"]
        said[how]["ci95"] = {k: scores["ci95"][k] for k in SEVERITY_METRICS}
    if "learned" in found:
        alike = [(chance > 0.5) == chronic for chance, chronic in zip(found["learned"], called, strict=True)]
        said["agreement"] = float(np.mean(alike))
    return said
