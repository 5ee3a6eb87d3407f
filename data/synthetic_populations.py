"""Whose blood the synthetic smears show: populations with their blood counts, one drawn subject, and its report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.records import ANEMIC, HEALTHY

# Shapes that a cell can be born with; every other cell is a plain disc, named later by its own size and pallor.
SHAPE_KINDS = (
    "spherocyte", "target", "elliptocyte", "teardrop", "stomatocyte", "burr", "schistocyte", "sickle"
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """A normal distribution cut off at both ends.

    Attributes:
        mean: centre of the distribution before it is cut.
        sd: standard deviation before it is cut.
        low: no draw lies below.
        high: no draw lies above.
    """

    mean: float
    sd: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one value within the limits (redrawn, not clipped, so that no value piles up at a limit)."""
        while True:
            value = float(rng.normal(self.mean, self.sd))
            if self.low <= value <= self.high:
                return value


@dataclass(frozen=True)
class Population:
    """What is typical of the blood of one group of people.

    Attributes:
        name: what a haematologist would call it.
        label: HEALTHY (0) or ANEMIC (1).
        severity: None, "Mild" or "Chronic" (the published class name; it means severe).
        share: how often it is drawn among the populations of the same label and severity.
        haemoglobin: g/dL, of a woman and of a man.
        mcv: mean cell volume, fL.
        mchc: mean cell haemoglobin concentration, g/dL.
        rdw: coefficient of variation of the cell volume, percent.
        white_cells: 10^3/uL.
        platelets: 10^3/uL.
        cells_per_field: red cells on a field of 300 x 300 pixels.
        axis_ratio_sd: how far the plain cells are from round.
        roughness: relative amplitude of the irregularities of the outline.
        kinds: fraction of cells of each of SHAPE_KINDS.
        polychromasia: fraction of cells that are young, large and bluish.
    """

    name: str
    label: int
    severity: str | None
    share: float
    haemoglobin: tuple[Span, Span]
    mcv: Span
    mchc: Span
    rdw: Span
    white_cells: Span
    platelets: Span
    cells_per_field: Span
    axis_ratio_sd: float
    roughness: float
    kinds: tuple[float, ...]
    polychromasia: float


