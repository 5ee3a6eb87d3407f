"""Running the network without learning: whole images, whatever the crop the network was trained on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.folding import folded
from models.network import ThreeTierDCFNet
from models.precision import precision

# Quarter turns, then whether mirrored: a smear has no up or down, so each way is as true as the other. The first one,
# two, four and eight are groups, so no way of looking at an image is told from another by the mean over them.
DIHEDRAL = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))
TEST_VIEWS = (1, 2, 4, 8)
WORTH_FOLDING = 64  # looks at images from which on a folded copy has paid for its making


class SmearBatch(Protocol):
    """What the network needs of a batch; the loader's batches are such."""

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    paired: Tensor
    label: Tensor
    index: Tensor


@dataclass
class Prediction:
    """What the network says of a batch of whole images.

    Attributes:
        batch: what it was asked about.
        logits: (B, 4), Tier-I, II, III, Global; float32.
        voices: (B, 4), what the verdicts were weighed from, see ``NetworkOutput``; float32.
        mask_probability: (B, 1, H, W), float32.
    """

    batch: SmearBatch
    logits: Tensor
    voices: Tensor
    mask_probability: Tensor


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
    *,
    views: int = 1,
) -> Iterator[Prediction]:
    """Judge batches of whole images; those larger than the network's input are covered by crops and averaged.

    Where there is much to judge a copy without batch normalisation does it, quicker and the same but for rounding.

    Args:
        network: put in evaluation mode here; its weights are taken as they are when the first batch comes.
        batches: of images at loadSize.
        device: where network and batches are.
        see_given: (B,) bool for a batch: whose given mask, and not the predicted one, the binary stream sees.
        views: over how many turned and mirrored views of each image verdicts and masks are averaged, of ``TEST_VIEWS``.

    Raises:
        ValueError: another number of views.
    """
    if views not in TEST_VIEWS:
        raise ValueError(f"views must be one of {TEST_VIEWS}, found {views}")
    network.eval()
    judging: ThreeTierDCFNet | None = None
    for batch in batches:
        if judging is None:
            judging = folded(network) if _worth_folding(network, batches, batch, views) else network
        with precision(device):
            voices, probability = _mean_of_views(judging, batch, see_given(batch), views)
        yield Prediction(batch, network.verdicts(voices), voices, probability)


def _worth_folding(network: object, batches: Iterable[SmearBatch], first: SmearBatch, views: int) -> bool:
    """Whether there is enough to judge that a folded copy saves more time than its making takes."""
    if not isinstance(network, ThreeTierDCFNet):
        return False
    looks = views * len(first.rgb) * max(1, first.rgb.shape[-1] // network.architecture.fine_size) ** 2
    return (len(batches) if isinstance(batches, Sized) else math.inf) * looks >= WORTH_FOLDING


def see_all(batch: SmearBatch) -> Tensor:
    """The binary stream sees the given mask of every image."""
    return torch.ones_like(batch.has_mask)


def see_none(batch: SmearBatch) -> Tensor:
    """The binary stream sees the predicted mask of every image."""
    return torch.zeros_like(batch.has_mask)


def _mean_of_views(network: ThreeTierDCFNet, batch: SmearBatch, see_given: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Mean voices over the views of a batch, and its mask probability over those turned back."""
    voices: list[Tensor] = []
    masks: list[Tensor] = []
    for turns, mirrored in DIHEDRAL[:views]:
        rgb, mask = (turned(planes, turns, mirrored) for planes in (batch.rgb, batch.mask))
        said, probability = _cover(network, rgb, mask, see_given)
        voices.append(said)
        masks.append(turned_back(probability, turns, mirrored))
    return torch.stack(voices).mean(dim=0), torch.stack(masks).mean(dim=0)


def turned(planes: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Turn planes (B, C, H, W) by quarters against the clock, then mirror them left to right; the layout stays."""
    if turns:
        planes = torch.rot90(planes, turns, (2, 3)).contiguous(memory_format=_layout(planes))
    return planes.flip(3) if mirrored else planes


def turned_back(planes: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Undo ``turned``."""
    return turned(planes.flip(3) if mirrored else planes, -turns, False)


def _layout(planes: Tensor) -> torch.memory_format:
    """Whether planes lie channels last, the faster layout for convolutions, or one after the other."""
    last = planes.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _cover(network: ThreeTierDCFNet, rgb: Tensor, mask: Tensor, see_given: Tensor) -> tuple[Tensor, Tensor]:
    """Mean voices and stitched mask probability over the crops that cover a batch."""
    size = network.architecture.fine_size
    height, width = rgb.shape[-2:]
    total, weight = torch.zeros_like(mask), torch.zeros_like(mask)
    voices: list[Tensor] = []
    for top, left in itertools.product(crop_offsets(height, size), crop_offsets(width, size)):
        rows, columns = slice(top, top + size), slice(left, left + size)
        output = network(rgb[..., rows, columns], mask[..., rows, columns], see_given)
        voices.append(output.voices)
        total[..., rows, columns] += output.mask_probability
        weight[..., rows, columns] += 1
    return torch.stack(voices).mean(dim=0), total / weight
