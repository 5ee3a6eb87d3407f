"""Module-II on one smear: bring it to scale, find its cells, measure and grade them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from models.module2.finder import CELL_DIAMETER, SHIPPED, CellFinder, CellMaps, load_finder, map_cells, quickened
from models.module2.instances import Found, SplitSettings, at_own_size, colourless, resized_labels, split_cells
from models.module2.kinds import KindLimits, judged, kinds_of
from models.module2.mask_edge import mask_by_stain
from models.module2.morphometry import CellTable, measure_cells
from models.module2.scale import estimate_diameter, explained, middle, scaled
from models.module2.severity import SeverityRule, SmearSummary, score_cells, summarise
from models.module2.smear_cells import BORDER, COLOURLESS, FRAGMENT, PLATELET, WHITE_CELL, LeftOut, SmearCells
from util.errors import UserError

# The diameter of the cells found is the one looked for within the first factor; beyond the second it is not believed.
_SETTLED, _FAR = 1.2, 1.7
# Beyond this factor the reader is told.
_DOUBTFUL = 1.5
# Where less than this of what is stained lies in cells of the size looked for, the cells are not known.
_POOR = 0.5
# Parts of the estimate that are tried in this order until so much of what is stained lies in cells of that size.
_PARTS, _LEAST_LOOKED_FOR, _EXPLAINED = (1.0, 0.67, 0.45, 1.5, 0.3, 0.2, 0.13, 0.09), 6.0, 0.75
# A single cell may be a clump: with so few, smaller ones are looked for all the same.
_FEW = 3
# Side of the middle of the image that is looked at for that, pixels at the finder's scale.
_SIDE = 448
# An image is not enlarged beyond this: what was never photographed cannot be drawn.
# Nor beyond so many pixels, unless it has more of its own: time and memory grow with them.
_MOST_ENLARGED, _MOST_PIXELS = 3.0, 40e6
# Where the finder sees an image so much reduced, the edge of its mask is drawn from the image itself.
_REDUCED = 0.75
# Cells below this many pixels across are not even told apart: where the middle of an image shows no larger ones, the
# rest is not looked at.
_LEAST_FOUND = 7.5
# Cells below this many pixels across are found, but their measures are guesses.
LEAST_DIAMETER = 12.0
# A platelet is smaller than this part of the red cells' diameter (2 to 4 of 7 micrometres; giant ones are as large).
_PLATELET_BELOW = 0.62
# Grey levels: a brightfield film is never so dark, a fluorescent or inverted one is.
_DARK_FILM = 64


@dataclass(frozen=True)
class _Look:
    """One attempt: the diameter looked for, what the finder said, and the median diameter of the cells found."""

    diameter: float
    maps: CellMaps
    found: Found
    seen: float

    @property
    def settled(self) -> bool:
        return bool(np.isfinite(self.seen)) and max(self.seen / self.diameter, self.diameter / self.seen) < _SETTLED


@dataclass
class CellAnalyser:
    """Finds, measures and grades the cells of smears; call it with an image.

    Attributes:
        finder: the network; a quicker copy takes its place.
        device: where it runs.
        cell_diameter: of the red cells in pixels; None to estimate it image by image.
        um_per_px: size of a pixel in micrometres; None where unknown.
        rule: constants of the severity score.
        limits: cut-offs of the kinds.
        settings: how maps become cells.
    """

    finder: CellFinder
    device: torch.device
    cell_diameter: float | None = None
    um_per_px: float | None = None
    rule: SeverityRule = field(default_factory=SeverityRule)
    limits: KindLimits = field(default_factory=KindLimits)
    settings: SplitSettings = field(default_factory=SplitSettings)

    def __post_init__(self) -> None:
        self.finder = quickened(self.finder, self.device)

    def __call__(self, rgb: npt.NDArray[np.uint8]) -> SmearCells:
        """Find, measure and grade the cells of one image (H, W, 3) uint8, of any size."""
        look, shown, share, warnings = self._find(rgb)
        tiny = not np.isfinite(look.seen) and look.diameter < _LEAST_FOUND
        found, diameter = look.found, look.seen if np.isfinite(look.seen) else look.diameter
        strange = colourless(shown, rgb)[shown]
        not_stained, shown = np.where(strange, shown, 0), np.where(strange, 0, shown)
        cells = np.where(shown <= found.cells.max(initial=0), shown, 0).astype(np.int32)
        table = measure_cells(cells, rgb, um_per_px=self.um_per_px)
        summary = summarise(table, self.rule, self.limits)
        return SmearCells(
            instances=cells,
            mask=self._mask(rgb, shown, look.diameter),
            table=table,
            kinds=kinds_of(table, self.limits),
            scores=score_cells(table, self.rule, self.limits),
            summary=ungraded(summary) if diameter < LEAST_DIAMETER or share < _POOR else summary,
            left_out=[
                *left_out(table, found, shown, diameter),
                *(LeftOut(*spot, COLOURLESS) for spot in _spots(not_stained)),
            ],
            cell_diameter_px=diameter,
            looked_for=not tiny,
            warnings=warnings if tiny else [*warnings, *warnings_about(rgb, table, diameter)],
        )

    def _mask(self, rgb: npt.NDArray[np.uint8], shown: npt.NDArray[np.int32], diameter: float) -> npt.NDArray[np.bool_]:
        """The mask of an image's cells; where the finder saw them reduced, its edge is drawn from the image itself."""
        reduced = np.isfinite(diameter) and self._factor(rgb, diameter) < _REDUCED
        return mask_by_stain(shown, rgb, diameter) if reduced else shown > 0

    def _find(self, rgb: npt.NDArray[np.uint8]) -> tuple[_Look, npt.NDArray[np.int32], float, list[str]]:
        """What lies in the image; its cells and, with further numbers, pieces, at its own size; a share; and warnings.

        The share is of what is stained in the middle of the image, as far as it lies in cells of the size looked for.
        """
        estimate = self.cell_diameter or estimate_diameter(rgb)
        if not np.isfinite(estimate):
            return *_nothing(rgb, np.nan), 0.0, []
        parts = (1.0,) if self.cell_diameter else _PARTS
        diameter, share, seen = self._likeliest(rgb, estimate, parts)
        if not self.cell_diameter and 0 < seen < _LEAST_FOUND:
            return *_nothing(rgb, seen), share, [too_small(seen)]
        look = self._look(rgb, diameter) if self.cell_diameter else self._settled(rgb, diameter)
        labels = look.found.cells + look.found.cut
        shown = at_own_size(labels, look.maps, rgb.shape[:2], self.settings.cell_above)
        return look, shown, share, self._doubts(rgb, look, share)

    def _doubts(self, rgb: npt.NDArray[np.uint8], look: _Look, share: float) -> list[str]:
        """Warnings where the finder makes little of an image."""
        said = []
        if share < _EXPLAINED:
            negative = 255 - rgb
            estimate = estimate_diameter(negative)
            if np.isfinite(estimate) and self._likeliest(negative, estimate, _PARTS)[1] > max(_EXPLAINED, share):
                said.append(
                    "the cells seem to be lighter than the film: an inverted or fluorescent image? They are looked for "
                    "as dark on light, so what was found is not to be used"
                )
        if share < _POOR:
            said.append(
                f"only {share:.0%} of what is stained lies in cells of about {look.diameter:.0f} pixels, and no grade "
                "is given: if that is not their size, give --cell_diameter, or mend it"
            )
        far = max(look.seen / look.diameter, look.diameter / look.seen) if look.seen > 0 else 1.0
        if share >= _POOR and far > _DOUBTFUL:
            said.append(
                f"cells {look.diameter:.0f} pixels across were looked for and cells of {look.seen:.0f} found: give "
                "--cell_diameter, or mend it"
            )
        if CELL_DIAMETER / look.diameter > 1.1 * self._factor(rgb, look.diameter):
            said.append("the cells are too small to be brought to the scale at which they are known best")
        return said

    def _factor(self, rgb: npt.NDArray[np.uint8], diameter: float) -> float:
        """How much an image with cells so large is enlarged."""
        fits = float(np.sqrt(_MOST_PIXELS / (rgb.shape[0] * rgb.shape[1])))
        return min(CELL_DIAMETER / diameter, _MOST_ENLARGED, max(fits, 1.0))

    def _look(self, rgb: npt.NDArray[np.uint8], diameter: float) -> _Look:
        """Find the cells of an image as if their diameter were known."""
        factor = self._factor(rgb, diameter)
        maps = map_cells(self.finder, scaled(rgb, factor), self.device)
        found = split_cells(maps, self.settings)
        return _Look(diameter, maps, found, typical_diameter(found.cells) / factor)

    def _likeliest(
        self, rgb: npt.NDArray[np.uint8], estimate: float, parts: tuple[float, ...]
    ) -> tuple[float, float, float]:
        """The estimate or, where the finder makes little of the image at that scale, a diameter at which it makes more.

        The estimate is wrong where cells enclose film on all sides, which then passes for pale centres, and where a
        clump without a gap passes for one cell. The finder knows cells by sight, but only near its own scale: it looks
        at the middle of the image at several.

        Returns:
            the diameter, the share of what is stained that lies in cells of about that size, and the diameter of the
            cells found there; NaN where there are too few to tell.
        """
        best, made = (estimate, 0.0, float("nan")), (False, -1.0)
        for part in parts:
            diameter = estimate * part
            if part != 1 and not _LEAST_LOOKED_FOR <= diameter <= max(rgb.shape[:2]):
                continue
            seen = middle(rgb, _SIDE / CELL_DIAMETER * diameter)
            look = self._look(seen, diameter)
            cells = look.found.cells
            share, count = explained(cells, seen), int(cells.max(initial=0))
            makes_sense = share >= _EXPLAINED
            found = (diameter, share, look.seen if count > _FEW else float("nan"))
            if makes_sense and count > _FEW:
                return found
            key = (makes_sense, float(count) if makes_sense else share)
            if key > made:
                made, best = key, found
        return best

    def _settled(self, rgb: npt.NDArray[np.uint8], diameter: float) -> _Look:
        """Find the cells, and once more at the diameter that they turn out to have, if that is another."""
        look = self._look(rgb, diameter)
        far = max(look.seen / diameter, diameter / look.seen) > _FAR if look.seen > 0 else True
        if look.settled or far:
            return look
        if self._factor(rgb, look.seen) == self._factor(rgb, diameter):  # it would be the same picture again
            return replace(look, diameter=look.seen)
        return self._look(rgb, look.seen)


