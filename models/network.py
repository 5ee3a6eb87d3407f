"""The three-tier network: two streams, three tiers, a head each, their fusion and the mask decoder."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.backbones import (
    BINARY,
    BINARY_THIN,
    STANDARD,
    THIN,
    THIN_AROUND_LITE0,
    BackboneSizes,
    DenseNetPyramid,
    EfficientNetPyramid,
    PyramidMerge,
    ShuffleNetPyramid,
)
from models.decoder import FOLD, MaskDecoder, fold

TIERS = 3
TIER_CHANNELS = (64, 128, 256)
TIER_BACKBONES = (DenseNetPyramid, EfficientNetPyramid, ShuffleNetPyramid)
TIER_NAMES = ("DenseNet", "EfficientNet", "ShuffleNet")
TIER_KEYS = ("tier1", "tier2", "tier3")
HEAD_KEYS = (*TIER_KEYS, "global")
HEADS = len(HEAD_KEYS)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preset:
    """Widths of the whole network."""

    rgb: BackboneSizes
    binary: BackboneSizes
    decoder_width: int
    discriminator_width: int


PRESETS = {
    "full": Preset(STANDARD, BINARY, 16, 64),
    "lite": Preset(THIN_AROUND_LITE0, BINARY_THIN, 8, 8),
    "small": Preset(THIN, BINARY_THIN, 8, 8),
}


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint must say for its network to be built again.

    Attributes:
        preset: "full", "lite" or "small".
        fine_size: side of the square input in pixels.
        dropout: before each head.
        binary_stream: whether the tiers see the masks at all.
        fusion: whether Global hears the fused features as well; otherwise it repeats the last open tier.
    """

    preset: str = "full"
    fine_size: int = 300
    dropout: float = 0.2
    binary_stream: bool = True
    fusion: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for a checkpoint."""
        return asdict(self)


def tier_sizes(fine_size: int) -> tuple[int, int, int]:
    """Sides of the three tiers' maps: 200, 100 and 10 at the published input of 300; other inputs scale."""
    return round(fine_size * 2 / 3), round(fine_size / 3), math.ceil(fine_size / 32)


@dataclass
class TierOutput:
    """What a tier hands on.

    Attributes:
        fused: (B, channels, h, w), both streams' features at the size they were merged at.
        size: height and width of the tier's map.
        pooled: (B, channels), the average of ``fused`` over space.
        voice: (B,), the logit that the tier arrives at by itself.
    """

    fused: Tensor
    size: tuple[int, int]
    pooled: Tensor
    voice: Tensor

    @property
    def map(self) -> Tensor:
        """(B, channels, side, side), the published output of the tier; made when asked for."""
        if self.fused.shape[-2:] == self.size:
            return self.fused
        return functional.interpolate(self.fused, size=self.size, mode="bilinear", align_corners=False)


