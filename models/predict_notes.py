"""What a prediction notes of each image, from which its tables and its page are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from models.cell_files import CELL_COLUMNS, LEFT_OUT_COLUMNS
from models.cell_stage import CellsOfImage, CellStage
from models.judges import Judgement
from models.novelty import QUANTILE, Novelty

# Columns of predictions.csv beside those of a test; the first of several runs together only.
NOVELTY_COLUMNS = ("novelty", "novelty_features", "novelty_focus", "novelty_stain")
MORE_COLUMNS = ("prob_anemic_spread", *NOVELTY_COLUMNS)


def note_of(
    name: str, stem: str, stamp: list[int], said: Judgement, found: CellsOfImage | None, mask_of: str
) -> dict[str, Any]:
    """All that tables and page need of one image, in plain types; see ``models.progress``."""
    warning = said.novelty.warning() if said.novelty else None
    note = {
        "image": name,
        "stem": stem,
        "stamp": stamp,
        "chances": said.chances,
        "spread": said.spread,
        "novelty": asdict(said.novelty) if said.novelty else None,
        "mask_of": mask_of,
        "warnings": [*([warning] if warning else []), *(found.warnings if found else ())],
        "columns": found.columns if found else {},
    }
    if found is None or found.cells is None:
        return note
    cells = found.cells
    return note | {
        "cells": [[row[column] for column in CELL_COLUMNS[1:]] for row in cells.cell_rows(name)],
        "left_out": [[row[column] for column in LEFT_OUT_COLUMNS[1:]] for row in cells.left_out_rows(name)],
        "summary": cells.summary_fields(),
        "diameter": cells.cell_diameter_px,
        "cell_warnings": list(found.warnings),
    }


def rows_of(record: Mapping[str, Any], key: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table as they were before they were noted."""
    return [dict(zip(columns, (record["image"], *values), strict=True)) for values in record[key]]


def recall(
    stage: CellStage,
    position: int,
    record: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
    left_out: Sequence[Mapping[str, Any]],
) -> None:
    """Count the cells of an image that an earlier call found."""
    if position in stage.gallery:
        return
    stage.gallery.recall(
        index=position,
        name=record["image"],
        stem=record["stem"],
        cells=cells,
        left_out=left_out,
        summary=record["summary"],
        cell_diameter_px=float("nan") if record["diameter"] is None else record["diameter"],
        warnings=record["cell_warnings"],
    )


def parts_of(novelty: Mapping[str, Any]) -> dict[str, float | None]:
    """The three measures of a noted novelty and the largest of them."""
    return {"score": Novelty(**novelty).score, **{key: novelty[key] for key in ("features", "focus", "stain")}}


def novelty_columns(novelty: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same as columns of predictions.csv, all empty where it is not known."""
    if novelty is None:
        return dict.fromkeys(NOVELTY_COLUMNS)
    return dict(zip(NOVELTY_COLUMNS, parts_of(novelty).values(), strict=True))


def kept_of(reference: Any) -> dict[str, Any] | None:
    """What a reference was learned from, for the provenance."""
    return None if reference is None else {"training_images": reference.images, "limit_quantile": QUANTILE}
