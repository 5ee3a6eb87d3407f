"""Processes that listen for each other: a silent one is noticed, one that has come to its end is not missed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed

from util import heartbeat
from util.heartbeat import Heartbeat

PATIENCE = 1.0


class Hearts:
    """Heartbeats of two processes, here two threads, on one store."""

    def __init__(self, stores):
        self.lost, self.told = [], threading.Event()
        self.hearts = [Heartbeat(store, rank, 2, self.miss, PATIENCE) for rank, store in enumerate(stores)]

    def miss(self, other):
        self.lost.append(other)
        self.told.set()


@pytest.fixture
def store():
    return torch.distributed.HashStore()


def test_none_that_beats_is_missed_and_one_that_falls_silent_is(store):
    both = Hearts([store, store])
    assert not both.told.wait(3 * PATIENCE)
    both.hearts[0].close(well=False)
    assert both.told.wait(5 * PATIENCE) and both.lost == [0]
    both.hearts[1].close(well=False)


def test_one_that_has_come_to_its_end_is_not_missed(store):
    both = Hearts([store, store])
    both.hearts[0].close(well=True)
    assert not both.told.wait(3 * PATIENCE)
    both.hearts[1].close(well=True)


def test_a_store_that_has_gone_is_the_silence_of_all(store):
    def gone(*_):
        raise torch.distributed.DistNetworkError("connection closed")

    both = Hearts([SimpleNamespace(set=gone, check=gone, get=gone)])
    assert both.told.wait(5 * PATIENCE) and both.lost == [1]
    both.hearts[0].close(well=True)


def test_a_process_that_slept_itself_blames_no_other(store, monkeypatch):
    slept = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept[0]))
    store.set("lives/1", "1")
    one = Hearts([store])
    time.sleep(0.3 * PATIENCE)
    slept[0] = 100 * PATIENCE
    for beat in "2345":  # the other one wakes a little later
        assert not one.told.wait(0.5 * PATIENCE)
        store.set("lives/1", beat)
    one.hearts[0].close(well=True)


WAITING = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
import util.distributed
from util.distributed import join_ranks
util.distributed.PATIENCE = 2.0
with join_ranks(torch.device("cpu")) as ranks, ranks.only_first_speaks():
    ranks.any([False])
    if ranks.rank == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()  # as an operation that does not notice
"""


@pytest.mark.parametrize("dies", [0, 1])  # the first one keeps the store
def test_a_process_whose_wait_notices_nothing_is_ended_with_a_word(repository, dies):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(repository), str(dies)],
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=100)[1] for process in processes]
    left = 1 - dies
    assert processes[dies].returncode == -signal.SIGKILL and processes[left].returncode == 2, said
    assert f"error: process {left} of 2 has lost one of the others" in said[left]
    assert f"nothing was heard of process {dies} for 2 s" in said[left]
    assert "--continue_train on any number" in said[left]
