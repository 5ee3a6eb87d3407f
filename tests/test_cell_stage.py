"""Module-II within a test: which mask is written, what the tables hold, how grades agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.synthetic import synthesize
from models.cell_stage import CELLS, NETWORK, OTSU, CellsOfImage, CellStage, cell_stage, severity_metrics, written_mask
from models.grading import SEVERITY_HEAD
from models.module2.analysis import CellAnalyser
from models.module2.finder import load_finder
from models.module2.severity_head import FEATURES, SeverityHead


@pytest.fixture(scope="module")
def analyser() -> CellAnalyser:
    return CellAnalyser(load_finder(), torch.device("cpu"))


@pytest.fixture(scope="module")
def found(analyser: CellAnalyser) -> CellsOfImage:
    return CellsOfImage(analyser(synthesize(1, seed=8).rgb), ())


def test_the_cells_mask_is_written_where_the_network_sees_too_little(found: CellsOfImage) -> None:
    drawn = np.zeros((300, 300), bool)
    assert found.cells is not None
    for rule, otsu, load_size, expected in (
        ("auto", False, 300, NETWORK),
        ("auto", False, 201, NETWORK),
        ("auto", False, 199, CELLS),
        ("auto", True, 300, CELLS),
        ("network", False, 100, NETWORK),
        ("network", True, 100, OTSU),
        ("cells", False, 300, CELLS),
    ):
        mask, source = written_mask(drawn, otsu, found, rule, load_size)
        assert source == expected, (rule, otsu, load_size)
        assert mask is (found.cells.mask if expected == CELLS else drawn)
    assert written_mask(drawn, True, None, "cells", 100) == (drawn, OTSU)
    assert written_mask(drawn, False, CellsOfImage(None, ()), "cells", 100) == (drawn, NETWORK)


def test_no_cell_leaves_the_network_s_mask(analyser: CellAnalyser) -> None:
    nothing = CellsOfImage(analyser(np.full((80, 80, 3), 220, np.uint8)), ())
    drawn = np.ones((80, 80), bool)
    assert written_mask(drawn, False, nothing, "cells", 20)[1] == NETWORK


def test_files_and_columns_agree(analyser: CellAnalyser, tmp_path: Path) -> None:
    head = SeverityHead((0.0,) * len(FEATURES), (1.0,) * len(FEATURES), (0.0,) * len(FEATURES), 2.0, 10, 10)
    stage = CellStage(analyser, tmp_path, 1, head)
    smears = {f"{index}.png": synthesize(index, seed=8) for index in range(2)}
    with stage.files() as files:
        columns = {}
        for index, (name, smear) in enumerate(smears.items()):
            image = stage.find(index, name, name[:-4], smear.rgb)
            assert image.cells is not None
            files.add(name, name[:-4], image.cells)
            columns[name] = image.columns
    with (tmp_path / "cells.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (tmp_path / "left_out.csv").open(newline="") as stream:
        left = list(csv.DictReader(stream))
    for name in smears:
        instances = np.asarray(Image.open(tmp_path / f"instances/{name}"))
        assert instances.dtype == np.uint16
        numbers = set(np.unique(instances)) - {0}
        mine = {int(row["cell"]) for row in rows if row["image"] == name}
        border = {int(row["cell"]) for row in left if row["image"] == name and row["cell"]}
        assert mine | border == numbers and not mine & border and mine
        assert columns[name]["cell_count"] == len(numbers)
        assert columns[name]["severity_learned"] == pytest.approx(1 / (1 + np.exp(-2)))
        for row in rows:
            if row["image"] == name:
                assert (instances == int(row["cell"])).sum() == int(row["area_px"])
    assert (tmp_path / "cells/0.html").is_file() and not (tmp_path / "cells/1.html").exists()


def test_agreement_of_grades() -> None:
    truths = ["Chronic", "Mild", "Chronic", None, "Mild", "Chronic"]
    columns = [
        {"severity_pred": "Chronic", "severity_score": 0.3, "severity_learned": 0.9},
        {"severity_pred": "Chronic", "severity_score": 0.2, "severity_learned": 0.4},
        {"severity_pred": "Mild", "severity_score": 0.1, "severity_learned": 0.8},
        {"severity_pred": "Mild", "severity_score": 0.1, "severity_learned": 0.1},
        {"severity_pred": "Mild", "severity_score": 0.05, "severity_learned": 0.2},
        {},
    ]
    said = severity_metrics(truths, columns, list("abcdef"), limit=0.15, resamples=200, seed=0)
    assert said is not None
    assert said["rule"]["n"] == 4 and said["rule"]["accuracy"] == 0.5
    assert said["rule"]["confusion_matrix"] == [[1, 1], [1, 1]]
    assert said["rule"]["auroc"] == 0.75  # of the four pairs, (.1, .2) alone stands the wrong way
    assert said["learned"]["accuracy"] == 1.0 and said["agreement"] == 0.5
    assert json.dumps(said)
    unlearned = [{**row, "severity_learned": None} for row in columns]
    plain = severity_metrics(truths, unlearned, list("abcdef"), limit=0.15, resamples=200, seed=0)
    assert plain is not None and "learned" not in plain and "agreement" not in plain
    assert severity_metrics([None] * 6, columns, list("abcdef"), limit=0.15, resamples=9, seed=0) is None


def test_a_score_at_the_threshold_is_what_the_rule_called_it() -> None:
    columns = [{"severity_pred": "Chronic", "severity_score": 0.15}, {"severity_pred": "Mild", "severity_score": 0.149}]
    said = severity_metrics(["Chronic", "Mild"], columns, ["a", "b"], limit=0.15, resamples=100, seed=0)
    assert said is not None and said["rule"]["accuracy"] == 1.0


def test_a_head_of_another_measure_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    numbers = (1.0,) * len(FEATURES)
    SeverityHead(numbers, numbers, numbers, 0.0, 10, 10, micrometres=True).save(tmp_path / SEVERITY_HEAD)
    options = SimpleNamespace(
        cells="yes", cell_diameter=0.0, um_per_px=0.0, cell_pages=0, severity_rule="", kind_limits=""
    )
    stage = cell_stage(options, torch.device("cpu"), tmp_path, tmp_path)
    assert stage is not None and stage.head is None
    assert "micrometres" in capsys.readouterr().err
    options.um_per_px = 0.2
    stage = cell_stage(options, torch.device("cpu"), tmp_path, tmp_path)
    assert stage is not None and stage.head is not None
    options.cells = "no"
    assert cell_stage(options, torch.device("cpu"), tmp_path, tmp_path) is None
