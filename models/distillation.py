"""A start for tiers without published weights: their backbones learn to see what a pretrained one sees.

Feature distillation (Romero et al., "FitNets", ICLR 2015): on the training smears, without their labels, a backbone's
features at four strides, each through a 1x1 projection of its own, are fitted to those of another tier's backbone that
started from ImageNet weights. The projections are thrown away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.inference import SmearBatch
from models.network import TIER_KEYS, TIER_NAMES, ThreeTierDCFNet, Tier
from models.precision import MixedPrecision, precision
from models.pretrained import IMAGENET, RANDOM
from models.trainer import LARGEST_GRADIENT

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
MEASURED_BATCHES = 8  # enough for means and deviations
LEAST_DEVIATION = 0.5  # of the channels' mean one: a channel that hardly varies tells little and is not blown up


class Teacher:
    """A frozen backbone whose features are given with mean 0 and deviation 1, or less, in each channel.

    Args:
        backbone: in evaluation mode from here on.
        normalise: from smears in [0, 1] to what the backbone expects.
        batches: what mean and deviation are measured on.
        device: where all of it is.
    """

    def __init__(
        self,
        backbone: nn.Module,
        normalise: Callable[[Tensor], Tensor],
        batches: Iterable[SmearBatch],
        device: torch.device,
    ) -> None:
        self.backbone, self.normalise, self.device = backbone.eval(), normalise, device
        self.moments: list[tuple[Tensor, Tensor]] = []
        self._measure(batches)

    def _measure(self, batches: Iterable[SmearBatch]) -> None:
        sums: list[Tensor] = []  # for each stride (3, channels): of 1, of the features, and of their squares
        for batch in itertools.islice(batches, MEASURED_BATCHES):
            added = [_sums(features) for features in self._features(batch.rgb)]
            sums = [before + now for before, now in zip(sums, added, strict=True)] if sums else added
        for count, total, squares in sums:
            mean = total / count
            deviation = (squares / count - mean**2).clamp(min=0).sqrt()
            deviation = deviation.clamp(min=float(LEAST_DEVIATION * deviation.mean()))
            self.moments.append((mean.float().view(1, -1, 1, 1), deviation.float().view(1, -1, 1, 1)))

    @torch.no_grad()
    def _features(self, rgb: Tensor) -> list[Tensor]:
        with precision(self.device):
            return [features.float() for features in self.backbone(self.normalise(rgb))]

    def __call__(self, rgb: Tensor) -> list[Tensor]:
        """Standardised features of smears (B, 3, H, W) at strides 4, 8, 16 and 32."""
        return [(f - mean) / deviation for f, (mean, deviation) in zip(self._features(rgb), self.moments, strict=True)]


def _sums(features: Tensor) -> Tensor:
    """(3, C) float64: how many pixels features (B, C, H, W) have, their sums and those of their squares, by channel."""
    pixels = features.double()
    total, squares = pixels.sum(dim=(0, 2, 3)), pixels.square().sum(dim=(0, 2, 3))
    return torch.stack([torch.full_like(total, features[:, 0].numel()), total, squares])


def distil(
    student: nn.Module,
    teacher: Teacher,
    channels: tuple[tuple[int, ...], tuple[int, ...]],
    epochs: Callable[[int], Iterable[SmearBatch]],
    count: int,
    title: str,
) -> float:
    """Fit a backbone's features to a teacher's.

    Args:
        student: the backbone that learns.
        teacher: what it learns from.
        channels: of the student's four features, and of the teacher's.
        epochs: gives an epoch's (0-based) batches.
        count: how many epochs; the learning rate falls to zero along half a cosine.
        title: of the progress bar.

    Returns:
        Mean squared difference from the teacher's standardised features in the last epoch; guessing their mean gives 1
        or less.
    """
    device = teacher.device
    projections = nn.ModuleList(nn.Conv2d(own, theirs, 1) for own, theirs in zip(*channels, strict=True)).to(device)
    parameters = [*student.parameters(), *projections.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    student.train()
    mixed = MixedPrecision(device)
    mean = torch.zeros((), device=device)
    for epoch in tqdm(range(count), desc=title, unit="epoch", leave=False):
        losses = []
        for batch in epochs(epoch):
            loss = _mismatch(student, projections, teacher, batch.rgb)
            optimizer.zero_grad(set_to_none=True)
            mixed.backward(loss)
            mixed.step(optimizer, parameters, LARGEST_GRADIENT)
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        schedule.step()
    return float(mean)


def _mismatch(student: nn.Module, projections: nn.ModuleList, teacher: Teacher, rgb: Tensor) -> Tensor:
    """Mean squared difference from the teacher's standardised features, a mean over the scales."""
    targets = teacher(rgb)
    with precision(teacher.device):
        seen = [project(f) for project, f in zip(projections, student(teacher.normalise(rgb)), strict=True)]
    return torch.stack([_difference(f.float(), target) for f, target in zip(seen, targets, strict=True)]).mean()


def _difference(features: Tensor, target: Tensor) -> Tensor:
    if features.shape[-2:] != target.shape[-2:]:
        features = functional.interpolate(features, size=target.shape[-2:], mode="bilinear", align_corners=False)
    return functional.mse_loss(features, target)


def distil_starts(
    network: ThreeTierDCFNet,
    starts: Mapping[str, str],
    epochs: Callable[[int], Iterable[SmearBatch]],
    count: int,
    device: torch.device,
) -> dict[str, str]:
    """Give the tiers that would start from random weights what a pretrained tier's backbone sees.

    Args:
        network: on the device; changed in place.
        starts: what each tier starts from, as ``models.pretrained`` says it.
        epochs: gives an epoch's (0-based) batches of training images.
        count: how many epochs for each tier.
        device: CPU or one GPU.

    Returns:
        ``starts``, with what was changed; unchanged where no tier is pretrained or none is random.
    """
    pretrained = [key for key in TIER_KEYS if starts[key].startswith(IMAGENET)]
    random = [key for key in TIER_KEYS if starts[key].startswith(RANDOM)]
    if not count:
        return dict(starts)
    if not pretrained or not random:
        print("nothing to distil: no tier has ImageNet weights" if random else "nothing to distil: no tier is random")
        return dict(starts)
    tiers = {key: cast(Tier, network.tiers[index]) for index, key in enumerate(TIER_KEYS)}
    names = dict(zip(TIER_KEYS, TIER_NAMES, strict=True))
    source = tiers[pretrained[0]].rgb
    teacher = Teacher(source, network.normalised, epochs(0), device)
    changed = {}
    for key in random:
        student = tiers[key].rgb
        title = f"distilling {names[pretrained[0]]} into {names[key]}"
        left = distil(student, teacher, (student.channels, source.channels), epochs, count, title)
        changed[key] = (
            f"distilled from {names[pretrained[0]]}'s features, {count} epochs (mean squared difference {left:.2f})"
        )
    network.train(network.training)
    return {**starts, **changed}
