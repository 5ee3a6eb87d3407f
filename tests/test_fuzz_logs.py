"""Logs and learned grades of a run that were damaged, changed or made up: no traceback comes out of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.module2.severity_head import FEATURES, SeverityHead
from tests.test_fuzz_checkpoints import at_one_place, edited, edits, folder, fuzzed, may_refuse  # noqa: F401
from util.figures import gate_timeline, training_curves
from util.runlog import RunFolder

RECORD = {
    "epoch": 1,
    "tier": 1,
    "lr": 0.0005,
    "seconds": 3.5,
    "train": {"loss_cls": 0.69, "loss_L1": 0.2, "accuracy": {"tier1": 0.5, "global": 0.5}, "dice": 0.7},
    "val": {"loss": 0.7, "accuracy": {"tier1": 0.5, "global": 0.5}, "auroc": {"global": None}, "dice": None},
}
GATE = "epoch,tier,decision,reason,train_accuracy,threshold,val_accuracy\r\n1,1,stay,below,0.5,0.85,0.5\r\n"
HEAD = {
    "schema": 1, "features": list(FEATURES), "mean": [0.0] * len(FEATURES), "scale": [1.0] * len(FEATURES),
    "weight": [0.1] * len(FEATURES), "bias": 0.0, "mild": 12, "chronic": 11, "measured_by": "",
}  # fmt: skip


def drawn(run):
    """What the report and the live view make of a run's logs."""
    history, gate = run.history(), run.gate_rows()
    assert all(isinstance(record["epoch"], int) for record in history)
    assert training_curves(history, gate).startswith("<svg") and gate_timeline(gate).startswith("<svg")


@fuzzed(80)
@given(record=at_one_place(RECORD), changes=st.just([]) | edits)
def test_a_history_of_any_content(folder, record, changes):  # noqa: F811
    run = RunFolder(folder, "H")
    run.folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in (RECORD, record, RECORD))
    run.metrics.write_bytes(edited(text.encode("utf-8", "surrogatepass"), changes))
    drawn(run)
    may_refuse(lambda: run.cut_logs(1))


@fuzzed(60)
@given(changes=edits)
def test_a_gate_log_of_any_bytes(folder, changes):  # noqa: F811
    run = RunFolder(folder, "G")
    run.folder.mkdir(exist_ok=True)
    run.gate_log.write_bytes(edited(GATE.encode(), changes))
    drawn(run)
    may_refuse(lambda: run.cut_logs(1))


@pytest.mark.parametrize(
    ("log", "content"),
    [
        ("metrics", b"[" * 100_000),
        ("metrics", b'{"epoch": 1, "a": ' * 50_000),
        ("metrics", b'{"epoch": 1, "train": {"loss": 1' + b"0" * 400 + b"}}"),
        ("metrics", b'{"epoch": 1' + b"0" * 400 + b', "train": {"loss": 1}}'),
        ("metrics", b"\xff\xfe\x00"),
        ("gate_log", GATE.encode() + b"1,1,open," + b"x" * 200_000),
        ("gate_log", GATE.encode() + b"\xff\xfe,1,open,x,1,1,1\r\n"),
        ("gate_log", GATE.encode() + "\N{SUPERSCRIPT TWO},1,open,x,1,1,1\r\n".encode()),
        ("gate_log", GATE.encode() + b"1" * 400 + b",1,open,x,1,1,1\r\n"),
    ],
)
def test_logs_that_a_reader_chokes_on(folder, log, content):  # noqa: F811
    run = RunFolder(folder, "L")
    run.folder.mkdir(exist_ok=True)
    for path in (run.metrics, run.gate_log):
        path.unlink(missing_ok=True)
    getattr(run, log).write_bytes(content)
    drawn(run)
    may_refuse(lambda: run.cut_logs(1))


@fuzzed(120)
@given(content=at_one_place(HEAD), changes=st.just([]) | edits)
def test_a_learned_grade_of_any_content(folder, content, changes):  # noqa: F811
    path = folder / "severity_head.json"
    path.write_bytes(edited(json.dumps(content).encode("utf-8", "surrogatepass"), changes))
    head = may_refuse(lambda: SeverityHead.load(path))
    if head is not None:
        with np.errstate(over="ignore"):
            assert 0 <= head.probability(np.zeros(len(FEATURES))) <= 1