def in_full_precision(head: nn.Linear, features: Tensor) -> Tensor:
    """Logits (B,) of features (B, C) in float32, also under autocast: eight bits would make ties of near verdicts."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float()).squeeze(1)


def resized(features: Tensor, other: Tensor) -> Tensor:
    """Features (B, C, h, w) at the height and width of others."""
    if features.shape[-2:] == other.shape[-2:]:
        return features
    return functional.interpolate(features, size=other.shape[-2:], mode="bilinear", align_corners=False)


class Tier(nn.Module):
    """One tier: the RGB stream's backbone, the binary stream's, their fusion into one map, and a head."""

    def __init__(self, index: int, architecture: Architecture) -> None:
        super().__init__()
        preset, backbone = PRESETS[architecture.preset], TIER_BACKBONES[index]
        channels, coarse = TIER_CHANNELS[index], index == TIERS - 1
        side = tier_sizes(architecture.fine_size)[index]
        self.size = (side, side)
        self.rgb = backbone(3, preset.rgb, TIER_CHANNELS[index - 1] if index else 0)
        self.merge_rgb = PyramidMerge(self.rgb.channels, channels, coarse=coarse)
        self.binary = backbone(FOLD**2, preset.binary) if architecture.binary_stream else None  # 150x150x4, folded
        if self.binary is not None:
            self.merge_binary = PyramidMerge(self.binary.channels, channels // 4, coarse=coarse)
            self.enter_binary = nn.Conv2d(channels // 4, channels, kernel_size=1, bias=False)
            nn.init.zeros_(self.enter_binary.weight)  # the tier begins as its RGB backbone alone
        self.smooth = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(architecture.dropout)
        self.head = nn.Linear(self.rgb.channels[-1] + channels, 1)
        nn.init.zeros_(self.head.weight)  # the tier begins with the verdict of the tier before
        nn.init.zeros_(self.head.bias)

    def forward(self, pyramid: list[Tensor], binary: Tensor) -> TierOutput:
        """Fuse the RGB stream's features with the binary stream's view of the folded mask (B, 4, H/2, W/2)."""
        merged = self.merge_rgb(pyramid, self.size)
        if self.binary is not None:
            merged = self._with_outlines(merged, self.merge_binary(self.binary(binary), self.size))
        fused = self.smooth(merged)
        pooled = fused.mean(dim=(2, 3))
        features = torch.cat([pyramid[-1].mean(dim=(2, 3)), pooled], dim=1)
        return TierOutput(fused, self.size, pooled, in_full_precision(self.head, self.dropout(features)))

    def _with_outlines(self, merged: Tensor, outlines: Tensor) -> Tensor:
        """The RGB stream's merged features plus the binary stream's, projected to their channels and size."""
        projected: Tensor = resized(self.enter_binary(outlines), merged)
        return projected.add_(merged)


@dataclass
class NetworkOutput:
    """What the network says of a batch.

    Attributes:
        logits: (B, 4), verdicts of Tier-I, II, III and Global; positive means Anemic. A tier that is not open repeats
            the one before.
        voices: (B, 4), what each tier and the fused features say by themselves; 0 of a tier that is not open.
        mask_logit: (B, 1, H, W), positive means red blood cell.
        tiers: what each open tier hands on.
    """

    logits: Tensor
    voices: Tensor
    mask_logit: Tensor
    tiers: list[TierOutput]

    @property
    def maps(self) -> list[Tensor]:
        """The open tiers' maps."""
        return [tier.map for tier in self.tiers]

    @property
    def mask_probability(self) -> Tensor:
        """(B, 1, H, W) in float32."""
        return self.mask_logit.float().sigmoid()


