"""Parts of a folded network for judging on a CPU, rearranged: the same sums in fewer steps over the features.

What takes time on a CPU, besides the convolutions, is every pass over a large map. So activations come after the
pooling that keeps a quarter, channels are interleaved where they are joined, and the decoder reads the image and writes
the mask without rearranging their pixels first. All of it is exact but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.shufflenetv2 import InvertedResidual

from models.backbones import DenseNetPyramid, PyramidMerge, ShuffleNetPyramid
from models.convolutions import FusedConvolution
from models.decoder import FOLD, MaskDecoder, fold
from models.network import ThreeTierDCFNet, Tier, resized

LANES = 8  # numbers in a register of AVX2: a convolution to 12 channels takes longer than one to 16


def rearrange(network: ThreeTierDCFNet) -> None:
    """Rearrange the parts of a folded network, in place.

    Args:
        network: on a CPU, without gradients, its normalisations folded into its convolutions.
    """
    for module in list(network.modules()):
        if isinstance(module, DenseNetPyramid | ShuffleNetPyramid):
            _activate_after_pooling(module)
        for name, child in list(module.named_children()):
            if isinstance(child, PyramidMerge):
                setattr(module, name, CoarseMerge(child) if child.coarse else FineMerge.of(child))
            elif isinstance(child, InvertedResidual):
                setattr(module, name, ShuffleUnit(child))
        if isinstance(module, Tier) and module.binary is not None:
            _add_outlines_as_projected(module)
    network.decoder = FoldedDecoder(network.decoder)  # type: ignore[assignment]  # in its place
    network.__class__ = JudgingNetwork  # the same weights and parts, another way to compute


def _activate_after_pooling(pyramid: Any) -> None:
    """Keep the largest of each window first and activate what is kept: an activation changes no order."""
    if isinstance(pyramid, DenseNetPyramid):
        stem: Any = pyramid.features
        kept = FirstChannels(stem.conv0.out_channels)
        pad_outputs(stem.conv0)
        stem.norm0, stem.pool0 = nn.Identity(), nn.Sequential(stem.pool0, kept, stem.norm0)
    else:
        *before, activate = pyramid.conv1
        pyramid.conv1, pyramid.maxpool = nn.Sequential(*before), nn.Sequential(pyramid.maxpool, activate)


def padded_outputs(convolution: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution with as many output channels as fill whole registers, those added zero."""
    more = -convolution.out_channels % LANES
    weight = functional.pad(convolution.weight, (0, 0, 0, 0, 0, 0, 0, more))
    bias = None if convolution.bias is None else functional.pad(convolution.bias, (0, more))
    return weight.contiguous(memory_format=torch.channels_last), bias


def pad_outputs(convolution: nn.Conv2d) -> None:
    """Give a convolution, in its place, as many output channels as fill whole registers, those added zero."""
    weight, bias = padded_outputs(convolution)
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


