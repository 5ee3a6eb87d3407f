"""A pretrained backbone that learns nothing, and a line through its features: the cheapest network to beat.

A network that was trained for hours and tells no more than this has learned little beyond what it began with. Also
called a linear probe (Alain & Bengio, ICLR workshop 2017).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from models.inference import SmearBatch
from models.lone import Backbone, LoneBackbone
from models.network import Architecture
from models.precision import precision
from util.errors import UserError

# Strides 4, 8 and 16: the last one's 1,280 channels are more than some hundred images can weigh.
READ = slice(0, 3)
STRENGTH = 0.01  # scikit-learn's C, of standardised features
LEAST_DEVIATION = 1e-6


class FrozenBackbone(LoneBackbone):
    """A backbone as it is, and a linear head on the means of its features at strides 4, 8 and 16.

    Args:
        backbone: one of ``models.backbones``; its weights and batch statistics stay as they are.
        architecture: input size.
    """

    def __init__(self, backbone: Backbone, architecture: Architecture) -> None:
        super().__init__(backbone, architecture)
        self.head = nn.Linear(sum(backbone.channels[READ]), 1)
        self.requires_grad_(False)
        self.eval()

    def features(self, rgb: Tensor) -> Tensor:
        """(B, F) of smears (B, 3, H, W) in [0, 1]."""
        return torch.cat([scale.float().mean(dim=(2, 3)) for scale in self.rgb(self.normalised(rgb))[READ]], dim=1)


@torch.no_grad()
def fit_head(network: FrozenBackbone, epochs: Iterable[Iterable[SmearBatch]], device: torch.device) -> FrozenBackbone:
    """Fit the head by logistic regression with an L2 penalty, on standardised features of labelled images.

    Args:
        network: moved to the device here.
        epochs: batches of training images, as often as they are to be looked at (each time otherwise changed, say).
        device: CPU or one GPU.

    Returns:
        The network.

    Raises:
        UserError: the images are of one class, or none has a label.
    """
    from sklearn.linear_model import LogisticRegression

    network = network.to(device).to(memory_format=torch.channels_last).eval()
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    for batches in epochs:
        for batch in batches:
            with precision(device):
                seen.append(network.features(batch.rgb))
            labels.append(batch.label)
    label = torch.cat(labels).cpu().numpy() if labels else np.zeros(0, int)
    known = label >= 0
    if len(set(label[known].tolist())) < 2:
        raise UserError(
            "no line can be drawn between the classes",
            expected="training images of both",
            found=f"labels {sorted(set(label[known].tolist()))}",
            remedy="add labelled smears of the other class",
        )
    features = torch.cat(seen).cpu().double().numpy()[known]
    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), LEAST_DEVIATION)
    line = LogisticRegression(C=STRENGTH, max_iter=1000).fit((features - mean) / deviation, label[known])
    weight = line.coef_[0] / deviation  # of the features as they are
    network.head.weight.copy_(torch.from_numpy(weight)[None])
    network.head.bias.fill_(float(line.intercept_[0] - weight @ mean))
    return network
