"""Two processes train one network: the numbers of a lone process, and a lost one is told and costs nothing saved."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.manifest import write_manifest
from data.readers import read_dataroot
from data.synthetic_writer import write_dataset
from tests.killed_run import DOOR, train
from tests.test_killing import assert_equal, flat
from tests.test_loader import batches_of
from tests.test_loader import smears as decoded_smears
from util.distributed import ALONE, Ranks, agree_on_name
from util.errors import UserError

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")

BASE = (
    "--preset small --loadSize 64 --fineSize 64 --batchSize 4 --niter 2 --niter_decay 1 --gate_thresholds 0,0,1 "
    "--gate_tolerance 1 --pool_size 4 --cells no --gpu_ids -1 --pretrained none --num_workers 1 --val_fraction 0.25 "
    "--test_fraction 0.1"
)


@pytest.fixture(scope="module")
def smears(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "smears"
    write_dataset(out, count=14, seed=5, size=96, workers=1)
    return out


def ranked(line, folder, ranks=2, deaths=None):
    """Run the training command as torchrun would start it; gives the exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed_run"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        env = {**told, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
        named = {"env": env if ranks > 1 else {}, "log": f"log{rank}.txt", **(deaths or {}).get(rank, {})}
        processes.append(context.Process(target=train, args=(line.split(), str(folder)), kwargs=named))
        processes[-1].start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def records(folder, name):
    return [json.loads(line) for line in (folder / "checkpoints" / name / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sparse(smears, tmp_path_factory):
    """The same smears, of which one in four has a true mask: some batches, and more shares of them, have none."""
    records = read_dataroot(smears)
    listed = tmp_path_factory.mktemp("sparse") / "manifest.csv"
    kept = [record if index % 4 == 0 else replace(record, mask=None) for index, record in enumerate(records)]
    write_manifest(listed, kept, image_root=smears)
    return f"{listed} --image_root {smears}"


def test_two_processes_of_torchrun_give_the_numbers_of_one(sparse, tmp_path):
    same = f"--dataroot {sparse} {BASE} --true_mask_share 0 --dropout 0 --pool_size 0 --sync_batchnorm yes"
    assert ranked(f"--name ONE {same}", tmp_path, ranks=1) == [0], (tmp_path / "log0.txt").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(DOOR), "--name"]
        + f"TWO {same}".split(),
        capture_output=True, text=True, cwd=tmp_path, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished after 3 epochs") == 1  # the first process alone speaks
    one, two = records(tmp_path, "ONE"), records(tmp_path, "TWO")
    assert len(one) == len(two) == 3
    for mine, other in zip(map(flat, one), map(flat, two), strict=True):
        assert mine.keys() == other.keys()
        for key in mine.keys() - {"/seconds"}:
            assert other[key] == pytest.approx(mine[key], abs=2e-3), key
    first = (flat(run[0]) for run in (one, two))  # before rounding has grown
    assert next(first) | {"/seconds": 0} == pytest.approx(next(first) | {"/seconds": 0}, abs=1e-5)


def test_a_lost_process_is_told_and_the_run_goes_on_exactly_or_on_another_number(smears, tmp_path):
    line = f"--dataroot {smears} --name RUN --save_seconds 0.01 {BASE}"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    assert ranked(line, whole) == [0, 0], (whole / "log0.txt").read_text()
    codes = ranked(line, cut, deaths={0: {"saving_call": 31}})
    assert codes == [-signal.SIGKILL, 2]
    text = (cut / "log1.txt").read_text()
    assert "process 1 of 2 has lost one of the others" in text and "--continue_train on any number" in text
    resume = "--name RUN --continue_train --gpu_ids -1"
    codes = ranked(resume, cut, deaths={1: {"cpu_seconds": 1.5}})
    assert codes == [2, -signal.SIGPROF]
    assert "process 0 of 2 has lost one of the others" in (cut / "log0.txt").read_text()
    subprocess.run(["cp", "-r", str(cut), str(tmp_path / "alone")], check=True)
    assert ranked(resume, cut) == [0, 0], (cut / "log0.txt").read_text()
    assert_equal(cut, whole)
    assert ranked(resume, tmp_path / "alone", ranks=1) == [0], (tmp_path / "alone" / "log0.txt").read_text()
    assert [record["epoch"] for record in records(tmp_path / "alone", "RUN")] == [1, 2, 3]


@pytest.mark.parametrize("count", [7, 8, 9, 10, 11])
def test_shares_make_up_the_batch_and_each_holds_two(count):
    """Three processes: nothing is lost, nothing stands twice, and no process gets a single image."""
    source = decoded_smears(n=count)

    def batches(share, seen=0):
        loader = batches_of(source, batch=6, shuffle=True, seed=3, share=share)
        loader.set_epoch(2, seen)
        assert len(loader) == len(list(loader))
        return [batch.index.tolist() for batch in loader]

    whole = [sorted(sum(parts, [])) for parts in zip(*(batches((rank, 3)) for rank in range(3)), strict=True)]
    assert sorted(sum(whole, [])) == list(range(count))
    assert all(len(part) >= 2 for rank in range(3) for part in batches((rank, 3)))
    alone = batches((0, 1))
    assert batches((0, 1), seen=len(alone[0])) == alone[1:]


@pytest.mark.parametrize(("seen", "processes", "left"), [(6, 1, [2]), (6, 2, []), (6, 8, []), (0, 2, [8])])
def test_what_is_left_of_an_epoch_for_more_processes(seen, processes, left):
    loader = batches_of(decoded_smears(n=8), batch=6, shuffle=True, share=(0, processes))
    loader.set_epoch(0, seen)
    assert loader._sizes_after(seen) == left and len(list(loader)) == len(left)


def test_a_process_alone_needs_no_others():
    tensor = torch.ones(3)
    assert ALONE.sum(tensor) is tensor and ALONE.any([True, False]) == [True, False] and ALONE.gather("x") == ["x"]
    assert list(Ranks(1, 3).share(np.arange(7))) == [1, 4]


def test_gpus_and_processes_must_match(monkeypatch):
    from util.device import choose_device

    with pytest.raises(UserError, match="names 2 GPUs for 1 process"):
        choose_device("0,1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="names 1 GPU for 2 processes"):
        choose_device("0")


def test_a_batch_too_small_for_the_processes_is_refused(smears, tmp_path):
    assert ranked(f"--dataroot {smears} --name RUN {BASE} --batchSize 3", tmp_path) == [2, 2]
    assert "--batchSize 3 is too small for 2 processes" in (tmp_path / "log0.txt").read_text()


def test_a_restart_takes_no_address_of_the_processes_before_it():
    """A store that outlives the processes, as torchrun's does: what was said in an earlier start must not be taken."""
    store = torch.distributed.HashStore()
    names = [in_threads(lambda rank: agree_on_name(store, rank, 3), 3) for _ in range(3)]
    assert all(len(set(said)) == 1 for said in names)
    assert len({said[0] for said in names}) == 3


def test_a_process_that_was_lost_before_it_was_answered_keeps_no_one_waiting():
    store = torch.distributed.HashStore()
    store.set("asks/1", "gone")
    said = in_threads(lambda rank: agree_on_name(store, rank, 2), 2)
    assert said[0] == said[1]


def in_threads(work, ranks):
    with ThreadPoolExecutor(ranks) as pool:
        return [future.result(20) for future in [pool.submit(work, rank) for rank in reversed(range(ranks))]]


RESTARTED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from util.distributed import join_ranks
if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" and os.environ["RANK"] == "1":
    time.sleep(3)  # the first process looks for the other before that one has come
with join_ranks(torch.device("cpu")) as ranks:
    total = int(ranks.sum(torch.ones(1)))
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.any([False])
    with open(f"said{ranks.rank}", "w") as file:
        file.write(f"{total} in start {os.environ['TORCHELASTIC_RESTART_COUNT']}")
"""


def test_torchrun_restarts_the_processes_and_they_find_each_other(tmp_path):
    (tmp_path / "job.py").write_text(RESTARTED)
    job = ["--standalone", "--nproc_per_node", "2", "--max_restarts", "1", "job.py", str(DOOR.parent)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *job],
        capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"said{rank}").read_text() for rank in range(2)] == ["2 in start 1"] * 2
