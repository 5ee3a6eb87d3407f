"""The three tiers' backbones: timm's DenseNet and EfficientNet, torchvision's ShuffleNetV2, as pyramids of features.

Each backbone takes the image at its own resolution and, but for the first, the map of the tier before, which enters
through a projection that starts at zero: a tier begins as its ordinary backbone, so chaining tiers loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class BackboneSizes:
    """How wide and deep the three backbones of one stream are.

    Attributes:
        dense_growth: channels that each DenseNet layer adds.
        dense_blocks: layers in each of DenseNet's four blocks.
        efficient_width: EfficientNet-Lite0's channels are multiplied by this.
        efficient_depth: and its repeats by this.
        shuffle_repeats: ShuffleNetV2's units in its three stages.
        shuffle_channels: its stem, three stages and last convolution.
    """

    dense_growth: int
    dense_blocks: tuple[int, int, int, int]
    efficient_width: float
    efficient_depth: float
    shuffle_repeats: tuple[int, int, int]
    shuffle_channels: tuple[int, int, int, int, int]


# DenseNet-121, EfficientNet-Lite0 and ShuffleNetV2 x1.0 as published.
STANDARD = BackboneSizes(32, (6, 12, 24, 16), 1.0, 1.0, (4, 8, 4), (24, 116, 232, 464, 1024))
THIN = BackboneSizes(12, (2, 4, 6, 4), 0.5, 0.5, (2, 4, 2), (16, 32, 64, 128, 256))
# For CPUs as well: the one backbone whose ImageNet weights come as a package, between two thin ones.
THIN_AROUND_LITE0 = BackboneSizes(12, (2, 4, 6, 4), 1.0, 1.0, (2, 4, 2), (16, 32, 64, 128, 256))
# The binary stream sees outlines only; a few channels carry them.
BINARY = BackboneSizes(8, (2, 2, 4, 2), 0.35, 0.5, (1, 2, 1), (12, 24, 48, 96, 192))
BINARY_THIN = BackboneSizes(6, (1, 1, 2, 1), 0.25, 0.34, (1, 1, 1), (8, 16, 32, 64, 128))


class EntryOfPreviousTier(nn.Module):
    """Adds the map of the tier before to an early feature map, through a 1x1 projection that starts at zero."""

    def __init__(self, previous_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(previous_channels, channels, kernel_size=1, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, features: Tensor, previous: Tensor | None, size: tuple[int, int] | None = None) -> Tensor:
        """Return ``features`` (B, C, h, w) plus the projected map of the tier before (B, P, H, W), resized to them.

        Args:
            features: of the image.
            previous: the map, or None, or what the map is resized from.
            size: height and width that the map shall have been resized to, where it is not yet.
        """
        if previous is None:
            return features
        # A projection and a resize may change places; after it there are fewer channels to resize.
        projected = self.project(previous)
        if size is not None and projected.shape[-2:] != size:
            projected = functional.interpolate(projected, size=size, mode="bilinear", align_corners=False)
        resized = functional.interpolate(projected, size=features.shape[-2:], mode="bilinear", align_corners=False)
        return resized.add_(features)  # in place: no gradient asks for what was resized


def _halve(transition: Any, x: Tensor) -> Tensor:
    """DenseNet's transition, averaged before its 1x1 convolution, not after: the same sums, a quarter of the work."""
    return transition.conv(transition.pool(transition.norm(x)))


