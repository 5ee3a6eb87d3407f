"""What is meant for a GPU works on a device that is not the host: no tensor is left behind, and no step waits.

The device is that of other_device.py, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no device for others to fill",
)


def asked(repository, folder, what):
    command = [sys.executable, str(repository / "tests/other_device_run.py"), what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_training_gives_what_the_host_gives_and_no_step_waits_for_the_device(repository, tmp_path):
    for masks, found in asked(repository, tmp_path, "learning").items():
        assert found["crossings"] == [], f"{masks} images with masks"
        assert found["logits"] < 1e-3 and found["masks"] < 1e-3  # a fused step rounds otherwise
        assert found["sums"] <= 40 and found["crossings for the sums"] == 2, found  # a pixel or two near one half


def test_a_run_goes_on_on_another_device_than_it_was_begun_on(repository, tmp_path):
    assert asked(repository, tmp_path, "moving") == {"there": 0.0, "back": 0.0}


def test_batches_are_those_of_the_host_and_none_crosses_over_by_itself(repository, tmp_path):
    assert asked(repository, tmp_path, "batches") == {"largest difference": 0.0, "crossings": []}


def test_cells_are_found_there(repository, tmp_path):
    assert asked(repository, tmp_path, "cells")["largest difference"] < 1e-5


def test_a_checkpoint_crosses_over_once_for_each_kind_of_number(repository, tmp_path):
    assert asked(repository, tmp_path, "saving") == {"crossings": 2, "equal": True}  # float32 and int64


@pytest.mark.slow
def test_training_test_and_prediction_run_there(repository, tmp_path):
    found = asked(repository, tmp_path, "doors")
    assert found["baselines"] == ["colour", "frozen"]
    assert [page for page in found["files"] if "cells" not in page] == [
        "OTHER/predict_latest/index.html",
        "OTHER/test_latest/index.html",
    ]
