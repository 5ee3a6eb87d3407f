"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Jobs that a shell script puts into the background ignore Ctrl-C, and so would every process that a test starts and
# interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real smears, where there is one; tests on real data skip without it."""
    folder = Path(os.environ.get("DCFNET_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real smears at {folder} (set DCFNET_REAL_DATA to their folder)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240731)