class ThreeTierDCFNet(nn.Module):
    """DenseNet, EfficientNet and ShuffleNet tiers on a smear and its mask, opened one after the other.

    Each open tier, and the fused features of all of them, arrive at a logit by themselves: a voice. A tier's verdict is
    a weighted sum of its own voice and those of the tiers before it, Global's one of all four. The weights
    (:attr:`weights`) are no parameters: ``models.voices`` finds them on validation images, because on the images that
    it has learned from every voice is right. A tier opens with a silent voice (its head starts at zero), so it begins
    with the verdict of the tier before.

    A logit is that of the softmax over Healthy and Anemic: softmax([0, z])[1] equals sigmoid(z).

    Args:
        architecture: preset, input size, dropout, and which parts there are.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        tiers = [Tier(i, architecture) for i in range(TIERS)]
        self.tiers = nn.ModuleList(tiers)
        self.decoder = MaskDecoder(tiers[0].rgb.channels, PRESETS[architecture.preset].decoder_width)
        self.fusion_dropout = nn.Dropout(architecture.dropout)
        self.fusion_head = nn.Linear(sum(TIER_CHANNELS), 1)
        nn.init.zeros_(self.fusion_head.weight)
        nn.init.zeros_(self.fusion_head.bias)
        self.register_buffer("weights", torch.ones(HEADS, HEADS).tril())  # [verdict, voice]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.open_tiers = 1
        self.draws_masks = True
        self.tunes_earlier = False
        self.learns_end_to_end = False

    def open(self, tiers: int) -> None:
        """Open the first ``tiers`` tiers: the last of them trains; those before it are frozen unless they are tuned."""
        self.open_tiers = tiers
        for index, tier in enumerate(self.tiers):
            tier.requires_grad_(not self._is_frozen(index))
        self.train(self.training)

    def rest_decoder(self) -> None:
        """Draw no masks: for a network that never saw a true one, whose binary stream sees the given masks only."""
        self.draws_masks = False
        self.decoder.requires_grad_(False)

    @property
    def learning_voices(self) -> list[int]:
        """Which voices learn: the open tiers' that are not frozen and, where there is fusion, the fused features'."""
        tiers = [index for index in range(self.open_tiers) if not self._is_frozen(index)]
        return [*tiers, TIERS] if self.architecture.fusion else tiers

    def _tier(self, index: int) -> Tier:
        return cast(Tier, self.tiers[index])

    def _is_frozen(self, index: int) -> bool:
        return index < self.open_tiers - 1 and not self.tunes_earlier

    def train(self, mode: bool = True) -> ThreeTierDCFNet:
        """Set training mode; frozen tiers stay in evaluation, so that their batch statistics do not drift."""
        super().train(mode)
        for index, tier in enumerate(self.tiers):
            if self._is_frozen(index):
                tier.eval()
        return self

    def _gradient(self, index: int) -> contextlib.AbstractContextManager[object]:
        return torch.no_grad() if self._is_frozen(index) else contextlib.nullcontext()

    def normalised(self, rgb: Tensor) -> Tensor:
        """Smears in [0, 1] as the backbones expect them: with ImageNet's mean and deviation."""
        return torch.addcmul(-self.mean / self.std, rgb, 1 / self.std)  # one pass over the image

    def forward(self, rgb: Tensor, given_mask: Tensor, see_given: Tensor) -> NetworkOutput:
        """Judge a batch and draw its masks.

        Args:
            rgb: smears (B, 3, H, W) in [0, 1].
            given_mask: true masks or stand-ins (B, 1, H, W) in [0, 1].
            see_given: (B,) bool, True where the binary stream sees the given mask, False where the predicted one.
        """
        image = self.normalised(rgb)
        with self._gradient(0):
            pyramid = self._tier(0).rgb(image)
        mask_logit, folded = self._masks(image, pyramid, given_mask, see_given)
        outputs = self._run_tiers(image, folded, pyramid)
        voices = self._voices(outputs)
        return NetworkOutput(self.verdicts(voices), voices, mask_logit, outputs)

    def _masks(
        self, image: Tensor, pyramid: list[Tensor], given_mask: Tensor, see_given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The drawn masks' logits (B, 1, H, W), and what the binary stream sees, folded (B, 4, H/2, W/2)."""
        if self.draws_masks:
            mask_logit = self.decoder(image, pyramid)
            binary = torch.where(see_given.view(-1, 1, 1, 1), given_mask, mask_logit.detach().float().sigmoid())
        else:
            mask_logit, binary = torch.zeros_like(given_mask), given_mask
        return mask_logit, fold(binary).contiguous(memory_format=torch.channels_last)

    def _run_tiers(self, image: Tensor, folded: Tensor, pyramid: list[Tensor]) -> list[TierOutput]:
        outputs: list[TierOutput] = []
        for index in range(self.open_tiers):
            tier = self._tier(index)
            with self._gradient(index):
                features = pyramid if index == 0 else tier.rgb(image, self._hand_on(outputs[-1]), outputs[-1].size)
                outputs.append(tier(features, folded))
        return outputs

    def _hand_on(self, output: TierOutput) -> Tensor:
        """What the next tier makes the map from; each tier learns from its own verdict unless all learn end to end."""
        return output.fused if self.learns_end_to_end else output.fused.detach()

    def _voices(self, outputs: list[TierOutput]) -> Tensor:
        """(B, 4) float32: the tiers' own logits and that of their fused features; 0 for what is not there."""
        silent = torch.zeros_like(outputs[0].voice)
        voices = [output.voice for output in outputs] + [silent] * (TIERS - len(outputs))
        if not self.architecture.fusion:
            return torch.stack([*voices, silent], dim=1).float()
        closed = [outputs[0].pooled.new_zeros(len(silent), c) for c in TIER_CHANNELS[len(outputs) :]]
        pooled = [output.pooled if self.learns_end_to_end else output.pooled.detach() for output in outputs]
        fused = in_full_precision(self.fusion_head, self.fusion_dropout(torch.cat([*pooled, *closed], dim=1)))
        return torch.stack([*voices, fused], dim=1).float()

    def verdicts(self, voices: Tensor) -> Tensor:
        """(B, 4) logits of Tier-I, II, III and Global from the voices (B, 4)."""
        verdicts = (voices.unsqueeze(1) * self.weights).sum(dim=2)  # no matrix product: autocast would round it
        if self.architecture.fusion:
            return verdicts
        return torch.cat([verdicts[:, :TIERS], verdicts[:, TIERS - 1 : TIERS]], dim=1)
