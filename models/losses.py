"""The terms of training: the verdict, the mask (L1, overlap, adversarial) and the discriminator's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``values`` (B,) over the samples whose ``weight`` (B,) is not zero; 0 where there are none."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


def l1_loss(probability: Tensor, true: Tensor) -> Tensor:
    """Mean absolute difference of predicted and true masks (B, 1, H, W)."""
    return (probability - true).abs().mean()


def overlap_loss(probability: Tensor, true: Tensor) -> Tensor:
    """1 - soft Dice (Milletari et al., 3DV 2016) of predicted and true masks (B, 1, H, W), a mean over images."""
    shared = (probability * true).sum(dim=(1, 2, 3))
    total = probability.sum(dim=(1, 2, 3)) + true.sum(dim=(1, 2, 3))
    return (1 - (2 * shared + 1) / (total + 1)).mean()


def verdict_loss(logits: Tensor, label: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of Healthy/Anemic logits (B, K) with labels (B,): sum over K heads, mean over known labels."""
    target = label.clamp(min=0).to(logits.dtype).unsqueeze(1).expand_as(logits)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=1)
    return masked_mean(each, known)


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
