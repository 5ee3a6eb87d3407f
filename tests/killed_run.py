"""A training command in a process of its own that dies at a chosen moment; for test_killing.py.

Imported by a fork server, so that each of many processes begins with everything loaded.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

# Those that are not named below are loaded for the processes that are forked from this one.
import safetensors.torch  # noqa: F401
import scipy.optimize  # noqa: F401
import scipy.special  # noqa: F401
import skimage.filters  # noqa: F401
import sklearn.metrics  # noqa: F401
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401

import data.runs  # noqa: F401
import models.building  # noqa: F401
import models.grading  # noqa: F401
import models.session
import util.visualizer  # noqa: F401

DOOR = Path(__file__).resolve().parents[1] / "3TDCFNet_train.py"
SAVING_CALLS = ("replace", "link", "fsync")


def train(arguments, folder, *, cpu_seconds=None, saving_call=None, env=None, log="log.txt"):
    """Run the training command; die after so many CPU seconds, or at the n-th call that saving makes of the system."""
    os.chdir(folder)
    os.environ.update(env or {})
    torch.set_num_threads(1)
    sys.argv = [str(DOOR), *arguments]
    models.session.SAVING_SHARE = 1.0  # save as often as --save_seconds says, however long that takes
    if saving_call is not None:
        die_at_call(saving_call)
    if cpu_seconds is not None:  # SIGPROF's own action: the process is gone, as by SIGKILL, wherever it is
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    with Path(log).open("a") as file, redirect_stdout(file), redirect_stderr(file):
        runpy.run_path(str(DOOR), run_name="__main__")


def die_at_call(number):
    """Kill this process just before its ``number``-th such call (odd numbers) or just after it (even ones)."""
    count = 0

    def wrapped(call):
        def counting(*arguments, **named):
            nonlocal count
            count += 1
            if count == number and number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **named)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counting

    for name in SAVING_CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