# Haemoglobin limits: WHO, "Haemoglobin concentrations for the diagnosis of anaemia and assessment of severity" (2011;
# the adult limits stand in the guideline of 2024): anaemia below 12.0 (women) and 13.0 g/dL (men), mild from 11.0 g/dL,
# severe below 8.0 g/dL. Moderate anaemia is left out: the method knows two grades only.
# Cell indices and shapes: Bain, "Blood Cells", and Hoffbrand & Steensma, "Essential Haematology": adult MCV 80 to
# 100 fL, MCH 27 to 32 pg, RDW 11.5 to 14.5 %; iron deficiency is microcytic and hypochromic with pencil, target and
# tear cells and often many platelets; megaloblastic anaemia is macrocytic with oval cells and few platelets.
# MCH is MCV x MCHC. Thalassaemia trait is microcytic out of proportion, with target cells and a nearly normal RDW;
# sickle cell disease is normocytic with sickle and target cells, many young cells, white cells and platelets;
# microangiopathic haemolysis shows fragments (ICSH: 1 % or more schistocytes), spherocytes, young cells and few
# platelets (Bain).
# The ranges of cells per field are ours and overlap widely, so that counting alone does not tell the classes apart.
_IRON_PLATELETS = Span(330, 85, 160, 700)
_MACRO_PLATELETS = Span(190, 50, 90, 380)
_WHITE_CELLS = Span(7.0, 1.6, 3.8, 11.5)
POPULATIONS = (
    Population(
        "healthy", HEALTHY, None, 1.0,
        (Span(13.5, 0.8, 12.0, 15.6), Span(15.0, 0.9, 13.0, 17.2)),
        Span(90, 4, 80, 100), Span(33.5, 0.7, 32, 35.5), Span(13.0, 0.6, 11.5, 14.5),
        _WHITE_CELLS, Span(255, 55, 150, 400), Span(122, 22, 60, 175),
        0.08, 0.020, (0.003, 0.004, 0.010, 0.003, 0.012, 0.003, 0.001, 0.0), 0.008,
    ),
    Population(
        "iron deficiency, mild", ANEMIC, "Mild", 0.77,
        (Span(11.5, 0.3, 11.0, 11.9), Span(12.0, 0.5, 11.0, 12.9)),
        Span(77, 4, 66, 86), Span(31.5, 0.9, 29, 33.5), Span(16.0, 1.3, 13.8, 20),
        _WHITE_CELLS, _IRON_PLATELETS, Span(118, 22, 55, 170),
        0.11, 0.026, (0.003, 0.015, 0.050, 0.015, 0.012, 0.004, 0.004, 0.0), 0.012,
    ),
    Population(
        "macrocytic, mild", ANEMIC, "Mild", 0.13,
        (Span(11.5, 0.3, 11.0, 11.9), Span(12.0, 0.5, 11.0, 12.9)),
        Span(107, 4, 101, 118), Span(33.5, 0.7, 32, 35.5), Span(16.0, 1.2, 14, 20),
        _WHITE_CELLS, _MACRO_PLATELETS, Span(110, 22, 50, 160),
        0.11, 0.026, (0.005, 0.010, 0.080, 0.015, 0.012, 0.004, 0.004, 0.0), 0.012,
    ),
    Population(
        "thalassaemia trait, mild", ANEMIC, "Mild", 0.10,
        (Span(11.4, 0.3, 11.0, 11.9), Span(11.9, 0.5, 11.0, 12.9)),
        Span(67, 4, 58, 76), Span(31.5, 0.8, 29.5, 33.5), Span(14.8, 0.8, 13.0, 17),
        _WHITE_CELLS, Span(255, 55, 150, 400), Span(118, 22, 55, 170),
        0.10, 0.026, (0.004, 0.060, 0.025, 0.010, 0.012, 0.004, 0.006, 0.0), 0.015,
    ),
    Population(
        "iron deficiency, severe", ANEMIC, "Chronic", 0.75,
        (Span(6.8, 0.8, 4.0, 7.9), Span(6.8, 0.8, 4.0, 7.9)),
        Span(65, 4, 54, 75), Span(29.0, 1.1, 25.5, 31.5), Span(20.0, 2.0, 16, 27),
        _WHITE_CELLS, _IRON_PLATELETS, Span(108, 22, 50, 160),
        0.14, 0.033, (0.005, 0.045, 0.120, 0.045, 0.012, 0.008, 0.015, 0.0), 0.020,
    ),
    Population(
        "macrocytic, severe", ANEMIC, "Chronic", 0.13,
        (Span(6.8, 0.8, 4.0, 7.9), Span(6.8, 0.8, 4.0, 7.9)),
        Span(117, 5, 107, 132), Span(33.5, 0.7, 32, 35.5), Span(21.0, 2.0, 17, 28),
        Span(4.5, 1.0, 2.5, 7.5), _MACRO_PLATELETS, Span(98, 22, 45, 150),
        0.14, 0.033, (0.008, 0.015, 0.150, 0.060, 0.012, 0.006, 0.015, 0.0), 0.015,
    ),
    Population(
        "sickle cell disease, severe", ANEMIC, "Chronic", 0.07,
        (Span(7.0, 0.6, 5.0, 7.9), Span(7.0, 0.6, 5.0, 7.9)),
        Span(88, 5, 76, 100), Span(33.5, 0.8, 31.5, 36), Span(21.0, 2.0, 17, 27),
        Span(11.0, 2.5, 6, 18), Span(400, 80, 230, 600), Span(100, 22, 45, 150),
        0.13, 0.030, (0.010, 0.070, 0.060, 0.015, 0.012, 0.010, 0.012, 0.110), 0.060,
    ),
    Population(
        "microangiopathic haemolysis, severe", ANEMIC, "Chronic", 0.05,
        (Span(7.2, 0.5, 5.0, 7.9), Span(7.2, 0.5, 5.0, 7.9)),
        Span(89, 5, 78, 101), Span(33.5, 0.7, 32, 35.5), Span(19.0, 2.0, 15, 26),
        _WHITE_CELLS, Span(60, 30, 12, 140), Span(104, 22, 45, 155),
        0.11, 0.030, (0.035, 0.005, 0.020, 0.010, 0.010, 0.015, 0.070, 0.0), 0.060,
    ),
)  # fmt: skip