def _nothing(rgb: npt.NDArray[np.uint8], diameter: float) -> tuple[_Look, npt.NDArray[np.int32]]:
    """A look that finds nothing in an image, and its empty map."""
    empty = np.zeros(rgb.shape[:2], np.int32)
    flat = np.zeros((4, *rgb.shape[:2]), np.float32)
    return _Look(diameter, CellMaps(*flat), Found(empty, empty, empty, empty), float("nan")), empty


def too_small(diameter: float) -> str:
    """The warning of an image whose cells are not looked for."""
    return (
        f"red cells are about {diameter:.0f} pixels across: too small to be told apart, so none are counted or "
        f"measured; {LEAST_DIAMETER:.0f} or more are needed"
    )


def ungraded(summary: SmearSummary) -> SmearSummary:
    """The same without severity, where what is found is too small, or too little of the image, to be graded by."""
    return replace(summary, severity_score=float("nan"), severity=None)


def typical_diameter(cells: npt.NDArray[np.int32]) -> float:
    """Diameter of a map's cells, pixels: half of their area lies in cells at most so wide; NaN of none."""
    areas = np.sort(np.bincount(cells.ravel())[1:])
    if not areas.any():
        return float("nan")
    covered = np.cumsum(areas)
    return float(2 * np.sqrt(areas[np.searchsorted(covered, covered[-1] / 2)] / np.pi))


