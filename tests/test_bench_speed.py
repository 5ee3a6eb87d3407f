"""The speed benchmark: what it counts and writes; its figures themselves are not tested."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "bench_speed.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_speed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_speed"] = module
    spec.loader.exec_module(module)
    return module


def run(bench, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_speed.py", "--gpu_ids", "-1", "--preset", "small", *arguments])
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: True)  # it would stay with the tests that follow
    bench.main()


def test_a_quick_run_writes_figures_with_what_they_depend_on(bench, monkeypatch, tmp_path):
    run(bench, monkeypatch, "--quick", "--only", "device,inference", "--out", str(tmp_path / "new"))
    content = json.loads((tmp_path / "new" / "results.json").read_text())
    assert {"device", "versions", "commit", "command", "load average at start"} <= set(content["facts"])
    rows = {row["name"]: row for row in content["rows"] if row["part"] == "inference"}
    whole, reference = rows["whole network"], rows["whole network, reference: fp32 NCHW eager"]
    assert whole["x fp32 NCHW"] == pytest.approx(whole["images/s"] / reference["images/s"])
    assert rows["Tier-I"]["GFLOP/image"] < rows["Tiers I+II"]["GFLOP/image"] < whole["GFLOP/image"]
    device = next(row for row in content["rows"] if row["part"] == "device")
    work = whole["GFLOP/image"] * whole["images/s"] / 1e3
    assert whole["share of matrix rate"] == pytest.approx(work / device["TFLOP/s"])
    assert whole["batch"] == 2 and len(whole["times"]) == 2
    table = (tmp_path / "new" / "results.md").read_text()
    assert "## inference" in table and "| classification path |" in table


def test_what_does_not_fit_is_said_and_the_others_are_measured(bench, tmp_path):
    options = bench.argparse.Namespace(preset="small", batch=2, steps=1, rounds=2, quick=True)
    report = bench.Report(tmp_path, {})

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    bench.Bench(options, CPU, report).compare("x", {"big": too_large, "small": lambda: lambda: torch.ones(3) + 1}, 64)
    big, small = report.rows
    assert big["out of memory"] == "yes" and small["images/s"] > 0


def test_works_are_timed_in_turns(bench):
    order = []
    times = bench.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, 2, 3)
    assert "".join(order) == "aabb" * 3
    assert len(times["a"]) == 3


def test_the_work_of_a_backward_pass_is_twice_the_forward_one_also_of_grouped_convolutions(bench):
    convolution, image = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.rand(1, 8, 10, 10, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        convolution(image).sum().backward()
    forward = 2 * 9 * 8 * 100  # multiplications and additions: nine taps, eight channels, a hundred positions
    assert bench._floating_point_work(counter) == 3 * forward


def test_bytes_are_those_that_operators_read_and_write_and_views_move_none(bench):
    x = torch.ones(100)
    with bench.BytesMoved() as moved:
        (x.view(10, 10) + 1).t()
    assert moved.total == 2 * 400


@pytest.mark.parametrize("arguments", [("--only", "inference,speed"), ("--sizes", "32")])
def test_parts_and_sizes_that_do_not_exist_are_refused(bench, monkeypatch, tmp_path, arguments):
    with pytest.raises(bench.UserError, match=arguments[0]):
        run(bench, monkeypatch, *arguments, "--out", str(tmp_path))
