"""The device a run uses, and how exact it has to be."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from util.errors import UserError


def _present_gpus() -> str:
    if not torch.cuda.is_available():
        return "no CUDA GPU that this PyTorch can use"
    count = torch.cuda.device_count()
    return ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count))


def choose_device(gpu_ids: str) -> torch.device:
    """The device named by ``--gpu_ids``.

    Raises:
        UserError: that GPU is not there, or several were named.
    """
    ids = [int(part) for part in gpu_ids.split(",")]
    if ids == [-1]:
        return torch.device("cpu")
    if len(ids) > 1:
        raise UserError(
            f"--gpu_ids {gpu_ids} names several GPUs",
            expected="one GPU a run: training on several is not built yet",
            remedy=f"use --gpu_ids {ids[0]}",
        )
    if not torch.cuda.is_available() or ids[0] >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_ids {gpu_ids}: there is no GPU {ids[0]} here",
            expected="a CUDA GPU of that number",
            found=_present_gpus(),
            remedy="use --gpu_ids -1 to run on the CPU",
        )
    torch.cuda.set_device(ids[0])
    return torch.device("cuda", ids[0])


def set_seed(seed: int, *, deterministic: bool) -> None:
    """Seed every generator in use.

    ``deterministic`` also asks PyTorch for operations that give the same bits every time; it warns where it has none.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def describe_device(device: torch.device) -> str:
    """The device in words, for tables of figures: the GPU's name, or the number of threads that the CPU works with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