# Adult reference ranges behind the asterisk that marks an abnormal value in a report.
_REFERENCE = {
    "WBC": (4.0, 10.0), "RBC": (3.8, 5.8), "HGB": (12.0, 17.0), "HCT": (36.0, 50.0), "MCV": (80.0, 100.0),
    "MCH": (27.0, 32.0), "MCHC": (31.5, 36.0), "RDW-CV": (11.5, 14.5), "PLT": (150.0, 410.0),
}  # fmt: skip
_UNITS = {
    "WBC": "10^3/uL", "RBC": "10^6/uL", "HGB": "g/dL", "HCT": "%", "MCV": "fL",
    "MCH": "pg", "MCHC": "g/dL", "RDW-CV": "%", "PLT": "10^3/uL",
}  # fmt: skip
_DECIMALS = {"WBC": 2, "RBC": 2, "PLT": 0}


@dataclass(frozen=True)
class Subject:
    """The blood count behind one smear.

    Attributes:
        population: where the subject was drawn from.
        haemoglobin: g/dL.
        mcv: fL.
        mchc: g/dL.
        rdw: percent.
        white_cells: 10^3/uL.
        platelets: 10^3/uL.
        cells_per_field: expected red cells on 300 x 300 pixels.
    """

    population: Population
    haemoglobin: float
    mcv: float
    mchc: float
    rdw: float
    white_cells: float
    platelets: float
    cells_per_field: float

    @property
    def mch(self) -> float:
        """Mean haemoglobin of a cell, pg."""
        return self.mcv * self.mchc / 100

    @property
    def red_cells(self) -> float:
        """Red cell count, 10^6/uL."""
        return 10 * self.haemoglobin / self.mch


def draw_subject(label: int, severity: str | None, rng: np.random.Generator) -> Subject:
    """Draw one person of the given label and severity.

    Args:
        label: HEALTHY or ANEMIC.
        severity: None for HEALTHY, else "Mild" or "Chronic".
        rng: source of chance.
    """
    choices = [population for population in POPULATIONS if (population.label, population.severity) == (label, severity)]
    shares = np.array([population.share for population in choices])
    population = choices[int(rng.choice(len(choices), p=shares / shares.sum()))]
    return Subject(
        population=population,
        haemoglobin=population.haemoglobin[int(rng.integers(2))].draw(rng),
        mcv=population.mcv.draw(rng),
        mchc=population.mchc.draw(rng),
        rdw=population.rdw.draw(rng),
        white_cells=population.white_cells.draw(rng),
        platelets=population.platelets.draw(rng),
        cells_per_field=population.cells_per_field.draw(rng),
    )


def blood_count_report(subject: Subject) -> str:
    """Write the complete blood count as AneRBC's reports do: one ``test,value unit`` a line, abnormal values with *."""
    values = {
        "WBC": subject.white_cells,
        "RBC": subject.red_cells,
        "HGB": subject.haemoglobin,
        "HCT": subject.red_cells * subject.mcv / 10,
        "MCV": subject.mcv,
        "MCH": subject.mch,
        "MCHC": subject.mchc,
        "RDW-CV": subject.rdw,
        "PLT": subject.platelets,
    }
    lines = ["Test,Result/Units"]
    for test, value in values.items():
        low, high = _REFERENCE[test]
        mark = "" if low <= value <= high else "* "
        lines.append(f"{test},{mark}{value:.{_DECIMALS.get(test, 1)}f} {_UNITS[test]}")
    return "\n".join(lines) + "\n"