def left_out(table: CellTable, found: Found, shown: npt.NDArray[np.int32], diameter: float) -> list[LeftOut]:
    """List what is not measured: red cells cut by the border, platelets, white cells, fragments.

    Whether something stained that is no red cell is a platelet or a white cell is told by its size alone.

    Args:
        table: measures of the cells, border cells too.
        found: what lies in the image, at the finder's scale.
        shown: (H, W), cells and, with numbers beyond theirs, the pieces of cells at the border.
        diameter: of the red cells, pixels.
    """
    size = shown.shape[0], shown.shape[1]
    pieces = np.where(shown > found.cells.max(initial=0), shown, 0)
    listed = [
        LeftOut(float(table.x[row]), float(table.y[row]), int(table.area_px[row]), BORDER, int(table.cell[row]))
        for row in np.flatnonzero(table.border)
    ]
    listed += [LeftOut(*spot, BORDER) for spot in _spots(pieces)]
    listed += [LeftOut(*spot, FRAGMENT) for spot in _spots(resized_labels(found.fragments, size))]
    for x, y, area in _spots(resized_labels(found.others, size)):
        across = 2 * np.sqrt(area / np.pi)
        listed.append(LeftOut(x, y, area, PLATELET if across < _PLATELET_BELOW * diameter else WHITE_CELL))
    return listed


