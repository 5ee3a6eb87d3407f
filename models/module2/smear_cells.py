"""All that Module-II says of one smear: its cells, what was left out, its grade; and the rows that files show of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.module2.kinds import NOT_JUDGED
from models.module2.morphometry import CellTable
from models.module2.severity import CellScores, SmearSummary

BORDER, PLATELET, WHITE_CELL, FRAGMENT = "cut by the border", "platelet", "white cell", "too small for a red cell"
COLOURLESS = "without the stain's colour"


@dataclass(frozen=True)
class LeftOut:
    """One thing in a smear that is not measured.

    Attributes:
        x: column of its centroid, pixels.
        y: row of it.
        area_px: visible pixels.
        reason: why: BORDER, PLATELET, WHITE_CELL, FRAGMENT or COLOURLESS.
        cell: number in the instance map; 0 for what is not in it.
    """

    x: float
    y: float
    area_px: int
    reason: str
    cell: int = 0


@dataclass(frozen=True)
class SmearCells:
    """What Module-II finds in one smear.

    Attributes:
        instances: (H, W) int32 at the image's own size, 0 = background, else a red cell's number; border cells too, if
            at least half of them is in view.
        mask: (H, W) bool, where red cells are, whatever part of them is in view; of cells that the finder saw reduced
            the edge is the stain's (``mask_edge``), and may lie a little off that of ``instances``.
        table: measures of every cell of ``instances``, border cells too.
        kinds: (n,) name of each, ``kinds.NOT_JUDGED`` for border cells and cells without measurable pallor.
        scores: of each.
        summary: of the image.
        left_out: what is not measured: border cells, platelets, white cells, fragments, pointers and dirt.
        cell_diameter_px: usual diameter of its red cells, pixels: half of their area lies in cells at most so wide. Of
            an image without cells the one that was looked for; NaN where none could be told.
        warnings: what the reader must know of this image.
        looked_for: False where its cells are too small to be told apart: that none is here is then no count.
    """

    instances: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    table: CellTable
    kinds: npt.NDArray[np.str_]
    scores: CellScores
    summary: SmearSummary
    left_out: Sequence[LeftOut]
    cell_diameter_px: float
    warnings: Sequence[str]
    looked_for: bool = True

    def summary_fields(self) -> dict[str, Any]:
        """The summary by name; of cells that were not looked for every count is None, not 0."""
        fields = asdict(self.summary)
        if self.looked_for:
            return fields
        return {name: None if isinstance(value, int) else value for name, value in fields.items()}

    def cell_rows(self, image: str) -> list[dict[str, Any]]:
        """The rows of cells.csv: every red cell that lies whole in the image; unknown values are None.

        Args:
            image: the image's name.
        """
        table, scores = self.table, self.scores
        columns = {
            "cell": table.cell,
            "x": table.x,
            "y": table.y,
            "area_px": table.area_px,
            "diameter_px": table.diameter_px,
            "roundness": table.roundness,
            "central_pallor": table.central_pallor,
            "overlapped": table.overlapped.astype(int),
            "size_score": scores.size_score,
            "severity_score": scores.severity,
            "abnormal_kind": np.where(self.kinds == NOT_JUDGED, "", self.kinds),
            "roundness_score": scores.roundness_score,
            "pallor_score": scores.pallor_score,
            "elongation": table.elongation,
            "pallor_depth": table.pallor_depth,
            "solidity": table.solidity,
            "area_um2": table.area_um2,
            "diameter_um": table.diameter_um,
        }
        plain = {name: np.asarray(values).tolist() for name, values in columns.items()}
        whole = np.flatnonzero(~table.border).tolist()
        return [{"image": image} | {name: _known(values[row]) for name, values in plain.items()} for row in whole]

    def left_out_rows(self, image: str) -> list[dict[str, Any]]:
        """The rows of left_out.csv."""
        return [
            {"image": image, "cell": item.cell or None, "x": item.x, "y": item.y, "area_px": item.area_px,
             "reason": item.reason}
            for item in self.left_out
        ]  # fmt: skip


def _known(value: Any) -> Any:
    """None for what could not be measured."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
