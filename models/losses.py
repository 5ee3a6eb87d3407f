"""The terms of training: the verdict, the mask (L1, overlap, adversarial) and the discriminator's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` (B,) weighted by ``weight`` (B,), zero or more; 0 where all weights are zero."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))


def l1_loss(probability: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of predicted and true masks (B, 1, H, W)."""
    return (probability - true).abs().mean()


def overlap_loss(probability: Tensor, true: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al., 3DV 2016) of predicted and true masks (B, 1, H, W), a mean over images."""
    shared = (probability * true).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + true.sum(dim=(1, 2, 3))
    return (1 - (2 * shared + 1) / (total + 1)).mean()


def verdict_loss(logits: Tensor, label: Tensor, weight: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of Healthy/Anemic logits (B, K) with labels (B,): sum over K heads, weighted mean over images.

    Args:
        logits: positive means Anemic.
        label: 0, 1, or below 0 where unknown.
        weight: of each image; 0 where the label is unknown.
        smoothing: share of the target that is spread evenly over both classes (Szegedy et al., CVPR 2016).
    """
    sure = label.clamp(min=0).to(logits.dtype).unsqueeze(1)
    target = (sure * (1 - smoothing) + smoothing / 2).expand_as(logits)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
    return masked_mean(each, weight)


class AdversarialLoss(nn.Module):
    """The objective of generator and discriminator: least squares (Mao et al., 2017) or the first, logarithmic one.

    Args:
        mode: "lsgan" or "vanilla".
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        if mode not in ("lsgan", "vanilla"):
            raise ValueError(f"unknown adversarial objective: {mode}")
        self.mode = mode

    def forward(self, scores: Tensor, real: bool) -> Tensor:
        """Loss of patch scores (B, 1, h, w) against all real or all generated."""
        target = torch.full_like(scores, float(real))
        compare = functional.mse_loss if self.mode == "lsgan" else functional.binary_cross_entropy_with_logits
        return compare(scores, target)