def _spots(labels: npt.NDArray[np.int32]) -> list[tuple[float, float, int]]:
    """Column, row and area of everything in a map."""
    rows, columns = np.nonzero(labels)  # the film, most of a large map, need not be summed
    inside = labels[rows, columns]
    areas, x, y = (np.bincount(inside, weights) for weights in (None, columns, rows))
    return [(float(x[n] / areas[n]), float(y[n] / areas[n]), int(areas[n])) for n in np.flatnonzero(areas)]


def warnings_about(rgb: npt.NDArray[np.uint8], table: CellTable, diameter: float) -> list[str]:
    """What a reader must know of an image before believing its figures."""
    said = []
    if np.median(rgb[..., 1]) < _DARK_FILM:
        said.append("the film is dark: an inverted or fluorescent image? Cells are looked for as dark on a light film")
    if not len(table):
        said.append("no red cell was found")
    elif table.border.all():
        said.append("every red cell is cut by the border: nothing is measured")
    elif not judged(table).any():
        said.append("no cell is darker than the film in a way that pallor could be measured by: nothing is judged")
    elif diameter < LEAST_DIAMETER:
        said.append(
            f"red cells are {diameter:.0f} pixels across: below {LEAST_DIAMETER:.0f}, shape and pallor are guesses "
            "and no grade is given"
        )
    return said


Constants = TypeVar("Constants", SeverityRule, KindLimits)


def changed(defaults: Constants, text: str, flag: str) -> Constants:
    """Constants with those changed that a text such as ``size_rate=0.5,chronic_from=0.2`` names.

    Raises:
        UserError: a name that is none of the constants, a value that is no number or that the constants refuse.
    """
    known = {name: type(value) for name, value in asdict(defaults).items()}
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            values[name] = known[name](float(number))
        except (KeyError, ValueError, OverflowError):
            raise UserError(
                f"{flag} {part}",
                expected=f"NAME=NUMBER, NAME out of {', '.join(known)}",
                found=name if name not in known else number,
                remedy="mend the list, or leave the flag out for the defaults",
            ) from None
    return replace(defaults, **values)


def measured_by(options: Any) -> str:
    """What the measures of cells depend on beside the image: weights of the finder, constants, whether um are known."""
    weights = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:12] if SHIPPED.is_file() else "none"
    known = "micrometres" if options.um_per_px else "pixels"
    constants = [
        changed(SeverityRule(), options.severity_rule, "--severity_rule"),
        changed(KindLimits(), options.kind_limits, "--kind_limits"),
    ]
    digest = hashlib.sha256(repr(constants).encode()).hexdigest()[:12]
    return f"finder {weights}, constants {digest}, {known}"


def build_analyser(options: Any, device: torch.device) -> CellAnalyser:
    """The analyser that a command's options ask for.

    Args:
        options: with ``cell_diameter`` and ``um_per_px``, 0 where they are not known, ``severity_rule`` and
            ``kind_limits``.
        device: where the finder runs.

    Raises:
        UserError: the finder's weights are missing or damaged, or a constant is none.
    """
    return CellAnalyser(
        load_finder(),
        device,
        cell_diameter=options.cell_diameter or None,
        um_per_px=options.um_per_px or None,
        rule=changed(SeverityRule(), options.severity_rule, "--severity_rule"),
        limits=changed(KindLimits(), options.kind_limits, "--kind_limits"),
    )
