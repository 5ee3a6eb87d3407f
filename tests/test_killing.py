"""A run that is killed, stopped or whose files are damaged ends with the bits of the run that was left in peace."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from data.synthetic_writer import write_dataset
from tests.killed_run import DOOR, train
from util.checkpoint import load_checkpoint
from util.lock import sole_writer

KILLS = 20
BASE = (
    "--name RUN --preset small --loadSize 64 --fineSize 64 --batchSize 3 "
    "--niter 3 --niter_decay 1 --gate_thresholds 0,0,1 --gate_tolerance 1 --cells no --gpu_ids -1 --pretrained none "
    "--num_workers 1 --save_seconds 0.01 --pool_size 4 --val_fraction 0.25 --test_fraction 0.1"
)
RESUME = "--name RUN --continue_train --gpu_ids -1"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork servers are not of Windows")


@pytest.fixture(scope="module")
def start():
    """Starts a training in a process of its own and waits for its end; gives its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_run"])

    def run(line, folder, **death):
        process = context.Process(target=train, args=(line.split(), str(folder)), kwargs=death)
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """The command line of a run that begins, on twelve synthetic smears."""
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=12, seed=5, size=96, workers=1)
    return f"--dataroot {out} {BASE}"


@pytest.fixture(scope="module")
def whole(start, begin, tmp_path_factory):
    """The folder of a run that was left in peace."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(begin, folder) == 0, said(folder)
    return folder


def said(folder):
    return (folder / "log.txt").read_text()


def flat(value, path=""):
    """Every leaf of nested data by its path."""
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), path)
    return {path: value}


def assert_equal(folder, whole):
    """Weights, state and logs of two runs are equal, but for how long they took."""
    ours, theirs = folder / "checkpoints" / "RUN", whole / "checkpoints" / "RUN"
    for name in ("latest_state", "latest_net_3TDCFNet", "best_net_3TDCFNet"):
        mine, other = (content_of(run / f"{name}.safetensors") for run in (ours, theirs))
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"{name}: {key}"
    for run in (ours, theirs):
        assert not [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert timeless(ours) == timeless(theirs)
    ends = [json.loads((run / "finished.json").read_text()) for run in (ours, theirs)]
    assert ends[0] | {"seconds": 0} == ends[1] | {"seconds": 0}
    assert (ours / "gate_log.csv").read_text() == (theirs / "gate_log.csv").read_text()


def content_of(checkpoint):
    """All of a checkpoint but the options, which say whether the run was begun or gone on with."""
    return flat({name: part for name, part in load_checkpoint(checkpoint).items() if name != "options"})


def timeless(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_a_run_killed_at_random_moments_ends_with_the_bits_of_the_whole_one(start, begin, whole, tmp_path):
    draw = random.Random(20261123)
    folder, runs, kills = tmp_path / "0", 0, 0
    folder.mkdir()
    while kills < KILLS:
        death = {"cpu_seconds": draw.uniform(0.05, 3.0)} if kills % 2 else {"saving_call": draw.randrange(1, 60)}
        code = start(RESUME if begun(folder) else begin, folder, **death)
        if code == 0:
            assert_equal(folder, whole)
            runs += 1
            folder = tmp_path / str(runs)
            folder.mkdir()
            continue
        assert code in (-signal.SIGKILL, -signal.SIGPROF), said(folder)
        kills += 1
    assert start(RESUME if begun(folder) else begin, folder) == 0, said(folder)
    assert_equal(folder, whole)


def begun(folder):
    return (folder / "checkpoints" / "RUN" / "latest_state.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_asked_to_stop_saves_says_how_to_go_on_and_goes_on_exactly(number, start, begin, whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=train, args=(begin.split(), str(tmp_path)))
    process.start()
    while "epoch   1/4" not in (said(tmp_path) if (tmp_path / "log.txt").exists() else ""):
        assert process.is_alive(), said(tmp_path)
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    text = said(tmp_path)
    assert "stopped as asked in epoch" in text and "--name RUN --continue_train" in text and "Traceback" not in text
    assert start(RESUME, tmp_path) == 0, said(tmp_path)
    assert_equal(tmp_path, whole)
    starts = [json.loads(line) for line in (tmp_path / "checkpoints" / "RUN" / "starts.jsonl").read_text().splitlines()]
    assert [bool(each["after_epochs"]) for each in starts] == [False, True]
    assert starts[1]["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("damage", ["cut short", "changed byte", "gone"])
def test_a_damaged_state_is_left_for_the_one_before(damage, start, begin, whole, tmp_path):
    # Saved at epochs' ends alone, so that the moment does not depend on how fast the machine is: it is in the fourth.
    assert start(f"{begin} --save_seconds 0", tmp_path, saving_call=60) == -signal.SIGKILL
    before = tmp_path / "checkpoints" / "RUN" / "before_state.safetensors"
    state = tmp_path / "checkpoints" / "RUN" / "latest_state.safetensors"
    content = state.read_bytes()
    assert not before.samefile(state), "in the midst of a save both are names of one file, which is then damaged twice"
    if damage == "gone":
        state.unlink()
    else:
        at = len(content) // 2
        state.write_bytes(content[:at] if damage == "cut short" else content[:at] + b"\x55\xaa" + content[at + 2 :])
    assert start(RESUME, tmp_path, saving_call=14) == -signal.SIGKILL  # in the midst of the first save after the damage
    assert start(RESUME, tmp_path) == 0, said(tmp_path)
    text = said(tmp_path)
    assert "latest_state.safetensors" in text and "going on from" in text and "before_state.safetensors" in text
    assert_equal(tmp_path, whole)


def test_a_second_run_of_the_name_is_refused_while_the_first_one_lives(start, begin, tmp_path):
    with sole_writer(tmp_path / "checkpoints" / "RUN", remedy="none"):
        for line in (begin, RESUME, f"{begin} --overwrite"):
            assert start(line, tmp_path) == 2
            assert "being written by another process\n  expected: one run at a time" in said(tmp_path)
            assert f"process {os.getpid()}: " in said(tmp_path)
    assert not (tmp_path / "checkpoints" / "RUN").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=110m", "none", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(start, begin, whole, small_disk):
    assert start(begin, small_disk, saving_call=41) == -signal.SIGKILL
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 9_000_000))
    assert start(RESUME, small_disk) == 2
    text = said(small_disk)
    assert "cannot write" in text and "No space left on device" in text and "free some space" in text
    assert "Traceback" not in text
    filler.unlink()
    assert start(RESUME, small_disk) == 0, said(small_disk)
    assert_equal(small_disk, whole)


def test_a_folder_that_cannot_be_written_is_refused_before_training(start, begin, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = subprocess.run(
        [sys.executable, str(DOOR), *begin.split(), "--checkpoints_dir", str(small_disk / "checkpoints")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stderr.startswith("error: cannot write") and "choose a folder that can be written" in process.stderr
