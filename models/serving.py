"""What the page that takes dropped smears is answered: one image in, verdict, mask, cells and doubts out."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.assessment import at_own_size
from models.cell_stage import cells_in, written_mask
from models.judges import Judgement, Panel
from models.module2.analysis import LEAST_DIAMETER, build_analyser
from models.module2.kinds import NOT_JUDGED
from models.module2.smear_cells import SmearCells
from models.network import HEAD_KEYS
from util.figures import HEADS
from util.report import PREDICTED_COLOUR, overlay_image
from util.results import CLASS_WORDS, encoded_image
from util.runlog import plain

Picture = NDArray[np.uint8]
SMALLEST, LARGEST = 640, 1100  # longer side of the page's pictures, pixels
CELL_COLOUR, TOUCHING_COLOUR = (0, 114, 178), PREDICTED_COLOUR  # Okabe and Ito's
_MOST_KINDS = 4


class Desk:
    """Judges images one at a time; nothing of them is kept.

    Args:
        panel: the network, or several.
        options: the predict command's: ``cells`` and those of Module-II, ``masks_from``.
        device: where to run.
        decode: from a file's content to (H, W, 3) uint8; raises UserError where it is no image.
        batches: from such an image to the batches by load size that a panel takes.
        otsu: from such an image to the mask that stands in where no network draws one.
    """

    def __init__(
        self,
        panel: Panel,
        options: Any,
        device: torch.device,
        *,
        decode: Callable[[bytes], Picture],
        batches: Callable[[Picture], Mapping[int, Any]],
        otsu: Callable[[Picture], NDArray[np.bool_]],
    ) -> None:
        self.panel, self.options = panel, options
        self.decode, self.batches, self.otsu = decode, batches, otsu
        self.analyse = build_analyser(options, device) if options.cells == "yes" else None

    def facts(self) -> dict[str, Any]:
        """What the page says of the network."""
        about = []
        if all(judge.saved.facts["data"].get("synthetic") for judge in self.panel.judges):
            about.append("The network was trained on synthetic smears only: its verdicts on others mean nothing.")
        names = [f"{judge.name}, epoch {judge.saved.facts['epoch']}" for judge in self.panel.judges]
        return {"run": " + ".join(names), "about": about}

    def judge(self, content: bytes) -> dict[str, Any]:
        """Answer one upload, in plain types.

        Raises:
            UserError: it is no image that can be judged.
        """
        began = time.perf_counter()
        rgb = self.decode(content)
        (said,) = self.panel(self.batches(rgb))
        found = cells_in(rgb, self.analyse) if self.analyse else None
        drawn = self.otsu(rgb) if self.panel.by_otsu else at_own_size(said.mask, rgb.shape[1], rgb.shape[0])
        mask, _ = written_mask(drawn, self.panel.by_otsu, found, self.options.masks_from, len(said.mask))
        novelty = said.novelty.warning() if said.novelty else None
        cells = found.cells if found else None
        answer = {
            **self._verdict(said),
            "size": f"{rgb.shape[1]} x {rgb.shape[0]} pixels",
            "warnings": [*([novelty] if novelty else []), *(found.warnings if found else ())],
            "pictures": pictures(rgb, mask, cells if cells and cells.looked_for else None),
            "cells": cell_facts(cells, anemic=said.chances[HEAD_KEYS[-1]] > 0.5) if cells else None,
            "seconds": round(time.perf_counter() - began, 2),
        }
        return dict(plain(answer))

    def _verdict(self, said: Judgement) -> dict[str, Any]:
        """The verdict by tier, how far several runs disagree, and how unlike the training images the image is."""
        chance = said.chances[HEAD_KEYS[-1]]
        tiers = [
            {"name": title, "probability": p, "called": None if p is None else CLASS_WORDS[int(p > 0.5)]}
            for title, p in ((title, said.chances.get(head)) for head, title in HEADS.items())
        ]
        told = said.novelty
        measures = told and [("features", told.features), ("focus", told.focus), ("stain", told.stain)]
        verdict = {"verdict": CLASS_WORDS[int(chance > 0.5)], "probability": chance, "tiers": tiers}
        return verdict | {"spread": said.spread, "novelty": measures}


def cell_facts(cells: SmearCells, *, anemic: bool) -> list[tuple[str, str]]:
    """What the page says of an image's cells, as names and words; the grade of anemic blood only."""
    if not cells.looked_for:
        return [("Red cells", "not looked for: too small to be told apart")]
    summary = cells.summary
    kinds = Counter(str(kind) for kind in cells.kinds if kind != NOT_JUDGED)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(_MOST_KINDS))
    if cells.cell_diameter_px < LEAST_DIAMETER:
        named = "cells too small to tell"
    facts = [
        ("Red cells", f"{summary.cells}, {summary.overlapped} touch another"),
        ("Diameter", f"{cells.cell_diameter_px:.0f} pixels" if np.isfinite(cells.cell_diameter_px) else "not known"),
        ("Kinds", named or "none judged"),
        ("Left out", f"{len(cells.left_out)} (border, platelets, white cells)"),
    ]
    if not anemic:
        return [*facts, ("Severity", "graded in anemic blood only")]
    score = f" (score {summary.severity_score:.3f})" if np.isfinite(summary.severity_score) else ""
    return [*facts, ("Severity", f"{summary.severity}{score}" if summary.severity else "not graded")]


# --- pictures -------------------------------------------------------------------------------------------------------


def pictures(rgb: Picture, mask: NDArray[np.bool_], cells: SmearCells | None) -> list[dict[str, str]]:
    """The smear, its mask and its cells as addresses that hold the pictures themselves."""
    size = shown_size(rgb.shape[1], rgb.shape[0])
    shown = _resized(rgb, size)
    outlined = overlay_image(shown, _resized(mask.astype(np.uint8), size, smooth=False) > 0)
    drawn = [("Smear", "the image as it is", shown), ("Mask", "orange: the outline of the mask", outlined)]
    if cells is not None:
        words = "blue: a red cell; orange: one that touches another"
        drawn.append(("Cells", words, _with_cells(shown, cells, size)))
    return [{"caption": name, "note": note, "address": _address(picture)} for name, note, picture in drawn]


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Width and height at which an image of such a size is shown."""
    longer = max(width, height)
    factor = min(max(longer, SMALLEST), LARGEST) / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resized(plane: Picture, size: tuple[int, int], *, smooth: bool = True) -> Picture:
    from PIL import Image

    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(plane).resize(size, how))


def _with_cells(shown: Picture, cells: SmearCells, size: tuple[int, int]) -> Picture:
    """The smear with every cell's inner edge, in one colour or, of cells that touch another, in the other."""
    from PIL import Image
    from scipy.ndimage import maximum_filter, minimum_filter

    numbers = np.asarray(Image.fromarray(cells.instances).resize(size, Image.Resampling.NEAREST))
    edge = (numbers > 0) & (minimum_filter(numbers, 3) != maximum_filter(numbers, 3))
    touching = np.isin(numbers, cells.table.cell[cells.table.overlapped])
    drawn = shown.copy()
    drawn[edge & ~touching], drawn[edge & touching] = CELL_COLOUR, TOUCHING_COLOUR
    return drawn


def _address(rgb: Picture) -> str:
    """A picture as an address that holds it."""
    from PIL import Image

    crisp: dict[str, Any] = {"format": "JPEG", "quality": 88, "subsampling": 0}  # thin lines keep their colour
    content = encoded_image(lambda buffer: Image.fromarray(rgb).save(buffer, **crisp))
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
