"""The largest batch that fits, found by really taking steps (``--batchSize auto``)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.network import TIERS, Architecture, ThreeTierDCFNet
from models.trainer import Trainer, TrainerSettings
from util.distributed import ALONE, Ranks
from util.errors import UserError
from util.memory import forget_host_peak, is_out_of_memory, recent_host_peak

HEAD_ROOM = 0.1  # of the memory; batches differ, and other programs come and go
SMALLEST = 2  # batch normalisation needs two images
LARGEST = 256  # --lr is meant for batches of some dozens: larger ones would want another
STEPS_AN_EPOCH = 8  # fewer steps in an epoch than this and a network hardly learns in it
PROBES = (2, 4)  # images in the two steps that tell what an image takes on a CPU


def sizes(most: int) -> list[int]:
    """The batch sizes that come into question: 2, 3, 4, 6, 8, 12, 16, 24 ... up to ``most``; at least 2."""
    found = [SMALLEST]
    while (following := found[-1] * 3 // 2 if found[-1].bit_count() == 1 else found[-1] * 4 // 3) <= most:
        found.append(following)
    return found


def most_sensible(images: int) -> int:
    """The largest batch worth a try for so many training images: one that leaves steps to learn in."""
    return max(SMALLEST, min(LARGEST, images // STEPS_AN_EPOCH))


def largest_batch(fits: Callable[[int], bool], most: int, *, first: int = 32) -> int:
    """The largest of :func:`sizes` that fits, by bisection from a first guess.

    Args:
        fits: tries a batch size; what fits must fit for every smaller one.
        most: the largest to try.
        first: tried first.

    Raises:
        UserError: not even a batch of two fits.
    """
    candidates = sizes(most)
    low, high = -1, len(candidates)  # the largest known to fit, the smallest known not to
    attempt = max(i for i, size in enumerate(candidates) if size <= max(first, SMALLEST))
    while high - low > 1:
        if fits(candidates[attempt]):
            low = attempt
        else:
            high = attempt
        attempt = (low + high) // 2
    if low < 0:
        raise UserError(
            f"--batchSize auto: not even {SMALLEST} images fit into the memory",
            remedy="use --preset small or a smaller --fineSize (with --loadSize), or free memory",
        )
    return candidates[low]


def largest_by_growth(taken: Callable[[int], int], free: int, most: int) -> int:
    """The largest batch for a host's memory, from what two small ones take.

    Args:
        taken: most bytes that the process holds while it takes a step with so many images.
        free: bytes that the process could still take before these steps, and may then hold.
        most: the largest to consider.

    Raises:
        UserError: not even a batch of two fits.
    """
    small, large = (taken(images) for images in PROBES)
    each = max(0, large - small) / (PROBES[1] - PROBES[0])
    return largest_batch(lambda images: small + each * (images - PROBES[0]) <= (1 - HEAD_ROOM) * free, most)


@dataclass
class MadeUpBatch:
    """Images of noise with masks and labels, to take a step with."""

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    paired: Tensor
    label: Tensor
    index: Tensor

    @classmethod
    def of(cls, images: int, fine_size: int, device: torch.device) -> MadeUpBatch:
        """So many images of a size, half of them Anemic."""
        rgb = torch.rand(images, 3, fine_size, fine_size, device=device).contiguous(memory_format=torch.channels_last)
        mask = (rgb[:, :1] > 0.5).float().contiguous()
        index = torch.arange(images, device=device)
        return cls(rgb, mask, torch.ones(images, dtype=torch.bool, device=device), index, index % 2, index)


def take_steps(architecture: Architecture, settings: TrainerSettings, device: torch.device, images: int) -> None:
    """Take two training steps in the state that needs most memory, with a network that is thrown away.

    All tiers are open and learn; the second step finds the optimisers' own memory taken. The generators of random
    numbers are left as they were.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        network = ThreeTierDCFNet(architecture)
        trainer = Trainer(
            network, replace(settings, earlier_lr=1.0), device, samples=images, any_masks=True, all_masks=True
        )
        trainer.open_tier(TIERS, 0)
        trainer.set_learning_rate(0)
        batch = MadeUpBatch.of(images, architecture.fine_size, device)
        trainer.train_epoch([batch, batch], 0)


def choose_batch_size(
    architecture: Architecture,
    settings: TrainerSettings,
    device: torch.device,
    images: int,
    *,
    free_host: int | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """The largest batch whose training steps fit into the device's memory with some head-room.

    Args:
        architecture: of the network that shall be trained.
        settings: how.
        device: where; what else shall lie in its memory (the data) must lie there already.
        images: training images there are.
        free_host: bytes of the host's memory that are free, for a CPU.
        ranks: the processes that share a batch; all must ask, and the one with least memory decides for all.

    Raises:
        UserError: not even a batch of two fits, or the memory that a CPU has is not known.
    """
    most = most_sensible(images) // ranks.world

    def step(count: int) -> None:
        take_steps(architecture, settings, device, count)

    if device.type == "cuda":
        own = largest_batch(lambda count: _fits_gpu(step, count, device), most)
    else:
        own = _largest_on_host(step, most, None if free_host is None else free_host // ranks.world)
    smallest: int = min(ranks.gather(own))
    return ranks.world * smallest


def _largest_on_host(step: Callable[[int], None], most: int, free: int | None) -> int:
    if free is None or not forget_host_peak():
        raise UserError(
            "--batchSize auto: this system does not say how much memory a step takes",
            expected="a GPU, or Linux",
            remedy="give a number, such as --batchSize 16",
        )
    held = recent_host_peak() or 0
    return largest_by_growth(lambda count: _host_memory(step, count), held + free, most)


def _fits_gpu(step: Callable[[int], None], count: int, device: torch.device) -> bool:
    """Whether steps of so many images leave the head-room free on a GPU; nothing of them stays there."""
    _forget()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step(count)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        _forget()
    return torch.cuda.max_memory_reserved(device) <= (1 - HEAD_ROOM) * free


def _forget() -> None:
    """Give back what steps before have left."""
    gc.collect()
    torch.cuda.empty_cache()


def _host_memory(step: Callable[[int], None], count: int) -> int:
    """Most bytes that the process holds while it takes steps of so many images."""
    gc.collect()
    forget_host_peak()
    step(count)
    return recent_host_peak() or 0