class FirstChannels(nn.Module):
    """Keeps the first channels of a map, in channels_last: what comes after takes the layout of what it is given."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, features: Tensor) -> Tensor:
        """(B, count, h, w) of (B, C, h, w)."""
        return features[:, : self.count].contiguous(memory_format=torch.channels_last)


class FineMerge(nn.Module):
    """A merge that is not coarse, whose convolutions add themselves to the coarser map as they write."""

    def __init__(self, merge: PyramidMerge) -> None:
        super().__init__()
        finest, *others = merge.laterals
        self.coarsest = others.pop()
        self.finer = nn.ModuleList(FusedConvolution(lateral) for lateral in others)
        self.finest = FusedConvolution(finest, merge.activate)

    @staticmethod
    def of(merge: PyramidMerge) -> nn.Module:
        """Such a merge, or what was given where convolutions cannot be fused."""
        fusable = all(FusedConvolution.can_stand_for(lateral, merge.activate) for lateral in merge.laterals)
        return FineMerge(merge) if fusable and FusedConvolution.can_add(merge.activate) else merge

    def forward(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Merge features at strides 4 to 32 into (B, out_channels, h, w), as large as the finest."""
        merged = self.coarsest(pyramid[-1])
        for lateral, finer in zip([*self.finer[::-1], self.finest], pyramid[-2::-1], strict=True):
            up = functional.interpolate(merged, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            merged = lateral.add_to(up, finer)
        return merged


class CoarseMerge(nn.Module):
    """A coarse merge that joins the averaged features and convolves once, where four convolutions are added."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, merge: PyramidMerge) -> None:
        super().__init__()
        laterals: list[Any] = list(merge.laterals)
        joined = torch.cat([lateral.weight for lateral in laterals], dim=1)
        self.register_buffer("weight", joined.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", laterals[0].bias)
        self.activate = merge.activate

    def forward(self, pyramid: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Merge features at strides 4 to 32 into (B, out_channels, *size)."""
        parts = [functional.adaptive_avg_pool2d(x, size) if x.shape[-2:] != size else x for x in pyramid]
        merged: Tensor = self.activate(functional.conv2d(torch.cat(parts, dim=1), self.weight, self.bias))
        return merged


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2C, h, w), the channels of two maps (B, C, h, w) in turns, in channels_last.

    ShuffleNetV2's channel shuffle of the two side by side; torchvision's gives another layout, which the next
    convolution has to undo.
    """
    pairs = torch.complex(first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1))  # quicker than stacking them
    return torch.view_as_real(pairs).flatten(-2).permute(0, 3, 1, 2)


class ShuffleUnit(nn.Module):
    """A unit of torchvision's ShuffleNetV2 whose maps stay in channels_last."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.halves, self.branch1, self.branch2 = unit.stride != 1, unit.branch1, unit.branch2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w), or to (B, D, h/2, w/2)."""
        if self.halves:
            return interleaved(self.branch1(x), self.branch2(x))
        kept, changed = x.chunk(2, dim=1)
        return interleaved(kept, self.branch2(changed))


def unfolded(folded: Tensor) -> Tensor:
    """``pixel_shuffle`` of (B, 4, h, w) float32 to (B, 1, 2h, 2w), two neighbouring pixels moved as one number."""
    batch, _, height, width = folded.shape
    pairs = folded.permute(0, 2, 3, 1).contiguous().view(torch.int64)  # (B, h, w, FOLD) of what lies side by side
    rows = pairs.permute(0, 1, 3, 2).contiguous().view(torch.float32)
    return rows.view(batch, 1, FOLD * height, FOLD * width)


class JoiningConvolution(nn.Module):
    """A convolution of two maps side by side that need not be laid so: each has its own, and the second adds its sums.

    Args:
        joint: convolution and ReLU, the first and the last of a sequence, normalisation folded.
        channels: of the first map.
    """

    def __init__(self, joint: nn.Sequential, channels: int) -> None:
        super().__init__()
        whole: Any = joint[0]
        self.first = _part_of(whole, whole.weight[:, :channels], whole.bias)
        self.second = FusedConvolution(_part_of(whole, whole.weight[:, channels:], None), joint[-1])

    @staticmethod
    def can_stand_for(joint: nn.Sequential) -> bool:
        """Whether these convolutions can be fused."""
        return FusedConvolution.can_stand_for(joint[0], joint[-1]) and FusedConvolution.can_add(joint[-1])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, D, h, w) of maps (B, channels, h, w) and (B, others, h, w)."""
        return self.second.add_to(self.first(first), second)


def _part_of(whole: Any, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """The convolution of some of the input's channels."""
    shape = (weight.shape[1], weight.shape[0], whole.kernel_size, whole.stride, whole.padding)
    # Without weights, as they are replaced: drawing some would move a training's random numbers.
    part = nn.Conv2d(*shape, bias=bias is not None, device="meta").requires_grad_(False)
    part.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    part.bias = bias if bias is None else nn.Parameter(bias, requires_grad=False)
    return part


