"""A lone backbone as a classifier: what the three-tier network has to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

from models.averaging import WeightAverage
from models.backbones import DenseNetPyramid, EfficientNetPyramid, ShuffleNetPyramid
from models.inference import SmearBatch
from models.losses import verdict_loss
from models.network import HEADS, IMAGENET_MEAN, IMAGENET_STD, Architecture, NetworkOutput, in_full_precision
from models.precision import MixedPrecision, fuses_steps
from models.trainer import LARGEST_GRADIENT, TrainerSettings, learning_rate_factor

Backbone = DenseNetPyramid | EfficientNetPyramid | ShuffleNetPyramid


class LoneBackbone(nn.Module):
    """One tier's backbone, its last features averaged over space, and a linear head.

    It answers as ``ThreeTierDCFNet`` does, with the same logit for every head and no mask.

    Args:
        backbone: one of ``models.backbones``; the last of its features is judged.
        architecture: input size and dropout.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, architecture: Architecture) -> None:
        super().__init__()
        self.rgb, self.architecture = backbone, architecture
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = nn.Linear(backbone.channels[-1], 1)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalised(self, rgb: Tensor) -> Tensor:
        """Smears in [0, 1] as the backbone expects them: with ImageNet's mean and deviation."""
        return (rgb - self.mean) / self.std

    def features(self, rgb: Tensor) -> Tensor:
        """(B, F), what the head reads of smears (B, 3, H, W) in [0, 1]."""
        return self.rgb(self.normalised(rgb))[-1].mean(dim=(2, 3))

    def forward(self, rgb: Tensor, given_mask: Tensor, see_given: Tensor) -> NetworkOutput:
        """Judge smears (B, 3, H, W) in [0, 1]; the masks do not count."""
        features = self.dropout(self.features(rgb))
        logits = in_full_precision(self.head, features).unsqueeze(1).expand(-1, HEADS)
        return NetworkOutput(logits, logits, torch.zeros_like(given_mask), [])

    def verdicts(self, voices: Tensor) -> Tensor:
        """The verdicts are the voices."""
        return voices


def train_lone(
    network: LoneBackbone,
    batches: Callable[[int], Iterable[SmearBatch]],
    settings: TrainerSettings,
    class_weights: Tensor,
    device: torch.device,
) -> LoneBackbone:
    """Train a lone backbone with the optimiser, schedule, loss and averaging of the three-tier network.

    Args:
        network: moved to the device here.
        batches: gives an epoch's (0-based) batches.
        settings: of the schedule and the loss.
        class_weights: (2,) of a Healthy and of an Anemic image in the loss.
        device: CPU or one GPU.

    Returns:
        The network that judges: the running average where one is kept.
    """
    network = network.to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
        fused=fuses_steps(device),
    )
    weights, mixed = class_weights.to(device), MixedPrecision(device)
    average = WeightAverage(network, settings.ema) if settings.ema > 0 else None
    for epoch in range(settings.epochs):
        warm = min(1.0, (epoch + 1) / (settings.warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm * learning_rate_factor(epoch, settings.niter, settings.niter_decay)
        network.train()
        for batch in batches(epoch):
            with mixed.autocast():
                output = network(batch.rgb, batch.mask, batch.has_mask)
            weight = weights[batch.label.clamp(min=0)] * (batch.label >= 0)
            # As heavy as in the three-tier network, so that the clip below means the same.
            loss = settings.lambda_class * verdict_loss(
                output.logits[:, :1], batch.label, weight, smoothing=settings.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            mixed.backward(loss)
            mixed.step(optimizer, network.parameters(), LARGEST_GRADIENT)
            if average is not None:
                average.update()
    return network if average is None else cast(LoneBackbone, average.network)
