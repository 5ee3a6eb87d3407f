"""Learning the severity at the end of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.synthetic import synthesize
from models.grading import learn_severity
from models.module2.kinds import kinds_of
from models.module2.morphometry import measure_cells
from models.module2.severity import score_cells, summarise
from models.module2.severity_head import LEAST_OF_EACH, SeverityHead, summary_features
from models.module2.smear_cells import SmearCells
from util.runlog import SEVERITY_HEAD


def exact(seed: int) -> dict[int, SmearCells]:
    """Cells of synthetic smears by the brightness of a stand-in image, Mild and Chronic in turn."""
    found = {}
    for index in range(4):
        smear = synthesize(index, seed=seed, size=200)
        table = measure_cells(smear.instances, smear.rgb)
        found[index] = SmearCells(
            smear.instances.astype(np.int32),
            smear.mask,
            table,
            kinds_of(table),
            score_cells(table),
            summarise(table),
            [],
            20.0,
            [],
        )
    return found


def smears(count: int) -> list[tuple[np.ndarray, str]]:
    return [(np.full((2, 2, 3), i % 4, np.uint8), "Chronic" if i % 2 else "Mild") for i in range(count)]


@pytest.fixture(scope="module")
def known() -> dict[int, SmearCells]:
    return exact(1)


def test_a_head_is_learned_and_kept(
    tmp_path: Path, known: dict[int, SmearCells], capsys: pytest.CaptureFixture
) -> None:
    path, count = tmp_path / SEVERITY_HEAD, 2 * LEAST_OF_EACH
    counts = {"Mild": LEAST_OF_EACH, "Chronic": LEAST_OF_EACH}
    head = learn_severity(iter(smears(count)), counts, lambda rgb: known[int(rgb[0, 0, 0])], path, measured_by="so")
    assert head is not None and (head.mild, head.chronic, head.measured_by) == (LEAST_OF_EACH, LEAST_OF_EACH, "so")
    assert SeverityHead.load(path) == head
    # Images 1 and 3 of the four were called Chronic, and the head says so.
    features = {index: summary_features(cells.summary) for index, cells in known.items()}
    chances = {index: head.probability(found) for index, found in features.items() if found is not None}
    assert min(chances[1], chances[3]) > max(chances[0], chances[2])
    assert "10 Mild and 10 Chronic" in capsys.readouterr().out


def test_too_few_grades_leave_the_rule_and_no_old_head(
    tmp_path: Path, known: dict[int, SmearCells], capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / SEVERITY_HEAD
    path.write_text("of an earlier training")

    def refuse(_: np.ndarray) -> SmearCells:
        raise AssertionError("no image need be read")

    assert learn_severity(iter(smears(9)), {"Mild": 5, "Chronic": 4}, refuse, path, measured_by="so") is None
    assert not path.exists() and "4 Chronic, 5 Mild" in capsys.readouterr().out
    assert learn_severity(iter([]), {}, refuse, path, measured_by="so") is None
    assert "(no graded training images" in capsys.readouterr().out


def test_images_without_a_measured_cell_teach_nothing(
    tmp_path: Path, known: dict[int, SmearCells], capsys: pytest.CaptureFixture
) -> None:
    empty = measure_cells(np.zeros((4, 4), np.int32), np.zeros((4, 4, 3), np.uint8))
    nothing = SmearCells(
        np.zeros((4, 4), np.int32),
        np.zeros((4, 4), bool),
        empty,
        kinds_of(empty),
        score_cells(empty),
        summarise(empty),
        [],
        float("nan"),
        [],
    )
    counts = {"Mild": LEAST_OF_EACH, "Chronic": LEAST_OF_EACH}
    found = iter(smears(2 * LEAST_OF_EACH))

    def analyse(rgb: np.ndarray) -> SmearCells:
        return nothing if rgb[0, 0, 0] == 1 else known[int(rgb[0, 0, 0])]

    assert learn_severity(found, counts, analyse, tmp_path / SEVERITY_HEAD, measured_by="so") is None
    assert "rule alone" in capsys.readouterr().out and not (tmp_path / SEVERITY_HEAD).exists()