def _joining(joint: nn.Sequential) -> nn.Module:
    """The convolution of two maps with as many channels each, without laying them side by side where that can be."""
    if not JoiningConvolution.can_stand_for(joint):
        return SideBySide(joint)
    return JoiningConvolution(joint, cast(Any, joint[0]).in_channels // 2)


class SideBySide(nn.Module):
    """What follows is shown two maps laid side by side."""

    def __init__(self, joint: nn.Module) -> None:
        super().__init__()
        self.joint = joint

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, D, h, w) of maps (B, C, h, w) and (B, E, h, w)."""
        joined: Tensor = self.joint(torch.cat([first, second], dim=1))
        return joined


class FoldedDecoder(nn.Module):
    """The mask decoder, which reads the image by one convolution of 6x6 pixels instead of folding it first.

    A 3x3 convolution on folded pixels is a 6x6 convolution of stride 2 on the pixels themselves.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        first: Any = decoder.at_half
        weight = functional.pixel_shuffle(first[0].weight, FOLD)
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", first[0].bias)
        self.context, self.at_quarter = decoder.context, decoder.at_quarter
        self.join_quarter, self.join_half = _joining(decoder.join_quarter), _joining(decoder.join_half)
        self.logit = decoder.logit

    def folded_logit(self, image: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """The mask's logit, folded (B, 4, H/2, W/2), halves rounded up, as ``MaskDecoder`` before it unfolds."""
        height, width = image.shape[-2:]
        if height % FOLD or width % FOLD:
            image = functional.pad(image, (0, -width % FOLD, 0, -height % FOLD))
        half = functional.conv2d(image, self.weight, self.bias, FOLD, FOLD).relu_()
        quarter = self.at_quarter(half)
        context = self.context(pyramid, (0, 0))  # as large as the quarter: halved twice, rounded up, as that
        x = self.join_quarter(quarter, context)
        x = functional.interpolate(x, size=half.shape[-2:], mode="bilinear", align_corners=False)
        folded: Tensor = self.logit(self.join_half(x, half))
        return folded

    def forward(self, image: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """As ``MaskDecoder``: (B, 1, H, W) for a normalised image (B, 3, H, W) and Tier-I's features."""
        return unfolded(self.folded_logit(image, pyramid))[..., : image.shape[-2], : image.shape[-1]]


class JudgingTier(Tier):
    """A tier that resizes the binary stream's few channels before it projects them, and adds them as it writes."""

    def _with_outlines(self, merged: Tensor, outlines: Tensor) -> Tensor:
        return cast(FusedConvolution, self.enter_binary).add_to(merged, resized(outlines, merged))


def _add_outlines_as_projected(tier: Tier) -> None:
    if FusedConvolution.can_stand_for(tier.enter_binary, None):
        tier.enter_binary = FusedConvolution(tier.enter_binary)  # type: ignore[assignment]  # in its place
        tier.__class__ = JudgingTier


class JudgingNetwork(ThreeTierDCFNet):
    """A network with the parts above; the drawn mask goes to the binary stream folded as the decoder makes it."""

    def normalised(self, rgb: Tensor) -> Tensor:
        """As the network's, by rows of the image: constants as long as a row take half the time of three numbers."""
        if not rgb.is_contiguous(memory_format=torch.channels_last):
            return super().normalised(rgb)
        rows = rgb.permute(0, 2, 3, 1).flatten(2)  # (B, H, 3W)
        shift, scale = ((-self.mean / self.std).flatten(), (1 / self.std).flatten())
        width = rgb.shape[-1]
        flat = torch.addcmul(shift.repeat(width), rows, scale.repeat(width))
        return flat.unflatten(2, (width, -1)).permute(0, 3, 1, 2)

    def _masks(
        self, image: Tensor, pyramid: list[Tensor], given_mask: Tensor, see_given: Tensor
    ) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        if not self.draws_masks or height % FOLD or width % FOLD:
            return super()._masks(image, pyramid, given_mask, see_given)
        decoder: Any = self.decoder
        folded: Tensor = decoder.folded_logit(image, pyramid)
        seen = folded.sigmoid()
        if bool(see_given.any()):
            seen = torch.where(see_given.view(-1, 1, 1, 1), fold(given_mask), seen)
        return unfolded(folded), seen.contiguous(memory_format=torch.channels_last)