class DenseNetPyramid(nn.Module):
    """DenseNet (Huang et al., CVPR 2017; timm) giving its four block outputs."""

    def __init__(self, in_channels: int, sizes: BackboneSizes, previous_channels: int = 0) -> None:
        super().__init__()
        from timm.models.densenet import DenseNet

        network = DenseNet(sizes.dense_growth, sizes.dense_blocks, num_classes=0, in_chans=in_channels)
        self.features = network.features
        self.channels = self._measure_channels(in_channels)
        self.entry = EntryOfPreviousTier(previous_channels, 2 * sizes.dense_growth) if previous_channels else None

    def _measure_channels(self, in_channels: int) -> tuple[int, ...]:
        self.entry = None
        was_training = self.training
        with torch.no_grad():
            channels = tuple(f.shape[1] for f in self.eval()(torch.zeros(1, in_channels, 64, 64)))
        self.train(was_training)
        return channels

    def forward(
        self, image: Tensor, previous: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Map an image (B, C, H, W) to four features at strides 4, 8, 16 and 32."""
        pyramid, x = [], image
        for name, layer in self.features.named_children():
            x = _halve(layer, x) if name.startswith("transition") else layer(x)
            if name == "pool0" and self.entry is not None:
                x = self.entry(x, previous, size)
            if name in ("denseblock1", "denseblock2", "denseblock3", "norm5"):
                pyramid.append(x)
        return pyramid


# EfficientNet-Lite0 (Google, 2020) in timm's notation: kind, repeats, kernel, stride, expansion, channels.
EFFICIENTNET_LITE = (
    ("ds_r1_k3_s1_e1_c16",),
    ("ir_r2_k3_s2_e6_c24",),
    ("ir_r2_k5_s2_e6_c40",),
    ("ir_r3_k3_s2_e6_c80",),
    ("ir_r3_k5_s1_e6_c112",),
    ("ir_r4_k5_s2_e6_c192",),
    ("ir_r1_k3_s1_e6_c320",),
)
EFFICIENTNET_LITE_ENDS = (1, 2, 4, 6)  # the last stage at strides 4, 8, 16 and 32


class EfficientNetPyramid(nn.Module):
    """EfficientNet-Lite (Tan & Le, ICML 2019; timm) giving the last stage at each stride."""

    def __init__(self, in_channels: int, sizes: BackboneSizes, previous_channels: int = 0) -> None:
        super().__init__()
        from timm.models.efficientnet import EfficientNet, decode_arch_def, round_channels

        stages = decode_arch_def([list(s) for s in EFFICIENTNET_LITE], sizes.efficient_depth, fix_first_last=True)
        stem = round_channels(32, sizes.efficient_width) if sizes.efficient_width < 1 else 32
        network = EfficientNet(
            stages,
            num_classes=0,
            num_features=1280 if sizes.efficient_width >= 1 else 8 * stem,
            in_chans=in_channels,
            stem_size=stem,
            fix_stem=True,
            act_layer=nn.ReLU6,
            round_chs_fn=lambda channels: round_channels(channels, sizes.efficient_width),
            pad_type="same",  # the padding of the TensorFlow weights that Lite0 is published with
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3),  # the epsilon of those weights
        )
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks
        self.conv_head, self.bn2 = network.conv_head, network.bn2
        self.entry = EntryOfPreviousTier(previous_channels, stem) if previous_channels else None
        widths = [round_channels(c, sizes.efficient_width) for c in (24, 40, 112)]
        self.channels = (*widths, self.conv_head.out_channels)

    def forward(
        self, image: Tensor, previous: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Map an image (B, C, H, W) to features at strides 4, 8, 16 and 32 (the last after the head convolution)."""
        x = self.bn1(self.conv_stem(image))
        if self.entry is not None:
            x = self.entry(x, previous, size)
        pyramid = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in EFFICIENTNET_LITE_ENDS:
                pyramid.append(x)
        pyramid[-1] = self.bn2(self.conv_head(x))
        return pyramid


class ShuffleNetPyramid(nn.Module):
    """ShuffleNetV2 (Ma et al., ECCV 2018; torchvision, timm has none) giving its stem and three stages."""

    def __init__(self, in_channels: int, sizes: BackboneSizes, previous_channels: int = 0) -> None:
        super().__init__()
        from torchvision.models.shufflenetv2 import ShuffleNetV2

        network = ShuffleNetV2(list(sizes.shuffle_repeats), list(sizes.shuffle_channels), num_classes=1)
        if in_channels != 3:
            network.conv1[0] = nn.Conv2d(in_channels, sizes.shuffle_channels[0], 3, stride=2, padding=1, bias=False)
        self.conv1, self.maxpool, self.conv5 = network.conv1, network.maxpool, network.conv5
        self.stages = nn.ModuleList([network.stage2, network.stage3, network.stage4])
        self.entry = EntryOfPreviousTier(previous_channels, sizes.shuffle_channels[0]) if previous_channels else None
        stem, second, third, _, last = sizes.shuffle_channels
        self.channels = (stem, second, third, last)

    def forward(
        self, image: Tensor, previous: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Map an image (B, C, H, W) to features at strides 4, 8, 16 and 32 (the last after the last convolution)."""
        x = self.maxpool(self.conv1(image))
        if self.entry is not None:
            x = self.entry(x, previous, size)
        pyramid = [x]
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        pyramid[-1] = self.conv5(x)
        return pyramid


class PyramidMerge(nn.Module):
    """Merges a backbone's four features into one, by a 1x1 convolution each and a sum.

    ``coarse`` merges at a given small size, averaging the finer features down; otherwise the coarse features are added
    into the next finer ones, up to the finest (Lin et al., CVPR 2017): an upsampled map carries no more than what it
    was made from, and work at 75x75 costs a seventh of work at 200x200.
    """

    def __init__(self, channels: Sequence[int], out_channels: int, *, coarse: bool) -> None:
        super().__init__()
        self.coarse = coarse
        self.laterals = nn.ModuleList(nn.Conv2d(c, out_channels, kernel_size=1, bias=False) for c in channels)
        self.activate = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Merge features at strides 4 to 32 into (B, out_channels, h, w); ``size`` counts for a coarse merge only."""
        return self.activate(self._averaged(pyramid, size) if self.coarse else self._top_down(pyramid))

    def _averaged(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        parts = [
            lateral(functional.adaptive_avg_pool2d(x, size) if x.shape[-2:] != size else x)
            for lateral, x in zip(self.laterals, pyramid, strict=True)
        ]
        return torch.stack(parts).sum(dim=0)

    def _top_down(self, pyramid: Sequence[Tensor]) -> Tensor:
        merged = self.laterals[-1](pyramid[-1])
        for lateral, finer in zip(list(self.laterals)[-2::-1], list(pyramid)[-2::-1], strict=True):
            up = functional.interpolate(merged, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            merged = up.add_(lateral(finer))  # in place: no gradient asks for what was resized
        return merged
