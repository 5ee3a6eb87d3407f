"""The device a run uses, and how exact it has to be."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from util.distributed import local_rank
from util.errors import UserError


def _present_gpus() -> str:
    if not torch.cuda.is_available():
        return "no CUDA GPU that this PyTorch can use"
    count = torch.cuda.device_count()
    return ", ".join(f"{index} ({torch.cuda.get_device_name(index)})" for index in range(count))


def choose_device(gpu_ids: str) -> torch.device:
    """The device named by ``--gpu_ids``.

    Of several processes that torchrun started each takes the GPU that stands at its place in the list.

    Raises:
        UserError: that GPU is not there, or several were named for one process, or fewer than there are processes.
    """
    ids = [int(part) for part in gpu_ids.split(",")]
    if ids == [-1]:
        return torch.device("cpu")
    place, processes = local_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if len(ids) != processes:
        raise UserError(
            f"--gpu_ids {gpu_ids} names {len(ids)} {'GPU' if len(ids) == 1 else 'GPUs'} for {processes} "
            f"{'process' if processes == 1 else 'processes'}",
            expected="one process a GPU",
            remedy=f"start with torchrun --standalone --nproc_per_node {len(ids)} 3TDCFNet_train.py ... --gpu_ids "
            f"{gpu_ids}" + (f", or use --gpu_ids {ids[0]}" if processes == 1 else ""),
        )
    if not torch.cuda.is_available() or ids[place] >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_ids {gpu_ids}: there is no GPU {ids[place]} here",
            expected="a CUDA GPU of that number",
            found=_present_gpus(),
            remedy="use --gpu_ids -1 to run on the CPU",
        )
    torch.cuda.set_device(ids[place])
    return torch.device("cuda", ids[place])


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
