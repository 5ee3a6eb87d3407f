"""Module-II within a test: which mask is written, what the tables hold, how grades agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.synthetic import synthesize
from models.cell_files import remove_begun
from models.cell_stage import CELLS, NETWORK, OTSU, CellsOfImage, CellStage, cell_stage, severity_metrics, written_mask
from models.module2.analysis import CellAnalyser, measured_by
from models.module2.finder import load_finder
from models.module2.severity_head import FEATURES, SeverityHead
from util.errors import UserError
from util.runlog import SEVERITY_HEAD


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
        {"severity_pred": "Mild", "severity_score": 0.05, "severity_learned": 0.3},
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


@pytest.mark.parametrize(
    "other", [{"um_per_px": 0.2}, {"severity_rule": "size_rate=1"}, {"kind_limits": "ovalocyte_below=0.7"}]
)
def test_a_head_of_another_measure_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, other: dict[str, Any]
) -> None:
    same = {"cells": "yes", "cell_diameter": 0.0, "um_per_px": 0.0, "cell_pages": 0}
    same |= {"severity_rule": "", "kind_limits": ""}
    numbers, device = (1.0,) * len(FEATURES), torch.device("cpu")
    head = SeverityHead(numbers, numbers, numbers, 0.0, 10, 10, measured_by(SimpleNamespace(**same)))
    head.save(tmp_path / SEVERITY_HEAD)
    stage = cell_stage(SimpleNamespace(**same | other), device, tmp_path, tmp_path)
    assert stage is not None and stage.head is None
    assert "measured otherwise" in capsys.readouterr().err
    stage = cell_stage(SimpleNamespace(**same), device, tmp_path, tmp_path)
    assert stage is not None and stage.head == head
    assert cell_stage(SimpleNamespace(**same | {"cells": "no"}), device, tmp_path, tmp_path) is None


def test_options_reach_the_rule_the_kinds_and_the_scale(tmp_path: Path) -> None:
    smear = synthesize(1, seed=8)
    plain = {"cells": "yes", "cell_diameter": 0.0, "um_per_px": 0.0, "cell_pages": 0}
    plain |= {"severity_rule": "", "kind_limits": ""}

    def stage_with(**other: Any) -> CellStage:
        stage = cell_stage(SimpleNamespace(**plain | other), torch.device("cpu"), tmp_path, tmp_path)
        assert stage is not None
        return stage

    usual = stage_with().analyse(smear.rgb)
    strict = stage_with(severity_rule="chronic_from_relative=0.9,round_rate=4", kind_limits="ovalocyte_below=0.99")
    ruled = strict.analyse(smear.rgb)
    assert strict.limit == 0.9 and stage_with().limit == 0.15
    assert ruled.summary.severity == "Mild" and ruled.summary.severity_score > usual.summary.severity_score
    assert np.nanmin(ruled.scores.roundness_score) < np.nanmin(usual.scores.roundness_score)
    assert (ruled.kinds == "ovalocyte").sum() > 2 * (usual.kinds == "ovalocyte").sum()
    assert ruled.summary.kinds["ovalocyte"] > 2 * usual.summary.kinds["ovalocyte"]
    sized = stage_with(um_per_px=0.5)
    assert sized.analyse(smear.rgb).table.diameter_um == pytest.approx(usual.table.diameter_px * 0.5)
    assert sized.limit == 0.21
    assert stage_with(cell_diameter=25.0).analyse.cell_diameter == 25.0


def test_too_many_cells_cost_one_image_its_cells_and_no_more(
    analyser: CellAnalyser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.cell_files.MOST_CELLS", 5)
    stage = CellStage(analyser, tmp_path, 1)
    image = stage.find(0, "a.png", "a", synthesize(1, seed=8).rgb)
    assert image.cells is None and image.columns == {} and "too many cells" in image.warnings[0]
    assert not (tmp_path / "cells").exists() and stage.gallery.rows() == []


def test_tables_that_cannot_be_finished_leave_nothing(
    analyser: CellAnalyser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    files = CellStage(analyser, tmp_path, 0).files()
    monkeypatch.setattr("models.cell_files.os.fsync", full)
    with pytest.raises(UserError, match="cells.csv"):
        files.close()
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    begun = [tmp_path / f".{name}.csv.{'0a' * 8}" for name in ("cells", "left_out")]
    other = tmp_path / ".cells.csv.of mine"
    for path in (*begun, other):
        path.write_text("x")
    remove_begun(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_agreement_is_of_the_likelier_grade() -> None:
    columns = [{"severity_pred": "Mild", "severity_score": 0.1, "severity_learned": chance} for chance in (0.3, 0.45)]
    said = severity_metrics(["Mild", "Chronic"], columns, ["a", "b"], limit=0.15, resamples=100, seed=0)
    assert said is not None and said["agreement"] == 1.0
