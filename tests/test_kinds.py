"""Names of cells by rule: one cell of each kind, whose measures are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.module2.kinds import KINDS, NOT_JUDGED, KindLimits, judged, kinds_of, reference_diameter
from models.module2.morphometry import CellTable, measure_cells

PLAIN = {
    "area_px": 1257, "diameter_px": 40.0, "roundness": 0.95, "elongation": 1.05, "central_pallor": 0.3,
    "pallor_depth": 0.6, "bump": 0.0, "absorbance": 0.3, "solidity": 0.98, "irregularity": 0.01, "tail": 0.02,
    "spikes": 0, "free": 1.0, "overlapped": False, "border": False, "x": 0.0, "y": 0.0, "angle": 0.0,
}  # fmt: skip


def table_of(*changes, plain=8, um_per_px=None):
    """Cells that differ from a plain one as told, and plain ones after them."""
    cells = [{**PLAIN, **change} for change in changes] + [PLAIN] * plain
    columns = {name: np.array([cell[name] for cell in cells]) for name in PLAIN}
    return CellTable(cell=np.arange(1, len(cells) + 1), **columns, um_per_px=um_per_px)


CASES = {
    "sickle": {"roundness": 0.4, "irregularity": 0.09},
    "teardrop": {"roundness": 0.75, "irregularity": 0.07, "tail": 0.25, "spikes": 1},
    "schistocyte": {"diameter_px": 28.0, "irregularity": 0.08, "tail": 0.1, "central_pallor": 0.05},
    "burr": {"spikes": 9, "tail": 0.06, "irregularity": 0.04, "solidity": 0.93},
    "target": {"bump": 0.5, "central_pallor": 0.4},
    "elliptocyte": {"roundness": 0.42},
    "ovalocyte": {"roundness": 0.7},
    "spherocyte": {"central_pallor": 0.02, "diameter_px": 33.0},
    "hypochromic": {"central_pallor": 0.5},
    "microcyte": {"diameter_px": 32.0},
    "macrocyte": {"diameter_px": 48.0},
    "normal": {},
}


def test_every_kind_has_a_case():
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_each_kind_is_named(kind):
    assert kinds_of(table_of(CASES[kind])).tolist() == [kind] + ["normal"] * 8


def test_border_cells_and_cells_without_pallor_are_not_judged():
    table = table_of({"border": True, "roundness": 0.4}, {"central_pallor": np.nan})
    assert kinds_of(table)[:2].tolist() == [NOT_JUDGED] * 2
    assert judged(table).tolist() == [False, False] + [True] * 8


def test_size_is_relative_to_the_plain_cells_and_not_to_all():
    many_small_spherocytes = [CASES["spherocyte"]] * 12
    table = table_of(*many_small_spherocytes, {"diameter_px": 43.0}, plain=6)
    assert reference_diameter(table) == pytest.approx(40)
    assert kinds_of(table)[12] == "normal"


def test_with_few_plain_cells_all_judged_cells_set_the_size():
    table = table_of(*[CASES["spherocyte"]] * 5, plain=2)
    assert reference_diameter(table) == pytest.approx(33)
    assert np.isnan(reference_diameter(table_of({"border": True}, plain=0)))


def test_micrometres_are_used_where_they_are_known():
    relative = table_of(plain=8)
    assert set(kinds_of(relative)) == {"normal"}
    assert set(kinds_of(replace(relative, um_per_px=0.15))) == {"microcyte"}  # 6.0 um
    assert set(kinds_of(replace(relative, um_per_px=0.18))) == {"normal"}  # 7.2 um
    assert set(kinds_of(replace(relative, um_per_px=0.21))) == {"macrocyte"}  # 8.4 um


def test_outlines_that_are_mostly_hidden_are_not_judged_by_their_outline():
    hidden = {**CASES["teardrop"], "roundness": 0.9, "free": 0.4}
    assert kinds_of(table_of(hidden))[0] == "normal"


def test_a_target_whose_outline_is_notched_is_a_target():
    assert kinds_of(table_of({**CASES["burr"], **CASES["target"]}))[0] == "target"


def test_limits_can_be_moved():
    table = table_of(CASES["ovalocyte"])
    assert kinds_of(table, KindLimits(ovalocyte_below=0.6))[0] == "normal"


def test_an_empty_table_has_no_kinds():
    empty = measure_cells(np.zeros((8, 8), np.int32), np.zeros((8, 8, 3), np.uint8))
    assert kinds_of(empty).shape == (0,)


def test_drawn_cells_are_named_by_what_they_are():
    rows, columns = np.mgrid[:400, :400]
    labels = np.zeros((400, 400), np.int32)
    absorbance = np.zeros((400, 400))
    expected = []
    shapes = {"normal": (1, 1, 0.33), "ovalocyte": (1.2, 0.85, 0.33), "microcyte": (0.8, 0.8, 0.33),
              "macrocyte": (1.25, 1.25, 0.33), "spherocyte": (1, 1, 0.0), "hypochromic": (1, 1, 0.55)}  # fmt: skip
    names = ["normal"] * 20 + [name for name in shapes if name != "normal"]
    for number, name in enumerate(names):
        wide, tall, pale = shapes[name]
        y, x = 40 + 75 * (number // 5), 40 + 75 * (number % 5)
        away = np.hypot((columns - x) / (22 * wide), (rows - y) / (22 * tall))
        labels[away < 1] = number + 1
        absorbance += np.where(away < pale, 0.05, 0.3) * (away < 1)
        expected.append(name)
    rgb = np.repeat(np.rint(221 * 10.0**-absorbance - 1).astype(np.uint8)[..., None], 3, axis=2)
    assert kinds_of(measure_cells(labels, rgb)).tolist() == expected
