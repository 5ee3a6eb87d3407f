"""Running the network without learning: whole images, whatever the crop the network was trained on."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.network import ThreeTierDCFNet


class SmearBatch(Protocol):
    """What the network needs of a batch; the loader's batches are such."""

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    label: Tensor
    index: Tensor


@dataclass
class Prediction:
    """What the network says of a batch of whole images.

    Attributes:
        batch: what it was asked about.
        logits: (B, 4), Tier-I, II, III, Global; float32.
        mask_probability: (B, 1, H, W), float32.
    """

    batch: SmearBatch
    logits: Tensor
    mask_probability: Tensor


def precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where the GPU has it; float32 elsewhere (bfloat16 on a CPU is 2.5 to 19 times slower)."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def crop_offsets(load_size: int, fine_size: int) -> list[int]:
    """Evenly spread offsets of the fewest crops of ``fine_size`` pixels that cover ``load_size``."""
    count = math.ceil(load_size / fine_size)
    if count == 1:
        return [0]
    return [round(i * (load_size - fine_size) / (count - 1)) for i in range(count)]


@torch.no_grad()
def predict(
    network: ThreeTierDCFNet,
    batches: Iterable[SmearBatch],
    device: torch.device,
    see_given: Callable[[SmearBatch], Tensor],
) -> Iterator[Prediction]:
    """Judge batches of whole images; those larger than the network's input are covered by crops and averaged.

    Args:
        network: put in evaluation mode here.
        batches: of images at loadSize.
        device: where network and batches are.
        see_given: (B,) bool for a batch: whose given mask, and not the predicted one, the binary stream sees.
    """
    network.eval()
    for batch in batches:
        with precision(device):
            logits, probability = _cover(network, batch, see_given(batch))
        yield Prediction(batch, logits, probability)


def see_all(batch: SmearBatch) -> Tensor:
    """The binary stream sees the given mask of every image."""
    return torch.ones_like(batch.has_mask)


def see_none(batch: SmearBatch) -> Tensor:
    """The binary stream sees the predicted mask of every image."""
    return torch.zeros_like(batch.has_mask)


def _cover(network: ThreeTierDCFNet, batch: SmearBatch, see_given: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logits and stitched mask probability over the crops that cover a batch."""
    size = network.architecture.fine_size
    height, width = batch.rgb.shape[-2:]
    total, weight = torch.zeros_like(batch.mask), torch.zeros_like(batch.mask)
    logits: list[Tensor] = []
    for top, left in itertools.product(crop_offsets(height, size), crop_offsets(width, size)):
        rows, columns = slice(top, top + size), slice(left, left + size)
        output = network(batch.rgb[..., rows, columns], batch.mask[..., rows, columns], see_given)
        logits.append(output.logits)
        total[..., rows, columns] += output.mask_probability
        weight[..., rows, columns] += 1
    return torch.stack(logits).mean(dim=0), total / weight
